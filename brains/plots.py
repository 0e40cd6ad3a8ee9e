"""Every figure that the scripts write, and the windows that show them."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import dataset
from brains.cli import written
from brains.reports import SIDES

SHOWN = 64  # results in a figure at most
PANEL, GAP = 128, 8  # pixels of a panel and between panels
INCHES = 1.5  # of a panel
NEAREST = 8  # generated slices in the figure of nearest neighbours


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


# --- training ---------------------------------------------------------------------------------------------------------


def trainings(content):
    """Return the training plots {stage: figure} of what config.json says of a set of weights."""
    figures = {"vqvae": plot_vqvae(content["vqvae"]["history"])}
    if "adversarial" in content:
        figures["adversarial"] = plot_adversarial(content["adversarial"]["history"])
    figures["pixelcnn"] = plot_accuracy(content["pixelcnn"], "PixelCNN", "nats a code", "share of codes")
    if "critic" in content:
        figures["critic"] = plot_accuracy(content["critic"], "Critic", "nats", "share of slices")
    return figures


def panels_by_epoch():
    """Return a figure of two panels whose horizontal axis counts epochs."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4))
    for panel in panels:
        panel.set(xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    return figure, panels


def plot_vqvae(history):
    """Plot the loss of the VQ-VAE and its parts, and the perplexity of its codes, by epoch."""
    figure, (left, right) = panels_by_epoch()
    epochs = range(1, len(history) + 1)
    for name, label in (("loss", "total"), ("reconstruction_loss", "reconstruction"), ("quantizer_loss", "quantizer")):
        left.plot(epochs, [epoch[name] for epoch in history], marker=".", label=label)
    left.set(title="VQ-VAE loss", ylabel="loss", yscale="log")
    left.legend()
    right.plot(epochs, [epoch["perplexity"] for epoch in history], marker=".")
    right.set(title="Perplexity of the codes", ylabel="perplexity")
    return figure


def plot_adversarial(history):
    """Plot the losses of VQ-VAE and discriminator, and the SSIM and sharpness of held-out slices, by epoch."""
    figure, (left, right) = panels_by_epoch()
    epochs = range(1, len(history) + 1)
    for name in ("adversarial_loss", "feature_loss", "discriminator_loss"):
        left.plot(epochs, [epoch[name] for epoch in history], marker=".", label=name.split("_")[0])
    left.set(title="VQ-VAE against its discriminator", ylabel="loss")
    left.legend()
    right.plot(epochs, [epoch["validation_ssim"] for epoch in history], marker=".", label="SSIM")
    right.plot(epochs, [epoch["sharpness"] for epoch in history], marker=".", label="sharpness, 1 as real")
    right.set(title="Reconstructions of held-out slices")
    right.legend()
    return figure


def plot_accuracy(stage, name, *units):
    """Plot loss and accuracy of a stage in training and validation, in their units, by epoch."""
    history, best_epoch = stage["history"], stage["best_epoch"]
    figure, panels = panels_by_epoch()
    epochs = range(1, len(history) + 1)
    for panel, quantity, unit in zip(panels, ("loss", "accuracy"), units):
        for side, key in SIDES:
            panel.plot(epochs, [epoch[key + quantity] for epoch in history], marker=".", label=side)
        panel.axvline(best_epoch, color="grey", linestyle=":", label=f"epoch kept ({best_epoch})")
        panel.set(title=f"{name} {quantity}", ylabel=unit)
        panel.legend()
    return figure


# --- results ----------------------------------------------------------------------------------------------------------


def grey_pictures(images):
    """Return images (N, H, W, 1) in [-0.5, 0.5] as pictures (N, H, W, 3) uint8, at most SHOWN of them."""
    return np.repeat(dataset.to_grey(images[:SHOWN]), 3, axis=-1)


def code_pictures(codes, num_embeddings):
    """Return grids of code indices (N, h, w) as pictures (N, PANEL, PANEL, 3) uint8, with a colour for each code."""
    colours = matplotlib.colormaps["viridis"](codes[:SHOWN] / max(1, num_embeddings - 1), bytes=True)[..., :3]
    rows, columns = (np.arange(PANEL) * side // PANEL for side in codes.shape[1:])
    return colours[:, rows][:, :, columns]


def mosaic(panels, labels=()):
    """Draw {title: pictures (N, PANEL, PANEL, 3)}: the pictures of an item side by side, the items in rows.

    The labels, if any, are written into the last picture of each item.
    """
    items = np.stack(list(panels.values()), axis=1)
    number, wide = items.shape[:2]
    across = 1 if number <= 4 else 2 if number <= 16 else 4
    down = -(-number // across)
    step = PANEL + GAP
    canvas = np.full((down * step - GAP, across * wide * step - GAP, 3), 255, np.uint8)
    for item, panel in np.ndindex(number, wide):
        top, left = item // across * step, (item % across * wide + panel) * step
        canvas[top : top + PANEL, left : left + PANEL] = items[item, panel]
    figure = plt.figure(figsize=(across * wide * INCHES, down * INCHES + 0.3))
    axes = figure.add_axes((0, 0, 1, down * INCHES / (down * INCHES + 0.3)))
    axes.imshow(canvas)
    axes.axis("off")
    for item, label in enumerate(labels):
        top, left = item // across * step, (item % across * wide + wide - 1) * step
        axes.text(left + GAP, top + GAP, label, ha="left", va="top", color="white", fontsize=7)
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


# --- evaluation -------------------------------------------------------------------------------------------------------


def draw_nearest(sets, real):
    """Draw the slices nearest to a real one, that one (mirrored if its mirror image is meant), and their difference.

    `sets` are {name: (SliceSet, what `memory.nearest` gave of it)}.
    """
    figure, axes = plt.subplots(3 * len(sets), NEAREST, figsize=(1.6 * NEAREST, 5.2 * len(sets)), squeeze=False)
    for rows, (name, (slices, (correlation, index, mirrored))) in zip(axes.reshape(len(sets), 3, NEAREST), sets.items()):
        for column, i in zip(rows.T, np.argsort(-correlation)):
            neighbour = real.grey[index[i]][::-1] if mirrored[i] else real.grey[index[i]]
            column[0].imshow(slices.grey[i], "gray", vmin=0, vmax=255)
            column[0].set_title(f"{correlation[i]:.3f}", fontsize=9)
            column[1].imshow(neighbour, "gray", vmin=0, vmax=255)
            column[2].imshow(slices.grey[i].astype(int) - neighbour, "RdBu", vmin=-255, vmax=255)
        for row, title in zip(rows, (name, "nearest real", "difference")):
            row[0].set_ylabel(title, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure


def draw_temperatures(curves, floor):
    """Draw fidelity against variety over temperature.

    `curves` are {name: {temperature: {row: Figure}}}; `floor` are the Figures of real slices.
    """
    pairs = (
        ("recall", "precision"),
        ("coverage", "density"),
        ("SSIM of random pairs", "classifier AUC"),
    )
    figure, panels = plt.subplots(1, len(pairs), figsize=(4.2 * len(pairs), 4))
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
    limit = np.quantile(correlations["held out"], 0.95)
    axes.axvline(limit, color="grey", linestyle=":", label="95 % of held out")
    axes.set(title="Nearness to the reference", xlabel="correlation to the nearest real slice", ylabel="density")
    axes.legend(loc="upper left")
    return figure
