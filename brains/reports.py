"""The figures of an epoch, and the lines that say them."""

import math

import numpy as np

from brains.config import TISSUES
from modules import code_usage

SIDES = (("training", ""), ("validation", "validation_"))  # (label, key prefix) of the two groups of figures


def with_code_usage(totals):
    """Return the totals of an epoch as floats, the counts of its codes replaced by their usage and perplexity.

    Of several codebooks, with counts (depth, K), it is the geometric mean of their perplexities.
    """
    counts = np.atleast_2d(totals["code_counts"])
    in_use, perplexity = code_usage(counts.ravel()) if np.any(counts) else (0.0, 0.0)
    figures = {name: float(value) for name, value in totals.items() if name != "code_counts"}
    return figures | {"codes_in_use": in_use, "perplexity": perplexity / len(counts)}


def vqvae_line(figures):
    """Say the figures of a VQ-VAE, and those of its discriminator and of validation if there are any."""
    if "discriminator_loss" in figures:
        parts = f"; discriminator {figures['discriminator_loss']:.3f} (2 is chance)"
    else:
        parts = f" = reconstruction {figures['reconstruction_loss']:.4f} + quantizer {figures['quantizer_loss']:.4f}"
    line = f"loss {figures['loss']:.4f}{parts}"
    if figures["codes_in_use"]:
        line += f"; codes in use {figures['codes_in_use']:.1%}, perplexity {figures['perplexity']:.1f}"
    else:
        line += "; without quantization"
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


def flow_line(figures):
    """Say the figures of a flow."""
    return f"training: loss {figures['loss']:.4f}; validation: loss {figures['validation_loss']:.4f}; the mean head: 2"


def with_dice(figures):
    """Return the figures of a segmenter with the Dice of each tissue in place of overlaps and sizes of areas."""
    figures = dict(figures)
    for _, prefix in SIDES:
        for tissue in TISSUES[1:]:
            overlap, size = (figures.pop(f"{prefix}{part} of {tissue}") for part in ("overlap", "size"))
            figures[f"{prefix}Dice of {tissue}"] = 2 * overlap / max(size, 1e-9)
    return figures


def tissue_line(figures):
    """Say the figures of a segmenter."""
    parts = []
    for side, prefix in SIDES:
        dice = ", ".join(f"{figures[f'{prefix}Dice of {tissue}']:.3f} {tissue}" for tissue in TISSUES[1:])
        parts.append(f"{side}: loss {figures[prefix + 'loss']:.4f}, Dice {dice}")
    return "; ".join(parts)


def critic_line(figures):
    """Say the figures of a critic."""
    line = ""
    for side, prefix in SIDES:
        line += f"{side}: loss {figures[prefix + 'loss']:.4f}, {figures[prefix + 'accuracy']:.1%} told apart; "
    return f"{line}a guess: {math.log(2):.4f}, 50%"
