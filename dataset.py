"""The data: fetches the OASIS slices, verifies them and turns them into NumPy arrays.

    python dataset.py                       fetch, verify, say what is there
    python dataset.py --data PATH           the same for a folder or a zip that you already have
    python dataset.py slices VOLUMES DIR    cut slices like these from a folder of volumes of your own

The slices are axial sections of the OASIS-1 study (Marcus et al. 2007, Journal of Cognitive Neuroscience 19(9)): 8-bit
grey PNGs of 256x256, 32 a case, each scaled to 0..255 on its own, split by case into three folders:

    keras_png_slices_data/keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png

The networks see them at 128x128, float32 in [-0.5, 0.5]. Nothing here imports TensorFlow.
"""

import argparse
import contextlib
import csv
import errno
import functools
import hashlib
import io
import itertools
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

SIZE = 128  # pixels a side, as the networks see a slice
SPLITS = ("train", "validate", "test")
PRESETS = ("faithful", "sharp")
HERE = Path(__file__).parent
HERE = HERE.relative_to(Path.cwd()) if HERE.is_relative_to(Path.cwd()) else HERE  # for short messages
DATASET = HERE / "dataset"  # where slices are fetched to
MODELS = HERE / "trained_models"
TOP_FOLDER = "keras_png_slices_data"
SOURCES = (  # third parties' copies, tried in this order; the content decides, not the address
    "https://media.githubusercontent.com/media/uqEi/COMP3710-Pattern-Recognition/"
    "bfe442962f9f1cbd31213e465e04a5df800fa3ad/keras_png_slices_data.zip",
    "https://codeload.github.com/Rony-star666/COMP3710/zip/3ffd9e3f584baaad2193b3323ebe7d929cac0326",
)
DEPTH = 3  # folders at most between what a user names and a split folder; the GitHub archive has three
ATTEMPTS = 4  # transfers of one address, with 1, 2 and 4 seconds between
LEVELS = 32  # slices of a head
CANVAS = 256  # pixels a side of a slice's file, 1 mm each
ATLAS = (176, 208, 176)  # voxels of 1 mm, in which OASIS-1's atlas files hold a head
REFERENCE = Path(__file__).parent / "images" / "mean_slices.png"  # mean of all training slices by level
COARSE = 4  # mm, pixel of the reference
LIKE = 0.5  # correlation to the mean slices below which a volume may be no head
RIM = 20  # grey level of the reference at the rim of the head
SKULL = 4  # coarse pixels from the rim of a head to its brain: volumes may come without a skull
SCALES = np.arange(0.84, 1.21, 0.04)  # of a head, among which that of the reference is sought
SHARES = {"test": 0.05, "validate": 0.1}  # of the people whose volumes are cut, about as in the genuine set
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # how a system says that there is no space
RESAMPLES = 2000  # for a bootstrap interval
FIGURES = {  # what the scripts draw, beside images that they write
    "reconstruct": "reconstructions.png",
    "generate": "generations.png",
    "ssim": "ssim_plot.png",
    "nearest": "nearest.png",
    "distances": "nearest_distances.png",
    "temperatures": "temperatures.png",
    "vqvae": "vqvae_training_plot.png",
    "adversarial": "adversarial_training_plot.png",
    "pixelcnn": "pixelcnn_training_plot.png",
    "critic": "critic_training_plot.png",
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
CACHE = 2**30  # bytes of slices, or of their codes, that are kept in memory
SOME = 512  # images decoded at a time
TIMEOUT = 20  # seconds to connect, and without a byte
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # in favour of the next line
MAX_PIXELS = 64_000_000  # of an image a user names: far beyond any scan or photograph worth shrinking to 128x128


class Genuine(NamedTuple):
    """How the genuine split is known: `digest` is sha256 over the lines "<sha256>  <name>\\n" of its files by name."""

    images: int
    digest: str
    landmarks: dict  # a few files and how their sha256 begins: tells a part of the genuine split from another set


GENUINE = {
    "train": Genuine(
        9664,
        "7aa4a274b710fb4b19ecb26d77cc5d937e0656df9b33f7bc47598026a8aa0bee",
        {
            "case_001_slice_0.nii.png": "5122fe4a",
            "case_047_slice_7.nii.png": "afdc4c87",
            "case_160_slice_12.nii.png": "6792d08f",
            "case_209_slice_31.nii.png": "0baf9a41",
            "case_261_slice_16.nii.png": "eb9845be",
            "case_307_slice_21.nii.png": "3f054fb4",
            "case_354_slice_26.nii.png": "c211218a",
            "case_401_slice_3.nii.png": "8a9e8a1c",
        },
    ),
    "validate": Genuine(1120, "fb144be5f278d3d1c72d464119185b08557bc083b4d64366a4d21bb555ee83ec", {}),
    "test": Genuine(
        544,
        "1bfd3b0ce9406fdfb344c6eaf8e250e9fb000632358209cdc419a0e9cc1c52bc",
        {
            "case_441_slice_0.nii.png": "7e635d76",
            "case_443_slice_7.nii.png": "3a14ab8d",
            "case_446_slice_12.nii.png": "036a7b20",
            "case_448_slice_31.nii.png": "5b325648",
            "case_450_slice_16.nii.png": "3624a48d",
            "case_452_slice_21.nii.png": "f40b0ec3",
            "case_455_slice_26.nii.png": "5d63ce31",
            "case_457_slice_3.nii.png": "c675a9f7",
        },
    ),
}


# --- what every script shares -----------------------------------------------------------------------------------------


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, with which file, and what to do."""

    status = 1  # of the exit


class UsageError(UserError):
    """A flag that does not go with the models or the data."""

    status = 2


def run(main):
    """Call a script's `main`; what the user can mend ends as one line on stderr and exit status 1 (2 for usage)."""
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"error: {error.filename or 'operating system'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("error: this needs more memory than there is; ask for less at a time")
    except KeyboardInterrupt:
        sys.exit(130)


def add_data_arguments(parser):
    """--data and --url, which `load_split` takes."""
    parser.add_argument(
        "--data",
        metavar="PATH",
        help=f"folder or zip of the slices (default: {DATASET / TOP_FOLDER}, fetched where it is missing)",
    )
    parser.add_argument("--url", help="address of the zip to try first (default: OASIS_URL of the environment, if set)")


def add_model_arguments(parser, presets=PRESETS, default=PRESETS[0]):
    """--preset, --models, --out and --no-show, which every script that uses the networks takes; see `choose_models`."""
    parser.add_argument("--preset", choices=presets, default=default, help="the models (default: %(default)s)")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help=f"folder of the weights (default: {MODELS / 'PRESET'})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder of what is written (default: %(default)s)",
    )
    parser.add_argument("--no-show", action="store_true", help="write figures without opening windows")


