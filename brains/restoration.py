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
    codes = vqvae.encode(np.concatenate([view.of(images) for view in views]))
    cost = bits_of_codes(prior, codes, np.tile(levels, len(views)))
    flagged = cost > limit
    uniforms = [np.random.default_rng((seed, number)).random(prior.grid, np.float32) for number in range(len(views))]
    drawn = sampling.redraw(
        prior, codes, flagged, np.repeat(uniforms, len(images), axis=0), np.tile(levels, len(views))
    )
    restored, surprise = (_by_view(each, views) for each in (vqvae.decode(drawn), _enlarged(cost)))
    grain = _grain(images[..., 0]) - np.mean([_grain(each[..., 0]) for each in restored], axis=0)
    changed, surprise = np.abs(smooth((images - restored.mean(axis=0))[..., 0], NEAR)), surprise.mean(axis=0)
    parts = np.float32([changed * np.sqrt(smooth(surprise, WIDE)), grain, -grain])
    bits, share = cost[: len(images)].sum(axis=(1, 2)), flagged.reshape(len(views), len(images), -1).mean(axis=(0, 2))
    return Restored(bits, surprise, share, restored[0], parts)


def _by_view(arrays, views):
    """Return arrays (V N, 128, 128, ...), N of each View, as they lie on the slices (V, N, 128, 128, ...)."""
    return np.stack([view.back(each) for view, each in zip(views, np.split(arrays, len(views)))])


def _enlarged(grids):
    """Return grids (N, h, w) as maps (N, 128, 128)."""
    return grids.repeat(SIZE // grids.shape[1], axis=1).repeat(SIZE // grids.shape[2], axis=2)


def smooth(maps, sigma):
    """Return maps (N, H, W), each averaged by a Gaussian of so many pixels."""
    return gaussian_filter(maps, (0, sigma, sigma))


def _grain(light):
    """Return the logarithm of the energy (N, H, W) of what is finer than FINE in light (N, H, W)."""
    return np.log(smooth((light - smooth(light, FINE)) ** 2, WIDE) + 1e-5)  # below that is rounding
