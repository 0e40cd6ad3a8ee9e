"""The whole program as a user runs it: in processes of their own, on a miniature data set."""

import csv
import json
import re
import shlex
import signal
import subprocess
import time

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, SLICES, STAGES, TRAINING, Program
from PIL import Image

import dataset
import train


def assert_picture(path, shape=None):
    with Image.open(path) as image:
        image.load()
        levels = np.asarray(image.convert("L"))
        assert levels.std() > 5, f"{path} is blank"
        if shape:
            assert levels.shape == shape and image.mode == "L"


def weights(folder):
    """Every array of a set of weights."""
    arrays = {}
    for path in folder.glob("*.weights.h5"):
        with h5py.File(path) as file:
            file.visititems(
                lambda key, item: arrays.__setitem__(path.name + key, item[()]) if hasattr(item, "shape") else None
            )
    assert len(arrays) > 20
    return arrays


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_stores_a_whole_set(trained, program):
    config = json.loads((trained / "config.json").read_text())
    assert len(config["vqvae"]["history"]) == len(config["pixelcnn"]["history"]) == 3
    assert config["vqvae"]["history"][-1].keys() >= {"loss", "codes_in_use", "perplexity"}
    assert config["pixelcnn"]["history"][-1].keys() >= {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    losses = [epoch["validation_loss"] for epoch in config["pixelcnn"]["history"]]
    assert config["pixelcnn"]["best_epoch"] == 1 + losses.index(min(losses))
    assert config["data"]["variance"] > 0 and not config["data"]["genuine"] and config["seed"] == 0
    assert len(config["data"]["held_out_cases"]) == 1
    assert config["versions"].keys() >= {"python", "tensorflow", "keras"}
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json",
        "mean_image.png",
        "pixelcnn.weights.h5",
        "vqvae.weights.h5",
    ]
    assert not list(trained.parent.glob("*.*"))  # no checkpoint is left
    for name in ("vqvae_training_plot.png", "pixelcnn_training_plot.png"):
        assert_picture(program.folder / "outputs" / name)


def test_kept_weights_are_those_of_the_best_epoch(trained, miniature):
    import modules

    config = json.loads((trained / "config.json").read_text())
    images, names, _ = dataset.load_split("train", miniature)
    held_out = np.isin([dataset.case_of(name) for name in names], config["data"]["held_out_cases"])
    vqvae, pixelcnn = modules.load_models(trained)
    codes = vqvae.encode(images[held_out])
    loss = np.mean(modules.cross_entropy(codes, pixelcnn(codes)))
    best = config["pixelcnn"]["history"][config["pixelcnn"]["best_epoch"] - 1]
    assert loss == pytest.approx(best["validation_loss"], rel=1e-4)