def add_candidates_argument(parser):
    """--candidates, which every script that draws slices takes; returns what was added."""
    return parser.add_argument(
        "--candidates",
        type=positive,
        metavar="N",
        help="samples drawn for each slice, of which a critic keeps the most real; for models that have one, as the "
        "sharp ones do (default: that of the models)",
    )


def choose_models(args):
    """The folder of weights that the arguments ask for."""
    return args.models or MODELS / args.preset


def positive(text):
    """Argument type: a whole number of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seed(text):
    """Argument type: a whole number from 0 to 2^32 - 1."""
    if not text.strip().isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def temperature(text):
    """Argument type: a number above 0."""
    try:
        if 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def make_folder(folder):
    """Create `folder` where it is missing, and make sure that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error


@contextlib.contextmanager
def written(path):
    """Give a path to write; what was written takes the place of `path` only when it is whole.

    Raises UserError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")  # two processes may write the same
    try:
        yield part
        part.replace(path)
    except OSError as error:
        remedy = "free some space" if error.errno in FULL else "name another folder"
        raise UserError(f"{path}: cannot be written ({reason(error)}); {remedy} and run again") from error
    finally:
        part.unlink(missing_ok=True)


def reason(error):
    """What an OSError says, in a line."""
    return error.strerror or (str(error).splitlines() or [type(error).__name__])[0]


def pyplot(no_show):
    """matplotlib.pyplot, with windows where there is a display and they are wanted."""
    import matplotlib

    if no_show:
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure, path):
    """Write a figure as PNG and print where."""
    with written(path) as part:
        figure.savefig(part, format="png", dpi=120, bbox_inches="tight")
    print(path)


def show_figures(plt):
    """Open the figures in windows, where there is a display, until they are closed."""
    if plt.get_backend().lower() != "agg":
        plt.show()


@functools.cache
def note(line):
    """Say something to the user that is no result, once."""
    print(line, file=sys.stderr, flush=True)


# --- fetch ------------------------------------------------------------------------------------------------------------


def fetch(splits, url=None):
    """Download the slices and put those of `splits` that are missing into DATASET.

    `url`, or else OASIS_URL of the environment, is tried first and may hold any set of slices; what comes from SOURCES
    must be the genuine one. Raises UserError where no address gives them, naming the reasons.
    """
    make_folder(DATASET)
    failures = []
    for address in dict.fromkeys(filter(None, (url or os.environ.get("OASIS_URL"), *SOURCES))):
        part = DATASET / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}.zip.part"
        note(f"fetching {address}")
        try:
            download(address, part)
            try:
                unpack(part, splits, genuine=address in SOURCES)
            except UserError:
                part.unlink()  # useless, and no start for a resumed transfer either
                raise
            part.unlink()
            return
        except UserError as error:
            note(f"  {error}")
            failures.append(f"{address}: {error}")
        except OSError as error:
            raise UserError(
                f"{DATASET}: cannot be written ({reason(error)}); free some space and run again to continue"
            ) from error
    raise UserError(
        f"the slices could not be fetched ({failures[0]}); check the network and run again, or name another address "
        "with --url, or a folder or zip with --data"
    )


def download(url, part):
    """Stream `url` to the file `part`, continuing where an earlier transfer broke off; retries what may pass.

    Raises UserError for an address that gives no zip, OSError where `part` cannot be written.
    """
    import requests

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _transfer(url, part)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, _Retry) as error:
            if attempt == ATTEMPTS:
                raise UserError(f"gave up after {ATTEMPTS} attempts ({_reason(error)})") from error
            note(f"  {_reason(error)}; trying again")
            time.sleep(2 ** (attempt - 1))
        except (requests.RequestException, ValueError) as error:
            raise UserError(f"not an address that can be fetched ({_reason(error)})") from error


class _Retry(Exception):
    """A transfer that failed in a way that may pass."""


def _reason(error):
    import requests

    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else type(error).__name__
    return re.sub(r"^\w+\(.*?\): ", "", str(cause))


def _transfer(url, part):
    import requests

    start = part.stat().st_size if part.exists() else 0
    # identity: a Range counts bytes of what is sent, so nothing may compress it on the way
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing beyond `start`: it is whole, or not this file
            if response.headers.get("Content-Range", "").endswith(f"/{start}"):
                return
            part.unlink()
            raise _Retry("the server has fewer bytes than an earlier transfer left")
        if response.status_code >= 500 or response.status_code == 429:
            raise _Retry(f"HTTP status {response.status_code}")
        if response.status_code >= 400:
            raise UserError(f"HTTP status {response.status_code}")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # a server without Range sends all from the beginning
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _write(response.iter_content(1 << 18), part, start, total)


def _write(chunks, part, start, total):
    from tqdm import tqdm

    first = next(chunks, b"")
    if not start and not first.startswith(b"PK"):
        raise UserError("is not a zip" + (" but a web page" if b"<html" in first[:1024].lower() else ""))
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc="  download", disable=None) as bar,
    ):
        for chunk in itertools.chain([first], chunks):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise _Retry("the transfer broke off")


def unpack(archive, splits, genuine):
    """Put the split folders of a zip into DATASET: all that it has of SPLITS, or nothing.

    Raises UserError where one of `splits` is not in it, a member is corrupt or would land outside, or, where it must be
    `genuine`, one of SPLITS has another digest than in GENUINE.
    """
    staging = DATASET / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for split in SPLITS:
            members = _members(archive, split)
            if not members and (genuine or split in splits):
                raise UserError(f"the zip holds no {_folder_name(split)}")
            digests = [_extract(member, staging / _folder_name(split)) for member in members]
            if genuine and _digest(members, digests) != GENUINE[split].digest:
                raise UserError(f"the {split} slices in the zip are not the genuine ones (their digest differs)")
        (DATASET / TOP_FOLDER).mkdir(exist_ok=True)
        for folder in staging.iterdir():
            if not (DATASET / TOP_FOLDER / folder.name).exists():
                folder.rename(DATASET / TOP_FOLDER / folder.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _extract(member, folder):
    content = member.read()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / member.name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


# --- find -------------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """One image of a split: its file name, and the folder or zip that it is in, which all share."""

    name: str
    holder: "Folder | Archive"

    @property
    def where(self):
        return self.holder.where(self.name)

    def read(self):
        return self.holder.read(self.name)


class Folder:
    """A folder of images."""

    def __init__(self, path):
        self.path = str(path)

    def where(self, name):
        return os.path.join(self.path, name)

    def read(self, name):
        return Path(self.path, name).read_bytes()

    def members(self):
        with os.scandir(self.path) as files:
            return [Member(file.name, self) for file in files if not _litter(file.name) and file.is_file()]


class Archive:
    """The images of a folder in a zip: `infos` are the zip's members by file name."""

    def __init__(self, path, archive, infos):
        self.path, self.archive, self.infos = path, archive, infos

    def where(self, name):
        return f"{self.path}: {self.infos[name].filename}"

    def read(self, name):
        try:
            return self.archive.read(self.infos[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            filename = self.infos[name].filename
            raise UserError(f"{self.path}: the zip is corrupt at {filename} ({error}); fetch it again") from error

    def members(self):
        return [Member(name, self) for name in self.infos]


def find_slices(split, data=None, url=None):
    """The Members of a split, in natural order; fetched where `data` is None and they are missing.

    `data` is a folder or a zip; up to DEPTH folders may lie between it and the split folder, or it may be that folder.
    Raises UserError where it has no slices of the split.
    """
    source = _source(split, data, url)
    members = _members(source, split)
    if not members:
        remedy = "delete that folder and run again to fetch it" if data is None else "name a whole set with --data"
        raise UserError(f"{source}: no slices in a folder {_folder_name(split)} here; {remedy}")
    return sorted(members, key=lambda member: natural_order(member.name))


def _source(split, data, url=None):
    """The folder or zip that has a split: `data`, what was cut from its volumes, or what was fetched."""
    if data is None:
        data = DATASET / TOP_FOLDER
        if not (data / _folder_name(split)).is_dir():
            fetch([split], url)
        elif url:
            note(f"note: {data} is there, so {url} is not fetched; delete that folder to fetch anew")
    elif not Path(data).exists():
        raise UserError(f"{data}: does not exist; name a folder or zip of slices, or a folder of volumes, with --data")
    elif Path(data).is_dir() and not any(_members(Path(data), each) for each in SPLITS):
        return _sliced(Path(data))
    return Path(data)


def _folder_name(split):
    return f"keras_png_slices_{split}"


def _members(path, split):
    return _folder_members(path, split) if path.is_dir() else _zip_members(path, split)


def _folder_members(path, split):
    name = _folder_name(split)
    found = [path] if path.name == name else []
    for depth in range(DEPTH + 1):
        below = sorted(folder.relative_to(path) for folder in path.glob("*/" * depth + name))
        found = found or [path / folder for folder in below if not _litter_folder(folder)]
    return Folder(found[0]).members() if found else []


def _zip_members(path, split):
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: neither a folder nor a sound zip ({error})") from error
    folders = {}
    for info in archive.infolist():
        member = PurePosixPath(info.filename.replace("\\", "/"))
        if member.is_absolute() or ".." in member.parts or ":" in "".join(member.parts[:1]):
            raise UserError(
                f"{path}: refused, its member {info.filename!r} would land outside the folder it is unpacked to"
            )
        if member.parent.name == _folder_name(split) and not _litter_folder(member.parent):
            if not info.is_dir() and not _litter(member.name):
                folders.setdefault(member.parent, {})[member.name] = info
    shallowest = min(folders, key=lambda folder: len(folder.parts), default=None)
    return Archive(path, archive, folders.get(shallowest, {})).members()


def _litter_folder(path):
    """Whether a path lies in what an operating system, or an unpacking that was cut short, left behind."""
    return any(part == "__MACOSX" or part.startswith(".") for part in path.parts)


def _litter(name):
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def hold_out(cases, share, seed):
    """The held-out cases, sorted: a share (at least one) of the cases, drawn by the seed.

    By case and not by slice: neighbouring slices of one head are nearly the same. Raises UserError for a single case.
    """
    distinct = sorted(set(cases))
    if len(distinct) < 2:
        raise UserError("the slices are of one case only, so none can be held out; bring at least two cases")
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    return sorted(np.random.default_rng(seed).permutation(distinct)[:count].tolist())


def resampled(groups, seed=0):
    """Bootstrap samples of the groups that items belong to (N,): how often each item is in each (RESAMPLES, N)."""
    distinct, index = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), RESAMPLES)
    return drawn.astype(np.float32)[:, index]


