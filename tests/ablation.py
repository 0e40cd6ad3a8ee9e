"""Trains the faithful models by seed and by how the codebook starts, and measures held-out slices.

    python tests/ablation.py --seeds 0 1 2 3 4 --out outputs/ablation
    python tests/ablation.py --ways kmeans --seeds 0 --epochs 5

A tenth of the cases, the same for all seeds, is held out from the VQ-VAE too. Each training adds a line to
ablation.jsonl in the output folder. A call with the same flags continues where an earlier one was interrupted.
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import modules
import train
from brains import cli, config, jobs, stream, weights

WAYS = {  # changes of the faithful preset
    "uniform": {"codebook_init": "uniform"},
    "kmeans": {"codebook_init": "kmeans"},
    "kmeans_at_once": {"codebook_init": "kmeans", "warm_up_epochs": 0},
    "kmeans_after_two": {"codebook_init": "kmeans", "warm_up_epochs": 2},
}


def measure(way, seed, args):
    """Train by one way and seed; returns the figures."""
    preset = dataclasses.replace(config.PRESETS["faithful"], held_out_from=("vqvae", "pixelcnn"), **WAYS[way])
    if args.epochs:
        preset = dataclasses.replace(preset, vqvae=dataclasses.replace(preset.vqvae, epochs=args.epochs))
    models = args.out / f"{way}_{seed}_{preset.vqvae.epochs}"
    resume = Path(f"{models}.checkpoint", "vqvae.npz").exists()
    options = {"validation_share": 0.1, "seed": 0, "resume": resume, "deterministic": False}
    with jobs.start("faithful", models, args.out, args.data, precision=args.precision, **options) as job:
        job = dataclasses.replace(job, seed=seed)  # the held-out cases stay those of seed 0
        _, variance = stream.moments(job.images, job.seen)
        history = (training := train.train_vqvae(job, preset, variance)).history
        vqvae = weights.as_used(training.model)
        real = job.images[job.unseen]
        decoded = vqvae.decode(vqvae.encode(real))
        in_use, perplexity = (history[-1][name] for name in ("codes_in_use", "perplexity"))
        figures = {"way": way, "seed": seed, "epochs": len(history), "precision": job.precision}
        figures |= {"codes": round(in_use * vqvae.config.num_embeddings), "perplexity": perplexity}
        figures |= {
            "ssim": float(modules.ssim(real, decoded).mean()),
            "psnr": float(modules.psnr(real, decoded).mean()),
        }
        figures["loss"] = history[-1]["loss"]
        if args.prior:
            codes = stream.encode(vqvae, job.images, job.scratch / "codes.bin")
            prior = train.train_pixelcnn(job, preset, vqvae, codes).history
            figures["bits"] = min(epoch["validation_loss"] for epoch in prior) / math.log(2)
    return figures


def main():
    parser = argparse.ArgumentParser(description="Train the faithful models by seed and by how the codebook starts.")
    parser.add_argument("--seeds", type=cli.seed, nargs="+", default=range(5), metavar="N")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=("uniform", "kmeans"))
    parser.add_argument("--epochs", type=cli.positive, metavar="N", help="epochs of the VQ-VAE (default: the preset's)")
    parser.add_argument("--prior", action="store_true", help="also train the PixelCNN, for its bits a code")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--data", metavar="PATH", help="folder or zip of the slices, as for the scripts")
    parser.add_argument("--out", type=Path, default="outputs/ablation", metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    done = args.out / "ablation.jsonl"
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    known = {(row["way"], row["seed"], row["epochs"], row["precision"]) for row in rows}
    epochs = args.epochs or config.PRESETS["faithful"].vqvae.epochs
    for seed in args.seeds:
        for way in args.ways:
            if (way, seed, epochs, args.precision) not in known:
                figures = measure(way, seed, args)
                with open(done, "a") as file:
                    file.write(json.dumps(figures) + "\n")
                print(figures, flush=True)


if __name__ == "__main__":
    main()
