"""Trains a VQ-VAE on the training slices, then a PixelCNN on their codes, and stores both.

    python train.py                   train the faithful models and replace trained_models/faithful
    python train.py --preset sharp    train larger models for slices with texture: trained_models/sharp
    python train.py --preset head     train models of whole heads, by age and sex: trained_models/head
    python train.py --preset tissue   train a network that tells the tissue of each pixel: trained_models/tissue
    python train.py --resume          continue an interrupted training

This file shows the faithful training: `train_faithful` is its order, and the two losses stand above it. Epochs, batch
sizes and learning rates are in brains/config.py. The sharp training is in brains/stages.py. `loop.fit` (brains/loop.py)
feeds shuffled batches, applies the gradients on all devices and writes a checkpoint after every epoch. The old weights
stay in use until the new ones are complete.
"""

import argparse
import shlex
import sys
from pathlib import Path

from brains import cli, config


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Train a VQ-VAE on the training slices, then a PixelCNN on their codes. The sharp preset also "
        "trains the VQ-VAE against a discriminator, and last a critic that chooses among samples. The tissue preset "
        "trains a segmenter on the masks of the slices."
    )
    cli.add_training_flags(parser)
    add = parser.add_argument
    meaning = "share of the cases that is held out to validate (default: %(default)s)"
    add("--validation-share", type=cli.share, default=0.1, metavar="N", help=meaning)
    meaning = "draws initial weights and the order of slices (default: %(default)s)"
    add("--seed", type=cli.seed, default=0, metavar="N", help=meaning)
    add("--resume", action="store_true", help="continue after the last finished epoch")
    meaning = (
        "precision of the convolutions; weights, codes and losses are always float32 (default: auto, the faster one as "
        "measured, or float32 with --deterministic)"
    )
    add("--precision", choices=("auto", "float32", "mixed_bfloat16"), default="auto", help=meaning)
    meaning = "give the same result to the bit for the same seed and machine; slower on GPUs"
    add("--deterministic", action="store_true", help=meaning)
    meaning = "table of the people's age and sex: the study's CSV or a BIDS participants.tsv (default: that beside the "
    meaning += "slices, or the study's, fetched if missing); only for the head preset"
    add("--people", type=Path, metavar="FILE", help=meaning)
    cli.add_data_arguments(parser)
    cli.add_model_arguments(parser, presets=tuple(config.PRESETS))
    args = parser.parse_args(arguments)
    args.models = cli.choose_models(args)
    if args.people and args.preset != "head":
        parser.error(f"--people does not go with --preset {args.preset}")
    return args, cli.choose_preset(parser, args)


if __name__ == "__main__":
    cli.parse_early(parse_arguments)

import dataclasses
import functools

import numpy as np

import modules
from brains import headstages, jobs, loop, plots, reports, stages, stream, tissue
from brains.backend import keras, ops
from brains.codebook import cluster_latents
from brains.config import FIGURES
from brains.weights import as_used


def vqvae_loss(vqvae, variance, images):
    """Return the loss of a VQVAE, and its figures, on images (N, 128, 128, 1) from data of that variance.

    The squared error is divided by the variance, so that 1 is the error of always giving the mean pixel. Figures
    are averaged over an epoch; what is named counts is summed.
    """
    reconstructions, codes, quantizer_loss = vqvae(images, training=True)
    reconstruction_loss = ops.mean((images - reconstructions) ** 2) / variance
    loss = reconstruction_loss + quantizer_loss
    figures = {"loss": loss, "reconstruction_loss": reconstruction_loss, "quantizer_loss": quantizer_loss}
    return loss, figures | {"code_counts": modules.code_counts(codes, vqvae.config.num_embeddings)}


def warm_up_loss(vqvae, variance, images):
    """Return what `vqvae_loss` returns, but of the VQVAE without its quantizer: an autoencoder."""
    reconstructions = vqvae.paint(vqvae.encoder(images, training=True))
    loss = ops.mean((images - reconstructions) ** 2) / variance
    figures = {"loss": loss, "reconstruction_loss": loss, "quantizer_loss": ops.zeros(())}
    return loss, figures | {"code_counts": ops.zeros(vqvae.config.num_embeddings)}


def pixelcnn_loss(pixelcnn, codes):
    """Return the loss of a PixelCNN, in nats a code, and its figures, on codes (N, 8, 8)."""
    logits = pixelcnn(codes)
    loss = ops.mean(modules.cross_entropy(codes, logits))
    return loss, {"loss": loss, "accuracy": modules.accuracy(codes, logits)}