def bootstrap_interval(values, groups):
    """95 % interval (low, high) of the mean of values (N,), by resampling the groups (N,) that they belong to.

    Of a single group nothing can be said: None, None.
    """
    if len(set(groups)) == 1:
        return None, None
    weights = resampled(groups)
    return tuple(np.percentile(weights @ np.asarray(values) / weights.sum(axis=1), (2.5, 97.5)).tolist())


def natural_order(name):
    """Sort key by which slice 2 comes before slice 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def case_of(name):
    """The case ("case_441") that a slice belongs to; a name that tells none is a case of its own."""
    found = re.search(r"case_\d+", name)
    return found[0] if found else name


def level_of(name):
    """The level (0 the lowest) of a slice in its head, from its name; 0 where that tells none."""
    found = re.search(r"slice_(\d{1,4})(?!\d)", name)
    return int(found[1]) if found else 0


def owners(names):
    """Cases (N,) str and levels (N,) int32 of slices with these file names."""
    return np.array([case_of(name) for name in names]), np.array([level_of(name) for name in names], np.int32)


# --- volumes ----------------------------------------------------------------------------------------------------------


class Volume(NamedTuple):
    """A file with one session of a person."""

    path: Path
    person: str
    session: str


def find_volumes(folder):
    """The Volumes below a folder, in natural order, one a session.

    Of the files of a session it is the first, but before others one in OASIS-1's atlas space or named T1w as BIDS does,
    and after others what lies among BIDS' derivatives.
    """
    suffixes = (".nii", ".nii.gz", ".hdr")
    paths = [path for path in folder.rglob("*") if path.name.lower().endswith(suffixes)]
    paths = [path for path in paths if not _litter_folder(path.relative_to(folder)) and path.is_file()]
    sessions = {}
    for path in sorted(paths, key=lambda path: natural_order(str(path.relative_to(folder)))):
        sessions.setdefault(_owner(path.relative_to(folder)), []).append(path)
    volumes = []
    for (person, session), several in sessions.items():
        several.sort(key=lambda path: ("derivatives" in path.parts, not re.search("_(t88_gfc|T1w)[.]", path.name)))
        alike = [path for path in several if "_t88_gfc." in path.name]
        if len(alike or several) > 1:
            note(
                f"{person} {session}".rstrip() + f": {len(several)} files for one head, of which {several[0]} is taken"
            )
        volumes.append(Volume(several[0], person, session))
    return volumes


def _owner(path):
    """Person and session that a volume's path tells: as OASIS-1 or BIDS name them, or folders."""
    if found := re.search(r"(OAS\d+_\d+)(?:_(MR\d+))?", str(path)) or re.search(
        r"(sub-[A-Za-z0-9]+)(?:[/\\_](ses-[A-Za-z0-9]+))?", str(path)
    ):
        return found[1], found[2] or ""
    return (path.parts[0] if len(path.parts) > 1 else path.name.split(".")[0]), ""


