"""Lesions planted in real slices, with the masks of where they are.

Meissen et al. 2022, arXiv 2202.03826         (blobs of many brightnesses and textures)
Tan et al. 2020, arXiv 2011.04197             (foreign patch interpolation: patches of another slice, blended)
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion, binary_fill_holes, gaussian_filter, map_coordinates

SIZES = {"small": 4, "medium": 7, "large": 11}  # mean radius in pixels, of 2 mm in the course's slices
BRIGHT, DARK = (0.8, 0.9, 1.0), (0.0, 0.1, 0.2)  # light of blobs, 1 is white
TEXTURE = (0.0, 0.25, 0.5)  # share of the contrast of the tissue below that a blob keeps
BLEND = (0.75, 1.0)  # share of another person in a foreign patch
STRETCH, WIDTH = 0.6, 0.65  # of the radius: the furthest that tissue is displaced, and how wide; nothing tears
BLUR, NOISE = 2.0, 0.1  # pixels, and light
HEAD, TISSUE = 0.1, 0.3  # light above which there is head, and above which a lesion may have its centre
SKULL = 5  # pixels from the rim of a head to its brain


class Planted(NamedTuple):
    """Slices with a lesion (N, 128, 128, 1) float32 in [-0.5, 0.5], and masks (N, 128, 128) bool of where it is."""

    images: np.ndarray
    masks: np.ndarray


def plant(kind, radius, images, others, seed):
    """Return images (N, 128, 128, 1) with a lesion of a kind and radius in each: a Planted.

    `others` (N, 128, 128, 1) are slices of other people at the same levels. The same seed puts lesions of all kinds at
    the same places.
    """
    results = []
    for number, (image, other) in enumerate(zip(images[..., 0] + 0.5, others[..., 0] + 0.5)):
        rng = np.random.default_rng((seed, radius, number))
        away = np.indices(image.shape) - _centre(rng, radius, image)[:, None, None]
        results.append(KINDS[kind](rng, radius, away, image, other))
    changed, masks = map(np.array, zip(*results))
    return Planted(np.float32(np.clip(changed[..., None], 0, 1)) - np.float32(0.5), masks)


def _centre(rng, radius, image):
    """Return a random place (2,) in the brain of an image (H, W)."""
    inside = binary_erosion(binary_fill_holes(image > HEAD), iterations=radius + SKULL)
    inside &= gaussian_filter(image, 2) > TISSUE
    places = np.argwhere(inside if inside.any() else image >= np.quantile(image, 0.9))
    return places[rng.integers(len(places))]


def _blob(rng, radius, away):
    """Return the opacity (H, W) of a blob of no regular outline, from the distances (2, H, W) to its centre."""
    angle, outline = np.arctan2(*away), 1.0
    for wave in (2, 3, 4):
        outline = outline + rng.normal(0, 0.25 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    inner = np.hypot(*away) < radius * np.clip(outline, 0.5, 1.5)
    return gaussian_filter(inner.astype(float), 0.7)


def _blended(image, content, opacity):
    return image + opacity * (content - image), opacity > 0.5


def _light(lights, rng, radius, away, image, other):
    opacity = _blob(rng, radius, away)
    light = rng.choice(lights) + rng.choice(TEXTURE) * (image - image[opacity > 0.5].mean())
    return _blended(image, light, opacity)


def _foreign(rng, radius, away, image, other):
    square = np.abs(away).max(axis=0) < radius * np.sqrt(np.pi) / 2  # of the area of a disc
    return image + square * rng.choice(BLEND) * (other - image), square


def _displaced(rng, radius, away, image, other):
    angle = rng.uniform(0, 2 * np.pi)
    shift = STRETCH * radius * np.exp(-np.sum(away**2, axis=0) / (WIDTH * radius) ** 2)
    moved = np.indices(image.shape) + shift * np.array([np.sin(angle), np.cos(angle)])[:, None, None]
    return map_coordinates(image, moved, order=1, mode="nearest"), shift > 0.5  # pixels


def _smoothed(rng, radius, away, image, other):
    return _blended(image, gaussian_filter(image, BLUR), _blob(rng, radius, away))


def _noisy(rng, radius, away, image, other):
    return _blended(image, image + rng.normal(0, NOISE, image.shape), _blob(rng, radius, away))


# What changes a slice (H, W) of light 0 to 1: (generator, radius, away (2, H, W), slice, slice of another person) ->
# (slice with the lesion, mask of it).
KINDS = {
    "bright": functools.partial(_light, BRIGHT),
    "dark": functools.partial(_light, DARK),
    "foreign": _foreign,
    "displaced": _displaced,
    "smoothed": _smoothed,
    "noise": _noisy,
}
