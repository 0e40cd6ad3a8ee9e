"""The study's table of people, by case: where it can be had, and what it says of their age and dementia."""

import csv
import hashlib
from typing import NamedTuple

from brains import cli, config
from brains.cli import UserError, note, short

TABLE = "oasis_cross-sectional.csv"  # in config.DATASET
SOURCES = (  # the study's own address, and a copy that a third party keeps
    f"https://www.oasis-brains.org/files/{TABLE}",
    "https://raw.githubusercontent.com/Pattiecodes/alzheimers-prediction-model/"
    f"6ff0ec6db00bd52b98f69d2625509e0b134f39a9/{TABLE}",
)
DIGEST = "c22c11db7cc740834d58df350fba4fd73f2bbc7de4178908173652d021dc06f2"  # sha256 of the genuine table
TIMEOUT = 20  # seconds to connect, and without a byte


class Person(NamedTuple):
    """A person's age in years, and clinical dementia rating: 0, 0.5, 1 (mild), 2 (moderate); the young have 0."""

    age: float
    cdr: float


def load_people():
    """Return the Person of each case, {"case_001": Person(74.0, 0.0), ...}; None, and a note, if the table is missing.

    It is fetched once. Raises UserError if the file that is there is not the genuine table.
    """
    path = config.DATASET / TABLE
    try:
        content = path.read_bytes() if path.exists() else _fetch(path)
    except UserError as error:
        note(f"note: without figures for which people are matched by age: {error}")
        return None
    if hashlib.sha256(content).hexdigest() != DIGEST:
        raise UserError(f"{short(path)}: not the study's table of people; delete it to fetch that")
    rows = csv.DictReader(content.decode().splitlines())
    first = [row for row in rows if "MR1" in row["ID"]]
    return {f"case_{int(row['ID'].split('_')[1]):03}": Person(float(row["Age"]), float(row["CDR"])) for row in first}


def _fetch(path):
    """Return the bytes of the genuine table, which is kept at `path`. Raises UserError if no address gives it."""
    import requests  # takes long to import

    for address in SOURCES:
        try:
            content = requests.get(address, timeout=TIMEOUT).content
        except requests.RequestException:
            continue
        if hashlib.sha256(content).hexdigest() == DIGEST:
            cli.make_folder(path.parent)
            with cli.written(path) as part:
                part.write_bytes(content)
            return content
    raise UserError(f"no address gives the study's table of people; {short(path)} may hold it")