def slice_volumes(folder, target, seed=0, orientation="RAS"):
    """Cut the volumes below `folder` into slices like the genuine ones, below `target`; returns the rows of cases.csv.

    Writes keras_png_slices_data/keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png, split by person by the
    seed, and cases.csv, which says where each comes from. A volume that cannot be used is named and passed by.
    Raises UserError where none can be used or `target` cannot be written.
    """
    from tqdm import tqdm

    volumes = find_volumes(folder)
    if not volumes:
        raise UserError(f"{folder}: no volumes here (.nii, .nii.gz, .hdr with .img); name a folder of them")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; name a new folder to write the slices to")
    make_folder(target)
    load_reference()  # missing, it is no fault of the volumes
    staging, cuts = target / ".slicing", []
    try:
        for volume, name in tqdm([*zip(volumes, case_names(volumes))], desc="slicing", unit="volume", disable=None):
            try:
                levels, likeness, scale = cut(*load_volume(volume.path, orientation))
            except UserError as error:
                note(f"passed by: {volume.path}: {error}")
                continue
            if likeness is not None and likeness < LIKE:
                note(f"note: {volume.path}: likeness {likeness:.3f} to a head; look at its slices")
            (staging / name).mkdir(parents=True)
            for k, level in enumerate(levels):
                Image.fromarray(level).save(staging / name / f"{name}_slice_{k}.nii.png", format="PNG")
            cuts.append((volume, name, "" if likeness is None else f"{likeness:.3f}", f"{scale:.2f}"))
        if not cuts:
            raise UserError(f"{folder}: none of its {len(volumes)} volumes can be used")
        split_of, rows = split_people([volume.person for volume, *_ in cuts], seed), []
        for volume, name, *about in cuts:
            split = split_of[volume.person]
            (staging / _folder_name(split)).mkdir(exist_ok=True)
            for path in (staging / name).iterdir():
                path.rename(staging / _folder_name(split) / path.name)
            (staging / name).rmdir()
            rows.append((name, volume.person, volume.session, split, volume.path.relative_to(folder), *about))
        with open(target / "cases.csv", "w", newline="") as file:
            csv.writer(file).writerows([("case", "person", "session", "split", "file", "likeness", "scale"), *rows])
        staging.rename(target / TOP_FOLDER)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({reason(error)}); free some space and run again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return rows