def train_faithful(job, preset):
    """Train the faithful models on the slices of a Job; returns {stage: Training}, the mean image and the variance."""
    mean, variance = stream.moments(job.images, np.arange(len(job.images)))

    # 1. The VQ-VAE learns to turn all training slices into codes and back, those of the held-out cases too.
    vqvae_training = train_vqvae(job, preset, variance)

    # 2. It gives every slice its grid of codes: in float32, as predict.py uses it, whatever it was trained in.
    vqvae = as_used(vqvae_training.model)
    codes = stream.encode(vqvae, job.images, job.scratch / "codes.bin")

    # 3. The PixelCNN learns which grids are likely. It keeps the weights of the epoch that was best on held-out cases.
    pixelcnn_training = train_pixelcnn(job, preset, vqvae, codes)
    return {"vqvae": vqvae_training, "pixelcnn": pixelcnn_training}, mean, variance


def train_vqvae(job, preset, variance):
    """Train the faithful VQVAE on all slices of a Job, whose variance is given; returns its Training.

    A codebook that starts at random lies far from the latents, so that a few of its vectors are nearest to all of them
    and the others are never used. With `codebook_init` "kmeans" it starts from the centres of latents, after a warm-up
    without quantization, and learns faster than the network, to keep up with it. Then the weights of the last step are
    not kept either, but their mean over the last epoch: from step to step the black of the background wavers, and SSIM
    with it.
    """
    keras.utils.set_random_seed(job.seed)
    vqvae = modules.build_vqvae(preset.vqvae_network)
    adam, codebook = keras.optimizers.Adam(preset.vqvae.learning_rate), [vqvae.quantizer.codebook]
    adam_of_codebook = keras.optimizers.Adam(preset.codebook_learning_rate)
    adam_of_codebook.build(codebook)
    changing, others = ("epochs", "validation_share"), adam_of_codebook.variables
    training = job.training(preset, "vqvae", vqvae, adam, others=others, may_change=changing)
    chosen = job.seen if "vqvae" in preset.held_out_from else np.arange(len(job.images))

    def read(batch, draws):  # indices; the sharp training uses the draws to vary the slices
        return [job.images[chosen[batch]]]

    def fit(loss, *optimizers, until=None):
        gradients = loop.gradients_of(training, functools.partial(loss, vqvae, variance), optimizers)
        figures, line = reports.with_code_usage, reports.vqvae_line
        return loop.fit(training, gradients, read, len(chosen), figures, line, until)

    if preset.codebook_init == "uniform":
        return fit(vqvae_loss, (adam, vqvae.trainable_variables))
    network, training.averaged = vqvae.encoder.weights + vqvae.decoder.weights, True
    warm_up = min(preset.warm_up_epochs, preset.vqvae.epochs - 1)
    fit(warm_up_loss, (adam, network), until=warm_up)
    if len(training.history) == warm_up:
        vqvae.quantizer.codebook.assign(cluster_latents(vqvae, job.images, chosen, job.seed))
    return fit(vqvae_loss, (adam, network), (adam_of_codebook, codebook))


def train_pixelcnn(job, preset, vqvae, codes):
    """Train a PixelCNN on the codes (N, 8, 8) that a VQVAE gives the slices of a Job; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    number = vqvae.config.num_embeddings
    pixelcnn = modules.PixelCNN(dataclasses.replace(preset.prior_network, grid=vqvae.grid, num_embeddings=number))
    adam = keras.optimizers.Adam(preset.pixelcnn.learning_rate)
    training = job.training(
        preset,
        "pixelcnn",
        pixelcnn,
        adam,
        monitor="validation_loss",
        follows=[*vqvae.encoder.weights, vqvae.quantizer.codebook],
        may_change=("epochs",),
    )

    def read(chosen, draws):
        return [codes[job.seen[chosen]]]

    loss = functools.partial(pixelcnn_loss, pixelcnn)
    gradients = loop.gradients_of(training, loss)
    figures_of = loop.validator(loss, job.unseen, codes)
    line_of = functools.partial(reports.prior_line, num_embeddings=number)
    return loop.fit(training, gradients, read, len(job.seen), figures_of, line_of)


TRAIN = {
    "faithful": train_faithful,
    "sharp": stages.train_sharp,
    "head": headstages.train_head,
    "tissue": tissue.train_tissue,
}


def main(arguments=None):
    args, preset = parse_arguments(arguments)
    try:
        options = ("validation_share", "seed", "resume", "precision", "deterministic", "people")
        options = {name: getattr(args, name) for name in options}
        with jobs.start(args.preset, args.models, args.out, args.data, args.url, **options) as job:
            content = jobs.finish(job, preset, args.models, *TRAIN[args.preset](job, preset))
    except KeyboardInterrupt:
        call = ["python", *(sys.argv if arguments is None else ["train.py", *arguments])]
        again = shlex.join([*call, *([] if args.resume else ["--resume"])])
        cli.note(f"\ninterrupted; `{again}` continues after the last epoch that was finished, if any")
        sys.exit(130)
    if content:  # of several workers only the first one has it
        if args.no_show:
            plots.hide()
        for stage, figure in plots.trainings(content).items():
            plots.save(figure, args.out / FIGURES[stage])
        plots.show()


if __name__ == "__main__":
    cli.run(main)
