"""Trains the VQ-VAE on the training slices, then the PixelCNN on their codes, and stores both.

    python train.py                   train and replace trained_models/faithful
    python train.py --preset sharp    train larger models, with texture: trained_models/sharp
    python train.py --resume          continue a training that was interrupted

The VQ-VAE minimises the squared error of its reconstructions, divided by the variance of the data so that 1 is the
error of a constant image, plus the losses of its quantizer; the sharp one also a lack of SSIM, and then it learns to
please a discriminator. The PixelCNN minimises the cross-entropy of the codes that the trained VQ-VAE gives the slices.
Last, the sharp preset's critic learns to tell samples of the PixelCNN from the slices that this learned, both decoded.
Every epoch ends with a checkpoint beside the folder of the weights; the weights that were there stay in use until the
new ones are complete. One loop serves a single device, several, and several machines.

TensorFlow is imported inside functions here and in the other scripts: --help and wrong usage should not wait for it.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
import zipfile
from importlib.metadata import version

import numpy as np

import dataset
from dataset import UserError, note, positive, written

STAGES = ("vqvae", "adversarial", "pixelcnn", "critic")  # of which the faithful preset has the first and the third
COMMITMENT_COST = 0.25
FEW_STEPS = 500  # of the VQ-VAE: on the slices of ten people, 90 taught it little, and 1,200 much
SIDES = (("training", ""), ("validation", "validation_"))  # of an epoch's figures: name, and how their keys begin
DRAWN = 10_000  # samples that the critic learns from, at most
# The networks, how they are trained, and the defaults of the flags. Augmented: by mirror images, with a learning rate
# that falls along a cosine, and the held-out cases in no stage; else these are held out from the PixelCNN alone.
PRESETS = {
    "faithful": {
        "vqvae": {"filters": (32, 32, 64, 64), "bottleneck": 128},
        "augmented": False,
        "ssim_weight": 0.0,
        "vqvae_learning_rate": 1e-3,
        "pixelcnn": {"filters": 128},
        "pixelcnn_learning_rate": 3e-4,
        "temperature": 1.0,
        "flags": {
            "latent_dim": 16,
            "embeddings": 128,
            "vqvae_epochs": 30,
            "vqvae_batch_size": 128,
            "residual_blocks": 2,
            "masked_layers": 2,
            "pixelcnn_epochs": 30,
            "pixelcnn_batch_size": 128,
        },
    },
    "sharp": {
        "vqvae": {
            "filters": (48, 96, 128),
            "bottleneck": 128,
            "decoder_filters": (96, 48, 24),
            "residual_blocks": 3,
            "fine_blocks": 1,
            "codebook_decay": 0.99,
        },
        "augmented": True,
        "ssim_weight": 0.5,
        "vqvae_learning_rate": 1e-3,
        "discriminator": {"filters": (32, 64, 128)},
        "adversarial_learning_rates": {"vqvae": 2e-4, "discriminator": 1e-3},
        # of the losses; the penalty's is low, for the gradient is that through an enlarged detail
        "adversarial_weights": {"ssim": 0.3, "adversarial": 0.3, "feature": 2.0, "penalty": 0.2},
        "pixelcnn": {"filters": 128, "gated_layers": 5, "kernel_size": 5, "dropout": 0.2},
        "pixelcnn_learning_rate": 1.5e-3,
        "temperature": 1.0,
        "critic": {"filters": (32, 64, 128, 128), "dropout": 0.3},
        "critic_learning_rate": 5e-4,
        "candidates": 8,
        "flags": {
            "latent_dim": 32,
            "embeddings": 1024,
            "vqvae_epochs": 12,
            "vqvae_batch_size": 32,
            "adversarial_epochs": 10,
            "adversarial_batch_size": 32,
            "pixelcnn_epochs": 18,
            "pixelcnn_batch_size": 32,
            "critic_epochs": 5,
            "critic_batch_size": 32,
        },
    },
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train the VQ-VAE on the training slices, then the PixelCNN on their codes. The sharp preset also "
        "trains the VQ-VAE against a discriminator, and last a critic that chooses among samples."
    )

    def add(flag, meaning):
        name = flag.strip("-").replace("-", "_")
        defaults = {preset: content["flags"][name] for preset, content in PRESETS.items() if name in content["flags"]}
        values = ", ".join(f"{preset} {default}" for preset, default in defaults.items())
        parser.add_argument(flag, type=positive, metavar="N", help=f"{meaning} (default: {values})")

    add("--latent-dim", "numbers in a codebook vector")
    add("--embeddings", "vectors in the codebook")
    add("--vqvae-epochs", "epochs of the VQ-VAE")
    add("--vqvae-batch-size", "slices in a training step of the VQ-VAE")
    add("--adversarial-epochs", "epochs of the VQ-VAE against a discriminator")
    add("--adversarial-batch-size", "slices in a training step against the discriminator")
    add("--residual-blocks", "residual blocks of the PixelCNN")
    add("--masked-layers", "masked 1x1 layers that follow them in the PixelCNN")
    add("--pixelcnn-epochs", "epochs of the PixelCNN")
    add("--pixelcnn-batch-size", "grids in a training step of the PixelCNN")
    add("--critic-epochs", "epochs of the critic")
    add("--critic-batch-size", "slices, and as many samples, in a training step of the critic")
    parser.add_argument(
        "--validation-share",
        type=share,
        default=0.1,
        metavar="N",
        help="share of the cases held out to validate (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=dataset.seed,
        default=0,
        metavar="N",
        help="of the initial weights, the shuffling and the choice of held-out cases (default: %(default)s)",
    )
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
    args = parser.parse_args()
    args.models = dataset.choose_models(args)
    defaults = PRESETS[args.preset]["flags"]
    for name in {name: None for content in PRESETS.values() for name in content["flags"]}:
        if getattr(args, name) is None:
            setattr(args, name, defaults.get(name))
        elif name not in defaults:
            parser.error(f"--{name.replace('_', '-')} does not go with --preset {args.preset}")
    return args


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
    from modules import tf

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

    def __init__(self, name, model, learning_rate, settings, path, monitor=None, steps=None, **adam):
        self.name, self.model, self.settings, self.path, self.monitor = name, model, settings, path, monitor
        self.learning_rate = learning_rate  # that of the first step, if it falls along a cosine over `steps`
        self.optimizer = make_adam(model.trainable_variables, learning_rate, steps, **adam)
        self.history, self.best, self.others = [], [], []

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
        return [*self.model.variables, *self.optimizer.variables, *self.others]

    def _save(self):
        if not writes():
            return
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
        if state["settings"].get("follows") != self.settings.get("follows"):
            note(f"{self.path} follows other networks than these; starting that afresh")
            return
        self._check(state["settings"])
        try:
            for i, variable in enumerate(self._variables()):
                variable.assign(arrays[f"variable_{i}"])
            self.best = [arrays[f"best_{i}"] for i in range(len(self.model.weights))] if self.monitor else []
        except (KeyError, ValueError) as error:
            raise UserError(f"{self.path}: of other networks than these; train without --resume") from error
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


def make_adam(variables, learning_rate, steps=None, **adam):
    """Adam for some variables; where `steps` are given its rate falls to zero over them, along a cosine."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps) if steps else learning_rate
    optimizer = keras.optimizers.Adam(schedule, **adam)
    optimizer.build(variables)
    return optimizer


