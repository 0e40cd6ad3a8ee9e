"""What the flow of heads is told of a head: the person's age and sex, and how the head was changed for training.

A few hundred heads are few, so each is shown in many ways. The flow is told which, so that it draws none of them later
(Jun et al. 2020, Distribution Augmentation for Generative Modeling, ICML).
"""

from collections import Counter

import numpy as np
from scipy.ndimage import affine_transform

from brains.people import Person

TRAITS = ("age", "age known", "sex", "mirrored", "across", "along", "size", "contrast")
MIDDLE, SPAN = 50, 25  # years: an age counts as its distance from the middle, in spans
MOVE, SIZE, CONTRAST = 2, 0.04, 0.15  # how far training moves (pixels), enlarges and recolours (logarithms) a head
SEXES = ("F", "M")
DROPPED = 0.15  # the share of ages, and of sexes, that training does not tell, so that either may be left out


def traits_of(people):
    """Return the traits (N, T) float32 of Persons, each head as it is."""
    traits = np.zeros((len(people), len(TRAITS)), np.float32)
    for row, person in zip(traits, people):
        if person.age is not None:
            row[:2] = (person.age - MIDDLE) / SPAN, 1
        row[2] = {"M": 1, "F": -1, None: 0}[person.sex]
    traits[:, 3] = 1
    return traits


def changed(stacks, traits, draws):
    """Change heads (N, L, H, W, 1) by their draws; returns them, and their traits (N, T) with what was done.

    Each head is mirrored, moved by whole pixels, enlarged or reduced, and its contrast changed, or not.
    """
    heads, told = np.empty_like(stacks), traits.copy()
    for i, (stack, draw) in enumerate(zip(stacks, draws)):
        rng = np.random.default_rng(int(draw["offset"][0] * 2**53))
        told[i, :2] *= rng.random() >= DROPPED
        told[i, 2] *= rng.random() >= DROPPED
        mirrored = draw["flip"] < 0.5
        move = rng.integers(-MOVE, MOVE + 1, 2) * (rng.random() < 0.75)
        size, contrast = rng.uniform(-1, 1, 2) * (rng.random(2) < 0.5)
        told[i, 3:] = -1 if mirrored else 1, *move / MOVE, size, contrast
        heads[i] = change(stack[:, ::-1] if mirrored else stack, move, SIZE * size, CONTRAST * contrast)
    return heads, told


def change(stack, move, size, contrast):
    """Return a head (L, H, W, 1) in [-0.5, 0.5] moved by pixels (2,), enlarged by e^size, its grey ^ e^contrast."""
    light = stack[..., 0] + np.float32(0.5)
    if size:
        scale, centre = np.exp(-size), (np.array(light.shape) - 1) / 2
        offset = np.array([0, *(centre[1:] - scale * (centre[1:] + move))])
        light = affine_transform(light, [1, scale, scale], offset, order=1, mode="nearest")
    elif move.any():
        light = np.pad(light, [(0, 0), (abs(move[0]),) * 2, (abs(move[1]),) * 2], mode="edge")
        light = np.roll(light, move, (1, 2))
        light = light[:, abs(move[0]) : light.shape[1] - abs(move[0]), abs(move[1]) : light.shape[2] - abs(move[1])]
    return light[..., None] ** np.exp(contrast).astype(np.float32) - np.float32(0.5)


def count_people(people):
    """Return what a set of weights keeps of the Persons that it has learned from; None if it knows no age.

    It is how many there are by sex and decade, {"F": {"20": 31, ...}, "M": ...}, and the range of ages in whole years.
    """
    ages = [person.age for person in people if person.age is not None]
    if not ages:
        return None
    known = [person for person in people if person.age is not None and person.sex]
    counts = {}
    for sex in SEXES:
        decades = Counter(10 * int(person.age // 10) for person in known if person.sex == sex)
        counts[sex] = {str(decade): decades[decade] for decade in sorted(decades)}
    return {"ages": [int(min(ages)), int(np.ceil(max(ages)))], **counts}


def draw_people(counts, num, seed, ages=None, sexes=None):
    """Return `num` Persons with the ages and sexes that are asked for, which are cycled through.

    What is not asked for is drawn as often as it is among the people of `count_people`; without counts they have none.
    """
    if counts is None:
        return [Person()] * num
    rng, people = np.random.default_rng(seed), []
    cells = [(sex, int(decade), number) for sex in SEXES for decade, number in counts[sex].items()]
    for i in range(num):
        age, sex = (asked and asked[i % len(asked)] for asked in (ages, sexes))
        fitting = [cell for cell in cells if sex in (None, cell[0]) and (age is None or cell[1] == 10 * int(age // 10))]
        fitting = fitting or [(sex or SEXES[i % 2], None, 1)]  # nobody of that age was there
        numbers = np.array([number for *_, number in fitting])
        drawn_sex, decade, _ = fitting[rng.choice(len(fitting), p=numbers / numbers.sum())]
        drawn_age = age if age is not None else int(np.clip(decade + rng.integers(10), *counts["ages"]))
        people.append(Person(float(drawn_age), drawn_sex))
    return people
