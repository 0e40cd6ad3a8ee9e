"""Times every step of the program against the plain algorithm in the same run, and prints the ratios.

    python tests/benchmark.py                  the table
    python tests/benchmark.py --plot FILE      also draws how the cost grows with samples, grid size and images

A reference is the plain way to do the same, as short as it can be written, with the same weights. Reference and ours
run in turns; a ratio is taken turn by turn, and above 1 ours is faster. The share of the floor is the time that the
step's multiplications and additions would take at the rate of this machine's matrix product, measured in the same run
and in the same precision, over the time that ours took.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dataset
import modules
import train
from modules import keras, layers, ops, tf

FAITHFUL = train.PRESETS["faithful"]
NETWORK = {**FAITHFUL["vqvae"], "size": 128, "commitment_cost": 0.25, "latent_dim": 16, "num_embeddings": 128}
PRIOR = {"grid": (8, 8), "num_embeddings": 128, "filters": 128, "residual_blocks": 2, "masked_layers": 2}
BATCH = 128
VARIANCE = 0.03445


# --- the table --------------------------------------------------------------------------------------------------------


def seconds(function):
    """Seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(what, reference, ours, turns=5, floor=None):
    """Print a line of the table: reference and ours in turns, after one of each that does not count.

    `floor` is the time in seconds that the arithmetic of ours would take at the rate of a matrix product.
    """
    reference(), ours()
    times = np.array([(seconds(reference), seconds(ours)) for _ in range(turns)])
    ratios = times[:, 0] / times[:, 1]
    medians = np.median(times, axis=0)
    share = f"{floor / medians[1]:6.0%}" if floor else ""
    print(
        f"{what:58}{duration(medians[0])} {duration(medians[1])} {np.median(ratios):8.2f} "
        f"{ratios.min():8.2f} {ratios.max():8.2f}  {share}",
        flush=True,
    )


def duration(value):
    return f"{value:8.2f} s " if value >= 1 else f"{value * 1e3:8.1f} ms"


def processor():
    """The processor's name as the system gives it, and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


# --- operations, counted from the layers ------------------------------------------------------------------------------


def vqvae_operations(vqvae):
    """Additions and multiplications of a training step for one image.

    Forward, then backward to the weights and the inputs of every layer but the first, whose input needs no gradient.
    """
    counts = []
    for layer in vqvae.encoder.layers + vqvae.decoder.layers:
        transposed = isinstance(layer, layers.Conv2DTranspose)
        positions = np.prod((layer.input if transposed else layer.output).shape[1:3])
        counts.append(2 * positions * np.prod(layer.kernel.shape))
    return int(3 * sum(counts) - counts[0])


def pixelcnn_operations(pixelcnn):
    """Additions and multiplications of a forward pass for one code: in the first layer, additions of looked-up rows."""
    inner = [layer for block in pixelcnn.blocks for layer in (block.reduce, block.masked, block.expand)]
    products = sum(
        2 * np.prod(layer.kernel.shape) * np.mean(getattr(layer, "mask", 1))
        for layer in (*inner, *pixelcnn.masked, pixelcnn.head)
    )
    return products + np.sum(pixelcnn.first.mask) * pixelcnn.first.filters


def matrix_product_rate(dtype, size=2048):
    """Operations a second of this machine's matrix product."""
    a = tf.cast(tf.random.normal((size, size)), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.cast(tf.matmul(a, a), "float32")))
    product()
    return 2 * size**3 / min(seconds(lambda: product().numpy()) for _ in range(5))


# --- the plain algorithms ---------------------------------------------------------------------------------------------


def plain_vqvae():
    """The autoencoder in plain Keras layers, and its codebook."""
    convolution = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    encoder = [layers.Conv2D(filters, strides=2, **convolution) for filters in (32, 32, 64, 64)]
    encoder += [layers.Conv2D(128, **convolution), layers.Conv2D(16, 1)]
    decoder = [layers.Conv2DTranspose(128, **convolution)]
    decoder += [layers.Conv2DTranspose(filters, strides=2, **convolution) for filters in (64, 64, 32, 32)]
    decoder += [layers.Conv2DTranspose(1, 3, padding="same")]
    encoder = keras.Sequential([keras.Input((128, 128, 1)), *encoder])
    decoder = keras.Sequential([keras.Input((8, 8, 16)), *decoder])
    return encoder, decoder, keras.Variable(tf.random.uniform((128, 16), -0.05, 0.05))


