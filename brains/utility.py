"""What generated slices are worth to train on: segmenters learn from them and are tested on real, unseen people.

Ravuri and Vinyals 2019, arXiv 1905.10887    (train on generated images, test on real ones)
"""

import functools
import json
import zipfile
from typing import NamedTuple

import numpy as np

import dataset
from brains import cli, loop
from brains.backend import keras
from brains.cli import UserError
from brains.config import TISSUES, Schedule, UNetConfig
from brains.names import owners
from brains.statistics import mean, resampled, within
from brains.tissue import UNet, dice, tissue_loss, varied
from brains.weights import as_used

NETWORK = UNetConfig(filters=(8, 16, 32, 64))  # half as wide as the shipped segmenter, since 21 of them are trained
STEPS = 400  # of every training, however many slices it learns from
SCHEDULE = Schedule(epochs=1, batch_size=32, learning_rate=2e-3)
FEW = (10, 30)  # people whom somebody may have
REPEATS = 3  # trainings of a kind, of other people and weights
COLUMNS = ("CSF", "grey matter", "white matter", "mean", "ratio")


class Labelled(NamedTuple):
    """Images (N, 128, 128, 1) float32 in [-0.5, 0.5], masks (N, 128, 128) uint8 of labels, and groups (N,) str."""

    images: np.ndarray
    masks: np.ndarray
    groups: np.ndarray

    def of(self, groups):
        """Return what belongs to some of the groups."""
        chosen = np.isin(self.groups, groups)
        return Labelled(*(values[chosen] for values in self))


def read_labelled(models, data, url):
    """Return the Labelled training slices, the people whom Models learned from, and the Labelled held-out slices.

    Also returns the digests of all slices and masks. Raises UserError if masks are missing or broken.
    """
    splits = {"train": models.training} | ({"test": models.test} if models.test else {})
    labelled, digests = {}, {}
    for split, slices in splits.items():
        masks, digest = dataset.read_masks(split, data, url)
        labelled[split] = Labelled(slices.images, masks, owners(slices.names)[0])
        digests |= {split: slices.digest, f"masks of {split}": digest}
    real = labelled["train"]
    test = labelled.get("test") or real.of(real.groups[models.unseen])
    return real, list(dict.fromkeys(real.groups[~models.unseen])), test, digests


class Scores:
    """Dice of finished trainings, in a file, from which an interrupted call goes on: `done` {key: scores}.

    Raises UserError if the file is broken, or not `about` the same models, slices and settings.
    """

    def __init__(self, path, about):
        settings = {"filters": NETWORK.filters, "steps": STEPS, "few": FEW, "repeats": REPEATS}
        self.path, self.about, self.done = path, json.loads(json.dumps(about | settings)), {}
        if path.exists():
            try:
                content = json.loads(path.read_text())
                known, self.done = content["about"], content["scores"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: broken; delete it to start afresh") from error
            if known != self.about:
                raise UserError(f"{path}: of other models, slices or flags; name another --out, or delete it")

    def add(self, key, scores):
        """Keep scores (P, 3) in the file."""
        self.done[key] = scores.tolist()
        with cli.written(self.path) as part:
            part.write_text(json.dumps({"about": self.about, "scores": self.done}, indent=1) + "\n")

    def codes(self, draw):
        """Return the codes that `draw` gives, from a file beside if they were drawn before for the same."""
        path, about = self.path.with_name(f"{self.path.stem}_codes.npz"), json.dumps(self.about)
        try:
            with np.load(path) as kept:
                if str(kept["about"]) == about:
                    return kept["codes"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # none, or broken
        codes = draw()
        with cli.written(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, about=about, codes=codes)
        return codes


def measure(real, people, generated, test, scores, seed):
    """Train segmenters on Labelled slices, and return how well each tells the tissue of the `test` slices.

    Returns {name: (REPEATS, P, 3)}, Dice by person of `test` and tissue: of as many real slices as there are generated
    ones, of generated ones, of both, and of the slices of FEW people, alone and with the generated ones, which are then
    labelled by the segmenter of these few alone. Each repeat draws other people, of `people`, from the real ones. What
    `scores` has is not done again.
    """
    slices_of_one = len(real.images) / len(set(real.groups))
    most = min(len(people), max(1, round(len(generated.images) / slices_of_one)))
    few, done = [number for number in FEW if number < len(people) and number != most], scores.done
    names = [f"{most} people", "generated", f"{most} people and generated"]
    names += [name for number in few for name in (f"{number} people", f"{number} people and generated")]

    def score(name, repeat, *parts):
        key = f"{name}, {repeat}"
        print(f"segmenter {len(done) + (key not in done)} of {REPEATS * len(names)}: {key}", flush=True)
        unet = fit(parts, REPEATS * seed + repeat)
        scores.add(key, dice(unet.label(test.images), test.masks, test.groups))
        return unet

    for repeat in range(REPEATS):
        order = np.random.default_rng((seed, repeat, 3)).permutation(people)
        most_real = real.of(order[:most])
        for name, parts in zip(names, ([most_real], [generated], [most_real, generated])):
            if f"{name}, {repeat}" not in done:
                score(name, repeat, *parts)
        for number in few:
            own, name = real.of(order[:number]), f"{number} people"
            if f"{name} and generated, {repeat}" not in done:
                labels = score(name, repeat, own).label(generated.images)
                score(f"{name} and generated", repeat, own, generated._replace(masks=labels))
    return {name: np.array([done[f"{name}, {repeat}"] for repeat in range(REPEATS)]) for name in names}


def fit(parts, seed):
    """Train a UNet from scratch on Labelled parts, for STEPS steps, and return it."""
    images, masks = (np.concatenate([part[i] for part in parts]) for i in range(2))
    keras.utils.set_random_seed(seed % 2**32)
    unet, count = UNet(NETWORK), STEPS * SCHEDULE.batch_size
    adam = loop.adam_along_cosine(SCHEDULE, count)
    training = loop.Training("U-Net", unet, adam, None, {}, schedule=SCHEDULE, seed=seed)
    order = np.random.default_rng(seed).permutation(len(images))

    def read(chosen, draws):
        chosen = order[chosen % len(order)]  # every set is gone through until the steps are done
        return varied(images[chosen], masks[chosen], draws)

    def losses(totals):
        return {"loss": float(totals["loss"])}

    gradients = loop.gradients_of(training, functools.partial(tissue_loss, unet))
    loop.fit(training, gradients, read, count, losses, lambda figures: f"loss {figures['loss']:.4f}")
    return as_used(unet)


def summary(scores):
    """Return the Figures of what `measure` gives, {name: {column: Figure}}, with intervals over people.

    They are Dice by tissue, their mean, and its ratio to that of the first name, as means over the repeats.
    """
    reference, figures = next(iter(scores.values())).mean(axis=(0, 2)), {}
    for name, each in scores.items():
        by_person, people = each.mean(axis=0), np.arange(each.shape[1])
        weights = resampled(people)
        ratio = within(by_person.mean() / reference.mean(), weights @ by_person.mean(axis=1) / (weights @ reference))
        figures[name] = {tissue: mean(values, people) for tissue, values in zip(TISSUES[1:], by_person.T)}
        figures[name] |= {"mean": mean(by_person.mean(axis=1), people), "ratio": ratio}
    return figures
