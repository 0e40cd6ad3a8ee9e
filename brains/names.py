"""How slices, cases and folders are named, and which cases are held out. It imports only the errors of brains/cli."""

import re

import numpy as np

from brains.cli import UserError


def split_folder(split):
    """Return the name of a split's folder, or of that of its masks ("seg_train")."""
    return f"keras_png_slices_{split}"


def natural_order(name):
    """Return a sort key by which slice 2 comes before slice 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def case_of(name):
    """Return the case ("case_441") that a slice belongs to; a name without one is a case of its own."""
    found = re.search(r"case_\d+", name)
    return found[0] if found else name


def mask_of(name):
    """Return the name of the mask of a slice with this name."""
    return name.replace("case_", "seg_", 1)


def named_level(name):
    """Return the level (0 is the lowest) of a slice in its head that its name tells, or None."""
    found = re.search(r"slice_(\d{1,4})(?!\d)", name)
    return int(found[1]) if found else None


def level_of(name):
    """Return the level of a slice, from its name; 0 if the name has none."""
    return named_level(name) or 0


def owners(names):
    """Return the cases (N,) str and the levels (N,) int32 of slices with these file names."""
    return np.array([case_of(name) for name in names]), np.array([level_of(name) for name in names], np.int32)


def hold_out(cases, share, seed):
    """Return the held-out cases, sorted: a share of the distinct cases (at least one), drawn by the seed.

    Whole cases are, because neighbouring slices of a head are nearly the same. Raises UserError if there is only one.
    """
    distinct = sorted(set(cases))
    if len(distinct) < 2:
        raise UserError("the slices are of one case only, so none can be held out; bring at least two cases")
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    return sorted(np.random.default_rng(seed).permutation(distinct)[:count].tolist())


def whole_heads(cases, levels, count):
    """Return the slices of each case that has one of each level 0..count-1, {case: indices (count,) by level}.

    Also returns the list of the other cases. `cases` (N,) and `levels` (N,) are those of slices.
    """
    found, broken = {}, []
    for case in dict.fromkeys(cases):
        own = np.flatnonzero(cases == case)
        own = own[np.argsort(levels[own])]
        if np.array_equal(levels[own], np.arange(count)):
            found[str(case)] = own
        else:
            broken.append(str(case))
    return found, broken


def is_litter(path):
    """Return whether a relative path is, or lies in, what operating systems and interrupted unpackings leave behind."""
    hidden = any(part == "__MACOSX" or part.startswith(".") for part in path.parts)
    return hidden or path.name.lower() in ("thumbs.db", "desktop.ini")
