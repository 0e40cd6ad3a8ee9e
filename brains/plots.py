"""Every figure that the scripts write, and the windows that show them."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import dataset
from brains.cli import written
from brains.config import TISSUES
from brains.reports import SIDES

SHOWN = 64  # results in a figure at most
PANEL, GAP = 128, 8  # pixels of a panel and between panels
INCHES = 1.5  # of a panel
NEAREST = 8  # generated slices in the figure of nearest neighbours
LOSS, ACCURACY = ({side: prefix + name for side, prefix in SIDES} for name in ("loss", "accuracy"))
TISSUE_COLOURS = ((0, 0, 0), (64, 128, 255), (64, 200, 96), (255, 200, 64))  # by label
VQVAE_LOSSES = {"total": "loss", "reconstruction": "reconstruction_loss", "quantizer": "quantizer_loss"}
ADVERSARIAL_LOSSES = {name: f"{name}_loss" for name in ("adversarial", "feature", "discriminator")}
HELD_OUT = {"SSIM": "validation_ssim", "sharpness, 1 as real": "sharpness"}
TRAININGS = {  # the two panels of each stage: title, unit, and its lines {label: key in the history}
    "vqvae": (("VQ-VAE loss", "loss", VQVAE_LOSSES), ("Perplexity of the codes", "perplexity", {"": "perplexity"})),
    "adversarial": (
        ("VQ-VAE against its discriminator", "loss", ADVERSARIAL_LOSSES),
        ("Reconstructions of held-out slices", "", HELD_OUT),
    ),
    "pixelcnn": (("PixelCNN loss", "nats a code", LOSS), ("PixelCNN accuracy", "share of codes", ACCURACY)),
    "flow": (
        ("Flow loss", "squared error of velocities", LOSS),
        ("Flow loss on held-out heads", "squared error of velocities", {"": "validation_loss"}),
    ),
    "segmenter": (
        ("Segmenter loss", "loss", LOSS),
        ("Dice on held-out cases", "", {tissue: f"validation_Dice of {tissue}" for tissue in TISSUES[1:]}),
    ),
    "critic": (("Critic loss", "nats", LOSS), ("Critic accuracy", "share of slices", ACCURACY)),
}


def hide():
    """Draw without windows, whatever display there is."""
    matplotlib.use("Agg")


def save(figure, path):
    """Write a figure as PNG and print its path."""
    with written(path) as part:
        figure.savefig(part, format="png", dpi=120, bbox_inches="tight")
    print(path)


def show():
    """Open the figures in windows until they are closed, if there is a display; then forget them."""
    if plt.get_backend().lower() != "agg":
        plt.show()
    plt.close("all")


def trainings(content):
    """Return the training plots {stage: figure} of what config.json says of a set of weights."""
    figures = {}
    for stage in [stage for stage in TRAININGS if stage in content]:
        history, best_epoch = content[stage]["history"], content[stage]["best_epoch"]
        figures[stage], axes = plt.subplots(1, 2, figsize=(11, 4))
        for axis, (title, unit, lines) in zip(axes, TRAININGS[stage]):
            for label, key in lines.items():
                axis.plot(range(1, len(history) + 1), [epoch[key] for epoch in history], marker=".", label=label)
            if "validation" in lines:
                axis.axvline(best_epoch, color="grey", linestyle=":", label=f"epoch kept ({best_epoch})")
            if len(lines) > 1:
                axis.legend()
            axis.set(title=title, xlabel="epoch", ylabel=unit)
            axis.xaxis.get_major_locator().set_params(integer=True)
        if stage == "vqvae":
            axes[0].set_yscale("log")
    return figures


def grey_pictures(images):
    """Return images (N, H, W, 1) in [-0.5, 0.5] as pictures (N, H, W, 3) uint8, at most SHOWN of them."""
    return np.repeat(dataset.to_grey(images[:SHOWN]), 3, axis=-1)


def code_pictures(codes, num_embeddings):
    """Return grids of code indices (N, h, w) as pictures (N, PANEL, PANEL, 3) uint8, with a colour for each code."""
    colours = matplotlib.colormaps["viridis"](codes[:SHOWN] / max(1, num_embeddings - 1), bytes=True)[..., :3]
    rows, columns = (np.arange(PANEL) * side // PANEL for side in codes.shape[1:])
    return colours[:, rows][:, :, columns]


def tissue_pictures(images, labels):
    """Return images (N, H, W, 1) with a colour over each tissue of labels (N, H, W): pictures (N, H, W, 3) uint8."""
    colours = np.uint8(TISSUE_COLOURS)[labels[:SHOWN]]
    grey = grey_pictures(images)
    return np.where(labels[:SHOWN, ..., None] > 0, (0.55 * grey + 0.45 * colours).astype(np.uint8), grey)


def heat_pictures(values, top):
    """Return maps (N, H, W) as pictures (N, H, W, 3) uint8: black for 0, pale yellow for `top` and above."""
    return matplotlib.colormaps["inferno"](np.clip(values[:SHOWN] / top, 0, 1), bytes=True)[..., :3]


def map_pictures(images, maps, top):
    """Return images (N, H, W, 1) with maps (N, H, W) over them, the opaquer the higher: (N, H, W, 3) uint8."""
    opacity = np.clip(maps[:SHOWN, ..., None] / top, 0, 1)
    return np.uint8((1 - opacity) * grey_pictures(images) + opacity * heat_pictures(maps, top))


def mosaic(panels, labels=()):
    """Draw {title: pictures (N, PANEL, PANEL, 3)}, those of an item side by side, its label, if any, in the last."""
    items = np.stack(list(panels.values()), axis=1)
    number, wide = items.shape[:2]
    across = 1 if number <= 4 else 2 if number <= 16 else 4
    down, step = -(-number // across), PANEL + GAP
    canvas = np.full((down * step - GAP, across * wide * step - GAP, 3), 255, np.uint8)
    figure = plt.figure(figsize=(across * wide * INCHES, down * INCHES + 0.3))
    axes = figure.add_axes((0, 0, 1, down * INCHES / (down * INCHES + 0.3)))
    axes.axis("off")
    for item, panel in np.ndindex(number, wide):
        top, left = item // across * step, (item % across * wide + panel) * step
        canvas[top : top + PANEL, left : left + PANEL] = items[item, panel]
        if labels and panel == wide - 1:
            axes.text(left + GAP, top + GAP, labels[item], ha="left", va="top", color="white", fontsize=7)
    axes.imshow(canvas)
    for column, title in enumerate(list(panels) * min(across, number)):
        axes.text(column * step + PANEL / 2, -GAP, title, ha="center", va="bottom")
    return figure


def ssim_histogram(ssim, split):
    """Plot the histogram of the SSIM of each image, with mean and median."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    axes.hist(ssim, bins=40, color="lightsteelblue", edgecolor="white")
    axes.axvline(ssim.mean(), color="firebrick", label=f"mean {ssim.mean():.3f}")
    axes.axvline(np.median(ssim), color="firebrick", linestyle="--", label=f"median {np.median(ssim):.3f}")
    axes.set(title=f"SSIM of {len(ssim):,} {split} slices to their reconstructions", xlabel="SSIM", ylabel="slices")
    axes.legend()
    return figure


