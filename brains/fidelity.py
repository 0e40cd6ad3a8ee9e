"""How much sets of slices look like real ones: distances of distributions and neighbourhoods.

Heusel et al. 2017, arXiv 1706.08500          (Frechet distance)
Karras et al. 2018, arXiv 1710.10196          (sliced Wasserstein distance of Laplacian-pyramid patches)
Kynkaanniemi et al. 2019, arXiv 1904.06991    (precision and recall)
Naeem et al. 2020, arXiv 2002.09797           (density and coverage)
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.ndimage import convolve1d
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

import dataset
from brains.names import case_of
from brains.statistics import Figure, mean, resampled, within
from modules import ssim

COMPONENTS = 64  # principal components of the training pixels, for distances between slices
NEIGHBOURS = 5  # the neighbour whose distance is the reach of a slice
SCALES = 4  # of the Laplacian pyramid: 128, 64, 32 and 16 pixels a side
PATCH, PATCHES = 7, 64  # pixels a side of a patch, patches of a slice
DIRECTIONS = 512  # onto which patches are projected
PAIRS = 2000  # random pairs of slices


class SliceSet(NamedTuple):
    """Slices (N, 128, 128) uint8, the person of each (N,) str, and its level (N,) int, 0 the lowest, if known."""

    grey: np.ndarray
    groups: np.ndarray
    levels: np.ndarray | None = None

    def take(self, chosen):
        return SliceSet(*(None if values is None else values[chosen] for values in self))


def slice_set(images, names, levels=None):
    """Return the SliceSet of images (N, 128, 128, 1) in [-0.5, 0.5]; slices of one case are a group."""
    return SliceSet(dataset.to_grey(images[..., 0]), np.array([case_of(name) for name in names]), levels)


def unit(grey):
    """Return grey values (...) uint8 as float32 in [0, 1]."""
    return grey / np.float32(255)


def fit_components(real, seed):
    """Fit the principal components of real slices; returns a function from SliceSets to points (N, COMPONENTS)."""
    count = min(COMPONENTS, len(real.grey) - 1)
    pca = PCA(count, svd_solver="randomized", random_state=seed).fit(unit(real.grey).reshape(len(real.grey), -1))

    def components(slices):
        parts = np.array_split(slices.grey, -(-len(slices.grey) // 1024))
        return np.concatenate([pca.transform(unit(part).reshape(len(part), -1)) for part in parts])

    return components


def frechet_distance(points, others):
    """Return the Frechet distance of Gaussians fitted to points (N, D) and others (M, D) (Heusel et al. 2017).

    It is |m - n|^2 + tr(S + T - 2 (S T)^1/2) for the means m, n and the covariances S, T.
    """
    covariance, other = np.cov(points, rowvar=False), np.cov(others, rowvar=False)
    # tr (S T)^1/2 from the eigenvalues of T^1/2 S T^1/2, which are real; those of S T need not be, in floats
    values, vectors = scipy.linalg.eigh(other)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    trace = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ covariance @ root), 0)).sum()
    shift = np.sum((points.mean(axis=0) - others.mean(axis=0)) ** 2)
    return float(shift + np.trace(covariance) + np.trace(other) - 2 * trace)


def neighbourhoods(points, groups, real, real_groups):
    """Return precision, density, recall and coverage of points (N, D) against as many real ones (N, D).

    The reach of a point is the distance to its NEIGHBOURS-th nearest neighbour. A point is precise if it is within the
    reach of a real one; density counts in how many reaches it lies, over NEIGHBOURS (Kynkaanniemi et al. 2019, Naeem et
    al. 2020). A real point is recalled if it lies within the reach of a point, and covered if a point lies within its
    own reach. Unlike in the papers, reach is measured to other groups: the nearest neighbour of a slice is the same
    person's next slice, which says nothing about how people differ. The intervals are over the points' groups.
    """

    def reach(centres, owners):
        others = np.where(owners[:, None] == owners, np.inf, cdist(centres, centres))
        return np.partition(others, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]

    distances = cdist(points, real)
    among_real = distances <= reach(real, real_groups)
    among_points = distances <= reach(points, groups)[:, None]
    drawn = resampled(groups) > 0

    def of_real(near):
        """Return the Figure of the share of real points that any point is near."""
        value, shares = near.any(axis=0).mean(), (drawn.astype(np.float32) @ near > 0).mean(axis=1)
        # a resample has fewer different points and so is near fewer: only the spread of the shares is used
        low, high = np.percentile(shares, (2.5, 97.5)) - shares.mean() + value
        return Figure(float(value), float(max(low, 0)), float(min(high, 1)))

    return {
        "precision": mean(among_real.any(axis=1), groups),
        "density": mean(among_real.sum(axis=1) / NEIGHBOURS, groups),
        "recall": of_real(among_points),
        "coverage": of_real(among_real),
    }


def laplacian_pyramid(images):
    """Return the Laplacian pyramid of images (N, H, W): SCALES arrays (N, H / 2^i, W / 2^i), the last one the rest."""

    def blur(array):
        kernel = np.array([1, 4, 6, 4, 1], np.float32) / 16
        return convolve1d(convolve1d(array, kernel, axis=1, mode="mirror"), kernel, axis=2, mode="mirror")

    pyramid = []
    for _ in range(SCALES - 1):
        smaller = blur(images)[:, ::2, ::2]
        spread = np.zeros_like(images)
        spread[:, ::2, ::2] = 4 * smaller
        pyramid.append(images - blur(spread))
        images = smaller
    return [*pyramid, images]


def random_patches(images, seed):
    """Return PATCHES flattened patches at random places of each image (N, H, W): (N PATCHES, PATCH^2)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    rows, columns = np.random.default_rng(seed).integers(0, windows.shape[1], (2, len(images), PATCHES))
    columns = columns * windows.shape[2] // windows.shape[1]  # of planes that are not square
    return windows[np.arange(len(images))[:, None], rows, columns].reshape(-1, PATCH * PATCH)


