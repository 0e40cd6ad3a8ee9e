"""All figures of one set of slices, and those of the codes and their prior."""

import numpy as np

import modules
from brains import fidelity
from brains.backend import tf
from brains.memory import nearer_than_held_out, nearest, ssim_of_nearest
from brains.statistics import Figure, mean, share


class Judge:
    """Measures sets of slices against real ones, which the models may know, and held-out ones, which they may not.

    Figures that depend on the number of slices are measured on `count` slices of each set, drawn by the seed.
    """

    def __init__(self, real, held_out, count, seed):
        self.real, self.held_out, self.count, self.seed = real, held_out, count, seed
        self.components = fidelity.fit_components(real, seed)
        self.predict_level = None if real.levels is None else fidelity.fit_level(real, self.components)
        self.nearest_held_out = nearest(held_out, real)[0]

    def draw(self, slices, salt=0):
        chosen = np.random.default_rng((self.seed, salt)).choice(len(slices.grey), self.count, replace=False)
        return slices.take(np.sort(chosen))

    def likeness(self, slices, real):
        """Return the figures of fidelity and variety of slices against real ones, {row: Figure}."""
        slices, equal = self.draw(slices), self.draw(real, salt=1)
        points = self.components(slices)
        pyramids = [fidelity.laplacian_pyramid(fidelity.unit(each.grey)) for each in (slices, equal)]
        distances = fidelity.sliced_wasserstein(*pyramids, self.seed)
        return {
            "Frechet distance": Figure(fidelity.frechet_distance(points, self.components(real))),
            **{f"sliced Wasserstein, {128 >> scale} px": Figure(value) for scale, value in enumerate(distances)},
            **fidelity.neighbourhoods(points, slices.groups, self.components(equal), equal.groups),
            "SSIM of random pairs": fidelity.pair_ssim(slices, self.seed),
            "classifier AUC": fidelity.two_sample_auc(slices, equal, self.seed),
            "classifier AUC, no background": fidelity.two_sample_auc(slices, equal, self.seed, fidelity.BACKGROUND),
        }

    def misreading(self, slices):
        """Return the error with which a regression reads the level of slices, {row: Figure}, if the level is known."""
        if self.predict_level is None or slices.levels is None:
            return {}
        return {"level misread by": mean(np.abs(self.predict_level(slices) - slices.levels), slices.groups)}

    def memory(self, slices):
        """Return how near slices are to real ones, {row: Figure}, and what `nearest` gave."""
        correlation, index, mirrored = found = nearest(slices, self.real)
        nearer = nearer_than_held_out(correlation, slices.groups, self.nearest_held_out, self.held_out.groups)
        return {
            "correlation to nearest": mean(correlation, slices.groups),
            "SSIM to nearest": mean(ssim_of_nearest(slices, self.real, index, mirrored), slices.groups),
            "nearer than 95 % of held-out": nearer,
            "nearer than any held-out": share(correlation > self.nearest_held_out.max(), slices.groups),
        }, found


def judge_prior(pixelcnn, sets, count):
    """Return what each set of Codes {name: Codes} costs, and how many codes it uses, {name: {row: Figure}}.

    The histogram is that of the training codes in each cell, which is what is known without context. One code, spread
    as the codes of all cells are, is added to each cell. The costs are those of `count` slices of each set.
    """
    number = pixelcnn.num_embeddings
    counts = np.stack([np.sum(sets["training"].grids == code, axis=0) for code in range(number)])  # (K, h, w)
    anywhere = counts.sum(axis=(1, 2), keepdims=True) + 1
    counts = counts + anywhere / anywhere.sum()
    histogram = np.log2(counts / counts.sum(axis=0))
    logits = tf.function(pixelcnn, reduce_retracing=True)

    def bits(codes, levels):
        return -np.asarray(modules.categorical(logits(codes, levels)).log_prob(codes)) / np.log(2)

    results = {}
    for name, (codes, groups, levels) in sets.items():
        in_use, perplexity = modules.code_usage(np.bincount(codes.ravel(), minlength=number))
        chosen = np.sort(np.random.default_rng(0).permutation(len(codes))[:count])
        codes, groups, levels = codes[chosen], groups[chosen], levels[chosen]
        cost = modules.in_batches(lambda chosen: bits(codes[chosen], levels[chosen]), np.arange(len(codes)))
        cost = cost.mean(axis=(1, 2))
        by_cell = -np.take_along_axis(histogram[None], codes[:, None], axis=1)[:, 0].mean(axis=(1, 2))
        results[name] = {
            "bits a code": mean(cost, groups),
            "bits a slice": mean(cost * codes[0].size, groups),
            "histogram, bits a code": mean(by_cell, groups),
            "uniform, bits a code": Figure(float(np.log2(number))),
            "codes in use": Figure(in_use * number),
            "perplexity": Figure(perplexity),
        }
    return results
