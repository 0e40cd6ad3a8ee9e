"""Measures how good generated slices are: faithful, varied, new; each figure beside what real slices get.

    python evaluate.py                        both presets against the training split, the test split as floor
    python evaluate.py --tune                 the same with the held-out training cases, to choose by
    python evaluate.py --real DIR --fake DIR  any two folders of images

All sets are measured in the same way: generated slices; real slices of people that no model has seen, whose figures
say what is real; and the reconstructions of these, which are as good as a decoder can make them.
Writes evaluation.json, nearest.png (training slices: not to be published) and nearest_distances.png; with several
temperatures also temperatures.png, the curve of fidelity against variety.

    Heusel et al. 2017, arXiv 1706.08500              (Frechet distance)
    Karras et al. 2018, arXiv 1710.10196              (sliced Wasserstein distance of Laplacian-pyramid patches)
    Kynkaanniemi et al. 2019, arXiv 1904.06991        (precision and recall)
    Naeem et al. 2020, arXiv 2002.09797               (density and coverage)
    Lopez-Paz and Oquab 2017, arXiv 1610.06545        (classifier two-sample test)
"""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dataset
from dataset import UserError, case_of, note, written

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # scikit-learn's threads else spin where other work wants the cores

SAMPLES = 544  # slices to generate: the size of the test split
COMPONENTS = 64  # principal components of the training pixels, for distances between slices
NEIGHBOURS = 5  # within whose reach a slice counts as among real (generated) ones
LEVELS = 4  # of the Laplacian pyramid: 128, 64, 32 and 16 pixels a side
PATCH, PATCHES = 7, 64  # pixels a side of a patch, patches of a slice
DIRECTIONS = 512  # onto which patches are projected
CELLS = 4  # a side of the grid in which the classifier sees the pyramid's energies
FOLDS = 5
BACKGROUND = 0.04  # of white: below, nobody sees a difference from black
AUC_RESAMPLES = 500  # of the many for other intervals: each takes a sorting
PAIRS = 2000  # random pairs of slices
SHOWN = 8  # generated slices nearest to training slices, in the figure
NEAR_REPEAT = 0.05  # share of codes that may differ
BOTH = "both"  # presets


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Measure how good generated slices are, beside real ones. Figures of different numbers of samples "
        "do not compare."
    )
    models_only = [
        dataset.add_candidates_argument(parser),
        parser.add_argument(
            "--samples", type=dataset.positive, default=SAMPLES, metavar="N", help="slices to generate (%(default)s)"
        ),
        parser.add_argument(
            "--temperature",
            type=dataset.temperature,
            nargs="+",
            metavar="T",
            help="of sampling; of several, a curve is drawn (default: that of the models)",
        ),
        parser.add_argument(
            "--tune",
            action="store_true",
            help="use the training cases held out in training in place of the test split, which so stays unseen",
        ),
    ]
    parser.add_argument("--seed", type=dataset.seed, default=0, metavar="N", help="of all that is drawn (%(default)s)")
    parser.add_argument(
        "--real",
        type=Path,
        metavar="DIR",
        help="folder of real images, in place of the slices; case_NNN in a name tells the person, and a tenth of them "
        "is held out",
    )
    parser.add_argument("--fake", type=Path, metavar="DIR", help="folder of generated images, in place of the models'")
    dataset.add_data_arguments(parser)
    dataset.add_model_arguments(parser, presets=(*dataset.PRESETS, BOTH), default=BOTH)
    args = parser.parse_args()
    if (args.real is None) != (args.fake is None):
        parser.error("--real and --fake go together")
    unused = [action.option_strings[0] for action in models_only if getattr(args, action.dest) != action.default]
    unused += [f"--{name}" for name in ("models", "data", "url") if getattr(args, name)]
    if args.real and unused:
        parser.error(f"{unused[0]} does not go with --real and --fake")
    both = args.preset == BOTH and not args.models
    args.models = [dataset.MODELS / preset for preset in dataset.PRESETS] if both else [dataset.choose_models(args)]
    return args


class Pictures(NamedTuple):
    """Slices as PNGs hold them, `grey` (N, 128, 128) uint8, and the group (person) that each belongs to (N,) str.

    `levels` (N,) int are those of the slices in their heads, the lowest 0, or None where they are not known.
    """

    grey: np.ndarray
    groups: np.ndarray
    levels: np.ndarray | None = None

    def take(self, chosen):
        levels = None if self.levels is None else self.levels[chosen]
        return Pictures(self.grey[chosen], self.groups[chosen], levels)

    @property
    def unit(self):
        """(N, 128, 128) float32 in [0, 1]."""
        return self.grey / np.float32(255)


