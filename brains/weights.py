"""Networks from their descriptions, and sets of them on disk: a folder with config.json, weights, and a mean image.

Sets that generate also have usual.npz, what is usual in held-out slices.

config.json names the class of every network, so that loading needs no more than the folder. It also keeps the sha256 of
every file of weights, and which networks were trained on which, so that files of different trainings are never mixed.
"""

import hashlib
import json
import shutil
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path

import h5py  # Keras needs it too
import numpy as np

import modules
from brains import config, flow, heads, sharp, tissue
from brains.backend import keras
from brains.cli import UsageError, UserError, short, writing, written
from brains.usual import Usual
from dataset import load_image, save_image

CONFIG, MEAN_IMAGE, USUAL = "config.json", "mean_image.png", "usual.npz"
REMEDY = "restore it or run train.py"
REMEASURE = "`python evaluate.py --anomalies`, which needs the training slices, measures it anew"
# Each part of a set, and what it learned from.
TRAINED_ON = {"vqvae": None, "pixelcnn": "vqvae", "flow": "vqvae", "critic": "pixelcnn", "segmenter": None}
NETWORKS = {  # by the name in config.json: the configuration, and what builds the network from it
    "VQVAE": (config.VQVAEConfig, modules.build_vqvae),
    "SharpVQVAE": (config.SharpVQVAEConfig, sharp.build_vqvae),
    "HeadVQVAE": (config.HeadVQVAEConfig, heads.HeadVQVAE),
    "HeadFlow": (config.HeadFlowConfig, flow.HeadFlow),
    "PixelCNN": (config.PixelCNNConfig, modules.PixelCNN),
    "GatedPixelCNN": (config.GatedPixelCNNConfig, sharp.GatedPixelCNN),
    "Critic": (config.CriticConfig, sharp.Critic),
    "UNet": (config.UNetConfig, tissue.UNet),
}


def weights_file(part):
    """Return the name of the file with the weights of a part ("vqvae", "pixelcnn", "critic")."""
    return f"{part}.weights.h5"


def is_set(folder):
    """Return whether a folder holds a set of weights."""
    return (_current(folder) / CONFIG).is_file()


