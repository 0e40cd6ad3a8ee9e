"""The sets of slices that an evaluation compares: real ones, held-out ones, and what each set of models makes."""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import dataset
from brains import sampling, weights
from brains.cli import UserError, note, short
from brains.config import DATASET, FIGURES, SIZE
from brains.fidelity import NEIGHBOURS, SliceSet, slice_set
from brains.judge import judge_prior
from brains.memory import Codes, repeats
from brains.names import hold_out, is_litter, natural_order, owners

SUFFIXES = set(Image.registered_extensions()) & {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def load_folder(folder):
    """Return the SliceSet of a folder of any images but FIGURES. Raises UserError if it holds none, or broken ones."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; name a folder of images")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    paths = [path for path in paths if not is_litter(path.relative_to(folder)) and path.name not in FIGURES.values()]
    if not paths:
        raise UserError(f"{folder}: no images here; name a folder of images")
    paths.sort(key=lambda path: natural_order(path.name))
    images = np.empty((len(paths), SIZE, SIZE, 1), np.float32)
    dataset.read_images(paths, images)
    return slice_set(images, [path.name for path in paths])


def read_folders(real_folder, fake_folder, seed):
    """Return the real slices but for a tenth of their groups, that tenth, the fake ones, and how many to compare."""
    real, fake = load_folder(real_folder), load_folder(fake_folder)
    chosen = np.isin(real.groups, hold_out(real.groups, 0.1, seed))
    real, held_out = real.take(~chosen), real.take(chosen)
    sets, where = {"generated": fake}, f"{real_folder} (less a tenth, held out), {fake_folder}"
    count = number_compared({"reference": real, "held out": held_out, **sets}, len(fake.grey), where)
    return real, held_out, sets, count


class Made(NamedTuple):
    """What a set of models makes.

    `generated` are SliceSets by temperature, each chosen from so many `candidates`. `reconstructed` are the held-out
    slices. `repeats` are the Figures of repeated grids, by temperature and "held out". `prior` are those of the codes.
    """

    generated: dict
    candidates: int
    reconstructed: SliceSet
    repeats: dict
    prior: dict


class Models(NamedTuple):
    """A set of models, their critic, and which training slices they have not seen (N,) bool."""

    folder: object
    content: dict
    critic: object
    candidates: int
    unseen: np.ndarray


def read_slices(folders, data, url, *, tune, samples, candidates, temperatures, seed):
    """Return the reference slices, held-out ones, {name: Made} of each folder of models, and how many to compare.

    If `tune`, the held-out ones are the training cases held out in training, and the test split is not read. Raises
    UserError if models or slices are missing, or if `tune` is asked for models that were trained on other slices.
    """
    contents = {folder: weights.load_config(folder) for folder in folders}
    any_critic = any("critic" in content for content in contents.values())
    critics = {  # beside models with a critic, those without one have one candidate whatever is asked
        folder: weights.load_critic(folder, candidates if "critic" in content or not any_critic else None)
        for folder, content in contents.items()
    }
    test = None if tune else dataset.load_split("test", data, url)
    training = dataset.load_split("train", data, url)
    known = slice_set(training.images, training.names, owners(training.names)[1])
    models = [
        Models(folder, content, *critics[folder], find_unseen(folder, content, training.digest, known.groups, tune))
        for folder, content in contents.items()
    ]
    unseen = models[0].unseen
    if tune and any(np.any(other.unseen != unseen) for other in models):
        raise UserError("--tune: the models were trained with different cases held out; measure one, with --models")
    if tune:
        real, held_out = known.take(~unseen), known.take(unseen)
    else:
        real, held_out = known, slice_set(test.images, test.names, owners(test.names)[1])
    count = number_compared({"reference": real, "held out": held_out}, samples, data or short(DATASET))
    made = {each.folder.name: make(each, training, test, samples, temperatures, seed) for each in models}
    return real, held_out, made, count


def find_unseen(folder, content, digest, cases, tune):
    """Return which training slices (N,) bool, of these cases, models have not seen."""
    unseen = np.isin(cases, content["data"]["held_out_cases"])
    if digest != content["data"]["digest"]:
        if tune:
            raise UserError(f"{folder}: trained on other slices than these, so none are known to be held out")
        note(f"note: {folder} was trained on other slices than these; only the test split is held out from it")
        unseen[:] = False
    elif tune and "vqvae" not in content["data"].get("held_out_from", []):
        note(f"note: these cases were held out from the PixelCNN of {folder} only; its VQ-VAE has seen them")
    return unseen


def make(models, training, test, samples, temperatures, seed):
    """Return what Models make of the held-out slices, and so many samples by temperature: a Made.

    The held-out slices are those of `test`, or if that is None the training slices that the models have not seen.
    """
    vqvae, prior = weights.load_models(models.folder)
    unseen = models.unseen
    held_out = test or dataset.Slices(training.images[unseen], np.array(training.names)[unseen], None)
    codes = Codes(vqvae.encode(training.images), *owners(training.names))
    held_out_codes = Codes(vqvae.encode(held_out.images), *owners(held_out.names))
    if prior.levels and max(each.levels.max() for each in (codes, held_out_codes)) >= prior.levels:
        raise UserError(f"{models.folder}: knows levels 0 to {prior.levels - 1}, but some slices here are higher")
    sets = {"training": codes.take(~unseen)} | ({"validation": codes.take(unseen)} if unseen.any() else {})
    if test:
        sets["test"] = held_out_codes
    known = codes.grids if test else codes.grids[~unseen]
    if models.content["data"].get("mirrored"):  # the prior has seen mirror images too
        mirrored = vqvae.encode(training.images[:, ::-1])
        known = np.concatenate([known, mirrored if test else mirrored[~unseen]])
    repeated = {"held out": repeats(held_out_codes, known)}
    reconstructed = slice_set(vqvae.decode(held_out_codes.grids), held_out.names, held_out_codes.levels)
    progress = functools.partial(
        tqdm, desc=f"sampling, {models.folder.name}", unit="batch", leave=False, disable=None
    )
    names, levels = [f"sample {i}" for i in range(samples)], sampling.spread_levels(prior, samples)
    generated = {}
    for temperature in temperatures or [weights.load_temperature(models.folder)]:
        grids = sampling.sample_best(
            vqvae, prior, models.critic, models.candidates, samples, seed, temperature, progress=progress
        )
        drawn = Codes(grids, np.array(names), levels)
        generated[temperature] = slice_set(vqvae.decode(grids), names, levels if prior.levels else None)
        repeated[temperature] = repeats(drawn, known)
        sets["generated" if len(temperatures or []) < 2 else f"generated at {temperature:g}"] = drawn
    return Made(generated, models.candidates, reconstructed, repeated, judge_prior(prior, sets))


def number_compared(sets, samples, where):
    """Return how many slices of each set {name: SliceSet} to compare with as many samples: at most half the reference.

    Raises UserError if that is too few, or of too few people, to measure anything.
    """
    sizes = {
        "samples": samples,
        "held-out slices": len(sets["held out"].grey),
        "slices in each half of the reference": len(sets["reference"].grey) // 2,
    }
    fewest, count = min(sizes.items(), key=lambda item: item[1])
    for name, slices in sets.items():
        most = np.unique(slices.groups, return_counts=True)[1].max()
        needed = max(2 * NEIGHBOURS, most + NEIGHBOURS)  # of each slice, neighbours of other people
        if count < needed:
            why = f", because one person has {most} of the {name} ones" if most > NEIGHBOURS else ""
            raise UserError(f"{where}: too few to measure, {count} {fewest} where {needed} are needed{why}")
    return count
