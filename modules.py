"""The networks: a VQ-VAE that turns slices into codes and back, a PixelCNN that learns the codes, and SSIM.

A slice (128, 128, 1) goes through the encoder to an (8, 8, 16) grid of latent vectors. The vector quantizer replaces
each latent vector by the nearest of 128 codebook vectors, so the slice is now an (8, 8) grid of integers, its code
indices. The decoder turns the grid back into a slice. The PixelCNN is the prior over such grids: it predicts every code
from the codes before it in raster order (row by row). New grids are drawn from it code by code and then decoded.

    van den Oord et al. 2017, Neural Discrete Representation Learning, arXiv 1711.00937        (VQ-VAE)
    van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, 1606.05328  (PixelCNN)
    Wang et al. 2004, Image Quality Assessment, IEEE Transactions on Image Processing 13(4)    (SSIM)

These are the faithful networks, whose sizes are in brains/config.py. The larger ones of the sharp preset are in
brains/sharp.py. SafeConv2D is Keras's Conv2D, safe to train in bfloat16.
"""

import functools

import numpy as np

from brains.backend import keras, layers, ops, tf
from brains.layers import OneHotConv2D, SafeConv2D, SafeConv2DTranspose

BATCH = 16  # images or grids that go through a network at a time: few, so that they fit a processor's cache


# --- the VQ-VAE -------------------------------------------------------------------------------------------------------


class VectorQuantizer(layers.Layer):
    """Replaces each latent vector by the nearest codebook vector (arXiv 1711.00937, section 3).

    Called on latents (N, h, w, D) it returns

    - the quantized latents (N, h, w, D) float32; their gradient goes straight through to the latents,
    - the code indices (N, h, w) int32 in [0, num_embeddings),
    - a scalar float32 loss: codebook loss + commitment_cost x commitment loss (equation 3).
    """

    def __init__(self, num_embeddings, embedding_dim, commitment_cost, **kwargs):
        super().__init__(**kwargs | {"dtype": "float32"})  # float32 in mixed precision too, for near ties
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.commitment_cost = commitment_cost

    def build(self, input_shape):
        if input_shape[-1] != self.embedding_dim:
            raise ValueError(f"latents have {input_shape[-1]} channels, the codebook {self.embedding_dim}")
        shape = (self.num_embeddings, self.embedding_dim)
        self.codebook = self.add_weight(shape=shape, initializer="uniform", name="codebook")

    def call(self, latents, training=False):
        codes = self.nearest(latents)
        quantized = self.lookup(codes)
        commitment_loss = ops.mean((latents - ops.stop_gradient(quantized)) ** 2)
        codebook_loss = ops.mean((ops.stop_gradient(latents) - quantized) ** 2)
        # the straight-through estimator: forward the codebook vector, backward the gradient of the latent vector
        straight_through = latents + ops.stop_gradient(quantized - latents)
        return straight_through, codes, self.commitment_cost * commitment_loss + codebook_loss

    def nearest(self, latents):
        """Return the indices (...) int32 of the codebook vectors nearest to latents (..., D) by squared distance."""
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for every code
        distances = ops.sum(self.codebook**2, axis=1) - 2 * ops.matmul(latents, ops.transpose(self.codebook))
        return ops.cast(ops.argmin(distances, axis=-1), "int32")

    def lookup(self, codes):
        """Return the codebook vectors (..., D) of code indices (...)."""
        return ops.take(self.codebook, codes, axis=0)


def build_encoder(config, blocks=(), channels=1):
    """Return the network from slices (128, 128, 1) to latents (8, 8, 16); sizes by a VQVAEConfig.

    Larger VQ-VAEs have further `blocks` of layers where the grid has its last size, and slices as `channels`.
    """
    parts = [keras.Input((config.size, config.size, channels))]
    for i, filters in enumerate(config.filters):
        parts.append(SafeConv2D(filters, 3, strides=2, activation="relu", name=f"down_{i}"))
    parts += [SafeConv2D(config.bottleneck, 3, activation="relu", name="wide"), *blocks]
    parts.append(SafeConv2D(config.latent_dim, 1, name="latents"))
    return keras.Sequential(parts, name="encoder")


