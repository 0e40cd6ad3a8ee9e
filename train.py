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

COMMITMENT_COST = 0.25
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
        "adversary": {"filters": (32, 64, 128)},
        "decoder_learning_rate": 2e-4,
        "adversary_learning_rate": 1e-3,
        "decoder_ssim_weight": 0.3,
        "adversarial_weight": 0.3,
        "feature_weight": 1.0,
        "penalty_weight": 1.0,
        "pixelcnn": {"filters": 96, "gated_layers": 5, "kernel_size": 5, "dropout": 0.3},
        "pixelcnn_learning_rate": 1.5e-3,
        "temperature": 1.0,
        "flags": {
            "latent_dim": 32,
            "embeddings": 1024,
            "vqvae_epochs": 12,
            "vqvae_batch_size": 32,
            "decoder_epochs": 10,
            "decoder_batch_size": 32,
            "pixelcnn_epochs": 30,
            "pixelcnn_batch_size": 32,
        },
    },
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train the VQ-VAE on the training slices, then the PixelCNN on their codes."
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
    add("--decoder-epochs", "epochs of the decoder against its discriminator")
    add("--decoder-batch-size", "slices in a training step of the decoder")
    add("--residual-blocks", "residual blocks of the PixelCNN")
    add("--masked-layers", "masked 1x1 layers that follow them in the PixelCNN")
    add("--pixelcnn-epochs", "epochs of the PixelCNN")
    add("--pixelcnn-batch-size", "grids in a training step of the PixelCNN")
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

    def __init__(self, name, model, learning_rate, settings, path, monitor=None, steps=None, adam=None):
        import keras

        self.name, self.model, self.settings, self.path, self.monitor = name, model, settings, path, monitor
        self.learning_rate = learning_rate  # that of the first step, if it falls along a cosine over `steps`
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps) if steps else learning_rate
        self.optimizer = keras.optimizers.Adam(schedule, **adam or {})
        self.optimizer.build(model.trainable_variables)
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


def mirrored(images, rng):
    """Images (N, H, W, 1), each with its left and right exchanged (the vertical axis here) with a chance of a half."""
    turned = rng.random(len(images)) < 0.5
    return [np.where(turned[:, None, None, None], images[:, ::-1], images)]


def fit(training, step, summarise, arrays, epochs, batch_size, seed, augment=None):
    """Train until `epochs` epochs are finished.

    `step`, called on a batch of each of `arrays`, takes a training step and returns figures to report: means over the
    batch, or sums where the name ends in "counts". `summarise` turns their means (sums) over an epoch into the
    epoch's figures and a line to print. `augment(*batch, rng)` returns what the loss is called on.
    """
    import keras

    count = len(arrays[0])
    for epoch in range(len(training.history), epochs):
        print(f"{training.name}, epoch {epoch + 1}/{epochs}", flush=True)
        began = time.perf_counter()
        batches = shuffled(count, batch_size, (seed, epoch))
        progress = keras.utils.Progbar(len(batches), verbose=1 if sys.stdout.isatty() else 2, stateful_metrics=["loss"])
        totals = {}
        for number, batch in enumerate(batches, start=1):
            content = [array[batch] for array in arrays]
            if augment:
                content = augment(*content, np.random.default_rng((seed, epoch, number)))
            for name, value in step(*content).items():
                weight = 1 if name.endswith("counts") else len(batch) / count
                totals[name] = totals.get(name, 0) + weight * np.asarray(value, np.float64)
            progress.update(number, [("loss", totals["loss"] * count / min(count, number * batch_size))])
        figures, line = summarise(totals)
        training.finish_epoch(figures | {"seconds": round(time.perf_counter() - began, 1)})
        print(line, flush=True)


# --- the two models ---------------------------------------------------------------------------------------------------


def vqvae_loss(variance, ssim_weight=0.0):
    """The loss of a VQVAE, and its figures, on images (N, size, size, 1) from data of that variance."""
    from keras import ops

    import modules

    def loss(model, images):
        reconstructions, codes, quantizer_loss = model(images, training=True)
        reconstruction_loss = ops.mean((images - reconstructions) ** 2) / variance
        total = reconstruction_loss + quantizer_loss
        if ssim_weight:
            total += ssim_weight * (1 - ops.mean(modules.ssim_tensor(images, reconstructions)))
        return total, {
            "loss": total,
            "reconstruction_loss": reconstruction_loss,
            "quantizer_loss": quantizer_loss,
            "code_counts": ops.sum(ops.one_hot(codes, model.config["num_embeddings"]), axis=(0, 1, 2)),
        }

    return loss


