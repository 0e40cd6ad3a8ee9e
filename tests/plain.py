"""The plain way to do what this program does, as short as it can be written: the references of the benchmark."""

import numpy as np
from PIL import Image

import modules
from brains.backend import keras, layers, ops, tf

VARIANCE = 0.03445  # of the genuine training slices


def plain_vqvae():
    """The autoencoder in plain Keras layers, and its codebook."""
    convolution = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    encoder = [layers.Conv2D(filters, strides=2, **convolution) for filters in (32, 32, 64, 64)]
    encoder += [layers.Conv2D(128, **convolution), layers.Conv2D(16, 1)]
    decoder = [layers.Conv2DTranspose(128, **convolution)]
    decoder += [layers.Conv2DTranspose(filters, strides=2, **convolution) for filters in (64, 64, 32, 32)]
    decoder += [layers.Conv2DTranspose(1, 3, padding="same")]
    encoder = keras.Sequential([keras.Input((128, 128, 1)), *encoder])
    decoder = keras.Sequential([keras.Input((8, 8, 16)), *decoder])
    return encoder, decoder, keras.Variable(tf.random.uniform((128, 16), -0.05, 0.05))


def plain_vqvae_step(parts=None):
    """A training step of it, or of other such parts, in float32."""
    encoder, decoder, codebook = parts or plain_vqvae()
    variables = [*encoder.trainable_variables, codebook, *decoder.trainable_variables]
    optimizer = keras.optimizers.Adam(1e-3)

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            latents = encoder(images)
            distances = tf.reduce_sum((latents[..., None, :] - codebook) ** 2, axis=-1)
            quantized = tf.gather(codebook, tf.argmin(distances, axis=-1))
            codebook_loss = tf.reduce_mean((tf.stop_gradient(latents) - quantized) ** 2)
            commitment_loss = tf.reduce_mean((latents - tf.stop_gradient(quantized)) ** 2)
            reconstructions = decoder(latents + tf.stop_gradient(quantized - latents))
            loss = tf.reduce_mean((images - reconstructions) ** 2) / VARIANCE + codebook_loss + 0.25 * commitment_loss
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    return step


class PlainMaskedConv2D(layers.Conv2D):
    """The whole kernel times its mask, convolved."""

    def __init__(self, filters, kernel_size, mask_type):
        super().__init__(filters, kernel_size, padding="same", activation="relu")
        self.mask = modules.causal_mask(kernel_size, mask_type)

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * self.mask)


def plain_pixelcnn(like):
    """The network of a PixelCNN in plain Keras layers, with its weights."""
    codes = keras.Input(like.grid, dtype="int32")
    x = PlainMaskedConv2D(like.config.filters, 7, "A")(ops.one_hot(codes, like.num_embeddings))
    for _ in range(like.config.residual_blocks):
        y = layers.Conv2D(like.config.filters, 1, activation="relu")(x)
        y = PlainMaskedConv2D(like.config.filters // 2, 3, "B")(y)
        x = x + layers.Conv2D(like.config.filters, 1, activation="relu")(y)
    for _ in range(like.config.masked_layers):
        x = PlainMaskedConv2D(like.config.filters, 1, "B")(x)
    model = keras.Model(codes, layers.Conv2D(like.num_embeddings, 1)(x))
    model.set_weights(like.get_weights())
    return model


def plain_pixelcnn_step(model):
    """A training step of it, in float32."""
    optimizer = keras.optimizers.Adam(3e-4)

    @tf.function
    def step(codes):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(codes, model(codes), from_logits=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    return step


def plain_sample(logits_of, uniforms):
    """Codes for uniform numbers (N, h, w): the logits of the whole grid for every code."""
    codes = np.zeros(uniforms.shape, np.int32)
    for row, column in np.ndindex(uniforms.shape[1:]):
        logits = logits_of(codes)[:, row, column]
        cumulative = np.cumsum(np.exp(logits - logits.max(axis=-1, keepdims=True)), axis=-1)
        drawn = uniforms[:, row, column, None] * cumulative[:, -1:]
        codes[:, row, column] = np.sum(cumulative[:, :-1] <= drawn, axis=-1)
    return codes


def plain_load(paths):
    """One image at a time."""
    images = []
    for path in paths:
        levels = np.asarray(Image.open(path), np.float32)
        images.append(np.asarray(Image.fromarray(levels).resize((128, 128), Image.Resampling.BOX)) / 255 - 0.5)
    return np.stack(images)[..., None]


def plain_ssim(images, others):
    """Return the SSIM of images in [-0.5, 0.5], by TensorFlow's own function."""
    unit = [tf.clip_by_value(each + 0.5, 0.0, 1.0) for each in (images, others)]
    return tf.image.ssim(*unit, max_val=1.0)


def plain_step(model, loss, learning_rate=1e-3):
    """Return a training step of a model on a `loss(*batch)`, compiled, without devices and figures."""
    optimizer = keras.optimizers.Adam(learning_rate)

    @tf.function
    def step(*batch):
        with tf.GradientTape() as tape:
            value = loss(*batch)
        optimizer.apply_gradients(zip(tape.gradient(value, model.trainable_variables), model.trainable_variables))
        return value

    return step