def sliced_wasserstein(pyramid, real_pyramid, seed):
    """Return 1000 times the sliced Wasserstein distance of patches at each scale of two pyramids (Karras et al. 2018).

    Both are of as many slices. Patches are in units of the real ones' deviation, so that a lack of contrast counts.
    """
    distances = []
    for scale, real_scale in zip(pyramid, real_pyramid):
        patches, real = random_patches(scale, seed), random_patches(real_scale, seed)
        directions = np.random.default_rng(seed).normal(size=(PATCH * PATCH, DIRECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        total = 0
        for portion in np.array_split(directions, DIRECTIONS // 64, axis=1):
            ranked, real_ranked = np.sort((patches @ portion).T), np.sort((real @ portion).T)
            total += np.abs(ranked - real_ranked).mean(axis=1).sum()
        distances.append(1000 * float(total / DIRECTIONS / real.std()))
    return distances


def pair_ssim(slices, seed):
    """Return the Figure of the mean SSIM of random pairs of slices of different groups; lower is more varied."""
    first, second = np.random.default_rng(seed).integers(0, len(slices.grey), (2, 4 * PAIRS))
    apart = np.flatnonzero(slices.groups[first] != slices.groups[second])[:PAIRS]
    first, second = first[apart], second[apart]
    likeness = ssim(as_images(slices.take(first)), as_images(slices.take(second)))
    drawn = resampled(slices.groups)
    weights = drawn[:, first] * drawn[:, second]
    weights = weights[weights.any(axis=1)]  # a sample of one person has no pairs
    means = weights @ likeness / weights.sum(axis=1)
    return within(likeness.mean(), means)


def as_images(slices):
    """Return images (N, 128, 128, 1) float32 in [-0.5, 0.5], as `ssim` takes them."""
    return images_of(slices.grey)


def images_of(grey):
    """Return grey values (..., H, W) uint8 as images (..., H, W, 1) float32 in [-0.5, 0.5]."""
    return unit(grey)[..., None] - np.float32(0.5)


def fit_level(points, levels):
    """Fit a linear regression from the points (N, D) of slices to levels (N,); returns what predicts them."""
    return RidgeCV().fit(points, levels).predict
