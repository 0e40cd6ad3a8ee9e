"""The VQ-VAE of the head preset: whole heads, as slabs of neighbouring slices with several codes a cell.

Neighbouring slices are nearly the same, so slabs of them share their codes. The slices of a slab are the channels of 2D
convolutions, which cost far less than 3D ones.

Zeghidour et al. 2021, SoundStream, arXiv 2107.03312                                  (residual quantization)
Lee et al. 2022, Autoregressive Image Generation using Residual Quantization, arXiv 2203.01941
"""

import numpy as np

from brains.backend import keras, layers, ops, tf
from brains.layers import with_neighbours
from brains.sharp import MovingAverageQuantizer, Residual, build_decoder
from modules import build_encoder

PORTION = 2  # heads that go through the network at a time: few, so that they fit a processor's cache


class ResidualQuantizer(layers.Layer):
    """Replaces each latent vector by a sum of vectors, each from a codebook of its own (arXiv 2107.03312).

    The first codebook has the vector nearest to the latent vector, the second the one nearest to what is then missing,
    and so on. Called on latents (..., D) it returns what a `modules.VectorQuantizer` does; the code indices are
    (..., depth).
    """

    def __init__(self, depth, *sizes, **kwargs):
        super().__init__(**kwargs | {"dtype": "float32"})
        self.quantizers = [MovingAverageQuantizer(*sizes, name=f"depth_{i}") for i in range(depth)]

    def build(self, input_shape):
        for quantizer in self.quantizers:
            quantizer.build(input_shape)

    def call(self, latents, training=False):
        missing, codes, losses = latents, [], []
        for quantizer in self.quantizers:
            _, chosen, loss = quantizer(missing, training=training)
            missing -= ops.stop_gradient(quantizer.lookup(chosen))
            codes.append(chosen)
            losses.append(loss)
        return latents - ops.stop_gradient(missing), ops.stack(codes, axis=-1), sum(losses) / len(losses)

    def nearest(self, latents):
        """Return the code indices (..., depth) int32 of latents (..., D)."""
        codes = []
        for quantizer in self.quantizers:
            codes.append(quantizer.nearest(latents))
            latents -= quantizer.lookup(codes[-1])
        return ops.stack(codes, axis=-1)

    def lookup(self, codes):
        """Return the sums (..., D) of the codebook vectors of code indices (..., depth)."""
        return sum(quantizer.lookup(codes[..., i]) for i, quantizer in enumerate(self.quantizers))


class HeadVQVAE(keras.Model):
    """An encoder and a decoder of slabs, and a ResidualQuantizer; described by a HeadVQVAEConfig.

    Called on heads (N, 32, 128, 128, 1) float32 in [-0.5, 0.5], the lowest slice first, it returns their
    reconstructions (same shape, not clipped), their code indices (N, 8, 16, 16, depth) int32 and the quantizer's loss.
    """

    def __init__(self, config):
        super().__init__(name="vqvae")
        self.config, seen = config, config.slab + 2 * config.margin
        blocks = (Residual(config.bottleneck, name=f"residual_{i}") for i in range(config.residual_blocks))
        self.encoder = build_encoder(config, blocks, channels=seen)
        sizes = config.num_embeddings, config.latent_dim, config.commitment_cost, config.codebook_decay
        self.quantizer = ResidualQuantizer(config.depth, *sizes, name="quantizer")
        self.quantizer.build(self.encoder.output_shape)
        self.decoder = build_decoder(config, inputs=3 * config.latent_dim, outputs=seen)
        self.slabs = config.levels // config.slab
        self.cells = (self.slabs, *self.encoder.output_shape[1:-1])
        self.grid = (*self.cells, config.depth)  # of the codes of a head
        self.built = True

    def call(self, heads, training=False):
        quantized, codes, loss = self.quantizer(self.latents(heads, training=training), training=training)
        return self.paint(quantized), codes, loss

    def latents(self, heads, training=False):
        """Return the latents (N, 8, 16, 16, D) float32 of heads (N, 32, 128, 128, 1)."""
        slab, margin = self.config.slab, self.config.margin
        index = slab * np.arange(self.slabs)[:, None] + np.arange(-margin, slab + margin)
        slabs = ops.take(heads[..., 0], index.clip(0, self.config.levels - 1), axis=1)  # (N, 8, seen, 128, 128)
        slabs = ops.transpose(slabs, (0, 1, 3, 4, 2))
        latents = self.encoder(ops.reshape(slabs, (-1, *slabs.shape[2:])), training=training)
        return ops.cast(ops.reshape(latents, (-1, *self.cells, latents.shape[-1])), "float32")

    def paint(self, quantized):
        """Decode sums of codebook vectors (N, 8, 16, 16, D) to heads (N, 32, 128, 128, 1) float32, not clipped.

        A slab is painted from its own cells and those of the slabs below and above. Neighbouring slabs overlap, where
        the mean of both counts, so that no seam is seen.
        """
        near = with_neighbours(quantized)
        painted = self.decoder(ops.reshape(near, (-1, *near.shape[2:])))
        painted = ops.reshape(ops.cast(painted, "float32"), (-1, self.slabs, *painted.shape[1:]))
        margin = self.config.margin
        lowest, own, highest = ops.split(painted, (margin, painted.shape[-1] - margin), axis=-1)
        first, middle, last = ops.split(own, (margin, own.shape[-1] - margin), axis=-1)
        first = (first + ops.concatenate([first[:, :1], highest[:, :-1]], axis=1)) / 2
        last = (last + ops.concatenate([lowest[:, 1:], last[:, -1:]], axis=1)) / 2
        slabs = ops.transpose(ops.concatenate([first, middle, last], axis=-1), (0, 1, 4, 2, 3))
        return ops.reshape(slabs, (-1, self.config.levels, *slabs.shape[3:], 1))

    def encode(self, heads):
        """Return the code indices (N, 8, 16, 16, depth) int32 of heads (N, 32, 128, 128, 1), in portions."""
        return _in_portions(self._encode, heads)

    def codes_of(self, latents):
        """Return the code indices (N, 8, 16, 16, depth) int32 of latents (N, 8, 16, 16, D), in portions."""
        return _in_portions(self.quantizer.nearest, latents)

    def decode(self, codes):
        """Return the heads (N, 32, 128, 128, 1) float32 in [-0.5, 0.5] of code indices, in portions."""
        return _in_portions(self._decode, codes)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, None, 1), "float32")])
    def _encode(self, heads):
        heads = tf.ensure_shape(heads, (None, self.config.levels, self.config.size, self.config.size, 1))
        return self.quantizer.nearest(self.latents(heads))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, None, None), "int32")])
    def _decode(self, codes):
        codes = tf.ensure_shape(codes, (None, *self.grid))
        return ops.clip(self.paint(self.quantizer.lookup(codes)), -0.5, 0.5)


def _in_portions(function, array):
    starts = range(0, max(1, len(array)), PORTION)  # an empty array is one empty portion
    return np.concatenate([np.asarray(function(array[i : i + PORTION])) for i in starts])
