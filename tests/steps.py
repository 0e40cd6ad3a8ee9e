"""The compiled training steps of every stage, which the benchmarks time."""

import numpy as np
from plain import VARIANCE, plain_ssim

import modules
import train
from brains import config, loop, sharp, stages, weights
from brains.backend import keras, tf

FAITHFUL, SHARP = config.PRESETS["faithful"], config.PRESETS["sharp"]


def compiled(gradients, *batch):
    """Return the loop's step, on one device, as a function of a batch like this."""
    signature = [tf.TensorSpec((), "float32"), *(tf.TensorSpec((None, *each.shape[1:]), each.dtype) for each in batch)]
    step = loop.make_step(tf.distribute.get_strategy(), gradients, signature)
    return lambda *batch: step(np.float32(1), *batch)


def in_training(model, schedule):
    """Return a Training of a model that writes no checkpoint."""
    return loop.Training("benchmark", model, keras.optimizers.Adam(schedule.learning_rate), None, {})


def our_vqvae_step(policy, images):
    """Return train.py's step of the VQ-VAE under a dtype policy, and the model."""
    keras.config.set_dtype_policy(policy)
    model = modules.build_vqvae(FAITHFUL.vqvae_network)
    keras.config.set_dtype_policy("float32")
    training = in_training(model, FAITHFUL.vqvae)
    return (
        compiled(loop.gradients_of(training, lambda batch: train.vqvae_loss(model, VARIANCE, batch)), images),
        model,
    )


def our_pixelcnn_step(policy, codes):
    """Return train.py's step of the PixelCNN under a dtype policy, and the model."""
    keras.config.set_dtype_policy(policy)
    model = modules.PixelCNN(FAITHFUL.prior_network)
    keras.config.set_dtype_policy("float32")
    training = in_training(model, FAITHFUL.pixelcnn)
    return compiled(loop.gradients_of(training, lambda batch: train.pixelcnn_loss(model, batch)), codes), model


def blocking(step, *batch):
    """Return a call of the step that waits for its figures."""
    return lambda: [np.asarray(figure) for figure in keras.tree.flatten(step(*batch))]


def sharp_steps(images):
    """Return the steps of the sharp stages on images: {stage: (gradients, batch, model, plain loss)}, in float32.

    The plain loss is that of the stage's own model, with TensorFlow's SSIM and no discriminator in training.
    """
    vqvae = sharp.build_vqvae(SHARP.vqvae_network)
    codes, levels = vqvae.encode(images), np.zeros(len(images), np.int32)

    def vqvae_loss(images):
        reconstructions, _, quantizer_loss = vqvae(images, training=True)
        error = tf.reduce_mean((images - reconstructions) ** 2) / VARIANCE
        return error + quantizer_loss + 0.5 * (1 - tf.reduce_mean(plain_ssim(images, reconstructions)))

    prior, judge = sharp.GatedPixelCNN(SHARP.prior_network), sharp.Critic(SHARP.critic_network)
    discriminator = sharp.Discriminator(SHARP.discriminator_network)
    optimizer = keras.optimizers.Adam(SHARP.discriminator_learning_rate, beta_1=0.5)
    optimizer.build(discriminator.trainable_variables)
    first, second = (in_training(vqvae, schedule) for schedule in (SHARP.vqvae, SHARP.adversarial))
    frozen = weights.copy_of(vqvae)
    return {
        "vqvae": (
            loop.gradients_of(first, lambda batch: stages.vqvae_loss(vqvae, VARIANCE, SHARP.ssim_weight, batch)),
            (images,),
            vqvae,
            vqvae_loss,
        ),
        "adversarial": (
            stages.adversarial_gradients(second, frozen, discriminator, optimizer, SHARP, VARIANCE),
            (images,),
            vqvae,
            None,
        ),
        "pixelcnn": (
            loop.gradients_of(in_training(prior, SHARP.pixelcnn), lambda *batch: stages.prior_loss(prior, *batch)),
            (codes, levels),
            prior,
            lambda *batch: stages.prior_loss(prior, *batch)[0],
        ),
        "critic": (
            loop.gradients_of(
                in_training(judge, SHARP.critic), lambda *batch: stages.critic_loss(judge, vqvae, *batch)
            ),
            (codes, codes[::-1]),
            judge,
            lambda *batch: stages.critic_loss(judge, vqvae, *batch)[0],
        ),
    }
