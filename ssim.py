"""Measures how like their reconstructions the slices of a split are: structural similarity (SSIM) and PSNR.

    python ssim.py                    on the test split
    python ssim.py --split validate   on another one

Writes ssim.csv (an image a line), ssim.json (the figures) and ssim_plot.png (the histogram). For orientation it gives
the same figures for two trivial answers: a black image, and the mean of the training images.
"""

import argparse
import csv
import json

import numpy as np

import dataset
from dataset import written


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Structural similarity of the slices of a split to their reconstructions."
    )
    parser.add_argument("--split", choices=dataset.SPLITS, default="test", help="the split (default: %(default)s)")
    dataset.add_data_arguments(parser)
    dataset.add_model_arguments(parser)
    args = parser.parse_args()
    args.models = dataset.choose_models(args)
    return args


def compare(images, answers):
    """SSIM (N,) and PSNR (N,) in dB of images (N, 128, 128, 1) in [-0.5, 0.5] and answers, clipped to that range."""
    import modules

    answers = np.clip(np.broadcast_to(answers, images.shape), -0.5, 0.5)
    return modules.ssim(images, answers), modules.psnr(images, answers)


def summarise(ssim, psnr, cases):
    """The figures of one set of answers; the interval is over cases, whose slices are not independent."""
    by_case = {case: float(ssim[cases == case].mean()) for case in dict.fromkeys(cases.tolist())}
    low, high = dataset.bootstrap_interval(list(by_case.values()), list(by_case))
    return {
        "mean": float(ssim.mean()),
        "median": float(np.median(ssim)),
        "std": float(ssim.std()),
        "min": float(ssim.min()),
        "max": float(ssim.max()),
        "psnr": float(psnr.mean()),
        "mean_by_case": {"mean": float(np.mean(list(by_case.values()))), "low": low, "high": high, "cases": by_case},
    }


def plot(plt, ssim, split):
    """Histogram of the SSIM of each image, mean and median marked."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    axes.hist(ssim, bins=40, color="lightsteelblue", edgecolor="white")
    axes.axvline(ssim.mean(), color="firebrick", label=f"mean {ssim.mean():.3f}")
    axes.axvline(np.median(ssim), color="firebrick", linestyle="--", label=f"median {np.median(ssim):.3f}")
    axes.set(title=f"SSIM of {len(ssim):,} {split} slices to their reconstructions", xlabel="SSIM", ylabel="slices")
    axes.legend()
    return figure


def table(figures):
    """The figures as lines of text."""
    lines = [f"{'':22}  mean  median    std    min    max   PSNR dB   mean by case [95 % interval]"]
    for name, figure in figures.items():
        by_case = figure["mean_by_case"]
        values = "  ".join(f"{figure[key]:5.3f}" for key in ("mean", "median", "std", "min", "max"))
        interval = "" if by_case["low"] is None else f" [{by_case['low']:.3f}, {by_case['high']:.3f}]"  # of one case
        lines.append(f"{name.replace('_', ' '):22} {values}   {figure['psnr']:7.2f}   {by_case['mean']:.3f}{interval}")
    return "\n".join(lines)


def main():
    args = parse_arguments()
    dataset.make_folder(args.out)
    slices = dataset.load_split(args.split, args.data, args.url)
    import modules

    vqvae = modules.load_vqvae(args.models)
    answers = {
        "reconstructions": vqvae.decode(vqvae.encode(slices.images)),
        "mean_training_image": modules.load_mean_image(args.models),
        "black_image": np.float32(-0.5),
    }
    scores = {name: compare(slices.images, answer) for name, answer in answers.items()}
    cases = np.array([dataset.case_of(name) for name in slices.names])
    figures = {name: summarise(*score, cases) for name, score in scores.items()}
    number = len(set(cases))
    of_cases = f"{number} case{'s' if number > 1 else ''}"
    print(f"SSIM of {len(slices.names):,} {args.split} slices of {of_cases}, models {args.models}")
    print(table(figures))

    ssim, psnr = scores["reconstructions"]
    with written(args.out / "ssim.csv") as part, open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "case", "ssim", "psnr_db"])
        writer.writerows(zip(slices.names, cases, ssim.tolist(), psnr.tolist()))
    with written(args.out / "ssim.json") as part:
        about = {"split": args.split, "digest": slices.digest, "slices": len(slices.names), "models": str(args.models)}
        part.write_text(json.dumps(about | figures, indent=1) + "\n")
    print(args.out / "ssim.csv", args.out / "ssim.json", sep="\n")
    plt = dataset.pyplot(args.no_show)
    dataset.save_figure(plot(plt, ssim, args.split), args.out / dataset.FIGURES["ssim"])
    dataset.show_figures(plt)


if __name__ == "__main__":
    dataset.run(main)
