"""The data: fetches the OASIS slices, verifies them and turns them into NumPy arrays.

    python dataset.py                       fetch, verify, say what is there
    python dataset.py --data PATH           the same for a folder or a zip that you already have
    python dataset.py slices VOLUMES DIR    cut slices like these from a folder of your own volumes

The slices are axial sections of the OASIS-1 study (Marcus et al. 2007, Journal of Cognitive Neuroscience 19(9)): 8-bit
grey PNGs of 256x256 pixels, each slice scaled to 0..255 on its own, 32 of each case. A case is a person, in one split:

    keras_png_slices_data/keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png
    keras_png_slices_data/keras_png_slices_seg_{train,validate,test}/seg_NNN_slice_K.nii.png    their tissue

Training holds some cases of train out by itself. The validate split is not used.

`load_split` gives them as the networks see them: (N, 128, 128, 1) float32 in [-0.5, 0.5]. `load_masks` gives the tissue
of each pixel: (N, 128, 128) uint8, 0 background, 1 CSF, 2 grey matter, 3 white matter.
"""

import argparse
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from brains import cli, config, volumes
from brains.archives import extract_once
from brains.cli import UserError, note, reason, short
from brains.config import MASKS, SIZE, SPLITS, TISSUES, TOP_FOLDER
from brains.names import case_of, is_litter, mask_of, natural_order, split_folder
from brains.sources import GENUINE, digest_of, fetch, is_genuine

DEPTH = 3  # folders at most between what a user names and a split folder; the GitHub archive has three
MASK = "one has 256x256 pixels, 0 where there is background, 85 CSF, 170 grey and 255 white matter"
QUEUED = 4096  # images that wait to be decoded at a time
MAX_PIXELS = 64_000_000  # of an image that a user names
Image.MAX_IMAGE_PIXELS = None  # in favour of that


# --- load -------------------------------------------------------------------------------------------------------------


class Slices(NamedTuple):
    """A split: images (N, 128, 128, 1) float32 in [-0.5, 0.5], their file names, and the digest of the files."""

    images: np.ndarray
    names: list
    digest: str


def load_split(split, data=None, url=None, allocate=None):
    """Return the Slices of a split ("train", "validate" or "test") in natural order: by case, then by slice.

    `data` is a folder or zip of slices, or a folder of volumes; without it the slices are fetched once, from `url` or
    OASIS_URL of the environment if one is given. `allocate(count)` gives the array to fill (default: a new one). Raises
    UserError if slices are missing, broken or not images.
    """
    paths = slice_paths(split, data, url)
    images = allocate(len(paths)) if allocate else np.empty((len(paths), SIZE, SIZE, 1), np.float32)
    digest = read_images(paths, images)
    if not is_genuine(split, digest):
        note(
            f"note: {short(paths[0].parent)} differs from the genuine OASIS {split} split ({len(paths):,} images where "
            f"that has {GENUINE[split][0]:,}); used as it is"
        )
    return Slices(images, [path.name for path in paths], digest)


def load_masks(split, data=None, url=None):
    """Return the tissue (N, 128, 128) uint8, a label of config.TISSUES, of the slices that `load_split` gives.

    A mask has twice the size of an image, and every second of its pixels is taken. Raises UserError if masks are
    missing, broken, of another size, or have other values than the course's.
    """
    return read_masks(split, data, url)[0]


def read_masks(split, data=None, url=None, allocate=None):
    """Return what `load_masks` does, in the array that `allocate(count)` gives, and the digest of the files."""
    paths = slice_paths(split, data, url)
    folder = paths[0].parent.with_name(split_folder(f"seg_{split}"))
    folder = folder if folder.is_dir() else find_split(f"seg_{split}", data, url)
    files = [folder / mask_of(path.name) for path in paths]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{short(folder)}: no masks of {len(missing):,} of {len(paths):,} slices, as {missing[0]}")
    masks = allocate(len(paths)) if allocate else np.empty((len(paths), SIZE, SIZE), np.uint8)
    return masks, read_images(files, masks, prepare_mask)


def slice_paths(split, data=None, url=None):
    """Return the files of a split in natural order; see `load_split`."""
    folder = find_split(split, data, url)
    names = [path.name for path in folder.iterdir() if not is_litter(Path(path.name)) and path.is_file()]
    if not names:
        raise UserError(f"{short(folder)}: no slices here; name another set with --data")
    return [folder / name for name in sorted(names, key=natural_order)]


def read_images(paths, images, prepared=lambda grey, path: prepare(grey)):
    """Decode image files into `images` (N, 128, 128, 1); returns the digest of the files, as in GENUINE.

    `prepared(grey, path)` turns the grey values of each into an image.
    """

    def read(number):
        path, content = paths[number], paths[number].read_bytes()
        images[number : number + 1] = prepared(read_grey(content, path), path)[None]
        return hashlib.sha256(content).hexdigest()

    digests = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for start in range(0, len(paths), QUEUED):
            digests += pool.map(read, range(start, min(start + QUEUED, len(paths))))
    return digest_of({path.name: digest for path, digest in zip(paths, digests)})


