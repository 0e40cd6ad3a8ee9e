"""The networks of the sharp preset: a VQ-VAE with more codes, a gated PixelCNN, a discriminator and a critic.

van den Oord et al. 2017, Neural Discrete Representation Learning, arXiv 1711.00937 (appendix A.1: moving averages)
van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, arXiv 1606.05328 (gated PixelCNN)
Zeghidour et al. 2021, SoundStream, arXiv 2107.03312 (revival of unused codes)
"""

import numpy as np

from brains.backend import keras, layers, ops, tf
from brains.layers import SafeConv2D, SafeConv2DTranspose, detail
from modules import VQVAE, VectorQuantizer, build_encoder

REVIVE = 0.1  # of the usual number of latents: a codebook vector that stands for fewer is replaced


class MovingAverageQuantizer(VectorQuantizer):
    """A VectorQuantizer whose codebook follows moving averages instead of gradients (arXiv 1711.00937, A.1).

    In a training step each codebook vector moves towards the mean of the latents that it stands for. A vector that
    stands for too few is replaced by a latent vector of the batch (arXiv 2107.03312). The loss is the commitment loss.
    """

    def __init__(self, num_embeddings, embedding_dim, commitment_cost, decay, **kwargs):
        super().__init__(num_embeddings, embedding_dim, commitment_cost, **kwargs)
        self.decay = decay

    def build(self, input_shape):
        super().build(input_shape)
        self.codebook.trainable = False
        shape = (self.num_embeddings, self.embedding_dim)
        self.counts = self.add_weight(shape=shape[:1], initializer="zeros", trainable=False, name="counts")
        self.sums = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="sums")
        self.draws = keras.random.SeedGenerator(name="draws")  # seeded by keras.utils.set_random_seed

    def call(self, latents, training=False):
        codes = self.nearest(latents)
        quantized = self.lookup(codes)
        loss = self.commitment_cost * ops.mean((latents - ops.stop_gradient(quantized)) ** 2)
        if training:
            self._follow(ops.reshape(ops.stop_gradient(latents), (-1, self.embedding_dim)), ops.reshape(codes, (-1,)))
        return latents + ops.stop_gradient(quantized - latents), codes, loss

    def _follow(self, latents, codes):
        """Move the codebook towards latents (M, D) whose nearest codes are (M,)."""
        replicas = tf.distribute.get_replica_context()
        values = [ops.ones_like(latents[:, 0]), latents]
        sums_by_code = [ops.segment_sum(each, codes, self.num_embeddings) for each in values]
        counts, sums = replicas.all_reduce("sum", sums_by_code)
        total = ops.sum(counts)
        usual = total / self.num_embeddings
        counts = self.decay * self.counts + (1 - self.decay) * counts
        sums = self.decay * self.sums + (1 - self.decay) * sums
        candidates = self._draw(latents, replicas, ops.cast(total, "int32"))
        dying = counts < REVIVE * usual
        counts = ops.where(dying, usual, counts)
        sums = ops.where(dying[:, None], usual * candidates, sums)
        self.counts.assign(counts)
        self.sums.assign(sums)
        self.codebook.assign(sums / counts[:, None])

    def _draw(self, latents, replicas, total):
        """Draw a latent vector for each code (K, D) from the `total` latents that all replicas have together."""
        drawn = keras.random.randint((self.num_embeddings,), 0, total, seed=self.draws)
        place, number = replicas.replica_id_in_sync_group, tf.distribute.get_strategy().num_replicas_in_sync
        sizes = replicas.all_reduce("sum", ops.one_hot(place, number, dtype="int32") * ops.shape(latents)[0])
        index = drawn - ops.sum(sizes * ops.cast(ops.arange(number) < place, "int32"))  # among this replica's own
        mine = (index >= 0) & (index < ops.shape(latents)[0])
        found = ops.take(latents, ops.where(mine, index, 0), axis=0)
        return replicas.all_reduce("sum", ops.where(mine[:, None], found, 0.0))


class Residual(layers.Layer):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution; added to the input (N, h, w, filters) (arXiv 1711.00937, 4.1)."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.wide = SafeConv2D(filters, 3, activation="relu", name="wide")
        self.narrow = SafeConv2D(filters, 1, kernel_initializer="zeros", name="narrow")  # it starts as the identity

    def build(self, input_shape):
        self.wide.build(input_shape)
        self.narrow.build(input_shape)

    def call(self, inputs):
        return inputs + self.narrow(self.wide(ops.relu(inputs)))


