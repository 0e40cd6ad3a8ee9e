"""The training of the sharp preset: the order of its stages, what each learns from, and its losses.

It differs from the faithful training, which train.py shows: the held-out cases are kept from every stage, slices are
mirrored (and moved, for the prior), the learning rate falls along a cosine, and the VQ-VAE is also asked for a high
SSIM, and then for slices that a discriminator takes for real. A critic learns last to choose among samples.

Esser et al. 2021, Taming Transformers, VQGAN, arXiv 2012.09841          (the idea; here without perceptual distances)
Wang et al. 2018, pix2pixHD, arXiv 1711.11585                            (two scales, feature matching)
Mescheder et al. 2018, arXiv 1801.04406                                  (penalty on the gradient at real slices, R1)
Azadi et al. 2019, arXiv 1810.06758; Razavi et al. 2019, arXiv 1906.00446 (samples rejected by a trained judge)
"""

import dataclasses
import functools

import numpy as np
from tqdm import tqdm

import modules
from brains import devices, loop, reports, sampling, sharp, stream
from brains.backend import keras, ops, tf
from brains.cli import UserError
from brains.stream import flip_half, move_half
from brains.weights import as_used, copy_of

DRAWN = 10_000  # samples that the critic learns from, at most


def train_sharp(job, preset):
    """Train the sharp models on the slices of a Job; returns {stage: Training}, mean image and variance.

    Raises UserError unless the levels of the slices are numbered without gaps.
    """
    known = np.unique(job.levels)
    if known[-1] >= len(known):
        raise UserError(
            f"the slices are numbered {known[0]} to {known[-1]}, with gaps; this preset learns the level of a slice in "
            "its head, so number each head's from 0 (case_001_slice_0.png and so on)"
        )
    mean, variance = stream.moments(job.images, job.seen)
    trainings = {"vqvae": train_vqvae(job, preset, mean.mean(), variance)}
    vqvae = trainings["vqvae"].model
    trainings["adversarial"] = train_adversarial(job, preset, vqvae, variance)
    encoder = as_used(vqvae)
    codes = stream.encode(encoder, job.images, job.scratch / "codes.bin")
    trainings["pixelcnn"] = train_prior(job, preset, encoder, codes)
    trainings["critic"] = train_critic(job, preset, encoder, trainings["pixelcnn"].model, codes)
    return trainings, mean, variance


def vqvae_loss(vqvae, variance, ssim_weight, images):
    """Return the loss of a VQVAE, and its figures, on images (N, 128, 128, 1) from data of that variance."""
    reconstructions, codes, quantizer_loss = vqvae(images, training=True)
    reconstruction_loss = ops.mean((images - reconstructions) ** 2) / variance
    loss = reconstruction_loss + quantizer_loss
    loss += ssim_weight * (1 - ops.mean(modules.ssim_tensor(images, reconstructions)))
    figures = {"loss": loss, "reconstruction_loss": reconstruction_loss, "quantizer_loss": quantizer_loss}
    return loss, figures | {"code_counts": modules.code_counts(codes, vqvae.config.num_embeddings)}


