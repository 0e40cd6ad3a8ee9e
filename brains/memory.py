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
    found = []
    for grey in np.array_split(slices.grey, -(-len(slices.grey) // 512)):
        count, queries = len(grey), standardised(np.concatenate([grey, grey[:, ::-1]]))
        best, index = np.full(2 * count, -np.inf, np.float32), np.zeros(2 * count, int)
        for start in range(0, len(real.grey), 1024):
            correlations = queries @ standardised(real.grey[start : start + 1024]).T
            highest = correlations.argmax(axis=1)
            values = correlations[np.arange(2 * count), highest]
            index = np.where(values > best, start + highest, index)
            best = np.maximum(best, values)
        (best, turned_best), (index, turned_index) = np.split(best, 2), np.split(index, 2)
        mirrored = turned_best > best
        found.append((np.maximum(best, turned_best), np.where(mirrored, turned_index, index), mirrored))
    return tuple(map(np.concatenate, zip(*found)))


def standardised(grey):
    """Return grey values (N, 128, 128) as vectors (N, 16384) float32 of mean 0 and length 1: products correlate."""
    vectors = grey.reshape(len(grey), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def nearer_than_held_out(correlation, groups, held_out, held_out_groups):
    """Return the Figure of the share of correlations (N,) above 95 % of held-out ones (M,), over the groups of both."""
    drawn, weights = resampled(held_out_groups, seed=1), resampled(groups)
    limits = [np.quantile(np.repeat(held_out, each.astype(int)), 0.95) for each in drawn]
    shares = np.sum(weights * (correlation > np.array(limits)[:, None]), axis=1) / weights.sum(axis=1)
    value = np.mean(correlation > np.quantile(held_out, 0.95))
    return Figure(float(value), *np.percentile(shares, (2.5, 97.5)).tolist())


def ssim_of_nearest(slices, real, index, mirrored):
    """Return the SSIM (N,) of slices to the real ones that `nearest` found."""
    turned = np.where(mirrored[:, None, None], slices.grey[:, ::-1], slices.grey)
    return ssim(as_images(SliceSet(turned, slices.groups)), as_images(real.take(index)))


class Codes(NamedTuple):
    """Grids of codes (N, h, w), and the groups (N,) and levels (N,) of their slices."""

    grids: np.ndarray
    groups: np.ndarray
    levels: np.ndarray

    def take(self, chosen):
        return Codes(*(values[chosen] for values in self))


def repeats(codes, known):
    """Return the shares of Codes that repeat one of the known grids (M, h, w), exactly and nearly, {row: Figure}."""
    known = known.reshape(len(known), -1)
    differing = np.array([np.mean(grid.ravel() != known, axis=1).min() for grid in codes.grids])  # from the most alike
    return {
        "grids that repeat": share(differing == 0, codes.groups),
        f"grids that repeat but for {NEAR_REPEAT:.0%}": share(differing <= NEAR_REPEAT, codes.groups),
    }