def _sliced(folder):
    """The folder of slices cut from the volumes below `folder`, now or before; without volumes, `folder`."""
    volumes = find_volumes(folder)
    if not volumes:
        return folder
    states = [(str(each.path.resolve()), (state := each.path.stat()).st_size, state.st_mtime_ns) for each in volumes]
    target = DATASET / f"{folder.resolve().name}-{hashlib.sha256(repr(states).encode()).hexdigest()[:12]}"
    if not (target / TOP_FOLDER).is_dir():
        note(f"{folder}: cutting slices from {len(volumes)} volumes into {target}")
        shutil.rmtree(target, ignore_errors=True)  # what a call that was killed has left
        slice_volumes(folder, target)
    return target


def split_people(people, seed):
    """Which split each person is in: {person: split}."""
    distinct = np.random.default_rng(seed).permutation(sorted(set(people))).tolist()
    split_of = dict.fromkeys(distinct, "train")
    for split, share in SHARES.items():
        count = max(1, round(share * len(split_of))) if len(split_of) > 3 or split == "test" else 0
        for _ in range(min(count, len(distinct) - 1)):
            split_of[distinct.pop()] = split
    return split_of


def case_names(volumes):
    """A name for each Volume: a person is a case, with OASIS's number where that is free; later sessions add theirs."""
    first_sessions = {volume.person: volume.session for volume in reversed(volumes)}
    people = sorted(first_sessions, key=natural_order)
    owned = {}
    for person in people:
        if found := re.fullmatch(r"OAS\d+_(\d+)", person):
            owned.setdefault(int(found[1]), person)
    numbers = {person: number for number, person in owned.items()}
    free = itertools.count(max(owned, default=0) + 1)
    cases = {person: f"case_{numbers[person] if person in numbers else next(free):03}" for person in people}
    return [
        cases[volume.person] + (f"_{volume.session}" if volume.session != first_sessions[volume.person] else "")
        for volume in volumes
    ]


