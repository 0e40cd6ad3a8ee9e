"""The networks against the tables, the papers and brute force; sampling; SSIM; sets of weights."""

import argparse
import itertools
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, head
from keras import ops
from scipy import stats
from skimage.metrics import structural_similarity

import dataset
import modules
import train
from dataset import UserError

FAITHFUL = {
    **train.PRESETS["faithful"]["vqvae"],
    "size": 128,
    "latent_dim": 16,
    "num_embeddings": 128,
    "commitment_cost": train.COMMITMENT_COST,
}


def make_vqvae(**changes):
    keras.utils.set_random_seed(1)
    return modules.VQVAE(**FAITHFUL | changes)


def make_gated(scale=0.5, **changes):
    keras.utils.set_random_seed(1)
    network = {"grid": (6, 5), "num_embeddings": 9, "levels": 4, "filters": 8, "gated_layers": 3, "kernel_size": 3}
    pixelcnn = modules.GatedPixelCNN(**network | {"dropout": 0.5} | changes)
    rng = np.random.default_rng(0)
    for weight in pixelcnn.weights:  # biases too, far from the uniform distribution
        weight.assign(rng.normal(size=weight.shape) * scale)
    return pixelcnn


def make_pixelcnn(**changes):
    keras.utils.set_random_seed(1)
    network = {"grid": (8, 8), "num_embeddings": 128, "filters": 128, "residual_blocks": 2, "masked_layers": 2}
    return modules.PixelCNN(**network | changes)


@pytest.fixture(scope="module")
def vqvae():
    """A VQVAE whose codebook lies among its latents, so that many codes are in use."""
    model = make_vqvae()
    latents = np.asarray(model.encoder(brains()))
    model.quantizer.codebook.assign(latents.reshape(-1, 16)[::4][:128])
    return model


def brains(count=8):
    return np.stack([dataset.prepare(head(i, i % 8).astype(np.float32)) for i in range(count)])


# --- the tables -------------------------------------------------------------------------------------------------------


def table(network):
    return [(layer.output.shape[1:], layer.count_params()) for layer in network.layers]


def test_encoder_is_that_of_the_table(vqvae):
    assert table(vqvae.encoder) == [
        ((64, 64, 32), 320),
        ((32, 32, 32), 9_248),
        ((16, 16, 64), 18_496),
        ((8, 8, 64), 36_928),
        ((8, 8, 128), 73_856),
        ((8, 8, 16), 2_064),
    ]
    assert [layer.activation.__name__ for layer in vqvae.encoder.layers] == ["relu"] * 5 + ["linear"]


def test_decoder_is_that_of_the_table(vqvae):
    assert table(vqvae.decoder) == [
        ((8, 8, 128), 18_560),
        ((16, 16, 64), 73_792),
        ((32, 32, 64), 36_928),
        ((64, 64, 32), 18_464),
        ((128, 128, 32), 9_248),
        ((128, 128, 1), 289),
    ]
    assert [layer.activation.__name__ for layer in vqvae.decoder.layers] == ["relu"] * 5 + ["linear"]


def test_codebook_and_pixelcnn_are_those_of_the_table(vqvae):
    assert vqvae.quantizer.codebook.shape == (128, 16)
    pixelcnn = make_pixelcnn()
    assert pixelcnn.count_params() == 1_049_728
    assert pixelcnn(np.zeros((2, 8, 8), np.int32)).shape == (2, 8, 8, 128)


# --- the vector quantizer ---------------------------------------------------------------------------------------------


def test_nearest_code_is_really_chosen():
    rng = np.random.default_rng(0)
    quantizer = modules.VectorQuantizer(32, 5, 0.25)
    quantizer.build((None, 4, 4, 5))
    quantizer.codebook.assign(rng.normal(size=(32, 5)))
    latents = rng.normal(size=(3, 4, 4, 5)).astype(np.float32)
    quantized, codes, _ = quantizer(latents)
    codebook = np.asarray(quantizer.codebook)
    expected = np.argmin([[np.sum((z - e) ** 2) for e in codebook] for z in latents.reshape(-1, 5)], axis=1)
    np.testing.assert_array_equal(np.asarray(codes).ravel(), expected)
    np.testing.assert_allclose(quantized, codebook[expected].reshape(latents.shape), atol=1e-6)


