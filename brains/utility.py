"""What generated slices are worth to train on: segmenters learn from them and are tested on real, unseen people.

Ravuri and Vinyals 2019, arXiv 1905.10887    (train on generated images, test on real ones)
"""

import functools
import json
from typing import NamedTuple

import numpy as np

import dataset
from brains import cli, loop, stream
from brains.backend import keras
from brains.cli import UserError
from brains.config import TISSUES, Schedule, UNetConfig
from brains.names import owners
from brains.statistics import mean, resampled, within
from brains.tissue import UNet, dice, recoloured, tissue_loss
from brains.weights import as_used

NETWORK = UNetConfig(filters=(8, 16, 32, 64))  # half as wide as the shipped segmenter, since 21 of them are trained
STEPS = 400  # of every training, however many slices it learns from
SCHEDULE = Schedule(epochs=1, batch_size=32, learning_rate=2e-3)
FEW = (10, 30)  # people whom somebody may have
SEEDS = 3
COLUMNS = ("CSF", "grey matter", "white matter", "mean", "ratio")
RESULTS = "utility.json"


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

    Raises UserError if masks are missing or broken.
    """
    training, groups = models.training, owners(models.training.names)[0]
    real = Labelled(training.images, dataset.load_masks("train", data, url), groups)
    if models.test:
        test = Labelled(models.test.images, dataset.load_masks("test", data, url), owners(models.test.names)[0])
    else:
        test = real.of(groups[models.unseen])
    return real, list(dict.fromkeys(groups[~models.unseen])), test


class Scores:
    """Dice of finished trainings {key: scores}, kept in a file, from which an interrupted call goes on.

    Raises UserError if the file is broken, or its scores are not `about` the same models, slices and flags.
    """

    def __init__(self, path, about):
        self.path, self.about, self.done = path, about, {}
        if not path.exists():
            return self._write()
        try:
            content = json.loads(path.read_text())
            known, self.done = content["about"], content["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: broken; delete it to start afresh") from error
        if known != about:
            raise UserError(f"{path}: of other models, slices or flags; name another --out, or delete it")

    def add(self, key, scores):
        self.done[key] = scores
        self._write()

    def _write(self):
        with cli.written(self.path) as part:
            part.write_text(json.dumps({"about": self.about, "scores": self.done}, indent=1) + "\n")


def measure(real, people, generated, test, scores):
    """Train segmenters on Labelled slices, and return how well each tells the tissue of the `test` slices.

    Returns {name: (SEEDS, P, 3)}, Dice by person of `test` and tissue: of as many real slices as there are generated
    ones, of generated ones, of both, and of the slices of FEW people, alone and with the generated ones, which are then
    labelled by the segmenter of these few alone. Each seed draws other people, of `people`, from the real ones. What
    `scores` has is not done again.
    """
    slices_of_one = len(real.images) / len(set(real.groups))
    most = min(len(people), max(1, round(len(generated.images) / slices_of_one)))
    few, done = [number for number in FEW if number < most], scores.done
    total = SEEDS * (3 + 2 * len(few))

    def scored(name, seed, *parts):
        key = f"{name}, seed {seed}"
        print(f"segmenter {len(done) + (key not in done)} of {total}: {key}", flush=True)
        unet = fit(parts, seed, scores.path.with_suffix(".npz"))
        scores.add(key, dice(unet.label(test.images), test.masks, test.groups).tolist())
        return unet

    for seed in range(SEEDS):
        order = np.random.default_rng((seed, 3)).permutation(people)
        most_real = real.of(order[:most])
        sets = {f"{most} people": [most_real], "generated": [generated]}
        sets[f"{most} people and generated"] = [most_real, generated]
        for name, parts in sets.items():
            if f"{name}, seed {seed}" not in done:
                scored(name, seed, *parts)
        for number in few:
            own, name = real.of(order[:number]), f"{number} people"
            if f"{name} and generated, seed {seed}" not in done:
                labels = scored(name, seed, own).label(generated.images)
                scored(f"{name} and generated", seed, own, generated._replace(masks=labels))
    names = dict.fromkeys(key.split(", seed")[0] for key in done)
    return {name: np.array([done[f"{name}, seed {seed}"] for seed in range(SEEDS)]) for name in names}


def fit(parts, seed, path):
    """Train a UNet from scratch on Labelled parts, for STEPS steps, and return it. `path` is taken for a checkpoint."""
    images, masks = (np.concatenate([part[i] for part in parts]) for i in range(2))
    keras.utils.set_random_seed(seed)
    unet, count = UNet(NETWORK), STEPS * SCHEDULE.batch_size
    adam = loop.adam_along_cosine(SCHEDULE, count)
    training = loop.Training("U-Net", unet, adam, path, {}, schedule=SCHEDULE, seed=seed)

    def read(chosen, draws):
        chosen = chosen % len(images)  # every set is gone through until the steps are done
        slices = recoloured(stream.flip_half(images[chosen], draws), draws)
        return slices, stream.flip_half(masks[chosen][..., None], draws)[..., 0]

    def losses(totals):
        return {"loss": float(totals["loss"])}

    gradients = loop.gradients_of(training, functools.partial(tissue_loss, unet))
    loop.fit(training, gradients, read, count, losses, lambda figures: f"loss {figures['loss']:.4f}")
    path.unlink()
    return as_used(unet)


def summary(scores):
    """Return the Figures of what `measure` gives, {name: {column: Figure}}, with intervals over people.

    They are Dice by tissue, their mean, and its ratio to that of the first name.
    """
    reference, figures = next(iter(scores.values())).mean(axis=(0, 2)), {}
    for name, each in scores.items():
        by_person, people = each.mean(axis=0), np.arange(each.shape[1])
        weights = resampled(people)
        ratio = within(by_person.mean() / reference.mean(), weights @ by_person.mean(axis=1) / (weights @ reference))
        figures[name] = {tissue: mean(values, people) for tissue, values in zip(TISSUES[1:], by_person.T)}
        figures[name] |= {"mean": mean(by_person.mean(axis=1), people), "ratio": ratio}
    return figures
