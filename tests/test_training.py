"""Training as a user runs it: what is stored, what is held out, and how an interrupted training continues."""

import re
import shlex
import shutil
import subprocess

import keras
import numpy as np
import pytest
from conftest import SLICES, STAGES, TRAINING, stop_at
from outcomes import arrays_of, assert_picture, assert_same_set, config_of
from PIL import Image

import dataset
import modules
import train
from brains import loop, weights
from brains.names import case_of


def test_training_stores_a_whole_set(trained, program):
    content = config_of(trained)
    assert len(content["vqvae"]["history"]) == len(content["pixelcnn"]["history"]) == 3
    assert content["vqvae"]["history"][-1].keys() >= {"loss", "codes_in_use", "perplexity"}
    assert content["pixelcnn"]["history"][-1].keys() >= {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    losses = [epoch["validation_loss"] for epoch in content["pixelcnn"]["history"]]
    assert content["pixelcnn"]["best_epoch"] == 1 + losses.index(min(losses))
    assert content["data"]["variance"] > 0 and not content["data"]["genuine"] and content["seed"] == 0
    assert len(content["data"]["held_out_cases"]) == 1
    assert content["versions"].keys() >= {"python", "tensorflow", "keras"}
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json",
        "mean_image.png",
        "pixelcnn.weights.h5",
        "usual.npz",
        "vqvae.weights.h5",
    ]
    assert not list(trained.parent.glob("*.*"))  # no checkpoint is left
    for name in ("vqvae_training_plot.png", "pixelcnn_training_plot.png"):
        assert_picture(program.folder / "outputs" / name)


def test_kept_weights_are_those_of_the_best_epoch(trained, miniature):
    content = config_of(trained)
    images, names, _ = dataset.load_split("train", miniature)
    held_out = np.isin([case_of(name) for name in names], content["data"]["held_out_cases"])
    vqvae, pixelcnn = weights.load_models(trained)
    codes = vqvae.encode(images[held_out])
    loss = np.mean(modules.cross_entropy(codes, pixelcnn(codes)))
    best = content["pixelcnn"]["history"][content["pixelcnn"]["best_epoch"] - 1]
    assert loss == pytest.approx(best["validation_loss"], rel=1e-4)


@pytest.mark.parametrize("stage", ["VQ-VAE", "PixelCNN"])
def test_interrupted_training_ends_as_one_never_interrupted(trained, program, miniature, tmp_path, stage):
    arguments = ("train.py", "--data", miniature, "--models", tmp_path / "models", *TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, stage, 2)
        _, err = program.run(*arguments, status=130)
    again = f"`{shlex.join(['python', *map(str, arguments), '--resume'])}` continues"
    assert again in err and not (tmp_path / "models").exists()
    _, err = program.run(*arguments, "--resume")
    assert f"{stage}: continuing after epoch 2" in err
    assert_same_set(tmp_path / "models", trained)


def test_training_interrupted_in_its_warm_up_ends_as_one_never_interrupted(program, miniature, tmp_path):
    arguments = ("train.py", "--data", miniature, *TRAINING, "--models")
    program.run(*arguments, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "VQ-VAE", 1)
        program.run(*arguments, tmp_path / "models", status=130)
    _, err = program.run(*arguments, tmp_path / "models", "--resume")
    assert "VQ-VAE: continuing after epoch 1" in err
    assert_same_set(tmp_path / "models", tmp_path / "whole")
    history = config_of(tmp_path / "whole")["vqvae"]["history"]
    assert history[0]["codes_in_use"] == 0 and history[0]["quantizer_loss"] == 0  # the warm-up
    assert history[1]["codes_in_use"] > 0.5


def test_kept_weights_are_the_mean_over_the_steps_of_the_last_epoch(program, miniature, tmp_path):
    seen, average = [], loop.Training.average

    def record(training, number):
        average(training, number)
        seen.append(training.weights())

    arguments = ("train.py", "--data", miniature, *TRAINING, "--models", tmp_path / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "average", record)
        program.run(*arguments)
    assert len(seen) == -(-6 * SLICES // 8)
    for key, variable in loop.by_path(weights.load_vqvae(tmp_path / "models").weights).items():
        np.testing.assert_allclose(variable, np.mean([step[key] for step in seen], axis=0), rtol=1e-4, atol=1e-6)
    assert np.any(seen[-1]["quantizer/codebook"] != seen[0]["quantizer/codebook"])


def test_codebook_from_kmeans_learns_faster_than_the_network(program, miniature, tmp_path):
    before, cluster = {}, train.cluster_latents

    def record(vqvae, *others):
        centres = cluster(vqvae, *others)
        before.update({key: np.array(variable) for key, variable in loop.by_path(vqvae.weights).items()})
        before["quantizer/codebook"] = centres
        return centres

    sizes = ("--vqvae-epochs", 2, "--vqvae-batch-size", 3 * SLICES)  # two steps from the centres, which are averaged
    arguments = ("train.py", "--data", miniature, *TRAINING, *sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "cluster_latents", record)
        program.run(*arguments, "--models", tmp_path / "models")
    after = loop.by_path(weights.load_vqvae(tmp_path / "models").weights)
    steps = {key: np.abs(np.array(after[key]) - array).max() for key, array in before.items()}
    assert steps.pop("quantizer/codebook") > 2e-3  # a step of Adam is at most about as long as its rate
    assert 1e-3 < max(steps.values()) < 2e-3


def test_fewer_epochs_than_are_finished_are_refused(program, miniature, tmp_path):
    arguments = ("train.py", "--data", miniature, *TRAINING, "--models", tmp_path / "models")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "PixelCNN", 2)
        program.run(*arguments, status=130)
    message = program.fails(*arguments, "--resume", "--pixelcnn-epochs", 1)
    assert "2 epochs are finished, more than the 1" in message


