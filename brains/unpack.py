"""Extracts the slices of a zip. A zip may come from anywhere, so its members are checked before they are written."""

import hashlib
import shutil
import zipfile
import zlib
from pathlib import PurePosixPath

from brains.cli import FREE_SPACE, UserError, make_folder, reason
from brains.config import SPLITS
from brains.names import is_litter, split_folder


def extract_once(path, folder):
    """Return a folder below `folder` with the splits of a zip, extracted now or by an earlier call."""
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    target, staging = folder / f"{path.stem}-{key}", folder / f".{path.stem}-{key}"
    if not target.is_dir():
        make_folder(folder)
        try:
            extract(path, staging)
            staging.rename(target)
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({reason(error)}); {FREE_SPACE}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def extract(path, target):
    """Extract the splits of a zip to a folder; returns {split: {name: sha256}}. Raises UserError if it is unsound."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: neither a folder nor a sound zip ({error})") from error
    digests = {}
    with archive:
        folders = _folders(archive, path)
        for split in SPLITS:
            name = split_folder(split)
            candidates = [folder for folder in folders if folder.name == name]
            if candidates:
                (target / name).mkdir(parents=True)
                files = folders[min(candidates, key=lambda folder: len(folder.parts))]  # the shallowest
                digests[split] = {file: _extract(archive, info, target / name / file) for file, info in files.items()}
        target.mkdir(exist_ok=True)
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
