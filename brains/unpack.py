"""Extracts the slices of a zip. A zip may come from anywhere, so its members are checked before they are written."""

import hashlib
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from brains.cli import FREE_SPACE, UserError, make_folder, reason
from brains.config import SPLITS
from brains.names import is_litter, split_folder


def extract_once(path, folder):
    """Return a folder below `folder` with the splits of a zip, extracted now or by an earlier call."""
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    target = folder / f"{path.stem}-{key}"
    if target.is_dir():
        return target
    make_folder(folder)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=folder))  # two processes may extract the same zip
    try:
        (staging / "set").mkdir()  # unlike the folder it is in, it can be read by all
        extract(path, staging / "set")
        (staging / "set").rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise UserError(f"{target}: cannot be written ({reason(error)}); {FREE_SPACE}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def extract(path, target):
    """Extract the split folders of a zip into the empty folder `target`; returns {split: {name: sha256}}.

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
        for split in SPLITS:
            candidates = [folder for folder in folders if folder.name == split_folder(split)]
            if candidates:
                files = folders[min(candidates, key=lambda folder: len(folder.parts))]
                (target / split_folder(split)).mkdir()
                written = {name: target / split_folder(split) / name for name in files}
                digests[split] = {name: _extract(archive, files[name], written[name]) for name in files}
    if not digests:
        raise UserError(f"{path}: no slices in a folder such as {split_folder('train')} here; name a whole set")
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
        what = f"the zip is corrupt at {info.filename} ({error}); fetch it again"
        raise UserError(f"{archive.filename}: {what}") from error
    target.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
