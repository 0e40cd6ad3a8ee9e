"""The figures of an epoch, and the lines that say them."""

import math

import numpy as np

import modules
from brains import stream

SIDES = (("training", ""), ("validation", "validation_"))  # (label, key prefix) of the two groups of figures


def with_code_usage(totals):
    """Return the totals of an epoch as floats, the counts of its codes replaced by their usage and perplexity."""
    in_use, perplexity = modules.code_usage(totals["code_counts"])
    figures = {name: float(value) for name, value in totals.items() if name != "code_counts"}
    return figures | {"codes_in_use": in_use, "perplexity": perplexity}


def of_reconstructions(vqvae, used, images, chosen):
    """Return the mean SSIM of a VQVAE's reconstructions of the chosen images, and how sharp these are; 1 is as real.

    `used` is a copy of the VQVAE in float32 (see `weights.as_used`); it is given the weights.
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
    return sum(np.abs(np.diff(images, axis=axis)).sum(dtype=np.float64) for axis in (1, 2))


def vqvae_line(figures):
    """Say the figures of a VQ-VAE, and those of its discriminator and of validation if there are any."""
    if "discriminator_loss" in figures:
        parts = f"; discriminator {figures['discriminator_loss']:.3f} (2 is chance)"
    else:
        parts = f" = reconstruction {figures['reconstruction_loss']:.4f} + quantizer {figures['quantizer_loss']:.4f}"
    line = f"loss {figures['loss']:.4f}{parts}"
    line += f"; codes in use {figures['codes_in_use']:.1%}, perplexity {figures['perplexity']:.1f}"
    if "validation_ssim" in figures:
        line += f"; validation: SSIM {figures['validation_ssim']:.3f}, {figures['sharpness']:.2f} as sharp as real"
    return line


def prior_line(figures, num_embeddings):
    """Say the figures of a prior over so many codes."""
    line = ""
    for side, prefix in SIDES:
        nats, accuracy = figures[prefix + "loss"], figures[prefix + "accuracy"]
        line += f"{side}: loss {nats:.4f} ({nats / math.log(2):.3f} bits a code), accuracy {accuracy:.3f}; "
    return f"{line}a uniform guess: {math.log2(num_embeddings):g} bits"


def critic_line(figures):
    """Say the figures of a critic."""
    line = ""
    for side, prefix in SIDES:
        line += f"{side}: loss {figures[prefix + 'loss']:.4f}, {figures[prefix + 'accuracy']:.1%} told apart; "
    return f"{line}a guess: {math.log(2):.4f}, 50%"
