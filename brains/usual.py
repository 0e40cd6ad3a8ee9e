"""What is usual in slices of people whom a prior has not seen: the scale of maps, of bits and of levels.

It is measured on the held-out cases at the end of a training, and kept beside the weights.
"""

from typing import NamedTuple

import numpy as np

from brains.config import SIZE
from brains.restoration import FLAGGED, PORTION, WIDE, restore, smooth
from brains.surprise import bits_of_codes

MEASURED, READ = 320, 4096  # held-out slices, at most, that give the scale of maps; others that tell how levels look
AROUND = 1  # levels up and down whose slices count as of one level
CELL = 4  # pixels a side of the cells from whose light a level is read
SCALE = np.linspace(0, 16, 129)  # bits of a map


class Usual(NamedTuple):
    """What is usual, as arrays.

    `limit` () are the bits above which a code is drawn anew. `parts` (3, 129) are the values of each part of a map that
    2^-SCALE of the pixels of held-out people have or exceed, and `greatest` (129,) those of their greatest. `bits` (M,)
    is what slices of `levels` (M,) cost. `reading` (1025,) are a constant and the weights of 32x32 cells, which tell
    the level of a slice.
    """

    limit: np.ndarray
    parts: np.ndarray
    greatest: np.ndarray
    bits: np.ndarray
    levels: np.ndarray
    reading: np.ndarray

    def map(self, parts):
        """Return the maps (N, 128, 128) float32, in bits, of the parts (3, N, 128, 128) that `restore` gives.

        A pixel has n bits, 16 at most, if one of 2^n pixels of held-out people is as unusual.
        """
        return np.interp(_greatest_of(parts, self.parts), self.greatest, SCALE).astype(np.float32)

    def rank(self, bits, levels):
        """Return how bits (N,) of slices of levels (N,) compare with those of held-out slices of about that level.

        That is the percentage (N,) of them that cost less, and bits over the highest of theirs (N,).
        """
        gaps = [np.abs(self.levels - level) for level in levels]
        near = [self.bits[gap <= max(AROUND, gap.min())] for gap in gaps]
        lower = [100 * np.mean(each < cost) for each, cost in zip(near, bits)]
        return np.array(lower), np.array([cost / each.max() for each, cost in zip(near, bits)])

    def read_levels(self, images):
        """Return the levels (N,) int32 that a linear regression reads from images (N, 128, 128, 1)."""
        read = self.reading[0] + _cells(images) @ self.reading[1:]
        return np.clip(np.round(read), 0, self.levels.max()).astype(np.int32)


def _greatest_of(parts, scales):
    """Return the greatest of the parts (3, N, 128, 128) at each pixel, in bits by their scales (3, 129), smoothed."""
    changed, finer, coarser = (np.interp(part, scale, SCALE) for part, scale in zip(parts, scales))
    return smooth(np.maximum(changed, np.maximum(finer, coarser) - 1), WIDE)  # a bit for two sides of one thing


def _cells(images):
    """Return the mean light (N, 1024) of the cells of images (N, 128, 128, 1)."""
    side = SIZE // CELL
    return images.reshape(len(images), side, CELL, side, CELL).mean(axis=(2, 4)).reshape(len(images), -1)


def measure_usual(vqvae, prior, views, images, levels, seen, unseen, seed):
    """Measure what is Usual in images (N, 128, 128, 1) of levels (N,), by the Views that the prior knows.

    `unseen` are the indices of those of held-out people, and `seen` those from which it is learned to read levels.
    """
    from sklearn.linear_model import RidgeCV  # takes long to import

    def some(indices, number):
        return np.sort(np.random.default_rng(seed).permutation(indices)[:number])

    def quantiles(values):
        return np.quantile(values, 1 - 2.0**-SCALE)

    portions = np.array_split(unseen, -(-len(unseen) // PORTION))
    bits = np.concatenate([bits_of_codes(prior, vqvae.encode(images[part]), levels[part]) for part in portions])
    limit = np.quantile(bits, 1 - FLAGGED)
    chosen = some(unseen, MEASURED)
    parts = restore(vqvae, prior, images[chosen], levels[chosen], views, limit, seed).parts
    scales = np.array([quantiles(part) for part in parts])
    greatest = quantiles(_greatest_of(parts, scales))
    chosen = some(seen, READ)
    ridge = RidgeCV(np.geomspace(0.1, 1000, 5)).fit(_cells(images[chosen]), levels[chosen])
    reading = np.concatenate([[ridge.intercept_], ridge.coef_])
    values = (limit, scales, greatest, bits.sum(axis=(1, 2)), levels[unseen], reading)
    return Usual(*(np.asarray(each, np.float32) for each in values))
