"""Random changes of training slices. The same seed draws the same changes, whichever worker applies them."""

from typing import NamedTuple

import numpy as np


class Draws(NamedTuple):
    """Uniform numbers in [0, 1) for N images, from which changes are decided.

    `flip` (N,) decides whether an image is flipped, `move` (N,) whether it is moved, `offset` (N, 2) by how much.
    """

    flip: np.ndarray
    move: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, seed, count):
        """Draw for `count` images."""
        numbers = np.random.default_rng(seed).random((count, 4))
        return cls(numbers[:, 0], numbers[:, 1], numbers[:, 2:])

    def take(self, chosen):
        """Return the Draws of some of the images."""
        return Draws(*(numbers[chosen] for numbers in self))


def flip_half(images, draws):
    """Flip each image (N, H, W, 1) with probability 1/2 along the vertical axis: left and right of the head."""
    return np.where(draws.flip[:, None, None, None] < 0.5, images[:, ::-1], images)


def move_half(images, draws):
    """Move each image (N, H, W, 1) with probability 1/2 by -1, 0 or 1 pixel along both axes."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    corners = np.where(draws.move[:, None] < 0.5, (3 * draws.offset).astype(int), 1)
    return np.stack(
        [image[row : row + height, column : column + width] for image, (row, column) in zip(padded, corners)]
    )