def shuffled(count, batch_size, seed):
    """Batches of indices that together are 0..count-1 in an order given by the seed."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def feed(strategy, read, batches, seed):
    """The batches as `strategy` takes them: each replica gets its part of a batch, and that part's share of it.

    `read(indices, chances)` gives the arrays of some items; to vary them it has uniform numbers (n, 4) in [0, 1), drawn
    by the seed. A batch of fewer items than there are replicas is left out.
    """
    from modules import tf

    replicas = strategy.num_replicas_in_sync
    batches = [batch for batch in batches if len(batch) >= replicas]
    if not batches:
        raise UserError(
            f"a batch must have a slice for each of {replicas} devices; give --...-batch-size a larger number"
        )

    def pipeline(context):
        here = context.num_replicas_in_sync // context.num_input_pipelines  # replicas of this worker

        def part(number):
            batch, replica = batches[number // here], context.input_pipeline_id * here + number % here
            chances = np.random.default_rng((*seed, number // here)).random((len(batch), 4))
            mine = np.array_split(np.arange(len(batch)), context.num_replicas_in_sync)[replica]
            return np.float32(len(mine) / len(batch)), *read(batch[mine], chances[mine])

        example = part(0)
        types = [value.dtype for value in example]

        def load(number):
            arrays = tf.numpy_function(part, [number], types)
            for array, value in zip(arrays, example):
                array.set_shape((None, *value.shape[1:]) if value.ndim else ())
            return arrays

        numbers = tf.data.Dataset.range(len(batches) * here)
        return numbers.map(load, num_parallel_calls=2, deterministic=True).prefetch(2 * here)

    return strategy.distribute_datasets_from_function(pipeline), len(batches)


def make_step(strategy, gradients, signature):
    """A compiled training step on a batch from `feed`, of the element_spec `signature`; returns figures.

    `gradients(*arrays)` gives a list of (optimizer, gradients, variables), and figures: means over the arrays' items,
    or sums where the name ends in "counts". Both are put together over all replicas.
    """
    from modules import tf

    def replica_step(share, *arrays):
        updates, figures = gradients(*arrays)
        replicas = tf.distribute.get_replica_context()
        for optimizer, values, variables in updates:
            optimizer.apply([share * value for value in values], variables)  # Keras sums them over the replicas
        weighted = [value if name.endswith("counts") else share * value for name, value in figures.items()]
        return dict(zip(figures, replicas.all_reduce("sum", weighted)))

    # one graph for batches of any size: a resumed training must not compute by another than the interrupted one
    @tf.function(input_signature=signature)
    def step(*batch):
        figures = strategy.run(replica_step, batch)
        return {name: strategy.experimental_local_results(value)[0] for name, value in figures.items()}

    return step


def fit(training, gradients, summarise, read, count, epochs, batch_size, seed):
    """Train until `epochs` epochs are finished, each on the items 0..count-1 that `read` gives (see `feed`).

    Where the Training monitors a figure, the model ends with the weights of the best epoch.

    `gradients` is what `make_step` takes. `summarise` turns its means (sums) over an epoch into the epoch's figures and
    a line to print.
    """
    import keras

    from modules import tf

    strategy, step = tf.distribute.get_strategy(), None
    agree(training, strategy, epochs)
    for epoch in range(len(training.history), epochs):
        print(f"{training.name}, epoch {epoch + 1}/{epochs}", flush=True)
        began = time.perf_counter()
        batches, number_of_batches = feed(strategy, read, shuffled(count, batch_size, (seed, epoch)), (seed, epoch))
        step = step or make_step(strategy, gradients, batches.element_spec)
        progress = keras.utils.Progbar(
            number_of_batches, verbose=1 if sys.stdout.isatty() else 2, stateful_metrics=["loss"]
        )
        totals, fed = {}, min(count, number_of_batches * batch_size)
        for number, batch in enumerate(batches):
            weight = min(batch_size, fed - number * batch_size) / fed
            for name, value in step(*batch).items():
                value = np.asarray(value, np.float64)
                totals[name] = totals.get(name, 0) + (value if name.endswith("counts") else weight * value)
            progress.update(number + 1, [("loss", totals["loss"] * fed / min(fed, (number + 1) * batch_size))])
        figures, line = summarise(totals)
        training.finish_epoch(figures | {"seconds": round(time.perf_counter() - began, 1)})
        print(line, flush=True)
    training.keep_best()


# --- several devices --------------------------------------------------------------------------------------------------


def choose_strategy():
    """How tf.distribute spreads the training: over machines where TF_CONFIG names them, over the GPUs of this one.

    SLURM names machines by variables of its own. Call it before TensorFlow computes anything.
    """
    from modules import tf

    try:
        if "TF_CONFIG" in os.environ:
            return _join(tf.distribute.cluster_resolver.TFConfigClusterResolver())
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return _join(tf.distribute.cluster_resolver.SlurmClusterResolver())
    except (ValueError, KeyError, OSError, RuntimeError, tf.errors.OpError) as error:
        source = "TF_CONFIG" if "TF_CONFIG" in os.environ else "SLURM (TF_CONFIG would come first)"
        raise UserError(f"cannot join the workers that {source} names: {str(error).splitlines()[0]:.200}") from error
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _join(resolver):
    from modules import tf

    workers = [address for addresses in resolver.cluster_spec().as_dict().values() for address in addresses]
    note(f"waiting for all of {', '.join(workers)}")
    # TensorFlow waits where Python would not see a Ctrl-C
    seen = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    finally:
        signal.signal(signal.SIGINT, seen)


def worker():
    """The number of this process among the workers of a training, 0 where it is alone."""
    from modules import tf

    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or resolver.task_type is None:
        return 0
    chiefs = len(resolver.cluster_spec().as_dict().get("chief", []))  # one of them is a worker too, and the first
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)


def writes():
    """Whether this process is the one of the workers that writes files."""
    return worker() == 0


def of_all(strategy, number):
    """The `number` of each replica's process (replicas,) float32, once all have come here."""
    return np.asarray(_gather(strategy)(np.float32(number)))


