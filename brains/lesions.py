"""Lesions planted in real slices, with the masks of where they are.

Meissen et al. 2021, arXiv 2109.06540         (blobs of many brightnesses and textures)
Tan et al. 2020, arXiv 2011.04197             (foreign patch interpolation: patches of another slice, blended)
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion, binary_fill_holes, gaussian_filter, map_coordinates

SIZES = {"small": 4, "medium": 7, "large": 11}  # mean radius in pixels, of about 1.6 mm in the course's slices
BRIGHT, DARK = (0.8, 0.9, 1.0), (0.0, 0.1, 0.2)  # light of blobs, 1 is white
TEXTURE = (0.0, 0.25, 0.5)  # share of the tissue below that is seen through a blob
BLEND = (0.75, 1.0)  # share of another person in a foreign patch
STRETCH = 0.6  # of the radius, the furthest that tissue is displaced
BLUR, NOISE = 2.0, 0.1  # pixels, and light
HEAD, TISSUE = 0.1, 0.3  # light above which there is head, and above which a lesion may have its centre
SKULL = 5  # pixels from the rim of a head to its brain


class Planted(NamedTuple):
    """Slices with a lesion (N, 128, 128, 1) float32 in [-0.5, 0.5], and masks (N, 128, 128) bool of where it is."""

    images: np.ndarray
    masks: np.ndarray


def plant(kind, radius, images, others, seed):
    """Return images (N, 128, 128, 1) with a lesion of a kind and radius in each: a Planted.

    `others` (N, 128, 128, 1) are slices of other people at the same levels. The same seed puts lesions of the same
    shape and place whatever the kind.
    """
    results = []
    for number, (image, other) in enumerate(zip(images[..., 0] + 0.5, others[..., 0] + 0.5)):
        place, look = (np.random.default_rng((seed, radius, number, part)) for part in range(2))
        alpha, away = (_patch if kind == "foreign" else _blob)(place, radius, image)
        changed = KINDS[kind](look, image, other, alpha, away)
        results.append((np.clip(changed, 0, 1), alpha > 0.5))
    changed, masks = map(np.array, zip(*results))
    return Planted(np.float32(changed[..., None]) - np.float32(0.5), masks)


def _patch(rng, radius, image):
    """Return the opacity (H, W) of a square in the brain, and how far each pixel is from its centre (2, H, W)."""
    away = _away(rng, radius, image)
    return (np.abs(away).max(axis=0) < radius * np.sqrt(np.pi) / 2).astype(float), away  # of a disc's area


def _away(rng, radius, image):
    """Return how far each pixel (2, H, W) is from a random place in the brain."""
    inside = binary_erosion(binary_fill_holes(image > HEAD), iterations=radius + SKULL)
    inside &= gaussian_filter(image, 2) > TISSUE
    places = np.argwhere(inside) if inside.any() else np.argwhere(image >= np.quantile(image, 0.9))
    centre = places[rng.integers(len(places))]
    return np.indices(image.shape) - centre[:, None, None]


def _blob(rng, radius, image):
    """Return the opacity (H, W) of a blob in the brain, and how far each pixel is from its centre (2, H, W)."""
    away = _away(rng, radius, image)
    angle, outline = np.arctan2(*away), 1.0
    for wave in (2, 3, 4):
        outline = outline + rng.normal(0, 0.25 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    inner = np.hypot(*away) < radius * np.clip(outline, 0.5, 1.5)
    return gaussian_filter(inner.astype(float), 0.7), away


def _of_light(lights):
    def change(rng, image, other, alpha, away):
        texture, light = rng.choice(TEXTURE), rng.choice(lights)
        return image + alpha * (1 - texture) * (light - image)

    return change


def _foreign(rng, image, other, alpha, away):
    return image + alpha * rng.choice(BLEND) * (other - image)


def _displaced(rng, image, other, alpha, away):
    radius, angle = np.sqrt(alpha.sum() / np.pi), rng.uniform(0, 2 * np.pi)
    fall = np.exp(-np.sum(away**2, axis=0) / radius**2)  # so that tissue is stretched and not torn
    moved = np.indices(image.shape) + STRETCH * radius * fall * np.array([np.sin(angle), np.cos(angle)])[:, None, None]
    return map_coordinates(image, moved, order=1, mode="nearest")


def _smoothed(rng, image, other, alpha, away):
    return image + alpha * (gaussian_filter(image, BLUR) - image)


def _noisy(rng, image, other, alpha, away):
    return image + alpha * rng.normal(0, NOISE, image.shape)


KINDS = {
    "bright": _of_light(BRIGHT),
    "dark": _of_light(DARK),
    "foreign": _foreign,
    "displaced": _displaced,
    "smoothed": _smoothed,
    "noise": _noisy,
}