def plain_vqvae_step():
    """A training step of it, in float32."""
    encoder, decoder, codebook = plain_vqvae()
    variables = [*encoder.trainable_variables, codebook, *decoder.trainable_variables]
    optimizer = keras.optimizers.Adam(1e-3)

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            latents = encoder(images)
            distances = tf.reduce_sum((latents[..., None, :] - codebook) ** 2, axis=-1)
            quantized = tf.gather(codebook, tf.argmin(distances, axis=-1))
            codebook_loss = tf.reduce_mean((tf.stop_gradient(latents) - quantized) ** 2)
            commitment_loss = tf.reduce_mean((latents - tf.stop_gradient(quantized)) ** 2)
            reconstructions = decoder(latents + tf.stop_gradient(quantized - latents))
            loss = tf.reduce_mean((images - reconstructions) ** 2) / VARIANCE + codebook_loss + 0.25 * commitment_loss
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    return step


class PlainMaskedConv2D(layers.Conv2D):
    """The whole kernel times its mask, convolved."""

    def __init__(self, filters, kernel_size, mask_type):
        super().__init__(filters, kernel_size, padding="same", activation="relu")
        self.mask = modules.causal_mask(kernel_size, mask_type)

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * self.mask)


def plain_pixelcnn(like):
    """The network of a PixelCNN in plain Keras layers, with its weights."""
    codes = keras.Input(like.grid, dtype="int32")
    x = PlainMaskedConv2D(like.config["filters"], 7, "A")(ops.one_hot(codes, like.num_embeddings))
    for _ in range(like.config["residual_blocks"]):
        y = layers.Conv2D(like.config["filters"], 1, activation="relu")(x)
        y = PlainMaskedConv2D(like.config["filters"] // 2, 3, "B")(y)
        x = x + layers.Conv2D(like.config["filters"], 1, activation="relu")(y)
    for _ in range(like.config["masked_layers"]):
        x = PlainMaskedConv2D(like.config["filters"], 1, "B")(x)
    model = keras.Model(codes, layers.Conv2D(like.num_embeddings, 1)(x))
    model.set_weights(like.get_weights())
    return model


def plain_pixelcnn_step(model):
    """A training step of it, in float32."""
    optimizer = keras.optimizers.Adam(3e-4)

    @tf.function
    def step(codes):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(codes, model(codes), from_logits=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    return step


def plain_sample(logits_of, uniforms):
    """Codes for uniform numbers (N, h, w): the logits of the whole grid for every code."""
    codes = np.zeros(uniforms.shape, np.int32)
    for row, column in np.ndindex(uniforms.shape[1:]):
        logits = logits_of(codes)[:, row, column]
        cumulative = np.cumsum(np.exp(logits - logits.max(axis=-1, keepdims=True)), axis=-1)
        drawn = uniforms[:, row, column, None] * cumulative[:, -1:]
        codes[:, row, column] = np.sum(cumulative[:, :-1] <= drawn, axis=-1)
    return codes


def plain_load(paths):
    """One image at a time."""
    images = []
    for path in paths:
        levels = np.asarray(Image.open(path), np.float32)
        images.append(np.asarray(Image.fromarray(levels).resize((128, 128), Image.Resampling.BOX)) / 255 - 0.5)
    return np.stack(images)[..., None]


# --- ours -------------------------------------------------------------------------------------------------------------


def compiled(gradients, *batch):
    """train.py's step, on one device, as a function of a batch like this."""
    signature = [tf.TensorSpec((), "float32"), *(tf.TensorSpec((None, *each.shape[1:]), each.dtype) for each in batch)]
    step = train.make_step(tf.distribute.get_strategy(), gradients, signature)
    return lambda *batch: step(np.float32(1), *batch)


def our_vqvae_step(policy, images):
    keras.config.set_dtype_policy(policy)
    model = modules.VQVAE(**NETWORK)
    training = train.Training("VQ-VAE", model, FAITHFUL["vqvae_learning_rate"], {}, None)
    step = compiled(train.gradients_of(training, train.vqvae_loss(model, VARIANCE)), images)
    keras.config.set_dtype_policy("float32")
    return step, model


def our_pixelcnn_step(policy, codes):
    keras.config.set_dtype_policy(policy)
    model = modules.PixelCNN(**PRIOR)
    training = train.Training("PixelCNN", model, FAITHFUL["pixelcnn_learning_rate"], {}, None)
    step = compiled(train.gradients_of(training, lambda codes: train.pixelcnn_loss(model, codes, None)), codes)
    keras.config.set_dtype_policy("float32")
    return step, model


def blocking(step, batch):
    """A call of the step that waits for its figures."""
    return lambda: [np.asarray(figure) for figure in keras.tree.flatten(step(batch))]


# --- the measurements -------------------------------------------------------------------------------------------------


def bench_sampling(rates):
    pixelcnn = example_prior()
    plain = plain_pixelcnn(pixelcnn)
    compiled = tf.function(plain, reduce_retracing=True)
    per_code = pixelcnn_operations(pixelcnn)
    for number in (8, 256):
        uniforms = np.random.default_rng(0).random((number, 8, 8), np.float32)
        floor = number * 64 * per_code / rates["float32"]
        for name, logits_of in (
            ("predict", lambda codes: plain.predict(codes, verbose=0)),
            ("compiled forward pass", lambda codes: compiled(codes).numpy()),
        ):
            compare(
                f"sample {number} grids, reference: {name} per code",
                lambda uniforms=uniforms, logits_of=logits_of: plain_sample(logits_of, uniforms),
                lambda number=number: modules.sample(pixelcnn, number, seed=0),
                turns=3,
                floor=floor,
            )
    print_differing(plain_sample(lambda codes: compiled(codes).numpy(), uniforms), pixelcnn)


def bench_gated_sampling():
    """Sampling from the prior of the sharp preset, beside the same network's whole forward pass per code."""
    pixelcnn = modules.load_models(ROOT / "trained_models" / "sharp")[1]
    levels = modules.spread_levels(pixelcnn, 8)
    uniforms = np.random.default_rng(0).random((8, *pixelcnn.grid), np.float32)
    forward = tf.function(lambda codes: pixelcnn(codes, levels))
    compare(
        "sample 8 sharp grids, reference: compiled pass per code",
        lambda: plain_sample(lambda codes: forward(codes).numpy(), uniforms),
        lambda: modules.sample(pixelcnn, 8, seed=0),
        turns=3,
    )
    print_differing(plain_sample(lambda codes: forward(codes).numpy(), uniforms), pixelcnn)


def print_differing(plain_codes, pixelcnn):
    ours = modules.sample(pixelcnn, len(plain_codes), seed=0)
    differing = np.mean(np.any(plain_codes != ours, axis=(1, 2)))
    print(f"  grids of the {len(ours)} that differ between the plain sampler and ours: {differing:.2%}")


def example_prior(**changes):
    """The shipped prior, or one of other dimensions with random weights."""
    folder = ROOT / "trained_models" / "faithful"
    return modules.PixelCNN(**PRIOR | changes) if changes else modules.load_models(folder)[1]


def bench_training(rates, images):
    policy = train.choose_precision("auto")
    codes = np.random.default_rng(0).integers(0, 128, (BATCH, 8, 8), np.int32)
    print(f"  precision chosen on this machine: {policy}")
    plain, plain_prior = plain_vqvae_step(), plain_pixelcnn_step(plain_pixelcnn(modules.PixelCNN(**PRIOR)))
    for ours in dict.fromkeys(("float32", policy)):
        rate = rates["float32" if ours == "float32" else "bfloat16"]
        step, model = our_vqvae_step(ours, images)
        floor = BATCH * vqvae_operations(model) / rate
        compare(f"train the VQ-VAE, {BATCH} images, {ours}", blocking(plain, images), blocking(step, images), 9, floor)
        step, model = our_pixelcnn_step(ours, codes)
        floor = 3 * BATCH * 64 * pixelcnn_operations(model) / rate
        compare(
            f"train the PixelCNN, {BATCH} grids, {ours}", blocking(plain_prior, codes), blocking(step, codes), 9, floor
        )


def bench_loading(folder):
    paths = sorted((folder / "keras_png_slices_train").iterdir())
    compare(
        f"load {len(paths):,} slices",
        lambda: plain_load(paths),
        lambda: dataset.load_split("train", folder),
        turns=3,
    )


def bench_start(folder):
    image = next((folder / "keras_png_slices_train").iterdir())
    with tempfile.TemporaryDirectory() as out:
        generate = ("predict.py", "generate", "8", "--seed", "0", "--no-show", "--out", out)
        for what, arguments in (
            ("predict.py generate 8", generate),
            ("the same with --preset sharp", (*generate, "--preset", "sharp")),
            ("predict.py reconstruct PATH", ("predict.py", "reconstruct", str(image), "--no-show", "--out", out)),
            *((f"{name} --help", (name, "--help")) for name in ("train.py", "predict.py", "ssim.py", "dataset.py")),
        ):
            compare(
                f"{what}, reference: import tensorflow",
                lambda: process("-c", "import tensorflow"),
                lambda arguments=arguments: process(*arguments),
            )


def process(*arguments):
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)


def slices_folder(scratch, count=2000):
    """The genuine slices where they are; else as many made-up ones of the same size."""
    genuine = ROOT / "dataset" / dataset.TOP_FOLDER
    if (genuine / "keras_png_slices_train").is_dir():
        return genuine
    folder = Path(scratch) / "keras_png_slices_train"
    folder.mkdir()
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-1:1:256j, -1:1:256j]) < 0.7
    for number in range(count):
        levels = (disc * rng.integers(60, 190, (256, 256))).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"case_{number // 32:03}_slice_{number % 32}.nii.png")
    return Path(scratch)


