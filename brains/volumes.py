"""Cuts slices like the course's from volumes of heads: NIfTI or Analyze, in any orientation and voxel size."""

import csv
import functools
import glob
import hashlib
import os
import re
import shutil
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
from PIL import Image

from brains.cli import UserError, make_folder, note, reason, short, writing
from brains.config import LEVELS, PARTICIPANTS, ROOT, SIZE, TOP_FOLDER
from brains.names import is_litter, mask_of, natural_order, split_folder

CANVAS = 256  # pixels a side of a slice's file, 1 mm each
ATLAS = (176, 208, 176)  # voxels of 1 mm in which OASIS-1's atlas files hold a head
HEAD, VOXEL = (SIZE, SIZE, LEVELS), (2, 2, 1)  # the shape, and mm a voxel, of heads that predict.py writes
REFERENCE = ROOT / "images" / "mean_slices.png"  # mean of all training slices by level
COARSE = 4  # mm, pixel of the reference
LIKE = 0.5  # correlation to the mean slices below which a volume may not be a head
RIM = 20  # grey value of the reference at the rim of the head
SKULL = 4  # coarse pixels from the rim of a head to its brain: volumes may come without a skull
SUFFIXES = (".nii", ".nii.gz", ".hdr")  # of volumes
SCALES = np.arange(0.84, 1.21, 0.04)  # of a head, among which that of the reference is sought
SHARES = {"test": 0.05, "validate": 0.1}  # of the people whose volumes are cut, about as in the genuine set

# A file with one session of a person, and that of its labels; and a line of cases.csv: which volume became which case.
Volume = namedtuple("Volume", "path person session labels", defaults=[None])
Row = namedtuple("Row", "case person session split file labels likeness scale")
# Slices cut from a volume, and where: the likeness of the head to the reference (None if the grid tells the place), the
# factor by which it was enlarged, the centre (3,) of what was cut in voxels, and what 0 and 255 stand for, (LEVELS, 2).
Cut = namedtuple("Cut", "slices likeness scale centre ranges")


def find_volumes(folder, labels=None):
    """Return the Volumes below a folder in natural order, one a session.

    Of several files of a session the first is taken: OASIS-1's atlas space and T1w come first, BIDS derivatives last.
    `labels` is a pattern for the files of labels, from the folder of a volume.
    """
    paths = [path for path in folder.rglob("*") if is_volume(path)]
    paths = [path for path in paths if not is_litter(path.relative_to(folder)) and path.is_file()]
    labels_in = {parent: _matching(parent, labels) for parent in {path.parent for path in paths}} if labels else {}
    found = {path for several in labels_in.values() for path in several}
    paths = [path for path in paths if path.resolve() not in found]
    beside = Counter(path.parent for path in paths)
    sessions = {}
    for path in sorted(paths, key=lambda path: natural_order(str(path.relative_to(folder)))):
        sessions.setdefault(_owner(path.relative_to(folder)), []).append(path)
    volumes = []
    for (person, session), several in sessions.items():
        several.sort(key=lambda path: ("derivatives" in path.parts, not re.search("_(t88_gfc|T1w)[.]", path.name)))
        alike = [path for path in several if "_t88_gfc." in path.name]
        if len(alike or several) > 1:
            note(f"{person} {session}".rstrip() + f": {len(several)} files for one head; {several[0]} is taken")
        path = several[0]
        labels_of = _labels_of(path, labels_in.get(path.parent, []), alone=beside[path.parent] == 1)
        volumes.append(Volume(path, person, session, labels_of))
    return volumes


def _matching(folder, pattern):
    """Return the volumes that match a pattern, which may begin with .., from a folder."""
    found = sorted(glob.glob(os.path.join(glob.escape(str(folder)), pattern)))
    return [Path(path).resolve() for path in found if is_volume(Path(path))]


def _labels_of(path, labels, alone):
    """Return the one file of labels that belongs to a volume; None if there is none, or more than one.

    Its name begins like that of the volume, or it is of the same session, or there is no other volume in that folder.
    """
    begins = re.compile(re.escape(path.name.split(".")[0]) + r"(?![A-Za-z0-9])")
    own = [each for each in labels if begins.match(each.name)]
    own = own or [each for each in labels if _named(path) and _named(path) == _named(each)]
    own = own or (labels if alone else [])
    return own[0] if len(own) == 1 else None


