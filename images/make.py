"""Makes the figures of the README, each by the script call beside its name: python images/make.py

Needs scikit-image and nilearn besides requirements.txt (pip install scikit-image nilearn): they carry the cat, the
person and the brain from elsewhere, which it leaves in outputs/elsewhere/. The two training plots are copied from
outputs/, where train.py leaves them; without them the old ones stay.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

IMAGES = Path(__file__).resolve().parent
ROOT = IMAGES.parent
sys.path.insert(0, str(ROOT))

import dataset
from brains import config, flow, headfiles, sampling, volumes, weights
from brains.fidelity import fit_components, fit_level, slice_set
from brains.headcontenders import decoded, heads_of
from brains.headjudge import ages_of
from brains.names import level_of, owners
from brains.traits import traits_of


def elsewhere(folder):
    """Write a brain, a cat and a person from other sources to `folder`; returns their paths by name."""
    from nilearn.datasets import load_mni152_template
    from skimage import data

    template = load_mni152_template(resolution=1).get_fdata()  # left to right, back to front, bottom to top
    level = np.clip(template[:, :, 95], 0, None)  # through the ventricles
    wide = np.zeros((256, 256))  # as the slices lie: front at the right, 1 mm a pixel
    top, left = (256 - np.array(level.shape)) // 2
    wide[top : top + level.shape[0], left : left + level.shape[1]] = level
    pictures = {
        "brain": np.round(wide * 255 / wide.max()).astype(np.uint8),
        "cat": data.cat(),
        "person": data.astronaut(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in pictures}


def call(target, result, *arguments):
    """Run a script and keep the figure `result` that it writes as images/`target`; its failure is ours."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([sys.executable, *arguments, "--no-show", "--out", out], cwd=ROOT)
        if done.returncode:
            sys.exit(done.returncode)
        shutil.copy(Path(out) / result, IMAGES / target)


def mean_slices(data):
    """Write the mean of the training slices of each level, at a quarter of their size: what volumes are placed by."""
    canvas, coarse = volumes.CANVAS, volumes.COARSE
    sums, counts = np.zeros((config.LEVELS, canvas, canvas)), np.zeros(config.LEVELS)
    for path in dataset.slice_paths("train", data):
        level = level_of(path.name)
        sums[level] += dataset.read_grey(path.read_bytes(), path)
        counts[level] += 1
    side = canvas // coarse
    small = (sums / counts[:, None, None]).reshape(-1, side, coarse, side, coarse).mean(axis=(2, 4))
    mosaic = small.reshape(4, -1, side, side).swapaxes(1, 2).reshape(4 * side, -1)
    Image.fromarray(np.round(mosaic).astype(np.uint8)).save(IMAGES / "mean_slices.png")


def beside_real(data, number=8):
    """Draw real slices, faithful samples and sharp samples, all of the same levels in the head, not picked by hand.

    The faithful models cannot be asked for a level, so that of each of their samples is read by a regression fitted to
    the training slices, and the others follow: test slices of people drawn by seed 0, sharp samples of these levels.
    """
    training, test = (dataset.load_split(split, data) for split in ("train", "test"))
    real = slice_set(training.images, training.names, owners(training.names)[1])
    vqvae, pixelcnn = weights.load_models(config.MODELS / "faithful")
    faithful = vqvae.decode(sampling.sample(pixelcnn, number, seed=0))
    samples = slice_set(faithful, [f"sample {i}" for i in range(number)])
    components = fit_components(real, seed=0)
    read = fit_level(components(real), real.levels)(components(samples))
    levels = np.clip(np.round(read).astype(int), 0, real.levels.max())
    vqvae, pixelcnn = weights.load_models(config.MODELS / "sharp")
    temperature = weights.load_temperature(config.MODELS / "sharp")
    chosen_by = weights.load_critic(config.MODELS / "sharp")
    sharp = vqvae.decode(sampling.sample_best(vqvae, pixelcnn, *chosen_by, number, 0, temperature, levels))
    cases, level_of = owners(test.names)
    people = np.random.default_rng(0).permutation(np.unique(cases))[:number]
    chosen = [np.flatnonzero((cases == case) & (level_of == level))[0] for case, level in zip(people, levels)]
    order = np.argsort(levels)
    figure, axes = plt.subplots(3, number, figsize=(1.5 * number, 4.7))
    for row, title, images in zip(axes, ("real", "faithful", "sharp"), (test.images[chosen], faithful, sharp)):
        row[0].set_ylabel(title, fontsize=12)
        for axis, i in zip(row, order):
            axis.imshow(images[i, ..., 0], "gray", vmin=-0.5, vmax=0.5)
            axis.set(xticks=[], yticks=[])
    for axis, i in zip(axes[0], order):
        axis.set_title(f"level {levels[i]}", fontsize=10)
    figure.tight_layout(pad=0.3)
    figure.savefig(IMAGES / "real_and_generated.png", dpi=100)