def load_volume(path, orientation="RAS"):
    """A volume (X, Y, Z) float32, from left to right, back to front, bottom to top, and the size of its voxels in mm.

    A file that does not say how it lies (Analyze never does) is taken to have its axes run towards the three letters
    of `orientation`. Raises UserError for what is broken, not one volume, or constant.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        shape = image.shape
        if len(shape) < 3 or any(side != 1 for side in shape[3:]):
            raise UserError(f"holds an array of shape {shape}, not one volume")
        volume = np.asarray(image.dataobj, np.float32).reshape(shape[:3])
        knows = isinstance(image, nibabel.Nifti1Pair) and (image.header["sform_code"] or image.header["qform_code"])
        lies = nibabel.io_orientation(image.affine) if knows else nibabel.orientations.axcodes2ornt(orientation)
        volume = nibabel.apply_orientation(volume, lies)
    except UserError:
        raise
    except Exception as error:  # nibabel raises almost anything for a broken file
        raise UserError(f"cannot be read ({reason(error) if isinstance(error, OSError) else error})") from error
    if not knows:
        note(f"note: files like {path} do not say how they lie; taken as {orientation}, see --orientation")
    if not np.isfinite(volume).all():
        note(f"note: {path}: {np.sum(~np.isfinite(volume)):,} voxels are no numbers; taken as 0")
        volume = np.nan_to_num(volume, nan=0.0, posinf=0.0, neginf=0.0)
    if volume.min() == volume.max():
        raise UserError("is constant")
    sides = np.linalg.norm(image.affine[:3, :3], axis=0) if knows else image.header.get_zooms()[:3]
    sides = np.array(sides, np.float64)[np.argsort(lies[:, 0])]
    if not np.all((sides > 0) & np.isfinite(sides)):
        raise UserError(f"says that its voxels measure {sides} mm")
    return volume, sides


def cut(volume, sides):
    """The LEVELS slices (LEVELS, CANVAS, CANVAS) uint8 of a volume (X, Y, Z), voxels of `sides` mm, as the genuine lie.

    Also returns its likeness to the reference there (a correlation; None where the atlas tells the place), and by how
    much the head was enlarged.
    Raises UserError where the volume does not hold that part of a head.
    """
    from scipy.ndimage import affine_transform

    if volume.shape == ATLAS and np.allclose(sides, 1, atol=1e-3):
        scale, centre, likeness = 1.0, (np.array(ATLAS) - 1) / 2, None
    else:
        scale, centre, likeness = place(volume, sides)
    step = 1 / (scale * sides)
    shape = np.array([CANVAS, CANVAS, LEVELS])
    slab = affine_transform(volume, step, centre - step * (shape - 1) / 2, output_shape=tuple(shape), order=1)
    levels = np.moveaxis(slab, 2, 0)
    low, high = levels.min(axis=(1, 2), keepdims=True), levels.max(axis=(1, 2), keepdims=True)
    if np.any(low == high):
        raise UserError("has nothing in some slices of the part that is cut")
    return np.round((levels - low) * (255 / (high - low))).astype(np.uint8), likeness, scale


def place(volume, sides):
    """Where a volume looks most like the reference: scale of the head, centre (3,) in voxels, and the correlation."""
    from scipy.ndimage import affine_transform, binary_erosion, gaussian_filter

    reference = load_reference()
    mask = binary_erosion(reference > RIM, np.ones((3, 3, 1)), iterations=SKULL)
    # both are smoothed across, for the grids on which they are compared may be half a pixel apart
    reference = gaussian_filter(reference, (1, 1, 0))
    smooth = gaussian_filter(volume / np.abs(volume).max(), np.array([COARSE, COARSE, 0]) / sides)
    margin = np.array([*reference.shape[:2], 0]) // 2
    found = []
    for scale in SCALES:
        step = np.array([COARSE, COARSE, 1]) / (scale * sides)
        shape = np.ceil(volume.shape / step).astype(int) + 2 * margin
        if np.any(shape < reference.shape):
            continue
        grid = affine_transform(smooth, step, -step * margin, output_shape=tuple(shape), order=1)
        correlation = correlate(grid, reference, mask)
        corner = _peak(correlation) - margin
        found.append((correlation.max(), scale, step * (corner + (np.array(reference.shape) - 1) / 2)))
    if not found:
        raise UserError(f"is too low for {LEVELS} mm of a head")
    likeness, scale, centre = max(found, key=lambda each: each[0])
    return scale, centre, likeness


def _peak(values):
    """Index (3,) float of the highest of values (A, B, C), between samples by a parabola along each axis."""
    highest = np.unravel_index(values.argmax(), values.shape)
    index = np.array(highest, float)
    for axis, (i, length) in enumerate(zip(highest, values.shape)):
        if 0 < i < length - 1:
            line = values[(*highest[:axis], slice(i - 1, i + 2), *highest[axis + 1 :])]
            index[axis] += 0.5 * (line[0] - line[2]) / (line[0] - 2 * line[1] + line[2])
    return index


@functools.cache
def load_reference():
    """The mean slices (CANVAS / COARSE, CANVAS / COARSE, LEVELS) float32 of the genuine training split."""
    if not REFERENCE.is_file():
        raise UserError(f"{REFERENCE}: missing; restore it")
    side = CANVAS // COARSE
    mosaic = np.asarray(Image.open(REFERENCE), np.float32)  # rows of levels
    levels = mosaic.reshape(-1, side, mosaic.shape[1] // side, side).swapaxes(1, 2).reshape(LEVELS, side, side)
    return np.moveaxis(levels, 0, 2)


def correlate(volume, reference, mask):
    """Correlation (-1 to 1) of a reference, where the mask is, with every part of a volume that has its shape."""
    from scipy.fft import irfftn, rfftn

    valid = tuple(slice(whole - part + 1) for whole, part in zip(volume.shape, reference.shape))
    once, squared = (rfftn(each) for each in (volume, volume**2))

    def sums(spectrum, weights):
        return irfftn(spectrum * np.conj(rfftn(weights.astype(np.float32), volume.shape)), volume.shape)[valid]

    reference = np.where(mask, reference - reference[mask].mean(), 0)
    spread = sums(squared, mask) - sums(once, mask) ** 2 / mask.sum()
    return sums(once, reference) / np.sqrt(np.maximum(spread, 1e-3) * np.sum(reference**2))


# --- load -------------------------------------------------------------------------------------------------------------


class Slices(NamedTuple):
    """A split: images (N, 128, 128, 1) float32 in [-0.5, 0.5], their file names, and the digest of the files.

    From `open_split` images are a Store that gives such when it is indexed.
    """

    images: "np.ndarray | Store"
    names: list
    digest: str


def load_split(split, data=None, url=None):
    """The Slices of a split ("train", "validate", "test") in natural order: by case, then slice.

    `data` is a folder or zip that the user has; without it the slices are in DATASET, fetched where missing, from
    `url` first. Raises UserError where they are missing, partial, broken or not images.
    """
    members = find_slices(split, data, url)
    images = np.empty((len(members), SIZE, SIZE, 1), np.float32)
    digest = _checked(split, members, _read(members, images.__setitem__))
    return Slices(images, [member.name for member in members], digest)


def open_split(split, folder, data=None, url=None):
    """What `load_split` gives, but its images are a Store, whose file, where it needs one, is in `folder`."""
    members = find_slices(split, data, url)
    images = store_of_images(len(members), folder / "slices.bin")
    digest = _checked(split, members, _read(members, images.__setitem__))
    return Slices(images, [member.name for member in members], digest)


def _checked(split, members, digests):
    digest = _digest(members, digests)
    _check_genuine(split, members, digests, digest)
    return digest


class Store:
    """Items (N, ...), kept as `dtype` in memory up to `limit` (CACHE) bytes, beyond in a file; written slice by slice.

    `unpacked` makes of kept items what indexing returns, `packed` makes kept items of what is written.
    """

    def __init__(self, shape, dtype, path, limit=None, unpacked=None, packed=None):
        self.shape, self.dtype, self.path = shape, np.dtype(dtype), path
        self.unpacked, self.packed = unpacked or (lambda items: items), packed or (lambda items: items)
        self.kept = None
        if math.prod(shape) * self.dtype.itemsize <= (CACHE if limit is None else limit):
            self.kept = np.empty(shape, dtype)
        else:
            self._write(b"", 0, "wb")

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, chosen):
        kept = self.kept
        if kept is None:  # mapped for this call alone, so that what was read does not stay in memory
            kept = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        return self.unpacked(np.array(kept[chosen]))

    def __setitem__(self, chosen, items):
        items = np.ascontiguousarray(self.packed(items), self.dtype)
        if self.kept is None:
            self._write(items.data, chosen.start * math.prod(self.shape[1:]) * self.dtype.itemsize, "r+b")
        else:
            self.kept[chosen] = items

    def _write(self, content, place, mode):
        try:
            with open(self.path, mode) as file:
                file.seek(place)
                file.write(content)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({reason(error)}); free some space and run again"
            ) from error


def store_of_images(count, path, limit=None):
    """A Store for images (count, 128, 128, 1) float32 in [-0.5, 0.5] as `prepare` makes them: in quarters of a level.

    Kept as those, they take half the size of floats and lose nothing.
    """

    def quarters(images):
        return np.round((images + np.float32(0.5)) * 1020)

    def images(quarters):
        return quarters / np.float32(1020) - np.float32(0.5)

    return Store((count, SIZE, SIZE, 1), np.uint16, path, limit, unpacked=images, packed=quarters)


def load_folder(folder):
    """The Slices of a folder of any images, in natural order, but for FIGURES; files that are no images are passed by.

    Raises UserError where the folder is missing or holds no images or broken ones.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; name a folder of images")
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    files = [file for file in files if not _litter(file.name) and file.name not in FIGURES.values()]
    if not files:
        raise UserError(f"{folder}: no images here; name a folder of images")
    files.sort(key=lambda file: natural_order(file.name))
    members = [Member(file.name, Folder(folder)) for file in files]
    images = np.empty((len(members), SIZE, SIZE, 1), np.float32)
    digest = _digest(members, _read(members, images.__setitem__))
    return Slices(images, [member.name for member in members], digest)


