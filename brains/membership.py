"""Whether one who has slices of a person can tell that models learned from this person: membership inference.

Chen et al. 2020, GAN-Leaks, arXiv 1909.03935    (by the distance to the nearest sample)
Yeom et al. 2018, arXiv 1709.01604               (by the likelihood: what is learned by heart costs less)
"""

import numpy as np

from brains.fidelity import SliceSet, slice_set
from brains.judge import nearest
from brains.names import hold_out
from brains.statistics import resampled, within
from brains.surprise import bits

APART = 3  # years at most between two people who are compared
SLICES = 8  # of a person that are looked at, at most


def people_known(models, prior, codes_of_training, codes_of_test):
    """Return some slices of each person whom all parts of Models know, or none, their bits, and who is known.

    These are a SliceSet, what the prior needs for the Codes of each slice (N,), and a set of cases. Returns None if the
    models were trained on other slices than these, or if they know all people here in part.
    """
    training, test, about = models.training, models.test, models.content["data"]
    parts = [(training, codes_of_training, np.flatnonzero(~models.unseen))]
    if "vqvae" in about.get("held_out_from", []):
        parts.append((training, codes_of_training, np.flatnonzero(models.unseen)))
    if test:
        others = ~np.isin(codes_of_test.groups, codes_of_training.groups)
        parts.append((test, codes_of_test, np.flatnonzero(others)))
    parts = [part for part in parts if len(part[-1])]
    if training.digest != about["digest"] or len(parts) < 2:
        return None
    slices, costs = [], []
    for split, codes, where in parts:
        chosen = where[some_of_each(codes.groups[where])]
        slices.append(slice_set(split.images[chosen], [split.names[i] for i in chosen])[:2])
        costs.append(bits(prior, codes.grids[chosen], codes.levels[chosen]))
    return SliceSet(*map(np.concatenate, zip(*slices))), np.concatenate(costs), set(slices[0][1])


def attack(known, generated, ages, seed):
    """Return what samples, and the prior, tell of whom models know, {row: Figure}; `known` is from `people_known`."""
    if known is None:
        return {}
    slices, costs, inside = known
    by_sample, control = membership(nearest(slices, generated)[0], slices.groups, inside, ages, seed)
    figures = {"membership, nearest sample": by_sample, "membership, control": control}
    figures["membership, likelihood"] = matched_auc(-costs, slices.groups, inside, ages)
    return {row: figure for row, figure in figures.items() if figure}


def some_of_each(groups):
    """Return the indices of SLICES slices of each of the groups (N,), evenly spread."""
    places = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups)]
    return np.concatenate(
        [each[np.unique(np.linspace(0, len(each) - 1, SLICES).round().astype(int))] for each in places]
    )


def matched_auc(scores, groups, inside, ages):
    """Return the Figure of the AUC with which the mean score of a person tells those `inside` from others.

    It is the share of pairs of one inside and one outside, at most APART years from each other, where the first has the
    higher score; a tie counts half. `scores` and `groups` are those of slices (N,), `inside` is a set of groups, and
    `ages` are years by group; without ages all pairs count. Returns None if there is no pair.
    """
    people = {True: [], False: []}
    for group in dict.fromkeys(groups):
        if not ages or group in ages:
            people[group in inside].append((np.mean(scores[groups == group]), ages.get(group, 0)))
    if not people[True] or not people[False]:
        return None
    (score, age), (other, other_age) = (np.transpose(people[side]) for side in (True, False))
    pairs = (np.abs(age[:, None] - other_age) <= APART).astype(np.float32)
    won = pairs * ((score[:, None] > other) + 0.5 * (score[:, None] == other))
    if not pairs.any():
        return None
    drawn = [resampled(np.arange(len(side)), seed) for seed, side in enumerate((score, other))]
    wins, totals = (np.sum(drawn[0] @ array * drawn[1], axis=1) for array in (won, pairs))
    return within(won.sum() / pairs.sum(), wins[totals > 0] / totals[totals > 0])


def membership(scores, groups, inside, ages, seed):
    """Return the Figures of `matched_auc` of those inside against those outside, and of two halves of those outside.

    The halves are the control: nobody of them was learned from, so what tells them apart is chance.
    """
    outside = sorted(set(groups) - inside)
    others = np.isin(groups, outside)
    control = None
    if len(outside) > 1:
        control = matched_auc(scores[others], groups[others], set(hold_out(outside, 0.5, seed)), ages)
    return matched_auc(scores, groups, inside, ages), control
