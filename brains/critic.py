"""The training of the sharp preset's critic, and its loss.

It learns to tell samples of a prior from real slices, so that of several samples the most realistic one can be kept.
Discriminators (Azadi et al. 2019, arXiv 1810.06758) and classifiers (Razavi et al. 2019, VQ-VAE-2, arXiv 1906.00446)
have rejected samples before. This one sees real slices as the VQ-VAE decodes them, so that it looks for the mistakes of
the prior and not for those of the decoder.
"""

import functools

import numpy as np
from tqdm import tqdm

from brains import devices, loop, reports, sampling
from brains.augment import flip_half
from brains.backend import keras, tf
from brains.sharp import Critic
from keras import ops  # isort: skip

DRAWN = 10_000  # samples that the critic learns from, at most


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

    `codes` (N, h, w) are those that the VQVAE, in float32, gives the slices. The held-out slices, and as many samples,
    validate.
    """
    order = np.random.default_rng(job.seed)
    seen, unseen = (order.permutation(np.flatnonzero(chosen)) for chosen in (~job.held_out, job.held_out))
    unseen = unseen[: DRAWN // 10]
    sampled, sampled_unseen = _samples(job, preset, pixelcnn, seen[:DRAWN], unseen)
    keras.utils.set_random_seed(job.seed)
    model = Critic(preset.critic_network)
    training = job.training(
        "critic",
        model,
        loop.adam_along_cosine(preset.critic, len(seen)),
        {**job.settings_of(preset, "critic"), "follows": job.digest(*vqvae.weights, *pixelcnn.weights)},
        monitor="validation_loss",
    )
    grids = tf.TensorSpec((None, *pixelcnn.grid), "int32")
    evaluate = tf.function(
        lambda *batch: critic_loss(model, vqvae, *batch, training=False)[1], input_signature=[grids, grids]
    )

    def read(chosen, draws):  # not moved, so the critic undoes the moves that the prior has learned
        return flip_half(job.images[seen[chosen]], draws), sampled[chosen % len(sampled)]

    def loss(images, samples):
        return critic_loss(model, vqvae, vqvae.quantizer.nearest(vqvae.encoder(images)), samples)

    def summarise(totals):
        figures = loop.with_validation(
            totals, lambda part: evaluate(codes[unseen[part]], sampled_unseen[part]), len(unseen)
        )
        return figures, reports.critic_line(figures)

    gradients = loop.gradients_of(training, loss)
    loop.fit(training, gradients, read, len(seen), preset.critic, job.seed, summarise)
    return training


def _samples(job, preset, pixelcnn, seen, unseen):
    """Draw a sample of the same level for each of the slices `seen` and `unseen`, which are indices."""
    imitated = np.concatenate([seen, unseen])
    print(f"critic: drawing {len(imitated):,} samples", flush=True)
    progress = functools.partial(tqdm, unit="batch", leave=False, disable=None if devices.writes() else True)
    seed = (job.seed, 1)  # a seed that no --seed can name later, because the critic knows these samples
    drawn = sampling.sample(pixelcnn, len(imitated), seed, preset.temperature, job.levels[imitated], progress)
    return np.split(drawn, [len(seen)])
