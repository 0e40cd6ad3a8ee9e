"""The networks of the sharp preset: its codebook, its discriminator and its critic."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from builders import make_gated, make_sharp_vqvae, make_vqvae
from conftest import brains
from keras import ops

from brains import config, jobs, loop, sampling, sharp, stages


def test_codebook_with_decay_follows_the_mean_of_its_latents():
    quantizer = sharp.MovingAverageQuantizer(2, 2, 0.25, 0.5)
    quantizer.build((None, 1, 1, 2))
    quantizer.codebook.assign([[0, 0], [10, 10]])
    quantizer.counts.assign([4, 2])
    quantizer.sums.assign([[0, 0], [20, 20]])
    latents = np.array([[1, 0], [1, 0], [3, 0], [9, 9]], np.float32).reshape(4, 1, 1, 2)
    _, codes, loss = quantizer(latents, training=True)
    assert np.ravel(codes).tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(loss, 0.25 * np.mean([1, 0, 1, 0, 9, 0, 1, 1]))  # nothing but the commitment
    np.testing.assert_allclose(quantizer.counts, [3.5, 1.5])
    np.testing.assert_allclose(quantizer.codebook, [[2.5 / 3.5, 0], [14.5 / 1.5, 14.5 / 1.5]], rtol=1e-5)
    assert not quantizer.trainable_variables
    moved = np.asarray(quantizer.codebook)
    quantizer(latents)
    np.testing.assert_array_equal(quantizer.codebook, moved)  # in training alone


def test_unused_codebook_vectors_are_revived_and_come_into_use():
    quantizer = sharp.MovingAverageQuantizer(64, 2, 0.25, 0.9)
    latents = np.random.default_rng(0).normal(5, 1, (32, 8, 8, 2)).astype(np.float32)  # far from the first codebook
    used = [len(np.unique(quantizer(latents, training=True)[1])) for _ in range(60)]
    assert used[0] < 8 and used[-1] > 0.9 * 64
    error = np.mean((quantizer.lookup(quantizer.nearest(latents)) - latents) ** 2)
    assert error < 0.05  # of a variance of 1


def test_larger_vqvae_gives_grids_and_slices_of_its_shape():
    model = make_sharp_vqvae(num_embeddings=32)
    images = brains()
    reconstructions, codes, _ = model(images)
    assert codes.shape == (len(images), 16, 16) and reconstructions.shape == images.shape
    assert model.quantizer.num_embeddings == 32 and model.decode(codes).min() >= -0.5


def test_discriminator_judges_patches_at_two_sizes():
    outputs = sharp.Discriminator(config.DiscriminatorConfig((4, 8)))(brains(2), brains(2))
    assert [[tuple(layer.shape) for layer in scale] for scale in outputs] == [
        [(2, 64, 64, 4), (2, 32, 32, 8), (2, 32, 32, 8), (2, 32, 32, 1)],
        [(2, 32, 32, 4), (2, 16, 16, 8), (2, 16, 16, 8), (2, 16, 16, 1)],
    ]


@pytest.mark.parametrize("network", ["critic", "discriminator"])
def test_detail_of_images_is_taken_in_float32_whatever_the_policy(network):
    images = brains(2) + np.random.default_rng(0).uniform(0, 2**-10, (2, 128, 128, 1)).astype(np.float32)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        seen = []
        if network == "critic":
            model = sharp.Critic(config.CriticConfig(filters=(4,), dropout=0.5))
            first, inputs = model.features[0], [images]
        else:
            model = sharp.Discriminator(config.DiscriminatorConfig((4,)))
            first, inputs = model.scales[0][0], [images, images]
        first.call = lambda inputs: seen.append(inputs) or ops.zeros((2, 64, 64, 4))
        logits = keras.tree.flatten(model(*inputs))[-1]
    finally:
        keras.config.set_dtype_policy("float32")
    assert logits.dtype == "float32" and first.compute_dtype == "bfloat16"
    detail = images - np.asarray(ops.average_pool(images, 3, strides=1, padding="same"))
    np.testing.assert_allclose(np.float32(seen[0][..., 1:2]), 16 * detail, rtol=2**-7, atol=2**-9)


def test_critic_is_trained_on_what_is_not_held_out(monkeypatch, tmp_path):
    vqvae, pixelcnn = make_vqvae(num_embeddings=9), make_gated(grid=(8, 8))
    images, levels, held_out = brains(8), np.arange(8) % 4, np.arange(8) % 4 == 3
    preset = replace(
        config.PRESETS["sharp"],
        critic_network=config.CriticConfig(filters=(4, 4), dropout=0.1),
        critic=config.Schedule(epochs=2, batch_size=4, learning_rate=5e-4),
    )
    asked = []

    def sample(prior, num, seed, temperature, levels, progress):
        asked.extend(levels)
        return np.random.default_rng(seed).integers(0, 9, (num, 8, 8), np.int32)

    monkeypatch.setattr(sampling, "sample", sample)
    histories = []
    for slices in (images, np.where(held_out[:, None, None, None], -images, images)):
        job = jobs.Job(
            preset="sharp",
            images=slices,
            cases=np.zeros(len(slices), str),
            levels=levels,
            seen=np.flatnonzero(~held_out),
            unseen=np.flatnonzero(held_out),
            held_out_cases=[],
            digest_of_slices="",
            validation_share=0.1,
            seed=0,
            precision="float32",
            resume=False,
            checkpoints=tmp_path,
            scratch=tmp_path,
            folder=tmp_path,
        )
        training = stages.train_critic(job, preset, vqvae, pixelcnn, vqvae.encode(slices))
        histories.append([[epoch[key] for epoch in training.history] for key in ("loss", "validation_loss")])
    assert sorted(asked[:6]) == [0, 0, 1, 1, 2, 2] and asked[6:8] == [3, 3]
    assert histories[0][0] == histories[1][0] and histories[0][1] != histories[1][1]


def test_critic_learns_which_codes_are_real():
    """Real codes are of one half of a codebook here, drawn ones of the other, and so decode to other images."""
    vqvae = make_vqvae(filters=(4, 4, 8, 8), bottleneck=8)
    model = sharp.Critic(config.CriticConfig(filters=(8, 16), dropout=0.0))
    real, false = (np.random.default_rng(0).integers(low, low + 64, (8, 8, 8), np.int32) for low in (0, 64))
    vqvae.quantizer.codebook.assign(np.where(np.arange(128)[:, None] < 64, 1.0, -1.0) * np.ones(16, np.float32))
    step = loop.gradients_of(
        loop.Training("critic", model, keras.optimizers.Adam(1e-2), None, {}),
        lambda *codes: stages.critic_loss(model, vqvae, *codes),
    )
    assert float(stages.critic_loss(model, vqvae, real, false)[1]["loss"]) == pytest.approx(np.log(2), abs=0.2)
    for _ in range(60):
        ((optimizer, gradients, variables),), _ = step(real, false)
        optimizer.apply(gradients, variables)
    figures = stages.critic_loss(model, vqvae, real, false)[1]
    assert figures["loss"] < 0.1 and figures["accuracy"] == 1
    assert (np.asarray(model(vqvae.decode(real))) > 0).all() and (np.asarray(model(vqvae.decode(false))) < 0).all()


def test_seed_decides_which_latents_revive_codes():
    latents = np.random.default_rng(0).normal(5, 1, (32, 8, 8, 2)).astype(np.float32)

    def revived(seed):
        keras.utils.set_random_seed(seed)
        quantizer = sharp.MovingAverageQuantizer(64, 2, 0.25, 0.9)
        quantizer.build((None, 8, 8, 2))
        quantizer.codebook.assign(np.zeros((64, 2)))
        for _ in range(20):
            quantizer(latents, training=True)
        return np.asarray(quantizer.codebook)

    np.testing.assert_array_equal(revived(0), revived(0))
    assert (revived(0) != revived(1)).any()
