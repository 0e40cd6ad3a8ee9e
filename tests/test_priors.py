"""The PixelCNN: what a position may see, and that the looked-up convolution is the convolution of one-hot vectors."""

import keras
import numpy as np
import pytest
from builders import make_gated, make_pixelcnn
from keras import ops

import modules
from brains.backend import tf
from brains.layers import OneHotConv2D


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_masked_convolution_sees_no_later_position(kernel_size, mask_type):
    keras.utils.set_random_seed(0)
    layer = modules.MaskedConv2D(4, kernel_size, mask_type, activation=None, use_bias=False)
    inputs = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    before = np.asarray(layer(inputs)).reshape(64, 4)
    for position in range(64):
        changed = inputs.copy()
        changed[0, position // 8, position % 8] += 1
        moved = np.flatnonzero(np.any(np.asarray(layer(changed)).reshape(64, 4) != before, axis=1))
        if mask_type == "B":
            assert moved[0] == position
        else:
            assert not len(moved) or moved[0] > position
            assert len(moved) or kernel_size == 1 or position == 63


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_convolution_of_codes_is_that_of_their_one_hot_vectors(kernel_size, mask_type):
    keras.utils.set_random_seed(0)
    looked_up = OneHotConv2D(9, 4, modules.causal_mask(kernel_size, mask_type))
    convolved = modules.MaskedConv2D(4, kernel_size, mask_type)
    codes = np.random.default_rng(0).integers(0, 9, (3, 5, 6), np.int32)
    results, gradients = [], []
    for layer, inputs in ((looked_up, codes), (convolved, ops.one_hot(codes, 9))):
        layer(inputs)
        layer.set_weights(looked_up.get_weights())
        with tf.GradientTape() as tape:
            results.append(layer(inputs))
            loss = ops.sum(results[-1] ** 2)
        gradients.append(tf.convert_to_tensor(tape.gradient(loss, layer.kernel.value)))
    np.testing.assert_allclose(*results, atol=1e-6)
    np.testing.assert_allclose(*gradients, atol=1e-5)


def test_forward_pass_changes_no_weight():
    pixelcnn = make_pixelcnn()
    before = pixelcnn.get_weights()
    pixelcnn(np.zeros((1, 8, 8), np.int32), training=True)
    for old, new in zip(before, pixelcnn.get_weights()):
        np.testing.assert_array_equal(old, new)


def reached(pixelcnn, levels=None):
    """Whether a change of a code (first axis) moves the logits at a position (second axis), in raster order."""
    height, width = pixelcnn.grid
    number = height * width
    codes = np.random.default_rng(0).integers(0, pixelcnn.num_embeddings, (1, height, width), np.int32)
    changed = np.repeat(codes, number, axis=0).reshape(number, number)
    changed[np.arange(number), np.arange(number)] += 1
    changed %= pixelcnn.num_embeddings
    before = np.asarray(pixelcnn(codes, levels)).reshape(number, -1)
    levels = None if levels is None else np.repeat(levels, number)
    after = np.asarray(pixelcnn(changed.reshape(-1, height, width), levels)).reshape(number, number, -1)
    return np.abs(after - before).max(axis=-1) > 1e-5


def test_logits_depend_on_earlier_codes_alone():
    moved = reached(make_pixelcnn())
    for position in range(64):
        assert not moved[position, : position + 1].any()
        assert position == 63 or moved[position, position + 1 :].any()


def test_gated_logits_depend_on_all_earlier_codes_and_no_other():
    pixelcnn = make_gated(scale=0.25, grid=(5, 4), gated_layers=3)  # so that no gate is shut
    moved = reached(pixelcnn, np.int32([2]))
    np.testing.assert_array_equal(moved, np.triu(np.ones_like(moved), k=1))  # no blind spot


def test_gated_logits_depend_on_level_and_place():
    pixelcnn = make_gated()
    codes = np.zeros((2, 6, 5), np.int32)
    logits = np.asarray(pixelcnn(codes, np.int32([0, 3])))
    assert np.abs(logits[0] - logits[1]).max(axis=-1).min() > 1e-3
    deep = logits[0].reshape(30, -1)
    assert len(np.unique(deep.round(4), axis=0)) == 30


def test_dropout_is_of_training_alone():
    pixelcnn = make_gated()
    codes, levels = np.zeros((1, 6, 5), np.int32), np.int32([1])
    np.testing.assert_array_equal(pixelcnn(codes, levels), pixelcnn(codes, levels))
    assert (np.asarray(pixelcnn(codes, levels, training=True)) != np.asarray(pixelcnn(codes, levels))).any()
