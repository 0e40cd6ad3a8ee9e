"""The adversarial stage of the sharp preset: the losses, and the training against a discriminator.

Esser et al. 2021, Taming Transformers, VQGAN, arXiv 2012.09841          (the idea; here without perceptual distances)
Wang et al. 2018, pix2pixHD, arXiv 1711.11585                            (two scales, feature matching)
Mescheder et al. 2018, arXiv 1801.04406                                  (penalty on the gradient at real slices, R1)
"""

from brains import loop, reports
from brains.augment import flip_half
from brains.backend import keras, tf
from brains.reconstruction import as_used, copy_of, validate
from brains.sharp import Discriminator
from modules import ssim_tensor
from keras import ops  # isort: skip


def hinge_loss(of_real, of_decoded):
    """Return the discriminator's hinge loss from its outputs; 2 is chance."""
    return sum(
        ops.mean(ops.relu(1 - real[-1])) + ops.mean(ops.relu(1 + fake[-1])) for real, fake in zip(of_real, of_decoded)
    ) / len(of_real)


def adversarial_loss(of_decoded):
    """Return the VQ-VAE's loss for what the discriminator does not take for real."""
    return -sum(ops.mean(scale[-1]) for scale in of_decoded) / len(of_decoded)


def feature_loss(of_real, of_decoded):
    """Return the mean absolute difference of the discriminator's features (feature matching, arXiv 1711.11585)."""
    return sum(
        ops.mean(ops.abs(ops.cast(ops.stop_gradient(real) - fake, "float32")))
        for reals, fakes in zip(of_real, of_decoded)
        for real, fake in zip(reals[:-1], fakes[:-1])
    ) / sum(len(scale) - 1 for scale in of_decoded)


def adversarial_gradients(training, frozen, discriminator, optimizer, preset, variance):
    """Return what `loop.make_step` takes, of slices, for a VQVAE and for a discriminator with its own optimizer.

    The `frozen` VQVAE gives the discriminator its guide. The penalty on the discriminator's gradient keeps the decoder
    from fooling it by changes that nobody sees, after which the discriminator learned nothing more.
    """

    def gradients(images):
        vqvae, guide = training.model, frozen(images)[0]
        with tf.GradientTape() as tape, tf.GradientTape() as discriminator_tape:
            decoded, codes, quantizer_loss = vqvae(images, training=True)
            decoded = ops.maximum(decoded, -0.5)  # so that black is exactly black
            with tf.GradientTape() as penalty_tape:
                penalty_tape.watch(images)
                of_real = discriminator(images, guide)
                verdict = sum(ops.sum(ops.mean(scale[-1], axis=(1, 2, 3))) for scale in of_real)
            penalty = ops.mean(ops.sum(penalty_tape.gradient(verdict, images) ** 2, axis=(1, 2, 3)))
            of_decoded = discriminator(decoded, guide)
            hinge = hinge_loss(of_real, of_decoded)
            discriminator_loss = hinge + preset.penalty_weight * penalty
            adversarial, feature = adversarial_loss(of_decoded), feature_loss(of_real, of_decoded)
            reconstruction = ops.mean((images - decoded) ** 2) / variance
            similarity = ops.mean(ssim_tensor(images, decoded))
            loss = (
                reconstruction
                + quantizer_loss
                + preset.adversarial_ssim_weight * (1 - similarity)
                + preset.adversarial_weight * adversarial
                + preset.feature_weight * feature
            )
        judging, painting = discriminator.trainable_variables, vqvae.trainable_variables
        updates = [
            (optimizer, discriminator_tape.gradient(discriminator_loss, judging), judging),
            (training.optimizer, tape.gradient(loss, painting), painting),
        ]
        return updates, {
            "loss": loss,
            "reconstruction_loss": reconstruction,
            "quantizer_loss": quantizer_loss,
            "ssim": similarity,
            "adversarial_loss": adversarial,
            "feature_loss": feature,
            "discriminator_loss": hinge,
            "code_counts": reports.code_counts(codes, vqvae.config.num_embeddings),
        }

    return gradients


def train_adversarial(job, preset, vqvae, variance):
    """Train a VQVAE on against a discriminator, on the slices of a Job; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    seen, unseen = job.seen_and_unseen()
    frozen, used = copy_of(vqvae), as_used(vqvae)
    discriminator = Discriminator(preset.discriminator_network)
    optimizer = loop.adam_along_cosine(preset.adversarial, len(seen), preset.discriminator_learning_rate, beta_1=0.5)
    optimizer.build(discriminator.trainable_variables)
    training = job.training(
        "adversarial",
        vqvae,
        loop.adam_along_cosine(preset.adversarial, len(seen), beta_1=0.5),
        {**job.settings_of(preset, "adversarial"), "follows": job.digest(*frozen.weights)},
        others=[*discriminator.variables, *optimizer.variables],
    )

    def read(chosen, draws):
        return [flip_half(job.images[seen[chosen]], draws)]

    def summarise(totals):
        figures = reports.with_code_usage(totals) | validate(vqvae, used, job.images, unseen)
        return figures, reports.vqvae_line(figures)

    gradients = adversarial_gradients(training, frozen, discriminator, optimizer, preset, variance)
    loop.fit(training, gradients, read, len(seen), preset.adversarial, job.seed, summarise)
    return training
