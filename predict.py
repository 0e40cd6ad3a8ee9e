"""Shows what the trained models do: reconstructs images, generates new brains, and finds what is unusual.

    python predict.py reconstruct PATH [PATH ...]    images of any kind, encoded and decoded
    python predict.py reconstruct --random [NUM]     slices of the test split (4)
    python predict.py generate [NUM]                 new slices (4): codes drawn from the prior, then decoded
    python predict.py generate [NUM] --tissue        the same with the tissue of every pixel
    python predict.py generate [NUM] --preset head   whole heads, of an --age and --sex, as volumes
    python predict.py tissue PATH [PATH ...]         the tissue of slices that you have
    python predict.py restore PATH [PATH ...]        what is unusual in slices, or in whole volumes (.nii.gz)

Each result is written as a PNG of its own, and a figure shows them side by side. `generate --export DIR` writes a
labelled set in the layout of the course's own, to train on.
"""

import argparse
import functools
import itertools
import json
import secrets
from pathlib import Path

from brains import cli, config
from brains.cli import UsageError, UserError, note, short
from brains.config import FIGURES


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Reconstruct images, generate brain slices, tell tissue or what is unusual."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{reconstruct,generate,tissue,restore}")
    meaning = "Encode images and decode their codes."
    reconstruct = commands.add_parser("reconstruct", help=meaning, description=meaning)
    meaning = "Tell the tissue of each pixel: cerebrospinal fluid (CSF), grey and white matter."
    tissue = commands.add_parser("tissue", help=meaning, description=meaning)
    meaning = "Draw the surprising codes of slices anew, and map what that changes. Not a medical device."
    restore = commands.add_parser("restore", help="map what is unusual in slices", description=meaning)
    kinds = (
        "image files of any kind and size; volumes for models of heads",
        "image files of slices",
        "image files of slices, or volumes of heads",
    )
    for command, images in zip((reconstruct, tissue, restore), kinds):
        command.add_argument("paths", nargs="*", type=Path, metavar="PATH", help=images)
        meaning = "take NUM random slices of the test split (4)"
        command.add_argument("--random", nargs="?", type=cli.positive, const=4, metavar="NUM", help=meaning)
        cli.add_data_arguments(command)
    meaning = "Draw new brain slices from the prior."
    generate = commands.add_parser("generate", help=meaning, description=meaning)
    generate.add_argument("num", nargs="?", type=cli.positive, default=4, metavar="NUM", help="how many (%(default)s)")
    cli.add_sampling_arguments(generate, "values below 1 favour likely codes, above 1 rare ones")
    meaning = "levels to cycle through, 0 the lowest; for models that know levels, such as sharp (default: all, evenly)"
    generate.add_argument("--level", nargs="+", type=cli.natural, metavar="K", help=meaning)
    meaning = "ages of the people to cycle through, in years; for models of heads (default: as in what they learned)"
    generate.add_argument("--age", nargs="+", type=cli.age, metavar="YEARS", help=meaning)
    meaning = "their sexes to cycle through, F or M"
    generate.add_argument("--sex", nargs="+", choices=("F", "M"), help=meaning)
    generate.add_argument("--slices", action="store_true", help="also write the slices of heads as PNGs")
    generate.add_argument("--tissue", action="store_true", help="also tell the tissue of each pixel")
    meaning = "write slices and masks to a new folder in the layout of the course's set: NUM or more, in whole cases "
    meaning += "of all levels (each slice is drawn by itself, so that a case is no head)"
    generate.add_argument("--export", type=Path, metavar="DIR", help=meaning)
    meaning = "level of all the images, 0 the lowest (default: from slice_K in the name, else read from the image)"
    restore.add_argument("--level", type=cli.natural, metavar="K", help=meaning)
    for command in (reconstruct, restore):
        cli.add_orientation_argument(command)
    for command in (reconstruct, generate, tissue, restore):
        command.add_argument("--seed", type=cli.seed, metavar="N", help="of all draws (default: a fresh one, printed)")
    for command in (reconstruct, generate):
        cli.add_model_arguments(command, presets=config.GENERATIVE)
    cli.add_model_arguments(restore)
    cli.add_model_arguments(tissue, presets=(), default="tissue")
    args = parser.parse_args(arguments)
    args.models = cli.choose_models(args)
    if args.command != "generate" and bool(args.paths) == bool(args.random):
        parser.error(f"{args.command}: name image files, or --random: one of the two")
    if args.command == "generate" and args.export and args.level:
        parser.error("--level does not go with --export, which writes all levels")
    return args


