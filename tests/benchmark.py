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
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plain import (
    plain_load,
    plain_pixelcnn,
    plain_pixelcnn_step,
    plain_sample,
    plain_ssim,
    plain_step,
    plain_vqvae_step,
)
from steps import FAITHFUL, blocking, compiled, our_pixelcnn_step, our_vqvae_step, sharp_steps

import dataset
import modules
from brains import config, devices, sampling, weights
from brains.backend import keras, layers, tf

BATCH = 128


# --- the table --------------------------------------------------------------------------------------------------------


def seconds(function):
    """Seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(what, reference, ours, turns=5, floor=None, passes=1):
    """Print a line of the table: reference and ours in turns, after one of each that does not count.

    `floor` is the time in seconds that the arithmetic of ours would take at the rate of a matrix product. A reference
    that would take too long may be one of so many equal `passes`.
    """
    reference(), ours()
    times = np.array([(passes * seconds(reference), seconds(ours)) for _ in range(turns)])
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


def layer_operations(layer):
    """Additions and multiplications of a convolution's forward pass for one image."""
    transposed = isinstance(layer, layers.Conv2DTranspose)
    return 2 * int(np.prod((layer.input if transposed else layer.output).shape[1:3]) * np.prod(layer.kernel.shape))


def vqvae_operations(vqvae):
    """Additions and multiplications of a training step for one image.

    Forward, then backward to the weights and the inputs of every layer but the first, whose input needs no gradient.
    """
    counts = [layer_operations(layer) for layer in vqvae.encoder.layers + vqvae.decoder.layers]
    return 3 * sum(counts) - counts[0]


def pixelcnn_operations(pixelcnn):
    """Additions and multiplications of a forward pass for one code: in the first layer, additions of looked-up rows."""
    inner = [layer for block in pixelcnn.blocks for layer in (block.enter, block.masked, block.leave)]
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
                lambda number=number: sampling.sample(pixelcnn, number, seed=0),
                turns=3,
                floor=floor,
            )
    print_differing(plain_sample(lambda codes: compiled(codes).numpy(), uniforms), pixelcnn)


def bench_gated_sampling():
    """Compare sampling from the sharp prior with the same network's whole forward pass per code."""
    pixelcnn = weights.load_models(ROOT / "trained_models" / "sharp")[1]
    for number in (8, 256):
        levels, codes = sampling.spread_levels(pixelcnn, number), np.zeros((number, *pixelcnn.grid), np.int32)
        forward = tf.function(lambda codes, levels=levels: pixelcnn(codes, levels))
        compare(
            f"sample {number} sharp grids, reference: compiled pass per code",
            lambda forward=forward, codes=codes: forward(codes).numpy(),
            lambda number=number: sampling.sample(pixelcnn, number, seed=0),
            turns=3,
            passes=codes[0].size,
        )
        if number == 8:
            uniforms = np.random.default_rng(0).random(codes.shape, np.float32)
            print_differing(plain_sample(lambda codes: forward(codes).numpy(), uniforms), pixelcnn)


def bench_ssim(images):
    """Compare SSIM, and a loss by it with the gradient, with TensorFlow's own function."""
    others = images[::-1].copy()

    def with_gradient(ssim):
        @tf.function
        def value(images, others):
            with tf.GradientTape() as tape:
                tape.watch(others)
                loss = tf.reduce_mean(ssim(images, others))
            return tape.gradient(loss, others)

        batch = tf.constant(images[:32]), tf.constant(others[:32])
        return lambda: value(*batch).numpy()

    reference = tf.function(plain_ssim)
    compare(
        f"SSIM of {len(images)} slices, reference: tf.image.ssim",
        lambda: reference(images, others).numpy(),
        lambda: modules.ssim(images, others),
    )
    compare("SSIM and its gradient, 32 slices", with_gradient(plain_ssim), with_gradient(modules.ssim_tensor))


def bench_sharp_training(images):
    """Compare a step of each sharp stage with the plain step of the same network."""
    for stage, (gradients, batch, model, loss) in sharp_steps(images[:32]).items():
        step = blocking(compiled(gradients, *batch), *batch)
        if loss is None:  # there is no shorter way to write an adversarial step
            times = [seconds(step) for _ in range(4)][1:]
            print(f"{'train sharp: ' + stage + ', 32':58}{'':12}{duration(np.median(times))}", flush=True)
        else:
            compare(f"train sharp: {stage}, 32", blocking(plain_step(model, loss), *batch), step, 3)


