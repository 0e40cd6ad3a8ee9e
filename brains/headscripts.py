"""What predict.py does with models of whole heads: reconstructs volumes, and generates heads of people."""

import functools

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import dataset
from brains import cli, config, export, flow, headfiles, traits, weights
from brains.cli import UsageError, UserError, short
from brains.names import owners, whole_heads
from brains.scan import Scan
from brains.volumes import is_volume

INCHES = 2.4  # of a head's picture
SHOWN = 8  # heads in the figure at most


def mosaic(rows, labels):
    """Draw {title: pictures (P, Q) uint8 of heads}, those of a head below each other, under its label."""
    number = len(labels)
    figure, axes = plt.subplots(
        len(rows), number, figsize=(INCHES * number, 1.35 * INCHES * len(rows)), squeeze=False, layout="constrained"
    )
    for (title, pictures), line in zip(rows.items(), axes):
        for picture, label, axis in zip(pictures, labels, line):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.axis("off")
            axis.set_title(f"{label}\n{title}" if title else label, fontsize=8)
    return figure


def heads_of_split(number, seed, data, url, levels):
    """Return the names and `number` heads (N, L, 128, 128, 1) of different cases of the test split, drawn by a seed."""
    slices = dataset.load_split("test", data, url)
    whole, _ = whole_heads(*owners(slices.names), levels)
    if number > len(whole):
        raise UserError(f"--random {number}: the test split has {len(whole)} whole heads")
    names = [[*whole][i] for i in np.random.default_rng(seed).choice(len(whole), number, replace=False)]
    return names, slices.images[np.array([whole[name] for name in names])]


def reconstruct(args, stems):
    """Encode and decode heads, of volumes or of the test split; writes each as a volume and returns the figure.

    That of a volume is in its own space and grey scale.
    """
    vqvae = weights.load_vqvae(args.models)
    levels = vqvae.config.levels
    if args.random:
        names, stacks = heads_of_split(args.random, args.seed, args.data, args.url, levels)
    else:
        slices = [path for path in args.paths if not is_volume(path)]
        if slices:
            raise UsageError(f"{slices[0]}: the models in {short(args.models)} take volumes of whole heads (.nii.gz)")
        scans, names = [Scan(path, args.orientation) for path in args.paths], stems
        stacks = np.array([[dataset.prepare(np.float32(grey)) for grey in scan.slices] for scan in scans])
    if stacks.shape[1] != levels:
        raise UserError(f"heads of {stacks.shape[1]} slices; the models in {short(args.models)} know {levels}")
    decoded = vqvae.decode(vqvae.encode(stacks))
    for i, name in enumerate(names):
        target = args.out / f"{name}_reconstruction.nii.gz"
        if args.random:
            headfiles.save_volume(target, dataset.to_grey(decoded[i][..., 0]))
        else:
            low, high = scans[i].ranges.T[..., None, None]
            scans[i].save(target, low + (decoded[i][..., 0] + 0.5) * (high - low))
        print(target)
    pictures = [[headfiles.picture(dataset.to_grey(each[..., 0])) for each in heads] for heads in (stacks, decoded)]
    originals, reconstructions = pictures
    return mosaic({"original": originals[:SHOWN], "reconstruction": reconstructions[:SHOWN]}, names[:SHOWN])


def choose_people(args, num):
    """Return `num` Persons of the ages and sexes that the arguments ask for; UsageError if the models know none."""
    counts = weights.load_config(args.models)["flow"].get("people")
    asked = "--age" if args.age else "--sex"
    if counts is None and (args.age or args.sex):
        raise UsageError(f"{asked}: the models in {short(args.models)} have learned nothing of age and sex")
    for age in args.age or ():
        first, last = counts["ages"]
        if not first <= age <= last:
            raise UsageError(f"--age {age:g}: the models in {short(args.models)} have seen people of {first} to {last}")
    return traits.draw_people(counts, num, args.seed, args.age, args.sex)


def label_of(person):
    """Return a person's age and sex in words."""
    age = None if person.age is None else f"{person.age:g} years"
    return ", ".join(filter(None, (age, person.sex)))


def generate(args):
    """Draw heads of people and write them as volumes with pages to look at them; returns the figure."""
    vqvae, prior = weights.load_models(args.models)
    levels = vqvae.config.levels
    if args.candidates:
        raise UsageError(f"--candidates: the models in {short(args.models)} have no critic")
    if args.level and max(args.level) >= levels:
        raise UsageError(f"--level {max(args.level)}: the models in {short(args.models)} know levels 0 to {levels - 1}")
    if args.export:
        export.check_target(args.export)
        args.num = max(2, args.num)  # one to hold out
    segmenter = weights.load_segmenter(config.MODELS / "tissue") if args.tissue or args.export else None
    people = choose_people(args, args.num)
    temperature = args.temperature or weights.load_temperature(args.models)
    progress = functools.partial(tqdm, unit="batch", disable=None, leave=False)
    told = traits.traits_of(people)
    codes = flow.sample_heads(vqvae, prior, args.num, args.seed, told, temperature, progress)
    with cli.written(args.out / "codes.npy") as part:
        np.save(part, codes)
    print(args.out / "codes.npy")
    pictures, labels = [], [label_of(person) for person in people]

    def decoded(first):  # one head at a time, to spare memory
        images = vqvae.decode(codes[first : first + 1])[0]
        pictures.append(headfiles.picture(dataset.to_grey(images[..., 0])))
        return images, segmenter.label(images) if segmenter else None

    portions = map(decoded, range(args.num))
    if args.export:
        export.write_set(args.export, portions, levels)
        print(f"{args.export}: {args.num * levels:,} slices of {args.num:,} heads, and their masks")
    elif args.level:
        save_slices(args, portions)
    else:
        save_heads(args, portions, labels)
    return mosaic({"": pictures[:SHOWN]}, labels[:SHOWN])


def save_heads(args, portions, labels):
    """Write heads (images, tissue) as volumes with a page each; with --slices their slices too."""
    for i, (images, tissue) in enumerate(portions):
        name, grey = f"head_{i:03}", dataset.to_grey(images[..., 0])
        headfiles.save_volume(args.out / f"{name}.nii.gz", grey)
        headfiles.save_page(args.out / f"{name}.html", grey, f"{name}: {labels[i]}".rstrip(": "))
        if tissue is not None:
            headfiles.save_volume(args.out / f"{name}_tissue.nii.gz", tissue)
        for level in range(len(images) if args.slices else 0):
            dataset.save_image(args.out / f"{name}_slice_{level}.png", images[level])
        print(f"{args.out / name}.nii.gz" + (f": {labels[i]}" if labels[i] else ""))


def save_slices(args, portions):
    """Write one slice of each head, of the levels that are asked for, which are cycled through."""
    for i, (images, tissue) in enumerate(portions):
        level = args.level[i % len(args.level)]
        dataset.save_image(args.out / f"generated_{i:03}.png", images[level])
        if tissue is not None:
            dataset.save_mask(args.out / f"generated_{i:03}_tissue.png", tissue[level])
        print(args.out / f"generated_{i:03}.png")
