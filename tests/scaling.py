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
from benchmark import BATCH, NETWORK, ROOT, VARIANCE, compare, compiled, processor, seconds
from conftest import free_addresses
from PIL import Image

import dataset
import modules
import train
from modules import keras, tf

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
import dataset, train
train.PRESETS["faithful"] |= {"vqvae": {"filters": (4, 4, 4, 4), "bottleneck": 4}, "pixelcnn": {"filters": 4}}
dataset.run(train.main)
"""


# --- the stream -------------------------------------------------------------------------------------------------------


def bench_stream(scratch):
    """Compare batches from a Store with those from an array; returns slices a second of the stream alone."""
    images = made_up(STREAMED)
    strategy, some = tf.distribute.get_strategy(), train.shuffled(STREAMED, BATCH, 0)
    vqvae = modules.VQVAE(**NETWORK)
    training = train.Training("VQ-VAE", vqvae, 1e-3, {}, None)
    step = call(train.gradients_of(training, train.vqvae_loss(vqvae, VARIANCE)), images[:BATCH])

    def from_array(use, batches):
        for batch in batches:
            use(images[batch])

    def from_store(store, use, batches):
        for batch in train.feed(strategy, lambda chosen, _: [store[chosen]], batches, (0,))[0]:
            use(batch[1])

    def touch(batch):
        return np.asarray(batch)[0, 0, 0, 0]

    rates = []
    for where, limit in (("memory", None), ("a file", 0)):
        store = dataset.store_of_images(STREAMED, scratch / "slices.bin", limit)
        for part in train.parts(STREAMED):
            store[part] = images[part]
        compare(
            f"the VQ-VAE, 2,560 slices from {where}, reference: an array",
            lambda: from_array(step, some[:20]),
            lambda store=store: from_store(store, step, some[:20]),
            turns=3,
        )
        compare(
            f"their codes, {STREAMED:,} from {where}, reference: an array",
            lambda: vqvae.encode(images),
            lambda store=store: train.encode(vqvae, store, scratch / "codes.bin"),
            turns=3,
        )
        rates.append(STREAMED / min(seconds(lambda store=store: from_store(store, touch, some)) for _ in range(3)))
    print(f"  the stream alone: {rates[0]:,.0f} slices a second from memory, {rates[1]:,.0f} from a file")
    return rates[0]


# --- the sums over devices --------------------------------------------------------------------------------------------


def stages():
    """The training steps by name: (a call of one, the slices in its batch, the bytes that its devices sum)."""
    keras.config.set_dtype_policy(train.choose_precision("auto"))
    found = {}
    for preset, content in train.PRESETS.items():
        flags = content["flags"]
        shape = {"latent_dim": flags["latent_dim"], "num_embeddings": flags["embeddings"]}
        vqvae = modules.VQVAE(size=128, commitment_cost=train.COMMITMENT_COST, **shape, **content["vqvae"])
        training = train.Training("VQ-VAE", vqvae, content["vqvae_learning_rate"], {}, None)
        gradients = train.gradients_of(training, train.vqvae_loss(vqvae, VARIANCE, content["ssim_weight"]))
        vectors = vqvae.quantizer.codebook.shape
        # counts, sums and vectors drawn for revival, where the codebook does not follow gradients
        statistics = 0 if vqvae.quantizer.decay is None else 4 * (vectors[0] + 2 * np.prod(vectors))
        images = made_up(flags["vqvae_batch_size"])
        found[f"{preset}: VQ-VAE"] = call(gradients, images), len(images), size(vqvae) + statistics
        if "discriminator" in content:
            images = made_up(flags["adversarial_batch_size"])
            discriminator = modules.Discriminator(**content["discriminator"])
            optimizer = train.make_adam(discriminator.trainable_variables, 1e-3)
            frozen, weights = train.copy_of(vqvae), content["adversarial_weights"]
            gradients = train.adversarial_gradients(training, frozen, discriminator, optimizer, weights, VARIANCE)
            summed = size(vqvae) + size(discriminator) + statistics
            found[f"{preset}: adversarial"] = call(gradients, images), len(images), summed
        codes = vqvae.encode(made_up(flags["pixelcnn_batch_size"]))
        levels = np.zeros(len(codes), np.int32)
        network = {"grid": codes.shape[1:], "num_embeddings": flags["embeddings"], **content["pixelcnn"]}
        if "gated_layers" in network:
            network["levels"] = dataset.LEVELS
        else:
            network |= {name: flags[name] for name in ("residual_blocks", "masked_layers")}
        prior = modules.build_prior(**network)
        training = train.Training("PixelCNN", prior, content["pixelcnn_learning_rate"], {}, None)
        gradients = train.gradients_of(training, lambda *batch, prior=prior: train.pixelcnn_loss(prior, *batch))
        found[f"{preset}: PixelCNN"] = call(gradients, codes, levels), len(codes), size(prior)
        if "critic" in content:
            critic = modules.Critic(**content["critic"])
            training = train.Training("critic", critic, content["critic_learning_rate"], {}, None)
            used = train.as_used(vqvae)

            def loss(images, codes, critic=critic, used=used):
                return train.critic_loss(critic, used, used.quantizer.nearest(used.encoder(images)), codes)

            images = made_up(flags["critic_batch_size"])
            gradients = train.gradients_of(training, loss)
            found[f"{preset}: critic"] = call(gradients, images, vqvae.encode(images)), len(images), size(critic)
    keras.config.set_dtype_policy("float32")
    return found


def made_up(number):
    """Images (number, 128, 128, 1) in quarters of grey levels."""
    quarters = np.random.default_rng(0).integers(0, 1021, (number, 128, 128, 1), np.uint16)
    return quarters / np.float32(1020) - np.float32(0.5)


def size(model):
    """Bytes of a model's gradients."""
    return 4 * sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def call(gradients, *batch):
    """train.py's step on one device, as a call with a batch that waits for its figures."""
    step = compiled(gradients, *batch)
    return lambda *other: [np.asarray(value) for value in step(*(other or batch)).values()]


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
            levels = np.where(disc < rng.uniform(0.5, 0.9), rng.integers(60, 190, (256, 256)), 0)
            Image.fromarray(levels.astype(np.uint8)).save(path)
        else:
            other = number % different
            os.link(split / f"case_{other // 32:06}_slice_{other % 32}.nii.png", path)
    return folder


def main():
    parser = argparse.ArgumentParser(description="Measure what more slices and more devices cost.")
    parser.add_argument("--memory", type=dataset.positive, nargs="+", metavar="N", help="slices to train on")
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