def _named(path):
    """Return the person and session that a path names, as OASIS-1 or BIDS do; None if it names none."""
    for pattern in (r"(OAS\d+_\d+)(?:_(MR\d+))?", r"(sub-[A-Za-z0-9]+)(?:[/\\_](ses-[A-Za-z0-9]+))?"):
        if found := re.search(pattern, str(path)):
            return found[1], found[2] or ""
    return None


def _owner(path):
    """Return the person and session of a path: those that it names; otherwise the folder or the file is the person."""
    return _named(path) or ((path.parts[0] if len(path.parts) > 1 else path.name.split(".")[0]), "")


def slice_volumes(folder, target, seed=0, orientation="RAS", labels=None, tissues=None):
    """Cut the volumes below `folder` into slices below `target`; returns the Rows of cases.csv.

    Writes keras_png_slices_data/keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png, split by person by the
    seed, and cases.csv; a participants.tsv of BIDS is copied beside it. With `labels`, a pattern for files beside the
    volumes, also the masks; `tissues` gives the tissue (0 to 3) of each of their values. A volume that cannot be
    used is named and left out. Raises UserError if none can be used or `target` cannot be written.
    """
    found = find_volumes(folder, labels)
    if not found:
        raise UserError(f"{folder}: no volumes here (.nii, .nii.gz, .hdr with .img); name a folder of them")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; name a new folder to write the slices to")
    make_folder(target)
    load_reference()  # if it is missing, no volume is to blame
    staging = target / ".slicing"
    try:
        with writing(target):
            rows = _cut_all(found, folder, staging, orientation, tissues if labels else None)
            if not rows:
                raise UserError(f"{folder}: none of its {len(found)} volumes can be used")
            split_of = split_people([row.person for row in rows], seed)
            rows = [row._replace(split=split_of[row.person]) for row in rows]
            for row in rows:
                for path in (staging / row.case).iterdir():
                    split = f"seg_{row.split}" if path.name.startswith("seg_") else row.split
                    (staging / split_folder(split)).mkdir(exist_ok=True)
                    path.rename(staging / split_folder(split) / path.name)
                (staging / row.case).rmdir()
            with open(target / "cases.csv", "w", newline="") as file:
                csv.writer(file).writerows([Row._fields, *rows])
            if (folder / PARTICIPANTS).is_file():  # BIDS's table of people
                shutil.copy(folder / PARTICIPANTS, target)
            staging.rename(target / TOP_FOLDER)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return rows


def _cut_all(found, folder, staging, orientation, tissues):
    """Write the slices of each usable Volume below a folder to `staging`/case; returns their Rows, not yet split.

    If `tissues` are given, masks are written too.
    """
    from tqdm import tqdm

    rows = []
    cases = zip(case_names(found), found)
    for case, (path, person, session, labels) in tqdm(cases, "slicing", len(found), unit="volume", disable=None):
        try:
            volume, sides = load_volume(path, orientation)
            slices, likeness, scale, centre, _ = cut(volume, sides)
            masks = []
            if tissues:
                masks = 85 * cut_labels(labels, orientation, volume, sides, scale, centre, tissues)
        except UserError as error:
            note(f"left out: {path}: {error}")
            continue
        if likeness is not None and likeness < LIKE:
            note(f"note: {path}: likeness {likeness:.3f} to a head; look at its slices")
        (staging / case).mkdir(parents=True)
        names = [f"{case}_slice_{level}.nii.png" for level in range(LEVELS)]
        for name, grey in [*zip(names, slices), *zip(map(mask_of, names), masks)]:
            Image.fromarray(grey).save(staging / case / name, format="PNG")
        likeness = "" if likeness is None else f"{likeness:.3f}"
        files = path.relative_to(folder), labels and os.path.relpath(labels, folder)
        rows.append(Row(case, person, session, "", *files, likeness, f"{scale:.2f}"))
    return rows


def slice_once(folder, cache):
    """Return a folder in `cache` with slices cut once from the volumes below `folder`; `folder` if there are none."""
    found = find_volumes(folder)
    if not found:
        return folder
    states = [(str(each.path.resolve()), (state := each.path.stat()).st_size, state.st_mtime_ns) for each in found]
    target = cache / f"{folder.resolve().name}-{hashlib.sha256(repr(states).encode()).hexdigest()[:12]}"
    if not (target / TOP_FOLDER).is_dir():
        note(f"{folder}: cutting slices from {len(found)} volumes into {short(target)}")
        shutil.rmtree(target, ignore_errors=True)  # what a killed call has left
        slice_volumes(folder, target)
    return target