# --- images -----------------------------------------------------------------------------------------------------------


def prepare(grey):
    """Turn grey values (H, W) in 0..255 into an image (128, 128, 1) float32 in [-0.5, 0.5].

    The longer side becomes 128 pixels; the shorter one is padded with black. Values are rounded to quarters of a grey
    value, as the mean of four pixels has them anyway (1020 = 4 x 255).
    """
    scale = SIZE / max(grey.shape)
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    if scale != 1:
        # the mean of the pixels under each new one; at half size this is bilinear with half-pixel centres
        how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        grey = np.asarray(Image.fromarray(grey).resize((width, height), how, reducing_gap=1.0))
    if height != width:
        top, left = (SIZE - height) // 2, (SIZE - width) // 2
        grey = np.pad(grey, ((top, SIZE - height - top), (left, SIZE - width - left)))
    return np.round(4 * grey[..., None]) / np.float32(1020) - np.float32(0.5)


def prepare_mask(grey, path):
    """Turn the grey values (256, 256) of a mask into labels (128, 128) uint8; UserError, with `path`, if it is none."""
    labels, rest = np.divmod(grey, 85)
    if grey.shape != (2 * SIZE, 2 * SIZE) or rest.any():
        size, values = "x".join(map(str, grey.shape)), ", ".join(f"{value:g}" for value in np.unique(grey)[:5])
        raise UserError(f"{path}: not a mask ({size} pixels, values {values}); {MASK}")
    return labels[::2, ::2].astype(np.uint8)


def read_grey(content, where):
    """Return the grey values (H, W) float32, 0 to 255, of the bytes of an image file.

    Colours become luminance and transparency becomes black. 16-bit and float images are scaled by their own minimum
    and maximum, as the slices were. Raises UserError, which names `where`, if the file is empty, broken, too large or
    not an image.
    """
    if not content:
        raise UserError(f"{where}: the file is empty; name an image file")
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{where}: {image.width}x{image.height} pixels are too many; shrink it first")
        if image.mode == "L" and not image.info:  # like the slices: nothing to convert
            return np.asarray(image, np.float32)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            grey = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
            low, high = grey.min(), grey.max()
            return (grey - low) * (255 / (high - low)) if high > low else np.zeros_like(grey)
        return np.asarray(_flat(image).convert("L"), np.float32)
    except Image.UnidentifiedImageError:
        raise UserError(f"{where}: not an image; name a PNG, JPEG or other image file") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything for a broken file
        raise UserError(f"{where}: a broken image ({error}); get a sound copy") from error


def load_image(path):
    """Return any image file (PNG, JPEG, BMP, GIF, ...) as (128, 128, 1) float32 in [-0.5, 0.5].

    Raises UserError if it is missing, not a file, broken, too large or not an image.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; name an image file")
    try:
        return prepare(read_grey(path.read_bytes(), path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); name an image file") from error


def is_coloured(path):
    """Return whether an image file that `load_image` can read has colours."""
    with Image.open(path) as image:
        colours = np.asarray(_flat(image).convert("RGB"))
    return bool(np.ptp(colours, axis=-1).max() > 8)  # JPEG leaves a little in grey images


def _flat(image):
    """Return an image with black where it is transparent."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)


def to_grey(images):
    """Return the grey values (...) uint8, 0 to 255, of images (...) in [-0.5, 0.5]."""
    return np.round((np.clip(images, -0.5, 0.5) + 0.5) * 255).astype(np.uint8)


def save_image(path, image):
    """Write an image (H, W, 1) in [-0.5, 0.5] as an 8-bit grey PNG. Raises UserError if that fails."""
    save_grey(path, to_grey(image[..., 0]))


def save_mask(path, labels):
    """Write labels (H, W) of tissues as an 8-bit PNG, 0, 85, 170 and 255 as the course's masks have."""
    save_grey(path, np.uint8(85) * labels)


def save_grey(path, grey):
    """Write grey values (H, W) uint8 as a PNG. Raises UserError if that fails."""
    with cli.written(Path(path)) as part:
        Image.fromarray(grey).save(part, format="PNG")


# --- find -------------------------------------------------------------------------------------------------------------