def train_vqvae(job, preset, mean, variance):
    """Train the sharp VQVAE on the slices of a Job, whose mean pixel and variance are given; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    vqvae = sharp.build_vqvae(preset.vqvae_network)
    used = as_used(vqvae)
    # the output starts at the mean, since learning it first would overshoot and cost the decoder many of its units
    vqvae.decoder.layers[-1].bias.assign([mean])
    training = job.training(preset, "vqvae", vqvae, loop.adam_along_cosine(preset.vqvae, len(job.seen)))
    loss = functools.partial(vqvae_loss, vqvae, variance, preset.ssim_weight)
    return _fit_vqvae(job, training, loop.gradients_of(training, loss), used)


def _fit_vqvae(job, training, gradients, used):
    """Train a VQVAE on slices of which half are mirrored; `used` is its copy for `validate`."""

    def read(chosen, draws):
        return [flip_half(job.images[job.seen[chosen]], draws)]

    def figures_of(totals):
        return reports.with_code_usage(totals) | validate(training.model, used, job.images, job.unseen)

    return loop.fit(training, gradients, read, len(job.seen), figures_of, reports.vqvae_line)


def validate(vqvae, used, images, chosen):
    """Return the mean SSIM of a VQVAE's reconstructions of the chosen images, and how sharp these are; 1 is as real.

    `used` is a copy of the VQVAE in float32 (see `as_used`); it is given the weights.
    """
    used.set_weights(vqvae.get_weights())
    ssim, sharpness, real_sharpness = 0, 0, 0
    for part in stream.parts(len(chosen)):
        real = images[chosen[part]]
        decoded = used.decode(used.encode(real))
        ssim += modules.ssim(real, decoded).sum()
        sharpness, real_sharpness = sharpness + differences(decoded), real_sharpness + differences(real)
    return {"validation_ssim": float(ssim / len(chosen)), "sharpness": float(sharpness / real_sharpness)}


def differences(images):
    """Return the sum of the absolute differences of neighbouring pixels of images (N, H, W, 1)."""
    return sum(np.abs(np.diff(images, axis=axis)).sum(dtype=np.float64) for axis in (1, 2))


def discriminator_losses(of_real, of_decoded):
    """Return three losses from a discriminator's outputs for real slices and for decoded ones.

    They are its own hinge loss, of which 2 is chance; the VQ-VAE's for what it does not take for real; and the mean
    absolute difference of its features (feature matching, arXiv 1711.11585).
    """
    pairs = list(zip(of_real, of_decoded))
    hinges = [ops.mean(ops.relu(1 - real[-1])) + ops.mean(ops.relu(1 + fake[-1])) for real, fake in pairs]
    verdicts = [ops.mean(fake[-1]) for _, fake in pairs]
    features = [pair for reals, fakes in pairs for pair in zip(reals[:-1], fakes[:-1])]
    apart = [ops.mean(ops.abs(ops.cast(ops.stop_gradient(real) - fake, "float32"))) for real, fake in features]
    return sum(hinges) / len(pairs), -sum(verdicts) / len(pairs), sum(apart) / len(features)


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
            hinge, adversarial, feature = discriminator_losses(of_real, of_decoded)
            discriminator_loss = hinge + preset.penalty_weight * penalty
            reconstruction = ops.mean((images - decoded) ** 2) / variance
            similarity = ops.mean(modules.ssim_tensor(images, decoded))
            loss = reconstruction + quantizer_loss + preset.adversarial_ssim_weight * (1 - similarity)
            loss += preset.adversarial_weight * adversarial
            loss += preset.feature_weight * feature
        judging, painting = discriminator.trainable_variables, vqvae.trainable_variables
        updates = [(optimizer, discriminator_tape.gradient(discriminator_loss, judging), judging)]
        updates.append((training.optimizer, tape.gradient(loss, painting), painting))
        figures = {"loss": loss, "reconstruction_loss": reconstruction, "quantizer_loss": quantizer_loss}
        figures |= {"ssim": similarity, "adversarial_loss": adversarial, "feature_loss": feature}
        figures |= {"discriminator_loss": hinge}
        return updates, figures | {"code_counts": modules.code_counts(codes, vqvae.config.num_embeddings)}

    return gradients


def train_adversarial(job, preset, vqvae, variance):
    """Train a VQVAE on against a discriminator, on the slices of a Job; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    frozen, used = copy_of(vqvae), as_used(vqvae)
    discriminator = sharp.Discriminator(preset.discriminator_network)
    adam = functools.partial(loop.adam_along_cosine, preset.adversarial, len(job.seen), beta_1=0.5)
    optimizer = adam(preset.discriminator_learning_rate)
    optimizer.build(discriminator.trainable_variables)
    others = [*discriminator.variables, *optimizer.variables]
    training = job.training(preset, "adversarial", vqvae, adam(), follows=frozen.weights, others=others)
    gradients = adversarial_gradients(training, frozen, discriminator, optimizer, preset, variance)
    return _fit_vqvae(job, training, gradients, used)


def prior_loss(pixelcnn, codes, levels, training=True):
    """Return the loss of a prior, in nats a code, and its figures, on codes (N, h, w) of slices of levels (N,)."""
    logits = pixelcnn(codes, levels, training=training)
    loss = ops.mean(modules.cross_entropy(codes, logits))
    return loss, {"loss": loss, "accuracy": modules.accuracy(codes, logits)}