def heads_beside_real(data, ages=(25, 55, 85)):
    """Draw generated heads of people of some ages, with seed 0, each beside the test person nearest in age."""
    vqvae, prior = weights.load_models(config.MODELS / "head")
    real = heads_of(dataset.load_split("test", data), "test", vqvae.config.levels, data, None)
    known = ages_of(real)
    chosen = [int(np.nanargmin(np.abs(known - age))) for age in ages]
    asked = [real.people[i]._replace(age=float(age)) for i, age in zip(chosen, ages)]  # of the same sex
    temperature = weights.load_temperature(config.MODELS / "head")
    codes = flow.sample_heads(vqvae, prior, len(ages), 0, traits_of(asked), temperature)
    figure, axes = plt.subplots(1, 2 * len(ages), figsize=(4 * len(ages), 3.1))
    for i, generated in enumerate(decoded(vqvae, codes)):
        person = real.people[chosen[i]]
        pair = (f"real, {person.age:g} years", real.grey[chosen[i]]), (f"generated, {ages[i]} years", generated)
        for axis, (title, grey) in zip(axes[2 * i :], pair):
            axis.imshow(headfiles.picture(grey), "gray", vmin=0, vmax=255)
            axis.set_title(f"{title}, {person.sex}", fontsize=9)
            axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(IMAGES / "heads.png", dpi=120)


def overview():
    """Draw how a slice becomes codes and codes become a slice."""
    figure, axes = plt.subplots(figsize=(12, 4.2))
    axes.set(xlim=(0, 12), ylim=(0, 4.2))
    axes.axis("off")
    boxes = (  # left, bottom, width, height, colour, text
        (0.1, 2.3, 1.5, 1.5, "#e8e8e8", "slice\n128 x 128 x 1"),
        (2.2, 2.3, 1.5, 1.5, "#c9dcf2", "encoder\n4 convolutions\nof stride 2"),
        (4.3, 2.3, 1.6, 1.5, "#e8e8e8", "latents\n8 x 8 x 16"),
        (6.5, 2.3, 1.6, 1.5, "#f6dcb5", "nearest of\n128 codebook\nvectors"),
        (8.7, 2.3, 1.4, 1.5, "#c9dcf2", "decoder\n4 transposed\nconvolutions\nof stride 2"),
        (10.5, 2.3, 1.4, 1.5, "#e8e8e8", "reconstruction\n128 x 128 x 1"),
        (6.5, 0.2, 1.6, 1.3, "#e8e8e8", "code indices\n8 x 8\nintegers 0..127"),
        (3.1, 0.2, 2.4, 1.3, "#cfe8cf", "PixelCNN\neach code from\nthose before it"),
    )
    for left, bottom, width, height, colour, text in boxes:
        axes.add_patch(plt.Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="dimgrey"))
        axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=10)
    arrows = (  # from, to, style
        ((1.6, 3.05), (2.2, 3.05), "->"),
        ((3.7, 3.05), (4.3, 3.05), "->"),
        ((5.9, 3.05), (6.5, 3.05), "->"),
        ((8.1, 3.05), (8.7, 3.05), "->"),
        ((10.1, 3.05), (10.5, 3.05), "->"),
        ((7.3, 2.3), (7.3, 1.5), "<->"),
        ((5.5, 0.85), (6.5, 0.85), "<->"),
    )
    for start, end, style in arrows:
        axes.annotate("", end, start, arrowprops={"arrowstyle": style, "color": "dimgrey", "lw": 1.5})
    axes.text(7.45, 1.88, "look up", fontsize=9, color="dimgrey")
    axes.text(6.0, 1.0, "learn", fontsize=9, color="dimgrey", ha="center", va="center")
    axes.text(6.0, 0.7, "draw", fontsize=9, color="dimgrey", ha="center", va="center")
    figure.savefig(IMAGES / "vqvae_overview.png", dpi=110, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description="Make the figures of the README.")
    parser.add_argument("--data", metavar="PATH", help="folder or zip of the slices, as for the scripts")
    args = parser.parse_args()
    data = ["--data", str(Path(args.data).resolve())] if args.data else []
    overview()
    mean_slices(args.data)
    beside_real(args.data)
    if weights.is_set(config.MODELS / "head"):
        heads_beside_real(args.data)
    reconstruct = ("predict.py", "reconstruct")
    call("vqvae_reconstructions.png", "reconstructions.png", *reconstruct, "--random", "4", "--seed", "0", *data)
    call("pixelcnn_vqvae_generations.png", "generations.png", "predict.py", "generate", "8", "--seed", "0")
    tissue = ("--preset", "sharp", "--tissue", "--seed", "0")
    call("tissue_generations.png", "generations.png", "predict.py", "generate", "8", *tissue)
    call("ssim_plot.png", "ssim_plot.png", "ssim.py", *data)
    for name, path in elsewhere(ROOT / "outputs" / "elsewhere").items():
        call(f"vqvae_reconstructed_{name}.png", "reconstructions.png", *reconstruct, str(path))
    for name in ("vqvae_training_plot.png", "pixelcnn_training_plot.png"):
        if (ROOT / "outputs" / name).exists():
            shutil.copy(ROOT / "outputs" / name, IMAGES)


if __name__ == "__main__":
    main()
