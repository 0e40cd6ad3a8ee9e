"""Times every step of the program against the plain algorithm in the same run, and prints the ratios.

    python tests/benchmark.py                 the table
    python tests/benchmark.py --plot FILE     also draws how the cost grows with samples, grid size and images

A reference is the plain way to do the same, as short as it can be written, on the same weights. Reference and ours run
in turns; a ratio is taken turn by turn. The share of the floor is the time that the step's multiplications and additions
would take at the rate of this machine's float32 matrix product, measured in the same run, over the time it took.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dataset
import modules
import train
from modules import keras, layers, ops, tf

TURNS = 5


def seconds(function):
    """Seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(what, reference, ours, turns=TURNS, operations=None, rate=None, warm=True):
    """Print a line of the table: reference and ours, in turns, each after a call that does not count."""
    if warm:
        reference()
        ours()
    times = np.array([(seconds(reference), seconds(ours)) for _ in range(turns)])
    ratios = times[:, 0] / times[:, 1]
    medians = np.median(times, axis=0)
    floor = f"{operations / rate / medians[1]:6.0%}" if operations else f"{'':6}"
    print(
        f"{what:44} {duration(medians[0])} {duration(medians[1])}  {np.median(ratios):7.2f}  "
        f"{ratios.min():7.2f} {ratios.max():7.2f}  {floor}",
        flush=True,
    )


def duration(value):
    return f"{value:8.2f} s " if value >= 1 else f"{value * 1e3:8.1f} ms"


# --- operations, counted from the layers ------------------------------------------------------------------------------


def operations(layer):
    """Multiplications and additions of a convolution for one image; a masked kernel's zeros do not count."""
    kernel = layer.kernel.shape
    share = float(np.mean(layer.mask)) if hasattr(layer, "mask") else 1.0
    shape = layer.input.shape if isinstance(layer, layers.Conv2DTranspose) else layer.output.shape
    return 2 * int(np.prod(kernel)) * int(np.prod(shape[1:3])) * share


def vqvae_operations(vqvae):
    """Of a training step for one image: forward, and backward to inputs and weights of every layer but the first."""
    first, *others = [operations(layer) for layer in vqvae.encoder.layers + vqvae.decoder.layers]
    distances = 2 * np.prod(vqvae.grid) * np.prod(vqvae.quantizer.codebook.shape)
    return 2 * first + 3 * sum(others) + distances


def pixelcnn_operations(pixelcnn):
    """Of a forward pass for one code; the first layer adds a row of its kernel for each tap, and multiplies nothing."""
    taps = float(np.sum(pixelcnn.first.mask)) * pixelcnn.first.filters
    inner = [layer for block in pixelcnn.blocks for layer in (block.reduce, block.masked, block.expand)]
    kernels = [
        (layer, float(np.mean(getattr(layer, "mask", 1)))) for layer in (*inner, *pixelcnn.masked, pixelcnn.head)
    ]
    return taps + sum(2 * np.prod(layer.kernel.shape) * share for layer, share in kernels)


def matmul_rate(dtype="float32", size=2048):
    """Operations a second of this machine's matrix product."""
    a = tf.cast(tf.random.normal((size, size)), dtype)
    product = tf.function(lambda: tf.matmul(a, a))
    product()
    return 2 * size**3 / min(seconds(lambda: product().numpy()) for _ in range(5))


# --- the plain algorithms ---------------------------------------------------------------------------------------------


class PlainMaskedConv2D(layers.Conv2D):
    """The whole kernel times its mask, convolved."""

    def __init__(self, filters, kernel_size, mask_type):
        super().__init__(filters, kernel_size, padding="same", activation="relu")
        self.mask = modules.causal_mask(kernel_size, mask_type)

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * self.mask)


def plain_pixelcnn(like):
    """The network of a PixelCNN in plain Keras layers, with its weights."""
    config = like.config
    codes = keras.Input(like.grid, dtype="int32")
    x = PlainMaskedConv2D(config["filters"], 7, "A")(ops.one_hot(codes, config["num_embeddings"]))
    for _ in range(config["residual_blocks"]):
        y = layers.Conv2D(config["filters"], 1, activation="relu")(x)
        y = PlainMaskedConv2D(config["filters"] // 2, 3, "B")(y)
        x = x + layers.Conv2D(config["filters"], 1, activation="relu")(y)
    for _ in range(config["masked_layers"]):
        x = PlainMaskedConv2D(config["filters"], 1, "B")(x)
    model = keras.Model(codes, layers.Conv2D(config["num_embeddings"], 1)(x))
    model.set_weights(like.get_weights())
    return model


def sample_by(logits_of, uniforms):
    """Codes for uniform numbers (N, h, w): `logits_of` the whole grid for every code."""
    codes = np.zeros(uniforms.shape, np.int32)
    for row, column in np.ndindex(uniforms.shape[1:]):
        logits = logits_of(codes)[:, row, column]
        cumulative = np.cumsum(np.exp(logits - logits.max(axis=-1, keepdims=True)), axis=-1)
        codes[:, row, column] = np.sum(
            cumulative[:, :-1] <= uniforms[:, row, column, None] * cumulative[:, -1:], axis=-1
        )
    return codes


def plain_step(model, loss):
    """A training step as Keras' guides write it, in float32."""
    optimizer = keras.optimizers.Adam()

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            value = loss(model, batch)
        gradients = tape.gradient(value, model.trainable_weights)
        optimizer.apply_gradients(zip(gradients, model.trainable_weights))
        return value

    return step


def plain_load(paths):
    """One image at a time, with Pillow."""
    from PIL import Image

    images = [np.asarray(Image.open(path).resize((128, 128), Image.Resampling.BOX), np.float32) for path in paths]
    return np.stack(images)[..., None] / 255 - 0.5