def draw_nearest(sets, real):
    """Draw {name: (SliceSet, what `judge.nearest` found)}: slices, real ones (mirrored if so meant), differences."""
    figure, axes = plt.subplots(3 * len(sets), NEAREST, figsize=(1.6 * NEAREST, 5.2 * len(sets)), squeeze=False)
    for rows, (name, (slices, found)) in zip(axes.reshape(len(sets), 3, NEAREST), sets.items()):
        correlation, index, mirrored = found
        for column, i in zip(rows.T, np.argsort(-correlation)):
            neighbour = real.grey[index[i]][::-1] if mirrored[i] else real.grey[index[i]]
            column[0].imshow(slices.grey[i], "gray", vmin=0, vmax=255)
            column[0].set_title(f"{correlation[i]:.3f}", fontsize=9)
            column[1].imshow(neighbour, "gray", vmin=0, vmax=255)
            column[2].imshow(slices.grey[i].astype(int) - neighbour, "RdBu", vmin=-255, vmax=255)
        for row, title in zip(rows, (name, "nearest real", "difference")):
            row[0].set_ylabel(title, fontsize=9)
    plt.setp(axes.flat, xticks=[], yticks=[])
    figure.tight_layout()
    return figure


def draw_temperatures(curves, floor):
    """Draw fidelity against variety, {name: {temperature: {row: Figure}}}, and `floor`, the Figures of real slices."""
    pairs = (("recall", "precision"), ("coverage", "density"), ("SSIM of random pairs", "classifier AUC"))
    figure, panels = plt.subplots(1, len(pairs), figsize=(12.6, 4))
    for panel, (across, up) in zip(panels, pairs):
        for name, curve in curves.items():
            points = np.array([(figures[across].value, figures[up].value) for figures in curve.values()])
            panel.plot(*points.T, marker="o", label=name)
            for temperature, point in zip(curve, points):
                panel.annotate(f"{temperature:g}", point, textcoords="offset points", xytext=(4, 4), fontsize=8)
        panel.plot(floor[across].value, floor[up].value, "k*", markersize=10, label="real slices")
        panel.set(xlabel=across, ylabel=up)
    panels[-1].set(xlabel=f"{across} (low to the right)", ylabel=f"{up} (low above)")
    panels[-1].invert_xaxis(), panels[-1].invert_yaxis()
    panels[0].legend()
    figure.suptitle("By temperature: up, more like real slices; to the right, more varied")
    figure.tight_layout()
    return figure