def train_prior(job, preset, vqvae, codes):
    """Train a gated PixelCNN on the slices of a Job; returns its Training.

    It learns the codes that the VQVAE, in float32, gives slices once they are mirrored and moved. A move by a pixel
    changes two codes of three. The `codes` (N, h, w) of the held-out slices as they lie validate.
    """
    keras.utils.set_random_seed(job.seed)
    number, levels = vqvae.config.num_embeddings, int(job.levels.max()) + 1
    network = dataclasses.replace(preset.prior_network, grid=vqvae.grid, num_embeddings=number, levels=levels)
    pixelcnn = sharp.GatedPixelCNN(network)
    adam = loop.adam_along_cosine(preset.pixelcnn, len(job.seen))
    follows = [*vqvae.encoder.weights, vqvae.quantizer.codebook]
    training = job.training(preset, "pixelcnn", pixelcnn, adam, monitor="validation_loss", follows=follows)

    def read(chosen, draws):
        chosen = job.seen[chosen]
        return move_half(flip_half(job.images[chosen], draws), draws), job.levels[chosen]

    def loss(images, levels):
        return prior_loss(pixelcnn, vqvae.quantizer.nearest(vqvae.encoder(images)), levels)

    gradients = loop.gradients_of(training, loss)
    validation_loss = functools.partial(prior_loss, pixelcnn, training=False)
    figures_of = loop.validator(validation_loss, job.unseen, codes, job.levels)
    line_of = functools.partial(reports.prior_line, num_embeddings=number)
    return loop.fit(training, gradients, read, len(job.seen), figures_of, line_of)


def critic_loss(critic, vqvae, codes, samples, training=True):
    """Return the loss of a Critic, and its figures, on codes (N, h, w) of slices and as many samples (N, h, w).

    The loss is the binary cross-entropy, which is log 2 if the critic knows nothing.
    """
    images = vqvae.paint(vqvae.quantizer.lookup(ops.concatenate([codes, samples])))
    real, fake = ops.split(critic(ops.clip(images, -0.5, 0.5), training=training), 2)
    loss = ops.mean(ops.softplus(-real) + ops.softplus(fake)) / 2
    accuracy = ops.mean(ops.cast(real > 0, "float32") + ops.cast(fake <= 0, "float32")) / 2
    return loss, {"loss": loss, "accuracy": accuracy}


def train_critic(job, preset, vqvae, pixelcnn, codes):
    """Train a Critic on samples of a prior and on the slices of a Job; returns its Training.

    It learns to tell samples from real slices, so that of several samples the most realistic one can be kept. It sees
    real slices as the VQ-VAE decodes them, so it looks for the mistakes of the prior and not for those of the decoder.
    `codes` (N, h, w) are those that the VQVAE, in float32, gives the slices. The held-out slices, and as many samples,
    validate.
    """
    order = np.random.default_rng(job.seed)
    seen, unseen = order.permutation(job.seen), order.permutation(job.unseen)[: DRAWN // 10]
    sampled, sampled_unseen = _samples(job, preset, pixelcnn, seen[:DRAWN], unseen)
    keras.utils.set_random_seed(job.seed)
    critic = sharp.Critic(preset.critic_network)
    adam = loop.adam_along_cosine(preset.critic, len(seen))
    follows = [*vqvae.weights, *pixelcnn.weights]
    training = job.training(preset, "critic", critic, adam, monitor="validation_loss", follows=follows)

    def read(chosen, draws):  # not moved, so the critic undoes the moves that the prior has learned
        return flip_half(job.images[seen[chosen]], draws), sampled[chosen % len(sampled)]

    def loss(images, samples):
        return critic_loss(critic, vqvae, vqvae.quantizer.nearest(vqvae.encoder(images)), samples)

    gradients = loop.gradients_of(training, loss)
    validation_loss = functools.partial(critic_loss, critic, vqvae, training=False)
    figures_of = loop.validator(validation_loss, np.arange(len(unseen)), codes[unseen], sampled_unseen)
    return loop.fit(training, gradients, read, len(seen), figures_of, reports.critic_line)


def _samples(job, preset, pixelcnn, seen, unseen):
    """Draw a sample of the same level for each of the slices `seen` and `unseen`, which are indices."""
    imitated = np.concatenate([seen, unseen])
    print(f"critic: drawing {len(imitated):,} samples", flush=True)
    progress = functools.partial(tqdm, unit="batch", leave=False, disable=None if devices.writes() else True)
    seed = (job.seed, 1)  # a seed that no --seed can name later, because the critic knows these samples
    drawn = sampling.sample(pixelcnn, len(imitated), seed, preset.temperature, job.levels[imitated], progress)
    return np.split(drawn, [len(seen)])