def build_decoder(config, inputs=None, outputs=1):
    """Return the network from quantized latents (16, 16, 32) to slices (128, 128, 1); sizes by a SharpVQVAEConfig.

    Latents may have other `inputs` channels, and slices other `outputs`.
    """
    grid = config.size // 2 ** len(config.decoder_filters)
    upward = []
    for i, filters in enumerate(config.decoder_filters):
        upward.append(SafeConv2DTranspose(filters, 3, strides=2, activation="relu", name=f"up_{i}"))
        if i < len(config.decoder_filters) - 1:  # at full size blocks would cost more than everything else
            upward += [Residual(filters, name=f"fine_{i}_{j}") for j in range(config.fine_blocks)]
    parts = [keras.Input((grid, grid, inputs or config.latent_dim))]
    parts.append(SafeConv2DTranspose(config.bottleneck, 3, activation="relu", name="wide"))
    parts += [Residual(config.bottleneck, name=f"residual_{i}") for i in range(config.residual_blocks)]
    parts += [*upward, SafeConv2DTranspose(outputs, 3, name="image")]
    return keras.Sequential(parts, name="decoder")


def build_vqvae(config):
    """Return the VQVAE that a SharpVQVAEConfig describes; its latents are (16, 16, 32)."""
    blocks = (Residual(config.bottleneck, name=f"residual_{i}") for i in range(config.residual_blocks))
    encoder = build_encoder(config, blocks)
    sizes, rates = (config.num_embeddings, config.latent_dim), (config.commitment_cost, config.codebook_decay)
    quantizer = MovingAverageQuantizer(*sizes, *rates, name="quantizer")
    quantizer.build(encoder.output_shape)
    return VQVAE(config, encoder, quantizer, build_decoder(config))


