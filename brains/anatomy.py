"""Whether the tissue maps of slices are those of people: shares of tissue, symmetry, and rules that brains keep.

A segmenter labels generated and real slices alike, so that most of its mistakes are in both. It has learned from most
of the real ones.
"""

import numpy as np
from scipy.ndimage import label as connected
from scipy.stats import wasserstein_distance

from brains.config import TISSUES
from brains.statistics import Figure, mean, resampled, share, within
from brains.tissue import dice

WINDOW = 3  # levels up and down whose real slices say what is usual at a level
SLACK = 0.1  # of the range that a measure has in real slices: so far beyond it a slice may be
LEAST = (0.02, 0.02, 0.02, 0.02, 1, 0.02, 0.02, 3, 3, 0.05)  # of that slack: masks of real slices all lie alike
SPECK = 20  # pixels of white matter that count as a piece of it
MEASURES = (
    "CSF",
    "grey matter",
    "white matter",
    "area",
    "pieces",
    "main piece",
    "asymmetry",
    "row",
    "column",
    "middle CSF",
)


def measures_of(labels):
    """Return MEASURES (N, 10) float64 of maps of labels (N, H, W).

    Shares of the tissues in the brain; its share of the slice; pieces of white matter; the share of the brain that
    hangs together; how far the tissues of its left and right halves differ, as a share; the row and column of its
    centre; and the share of CSF in its middle.
    """
    return np.array([_measure(each) for each in labels])


def _measure(labels):
    brain = labels > 0
    area = max(1, brain.sum())
    tissue = [np.sum(labels == number) / area for number in range(1, len(TISSUES))]
    rows, columns = np.nonzero(brain) if brain.any() else (np.zeros(1), np.zeros(1))
    row, column = rows.mean(), columns.mean()
    sizes = np.bincount(connected(labels == 3)[0].ravel())[1:]
    whole = np.bincount(connected(brain)[0].ravel())[1:]
    halves = [np.bincount(half.ravel(), minlength=len(TISSUES)) for half in np.split(labels, [round(row + 0.5)])]
    asymmetry = np.abs(halves[0] - halves[1])[1:].sum() / area
    height, width = (max(1, int(np.ptp(side)) // 6) for side in (rows, columns))
    top, left = max(0, int(row) - height), max(0, int(column) - width)
    middle = labels[top : int(row) + height + 1, left : int(column) + width + 1]
    pieces, main = np.sum(sizes >= SPECK), max(whole, default=0) / area
    return [*tissue, area / labels.size, pieces, main, asymmetry, row, column, np.mean(middle == 1)]


class Usual:
    """What is usual in real slices: from measures (N, 10) of their maps and levels (N,), of which none is missing."""

    def __init__(self, measures, levels):
        near = [np.abs(levels - level) <= WINDOW for level in range(levels.max() + 1)]
        low, high = (np.array([bound(measures[each], axis=0) for each in near]) for bound in (np.min, np.max))
        slack = np.maximum(SLACK * (high - low), LEAST)
        self.low, self.high = low - slack, high + slack
        self.means = np.array([measures[levels == level].mean(axis=0) for level in range(levels.max() + 1)])
        self.rest = self.unusual(measures, levels)

    def unusual(self, measures, levels):
        """Return how far the shares of the tissues, (N, 3), are from the mean of real slices of their levels (N,)."""
        return (measures - self.means[levels])[:, :3]

    def is_brain(self, measures, levels):
        """Return whether all measures (N, 10) of a slice are about in the range of real slices near its level: (N,)."""
        return np.all((measures >= self.low[levels]) & (measures <= self.high[levels]), axis=1)

    def figures(self, measures, levels, groups):
        """Return the Figures of slices {row: Figure} from their measures (N, 10), levels (N,) and groups (N,)."""
        rest, figures, drawn = self.unusual(measures, levels), {}, resampled(groups)
        for tissue, values, real in zip(TISSUES[1:], rest.T, self.rest.T):
            figures[f"{tissue}, Wasserstein"] = Figure(float(wasserstein_distance(values, real)))
        for tissue, values, real in zip(TISSUES[1:], rest.T, self.rest.T):
            figures[f"{tissue}, spread"] = within(values.std() / real.std(), spread(values, drawn) / real.std())
        fluid, grey, _ = rest.T
        together = correlation(fluid, grey, np.concatenate([np.ones((1, len(fluid))), drawn]))
        figures["CSF and grey matter, r"] = within(together[0], together[1:])
        figures["asymmetry"] = mean(measures[:, MEASURES.index("asymmetry")], groups)
        return figures | {"no brain": share(~self.is_brain(measures, levels), groups)}


def spread(values, weights):
    """Return the weighted standard deviations (R,) of values (N,), for weights (R, N)."""
    first, second = (weights @ values**power / weights.sum(axis=1) for power in (1, 2))
    return np.sqrt(np.maximum(second - first**2, 0))


def correlation(values, others, weights):
    """Return the weighted correlations (R,) of values (N,) and others (N,), for weights (R, N)."""
    first, second, both = (weights @ each / weights.sum(axis=1) for each in (values, others, values * others))
    return (both - first * second) / np.maximum(spread(values, weights) * spread(others, weights), 1e-12)


def dice_by_tissue(labels, masks, groups):
    """Return the Dice of maps with those of the originals, {row: Figure}, a mean over groups."""
    people = list(dict.fromkeys(groups))
    scores = dice(labels, masks, groups)
    return {f"Dice of {tissue}": mean(values, people) for tissue, values in zip(TISSUES[1:], scores.T)}


def commonest(labels, levels):
    """Return the commonest label (L, H, W) of each pixel at levels 0..L-1 in maps (N, H, W): the trivial answer."""
    counts = [
        np.array([np.sum(labels[levels == level] == i, axis=0) for i in range(len(TISSUES))])
        for level in range(levels.max() + 1)
    ]
    return np.array([count.argmax(axis=0) for count in counts], np.uint8)