@pytest.mark.long
def test_sharp_training_that_was_interrupted_ends_the_same(sharp, program, tmp_path, small):
    expected, call = sharp
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "adversarial", 1)
        program.run(*call, tmp_path / "models", status=130)
    _, err = program.run(*call, tmp_path / "models", "--resume")
    assert "adversarial: continuing after epoch 1" in err
    assert_same_set(tmp_path / "models", expected)


def test_other_settings_and_broken_checkpoints_are_refused(trained, program, miniature):
    before = arrays_of(trained)
    arguments = ("train.py", "--data", miniature, "--models", trained, *TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "VQ-VAE", 1)
        program.run(*arguments, status=130)
    for name, array in arrays_of(trained).items():
        np.testing.assert_array_equal(array, before[name])
    assert "seed 0, this one has 1" in program.fails(*arguments, "--resume", "--seed", 1)
    assert "num_embeddings 128, this one has 64" in program.fails(*arguments, "--resume", "--embeddings", 64)
    checkpoint = trained.with_name("faithful.checkpoint") / "vqvae.npz"
    with np.load(checkpoint) as saved:
        arrays = dict(saved)
    arrays["model/encoder/down_0/kernel"] = np.zeros((3, 3, 1, 8), np.float32)
    np.savez(checkpoint, **arrays)
    assert "of other networks" in program.fails(*arguments, "--resume")
    for content in (checkpoint.read_bytes()[:1000], b""):
        checkpoint.write_bytes(content)
        assert "a broken checkpoint" in program.fails(*arguments, "--resume")
    shutil.rmtree(checkpoint.parent)


def test_checkpoint_that_follows_other_networks_is_not_taken_up(tmp_path, capsys):
    def training(follows):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")], name="model")
        path = tmp_path / "adversarial.npz"
        return loop.Training("adversarial", model, keras.optimizers.Adam(), path, {"follows": follows})

    training("one").finish_epoch({"loss": 1.0})
    again, other = training("one"), training("another")
    again.restore(), other.restore()
    assert (len(again.history), len(other.history)) == (1, 0)
    assert "starting that stage afresh" in capsys.readouterr().err


def test_held_out_slices_reach_no_stage_of_the_sharp_preset(sharp, program, miniature, tmp_path, small):
    expected, call = sharp
    held_out = config_of(expected)["data"]["held_out_cases"]
    shutil.copytree(miniature, tmp_path / miniature.name)
    changed = [path for case in held_out for path in tmp_path.rglob(f"{case}_*.png")]
    for path in changed:
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert len(changed) == SLICES
    program.run(*call, tmp_path / "models", "--data", tmp_path)
    arrays = arrays_of(tmp_path / "models")
    for name, array in arrays_of(expected).items():
        if "vqvae" in name:  # of the others another epoch may be the best
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    histories = [
        [epoch["loss"] for epoch in config_of(folder)["pixelcnn"]["history"]]
        for folder in (expected, tmp_path / "models")
    ]
    np.testing.assert_allclose(*histories, rtol=1e-5)  # one held-out case among them: 5e-3


def test_sharp_set_says_how_it_came_about(sharp, program):
    content = config_of(sharp[0])
    assert content["preset"] == "sharp" and content["data"]["held_out_from"] == list(STAGES)
    assert content["vqvae"]["history"][-1].keys() >= {"perplexity", "codes_in_use", "validation_ssim"}
    assert content["adversarial"]["history"][-1].keys() >= {"discriminator_loss", "validation_ssim", "sharpness"}
    assert content["pixelcnn"]["network"]["levels"] == SLICES
    assert content["critic"]["history"][-1].keys() >= {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    assert content["critic"]["candidates"] == 8
    for stage in ("adversarial", "critic"):
        assert_picture(program.folder / "outputs" / f"{stage}_training_plot.png")


def test_slices_of_one_grey_value_are_refused(program, tmp_path):
    folder = tmp_path / "keras_png_slices_train"
    folder.mkdir()
    for case in range(3):
        grey = np.full((256, 256), 7, np.uint8)
        grey[:2, :2] += case  # all but constant
        Image.fromarray(grey).save(folder / f"case_{case:03}_slice_0.png")
    assert "almost constant" in program.fails("train.py", "--data", tmp_path, "--models", tmp_path / "m", "--no-show")


def test_training_says_its_device_and_precision(program, miniature, tmp_path, small):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "VQ-VAE", 1)
        arguments = ("--preset", "sharp", "--models", tmp_path / "models", "--vqvae-batch-size", 16)
        out, _ = program.run("train.py", "--data", miniature, *arguments, "--precision", "float32", status=130)
    assert re.search(r"^device: .+; precision: float32$", out, re.MULTILINE)


@pytest.mark.long
def test_full_disk_is_one_line_and_leaves_nothing_half_written(trained, program, miniature, tmp_path):
    models, blocks = tmp_path / "models", 300  # of 1 KiB that a file may have: the checkpoint needs more
    training = program.install().command("train.py", "--data", miniature, "--models", models, *TRAINING)
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f {blocks}; exec {shlex.join(training)}"],
        cwd=program.folder,
        capture_output=True,
        text=True,
    )
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert error.startswith("error:") and "vqvae.npz: cannot be written" in error and "free some space" in error
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == []
