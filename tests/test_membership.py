"""Membership: planted copies give a person away, fresh samples do not, and age is no sign of it."""

import hashlib
from collections import namedtuple

import numpy as np
import pytest
from conftest import head, serve

import dataset
import modules
from brains import people
from brains.config import PixelCNNConfig
from brains.fidelity import SliceSet
from brains.judge import Codes, nearest
from brains.membership import SLICES, matched_auc, membership, people_known, some_of_each
from brains.names import owners

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


def test_people_come_from_the_genuine_table_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(people.config, "DATASET", tmp_path)
    monkeypatch.setattr(people, "SOURCES", ("http://127.0.0.1:9/none",))
    assert people.load_people() is None and "without ages" in capsys.readouterr().err
    content = b"ID,M/F,Age,CDR\nOAS1_0007_MR1,F,74,1\nOAS1_0007_MR2,F,75,1\nOAS1_0012_MR1,M,20,0\n"
    (tmp_path / people.TABLE).write_bytes(content)
    with pytest.raises(people.UserError, match="not the study's table"):
        people.load_people()
    monkeypatch.setattr(people, "DIGEST", hashlib.sha256(content).hexdigest())
    assert people.load_people() == {"case_007": (74, "F", 1), "case_012": (20, "M", 0)}
    (tmp_path / people.TABLE).rename(tmp_path / "served")
    with serve(tmp_path / "served") as server:
        monkeypatch.setattr(people, "SOURCES", (f"{server.url}/404", f"{server.url}/data.zip"))
        assert people.load_people() == {"case_007": (74, "F", 1), "case_012": (20, "M", 0)}
    assert (tmp_path / people.TABLE).read_bytes() == content


Models = namedtuple("Models", "training test unseen content")


def split(numbers, digest):
    names = [f"case_{number:03}_slice_{k}.nii.png" for number in numbers for k in range(2)]
    return dataset.Slices(np.zeros((len(names), 128, 128, 1), np.float32), names, digest)


def codes_of(slices):
    return Codes(np.zeros((len(slices.names), 8, 8), np.int32), *owners(slices.names))


def test_only_people_of_whom_all_parts_know_or_none_are_asked_about():
    training, test = split(range(1, 7), "a"), split((6, 441), "b")  # 6 is in both
    prior = modules.PixelCNN(PixelCNNConfig(filters=8, residual_blocks=1, masked_layers=1))
    unseen = np.isin(owners(training.names)[0], ["case_001", "case_002"])
    asked = {}
    for name, held_out_from, digest, tests in (
        ("sharp", ["vqvae", "pixelcnn"], "a", test),
        ("faithful", ["pixelcnn"], "a", test),
        ("sharp tuned", ["vqvae", "pixelcnn"], "a", None),
        ("faithful tuned", ["pixelcnn"], "a", None),
        ("of other slices", ["vqvae", "pixelcnn"], "c", test),
    ):
        models = Models(training, tests, unseen, {"data": {"digest": digest, "held_out_from": held_out_from}})
        found = people_known(models, prior, codes_of(training), codes_of(tests) if tests else None)
        asked[name] = found and ({int(group[-3:]) for group in found[0].groups if group not in found[2]}, len(found[1]))
        assert found is None or found[2] == {"case_003", "case_004", "case_005", "case_006"}
    assert asked["sharp"] == ({1, 2, 441}, 14) and asked["faithful"] == ({441}, 10)
    assert asked["sharp tuned"] == ({1, 2}, 12) and asked["faithful tuned"] is asked["of other slices"] is None
