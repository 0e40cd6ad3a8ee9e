"""Membership: planted copies give a person away, fresh samples do not, and age is no sign of it."""

import numpy as np
import pytest
from conftest import head

from brains import people
from brains.fidelity import SliceSet
from brains.judge import nearest
from brains.membership import SLICES, matched_auc, membership, some_of_each

INSIDE, OUTSIDE = range(0, 48, 2), range(1, 48, 2)


def slices_of(numbers, count=3):
    grey = np.stack([head(number, k, size=128) for number in numbers for k in range(count)])
    return SliceSet(grey, np.repeat([f"case_{number:03}" for number in numbers], count))


@pytest.fixture(scope="module")
def known():
    return slices_of([*INSIDE, *OUTSIDE])


def attack(known, samples):
    inside = {f"case_{number:03}" for number in INSIDE}
    return membership(nearest(known, samples)[0], known.groups, inside, {}, seed=0)


def test_planted_copies_give_people_away(known):
    copies = slices_of(INSIDE)
    noise = np.random.default_rng(0).normal(0, 1, copies.grey.shape)
    copies = copies._replace(grey=np.clip(np.round(copies.grey + noise), 0, 255).astype(np.uint8))
    figure, control = attack(known, copies)
    assert figure.value > 0.95 and figure.low > 0.9
    assert control.low < 0.5 < control.high


def test_samples_of_other_people_tell_nothing(known):
    figure, control = attack(known, slices_of(range(100, 130)))
    for each in (figure, control):
        assert each.low < 0.5 < each.high and each.value == pytest.approx(0.5, abs=0.2)


def test_age_is_no_sign_of_membership():
    rng, groups = np.random.default_rng(0), np.arange(400).astype(str)
    inside = set(groups[:200])
    years = np.concatenate([rng.uniform(20, 60, 200), rng.uniform(40, 90, 200)])
    scores = -years + rng.normal(0, 5, 400)  # what is scored is age alone
    assert matched_auc(scores, groups, inside, {}).value > 0.8
    matched = matched_auc(scores, groups, inside, dict(zip(groups, years)))
    assert matched.value == pytest.approx(0.5, abs=0.06)
    apart = {group: 10.0 if group in inside else 80.0 for group in groups}
    assert matched_auc(scores, groups, inside, apart) is None


def test_slices_of_each_person_are_evenly_spread():
    groups = np.repeat(["a", "b"], [32, 3])
    chosen = some_of_each(groups)
    assert np.sum(chosen < 32) == SLICES and {0, 31} <= set(chosen) and set(chosen[chosen >= 32]) == {32, 33, 34}


def test_ages_come_from_the_genuine_table_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(people.config, "DATASET", tmp_path)
    monkeypatch.setattr(people, "SOURCES", ("http://127.0.0.1:9/none",))
    assert people.load_ages() == {} and "without the study's table" in capsys.readouterr().err
    (tmp_path / people.TABLE).write_text("ID,Age\n")
    with pytest.raises(people.UserError, match="not the study's table"):
        people.load_ages()
