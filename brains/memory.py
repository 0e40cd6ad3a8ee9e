"""Whether slices repeat training slices: the nearest real slice of each, and grids of codes that are the same."""

from typing import NamedTuple

import numpy as np

from brains.fidelity import SliceSet, as_images
from brains.statistics import Figure, resampled, share
from modules import ssim

NEAR_REPEAT = 0.05  # share of codes that may differ in a near repeat


def nearest(slices, real):
    """Find for each slice the real one whose pixels correlate best with it or with its mirror image.

    Returns correlations (N,), indices (N,) of real slices, and whether the mirror image is meant (N,) bool. The
    left-right axis of the head is vertical here, so mirroring flips rows.
    """
    parts = np.array_split(slices.grey, -(-len(slices.grey) // 512))
    return tuple(map(np.concatenate, zip(*(_nearest(grey, real) for grey in parts))))


def _nearest(grey, real):
    count = len(grey)
    queries = standardised(np.concatenate([grey, grey[:, ::-1]]))
    best, index = np.full(2 * count, -np.inf, np.float32), np.zeros(2 * count, int)
    for start in range(0, len(real.grey), 1024):
        correlations = queries @ standardised(real.grey[start : start + 1024]).T
        highest = correlations.argmax(axis=1)
        values = correlations[np.arange(2 * count), highest]
        index = np.where(values > best, start + highest, index)
        best = np.maximum(best, values)
    mirrored = best[count:] > best[:count]
    return np.maximum(best[count:], best[:count]), np.where(mirrored, index[count:], index[:count]), mirrored


def standardised(grey):
    """Return grey values (N, 128, 128) as vectors (N, 16384) float32 of mean 0 and length 1, whose products correlate."""
    vectors = grey.reshape(len(grey), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def nearer_than_held_out(correlation, groups, held_out, held_out_groups):
    """Return the Figure of the share of correlations (N,) above 95 % of the held-out ones (M,).

    The interval is over both groups of people.
    """
    limits = [
        np.quantile(np.repeat(held_out, weights.astype(int)), 0.95)
        for weights in resampled(held_out_groups, seed=1)
    ]
    weights = resampled(groups)
    shares = np.sum(weights * (correlation > np.array(limits)[:, None]), axis=1) / weights.sum(axis=1)
    value = np.mean(correlation > np.quantile(held_out, 0.95))
    return Figure(float(value), *np.percentile(shares, (2.5, 97.5)).tolist())


def ssim_of_nearest(slices, real, index, mirrored):
    """Return the SSIM (N,) of slices to the real ones that `nearest` found."""
    turned = np.where(mirrored[:, None, None], slices.grey[:, ::-1], slices.grey)
    return ssim(as_images(SliceSet(turned, slices.groups)), as_images(real.take(index)))


def differing_codes(grids, known):
    """Return the share of codes (N,) in which grids (N, h, w) differ from the most similar known ones (M, h, w)."""
    known = known.reshape(len(known), -1)
    return np.array([np.mean(grid.ravel() != known, axis=1).min() for grid in grids])


class Codes(NamedTuple):
    """Grids of codes (N, h, w), and the groups (N,) and levels (N,) of their slices."""

    grids: np.ndarray
    groups: np.ndarray
    levels: np.ndarray

    def take(self, chosen):
        return Codes(self.grids[chosen], self.groups[chosen], self.levels[chosen])


def repeats(codes, known):
    """Return the shares of Codes that repeat one of the known grids (M, h, w), exactly and nearly."""
    differing = differing_codes(codes.grids, known)
    return {
        "grids that repeat": share(differing == 0, codes.groups),
        f"grids that repeat but for {NEAR_REPEAT:.0%}": share(differing <= NEAR_REPEAT, codes.groups),
    }
