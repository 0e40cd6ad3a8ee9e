"""All figures of one set of slices, and those of the codes and their prior.

They also say whether slices repeat training slices: how near the nearest real slice is, and which grids are the same.
"""

from typing import NamedTuple

import numpy as np

import modules
from brains import anatomy, classifiers, fidelity
from brains.fidelity import SliceSet, as_images
from brains.statistics import Figure, mean, resampled, share, within
from brains.surprise import bits

LABELLED = 68  # real slices of a level, at most, whose tissue says what is usual there
NEAR_REPEAT = 0.05  # share of codes that may differ in a near repeat


class Judge:
    """Measures sets of slices against real ones, which the models may know, and held-out ones, which they may not.

    Figures that depend on the number of slices are measured on `count` slices of each set, drawn by the seed. With a
    `segmenter` the anatomy is measured too, if the levels of the real slices are known.
    """

    def __init__(self, real, held_out, count, seed, segmenter=None):
        self.real, self.held_out, self.count, self.seed = real, held_out, count, seed
        self.components = fidelity.fit_components(real, seed)
        self.points = self.components(real)
        self.predict_level = None if real.levels is None else fidelity.fit_level(self.points, real.levels)
        self.found_held_out = nearest(held_out, real)
        known = real.levels is not None and len(np.unique(real.levels)) == real.levels.max() + 1  # none is missing
        self.segmenter = segmenter if known else None
        if self.segmenter:
            order = np.random.default_rng((seed, 2)).permutation(len(real.grey))
            by_level = [order[real.levels[order] == level][:LABELLED] for level in range(real.levels.max() + 1)]
            chosen = np.concatenate(by_level)
            labels, levels = segmenter.label(as_images(real.take(chosen))), real.levels[chosen]
            self.usual = anatomy.Usual(anatomy.measures_of(labels), levels)
            self.held_out_labels = segmenter.label(as_images(held_out))
            self.trivial_labels = anatomy.commonest(labels, levels)[self.levels_of(held_out)]

    def draw(self, slices, salt=0):
        """Return the indices of `count` slices."""
        return np.sort(np.random.default_rng((self.seed, salt)).choice(len(slices.grey), self.count, replace=False))

    def likeness(self, slices, real):
        """Return the figures of fidelity and variety of slices against real ones, {row: Figure}."""
        real_points = self.points if real is self.real else self.components(real)
        chosen = self.draw(real, salt=1)
        slices, equal = slices.take(self.draw(slices)), real.take(chosen)
        points = self.components(slices)
        pyramids = [fidelity.laplacian_pyramid(fidelity.unit(each.grey)) for each in (slices, equal)]
        distances = fidelity.sliced_wasserstein(*pyramids, self.seed)
        return {
            "Frechet distance": Figure(fidelity.frechet_distance(points, real_points)),
            **{f"sliced Wasserstein, {128 >> scale} px": Figure(value) for scale, value in enumerate(distances)},
            **fidelity.neighbourhoods(points, slices.groups, real_points[chosen], equal.groups),
            "SSIM of random pairs": fidelity.pair_ssim(slices, self.seed),
            "classifier AUC": classifiers.two_sample_auc(slices, equal, self.seed),
            "classifier AUC, no background": classifiers.two_sample_auc(
                slices, equal, self.seed, classifiers.BACKGROUND
            ),
        }

    def pixels(self, slices, real):
        """Return how well a network tells slices from real ones, {row: Figure}; of the same draw as in `likeness`."""
        equal = real.take(self.draw(real, salt=1))
        return {"network AUC": classifiers.network_auc(slices.take(self.draw(slices)), equal, self.seed)}

    def levels_of(self, slices):
        """Return the levels (N,) int of slices: as they are known, or else as a regression reads them."""
        read = self.predict_level(self.components(slices)) if slices.levels is None else slices.levels
        return np.clip(np.round(read), 0, self.real.levels.max()).astype(int)

    def tissue(self, slices, reconstructed):
        """Return the figures of the tissue maps of slices, {row: Figure}.

        If they are the held-out slices `reconstructed`, that includes the Dice of their maps with those of the
        originals; for the held-out slices themselves it is the Dice of the commonest label at each place of a level,
        the trivial answer.
        """
        if not self.segmenter:
            return {}
        held_out = slices is self.held_out
        labels = self.held_out_labels if held_out else self.segmenter.label(as_images(slices))
        figures = self.usual.figures(anatomy.measures_of(labels), self.levels_of(slices), slices.groups)
        if held_out or reconstructed:
            told = self.trivial_labels if held_out else labels
            figures |= anatomy.dice_by_tissue(told, self.held_out_labels, slices.groups)
        return figures

    def misreading(self, slices):
        """Return the error with which a regression reads the level of slices, {row: Figure}, if the level is known."""
        if self.predict_level is None or slices.levels is None:
            return {}
        return {
            "level misread by": mean(np.abs(self.predict_level(self.components(slices)) - slices.levels), slices.groups)
        }

    def memory(self, slices):
        """Return how near slices are to real ones, {row: Figure}, and what `nearest` gave."""
        found = self.found_held_out if slices is self.held_out else nearest(slices, self.real)
        (correlation, index, mirrored), usual = found, self.found_held_out[0]
        nearer = nearer_than_held_out(correlation, slices.groups, usual, self.held_out.groups)
        return {
            "correlation to nearest": mean(correlation, slices.groups),
            "SSIM to nearest": mean(ssim_of_nearest(slices, self.real, index, mirrored), slices.groups),
            "nearer than 95 % of held-out": nearer,
            "nearer than any held-out": share(correlation > usual.max(), slices.groups),
        }, found


def judge_prior(pixelcnn, sets, count):
    """Return what each set of Codes {name: Codes} costs, and how many codes it uses, {name: {row: Figure}}.

    The histogram is that of the training codes in each cell, which is what is known without context. One code, spread
    as the codes of all cells are, is added to each cell. The costs are those of at most `count` slices of each set.
    """
    number = pixelcnn.num_embeddings
    counts = np.stack([np.sum(sets["training"].grids == code, axis=0) for code in range(number)])  # (K, h, w)
    anywhere = counts.sum(axis=(1, 2), keepdims=True) + 1
    counts = counts + anywhere / anywhere.sum()
    histogram = np.log2(counts / counts.sum(axis=0))
    results = {}
    for name, (codes, groups, levels) in sets.items():
        in_use, perplexity = modules.code_usage(np.bincount(codes.ravel(), minlength=number))
        chosen = np.sort(np.random.default_rng(0).permutation(len(codes))[:count])
        codes, groups, levels = codes[chosen], groups[chosen], levels[chosen]
        cost = bits(pixelcnn, codes, levels)
        by_cell = -np.take_along_axis(histogram[None], codes[:, None], axis=1)[:, 0].mean(axis=(1, 2))
        results[name] = {
            "bits a code": mean(cost / codes[0].size, groups),
            "bits a slice": mean(cost, groups),
            "histogram, bits a code": mean(by_cell, groups),
            "uniform, bits a code": Figure(float(np.log2(number))),
            "codes in use": Figure(in_use * number),
            "perplexity": Figure(perplexity),
        }
    return results


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
    return within(value, shares)


def ssim_of_nearest(slices, real, index, mirrored):
    """Return the SSIM (N,) of slices to the real ones that `nearest` found."""
    turned = np.where(mirrored[:, None, None], slices.grey[:, ::-1], slices.grey)
    return modules.ssim(as_images(SliceSet(turned, slices.groups)), as_images(real.take(index)))


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