def build_decoder(config):
    """Return the network from quantized latents (8, 8, 16) to slices (128, 128, 1); sizes by a VQVAEConfig."""
    grid = config.size // 2 ** len(config.filters)
    upward = []
    for i, filters in enumerate(reversed(config.filters)):
        upward.append(SafeConv2DTranspose(filters, 3, strides=2, activation="relu", name=f"up_{i}"))
    wide = SafeConv2DTranspose(config.bottleneck, 3, activation="relu", name="wide")
    image = SafeConv2DTranspose(1, 3, name="image")
    return keras.Sequential([keras.Input((grid, grid, config.latent_dim)), wide, *upward, image], name="decoder")


class VQVAE(keras.Model):
    """An encoder, a vector quantizer and a decoder (arXiv 1711.00937).

    Called on images (N, 128, 128, 1) float32 in [-0.5, 0.5] it returns their reconstructions (same shape, not clipped),
    their code indices (N, 8, 8) int32 and the quantizer's loss. `decode(encode(images))` gives the same
    reconstructions, clipped to [-0.5, 0.5]. `config` is the dataclass that describes the parts.
    """

    def __init__(self, config, encoder, quantizer, decoder):
        super().__init__(name="vqvae")
        self.config = config
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.grid = encoder.output_shape[1:-1]  # of codes
        self.built = True

    def call(self, images, training=False):
        quantized, codes, loss = self.quantizer(self.encoder(images, training=training), training=training)
        return self.paint(quantized), codes, loss

    def paint(self, quantized):
        """Decode codebook vectors (N, h, w, D) to images (N, 128, 128, 1) float32, not clipped."""
        return ops.cast(self.decoder(quantized), "float32")

    def encode(self, images):
        """Return the code indices (N, h, w) int32 of images (N, 128, 128, 1), in batches."""
        return in_batches(self._encode, images)

    def decode(self, codes):
        """Return the images (N, 128, 128, 1) float32 in [-0.5, 0.5] of code indices (N, h, w), in batches."""
        return in_batches(self._decode, codes)

    # one graph for batches of any size
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1), "float32")])
    def _encode(self, images):
        images = tf.ensure_shape(images, self.encoder.input_shape)
        return self.quantizer.nearest(ops.cast(self.encoder(images), "float32"))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None), "int32")])
    def _decode(self, codes):
        codes = tf.ensure_shape(codes, (None, *self.grid))
        return ops.clip(self.paint(self.quantizer.lookup(codes)), -0.5, 0.5)


def build_vqvae(config):
    """Return the VQVAE that a VQVAEConfig describes."""
    encoder = build_encoder(config)
    quantizer = VectorQuantizer(config.num_embeddings, config.latent_dim, config.commitment_cost, name="quantizer")
    quantizer.build(encoder.output_shape)
    return VQVAE(config, encoder, quantizer, build_decoder(config))


def in_batches(function, array):
    """Return the NumPy array of `function` applied to `array` in batches."""
    starts = range(0, max(1, len(array)), BATCH)  # an empty array is one empty batch
    return np.concatenate([np.asarray(function(array[i : i + BATCH])) for i in starts])


def code_counts(codes, num_embeddings):
    """Return how often each code (K,) occurs in codes (N, h, w), as a tensor."""
    return ops.sum(ops.one_hot(codes, num_embeddings), axis=(0, 1, 2))


def code_usage(counts):
    """Return the share of codes in use and their perplexity, from how often each code occurred (K,).

    Perplexity is the exponential of the entropy of the codes: K if all are equally frequent, 1 if only one occurs.
    """
    share = np.asarray(counts, np.float64) / np.sum(counts)
    used = share[share > 0]
    return len(used) / len(share), float(np.exp(-np.sum(used * np.log(used))))