def find_split(split, data=None, url=None):
    """Return the folder of a split, or of its masks ("seg_train"). What is missing is fetched.

    A zip is extracted once, and volumes are cut once. Up to DEPTH folders may lie between `data` and the split folder,
    or it may be that folder. Raises UserError if there are no slices of the split.
    """
    if data is None:
        source = config.DATASET / TOP_FOLDER
        if not (source / split_folder(split)).is_dir():
            fetch(split, url)
        elif url:
            note(f"note: {short(source)} is there, so {url} is not fetched; delete that folder to fetch it")
    elif not Path(data).exists():
        raise UserError(f"{data}: does not exist; name a folder or zip of slices, or a folder of volumes, with --data")
    elif not Path(data).is_dir():
        source = extract_once(Path(data), config.DATASET)
    elif any(_below(Path(data), each) for each in SPLITS):
        source = Path(data)
    else:
        source = volumes.slice_once(Path(data), config.DATASET)
    folder = _below(source, split)
    if folder is None:
        remedy = "delete that folder and run again to fetch it" if data is None else "name another set with --data"
        what = "masks" if split in MASKS else "slices"
        raise UserError(f"{data or short(source)}: no {what} in a folder {split_folder(split)} here; {remedy}")
    return folder


def _below(path, split):
    """Return the folder of a split at or below `path`, or None."""
    name = split_folder(split)
    if path.name == name:
        return path
    found = (folder for depth in range(DEPTH + 1) for folder in sorted(path.glob("*/" * depth + name)))
    return next((folder for folder in found if not is_litter(folder.relative_to(path))), None)


# --- the script -------------------------------------------------------------------------------------------------------


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description="Fetch the OASIS slices, verify them, and say what is there.")
    cli.add_data_arguments(parser)
    commands = parser.add_subparsers(dest="command", metavar="{slices}")
    meaning = "Cut slices like the genuine ones from volumes: NIfTI (.nii, .nii.gz) or Analyze (.hdr with .img)."
    slices = commands.add_parser("slices", help="cut slices from volumes", description=meaning)
    add = slices.add_argument
    add("volumes", type=Path, metavar="VOLUMES", help="folder of volumes, at any depth")
    add("target", type=Path, metavar="DIR", help="new folder for the slices")
    add("--seed", type=cli.seed, default=0, metavar="N", help="draws the splits (default: %(default)s)")
    cli.add_orientation_argument(slices)
    meaning = "files of tissue labels, from the folder of each volume, such as '*_seg.nii.gz'; they become the masks"
    add("--labels", metavar="PATTERN", help=meaning)
    meaning = "tissues of the labels: background, csf, grey or white (default: 1=csf,2=grey,3=white)"
    add("--labels-map", type=cli.labels_map, metavar="MAP", help=meaning)
    args = parser.parse_args(arguments)
    if args.command == "slices" and (args.data or args.url):
        parser.error("--data and --url do not go with slices; name the folder of volumes after slices")
    if args.command == "slices" and args.labels_map and not args.labels:
        parser.error("--labels-map goes with --labels")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    if args.command == "slices":
        labels = {"labels": args.labels, "tissues": args.labels_map or {1: 1, 2: 2, 3: 3}}
        return cut_volumes(args.volumes, args.target, seed=args.seed, orientation=args.orientation, **labels)
    describe("train", args.data, args.url)
    describe("test", args.data, args.url)
    validate_folder = find_split("train", args.data).with_name(split_folder("validate"))
    if validate_folder.is_dir() and any(validate_folder.iterdir()):
        describe("validate", validate_folder.parent)
    else:
        print("validate: not there, and not needed")


def describe(split, data=None, url=None):
    """Load a split and print what it holds."""
    slices = load_split(split, data, url)
    cases = len({case_of(name) for name in slices.names})
    state = "genuine" if is_genuine(split, slices.digest) else "not genuine"
    shape, variance = slices.images.shape, slices.images.var()
    print(f"{split}: {len(slices.names):,} slices of {cases} cases, {state}; array {shape}, variance {variance:.5f}")
    if find_split(split, data).with_name(split_folder(f"seg_{split}")).is_dir():
        try:
            masks, digest = read_masks(split, data)
        except UserError as error:
            return note(f"note: its masks cannot be used: {error}")
        shares = [f"{np.mean(masks == label):.1%} {tissue}" for label, tissue in enumerate(TISSUES)][1:]
        state = "genuine" if is_genuine(f"seg_{split}", digest) else "not genuine"
        print(f"{split}: masks of all, {state}; {', '.join(shares)} of the pixels")


def cut_volumes(folder, target, **options):
    """Cut the volumes below a folder into slices below `target`, and print how many; see `volumes.slice_volumes`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; name a folder of volumes")
    rows = volumes.slice_volumes(folder, target, **options)
    print(f"{len(rows)} volumes, {len(rows) * config.LEVELS:,} slices in {target / TOP_FOLDER}")
    people = {split: len({row.person for row in rows if row.split == split}) for split in SPLITS}
    print("people: " + ", ".join(f"{number} to {split}" for split, number in people.items()))
    print(target / "cases.csv")


if __name__ == "__main__":
    cli.run(main)