@functools.cache
def _gather(strategy):
    from modules import tf

    def mine(number):
        replicas = tf.distribute.get_replica_context()
        place = tf.one_hot(replicas.replica_id_in_sync_group, strategy.num_replicas_in_sync)
        return replicas.all_reduce("sum", number * place)

    @tf.function(input_signature=[tf.TensorSpec((), "float32")])
    def gather(number):
        return strategy.experimental_local_results(strategy.run(mine, (number,)))[0]

    return gather


def agree(training, strategy, epochs):
    """Raise UserError where workers would not train alike, or not continue after the same epoch."""
    settings = {**training.settings, "epochs": epochs, "follows": None}
    short = int(hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6], 16)  # exact in a float32
    if np.ptp(of_all(strategy, short)):
        raise UserError(
            "the workers have other flags or other slices; start the same command on all, with the same --data"
        )
    finished = of_all(strategy, len(training.history))
    if np.ptp(finished):
        epochs = ", ".join(f"{epoch:g}" for epoch in finished)
        raise UserError(
            f"{training.path}: workers found checkpoints of different epochs ({epochs}); they must share that folder"
        )


# --- the models -------------------------------------------------------------------------------------------------------


def vqvae_loss(model, variance, ssim_weight=0.0):
    """The loss of a VQVAE, and its figures, as a function of images (N, size, size, 1) from data of that variance."""
    from keras import ops

    import modules

    def loss(images):
        reconstructions, codes, quantizer_loss = model(images, training=True)
        reconstruction_loss = ops.mean((images - reconstructions) ** 2) / variance
        total = reconstruction_loss + quantizer_loss
        if ssim_weight:
            total += ssim_weight * (1 - ops.mean(modules.ssim_tensor(images, reconstructions)))
        return total, {
            "loss": total,
            "reconstruction_loss": reconstruction_loss,
            "quantizer_loss": quantizer_loss,
            "code_counts": code_counts(codes, model),
        }

    return loss


