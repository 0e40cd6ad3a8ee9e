"""Shows what the trained models do: reconstructs images, generates new brains.

    python predict.py reconstruct PATH [PATH ...]    images of any kind, through the VQ-VAE and back
    python predict.py reconstruct --random [NUM]     slices of the test split (4)
    python predict.py generate [NUM]                 new slices (4): codes drawn from the PixelCNN, then decoded

Each result is written as a PNG of its own, and a figure shows them beside their codes.
"""

import argparse
import functools
import secrets
from pathlib import Path

import numpy as np

import dataset
from dataset import UsageError, UserError, positive

SHOWN = 64  # results in a figure at most; the files have all
PANEL, GAP = 128, 8  # pixels of a panel and between panels
INCHES = 1.5  # of a panel


def parse_arguments():
    parser = argparse.ArgumentParser(description="Reconstruct images with the VQ-VAE, or generate new brain slices.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{reconstruct,generate}")

    reconstruct = commands.add_parser(
        "reconstruct", help="encode and decode images", description="Encode images and decode their codes."
    )
    reconstruct.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="image files of any kind and size")
    reconstruct.add_argument(
        "--random",
        nargs="?",
        type=positive,
        const=4,
        metavar="NUM",
        help="take NUM (4) random slices of the test split",
    )
    dataset.add_data_arguments(reconstruct)

    generate = commands.add_parser(
        "generate", help="draw new brain slices", description="Draw new brain slices from the prior."
    )
    generate.add_argument(
        "num", nargs="?", type=positive, default=4, metavar="NUM", help="how many (default: %(default)s)"
    )
    generate.add_argument(
        "--temperature",
        type=dataset.temperature,
        metavar="T",
        help="below 1 the likely becomes likelier, above 1 the rare (default: that found best for the models)",
    )
    dataset.add_candidates_argument(generate)
    generate.add_argument(
        "--level",
        nargs="+",
        type=level,
        metavar="K",
        help="slice levels, 0 the lowest, through which the slices cycle; for models that know levels, as the sharp "
        "ones do (default: spread evenly over all)",
    )

    for command in (reconstruct, generate):
        command.add_argument(
            "--seed", type=dataset.seed, metavar="N", help="of what is random (default: a fresh one, printed)"
        )
        dataset.add_model_arguments(command)
    args = parser.parse_args()
    args.models = dataset.choose_models(args)
    if args.command == "reconstruct" and bool(args.paths) == bool(args.random):
        reconstruct.error("name image files, or --random: one of the two")
    return args