def draw_distances(correlations):
    """Draw histograms of the correlations {name: (N,)} of slices to their nearest training slices."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    bins = np.linspace(min(values.min() for values in correlations.values()), 1, 60)
    for name, values in correlations.items():
        axes.hist(values, bins, density=True, histtype="step", linewidth=1.6, label=name)
    axes.axvline(np.quantile(correlations["held out"], 0.95), color="grey", linestyle=":", label="95 % of held out")
    axes.set(title="Nearness to the reference", xlabel="correlation to the nearest real slice", ylabel="density")
    axes.legend(loc="upper left")
    return figure


def draw_anomalies(example, kinds, top):
    """Draw an `anomalies.Example`, whose lesions are of these kinds; its maps go from 0 to `top`."""
    panels = {"real slice": grey_pictures(example.healthy), "with a lesion": grey_pictures(example.images)}
    panels["where it is"] = heat_pictures(example.masks, 1)
    panels |= {"restoration": grey_pictures(example.restored), "map": map_pictures(example.images, example.maps, top)}
    return mosaic(panels, list(kinds))


def draw_utility(results):
    """Draw the mean Dice {name: {"mean": Figure}} of segmenters over the number of real people that they learned from.

    Names are "10 people", "10 people and generated" and so on, and "generated".
    """
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for label, ending in (("real slices", " people"), ("real and generated slices", " people and generated")):
        found = sorted((int(name.split()[0]), each["mean"]) for name, each in results.items() if name.endswith(ending))
        people, means = zip(*found)
        axes.plot(people, [each.value for each in means], marker="o", label=label)
        axes.fill_between(people, [each.low for each in means], [each.high for each in means], alpha=0.15)
    axes.axhline(results["generated"]["mean"].value, color="grey", linestyle=":", label="generated slices")
    axes.set(title="A segmenter on unseen people", xlabel="real people to learn from", ylabel="Dice, mean of tissues")
    axes.legend()
    return figure
