"""The shipped weights on the genuine slices; skipped where those are not there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import dataset
import modules

CANDIDATES = (ROOT / "dataset", ROOT.parent / "shared" / "oasis")
MODELS = ROOT / "trained_models" / "faithful"


@pytest.fixture(scope="module")
def slices():
    """The genuine test split, from a folder or from any of the zips in it."""
    for folder in CANDIDATES:
        for data in (folder, *sorted(folder.glob("*.zip"))):
            try:
                return dataset.load_split("test", data)
            except dataset.UserError:
                continue
    pytest.skip("the OASIS slices are not here")


def test_genuine_test_split_is_recognised(slices):
    assert dataset.is_genuine("test", slices.digest)
    assert slices.images.shape == (544, 128, 128, 1) and slices.images.dtype == np.float32
    assert slices.images.min() == -0.5 and 0.4 < slices.images.max() <= 0.5


def test_shipped_weights_reach_the_ssim_of_the_readme(slices):
    claimed = float(re.search(r"mean SSIM of \*\*(0\.\d+)\*\*", (ROOT / "README.md").read_text())[1])
    vqvae = modules.load_vqvae(MODELS)
    reached = modules.ssim(slices.images, vqvae.decode(vqvae.encode(slices.images))).mean()
    assert reached == pytest.approx(claimed, abs=0.002)


def test_shipped_prior_knows_codes_of_unseen_people(slices):
    config = json.loads(Path(MODELS, "config.json").read_text())
    assert config["data"]["genuine"] and config["data"]["variance"] == pytest.approx(0.03445, abs=1e-5)
    codes = modules.load_vqvae(MODELS).encode(slices.images)
    bits = np.mean(modules.cross_entropy(codes, modules.load_models(MODELS)[1](codes))) / np.log(2)
    best = config["pixelcnn"]["history"][config["pixelcnn"]["best_epoch"] - 1]["validation_loss"] / np.log(2)
    assert bits == pytest.approx(best, rel=0.15)
