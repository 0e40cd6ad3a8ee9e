"""Copies of a VQ-VAE, and how well it reconstructs held-out slices while it is trained."""

import numpy as np

import modules
from brains import stream, weights
from brains.backend import keras


def validate(vqvae, used, images, chosen):
    """Return the mean SSIM of a VQVAE's reconstructions of the chosen images, and how sharp these are; 1 is as real.

    `used` is a copy of the VQVAE in float32 (see `as_used`); it is given the weights.
    """
    used.set_weights(vqvae.get_weights())
    ssim, sharpness, real_sharpness = 0, 0, 0
    for part in stream.parts(len(chosen)):
        real = images[chosen[part]]
        decoded = used.decode(used.encode(real))
        ssim += modules.ssim(real, decoded).sum()
        sharpness, real_sharpness = sharpness + differences(decoded), real_sharpness + differences(real)
    return {"validation_ssim": float(ssim / len(chosen)), "sharpness": float(sharpness / real_sharpness)}


def differences(images):
    """Return the sum of the absolute differences of neighbouring pixels of images (N, H, W, 1)."""
    return np.abs(np.diff(images, axis=1)).sum(dtype=np.float64) + np.abs(np.diff(images, axis=2)).sum(dtype=np.float64)


def copy_of(vqvae):
    """Return another VQVAE with the same weights, built by the dtype policy in force."""
    copy = weights.build(weights.describe(vqvae))
    copy.set_weights(vqvae.get_weights())
    return copy


def as_used(vqvae):
    """Return a copy of a VQVAE in float32, as all scripts use it: in bfloat16 one code of thirty differs."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    copy = copy_of(vqvae)
    keras.config.set_dtype_policy(policy)
    return copy
