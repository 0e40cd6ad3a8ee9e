"""What every script shares: errors in one line, flags, and files written whole. It imports only the configuration."""

import argparse
import contextlib
import dataclasses
import errno
import math
import os
import signal
import sys
import tempfile
from pathlib import Path

from brains import config

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # how a system says that the disk is full
FREE_SPACE = "free some space and run again"


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, with which file, and what to do."""


class UsageError(UserError):
    """A flag that does not go with the models or the data."""


def parse_early(parse):
    """Parse a script's arguments before imports that take seconds, so that --help and wrong usage answer at once.

    Until `run` is called, Ctrl-C ends the process at once, and without a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    parse()


def run(main):
    """Call a script's `main`. An error that the user can mend ends as one line and exit status 1, or 2 for usage."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `parse_early`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:  # the reader of the output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"error: {error.filename or 'operating system'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("error: out of memory; ask for less at a time")
    except KeyboardInterrupt:
        sys.exit(130)


def reason(error):
    """Return what an OSError says, in one line."""
    return error.strerror or (str(error).splitlines() or [type(error).__name__])[0]


def note(line):
    """Tell the user something that is not a result."""
    print(line, file=sys.stderr, flush=True)


def short(path):
    """Return a path relative to the working folder where it lies below it."""
    path = Path(path).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# A preset's field that a flag of train.py sets: the part of the preset ("" for itself), its field, and what it means.
TRAINING_FLAGS = {
    "--latent-dim": ("vqvae_network", "latent_dim", "length of a codebook vector"),
    "--embeddings": ("vqvae_network", "num_embeddings", "vectors in the codebook"),
    "--codebook-init": (
        "",
        "codebook_init",
        "start of the codebook: random, as in the tutorials, or centres of latents",
    ),
    "--vqvae-epochs": ("vqvae", "epochs", "epochs of the VQ-VAE"),
    "--vqvae-batch-size": ("vqvae", "batch_size", "slices in a training step of the VQ-VAE"),
    "--adversarial-epochs": ("adversarial", "epochs", "epochs of the VQ-VAE against a discriminator"),
    "--adversarial-batch-size": ("adversarial", "batch_size", "slices in a training step of that stage"),
    "--residual-blocks": ("prior_network", "residual_blocks", "residual blocks of the PixelCNN"),
    "--masked-layers": ("prior_network", "masked_layers", "masked 1x1 layers of the PixelCNN after its blocks"),
    "--pixelcnn-epochs": ("pixelcnn", "epochs", "epochs of the PixelCNN"),
    "--pixelcnn-batch-size": ("pixelcnn", "batch_size", "grids in a training step of the PixelCNN"),
    "--flow-epochs": ("flow", "epochs", "epochs of the flow"),
    "--flow-batch-size": ("flow", "batch_size", "heads in a training step of the flow"),
    "--critic-epochs": ("critic", "epochs", "epochs of the critic"),
    "--critic-batch-size": ("critic", "batch_size", "slices, and as many samples, in a training step of the critic"),
    "--segmenter-epochs": ("segmenter", "epochs", "epochs of the segmenter"),
    "--segmenter-batch-size": ("segmenter", "batch_size", "slices in a training step of the segmenter"),
}


def add_training_flags(parser):
    """Add TRAINING_FLAGS, each with its default in every preset that has it."""
    for flag, (part, field, meaning) in TRAINING_FLAGS.items():
        values = {name: _field(preset, part, field) for name, preset in config.PRESETS.items()}
        defaults = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        kind = {"type": positive, "metavar": "N"} if part else {"choices": config.CODEBOOK_INITS}
        parser.add_argument(flag, **kind, help=f"{meaning} (default: {defaults})")


def choose_preset(parser, args):
    """Return the preset that the arguments name, changed as TRAINING_FLAGS ask; a flag that it lacks is wrong usage."""
    preset = config.PRESETS[args.preset]
    for flag, (part, field, _) in TRAINING_FLAGS.items():
        value = getattr(args, flag.strip("-").replace("-", "_"))
        if value and _field(preset, part, field) is None:
            parser.error(f"{flag} does not go with --preset {args.preset}")
        if value:
            change = {part: dataclasses.replace(getattr(preset, part), **{field: value})} if part else {field: value}
            preset = dataclasses.replace(preset, **change)
    return preset


def _field(preset, part, field):
    return getattr(getattr(preset, part, None) if part else preset, field, None)


def add_data_arguments(parser):
    """Add --data and --url, which `dataset.load_split` takes."""
    default = f"(default: {short(config.DATASET / config.TOP_FOLDER)}, fetched if missing)"
    parser.add_argument("--data", metavar="PATH", help=f"folder or zip of slices, or folder of volumes {default}")
    parser.add_argument("--url", help="address of the zip to fetch (default: OASIS_URL of the environment, if set)")


def add_orientation_argument(parser):
    """Add --orientation, which every script that reads volumes of their own takes."""
    meaning = "the side to which each axis runs, for files that do not say it: L or R, P or A, I or S (default: "
    meaning += "%(default)s, as in OASIS-1's atlas files)"
    parser.add_argument("--orientation", type=orientation, default="RAS", metavar="CODE", help=meaning)


def add_model_arguments(parser, presets=config.OF_SLICES, default="faithful"):
    """Add --preset, --models, --out and --no-show, which every script that uses the networks takes.

    Without presets to choose from, the default one is meant.
    """
    add, folder = parser.add_argument, short(config.MODELS / ("PRESET" if presets else default))
    if presets:
        add("--preset", choices=presets, default=default, help="the models (default: %(default)s)")
    parser.set_defaults(preset=default)
    add("--models", type=Path, metavar="DIR", help=f"folder of the weights (default: {folder})")
    add("--out", type=Path, metavar="DIR", default="outputs", help="output folder (default: %(default)s)")
    add("--no-show", action="store_true", help="write figures without opening windows")


def add_sampling_arguments(parser, meaning, **how_many):
    """Add --candidates and --temperature (of this meaning), which every script that draws slices takes."""
    default = "(default: that of the models)"
    chosen = f"samples a slice, of which the critic keeps one; only for models with a critic, such as sharp {default}"
    parser.add_argument("--candidates", type=positive, metavar="N", help=chosen)
    parser.add_argument("--temperature", type=temperature, metavar="T", help=f"{meaning} {default}", **how_many)


def choose_models(args):
    """Return the folder of weights that the arguments ask for."""
    return args.models or short(config.MODELS / args.preset)


def _number(kind, low, high, meaning):
    """Return an argument type: a number of that kind between `low` and `high`, both excluded."""

    def parse(text):
        with contextlib.suppress(ValueError):
            # `int` alone would also read 1_000 and +5
            if low < kind(text) < high and (kind is float or text.strip().isdecimal()):
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")

    return parse


positive = _number(int, 0, math.inf, "a whole number of at least 1")
natural = _number(int, -1, math.inf, "a whole number of at least 0")
seed = _number(int, -1, 2**32, "a whole number from 0 to 4294967295")
temperature = _number(float, 0, math.inf, "a number above 0")
age = _number(float, 0, 120, "an age in years")
share = _number(float, 0, 1, "a number between 0 and 1")


def labels_map(text):
    """Return the tissue (0 to 3) of each value that an argument such as 1=csf,2=grey,3=white gives."""
    tissues = [name.split()[0].lower() for name in config.TISSUES]
    pairs = [pair.partition("=") for pair in text.replace(" ", "").split(",")]
    if all(value.isdecimal() and name in tissues for value, _, name in pairs):
        return {int(value): tissues.index(name) for value, _, name in pairs}
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1=csf,2=grey,3=white,4=background")


def orientation(text):
    """Return the letters for the axes, such as RAS, that an argument gives."""
    code = text.upper()
    if len(code) == 3 and all(len(set(code) & set(pair)) == 1 for pair in ("LR", "PA", "IS")):
        return code
    raise argparse.ArgumentTypeError(f"{text!r} is not a letter for each axis (L or R, P or A, I or S), such as RAS")


@contextlib.contextmanager
def writing(path, remedy=FREE_SPACE):
    """Raise UserError, which names `path` and a remedy, if anything cannot be written in this context."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); {remedy}") from error


def make_folder(folder):
    """Create `folder` if it is missing. Raises UserError if files cannot be written there."""
    with writing(folder, "name another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def written(path):
    """Give a temporary path to write to; it replaces `path` once it is whole. Raises UserError if it cannot be."""
    part = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")  # two processes may write the same file
    try:
        yield part
        part.replace(path)
    except OSError as error:
        remedy = FREE_SPACE if error.errno in FULL else "name another folder and run again"
        raise UserError(f"{path}: cannot be written ({reason(error)}); {remedy}") from error
    finally:
        part.unlink(missing_ok=True)
