"""Trains the VQ-VAE on the training slices, then the PixelCNN on their codes, and stores both.

    python train.py             train and replace trained_models/faithful
    python train.py --resume    continue a training that was interrupted

The VQ-VAE minimises the squared error of its reconstructions, divided by the variance of the data so that 1 is the
error of a constant image, plus the losses of its quantizer. The PixelCNN minimises the cross-entropy of the codes that
the trained VQ-VAE gives the slices. Every epoch ends with a checkpoint beside the folder of the weights; the weights
that were there stay in use until the new ones are complete.

TensorFlow is imported inside functions here and in the other scripts: --help and wrong usage should not wait for it.
"""

import argparse
import hashlib
import json
import math
import platform
import shlex
import shutil
import sys
import time
import zipfile
from importlib.metadata import version

import numpy as np

import dataset
from dataset import UserError, note, positive, written

NETWORK = {"size": dataset.SIZE, "filters": (32, 32, 64, 64), "bottleneck": 128, "commitment_cost": 0.25}
PIXELCNN_FILTERS = 128
VQVAE_LEARNING_RATE = 1e-3
PIXELCNN_LEARNING_RATE = 3e-4


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train the VQ-VAE on the training slices, then the PixelCNN on their codes."
    )

    def add(flag, default, meaning, kind=positive):
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=f"{meaning} (default: %(default)s)")

    add("--latent-dim", 16, "numbers in a codebook vector")
    add("--embeddings", 128, "vectors in the codebook")
    add("--vqvae-epochs", 30, "epochs of the VQ-VAE")
    add("--vqvae-batch-size", 128, "slices in a training step of the VQ-VAE")
    add("--residual-blocks", 2, "residual blocks of the PixelCNN")
    add("--masked-layers", 2, "masked 1x1 layers that follow them in the PixelCNN")
    add("--pixelcnn-epochs", 30, "epochs of the PixelCNN")
    add("--pixelcnn-batch-size", 128, "grids in a training step of the PixelCNN")
    add("--validation-share", 0.1, "share of the cases held out to validate the PixelCNN", share)
    add("--seed", 0, "of the initial weights, the shuffling and the choice of held-out cases", dataset.seed)
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted training after its last finished epoch"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "mixed_bfloat16"),
        default="auto",
        help="of the convolutions; weights, codes and losses stay float32 (default: auto, the faster as measured, or "
        "float32 with --deterministic)",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same result to the bit for the same seed and machine; slower on GPUs",
    )
    dataset.add_data_arguments(parser)
    dataset.add_model_arguments(parser)
    return parser.parse_args()


def share(text):
    """Argument type: a number between 0 and 1, both excluded."""
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")


# --- precision --------------------------------------------------------------------------------------------------------


def choose_precision(asked, deterministic=False, checkpoint=None):
    """The Keras dtype policy to train with: as asked, or where that is "auto" that of a checkpoint, or the faster.

    Faster is mixed_bfloat16 where the processor has units for bfloat16, and far slower where it has none, so it is
    measured: a convolution of a middle layer's size, with its gradients. No measurement is the same twice, so what must
    be deterministic is float32.
    """
    if asked != "auto":
        return asked
    if checkpoint and checkpoint.exists():
        return load_checkpoint(checkpoint)[0]["settings"]["precision"]
    if deterministic:
        return "float32"
    convolutions = [_convolution(dtype) for dtype in ("bfloat16", "float32")]
    half, single = np.min([[seconds() for seconds in convolutions] for _ in range(5)], axis=0)
    return "mixed_bfloat16" if half < 0.9 * single else "float32"


def _convolution(dtype):
    """A function that times a convolution and its gradients."""
    import tensorflow as tf

    images, kernel = tf.ones((64, 32, 32, 64), dtype), tf.ones((3, 3, 64, 64), dtype)

    @tf.function
    def convolve():
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            result = tf.nn.conv2d(images, kernel, 1, "SAME")
        return [tf.reduce_sum(tf.cast(gradient, "float32")) for gradient in tape.gradient(result, (images, kernel))]

    def seconds():
        began = time.perf_counter()
        np.asarray(convolve())
        return time.perf_counter() - began

    seconds()  # traces
    return seconds


# --- a training and its checkpoints -----------------------------------------------------------------------------------


def load_checkpoint(path):
    """The state (a dict of settings and history) and the arrays by name of a checkpoint; UserError if it is broken."""
    try:
        with np.load(path) as saved:
            arrays = dict(saved)
        return json.loads(str(arrays.pop("state"))), arrays
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: a broken checkpoint; delete it or train without --resume") from error