def load_config(folder):
    """Return config.json of the set in `folder`. Raises UserError if there is none, or it is broken."""
    path, name = _current(folder) / CONFIG, Path(folder).name
    if not is_set(folder):
        train = f"run train.py --preset {name}" if name in config.PRESETS else "run train.py"
        raise UserError(f"{short(folder)}: no trained weights here (no {CONFIG}); name another --models, or {train}")
    try:
        content = json.loads(path.read_text())
        networks = [content[part]["network"] for part in TRAINED_ON if part in content]
        content["data"]["held_out_cases"], content.get("critic", {"candidates": 1})["candidates"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{short(path)}: not the configuration of a set of weights; {REMEDY}") from error
    if not networks or any("class" not in network for network in networks):
        raise UserError(f"{short(path)}: written by an earlier version, whose weights cannot be read; run train.py")
    return content


def digests(folder):
    """Return the sha256 of the weights of each part of the set in `folder`; raises UserError as `load_config`."""
    content = load_config(folder)
    return {part: content[part].get("sha256") for part in TRAINED_ON if part in content}


def load_vqvae(folder):
    """Return the VQVAE of the set in `folder`. Raises UserError if files are missing, broken or of another training."""
    return _load(folder, "vqvae", load_config(folder))


def load_models(folder):
    """Return the VQVAE and the prior of the set in `folder`; raises UserError as `load_vqvae` does."""
    content = load_config(folder)
    prior = prior_of(content)
    if _part(folder, prior, content).get("trained_on") != _part(folder, "vqvae", content).get("sha256"):
        name = config.STAGES[prior][0]
        raise UserError(f"{short(folder)}: its {name} was trained on the codes of another VQ-VAE; run train.py")
    return _load(folder, "vqvae", content), _load(folder, prior, content)


def prior_of(content):
    """Return which part of a set with this config.json is its prior."""
    return "flow" if "flow" in content else "pixelcnn"


def load_critic(folder, candidates=None):
    """Return the Critic of the set in `folder` and how many candidates it chooses from; (None, 1) without a critic.

    Without `candidates` the number is the set's. Raises UserError as `load_vqvae`, and UsageError if it has no critic.
    """
    content = load_config(folder)
    if candidates == 1 or (candidates is None and "critic" not in content):
        return None, 1
    if "critic" not in content:
        raise UsageError(f"--candidates: the models in {short(folder)} have no critic; try --preset sharp")
    remedy = "restore the set, or go without the critic: --candidates 1"
    if content["critic"].get("trained_on") != content["pixelcnn"].get("sha256"):
        raise UserError(f"{short(folder)}: its critic learned from another PixelCNN; {remedy}")
    return _load(folder, "critic", content, remedy), candidates or content["critic"]["candidates"]


def load_mean_image(folder):
    """Return the mean training image (128, 128, 1) float32 of the set in `folder`; UserError if it is missing."""
    path = _current(folder) / MEAN_IMAGE
    if not path.is_file():
        raise UserError(f"{short(path)}: missing; {REMEDY}")
    return load_image(path)


def load_usual(folder):
    """Return what is Usual to the prior of the set in `folder`. Raises UserError if that is missing or broken."""
    pixelcnn, path = _part(folder, "pixelcnn", load_config(folder)), _current(folder) / USUAL
    if not has_usual(folder):
        raise UserError(f"{short(path)}: missing; {REMEASURE}")
    try:
        with np.load(path) as kept:
            trained_on, usual = str(kept["trained_on"]), Usual(*(kept[name] for name in Usual._fields))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{short(path)}: broken; delete it; {REMEASURE}") from error
    if trained_on != pixelcnn.get("sha256"):
        why = "measured with another PixelCNN"
        raise UserError(f"{short(path)}: {why}; delete it; {REMEASURE}")
    return usual


def has_usual(folder):
    """Return whether the set in `folder` says what is usual."""
    return (_current(folder) / USUAL).is_file()


def add_usual(folder, usual):
    """Add what is Usual to the prior to the set in `folder`. Raises UserError if it cannot be written."""
    with written(_current(folder) / USUAL) as part:
        _write_usual(part, usual, load_config(folder))


def _write_usual(path, usual, content):
    with open(path, "wb") as file:
        np.savez_compressed(file, trained_on=content["pixelcnn"]["sha256"], **usual._asdict())


def knows_heads(folder):
    """Return whether the set in `folder` is of whole heads. Raises UserError as `load_config` does."""
    return load_config(folder).get("vqvae", {}).get("network", {}).get("class") == "HeadVQVAE"


def load_temperature(folder):
    """Return the temperature of sampling that is best for the set in `folder`."""
    content = load_config(folder)
    return _part(folder, prior_of(content), content).get("temperature", 1.0)


def build(network):
    """Return the network that {"class": name, ...} describes. Raises KeyError or TypeError if it describes none."""
    config_class, builder = NETWORKS[network["class"]]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in network.items()}  # from JSON
    return builder(config_class(**{key: value for key, value in values.items() if key != "class"}))


def describe(model):
    """Return the dict from which `build` makes a network like `model`."""
    return {"class": type(model.config).__name__.removesuffix("Config"), **asdict(model.config)}


def copy_of(network):
    """Return another network with the same description and weights, built by the dtype policy in force."""
    copy = build(describe(network))
    copy.set_weights(network.get_weights())
    return copy


