"""How well the unusual is found: lesions planted in real slices, and people with dementia beside others of one age."""

from typing import NamedTuple

import numpy as np

from brains import lesions
from brains.cli import UserError
from brains.membership import matched_auc, some_of_each
from brains.restoration import WIDE, restore, smooth
from brains.statistics import resampled, within
from brains.surprise import bits

PLANTED = 4  # slices of a person in which lesions are planted
SHARES = np.linspace(
    0, 18, 1024
)  # scores are binned at what 2^-SHARES of the pixels exceed: finely where they are high
UNUSUAL = 0.005  # share of the pixels of a slice that make it unusual
DEMENTED = 1  # clinical dementia rating (CDR) from which people count as demented


class Scene(NamedTuple):
    """Slices in which lesions are planted, and slices of other people at the same levels.

    `images` (N, 128, 128, 1) of `groups` (N,) and `levels` (N,), and `others` (N, 128, 128, 1).
    """

    images: np.ndarray
    groups: np.ndarray
    levels: np.ndarray
    others: np.ndarray


def choose_scene(images, groups, levels, seed):
    """Return the Scene of PLANTED slices of each group, of whose level another group has a slice too.

    Raises UserError if there are none.
    """
    rng, chosen, others = np.random.default_rng((seed, 4)), [], []
    for group in dict.fromkeys(groups):
        for i in np.sort(rng.permutation(np.flatnonzero(groups == group))[:PLANTED]):
            alike = np.flatnonzero((levels == levels[i]) & (groups != group))
            if len(alike):
                chosen.append(i)
                others.append(rng.choice(alike))
    if not chosen:
        raise UserError("no two people here have slices of one level, so that no tissue can be exchanged")
    return Scene(images[chosen], groups[chosen], levels[chosen], images[others])


class Example(NamedTuple):
    """Slices (N, 128, 128, 1), the same with lesions, their masks (N, 128, 128), restorations, and maps."""

    healthy: np.ndarray
    images: np.ndarray
    masks: np.ndarray
    restored: np.ndarray
    maps: np.ndarray


class Normal(NamedTuple):
    """The mean of slices at each pixel of a level (levels, 128, 128), and the deviation from it."""

    mean: np.ndarray
    deviation: np.ndarray

    def distance(self, images, levels):
        """Return how many deviations the pixels of images (N, 128, 128, 1) of levels (N,) are from the mean."""
        # the black around a head hardly deviates, so that its noise would count more than any lesion
        return np.abs(images[..., 0] - self.mean[levels]) / (self.deviation[levels] + 0.02)


