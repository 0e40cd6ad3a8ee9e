"""How well the unusual is found: lesions planted in real slices, and people with dementia beside others of their age."""

from typing import NamedTuple

import numpy as np

from brains import lesions
from brains.membership import matched_auc, some_of_each
from brains.restoration import restore
from brains.statistics import resampled, within
from brains.surprise import bits

PLANTED = 4  # slices of a person in which lesions are planted
SHARES = np.linspace(
    0, 18, 1024
)  # scores are binned at what 2^-SHARES of the pixels exceed: fine where scores are high
UNUSUAL = 0.005  # share of the pixels of a slice that make it unusual
SURE = 1  # clinical dementia rating (CDR) from which people count as demented


class Scene(NamedTuple):
    """Slices in which lesions are planted, and slices of other people at the same levels.

    `images` (N, 128, 128, 1) of `groups` (N,) and `levels` (N,), and `others` (N, 128, 128, 1).
    """

    images: np.ndarray
    groups: np.ndarray
    levels: np.ndarray
    others: np.ndarray


def choose_scene(images, groups, levels, seed):
    """Return the Scene of PLANTED slices of each group, of whose level another group has a slice too."""
    rng, chosen, others = np.random.default_rng((seed, 4)), [], []
    for group in dict.fromkeys(groups):
        for i in np.sort(rng.permutation(np.flatnonzero(groups == group))[:PLANTED]):
            alike = np.flatnonzero((levels == levels[i]) & (groups != group))
            if len(alike):
                chosen.append(i)
                others.append(rng.choice(alike))
    return Scene(images[chosen], groups[chosen], levels[chosen], images[others])


class Example(NamedTuple):
    """Slices (N, 128, 128, 1), the same with lesions, their masks (N, 128, 128), restorations, and maps (N, 128, 128)."""

    healthy: np.ndarray
    images: np.ndarray
    masks: np.ndarray
    restored: np.ndarray
    maps: np.ndarray


class Normal:
    """The mean of slices at each pixel of a level, and the deviation from it."""

    def __init__(self, images, levels):
        number = levels.max() + 1
        self.mean, self.deviation = np.zeros((2, number, *images.shape[1:3]), np.float32)
        for level in np.unique(levels):
            slices = images[levels == level][..., 0]
            self.mean[level], self.deviation[level] = slices.mean(axis=0), slices.std(axis=0)

    def distance(self, images, levels):
        """Return how many deviations the pixels of images (N, 128, 128, 1) of levels (N,) are from the mean."""
        return np.abs(images[..., 0] - self.mean[levels]) / (self.deviation[levels] + 0.02)  # else by noise outside


class Finder:
    """Scores every pixel of slices in several ways, with models and what is Usual to them, and a Normal."""

    def __init__(self, vqvae, prior, usual, views, normal, seed):
        self.vqvae, self.prior, self.usual, self.views, self.normal, self.seed = (
            vqvae,
            prior,
            usual,
            views,
            normal,
            seed,
        )

    def restore(self, images, levels):
        """Return what is Restored of images (N, 128, 128, 1) of levels (N,)."""
        return restore(self.vqvae, self.prior, images, levels, self.views, self.usual.limit, self.seed)

    def scores(self, images, levels):
        """Return the scores {way: (N, 128, 128)} of images (N, 128, 128, 1): the map, two of its steps, baselines."""
        found = self.restore(images, levels)
        difference = np.abs(images - self.vqvae.decode(self.vqvae.encode(images)))[..., 0]
        return {
            "map": self.usual.map(found.parts),
            "restoration times surprise": found.parts[0],
            "surprise": found.surprise,
            "brightness": images[..., 0],
            "distance to the mean": self.normal.distance(images, levels),
            "reconstruction error": difference,
        }


def measure(finder, scene, progress=iter):
    """Return the Figures {way: {(kind, size): {figure: Figure}}} of lesions planted in a Scene."""
    healthy, results = finder.scores(scene.images, scene.levels), {}
    for kind, size in progress([(kind, size) for kind in lesions.KINDS for size in lesions.SIZES]):
        planted = lesions.plant(kind, lesions.SIZES[size], scene.images, scene.others, finder.seed)
        for way, scores in finder.scores(planted.images, scene.levels).items():
            figures = detection(scores, planted.masks, scene.groups)
            whole = [np.quantile(each.reshape(len(each), -1), 1 - UNUSUAL, axis=1) for each in (healthy[way], scores)]
            truth, groups = np.repeat([False, True], len(scene.groups)), np.tile(scene.groups, 2)
            figures["AUROC by slice"] = detection(np.concatenate(whole), truth, groups)["AUROC"]
            results.setdefault(way, {})[kind, size] = figures
    return results


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


def detection(scores, truth, groups):
    """Return how well scores (N, ...) tell where the truth (N, ...) bool is, {figure: Figure} over the groups (N,).

    The figures are the average precision, the area under the ROC curve (AUROC), and the highest Dice of any threshold.
    """
    edges = np.unique(np.quantile(scores, 1 - 2.0**-SHARES))
    bins, people = np.searchsorted(edges, scores, side="right"), list(dict.fromkeys(groups))
    counts = np.zeros((2, len(people), len(edges) + 1))
    for number, person in enumerate(people):
        own = groups == person
        for side in (False, True):
            counts[int(side), number] = np.bincount(bins[own][truth[own] == side], minlength=len(edges) + 1)
    values = _curves(counts.sum(axis=1)[:, None])
    drawn = _curves(resampled(np.arange(len(people))) @ counts)
    return {name: within(value[0], resamples) for (name, value), resamples in zip(values.items(), drawn.values())}


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


def demented(vqvae, prior, slices, people):
    """Return the Figure of the AUC with which bits tell people with dementia from others of their age, or None.

    `slices` are images (N, 128, 128, 1), groups (N,) and levels (N,). `people` are `people.Person` by group; those whose
    rating is between 0 and SURE are left out.
    """
    images, groups, levels = slices
    known = {group: person for group, person in people.items() if not 0 < person.cdr < SURE}
    places = np.flatnonzero(np.isin(groups, list(known)))
    chosen = places[some_of_each(groups[places])]
    costs = bits(prior, vqvae.encode(images[chosen]), levels[chosen])
    ages = {group: person.age for group, person in known.items()}
    return matched_auc(costs, groups[chosen], {group for group in known if known[group].cdr}, ages)
