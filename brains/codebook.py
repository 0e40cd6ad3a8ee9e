"""How the codebook of the faithful VQ-VAE starts: at the centres of what the encoder puts out.

Lancucki et al. 2020, Robust Training of Vector Quantized Bottleneck Models, arXiv 2005.08520 (k-means of latents)
"""

import numpy as np
from threadpoolctl import threadpool_limits

from brains import devices
from brains.backend import ops, tf
from modules import in_batches

LATENTS = 50_000  # at least, or all of a small set


def cluster_latents(vqvae, images, chosen, seed):
    """Return the centres (K, D) float32 of LATENTS latents of the chosen images, by k-means with this seed.

    Of several workers the first one computes them and the others receive them.
    """
    from sklearn.cluster import KMeans  # it takes time to import, so only trainings that use it wait

    strategy, quantizer = tf.distribute.get_strategy(), vqvae.quantizer
    centres = np.zeros(quantizer.codebook.shape, np.float32)
    if devices.writes():
        needed = -(-LATENTS // np.prod(vqvae.grid))  # images
        chosen = np.random.default_rng(seed).permutation(chosen)[:needed]
        latents = in_batches(lambda part: ops.cast(vqvae.encoder(images[part]), "float32"), chosen)
        points = latents.reshape(-1, quantizer.embedding_dim)
        with threadpool_limits(1):  # several threads add up in any order
            centres = KMeans(len(centres), n_init=1, random_state=seed).fit(points).cluster_centers_
    return devices.of_all(strategy, centres)[0]