def train_vqvae(images, held_out, variance, settings, args, path):
    """Train a VQVAE on images (N, 128, 128, 1) of that variance; returns its Training.

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
    unseen = images[held_out] if preset["augmented"] else None
    images = images[~held_out] if preset["augmented"] else images
    steps = None
    if preset["augmented"]:
        # to learn the mean first would overshoot, and cost the decoder many of its units
        model.decoder.layers[-1].bias.assign([images.mean(dtype=np.float64)])
        settings["epochs"] = args.vqvae_epochs
        steps = args.vqvae_epochs * -(-len(images) // args.vqvae_batch_size)
    training = Training("VQ-VAE", model, preset["vqvae_learning_rate"], settings, path, steps=steps)

    def summarise(totals):
        in_use, perplexity = modules.code_usage(totals.pop("code_counts"))
        figures = {name: float(value) for name, value in totals.items()}
        line = (
            f"  loss {figures['loss']:.4f} = reconstruction {figures['reconstruction_loss']:.4f} + "
            f"quantizer {figures['quantizer_loss']:.4f}; codes in use {in_use:.0%}, perplexity {perplexity:.1f}"
        )
        figures |= {"codes_in_use": in_use, "perplexity": perplexity}
        if unseen is not None:
            figures["validation_ssim"] = float(modules.ssim(unseen, model.decode(model.encode(unseen))).mean())
            line += f"; validation: SSIM {figures['validation_ssim']:.3f}"
        return figures, line

    if args.resume:
        training.restore()
    step = make_step(training, vqvae_loss(variance, preset["ssim_weight"]), [images])
    augment = mirrored if preset["augmented"] else None
    fit(training, step, summarise, [images], args.vqvae_epochs, args.vqvae_batch_size, args.seed, augment)
    return training


def make_adversarial_step(training, vqvae, discriminator, guides, optimizer, preset, variance):
    """A compiled step of the decoder, and of the discriminator by its own optimizer, on slices and their codes.

    The decoder is to please the discriminator (hinge loss), to give its layers what real slices give them (feature
    matching, Wang et al. 2018, arXiv 1711.11585), and to stay true to the slice; as in Esser et al. 2021, VQGAN, arXiv
    2012.09841. Encoder and codebook are fixed; what the decoder made of the codes before is the discriminator's guide.
    A penalty on its gradient at real slices (R1, Mescheder et al. 2018, arXiv 1801.04406) keeps the decoder from
    fooling it by changes that nobody sees, after which it learned nothing more.
    """
    import tensorflow as tf
    from keras import ops

    import modules

    decoder = training.model

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *decoder.output_shape[1:]), "float32"),
            tf.TensorSpec((None, *decoder.input_shape[1:-1]), "int32"),
        ]
    )
    def step(images, codes):
        with tf.GradientTape() as tape, tf.GradientTape() as adversary_tape:
            vectors = vqvae.quantizer.lookup(codes)
            decoded = ops.maximum(vqvae.paint(vectors), -0.5)  # so that black is exactly black
            guide = ops.cast(guides(vectors), "float32")
            with tf.GradientTape() as penalty_tape:
                penalty_tape.watch(images)
                of_real = discriminator(images, guide)
                verdict = sum(ops.sum(ops.mean(scale[-1], axis=(1, 2, 3))) for scale in of_real)
            penalty = ops.mean(ops.sum(penalty_tape.gradient(verdict, images) ** 2, axis=(1, 2, 3)))
            of_decoded = discriminator(decoded, guide)
            hinge = sum(
                ops.mean(ops.relu(1 - real[-1])) + ops.mean(ops.relu(1 + mine[-1]))
                for real, mine in zip(of_real, of_decoded)
            ) / len(of_real)
            adversary_loss = hinge + preset["penalty_weight"] * penalty
            adversarial = -sum(ops.mean(scale[-1]) for scale in of_decoded) / len(of_decoded)
            feature = sum(
                ops.mean(ops.abs(ops.cast(ops.stop_gradient(real) - mine, "float32")))
                for reals, mines in zip(of_real, of_decoded)
                for real, mine in zip(reals[:-1], mines[:-1])
            ) / sum(len(scale) - 1 for scale in of_decoded)
            reconstruction = ops.mean((images - decoded) ** 2) / variance
            likeness = ops.mean(modules.ssim_tensor(images, decoded))
            loss = (
                reconstruction
                + preset["decoder_ssim_weight"] * (1 - likeness)
                + preset["adversarial_weight"] * adversarial
                + preset["feature_weight"] * feature
            )
        optimizer.apply(
            adversary_tape.gradient(adversary_loss, discriminator.trainable_variables),
            discriminator.trainable_variables,
        )
        training.optimizer.apply(tape.gradient(loss, decoder.trainable_variables), decoder.trainable_variables)
        return {
            "loss": loss,
            "reconstruction_loss": reconstruction,
            "ssim": likeness,
            "adversarial_loss": adversarial,
            "feature_loss": feature,
            "discriminator_loss": hinge,
        }

    return step


def train_decoder(vqvae, images, codes, mirrored_codes, held_out, variance, settings, args, path):
    """Train the decoder of a VQVAE on against a discriminator, on images and codes that are not held out.

    `mirrored_codes` (N, h, w) are those of the mirror images. Returns its Training.
    """
    import keras

    import modules

    preset = PRESETS[args.preset]
    keras.utils.set_random_seed(args.seed)
    settings = settings | {"batch_size": args.decoder_batch_size, "epochs": args.decoder_epochs}
    steps = args.decoder_epochs * -(-int(np.sum(~held_out)) // args.decoder_batch_size)
    adam = {"beta_1": 0.5}
    training = Training(
        "decoder", vqvae.decoder, preset["decoder_learning_rate"], settings, path, steps=steps, adam=adam
    )
    discriminator = modules.Discriminator(**preset["adversary"])
    guides = keras.models.clone_model(vqvae.decoder)
    guides.set_weights(vqvae.decoder.get_weights())
    guides.trainable = False
    schedule = keras.optimizers.schedules.CosineDecay(preset["adversary_learning_rate"], steps)
    optimizer = keras.optimizers.Adam(schedule, **adam)
    optimizer.build(discriminator.trainable_variables)
    training.others = [*discriminator.variables, *optimizer.variables]
    if args.resume:
        training.restore()

    def augment(images, codes, mirrored_codes, rng):
        turned = rng.random(len(images)) < 0.5
        images = np.where(turned[:, None, None, None], images[:, ::-1], images)
        return [images, np.where(turned[:, None, None], mirrored_codes, codes)]

    def summarise(totals):
        figures = {name: float(value) for name, value in totals.items()}
        decoded = vqvae.decode(codes[held_out])
        figures["validation_ssim"] = float(modules.ssim(images[held_out], decoded).mean())
        figures["sharpness"] = float(sharpness(decoded) / sharpness(images[held_out]))
        line = (
            f"  loss {figures['loss']:.4f}; discriminator {figures['discriminator_loss']:.3f} (2 is chance); "
            f"validation: SSIM {figures['validation_ssim']:.3f}, {figures['sharpness']:.2f} as sharp as real"
        )
        return figures, line

    step = make_adversarial_step(training, vqvae, discriminator, guides, optimizer, preset, variance)
    arrays = [images[~held_out], codes[~held_out], mirrored_codes[~held_out]]
    fit(training, step, summarise, arrays, args.decoder_epochs, args.decoder_batch_size, args.seed, augment)
    return training


def sharpness(images):
    """Mean absolute difference of neighbouring pixels of images (N, H, W, 1)."""
    return np.abs(np.diff(images, axis=1)).mean() + np.abs(np.diff(images, axis=2)).mean()


def pixelcnn_loss(model, codes, levels, training=True):
    """The loss of a prior, in nats a code, and its figures, on codes (N, h, w) of slices of levels (N,)."""
    from keras import ops

    import modules

    logits = model(codes, levels, training=training)
    loss = ops.mean(modules.cross_entropy(codes, logits))
    accuracy = ops.mean(ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == codes, "float32"))
    return loss, {"loss": loss, "accuracy": accuracy}


def train_pixelcnn(codes, mirrored_codes, levels, held_out, settings, args, path):
    """Train a prior on codes (N, h, w) but for the `held_out` (N,) bool, which validate; returns its Training.

    `mirrored_codes` (N, h, w) are those of the mirror images, or None where the preset is not augmented; `levels` (N,)
    those of the slices in their heads.
    """
    import keras
    import tensorflow as tf

    import modules

    preset = PRESETS[args.preset]
    keras.utils.set_random_seed(args.seed)
    network = {"grid": codes.shape[1:], "num_embeddings": args.embeddings, **preset["pixelcnn"]}
    settings = settings | {"batch_size": args.pixelcnn_batch_size, "validation_share": args.validation_share}
    steps = None
    if preset["augmented"]:
        network["levels"] = int(levels.max()) + 1
        settings["epochs"] = args.pixelcnn_epochs
        steps = args.pixelcnn_epochs * -(-int(np.sum(~held_out)) // args.pixelcnn_batch_size)
    else:
        plain = {"residual_blocks": args.residual_blocks, "masked_layers": args.masked_layers}
        network, settings = network | plain, settings | plain
    model = modules.build_prior(**network)
    training = Training(
        "PixelCNN", model, preset["pixelcnn_learning_rate"], settings, path, monitor="validation_loss", steps=steps
    )
    signature = [tf.TensorSpec((None, *codes.shape[1:]), "int32"), tf.TensorSpec((None,), "int32")]
    evaluate = tf.function(lambda *batch: pixelcnn_loss(model, *batch, training=False)[1], input_signature=signature)

    def summarise(totals):
        figures = {name: float(value) for name, value in totals.items()}
        for name in figures.copy():
            figures[f"validation_{name}"] = 0.0
        unseen = np.flatnonzero(held_out)
        for i in range(0, len(unseen), modules.BATCH):
            some = unseen[i : i + modules.BATCH]
            for name, value in evaluate(codes[some], levels[some]).items():
                figures[f"validation_{name}"] += float(value) * len(some) / len(unseen)
        line = "  " + "; ".join(
            f"{side}: loss {figures[prefix + 'loss']:.4f} ({figures[prefix + 'loss'] / math.log(2):.3f} bits a code), "
            f"accuracy {figures[prefix + 'accuracy']:.3f}"
            for side, prefix in (("training", ""), ("validation", "validation_"))
        )
        return figures, f"{line}; a uniform guess: {math.log2(args.embeddings):g} bits"

    def augment(codes, mirrored_codes, levels, rng):
        turned = rng.random(len(codes)) < 0.5
        return [np.where(turned[:, None, None], mirrored_codes, codes), levels]

    if args.resume:
        training.restore()
    arrays = [codes[~held_out], levels[~held_out]]
    step = make_step(training, pixelcnn_loss, arrays)
    if preset["augmented"]:
        arrays.insert(1, mirrored_codes[~held_out])
    fit(
        training,
        step,
        summarise,
        arrays,
        args.pixelcnn_epochs,
        args.pixelcnn_batch_size,
        args.seed,
        augment if preset["augmented"] else None,
    )
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
    vqvae_path, decoder_path, pixelcnn_path = (
        checkpoints / f"{stage}.npz" for stage in ("vqvae", "decoder", "pixelcnn")
    )
    if args.resume and not vqvae_path.exists():
        note("no interrupted training to continue; starting afresh")
    elif vqvae_path.exists() and not args.resume:
        note("--resume would continue an interrupted training; its checkpoint goes when the first epoch is finished")
    precision = choose_precision(args.precision, args.deterministic, vqvae_path if args.resume else None)
    modules.keras.config.set_dtype_policy(precision)
    print(f"precision: {precision}")
    settings = {"preset": args.preset, "digest": digest, "seed": args.seed, "precision": precision}
    unseen = np.isin(cases, held_out)
    vqvae = train_vqvae(images, unseen, variance, settings, args, vqvae_path)
    model = vqvae.model
    codes, mirrored_codes, decoder = model.encode(images), None, None
    settings["codes"] = hashlib.sha256(codes.tobytes()).hexdigest()
    for path in (decoder_path, pixelcnn_path):
        if args.resume and path.exists() and load_checkpoint(path)[0]["settings"].get("codes") != settings["codes"]:
            note(f"{path} is for the codes of another VQ-VAE; starting that afresh")
            path.unlink()
    if PRESETS[args.preset]["augmented"]:
        mirrored_codes = model.encode(images[:, ::-1])
        decoder = train_decoder(model, images, codes, mirrored_codes, unseen, variance, settings, args, decoder_path)
    mean_image = images.mean(axis=0)
    del images
    levels = np.array([dataset.level_of(name) for name in names], np.int32)
    pixelcnn = train_pixelcnn(codes, mirrored_codes, levels, unseen, settings, args, pixelcnn_path)

    config = {
        "preset": args.preset,
        "vqvae": {"network": model.config, **describe(vqvae, args.vqvae_batch_size)},
        "pixelcnn": {"network": pixelcnn.model.config, **describe(pixelcnn, args.pixelcnn_batch_size)}
        | {"temperature": PRESETS[args.preset]["temperature"]},
        "data": {
            "digest": digest,
            "genuine": dataset.is_genuine("train", digest),
            "slices": len(names),
            "variance": variance,
            "held_out_cases": held_out,
            "held_out_from": ["vqvae", "decoder", "pixelcnn"] if decoder else ["pixelcnn"],
        },
        "seed": args.seed,
        "precision": precision,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }
    if decoder:
        config["decoder"] = describe(decoder, args.decoder_batch_size)
    modules.save_models(args.models, model, pixelcnn.model, config, mean_image)
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
    dataset.save_figure(plot_vqvae(plt, config["vqvae"]["history"]), args.out / dataset.FIGURES["vqvae"])
    history, best_epoch = config["pixelcnn"]["history"], config["pixelcnn"]["best_epoch"]
    dataset.save_figure(plot_pixelcnn(plt, history, best_epoch), args.out / dataset.FIGURES["pixelcnn"])
    dataset.show_figures(plt)


if __name__ == "__main__":
    dataset.run(main)