if __name__ == "__main__":
    cli.parse_early(parse_arguments)

import numpy as np
from tqdm import tqdm

import dataset
from brains import export, headscripts, plots, sampling, volumes, weights
from brains.findings import find_unusual
from brains.names import named_level
from brains.scan import Scan
from brains.usual import SCALE

OFF_SCALE = 1.5  # times the bits that held-out slices cost at most
MAP = "bits: a pixel has n bits if one of 2^n pixels of held-out people is as unusual"


def reconstruct(names, images, models, out):
    """Encode and decode images; writes each reconstruction and returns the figure."""
    vqvae = weights.load_vqvae(models)
    codes = vqvae.encode(images)
    reconstructions = vqvae.decode(codes)
    for name, reconstruction in zip(names, reconstructions):
        dataset.save_image(out / f"{name}_reconstruction.png", reconstruction)
        print(out / f"{name}_reconstruction.png")
    panels = {"original": plots.grey_pictures(images)}
    panels["codes"] = plots.code_pictures(codes, vqvae.config.num_embeddings)
    panels["reconstruction"] = plots.grey_pictures(reconstructions)
    return plots.mosaic(panels)


def random_slices(number, seed, data, url):
    """Return the file stems and images of `number` different slices of the test split, drawn by the seed."""
    slices = dataset.load_split("test", data, url)
    if number > len(slices.names):
        raise UserError(f"--random {number}: the test split has {len(slices.names)} slices")
    chosen = np.random.default_rng(seed).choice(len(slices.names), number, replace=False)
    return [slices.names[i].removesuffix(".nii.png") for i in chosen], slices.images[chosen]


def distinct_stems(paths):
    """Return the file stems of `paths`, made distinct."""
    names = []
    for path in paths:
        double = next((suffix for suffix in (".nii.png", ".nii.gz") if path.name.endswith(suffix)), path.suffix)
        stem = path.name.removesuffix(double)
        candidates = [stem, *(f"{stem}_{i}" for i in range(2, len(paths) + 1))]
        names.append(next(name for name in candidates if name not in names))
    return names


def named_images(paths):
    """Return the file stems, made distinct, and the images of `paths`."""
    return distinct_stems(paths), np.stack([dataset.load_image(path) for path in paths])


def slices_to_restore(args):
    """Return the names and images of the slices that the arguments name, their levels, and the Scans of volumes.

    The levels are a list of (level or None, where that is from). A volume gives slices NAME_slice_K of all levels. The
    Scans are {first slice: (name, Scan)}.
    """
    names, images, levels, scans = [], [], [], {}
    if args.random:
        names, images = random_slices(args.random, args.seed, args.data, args.url)
    for path, stem in zip(args.paths, distinct_stems(args.paths)):
        if volumes.is_volume(path):
            if args.level is not None:
                raise UsageError(f"--level does not go with a volume, which has all levels: {path}")
            scans[len(names)] = stem, (scan := Scan(path, args.orientation))
            names += [f"{stem}_slice_{level}" for level in range(len(scan.slices))]
            images += [dataset.prepare(np.float32(grey)) for grey in scan.slices]
            levels += [(level, "volume") for level in range(len(scan.slices))]
        else:
            names.append(stem)
            images.append(dataset.load_image(path))
            levels.append(level_told(stem, args.level))
    levels = levels or [level_told(name, args.level) for name in names]
    unnamed = [name for name, (level, _) in zip(names, levels) if level is None]
    if unnamed:
        several = f" and {len(unnamed) - 1} more" if unnamed[1:] else ""
        note(f"note: {unnamed[0]}{several}: no level in the name (slice_K), so it is read from the image; see --level")
    return names, np.stack(images), levels, scans


