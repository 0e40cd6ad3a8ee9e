"""Figures of whole heads on sets where the answer is known."""

import numpy as np
import pytest
from conftest import head

from brains import headjudge
from brains.headcontenders import Heads
from brains.people import Person

LEVELS = 8


def scans(number, seed=0, noise=True):
    """Return Heads whose black middle grows with age, each with grain of its own strength."""
    rng = np.random.default_rng(seed)
    ages, grain = rng.uniform(20, 90, number), rng.uniform(2, 20, number)
    x, y = np.mgrid[-1 : 1 : 128 * 1j, -1 : 1 : 128 * 1j]
    grey = np.stack([[head(i + 1000 * seed, k, size=128) for k in range(LEVELS)] for i in range(number)]).astype(float)
    grey[:, :, np.hypot(x, y) < 0.5] = 150
    for i, age in enumerate(ages):
        grey[i, :, np.hypot(x, y) < 0.05 + 0.004 * age] = 30
    if noise:
        grey += rng.normal(size=grey.shape) * grain[:, None, None, None]
    names = np.array([f"case_{1000 * seed + i}" for i in range(number)])
    return Heads(np.clip(grey, 0, 255).astype(np.uint8), names, [Person(age, "F") for age in ages])


@pytest.fixture(scope="module")
def real():
    return scans(90)


@pytest.fixture(scope="module")
def held_out():
    return scans(30, seed=1)


def test_coherence_sees_seams_and_strangers():
    heads = scans(10, noise=False).grey
    usual = headjudge.coherence(heads, 4)
    inside, borders, gradient = usual
    seamed = heads.copy()
    seamed[:, 4:] = seamed[:, 4:] // 2
    seamed = headjudge.coherence(seamed, 4)
    assert np.mean(seamed[borders]) < np.mean(usual[borders]) - 0.05
    assert np.mean(seamed[inside]) > np.mean(usual[inside]) - 0.05
    strangers = headjudge.coherence(heads[None, :8, 3], 4)  # one slice each of eight people
    assert np.mean(strangers[inside]) < np.mean(usual[inside])
    assert np.mean(strangers[gradient]) > np.mean(usual[gradient])


def test_style_is_one_where_grain_is_of_the_head_and_not_where_it_is_of_the_place(real):
    of_heads, rng = headjudge.style(real.grey), np.random.default_rng(2)
    plain = scans(90, noise=False).grey.astype(float)
    strength = np.kron(rng.uniform(2, 20, (90, LEVELS, 4, 4)), np.ones((32, 32)))
    of_places = headjudge.style(np.clip(plain + rng.normal(size=plain.shape) * strength, 0, 255).astype(np.uint8))
    for row in of_heads:
        assert of_heads[row].value > 0.8 and of_places[row].value < 0.4
        assert of_heads[row].low < of_heads[row].value < of_heads[row].high


def test_age_is_read_from_heads_that_show_it_and_not_from_others(real, held_out):
    judge = headjudge.HeadJudge(real, held_out, 4, 0)
    ages = headjudge.ages_of(held_out)
    figures = judge.reader.figures(held_out.grey, ages)
    assert figures["age read, r"].value > 0.9 and figures["age read, error in years"].value < 8
    assert abs(figures["age read, slope"].value - 1) < 0.2
    shuffled = judge.reader.figures(held_out.grey, np.roll(ages, 7))
    assert abs(shuffled["age read, r"].value) < 0.5


def test_slope_has_its_closed_form():
    rng = np.random.default_rng(0)
    x = rng.uniform(20, 90, 400)
    figure = headjudge.slope(x, 0.3 * x + rng.normal(size=400))
    assert figure.low < 0.3 < figure.high and figure.high - figure.low < 0.02
    aging = headjudge.aging(np.stack([0.002 * x, 1 - 0.002 * x, x], axis=1), x)
    assert aging["CSF over age, % a decade"].value == pytest.approx(2)
    assert aging["grey matter over age, % a decade"].value == pytest.approx(-2)


def test_copies_are_found_mirrored_too(real, held_out):
    usual = headjudge.copies(held_out.grey, real.grey)

    def memory(correlations, names):
        return headjudge.memory(correlations, names, usual, held_out.names)

    own = memory(usual, held_out.names)
    nearest, nearer = own
    assert own[nearer].value < 0.2
    for copied in (real.grey[:20], real.grey[:20, :, ::-1]):
        found = memory(headjudge.copies(copied, real.grey), real.names[:20])
        assert found[nearer].value > 0.9 and found[nearest].value > own[nearest].value + 1e-3


def test_planes_of_heads_compare_as_slices_do(real, held_out):
    planes = headjudge.planes(real.grey, real.names, axis=2)
    assert planes.grey.shape == (360, 32, 128) and list(planes.groups[:5]) == ["case_0"] * 4 + ["case_1"]
    marked = np.zeros((1, LEVELS, 128, 128), np.uint8)
    marked[0, 7, :, 100] = 255  # the top, in the front
    assert np.argwhere(headjudge.planes(marked, ["a"], axis=2).grey).min(axis=0).tolist() == [0, 28, 100]
    assert not headjudge.planes(marked, ["a"], axis=3).grey.any()
    known, names = real.grey[:30], real.names[:30]
    same = headjudge.plane_figures(held_out.grey, held_out.names, known, names, 0)
    striped = held_out.grey.copy()
    striped[:, ::2] //= 2
    other = headjudge.plane_figures(striped, held_out.names, known, names, 0)
    for plane in ("sagittal", "coronal"):
        assert other[f"{plane}, classifier AUC"].value > 0.95
        assert other[f"{plane}, sliced Wasserstein"].value > 2 * same[f"{plane}, sliced Wasserstein"].value


def test_slices_are_cut_from_all_levels(real):
    cut = headjudge.slices_cut(real)
    assert cut.grey.shape == (360, 128, 128) and set(cut.levels) == set(range(LEVELS))
    assert np.array_equal(cut.grey[5], real.grey[1, cut.levels[5]])


def test_membership_of_heads_that_are_given_away(real, held_out):
    judge = headjudge.HeadJudge(real, held_out, 4, 0)
    everyone = [*real.names, *held_out.names]
    costs = {name: float(name not in real.names) for name in everyone}
    copied = judge.membership(real, costs)
    assert copied["membership, nearest head"].value > 0.9 and copied["membership, error of the flow"].value == 1
    assert 0.2 < copied["membership, control"].value < 0.8
