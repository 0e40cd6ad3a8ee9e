"""Whole heads: residual quantization, slabs, and the flow from noise to latents."""

import keras
import numpy as np
from builders import make_flow, make_head_vqvae

from brains import flow, heads, headstages, stream


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


def velocities(model, mixtures, time=0.5, traits=0.0):
    number = len(mixtures)
    told = np.full((number, model.config.traits), traits, np.float32)
    return np.asarray(model(mixtures, np.full(number, time, np.float32), told))


def test_velocity_of_every_cell_depends_on_all_cells_the_time_and_the_traits():
    model = make_flow()
    mixtures = np.random.default_rng(1).normal(size=(1, *model.grid, 4)).astype(np.float32)
    usual = velocities(model, mixtures)
    for cell in np.ndindex(model.grid):
        changed = mixtures.copy()
        changed[(0, *cell)] += 1
        assert np.abs(velocities(model, changed) - usual).max(axis=-1).min() > 1e-6
    assert np.abs(velocities(model, mixtures, time=0.51) - usual).max(axis=-1).min() > 1e-6
    assert np.abs(velocities(model, mixtures, traits=0.1) - usual).max(axis=-1).min() > 1e-6


def test_patches_are_put_together_as_they_were_cut():
    model, cells = make_flow(), np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(1, 2, 4, 4, 3)
    patches = np.asarray(model._in_patches(cells))
    assert patches.shape == (1, 8, 12) and set(patches[0, 0, ::3]) == {0, 3, 12, 15}  # four neighbours
    np.testing.assert_array_equal(model._in_cells(patches), cells)


def test_error_of_an_untrained_flow_is_that_of_the_mean_head():
    model = flow.HeadFlow(make_flow().config)  # its answer is 0 everywhere
    rng = np.random.default_rng(0)
    latents = rng.normal(3, 5, (200, *model.grid, 4)).astype(np.float32)
    model.know(latents)
    noise, times = rng.normal(size=latents.shape).astype(np.float32), rng.random(200).astype(np.float32)
    errors = np.asarray(flow.velocity_error(model, latents, np.zeros((200, 8), np.float32), times, noise))
    assert errors.shape == (200,) and abs(errors.mean() - 2) < 0.05


def test_samples_follow_the_distribution_whose_velocity_is_given(monkeypatch):
    model, middle, spread = make_flow(), 1.5, 0.4

    def exact(self, mixtures, times, traits):
        """The velocity from noise to normal numbers of that mean and deviation, in closed form."""
        share = times[:, None, None, None, None]
        variance = (1 - share) ** 2 + (share * spread) ** 2
        slope = (share * spread**2 - (1 - share)) / variance
        return middle + slope * (mixtures - share * middle)

    monkeypatch.setattr(flow.HeadFlow, "call", exact)
    drawn = flow.sample_latents(model, 400, 0, np.zeros((400, 8), np.float32))
    standard = np.asarray(model.standardised(drawn))
    assert abs(standard.mean() - middle) < 0.01 and abs(standard.std() - spread) < 0.01
    colder = np.asarray(model.standardised(flow.sample_latents(model, 400, 0, np.zeros((400, 8), np.float32), 0.5)))
    assert abs(colder.mean() - middle) < 0.01 and abs(colder.std() - spread / 2) < 0.01


def test_same_seed_draws_the_same_heads_whatever_their_number():
    vqvae, model = make_head_vqvae(), make_flow()
    told = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    codes = flow.sample_heads(vqvae, model, 6, 5, told)
    assert codes.shape == (6, *vqvae.grid) and codes.dtype == np.int32
    np.testing.assert_array_equal(flow.sample_heads(vqvae, model, 6, 5, told), codes)
    assert np.mean(flow.sample_heads(vqvae, model, 2, 5, told[:2]) == codes[:2]) > 0.99  # products of other sizes
    assert np.mean(flow.sample_heads(vqvae, model, 6, 6, told) == codes) < 0.9
    assert np.mean(flow.sample_heads(vqvae, model, 6, 5, told[::-1]) == codes) < 0.99


def test_times_and_noise_are_those_of_the_draws():
    draws = stream.drawn((0, 1), 400)
    times, noise = headstages.drawn_for_flow(draws, (2, 3))
    again = headstages.drawn_for_flow(draws[10:12], (2, 3))
    np.testing.assert_array_equal(times[10:12], again[0])
    np.testing.assert_array_equal(noise[10:12], again[1])
    assert abs(np.median(times) - flow.time_of(0.5)) < 0.05 and 0 <= times.min() and times.max() < 1
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.04


def test_blurred_samples_are_stretched_to_the_detail_of_heads():
    class Transparent:
        codes_of = staticmethod(np.asarray)
        decode = staticmethod(lambda latents: latents[..., :1])

    model, told = make_flow(), np.zeros((6, 8), np.float32)
    model.know(np.random.default_rng(1).normal(3, 2, (5, *model.grid, model.config.latent_dim)))
    middle, drawn = np.asarray(model.middle), flow.sample_latents(model, 6, 0, told)
    for detail, expected in ((1.25, 1.25), (0.8, 1), (3, 1.4)):
        heads_of_people = middle + detail * (drawn - middle)
        headstages.set_stretch(Transparent, model, heads_of_people, told, 0)
        np.testing.assert_allclose(model.stretch, expected, atol=0.02)
    np.testing.assert_allclose(flow.sample_latents(model, 6, 0, told), middle + 1.4 * (drawn - middle), atol=1e-4)
