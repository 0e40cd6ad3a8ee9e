"""The training of the head preset: the order of its stages, what each learns from, and its losses.

A VQ-VAE learns whole heads, then trains on against two discriminators, one of slices and one of sagittal and coronal
planes. A flow learns the latents of heads, together with age and sex. The held-out cases are kept from every stage.
"""

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

import dataset
import modules
from brains import flow, heads, loop, names, reports, sharp, stream, traits
from brains.backend import keras, ops, tf
from brains.cli import UserError, note
from brains.people import people_of_cases
from brains.stages import differences, discriminator_losses
from brains.weights import as_used, copy_of

SLICES, PLANES = 8, 16  # of each head, drawn at random, that the discriminators judge in a step
KNOWN = 128  # heads, at most, that the mean of latents is taken of
STRETCHED = 16  # of them, at most, that tell how far samples are stretched
STRETCHES = 1, 1.4  # the least and the most by which they are, see `set_stretch`
LOOKS = 4  # times at which a held-out head validates the flow


class Heads(NamedTuple):
    """Whole heads of a Job as arrays: their slices' indices (N, L) by level, and the Persons (N,).

    Indexing gives heads (n, L, 128, 128, 1) float32. `seen` are the indices of those to learn from, and `unseen` of
    those of the held-out cases.
    """

    images: stream.Store
    index: np.ndarray
    people: list
    seen: np.ndarray
    unseen: np.ndarray

    def read(self, chosen):
        index = self.index[chosen]
        return self.images[index.ravel()].reshape(*index.shape, *self.images.shape[1:])


def whole_heads(job, levels):
    """Return the Heads of a Job that have one slice of each of so many levels; the others are named and passed by.

    Raises UserError if none, or no held-out one, is whole.
    """
    found, broken = names.whole_heads(job.cases, job.levels, levels)
    if broken:
        several = f" and {len(broken) - 1} more" if broken[1:] else ""
        note(f"note: {broken[0]}{several}: not one slice of each of {levels} levels, or several sessions; passed by")
    held_out = np.isin(list(found), job.held_out_cases)
    if held_out.all() or not held_out.any():
        raise UserError(f"too few heads have one slice of each of the levels 0 to {levels - 1}; see dataset.py slices")
    genuine = dataset.is_genuine("train", job.digest_of_slices)
    people = people_of_cases(list(found), job.folder, genuine, job.people)
    return Heads(
        job.images, np.array(list(found.values())), people, np.flatnonzero(~held_out), np.flatnonzero(held_out)
    )


def slices_of(stacks):
    """Return the slices (N L, H, W, 1) of heads (N, L, H, W, 1)."""
    return ops.reshape(stacks, (-1, *stacks.shape[2:]))


def sagittal(stacks):
    """Return the planes (N H, L, W, 1) of heads (N, L, H, W, 1) that are parallel to that between left and right."""
    planes = ops.transpose(stacks, (0, 2, 1, 3, 4))
    return ops.reshape(planes, (-1, *planes.shape[2:]))


def coronal(stacks):
    """Return the planes (N W, L, H, 1) of heads (N, L, H, W, 1) that are parallel to that between front and back."""
    planes = ops.transpose(stacks, (0, 3, 1, 2, 4))
    return ops.reshape(planes, (-1, *planes.shape[2:]))


def reconstruction_losses(variance, stacks, reconstructions):
    """Return the squared error of reconstructions of heads (N, L, H, W, 1), relative to the variance, and SSIM."""
    similarity = modules.ssim_tensor(slices_of(stacks), slices_of(reconstructions))
    return ops.mean((stacks - reconstructions) ** 2) / variance, ops.mean(similarity)


def code_counts(vqvae, codes):
    """Return how often each code of each codebook occurs in codes (N, S, h, w, depth), (depth, K) as a tensor."""
    return ops.sum(ops.one_hot(codes, vqvae.config.num_embeddings), axis=(0, 1, 2, 3))


def vqvae_loss(vqvae, variance, ssim_weight, stacks):
    """Return the loss of a HeadVQVAE, and its figures, on heads (N, L, 128, 128, 1)."""
    reconstructions, codes, quantizer_loss = vqvae(stacks, training=True)
    reconstruction_loss, similarity = reconstruction_losses(variance, stacks, reconstructions)
    loss = reconstruction_loss + quantizer_loss + ssim_weight * (1 - similarity)
    figures = {"loss": loss, "reconstruction_loss": reconstruction_loss, "quantizer_loss": quantizer_loss}
    return loss, figures | {"code_counts": code_counts(vqvae, codes)}


def flipped(stacks, draws):
    """Mirror each head (N, L, H, W, 1) with probability 1/2: left and right."""
    return np.where(draws["flip"][:, None, None, None, None] < 0.5, stacks[:, :, ::-1], stacks)