def level(text):
    """Argument type: a whole number of at least 0."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def reconstruct(args):
    """Encode and decode the images that were named; writes each reconstruction, returns what `draw` takes."""
    names, images = random_slices(args) if args.random else named_images(args.paths)
    import modules

    vqvae = modules.load_vqvae(args.models)
    codes = vqvae.encode(images)
    reconstructions = vqvae.decode(codes)
    for name, reconstruction in zip(names, reconstructions):
        path = args.out / f"{name}_reconstruction.png"
        dataset.save_image(path, reconstruction)
        print(path)
    pictures = code_pictures(codes, vqvae.config["num_embeddings"])
    return {"original": grey(images), "codes": pictures, "reconstruction": grey(reconstructions)}, []


def random_slices(args):
    """File stems and images of args.random slices of the test split, drawn without repetition."""
    slices = dataset.load_split("test", args.data, args.url)
    if args.random > len(slices.names):
        raise UserError(f"--random {args.random}: the test split has {len(slices.names)} slices")
    chosen = np.random.default_rng(choose_seed(args)).choice(len(slices.names), args.random, replace=False)
    return [Path(slices.names[i]).name.removesuffix(".nii.png") for i in chosen], slices.images[chosen]


def named_images(paths):
    """File stems, made distinct, and images of `paths`."""
    names = []
    for path in paths:
        stem = path.name.removesuffix(".nii.png") if path.name.endswith(".nii.png") else path.stem
        candidates = [stem, *(f"{stem}_{i}" for i in range(2, len(paths) + 1))]
        names.append(next(name for name in candidates if name not in names))
    return names, np.stack([dataset.load_image(path) for path in paths])


def generate(args):
    """Draw args.num grids of codes and decode them; writes slices and codes, returns what `draw` takes."""
    from tqdm import tqdm

    import modules

    vqvae, pixelcnn = modules.load_models(args.models)
    levels = choose_levels(args, pixelcnn)
    temperature = args.temperature or modules.load_temperature(args.models)
    critic, candidates = modules.load_critic(args.models, args.candidates)
    quiet = None if args.num * candidates > 10 * SHOWN else True  # None: a bar where there is a terminal
    progress = functools.partial(tqdm, unit="batch", disable=quiet, leave=False)
    seed = choose_seed(args)
    codes = modules.sample_best(vqvae, pixelcnn, critic, candidates, args.num, seed, temperature, levels, progress)
    with dataset.written(args.out / "codes.npy") as part:
        np.save(part, codes)
    for first in progress(range(0, args.num, SHOWN)):  # some at a time, so that their number is no matter of memory
        for number, image in enumerate(vqvae.decode(codes[first : first + SHOWN]), start=first):
            dataset.save_image(args.out / f"generated_{number:03}.png", image)
    print(f"{args.out / 'generated_000.png'}" + (f" to generated_{args.num - 1:03}.png" if args.num > 1 else ""))
    print(args.out / "codes.npy")
    shown = codes[:SHOWN]
    labels = [f"level {level}" for level in levels[:SHOWN]] if pixelcnn.levels else []
    pictures = code_pictures(shown, vqvae.config["num_embeddings"])
    return {"codes": pictures, "decoded": grey(vqvae.decode(shown))}, labels


def choose_levels(args, pixelcnn):
    """Levels (args.num,) of the slices to generate: those asked for, or where they were left out, all."""
    import modules

    if args.level is None:
        return modules.spread_levels(pixelcnn, args.num)
    if pixelcnn.levels is None:
        raise UsageError(f"--level: the models in {args.models} know no levels; leave it out, or try --preset sharp")
    if max(args.level) >= pixelcnn.levels:
        raise UsageError(
            f"--level {max(args.level)}: the models in {args.models} know the levels 0 to {pixelcnn.levels - 1}"
        )
    return np.resize(args.level, args.num)


def choose_seed(args):
    """args.seed, or where none was given a fresh one, which is printed."""
    if args.seed is None:
        args.seed = secrets.randbelow(2**32)
        print(f"seed {args.seed}")
    return args.seed


# --- the figure -------------------------------------------------------------------------------------------------------


def grey(images):
    """RGB pictures (N, H, W, 3) uint8 of images (N, H, W, 1) in [-0.5, 0.5]; at most SHOWN of them."""
    return np.repeat(dataset.to_levels(images[:SHOWN]), 3, axis=-1)


def code_pictures(codes, num_embeddings):
    """RGB pictures (N, PANEL, PANEL, 3) uint8 of grids of code indices (N, h, w), a colour for each code."""
    import matplotlib

    colours = matplotlib.colormaps["viridis"](codes[:SHOWN] / max(1, num_embeddings - 1), bytes=True)[..., :3]
    rows, columns = (np.arange(PANEL) * side // PANEL for side in codes.shape[1:])
    return colours[:, rows][:, :, columns]


def draw(plt, panels, labels):
    """One figure of {title: pictures (N, PANEL, PANEL, 3)}: an item's pictures side by side, items in rows.

    The labels, if any, are written into the last picture of each item.
    """
    items = np.stack(list(panels.values()), axis=1)
    number, wide = items.shape[:2]
    across = 1 if number <= 4 else 2 if number <= 16 else 4
    down = -(-number // across)
    step = PANEL + GAP
    mosaic = np.full((down * step - GAP, across * wide * step - GAP, 3), 255, np.uint8)
    for item, panel in np.ndindex(number, wide):
        top, left = item // across * step, (item % across * wide + panel) * step
        mosaic[top : top + PANEL, left : left + PANEL] = items[item, panel]
    figure = plt.figure(figsize=(across * wide * INCHES, down * INCHES + 0.3))
    axes = figure.add_axes((0, 0, 1, down * INCHES / (down * INCHES + 0.3)))
    axes.imshow(mosaic)
    axes.axis("off")
    for item, label in enumerate(labels):
        top, left = item // across * step, (item % across * wide + wide - 1) * step
        axes.text(left + GAP, top + GAP, label, ha="left", va="top", color="white", fontsize=7)
    for column, title in enumerate(list(panels) * min(across, number)):
        axes.text(column * step + PANEL / 2, -GAP, title, ha="center", va="bottom")
    return figure


def main():
    args = parse_arguments()
    dataset.make_folder(args.out)
    panels, labels = {"reconstruct": reconstruct, "generate": generate}[args.command](args)
    plt = dataset.pyplot(args.no_show)
    dataset.save_figure(draw(plt, panels, labels), args.out / dataset.FIGURES[args.command])
    dataset.show_figures(plt)


if __name__ == "__main__":
    dataset.run(main)