def _read(members, store):
    """The sha256 of each Member's file; calls `store(slice, images (n, 128, 128, 1) float32)` for some at a time."""

    def read(member):
        content = member.read()
        return hashlib.sha256(content).hexdigest(), prepare(read_levels(content, member.where))

    digests = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        following = pool.map(read, members[:SOME])
        for start in range(0, len(members), SOME):
            some, following = following, pool.map(read, members[start + SOME : start + 2 * SOME])
            some = list(some)  # while the following are decoded
            digests += [digest for digest, _ in some]
            store(slice(start, start + len(some)), np.stack([image for _, image in some]))
    return digests


def is_genuine(split, digest):
    return digest == GENUINE[split].digest


def _digest(members, digests):
    total = hashlib.sha256()
    for name, digest in sorted((member.name, digest) for member, digest in zip(members, digests)):
        total.update(f"{digest}  {name}\n".encode())
    return total.hexdigest()


def _check_genuine(split, members, digests, digest):
    if is_genuine(split, digest):
        return
    folder = Path(members[0].where).parent
    known = GENUINE[split].landmarks
    landmark = any(digest.startswith(known.get(member.name, "-")) for member, digest in zip(members, digests))
    if landmark and len(members) < GENUINE[split].images:
        missing = GENUINE[split].images - len(members)
        remedy = "delete this folder and run again to fetch it" if DATASET in folder.parents else "name a whole one"
        raise UserError(
            f"{folder}: partial, {missing:,} of the {GENUINE[split].images:,} slices of the genuine {split} split are "
            f"missing; {remedy}"
        )
    note(f"note: {folder} differs from the genuine OASIS {split} split ({len(members):,} images); used as it is")