def as_used(network):
    """Return a copy of a network in float32, as all scripts use it: in bfloat16 one code of thirty differs."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    copy = copy_of(network)
    keras.config.set_dtype_policy(policy)
    return copy


def load_segmenter(folder):
    """Return the UNet of the set in `folder`; raises UserError as `load_vqvae` does."""
    if not is_set(folder):
        raise UserError(f"{short(folder)}: no segmenter here; `python train.py --preset tissue` trains one")
    return _load(folder, "segmenter", load_config(folder))


def _part(folder, part, content):
    """Return what config.json says of a part of the set in `folder`. Raises UserError if the set has no such part."""
    if part not in content:
        raise UserError(f"{short(folder)}: holds no {config.STAGES[part][0]}; name another --models")
    return content[part]


def _load(folder, part, content, remedy=REMEDY):
    about, path = _part(folder, part, content), _current(folder) / weights_file(part)
    if not path.is_file():
        raise UserError(f"{short(path)}: missing; {remedy}")
    try:
        model = build(about["network"])
        model.load_weights(path)
    except OSError as error:
        raise UserError(f"{short(path)}: truncated or no weights file; {remedy}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{short(path)}: does not fit the network in {CONFIG}; {remedy}") from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != about.get("sha256"):
        raise UserError(f"{short(path)}: not the weights that {CONFIG} describes, but of another training; {remedy}")
    return model


def save_set(folder, models, content, mean_image, usual=None):
    """Write a set of weights beside `folder`, then swap it in as a whole. Raises UserError if it cannot be written.

    `models` are the networks by part. `content` is config.json, with a dict for each part; the network and the digests
    of the weights are added to it. `mean_image` (128, 128, 1) is the mean training image, and `usual` what is Usual to
    the prior, if there is one.
    """
    staging = make_staging(folder)
    with writing(short(folder)):
        for part, model in models.items():
            path = staging / weights_file(part)
            model.save_weights(path)
            if "flow" in models:  # networks of heads are large, and lose nothing by it
                _halve(path)
            content[part] |= {"network": describe(model), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            if TRAINED_ON[part]:
                content[part]["trained_on"] = content[TRAINED_ON[part]]["sha256"]
        if usual:
            _write_usual(staging / USUAL, usual, content)
        save_image(staging / MEAN_IMAGE, mean_image)
        (staging / CONFIG).write_text(json.dumps(content, indent=1) + "\n")
        _swap(staging, Path(folder).resolve())


def _halve(path):
    """Keep the numbers of a file of weights in float16."""
    half = path.with_suffix(".half")
    with h5py.File(path) as source, h5py.File(half, "w") as target:

        def keep(name, item):
            if isinstance(item, h5py.Dataset):
                values = item[()]  # NumPy rounds; HDF5 makes -0.25 of -0.4999
                target[name] = values.astype(np.float16) if values.dtype == np.float32 else values
            else:
                target.require_group(name).attrs.update(item.attrs)

        source.visititems(keep)
    half.replace(path)


def make_staging(folder):
    """Return a new empty folder beside `folder` to write a set to. Raises UserError if it could not be swapped in."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; name a folder with --models")
    known = {CONFIG, MEAN_IMAGE, USUAL, ".DS_Store", *map(weights_file, TRAINED_ON)}
    strangers = sorted({path.name for path in folder.iterdir()} - known) if folder.exists() else []
    if strangers:
        raise UserError(f"{folder}: would be replaced, but holds other files ({strangers[0]}); name another --models")
    staging = _beside(folder, "tmp")
    shutil.rmtree(staging, ignore_errors=True)
    with writing(staging, "name another folder with --models"):
        staging.mkdir(parents=True)
    return staging


def _beside(folder, ending):
    """Return a hidden path beside a folder, or beside what a link of that name leads to."""
    folder = Path(folder).resolve()
    return folder.with_name(f".{folder.name}.{ending}")


def _current(folder):
    """Return where the set of `folder` is: beside it, if a swap was interrupted between its two renames."""
    new = _beside(folder, "new")
    return new if new.is_dir() and not Path(folder).exists() else Path(folder)


def _swap(staging, folder):
    new, old = _beside(folder, "new"), _beside(folder, "old")
    if _current(folder) == new:  # an earlier swap was interrupted
        new.rename(folder)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    staging.rename(new)  # from here on `new` is whole
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