def train_vqvae(job, preset, whole, mean, variance):
    """Train a HeadVQVAE on Heads, whose mean pixel and variance are given; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    vqvae = heads.HeadVQVAE(preset.vqvae_network)
    used = as_used(vqvae)
    bias = vqvae.decoder.layers[-1].bias
    bias.assign(np.full(bias.shape, mean))  # as for slices
    training = job.training(preset, "vqvae", vqvae, loop.adam_along_cosine(preset.vqvae, len(whole.seen)))
    loss = functools.partial(vqvae_loss, vqvae, variance, preset.ssim_weight)
    return _fit_vqvae(training, loop.gradients_of(training, loss), whole, used)


def _fit_vqvae(training, gradients, whole, used):
    def read(chosen, draws):
        return [flipped(whole.read(whole.seen[chosen]), draws)]

    def figures_of(totals):
        return reports.with_code_usage(totals) | validate(training.model, used, whole)

    return loop.fit(training, gradients, read, len(whole.seen), figures_of, reports.vqvae_line)


def validate(vqvae, used, whole):
    """Return the mean SSIM of a HeadVQVAE's reconstructions of held-out heads, and how sharp these are.

    `used` is a copy of it in float32; it is given the weights.
    """
    used.set_weights(vqvae.get_weights())
    ssim, sharpness, real_sharpness = [], 0, 0
    for head in whole.unseen:
        real = whole.read([head])
        decoded = used.decode(used.encode(real))[0]
        ssim.append(modules.ssim(real[0], decoded).mean())
        sharpness, real_sharpness = sharpness + differences(decoded), real_sharpness + differences(real[0])
    return {"validation_ssim": float(np.mean(ssim)), "sharpness": float(sharpness / real_sharpness)}


def judge(discriminator, real, decoded, guide):
    """Return the losses of a discriminator on images: its own, the VQ-VAE's, feature matching, and the penalty."""
    with tf.GradientTape() as tape:
        tape.watch(real)
        of_real = discriminator(real, guide)
        verdict = sum(ops.sum(ops.mean(scale[-1], axis=(1, 2, 3))) for scale in of_real)
    penalty = ops.mean(ops.sum(tape.gradient(verdict, real) ** 2, axis=(1, 2, 3)))
    return *discriminator_losses(of_real, discriminator(decoded, guide)), penalty


def adversarial_gradients(training, frozen, discriminators, optimizer, draws, preset, variance):
    """Return what `loop.make_step` takes, of heads, for a HeadVQVAE and for discriminators with an optimizer.

    The `frozen` VQ-VAE gives the discriminators their guide; the SeedGenerator `draws` says what they look at.
    See `stages.adversarial_gradients`.
    """
    of_slices, of_planes = discriminators

    def gradients(stacks):
        vqvae, guide = training.model, frozen(stacks)[0]
        with tf.GradientTape() as tape, tf.GradientTape() as discriminator_tape:
            decoded, codes, quantizer_loss = vqvae(stacks, training=True)
            decoded = ops.maximum(decoded, -0.5)  # so that black is exactly black
            total, results = ops.shape(stacks)[0], []
            for discriminator, view, count in (
                (of_slices, slices_of, SLICES),
                (of_planes, sagittal, PLANES),
                (of_planes, coronal, PLANES),
            ):
                triple = [view(each) for each in (stacks, decoded, guide)]
                drawn = keras.random.randint((count * total,), 0, ops.shape(triple[0])[0], seed=draws)
                results.append(judge(discriminator, *(ops.take(each, drawn, axis=0) for each in triple)))
            hinge, adversarial, feature, penalty = (
                sum(share * each[i] for share, each in zip((0.5, 0.25, 0.25), results)) for i in range(4)
            )
            discriminator_loss = hinge + preset.penalty_weight * penalty
            reconstruction, similarity = reconstruction_losses(variance, stacks, decoded)
            loss = reconstruction + quantizer_loss + preset.adversarial_ssim_weight * (1 - similarity)
            loss += preset.adversarial_weight * adversarial + preset.feature_weight * feature
        judging = [variable for each in discriminators for variable in each.trainable_variables]
        painting = vqvae.trainable_variables
        updates = [(optimizer, discriminator_tape.gradient(discriminator_loss, judging), judging)]
        updates.append((training.optimizer, tape.gradient(loss, painting), painting))
        figures = {"loss": loss, "reconstruction_loss": reconstruction, "quantizer_loss": quantizer_loss}
        figures |= {"ssim": similarity, "adversarial_loss": adversarial, "feature_loss": feature}
        figures |= {"discriminator_loss": hinge}
        return updates, figures | {"code_counts": code_counts(vqvae, codes)}

    return gradients


