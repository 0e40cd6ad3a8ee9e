"""Fetches zips over HTTP, continues transfers that broke off, and extracts the slices of a zip.

A zip may come from anywhere, so its members are checked before they are written. What goes wrong is said in one line.
"""

import hashlib
import itertools
import re
import tempfile
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from brains.cli import FREE_SPACE, UserError, make_folder, note, reason
from brains.config import MASKS, SPLITS
from brains.names import is_litter, split_folder

ATTEMPTS = 4  # transfers of one address, with 1, 2 and 4 seconds between
TIMEOUT = 20  # seconds to connect, and without a byte


class _Retry(Exception):
    """A transfer that failed in a way that may pass."""


def download(url, part):
    """Stream a zip from `url` to `part`, or what it lacks. Raises UserError, or OSError if `part` cannot be written."""
    import requests  # takes as long to import as all else that dataset.py needs

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


def _reason(error):
    if type(error).__name__ == "ChunkedEncodingError":
        return "the transfer broke off"
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else type(error).__name__
    return re.sub(r"^\w+\(.*?\): ", "", str(cause))


def _transfer(url, part):
    import requests
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() else 0
    # identity: a Range counts bytes of what is sent, so nothing may compress it on the way
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing beyond `start`: the file is whole, or another one
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
        chunks = response.iter_content(1 << 18)
        first = next(chunks, b"")
        if not start and not first.startswith(b"PK"):
            raise UserError("is not a zip" + (" but a web page" if b"<html" in first[:1024].lower() else ""))
        progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc="  download", disable=None)
        with progress, open(part, "ab" if start else "wb") as file:
            for chunk in itertools.chain([first], chunks):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise _Retry("the transfer broke off")


def extract_once(path, folder):
    """Return a folder below `folder` with the splits of a zip, extracted now or by an earlier call."""
    state = path.stat()
    wanted = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {SPLITS} {MASKS}"
    key = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    target = folder / f"{path.stem}-{key}"
    if target.is_dir():
        return target
    make_folder(folder)
    try:  # two processes may extract the same zip, each to a folder of its own
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=folder, ignore_cleanup_errors=True) as staging:
            whole = Path(staging, "set")  # unlike the folder it is in, it can be read by all
            whole.mkdir()
            extract(path, whole)
            whole.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise UserError(f"{target}: cannot be written ({reason(error)}); {FREE_SPACE}") from error
    return target


def extract(path, target):
    """Extract the splits of a zip, and their masks, into the empty folder `target`; returns {split: {name: sha256}}.

    Raises UserError if the zip or a member is corrupt, if it holds no split, or if a member would land outside.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: neither a folder nor a sound zip ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    digests = {}
    with archive:
        folders = _folders(archive, path)
        for split in (*SPLITS, *MASKS):
            candidates = [folder for folder in folders if folder.name == split_folder(split)]
            if candidates:
                files = folders[min(candidates, key=lambda folder: len(folder.parts))]
                place = target / split_folder(split)
                place.mkdir()
                digests[split] = {name: _extract(archive, info, place / name) for name, info in files.items()}
    if not digests.keys() & set(SPLITS):
        raise UserError(f"{path}: no slices in a folder such as {split_folder('train')} here; name another zip")
    return digests


def _folders(archive, path):
    """Return the files of a zip by folder and name, {folder: {name: ZipInfo}}; UserError if one would land outside."""
    folders = {}
    for info in archive.infolist():
        member = PurePosixPath(info.filename.replace("\\", "/"))
        if member.is_absolute() or ".." in member.parts or ":" in "".join(member.parts[:1]):
            raise UserError(f"{path}: refused, its member {info.filename!r} would land outside of the target folder")
        if not info.is_dir() and not is_litter(member):
            folders.setdefault(member.parent, {})[member.name] = info
    return folders


def _extract(archive, info, target):
    """Extract one member of a zip to the file `target`; returns its sha256."""
    try:
        content = archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        where = f"{archive.filename}: the zip is corrupt at {info.filename}"
        raise UserError(f"{where} ({error}); fetch it again") from error
    target.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
