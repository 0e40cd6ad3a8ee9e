"""Writes generated slices and their tissue as a set in the layout of the course's own."""

import shutil

import numpy as np

import dataset
from brains.cli import UserError, make_folder, writing
from brains.config import TOP_FOLDER
from brains.names import mask_of, split_folder


def check_target(folder):
    """Raise UserError if a set cannot be written to the new folder `folder`."""
    if folder.exists():
        raise UserError(f"{folder}: is there already; name a new folder with --export")
    make_folder(folder.parent)


def write_set(folder, portions, levels):
    """Write portions (images, labels) of slices to a new folder, as training cases of so many `levels`.

    Images (N, 128, 128, 1) and labels (N, 128, 128) become files of 256x256, each pixel four times, so that both are
    read back as they were, images in whole grey values. Nothing is left if it cannot be finished.
    """
    staging, number = folder.with_name(f".{folder.name}.part"), 0
    shutil.rmtree(staging, ignore_errors=True)
    slices, masks = (staging / TOP_FOLDER / split_folder(split) for split in ("train", "seg_train"))
    try:
        with writing(folder):
            slices.mkdir(parents=True)
            masks.mkdir()
            for images, labels in portions:
                for image, mask in zip(images, labels):
                    name = f"case_{number // levels + 1:03}_slice_{number % levels}.nii.png"
                    dataset.save_image(slices / name, _enlarged(image))
                    dataset.save_mask(masks / mask_of(name), _enlarged(mask))
                    number += 1
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _enlarged(array):
    return np.repeat(np.repeat(array, 2, axis=0), 2, axis=1)
