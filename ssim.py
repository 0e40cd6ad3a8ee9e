"""Measures how similar the slices of a split are to their reconstructions: structural similarity (SSIM) and PSNR.

    python ssim.py                    on the test split
    python ssim.py --split validate   on another one
    python ssim.py --preset head      by the models of whole heads

Writes ssim.csv (one image a line), ssim.json (the figures) and ssim_plot.png (the histogram). Two trivial answers get
the same figures for comparison: a black image, and the mean of the training images.
"""

import argparse
import csv
import json

from brains import cli, config


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description="Structural similarity of slices and their reconstructions.")
    parser.add_argument("--split", choices=config.SPLITS, default="test", help="the split (default: %(default)s)")
    cli.add_data_arguments(parser)
    cli.add_model_arguments(parser, presets=config.GENERATIVE)
    args = parser.parse_args(arguments)
    args.models = cli.choose_models(args)
    return args


if __name__ == "__main__":
    cli.parse_early(parse_arguments)

import numpy as np

import dataset
import modules
from brains import plots, weights
from brains.names import owners, whole_heads
from brains.statistics import bootstrap_interval

STATISTICS = {"mean": np.mean, "median": np.median, "std": np.std, "min": np.min, "max": np.max}


def summarise(ssim, psnr, cases):
    """Return the figures of one set of answers. The interval is over cases, whose slices are not independent."""
    by_case = {case: float(ssim[cases == case].mean()) for case in dict.fromkeys(cases.tolist())}
    low, high = bootstrap_interval(list(by_case.values()), list(by_case))
    mean_by_case = {"mean": float(np.mean(list(by_case.values()))), "low": low, "high": high, "cases": by_case}
    figures = {name: float(statistic(ssim)) for name, statistic in STATISTICS.items()}
    return figures | {"psnr": float(psnr.mean()), "mean_by_case": mean_by_case}


def table(figures):
    """Return the figures as lines of text."""
    lines = [f"{'':22}  mean  median    std    min    max   PSNR dB   mean by case [95 % interval]"]
    for name, figure in figures.items():
        by_case = figure["mean_by_case"]
        values = "  ".join(f"{figure[key]:5.3f}" for key in STATISTICS)
        interval = "" if by_case["low"] is None else f" [{by_case['low']:.3f}, {by_case['high']:.3f}]"  # of one case
        lines.append(f"{name.replace('_', ' '):22} {values}   {figure['psnr']:7.2f}   {by_case['mean']:.3f}{interval}")
    return "\n".join(lines)


def of_whole_heads(slices, levels):
    """Return the Slices of heads that have one of each of so many levels. Raises UserError if there is none."""
    whole, broken = whole_heads(*owners(slices.names), levels)
    if not whole:
        raise cli.UserError(f"{slices.names[0]}: not one slice of each of {levels} levels, nor of any other case")
    if broken:
        cli.note(f"note: not one slice of each of {levels} levels; passed by: {', '.join(broken)}")
    chosen = np.concatenate(list(whole.values()))
    return slices._replace(images=slices.images[chosen], names=[slices.names[i] for i in chosen])


def main(arguments=None):
    args = parse_arguments(arguments)
    cli.make_folder(args.out)
    if args.no_show:
        plots.hide()
    slices = dataset.load_split(args.split, args.data, args.url)
    vqvae = weights.load_vqvae(args.models)
    if weights.knows_heads(args.models):
        slices = of_whole_heads(slices, vqvae.config.levels)
        items = slices.images.reshape(-1, vqvae.config.levels, *slices.images.shape[1:])
    else:
        items = slices.images
    answers = {
        "reconstructions": vqvae.decode(vqvae.encode(items)).reshape(slices.images.shape),
        "mean_training_image": weights.load_mean_image(args.models),
        "black_image": np.float32(-0.5),
    }
    scores = {}
    for name, answer in answers.items():
        answer = np.clip(np.broadcast_to(answer, slices.images.shape), -0.5, 0.5)
        scores[name] = modules.ssim(slices.images, answer), modules.psnr(slices.images, answer)
    cases, _ = owners(slices.names)
    figures = {name: summarise(*score, cases) for name, score in scores.items()}
    number = len(set(cases))
    of_cases = f"{number} case{'s' if number > 1 else ''}"
    print(f"SSIM of {len(slices.names):,} {args.split} slices of {of_cases}, models {args.models}")
    print(table(figures))
    ssim, psnr = scores["reconstructions"]
    with cli.written(args.out / "ssim.csv") as part, open(part, "w", newline="") as file:
        rows = zip(slices.names, cases, ssim.tolist(), psnr.tolist())
        csv.writer(file).writerows([("name", "case", "ssim", "psnr_db"), *rows])
    with cli.written(args.out / "ssim.json") as part:
        about = {"split": args.split, "digest": slices.digest, "slices": len(slices.names), "models": str(args.models)}
        part.write_text(json.dumps(about | figures, indent=1) + "\n")
    print(args.out / "ssim.csv", args.out / "ssim.json", sep="\n")
    plots.save(plots.ssim_histogram(ssim, args.split), args.out / config.FIGURES["ssim"])
    plots.show()


if __name__ == "__main__":
    cli.run(main)