def split_people(people, seed):
    """Return the split of each person, {person: split}, drawn by the seed."""
    distinct = np.random.default_rng(seed).permutation(sorted(set(people))).tolist()
    split_of = dict.fromkeys(distinct, "train")
    for split, share in SHARES.items():
        count = max(1, round(share * len(split_of))) if len(split_of) > 3 or split == "test" else 0
        for _ in range(min(count, len(distinct) - 1)):
            split_of[distinct.pop()] = split
    return split_of


def case_names(volumes):
    """Return a case name for each Volume: a person's number, OASIS-1's if it is free, and then any later session."""
    first_sessions = {volume.person: volume.session for volume in reversed(volumes)}
    people = sorted(first_sessions, key=natural_order)
    owners = {}
    for person in people:
        if found := re.fullmatch(r"OAS\d+_(\d+)", person):
            owners.setdefault(int(found[1]), person)
    others = [person for person in people if person not in owners.values()]
    owners |= enumerate(others, start=max(owners, default=0) + 1)
    numbers = {person: number for number, person in owners.items()}
    return [
        f"case_{numbers[person]:03}" + ("" if session == first_sessions[person] else f"_{session}")
        for _, person, session, _ in volumes
    ]


def is_volume(path):
    """Return whether the name of a file is that of a volume."""
    return path.name.lower().endswith(SUFFIXES)


def how_it_lies(image, orientation):
    """Return the orientation (3, 2) of an image's axes in nibabel's form, and whether the file itself says it."""
    import nibabel

    knows = isinstance(image, nibabel.Nifti1Pair) and (image.header["sform_code"] or image.header["qform_code"])
    lies = nibabel.io_orientation(image.affine) if knows else nibabel.orientations.axcodes2ornt(orientation)
    return lies, bool(knows)


