"""How the codebook of the faithful VQ-VAE starts."""

import numpy as np
from builders import make_vqvae
from conftest import TRAINING, brains
from outcomes import config_of
from plain import VARIANCE, plain_vqvae, plain_vqvae_step
from steps import compiled

import train
from brains import codebook, loop
from brains.backend import keras


def test_centres_depend_on_the_seed_and_on_the_chosen_images_alone():
    vqvae, images = make_vqvae(), brains(16)
    centres = codebook.cluster_latents(vqvae, images, np.arange(8), 0)
    assert centres.shape == (128, 16) and len(np.unique(centres, axis=0)) == 128
    images[8:] = 0  # held out
    np.testing.assert_array_equal(codebook.cluster_latents(vqvae, images, np.arange(8), 0), centres)
    assert np.any(codebook.cluster_latents(vqvae, images, np.arange(8), 1) != centres)


def test_centres_lie_among_the_latents():
    vqvae, images = make_vqvae(), brains(16)
    vqvae.quantizer.codebook.assign(codebook.cluster_latents(vqvae, images, np.arange(16), 0))
    assert len(np.unique(vqvae.encode(images))) > 100
    assert len(np.unique(make_vqvae().encode(images))) < 40  # from a codebook that starts at random


def test_uniform_start_has_no_warm_up(trained, program, miniature, tmp_path):
    first = config_of(trained)["vqvae"]["history"][0]
    assert config_of(trained)["recipe"]["codebook_init"] == "kmeans" and first["codes_in_use"] == 0
    arguments = ("train.py", "--data", miniature, *TRAINING, "--models", tmp_path / "models")
    program.run(*arguments, "--codebook-init", "uniform")
    first = config_of(tmp_path / "models")["vqvae"]["history"][0]
    assert config_of(tmp_path / "models")["recipe"]["codebook_init"] == "uniform" and first["codes_in_use"] > 0
    program.fails("train.py", "--preset", "sharp", "--codebook-init", "uniform", status=2)


def test_uniform_way_takes_the_steps_of_a_plain_program():
    images, vqvae = brains(8), make_vqvae()
    keras.utils.set_random_seed(0)
    parts = plain_vqvae()
    for mine, plain in zip((vqvae.encoder, vqvae.decoder), parts[:2]):
        plain.set_weights(mine.get_weights())
    parts[2].assign(vqvae.quantizer.codebook)
    training = loop.Training("VQ-VAE", vqvae, keras.optimizers.Adam(1e-3), None, {})
    gradients = loop.gradients_of(training, lambda batch: train.vqvae_loss(vqvae, VARIANCE, batch))
    step = compiled(gradients, images)
    plain_step = plain_vqvae_step(parts)
    ours = [float(step(images)["loss"]) for _ in range(4)]
    np.testing.assert_allclose(ours, [float(plain_step(images)) for _ in range(4)], rtol=1e-4)
    assert ours[-1] < ours[0]
