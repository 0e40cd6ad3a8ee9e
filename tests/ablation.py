"""Trains the faithful models by seed and by how the codebook starts, and measures held-out slices.

    python tests/ablation.py --seeds 0 1 2 3 4 --out outputs/ablation
    python tests/ablation.py --ways kmeans --seeds 0 --epochs 5

A tenth of the cases, the same for all seeds, is held out from the VQ-VAE too, and measured at the end. Each training
adds a line to ablation.jsonl in the output folder. A call with the same flags continues where an earlier one was
interrupted. It prints every training of that file, with means and standard deviations, and with --plot FILE draws them.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import modules
import train
from brains import cli, config, jobs, loop, stream, weights

WAYS = {  # changes of the faithful preset
    "uniform": {"codebook_init": "uniform"},
    "kmeans": {"codebook_init": "kmeans"},
    "kmeans_same_rate": {"codebook_init": "kmeans", "codebook_learning_rate": 1e-3},
    "kmeans_at_once": {"codebook_init": "kmeans", "warm_up_epochs": 0},
    "kmeans_after_two": {"codebook_init": "kmeans", "warm_up_epochs": 2},
}
FIGURES = {  # a column of the table, and its key
    "codes in use": "codes",
    "perplexity": "perplexity",
    "SSIM, last step": "ssim",
    "SSIM, averaged": "averaged_ssim",
    "PSNR, last step": "psnr",
    "PSNR, averaged": "averaged_psnr",
}


class Averaging(jobs.Job):
    """A Job that averages the weights of every VQ-VAE over its last epoch: this changes no step of a training."""

    def training(self, preset, stage, *others, **options):
        training = super().training(preset, stage, *others, **options)
        training.averaged = stage == "vqvae"
        return training


def measure(way, seed, args):
    """Train by one way and seed; returns the figures, on held-out slices by the last weights and by their average."""
    preset = dataclasses.replace(config.PRESETS["faithful"], held_out_from=("vqvae", "pixelcnn"), **WAYS[way])
    if args.epochs:
        preset = dataclasses.replace(preset, vqvae=dataclasses.replace(preset.vqvae, epochs=args.epochs))
    models = args.out / f"{way}_{seed}_{preset.vqvae.epochs}_{args.precision}"
    resume = Path(f"{models}.checkpoint", "vqvae.npz").exists()
    options = {"validation_share": 0.1, "seed": seed, "resume": resume, "deterministic": False}
    with jobs.start("faithful", models, args.out, args.data, precision=args.precision, **options) as job:
        job = Averaging(**vars(job))
        _, variance = stream.moments(job.images, job.seen)
        training = train.train_vqvae(job, preset, variance)
        last = training.history[-1]
        vqvae = weights.as_used(training.model)
        codes = round(last["codes_in_use"] * vqvae.config.num_embeddings)
        figures = {"way": way, "seed": seed, "epochs": len(training.history), "precision": job.precision}
        figures |= {"codes": codes, "perplexity": last["perplexity"], "loss": last["loss"]}
        real = job.images[job.unseen]
        _, saved = loop.load_checkpoint(training.path)
        for name, prefix in (("", "model/"), ("averaged_", "kept/")):
            for key, variable in loop.by_path(vqvae.weights).items():
                variable.assign(saved[prefix + key])
            decoded = vqvae.decode(vqvae.encode(real))
            figures[f"{name}ssim"] = float(modules.ssim(real, decoded).mean())
            figures[f"{name}psnr"] = float(modules.psnr(real, decoded).mean())
    return figures


def report(rows):
    """Print the figures of each training, and their mean and standard deviation by way and number of epochs."""
    groups = {}
    for row in sorted(rows, key=lambda row: (row["way"], row["epochs"], row["seed"])):
        groups.setdefault(f"{row['way']}, {row['epochs']} epochs", []).append(row)
    print(f"{'':44}" + "".join(f"{label:>18}" for label in FIGURES))
    for name, group in groups.items():
        columns = [np.array([row[key] for row in group]) for key in FIGURES.values()]
        for row, values in zip(group, zip(*columns)):
            cells = [f"{value:.4g}" for value in values]
            print(
                f"{name}, seed {row['seed']}, {row['precision']}".ljust(44) + "".join(f"{cell:>18}" for cell in cells)
            )
        if len(group) > 1:
            cells = [f"{column.mean():.4g} ({column.std(ddof=1):.2g})" for column in columns]
            print("mean (standard deviation)".ljust(44) + "".join(f"{cell:>18}" for cell in cells))


def draw(rows):
    """Plot codes in use and SSIM by seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    colours = dict(
        zip(dict.fromkeys(row["way"] for row in rows), ("grey", "firebrick", "steelblue", "seagreen", "purple"))
    )
    for way, colour in colours.items():
        seeds, codes, last, averaged = np.transpose(
            [[row[key] for key in ("seed", "codes", "ssim", "averaged_ssim")] for row in rows if row["way"] == way]
        )
        left.plot(seeds, codes, "o", color=colour, label=way)
        right.plot(seeds, last, "o", color=colour, fillstyle="none", label=f"{way}, last step")
        right.plot(seeds, averaged, "o", color=colour, label=f"{way}, mean of the last epoch")
    left.set(title="Codes in use", xlabel="seed", ylabel="of 128", ylim=(0, 132))
    right.set(title="SSIM of slices of held-out cases", xlabel="seed", ylabel="SSIM")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def main():
    parser = argparse.ArgumentParser(description="Train the faithful models by seed and by how the codebook starts.")
    parser.add_argument("--seeds", type=cli.seed, nargs="+", default=range(5), metavar="N")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=("uniform", "kmeans"))
    parser.add_argument("--epochs", type=cli.positive, metavar="N", help="epochs of the VQ-VAE (default: the preset's)")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--data", metavar="PATH", help="folder or zip of the slices, as for the scripts")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw codes in use and SSIM by seed")
    parser.add_argument("--out", type=Path, default="outputs/ablation", metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "ablation.jsonl"
    epochs = args.epochs or config.PRESETS["faithful"].vqvae.epochs
    wanted = [(way, seed, epochs, args.precision) for seed in args.seeds for way in args.ways]
    for way, seed, *_ in [each for each in wanted if each not in read(path)]:
        figures = measure(way, seed, args)
        with open(path, "a") as file:
            file.write(json.dumps(figures) + "\n")
    report(read(path).values())
    if args.plot:
        draw(read(path).values()).savefig(args.plot, dpi=100)


def read(path):
    """Return the figures of finished trainings, by what was asked for."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {tuple(row[key] for key in ("way", "seed", "epochs", "precision")): row for row in rows}


if __name__ == "__main__":
    main()
