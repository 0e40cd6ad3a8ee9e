"""The networks: a VQ-VAE that turns slices into codes and back, a PixelCNN that learns the codes, and SSIM.

A slice (128, 128, 1) goes through the encoder to an (8, 8, 16) grid of latent vectors; the vector quantizer replaces
each by the nearest of 128 codebook vectors, so the slice is now an (8, 8) grid of integers, its code indices; the
decoder turns the grid back into a slice. The PixelCNN is the prior over such grids: it gives the probability of every
code from the codes before it in raster order (row by row), so that new grids can be drawn code by code and decoded.
The sharp preset has (16, 16) grids of 1,024 codes, a Discriminator that asks for texture, a GatedPixelCNN, and a
Critic that chooses among the samples of this.

    van den Oord et al. 2017, Neural Discrete Representation Learning, arXiv 1711.00937        (VQ-VAE)
    van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, 1606.05328  (PixelCNN, gated too)
    Esser et al. 2021, Taming Transformers, VQGAN, arXiv 2012.09841                            (discriminator)
    Azadi et al. 2019, Discriminator Rejection Sampling, arXiv 1810.06758                      (critic)
    Wang et al. 2004, Image Quality Assessment, IEEE Transactions on Image Processing 13(4)    (SSIM)

Every constructor argument of a network lands in the config.json beside its weights, so `load_vqvae`,
`load_models` and `load_critic` need no more than the folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from dataset import PRESETS, UsageError, UserError, load_image, reason, save_image

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"  # the training step and the scripts' compiled functions are TensorFlow's


@contextlib.contextmanager
def _silent_stderr():
    """Point file descriptor 2 at nothing: TensorFlow's C++ code greets there before any log level is read."""
    saved = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


with _silent_stderr():
    import keras
    import tensorflow as tf
    from keras import layers, ops

BATCH = 128  # images or grids at a time where a whole array goes through a network
REVIVE = 0.1  # of the usual number of latents: a codebook vector that stands for fewer is replaced


# --- the VQ-VAE -------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("vqvae")
class VectorQuantizer(layers.Layer):
    """Replaces each latent vector by the nearest codebook vector (arXiv 1711.00937, section 3).

    Called on latents (N, h, w, D) float it returns
    - quantized (N, h, w, D) float32, whose gradient goes straight through to the latents,
    - code indices (N, h, w) int32 in [0, num_embeddings),
    - the loss, a float32 scalar: codebook loss + commitment_cost x commitment loss (equation 3).

    With a `decay` the codebook is not learned by gradient: each of its vectors follows the mean of the latents that it
    stands for, averaged with that decay a training step (appendix A.1), and one that stands for too few becomes a
    latent vector of the batch (Zeghidour et al. 2021, SoundStream, arXiv 2107.03312).
    """

    def __init__(self, num_embeddings, embedding_dim, commitment_cost, decay=None, **kwargs):
        super().__init__(**kwargs | {"dtype": "float32"})  # distances of near ties want all 24 bits
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay

    def build(self, input_shape):
        if input_shape[-1] != self.embedding_dim:
            raise ValueError(f"latents have {input_shape[-1]} channels, the codebook {self.embedding_dim}")
        shape = (self.num_embeddings, self.embedding_dim)
        self.codebook = self.add_weight(
            shape=shape, initializer="uniform", trainable=self.decay is None, name="codebook"
        )
        if self.decay is not None:
            self.counts = self.add_weight(shape=shape[:1], initializer="zeros", trainable=False, name="counts")
            self.sums = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="sums")
            self.draws = keras.random.SeedGenerator(seed=0)

    def nearest(self, latents):
        """Indices (..., ) int32 of the codebook vectors nearest to latents (..., D) by squared distance."""
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for every code
        distances = ops.sum(self.codebook**2, axis=1) - 2 * ops.matmul(latents, ops.transpose(self.codebook))
        return ops.cast(ops.argmin(distances, axis=-1), "int32")

    def lookup(self, codes):
        """Codebook vectors (..., D) of code indices (...)."""
        return ops.take(self.codebook, codes, axis=0)

    def call(self, latents, training=False):
        codes = self.nearest(latents)
        quantized = self.lookup(codes)
        loss = self.commitment_cost * ops.mean((latents - ops.stop_gradient(quantized)) ** 2)
        if self.decay is None:
            loss = loss + ops.mean((ops.stop_gradient(latents) - quantized) ** 2)
        elif training:
            self._follow(ops.reshape(ops.stop_gradient(latents), (-1, self.embedding_dim)), ops.reshape(codes, (-1,)))
        return latents + ops.stop_gradient(quantized - latents), codes, loss

    def _follow(self, latents, codes):
        """Move the codebook towards latents (M, D) that have the nearest codes (M,)."""
        replicas = tf.distribute.get_replica_context()
        counts, sums = replicas.all_reduce(
            "sum",
            [
                ops.segment_sum(ops.ones_like(latents[:, 0]), codes, self.num_embeddings),
                ops.segment_sum(latents, codes, self.num_embeddings),
            ],
        )
        total = ops.sum(counts)
        usual = total / self.num_embeddings
        counts = self.decay * self.counts + (1 - self.decay) * counts
        sums = self.decay * self.sums + (1 - self.decay) * sums
        candidates = self._draw(latents, replicas, ops.cast(total, "int32"))
        dying = counts < REVIVE * usual
        counts = ops.where(dying, usual, counts)
        sums = ops.where(dying[:, None], usual * candidates, sums)
        self.counts.assign(counts)
        self.sums.assign(sums)
        self.codebook.assign(sums / counts[:, None])

    def _draw(self, latents, replicas, total):
        """A latent vector for each code (K, D), drawn from the `total` that the latents (M, D) of all replicas are."""
        drawn = keras.random.randint((self.num_embeddings,), 0, total, seed=self.draws)
        place, number = replicas.replica_id_in_sync_group, tf.distribute.get_strategy().num_replicas_in_sync
        sizes = replicas.all_reduce("sum", ops.one_hot(place, number, dtype="int32") * ops.shape(latents)[0])
        index = drawn - ops.sum(sizes * ops.cast(ops.arange(number) < place, "int32"))  # among this replica's own
        mine = (index >= 0) & (index < ops.shape(latents)[0])
        found = ops.take(latents, ops.where(mine, index, 0), axis=0)
        return replicas.all_reduce("sum", ops.where(mine[:, None], found, 0.0))

    def get_config(self):
        return super().get_config() | {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "commitment_cost": self.commitment_cost,
            "decay": self.decay,
        }


