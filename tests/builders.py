"""Networks that several test files build, with weights drawn by a seed."""

from dataclasses import replace

import keras
import numpy as np

import modules
from brains import config, sharp


def make_vqvae(**changes):
    """Return the faithful VQVAE with changes of its VQVAEConfig."""
    keras.utils.set_random_seed(1)
    return modules.build_vqvae(config.VQVAEConfig(**changes))


def make_sharp_vqvae(**changes):
    """Return the sharp VQVAE with changes of its SharpVQVAEConfig."""
    keras.utils.set_random_seed(1)
    return sharp.build_vqvae(config.SharpVQVAEConfig(**changes))


def make_pixelcnn(**changes):
    """Return the faithful PixelCNN with changes of its PixelCNNConfig."""
    keras.utils.set_random_seed(1)
    return modules.PixelCNN(config.PixelCNNConfig(**changes))


def make_gated(scale=0.5, **changes):
    """Return a small GatedPixelCNN whose weights, biases too, are normal numbers times `scale`."""
    keras.utils.set_random_seed(1)
    small = config.GatedPixelCNNConfig(
        grid=(6, 5), num_embeddings=9, levels=4, filters=8, gated_layers=3, kernel_size=3, dropout=0.5
    )
    pixelcnn = sharp.GatedPixelCNN(replace(small, **changes))
    rng = np.random.default_rng(0)
    for weight in pixelcnn.weights:  # far from the uniform distribution
        weight.assign(rng.normal(size=weight.shape) * scale)
    return pixelcnn