class GatedLayer(layers.Layer):
    """A layer of the gated PixelCNN (arXiv 1606.05328, figure 2), without a blind spot.

    Called on the vertical stack (N, h, w, C), the horizontal stack (N, h, w, C) and a condition (N, h, w, E) it returns
    both stacks (N, h, w, filters). The vertical stack at a position depends on all rows down to its own. The horizontal
    stack depends on the rows above, through the vertical one, and on the positions to its left; on its own too, unless
    the layer is the `first`.
    """

    def __init__(self, filters, kernel_size, first, dropout, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.first, self.margin = filters, first, kernel_size // 2
        self.vertical = SafeConv2D(2 * filters, (self.margin + 1, kernel_size), padding="valid", name="vertical")
        self.horizontal = SafeConv2D(2 * filters, (1, self.margin + (not first)), padding="valid", name="horizontal")
        self.link = SafeConv2D(2 * filters, 1, name="link")
        self.condition = SafeConv2D(4 * filters, 1, use_bias=False, name="condition")
        self.mix = SafeConv2D(filters, 1, name="mix")
        self.dropout = layers.Dropout(dropout, name="dropout")

    def build(self, vertical_shape, horizontal_shape, condition_shape):
        stack, padded = vertical_shape, (None, None, None, vertical_shape[-1])
        self.vertical.build(padded)
        self.horizontal.build(padded)
        self.link.build((*stack[:-1], 2 * self.filters))
        self.condition.build(condition_shape)
        self.mix.build((*stack[:-1], self.filters))

    def call(self, vertical, horizontal, condition, training=False):
        margin = self.margin
        to_vertical, to_horizontal = ops.split(self.condition(condition), 2, axis=-1)
        down = self.vertical(ops.pad(vertical, ((0, 0), (margin, 0), (margin, margin), (0, 0))))
        above = ops.pad(down, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
        left = ops.pad(horizontal, ((0, 0), (0, 0), (margin, 0), (0, 0)))
        across = self.horizontal(left[:, :, :-1] if self.first else left) + self.link(above)
        update = self.mix(self.dropout(_gate(across + to_horizontal), training=training))
        return _gate(down + to_vertical), update if self.first else horizontal + update


def _gate(x):
    signal, gate = ops.split(x, 2, axis=-1)
    return ops.tanh(signal) * ops.sigmoid(gate)


class GatedPixelCNN(keras.Model):
    """The prior over larger grids of codes, described by a GatedPixelCNNConfig (arXiv 1606.05328).

    Called on code indices (N, h, w) int32 and slice levels (N,) int32 it returns logits (N, h, w, num_embeddings)
    float32. The logits at a code depend on its place, on the level and on the codes before it in raster order that its
    layers reach.
    """

    def __init__(self, config):
        super().__init__(name="pixelcnn")
        self.config, self.grid, self.num_embeddings = config, config.grid, config.num_embeddings
        self.levels, filters, dropout = config.levels, config.filters, config.dropout
        self.embedding = layers.Embedding(config.num_embeddings, filters, name="embedding")
        # in float32, because their gradients are sums over positions or grids
        self.level = layers.Embedding(config.levels, filters, dtype="float32", name="level")
        self.place = layers.Embedding(self.grid[0] * self.grid[1], filters, dtype="float32", name="place")
        self.gated = [
            GatedLayer(filters, config.kernel_size if i else 7, first=not i, dropout=dropout, name=f"gated_{i}")
            for i in range(config.gated_layers)
        ]
        self.dropout = layers.Dropout(dropout, name="dropout")
        self.wide = SafeConv2D(filters, 1, activation="relu", name="wide")
        self.head = SafeConv2D(config.num_embeddings, 1, dtype="float32", name="head")
        shape = (None, *self.grid, filters)
        for layer in (self.embedding, self.level, self.place):
            layer.build(None)
        for layer in self.gated:
            layer.build(shape, shape, shape)
        self.wide.build(shape)
        self.head.build(shape)
        self.built = True

    def call(self, codes, levels, training=False):
        vertical = horizontal = self.embedding(codes)
        places = ops.reshape(self.place(np.arange(np.prod(self.grid))), (1, *self.grid, -1))
        condition = places + self.level(levels)[:, None, None]
        for layer in self.gated:
            vertical, horizontal = layer(vertical, horizontal, condition, training=training)
        return self.head(self.wide(self.dropout(ops.relu(horizontal), training=training)))


class Discriminator(keras.Model):
    """Tells real slices from decoded ones, patch by patch, at two sizes; described by a DiscriminatorConfig.

    Called on images (N, size, size, 1) float32 in [-0.5, 0.5] and a guide to each, of the same shape, it returns for
    each size the outputs of its layers. The last output (N, h, w, 1) float32 holds the logits, positive where a patch
    looks real. The guide is the reconstruction by a VQ-VAE that knew no discriminator, so that texture must not only
    look real but also be in the right place. The detail of the image is given too, enlarged to count from the start.
    """

    def __init__(self, config):
        # the convolutions follow the policy, but not the detail of the images
        super().__init__(name="discriminator", dtype="float32")
        filters = config.filters
        self.scales = []
        for scale in ("scale_0", "scale_1"):
            parts = [SafeConv2D(count, 4, strides=2, name=f"{scale}_down_{i}") for i, count in enumerate(filters)]
            parts.append(SafeConv2D(filters[-1], 3, name=f"{scale}_wide"))
            self.scales.append([*parts, SafeConv2D(1, 3, dtype="float32", name=f"{scale}_logits")])
        for scale in self.scales:
            for layer, channels in zip(scale, (3, *filters, filters[-1])):
                layer.build((None, None, None, channels))
        self.built = True

    def call(self, images, guide):
        results = []
        for scale in self.scales:
            x, outputs = ops.concatenate([2 * images, 16 * detail(images), 2 * guide], axis=-1), []
            for layer in scale[:-1]:
                x = ops.leaky_relu(layer(x), 0.2)
                outputs.append(x)
            results.append([*outputs, scale[-1](x)])
            images, guide = ops.average_pool(images, 2), ops.average_pool(guide, 2)
        return results


class Critic(keras.Model):
    """Tells samples from real slices, both decoded; described by a CriticConfig.

    Called on images (N, 128, 128, 1) float32 in [-0.5, 0.5] it returns logits (N,) float32, high for real slices. At
    the optimum they are the log density ratio of real slices to samples.
    """

    def __init__(self, config):
        # the convolutions follow the policy, but not the detail of the images
        super().__init__(name="critic", dtype="float32")
        self.config = config
        self.features = [SafeConv2D(n, 4, strides=2, name=f"down_{i}") for i, n in enumerate(config.filters)]
        self.features.append(SafeConv2D(config.filters[-1], 3, name="wide"))
        self.dropout = layers.Dropout(config.dropout, dtype="float32", name="dropout")
        self.head = layers.Dense(1, dtype="float32", name="head")
        for layer, channels in zip(self.features, (2, *config.filters)):
            layer.build((None, None, None, channels))
        self.head.build((None, config.filters[-1]))
        self.built = True

    def call(self, images, training=False):
        x = ops.concatenate([2 * images, 16 * detail(images)], axis=-1)
        for layer in self.features:
            x = ops.leaky_relu(layer(x), 0.2)
        x = ops.mean(ops.cast(x, "float32"), axis=(1, 2))
        return self.head(self.dropout(x, training=training))[:, 0]