def train_vqvae(images, held_out, mean, variance, settings, args, path):
    """Train a VQVAE on images (N, 128, 128, 1) of that mean and variance, an array or a Store; returns its Training.

    Where the preset is augmented, the `held_out` (N,) bool are kept from it, and their SSIM is reported.
    """
    import keras

    import modules

    preset = PRESETS[args.preset]
    keras.utils.set_random_seed(args.seed)
    model = modules.VQVAE(
        size=dataset.SIZE,
        commitment_cost=COMMITMENT_COST,
        latent_dim=args.latent_dim,
        num_embeddings=args.embeddings,
        **preset["vqvae"],
    )
    settings = settings | {
        "latent_dim": args.latent_dim,
        "embeddings": args.embeddings,
        "batch_size": args.vqvae_batch_size,
    }
    seen, unseen, used = np.arange(len(images)), [], None
    if preset["augmented"]:
        seen, unseen, used = np.flatnonzero(~held_out), np.flatnonzero(held_out), as_used(model)
        # to learn the mean first would overshoot, and cost the decoder many of its units
        model.decoder.layers[-1].bias.assign([mean])
        settings["epochs"] = args.vqvae_epochs
    steps = args.vqvae_epochs * -(-len(seen) // args.vqvae_batch_size)
    rate, falls_over = preset["vqvae_learning_rate"], steps if preset["augmented"] else None
    training = Training("VQ-VAE", model, rate, settings, path, steps=falls_over)

    def read(chosen, chances):
        some = images[seen[chosen]]
        return [mirrored(some, chances) if preset["augmented"] else some]

    def summarise(totals):
        in_use, perplexity = modules.code_usage(totals.pop("code_counts"))
        figures = {name: float(value) for name, value in totals.items()}
        line = (
            f"  loss {figures['loss']:.4f} = reconstruction {figures['reconstruction_loss']:.4f} + "
            f"quantizer {figures['quantizer_loss']:.4f}; codes in use {in_use:.1%}, perplexity {perplexity:.1f}"
        )
        figures |= {"codes_in_use": in_use, "perplexity": perplexity}
        if len(unseen):
            ssim, sharp = validate(model, used, images, unseen)
            figures |= {"validation_ssim": ssim, "sharpness": sharp}
            line += f"; validation: SSIM {ssim:.3f}, {sharp:.2f} as sharp as real"
        return figures, line

    if args.resume:
        training.restore()
    if steps < FEW_STEPS and not training.history and writes():
        note(
            f"note: {len(seen):,} slices make {steps} training steps of the VQ-VAE, and less than {FEW_STEPS} teach "
            "little; a smaller --vqvae-batch-size and more --vqvae-epochs make more"
        )
    gradients = gradients_of(training, vqvae_loss(model, variance, preset["ssim_weight"]))
    fit(training, gradients, summarise, read, len(seen), args.vqvae_epochs, args.vqvae_batch_size, args.seed)
    return training


def mirrored(images, chances):
    """Images (N, H, W, 1), half of them, by uniform numbers (N, 4), flipped along the vertical axis: left and right."""
    return np.where(chances[:, :1, None, None] < 0.5, images[:, ::-1], images)


def moved(images, chances):
    """Images (N, H, W, 1), half of them, by uniform numbers (N, 4), moved by -1, 0 or 1 pixel along both axes."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    corners = np.where(chances[:, 1:2] < 0.5, (3 * chances[:, 2:]).astype(int), 1)
    return np.stack(
        [image[row : row + height, column : column + width] for image, (row, column) in zip(padded, corners)]
    )


def parts(count):
    """Slices that together are 0..count-1, of as many items as go through a network at a time."""
    import modules

    return [slice(i, min(count, i + modules.BATCH)) for i in range(0, count, modules.BATCH)]


def moments(images, chosen):
    """Mean (128, 128, 1) float64 of the chosen images, of an array or a Store, and the variance of their pixels."""
    total, squares = 0, 0
    for part in parts(len(chosen)):
        some = images[chosen[part]].astype(np.float64)
        total, squares = total + some.sum(axis=0), squares + np.sum(some**2)
    mean = total / len(chosen)
    return mean, float(squares / len(chosen) / mean.size - mean.mean() ** 2)


def adversarial_gradients(training, frozen, discriminator, optimizer, weights, variance):
    """What `make_step` takes, of slices, for a VQVAE, and for a discriminator by an optimizer of its own.

    The VQ-VAE is to please the discriminator (hinge loss), to give its layers what real slices give them (feature
    matching, Wang et al. 2018, arXiv 1711.11585), and to stay true to the slice; after Esser et al. 2021, VQGAN, arXiv
    2012.09841, without a network for perceptual distances. The `frozen` VQVAE, which knew no discriminator, gives this
    its guide. A penalty on the discriminator's gradient at real slices (R1, Mescheder et al. 2018, arXiv 1801.04406)
    keeps the decoder from fooling it by changes that nobody sees, after which it learned nothing more.
    """
    from keras import ops

    import modules
    from modules import tf

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
            hinge = sum(
                ops.mean(ops.relu(1 - real[-1])) + ops.mean(ops.relu(1 + fake[-1]))
                for real, fake in zip(of_real, of_decoded)
            ) / len(of_real)
            discriminator_loss = hinge + weights["penalty"] * penalty
            adversarial = -sum(ops.mean(scale[-1]) for scale in of_decoded) / len(of_decoded)
            feature = sum(
                ops.mean(ops.abs(ops.cast(ops.stop_gradient(real) - fake, "float32")))
                for reals, fakes in zip(of_real, of_decoded)
                for real, fake in zip(reals[:-1], fakes[:-1])
            ) / sum(len(scale) - 1 for scale in of_decoded)
            reconstruction = ops.mean((images - decoded) ** 2) / variance
            likeness = ops.mean(modules.ssim_tensor(images, decoded))
            loss = (
                reconstruction
                + quantizer_loss
                + weights["ssim"] * (1 - likeness)
                + weights["adversarial"] * adversarial
                + weights["feature"] * feature
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
            "ssim": likeness,
            "adversarial_loss": adversarial,
            "feature_loss": feature,
            "discriminator_loss": hinge,
            "code_counts": code_counts(codes, vqvae),
        }

    return gradients


def code_counts(codes, vqvae):
    """How often each code (K,) occurs in codes (N, h, w)."""
    from keras import ops

    return ops.sum(ops.one_hot(codes, vqvae.config["num_embeddings"]), axis=(0, 1, 2))


def train_adversarial(vqvae, images, held_out, variance, settings, args, path):
    """Train a VQVAE on against a discriminator; returns its Training.

    The images (N, 128, 128, 1), an array or a Store, have that variance; the `held_out` (N,) bool are kept from it.
    """
    import keras

    import modules

    preset = PRESETS[args.preset]
    rates, weights = preset["adversarial_learning_rates"], preset["adversarial_weights"]
    keras.utils.set_random_seed(args.seed)
    settings = settings | {"batch_size": args.adversarial_batch_size, "epochs": args.adversarial_epochs}
    seen, unseen = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    steps = args.adversarial_epochs * -(-len(seen) // args.adversarial_batch_size)
    frozen, used = copy_of(vqvae), as_used(vqvae)
    settings["follows"] = digest(frozen.weights)
    training = Training("adversarial", vqvae, rates["vqvae"], settings, path, steps=steps, beta_1=0.5)
    discriminator = modules.Discriminator(**preset["discriminator"])
    optimizer = make_adam(discriminator.trainable_variables, rates["discriminator"], steps, beta_1=0.5)
    training.others = [*discriminator.variables, *optimizer.variables]

    def read(chosen, chances):
        return [mirrored(images[seen[chosen]], chances)]

    def summarise(totals):
        in_use, perplexity = modules.code_usage(totals.pop("code_counts"))
        figures = {name: float(value) for name, value in totals.items()}
        figures |= {"codes_in_use": in_use, "perplexity": perplexity}
        ssim, sharp = validate(vqvae, used, images, unseen)
        figures |= {"validation_ssim": ssim, "sharpness": sharp}
        line = (
            f"  loss {figures['loss']:.4f}; discriminator {figures['discriminator_loss']:.3f} (2 is chance); codes in "
            f"use {in_use:.1%}, perplexity {perplexity:.1f}; validation: SSIM {ssim:.3f}, {sharp:.2f} as sharp as real"
        )
        return figures, line

    if args.resume:
        training.restore()
    gradients = adversarial_gradients(training, frozen, discriminator, optimizer, weights, variance)
    epochs, batch_size = args.adversarial_epochs, args.adversarial_batch_size
    fit(training, gradients, summarise, read, len(seen), epochs, batch_size, args.seed)
    return training


def validate(vqvae, used, images, chosen):
    """Mean SSIM of what a VQVAE makes of the chosen images, and how sharp that is: 1 where as sharp as they are.

    `used` is a copy of the VQVAE in float32 (see `as_used`), which is given its weights.
    """
    import modules

    used.set_weights(vqvae.get_weights())
    ssim, sharp, real_sharp = 0, 0, 0
    for part in parts(len(chosen)):
        real = images[chosen[part]]
        decoded = used.decode(used.encode(real))
        ssim += modules.ssim(real, decoded).sum()
        sharp, real_sharp = sharp + sharpness(decoded), real_sharp + sharpness(real)
    return float(ssim / len(chosen)), float(sharp / real_sharp)


def sharpness(images):
    """Sum of the absolute differences of neighbouring pixels of images (N, H, W, 1)."""
    return np.abs(np.diff(images, axis=1)).sum(dtype=np.float64) + np.abs(np.diff(images, axis=2)).sum(dtype=np.float64)


def gradients_of(training, loss):
    """What `make_step` takes, for the one model of a Training and a `loss(*arrays)` that gives a value and figures."""
    from modules import tf

    def gradients(*arrays):
        with tf.GradientTape() as tape:
            value, figures = loss(*arrays)
        variables = training.model.trainable_variables
        return [(training.optimizer, tape.gradient(value, variables), variables)], figures

    return gradients


def with_validation(totals, evaluate, count):
    """An epoch's figures: the `totals`, and the means over 0..count-1 of what `evaluate` gives for each part."""
    figures = {name: float(value) for name, value in totals.items()}
    figures |= dict.fromkeys([f"validation_{name}" for name in totals], 0.0)
    for part in parts(count):
        for name, value in evaluate(part).items():
            figures[f"validation_{name}"] += (part.stop - part.start) / count * float(value)
    return figures


def pixelcnn_loss(model, codes, levels, training=True):
    """The loss of a prior, in nats a code, and its figures, on codes (N, h, w) of slices of levels (N,)."""
    from keras import ops

    import modules

    logits = model(codes, levels, training=training)
    loss = ops.mean(modules.cross_entropy(codes, logits))
    accuracy = ops.mean(ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == codes, "float32"))
    return loss, {"loss": loss, "accuracy": accuracy}


