"""Values with 95 % bootstrap intervals over people, whose slices are not independent."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Figure(NamedTuple):
    """A value, and its 95 % bootstrap interval over groups if it is a mean over slices."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self):
        digits = 4 if abs(self.value) < 0.1 else 3 if abs(self.value) < 10 else 1
        interval = "" if self.low is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.value:.{digits}f}{interval}"


def mean(values, groups):
    """Return the Figure of the mean of values (N,)."""
    return Figure(float(np.mean(values)), *bootstrap_interval(values, groups))


def within(value, resamples):
    """Return the Figure of a value whose interval is that of its values in bootstrap samples (R,)."""
    return Figure(float(value), *np.percentile(resamples, (2.5, 97.5)).tolist())


def share(hits, groups):
    """Return the Figure of the share of hits (N,) bool. Without one, the interval is that of none in so many groups."""
    figure = mean(hits, groups)
    return figure if np.any(hits) else figure._replace(high=1 - 0.025 ** (1 / len(set(groups))))


def resampled(groups, seed=0):
    """Return how often each item is in each bootstrap sample (RESAMPLES, N) of the groups (N,) that items belong to."""
    distinct, index = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), RESAMPLES)
    return drawn.astype(np.float32)[:, index]


def bootstrap_interval(values, groups):
    """Return the 95 % interval (low, high) of the mean of values (N,) over groups (N,); of one group (None, None)."""
    if len(set(groups)) == 1:
        return None, None
    weights = resampled(groups)
    return tuple(np.percentile(weights @ np.asarray(values) / weights.sum(axis=1), (2.5, 97.5)).tolist())
