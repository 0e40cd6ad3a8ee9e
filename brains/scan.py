"""A volume as slices, and maps of its slices as a volume in the same space."""

import gzip

import numpy as np
from scipy.ndimage import affine_transform

from brains.cli import UserError, note, written
from brains.config import LEVELS
from brains.volumes import CANVAS, LIKE, cut, how_it_lies, load_volume


class Scan:
    """The `slices` (LEVELS, CANVAS, CANVAS) uint8 of the head in a volume's file, and where they lie.

    `ranges` (LEVELS, 2) are the volume's values for 0 and 255.
    `orientation` is that of `load_volume`. Raises UserError if the file is broken or holds no such head.
    """

    def __init__(self, path, orientation="RAS"):
        self.path, self.orientation = path, orientation
        try:
            volume, self.sides = load_volume(path, orientation)
            self.slices, likeness, self.scale, self.centre, self.ranges = cut(volume, self.sides)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if likeness is not None and likeness < LIKE:
            note(f"note: {path}: likeness {likeness:.3f} to a head; see --orientation")
        self.shape = volume.shape

    def save(self, target, maps, top=None):
        """Write maps (LEVELS, H, W) of the slices, of any size, as a .nii.gz in the space of the volume.

        Viewers show them from 0 to `top`. Where there is no slice it is 0. Raises UserError if that cannot be written.
        """
        import nibabel

        canvas = np.array([CANVAS, CANVAS, LEVELS])
        shrink = np.array([*maps.shape[1:], LEVELS]) / canvas
        step = shrink * self.scale * self.sides  # from a voxel to the next, in pixels of the maps
        corner = self.centre - (canvas - 1) / 2 / (self.scale * self.sides)
        offset = (shrink - 1) / 2 - corner * step  # the centre of a pixel is not that of the first one under it
        stack = np.moveaxis(np.float32(maps), 0, 2)
        values = affine_transform(stack, step, offset, output_shape=self.shape, order=1, mode="grid-constant")
        image = nibabel.load(self.path)
        (lies, knows), as_read = how_it_lies(image, self.orientation), nibabel.orientations.axcodes2ornt("RAS")
        values = nibabel.apply_orientation(values, nibabel.orientations.ornt_transform(as_read, lies))
        result = nibabel.Nifti1Image(values, image.affine, image.header if knows else None, dtype=np.float32)
        result.header["cal_min"], result.header["cal_max"] = (0, top) if top else (0, 0)  # 0: as the viewer likes
        if not knows:  # nor does the map, so that viewers take both for the same
            result.set_sform(None, code=0)
            result.set_qform(None, code=0)
        with written(target) as part:
            part.write_bytes(gzip.compress(result.to_bytes()))
