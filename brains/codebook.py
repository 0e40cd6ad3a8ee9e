"""How the codebook of the faithful VQ-VAE starts: at the centres of what the encoder puts out.

Lancucki et al. 2020, Robust Training of Vector Quantized Bottleneck Models, arXiv 2005.08520 (k-means of latents)
"""

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from brains import devices, stream
from brains.backend import ops, tf

LATENTS = 50_000  # at least, or all of a small set


def cluster_latents(vqvae, images, chosen, seed):
    """Return the centres (K, D) float32 of LATENTS latents of the chosen images, by k-means with this seed.

    Of several workers the first one computes them and the others receive them.
    """
    strategy, quantizer = tf.distribute.get_strategy(), vqvae.quantizer
    centres = np.zeros(quantizer.codebook.shape, np.float32)
    if devices.writes():
        needed = -(-LATENTS // np.prod(vqvae.grid))  # images
        chosen = np.random.default_rng(seed).permutation(chosen)[:needed]
        latents = [
            np.asarray(ops.cast(vqvae.encoder(images[chosen[part]]), "float32")) for part in stream.parts(len(chosen))
        ]
        points = np.concatenate(latents).reshape(-1, quantizer.embedding_dim)
        with threadpool_limits(1):  # several threads add up in any order
            centres = KMeans(len(centres), n_init=1, random_state=seed).fit(points).cluster_centers_
    return devices.of_first(strategy, centres)
