"""Trains a VQ-VAE on the training slices, then a PixelCNN on their codes, and stores both.

    python train.py                   train the faithful models and replace trained_models/faithful
    python train.py --preset sharp    train larger models for slices with texture: trained_models/sharp
    python train.py --resume          continue an interrupted training

This file shows the faithful training: `train_faithful` is its order, and the two losses stand above it. Epochs, batch
sizes and learning rates are in brains/config.py. The sharp training is in brains/stages.py. `loop.fit` (brains/loop.py)
feeds shuffled batches, applies the gradients on all devices and writes a checkpoint after every epoch. The old weights
stay in use until the new ones are complete.
"""

import argparse
import shlex
import sys

from brains import cli


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Train a VQ-VAE on the training slices, then a PixelCNN on their codes. The sharp preset also "
        "trains the VQ-VAE against a discriminator, and last a critic that chooses among samples."
    )
    cli.add_training_flags(parser)
    parser.add_argument(
        "--validation-share",
        type=cli.share,
        default=0.1,
        metavar="N",
        help="share of the cases that is held out to validate (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=cli.seed,
        default=0,
        metavar="N",
        help="draws initial weights, the order of slices and the held-out cases (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="continue after the last finished epoch")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "mixed_bfloat16"),
        default="auto",
        help="precision of the convolutions; weights, codes and losses are always float32 (default: auto, the faster "
        "one as measured, or float32 with --deterministic)",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="give the same result to the bit for the same seed and machine; slower on GPUs",
    )
    cli.add_data_arguments(parser)
    cli.add_model_arguments(parser)
    args = parser.parse_args(arguments)
    args.models = cli.choose_models(args)
    return args, cli.choose_preset(parser, args)


if __name__ == "__main__":
    parse_arguments()  # before the imports that take seconds: --help and wrong usage answer at once

import dataclasses

import numpy as np

import modules
from brains import jobs, loop, plots, reports, stages, stream
from brains.backend import keras, tf
from brains.config import FIGURES
from brains.reconstruction import as_used
from keras import ops  # isort: skip


def vqvae_loss(vqvae, variance, images):
    """Return the loss of a VQVAE, and its figures, on images (N, 128, 128, 1) from data of that variance.

    The squared error is divided by the variance, so that 1 is the error of always giving the mean pixel. Figures
    are averaged over an epoch; what is named counts is summed.
    """
    reconstructions, codes, quantizer_loss = vqvae(images, training=True)
    reconstruction_loss = ops.mean((images - reconstructions) ** 2) / variance
    loss = reconstruction_loss + quantizer_loss
    return loss, {
        "loss": loss,
        "reconstruction_loss": reconstruction_loss,
        "quantizer_loss": quantizer_loss,
        "code_counts": reports.code_counts(codes, vqvae.config.num_embeddings),
    }


def pixelcnn_loss(pixelcnn, codes):
    """Return the loss of a PixelCNN, in nats a code, and its figures, on codes (N, 8, 8)."""
    logits = pixelcnn(codes)
    loss = ops.mean(modules.cross_entropy(codes, logits))
    accuracy = ops.mean(ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == codes, "float32"))
    return loss, {"loss": loss, "accuracy": accuracy}


def train_faithful(job, preset):
    """Train the faithful models on the slices of a Job; returns {stage: Training}, the mean image and the variance."""
    mean, variance = job.moments(np.full(len(job.images), True))  # of all slices

    # 1. The VQ-VAE learns to turn all training slices into codes and back, those of the held-out cases too.
    vqvae_training = train_vqvae(job, preset, variance)

    # 2. It gives every slice its grid of codes: in float32, as predict.py uses it, whatever it was trained in.
    vqvae = as_used(vqvae_training.model)
    codes = stream.encode(vqvae, job.images, job.scratch / "codes.bin")

    # 3. The PixelCNN learns which grids are likely. It keeps the weights of the epoch that was best on held-out cases.
    pixelcnn_training = train_pixelcnn(job, preset, vqvae, codes)
    return {"vqvae": vqvae_training, "pixelcnn": pixelcnn_training}, mean, variance


def train_vqvae(job, preset, variance):
    """Train the faithful VQVAE on all slices of a Job, whose variance is given; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    vqvae = modules.build_vqvae(preset.vqvae_network)
    optimizer = keras.optimizers.Adam(preset.vqvae.learning_rate)
    settings = job.settings_of(preset, "vqvae", ignore=("epochs", "validation_share"))  # these may change on --resume
    training = job.training("vqvae", vqvae, optimizer, settings)
    job.note_few_steps(training, preset.vqvae, len(job.images))

    def read(chosen, draws):  # a batch of indices; the sharp training uses the draws to vary the slices
        return [job.images[chosen]]

    def loss(images):
        return vqvae_loss(vqvae, variance, images)

    def summarise(totals):  # of an epoch
        figures = reports.with_code_usage(totals)
        return figures, reports.vqvae_line(figures)

    gradients = loop.gradients_of(training, loss)
    loop.fit(training, gradients, read, len(job.images), preset.vqvae, job.seed, summarise)
    return training


def train_pixelcnn(job, preset, vqvae, codes):
    """Train a PixelCNN on the codes (N, 8, 8) that a VQVAE gives the slices of a Job; returns its Training."""
    keras.utils.set_random_seed(job.seed)
    network = dataclasses.replace(preset.prior_network, grid=vqvae.grid, num_embeddings=vqvae.config.num_embeddings)
    pixelcnn = modules.PixelCNN(network)
    optimizer = keras.optimizers.Adam(preset.pixelcnn.learning_rate)
    settings = job.settings_of(preset, "pixelcnn", ignore=("epochs",))
    settings["follows"] = job.digest_of_codes(vqvae)  # what gave the codes
    training = job.training("pixelcnn", pixelcnn, optimizer, settings, monitor="validation_loss")
    seen, unseen = job.seen_and_unseen()
    signature = [tf.TensorSpec((None, *network.grid), "int32")]
    evaluate = tf.function(lambda grids: pixelcnn_loss(pixelcnn, grids)[1], input_signature=signature)

    def read(chosen, draws):
        return [codes[seen[chosen]]]

    def loss(grids):
        return pixelcnn_loss(pixelcnn, grids)

    def summarise(totals):
        figures = loop.with_validation(totals, lambda part: evaluate(codes[unseen[part]]), len(unseen))
        return figures, reports.prior_line(figures, network.num_embeddings)

    loop.fit(training, loop.gradients_of(training, loss), read, len(seen), preset.pixelcnn, job.seed, summarise)
    return training


def main(arguments=None):
    args, preset = parse_arguments(arguments)
    try:
        options = ("validation_share", "seed", "resume", "precision", "deterministic")
        options = {name: getattr(args, name) for name in options}
        with jobs.start(args.preset, args.models, args.out, args.data, args.url, **options) as job:
            train = {"faithful": train_faithful, "sharp": stages.train_sharp}[args.preset]
            content = jobs.finish(job, preset, args.models, *train(job, preset))
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
