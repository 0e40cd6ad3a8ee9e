"""The sets of slices that an evaluation compares: real ones, held-out ones, and what each set of models makes."""

import functools
from collections import namedtuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import dataset
from brains import config, people, sampling, weights
from brains.cli import UserError, note, short
from brains.config import FIGURES, SIZE
from brains.fidelity import NEIGHBOURS, slice_set
from brains.judge import Codes, judge_prior, repeats
from brains.membership import attack, people_known
from brains.names import hold_out, is_litter, natural_order, owners

SUFFIXES = set(Image.registered_extensions()) & {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def load_folder(folder):
    """Return the SliceSet of a folder of any images but FIGURES. Raises UserError if it holds none, or broken ones."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; name a folder of images")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    paths = [path for path in paths if not is_litter(path.relative_to(folder)) and path.name not in FIGURES.values()]
    paths = [path for path in paths if not path.name.endswith("_tissue.png")]  # masks of those beside them
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
    real, held_out, generated = real.take(~chosen), real.take(chosen), {"generated": fake}
    where = f"{real_folder} (less a tenth, held out), {fake_folder}"
    count = number_compared({"reference": real, "held out": held_out, **generated}, len(fake.grey), where)
    return real, held_out, generated, count


# A set of models, its config.json, what `weights.load_critic` gives of it, and the slices that it is measured with:
# `test` is None where held-out training slices stand in for it; `unseen` (N,) bool are the training slices not seen.
Models = namedtuple("Models", "folder content critic training test unseen")

# What a set of models makes at `temperatures`, each slice chosen from so many `candidates`, by column of the table: the
# SliceSets `generated` and `reconstructed`, and functions that give the Figures of `repeats` from what `judge.nearest`
# found; `membership` are the Figures, by column, of what samples tell of the people learned from, and `prior` those of
# the codes.
Made = namedtuple("Made", "temperatures candidates generated reconstructed repeats membership prior")


def read_slices(folders, data, url, *, tune, samples, candidates):
    """Return the reference slices, held-out ones, the Models of each folder, and how many slices to compare.

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
    real = slice_set(training.images, training.names, owners(training.names)[1])
    models = []
    for folder, content in contents.items():
        found = find_unseen(folder, content, training.digest, real.groups, tune)
        models.append(Models(folder, content, critics[folder], training, test, found))
    unseen = models[0].unseen
    if tune and any(np.any(each.unseen != unseen) for each in models):
        raise UserError("--tune: the models were trained with different cases held out; measure one, with --models")
    if tune:
        real, held_out = real.take(~unseen), real.take(unseen)
    else:
        held_out = slice_set(test.images, test.names, owners(test.names)[1])
    count = number_compared({"reference": real, "held out": held_out}, samples, data or short(config.DATASET))
    return real, held_out, models, count


def find_unseen(folder, content, digest, cases, tune):
    """Return which training slices (N,) bool, of these cases, models have not seen."""
    if digest != content["data"]["digest"]:
        if tune:
            raise UserError(f"{folder}: trained on other slices than these, so none are known to be held out")
        note(f"note: {folder} was trained on other slices than these; only the test split is held out from it")
        return np.zeros(len(cases), bool)
    if tune and "vqvae" not in content["data"].get("held_out_from", []):
        note(f"note: these cases were held out from the PixelCNN of {folder} only; its VQ-VAE has seen them")
    return np.isin(cases, content["data"]["held_out_cases"])


def unseen_slices(models):
    """Return the slices of all people that no part of the prior of Models has learned from: test, and held-out cases.

    They are images (N, 128, 128, 1), cases (N,) and levels (N,).
    """
    training = (models.training.images, *owners(models.training.names))
    parts = [[each[models.unseen] for each in training]]
    if models.test:
        parts.append((models.test.images, *owners(models.test.names)))
    return tuple(map(np.concatenate, zip(*parts)))


def check_levels(models, prior, *levels):
    """Raise UserError if some of the levels (N,) of slices are higher than the prior of Models knows."""
    if prior.levels and max(each.max() for each in levels if len(each)) >= prior.levels:
        raise UserError(f"{models.folder}: knows levels 0 to {prior.levels - 1}, but some slices here are higher")


def people_of(models):
    """Return each Person among the slices of Models, by case; {} where people are not the study's.

    Returns None, with a note, if the study's table of people cannot be had.
    """
    splits = {"train": models.training} | ({"test": models.test} if models.test else {})
    genuine = all(dataset.is_genuine(split, slices.digest) for split, slices in splits.items())
    return people.load_people() if genuine else {}


def make(models, samples, temperatures, seed, study):
    """Return what Models make of the held-out slices, and so many samples by temperature: a Made.

    Membership is judged among people of like age, if each Person is known in the `study`, {case: Person}; if that is {}
    among all, and if it is None not at all.
    """
    vqvae, prior = weights.load_models(models.folder)
    training, test, unseen = models.training, models.test, models.unseen
    codes_of_training = Codes(vqvae.encode(training.images), *owners(training.names))
    if test:
        names_held_out, held_out_codes = test.names, Codes(vqvae.encode(test.images), *owners(test.names))
    else:
        names_held_out, held_out_codes = np.array(training.names)[unseen], codes_of_training.take(unseen)
    check_levels(models, prior, codes_of_training.levels, held_out_codes.levels)
    sets = {"training": codes_of_training.take(~unseen)}
    if unseen.any():
        sets["validation"] = codes_of_training.take(unseen)
    if test:
        sets["test"] = held_out_codes
    reference = np.arange(len(unseen)) if test else np.flatnonzero(~unseen)

    def repeated(codes, found):
        known = codes_of_training.grids[reference]
        if models.content["data"].get("mirrored"):  # the prior has seen mirror images too; the nearest are compared
            nearest = training.images[reference[np.unique(found[1])]]
            known = np.concatenate([known, vqvae.encode(nearest[:, ::-1])])
        return repeats(codes, known)

    decoded = vqvae.decode(held_out_codes.grids)
    reconstructed = {"reconstructed": slice_set(decoded, names_held_out, held_out_codes.levels)}
    repeats_of = {"reconstructed": functools.partial(repeated, held_out_codes)}
    names, levels = [f"sample {i}" for i in range(samples)], sampling.spread_levels(prior, samples)
    ages = {case: person.age for case, person in (study or {}).items()}
    known = None if study is None else people_known(models, prior, codes_of_training, held_out_codes)
    generated, membership = {}, {}
    temperatures = list(dict.fromkeys(temperatures or [weights.load_temperature(models.folder)]))
    for temperature in temperatures:
        column = "generated" if len(temperatures) == 1 else f"generated at {temperature:g}"
        grids = sample(models, vqvae, prior, samples, seed, temperature)
        sets[column] = Codes(grids, np.array(names), levels)
        generated[column] = slice_set(vqvae.decode(grids), names, levels if prior.levels else None)
        repeats_of[column] = functools.partial(repeated, sets[column])
        membership[column] = attack(known, generated[column], ages, seed)
    costs = judge_prior(prior, sets, len(names_held_out))
    return Made(temperatures, models.critic[1], generated, reconstructed, repeats_of, membership, costs)


def sample(models, vqvae, prior, number, seed, temperature):
    """Return so many grids of codes (N, h, w) that Models make, with their networks given."""
    progress = functools.partial(tqdm, desc=f"sampling, {models.folder.name}", unit="batch", leave=False, disable=None)
    return sampling.sample_best(vqvae, prior, *models.critic, number, seed, temperature, progress=progress)


def number_compared(sets, samples, where):
    """Return how many slices of each set {name: SliceSet} to compare. Raises UserError if they are too few."""
    sizes = {"samples": samples, "held-out slices": len(sets["held out"].grey)}
    sizes["slices in each half of the reference"] = len(sets["reference"].grey) // 2
    fewest, count = min(sizes.items(), key=lambda item: item[1])
    for name, slices in sets.items():
        most = np.unique(slices.groups, return_counts=True)[1].max()
        needed = max(2 * NEIGHBOURS, most + NEIGHBOURS)  # of each slice, neighbours of other people
        if count < needed:
            why = f", because one person has {most} of the {name} ones" if most > NEIGHBOURS else ""
            raise UserError(f"{where}: too few to measure, {count} {fewest} where {needed} are needed{why}")
    return count
