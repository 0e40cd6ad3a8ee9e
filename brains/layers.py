"""Convolutions with the weights of Keras's own, computed another way where Keras's is inexact or slow."""

import numpy as np

from brains.backend import layers, ops, tf


class _Float32BiasGradient:
    """A Keras convolution, same padding by default, whose bias gradient is summed in float32.

    The sum runs over all positions of a batch. TensorFlow adds it up in the precision of the layer: in bfloat16 it soon
    stops growing, and a decoder learns a grey background. A product with ones is accumulated in float32.
    """

    def __init__(self, filters, kernel_size, **kwargs):
        super().__init__(filters, kernel_size, **{"padding": "same"} | kwargs)

    def call(self, inputs):
        outputs = self.convolution_op(inputs, self.kernel)
        return self.activation(_add_bias(outputs, tf.convert_to_tensor(self.bias)) if self.use_bias else outputs)


class SafeConv2D(_Float32BiasGradient, layers.Conv2D):
    """`keras.layers.Conv2D` for mixed precision."""


class SafeConv2DTranspose(_Float32BiasGradient, layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` for mixed precision."""

    def convolution_op(self, inputs, kernel):
        return ops.conv_transpose(inputs, kernel, strides=self.strides, padding=self.padding)


@tf.custom_gradient
def _add_bias(inputs, bias):
    def gradient(upstream):
        positions = tf.reshape(upstream, (-1, upstream.shape[-1]))
        ones = tf.ones((1, tf.shape(positions)[0]), positions.dtype)
        return upstream, tf.matmul(ones, positions)[0]

    return inputs + bias, gradient


class OneHotConv2D(layers.Layer):
    """A masked convolution of one-hot codes, same padding and ReLU, called on code indices (N, h, w) int32.

    It equals a convolution of `one_hot(codes)` with the masked kernel (k, k, num_embeddings, filters), but multiplies
    nothing: a one-hot input picks a row of the kernel at each tap, so the result (N, h, w, filters) is a sum of rows.
    The `mask` (k, k, 1, 1) must be 1 at its first taps in raster order and 0 at the others.
    """

    def __init__(self, num_embeddings, filters, mask, **kwargs):
        super().__init__(**kwargs)
        self.num_embeddings, self.filters, self.mask = num_embeddings, filters, mask

    def build(self, input_shape):
        shape = (*self.mask.shape[:2], self.num_embeddings, self.filters)
        self.kernel = self.add_weight(shape=shape, initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, codes):
        size, taps = len(self.mask), int(self.mask.sum())
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


def with_neighbours(grid):
    """Return a grid (N, S, h, w, C) whose channels (3 C) are of the slab below, the own one and that above.

    Below the lowest slab and above the highest one are zeros.
    """
    below, above = (ops.pad(grid, [(0, 0), sides, *3 * [(0, 0)]]) for sides in ((1, 0), (0, 1)))
    return ops.concatenate([below[:, :-1], grid, above[:, 1:]], axis=-1)


def detail(images):
    """Return what a 3x3 mean takes away from images (N, H, W, 1): their finest scale."""
    return images - ops.average_pool(images, 3, strides=1, padding="same")
