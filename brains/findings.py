"""What models find unusual in slices, as `predict.py restore` says it."""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from brains import weights
from brains.cli import UserError, note, short
from brains.names import named_level
from brains.restoration import restore
from brains.surprise import views_of

PORTION = 64  # slices at a time, to spare memory


class Findings(NamedTuple):
    """What is found in N slices.

    `levels` (N,) int32, and where each is from, `told_by` (N,) str. `bits` (N,) are those of all codes of a slice,
    `percentiles` (N,) the percentage of held-out slices of about its level that cost less, and `of_highest` (N,) bits
    over the highest of theirs. `flagged` (N,) is the share of codes drawn anew. `surprise` (N, 128, 128) are the bits of the code at each pixel, `restored` (N, 128, 128, 1) the
    slices restored, and `maps` (N, 128, 128) how unusual each pixel is, in bits; see `Usual.map`.
    """

    levels: np.ndarray
    told_by: np.ndarray
    bits: np.ndarray
    percentiles: np.ndarray
    of_highest: np.ndarray
    flagged: np.ndarray
    surprise: np.ndarray
    restored: np.ndarray
    maps: np.ndarray


def find_unusual(models, names, images, seed, level=None):
    """Return the Findings in images (N, 128, 128, 1) float32 in [-0.5, 0.5], by the set of weights in `models`.

    The level of a slice is `level`, or that in its name, or what a regression reads from the image. Raises UserError if
    the models do not know a level.
    """
    vqvae, prior = weights.load_models(models)
    usual, views = weights.load_usual(models), views_of(weights.load_config(models))
    levels = [named_level(name) if level is None else level for name in names]
    told_by = np.array(["name" if each is not None else "image" for each in levels])
    if level is not None:
        told_by[:] = "--level"
    read = usual.read_levels(images)
    levels = np.array([guess if told is None else told for told, guess in zip(levels, read)], np.int32)
    if prior.levels and levels.max() >= prior.levels:
        first = names[levels.argmax()]
        raise UserError(
            f"{first}: level {levels.max()}, but {short(models)} knows 0 to {prior.levels - 1}; see --level"
        )
    if "image" in told_by:
        unnamed = [name for name, by in zip(names, told_by) if by == "image"]
        note(
            f"note: {unnamed[0]}" + (f" and {len(unnamed) - 1} more" if unnamed[1:] else "") + ": no level in the "
            "name (slice_K), so it is read from the image; see --level"
        )
    portions = np.array_split(np.arange(len(images)), -(-len(images) // PORTION))
    progress = tqdm(portions, "restoring", unit="portion", leave=False, disable=None if len(portions) > 1 else True)
    found = [restore(vqvae, prior, images[part], levels[part], views, usual.limit, seed) for part in progress]
    bits, surprise, flagged, restored = (np.concatenate(part) for part in list(zip(*found))[:4])
    maps = np.concatenate([usual.map(each.parts) for each in found])
    return Findings(levels, told_by, bits, *usual.rank(bits, levels), flagged, surprise, restored, maps)