def measure_normal(images, levels, chosen):
    """Return what is Normal in the chosen ones (M,) of images (N, 128, 128, 1) of levels (N,)."""
    shape = (levels[chosen].max() + 1, *images.shape[1:3])
    normal = Normal(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    for level in np.unique(levels[chosen]):
        slices = images[chosen[levels[chosen] == level], :, :, 0]
        normal.mean[level], normal.deviation[level] = slices.mean(axis=0), slices.std(axis=0)
    return normal


class Finder(NamedTuple):
    """What scores the pixels of slices: models, what is Usual to them, the Views that they know, and what is Normal."""

    vqvae: object
    prior: object
    usual: object
    views: tuple
    normal: Normal
    seed: int

    def restore(self, images, levels):
        """Return what is Restored of images (N, 128, 128, 1) of levels (N,)."""
        return restore(self.vqvae, self.prior, images, levels, self.views, self.usual.limit, self.seed)

    def scores(self, images, levels):
        """Return the scores {way: (N, 128, 128)} of images (N, 128, 128, 1): the map, two steps to it, and baselines.

        The baselines are averaged over as many pixels as the map.
        """
        found = self.restore(images, levels)
        error = np.abs(images - self.vqvae.decode(self.vqvae.encode(images)))[..., 0]
        return {
            "map": self.usual.map(found.parts),
            "difference and surprise": found.parts[0],
            "surprise": found.surprise,
            "brightness": smooth(images[..., 0], WIDE),
            "distance to the mean": smooth(self.normal.distance(images, levels), WIDE),
            "reconstruction error": smooth(error, WIDE),
        }


def measure(finder, scene, progress=iter):
    """Return how well lesions planted in a Scene are found, {way: {figure: {(kind, size): Resampled}}}."""
    healthy, results = finder.scores(scene.images, scene.levels), {}
    for kind, size in progress([(kind, size) for kind in lesions.KINDS for size in lesions.SIZES]):
        planted = lesions.plant(kind, lesions.SIZES[size], scene.images, scene.others, finder.seed)
        for way, scores in finder.scores(planted.images, scene.levels).items():
            figures = detection(scores, planted.masks, scene.groups)
            highest = [np.quantile(each, 1 - UNUSUAL, axis=(1, 2)) for each in (healthy[way], scores)]
            truth, groups = np.repeat([False, True], len(scene.groups)), np.tile(scene.groups, 2)
            figures["AUROC by slice"] = detection(np.concatenate(highest), truth, groups)["AUROC"]
            for name, figure in figures.items():
                results.setdefault(way, {}).setdefault(name, {})[kind, size] = figure
    return results


def means_by_kind(results):
    """Return the mean average precision over sizes, {kind: {way: Figure}}, and over kinds, of what `measure` gives."""
    columns = {}
    for way, figures in results.items():
        for kind in (*lesions.KINDS, "mean"):
            parts = [each for (name, _), each in figures["average precision"].items() if kind in (name, "mean")]
            columns.setdefault(kind, {})[way] = Resampled(*(np.mean(part, axis=0) for part in zip(*parts))).figure
    return columns


def examples(finder, scene):
    """Return the Example of a lesion of each kind, each in another slice of a Scene."""
    chosen = np.linspace(0, len(scene.images) - 1, len(lesions.KINDS)).round().astype(int)
    planted = []
    for i, kind in enumerate(lesions.KINDS):
        parts = (each[[chosen[i]]] for each in (scene.images, scene.others))
        planted.append(lesions.plant(kind, lesions.SIZES["medium"], *parts, finder.seed + i))
    images, masks = map(np.concatenate, zip(*planted))
    found = finder.restore(images, scene.levels[chosen])
    return Example(scene.images[chosen], images, masks, found.images, finder.usual.map(found.parts))


class Resampled(NamedTuple):
    """A value, and its values in bootstrap samples (R,)."""

    value: float
    samples: np.ndarray

    @property
    def figure(self):
        return within(self.value, self.samples)


def detection(scores, truth, groups):
    """Return how well scores (N, ...) tell where the truth (N, ...) bool is, {figure: Resampled} over the groups (N,).

    The figures are the average precision, the area under the ROC curve (AUROC), and the highest Dice of any threshold.
    """
    edges = np.unique(np.quantile(scores, 1 - 2.0**-SHARES))
    bins, people = np.searchsorted(edges, scores, side="right"), list(dict.fromkeys(groups))
    counts = np.zeros((2, len(people), len(edges) + 1))
    for number, person in enumerate(people):
        own = groups == person
        for side in (False, True):
            counts[int(side), number] = np.bincount(bins[own][truth[own] == side], minlength=len(edges) + 1)
    values, drawn = _curves(counts.sum(axis=1)[:, None]), _curves(resampled(np.arange(len(people))) @ counts)
    return {name: Resampled(float(value[0]), drawn[name]) for name, value in values.items()}


def _curves(counts):
    """Return the figures of counts (2, R, bins) of false and true pixels by score, {figure: (R,)}."""
    false, true = np.cumsum(counts[..., ::-1], axis=-1)
    precision, all_true = true / np.maximum(false + true, 1), true[:, -1:]
    gained = np.diff(true, axis=-1, prepend=0) / all_true
    crossed = np.diff(false, axis=-1, prepend=0) / false[:, -1:]
    return {
        "average precision": np.sum(precision * gained, axis=-1),
        "AUROC": 1 - np.sum(gained * (np.cumsum(crossed, axis=-1) - crossed / 2), axis=-1),
        "best Dice": np.max(2 * true / (false + true + all_true), axis=-1),
    }


def demented(vqvae, prior, images, groups, levels, people):
    """Return how bits tell people with dementia from others of their age, and how many there are of both.

    That is the Figure of an AUC, or None, for images (N, 128, 128, 1) of groups (N,) and levels (N,). `people` are each
    Person by group; those whose rating lies between 0 and DEMENTED are left out.
    """
    known = {group: people[group] for group in dict.fromkeys(groups) if group in people}
    known = {group: person for group, person in known.items() if not 0 < person.cdr < DEMENTED}
    inside = {group for group, person in known.items() if person.cdr}
    numbers = len(inside), len(known) - len(inside)
    if not all(numbers):
        return None, numbers
    places = np.flatnonzero(np.isin(groups, list(known)))
    chosen = places[some_of_each(groups[places])]
    costs = bits(prior, vqvae.encode(images[chosen]), levels[chosen])
    ages = {group: person.age for group, person in known.items()}
    return matched_auc(costs, groups[chosen], inside, ages), numbers
