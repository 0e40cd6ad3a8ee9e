"""The tissue of every pixel of a slice: a small U-Net that tells it, how that learns, and Dice.

Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation, arXiv 1505.04597
Milletari et al. 2016, V-Net, arXiv 1606.04797    (Dice as a loss)
"""

import functools

import numpy as np
from scipy.ndimage import gaussian_filter

from brains import loop, reports, stream
from brains.backend import keras, layers, ops, tf
from brains.config import SIZE, TISSUES
from brains.layers import SafeConv2D, SafeConv2DTranspose
from modules import in_batches


class UNet(keras.Model):
    """Tells the tissue of each pixel; described by a UNetConfig.

    Called on images (N, 128, 128, 1) float32 in [-0.5, 0.5] it returns logits (N, 128, 128, 4) float32, one for each
    label of `config.TISSUES`.
    """

    def __init__(self, config):
        super().__init__(name="unet")
        self.config = config
        *fine, coarse = config.filters
        x = images = keras.Input((SIZE, SIZE, 1), name="images")
        skips = []
        for i, filters in enumerate(fine):
            skips.append(_pair(x, filters, f"down_{i}"))
            x = layers.MaxPooling2D(name=f"pool_{i}")(skips[-1])
        x = _pair(x, coarse, "bottom")
        for i, filters in reversed([*enumerate(fine)]):
            x = SafeConv2DTranspose(filters, 2, strides=2, activation="relu", name=f"enlarge_{i}")(x)
            x = _pair(layers.Concatenate(name=f"join_{i}")([skips[i], x]), filters, f"up_{i}")
        logits = SafeConv2D(len(TISSUES), 1, dtype="float32", name="logits")(x)
        self.network = keras.Model(images, logits, name="network")
        self.built = True

    def call(self, images, training=False):
        return self.network(images, training=training)

    def label(self, images):
        """Return the labels (N, 128, 128) uint8 of images (N, 128, 128, 1), in batches."""
        return in_batches(self._label, images)

    @tf.function(reduce_retracing=True)
    def _label(self, images):
        return ops.cast(ops.argmax(self(images), axis=-1), "uint8")


def _pair(x, filters, name):
    """Apply two 3x3 convolutions with batch normalization, over all devices."""
    for i in range(2):
        x = SafeConv2D(filters, 3, use_bias=False, name=f"{name}_{i}")(x)
        x = layers.BatchNormalization(momentum=0.8, synchronized=True, name=f"{name}_{i}_norm")(x)
        x = layers.ReLU(name=f"{name}_{i}_relu")(x)
    return x


def tissue_loss(unet, images, masks, training=True):
    """Return the loss of a UNet, and its figures, on images (N, H, W, 1) with masks (N, H, W) of labels.

    The loss is the cross-entropy, plus what is missing to a soft Dice of 1, a mean over tissues and slices.
    """
    logits = unet(images, training=training)
    truth, guess = ops.one_hot(masks, len(TISSUES)), ops.softmax(logits)
    overlap, size = ops.sum(truth * guess, axis=(1, 2)), ops.sum(truth + guess, axis=(1, 2))
    soft_dice = ops.mean(((2 * overlap + 1) / (size + 1))[:, 1:])
    entropy = ops.mean(keras.losses.sparse_categorical_crossentropy(masks, logits, from_logits=True))
    figures = {"loss": entropy + 1 - soft_dice}
    labels = ops.one_hot(ops.argmax(logits, axis=-1), len(TISSUES))
    for number, tissue in enumerate(TISSUES[1:], start=1):
        figures[f"overlap of {tissue}"] = ops.mean(truth[..., number] * labels[..., number])
        figures[f"size of {tissue}"] = ops.mean(truth[..., number] + labels[..., number])
    return figures["loss"], figures


def recoloured(images, draws):
    """Change the contrast of each image (N, H, W, 1) by its draws: gamma, brightness, blur and noise."""
    changed = []
    for light, draw in zip(images[..., 0] + np.float32(0.5), draws):
        rng = np.random.default_rng(int(draw["offset"][0] * 2**53))
        light = rng.uniform(0.7, 1.1) * light ** np.exp(rng.uniform(-0.4, 0.4))
        if rng.random() < 0.3:
            light = gaussian_filter(light, rng.uniform(0.3, 0.9))
        changed.append(light + rng.normal(0, rng.uniform(0, 0.03), light.shape))
    return np.clip(np.float32(changed)[..., None], 0, 1) - np.float32(0.5)


def varied(images, masks, draws):
    """Mirror half of the images (N, H, W, 1), with their masks (N, H, W), and change the contrast of all."""
    images = recoloured(stream.flip_half(images, draws), draws)
    return images, stream.flip_half(masks[..., None], draws)[..., 0]


def train_tissue(job, preset):
    """Train a segmenter on the slices of a Job and their masks; returns {stage: Training}, mean image and variance."""
    mean, variance = stream.moments(job.images, job.seen)
    keras.utils.set_random_seed(job.seed)
    unet = UNet(preset.segmenter_network)
    adam = loop.adam_along_cosine(preset.segmenter, len(job.seen))
    training = job.training(preset, "segmenter", unet, adam, monitor="validation_loss")

    def read(chosen, draws):
        chosen = job.seen[chosen]
        return varied(job.images[chosen], job.masks[chosen], draws)

    def figures_of(totals):
        return reports.with_dice(validate(totals))

    validation_loss = functools.partial(tissue_loss, unet, training=False)
    validate = loop.validator(validation_loss, job.unseen, job.images, job.masks)
    gradients = loop.gradients_of(training, functools.partial(tissue_loss, unet))
    loop.fit(training, gradients, read, len(job.seen), figures_of, reports.tissue_line)
    return {"segmenter": training}, mean, variance


def dice(labels, masks, groups):
    """Return the Dice of labels (N, H, W) with masks (N, H, W), by group (G,) and tissue (G, 3): CSF, grey, white.

    It is 2 |A and B| / (|A| + |B|) over all slices of a group, and 1 where neither has that tissue.
    """
    scores = []
    for group in dict.fromkeys(groups):
        ours, truth = labels[groups == group], masks[groups == group]
        pairs = [(ours == number, truth == number) for number in range(1, len(TISSUES))]
        scores.append([(2 * np.sum(a & b) + 1e-9) / (a.sum() + b.sum() + 1e-9) for a, b in pairs])
    return np.array(scores)