def pictures(images, names, levels=None):
    """Pictures of images (N, 128, 128, 1) in [-0.5, 0.5]; slices of one case are a group."""
    return Pictures(dataset.to_levels(images[..., 0]), np.array([case_of(name) for name in names]), levels)


class Figure(NamedTuple):
    """A value, and its 95 % bootstrap interval over groups where it is a mean over slices."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self):
        digits = 4 if abs(self.value) < 0.1 else 3 if abs(self.value) < 10 else 1
        if self.low is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def mean(values, groups):
    """Figure of the mean of values (N,)."""
    return Figure(float(np.mean(values)), *dataset.bootstrap_interval(values, groups))


def share(hits, groups):
    """Figure of the share of hits (N,) bool; where there are none, the interval is that of none of as many groups."""
    figure = mean(hits, groups)
    return figure if np.any(hits) else figure._replace(high=1 - 0.025 ** (1 / len(set(groups))))


# --- fidelity and variety ---------------------------------------------------------------------------------------------


def fit_components(real, seed):
    """The principal components of real slices: a function from Pictures to points (N, COMPONENTS) float32."""
    from sklearn.decomposition import PCA

    count = min(COMPONENTS, len(real.grey) - 1)
    pca = PCA(count, svd_solver="randomized", random_state=seed).fit(real.unit.reshape(len(real.grey), -1))

    def components(some):
        parts = [Pictures(grey, None) for grey in np.array_split(some.grey, -(-len(some.grey) // 1024))]
        return np.concatenate([pca.transform(part.unit.reshape(len(part.grey), -1)) for part in parts])

    return components


def frechet_distance(points, others):
    """Frechet distance of Gaussians fitted to points (N, D) and others (M, D): |m - n|^2 + tr(S + T - 2 (S T)^1/2)."""
    import scipy.linalg

    covariance, other = np.cov(points, rowvar=False), np.cov(others, rowvar=False)
    # tr (S T)^1/2 from the eigenvalues of T^1/2 S T^1/2, which are real where those of S T need not be in floats
    values, vectors = scipy.linalg.eigh(other)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    trace = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ covariance @ root), 0)).sum()
    shift = np.sum((points.mean(axis=0) - others.mean(axis=0)) ** 2)
    return float(shift + np.trace(covariance) + np.trace(other) - 2 * trace)


def neighbourhoods(points, groups, real, real_groups):
    """Figures of precision, density, recall and coverage of points (N, D) against as many real ones (N, D).

    A point is precise if it lies within the reach of a real one: no farther than the NEIGHBOURS-th nearest real one is
    from that. Density counts in how many reaches it lies, over NEIGHBOURS. A real point is recalled if it lies within
    the reach of a point, and covered if a point lies within its own. Unlike in the papers, reach is measured to other
    groups: the nearest of a person's slices is the next slice of that person, which says nothing of how people differ.
    The intervals are over the points' groups.
    """
    from scipy.spatial.distance import cdist

    def reach(some, owners):
        others = np.where(owners[:, None] == owners, np.inf, cdist(some, some))
        return np.partition(others, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]

    distances = cdist(points, real)
    among_real = distances <= reach(real, real_groups)
    among_points = distances <= reach(points, groups)[:, None]
    drawn = dataset.resampled(groups) > 0

    def of_real(near):
        """Figure of the share of real points that any point is near."""
        value, shares = near.any(axis=0).mean(), (drawn.astype(np.float32) @ near > 0).mean(axis=1)
        # a resample has fewer different points, and so is near fewer: its spread counts and not its place
        low, high = np.percentile(shares, (2.5, 97.5)) - shares.mean() + value
        return Figure(float(value), float(max(low, 0)), float(min(high, 1)))

    return {
        "precision": mean(among_real.any(axis=1), groups),
        "density": mean(among_real.sum(axis=1) / NEIGHBOURS, groups),
        "recall": of_real(among_points),
        "coverage": of_real(among_real),
    }


def laplacian_pyramid(images):
    """LEVELS arrays (N, h, w), h = H / 2^level, of images (N, H, W): what each scale adds, and at last the rest."""
    from scipy.ndimage import convolve1d

    def blur(some):
        kernel = np.array([1, 4, 6, 4, 1], np.float32) / 16
        return convolve1d(convolve1d(some, kernel, axis=1, mode="mirror"), kernel, axis=2, mode="mirror")

    levels = []
    for _ in range(LEVELS - 1):
        smaller = blur(images)[:, ::2, ::2]
        spread = np.zeros_like(images)
        spread[:, ::2, ::2] = 4 * smaller
        levels.append(images - blur(spread))
        images = smaller
    return [*levels, images]


def random_patches(images, rng):
    """PATCHES patches at random places of each image (N, H, W), flattened: (N PATCHES, PATCH^2)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    rows, columns = rng.integers(0, windows.shape[1], (2, len(images), PATCHES))
    return windows[np.arange(len(images))[:, None], rows, columns].reshape(-1, PATCH * PATCH)