def start_and_kill(program, command, line):
    """Start a training and kill it in the epoch that `line` announces; returns what it said."""
    process = subprocess.Popen(
        command,
        cwd=program.folder,
        env=program.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
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


def timeless(folder):
    """What config.json says of a set, but for how long the epochs took."""
    config = json.loads((folder / "config.json").read_text())
    for stage in set(STAGES) & set(config):
        for epoch in config[stage]["history"]:
            epoch.pop("seconds")
    return config


def test_killed_and_resumed_training_ends_as_one_never_interrupted(trained, program, miniature):
    models = program.folder / "resumed"
    arguments = ("train.py", "--data", miniature, "--models", models, *TRAINING)
    command = program.command(*arguments, "--resume")
    assert "continuing" not in start_and_kill(program, command, "VQ-VAE, epoch 2/3")  # nothing to continue yet
    assert "VQ-VAE: continuing after epoch 1" in start_and_kill(program, command, "PixelCNN, epoch 2/3")
    assert not models.exists()
    _, stderr = program.run(*arguments, "--resume")
    assert "VQ-VAE: continuing after epoch 3" in stderr and "PixelCNN: continuing after epoch 1" in stderr
    expected, resumed = weights(trained), weights(models)
    assert expected.keys() == resumed.keys()
    for name in expected:
        np.testing.assert_array_equal(resumed[name], expected[name])
    assert timeless(trained) == timeless(models)


def test_sharp_training_resumes_in_every_stage_to_the_same_end(sharp, program):
    expected, call = sharp
    models = program.folder / "sharp_resumed"
    command = program.command(*call, models, "--resume")
    stages = ("VQ-VAE", "adversarial", "PixelCNN", "critic")
    for stage in stages:
        start_and_kill(program, command, f"{stage}, epoch 2/2")
    _, err = program.run(*call, models, "--resume")
    assert all(f"{stage}: continuing after epoch" in err for stage in stages)
    arrays = weights(models)
    assert {name.split(".")[0] for name in arrays} == {"vqvae", "pixelcnn", "critic"}
    for name, array in weights(expected).items():
        np.testing.assert_array_equal(arrays[name], array)
    assert timeless(expected) == timeless(models)  # the weights may be of an epoch before the last


def test_held_out_slices_reach_no_stage_of_the_sharp_preset(sharp, program, miniature, tmp_path):
    expected, call = sharp
    held_out = json.loads((expected / "config.json").read_text())["data"]["held_out_cases"]
    dataset.shutil.copytree(miniature, tmp_path / miniature.name)
    changed = [path for case in held_out for path in tmp_path.rglob(f"{case}_*.png")]
    for path in changed:
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert len(changed) == SLICES
    program.run(*call, tmp_path / "models", "--data", tmp_path)
    arrays = weights(tmp_path / "models")
    for name, array in weights(expected).items():
        if "vqvae" in name:  # of the others another epoch may be the best
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    histories = [
        [epoch["loss"] for epoch in json.loads((folder / "config.json").read_text())["pixelcnn"]["history"]]
        for folder in (expected, tmp_path / "models")
    ]
    np.testing.assert_allclose(*histories, rtol=1e-5)  # one held-out case among them: 5e-3


def test_sharp_set_says_how_it_came_about(sharp, program):
    config = json.loads((sharp[0] / "config.json").read_text())
    assert config["preset"] == "sharp" and config["data"]["held_out_from"] == list(STAGES)
    assert config["vqvae"]["history"][-1].keys() >= {"perplexity", "codes_in_use", "validation_ssim"}
    assert config["adversarial"]["history"][-1].keys() >= {"discriminator_loss", "validation_ssim", "sharpness"}
    assert config["pixelcnn"]["network"]["levels"] == SLICES
    assert config["critic"]["history"][-1].keys() >= {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    assert config["critic"]["candidates"] == 8
    for stage in ("adversarial", "critic"):
        assert_picture(program.folder / "outputs" / f"{stage}_training_plot.png")


def test_slices_of_levels_are_generated(sharp, trained, program):
    import modules

    pixelcnn = modules.load_models(sharp[0])[1]
    call = ("predict.py", "generate", 3, "--preset", "sharp", "--level", 1, 6, "--seed", 0, "--no-show")
    program.run(*call, "--candidates", 1)
    codes = np.load(program.folder / "outputs" / "codes.npy")
    np.testing.assert_array_equal(codes, modules.sample(pixelcnn, 3, 0, levels=[1, 6, 1]))
    assert not np.array_equal(codes, modules.sample(pixelcnn, 3, 0, levels=[6, 1, 6]))
    program.run(*call)
    vqvae, critic = modules.load_vqvae(sharp[0]), modules.load_critic(sharp[0])
    expected = modules.sample_best(vqvae, pixelcnn, *critic, 3, 0, levels=[1, 6, 1])
    np.testing.assert_array_equal(np.load(program.folder / "outputs" / "codes.npy"), expected)
    assert "no critic" in program.fails("predict.py", "generate", "--candidates", 2, status=2)
    assert "0 to 7" in program.fails("predict.py", "generate", "--preset", "sharp", "--level", 8, status=2)
    assert "know no levels" in program.fails("predict.py", "generate", "--level", 1, status=2)
    assert "--adversarial-epochs" in program.fails("train.py", "--adversarial-epochs", 3, status=2)


def test_checkpoint_that_follows_other_networks_is_not_taken_up(tmp_path, capsys):
    def training(follows):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        return train.Training("adversarial", model, 1e-3, {"follows": follows}, tmp_path / "adversarial.npz")

    training("one").finish_epoch({"loss": 1.0})
    again, other = training("one"), training("another")
    again.restore(), other.restore()
    assert (len(again.history), len(other.history)) == (1, 0)
    assert "starting that afresh" in capsys.readouterr().err


def test_interrupted_training_says_how_to_continue_and_refuses_other_settings(trained, program, miniature):
    before = weights(trained)
    arguments = ("train.py", "--data", miniature, "--vqvae-epochs", 1000, "--no-show", "--models", trained)
    process = subprocess.Popen(
        program.command(*arguments),
        cwd=program.folder,
        env=program.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("VQ-VAE, epoch 3/"):
            process.send_signal(signal.SIGINT)
            break
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in stderr and "Traceback" not in stderr
    for name, array in weights(trained).items():
        np.testing.assert_array_equal(array, before[name])
    assert "seed 0, this one has 1" in program.fails(*arguments, "--resume", "--seed", 1)
    checkpoint = trained.with_name("faithful.checkpoint") / "vqvae.npz"
    for content in (checkpoint.read_bytes()[:1000], b""):
        checkpoint.write_bytes(content)
        assert "a broken checkpoint" in program.fails(*arguments, "--resume")
    dataset.shutil.rmtree(checkpoint.parent)


def test_first_call_of_a_newcomer_fetches_the_slices(miniature_zip, server, tmp_path):
    program = Program(tmp_path)
    stdout, stderr = program.run("dataset.py", "--url", f"{server.url}/data.zip")
    assert "train: 48 slices of 6 cases" in stdout and "differs from the genuine" in stderr
    assert (tmp_path / "dataset" / "keras_png_slices_data" / "keras_png_slices_train").is_dir()
    stdout, _ = program.run("dataset.py")
    assert "test: 16 slices of 2 cases" in stdout and len(server.requests) == 1


# --- reconstruct ------------------------------------------------------------------------------------------------------


def test_reconstruct_one_and_several_paths(trained, program, miniature, tmp_path):
    first = miniature / "keras_png_slices_test" / "case_441_slice_0.nii.png"
    Image.new("RGB", (300, 200), "orange").save(tmp_path / "case_441_slice_0.jpg")
    program.run("predict.py", "reconstruct", first, "--no-show")
    out = program.folder / "outputs"
    assert_picture(out / "case_441_slice_0_reconstruction.png", (128, 128))
    assert_picture(out / "reconstructions.png")
    program.run(
        "predict.py", "reconstruct", first, tmp_path / "case_441_slice_0.jpg", "--no-show", "--out", tmp_path / "two"
    )
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "case_441_slice_0_2_reconstruction.png",
        "case_441_slice_0_reconstruction.png",
        "reconstructions.png",
    ]


def test_reconstruct_random_slices_by_seed(trained, program, miniature, tmp_path):
    written = []
    for name in ("one", "two"):
        out = tmp_path / name
        program.run("predict.py", "reconstruct", "--random", "--data", miniature, "--seed", 7, "--out", out)
        written.append({path.name: path.read_bytes() for path in out.glob("*_reconstruction.png")})
    assert written[0] == written[1] and len(written[0]) == 4
    stdout, _ = program.run(
        "predict.py", "reconstruct", "--random", 2, "--data", miniature, "--out", tmp_path / "three"
    )
    assert stdout.startswith("seed ") and len(list((tmp_path / "three").glob("*_reconstruction.png"))) == 2


# --- generate ---------------------------------------------------------------------------------------------------------


def test_generate_writes_slices_codes_and_figure(trained, program, tmp_path):
    program.run("predict.py", "generate", 3, "--seed", 1, "--out", tmp_path)
    codes = np.load(tmp_path / "codes.npy")
    assert codes.shape == (3, 8, 8) and codes.min() >= 0 and codes.max() < 128
    for number in range(3):
        with Image.open(tmp_path / f"generated_00{number}.png") as image:
            assert (image.mode, image.size) == ("L", (128, 128))
    assert_picture(tmp_path / "generations.png")
    program.run("predict.py", "generate", 5, "--seed", 1, "--out", tmp_path / "more")
    np.testing.assert_array_equal(np.load(tmp_path / "more" / "codes.npy")[:3], codes)
    stdout, _ = program.run("predict.py", "generate", "--out", tmp_path / "default", "--temperature", 0.5)
    assert stdout.startswith("seed ") and len(np.load(tmp_path / "default" / "codes.npy")) == 4


def test_figure_shows_64_of_many_and_the_files_are_all_there(trained, program, tmp_path):
    program.run("predict.py", "generate", 70, "--seed", 1, "--out", tmp_path / "many")
    program.run("predict.py", "generate", 64, "--seed", 1, "--out", tmp_path / "few")
    assert len(list((tmp_path / "many").glob("generated_*.png"))) == 70
    assert (tmp_path / "many" / "generations.png").read_bytes() == (tmp_path / "few" / "generations.png").read_bytes()


# --- ssim -------------------------------------------------------------------------------------------------------------


def test_ssim_writes_table_figures_and_plot(trained, program, miniature, tmp_path):
    stdout, _ = program.run("ssim.py", "--data", miniature, "--out", tmp_path)
    figures = json.loads((tmp_path / "ssim.json").read_text())
    with open(tmp_path / "ssim.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = np.array([float(row["ssim"]) for row in rows])
    ours = figures["reconstructions"]
    assert len(rows) == 2 * SLICES and [row["case"] for row in rows] == ["case_441"] * SLICES + ["case_442"] * SLICES
    assert ours["mean"] == pytest.approx(values.mean()) and ours["median"] == pytest.approx(np.median(values))
    assert ours["min"] == pytest.approx(values.min()) and ours["max"] == pytest.approx(values.max())
    by_case = ours["mean_by_case"]
    assert by_case["cases"]["case_441"] == pytest.approx(values[:SLICES].mean())
    assert by_case["low"] <= by_case["mean"] <= by_case["high"]
    assert figures["mean_training_image"]["mean"] > figures["black_image"]["mean"]
    assert f"{ours['mean']:.3f}" in stdout and "black image" in stdout
    assert_picture(tmp_path / "ssim_plot.png")


def test_ssim_needs_no_other_split(trained, program, miniature, tmp_path):
    dataset.shutil.copytree(miniature / "keras_png_slices_validate", tmp_path / "keras_png_slices_validate")
    stdout, _ = program.run("ssim.py", "--data", tmp_path, "--split", "validate", "--out", tmp_path / "out")
    assert "16 validate slices of 2 cases" in stdout


def test_shipped_weights_generate_without_any_data(tmp_path):
    program = Program(tmp_path)
    dataset.shutil.copytree(ROOT / "trained_models" / "faithful", tmp_path / "trained_models" / "faithful")
    program.run("predict.py", "generate", 8, "--seed", 0)
    assert_picture(tmp_path / "outputs" / "generations.png")
    for number in range(8):
        assert_picture(tmp_path / "outputs" / f"generated_00{number}.png", (128, 128))
    assert not (tmp_path / "dataset").exists()


def test_snippet_of_the_readme_runs(trained, program):
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (program.folder / "snippet.py").write_text(snippet)
    stdout, _ = program.run("snippet.py")
    assert len(stdout.strip("[]\n ").split()) == 8


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_wrong_usage(program):
    for arguments in (
        ("generate", "0"),
        ("generate", "-3"),
        ("generate", "many"),
        ("generate", "4", "--temperature", "0"),
        ("generate", "4", "--seed", "-1"),
        ("reconstruct",),
        ("reconstruct", "--random", "0"),
        ("reconstruct", "a.png", "--random", "2"),
    ):
        assert "usage:" in program.run("predict.py", *arguments, status=2)[1]
    for arguments in (("--vqvae-epochs", "0"), ("--validation-share", "1"), ("--seed", "x")):
        program.run("train.py", *arguments, status=2)
    program.run("ssim.py", "--split", "nonsense", status=2)


def test_user_errors_are_one_line(trained, program, miniature, tmp_path):
    slice_ = miniature / "keras_png_slices_test" / "case_441_slice_0.nii.png"
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    assert "nowhere.png" in program.fails("predict.py", "reconstruct", slice_, tmp_path / "nowhere.png")
    assert "text.png: not an image" in program.fails("predict.py", "reconstruct", tmp_path / "text.png")
    assert "16 slices" in program.fails("predict.py", "reconstruct", "--random", 17, "--data", miniature)
    assert "no trained weights" in program.fails("predict.py", "generate", "--models", tmp_path / "empty")
    assert "no slices" in program.fails("ssim.py", "--data", tmp_path / "empty")
    assert "no slices" in program.fails("train.py", "--data", tmp_path / "empty")
    assert "cannot be written" in program.fails("predict.py", "generate", "--out", tmp_path / "file" / "out")
    assert "more memory" in program.fails("predict.py", "generate", 10**12)
    assert "a file" in program.fails("train.py", "--data", miniature, "--models", tmp_path / "file")
    assert not list((tmp_path / "empty").iterdir())


def test_full_disk_is_one_line_and_leaves_nothing_half_written(trained, program, miniature, tmp_path):
    models, blocks = tmp_path / "models", 300  # of 1 KiB that a file may have: the checkpoint needs more
    training = program.command("train.py", "--data", miniature, "--models", models, *TRAINING)
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f {blocks}; exec {shlex.join(training)}"],
        cwd=program.folder,
        env=program.environment(),
        capture_output=True,
        text=True,
    )
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert error.startswith("error:") and "vqvae.npz: cannot be written" in error and "free some space" in error
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["models.checkpoint"]


def test_tensorflow_does_not_chatter(trained, program, tmp_path):
    stdout, stderr = program.run("predict.py", "generate", 2, "--seed", 1, "--out", tmp_path)
    assert stderr == "" and "oneDNN" not in stdout


def test_presets_are_those_of_every_script():
    assert dataset.PRESETS == tuple(train.PRESETS)


def test_help_names_every_flag_with_its_default(program):
    stdout = " ".join(program.run("train.py", "--help")[0].split())
    defaults = {
        "latent-dim": 16,
        "embeddings": 128,
        "vqvae-epochs": 30,
        "vqvae-batch-size": 128,
        "residual-blocks": 2,
        "masked-layers": 2,
        "pixelcnn-epochs": 30,
        "pixelcnn-batch-size": 128,
        "validation-share": 0.1,
        "seed": 0,
        "models": "trained_models/PRESET",
        "out": "outputs",
        "data": "dataset/keras_png_slices_data",
    }
    for flag, default in defaults.items():
        assert re.search(rf"--{flag} [A-Z]+ [^()]*\(default: (faithful )?{default}", stdout), flag
    for flag in ("--resume", "--deterministic", "--url", "--no-show"):
        assert flag in stdout
    for script in ("dataset.py", "predict.py", "ssim.py", "evaluate.py"):
        command = ["reconstruct"] if script == "predict.py" else []
        assert "--data" in program.run(script, *command, "--help")[0]