def test_quantizer_loss_and_gradients_are_those_of_the_paper():
    quantizer = modules.VectorQuantizer(4, 2, 0.25)
    quantizer.build((None, 1, 1, 2))
    quantizer.codebook.assign([[0, 0], [1, 1], [5, 5], [-5, 5]])
    latents = modules.tf.constant([[[[0.8, 1.3]]]])
    with modules.tf.GradientTape(persistent=True) as tape:
        tape.watch(latents)
        quantized, _, loss = quantizer(latents)
        decoded = ops.sum(quantized * [[[[3.0, 7.0]]]])
    error = np.array([0.8 - 1, 1.3 - 1])
    np.testing.assert_allclose(loss, 1.25 * np.mean(error**2), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(decoded, latents), [[[[3, 7]]]])  # straight through
    assert tape.gradient(decoded, quantizer.codebook.value) is None  # the decoder does not move the codebook
    np.testing.assert_allclose(tape.gradient(loss, latents)[0, 0, 0], 0.25 * error, rtol=1e-5)
    codebook_gradient = np.asarray(modules.tf.convert_to_tensor(tape.gradient(loss, quantizer.codebook.value)))
    np.testing.assert_allclose(codebook_gradient, [[0, 0], -error, [0, 0], [0, 0]], rtol=1e-5)


def test_codebook_moves_in_training_and_only_then(tmp_path):
    model = make_vqvae(num_embeddings=8)
    training = train.Training("VQ-VAE", model, 1e-3, {}, tmp_path / "vqvae.npz")
    before = np.asarray(model.quantizer.codebook)
    model.decode(model.encode(brains()))
    np.testing.assert_array_equal(model.quantizer.codebook, before)

    def loss(images):
        reconstructions, _, quantizer_loss = model(images, training=True)
        return ops.mean((images - reconstructions) ** 2) + quantizer_loss, {"loss": quantizer_loss}

    tf = modules.tf
    signature = [tf.TensorSpec((), "float32"), tf.TensorSpec((None, 128, 128, 1), "float32")]
    train.make_step(tf.distribute.get_strategy(), train.gradients_of(training, loss), signature)(1.0, brains())
    moved = np.asarray(model.quantizer.codebook)
    assert (moved != before).any()
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = make_vqvae(num_embeddings=8)
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(loaded.quantizer.codebook, moved)


def test_codebook_with_decay_follows_the_mean_of_its_latents():
    quantizer = modules.VectorQuantizer(2, 2, 0.25, decay=0.5)
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
    quantizer = modules.VectorQuantizer(64, 2, 0.25, decay=0.9)
    latents = np.random.default_rng(0).normal(5, 1, (32, 8, 8, 2)).astype(np.float32)  # far from the first codebook
    used = [len(np.unique(quantizer(latents, training=True)[1])) for _ in range(60)]
    assert used[0] < 8 and used[-1] > 0.9 * 64
    error = np.mean((quantizer.lookup(quantizer.nearest(latents)) - latents) ** 2)
    assert error < 0.05  # of a variance of 1


def test_larger_vqvae_gives_grids_and_slices_of_its_shape():
    network = train.PRESETS["sharp"]["vqvae"]
    model = make_vqvae(**network, num_embeddings=32)
    images = brains()
    reconstructions, codes, _ = model(images)
    assert codes.shape == (len(images), 16, 16) and reconstructions.shape == images.shape
    assert model.quantizer.num_embeddings == 32 and model.decode(codes).min() >= -0.5


def test_discriminator_judges_patches_at_two_sizes():
    outputs = modules.Discriminator((4, 8))(brains(2), brains(2))
    assert [[tuple(layer.shape) for layer in scale] for scale in outputs] == [
        [(2, 64, 64, 4), (2, 32, 32, 8), (2, 32, 32, 8), (2, 32, 32, 1)],
        [(2, 32, 32, 4), (2, 16, 16, 8), (2, 16, 16, 8), (2, 16, 16, 1)],
    ]


def test_wrong_latents_are_refused():
    with pytest.raises(ValueError, match="3 channels"):
        modules.VectorQuantizer(8, 4, 0.25)(np.zeros((1, 2, 2, 3), np.float32))


def test_mixed_precision_keeps_weights_codes_and_losses_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        vqvae, pixelcnn = make_vqvae(), make_pixelcnn(filters=16)
    finally:
        keras.config.set_dtype_policy("float32")
    assert vqvae.decoder.layers[2].compute_dtype == pixelcnn.masked[0].compute_dtype == "bfloat16"
    assert {weight.dtype for weight in vqvae.weights + pixelcnn.weights} == {"float32"}
    reconstructions, codes, loss = vqvae(brains())
    assert reconstructions.dtype == loss.dtype == pixelcnn(codes).dtype == "float32"
    plain = make_vqvae()
    plain.set_weights(vqvae.get_weights())
    np.testing.assert_allclose(reconstructions, plain(brains())[0], atol=0.01)
    np.testing.assert_allclose(loss, plain(brains())[2], rtol=0.05)