# --- how the cost grows -----------------------------------------------------------------------------------------------


def draw_growth(path, folder):
    """Plot the time of sampling against number and size of the grids, and that of an epoch against training images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    pixelcnn = example_prior()
    numbers = (1, 10, 100, 1000, 10_000)
    modules.sample(pixelcnn, 8, seed=0)
    times = [seconds(lambda number=number: modules.sample(pixelcnn, number, seed=0)) for number in numbers]
    curve(panels[0], "sample 8x8 grids", "grids", numbers, times)
    sizes = (8, 12, 16, 24, 32)
    priors = [example_prior(grid=(size, size)) for size in sizes]
    curve(
        panels[1],
        "sample 8 grids",
        "codes a side",
        sizes,
        [seconds(lambda prior=prior: modules.sample(prior, 8, seed=0)) for prior in priors],
    )
    paths = sorted((folder / "keras_png_slices_train").iterdir())
    counts = [count for count in (128, 512, 2048, 8192) if count <= len(paths)]
    images = np.zeros((BATCH, 128, 128, 1), np.float32)
    step = blocking(our_vqvae_step(train.choose_precision("auto"), images)[0], images)
    step()
    epochs = [seconds(lambda count=count: [step() for _ in range(count // BATCH)]) for count in counts]
    curve(panels[2], "VQ-VAE, an epoch", "training images", counts, epochs)
    figure.savefig(path, dpi=110)


def curve(panel, title, unit, sizes, times):
    panel.plot(sizes, times, marker="o")
    panel.set(title=title, xlabel=unit, ylabel="seconds", xscale="log", yscale="log")
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    panel.minorticks_off()
    panel.margins(x=0.2, y=0.15)
    for size, value in zip(sizes, times):
        print(f"  {title}, {unit} {size:,}: {duration(value).strip()}")
        panel.annotate(duration(value).strip(), (size, value), textcoords="offset points", xytext=(4, -10), fontsize=8)


def main():
    parser = argparse.ArgumentParser(description="Time every step against the plain algorithm in the same run.")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw how the cost grows")
    args = parser.parse_args()
    rates = {dtype: matrix_product_rate(dtype) for dtype in ("float32", "bfloat16")}
    print(f"{processor()}; TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}")
    print("matrix product: " + ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in rates.items()))
    print(f"{'':58}{'reference':>11} {'ours':>11} {'ratio':>8} {'min':>8} {'max':>8}   floor")
    images = np.random.default_rng(0).uniform(-0.5, 0.5, (BATCH, 128, 128, 1)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = slices_folder(scratch)
        bench_sampling(rates)
        bench_gated_sampling()
        bench_training(rates, images)
        bench_loading(folder)
        bench_start(folder)
        if args.plot:
            draw_growth(args.plot, folder)


if __name__ == "__main__":
    main()
