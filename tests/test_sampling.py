"""Sampling: the frequencies of samples, and the fast sampler beside the plain one."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from builders import make_gated, make_pixelcnn
from keras import ops
from scipy import stats

import modules
from brains import config, sampling


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
    codes = sampling.sample(pixelcnn, 20_000, seed=0, temperature=temperature)
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
        plain = modules.sample(pixelcnn, 50, seed=3, temperature=temperature)
        np.testing.assert_array_equal(sampling.sample(pixelcnn, 50, seed=3, temperature=temperature), plain)


@pytest.mark.parametrize("grid, layers, kernel_size", [((6, 5), 3, 3), ((3, 7), 1, 5), ((5, 4), 4, 5)])
def test_gated_samples_equal_those_of_the_plain_sampler(grid, layers, kernel_size):
    pixelcnn = make_gated(grid=grid, gated_layers=layers, kernel_size=kernel_size)
    levels = np.arange(40) % 4
    codes = sampling.sample(pixelcnn, 40, seed=3, levels=levels)
    np.testing.assert_array_equal(codes, modules.sample(pixelcnn, 40, seed=3, levels=levels))
    assert len(np.unique(codes)) == 9
    assert (sampling.sample(pixelcnn, 40, seed=3, levels=(levels + 1) % 4) != codes).any()


def test_cached_sampling_of_many_codes_follows_the_model():
    """At the sharp preset's size ties by rounding may differ, but not the distribution that a code is drawn from."""
    pixelcnn = make_gated(scale=0.1, **vars(config.GatedPixelCNNConfig()))
    codes, levels = np.random.default_rng(0).integers(0, 1024, (2, 16, 16), np.int32), np.int32([3, 30])
    expected, cache = np.asarray(pixelcnn(codes, levels)), sampling.GatedCache(pixelcnn, codes.shape, levels)
    for row, column in np.ndindex(16, 16):
        logits = cache.logits(row, column)
        np.testing.assert_allclose(logits, expected[:, row, column], atol=1e-4 * expected.std())
        cache.add(codes[:, row, column], row, column)


def test_best_of_candidates_is_what_the_critic_finds_real():
    pixelcnn = make_gated()
    lookup = SimpleNamespace(lookup=lambda codes: codes / 100)  # so that the critic below sees the codes
    vqvae = SimpleNamespace(quantizer=lookup, paint=lambda quantized: ops.cast(quantized, "float32"))
    levels = np.int32([3, 0, 1, 1, 2])

    def critic(codes):
        return ops.sum(codes, axis=(1, 2))

    drawn = sampling.sample(pixelcnn, 30, 3, 0.9, np.repeat(levels, 6)).reshape(5, 6, -1)
    best = sampling.sample_best(vqvae, pixelcnn, critic, 6, 5, 3, 0.9, levels)
    np.testing.assert_array_equal(best.sum(axis=(1, 2)), drawn.sum(axis=2).max(axis=1))
    np.testing.assert_array_equal(sampling.sample_best(vqvae, pixelcnn, critic, 6, 2, 3, 0.9, levels[:2]), best[:2])
    for asked in (levels, None):
        for candidates in (1, 6):  # without a critic there is nothing to choose
            alone = sampling.sample_best(vqvae, pixelcnn, None, candidates, 5, 3, 0.9, asked)
            np.testing.assert_array_equal(alone, sampling.sample(pixelcnn, 5, 3, 0.9, asked))
    spread = sampling.sample_best(vqvae, pixelcnn, critic, 2, 4, 3)  # over levels, not over candidates
    drawn = sampling.sample(pixelcnn, 8, 3, levels=np.repeat([0, 1, 2, 3], 2)).reshape(4, 2, -1)
    np.testing.assert_array_equal(spread.sum(axis=(1, 2)), drawn.sum(axis=2).max(axis=1))


def test_levels_are_spread_evenly():
    pixelcnn = make_gated()
    assert sampling.spread_levels(pixelcnn, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sampling.spread_levels(pixelcnn, 1).tolist() == [2]
    assert sampling.spread_levels(make_pixelcnn(), 3).tolist() == [0, 0, 0]


def test_seed_decides_the_samples(tiny_prior):
    pixelcnn, _ = tiny_prior
    codes = sampling.sample(pixelcnn, 300, seed=5)
    np.testing.assert_array_equal(sampling.sample(pixelcnn, 300, seed=5), codes)
    np.testing.assert_array_equal(sampling.sample(pixelcnn, 10, seed=5), codes[:10])  # however many are drawn
    assert (sampling.sample(pixelcnn, 300, seed=6) != codes).any()


def test_low_temperature_draws_the_likeliest(tiny_prior):
    pixelcnn, _ = tiny_prior
    codes = sampling.sample(pixelcnn, 8, seed=0, temperature=1e-4)
    np.testing.assert_array_equal(codes, np.argmax(pixelcnn(codes), axis=-1))


def test_cross_entropy_is_the_negative_log_probability(tiny_prior):
    pixelcnn, grids = tiny_prior
    logits = pixelcnn(grids)
    np.testing.assert_allclose(
        modules.cross_entropy(grids, logits), -modules.categorical(logits).log_prob(grids), atol=1e-5
    )