def level_told(name, level):
    """Return the level of a slice and where it is from: `level`, or that in its name, else None."""
    if level is not None:
        return level, "--level"
    named = named_level(name)
    return named, "image" if named is None else "name"


def tell_tissue(names, images, models, out):
    """Tell the tissue of each pixel of images; writes the masks and returns the figure."""
    labels = weights.load_segmenter(models).label(images)
    for name, mask in zip(names, labels):
        dataset.save_mask(out / f"{name}_tissue.png", mask)
        print(out / f"{name}_tissue.png")
    return plots.mosaic({"slice": plots.grey_pictures(images), "tissue": plots.tissue_pictures(images, labels)})


def restore(args):
    """Find what is unusual in slices and volumes; returns the figure.

    Writes restore.json, a map in the space of each volume, and a restoration and a map of every other slice.
    """
    names, images, levels, scans = slices_to_restore(args)
    found, top, out = find_unusual(args.models, images, [level for level, _ in levels], args.seed), SCALE[-1], args.out
    singles = set(range(len(names)))
    for first, (name, scan) in scans.items():
        own = range(first, first + len(scan.slices))
        singles -= set(own)
        scan.save(out / f"{name}_map.nii.gz", found.maps[own], top)
        print(out / f"{name}_map.nii.gz")
    for i in sorted(singles):
        dataset.save_image(out / f"{names[i]}_restored.png", found.restored[i])
        dataset.save_image(out / f"{names[i]}_map.png", found.maps[i][..., None] / top - 0.5)
        with cli.written(out / f"{names[i]}_map.npy") as part:
            np.save(part, found.maps[i])
        print(out / f"{names[i]}_map.npy")
    rows = []
    for i, (name, (_, source)) in enumerate(zip(names, levels)):
        figures = {
            "bits": found.bits,
            "percentile": found.percentiles,
            "excess": found.excess,
            "flagged": found.flagged,
        }
        figures = {key: round(float(values[i]), 3) for key, values in figures.items()}
        rows.append({"slice": name, "level": int(found.levels[i]), "level from": source} | figures)
        print(f"{name}: level {found.levels[i]} (from the {source}), {found.bits[i]:,.0f} bits, {rank(figures)}")
    about = {"models": str(args.models), "seed": args.seed, "map": MAP, "map in PNG": f"255 is {top:g} bits or more"}
    with cli.written(out / "restore.json") as part:
        part.write_text(json.dumps(about | {"slices": rows}, indent=1) + "\n")
    print(out / "restore.json")
    panels = {"slice": plots.grey_pictures(images)}
    panels[f"surprise, 0 to {top:g} bits"] = plots.heat_pictures(found.surprise, top)
    panels["restoration"] = plots.grey_pictures(found.restored)
    panels[f"map, 0 to {top:g} bits"] = plots.map_pictures(images, found.maps, top)
    return plots.mosaic(panels)


def rank(figures):
    """Say how the bits of a slice compare with those of held-out slices."""
    if figures["excess"] > OFF_SCALE:
        return f"off the scale: {figures['excess']:.1f} times the highest of held-out slices"
    share = "any" if figures["percentile"] == 100 else f"{int(figures['percentile'])} % of the"
    return f"more than {share} held-out slices of about that level"