class _BiasedInFloat32:
    """A convolution of Keras, same padding unless told otherwise, but for the gradient of its bias.

    That is a sum over every position of a batch, and TensorFlow adds it up in the precision of the layer: in bfloat16
    it soon stops growing, and a decoder learns a grey background. A product with ones is accumulated in float32.
    """

    def __init__(self, filters, kernel_size, **kwargs):
        super().__init__(filters, kernel_size, **{"padding": "same"} | kwargs)

    def call(self, inputs):
        outputs = self.convolve(inputs)
        return self.activation(_add_bias(outputs, tf.convert_to_tensor(self.bias)) if self.use_bias else outputs)


@keras.saving.register_keras_serializable("vqvae")
class Conv2D(_BiasedInFloat32, layers.Conv2D):
    def convolve(self, inputs):
        return self.convolution_op(inputs, self.kernel)


@keras.saving.register_keras_serializable("vqvae")
class Conv2DTranspose(_BiasedInFloat32, layers.Conv2DTranspose):
    def convolve(self, inputs):
        return ops.conv_transpose(inputs, self.kernel, strides=self.strides, padding=self.padding)


@tf.custom_gradient
def _add_bias(inputs, bias):
    def gradient(upstream):
        positions = tf.reshape(upstream, (-1, upstream.shape[-1]))
        ones = tf.ones((1, tf.shape(positions)[0]), positions.dtype)
        return upstream, tf.matmul(ones, positions)[0]

    return inputs + bias, gradient


@keras.saving.register_keras_serializable("vqvae")
class Residual(layers.Layer):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, added to the input (N, h, w, filters) (arXiv 1711.00937, 4.1)."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.wide = Conv2D(filters, 3, activation="relu", name="wide")
        self.narrow = Conv2D(filters, 1, kernel_initializer="zeros", name="narrow")  # so that it starts as identity

    def build(self, input_shape):
        self.wide.build(input_shape)
        self.narrow.build(input_shape)

    def call(self, inputs):
        return inputs + self.narrow(self.wide(ops.relu(inputs)))

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


def build_encoder(size, filters, bottleneck, latent_dim, residual_blocks):
    """Slices (size, size, 1) to latents (h, h, latent_dim), h = size / 2**len(filters)."""
    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            *[Conv2D(channels, 3, strides=2, activation="relu") for channels in filters],
            Conv2D(bottleneck, 3, activation="relu"),
            *[Residual(bottleneck) for _ in range(residual_blocks)],
            Conv2D(latent_dim, 1),
        ],
        name="encoder",
    )


def build_decoder(size, filters, bottleneck, latent_dim, residual_blocks, fine_blocks):
    """Quantized latents (h, h, latent_dim) to slices (size, size, 1), through `filters` from coarse to fine."""
    grid = size // 2 ** len(filters)
    upward = []
    for channels in filters:
        upward += [Conv2DTranspose(channels, 3, strides=2, activation="relu")]
        upward += [Residual(channels) for _ in range(fine_blocks)]
    upward = upward[: len(upward) - fine_blocks]  # at full size they would cost more than all else
    return keras.Sequential(
        [
            keras.Input((grid, grid, latent_dim)),
            Conv2DTranspose(bottleneck, 3, activation="relu"),
            *[Residual(bottleneck) for _ in range(residual_blocks)],
            *upward,
            Conv2DTranspose(1, 3),
        ],
        name="decoder",
    )


@keras.saving.register_keras_serializable("vqvae")
class VQVAE(keras.Model):
    """Encoder, vector quantizer and decoder (arXiv 1711.00937).

    Called on images (N, size, size, 1) float32 in [-0.5, 0.5] it returns their reconstructions (same shape, not clipped
    to that range), their code indices (N, h, h) int32 and the quantizer's loss. `decode(encode(images))` gives the same
    reconstructions clipped, in batches.

    `filters` are the encoder's, from fine to coarse; the decoder mirrors them unless it has `decoder_filters`, from
    coarse to fine, of its own. Both have `residual_blocks` at the size of the codes, the decoder also `fine_blocks`
    at each later size but the last. `codebook_decay` is the quantizer's.
    """

    def __init__(
        self,
        *,
        size,
        filters,
        bottleneck,
        latent_dim,
        num_embeddings,
        commitment_cost,
        decoder_filters=None,
        residual_blocks=0,
        fine_blocks=0,
        codebook_decay=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = {
            "size": size,
            "filters": tuple(filters),
            "bottleneck": bottleneck,
            "latent_dim": latent_dim,
            "num_embeddings": num_embeddings,
            "commitment_cost": commitment_cost,
            "decoder_filters": tuple(decoder_filters or reversed(filters)),
            "residual_blocks": residual_blocks,
            "fine_blocks": fine_blocks,
            "codebook_decay": codebook_decay,
        }
        shape = {"bottleneck": bottleneck, "latent_dim": latent_dim, "residual_blocks": residual_blocks}
        self.encoder = build_encoder(size, self.config["filters"], **shape)
        self.quantizer = VectorQuantizer(num_embeddings, latent_dim, commitment_cost, codebook_decay, name="quantizer")
        self.quantizer.build(self.encoder.output_shape)
        self.decoder = build_decoder(size, self.config["decoder_filters"], fine_blocks=fine_blocks, **shape)
        self.built = True

    def call(self, images, training=False):
        quantized, codes, loss = self.quantizer(self.encoder(images, training=training), training=training)
        return self.paint(quantized), codes, loss

    def paint(self, quantized):
        """Images (N, size, size, 1) float32, not clipped, of codebook vectors (N, h, w, latent_dim)."""
        return ops.cast(self.decoder(quantized), "float32")

    def encode(self, images):
        """Code indices (N, h, w) int32 of images (N, size, size, 1)."""
        return in_batches(self._encode, images)

    def decode(self, codes):
        """Images (N, size, size, 1) float32, within [-0.5, 0.5], of code indices (N, h, w)."""
        return in_batches(self._decode, codes)

    # one graph for batches of any size
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1), "float32")])
    def _encode(self, images):
        images = tf.ensure_shape(images, self.encoder.input_shape)
        return self.quantizer.nearest(ops.cast(self.encoder(images), "float32"))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None), "int32")])
    def _decode(self, codes):
        codes = tf.ensure_shape(codes, self.encoder.output_shape[:-1])
        return ops.clip(self.paint(self.quantizer.lookup(codes)), -0.5, 0.5)

    def get_config(self):
        return super().get_config() | self.config