class Training:
    """A model in training: everything that a checkpoint holds.

    `settings` is what a resumed training must have in common with the interrupted one. `history` has a dict of figures
    for each finished epoch. Where a figure `monitor` is named, `best` has the weights of the epoch where it was lowest.
    """

    def __init__(self, name, model, learning_rate, settings, path, monitor=None):
        import keras

        self.name, self.model, self.settings, self.path, self.monitor = name, model, settings, path, monitor
        self.learning_rate = learning_rate
        self.optimizer = keras.optimizers.Adam(learning_rate)
        self.optimizer.build(model.trainable_variables)
        self.history, self.best = [], []

    @property
    def best_epoch(self):
        """The number, from 1, of the epoch whose weights are kept."""
        if self.monitor is None:
            return len(self.history)
        return 1 + int(np.argmin([epoch[self.monitor] for epoch in self.history]))

    def finish_epoch(self, figures):
        """Add an epoch's figures to the history and write a checkpoint; raises UserError where one is not finite."""
        if not all(map(math.isfinite, figures.values())):
            raise UserError(
                f"{self.name}: the loss is no longer finite; the weights in use stay, train with another --seed"
            )
        self.history.append(figures)
        if self.monitor and self.best_epoch == len(self.history):
            self.best = self.model.get_weights()
        self._save()

    def _variables(self):
        return [*self.model.variables, *self.optimizer.variables]

    def _save(self):
        state = json.dumps({"settings": self.settings, "history": self.history})
        arrays = {f"variable_{i}": np.asarray(variable) for i, variable in enumerate(self._variables())}
        arrays |= {f"best_{i}": weight for i, weight in enumerate(self.best)}
        with written(self.path) as part:
            np.savez(part, state=state, **arrays)

    def restore(self):
        """Take up the checkpoint, if there is one; raises UserError where it is broken or of other settings."""
        if not self.path.exists():
            return
        state, arrays = load_checkpoint(self.path)
        self._check(state["settings"])
        for i, variable in enumerate(self._variables()):
            variable.assign(arrays[f"variable_{i}"])
        self.best = [arrays[f"best_{i}"] for i in range(len(self.model.weights))] if self.monitor else []
        self.history = state["history"]
        note(f"{self.name}: continuing after epoch {len(self.history)}")

    def _check(self, saved):
        for name, value in self.settings.items():
            if saved.get(name) != value:
                raise UserError(
                    f"{self.path}: the interrupted training had {name} {saved.get(name)}, this one has {value}; call "
                    "train.py as then, or without --resume to start afresh"
                )

    def keep_best(self):
        """Give the model the weights of the best epoch."""
        if self.best:
            self.model.set_weights(self.best)


def make_step(training, loss, arrays):
    """A compiled training step on a batch of each array; returns the figures that `loss(model, *batch)` gives."""
    import tensorflow as tf

    model, optimizer = training.model, training.optimizer

    # one graph for batches of any size: a resumed training must not compute by another than the interrupted one
    @tf.function(input_signature=[tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays])
    def step(*batch):
        with tf.GradientTape() as tape:
            value, figures = loss(model, *batch)
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        return figures

    return step


