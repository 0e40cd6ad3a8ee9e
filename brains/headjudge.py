"""How much whole heads look like those of people, how well they follow the age that is asked for, and what they copy.

All figures of heads stand beside those of held-out real heads and of their reconstructions.
"""

import math

import numpy as np
from scipy.stats import linregress
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

import modules
from brains import classifiers, fidelity
from brains.anatomy import correlation
from brains.fidelity import COMPONENTS, SliceSet
from brains.judge import nearer_than_held_out, standardised
from brains.membership import matched_auc, membership
from brains.statistics import Figure, mean, resampled, within

LEVELS_CUT = 4  # slices that are cut out of each head
PLANES = 4  # sagittal, and as many coronal, planes of each head
COARSE = (2, 4, 4)  # voxels of a head that make one, to compare whole heads
SIDE = 32  # pixels of a plane from bottom to top, whatever the number of slices


def slices_cut(heads):
    """Return the SliceSet of LEVELS_CUT slices of each of the Heads, of levels that vary by head."""
    heads, names = heads.grey, heads.names
    levels = heads.shape[1]
    step = levels // LEVELS_CUT
    chosen = np.arange(LEVELS_CUT) * step + np.arange(len(heads))[:, None] % step
    grey = np.concatenate([head[own] for head, own in zip(heads, chosen)])
    return SliceSet(grey, np.repeat(names, LEVELS_CUT), chosen.ravel())


