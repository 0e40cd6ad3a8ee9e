"""What is unusual in a slice: its surprising codes are drawn anew, and what that changes is the map.

Marimont and Tarroni 2021, Anomaly Detection through Latent Space Restoration using Vector Quantized Variational
Autoencoders, arXiv 2012.06765                      (surprising codes are drawn anew, several times)
Pinaya et al. 2022, Unsupervised Brain Imaging 3D Anomaly Detection and Segmentation with Transformers, Medical Image
Analysis 79, arXiv 2102.11650                       (the difference counts where codes are surprising)

The rest is of this program: views that the prior knows, signed differences, and grain. It needs no more of a prior than
its logits and `sampling.redraw`.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from brains import sampling
from brains.config import SIZE
from brains.surprise import bits_of_codes

FLAGGED = 0.05  # share of the codes of held-out people that are as surprising as those that are drawn anew
NEAR, FINE = 1.5, 1.0  # pixels over which differences are averaged, and below which is grain
WIDE = 2.0  # pixels over which surprise, grain and the map are averaged
PORTION = 64  # slices restored at a time, to spare memory


class Restored(NamedTuple):
    """What `restore` tells of N slices, averaged over views but for `images`.

    `bits` (N,) are those of all codes of a slice as it is, `surprise` (N, 128, 128) bits of the code at each pixel,
    `flagged` (N,) the share of codes drawn anew, `images` (N, 128, 128, 1) the restoration of the slice as it is, and
    `parts` (3, N, 128, 128) what a map is made of, in units of their own; see `Usual.map`.
    """

    bits: np.ndarray
    surprise: np.ndarray
    flagged: np.ndarray
    images: np.ndarray
    parts: np.ndarray


def restore(vqvae, prior, images, levels, views, limit, seed, progress=iter):
    """Draw the codes that cost more than `limit` bits anew, in each of the Views; returns what is Restored.

    `images` (N, 128, 128, 1) float32 in [-0.5, 0.5] are slices of levels (N,). What is drawn for a slice depends on the
    seed and not on the other slices. `progress` wraps the iteration over portions of them, as tqdm does.
    """
    portions = progress([slice(start, start + PORTION) for start in range(0, len(images), PORTION)])
    found = [_restore(vqvae, prior, images[part], levels[part], views, limit, seed) for part in portions]
    *others, parts = zip(*found)
    return Restored(*map(np.concatenate, others), np.concatenate(parts, axis=1))


def _restore(vqvae, prior, images, levels, views, limit, seed):
    costs, flags, surprise, restorations = [], [], [], []
    for number, view in enumerate(views):
        codes = vqvae.encode(view.of(images))
        cost = bits_of_codes(prior, codes, levels)
        flagged = cost > limit
        if flagged.any():
            uniforms = np.random.default_rng((seed, number)).random(prior.grid, np.float32)
            codes = sampling.redraw(prior, codes, flagged, np.broadcast_to(uniforms, codes.shape), levels)
        restorations.append(view.back(vqvae.decode(codes)))
        surprise.append(view.back(_enlarged(cost)))
        costs.append(cost)
        flags.append(flagged.mean(axis=(1, 2)))
    surprise = np.mean(surprise, axis=0)
    changed = np.abs(smooth((images - np.mean(restorations, axis=0))[..., 0], NEAR))
    grain = _grain(images) - np.mean([_grain(each) for each in restorations], axis=0)
    parts = np.float32([changed * np.sqrt(smooth(surprise, WIDE)), grain, -grain])
    return Restored(costs[0].sum(axis=(1, 2)), surprise, np.mean(flags, axis=0), restorations[0], parts)


def _enlarged(grids):
    """Return grids (N, h, w) as maps (N, 128, 128)."""
    return grids.repeat(SIZE // grids.shape[1], axis=1).repeat(SIZE // grids.shape[2], axis=2)


def smooth(maps, sigma):
    """Return maps (N, H, W), each averaged by a Gaussian of so many pixels."""
    return gaussian_filter(maps, (0, sigma, sigma))


def _grain(images):
    """Return the logarithm of the energy (N, 128, 128) of what is finer than FINE in images (N, 128, 128, 1)."""
    light = images[..., 0]
    return np.log(smooth((light - smooth(light, FINE)) ** 2, WIDE) + 1e-5)  # below that is rounding
