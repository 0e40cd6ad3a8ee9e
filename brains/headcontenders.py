"""The heads that an evaluation compares: real ones, held-out ones, their reconstructions, and generated ones."""

import functools
from collections import namedtuple

import numpy as np
from tqdm import tqdm

import dataset
from brains import flow, people, traits, weights
from brains.backend import tf
from brains.cli import UserError
from brains.contenders import find_unseen
from brains.fidelity import SliceSet, images_of, slice_set
from brains.names import hold_out, owners, whole_heads
from brains.statistics import mean

KNOWN = 60  # people learned from, at most, on whom the flow is compared with others
TIMES = 8  # between noise and latents, at which it is

# Heads (N, L, H, W) uint8, their names (N,), and the Persons.
Heads = namedtuple("Heads", "grey names people")

# The Heads that were learned from, `sets` of Heads by column of the table, and `halves` of the real ones. `real_slices`
# and `held_out_slices` are SliceSets, `costs` the errors of the flow on heads {name: error}, and `prior` their Figures,
# {column: {row: Figure}}. `slab` is how many slices the models code together.
Made = namedtuple("Made", "real sets halves real_slices held_out_slices slab costs prior")


def make(folder, samples, temperature, *, tune, seed, data, url):
    """Return what the models of heads in `folder` make of real heads, and so many new ones: a Made."""
    content = weights.load_config(folder)
    vqvae, model = weights.load_models(folder)
    training = dataset.load_split("train", data, url)
    everyone = heads_of(training, "train", vqvae.config.levels, data, url)
    unseen = find_unseen(folder, content, training.digest, owners(training.names)[0], tune)
    fresh = np.isin(everyone.names, owners(training.names)[0][unseen])
    seen, others = take(everyone, ~fresh), take(everyone, fresh)
    slices = slice_set(training.images, training.names, owners(training.names)[1])
    if tune:
        real, held_out, real_slices, held_out_slices = seen, others, slices.take(~unseen), slices.take(unseen)
    else:
        test = dataset.load_split("test", data, url)
        held_out = heads_of(test, "test", vqvae.config.levels, data, url)
        real, real_slices = everyone, slices
        held_out_slices = slice_set(test.images, test.names, owners(test.names)[1])
    temperature = temperature or content["flow"]["temperature"]
    codes, asked = sample(content, vqvae, model, samples, seed, temperature)
    sets = {"generated": Heads(decoded(vqvae, codes), np.array([f"head {i}" for i in range(samples)]), asked)}
    sets |= {"held out": held_out, "reconstructed": reconstruct(vqvae, held_out)}
    some = np.random.default_rng(seed).permutation(len(seen.names))[:KNOWN]
    parts = {"training": take(seen, np.sort(some)), "held out": held_out}
    if not tune and len(others.names):
        parts["validation"] = others
    errors = {name: errors_of(vqvae, model, part, seed) for name, part in parts.items()}
    costs, rows = {}, {}
    for name, each in errors.items():
        people_here = parts[name].names
        costs |= dict(zip(people_here, each.mean(axis=1)))
        rows[name] = {"velocity error": mean(each.mean(axis=1), people_here)}
        for way, values in zip(("first", "second"), np.split(each, 2, axis=1)):
            rows[name][f"velocity error, {way} half"] = mean(values.mean(axis=1), people_here)
    half = np.isin(real.names, hold_out(real.names, 0.5, seed))
    halves = [take(real, half), take(real, ~half)]
    return Made(seen, sets, halves, real_slices, held_out_slices, vqvae.config.slab, costs, rows)


def take(heads, chosen):
    """Return some of the Heads, by a mask or indices."""
    where = np.arange(len(heads.names))[chosen]
    return Heads(heads.grey[where], heads.names[where], [heads.people[i] for i in where])


def heads_of(slices, split, levels, data, url):
    """Return the whole Heads among the slices of a split. Raises UserError if there is none."""
    whole, _ = whole_heads(*owners(slices.names), levels)
    if not whole:
        raise UserError(f"{split}: no head has one slice of each of {levels} levels")
    grey = dataset.to_grey(slices.images[np.array(list(whole.values()))][..., 0])
    folder, genuine = dataset.find_split(split, data, url), dataset.is_genuine(split, slices.digest)
    return Heads(grey, np.array(list(whole)), people.people_of_cases(list(whole), folder, genuine))


def sample(content, vqvae, model, number, seed, temperature):
    """Return the codes (N, S, h, w, depth) of so many heads, and the Persons: people like those learned from."""
    asked = traits.draw_people(content["flow"].get("people"), number, seed)
    progress = functools.partial(tqdm, desc="sampling heads", unit="batch", leave=False, disable=None)
    return flow.sample_heads(vqvae, model, number, seed, traits.traits_of(asked), temperature, progress), asked


def decoded(vqvae, codes):
    """Return the heads (N, L, H, W) uint8 of codes, as files hold them."""
    return np.concatenate([dataset.to_grey(vqvae.decode(codes[i : i + 1])[..., 0]) for i in range(len(codes))])


def reconstruct(vqvae, heads):
    """Return the reconstructions of Heads."""
    return heads._replace(grey=decoded(vqvae, vqvae.encode(images_of(heads.grey))))


def errors_of(vqvae, model, heads, seed):
    """Return how far a HeadFlow errs on Heads: its squared error at each of TIMES, (N, TIMES)."""
    told, errors = traits.traits_of(heads.people), []
    times = flow.time_of((np.arange(TIMES, dtype=np.float32) + 0.5) / TIMES)
    shape = TIMES, *model.grid, model.config.latent_dim
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)  # the same for every head
    measure = tf.function(functools.partial(flow.velocity_error, model))
    for i in tqdm(range(len(told)), desc="flow", unit="head", leave=False, disable=None):
        latents = vqvae.quantizer.lookup(vqvae.encode(images_of(heads.grey[i : i + 1])))
        same = (np.repeat(each, TIMES, axis=0) for each in (latents, told[i : i + 1]))
        errors.append(np.asarray(measure(*same, times, noise)))
    return np.array(errors)


def all_slices(heads):
    """Return the SliceSet of all slices of Heads."""
    number, levels = heads.grey.shape[:2]
    grey = heads.grey.reshape(-1, *heads.grey.shape[2:])
    return SliceSet(grey, np.repeat(heads.names, levels), np.tile(np.arange(levels), number))
