"""Training on several devices: workers on loopback, and devices of one process, must do what one device does."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, STAGES, free_addresses
from outcomes import arrays_of

EPOCHS = [part for stage in STAGES for part in (f"--{stage}-epochs", 2)]
SIZES = [
    part for stage in STAGES for part in (f"--{stage}-batch-size", 7)
]  # which two devices share as 4 and 3, and of 40 slices the last as 3 and 2
CALL = ("--preset", "sharp", *EPOCHS, *SIZES, "--embeddings", 64, "--precision", "float32", "--no-show")
# Dropout draws other numbers on each replica, Adam divides by the size of gradients, which blows up the rounding of
# those near zero, and priors that differ by rounding now and then draw another code.
# Of two codes that are as good as the same, processors with AVX-512 take now the one and now the other.
SMOOTH = f"""
import os, sys
os.environ |= {{"ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}}
sys.path.append({str(ROOT / "tests")!r})
from dataclasses import replace
import numpy as np, pytest, conftest
import keras, train
from brains import cli, config, devices, sampling
conftest.shrink(pytest.MonkeyPatch())
small = config.PRESETS["sharp"]
prior, critic = replace(small.prior_network, dropout=0.0), replace(small.critic_network, dropout=0.0)
config.PRESETS["sharp"] = replace(small, prior_network=prior, critic_network=critic)
def sample(prior, num, seed, *_):
    return np.random.default_rng(seed).integers(0, 64, (num, *prior.grid), np.int32)
sampling.sample = sample
adam = keras.optimizers.Adam
keras.optimizers.Adam = lambda *arguments, **settings: adam(*arguments, epsilon=1e-2, **settings)
"""
MAIN = "cli.run(train.main)"
TWO_DEVICES = """
import tensorflow as tf
device = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
devices.choose_strategy = lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
"""

pytestmark = pytest.mark.long


def command(program, miniature, models, *flags, code=""):
    script = SMOOTH + code + MAIN
    arguments = ("-c", script, "--data", miniature, *CALL, "--models", models, "--out", f"{models}_out", *flags)
    return program.install().command(*arguments)


def start_workers(program, command, other=None):
    """Two workers that train together, with the TF_CONFIG of docs/scaling.md but free ports of this machine."""
    example = json.loads(re.search("TF_CONFIG='(.+)'", (ROOT / "docs" / "scaling.md").read_text())[1])
    addresses = free_addresses(len(example["cluster"]["worker"]))
    configs = [
        {"cluster": {"worker": addresses}, "task": example["task"] | {"index": example["task"]["index"] + number}}
        for number in range(len(addresses))
    ]
    return [
        subprocess.Popen(
            called,
            cwd=program.folder,
            env=os.environ | {"TF_CONFIG": json.dumps(config)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for config, called in zip(configs, (command, other or command))
    ]


def finish(workers):
    outputs = [process.communicate(timeout=1800)[0] for process in workers]
    assert [process.returncode for process in workers] == [0, 0], outputs
    return outputs


def assert_same(models, expected):
    """The same weights up to the rounding of sums, and figures of every epoch.

    How often each code was counted may differ where codebook vectors are as good as the same; in all it may not. Adam
    turns the rounding of a gradient near 0 into a part of a step, of which the longest is 1.5e-3.
    """
    arrays, histories = arrays_of(models), []
    for name, array in arrays_of(expected).items():
        counted = "quantizer" in name and not name.endswith("vars/0")
        if counted:
            np.testing.assert_allclose(arrays[name].sum(axis=0), array.sum(axis=0), atol=0.02, err_msg=name)
        else:
            np.testing.assert_allclose(arrays[name], array, atol=1e-4, err_msg=name)
    for folder in (models, expected):
        config = json.loads((folder / "config.json").read_text())
        stages = [config[stage]["history"] for stage in STAGES]
        histories.append([[epoch["loss"] for epoch in history] for history in stages])
    np.testing.assert_allclose(*histories, rtol=1e-5)


@pytest.fixture(scope="module")
def alone(program, miniature):
    """Weights of a training on one device."""
    models = program.folder / "alone"
    subprocess.run(command(program, miniature, models), cwd=program.folder, check=True)
    return models


def test_two_workers_train_what_one_process_does(alone, program, miniature):
    models = program.folder / "workers"
    outputs = finish(start_workers(program, command(program, miniature, models)))
    assert "2 replicas" in outputs[0] and f"weights in {models}" in outputs[0]
    assert "epoch" not in outputs[1]  # one speaks
    assert_same(models, alone)


def test_two_devices_train_what_one_does(alone, program, miniature):
    models = program.folder / "devices"
    done = subprocess.run(
        command(program, miniature, models, code=TWO_DEVICES), cwd=program.folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and "2 replicas" in done.stdout, done.stderr
    assert_same(models, alone)


def test_codebook_starts_alike_on_one_device_and_with_two_workers(program, miniature):
    flags = ("--vqvae-epochs", 2, "--pixelcnn-epochs", 1, "--precision", "float32")

    def called(name):
        models = program.folder / name
        out = ("--no-show", "--models", models, "--out", f"{models}_out")
        return program.install().command("-c", SMOOTH + MAIN, "--data", miniature, *flags, *out), models

    one, expected = called("kmeans")
    subprocess.run(one, cwd=program.folder, check=True)
    workers, shared = called("kmeans_workers")
    finish(start_workers(program, workers))
    arrays = arrays_of(shared)
    for name, array in arrays_of(expected).items():
        if name.startswith("vqvae"):
            np.testing.assert_allclose(arrays[name], array, atol=1e-4, err_msg=name)


def test_workers_of_which_one_was_killed_continue_to_the_same_end(alone, program, miniature):
    models = program.folder / "killed"
    workers = start_workers(program, command(program, miniature, models))
    for line in workers[0].stdout:
        if line.startswith("adversarial, epoch 2/2"):
            break
    workers[1].kill()
    began = time.time()
    rest = workers[0].communicate(timeout=1800)[0]
    assert workers[0].returncode == 1 and "--resume" in rest and "Traceback" not in rest, rest
    assert time.time() - began < 1200
    outputs = finish(start_workers(program, command(program, miniature, models, "--resume")))
    assert "adversarial: continuing after epoch 1" in outputs[0]
    assert_same(models, alone)


def test_what_cannot_be_trained_together_is_said_in_one_line(program, miniature):
    models = program.folder / "apart"

    def fails(variables, code="", *flags):
        done = subprocess.run(
            command(program, miniature, models, *flags, code=code),
            cwd=program.folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    assert "TF_CONFIG" in fails({"TF_CONFIG": "{"})
    assert "SLURM" in fails({"SLURM_STEP_NUM_TASKS": "2"})
    assert "for each of 2 devices" in fails({}, TWO_DEVICES, "--vqvae-batch-size", 1)


def test_worker_that_waits_for_others_says_so_and_can_be_interrupted(program, miniature):
    models = program.folder / "waiting"
    first, second = start_workers(program, command(program, miniature, models), [sys.executable, "-c", ""])
    second.wait()
    for line in first.stdout:
        if line.startswith("waiting for all of 127.0.0.1:"):
            break
    time.sleep(2)
    first.send_signal(signal.SIGINT)
    assert "Traceback" not in first.communicate(timeout=300)[0] and first.returncode


def test_workers_with_other_flags_are_refused(program, miniature):
    models = program.folder / "other"
    workers = start_workers(
        program, command(program, miniature, models), command(program, miniature, models, "--seed", 1)
    )
    outputs = [process.communicate(timeout=1800)[0] for process in workers]
    assert [process.returncode for process in workers] == [1, 1]
    assert all("other flags or other slices" in output for output in outputs), outputs
