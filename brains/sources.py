"""Where the genuine slices can be fetched, and whether slices are the genuine ones."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from brains import cli, config
from brains.archives import download, extract
from brains.cli import UserError, note, short
from brains.config import MASKS, SPLITS, TOP_FOLDER
from brains.names import split_folder

SOURCES = (  # copies kept by third parties, tried in this order; what they give is verified
    "https://media.githubusercontent.com/media/uqEi/COMP3710-Pattern-Recognition/"
    "bfe442962f9f1cbd31213e465e04a5df800fa3ad/keras_png_slices_data.zip",
    "https://codeload.github.com/Rony-star666/COMP3710/zip/3ffd9e3f584baaad2193b3323ebe7d929cac0326",
)
GENUINE = {  # number of images, and sha256 over the lines "<sha256>  <name>\n" of the files, sorted by name
    "train": (9664, "7aa4a274b710fb4b19ecb26d77cc5d937e0656df9b33f7bc47598026a8aa0bee"),
    "validate": (1120, "fb144be5f278d3d1c72d464119185b08557bc083b4d64366a4d21bb555ee83ec"),
    "test": (544, "1bfd3b0ce9406fdfb344c6eaf8e250e9fb000632358209cdc419a0e9cc1c52bc"),
    "seg_train": (9664, "b23f37b1351e9a833716bc19f76e568be795f0a96d73090e2ea0e760f6dda98e"),
    "seg_validate": (1120, "47fb1cdcb91b74fdcb82dc6dab6ad2e2a4ea677ab3ff3402853c3261f5ad6b4f"),
    "seg_test": (544, "daab238f97f8465a5881b0383df30adbb3c4b9112f5c90c088a25d496f2dc38e"),
}
SOURCE_FILE = "source.txt"  # beside fetched splits: the address they came from


def digest_of(files):
    """Return the digest of a split, as in GENUINE, from the sha256 of its files, {name: sha256}."""
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()


def is_genuine(split, digest):
    """Return whether a digest is that of the genuine split."""
    return digest == GENUINE[split][1]


def fetch(split, url=None):
    """Download the slices into DATASET, at least those of `split`.

    A named address, `url` or OASIS_URL of the environment, may hold any set and is the only one tried. Without one
    SOURCES are tried in turn, and what they give must be the genuine set. Sets are never mixed. Raises UserError if
    no address gives the slices.
    """
    named = url or os.environ.get("OASIS_URL")
    source = "genuine" if named in (None, *SOURCES) else named
    cli.make_folder(config.DATASET)
    _check_source(source)
    failures = []
    for address in [named] if named else SOURCES:
        part = config.DATASET / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}.zip.part"
        note(f"fetching {address}")
        with cli.writing(short(config.DATASET), f"{cli.FREE_SPACE} to continue"):
            try:
                download(address, part)
                try:
                    _keep(part, split, source)
                except UserError:
                    part.unlink()  # it is useless, and no start for a resumed transfer either
                    raise
                part.unlink()
                return
            except UserError as error:
                note(f"  {error}")
                failures.append(f"{address}: {error}")
    raise UserError(
        f"the slices could not be fetched ({failures[0] if failures else 'no address is known'}); check the network "
        "and run again, or name another address with --url, or a folder or zip with --data"
    )


def _check_source(source):
    """Raise UserError if DATASET holds slices of another source: "genuine", or an address."""
    target = config.DATASET / TOP_FOLDER
    if any((target / split_folder(split)).is_dir() for split in SPLITS):
        known = (target / SOURCE_FILE).read_text().strip() if (target / SOURCE_FILE).is_file() else "an unknown source"
        if known != source:
            raise UserError(f"{short(target)} holds slices of {known}, and sets are not mixed; delete it first")


def _keep(archive, split, source):
    """Add the splits of a fetched zip that are missing to DATASET. Those of the "genuine" source must be genuine."""
    target = config.DATASET / TOP_FOLDER
    with tempfile.TemporaryDirectory(prefix=".unpacking", dir=config.DATASET, ignore_cleanup_errors=True) as staging:
        digests = {each: digest_of(files) for each, files in extract(archive, Path(staging)).items()}
        if split not in digests:
            raise UserError(f"the zip holds no {split_folder(split)}")
        for each in SPLITS if source == "genuine" else ():
            if not is_genuine(each, digests.get(each)):
                raise UserError(f"the {each} slices in the zip are not the genuine ones (their digest differs)")
        for each in digests.keys() & set(MASKS) if source == "genuine" else ():
            if not is_genuine(each, digests[each]):
                note(f"  the masks {each} in the zip are not the genuine ones; they are left out")
                shutil.rmtree(Path(staging, split_folder(each)))
        if not Path(staging, split_folder(split)).is_dir():
            raise UserError(f"the zip holds no genuine {split_folder(split)}")
        target.mkdir(exist_ok=True)
        (target / SOURCE_FILE).write_text(f"{source}\n")
        for folder in Path(staging).iterdir():
            if not (target / folder.name).exists():
                folder.rename(target / folder.name)
