"""Shows what the trained models do: reconstructs images and generates new brains.

    python predict.py reconstruct PATH [PATH ...]    images of any kind, encoded and decoded
    python predict.py reconstruct --random [NUM]     slices of the test split (4)
    python predict.py generate [NUM]                 new slices (4): codes drawn from the prior, then decoded

Each result is written as a PNG of its own, and a figure shows the results beside their codes.
"""

import argparse
import functools
import secrets
from pathlib import Path

from brains import cli
from brains.cli import UsageError, UserError, short
from brains.config import FIGURES


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description="Reconstruct images with the VQ-VAE, or generate new brain slices.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{reconstruct,generate}")
    meaning = "Encode images and decode their codes."
    reconstruct = commands.add_parser("reconstruct", help=meaning, description=meaning)
    reconstruct.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="image files of any kind and size")
    meaning = "take NUM random slices of the test split (4)"
    reconstruct.add_argument("--random", nargs="?", type=cli.positive, const=4, metavar="NUM", help=meaning)
    cli.add_data_arguments(reconstruct)
    meaning = "Draw new brain slices from the prior."
    generate = commands.add_parser("generate", help=meaning, description=meaning)
    generate.add_argument("num", nargs="?", type=cli.positive, default=4, metavar="NUM", help="how many (%(default)s)")
    cli.add_sampling_arguments(generate, "values below 1 favour likely codes, above 1 rare ones")
    meaning = "levels to cycle through, 0 the lowest; for models that know levels, such as sharp (default: all, evenly)"
    generate.add_argument("--level", nargs="+", type=cli.natural, metavar="K", help=meaning)
    for command in (reconstruct, generate):
        command.add_argument("--seed", type=cli.seed, metavar="N", help="of all draws (default: a fresh one, printed)")
        cli.add_model_arguments(command)
    args = parser.parse_args(arguments)
    args.models = cli.choose_models(args)
    if args.command == "reconstruct" and bool(args.paths) == bool(args.random):
        reconstruct.error("name image files, or --random: one of the two")
    return args


if __name__ == "__main__":
    cli.parse_early(parse_arguments)

import numpy as np
from tqdm import tqdm

import dataset
from brains import plots, sampling, weights


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


def named_images(paths):
    """Return the file stems, made distinct, and the images of `paths`."""
    names = []
    for path in paths:
        stem = path.name.removesuffix(".nii.png") if path.name.endswith(".nii.png") else path.stem
        candidates = [stem, *(f"{stem}_{i}" for i in range(2, len(paths) + 1))]
        names.append(next(name for name in candidates if name not in names))
    return names, np.stack([dataset.load_image(path) for path in paths])


def generate(args):
    """Draw grids of codes and decode them; writes slices and codes and returns the figure."""
    vqvae, prior = weights.load_models(args.models)
    levels = choose_levels(args.level, args.num, prior, args.models)
    temperature = args.temperature or weights.load_temperature(args.models)
    critic, candidates = weights.load_critic(args.models, args.candidates)
    quiet = None if args.num * candidates > 10 * plots.SHOWN else True  # None: a bar if there is a terminal
    progress = functools.partial(tqdm, unit="batch", disable=quiet, leave=False)
    codes = sampling.sample_best(vqvae, prior, critic, candidates, args.num, args.seed, temperature, levels, progress)
    with cli.written(args.out / "codes.npy") as part:
        np.save(part, codes)
    for first in progress(range(0, args.num, plots.SHOWN)):  # decoded in portions, to spare memory
        for number, image in enumerate(vqvae.decode(codes[first : first + plots.SHOWN]), start=first):
            dataset.save_image(args.out / f"generated_{number:03}.png", image)
    print(f"{args.out / 'generated_000.png'}" + (f" to generated_{args.num - 1:03}.png" if args.num > 1 else ""))
    print(args.out / "codes.npy")
    shown = codes[: plots.SHOWN]
    panels = {"codes": plots.code_pictures(shown, vqvae.config.num_embeddings)}
    panels["decoded"] = plots.grey_pictures(vqvae.decode(shown))
    return plots.mosaic(panels, [f"level {level}" for level in levels[: plots.SHOWN]] if prior.levels else [])


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
    if args.seed is None and not getattr(args, "paths", None):
        args.seed = secrets.randbelow(2**32)
        print(f"seed {args.seed}")
    if args.command == "generate":
        figure = generate(args)
    else:
        slices = named_images(args.paths) if args.paths else random_slices(args.random, args.seed, args.data, args.url)
        figure = reconstruct(*slices, args.models, args.out)
    plots.save(figure, args.out / FIGURES[args.command])
    plots.show()


if __name__ == "__main__":
    cli.run(main)