# --- the PixelCNN -----------------------------------------------------------------------------------------------------


def causal_mask(kernel_size, mask_type):
    """Return the mask (k, k, 1, 1) float32 of a kernel that does not look ahead in raster order (arXiv 1606.05328).

    Rows above the centre and positions left of it are 1. The centre is 0 in type "A", which the first layer has, since
    it must not see the code that it predicts, and 1 in type "B", which later layers have. Raises ValueError for another
    type.
    """
    if mask_type not in ("A", "B"):
        raise ValueError(f"mask_type must be 'A' or 'B', not {mask_type!r}")
    centre = kernel_size // 2
    mask = np.zeros((kernel_size, kernel_size, 1, 1), np.float32)
    mask[:centre] = 1
    mask[centre, : centre + (mask_type == "B")] = 1
    return mask


class MaskedConv2D(SafeConv2D):
    """A convolution, same padding and ReLU, that sees no later position; see `causal_mask`."""

    def __init__(self, filters, kernel_size, mask_type, **kwargs):
        super().__init__(filters, kernel_size, **{"activation": "relu"} | kwargs)
        self.mask = causal_mask(kernel_size, mask_type)

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * ops.cast(self.mask, kernel.dtype))


class ResidualBlock(layers.Layer):
    """1x1 convolution, masked 3x3 type B to half the filters, 1x1 back; added to the input (N, h, w, filters)."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.enter = SafeConv2D(filters, 1, activation="relu", name="enter")
        self.masked = MaskedConv2D(filters // 2, 3, mask_type="B", name="masked")
        self.leave = SafeConv2D(filters, 1, activation="relu", name="leave")

    def build(self, input_shape):
        self.enter.build(input_shape)
        self.masked.build(input_shape)
        self.leave.build((*input_shape[:-1], input_shape[-1] // 2))

    def call(self, inputs):
        return inputs + self.leave(self.masked(self.enter(inputs)))


class PixelCNN(keras.Model):
    """The prior over grids of codes (arXiv 1606.05328, without gates), described by a PixelCNNConfig.

    Called on code indices (N, h, w) int32 it returns logits (N, h, w, num_embeddings) float32. The logits at a code
    depend only on the codes before it in raster order. It knows nothing of a slice's level (its place in the head, as
    the sharp prior does) and ignores `levels`.
    """

    levels = None  # how many levels it knows

    def __init__(self, config):
        super().__init__(name="pixelcnn")
        self.config, self.grid, self.num_embeddings = config, config.grid, config.num_embeddings
        filters = config.filters
        # called on code indices, it computes the masked convolution of their one-hot vectors
        self.first = OneHotConv2D(config.num_embeddings, filters, causal_mask(7, "A"), dtype="float32", name="first")
        self.blocks = [ResidualBlock(filters, name=f"block_{i}") for i in range(config.residual_blocks)]
        # of a 1x1 kernel type B masks nothing
        self.masked = [MaskedConv2D(filters, 1, mask_type="B", name=f"masked_{i}") for i in range(config.masked_layers)]
        self.head = SafeConv2D(config.num_embeddings, 1, dtype="float32", name="head")
        self.first.build((None, *self.grid))
        for layer in [*self.blocks, *self.masked, self.head]:
            layer.build((None, *self.grid, filters))
        self.built = True

    def call(self, codes, levels=None, training=False):
        x = self.first(codes)
        for layer in [*self.blocks, *self.masked]:
            x = layer(x)
        return self.head(x)


def cross_entropy(codes, logits):
    """Return the nats (...) float32 that codes (...) cost under logits (..., K). Divide by log 2 for bits."""
    return keras.losses.sparse_categorical_crossentropy(codes, logits, from_logits=True)


def accuracy(codes, logits):
    """Return the share of codes (...) that are the likeliest under logits (..., K), a scalar float32."""
    return ops.mean(ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == codes, "float32"))


def categorical(logits, temperature=1.0):
    """Return the prior's distribution at each code, a `tfp.distributions.Categorical`, from logits (..., K)."""
    import tensorflow_probability as tfp  # it takes seconds to import, so only those who use it wait

    return tfp.distributions.Categorical(logits=logits / temperature)