def generate(args):
    """Draw grids of codes and decode them; writes slices and codes, or a labelled set, and returns the figure."""
    for flag in ("age", "sex", "slices"):
        if getattr(args, flag):
            raise UsageError(f"--{flag}: the models in {short(args.models)} are of slices; try --preset head")
    vqvae, prior = weights.load_models(args.models)
    segmenter = weights.load_segmenter(config.MODELS / "tissue") if args.tissue or args.export else None
    if args.export:
        if prior.levels is None:
            raise UsageError(f"--export: the models in {short(args.models)} know no levels; try --preset sharp")
        export.check_target(args.export)
        args.num = max(2 * prior.levels, args.num + -args.num % prior.levels)  # whole cases, one to hold out
        args.level = range(prior.levels)
    levels = choose_levels(args.level, args.num, prior, args.models)
    temperature = args.temperature or weights.load_temperature(args.models)
    critic, candidates = weights.load_critic(args.models, args.candidates)
    quiet = None if args.num * candidates > 10 * plots.SHOWN else True  # None: a bar if there is a terminal
    progress = functools.partial(tqdm, unit="batch", disable=quiet, leave=False)
    codes = sampling.sample_best(vqvae, prior, critic, candidates, args.num, args.seed, temperature, levels, progress)
    with cli.written(args.out / "codes.npy") as part:
        np.save(part, codes)
    print(args.out / "codes.npy")

    def decoded(first):  # in portions, to spare memory
        images = vqvae.decode(codes[first : first + plots.SHOWN])
        return images, segmenter.label(images) if segmenter else None

    images, labels = shown = decoded(0)
    portions = itertools.chain([shown], map(decoded, progress(range(plots.SHOWN, args.num, plots.SHOWN))))
    if args.export:
        export.write_set(args.export, portions, prior.levels)
        print(f"{args.export}: {args.num:,} slices of {args.num // prior.levels:,} cases, and their masks")
    else:
        save_generated(args.out, args.num, portions)
    panels = {"codes": plots.code_pictures(codes, vqvae.config.num_embeddings), "decoded": plots.grey_pictures(images)}
    if segmenter:
        panels["tissue"] = plots.tissue_pictures(images, labels)
    return plots.mosaic(panels, [f"level {level}" for level in levels[: plots.SHOWN]] if prior.levels else [])


def save_generated(out, number, portions):
    """Write portions (images, labels) of so many slices as files of their own; labels may be None."""
    names = iter([f"generated_{i:03}" for i in range(number)])
    for images, labels in portions:
        for i, (image, name) in enumerate(zip(images, names)):
            dataset.save_image(out / f"{name}.png", image)
            if labels is not None:
                dataset.save_mask(out / f"{name}_tissue.png", labels[i])
    print(f"{out / 'generated_000.png'}" + (f" to generated_{number - 1:03}.png" if number > 1 else ""))


def choose_levels(asked, num, prior, models):
    """Return the levels (num,) of the slices to generate: those `asked` for, or all if that is None."""
    if asked is None:
        return sampling.spread_levels(prior, num)
    if prior.levels is None:
        raise UsageError(f"--level: the models in {short(models)} know no levels; leave it out, or try --preset sharp")
    if max(asked) >= prior.levels:
        raise UsageError(f"--level {max(asked)}: the models in {short(models)} know levels 0 to {prior.levels - 1}")
    return np.resize(asked, num)


def main(arguments=None):
    args = parse_arguments(arguments)
    cli.make_folder(args.out)
    if args.no_show:
        plots.hide()
    if args.seed is None and (args.command == "restore" or not getattr(args, "paths", None)):
        args.seed = secrets.randbelow(2**32)
        print(f"seed {args.seed}")
    of_heads = args.command in ("reconstruct", "generate") and weights.knows_heads(args.models)
    if args.command == "generate":
        figure = headscripts.generate(args) if of_heads else generate(args)
    elif of_heads:
        figure = headscripts.reconstruct(args, distinct_stems(args.paths))
    elif args.command == "restore":
        figure = restore(args)
    else:
        slices = named_images(args.paths) if args.paths else random_slices(args.random, args.seed, args.data, args.url)
        if args.command == "tissue" and (coloured := [path for path in args.paths if dataset.is_coloured(path)]):
            raise UserError(f"{coloured[0]}: a colour image; name grey slices of heads")
        figure = {"reconstruct": reconstruct, "tissue": tell_tissue}[args.command](*slices, args.models, args.out)
    plots.save(figure, args.out / FIGURES[args.command])
    plots.show()


if __name__ == "__main__":
    cli.run(main)
