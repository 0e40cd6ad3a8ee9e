"""What the tests share: a miniature data set in the genuine layout, a server of it, the scripts as a user has them."""

import contextlib
import http.server
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


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")  # of the packages that we build on
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SLICES = 8  # of a case in the miniature


def head(case, k, size=256):
    """Grey levels (size, size) uint8 that look like a slice: skull, cortex, two ventricles, noise inside."""
    rng = np.random.default_rng((case, k))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = np.hypot(x / (0.6 + 0.03 * k), y / (0.5 + 0.02 * (case % 5)))
    levels = np.where(radius < 1, 110 + 40 * np.cos(9 * x + case) * np.cos(8 * y + k), 0.0)
    levels[(radius > 0.88) & (radius < 1)] = 230
    levels[np.hypot(x / 0.2, (np.abs(y) - 0.1) / 0.06) < 1] = 30
    levels += np.where(radius < 1, rng.normal(0, 6, levels.shape), 0)
    levels -= levels.min()
    return np.round(levels * 255 / levels.max()).astype(np.uint8)


def write_split(top, split, cases):
    """Slices of `cases` in the split folder below `top`; returns that folder."""
    folder = top / f"keras_png_slices_{split}"
    folder.mkdir(parents=True)
    for case in cases:
        for k in range(SLICES):
            Image.fromarray(head(case, k)).save(folder / f"case_{case:03}_slice_{k}.nii.png")
    return folder


def free_addresses(number):
    """Addresses of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


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
    masks = top / "keras_png_slices_seg_train"
    masks.mkdir()
    shutil.copy(top / "keras_png_slices_train" / "case_001_slice_0.nii.png", masks / "seg_001_slice_0.nii.png")
    return top


@pytest.fixture(scope="session")
def miniature_zip(miniature, tmp_path_factory):
    return zip_folder(miniature, tmp_path_factory.mktemp("zip") / "keras_png_slices_data.zip")


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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(miniature_zip):
    with serve(miniature_zip) as server:
        yield server


class Program:
    """The scripts in a folder of their own, as in a fresh clone."""

    def __init__(self, folder):
        self.folder = folder
        for script in ROOT.glob("*.py"):
            shutil.copy(script, folder)
        (folder / "images").mkdir()
        shutil.copy(ROOT / "images" / "mean_slices.png", folder / "images")

    def command(self, *arguments):
        return [sys.executable, *map(str, arguments)]

    def environment(self):
        inherited = {
            name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND", "OASIS_URL")
        }
        return inherited | {"NO_PROXY": "127.0.0.1"}

    def run(self, *arguments, status=0):
        """Run a script to its end; returns stdout and stderr."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def fails(self, *arguments, status=1):
        """Run a script that must fail with one clear line, which is returned."""
        _, stderr = self.run(*arguments, status=status)
        errors = [line for line in stderr.splitlines() if "error:" in line]
        assert len(errors) == 1 and stderr.splitlines()[-1] == errors[0], stderr
        return errors[0]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return Program(tmp_path_factory.mktemp("program"))


STAGES = ("vqvae", "adversarial", "pixelcnn", "critic")  # of the sharp preset
TRAINING = (
    "--vqvae-epochs",
    3,
    "--pixelcnn-epochs",
    3,
    "--vqvae-batch-size",
    16,
    "--pixelcnn-batch-size",
    16,
    "--deterministic",
    "--no-show",
)


@pytest.fixture(scope="session")
def trained(program, miniature_zip):
    """A folder of weights that train.py wrote, trained for seconds on the miniature, which it fetched."""
    with serve(miniature_zip) as server:
        _, stderr = program.run("train.py", "--url", f"{server.url}/data.zip", *TRAINING)
    assert all(line.startswith(("fetching", "note:")) for line in stderr.splitlines()), stderr  # no chatter
    steps = 3 * -(-6 * SLICES // 16)
    assert f"note: {6 * SLICES} slices make {steps} training steps of the VQ-VAE" in stderr
    return program.folder / "trained_models" / "faithful"


@pytest.fixture(scope="session")
def sharp(program, miniature):
    """A folder of weights of the sharp preset, and the call that trained them but for --models."""
    epochs = [part for stage in STAGES for part in (f"--{stage}-epochs", 2)]
    sizes = [part for stage in STAGES for part in (f"--{stage}-batch-size", 16)]
    call = (
        "train.py",
        "--preset",
        "sharp",
        "--data",
        miniature,
        *epochs,
        *sizes,
        "--embeddings",
        64,
        "--deterministic",
    )
    program.run(*call, "--no-show")
    return program.folder / "trained_models" / "sharp", (*call, "--no-show", "--models")
