"""The faithful networks against the tables, the paper and brute force; SSIM and PSNR."""

import keras
import numpy as np
import pytest
from builders import make_gated, make_pixelcnn, make_vqvae
from conftest import brains
from keras import ops

import modules
from brains import config, loop
from brains.sharp import Discriminator
from brains.backend import tf

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
    latents = tf.constant([[[[0.8, 1.3]]]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(latents)
        quantized, _, loss = quantizer(latents)
        decoded = ops.sum(quantized * [[[[3.0, 7.0]]]])
    error = np.array([0.8 - 1, 1.3 - 1])
    np.testing.assert_allclose(loss, 1.25 * np.mean(error**2), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(decoded, latents), [[[[3, 7]]]])  # straight through
    assert tape.gradient(decoded, quantizer.codebook.value) is None  # the decoder does not move the codebook
    np.testing.assert_allclose(tape.gradient(loss, latents)[0, 0, 0], 0.25 * error, rtol=1e-5)
    codebook_gradient = np.asarray(tf.convert_to_tensor(tape.gradient(loss, quantizer.codebook.value)))
    np.testing.assert_allclose(codebook_gradient, [[0, 0], -error, [0, 0], [0, 0]], rtol=1e-5)


def test_codebook_moves_in_training_and_only_then(tmp_path):
    model = make_vqvae(num_embeddings=8)
    training = loop.Training("VQ-VAE", model, keras.optimizers.Adam(1e-3), tmp_path / "vqvae.npz", {})
    before = np.asarray(model.quantizer.codebook)
    model.decode(model.encode(brains()))
    np.testing.assert_array_equal(model.quantizer.codebook, before)

    def loss(images):
        reconstructions, _, quantizer_loss = model(images, training=True)
        return ops.mean((images - reconstructions) ** 2) + quantizer_loss, {"loss": quantizer_loss}

    signature = [tf.TensorSpec((), "float32"), tf.TensorSpec((None, 128, 128, 1), "float32")]
    step = loop.make_step(tf.distribute.get_strategy(), loop.gradients_of(training, loss), signature)
    step(1.0, brains())
    moved = np.asarray(model.quantizer.codebook)
    assert (moved != before).any()
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = make_vqvae(num_embeddings=8)
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(loaded.quantizer.codebook, moved)


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
        (lambda: Discriminator(config.DiscriminatorConfig((8, 16))), lambda: [brains(), brains()[:, ::-1]]),
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
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(*content))
            error = sum(ops.mean((ops.cast(output, "float32") + 0.5) ** 2) for output in outputs)
        gradients.append([tf.convert_to_tensor(g) for g in tape.gradient(error, model.trainable_weights)])
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