def print_differing(plain_codes, pixelcnn):
    ours = sampling.sample(pixelcnn, len(plain_codes), seed=0)
    differing = np.mean(np.any(plain_codes != ours, axis=(1, 2)))
    print(f"  grids of the {len(ours)} that differ between the plain sampler and ours: {differing:.2%}")


def example_prior(**changes):
    """The shipped prior, or one of other dimensions with random weights."""
    folder = ROOT / "trained_models" / "faithful"
    return modules.PixelCNN(replace(FAITHFUL.prior_network, **changes)) if changes else weights.load_models(folder)[1]


def bench_training(rates, images):
    policy = devices.choose_precision()
    codes = np.random.default_rng(0).integers(0, 128, (BATCH, 8, 8), np.int32)
    print(f"  precision chosen on this machine: {policy}")
    plain, plain_prior = plain_vqvae_step(), plain_pixelcnn_step(
        plain_pixelcnn(modules.PixelCNN(FAITHFUL.prior_network))
    )
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


def bench_layers(rate, images):
    """Print the time of each layer in a training step of the VQ-VAE, its share of the step, and that of its floor."""
    step, model = our_vqvae_step("float32", images)
    step = blocking(step, images)
    step()
    whole = np.median([seconds(step) for _ in range(5)])
    print(f"  by layer of the VQ-VAE, {BATCH} images, forward and backward{'':12}{'share':>11} {'floor':>8}")
    x, known, first = images, 0.0, model.encoder.layers[0]
    for network in (model.encoder, model.decoder):
        for layer in network.layers:
            passes = 2 if layer is first else 3  # nobody asks for the gradient of the images
            taken, x = time_layer(layer, tf.convert_to_tensor(x), layer is not first)
            known += taken
            floor = passes * BATCH * layer_operations(layer) / rate
            size = " x ".join(map(str, layer.output.shape[1:]))
            what = f"    {network.name} {layer.name}, to {size}"
            print(f"{what:58}{'':12}{duration(taken)}{taken / whole:9.0%} {floor / taken:8.0%}", flush=True)
    print(f"{'    all else: quantizer, losses, Adam':58}{'':12}{duration(whole - known)}{1 - known / whole:9.0%}")


def time_layer(layer, x, gradient_of_inputs):
    """Return the seconds of a layer's forward and backward pass, and its outputs."""

    @tf.function
    def passes(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        wanted = layer.trainable_variables + ([x] if gradient_of_inputs else [])
        return [tf.reduce_sum(value) for value in tape.gradient(y, wanted, upstream)]

    y = layer(x)
    upstream = tf.random.normal(y.shape)
    call = blocking(passes, x, upstream)
    call()
    return np.median([seconds(call) for _ in range(5)]), y


def bench_loading(folder):
    paths = sorted((folder / "keras_png_slices_train").iterdir())
    compare(
        f"load {len(paths):,} slices", lambda: plain_load(paths), lambda: dataset.load_split("train", folder), turns=3
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
    genuine = ROOT / "dataset" / config.TOP_FOLDER
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
    sampling.sample(pixelcnn, 8, seed=0)
    times = [seconds(lambda number=number: sampling.sample(pixelcnn, number, seed=0)) for number in numbers]
    curve(panels[0], "sample 8x8 grids", "grids", numbers, times)
    sizes = (8, 12, 16, 24, 32)
    priors = [example_prior(grid=(size, size)) for size in sizes]
    curve(
        panels[1],
        "sample 8 grids",
        "codes a side",
        sizes,
        [seconds(lambda prior=prior: sampling.sample(prior, 8, seed=0)) for prior in priors],
    )
    paths = sorted((folder / "keras_png_slices_train").iterdir())
    counts = [count for count in (128, 512, 2048, 8192) if count <= len(paths)]
    images = np.zeros((BATCH, 128, 128, 1), np.float32)
    step = blocking(our_vqvae_step(devices.choose_precision(), images)[0], images)
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
        bench_ssim(images)
        bench_training(rates, images)
        bench_layers(rates["float32"], images)
        bench_sharp_training(images)
        bench_loading(folder)
        bench_start(folder)
        if args.plot:
            draw_growth(args.plot, folder)


if __name__ == "__main__":
    main()
