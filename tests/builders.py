"""Networks that several test files build, with weights drawn by a seed."""

from dataclasses import replace

import keras
import numpy as np

import modules
from brains import config, flow, heads, sharp


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


def make_head_vqvae(**sizes):
    """Return a small HeadVQVAE of heads (8, 32, 32, 1), whose grid is (2, 4, 4) with 3 codes a cell."""
    keras.utils.set_random_seed(0)
    small = {"levels": 8, "size": 32, "depth": 3, "latent_dim": 4, "num_embeddings": 16, "bottleneck": 8}
    small |= {"filters": (4, 4, 8), "decoder_filters": (8, 4, 4), "residual_blocks": 1}
    return heads.HeadVQVAE(config.HeadVQVAEConfig(**small | sizes))


def make_flow(**sizes):
    """Return a small HeadFlow over grids (2, 4, 4) of latents of length 4, whose weights are all drawn."""
    keras.utils.set_random_seed(0)
    small = {"grid": (2, 4, 4), "latent_dim": 4, "filters": 8, "width": 16, "blocks": 2, "heads": 2}
    model = flow.HeadFlow(config.HeadFlowConfig(**small | sizes))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    model.deviation.assign(2)
    model.stretch.assign(1)
    return model
