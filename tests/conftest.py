"""What the tests share: a miniature data set, a server of it, and the scripts as a user calls them."""

import contextlib
import functools
import http.server
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["MPLBACKEND"] = "Agg"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["NO_PROXY"] = "127.0.0.1"

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
importlib.import_module("brains")  # sets what TensorFlow reads when a test imports it
SLICES = 8  # of a case in the miniature
STAGES = ("vqvae", "adversarial", "pixelcnn", "critic")  # of the sharp preset


def pytest_configure(config):
    config.addinivalue_line("markers", "long: kills, workers and resumptions; run with -m 'long or not long'")
    config.option.markexpr = config.option.markexpr or "not long"
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")  # of the packages that this is built on
    for variable in ("DISPLAY", "OASIS_URL", "TF_CONFIG"):  # not at import, which worker processes do too
        os.environ.pop(variable, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it


# --- slices -----------------------------------------------------------------------------------------------------------


def head(case, k, size=256):
    """Return grey values (size, size) uint8 that look like a slice: skull, cortex, two ventricles, noise inside."""
    rng = np.random.default_rng((case, k))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = np.hypot(x / (0.6 + 0.03 * k), y / (0.5 + 0.02 * (case % 5)))
    grey = np.where(radius < 1, 110 + 40 * np.cos(9 * x + case) * np.cos(8 * y + k), 0.0)
    grey[(radius > 0.88) & (radius < 1)] = 230
    grey[np.hypot(x / 0.2, (np.abs(y) - 0.1) / 0.06) < 1] = 30
    grey += np.where(radius < 1, rng.normal(0, 6, grey.shape), 0)
    grey -= grey.min()
    return np.round(grey * 255 / grey.max()).astype(np.uint8)


def tissue(case, k, size=256):
    """Return the mask (size, size) uint8 of that head: 0 background and skull, 85 CSF, 170 grey, 255 white matter."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = np.hypot(x / (0.6 + 0.03 * k), y / (0.5 + 0.02 * (case % 5)))
    labels = np.where(np.cos(9 * x + case) * np.cos(8 * y + k) > 0, 3, 2) * (radius <= 0.88)
    labels[np.hypot(x / 0.2, (np.abs(y) - 0.1) / 0.06) < 1] = 1
    return (85 * labels).astype(np.uint8)


def brains(count=8):
    """Return images (count, 128, 128, 1) float32 in [-0.5, 0.5]."""
    import dataset

    return np.stack([dataset.prepare(head(i, i % 8).astype(np.float32)) for i in range(count)])


def write_split(top, split, cases):
    """Write slices of `cases`, and their masks, to the split folders below `top`; returns that of the slices."""
    folder, masks = top / f"keras_png_slices_{split}", top / f"keras_png_slices_seg_{split}"
    folder.mkdir(parents=True)
    masks.mkdir()
    for case in cases:
        for k in range(SLICES):
            Image.fromarray(head(case, k)).save(folder / f"case_{case:03}_slice_{k}.nii.png")
            Image.fromarray(tissue(case, k)).save(masks / f"seg_{case:03}_slice_{k}.nii.png")
    return folder


def zip_folder(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + str(file.relative_to(folder.parent)))
    return path


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """The top folder keras_png_slices_data of a set of 6 training cases and 2 each to validate and test."""
    top = tmp_path_factory.mktemp("miniature") / "keras_png_slices_data"
    for split, cases in (("train", range(1, 7)), ("validate", (402, 403)), ("test", (441, 442))):
        write_split(top, split, cases)
    return top


@pytest.fixture(scope="session")
def miniature_zip(miniature, tmp_path_factory):
    return zip_folder(miniature, tmp_path_factory.mktemp("zip") / "keras_png_slices_data.zip")


# --- a server ---------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content` with Range at /data.zip; at other paths what a bad day brings."""

    def do_GET(self):
        content, start = self.server.content, 0
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.path in ("/404", "/500"):
            return self.send_error(int(self.path[1:]))
        if self.path == "/page":
            content = b"<!DOCTYPE html><html><body>This service has closed.</body></html>"
        elif self.path == "/garbage":
            content = b"PK" + bytes(5000)
        elif self.headers.get("Range") and self.path != "/norange":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.path in ("/cut", "/norange") and self.server.cuts > 0
        self.server.cuts -= cut
        self.wfile.write(content[start : start + (len(content) - start) // 2] if cut else content[start:])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(zip_path):
    """A loopback server of a zip; `server.url` is its address, the next `server.cuts` transfers break off."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.cuts, server.requests = zip_path.read_bytes(), 0, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(miniature_zip):
    with serve(miniature_zip) as server:
        yield server


def free_addresses(number):
    """Return addresses of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


# --- the scripts ------------------------------------------------------------------------------------------------------


class Program:
    """The scripts in a folder of their own, as in a fresh clone; called in this process, or as true processes."""

    def __init__(self, folder):
        self.folder = folder

    def install(self):
        """Copy the program into its folder, for true processes."""
        if not (self.folder / "brains").exists():
            for script in ROOT.glob("*.py"):
                shutil.copy(script, self.folder)
            shutil.copytree(ROOT / "brains", self.folder / "brains", ignore=shutil.ignore_patterns("__pycache__"))
            (self.folder / "images").mkdir()
            shutil.copy(ROOT / "images" / "mean_slices.png", self.folder / "images")
        return self

    def command(self, *arguments):
        return [sys.executable, *map(str, arguments)]

    def process(self, *arguments, status=0):
        """Run a script in a process of its own; returns stdout and stderr."""
        self.install()
        command = self.command(*arguments)
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=1800)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def run(self, script, *arguments, status=0):
        """Call a script's main in this process, as if in this folder; returns stdout and stderr."""
        code, out, err = call(self.folder, script, [str(argument) for argument in arguments])
        assert code == status, out + err
        return out, err

    def fails(self, *arguments, status=1):
        """Call a script that must fail with one clear line, which is returned."""
        _, stderr = self.run(*arguments, status=status)
        errors = [line for line in stderr.splitlines() if "error:" in line]
        assert len(errors) == 1 and stderr.splitlines()[-1] == errors[0], stderr
        return errors[0]


def call(folder, script, arguments):
    """Call a script's main with these arguments in `folder`; returns exit status, stdout and stderr."""
    import io

    from brains import cli

    module = importlib.import_module(Path(script).stem)
    out, err = io.StringIO(), io.StringIO()
    with restored_state(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.run(functools.partial(module.main, arguments))
            code = 0
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=err)
            code = 1 if isinstance(stop.code, str) else stop.code or 0
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def restored_state(folder):
    """Work in `folder` as in a fresh process: what a script changes for its whole process is put back afterwards."""
    from brains import config

    before, paths, environment = os.getcwd(), (config.DATASET, config.MODELS), dict(os.environ)
    config.DATASET, config.MODELS = folder / "dataset", folder / "trained_models"
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        config.DATASET, config.MODELS = paths
        os.environ.clear()
        os.environ.update(environment)
        if "keras" in sys.modules:
            import keras
            from tensorflow.python.framework import config as tensorflow_config

            keras.config.set_dtype_policy("float32")
            tensorflow_config.disable_op_determinism()


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return Program(tmp_path_factory.mktemp("program"))


@pytest.fixture
def small(monkeypatch):
    """The networks of the sharp preset in a size that trains in seconds."""
    shrink(monkeypatch)


def shrink(patch, **changes):
    """Replace the sharp preset's networks by small ones, with these `changes` of the preset."""
    from dataclasses import replace

    from brains import config

    sharp = config.PRESETS["sharp"]
    networks = {
        "vqvae_network": replace(
            sharp.vqvae_network, filters=(8, 8, 16), bottleneck=16, decoder_filters=(16, 8, 8), residual_blocks=1
        ),
        "discriminator_network": config.DiscriminatorConfig(filters=(8, 8, 16)),
        "prior_network": replace(sharp.prior_network, filters=16, gated_layers=2),
        "critic_network": replace(sharp.critic_network, filters=(8, 8)),
    }
    patch.setitem(config.PRESETS, "sharp", replace(sharp, **networks | changes))


@pytest.fixture(scope="module")
def vqvae():
    """A VQVAE whose codebook lies among its latents, so that many codes are in use."""
    from builders import make_vqvae

    model = make_vqvae()
    latents = np.asarray(model.encoder(brains()))
    model.quantizer.codebook.assign(latents.reshape(-1, 16)[::4][:128])
    return model


def stop_at(patch, name, epoch):
    """Let a training be interrupted after so many epochs of the stage that has this name."""
    from brains import loop

    finish = loop.Training.finish_epoch

    def finish_and_stop(training, figures):
        finish(training, figures)
        if training.name == name and len(training.history) == epoch:
            raise KeyboardInterrupt

    patch.setattr(loop.Training, "finish_epoch", finish_and_stop)


TRAINING = (
    *("--vqvae-epochs", 3),
    *("--pixelcnn-epochs", 3),
    *("--vqvae-batch-size", 8),
    *("--pixelcnn-batch-size", 16),
    "--deterministic",
    "--no-show",
)


@pytest.fixture(scope="session")
def trained(program, miniature_zip):
    """A folder of weights that train.py wrote, trained for seconds on the miniature, which it fetched."""
    with serve(miniature_zip) as server:
        _, stderr = program.run("train.py", "--url", f"{server.url}/data.zip", *TRAINING)
    assert all(line.startswith(("fetching", "note:")) for line in stderr.splitlines()), stderr  # no chatter
    steps = 3 * -(-6 * SLICES // 8)
    assert f"note: {6 * SLICES} slices make {steps} training steps of the VQ-VAE" in stderr
    return program.folder / "trained_models" / "faithful"


@pytest.fixture(scope="session")
def sharp(program, miniature):
    """A folder of weights of a small sharp preset, and the call that trained them but for --models."""
    epochs = [part for stage in STAGES for part in (f"--{stage}-epochs", 2)]
    sizes = [part for stage in STAGES for part in (f"--{stage}-batch-size", 16)]
    arguments = ("train.py", "--preset", "sharp", "--data", miniature, *epochs, *sizes, "--embeddings", 64)
    arguments = (*arguments, "--deterministic", "--no-show")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        program.run(*arguments)
    return program.folder / "trained_models" / "sharp", (*arguments, "--models")


SEGMENTER = ("--preset", "tissue", "--segmenter-batch-size", 8, "--deterministic", "--no-show", "--segmenter-epochs")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """The top folder of a set whose tissues differ in brightness alone."""
    top = tmp_path_factory.mktemp("labelled") / "keras_png_slices_data"
    for split, cases in (("train", range(1, 7)), ("test", (441, 442))):
        folders = [top / f"keras_png_slices_{name}" for name in (split, f"seg_{split}")]
        for folder in folders:
            folder.mkdir(parents=True)
        for case in cases:
            for k in range(SLICES):
                mask, rng = tissue(case, k), np.random.default_rng((case, k))
                mask[90:160, 80:180] = 85  # wide, because masks are thinned and slices averaged
                grey = np.uint8([0, 60, 120, 180])[mask // 85] + rng.integers(0, 9, mask.shape, np.uint8)
                name = f"case_{case:03}_slice_{k}.nii.png"
                Image.fromarray(grey).save(folders[0] / name)
                Image.fromarray(mask).save(folders[1] / name.replace("case", "seg"))
    return top


@pytest.fixture(scope="session")
def segmenter(labelled, program):
    """The folder of a segmenter that learned these tissues, in the place of the shipped one."""
    program.run("train.py", "--data", labelled, *SEGMENTER, 16)
    return program.folder / "trained_models" / "tissue"
