"""Anatomy of tissue maps: constructed maps whose shares, sides and faults are known."""

import numpy as np
import pytest

from brains import anatomy
from brains.anatomy import MEASURES
from brains.fidelity import SliceSet
from brains.judge import Judge

GROUPS = np.repeat([f"case_{i:03}" for i in range(40)], 4)
LEVELS = np.tile(np.arange(4), 40)


def maps(rng, spread=6, size=128):
    """Maps (160, 128, 128) of round brains of 40 people: CSF of a radius that varies, the less grey matter around."""
    y, x = np.mgrid[:size, :size] - size / 2
    radius, labels = np.hypot(x, y), np.zeros((160, size, size), np.uint8)
    inner = np.repeat(rng.normal(16, spread / 3, 40), 4) + LEVELS
    for number, each in enumerate(inner):
        labels[number][radius < 48] = 2
        labels[number][radius < 30 + each / 3] = 3
        labels[number][radius < each] = 1
    return labels


@pytest.fixture(scope="module")
def real():
    return anatomy.measures_of(maps(np.random.default_rng(0)))


@pytest.fixture(scope="module")
def usual(real):
    return anatomy.Usual(real, LEVELS)


def test_measures_of_a_known_map():
    labels = np.zeros((1, 128, 128), np.uint8)
    labels[0, 40:80, 30:70] = 2
    labels[0, 40:60, 30:40] = 1  # in the upper half alone
    labels[0, 70:80, 60:70] = 3
    found = dict(zip(MEASURES, anatomy.measures_of(labels)[0]))
    assert found["CSF"] == 200 / 1600 and found["white matter"] == 100 / 1600 and found["area"] == 1600 / 128**2
    assert found["pieces"] == 1 and found["main piece"] == 1 and found["row"] == 59.5 and found["column"] == 49.5
    assert found["asymmetry"] == pytest.approx((200 + 100 + 100) / 1600)
    assert anatomy.measures_of(np.zeros((1, 128, 128), np.uint8)).shape == (1, len(MEASURES))


def test_other_people_are_as_usual(usual):
    other = anatomy.measures_of(maps(np.random.default_rng(1)))
    figures = usual.figures(other, LEVELS, GROUPS)
    assert figures["no brain"].value <= 0.05
    assert figures["CSF, spread"].low < 1 < figures["CSF, spread"].high
    assert figures["CSF and grey matter, r"].value < -0.95
    assert figures["CSF, Wasserstein"].value < 0.02 and figures["asymmetry"].value < 0.05


def test_people_who_are_all_alike_show_in_the_spread(usual):
    alike = usual.figures(anatomy.measures_of(maps(np.random.default_rng(1), spread=2)), LEVELS, GROUPS)
    assert alike["CSF, spread"].high < 0.6


def test_shift_of_the_share_is_the_wasserstein_distance(usual, real):
    moved = real + 0.05 * (np.array(MEASURES) == "CSF")
    figures = usual.figures(moved, LEVELS, GROUPS)
    assert figures["CSF, Wasserstein"].value == pytest.approx(0.05, abs=1e-3)
    assert figures["grey matter, Wasserstein"].value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("fault", ["half", "torn", "empty", "moved", "speckled"])
def test_what_is_no_brain_is_found(usual, fault):
    labels = maps(np.random.default_rng(2))
    if fault == "half":
        labels[:, :64] = 0
    elif fault == "torn":
        labels[:, :, 50:70] = 0
    elif fault == "empty":
        labels[:] = 0
    elif fault == "moved":
        labels = np.roll(labels, 20, axis=1)
    else:
        labels[:, ::7, ::7] = 3
        labels[:, 1::7, ::7] = 0
    assert usual.figures(anatomy.measures_of(labels), LEVELS, GROUPS)["no brain"].value > 0.95


def test_trivial_answer_is_the_commonest_label_at_a_level():
    labels = np.zeros((3, 2, 2), np.uint8)
    labels[0], labels[1], labels[2] = 1, [[1, 2], [2, 2]], 3
    answer = anatomy.commonest(labels, np.array([0, 0, 1]))
    assert answer[0, 0, 0] == 1 and np.all(answer[1] == 3)


def test_dice_of_maps_has_an_interval_over_people():
    masks = maps(np.random.default_rng(0))
    assert anatomy.dice_by_tissue(masks, masks, GROUPS)["Dice of CSF"].value == 1
    figures = anatomy.dice_by_tissue(np.roll(masks, 3, axis=1), masks, GROUPS)
    assert figures["Dice of CSF"].low < figures["Dice of CSF"].value < figures["Dice of CSF"].high < 1


class Brightness:
    """Stands in for a segmenter: tells tissue by brightness alone."""

    def label(self, images):
        return np.digitize(images[..., 0], [-0.45, -0.25, 0.1]).astype(np.uint8)


def test_judge_measures_maps_of_sets_beside_those_of_real_slices():
    grey = np.uint8([0, 40, 120, 200])[maps(np.random.default_rng(0))]
    real = SliceSet(grey, GROUPS, LEVELS)
    first = np.isin(GROUPS, np.unique(GROUPS)[:30])
    judge = Judge(real.take(first), real.take(~first), 16, 0, Brightness())
    held_out = judge.held_out
    shrunk = held_out._replace(grey=np.where(held_out.grey == 40, 120, held_out.grey))  # no CSF is left
    trivial, same, worse = (judge.tissue(slices, True) for slices in (held_out, SliceSet(*held_out), shrunk))
    assert same["Dice of CSF"].value == 1 and worse["Dice of CSF"].value < 0.01 < trivial["Dice of CSF"].value < 1
    assert same["no brain"].value < 0.2 and worse["no brain"].value == 1
    unknown = held_out._replace(levels=None)  # which a regression then reads
    assert judge.tissue(unknown, False)["CSF, Wasserstein"].value < 0.1
    assert not Judge(real.take(first), held_out, 16, 0).tissue(held_out, False)
    gap = real.take(first & (LEVELS != 2))  # a level without slices
    assert not Judge(gap, held_out, 16, 0, Brightness()).tissue(held_out, False)