class Discriminator(keras.Model):
    """Tells real slices from decoded ones, patch by patch, at full and at half size (Wang et al. 2018, 1711.11585).

    Called on images (N, size, size, 1) float32 in [-0.5, 0.5] and a guide to each, of the same shape, it returns for
    each size the outputs of its layers, of which the last (N, h, w, 1) float32 are the logits: positive where a patch
    looks real. The guide is what a VQ-VAE without a discriminator makes of the image, so that texture must not only
    look real but belong there. Also given is the detail that a 3x3 mean takes from the image, enlarged to be seen from
    the first step on.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.scales = [
            [
                *[Conv2D(count, 4, strides=2) for count in filters],
                Conv2D(filters[-1], 3),
                Conv2D(1, 3, dtype="float32"),
            ]
            for _ in range(2)
        ]
        for scale in self.scales:
            for layer, channels in zip(scale, (3, *filters, filters[-1])):
                layer.build((None, None, None, channels))
        self.built = True

    def call(self, images, guide):
        results = []
        for scale in self.scales:
            x, outputs = ops.concatenate([2 * images, 16 * _detail(images), 2 * guide], axis=-1), []
            for layer in scale[:-1]:
                x = ops.leaky_relu(layer(x), 0.2)
                outputs.append(x)
            results.append([*outputs, scale[-1](x)])
            images, guide = ops.average_pool(images, 2), ops.average_pool(guide, 2)
        return results


def _detail(images):
    return images - ops.average_pool(images, 3, strides=1, padding="same")


class Critic(keras.Model):
    """Tells a prior's samples from real slices, both decoded, so that of several samples the most real can be kept.

    Called on images (N, size, size, 1) float32 in [-0.5, 0.5] it returns logits (N,) float32: at the optimum, the log
    density ratio of real slices to samples. Discriminators (Azadi et al. 2019, arXiv 1810.06758) and classifiers
    (Razavi et al. 2019, VQ-VAE-2, arXiv 1906.00446) have rejected samples before, but of real slices this sees what the
    VQ-VAE makes of them, and so looks for the prior's mistakes rather than the decoder's.
    """

    def __init__(self, *, filters, dropout, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)  # the convolutions follow the policy, the detail must not
        self.config = {"filters": tuple(filters), "dropout": dropout}
        self.features = [*[Conv2D(count, 4, strides=2) for count in filters], Conv2D(filters[-1], 3)]
        self.dropout = layers.Dropout(dropout, dtype="float32")
        self.head = layers.Dense(1, dtype="float32", name="head")
        for layer, channels in zip(self.features, (2, *filters)):
            layer.build((None, None, None, channels))
        self.head.build((None, filters[-1]))
        self.built = True

    def call(self, images, training=False):
        x = ops.concatenate([2 * images, 16 * _detail(images)], axis=-1)
        for layer in self.features:
            x = ops.leaky_relu(layer(x), 0.2)
        x = ops.mean(ops.cast(x, "float32"), axis=(1, 2))
        return self.head(self.dropout(x, training=training))[:, 0]


def in_batches(function, array, progress=iter):
    """NumPy array of `function` applied to `array` in batches along its first axis."""
    starts = range(0, max(1, len(array)), BATCH)  # an empty array is a batch too, and gives an empty result
    return np.concatenate([np.asarray(function(array[i : i + BATCH])) for i in progress(starts)])


def code_usage(counts):
    """Share of codes in use and perplexity, from the number of times that each code occurred (K,).

    Perplexity is the exponential of the entropy of the codes: K where all are equally frequent, 1 where one rules.
    """
    share = np.asarray(counts, np.float64) / np.sum(counts)
    used = share[share > 0]
    return len(used) / len(share), float(np.exp(-np.sum(used * np.log(used))))


# --- the PixelCNN -----------------------------------------------------------------------------------------------------


def causal_mask(kernel_size, mask_type):
    """Mask (k, k, 1, 1) float32 of a kernel that must not look ahead in raster order (arXiv 1606.05328).

    Rows above the centre and positions left of it are 1; the centre itself is 0 in type "A" (the first layer, which
    must not see the code that it predicts) and 1 in type "B" (later layers, where the centre holds no such code).
    Raises ValueError for another type.
    """
    if mask_type not in ("A", "B"):
        raise ValueError(f"mask_type must be 'A' or 'B', not {mask_type!r}")
    centre = kernel_size // 2
    mask = np.zeros((kernel_size, kernel_size, 1, 1), np.float32)
    mask[:centre] = 1
    mask[centre, : centre + (mask_type == "B")] = 1
    return mask


@keras.saving.register_keras_serializable("vqvae")
class MaskedConv2D(Conv2D):
    """A convolution, same padding and ReLU, that sees no later position; see `causal_mask`."""

    def __init__(self, filters, kernel_size, mask_type, **kwargs):
        super().__init__(filters, kernel_size, **{"activation": "relu"} | kwargs)
        self.mask_type = mask_type
        self.mask = causal_mask(self.kernel_size[0], mask_type)

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * ops.cast(self.mask, kernel.dtype))

    def get_config(self):
        return super().get_config() | {"mask_type": self.mask_type}


@keras.saving.register_keras_serializable("vqvae")
class CodeConv2D(layers.Layer):
    """A masked convolution of one-hot codes, same padding and ReLU, called on code indices (N, h, w) int32 themselves.

    A one-hot input picks a row of the kernel at each tap, so the result (N, h, w, filters) is a sum of looked-up rows:
    nothing is multiplied. The kernel is that of the convolution, its masked part included.
    """

    def __init__(self, num_embeddings, filters, kernel_size, mask_type, **kwargs):
        super().__init__(**kwargs)
        self.num_embeddings = num_embeddings
        self.filters = filters
        self.kernel_size = kernel_size
        self.mask_type = mask_type
        self.mask = causal_mask(kernel_size, mask_type)

    def build(self, input_shape):
        shape = (self.kernel_size, self.kernel_size, self.num_embeddings, self.filters)
        self.kernel = self.add_weight(shape=shape, initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, codes):
        size, taps = self.kernel_size, int(self.mask.sum())  # the unmasked taps come first in raster order
        height, width = codes.shape[1:]
        padded = tf.pad(codes, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)), constant_values=-1)
        places = [divmod(tap, size) for tap in range(taps)]
        seen = tf.stack([padded[:, row : row + height, column : column + width] for row, column in places], axis=-1)
        seen = tf.reshape(seen, (-1, taps))  # (N h w, taps): the code under each tap, -1 outside of the grid
        inside = tf.where(seen >= 0)
        rows = tf.gather_nd(seen + np.arange(taps, dtype=np.int32) * self.num_embeddings, inside)
        table = tf.reshape(self.kernel, (size * size, self.num_embeddings, self.filters))[:taps]
        table = tf.reshape(table, (taps * self.num_embeddings, self.filters))
        sums = tf.sparse.segment_sum(table, rows, inside[:, 0], num_segments=tf.shape(seen)[0])
        return ops.relu(tf.reshape(sums, (-1, height, width, self.filters)) + self.bias)

    def get_config(self):
        return super().get_config() | {
            "num_embeddings": self.num_embeddings,
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "mask_type": self.mask_type,
        }


@keras.saving.register_keras_serializable("vqvae")
class ResidualBlock(layers.Layer):
    """1x1 convolution, masked 3x3 type B to half the filters, 1x1 back, added to the input (N, h, w, filters)."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.reduce = Conv2D(filters, 1, activation="relu", name="reduce")
        self.masked = MaskedConv2D(filters // 2, 3, mask_type="B", name="masked")
        self.expand = Conv2D(filters, 1, activation="relu", name="expand")

    def build(self, input_shape):
        self.reduce.build(input_shape)
        self.masked.build((*input_shape[:-1], self.filters))
        self.expand.build((*input_shape[:-1], self.filters // 2))

    def call(self, inputs):
        return inputs + self.expand(self.masked(self.reduce(inputs)))

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


@keras.saving.register_keras_serializable("vqvae")
class PixelCNN(keras.Model):
    """The prior over grids of codes (arXiv 1606.05328, without gates).

    Called on code indices (N, h, w) int32 it returns logits (N, h, w, num_embeddings) float32; those at a code depend
    on the codes before it in raster order alone.
    """

    levels = None  # it does not know of any

    def __init__(self, *, grid, num_embeddings, filters, residual_blocks, masked_layers, **kwargs):
        super().__init__(**kwargs)
        self.grid = tuple(grid)
        self.num_embeddings = num_embeddings
        self.config = {
            "grid": self.grid,
            "num_embeddings": num_embeddings,
            "filters": filters,
            "residual_blocks": residual_blocks,
            "masked_layers": masked_layers,
        }
        self.first = CodeConv2D(num_embeddings, filters, 7, mask_type="A", dtype="float32", name="first")
        self.blocks = [ResidualBlock(filters, name=f"block_{i}") for i in range(residual_blocks)]
        self.masked = [MaskedConv2D(filters, 1, mask_type="B", name=f"masked_{i}") for i in range(masked_layers)]
        self.head = Conv2D(num_embeddings, 1, dtype="float32", name="head")
        self.first.build((None, *self.grid))
        for layer in [*self.blocks, *self.masked, self.head]:
            layer.build((None, *self.grid, filters))
        self.built = True

    def call(self, codes, levels=None, training=False):
        x = self.first(codes)
        for layer in [*self.blocks, *self.masked]:
            x = layer(x)
        return self.head(x)

    def get_config(self):
        return super().get_config() | self.config


@keras.saving.register_keras_serializable("vqvae")
class GatedLayer(layers.Layer):
    """A layer of the gated PixelCNN (arXiv 1606.05328, figure 2), without a blind spot.

    Called on the vertical stack (N, h, w, C), the horizontal one (N, h, w, C) and a condition (N, h, w, E) it returns
    both stacks (N, h, w, filters). The vertical one at a position depends on all rows down to its own, the horizontal
    one on the rows above, through the vertical, and on the positions left of it; on its own too, unless the layer is
    the `first`.
    """

    def __init__(self, filters, kernel_size, first, dropout, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.first, self.rate = filters, kernel_size, first, dropout
        self.margin = kernel_size // 2
        self.vertical = Conv2D(2 * filters, (self.margin + 1, kernel_size), padding="valid", name="vertical")
        self.horizontal = Conv2D(2 * filters, (1, self.margin + (not first)), padding="valid", name="horizontal")
        self.link = Conv2D(2 * filters, 1, name="link")
        self.condition = Conv2D(4 * filters, 1, use_bias=False, name="condition")
        self.output_ = Conv2D(filters, 1, name="output")
        self.dropout = layers.Dropout(dropout)

    def build(self, vertical_shape, horizontal_shape, condition_shape):
        stack, padded = vertical_shape, (None, None, None, vertical_shape[-1])
        self.vertical.build(padded)
        self.horizontal.build(padded)
        self.link.build((*stack[:-1], 2 * self.filters))
        self.condition.build(condition_shape)
        self.output_.build((*stack[:-1], self.filters))

    def call(self, vertical, horizontal, condition, training=False):
        margin = self.margin
        to_vertical, to_horizontal = ops.split(self.condition(condition), 2, axis=-1)
        down = self.vertical(ops.pad(vertical, ((0, 0), (margin, 0), (margin, margin), (0, 0))))
        above = ops.pad(down, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
        left = ops.pad(horizontal, ((0, 0), (0, 0), (margin, 0), (0, 0)))
        across = self.horizontal(left[:, :, :-1] if self.first else left) + self.link(above)
        update = self.output_(self.dropout(_gate(across + to_horizontal), training=training))
        return _gate(down + to_vertical), update if self.first else horizontal + update

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "first": self.first,
            "dropout": self.rate,
        }


def _gate(x):
    signal, gate = ops.split(x, 2, axis=-1)
    return ops.tanh(signal) * ops.sigmoid(gate)


@keras.saving.register_keras_serializable("vqvae")
class GatedPixelCNN(keras.Model):
    """The prior over larger grids of codes: two gated stacks that know where they are (arXiv 1606.05328).

    Called on code indices (N, h, w) int32 and slice levels (N,) int32 below `levels` it returns logits (N, h, w,
    num_embeddings) float32; those at a code depend on the level and on the codes before it in raster order alone, and
    on all of these that its layers reach.
    """

    def __init__(self, *, grid, num_embeddings, levels, filters, gated_layers, kernel_size, dropout, **kwargs):
        super().__init__(**kwargs)
        self.grid, self.num_embeddings, self.levels = tuple(grid), num_embeddings, levels
        self.config = {
            "grid": self.grid,
            "num_embeddings": num_embeddings,
            "levels": levels,
            "filters": filters,
            "gated_layers": gated_layers,
            "kernel_size": kernel_size,
            "dropout": dropout,
        }
        self.embedding = layers.Embedding(num_embeddings, filters, name="embedding")
        # in float32, for their gradients are sums over positions or grids
        self.level = layers.Embedding(levels, filters, dtype="float32", name="level")
        self.place = layers.Embedding(self.grid[0] * self.grid[1], filters, dtype="float32", name="place")
        self.gated = [
            GatedLayer(filters, 7 if i == 0 else kernel_size, first=i == 0, dropout=dropout, name=f"gated_{i}")
            for i in range(gated_layers)
        ]
        self.dropout = layers.Dropout(dropout)
        self.wide = Conv2D(filters, 1, activation="relu", name="wide")
        self.head = Conv2D(num_embeddings, 1, dtype="float32", name="head")
        shape = (None, *self.grid, filters)
        for layer in (self.embedding, self.level, self.place):
            layer.build(None)
        for layer in self.gated:
            layer.build(shape, shape, shape)
        self.wide.build(shape)
        self.head.build(shape)
        self.built = True

    def call(self, codes, levels, training=False):
        vertical = horizontal = self.embedding(codes)
        places = ops.reshape(self.place(np.arange(np.prod(self.grid))), (1, *self.grid, -1))
        condition = places + self.level(levels)[:, None, None]
        for layer in self.gated:
            vertical, horizontal = layer(vertical, horizontal, condition, training=training)
        return self.head(self.wide(self.dropout(ops.relu(horizontal), training=training)))

    def get_config(self):
        return super().get_config() | self.config


def build_prior(**network):
    """The prior with these constructor arguments: a GatedPixelCNN where they tell of gated layers, else a PixelCNN."""
    return (GatedPixelCNN if "gated_layers" in network else PixelCNN)(**network)


def cross_entropy(codes, logits):
    """Nats (...) float32 that codes (...) int cost under logits (..., K); divide by log 2 for bits."""
    return keras.losses.sparse_categorical_crossentropy(codes, logits, from_logits=True)


def categorical(logits, temperature=1.0):
    """The prior's distribution at each code, from logits (..., K): a `tfp.distributions.Categorical`."""
    import tensorflow_probability as tfp  # takes seconds, so only what asks for the distribution pays

    return tfp.distributions.Categorical(logits=logits / temperature)


def sample(pixelcnn, num, seed, temperature=1.0, levels=None, progress=iter):
    """Draw code indices (num, h, w) int32 from the prior.

    Ancestral sampling: in raster order, each code from the distribution given those before it. Temperature divides
    the logits: below 1 the likely becomes likelier. The same seed draws the same codes, and the first of many are
    those of few, where their levels are the same. `levels` (num,) int are the slice levels, for a prior that knows such
    (default: spread evenly over all). `progress` wraps the iteration over batches, as tqdm does.
    """
    uniforms = _uniforms(pixelcnn, num, seed)
    levels = spread_levels(pixelcnn, num) if levels is None else np.asarray(levels, np.int32)
    return in_batches(
        lambda some: _sample(pixelcnn, uniforms[some], levels[some], temperature), np.arange(num), progress
    )


def sample_best(vqvae, pixelcnn, critic, candidates, num, seed, temperature=1.0, levels=None, progress=iter):
    """Draw code indices (num, h, w) int32: of `candidates` from `sample` for each slice, the critic's most real.

    Without a critic (None) it is `sample`, whose arguments the others are, and whose promises hold here too.
    """
    if critic is None:
        return sample(pixelcnn, num, seed, temperature, levels, progress)
    levels = spread_levels(pixelcnn, num) if levels is None else np.asarray(levels, np.int32)
    drawn = sample(pixelcnn, num * candidates, seed, temperature, np.repeat(levels, candidates), progress)
    logits = in_batches(lambda codes: critic(vqvae.decode(codes)), drawn).reshape(num, candidates)
    return drawn.reshape(num, candidates, *pixelcnn.grid)[np.arange(num), logits.argmax(axis=1)]


def spread_levels(pixelcnn, num):
    """Slice levels (num,) int32 spread evenly over those that a prior knows; zeros where it knows none."""
    return ((np.arange(num) + 0.5) * (pixelcnn.levels or 0) / num).astype(np.int32)


def _uniforms(pixelcnn, num, seed):
    return np.random.default_rng(seed).random((num, *pixelcnn.grid), np.float32)


def _sample(pixelcnn, uniforms, levels, temperature):
    """Codes for uniform numbers (N, h, w) in [0, 1), computing at each step the new position's activations alone.

    What an activation adds to those of later positions is kept (Ramachandran et al. 2017, Fast Generation for
    Convolutional Autoregressive Models, arXiv 1704.06001). In NumPy: at one position of a few grids, calling TensorFlow
    would cost more than the arithmetic.
    """
    codes = np.empty(uniforms.shape, np.int32)
    cache = (_GatedCache if isinstance(pixelcnn, GatedPixelCNN) else _PlainCache)(pixelcnn, uniforms.shape, levels)
    for row, column in np.ndindex(pixelcnn.grid):
        logits = cache.logits(row, column)
        codes[:, row, column] = _invert(logits, temperature, uniforms[:, row, column])
        cache.add(codes[:, row, column], row, column)
    return codes


class _PlainCache:
    """What a PixelCNN remembers of the codes of N grids (N, h, w) so far."""

    def __init__(self, pixelcnn, grid, levels):
        self.first = _Ahead(pixelcnn.first, grid)
        self.blocks = [
            (block.reduce.get_weights(), _Ahead(block.masked, grid), block.expand.get_weights())
            for block in pixelcnn.blocks
        ]
        self.masked = [layer.get_weights() for layer in pixelcnn.masked]
        self.head = pixelcnn.head.get_weights()

    def logits(self, row, column):
        x = _relu(self.first.at(row, column))
        for reduce, ahead, expand in self.blocks:
            ahead.add(_relu(_dense(x, reduce)) @ ahead.kernels, row, column)
            x = x + _relu(_dense(_relu(ahead.at(row, column)), expand))
        for layer in self.masked:
            x = _relu(_dense(x, layer))
        return _dense(x, self.head)

    def add(self, codes, row, column):
        self.first.add(self.first.kernels[:, codes], row, column)  # a one-hot input picks rows of the kernel


class _GatedCache:
    """What a GatedPixelCNN remembers of the codes of N grids (N, h, w) so far."""

    def __init__(self, pixelcnn, grid, levels):
        self.grid = grid
        self.embedding, self.wide, self.head = (
            pixelcnn.embedding.get_weights()[0],
            pixelcnn.wide.get_weights(),
            pixelcnn.head.get_weights(),
        )
        level = pixelcnn.level.get_weights()[0][levels]
        places = pixelcnn.place.get_weights()[0].reshape(*grid[1:], -1)
        self.layers = [_GatedLayerCache(layer, grid, level, places) for layer in pixelcnn.gated]

    def logits(self, row, column):
        x = None
        for layer in self.layers:
            x = layer.across(x, row, column)
        return _dense(_relu(_dense(_relu(x), self.wide)), self.head)

    def add(self, codes, row, column):
        x = self.embedding[codes]
        first = self.layers[0]
        first.left[:, column + first.margin] = x
        first.above[:, row + first.margin, column + first.margin] = x
        if column == self.grid[2] - 1:  # the row is whole, so the vertical stack can see it
            for layer, below in zip(self.layers, [*self.layers[1:], None]):
                result = layer.down(row)
                if below:
                    below.above[:, row + below.margin, below.margin : below.margin + self.grid[2]] = result


class _GatedLayerCache:
    """The inputs of a GatedLayer so far: of the rows `above` (N, rows, columns, C), and of this row the `left`."""

    def __init__(self, layer, grid, level, places):
        number, height, width = grid
        self.first, self.margin = layer.first, layer.margin
        self.vertical, self.horizontal, self.link, self.output = (
            part.get_weights() for part in (layer.vertical, layer.horizontal, layer.link, layer.output_)
        )
        condition = layer.condition.get_weights()[0][0, 0]
        # to the vertical and to the horizontal stack
        self.level, self.places = np.split(level @ condition, 2, axis=-1), np.split(places @ condition, 2, axis=-1)
        inputs = len(condition)
        self.above = np.zeros((number, height + self.margin, width + 2 * self.margin, inputs), np.float32)
        self.left = np.zeros((number, width + self.margin, inputs), np.float32)
        self.linked = np.broadcast_to(self.link[1], (number, width, len(self.link[1])))  # of the row above

    def across(self, x, row, column):
        """Output (N, C) of the horizontal stack at a position, from that of the layer before."""
        if not self.first:
            self.left[:, column + self.margin] = x
        kernel, bias = self.horizontal
        seen = self.left[:, column : column + kernel.shape[1]]
        total = seen.reshape(len(seen), -1) @ kernel.reshape(-1, kernel.shape[-1]) + bias
        total += self.linked[:, column] + self.level[1] + self.places[1][row, column]
        update = _dense(_gate_numpy(total), self.output)
        return update if self.first else x + update

    def down(self, row):
        """Output (N, w, C) of the vertical stack for a whole row."""
        kernel, bias = self.vertical
        rows = self.above[:, row : row + kernel.shape[0]]
        width = rows.shape[2] - 2 * self.margin
        total = np.broadcast_to(bias, (len(rows) * width, len(bias))).copy()
        for column in range(kernel.shape[1]):
            seen = np.moveaxis(rows[:, :, column : column + width], 1, 2).reshape(len(total), -1)
            total += seen @ kernel[:, column].reshape(-1, kernel.shape[-1])
        self.linked = _dense(total, self.link).reshape(len(rows), width, -1)
        total = total.reshape(len(rows), width, -1)
        return _gate_numpy(total + self.level[0][:, None] + self.places[0][row])


def _gate_numpy(x):
    signal, gate = np.split(x, 2, axis=-1)
    return np.tanh(signal) / (1 + np.exp(-np.maximum(gate, -80)))


def _dense(x, weights):
    kernel, bias = weights  # of a 1x1 convolution
    return x @ kernel[0, 0] + bias


class _Ahead:
    """The sums that a masked convolution has at positions (h, w) of N grids so far, from the inputs known so far."""

    def __init__(self, layer, grid):
        kernel, bias = layer.get_weights()
        number, height, width = grid
        taps = np.argwhere(layer.mask[..., 0, 0])
        self.margin = len(kernel) // 2
        self.kernels = np.stack([kernel[i, j] for i, j in taps])  # (taps, inputs, outputs)
        self.offsets = self.margin - taps  # from an input to the output that sees it through the tap
        shape = (height + self.margin, width + 2 * self.margin, number, len(bias))
        self.sums = np.broadcast_to(bias, shape).copy()

    def add(self, contributions, row, column):
        """Add contributions (taps, N, outputs) of the inputs at a position to the outputs that see it."""
        for (down, right), contribution in zip(self.offsets, contributions):
            self.sums[row + down, column + right + self.margin] += contribution

    def at(self, row, column):
        return self.sums[row, column + self.margin]


def _relu(x):
    return np.maximum(x, 0)


def _invert(logits, temperature, uniforms):
    """Code indices (N,): where the cumulative distribution of logits (N, K) passes the uniform numbers (N,)."""
    with np.errstate(over="ignore"):  # at a temperature near 0 all but the likeliest become minus infinity
        weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) / max(temperature, np.finfo(np.float32).tiny))
    cumulative = np.cumsum(weights, axis=-1)
    # the last code takes what rounding leaves between the cumulative sum and 1
    return np.sum(cumulative[:, :-1] <= uniforms[:, None] * cumulative[:, -1:], axis=-1)


def sample_plain(pixelcnn, num, seed, temperature=1.0, levels=None):
    """What `sample` must equal: one whole forward pass per code, its distribution from TensorFlow Probability."""
    uniforms = _uniforms(pixelcnn, num, seed)
    levels = spread_levels(pixelcnn, num) if levels is None else np.asarray(levels, np.int32)
    codes = np.zeros(uniforms.shape, np.int32)
    for row, column in np.ndindex(pixelcnn.grid):
        prior = categorical(pixelcnn(codes, levels)[:, row, column], temperature)
        cumulative = np.cumsum(prior.probs_parameter(), axis=-1)[:, :-1]
        codes[:, row, column] = np.sum(cumulative <= uniforms[:, row, column, None], axis=-1)
    return codes


# --- likeness of images -----------------------------------------------------------------------------------------------


def ssim(images, others):
    """Structural similarity (N,) float32, at most 1, of images (N, H, W, 1) in [-0.5, 0.5] to others.

    Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03. The images are shifted to [0, 1] first,
    data range 1: the luminance term compares means, which are meaningless around 0.
    """
    both = np.concatenate([images, others], axis=-1)
    return in_batches(lambda pair: _ssim(tf.constant(pair[..., :1]), tf.constant(pair[..., 1:])), both)


def ssim_tensor(images, others):
    """What `ssim` returns, as a tensor that has gradients."""
    return tf.image.ssim(_to_unit(images), _to_unit(others), max_val=1.0)


_ssim = tf.function(ssim_tensor, reduce_retracing=True)


def _to_unit(images):
    return tf.clip_by_value(images + 0.5, 0.0, 1.0)


def psnr(images, others):
    """Peak signal-to-noise ratio (N,) in dB, for a data range of 1, of images (N, H, W, 1) to others.

    Equal images get 100 dB in place of infinity, so that means and files can hold it.
    """
    return -10 * np.log10(np.maximum(np.mean((images - others) ** 2, axis=(1, 2, 3)), 1e-10))


# --- sets of weights --------------------------------------------------------------------------------------------------

CONFIG, VQVAE_WEIGHTS, PIXELCNN_WEIGHTS, CRITIC_WEIGHTS, MEAN_IMAGE = SET = (
    "config.json",
    "vqvae.weights.h5",
    "pixelcnn.weights.h5",
    "critic.weights.h5",  # where the preset has a critic
    "mean_image.png",
)


def is_set(folder):
    """Whether a folder holds a set of weights."""
    return (_current(folder) / CONFIG).is_file()


def load_config(folder):
    """config.json of the set in `folder`; raises UserError where there is none or it is broken."""
    path = _current(folder) / CONFIG
    if not is_set(folder):
        preset = f" --preset {Path(folder).name}" if Path(folder).name in PRESETS[1:] else ""
        raise UserError(
            f"{folder}: no trained weights here (no {CONFIG}); name another --models, or run train.py{preset}"
        )
    try:
        config = json.loads(path.read_text())
        config["vqvae"]["network"], config["pixelcnn"]["network"], config["data"]["held_out_cases"]
        if "critic" in config:
            config["critic"]["network"], config["critic"]["candidates"]
        return config
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the configuration of a set of weights; restore it or run train.py") from error


def load_vqvae(folder):
    """The VQVAE of the set in `folder`; raises UserError where its files are missing, broken or of another training."""
    return _load(VQVAE, _current(folder) / VQVAE_WEIGHTS, load_config(folder)["vqvae"])


def load_models(folder):
    """The VQVAE and the PixelCNN of the set in `folder`.

    Raises UserError where files are missing, broken or of another training, or the PixelCNN was trained on the codes
    of another VQ-VAE.
    """
    config = load_config(folder)
    if config["pixelcnn"].get("trained_on") != config["vqvae"].get("sha256"):
        raise UserError(f"{folder}: its PixelCNN was trained on the codes of another VQ-VAE; run train.py")
    current = _current(folder)
    vqvae = _load(VQVAE, current / VQVAE_WEIGHTS, config["vqvae"])
    return vqvae, _load(build_prior, current / PIXELCNN_WEIGHTS, config["pixelcnn"])


def load_critic(folder, candidates=None):
    """The Critic of the set in `folder` and the number of candidates that it chooses from; None and 1 without one.

    The number is `candidates`, or where that is None the set's. Raises UserError where the critic's file is missing,
    broken or of another training, or it learned from another prior, UsageError where there is nothing to choose by.
    """
    config = load_config(folder)
    if candidates == 1 or (candidates is None and "critic" not in config):
        return None, 1
    if "critic" not in config:
        raise UsageError(f"--candidates: the models in {folder} have no critic to choose; try --preset sharp")
    remedy = "restore the set, or go without the critic: --candidates 1"
    if config["critic"].get("trained_on") != config["pixelcnn"].get("sha256"):
        raise UserError(f"{folder}: its critic learned from another PixelCNN; {remedy}")
    critic = _load(Critic, _current(folder) / CRITIC_WEIGHTS, config["critic"], remedy)
    return critic, candidates or config["critic"]["candidates"]


def load_mean_image(folder):
    """The mean of the training images (128, 128, 1) float32 of the set in `folder`; UserError where it is missing."""
    path = _current(folder) / MEAN_IMAGE
    if not path.is_file():
        raise UserError(f"{path}: missing; restore it or run train.py")
    return load_image(path)


def load_temperature(folder):
    """The temperature of sampling that was found best for the set in `folder`."""
    return load_config(folder)["pixelcnn"].get("temperature", 1.0)


def _load(build, path, config, remedy="restore it or run train.py"):
    if not path.is_file():
        raise UserError(f"{path}: missing; {remedy}")
    try:
        model = build(**config["network"])
        model.load_weights(path)
    except OSError as error:
        raise UserError(f"{path}: truncated or no weights file; {remedy}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: does not fit the network in {CONFIG}; {remedy}") from error
    if _sha256(path) != config.get("sha256"):
        raise UserError(f"{path}: not the weights that {CONFIG} describes but of another training; {remedy}")
    return model


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_models(folder, vqvae, pixelcnn, config, mean_image, critic=None):
    """Write a set of weights beside `folder`, then swap it in whole.

    `config` has {"network": constructor arguments, ...} under "vqvae" and "pixelcnn", and "critic" where there is one;
    the digests of the weights are added. `mean_image` (size, size, 1) is the mean of the training images. Raises
    UserError where it cannot be written.
    """
    staging = make_staging(folder)
    try:
        vqvae.save_weights(staging / VQVAE_WEIGHTS)
        pixelcnn.save_weights(staging / PIXELCNN_WEIGHTS)
        config["vqvae"]["sha256"] = config["pixelcnn"]["trained_on"] = _sha256(staging / VQVAE_WEIGHTS)
        config["pixelcnn"]["sha256"] = _sha256(staging / PIXELCNN_WEIGHTS)
        if critic:
            critic.save_weights(staging / CRITIC_WEIGHTS)
            config["critic"]["trained_on"] = config["pixelcnn"]["sha256"]
            config["critic"]["sha256"] = _sha256(staging / CRITIC_WEIGHTS)
        save_image(staging / MEAN_IMAGE, mean_image)
        (staging / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        _swap(staging, Path(folder).resolve())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)}); free some space and run again") from error