def in_both_precisions(make):
    """What `make` gives in float32, and with the same weights in mixed precision."""
    keras.utils.set_random_seed(0)
    plain = make()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = make()
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(plain.get_weights())
    return plain, mixed


@pytest.mark.parametrize(
    "make, inputs",
    [
        (lambda: make_vqvae().encoder, lambda: [brains()]),
        (
            lambda: make_vqvae().decoder,
            lambda: [np.random.default_rng(0).normal(size=(4, 8, 8, 16)).astype(np.float32)],
        ),
        (lambda: modules.Discriminator((8, 16)), lambda: [brains(), brains()[:, ::-1]]),
        (make_pixelcnn, lambda: [np.random.default_rng(0).integers(0, 128, (32, 8, 8), np.int32)]),
        (
            lambda: make_gated(scale=0.2, grid=(16, 16)),  # so that no gate is shut
            lambda: [np.random.default_rng(0).integers(0, 9, (8, 16, 16), np.int32), np.arange(8, dtype=np.int32) % 4],
        ),
    ],
    ids=["encoder", "decoder", "discriminator", "PixelCNN", "gated PixelCNN"],
)
def test_gradients_in_mixed_precision_are_those_of_float32(make, inputs):
    models = in_both_precisions(make)
    # many positions: a sum of them in bfloat16 is far off
    content = [np.concatenate([array] * 4) for array in inputs()]
    gradients = []
    for model in models:
        with modules.tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(*content))
            error = sum(ops.mean((ops.cast(output, "float32") + 0.5) ** 2) for output in outputs)
        gradients.append([modules.tf.convert_to_tensor(g) for g in tape.gradient(error, model.trainable_weights)])
    for weight, plain, mixed in zip(models[0].trainable_weights, *gradients):
        assert np.linalg.norm(mixed - plain) < 0.1 * np.linalg.norm(plain), weight.path


def test_decoded_codes_are_the_reconstruction(vqvae):
    images = brains(modules.BATCH + 3)
    reconstructions, codes, _ = vqvae(images)
    np.testing.assert_array_equal(vqvae.encode(images), codes)
    np.testing.assert_allclose(vqvae.decode(vqvae.encode(images)), np.clip(reconstructions, -0.5, 0.5), atol=1e-5)
    assert len(np.unique(codes)) > 20


def test_code_usage():
    assert modules.code_usage([5, 5, 5, 5]) == pytest.approx((1, 4))
    assert modules.code_usage([0, 9, 0, 0]) == pytest.approx((0.25, 1))


