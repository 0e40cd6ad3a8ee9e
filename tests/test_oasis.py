"""The shipped weights on the genuine slices; skipped where those are not there."""

import json
import re
import zipfile

import numpy as np
import pytest
from conftest import ROOT

import dataset
import modules
from brains import config, sampling, weights
from brains.fidelity import fit_components, fit_level, slice_set
from brains.names import owners

MODELS, SHARP, HEAD = (ROOT / "trained_models" / preset for preset in config.GENERATIVE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of the genuine slices, where scripts keep them, or unpacked from archives beside the project."""
    if (config.DATASET / config.TOP_FOLDER).is_dir():
        return config.DATASET
    archives = sorted((ROOT.parent / "shared" / "oasis").glob("*.zip"))
    if not archives:
        pytest.skip("the OASIS slices are not here")
    folder = tmp_path_factory.mktemp("oasis")
    for archive in archives:
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def slices(data):
    return dataset.load_split("test", data)


@pytest.fixture(scope="module")
def training_slices(data):
    return dataset.load_split("train", data)


def test_genuine_test_split_is_recognised(slices):
    assert dataset.is_genuine("test", slices.digest)
    assert slices.images.shape == (544, 128, 128, 1) and slices.images.dtype == np.float32
    assert slices.images.min() == -0.5 and 0.4 < slices.images.max() <= 0.5


def test_masks_tell_dark_tissue_from_bright_in_every_case(slices, data):
    masks, cases = dataset.load_masks("test", data), owners(slices.names)[0]
    assert masks.shape == (544, 128, 128)
    for case in np.unique(cases):
        images, labels = slices.images[cases == case, ..., 0], masks[cases == case]
        fluid, grey, white = (np.median(images[labels == label]) for label in (1, 2, 3))
        assert fluid < grey < white, case


@pytest.mark.parametrize("column, folder", [(0, MODELS), (1, SHARP), (2, HEAD)])
def test_shipped_weights_reach_the_ssim_of_the_readme(slices, column, folder):
    row = re.search(r"SSIM and PSNR of reconstructions.*", (ROOT / "README.md").read_text())[0]
    claimed = [float(ssim) for ssim in re.findall(r"(0\.\d+),", row)]
    vqvae = weights.load_vqvae(folder)
    items = slices.images.reshape(-1, 32, 128, 128, 1) if folder == HEAD else slices.images
    decoded = vqvae.decode(vqvae.encode(items)).reshape(slices.images.shape)
    reached = modules.ssim(slices.images, decoded).mean()
    assert reached == pytest.approx(claimed[column], abs=0.002)


def test_shipped_prior_knows_codes_of_unseen_people(slices):
    content = json.loads((MODELS / "config.json").read_text())
    assert content["data"]["genuine"] and content["data"]["variance"] == pytest.approx(0.03445, abs=1e-5)
    codes = weights.load_vqvae(MODELS).encode(slices.images)
    bits = np.mean(modules.cross_entropy(codes, weights.load_models(MODELS)[1](codes))) / np.log(2)
    best = content["pixelcnn"]["history"][content["pixelcnn"]["best_epoch"] - 1]["validation_loss"] / np.log(2)
    assert bits == pytest.approx(best, rel=0.15)


@pytest.mark.long
def test_level_of_sharp_slices_is_read_about_as_well_as_that_of_real_ones(slices, training_slices):
    real, held_out = (slice_set(some.images, some.names, owners(some.names)[1]) for some in (training_slices, slices))
    if not SHARP.exists():
        pytest.skip("no sharp weights are here")
    vqvae, pixelcnn = weights.load_models(SHARP)
    asked = np.resize(np.arange(pixelcnn.levels), 64)
    temperature = weights.load_temperature(SHARP)
    drawn = sampling.sample_best(vqvae, pixelcnn, *weights.load_critic(SHARP), len(asked), 0, temperature, asked)
    generated = slice_set(vqvae.decode(drawn), [f"sample {i}" for i in range(len(asked))], asked)
    components = fit_components(real, seed=0)
    read = fit_level(components(real), real.levels)
    of_real, of_generated = (np.abs(read(components(some)) - some.levels).mean() for some in (held_out, generated))
    assert of_real < 3  # of 32 levels: a constant would miss by 8
    assert of_generated < 1.3 * of_real
