"""The training of the sharp preset: the order of its stages, its VQ-VAE and its prior.

They differ from the faithful stages, which train.py shows: the held-out cases are kept from every stage, slices are
mirrored (and moved, for the prior), the learning rate falls along a cosine, and the loss asks for a high SSIM too.
"""

import dataclasses

import numpy as np

import modules
from brains import adversarial, critic, loop, reports, sharp, stream
from brains.augment import flip_half, move_half
from brains.backend import keras, tf
from brains.cli import UserError
from brains.reconstruction import as_used, validate
from keras import ops  # isort: skip


def train_sharp(job, preset):
    """Train the sharp models on the slices of a Job; returns {stage: Training}, mean image and variance."""
    check_levels(job.levels)
    mean, variance = job.moments(~job.held_out)
    trainings = {"vqvae": train_vqvae(job, preset, mean.mean(), variance)}
    vqvae = trainings["vqvae"].model
    trainings["adversarial"] = adversarial.train_adversarial(job, preset, vqvae, variance)
    encoder = as_used(vqvae)
    codes = stream.encode(encoder, job.images, job.scratch / "codes.bin")
    trainings["pixelcnn"] = train_prior(job, preset, encoder, codes)
    trainings["critic"] = critic.train_critic(job, preset, encoder, trainings["pixelcnn"].model, codes)
    return trainings, mean, variance


def check_levels(levels):
    """Raise UserError unless the slices of a set are numbered from 0 on, without gaps."""
    known = np.unique(levels)
    if known[-1] >= len(known):
        raise UserError(
            f"the slices are numbered {known[0]} to {known[-1]}, with gaps; this preset learns the level of a slice in "
            "its head, so number each head's from 0 (case_001_slice_0.png and so on)"
        )


def vqvae_loss(vqvae, variance, ssim_weight, images):
    """Return the loss of a VQVAE, and its figures, on images (N, 128, 128, 1) from data of that variance."""
    reconstructions, codes, quantizer_loss = vqvae(images, training=True)
    reconstruction_loss = ops.mean((images - reconstructions) ** 2) / variance
    loss = reconstruction_loss + quantizer_loss
    loss += ssim_weight * (1 - ops.mean(modules.ssim_tensor(images, reconstructions)))
    return loss, {
        "loss": loss,
        "reconstruction_loss": reconstruction_loss,
        "quantizer_loss": quantizer_loss,
        "code_counts": reports.code_counts(codes, vqvae.config.num_embeddings),
    }


def train_vqvae(job, preset, mean, variance):
    """Train the sharp VQVAE on the slices of a Job, whose mean pixel and variance are given; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    vqvae = sharp.build_vqvae(preset.vqvae_network)
    seen, unseen = job.seen_and_unseen()
    used = as_used(vqvae)
    # the output starts at the mean, since learning it first would overshoot and cost the decoder many of its units
    vqvae.decoder.layers[-1].bias.assign([mean])
    optimizer = loop.adam_along_cosine(preset.vqvae, len(seen))
    training = job.training("vqvae", vqvae, optimizer, job.settings_of(preset, "vqvae"))
    job.note_few_steps(training, preset.vqvae, len(seen))

    def read(chosen, draws):
        return [flip_half(job.images[seen[chosen]], draws)]

    def loss(images):
        return vqvae_loss(vqvae, variance, preset.ssim_weight, images)

    def summarise(totals):
        figures = reports.with_code_usage(totals) | validate(vqvae, used, job.images, unseen)
        return figures, reports.vqvae_line(figures)

    loop.fit(training, loop.gradients_of(training, loss), read, len(seen), preset.vqvae, job.seed, summarise)
    return training


def prior_loss(pixelcnn, codes, levels, training=True):
    """Return the loss of a prior, in nats a code, and its figures, on codes (N, h, w) of slices of levels (N,)."""
    logits = pixelcnn(codes, levels, training=training)
    loss = ops.mean(modules.cross_entropy(codes, logits))
    accuracy = ops.mean(ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == codes, "float32"))
    return loss, {"loss": loss, "accuracy": accuracy}


def train_prior(job, preset, vqvae, codes):
    """Train a gated PixelCNN on the slices of a Job; returns its Training.

    It learns the codes that the VQVAE, in float32, gives slices once they are mirrored and moved. A move by a pixel
    changes two codes of three. The `codes` (N, h, w) of the held-out slices as they lie validate.
    """
    keras.utils.set_random_seed(job.seed)
    seen, unseen = job.seen_and_unseen()
    network = dataclasses.replace(
        preset.prior_network,
        grid=vqvae.grid,
        num_embeddings=vqvae.config.num_embeddings,
        levels=int(job.levels.max()) + 1,
    )
    pixelcnn = sharp.GatedPixelCNN(network)
    training = job.training(
        "pixelcnn",
        pixelcnn,
        loop.adam_along_cosine(preset.pixelcnn, len(seen)),
        {**job.settings_of(preset, "pixelcnn"), "follows": job.digest_of_codes(vqvae)},
        monitor="validation_loss",
    )
    signature = [tf.TensorSpec((None, *vqvae.grid), "int32"), tf.TensorSpec((None,), "int32")]
    evaluate = tf.function(lambda *batch: prior_loss(pixelcnn, *batch, training=False)[1], input_signature=signature)

    def read(chosen, draws):
        chosen = seen[chosen]
        return move_half(flip_half(job.images[chosen], draws), draws), job.levels[chosen]

    def loss(images, levels):
        return prior_loss(pixelcnn, vqvae.quantizer.nearest(vqvae.encoder(images)), levels)

    def summarise(totals):
        figures = loop.with_validation(
            totals, lambda part: evaluate(codes[unseen[part]], job.levels[unseen[part]]), len(unseen)
        )
        return figures, reports.prior_line(figures, network.num_embeddings)

    loop.fit(training, loop.gradients_of(training, loss), read, len(seen), preset.pixelcnn, job.seed, summarise)
    return training
