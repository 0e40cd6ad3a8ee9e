"""All cores, one device, several, or several machines: how work is spread, and what workers tell each other."""

import functools
import hashlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from brains.backend import tf
from brains.cli import UserError, note


def choose_strategy():
    """Return how tf.distribute spreads a training: over machines that TF_CONFIG names, or over the GPUs of this one.

    SLURM names machines by variables of its own. Call it before TensorFlow computes anything.
    """
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
    workers = [address for addresses in resolver.cluster_spec().as_dict().values() for address in addresses]
    note(f"waiting for all of {', '.join(workers)}")
    # TensorFlow waits in C++, where Python would not see a Ctrl-C
    seen = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    finally:
        signal.signal(signal.SIGINT, seen)


def cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def on_all_cores(function, items, progress=iter):
    """Return the list of what `function(item, stop)` gives for each item, one item on each core at a time.

    OpenMP and BLAS split nothing further. That is quicker where much of the work is no matrix product. `stop` is an
    Event, which is set if the function should give up, as after a Ctrl-C; calls that go on are waited for. `progress`
    wraps the items, as tqdm does.
    """
    stop = threading.Event()
    alone = functools.partial(threadpool_limits, 1, "openmp")  # OpenMP counts for each thread, BLAS for the process
    with ThreadPoolExecutor(cores(), initializer=alone) as pool, threadpool_limits(1, "blas"):
        try:
            running = [pool.submit(function, item, stop) for item in items]
            return [each.result() for each in progress(running)]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def describe():
    """Return the devices that a training uses, in words."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU, {cores()} cores"
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return f"{len(gpus)} x {name}" if len(gpus) > 1 else name


def worker():
    """Return the number of this process among the workers of a training; 0 if it is alone."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or resolver.task_type is None:
        return 0
    chiefs = len(resolver.cluster_spec().as_dict().get("chief", []))  # a chief is a worker too, and the first
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)


def writes():
    """Return whether this process is the worker that writes files and speaks."""
    return worker() == 0


def of_all(strategy, array):
    """Return the number or array of each replica's process, (replicas, ...) float32, once all have called this."""
    return np.asarray(_gather(strategy)(np.asarray(array, np.float32)))


@functools.cache
def _gather(strategy):
    def mine(array):
        replicas = tf.distribute.get_replica_context()
        place = tf.one_hot(replicas.replica_id_in_sync_group, strategy.num_replicas_in_sync)
        return replicas.all_reduce("sum", tf.tensordot(place, array, axes=0))

    @tf.function
    def gather(array):
        return strategy.experimental_local_results(strategy.run(mine, (array,)))[0]

    return gather


def agree(strategy, settings, path, finished):
    """Raise UserError if workers have other settings, or other numbers of finished epochs in the checkpoint `path`."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if np.ptp(of_all(strategy, int(digest[:6], 16))):  # six digits are exact in a float32
        raise UserError(
            "the workers have other flags or other slices; start the same command on all, with the same --data"
        )
    epochs = of_all(strategy, finished)
    if np.ptp(epochs):
        found = ", ".join(f"{epoch:g}" for epoch in epochs)
        raise UserError(f"{path}: workers found checkpoints of different epochs ({found}); they must share that folder")


def choose_precision():
    """Return the faster Keras dtype policy, "mixed_bfloat16" or "float32", as measured on this machine.

    bfloat16 is faster on processors that have units for it, and up to a hundred times slower on others.
    """
    seconds = {dtype: _time_convolution(dtype, images=1) for dtype in ("bfloat16", "float32")}
    if seconds["bfloat16"] < 3 * seconds["float32"]:  # else nothing more needs to be measured
        seconds = {dtype: _time_convolution(dtype, images=64) for dtype in seconds}
    return "mixed_bfloat16" if seconds["bfloat16"] < 0.9 * seconds["float32"] else "float32"


def _time_convolution(dtype, images):
    """Return the seconds that a convolution of a middle layer's size takes with its gradients: the least of five."""
    inputs, kernel = tf.ones((images, 32, 32, 64), dtype), tf.ones((3, 3, 64, 64), dtype)

    @tf.function
    def convolve():
        with tf.GradientTape() as tape:
            tape.watch((inputs, kernel))
            result = tf.nn.conv2d(inputs, kernel, 1, "SAME")
        return [tf.reduce_sum(tf.cast(gradient, "float32")) for gradient in tape.gradient(result, (inputs, kernel))]

    times = []
    for _ in range(6):  # the first call traces
        began = time.perf_counter()
        np.asarray(convolve())
        times.append(time.perf_counter() - began)
    return min(times[1:])
