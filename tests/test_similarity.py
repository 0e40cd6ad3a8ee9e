"""SSIM and PSNR against scikit-image and TensorFlow."""

import numpy as np
import pytest
from conftest import brains
from skimage.metrics import structural_similarity

import modules
from brains.backend import tf

CHANGES = {
    "noise": lambda images: np.clip(images + np.random.default_rng(0).normal(0, 0.1, images.shape), -0.5, 0.5),
    "blur": lambda images: (images + np.roll(images, 1, 1) + np.roll(images, 1, 2)) / 3,
    "offset": lambda images: np.clip(images + 0.02, -0.5, 0.5),
    "other": lambda images: images[::-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_ssim_is_that_of_scikit_image(change):
    images = brains(4)
    changed = CHANGES[change](images).astype(np.float32)
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


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(128, 128), (40, 64)])
def test_ssim_and_its_gradient_are_those_of_tensorflow(change, shape):
    images = brains(4)[:, : shape[0], : shape[1]]
    changed = CHANGES[change](images).astype(np.float32)
    values, gradients = [], []
    for ssim in (modules.ssim_tensor, lambda a, b: tf.image.ssim(a + 0.5, b + 0.5, max_val=1.0)):
        with tf.GradientTape() as tape:
            others = tf.constant(changed)
            tape.watch(others)
            values.append(ssim(tf.constant(images), others))
        gradients.append(tape.gradient(values[-1], others))
    np.testing.assert_allclose(*values, atol=5e-6)
    np.testing.assert_allclose(*gradients, atol=1e-3 * np.abs(gradients[1]).max())


def test_ssim_clips_to_the_range_of_images():
    images = brains(2)
    np.testing.assert_allclose(modules.ssim(images, 2 * images), modules.ssim(images, np.clip(2 * images, -0.5, 0.5)))


def test_psnr_of_a_known_error():
    images = brains(2)
    np.testing.assert_allclose(modules.psnr(images, images + np.float32(0.1)), 20, atol=1e-3)
    np.testing.assert_allclose(modules.psnr(images, images), 100)  # rather than infinity