def train_adversarial(job, preset, whole, vqvae, variance):
    """Train a HeadVQVAE on against two discriminators; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    frozen, used = copy_of(vqvae), as_used(vqvae)
    discriminators = [sharp.Discriminator(preset.discriminator_network) for _ in range(2)]
    adam = functools.partial(loop.adam_along_cosine, preset.adversarial, len(whole.seen), beta_1=0.5)
    optimizer = adam(preset.discriminator_learning_rate)
    judging = [variable for each in discriminators for variable in each.trainable_variables]
    optimizer.build(judging)
    draws = keras.random.SeedGenerator(job.seed, name="draws")
    others = [variable for each in discriminators for variable in each.variables] + optimizer.variables + [draws.state]
    training = job.training(preset, "adversarial", vqvae, adam(), follows=frozen.weights, others=others)
    gradients = adversarial_gradients(training, frozen, discriminators, optimizer, draws, preset, variance)
    return _fit_vqvae(training, gradients, whole, used)


def drawn_for_flow(draws, shape):
    """Return the times (N,) and the noise (N, *shape), float32, that go with draws."""
    times, noise = np.empty(len(draws), np.float32), np.empty((len(draws), *shape), np.float32)
    for i, draw in enumerate(draws):
        rng = np.random.default_rng(int(draw["offset"][1] * 2**53))
        times[i] = flow.time_of(rng.random())
        rng.standard_normal(out=noise[i], dtype=np.float32)
    return times, noise


def train_flow(job, preset, whole, vqvae):
    """Train a HeadFlow on the latents of Heads and the people's age and sex; returns its Training.

    It learns the quantized latents that the HeadVQVAE, in float32, gives heads once they are changed as
    `traits.changed` does. Those of the held-out heads, as they are, validate.
    """
    keras.utils.set_random_seed(job.seed)
    sizes = {"grid": vqvae.cells, "latent_dim": vqvae.config.latent_dim, "traits": len(traits.TRAITS)}
    model = flow.HeadFlow(replace(preset.flow_network, **sizes))

    def quantized(heads):
        return vqvae.quantizer.lookup(vqvae.encode(whole.read(heads)))

    some = np.random.default_rng(job.seed).permutation(whole.seen)[:KNOWN]
    known = np.concatenate([quantized([head]) for head in some])
    model.know(known)
    told = traits.traits_of(whole.people)
    adam = loop.adam_along_cosine(preset.flow, len(whole.seen), beta_2=0.99, clipnorm=1.0)
    follows = [*vqvae.encoder.weights, *(each.codebook for each in vqvae.quantizer.quantizers), told]
    training = job.training(preset, "flow", model, adam, monitor="validation_loss", follows=follows)
    training.about = {"people": traits.count_people([whole.people[head] for head in whole.seen])}
    shape = (*model.grid, sizes["latent_dim"])

    def read(chosen, draws):
        chosen = whole.seen[chosen]
        return *traits.changed(whole.read(chosen), told[chosen], draws), *drawn_for_flow(draws, shape)

    def loss(stacks, *others):
        return flow_loss(vqvae.quantizer.lookup(vqvae.quantizer.nearest(vqvae.latents(stacks))), *others)

    def flow_loss(latents, *others):
        value = ops.mean(flow.velocity_error(model, latents, *others))
        return value, {"loss": value}

    often = np.repeat(whole.unseen, LOOKS)
    times = flow.time_of((np.tile(np.arange(LOOKS, dtype=np.float32), len(whole.unseen)) + 0.5) / LOOKS)
    noise = np.random.default_rng(job.seed).standard_normal((len(often), *shape), np.float32)
    latents = np.concatenate([quantized([head]) for head in whole.unseen]).repeat(LOOKS, axis=0)
    figures_of = loop.validator(flow_loss, np.arange(len(often)), latents, told[often], times, noise, size=LOOKS)
    gradients = loop.gradients_of(training, loss)
    loop.fit(training, gradients, read, len(whole.seen), figures_of, reports.flow_line)
    set_stretch(vqvae, model, known[:STRETCHED], told[some[:STRETCHED]], job.seed)
    return training


def set_stretch(vqvae, model, latents, told, seed):
    """Set by how much samples of a HeadFlow are stretched about the mean head.

    A network that has not learned everything answers the mean of what may be, so that samples vary less than heads do,
    and are blurred. They are stretched until they are as sharp as the latents (N, S, h, w, D) of heads that were
    learned from, whose traits (N, T) are told.
    """
    model.stretch.assign(1)
    drawn, middle = flow.sample_latents(model, len(told), seed, told), np.asarray(model.middle)

    def sharpness(latents):
        return differences(np.concatenate(vqvae.decode(vqvae.codes_of(latents))))  # of all slices

    found = [sharpness(middle + stretch * (drawn - middle)) for stretch in STRETCHES]
    model.stretch.assign(np.interp(sharpness(latents), found, STRETCHES))


def train_head(job, preset):
    """Train the head models on the slices of a Job; returns {stage: Training}, the mean image and the variance."""
    levels, slab = int(job.levels.max()) + 1, preset.vqvae_network.slab
    if levels % slab:
        raise UserError(f"heads of {levels} slices cannot be cut into slabs of {slab}; see dataset.py slices")
    preset = replace(preset, vqvae_network=replace(preset.vqvae_network, levels=levels))
    whole = whole_heads(job, levels)
    mean, variance = stream.moments(job.images, job.seen)
    trainings = {"vqvae": train_vqvae(job, preset, whole, mean.mean(), variance)}
    trainings["adversarial"] = train_adversarial(job, preset, whole, trainings["vqvae"].model, variance)
    trainings["flow"] = train_flow(job, preset, whole, as_used(trainings["vqvae"].model))
    return trainings, mean, variance