def planes(heads, names, axis):
    """Return the SliceSet of PLANES planes (SIDE, 128) of each head across `axis`: 2 is sagittal, 3 coronal."""
    places = np.linspace(0.3, 0.7, PLANES) * heads.shape[axis]
    cut = np.take(heads, places.astype(int), axis=axis)  # (N, L, PLANES, W) or (N, L, H, PLANES)
    grey = np.moveaxis(cut, axis, 1).reshape(-1, heads.shape[1], heads.shape[5 - axis])
    grey = grey[:, np.arange(SIDE) * heads.shape[1] // SIDE]
    return SliceSet(grey, np.repeat(names, PLANES))


def coherence(heads, slab):
    """Return how much neighbouring slices of heads (N, L, H, W) uint8 belong together, {row: values (N,)}.

    It is the SSIM of neighbours in a slab of so many slices and across the borders of slabs, and the ratio of the mean
    difference through the slices to that inside them.
    """
    images = fidelity.images_of(heads)
    alike = np.array([modules.ssim(head[:-1], head[1:]) for head in images])  # (N, L - 1)
    border = np.arange(1, heads.shape[1]) % slab == 0
    through = np.abs(np.diff(images, axis=1)).mean(axis=(1, 2, 3, 4))
    inside = sum(np.abs(np.diff(images, axis=axis)).mean(axis=(1, 2, 3, 4)) for axis in (2, 3)) / 2
    return {
        "SSIM of neighbours, in slabs": alike[:, ~border].mean(axis=1),
        "SSIM of neighbours, at borders": alike[:, border].mean(axis=1),
        "gradient through slices": through / inside,
    }


def style(heads):
    """Return the Figures of how far the finest detail of heads (N, L, H, W) uint8 is one style, {row: Figure}.

    They are correlations over heads: between the four inner cells of a slice, a mean over pairs, and between two
    levels, of a quarter and three quarters of the way up. Noise and contrast are those of a scan, not of a place in it.
    """
    quarter = heads.shape[1] // 4
    levels = heads[:, quarter], heads[:, 3 * quarter]
    first, second = (classifiers.energies(fidelity.unit(each))[:, : classifiers.CELLS**2] for each in levels)
    inner = first[:, [5, 6, 9, 10]].T
    pairs = [(i, j) for i in range(4) for j in range(i)]
    weights = np.concatenate([np.ones((1, len(heads)), np.float32), resampled(np.arange(len(heads)))])
    cells = np.mean([correlation(inner[i], inner[j], weights) for i, j in pairs], axis=0)
    levels = correlation(inner.mean(axis=0), second[:, [5, 6, 9, 10]].mean(axis=1), weights)
    return {"style, cells, r": within(cells[0], cells[1:]), "style, levels, r": within(levels[0], levels[1:])}


def coarse(heads):
    """Return heads (N, L, H, W) uint8 as vectors (N, M) float32 of the means of COARSE voxels."""
    number, *sides = heads.shape
    shape = [part for side, step in zip(sides, COARSE) for part in (side // step, step)]
    return fidelity.unit(heads).reshape(number, *shape).mean(axis=(2, 4, 6)).reshape(number, -1)


class AgeReader:
    """A regression from heads to age, fitted to real heads (N, L, H, W) uint8 of people of these ages (N,)."""

    def __init__(self, heads, ages, seed=0):
        points = coarse(heads)
        self.pca = PCA(min(COMPONENTS, len(points) - 1), svd_solver="randomized", random_state=seed).fit(points)
        self.ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(self.pca.transform(points), ages)

    def read(self, heads):
        return self.ridge.predict(self.pca.transform(coarse(heads)))

    def figures(self, heads, ages):
        """Return how the ages read from heads follow their ages (N,), {row: Figure}."""
        read, weights = self.read(heads), resampled(np.arange(len(heads)))
        together = correlation(read, ages, np.concatenate([np.ones((1, len(ages)), np.float32), weights]))
        return {
            "age read, r": within(together[0], together[1:]),
            "age read, slope": slope(ages, read),
            "age read, error in years": mean(np.abs(read - ages), np.arange(len(ages))),
        }


def slope(x, y):
    """Return the Figure of the slope of y (N,) over x (N,), with its 95 % interval over heads."""
    weights = resampled(np.arange(len(x)))
    means = [weights @ each / weights.sum(axis=1) for each in (x, y, x * y, x * x)]
    slopes = (means[2] - means[0] * means[1]) / np.maximum(means[3] - means[0] ** 2, 1e-9)
    return within(linregress(x, y).slope, slopes)


def tissue_shares(heads, segmenter):
    """Return the shares (N, 3) of CSF, grey and white matter in the brains of heads (N, L, H, W) uint8."""
    counts = []
    for head in heads:
        labels = segmenter.label(fidelity.images_of(head))
        counts.append(np.bincount(labels.ravel(), minlength=4)[1:4])
    counts = np.array(counts, float)
    return counts / counts.sum(axis=1, keepdims=True)


def aging(shares, ages):
    """Return the Figures of the change of the shares (N, 3) of tissue over ages (N,), in percent a decade."""
    return {
        f"{tissue} over age, % a decade": slope(ages, 1000 * share)
        for tissue, share in zip(("CSF", "grey matter"), shares.T)
    }


def copies(heads, known):
    """Return the correlation (N,) of heads (N, L, H, W) uint8 with the nearest of those known, mirrored or not."""
    learned = standardised(coarse(np.concatenate([known, known[:, :, ::-1]])))
    return (standardised(coarse(heads)) @ learned.T).max(axis=1)


def memory(correlations, names, held_out, held_out_names):
    """Return the Figures of how near heads are to those learned from, beside held-out ones, {row: Figure}."""
    return {
        "correlation to nearest head": mean(correlations, names),
        "heads nearer than 95 % of held-out": nearer_than_held_out(correlations, names, held_out, held_out_names),
    }


def plane_figures(heads, names, real, real_names, seed):
    """Return how sagittal and coronal planes of heads compare with those of real ones, {row: Figure}."""
    figures = {}
    for name, axis in (("sagittal", 2), ("coronal", 3)):
        ours, theirs = planes(heads, names, axis), planes(real, real_names, axis)
        count = min(len(ours.grey), len(theirs.grey))
        finest = [fidelity.laplacian_pyramid(fidelity.unit(each.grey[:count]))[:1] for each in (ours, theirs)]
        figures[f"{name}, sliced Wasserstein"] = Figure(fidelity.sliced_wasserstein(*finest, seed)[0])
        figures[f"{name}, classifier AUC"] = classifiers.two_sample_auc(ours, theirs, seed)
    return figures


def ages_of(heads):
    """Return the ages (N,) float of the people of Heads, NaN where they are unknown."""
    return np.array([math.nan if person.age is None else person.age for person in heads.people])


class HeadJudge:
    """Measures Heads beside the `real` ones that models have learned from, and `held_out` ones.

    `slab` is that of the models. Without a `segmenter` there are no figures of tissue.
    """

    def __init__(self, real, held_out, slab, seed, segmenter=None):
        self.real, self.held_out, self.slab, self.seed, self.segmenter = real, held_out, slab, seed, segmenter
        ages = ages_of(real)
        aged = ~np.isnan(ages)
        self.reader = AgeReader(real.grey[aged], ages[aged], seed) if aged.sum() > COMPONENTS else None
        self.usual_copies = copies(held_out.grey, real.grey)

    def figures(self, heads):
        """Return the Figures of Heads, {row: Figure}."""
        grey, names, ages = heads.grey, heads.names, ages_of(heads)
        figures = {row: mean(values, names) for row, values in coherence(grey, self.slab).items()}
        figures |= style(grey) | plane_figures(grey, names, self.real.grey, self.real.names, self.seed)
        aged = ~np.isnan(ages)
        if self.reader and aged.sum() > 2:
            figures |= self.reader.figures(grey[aged], ages[aged])
            if self.segmenter:
                figures |= aging(tissue_shares(grey[aged], self.segmenter), ages[aged])
        near = self.usual_copies if heads is self.held_out else copies(grey, self.real.grey)
        return figures | memory(near, names, self.usual_copies, self.held_out.names)

    def membership(self, generated, costs):
        """Return how well one who has heads of a person can tell that models learned from this person, {row: Figure}.

        The score is the likeness to the nearest of the `generated` Heads, or the error of the flow on a head, of
        {name: error}.
        """
        grey, names, ages = (
            np.concatenate([part(each) for each in (self.real, self.held_out)])
            for part in (lambda each: each.grey, lambda each: each.names, ages_of)
        )
        known = {name: age for name, age in zip(names, ages) if not np.isnan(age)}
        inside = set(self.real.names)
        near, control = membership(copies(grey, generated.grey), names, inside, known, self.seed)
        figures = {"membership, nearest head": near, "membership, control": control}
        groups, errors = np.array(list(costs)), np.array(list(costs.values()))
        figures["membership, error of the flow"] = matched_auc(-errors, groups, inside, known)
        return {row: figure for row, figure in figures.items() if figure}