def sliced_wasserstein(pyramid, real_pyramid, seed):
    """Sliced Wasserstein distance of the patches of each level of two pyramids of as many slices, x 1000.

    Patches are in units of the real ones' standard deviation, so that a lack of contrast counts.
    """
    distances = []
    for level, real_level in zip(pyramid, real_pyramid):
        patches, real = (random_patches(images, np.random.default_rng(seed)) for images in (level, real_level))
        directions = np.random.default_rng(seed).normal(size=(PATCH * PATCH, DIRECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        total = 0
        for some in np.array_split(directions, DIRECTIONS // 64, axis=1):
            ranked, real_ranked = np.sort((patches @ some).T), np.sort((real @ some).T)
            total += np.abs(ranked - real_ranked).mean(axis=1).sum()
        distances.append(1000 * float(total / DIRECTIONS / real.std()))
    return distances


def pair_ssim(some, seed):
    """Figure of the mean SSIM of random pairs of slices of different groups: the lower, the more varied."""
    import modules

    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, len(some.grey), (2, 4 * PAIRS))
    apart = np.flatnonzero(some.groups[first] != some.groups[second])[:PAIRS]
    first, second = first[apart], second[apart]
    likeness = modules.ssim(as_images(some.take(first)), as_images(some.take(second)))
    weights = dataset.resampled(some.groups)
    weights = weights[:, first] * weights[:, second]
    weights = weights[weights.any(axis=1)]  # a sample of one person has no pairs
    means = weights @ likeness / weights.sum(axis=1)
    return Figure(float(likeness.mean()), *np.percentile(means, (2.5, 97.5)).tolist())


def as_images(some):
    """Images (N, 128, 128, 1) float32 in [-0.5, 0.5], as `modules.ssim` takes them."""
    return some.unit[..., None] - np.float32(0.5)


def fit_level(real, components):
    """A linear regression that reads the level of slices: a function from Pictures to (N,) float."""
    from sklearn.linear_model import RidgeCV

    regression = RidgeCV().fit(components(real), real.levels)
    return lambda some: regression.predict(components(some))


# --- the classifier two-sample test -----------------------------------------------------------------------------------


def energies(images):
    """Mean absolute value of each pyramid level in each cell of a grid: (N, LEVELS CELLS^2) of images (N, H, W)."""
    return np.concatenate(
        [
            np.abs(level)
            .reshape(len(level), CELLS, level.shape[1] // CELLS, CELLS, -1)
            .mean(axis=(2, 4))
            .reshape(len(level), -1)
            for level in laplacian_pyramid(images)
        ],
        axis=1,
    )


def two_sample_auc(some, real, seed, floor=0.0):
    """Figure of the ROC AUC of a classifier that tells some slices from as many real ones; 0.5 where it cannot.

    Each slice is judged by a classifier that was fitted without its group. Values below `floor` count as 0.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    images = np.concatenate([some.unit, real.unit])
    features = energies(np.where(images < floor, 0, images))
    truth = np.repeat([1, 0], [len(some.grey), len(real.grey)])
    groups = np.concatenate([some.groups, real.groups])
    number = min(FOLDS, len(set(some.groups)), len(set(real.groups)))
    folds = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    leaf = max(1, min(20, len(truth) // 20))  # of the fewest slices: few as there may be, a leaf must be possible
    classifier = HistGradientBoostingClassifier(min_samples_leaf=leaf, early_stopping=False, random_state=seed)
    scores = cross_val_predict(classifier, features, truth, groups=groups, cv=folds, method="predict_proba")[:, 1]
    resamples = [
        roc_auc_score(truth, scores, sample_weight=weights)
        for weights in dataset.resampled(groups)[:AUC_RESAMPLES]
        if weights[truth == 1].any() and weights[truth == 0].any()
    ]
    return Figure(float(roc_auc_score(truth, scores)), *np.percentile(resamples, (2.5, 97.5)).tolist())


# --- memory -----------------------------------------------------------------------------------------------------------


def nearest(some, real):
    """For each slice the real one whose pixels correlate best with it or its mirror image.

    Returns correlations (N,), indices (N,) of real slices, and whether it is the mirror image's (N,) bool. The head's
    left-right axis is vertical here, so that mirroring flips rows.
    """
    parts = np.array_split(some.grey, -(-len(some.grey) // 512))
    return tuple(map(np.concatenate, zip(*(_nearest(grey, real) for grey in parts))))


def _nearest(grey, real):
    count = len(grey)
    queries = standardised(np.concatenate([grey, grey[:, ::-1]]))
    best, index = np.full(2 * count, -np.inf, np.float32), np.zeros(2 * count, int)
    for start in range(0, len(real.grey), 1024):
        correlations = queries @ standardised(real.grey[start : start + 1024]).T
        highest = correlations.argmax(axis=1)
        values = correlations[np.arange(2 * count), highest]
        index = np.where(values > best, start + highest, index)
        best = np.maximum(best, values)
    mirrored = best[count:] > best[:count]
    return np.maximum(best[count:], best[:count]), np.where(mirrored, index[count:], index[:count]), mirrored


def standardised(grey):
    """Grey levels (N, 128, 128) as vectors (N, 16384) float32 of mean 0 and length 1: products are correlations."""
    vectors = grey.reshape(len(grey), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def nearer_than_held_out(correlation, groups, held_out, held_out_groups):
    """Figure of the share of correlations (N,) above 95 % of the held-out ones (M,), whose people are few as well."""
    limits = [
        np.quantile(np.repeat(held_out, weights.astype(int)), 0.95)
        for weights in dataset.resampled(held_out_groups, seed=1)
    ]
    weights = dataset.resampled(groups)
    shares = np.sum(weights * (correlation > np.array(limits)[:, None]), axis=1) / weights.sum(axis=1)
    value = np.mean(correlation > np.quantile(held_out, 0.95))
    return Figure(float(value), *np.percentile(shares, (2.5, 97.5)).tolist())


def ssim_of_nearest(some, real, index, mirrored):
    """SSIM (N,) of slices to the real ones that `nearest` found."""
    import modules

    turned = np.where(mirrored[:, None, None], some.grey[:, ::-1], some.grey)
    return modules.ssim(as_images(Pictures(turned, some.groups)), as_images(real.take(index)))


def differing_codes(grids, known):
    """Share of codes (N,) in which each grid (N, h, w) differs from the most similar of the known ones (M, h, w)."""
    known = known.reshape(len(known), -1)
    return np.array([np.mean(grid.ravel() != known, axis=1).min() for grid in grids])


class Codes(NamedTuple):
    """A set of code grids (N, h, w), the groups (N,) of their slices and the levels (N,) of these in their heads."""

    grids: np.ndarray
    groups: np.ndarray
    levels: np.ndarray

    def take(self, chosen):
        return Codes(self.grids[chosen], self.groups[chosen], self.levels[chosen])


# --- the prior --------------------------------------------------------------------------------------------------------


def judge_prior(pixelcnn, sets):
    """What each of the sets of Codes {name: ...} costs, and how many codes it uses: Figures by set and name.

    The histogram is that of the training codes, cell by cell: what is known without any context. To each cell one code
    is added, spread as the codes of all cells are.
    """
    import modules

    number = pixelcnn.num_embeddings
    counts = np.stack([np.sum(sets["training"].grids == code, axis=0) for code in range(number)])  # (K, h, w)
    anywhere = counts.sum(axis=(1, 2), keepdims=True) + 1
    counts = counts + anywhere / anywhere.sum()
    histogram = np.log2(counts / counts.sum(axis=0))
    logits = modules.tf.function(pixelcnn, reduce_retracing=True)

    def bits(codes, levels):
        return -np.asarray(modules.categorical(logits(codes, levels)).log_prob(codes)) / np.log(2)

    results = {}
    for name, (codes, groups, levels) in sets.items():
        cost = modules.in_batches(lambda some: bits(codes[some], levels[some]), np.arange(len(codes)))
        cost = cost.mean(axis=(1, 2))
        by_cell = -np.take_along_axis(histogram[None], codes[:, None], axis=1)[:, 0].mean(axis=(1, 2))
        in_use, perplexity = modules.code_usage(np.bincount(codes.ravel(), minlength=number))
        results[name] = {
            "bits a code": mean(cost, groups),
            "bits a slice": mean(cost * codes[0].size, groups),
            "histogram, bits a code": mean(by_cell, groups),
            "uniform, bits a code": Figure(float(np.log2(number))),
            "codes in use": Figure(in_use * number),
            "perplexity": Figure(perplexity),
        }
    return results


# --- one set, all figures ---------------------------------------------------------------------------------------------


class Judge:
    """Measures sets of slices against real ones that the models may know, and held-out ones that they may not.

    What depends on the number of slices is measured on `count` of each set, drawn by the seed, against as many real
    ones.
    """

    def __init__(self, real, held_out, count, seed):
        self.real, self.held_out, self.count, self.seed = real, held_out, count, seed
        self.components = fit_components(real, seed)
        self.predict_level = None if real.levels is None else fit_level(real, self.components)
        self.nearest_held_out = nearest(held_out, real)[0]

    def draw(self, some, salt=0):
        chosen = np.random.default_rng((self.seed, salt)).choice(len(some.grey), self.count, replace=False)
        return some.take(np.sort(chosen))

    def likeness(self, some, real):
        """Figures of fidelity and variety of slices, by name, against real ones."""
        some, equal = self.draw(some), self.draw(real, salt=1)
        points = self.components(some)
        distances = sliced_wasserstein(laplacian_pyramid(some.unit), laplacian_pyramid(equal.unit), self.seed)
        return {
            "Frechet distance": Figure(frechet_distance(points, self.components(real))),
            **{f"sliced Wasserstein, {128 >> level} px": Figure(value) for level, value in enumerate(distances)},
            **neighbourhoods(points, some.groups, self.components(equal), equal.groups),
            "SSIM of random pairs": pair_ssim(some, self.seed),
            "classifier AUC": two_sample_auc(some, equal, self.seed),
            "classifier AUC, no background": two_sample_auc(some, equal, self.seed, BACKGROUND),
        }

    def misreading(self, some):
        """Figure of the error with which a regression reads the level of slices, where that is known; by name."""
        if self.predict_level is None or some.levels is None:
            return {}
        return {"level misread by": mean(np.abs(self.predict_level(some) - some.levels), some.groups)}

    def memory(self, some):
        """Figures of how near slices are to real ones, by name, and what `nearest` gave."""
        correlation, index, mirrored = found = nearest(some, self.real)
        return {
            "correlation to nearest": mean(correlation, some.groups),
            "SSIM to nearest": mean(ssim_of_nearest(some, self.real, index, mirrored), some.groups),
            "nearer than 95 % of held-out": nearer_than_held_out(
                correlation, some.groups, self.nearest_held_out, self.held_out.groups
            ),
            "nearer than any held-out": share(correlation > self.nearest_held_out.max(), some.groups),
        }, found


def repeats(some, known):
    """Figures of the share of Codes that repeat one of the known grids (M, h, w), to the code and nearly."""
    differing = differing_codes(some.grids, known)
    return {
        "grids that repeat": share(differing == 0, some.groups),
        f"grids that repeat but for {NEAR_REPEAT:.0%}": share(differing <= NEAR_REPEAT, some.groups),
    }


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_nearest(plt, sets, real):
    """The slices nearest to a real one, that one (mirrored where its mirror image is meant), and the difference.

    `sets` are {name: (Pictures, what `nearest` gave of them)}.
    """
    figure, axes = plt.subplots(3 * len(sets), SHOWN, figsize=(1.6 * SHOWN, 5.2 * len(sets)), squeeze=False)
    for rows, (name, (some, (correlation, index, mirrored))) in zip(axes.reshape(len(sets), 3, SHOWN), sets.items()):
        for column, i in zip(rows.T, np.argsort(-correlation)):
            neighbour = real.grey[index[i]][::-1] if mirrored[i] else real.grey[index[i]]
            column[0].imshow(some.grey[i], "gray", vmin=0, vmax=255)
            column[0].set_title(f"{correlation[i]:.3f}", fontsize=9)
            column[1].imshow(neighbour, "gray", vmin=0, vmax=255)
            column[2].imshow(some.grey[i].astype(int) - neighbour, "RdBu", vmin=-255, vmax=255)
        for row, title in zip(rows, (name, "nearest real", "difference")):
            row[0].set_ylabel(title, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure


def draw_temperatures(plt, curves, floor):
    """Fidelity against variety over temperature: curves {name: {temperature: Figures by row}}, and those of a floor."""
    pairs = (
        ("recall", "precision"),
        ("coverage", "density"),
        ("SSIM of random pairs", "classifier AUC"),
    )
    figure, panels = plt.subplots(1, len(pairs), figsize=(4.2 * len(pairs), 4))
    for panel, (across, up) in zip(panels, pairs):
        for name, curve in curves.items():
            points = np.array([(figures[across].value, figures[up].value) for figures in curve.values()])
            panel.plot(*points.T, marker="o", label=name)
            for temperature, point in zip(curve, points):
                panel.annotate(f"{temperature:g}", point, textcoords="offset points", xytext=(4, 4), fontsize=8)
        panel.plot(floor[across].value, floor[up].value, "k*", markersize=10, label="real slices")
        panel.set(xlabel=across, ylabel=up)
    panels[-1].set(xlabel=f"{across} (low to the right)", ylabel=f"{up} (low above)")
    panels[-1].invert_xaxis(), panels[-1].invert_yaxis()
    panels[0].legend()
    figure.suptitle("By temperature: up, more like real slices; to the right, more varied")
    figure.tight_layout()
    return figure


def draw_distances(plt, correlations):
    """Histograms of the correlation of each slice to the nearest training slice, for sets by name."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    bins = np.linspace(min(values.min() for values in correlations.values()), 1, 60)
    for name, values in correlations.items():
        axes.hist(values, bins, density=True, histtype="step", linewidth=1.6, label=name)
    limit = np.quantile(correlations["held out"], 0.95)
    axes.axvline(limit, color="grey", linestyle=":", label="95 % of held out")
    axes.set(title="Nearness to the reference", xlabel="correlation to the nearest real slice", ylabel="density")
    axes.legend(loc="upper left")
    return figure


# --- the whole --------------------------------------------------------------------------------------------------------


def read_folders(args):
    """The real slices but for a tenth of their groups, that tenth, the fake ones, and how many of each to compare."""
    real, fake = (dataset.load_folder(folder) for folder in (args.real, args.fake))
    real, fake = pictures(*real[:2]), pictures(*fake[:2])
    held_out = np.isin(real.groups, dataset.hold_out(real.groups, 0.1, args.seed))
    real, held_out = real.take(~held_out), real.take(held_out)
    sets, where = {"generated": fake}, f"{args.real} (less a tenth, held out), {args.fake}"
    count = number_compared({"reference": real, "held out": held_out, **sets}, len(fake.grey), where)
    return real, held_out, sets, count


class Made(NamedTuple):
    """What a set of models makes."""

    generated: dict  # Pictures by temperature
    candidates: int  # of which each was chosen
    reconstructed: Pictures  # of the held-out slices
    repeats: dict  # figures of repeated grids by set: the temperatures, and "held out"
    prior: dict  # figures of the codes and their prior by set


def read_slices(args):
    """The reference slices, held-out ones, what each set of models makes {name: Made}, and how many of each to compare.

    Raises UserError where models or slices are missing, or these are not those that the models were trained on while
    the held-out cases among them are asked for.
    """
    import modules

    configs = {folder: modules.load_config(folder) for folder in args.models}
    any_critic = any("critic" in config for config in configs.values())
    critics = {  # beside models with a critic, those without have one candidate whatever is asked
        folder: modules.load_critic(folder, args.candidates if "critic" in config or not any_critic else None)
        for folder, config in configs.items()
    }
    test = None if args.tune else dataset.load_split("test", args.data, args.url)
    training = dataset.load_split("train", args.data, args.url)
    some = pictures(training.images, training.names, dataset.owners(training.names)[1])
    unseen = {}  # by the models
    for folder, config in configs.items():
        unseen[folder] = np.isin(some.groups, config["data"]["held_out_cases"])
        if training.digest != config["data"]["digest"]:
            if args.tune:
                raise UserError(f"{folder}: trained on other slices than these, so none are known to be held out")
            note(f"note: {folder} was trained on other slices than these; held out from it is only the test split")
            unseen[folder][:] = False
        elif args.tune and "vqvae" not in config["data"].get("held_out_from", []):
            note(f"note: these cases were held out from the PixelCNN of {folder} alone; its VQ-VAE has seen them")
    first = unseen[args.models[0]]
    if args.tune and any(np.any(others != first) for others in unseen.values()):
        raise UserError("--tune: the models were trained with different cases held out; measure one, with --models")
    if args.tune:
        real, held_out = some.take(~first), some.take(first)
    else:
        real, held_out = some, pictures(test.images, test.names, dataset.owners(test.names)[1])
    sets = {"reference": real, "held out": held_out}
    count = number_compared(sets, args.samples, args.data or dataset.DATASET)  # before minutes of sampling
    made = {folder.name: use(folder, *critics[folder], training, unseen[folder], test, args) for folder in args.models}
    return real, held_out, made, count


def use(folder, critic, candidates, training, unseen, test, args):
    """What the models in `folder`, to which some training slices are `unseen` (N,) bool, make: a Made.

    `test` are the test slices, in whose place None stands for those that are unseen.
    """
    from tqdm import tqdm

    import modules

    vqvae, pixelcnn = modules.load_models(folder)
    held_out = test or dataset.Slices(training.images[unseen], np.array(training.names)[unseen], None)
    codes = Codes(vqvae.encode(training.images), *dataset.owners(training.names))
    sets = {"training": codes.take(~unseen)} | ({"validation": codes.take(unseen)} if unseen.any() else {})
    held_out_codes = Codes(vqvae.encode(held_out.images), *dataset.owners(held_out.names))
    if test:
        sets["test"] = held_out_codes
    known = codes.grids[~unseen] if args.tune else codes.grids
    if modules.load_config(folder).get("recipe", {}).get("augmented"):  # the prior has seen mirror images too
        known = np.concatenate([known, vqvae.encode(training.images[:, ::-1])[~unseen if args.tune else ...]])
    if pixelcnn.levels and max(some.levels.max() for some in (codes, held_out_codes)) >= pixelcnn.levels:
        raise UserError(
            f"{folder}: knows the levels 0 to {pixelcnn.levels - 1}, but some slices here have higher numbers"
        )
    repeated = {"held out": repeats(held_out_codes, known)}
    reconstructed = pictures(vqvae.decode(held_out_codes.grids), held_out.names, held_out_codes.levels)
    progress = functools.partial(tqdm, desc=f"sampling, {folder.name}", unit="batch", leave=False, disable=None)
    names, levels = [f"sample {i}" for i in range(args.samples)], modules.spread_levels(pixelcnn, args.samples)
    generated = {}
    for temperature in args.temperature or [modules.load_temperature(folder)]:
        drawn = modules.sample_best(
            vqvae, pixelcnn, critic, candidates, args.samples, args.seed, temperature, progress=progress
        )
        drawn = Codes(drawn, np.array(names), levels)
        generated[temperature] = pictures(vqvae.decode(drawn.grids), names, levels if pixelcnn.levels else None)
        repeated[temperature] = repeats(drawn, known)
        sets["generated" if len(args.temperature or []) < 2 else f"generated at {temperature:g}"] = drawn
    return Made(generated, candidates, reconstructed, repeated, judge_prior(pixelcnn, sets))


def number_compared(sets, samples, where):
    """How many slices of each set {name: Pictures} to compare with as many samples: at most half the reference.

    Raises UserError where that is too few, or of too few people, to measure anything.
    """
    sizes = {
        "samples": samples,
        "held-out slices": len(sets["held out"].grey),
        "slices in each half of the reference": len(sets["reference"].grey) // 2,
    }
    fewest, count = min(sizes.items(), key=lambda item: item[1])
    for name, some in sets.items():
        most = np.unique(some.groups, return_counts=True)[1].max()
        needed = max(2 * NEIGHBOURS, most + NEIGHBOURS)  # of each slice, neighbours of other people
        if count < needed:
            why = f", for one person has {most} of the {name} ones" if most > NEIGHBOURS else ""
            raise UserError(f"{where}: too few to measure, {count} {fewest} where {needed} are needed{why}")
    return count


def table(columns):
    """Lines of text of {column: {row: Figure}}."""
    rows = list(dict.fromkeys(row for figures in columns.values() for row in figures))
    width = max(26, *(len(name) + 2 for name in columns))
    lines = [f"{'':32}" + "".join(f"{name:{width}}" for name in columns)]
    for row in rows:
        cells = [str(figures.get(row, "")) for figures in columns.values()]
        lines.append(f"{row:32}" + "".join(f"{cell:{width}}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def as_json(columns):
    return {name: {row: figure._asdict() for row, figure in figures.items()} for name, figures in columns.items()}


def columns_of(made, temperatures):
    """What the models made, one set a column: {column: Pictures}, and {column: figures of repeated grids}.

    The columns are named after the models where these are several, and after temperatures where these are.
    """
    generated, reconstructed, repeated = {}, {}, {}
    for name, some in made.items():
        prefix = f"{name} " if len(made) > 1 else ""
        for temperature, slices in some.generated.items():
            column = f"{prefix}generated" + (f" at {temperature:g}" if len(temperatures or []) > 1 else "")
            generated[column], repeated[column] = slices, some.repeats[temperature]
        reconstructed[f"{prefix}reconstructed"] = some.reconstructed
        repeated[f"{prefix}reconstructed"] = some.repeats["held out"]
    return generated, reconstructed, repeated


def main():
    args = parse_arguments()
    dataset.make_folder(args.out)
    from tqdm import tqdm

    if args.real:
        made, repeated, reconstructed = {}, {}, {}
        real, held_out, generated, count = read_folders(args)
    else:
        real, held_out, made, count = read_slices(args)
        generated, reconstructed, repeated = columns_of(made, args.temperature)
    sets = {**generated, "held out": held_out, **reconstructed}
    judge = Judge(real, held_out, count, args.seed)
    figures, found = {}, {}
    for name, some in tqdm(sets.items(), desc="measuring", unit="set", leave=False, disable=None):
        remembered, found[name] = judge.memory(some)
        figures[name] = judge.likeness(some, real) | judge.misreading(some) | remembered | repeated.get(name, {})
    half = np.isin(real.groups, dataset.hold_out(real.groups, 0.5, args.seed))
    if min(half.sum(), (~half).sum()) >= count:
        figures["training halves"] = judge.likeness(real.take(half), real.take(~half))
    sizes = {"reference": len(real.grey)} | {name: len(some.grey) for name, some in sets.items()}
    print(", ".join(f"{number:,} {name}" for name, number in sizes.items()) + f" slices; {count:,} of each compared")
    print(table(figures))
    for name, some in made.items():
        print(f"\nthe codes of {name} and their prior")
        print(table(some.prior))
    with written(args.out / "evaluation.json") as part:
        content = {name: str(getattr(args, name)) for name in ("real", "fake") if args.real}
        if made:
            content = {"models": list(map(str, args.models)), "samples": args.samples, "tune": args.tune}
            content["temperature"] = {name: list(some.generated) for name, some in made.items()}
            content["candidates"] = {name: some.candidates for name, some in made.items()}
        content |= {"seed": args.seed, "sizes": sizes, "compared": count, "figures": as_json(figures)}
        content["prior"] = {name: as_json(some.prior) for name, some in made.items()}
        part.write_text(json.dumps(content, indent=1) + "\n")
    print(args.out / "evaluation.json")
    plt = dataset.pyplot(args.no_show)
    shown = {name: (some, found[name]) for name, some in generated.items()}
    dataset.save_figure(draw_nearest(plt, shown, real), args.out / dataset.FIGURES["nearest"])
    correlations = {name: each[0] for name, each in found.items()}
    dataset.save_figure(draw_distances(plt, correlations), args.out / dataset.FIGURES["distances"])
    if args.temperature and len(args.temperature) > 1:
        columns = iter(generated)
        curves = {name: {each: figures[next(columns)] for each in some.generated} for name, some in made.items()}
        floor = figures.get("training halves", figures["held out"])
        dataset.save_figure(draw_temperatures(plt, curves, floor), args.out / dataset.FIGURES["temperatures"])
    dataset.show_figures(plt)


if __name__ == "__main__":
    dataset.run(main)