def shuffled(count, batch_size, seed):
    """Batches of indices that together are 0..count-1 in an order given by the seed."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def fit(training, loss, summarise, arrays, epochs, batch_size, seed):
    """Train until `epochs` epochs are finished.

    `loss(model, *batch)`, called on a batch of each of `arrays`, returns the loss and figures to report: means over
    the batch, or sums where the name ends in "counts". `summarise` turns their means (sums) over an epoch into the
    epoch's figures and a line to print.
    """
    import keras

    step = make_step(training, loss, arrays)
    count = len(arrays[0])
    for epoch in range(len(training.history), epochs):
        print(f"{training.name}, epoch {epoch + 1}/{epochs}", flush=True)
        began = time.perf_counter()
        batches = shuffled(count, batch_size, (seed, epoch))
        progress = keras.utils.Progbar(len(batches), verbose=1 if sys.stdout.isatty() else 2, stateful_metrics=["loss"])
        totals = {}
        for number, batch in enumerate(batches, start=1):
            for name, value in step(*[array[batch] for array in arrays]).items():
                weight = 1 if name.endswith("counts") else len(batch) / count
                totals[name] = totals.get(name, 0) + weight * np.asarray(value, np.float64)
            progress.update(number, [("loss", totals["loss"] * count / min(count, number * batch_size))])
        figures, line = summarise(totals)
        training.finish_epoch(figures | {"seconds": round(time.perf_counter() - began, 1)})
        print(line, flush=True)


# --- the two models ---------------------------------------------------------------------------------------------------


def vqvae_loss(variance):
    """The loss of a VQVAE, and its figures, on images (N, size, size, 1) from data of that variance."""
    from keras import ops

    def loss(model, images):
        reconstructions, codes, quantizer_loss = model(images, training=True)
        reconstruction_loss = ops.mean((images - reconstructions) ** 2) / variance
        total = reconstruction_loss + quantizer_loss
        return total, {
            "loss": total,
            "reconstruction_loss": reconstruction_loss,
            "quantizer_loss": quantizer_loss,
            "code_counts": ops.sum(ops.one_hot(codes, model.config["num_embeddings"]), axis=(0, 1, 2)),
        }

    return loss


def train_vqvae(images, variance, settings, args, path):
    """Train a VQVAE on images (N, 128, 128, 1) of that variance; returns its Training."""
    import keras

    import modules

    keras.utils.set_random_seed(args.seed)
    model = modules.VQVAE(**NETWORK, latent_dim=args.latent_dim, num_embeddings=args.embeddings)
    settings = settings | {
        "latent_dim": args.latent_dim,
        "embeddings": args.embeddings,
        "batch_size": args.vqvae_batch_size,
    }
    training = Training("VQ-VAE", model, VQVAE_LEARNING_RATE, settings, path)

    def summarise(totals):
        in_use, perplexity = modules.code_usage(totals.pop("code_counts"))
        figures = {name: float(value) for name, value in totals.items()}
        line = (
            f"  loss {figures['loss']:.4f} = reconstruction {figures['reconstruction_loss']:.4f} + "
            f"quantizer {figures['quantizer_loss']:.4f}; codes in use {in_use:.0%}, perplexity {perplexity:.1f}"
        )
        return figures | {"codes_in_use": in_use, "perplexity": perplexity}, line

    if args.resume:
        training.restore()
    fit(training, vqvae_loss(variance), summarise, [images], args.vqvae_epochs, args.vqvae_batch_size, args.seed)
    return training


def pixelcnn_loss(model, codes):
    """The loss of a PixelCNN, in nats a code, and its figures, on codes (N, h, w)."""
    from keras import ops

    import modules

    logits = model(codes, training=True)
    loss = ops.mean(modules.cross_entropy(codes, logits))
    accuracy = ops.mean(ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == codes, "float32"))
    return loss, {"loss": loss, "accuracy": accuracy}


def train_pixelcnn(codes, held_out, settings, args, path):
    """Train a PixelCNN on codes (N, h, w) but for the `held_out` (N,) bool, which validate; returns its Training."""
    import keras
    import tensorflow as tf

    import modules

    keras.utils.set_random_seed(args.seed)
    model = modules.PixelCNN(
        grid=codes.shape[1:],
        num_embeddings=args.embeddings,
        filters=PIXELCNN_FILTERS,
        residual_blocks=args.residual_blocks,
        masked_layers=args.masked_layers,
    )
    settings = settings | {
        "residual_blocks": args.residual_blocks,
        "masked_layers": args.masked_layers,
        "batch_size": args.pixelcnn_batch_size,
        "validation_share": args.validation_share,
    }
    training = Training("PixelCNN", model, PIXELCNN_LEARNING_RATE, settings, path, monitor="validation_loss")

    training_codes, validation_codes = codes[~held_out], codes[held_out]
    evaluate = tf.function(
        lambda batch: pixelcnn_loss(model, batch)[1],
        input_signature=[tf.TensorSpec((None, *codes.shape[1:]), codes.dtype)],
    )

    def summarise(totals):
        figures = {name: float(value) for name, value in totals.items()}
        for name in figures.copy():
            figures[f"validation_{name}"] = 0.0
        for i in range(0, len(validation_codes), modules.BATCH):
            batch = validation_codes[i : i + modules.BATCH]
            for name, value in evaluate(batch).items():
                figures[f"validation_{name}"] += float(value) * len(batch) / len(validation_codes)
        line = "  " + "; ".join(
            f"{side}: loss {figures[prefix + 'loss']:.4f} ({figures[prefix + 'loss'] / math.log(2):.3f} bits a code), "
            f"accuracy {figures[prefix + 'accuracy']:.3f}"
            for side, prefix in (("training", ""), ("validation", "validation_"))
        )
        return figures, f"{line}; a uniform guess: {math.log2(args.embeddings):g} bits"

    if args.resume:
        training.restore()
    fit(training, pixelcnn_loss, summarise, [training_codes], args.pixelcnn_epochs, args.pixelcnn_batch_size, args.seed)
    training.keep_best()
    return training


# --- figures ----------------------------------------------------------------------------------------------------------


def plot_vqvae(plt, history):
    """Loss of the VQ-VAE and its parts, and the perplexity of its codes, by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    epochs = range(1, len(history) + 1)
    for name, label in (("loss", "total"), ("reconstruction_loss", "reconstruction"), ("quantizer_loss", "quantizer")):
        left.plot(epochs, [epoch[name] for epoch in history], label=label)
    left.set(title="VQ-VAE loss", xlabel="epoch", ylabel="loss", yscale="log")
    left.legend()
    right.plot(epochs, [epoch["perplexity"] for epoch in history])
    right.set(title="Perplexity of the codes", xlabel="epoch", ylabel="perplexity")
    return figure


