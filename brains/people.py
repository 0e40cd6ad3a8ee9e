"""Tables of people: the study's own and BIDS's participants.tsv, and what they say of age, sex and dementia."""

import csv
import hashlib
import math
import re
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
COLUMNS = (("ID", "Age", "M/F"), ("participant_id", "age", "sex"))  # of the study's table, and of BIDS
MISSING = ("", "n/a", "na", "nan", "none")
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


class Person(NamedTuple):
    """A person's age in years and sex, "F" or "M", None where they are missing, and clinical dementia rating.

    That is 0, 0.5, 1 (mild) or 2 (moderate); the young have 0.
    """

    age: float | None = None
    sex: str | None = None
    cdr: float = 0


def read_people(path):
    """Return the Person of each row of a table, {"OAS1_0001" or "sub-01": Person}: the study's, or a participants.tsv.

    Raises UserError if it cannot be read, lacks a column, tells of a person twice, or has an age or sex that is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = cli.reason(error) if isinstance(error, OSError) else "not text"
        raise UserError(f"{path}: cannot be read ({why}); name a table of people with --people") from error
    return parse_people(text, path)


def parse_people(text, path):
    """Return what `read_people` does from the text of the table `path`."""
    lines = text.splitlines()
    rows = csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    columns = next((names for names in COLUMNS if {*names} <= {*(rows.fieldnames or ())}), None)
    if columns is None:
        known = " or ".join(", ".join(names) for names in COLUMNS)
        found = ", ".join(map(str, (rows.fieldnames or ["none"])[:8]))
        raise UserError(f"{short(path)}: needs the columns {known}; it has {found}")
    people = {}
    for row in rows:
        name, age, sex = ((row[column] or "").strip() for column in columns)
        if session := re.fullmatch(r"(OAS\d+_\d+)_MR(\d+)", name):
            if session[2] != "1":  # a later scan of a person who has a row
                continue
            name = session[1]
        where = f"{short(path)}: {name or 'a row without a name'}"
        if name in people:
            raise UserError(f"{where}: has two rows, as of two sessions; keep one of each person")
        rating = (row.get("CDR") or "").strip()
        people[name] = Person(_age(age, where), _sex(sex, where), float(rating) if rating else 0)
    return people


def _age(text, where):
    if text.lower() in MISSING:
        return None
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 120:
        raise UserError(f"{where}: the age {text!r} is no number of years; leave it empty if it is unknown")
    return age


def _sex(text, where):
    if text.lower() not in (*MISSING, *SEXES):
        raise UserError(f"{where}: the sex {text!r} is neither F nor M; leave it empty if it is unknown")
    return SEXES.get(text.lower())


def by_case(people, folder=None):
    """Return {case: Person}: OASIS-1's case_001 is OAS1_0001; for slices cut from own scans, cases.csv tells it.

    That file lies in `folder`, or in one of those that it is in.
    """
    cases = {f"case_{int(name[5:]):03}": name for name in people if re.fullmatch(r"OAS1_\d+", name)}
    if folder and (listed := beside(folder, "cases.csv")):
        with open(listed, newline="") as file:
            cases |= {row["case"]: row["person"] for row in csv.DictReader(file)}
    return {case: people[name] for case, name in cases.items() if name in people}


def beside(folder, name):
    """Return the file of that name in `folder` or one of the two folders above it; None if it is not there."""
    return next((each / name for each in [folder, *folder.parents][:3] if (each / name).is_file()), None)


def people_of_cases(cases, folder, genuine, table=None):
    """Return the Person of each of the cases (N,) of slices in `folder`, a list; unknown ones are a Person of no age.

    They are from `table`, else from a participants.tsv beside the slices, else, for `genuine` slices, from the study's
    table. Raises UserError as `read_people`, or if a table tells of none of them.
    """
    table = table or beside(folder, config.PARTICIPANTS)
    known = by_case(read_people(table), folder) if table else load_people() if genuine else None
    if known is None:
        note("note: no table of people, so that nothing is learned of age and sex; see --people")
        return [Person()] * len(cases)
    absent = [case for case in cases if case not in known]
    if len(absent) == len(cases):
        raise UserError(f"{short(table or TABLE)}: tells of none of the cases, such as {cases[0]}; see docs/scans.md")
    if absent:
        several = f" and {len(absent) - 1} more" if absent[1:] else ""
        note(f"note: {absent[0]}{several}: not in {short(table or TABLE)}; age and sex count as unknown")
    return [known.get(case, Person()) for case in cases]


def load_people():
    """Return the Person of each case of the study, {"case_001": Person(74.0, "F", 0.0), ...}; None if it is missing.

    The table is fetched once; a note says if that fails. Raises UserError if the file that is there is not genuine.
    """
    path = config.DATASET / TABLE
    try:
        content = path.read_bytes() if path.exists() else _fetch(path)
    except UserError as error:
        note(f"note: without ages and sexes: {error}")
        return None
    if hashlib.sha256(content).hexdigest() != DIGEST:
        raise UserError(f"{short(path)}: not the study's table of people; delete it to fetch that")
    return by_case(parse_people(content.decode(), path))


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