def load_volume(path, orientation="RAS"):
    """Return a volume (X, Y, Z) float32, left to right, back to front, bottom to top, and its voxel sizes (3,) in mm.

    `orientation` names the sides to which the axes run in files that do not say it (Analyze never does). Raises
    UserError if the file is broken, is not one volume, or is constant.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        shape = image.shape
        if len(shape) < 3 or any(side != 1 for side in shape[3:]):
            raise UserError(f"holds an array of shape {shape}, not one volume")
        volume = np.asarray(image.dataobj, np.float32).reshape(shape[:3])
        lies, knows = how_it_lies(image, orientation)
        volume = nibabel.apply_orientation(volume, lies)
    except UserError:
        raise
    except Exception as error:  # nibabel raises almost anything for a broken file
        raise UserError(f"cannot be read ({reason(error) if isinstance(error, OSError) else error})") from error
    if not knows:
        note(f"note: {path} does not say how it lies; taken as {orientation}, see --orientation")
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
    """Cut a volume (X, Y, Z) with voxels of `sides` mm into slices (LEVELS, CANVAS, CANVAS) uint8; returns the Cut.

    They lie as the genuine ones do. Raises UserError if the volume does not hold that part of a head.
    """
    likeness, scale, centre = None, 1.0, (np.array(volume.shape) - 1) / 2
    own = volume.shape == HEAD and np.allclose(sides, VOXEL, atol=1e-3)
    if not own and not (volume.shape == ATLAS and np.allclose(sides, 1, atol=1e-3)):
        likeness, scale, centre = place(volume, sides)
    slices = _slab(volume, scale * sides, centre, order=0 if own else 1)
    low, high = slices.min(axis=(1, 2), keepdims=True), slices.max(axis=(1, 2), keepdims=True)
    if np.any(low == high):
        raise UserError("some of the slices that would be cut are empty")
    if own and low.min() >= 0 and 1 < high.max() <= 255:  # written by this program, so that slices are grey already
        low, high = np.zeros_like(low), np.full_like(high, 255)
    grey = np.round((slices - low) * (255 / (high - low))).astype(np.uint8)
    return Cut(grey, likeness, scale, centre, np.stack([low.ravel(), high.ravel()], axis=1))


def _slab(volume, sides, centre, order):
    """Return the slices (LEVELS, CANVAS, CANVAS) of a volume around a centre, whose voxels count as `sides` mm."""
    from scipy.ndimage import affine_transform

    shape = np.array([CANVAS, CANVAS, LEVELS])
    corner = centre - (shape - 1) / 2 / sides
    mode = "constant" if order else "grid-constant"  # the nearest voxel also counts for the outer half of itself
    how = {"output_shape": tuple(shape), "order": order, "mode": mode}
    return np.moveaxis(affine_transform(volume, 1 / sides, corner, **how), 2, 0)


def cut_labels(path, orientation, volume, sides, scale, centre, tissues):
    """Cut the labels of a volume, whose voxels have `sides` mm, as the volume was cut.

    Returns tissues (LEVELS, CANVAS, CANVAS) uint8; `tissues` gives that of each value. Raises UserError if labels are
    missing, on another grid, or unknown.
    """
    if path is None:
        raise UserError("no file, or more than one, matches --labels")
    labels, label_sides = load_volume(path, orientation)
    if labels.shape != volume.shape or not np.allclose(label_sides, sides, rtol=0.01):
        grids = [
            f"{each.shape} voxels of {np.round(mm, 3)} mm" for each, mm in ((labels, label_sides), (volume, sides))
        ]
        raise UserError(f"its labels {path.name} have {grids[0]}, it has {grids[1]}")
    slices, masks = _slab(labels, scale * sides, centre, order=0), np.zeros((LEVELS, CANVAS, CANVAS), np.uint8)
    unknown = [f"{value:g}" for value in np.unique(slices) if value not in {0, *tissues}]
    if unknown:
        values = ", ".join(unknown[:10]) + (" and others" if len(unknown) > 10 else "")
        raise UserError(f"its labels {path.name} have the values {values}; say what they are with --labels-map")
    for value, tissue in tissues.items():
        masks[slices == value] = tissue
    return masks


def place(volume, sides):
    """Return where a volume looks most like the reference: correlation, scale of the head, centre (3,) in voxels."""
    from scipy.ndimage import affine_transform, binary_erosion, gaussian_filter

    reference = load_reference()
    mask = binary_erosion(reference > RIM, np.ones((3, 3, 1)), iterations=SKULL)
    # both are smoothed in the plane, because their grids may be half a pixel apart
    reference = gaussian_filter(reference, (1, 1, 0))
    smooth = gaussian_filter(volume / np.abs(volume).max(), np.array([COARSE, COARSE, 0]) / sides)
    margin, found = np.array([*reference.shape[:2], 0]) // 2, []
    for scale in SCALES:
        step = np.array([COARSE, COARSE, 1]) / (scale * sides)
        shape = np.ceil(volume.shape / step).astype(int) + 2 * margin
        if np.all(shape >= reference.shape):
            grid = affine_transform(smooth, step, -step * margin, output_shape=tuple(shape), order=1)
            correlation = correlate(grid, reference, mask)
            corner = _peak(correlation) - margin
            found.append((correlation.max(), scale, step * (corner + (np.array(reference.shape) - 1) / 2)))
    if not found:
        raise UserError(f"is too low for {LEVELS} mm of a head")
    return max(found, key=lambda each: each[0])


def _peak(values):
    """Return the index (3,) float of the highest of values (A, B, C), refined by a parabola along each axis."""
    highest = np.unravel_index(values.argmax(), values.shape)
    index = np.array(highest, float)
    for axis, (i, length) in enumerate(zip(highest, values.shape)):
        if 0 < i < length - 1:
            line = values[(*highest[:axis], slice(i - 1, i + 2), *highest[axis + 1 :])]
            index[axis] += 0.5 * (line[0] - line[2]) / (line[0] - 2 * line[1] + line[2])
    return index


@functools.cache
def load_reference():
    """Return the mean training slices (CANVAS / COARSE, CANVAS / COARSE, LEVELS) float32, in grey values."""
    if not REFERENCE.is_file():
        raise UserError(f"{short(REFERENCE)}: missing; restore it from the repository")
    side = CANVAS // COARSE
    mosaic = np.asarray(Image.open(REFERENCE), np.float32)  # levels in rows
    slices = mosaic.reshape(-1, side, mosaic.shape[1] // side, side).swapaxes(1, 2).reshape(LEVELS, side, side)
    return np.moveaxis(slices, 0, 2)


def correlate(volume, reference, mask):
    """Return the correlations of a reference, inside its mask, with every part of a volume that has its shape."""
    from scipy.fft import irfftn, rfftn

    valid = tuple(slice(whole - part + 1) for whole, part in zip(volume.shape, reference.shape))
    once, squared = (rfftn(each) for each in (volume, volume**2))

    def sums(spectrum, weights):
        return irfftn(spectrum * np.conj(rfftn(weights.astype(np.float32), volume.shape)), volume.shape)[valid]

    reference = np.where(mask, reference - reference[mask].mean(), 0)
    spread = sums(squared, mask) - sums(once, mask) ** 2 / mask.sum()
    return sums(once, reference) / np.sqrt(np.maximum(spread, 1e-3) * np.sum(reference**2))
