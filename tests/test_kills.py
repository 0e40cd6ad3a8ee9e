"""Trainings that are killed, in processes of their own: they continue to the same end."""

import signal
import subprocess
import time

import pytest
from conftest import TRAINING
from outcomes import assert_same_set

pytestmark = pytest.mark.long


def start_and_kill(program, command, line):
    """Start a training and kill it in the epoch that `line` announces; returns what it said."""
    program.install()
    process = subprocess.Popen(command, cwd=program.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    for said_line in process.stdout:
        said.append(said_line)
        if said_line.startswith(line):
            time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL, said
    return "".join(said)


def test_faithful_training_survives_kills(trained, program, miniature, tmp_path):
    models = tmp_path / "models"
    arguments = ("train.py", "--data", miniature, "--models", models, *TRAINING)
    command = program.command(*arguments, "--resume")
    assert "continuing" not in start_and_kill(program, command, "VQ-VAE, epoch 2/3")  # nothing to continue yet
    assert "VQ-VAE: continuing after epoch 1" in start_and_kill(program, command, "PixelCNN, epoch 2/3")
    assert not models.exists()
    _, err = program.process(*arguments, "--resume")
    assert "VQ-VAE: continuing after epoch 3" in err and "PixelCNN: continuing after epoch 1" in err
    assert_same_set(models, trained)


def test_ctrl_c_says_how_to_continue(program, miniature, tmp_path):
    arguments = ("train.py", "--data", miniature, "--vqvae-epochs", 1000, "--no-show", "--models", tmp_path / "models")
    process = subprocess.Popen(
        program.install().command(*arguments),
        cwd=program.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("VQ-VAE, epoch 3/"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