def train_pixelcnn(vqvae, images, codes, levels, held_out, settings, args, path):
    """Train a prior on codes (N, h, w) but for the `held_out` (N,) bool, which validate; returns its Training.

    `levels` (N,) are those of the slices in their heads. Where the preset is augmented, what is learned are the codes
    that a VQVAE, in float32, gives the images once they are mirrored and moved: by a pixel, and two of three differ.
    """
    import keras

    import modules
    from modules import tf

    preset = PRESETS[args.preset]
    keras.utils.set_random_seed(args.seed)
    network = {"grid": codes.shape[1:], "num_embeddings": args.embeddings, **preset["pixelcnn"]}
    settings = settings | {"batch_size": args.pixelcnn_batch_size, "validation_share": args.validation_share}
    seen, unseen = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    steps = None
    if preset["augmented"]:
        settings["epochs"] = args.pixelcnn_epochs
        steps = args.pixelcnn_epochs * -(-len(seen) // args.pixelcnn_batch_size)
    if "gated_layers" in network:
        network["levels"] = int(levels.max()) + 1
    else:
        plain = {"residual_blocks": args.residual_blocks, "masked_layers": args.masked_layers}
        network, settings = network | plain, settings | plain
    model = modules.build_prior(**network)
    training = Training(
        "PixelCNN", model, preset["pixelcnn_learning_rate"], settings, path, monitor="validation_loss", steps=steps
    )
    signature = [tf.TensorSpec((None, *codes.shape[1:]), "int32"), tf.TensorSpec((None,), "int32")]
    evaluate = tf.function(lambda *batch: pixelcnn_loss(model, *batch, training=False)[1], input_signature=signature)

    def read(chosen, chances):
        chosen = seen[chosen]
        items = moved(mirrored(images[chosen], chances), chances) if preset["augmented"] else codes[chosen]
        return items, levels[chosen]

    def loss(items, levels):
        grids = vqvae.quantizer.nearest(vqvae.encoder(items)) if preset["augmented"] else items
        return pixelcnn_loss(model, grids, levels)

    def summarise(totals):
        figures = with_validation(totals, lambda part: evaluate(codes[unseen[part]], levels[unseen[part]]), len(unseen))
        said = [
            f"{side}: loss {(nats := figures[key + 'loss']):.4f} ({nats / math.log(2):.3f} bits a code), "
            f"accuracy {figures[key + 'accuracy']:.3f}; "
            for side, key in SIDES
        ]
        return figures, f"  {''.join(said)}a uniform guess: {math.log2(args.embeddings):g} bits"

    if args.resume:
        training.restore()
    gradients, epochs, batch_size = gradients_of(training, loss), args.pixelcnn_epochs, args.pixelcnn_batch_size
    fit(training, gradients, summarise, read, len(seen), epochs, batch_size, args.seed)
    return training


def critic_loss(critic, vqvae, codes, samples, training=True):
    """The loss of a Critic, and its figures, on codes (N, h, w) of slices and as many samples (N, h, w).

    It is the binary cross-entropy, log 2 where the critic knows nothing.
    """
    from keras import ops

    images = vqvae.paint(vqvae.quantizer.lookup(ops.concatenate([codes, samples])))
    real, fake = ops.split(critic(ops.clip(images, -0.5, 0.5), training=training), 2)
    loss = ops.mean(ops.softplus(-real) + ops.softplus(fake)) / 2
    accuracy = ops.mean(ops.cast(real > 0, "float32") + ops.cast(fake <= 0, "float32")) / 2
    return loss, {"loss": loss, "accuracy": accuracy}


def train_critic(vqvae, pixelcnn, images, codes, levels, held_out, settings, args, path):
    """Train a Critic on samples of a prior and on the slices that this learned; returns its Training.

    The images (N, 128, 128, 1) have those codes (N, h, w) and levels (N,) by the VQVAE, in float32. The `held_out` (N,)
    bool, and as many samples, validate.
    """
    import keras
    from tqdm import tqdm

    import modules
    from modules import tf

    preset, draws = PRESETS[args.preset], np.random.default_rng(args.seed)
    seen, unseen = (draws.permutation(np.flatnonzero(chosen)) for chosen in (~held_out, held_out))
    unseen = unseen[: DRAWN // 10]  # of whatever people, for the order is random
    settings = settings | {"batch_size": args.critic_batch_size, "epochs": args.critic_epochs}
    settings["follows"] = digest([*vqvae.weights, *pixelcnn.weights])
    imitated = np.concatenate([seen[:DRAWN], unseen])  # by a sample of the same level each
    print(f"critic: drawing {len(imitated):,} samples", flush=True)
    progress = functools.partial(tqdm, unit="batch", leave=False, disable=None if writes() else True)
    seed = (args.seed, 1)  # what no --seed draws later: the critic knows these samples
    sampled = modules.sample(pixelcnn, len(imitated), seed, preset["temperature"], levels[imitated], progress)
    sampled, sampled_unseen = np.split(sampled, [len(imitated) - len(unseen)])
    keras.utils.set_random_seed(args.seed)
    model = modules.Critic(**preset["critic"])
    rate, steps = preset["critic_learning_rate"], args.critic_epochs * -(-len(seen) // args.critic_batch_size)
    training = Training("critic", model, rate, settings, path, monitor="validation_loss", steps=steps)
    grids = tf.TensorSpec((None, *pixelcnn.grid), "int32")
    evaluate = tf.function(
        lambda *batch: critic_loss(model, vqvae, *batch, training=False)[1], input_signature=[grids, grids]
    )

    def read(chosen, chances):  # not moved: so the critic undoes what that taught the prior
        return mirrored(images[seen[chosen]], chances), sampled[chosen % len(sampled)]

    def loss(items, samples):
        return critic_loss(model, vqvae, vqvae.quantizer.nearest(vqvae.encoder(items)), samples)

    def summarise(totals):
        figures = with_validation(totals, lambda part: evaluate(codes[unseen[part]], sampled_unseen[part]), len(unseen))
        said = [
            f"{side}: loss {figures[key + 'loss']:.4f}, {figures[key + 'accuracy']:.1%} told apart; "
            for side, key in SIDES
        ]
        return figures, f"  {''.join(said)}a guess: {math.log(2):.4f}, 50%"

    if args.resume:
        training.restore()
    gradients, epochs, batch_size = gradients_of(training, loss), args.critic_epochs, args.critic_batch_size
    fit(training, gradients, summarise, read, len(seen), epochs, batch_size, args.seed)
    return training


# --- figures ----------------------------------------------------------------------------------------------------------


def panels_by_epoch(plt):
    """A figure of two panels whose horizontal axis counts epochs."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4))
    for panel in panels:
        panel.set(xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    return figure, panels


def plot_vqvae(plt, history):
    """Loss of the VQ-VAE and its parts, and the perplexity of its codes, by epoch."""
    figure, (left, right) = panels_by_epoch(plt)
    epochs = range(1, len(history) + 1)
    for name, label in (("loss", "total"), ("reconstruction_loss", "reconstruction"), ("quantizer_loss", "quantizer")):
        left.plot(epochs, [epoch[name] for epoch in history], marker=".", label=label)
    left.set(title="VQ-VAE loss", ylabel="loss", yscale="log")
    left.legend()
    right.plot(epochs, [epoch["perplexity"] for epoch in history], marker=".")
    right.set(title="Perplexity of the codes", ylabel="perplexity")
    return figure


def plot_adversarial(plt, history):
    """Losses of the VQ-VAE and its discriminator, and the SSIM and sharpness of held-out slices, by epoch."""
    figure, (left, right) = panels_by_epoch(plt)
    epochs = range(1, len(history) + 1)
    for name in ("adversarial_loss", "feature_loss", "discriminator_loss"):
        left.plot(epochs, [epoch[name] for epoch in history], marker=".", label=name.split("_")[0])
    left.set(title="VQ-VAE against its discriminator", ylabel="loss")
    left.legend()
    right.plot(epochs, [epoch["validation_ssim"] for epoch in history], marker=".", label="SSIM")
    right.plot(epochs, [epoch["sharpness"] for epoch in history], marker=".", label="sharpness, 1 as real")
    right.set(title="Reconstructions of held-out slices")
    right.legend()
    return figure


def plot_accuracy(plt, history, best_epoch, name, units):
    """Loss and accuracy, in their units, of a model in training and validation, by epoch, the kept epoch marked."""
    figure, panels = panels_by_epoch(plt)
    epochs = range(1, len(history) + 1)
    for panel, quantity, unit in zip(panels, ("loss", "accuracy"), units):
        for side, key in SIDES:
            panel.plot(epochs, [epoch[key + quantity] for epoch in history], marker=".", label=side)
        panel.axvline(best_epoch, color="grey", linestyle=":", label=f"epoch kept ({best_epoch})")
        panel.set(title=f"{name} {quantity}", ylabel=unit)
        panel.legend()
    return figure


# --- the whole --------------------------------------------------------------------------------------------------------


def train(args):
    """Train the preset's models on the training split and store them in args.models; returns their configuration.

    Of several workers, all train, and the first writes; the others return None.
    """
    from modules import tf

    strategy = choose_strategy()
    try:
        with strategy.scope():
            return _train(args)
    except tf.errors.ResourceExhaustedError as error:
        raise UserError("memory does not suffice for a step; give --...-batch-size a smaller number") from error
    except tf.errors.OpError as error:
        if strategy.cluster_resolver is None:
            raise
        said = re.sub(r"{{.*?}}", "", error.message).strip().splitlines()[0]
        raise UserError(f"the workers no longer reach each other ({said:.200}); start all with --resume") from error


def _train(args):
    import modules

    preset = PRESETS[args.preset]
    if args.deterministic:
        modules.tf.config.experimental.enable_op_determinism()
    if writes():
        modules.make_staging(args.models).rmdir()  # found unfit now rather than after an hour
        dataset.make_folder(args.out)
    else:
        sys.stdout = open(os.devnull, "w")
    checkpoints = modules.checkpoint_folder(args.models)
    own = checkpoints if writes() else checkpoints / f"worker_{worker()}"
    dataset.make_folder(own)
    strategy = modules.tf.distribute.get_strategy()
    if strategy.cluster_resolver:  # the first fetches or cuts the slices, for those that share its folder
        if writes():
            dataset.find_slices("train", args.data, args.url)
        of_all(strategy, 0.0)
    slices = dataset.open_split("train", own, args.data, args.url)
    images, count = slices.images, len(slices.names)
    cases, levels = dataset.owners(slices.names)
    held_out = dataset.hold_out(cases, args.validation_share, args.seed)
    unseen = np.isin(cases, held_out)
    mean, variance = moments(images, np.flatnonzero(~unseen) if preset["augmented"] else np.arange(count))
    if variance == 0:
        raise UserError("all training slices are one constant; nothing can be learned from them")
    if "gated_layers" in preset["pixelcnn"]:
        check_levels(levels)

    vqvae_path, adversarial_path, pixelcnn_path, critic_path = (checkpoints / f"{stage}.npz" for stage in STAGES)
    if args.resume and not vqvae_path.exists():
        if modules.is_set(args.models):
            raise UserError(
                f"{args.models}: holds finished weights and no interrupted training; without --resume, a new training "
                "replaces them"
            )
        note("no interrupted training to continue; starting afresh")
    elif vqvae_path.exists() and not args.resume:
        note("--resume would continue an interrupted training; its checkpoint goes when the first epoch is finished")
    precision = choose_precision(args.precision, args.deterministic, vqvae_path if args.resume else None)
    if np.any(of_all(strategy, precision == "float32")):  # what one worker is slow at, all wait for
        precision = "float32"
    modules.keras.config.set_dtype_policy(precision)
    replicas = strategy.num_replicas_in_sync
    print(f"precision: {precision}" + (f"; {replicas} replicas" if replicas > 1 else ""))
    recipe = json.loads(json.dumps({name: value for name, value in preset.items() if name != "flags"}))
    settings = {"preset": args.preset, "digest": slices.digest, "seed": args.seed, "precision": precision, **recipe}
    if preset["augmented"]:
        settings["validation_share"] = args.validation_share
    vqvae = train_vqvae(images, unseen, mean.mean(), variance, settings, args, vqvae_path)
    model, adversarial, critic = vqvae.model, None, None
    if "discriminator" in preset:
        adversarial = train_adversarial(model, images, unseen, variance, settings, args, adversarial_path)
    encoder = as_used(model)
    settings["follows"] = digest([*encoder.encoder.weights, encoder.quantizer.codebook])
    codes = encode(encoder, images, own / "codes.bin")
    pixelcnn = train_pixelcnn(encoder, images, codes, levels, unseen, settings, args, pixelcnn_path)
    if "critic" in preset:
        critic = train_critic(encoder, pixelcnn.model, images, codes, levels, unseen, settings, args, critic_path)

    config = {
        "preset": args.preset,
        "vqvae": {"network": model.config, **describe(vqvae, args.vqvae_batch_size)},
        "pixelcnn": {"network": pixelcnn.model.config, **describe(pixelcnn, args.pixelcnn_batch_size)}
        | {"temperature": preset["temperature"]},
        "data": {
            "digest": slices.digest,
            "genuine": dataset.is_genuine("train", slices.digest),
            "slices": count,
            "variance": variance,
            "held_out_cases": held_out,
            "held_out_from": STAGES if preset["augmented"] else ["pixelcnn"],
        },
        "seed": args.seed,
        "precision": precision,
        "recipe": recipe,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }
    if adversarial:
        config["adversarial"] = describe(adversarial, args.adversarial_batch_size)
    if critic:
        config["critic"] = {"network": critic.model.config, **describe(critic, args.critic_batch_size)}
        config["critic"]["candidates"] = preset["candidates"]
    if strategy.cluster_resolver:
        of_all(strategy, 0.0)  # none still reads what is deleted here
    if writes():
        mean = mean.astype(np.float32)
        modules.save_models(args.models, model, pixelcnn.model, config, mean, critic and critic.model)
        shutil.rmtree(checkpoints)
    print(f"weights in {args.models}")
    return config if writes() else None


def check_levels(levels):
    """Raise UserError unless the slices of a set are numbered from 0 on, without gaps."""
    known = np.unique(levels)
    if known[-1] >= len(known):
        raise UserError(
            f"the slices are numbered {known[0]} to {known[-1]}, with gaps; this preset learns the level of a slice in "
            "its head, so number each head's from 0 (case_001_slice_0.png and so on)"
        )


def as_used(vqvae):
    """A VQVAE of the same weights in float32, as all scripts use it: in bfloat16 one code of thirty is another."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    copy = copy_of(vqvae)
    keras.config.set_dtype_policy(policy)
    return copy


def digest(weights):
    """The sha256 of weights."""
    return hashlib.sha256(b"".join(np.asarray(weight).tobytes() for weight in weights)).hexdigest()


def copy_of(vqvae):
    """Another VQVAE of the same weights."""
    import modules

    copy = modules.VQVAE(**vqvae.config)
    copy.set_weights(vqvae.get_weights())
    return copy


def encode(vqvae, images, path):
    """Code indices (N, h, w) of images, in a Store."""
    shape = (len(images), *vqvae.encoder.output_shape[1:-1])
    kept_as = np.min_scalar_type(vqvae.config["num_embeddings"] - 1)
    codes = dataset.Store(shape, kept_as, path, dataset.CACHE // 8, unpacked=lambda kept: kept.astype(np.int32))
    for part in parts(len(images)):
        codes[part] = vqvae.encode(images[part])
    return codes


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
    command = shlex.join(["python", *sys.argv, *([] if args.resume else ["--resume"])])
    try:
        config = train(args)
    except KeyboardInterrupt:
        note(f"\ninterrupted; `{command}` continues after the last epoch that was finished, if any")
        sys.exit(130)
    if config is None:
        return
    plt = dataset.pyplot(args.no_show)
    dataset.save_figure(plot_vqvae(plt, config["vqvae"]["history"]), args.out / dataset.FIGURES["vqvae"])
    if "adversarial" in config:
        figure = plot_adversarial(plt, config["adversarial"]["history"])
        dataset.save_figure(figure, args.out / dataset.FIGURES["adversarial"])
    kept_best = {
        "pixelcnn": ("PixelCNN", "nats a code", "share of codes"),
        "critic": ("Critic", "nats", "share of slices"),
    }
    for stage, (name, *units) in kept_best.items():
        if stage in config:
            figure = plot_accuracy(plt, config[stage]["history"], config[stage]["best_epoch"], name, units)
            dataset.save_figure(figure, args.out / dataset.FIGURES[stage])
    dataset.show_figures(plt)


if __name__ == "__main__":
    dataset.run(main)