def plot_pixelcnn(plt, history, best_epoch):
    """Loss and accuracy of the PixelCNN on training and validation grids, by epoch, the kept epoch marked."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4))
    epochs = range(1, len(history) + 1)
    for panel, name, unit in zip(panels, ("loss", "accuracy"), ("nats a code", "share of codes")):
        for prefix, label in (("", "training"), ("validation_", "validation")):
            panel.plot(epochs, [epoch[prefix + name] for epoch in history], label=label)
        panel.axvline(best_epoch, color="grey", linestyle=":", label=f"epoch kept ({best_epoch})")
        panel.set(title=f"PixelCNN {name}", xlabel="epoch", ylabel=unit)
        panel.legend()
    return figure


# --- the whole --------------------------------------------------------------------------------------------------------


def train(args):
    """Train both models on the training split and store them in args.models; returns their configuration."""
    import modules

    if args.deterministic:
        modules.tf.config.experimental.enable_op_determinism()
    modules.make_staging(args.models).rmdir()  # found unfit now rather than after an hour
    dataset.make_folder(args.out)
    images, names, digest = dataset.load_split("train", args.data, args.url)
    variance = float(images.var(dtype=np.float64))
    if variance == 0:
        raise UserError("all training slices are one constant; nothing can be learned from them")
    cases = [dataset.case_of(name) for name in names]
    held_out = dataset.hold_out(cases, args.validation_share, args.seed)

    checkpoints = modules.checkpoint_folder(args.models)
    dataset.make_folder(checkpoints)
    vqvae_path, pixelcnn_path = checkpoints / "vqvae.npz", checkpoints / "pixelcnn.npz"
    if args.resume and not vqvae_path.exists():
        note("no interrupted training to continue; starting afresh")
    elif vqvae_path.exists() and not args.resume:
        note("--resume would continue an interrupted training; its checkpoint goes when the first epoch is finished")
    precision = choose_precision(args.precision, args.deterministic, vqvae_path if args.resume else None)
    modules.keras.config.set_dtype_policy(precision)
    print(f"precision: {precision}")
    settings = {"digest": digest, "seed": args.seed, "precision": precision}
    vqvae = train_vqvae(images, variance, settings, args, vqvae_path)
    codes = vqvae.model.encode(images)
    settings["vqvae"] = hashlib.sha256(b"".join(weight.tobytes() for weight in vqvae.model.get_weights())).hexdigest()
    if args.resume and pixelcnn_path.exists():
        if load_checkpoint(pixelcnn_path)[0]["settings"]["vqvae"] != settings["vqvae"]:
            note("the PixelCNN's checkpoint is for the codes of another VQ-VAE; starting it afresh")
            pixelcnn_path.unlink()
    pixelcnn = train_pixelcnn(codes, np.isin(cases, held_out), settings, args, pixelcnn_path)

    config = {
        "vqvae": {"network": vqvae.model.config, **describe(vqvae, args.vqvae_batch_size)},
        "pixelcnn": {"network": pixelcnn.model.config, **describe(pixelcnn, args.pixelcnn_batch_size)},
        "data": {
            "digest": digest,
            "genuine": dataset.is_genuine("train", digest),
            "slices": len(names),
            "variance": variance,
            "held_out_cases": held_out,
        },
        "seed": args.seed,
        "precision": precision,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }
    modules.save_models(args.models, vqvae.model, pixelcnn.model, config, images.mean(axis=0))
    shutil.rmtree(checkpoints)
    print(f"weights in {args.models}")
    return config


def describe(training, batch_size):
    """What config.json says of a finished training beside its network."""
    return {
        "learning_rate": training.learning_rate,
        "batch_size": batch_size,
        "epochs": len(training.history),
        "best_epoch": training.best_epoch,
        "history": training.history,
    }


def main():
    args = parse_arguments()
    try:
        config = train(args)
    except KeyboardInterrupt:
        command = shlex.join(["python", *sys.argv, *([] if args.resume else ["--resume"])])
        note(f"\ninterrupted; `{command}` continues after the last epoch that was finished, if any")
        sys.exit(130)
    plt = dataset.pyplot(args.no_show)
    dataset.save_figure(plot_vqvae(plt, config["vqvae"]["history"]), args.out / "vqvae_training_plot.png")
    history, best_epoch = config["pixelcnn"]["history"], config["pixelcnn"]["best_epoch"]
    dataset.save_figure(plot_pixelcnn(plt, history, best_epoch), args.out / "pixelcnn_training_plot.png")
    dataset.show_figures(plt)


if __name__ == "__main__":
    dataset.run(main)
