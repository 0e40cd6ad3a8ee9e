"""The scripts as a user calls them: what they write, and what they say when something is wrong."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SLICES, Program
from outcomes import assert_picture
from PIL import Image

from brains import sampling, weights


def test_first_call_of_a_newcomer_fetches_the_slices(miniature_zip, server, tmp_path):
    program = Program(tmp_path)
    stdout, stderr = program.run("dataset.py", "--url", f"{server.url}/data.zip")
    assert "train: 48 slices of 6 cases" in stdout and "differs from the genuine" in stderr
    assert (tmp_path / "dataset" / "keras_png_slices_data" / "keras_png_slices_train").is_dir()
    stdout, _ = program.run("dataset.py")
    assert "test: 16 slices of 2 cases" in stdout and len(server.requests) == 1


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


def test_slices_of_levels_are_generated(sharp, trained, program):
    pixelcnn = weights.load_models(sharp[0])[1]
    call = ("predict.py", "generate", 3, "--preset", "sharp", "--level", 1, 6, "--seed", 0, "--no-show")
    program.run(*call, "--candidates", 1)
    codes = np.load(program.folder / "outputs" / "codes.npy")
    np.testing.assert_array_equal(codes, sampling.sample(pixelcnn, 3, 0, levels=[1, 6, 1]))
    assert not np.array_equal(codes, sampling.sample(pixelcnn, 3, 0, levels=[6, 1, 6]))
    program.run(*call)
    vqvae, critic = weights.load_vqvae(sharp[0]), weights.load_critic(sharp[0])
    expected = sampling.sample_best(vqvae, pixelcnn, *critic, 3, 0, levels=[1, 6, 1])
    np.testing.assert_array_equal(np.load(program.folder / "outputs" / "codes.npy"), expected)
    assert "no critic" in program.fails("predict.py", "generate", "--candidates", 2, status=2)
    assert "0 to 7" in program.fails("predict.py", "generate", "--preset", "sharp", "--level", 8, status=2)
    assert "know no levels" in program.fails("predict.py", "generate", "--level", 1, status=2)
    assert "--adversarial-epochs" in program.fails("train.py", "--adversarial-epochs", 3, status=2)


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
    shutil.copytree(miniature / "keras_png_slices_validate", tmp_path / "keras_png_slices_validate")
    stdout, _ = program.run("ssim.py", "--data", tmp_path, "--split", "validate", "--out", tmp_path / "out")
    assert "16 validate slices of 2 cases" in stdout


def test_shipped_weights_generate_without_any_data(tmp_path):
    program = Program(tmp_path)
    shutil.copytree(ROOT / "trained_models" / "faithful", tmp_path / "trained_models" / "faithful")
    _, err = program.process("predict.py", "generate", 8, "--seed", 0)
    assert err == ""
    assert_picture(tmp_path / "outputs" / "generations.png")
    for number in range(8):
        assert_picture(tmp_path / "outputs" / f"generated_00{number}.png", (128, 128))
    assert not (tmp_path / "dataset").exists()


def test_snippet_of_the_readme_runs(trained, program):
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (program.folder / "snippet.py").write_text(snippet)
    stdout, _ = program.process("snippet.py")
    assert len(stdout.strip("[]\n ").split()) == 8


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
    assert "out of memory" in program.fails("predict.py", "generate", 10**12)
    assert "a file" in program.fails("train.py", "--data", miniature, "--models", tmp_path / "file")
    assert not list((tmp_path / "empty").iterdir())


def test_tensorflow_does_not_chatter(trained, program, tmp_path):
    stdout, stderr = program.process("predict.py", "generate", 2, "--seed", 1, "--out", tmp_path)
    assert stderr == "" and "oneDNN" not in stdout


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


def test_interrupt_while_packages_load_ends_a_script_quietly():
    code = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); from brains import cli"
    code += "; cli.parse_early(lambda: os.kill(os.getpid(), signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT and not done.stderr
