"""How surprising codes are to a prior, and the views of a slice that it knows."""

import functools
from typing import NamedTuple

import numpy as np

import modules
from brains.backend import tf


class View(NamedTuple):
    """How a slice is seen: its left and right exchanged or not, and moved down and to the right by so many pixels.

    The prior sees a code's predecessors in raster order alone. A mirrored slice has another order, and one that is
    moved by a pixel has other codes, two of three. So views of a slice tell more than one.
    """

    mirrored: bool = False
    down: int = 0
    right: int = 0

    def of(self, images):
        """Return images (N, 128, 128, 1) as they are seen."""
        return _moved(images[:, ::-1] if self.mirrored else images, self.down, self.right)

    def back(self, maps):
        """Return maps (N, 128, 128, ...) of what is seen as they lie on the slice."""
        maps = _moved(maps, -self.down, -self.right)
        return maps[:, ::-1] if self.mirrored else maps


def _moved(arrays, down, right):
    """Return arrays (N, H, W, ...) moved by -1, 0 or 1 pixel along both axes, as those that the prior learned from."""
    height, width = arrays.shape[1:3]
    padded = np.pad(arrays, ((0, 0), (1, 1), (1, 1), *(arrays.ndim - 3) * ((0, 0),)), mode="edge")
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


MOVES = ((0, 0), (1, 1), (-1, -1), (1, -1))
VARIED = tuple(View(mirrored, *move) for move in MOVES for mirrored in (False, True))


def views_of(mirrored):
    """Return the Views, first a slice as it is, that a prior knows. It has learned `mirrored` and moved ones or not."""
    return VARIED if mirrored else len(VARIED) * (View(),)


def bits_of_codes(pixelcnn, codes, levels):
    """Return the bits (N, h, w) float32, -log2 p, that a prior needs for codes (N, h, w) of slices of levels (N,)."""
    nats = _nats_of(pixelcnn)
    return modules.in_batches(lambda part: nats(codes[part], levels[part]), np.arange(len(codes))) / np.float32(
        np.log(2)
    )


def bits(pixelcnn, codes, levels):
    """Return the bits (N,) that a prior needs for grids of codes (N, h, w) of slices of levels (N,)."""
    return bits_of_codes(pixelcnn, codes, levels).sum(axis=(1, 2))


@functools.lru_cache(maxsize=1)  # a graph takes longer than the slices of a set
def _nats_of(pixelcnn):
    return tf.function(
        lambda codes, levels: modules.cross_entropy(codes, pixelcnn(codes, levels)), reduce_retracing=True
    )
