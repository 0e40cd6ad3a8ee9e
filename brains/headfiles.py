"""Heads as files: NIfTI volumes and a page to look at them; and as pictures."""

import gzip

import numpy as np

from brains.cli import written
from brains.config import LEVELS, SIZE
from brains.volumes import VOXEL

# Where the middle of the 32 levels lies from the origin of MNI152: that template was matched to the mean slices by
# brains/volumes.py. Heads are not warped into that space, so that this is right to some millimetres.
CENTRE = (0, -17, 13)


def affine():
    """Return the matrix (4, 4) from voxels of a head to mm to the right, front and top."""
    matrix = np.diag([*VOXEL, 1.0])
    matrix[:3, 3] = CENTRE - (np.array([SIZE, SIZE, LEVELS]) - 1) / 2 * VOXEL
    return matrix


def save_volume(path, slices):
    """Write slices (L, H, W) uint8 as a .nii.gz of voxels of 2x2x1 mm, RAS. Raises UserError if it cannot be."""
    import nibabel

    image = nibabel.Nifti1Image(np.moveaxis(slices, 0, 2), affine())
    image.header.set_xyzt_units("mm")
    with written(path) as part:
        part.write_bytes(gzip.compress(image.to_bytes()))


def save_page(path, slices, title):
    """Write a page that shows slices (L, H, W) uint8 in three planes, in any browser and offline."""
    import nibabel
    from nilearn.plotting import view_img

    image = nibabel.Nifti1Image(np.moveaxis(np.float32(slices), 0, 2), affine())
    how = {"cmap": "gray", "symmetric_cmap": False, "vmin": 0, "vmax": 255, "colorbar": False, "black_bg": True}
    page = view_img(image, bg_img=None, title=title, resampling_interpolation="nearest", **how)
    with written(path) as part:
        page.save_as_html(str(part))


def picture(slices):
    """Return a head's slices (L, H, W) as a picture of three planes through the middle, 1 mm a pixel, (P, Q) uint8.

    The axial one lies as the slices do; below are the sagittal and the coronal one.
    """
    whole = np.repeat(np.repeat(slices, VOXEL[0], axis=1), VOXEL[1], axis=2)
    levels, height, width = whole.shape
    planes = [whole[levels // 2], whole[::-1, height // 2], whole[::-1, :, width // 2]]
    gap = np.full((8, width), 255, np.uint8)
    return np.concatenate([planes[0], gap, planes[1], gap, planes[2]])