def sample(pixelcnn, num, seed, temperature=1.0, levels=None):
    """Draw code indices (num, h, w) int32 from a prior, with one whole forward pass per code.

    Codes are drawn in raster order, each from its distribution given the codes before it. Temperature divides the
    logits: values below 1 favour likely codes, values above 1 rare ones. A prior that knows the levels of slices needs
    `levels` (num,). `brains.sampling.sample` draws the same codes much faster.
    """
    uniforms = np.random.default_rng(seed).random((num, *pixelcnn.grid), np.float32)
    codes = np.zeros(uniforms.shape, np.int32)
    for row, column in np.ndindex(pixelcnn.grid):
        logits = pixelcnn(codes, levels)[:, row, column]  # (num, K)
        cumulative = np.cumsum(categorical(logits, temperature).probs_parameter(), axis=-1)
        # a uniform number picks the code where the cumulative distribution passes it; the last code takes the rest
        codes[:, row, column] = np.sum(cumulative[:, :-1] <= uniforms[:, row, column, None], axis=-1)
    return codes


# --- similarity of images ---------------------------------------------------------------------------------------------


def ssim(images, others):
    """Return the structural similarity (N,) float32, at most 1, of images (N, H, W, 1) in [-0.5, 0.5] to others.

    Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03. The images are shifted to [0, 1] first, data
    range 1, because the luminance term expects values that are not negative.
    """
    both = np.concatenate([images, others], axis=-1)  # pairs, which go in batches together
    compiled = compiled_ssim(*images.shape[1:3])
    return in_batches(lambda pair: compiled(pair[..., :1], pair[..., 1:]), both)


@functools.cache
def compiled_ssim(height, width):
    """Return `ssim_tensor` compiled for images of one size."""
    return tf.function(ssim_tensor, input_signature=2 * [tf.TensorSpec((None, height, width, 1), "float32")])


def ssim_tensor(images, others):
    """Return what `ssim` returns as a tensor that has gradients."""
    x, y = (ops.clip(each[..., 0] + 0.5, 0.0, 1.0) for each in (images, others))
    maps = ops.stack([x, y, x * y, x**2 + y**2])  # (4, N, H, W)
    # the window is a product of two Gaussians, so it is one matrix product along each axis
    maps = ops.tensordot(maps, gaussian_windows(maps.shape[3]), axes=[[3], [1]])  # (4, N, H, W - 10)
    maps = ops.tensordot(maps, gaussian_windows(maps.shape[2]), axes=[[2], [1]])  # (4, N, W - 10, H - 10)
    mean_x, mean_y, mean_xy, mean_squares = ops.unstack(maps, 4)
    product, squares = 2 * mean_x * mean_y, mean_x**2 + mean_y**2
    luminance = (product + 0.01**2) / (squares + 0.01**2)
    contrast_and_structure = (2 * mean_xy - product + 0.03**2) / (mean_squares - squares + 0.03**2)
    return ops.mean(luminance * contrast_and_structure, axis=(1, 2))


def gaussian_windows(side):
    """Return a matrix (side - 10, side) float32 whose rows are an 11-pixel Gaussian window at every position."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    rows = [np.pad(window / window.sum(), (position, side - 11 - position)) for position in range(side - 10)]
    return np.float32(rows)


def psnr(images, others):
    """Return the peak signal-to-noise ratio (N,) in dB of images (N, H, W, 1) to others, for a data range of 1.

    Equal images get 100 dB instead of infinity, so that means and files can hold it.
    """
    return -10 * np.log10(np.maximum(np.mean((images - others) ** 2, axis=(1, 2, 3)), 1e-10))
