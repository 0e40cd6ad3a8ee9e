"""What sets are worth to train on: copies of the training set as much as it, noise nothing."""

import json

import numpy as np
import pytest

from brains import sampling, utility
from brains.config import Schedule, UNetConfig
from brains.utility import Labelled, Scores


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(utility, "NETWORK", UNetConfig(filters=(4, 8)))
    monkeypatch.setattr(utility, "STEPS", 100)
    monkeypatch.setattr(utility, "SCHEDULE", Schedule(epochs=1, batch_size=8, learning_rate=1e-2))
    monkeypatch.setattr(utility, "FEW", (2,))
    monkeypatch.setattr(utility, "REPEATS", 1)


def phantoms(numbers, slices=4):
    """Labelled discs in discs, whose tissues differ in brightness alone."""
    rng, groups = np.random.default_rng(min(numbers)), np.repeat([f"case_{number:03}" for number in numbers], slices)
    y, x = np.mgrid[:128, :128] - 64
    masks = np.zeros((len(groups), 128, 128), np.uint8)
    for mask in masks:
        radius = np.hypot(y - rng.integers(-8, 8), x - rng.integers(-8, 8))
        for label, reach in ((2, 50), (3, 36), (1, 20)):
            mask[radius < reach + rng.integers(-6, 6)] = label
    grey = np.array([0.0, 0.3, 0.55, 0.85])[masks] + rng.normal(0, 0.02, masks.shape)
    return Labelled((np.clip(grey, 0, 1) - 0.5).astype(np.float32)[..., None], masks, groups)


def test_copies_are_worth_as_much_as_the_real_ones_and_noise_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(utility, "FEW", ())
    monkeypatch.setattr(utility, "REPEATS", 1)
    real, test = phantoms(range(1, 9)), phantoms(range(20, 26))
    people = list(dict.fromkeys(real.groups))
    copies = real._replace(groups=np.full(32, ""))
    results = utility.summary(utility.measure(real, people, copies, test, Scores(tmp_path / "copies.json", {}), 0))
    assert results["8 people"]["mean"].value > 0.8 and results["8 people"]["ratio"] == pytest.approx((1, 1, 1))
    ratio = results["generated"]["ratio"]
    assert ratio.low - 0.03 < 1 < ratio.high + 0.03
    noise = copies._replace(images=np.random.default_rng(0).uniform(-0.5, 0.5, real.images.shape).astype(np.float32))
    noise = utility.summary(utility.measure(real, people, noise, test, Scores(tmp_path / "noise.json", {}), 0))
    assert noise["generated"]["ratio"].high < 0.7


def test_interrupted_measurement_goes_on(tmp_path, monkeypatch):
    real, test = phantoms(range(1, 5), 2), phantoms(range(20, 22), 2)
    people, path, trained = list(dict.fromkeys(real.groups)), tmp_path / "utility.json", []
    monkeypatch.setattr(utility, "STEPS", 2)
    monkeypatch.setattr(utility, "REPEATS", 2)
    fit = utility.fit

    def counted(parts, seed):
        trained.append(seed)
        if len(trained) == 5:  # whose labels the next one needs
            raise KeyboardInterrupt
        return fit(parts, seed)

    monkeypatch.setattr(utility, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        utility.measure(real, people, real, test, Scores(path, {"seed": 0}), 0)
    assert len(json.loads(path.read_text())["scores"]) == 4
    results = utility.measure(real, people, real, test, Scores(path, {"seed": 0}), 0)
    names = ["4 people", "generated", "4 people and generated", "2 people", "2 people and generated"]
    assert list(results) == names and len(trained) == 5 + 7
    assert {scores.shape for scores in results.values()} == {(2, 2, 3)}
    with pytest.raises(utility.UserError, match="of other models"):
        Scores(path, {"seed": 1})
    path.write_text("{")
    with pytest.raises(utility.UserError, match="broken"):
        Scores(path, {"seed": 0})


def test_codes_are_drawn_once_for_the_same_and_anew_for_others(tmp_path):
    path, drawn = tmp_path / "utility.json", []

    def draw():
        drawn.append(len(drawn))
        return np.full((2, 8, 8), len(drawn))

    assert Scores(path, {"seed": 0}).codes(draw).max() == Scores(path, {"seed": 0}).codes(draw).max() == 1
    assert Scores(path, {"seed": 1}).codes(draw).max() == 2  # nothing is scored yet, so that the file is free
    (tmp_path / "utility_codes.npz").write_bytes(b"broken")
    assert Scores(path, {"seed": 1}).codes(draw).max() == 3


def test_script_continues_and_draws(sharp, segmenter, program, miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(utility, "STEPS", 2)
    call = ("evaluate.py", "--utility", "--models", sharp[0], "--samples", 32, "--data", miniature, "--no-show")
    out, _ = program.run(*call, "--out", tmp_path)
    assert "segmenter 5 of 5: 2 people and generated, 0" in out and (tmp_path / "utility.png").exists()
    monkeypatch.setattr(sampling, "sample_best", None)  # the codes are there, and all is trained
    again, _ = program.run(*call, "--out", tmp_path)
    assert "segmenter" not in again and out.endswith(again)
    assert "of other models" in program.fails(*call, "--out", tmp_path, "--seed", 1)
    program.fails(*call, "--temperature", 0.9, 1, status=2)
    program.fails("evaluate.py", "--utility", "--real", tmp_path, "--fake", tmp_path, status=2)