# --- the PixelCNN -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_masked_convolution_sees_no_later_position(kernel_size, mask_type):
    keras.utils.set_random_seed(0)
    layer = modules.MaskedConv2D(4, kernel_size, mask_type, activation=None, use_bias=False)
    inputs = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    before = np.asarray(layer(inputs)).reshape(64, 4)
    for position in range(64):
        changed = inputs.copy()
        changed[0, position // 8, position % 8] += 1
        moved = np.flatnonzero(np.any(np.asarray(layer(changed)).reshape(64, 4) != before, axis=1))
        if mask_type == "B":
            assert moved[0] == position
        else:
            assert not len(moved) or moved[0] > position
            assert len(moved) or kernel_size == 1 or position == 63


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_convolution_of_codes_is_that_of_their_one_hot_vectors(kernel_size, mask_type):
    keras.utils.set_random_seed(0)
    looked_up = modules.CodeConv2D(9, 4, kernel_size, mask_type)
    convolved = modules.MaskedConv2D(4, kernel_size, mask_type)
    codes = np.random.default_rng(0).integers(0, 9, (3, 5, 6), np.int32)
    results, gradients = [], []
    for layer, inputs in ((looked_up, codes), (convolved, ops.one_hot(codes, 9))):
        layer(inputs)
        layer.set_weights(looked_up.get_weights())
        with modules.tf.GradientTape() as tape:
            results.append(layer(inputs))
            loss = ops.sum(results[-1] ** 2)
        gradients.append(modules.tf.convert_to_tensor(tape.gradient(loss, layer.kernel.value)))
    np.testing.assert_allclose(*results, atol=1e-6)
    np.testing.assert_allclose(*gradients, atol=1e-5)


def test_forward_pass_changes_no_weight():
    pixelcnn = make_pixelcnn()
    before = pixelcnn.get_weights()
    pixelcnn(np.zeros((1, 8, 8), np.int32), training=True)
    for old, new in zip(before, pixelcnn.get_weights()):
        np.testing.assert_array_equal(old, new)


def reached(pixelcnn, levels=None):
    """Whether a change of a code (first axis) moves the logits at a position (second axis), in raster order."""
    height, width = pixelcnn.grid
    number = height * width
    codes = np.random.default_rng(0).integers(0, pixelcnn.num_embeddings, (1, height, width), np.int32)
    changed = np.repeat(codes, number, axis=0).reshape(number, number)
    changed[np.arange(number), np.arange(number)] += 1
    changed %= pixelcnn.num_embeddings
    before = np.asarray(pixelcnn(codes, levels)).reshape(number, -1)
    levels = None if levels is None else np.repeat(levels, number)
    after = np.asarray(pixelcnn(changed.reshape(-1, height, width), levels)).reshape(number, number, -1)
    return np.abs(after - before).max(axis=-1) > 1e-5


def test_logits_depend_on_earlier_codes_alone():
    moved = reached(make_pixelcnn())
    for position in range(64):
        assert not moved[position, : position + 1].any()
        assert position == 63 or moved[position, position + 1 :].any()


def test_gated_logits_depend_on_all_earlier_codes_and_no_other():
    pixelcnn = make_gated(scale=0.25, grid=(5, 4), gated_layers=3)  # so that no gate is shut
    moved = reached(pixelcnn, np.int32([2]))
    np.testing.assert_array_equal(moved, np.triu(np.ones_like(moved), k=1))  # no blind spot


def test_gated_logits_depend_on_level_and_place():
    pixelcnn = make_gated()
    codes = np.zeros((2, 6, 5), np.int32)
    logits = np.asarray(pixelcnn(codes, np.int32([0, 3])))
    assert np.abs(logits[0] - logits[1]).max(axis=-1).min() > 1e-3
    deep = logits[0].reshape(30, -1)
    assert len(np.unique(deep.round(4), axis=0)) == 30


def test_dropout_is_of_training_alone():
    pixelcnn = make_gated()
    codes, levels = np.zeros((1, 6, 5), np.int32), np.int32([1])
    np.testing.assert_array_equal(pixelcnn(codes, levels), pixelcnn(codes, levels))
    assert (np.asarray(pixelcnn(codes, levels, training=True)) != np.asarray(pixelcnn(codes, levels))).any()


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_prior():
    """A PixelCNN over 2x2 grids of 3 codes, and the probability of each of the 81 grids."""
    pixelcnn = make_pixelcnn(grid=(2, 2), num_embeddings=3, filters=8, residual_blocks=1, masked_layers=1)
    rng = np.random.default_rng(0)
    for weight in pixelcnn.weights:  # biases too, far from the uniform distribution
        weight.assign(rng.normal(size=weight.shape) * 0.5)
    grids = np.array(list(itertools.product(range(3), repeat=4)), np.int32).reshape(81, 2, 2)
    return pixelcnn, grids


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_frequencies_match_the_enumerated_probabilities(tiny_prior, temperature):
    pixelcnn, grids = tiny_prior
    log_probs = modules.categorical(pixelcnn(grids), temperature).log_prob(grids)
    probabilities = np.exp(np.sum(log_probs, axis=(1, 2), dtype=np.float64))
    assert probabilities.sum() == pytest.approx(1, abs=1e-5) and probabilities.max() > 5 / 81
    codes = modules.sample(pixelcnn, 20_000, seed=0, temperature=temperature)
    counts = np.bincount(codes.reshape(-1, 4) @ [27, 9, 3, 1], minlength=81)
    expected = probabilities / probabilities.sum() * len(codes)
    common = expected >= 5  # what is rarer is pooled, as the test's approximation asks
    pooled = [np.append(x[common], x[~common].sum()) for x in (counts, expected)]
    keep = pooled[1] > 0
    assert stats.chisquare(pooled[0][keep], pooled[1][keep]).pvalue > 0.01


def test_samples_equal_those_of_the_plain_sampler():
    pixelcnn = make_pixelcnn(grid=(3, 5), num_embeddings=11, filters=16)
    pixelcnn.head.kernel.assign(4 * pixelcnn.head.kernel)
    for temperature in (1.0, 0.7):
        plain = modules.sample_plain(pixelcnn, 50, seed=3, temperature=temperature)
        np.testing.assert_array_equal(modules.sample(pixelcnn, 50, seed=3, temperature=temperature), plain)


@pytest.mark.parametrize("grid, layers, kernel_size", [((6, 5), 3, 3), ((3, 7), 1, 5), ((5, 4), 4, 5)])
def test_gated_samples_equal_those_of_the_plain_sampler(grid, layers, kernel_size):
    pixelcnn = make_gated(grid=grid, gated_layers=layers, kernel_size=kernel_size)
    levels = np.arange(40) % 4
    codes = modules.sample(pixelcnn, 40, seed=3, levels=levels)
    np.testing.assert_array_equal(codes, modules.sample_plain(pixelcnn, 40, seed=3, levels=levels))
    assert len(np.unique(codes)) == 9
    assert (modules.sample(pixelcnn, 40, seed=3, levels=(levels + 1) % 4) != codes).any()


def test_cached_sampling_of_many_codes_follows_the_model():
    """At the sharp preset's size ties by rounding may differ, but not the distribution that a code is drawn from."""
    network = train.PRESETS["sharp"]["pixelcnn"]
    pixelcnn = make_gated(scale=0.1, **network, grid=(16, 16), num_embeddings=1024, levels=32)
    codes, levels = np.random.default_rng(0).integers(0, 1024, (2, 16, 16), np.int32), np.int32([3, 30])
    expected, cache = np.asarray(pixelcnn(codes, levels)), modules._GatedCache(pixelcnn, codes.shape, levels)
    for row, column in np.ndindex(16, 16):
        logits = cache.logits(row, column)
        np.testing.assert_allclose(logits, expected[:, row, column], atol=1e-4 * expected.std())
        cache.add(codes[:, row, column], row, column)


def test_best_of_candidates_is_what_the_critic_finds_real():
    pixelcnn, vqvae = make_gated(), make_vqvae(filters=(4, 4), bottleneck=4, num_embeddings=9)
    vqvae.decode = lambda codes: codes  # so that the critic below sees the codes
    levels = np.int32([3, 0, 1, 1, 2])

    def critic(codes):
        return codes.sum(axis=(1, 2)).astype(np.float32)

    drawn = modules.sample(pixelcnn, 30, 3, 0.9, np.repeat(levels, 6)).reshape(5, 6, -1)
    best = modules.sample_best(vqvae, pixelcnn, critic, 6, 5, 3, 0.9, levels)
    np.testing.assert_array_equal(best.sum(axis=(1, 2)), drawn.sum(axis=2).max(axis=1))
    np.testing.assert_array_equal(modules.sample_best(vqvae, pixelcnn, critic, 6, 2, 3, 0.9, levels[:2]), best[:2])
    for asked in (levels, None):
        for candidates in (1, 6):  # without a critic there is nothing to choose
            alone = modules.sample_best(vqvae, pixelcnn, None, candidates, 5, 3, 0.9, asked)
            np.testing.assert_array_equal(alone, modules.sample(pixelcnn, 5, 3, 0.9, asked))
    spread = modules.sample_best(vqvae, pixelcnn, critic, 2, 4, 3)  # over levels, not over candidates
    drawn = modules.sample(pixelcnn, 8, 3, levels=np.repeat([0, 1, 2, 3], 2)).reshape(4, 2, -1)
    np.testing.assert_array_equal(spread.sum(axis=(1, 2)), drawn.sum(axis=2).max(axis=1))


def test_critic_sees_pixels_in_float32_whatever_the_policy():
    images = brains(2) + np.random.default_rng(0).uniform(0, 2**-10, (2, 128, 128, 1)).astype(np.float32)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        critic = modules.Critic(filters=(4,), dropout=0.5)
        seen = []
        critic.features[0].call = lambda inputs: seen.append(inputs) or ops.zeros((2, 64, 64, 4))
        logits = critic(images)
    finally:
        keras.config.set_dtype_policy("float32")
    assert logits.dtype == "float32"
    detail = images - np.asarray(ops.average_pool(images, 3, strides=1, padding="same"))
    np.testing.assert_allclose(np.float32(seen[0][..., 1:]), 16 * detail, rtol=2**-7, atol=2**-9)


def test_critic_is_trained_on_what_is_not_held_out(monkeypatch, tmp_path):
    vqvae = make_vqvae(num_embeddings=9)
    pixelcnn = make_gated(grid=(8, 8))
    images, levels, held_out = brains(8), np.arange(8) % 4, np.arange(8) % 4 == 3
    monkeypatch.setitem(train.PRESETS["sharp"], "critic", {"filters": (4, 4), "dropout": 0.1})
    args = argparse.Namespace(preset="sharp", seed=0, critic_epochs=2, critic_batch_size=4, resume=False)
    asked = []

    def sample(prior, num, seed, temperature, levels, progress):
        asked.extend(levels)
        return np.random.default_rng(seed).integers(0, 9, (num, 8, 8), np.int32)

    monkeypatch.setattr(modules, "sample", sample)
    histories = []
    for some in (images, np.where(held_out[:, None, None, None], -images, images)):
        codes = vqvae.encode(some)
        path = tmp_path / "critic.npz"
        training = train.train_critic(vqvae, pixelcnn, some, codes, levels, held_out, {}, args, path)
        histories.append([[epoch[key] for epoch in training.history] for key in ("loss", "validation_loss")])
    assert sorted(asked[:6]) == [0, 0, 1, 1, 2, 2] and asked[6:8] == [3, 3]
    assert histories[0][0] == histories[1][0] and histories[0][1] != histories[1][1]


def test_critic_learns_which_codes_are_real():
    """Real codes are of one half of a codebook here, drawn ones of the other, and so decode to other images."""
    vqvae = make_vqvae(filters=(4, 4, 8, 8), bottleneck=8)
    critic = modules.Critic(filters=(8, 16), dropout=0.0)
    real, false = (np.random.default_rng(0).integers(low, low + 64, (8, 8, 8), np.int32) for low in (0, 64))
    vqvae.quantizer.codebook.assign(np.where(np.arange(128)[:, None] < 64, 1.0, -1.0) * np.ones(16, np.float32))
    step = train.gradients_of(
        train.Training("critic", critic, 1e-2, {}, None),
        lambda *codes: train.critic_loss(critic, vqvae, *codes),
    )
    assert float(train.critic_loss(critic, vqvae, real, false)[1]["loss"]) == pytest.approx(np.log(2), abs=0.2)
    for _ in range(60):
        ((optimizer, gradients, variables),), _ = step(real, false)
        optimizer.apply(gradients, variables)
    figures = train.critic_loss(critic, vqvae, real, false)[1]
    assert figures["loss"] < 0.1 and figures["accuracy"] == 1
    assert (np.asarray(critic(vqvae.decode(real))) > 0).all() and (np.asarray(critic(vqvae.decode(false))) < 0).all()


def test_levels_are_spread_evenly():
    pixelcnn = make_gated()
    assert modules.spread_levels(pixelcnn, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert modules.spread_levels(pixelcnn, 1).tolist() == [2]
    assert modules.spread_levels(make_pixelcnn(), 3).tolist() == [0, 0, 0]


def test_seed_decides_the_samples(tiny_prior):
    pixelcnn, _ = tiny_prior
    codes = modules.sample(pixelcnn, 300, seed=5)
    np.testing.assert_array_equal(modules.sample(pixelcnn, 300, seed=5), codes)
    np.testing.assert_array_equal(modules.sample(pixelcnn, 10, seed=5), codes[:10])  # however many are drawn
    assert (modules.sample(pixelcnn, 300, seed=6) != codes).any()


def test_low_temperature_draws_the_likeliest(tiny_prior):
    pixelcnn, _ = tiny_prior
    codes = modules.sample(pixelcnn, 8, seed=0, temperature=1e-4)
    np.testing.assert_array_equal(codes, np.argmax(pixelcnn(codes), axis=-1))


def test_cross_entropy_is_the_negative_log_probability(tiny_prior):
    pixelcnn, grids = tiny_prior
    logits = pixelcnn(grids)
    np.testing.assert_allclose(
        modules.cross_entropy(grids, logits), -modules.categorical(logits).log_prob(grids), atol=1e-5
    )


# --- SSIM and PSNR ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["noise", "blur", "offset", "other"])
def test_ssim_is_that_of_scikit_image(change):
    images = brains(4)
    changed = {
        "noise": lambda: np.clip(images + np.random.default_rng(0).normal(0, 0.1, images.shape), -0.5, 0.5),
        "blur": lambda: (images + np.roll(images, 1, 1) + np.roll(images, 1, 2)) / 3,
        "offset": lambda: np.clip(images + 0.02, -0.5, 0.5),
        "other": lambda: images[::-1],
    }[change]().astype(np.float32)
    expected = [
        structural_similarity(
            a[..., 0] + 0.5,
            b[..., 0] + 0.5,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(images, changed)
    ]
    np.testing.assert_allclose(modules.ssim(images, changed), expected, atol=1e-4)


def test_psnr_of_a_known_error():
    images = brains(2)
    np.testing.assert_allclose(modules.psnr(images, images + np.float32(0.1)), 20, atol=1e-3)
    np.testing.assert_allclose(modules.psnr(images, images), 100)  # rather than infinity


# --- saving and loading -----------------------------------------------------------------------------------------------


def make_set(folder, vqvae, **changes):
    config = {"vqvae": {"network": vqvae.config}, "pixelcnn": {"network": None}, "data": {"held_out_cases": []}}
    pixelcnn = make_pixelcnn(**changes)
    config["pixelcnn"]["network"] = pixelcnn.config
    critic = modules.Critic(filters=(4, 4), dropout=0.1)
    config["critic"] = {"network": critic.config, "candidates": 3}
    modules.save_models(folder, vqvae, pixelcnn, config, brains().mean(axis=0), critic)
    return pixelcnn


def test_set_reconstructs_and_samples_the_same_in_another_process(vqvae, tmp_path):
    images = brains()
    pixelcnn = make_set(tmp_path / "set", vqvae)
    np.save(tmp_path / "images.npy", images)
    script = """
import sys
import numpy as np
import modules
vqvae, pixelcnn = modules.load_models("set")
images, codes = vqvae(np.load("images.npy"))[0], modules.sample(pixelcnn, 3, seed=1)
np.savez("there.npz", codebook=vqvae.quantizer.codebook, images=images, codes=codes)
"""
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=modules.os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    there = np.load(tmp_path / "there.npz")
    np.testing.assert_array_equal(there["codebook"], vqvae.quantizer.codebook)
    np.testing.assert_array_equal(there["images"], vqvae(images)[0])
    np.testing.assert_array_equal(there["codes"], modules.sample(pixelcnn, 3, seed=1))


@pytest.mark.parametrize(
    "make, inputs",
    [
        (make_vqvae, lambda: [brains(1)]),
        (lambda: make_vqvae(**train.PRESETS["sharp"]["vqvae"]), lambda: [brains(1)]),
        (lambda: make_pixelcnn(filters=16), lambda: [np.zeros((1, 8, 8), np.int32)]),
        (make_gated, lambda: [np.zeros((1, 6, 5), np.int32), np.int32([1])]),
    ],
    ids=["VQ-VAE", "sharp VQ-VAE", "PixelCNN", "gated PixelCNN"],
)
def test_whole_model_survives_keras_saving(make, inputs, tmp_path):
    model = make()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for here, there in zip(keras.tree.flatten(model(*inputs())), keras.tree.flatten(loaded(*inputs()))):
        np.testing.assert_array_equal(here, there)


ONES = np.ones((1, 5, 5, 4), np.float32)


@pytest.mark.parametrize(
    "layer, inputs",
    [
        (modules.VectorQuantizer(6, 3, 0.25), [ONES[..., :3]]),
        (modules.MaskedConv2D(4, 3, "B"), [ONES]),
        (modules.ResidualBlock(4), [ONES]),
        (modules.Residual(4), [ONES]),
        (modules.CodeConv2D(5, 4, 3, "A"), [np.ones((1, 5, 5), np.int32)]),
        (modules.GatedLayer(4, 3, first=False, dropout=0.5), [ONES, ONES, ONES]),
    ],
)
def test_layer_comes_back_from_its_config(layer, inputs):
    layer(*inputs)
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    expected = layer(*inputs)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    copy(*inputs)
    copy.set_weights(layer.get_weights())
    for here, there in zip(keras.tree.flatten(expected), keras.tree.flatten(copy(*inputs))):
        np.testing.assert_array_equal(here, there)


def damage_nothing(folder):
    """The control: the folder that each other case damages loads."""


def lose_config(folder):
    (folder / modules.CONFIG).unlink()


def break_config(folder):
    (folder / modules.CONFIG).write_text("{")


def lose_weights(folder):
    (folder / modules.VQVAE_WEIGHTS).unlink()


def truncate_weights(folder):
    path = folder / modules.PIXELCNN_WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_shape(folder):
    config = json.loads((folder / modules.CONFIG).read_text())
    config["pixelcnn"]["network"]["filters"] = 24
    (folder / modules.CONFIG).write_text(json.dumps(config))


def other_pixelcnn(folder):
    shutil.copy(folder.parent / "other" / modules.PIXELCNN_WEIGHTS, folder)


def other_vqvae(folder):
    shutil.copy(folder.parent / "other" / modules.VQVAE_WEIGHTS, folder)


def other_trained_on(folder):
    config = json.loads((folder / modules.CONFIG).read_text())
    config["pixelcnn"]["trained_on"] = "0" * 64
    (folder / modules.CONFIG).write_text(json.dumps(config))


def lose_critic(folder):
    (folder / modules.CRITIC_WEIGHTS).unlink()


def other_prior_of_critic(folder):
    config = json.loads((folder / modules.CONFIG).read_text())
    config["critic"]["trained_on"] = "0" * 64
    (folder / modules.CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage, words",
    [
        (damage_nothing, None),
        (lose_config, "no trained weights here"),
        (break_config, "not the configuration"),
        (lose_weights, "missing"),
        (truncate_weights, "truncated or no weights file"),
        (change_shape, "does not fit the network"),
        (other_pixelcnn, "not the weights that config.json describes"),
        (other_vqvae, "not the weights that config.json describes"),
        (other_trained_on, "codes of another VQ-VAE"),
        (lose_critic, "critic.weights.h5: missing"),
        (other_prior_of_critic, "another PixelCNN"),
    ],
)
def test_weights_that_do_not_belong_are_refused(vqvae, tmp_path, damage, words):
    make_set(tmp_path / "set", vqvae, filters=16)
    if damage in (other_pixelcnn, other_vqvae):
        keras.utils.set_random_seed(99)
        other = modules.VQVAE(**vqvae.config)
        modules.save_models(
            tmp_path / "other",
            other,
            modules.PixelCNN(**make_pixelcnn(filters=16).config),
            {"vqvae": {}, "pixelcnn": {}},
            brains().mean(axis=0),
        )
        if damage is other_pixelcnn:
            path = tmp_path / "other" / modules.PIXELCNN_WEIGHTS
            model = modules.PixelCNN(**make_pixelcnn(filters=16).config)
            model.head.bias.assign(model.head.bias + 1)
            model.save_weights(path)
    damage(tmp_path / "set")

    def load():
        return modules.load_models(tmp_path / "set"), modules.load_critic(tmp_path / "set")

    if words is None:
        assert load()[1][1] == 3
        return
    with pytest.raises(UserError, match=words) as caught:
        load()
    assert str(tmp_path / "set") in str(caught.value) and "\n" not in str(caught.value)


def test_kill_at_any_rename_leaves_a_whole_set(vqvae, tmp_path, monkeypatch):
    rename = modules.Path.rename
    for survived in itertools.count():
        folder = tmp_path / f"after_{survived}" / "set"
        old = make_set(folder, vqvae, filters=8).config
        renames = []

        def dying_rename(source, target):
            if len(renames) == survived:
                raise KeyboardInterrupt
            renames.append(target)
            return rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(modules.Path, "rename", dying_rename)
            try:
                new = make_set(folder, vqvae, filters=16).config
                finished = True
            except KeyboardInterrupt:
                new, finished = make_pixelcnn(filters=16).config, False
        assert modules.load_models(folder)[1].config in (old, new)
        make_set(folder, vqvae, filters=24)  # and the next training is stored as ever
        assert modules.load_models(folder)[1].config["filters"] == 24
        assert [path.name for path in folder.parent.iterdir()] == ["set"]
        if finished:
            break
    assert survived >= 3


def test_neither_a_link_nor_what_lies_beside_is_lost(vqvae, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "elsewhere")
    for ending in ("old", "new", "tmp"):
        (tmp_path / f"set.{ending}").mkdir()
        (tmp_path / f"set.{ending}" / "thesis.tex").touch()
    for filters in (8, 16):
        make_set(tmp_path / "set", vqvae, filters=filters)
        assert modules.load_models(tmp_path / "set")[1].config["filters"] == filters
    assert (tmp_path / "set").is_symlink() and len(list(tmp_path.rglob("thesis.tex"))) == 3


@pytest.mark.parametrize("name", ["thesis.tex", ".git"])
def test_folder_with_other_files_is_not_replaced(vqvae, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=name):
        make_set(tmp_path, vqvae)
    assert (tmp_path / name).exists()
