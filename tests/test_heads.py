"""Whole heads: residual quantization, slabs, what the prior may see, and that fast samples are its samples."""

import keras
import numpy as np
import pytest
from builders import make_head_prior, make_head_vqvae

from brains import heads, headsampling
from brains.sampling import invert


def noise(number, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (number, 8, 32, 32, 1)).astype(np.float32)


def quantizer_on(latents, depth=4, steps=60):
    keras.utils.set_random_seed(0)
    quantizer = heads.ResidualQuantizer(depth, 16, 3, 0.25, 0.9)
    quantizer.build(latents.shape)
    first = [np.array(each.codebook) for each in quantizer.quantizers]
    for _ in range(steps):
        quantizer(latents, training=True)
    return quantizer, first


def test_residual_quantizer_sums_what_it_looked_up():
    latents = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    quantizer, _ = quantizer_on(latents)
    quantized, codes, _ = quantizer(latents)
    books = [np.asarray(each.codebook) for each in quantizer.quantizers]
    np.testing.assert_allclose(quantized, sum(book[codes[..., i]] for i, book in enumerate(books)), atol=1e-5)
    np.testing.assert_array_equal(codes, quantizer.nearest(latents))
    np.testing.assert_allclose(quantizer.lookup(codes), quantized, atol=1e-5)


def test_error_falls_with_depth_and_all_codebooks_move():
    latents = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    quantizer, first = quantizer_on(latents)
    codes = np.asarray(quantizer.nearest(latents))
    missing, errors = latents, [np.mean(latents**2)]
    for i, each in enumerate(quantizer.quantizers):
        missing = missing - np.asarray(each.codebook)[codes[..., i]]
        errors.append(np.mean(missing**2))
        assert np.abs(np.asarray(each.codebook) - first[i]).max(axis=1).min() > 1e-3
    assert all(later < 0.7 * earlier for earlier, later in zip(errors, errors[1:]))


def test_decoding_the_codes_is_the_reconstruction():
    vqvae = make_head_vqvae()
    stacks = noise(3)
    reconstructions, codes, _ = vqvae(stacks)
    assert codes.shape == (3, 2, 4, 4, 3) and reconstructions.shape == stacks.shape
    np.testing.assert_array_equal(vqvae.encode(stacks), codes)
    np.testing.assert_allclose(vqvae.decode(codes), np.clip(reconstructions, -0.5, 0.5), atol=1e-6)


def logits_moved(prior, codes, traits):
    """Whether a change of each code (first axis) moves the logits of each code (second axis), in the order of draws."""
    number = codes.size
    before = np.asarray(prior(codes, traits)).reshape(number, -1)
    moved = np.zeros((number, number), bool)
    for i in range(number):
        changed = codes.copy().reshape(-1)
        changed[i] = (changed[i] + 1) % prior.num_embeddings
        after = np.asarray(prior(changed.reshape(codes.shape), traits)).reshape(number, -1)
        moved[i] = np.abs(after - before).max(axis=1) > 1e-6
    return moved


@pytest.mark.parametrize("attention", [(), (1,)])
def test_logits_depend_on_earlier_codes_alone(attention):
    prior = make_head_prior(attention=attention)
    codes = np.random.default_rng(0).integers(0, prior.num_embeddings, (1, *prior.grid), np.int32)
    moved = logits_moved(prior, codes, np.zeros((1, 8), np.float32))
    assert not np.tril(moved).any()
    share = moved[np.triu(np.ones_like(moved), k=1)].mean()
    assert share > (0.95 if attention else 0.6)  # it sees all but the last cell of a row, from the next ones


def test_fast_samples_are_those_of_the_prior():
    prior = make_head_prior()
    traits = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    codes = headsampling.sample_heads(prior, 3, 5, traits, temperature=0.8)
    logits = np.asarray(prior(codes, traits))
    seeds = np.random.default_rng(5).integers(0, 2**63, 3)
    uniforms = np.stack([np.random.default_rng(seed).random(prior.grid, np.float32) for seed in seeds])
    expected = invert(logits.reshape(-1, prior.num_embeddings), 0.8, uniforms.ravel())
    assert np.mean(codes.ravel() == expected) > 0.999  # a uniform number may lie on an edge
    assert len(np.unique(codes)) > 3
    np.testing.assert_array_equal(headsampling.sample_heads(prior, 2, 5, traits[:2], temperature=0.8), codes[:2])
