"""What models find unusual in slices, as `predict.py restore` says it."""

import functools
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from brains import weights
from brains.cli import UsageError, short
from brains.restoration import PORTION, restore
from brains.surprise import views_of


class Findings(NamedTuple):
    """What is found in N slices.

    `levels` (N,) int32 are those of the slices. `bits` (N,) are those of all codes of a slice, `percentiles` (N,) the
    percentage of held-out slices of about its level that cost less, and `excess` (N,) its bits over the highest of
    theirs. `flagged` (N,) is the share of codes drawn anew. `surprise` (N, 128, 128) are the bits of the code at each
    pixel, `restored` (N, 128, 128, 1) the slices restored, and `maps` (N, 128, 128) how unusual each pixel is, in bits;
    see `Usual.map`.
    """

    levels: np.ndarray
    bits: np.ndarray
    percentiles: np.ndarray
    excess: np.ndarray
    flagged: np.ndarray
    surprise: np.ndarray
    restored: np.ndarray
    maps: np.ndarray


def find_unusual(models, images, levels, seed):
    """Return the Findings in images (N, 128, 128, 1) float32 in [-0.5, 0.5], by the set of weights in `models`.

    `levels` is a list of N levels; one that is None is read from the image. Raises UsageError if the models do not know
    a level.
    """
    vqvae, prior = weights.load_models(models)
    usual, about = weights.load_usual(models), weights.load_config(models)["data"]
    highest = max((level for level in levels if level is not None), default=0)
    if prior.levels and highest >= prior.levels:
        known = f"the models in {short(models)} know levels 0 to {prior.levels - 1}"
        raise UsageError(f"level {highest}: {known}; give another --level or --models")
    pairs = zip(levels, usual.read_levels(images))
    levels = np.array([read if told is None else told for told, read in pairs], np.int32)
    quiet = True if len(images) <= PORTION else None  # None: a bar if there is a terminal
    progress = functools.partial(tqdm, desc="restoring", leave=False, disable=quiet)
    views = views_of(about.get("mirrored", False))
    found = restore(vqvae, prior, images, levels, views, usual.limit, seed, progress)
    ranks, maps = usual.rank(found.bits, levels), usual.map(found.parts)
    return Findings(levels, found.bits, *ranks, found.flagged, found.surprise, found.images, maps)