def make_staging(folder):
    """An empty folder beside `folder` to write a new set to; UserError where it could not be swapped in later."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; name a folder with --models")
    strangers = sorted({path.name for path in folder.iterdir()} - {*SET, ".DS_Store"}) if folder.exists() else []
    if strangers:
        raise UserError(f"{folder}: is replaced whole, but holds other files ({strangers[0]}); name another --models")
    staging = _beside(folder, "tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{staging}: cannot be written ({reason(error)}); name another folder with --models") from error
    return staging


def checkpoint_folder(folder):
    """Where a training that will write the set in `folder` keeps its checkpoints."""
    return Path(os.path.abspath(folder) + ".checkpoint")


def _beside(folder, ending):
    """A hidden path beside a folder, or beside what a link of that name leads to."""
    folder = Path(folder).resolve()
    return folder.with_name(f".{folder.name}.{ending}")


def _current(folder):
    """Where the set of `folder` is: beside it, whole, if a swap was cut between its two renames."""
    new = _beside(folder, "new")
    return new if new.is_dir() and not Path(folder).exists() else Path(folder)


def _swap(staging, folder):
    new, old = _beside(folder, "new"), _beside(folder, "old")
    if _current(folder) == new:  # an earlier swap was cut
        new.rename(folder)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    staging.rename(new)  # from here on `new` is whole
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
