"""What more slices and more devices cost: the stream of slices, peak memory, the sums over devices, a projection.

    python tests/scaling.py                   the stream against arrays, the sums, and what they would allow
    python tests/scaling.py --memory N ...    peak memory of trainings of small networks on N generated slices

The projection is no measurement. It takes a GPU to be GPU times as fast as this machine, the network between machines
of 8 GPUs to be as fast as this machine's loopback, and a batch of the preset's size on each GPU: a ring sends 2 (n - 1)
/ n times what is summed, and each machine streams what this one streams.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmark import BATCH, ROOT, compare, processor, seconds
from conftest import free_addresses
from PIL import Image
from steps import FAITHFUL, SHARP, compiled, our_pixelcnn_step, our_vqvae_step, sharp_steps

from brains import cli, devices, stream
from brains.backend import keras, tf

STREAMED = 10_000  # slices
GPU = 40  # times this machine, assumed
DEVICES = (1, 8, 64)
MACHINE = 8  # GPUs
SUM = """
import sys, time
import numpy as np
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
numbers = tf.zeros(int(sys.argv[1]) // 4)
def mine():
    return tf.distribute.get_replica_context().all_reduce("sum", numbers)[:1]
step = tf.function(lambda: strategy.experimental_local_results(strategy.run(mine))[0])
times = []
for _ in range(25):
    began = time.perf_counter()
    np.asarray(step())
    times.append(time.perf_counter() - began)
print(np.median(times[5:]))
"""
TRAIN_SMALL = """
from dataclasses import replace
import train
from brains import cli, config
config.PRESETS["faithful"] = replace(
    config.PRESETS["faithful"],
    vqvae_network=config.VQVAEConfig(filters=(4, 4, 4, 4), bottleneck=4),
    prior_network=config.PixelCNNConfig(filters=4),
)
cli.run(train.main)
"""


# --- the stream -------------------------------------------------------------------------------------------------------


def bench_stream(scratch):
    """Compare batches from a Store with those from an array; returns slices a second of the stream alone."""
    images = made_up(STREAMED)
    strategy, batches = tf.distribute.get_strategy(), stream.shuffled(STREAMED, BATCH, 0)
    step, vqvae = our_vqvae_step("float32", images[:BATCH])

    def waiting(batch):
        return [np.asarray(value) for value in step(batch).values()]

    def from_array(use, batches):
        for batch in batches:
            use(images[batch])

    def from_store(store, use, batches):
        for batch in stream.feed(strategy, lambda chosen, _: [store[chosen]], batches, (0,))[0]:
            use(batch[1])

    def touch(batch):
        return np.asarray(batch)[0, 0, 0, 0]

    rates = []
    for where, limit in (("memory", None), ("a file", 0)):
        store = stream.store_of_images(STREAMED, scratch / "slices.bin", limit)
        for part in stream.parts(STREAMED):
            store[part] = images[part]
        compare(
            f"the VQ-VAE, 2,560 slices from {where}, reference: an array",
            lambda: from_array(waiting, batches[:20]),
            lambda store=store: from_store(store, waiting, batches[:20]),
            turns=3,
        )
        compare(
            f"their codes, {STREAMED:,} from {where}, reference: an array",
            lambda: vqvae.encode(images),
            lambda store=store: stream.encode(vqvae, store, scratch / "codes.bin"),
            turns=3,
        )
        rates.append(STREAMED / min(seconds(lambda store=store: from_store(store, touch, batches)) for _ in range(3)))
    print(f"  the stream alone: {rates[0]:,.0f} slices a second from memory, {rates[1]:,.0f} from a file")
    return rates[0]


# --- the sums over devices --------------------------------------------------------------------------------------------


def stages():
    """Return the training steps {name: (a call of one, the slices in its batch, the bytes that its devices sum)}."""
    policy = devices.choose_precision()
    images = made_up(FAITHFUL.vqvae.batch_size)
    step, vqvae = our_vqvae_step(policy, images)
    codes = vqvae.encode(images)
    prior_step, prior = our_pixelcnn_step(policy, codes)
    found = {
        "faithful: VQ-VAE": (waiting_for(step, images), len(images), size(vqvae)),
        "faithful: PixelCNN": (waiting_for(prior_step, codes), len(codes), size(prior)),
    }
    keras.config.set_dtype_policy(policy)
    images = made_up(SHARP.vqvae.batch_size)
    for stage, (gradients, batch, model, _) in sharp_steps(images).items():
        summed = size(model)
        if stage in ("vqvae", "adversarial"):  # counts, sums and vectors drawn for revival
            vectors = model.quantizer.codebook.shape
            summed += 4 * (vectors[0] + 2 * int(np.prod(vectors)))
        found[f"sharp: {stage}"] = waiting_for(compiled(gradients, *batch), *batch), len(images), summed
    keras.config.set_dtype_policy("float32")
    return found


def waiting_for(step, *batch):
    """Return a call of a step that waits for its figures."""
    return lambda: [np.asarray(value) for value in step(*batch).values()]


def made_up(number):
    """Images (number, 128, 128, 1) in quarters of grey levels."""
    quarters = np.random.default_rng(0).integers(0, 1021, (number, 128, 128, 1), np.uint16)
    return quarters / np.float32(1020) - np.float32(0.5)


def size(model):
    """Bytes of a model's gradients."""
    return 4 * sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def bench_sums(streamed):
    """Print what the devices of a training sum in each step, how long that takes, and the projection."""
    print(
        f"\n{'':22}{'here, slices/s':>16}{'bytes summed':>16}{'over loopback':>16}   projected slices/s on GPUs:",
        end="",
    )
    print("".join(f"{number:>12,}" for number in DEVICES))
    for name, (step, batch, summed) in stages().items():
        step()
        once, over_loopback = min(seconds(step) for _ in range(5)), sum_over_loopback(summed)
        projected = []
        for number in DEVICES:
            machines = -(-number // MACHINE)
            exchange = 2 * (machines - 1) / machines * over_loopback
            projected.append(min(number * batch / (once / GPU + exchange), machines * streamed))
        print(
            f"{name:22}{batch / once:16,.0f}{summed:16,}{1e3 * over_loopback:13,.1f} ms{'':30}"
            + "".join(f"{rate:12,.0f}" for rate in projected),
            flush=True,
        )


def sum_over_loopback(number):
    """Seconds in which two processes on this machine sum as many bytes."""
    addresses = free_addresses(2)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SUM, str(number)],
            env=os.environ
            | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            | {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for index in range(2)
    ]
    return max(float(worker.communicate(timeout=300)[0]) for worker in workers)


# --- memory -----------------------------------------------------------------------------------------------------------


def bench_memory(counts):
    """Print the peak memory of train.py, an epoch of each stage of small networks, on as many slices."""
    print(f"{'slices':>10}{'peak memory':>14}{'all took':>12}")
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_slices(Path(scratch), count)
            epochs = ("--vqvae-epochs", "1", "--pixelcnn-epochs", "1")
            models = ("--models", f"{scratch}/models", "--out", f"{scratch}/out", "--no-show")
            flags = ("--data", str(folder), *epochs, *models)
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", TRAIN_SMALL, *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"a training on {count:,} slices ended with status {status}")
            took = time.perf_counter() - began
            print(f"{count:10,}{usage.ru_maxrss / 1024:11,.0f} MiB{took:10.0f} s", flush=True)


def write_slices(folder, count, different=500):
    """A training split of `count` files, of which so many are different: the others are links to these."""
    split = folder / "keras_png_slices_train"
    split.mkdir()
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-1:1:256j, -1:1:256j])
    for number in range(count):
        path = split / f"case_{number // 32:06}_slice_{number % 32}.nii.png"
        if number < different:
            grey = np.where(disc < rng.uniform(0.5, 0.9), rng.integers(60, 190, (256, 256)), 0)
            Image.fromarray(grey.astype(np.uint8)).save(path)
        else:
            other = number % different
            os.link(split / f"case_{other // 32:06}_slice_{other % 32}.nii.png", path)
    return folder


def main():
    parser = argparse.ArgumentParser(description="Measure what more slices and more devices cost.")
    parser.add_argument("--memory", type=cli.positive, nargs="+", metavar="N", help="slices to train on")
    args = parser.parse_args()
    print(f"{processor()}; TensorFlow {tf.__version__}, Keras {keras.__version__}", flush=True)
    if args.memory:
        return bench_memory(args.memory)
    print(f"{'':58}{'reference':>11} {'ours':>11} {'ratio':>8} {'min':>8} {'max':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        streamed = bench_stream(Path(scratch))
    bench_sums(streamed)


if __name__ == "__main__":
    main()