def read_levels(content, where):
    """Grey levels (H, W) float32, 0 to 255, of the bytes of an image file.

    Colours become luminance, transparency black; 16-bit and float images are scaled by their own minimum and maximum,
    as the slices were. Raises UserError, naming `where`, for what is empty, broken, too large or no image.
    """
    if not content:
        raise UserError(f"{where}: the file is empty; name an image file")
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{where}: {image.width}x{image.height} pixels are too many; shrink it first")
        if image.mode == "L" and not image.info:  # as the slices are: nothing to convert
            return np.asarray(image, np.float32)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return _stretch(np.asarray(image, np.float32))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        return np.asarray(image.convert("L"), np.float32)
    except Image.UnidentifiedImageError:
        raise UserError(f"{where}: not an image; name a PNG, JPEG or other image file") from None
    except Image.DecompressionBombError:
        raise UserError(f"{where}: far too many pixels; shrink it first") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything for a broken file
        raise UserError(f"{where}: a broken image ({error}); get it anew") from error


def _stretch(levels):
    levels = np.nan_to_num(levels, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = levels.min(), levels.max()
    return (levels - low) * (255 / (high - low)) if high > low else np.zeros_like(levels)


def prepare(levels):
    """Grey levels (H, W) in 0..255 to an image (128, 128, 1) float32 in [-0.5, 0.5].

    The longer side becomes 128 pixels, the shorter is padded with black. Levels are rounded to quarters, which a mean
    of four pixels, as of a slice, has anyway.
    """
    scale = SIZE / max(levels.shape)
    height, width = (max(1, round(side * scale)) for side in levels.shape)
    if scale != 1:
        # the mean of the pixels under each new one; at half size this is bilinear with half-pixel centres
        how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        levels = np.asarray(Image.fromarray(levels).resize((width, height), how, reducing_gap=1.0))
    if height != width:
        top, left = (SIZE - height) // 2, (SIZE - width) // 2
        levels = np.pad(levels, ((top, SIZE - height - top), (left, SIZE - width - left)))
    return np.round(4 * levels[..., None]) / np.float32(1020) - np.float32(0.5)


def load_image(path):
    """Any image file (PNG, JPEG, BMP, GIF, ...; any size and colours) as (128, 128, 1) float32 in [-0.5, 0.5].

    Raises UserError where it is missing, no file, broken, too large or not an image.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; name an image file")
    try:
        return prepare(read_levels(path.read_bytes(), path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); name an image file") from error


def to_levels(images):
    """Grey levels (...) uint8, 0 to 255, of images (...) in [-0.5, 0.5]."""
    return np.round((np.clip(images, -0.5, 0.5) + 0.5) * 255).astype(np.uint8)


def save_image(path, image):
    """Write an image (H, W, 1) in [-0.5, 0.5] as an 8-bit grey PNG; raises UserError where it cannot."""
    with written(Path(path)) as part:
        Image.fromarray(to_levels(image[..., 0])).save(part, format="PNG")


def main():
    parser = argparse.ArgumentParser(description="Fetch the OASIS slices, verify them, and say what is there.")
    add_data_arguments(parser)
    commands = parser.add_subparsers(dest="command", metavar="{slices}")
    slices = commands.add_parser(
        "slices",
        help="cut slices from volumes",
        description="Cut slices like the genuine ones from volumes: NIfTI (.nii, .nii.gz) or Analyze (.hdr with .img).",
    )
    slices.add_argument("volumes", type=Path, metavar="VOLUMES", help="folder of volumes, at any depth")
    slices.add_argument("target", type=Path, metavar="DIR", help="new folder for the slices")
    slices.add_argument("--seed", type=seed, default=0, metavar="N", help="of who is in which split (%(default)s)")
    slices.add_argument(
        "--orientation",
        type=orientation,
        default="RAS",
        metavar="CODE",
        help="where the axes of files that do not say so run to, a letter each: L or R, P or A, I or S (default: "
        "%(default)s, as in OASIS-1's atlas files)",
    )
    args = parser.parse_args()
    if args.command == "slices":
        if not args.volumes.is_dir():
            raise UserError(f"{args.volumes}: not a folder; name a folder of volumes")
        rows = slice_volumes(args.volumes, args.target, args.seed, args.orientation)
        print(f"{len(rows)} volumes, {len(rows) * LEVELS:,} slices in {args.target / TOP_FOLDER}")
        people = {split: len({person for _, person, _, where, *_ in rows if where == split}) for split in SPLITS}
        print("people: " + ", ".join(f"{number} to {split}" for split, number in people.items()))
        print(args.target / "cases.csv")
        return
    for split in ("train", "test", "validate"):
        if split == "validate" and not _members(_source("train", args.data), split):
            print("validate: not there, and not needed")
            continue
        slices = load_split(split, args.data, args.url)
        cases = len({case_of(name) for name in slices.names})
        state = "genuine" if is_genuine(split, slices.digest) else "not genuine"
        shape, variance = slices.images.shape, slices.images.var()
        print(
            f"{split}: {len(slices.names):,} slices of {cases} cases, {state}; array {shape}, variance {variance:.5f}"
        )


def orientation(text):
    """Argument type: a letter for each axis, such as RAS."""
    code = text.upper()
    if len(code) == 3 and all(len(set(code) & set(pair)) == 1 for pair in ("LR", "PA", "IS")):
        return code
    raise argparse.ArgumentTypeError(f"{text!r} is not a letter for each axis (L or R, P or A, I or S), such as RAS")


if __name__ == "__main__":
    run(main)
