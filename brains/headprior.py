"""The prior of the head preset: over all codes of a head, cell by cell from the bottom up, given what a person is.

Local structure comes from causal convolutions, as in a PixelCNN; what a head has everywhere, such as its noise and
contrast, from attention to all earlier cells. The codes of a cell are drawn one after another by a small network.

van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, arXiv 1606.05328      (gates)
Chen et al. 2018, PixelSNAIL, arXiv 1712.09763                                                       (with attention)
Lee et al. 2022, Autoregressive Image Generation using Residual Quantization, arXiv 2203.01941       (depth)
Jun et al. 2020, Distribution Augmentation for Generative Modeling, arXiv (ICML 2020)                (conditions)
"""

import numpy as np

from brains.backend import keras, layers, ops
from brains.layers import SafeConv2D
from modules import MaskedConv2D


def before(x):
    """Return x (N, S, ...) moved on by one along the second axis, with zeros first."""
    return ops.pad(x, [(0, 0), (1, 0), *[(0, 0)] * (len(x.shape) - 2)])[:, :-1]


class CausalLayer(layers.Layer):
    """A gated convolution over a head's grid that sees earlier cells; added to the input (N, S, h, w, C).

    It sees the slab below whole and in its own slab the cells before, and the cell itself unless it is the `first`.
    """

    def __init__(self, filters, kernel_size, first, dropout, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.first = filters, first
        self.norm = layers.Identity(name="norm") if first else layers.LayerNormalization(dtype="float32", name="norm")
        self.own = MaskedConv2D(2 * filters, kernel_size, "A" if first else "B", activation=None, name="own")
        self.below = SafeConv2D(2 * filters, 3, use_bias=False, name="below")
        self.condition = SafeConv2D(2 * filters, 1, use_bias=False, name="condition")
        self.mix = SafeConv2D(filters, 1, name="mix")
        self.dropout = layers.Dropout(dropout, name="dropout")

    def build(self, shape):
        shape = (None, *shape[2:])
        for layer in (self.norm, self.own, self.below, self.condition, self.mix):
            layer.build(shape)

    def call(self, x, condition, training=False):
        y = self.norm(x)
        flat = lambda z: ops.reshape(z, (-1, *z.shape[2:]))
        total = self.own(flat(y)) + self.below(flat(before(y))) + self.condition(flat(condition))
        signal, gate = ops.split(total, 2, axis=-1)
        update = self.mix(self.dropout(ops.tanh(signal) * ops.sigmoid(gate), training=training))
        update = ops.reshape(update, (-1, *x.shape[1:4], self.filters))
        return update if self.first else x + update


class CausalAttention(layers.Layer):
    """Attention of each cell to itself and all earlier ones; added to the input (N, S, h, w, C)."""

    def __init__(self, filters, heads, dropout, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.heads = filters, heads
        self.norm = layers.LayerNormalization(dtype="float32", name="norm")
        self.enter = layers.Dense(3 * filters, use_bias=False, name="enter")
        self.leave = layers.Dense(filters, name="leave")
        self.dropout = layers.Dropout(dropout, name="dropout")

    def build(self, shape):
        for layer in (self.norm, self.enter, self.leave):
            layer.build((None, shape[-1]))

    def call(self, x, training=False):
        cells = int(np.prod(x.shape[1:4]))
        split = ops.reshape(self.enter(self.norm(x)), (-1, cells, 3, self.heads, self.filters // self.heads))
        seen = ops.dot_product_attention(*(split[:, :, i] for i in range(3)), is_causal=True)
        seen = ops.reshape(seen, (-1, *x.shape[1:]))
        return x + self.dropout(self.leave(seen), training=training)


class DepthHead(layers.Layer):
    """The logits (..., K) of the code at one depth, from a cell's context and the codes drawn before it there."""

    def __init__(self, filters, num_embeddings, first, dropout, **kwargs):
        super().__init__(**kwargs)
        self.context = layers.Dense(filters, name="context")
        self.drawn = None if first else layers.Dense(filters, use_bias=False, name="drawn")
        self.mix = layers.Dense(filters, name="mix")
        self.logits = layers.Dense(num_embeddings, dtype="float32", name="logits")
        self.dropout = layers.Dropout(dropout, name="dropout")
        self.filters = filters

    def build(self, context, drawn):
        self.context.build(context)
        if self.drawn:
            self.drawn.build(drawn)
        self.mix.build((None, self.filters))
        self.logits.build((None, self.filters))

    def call(self, context, drawn=None, training=False):
        x = self.context(context)
        x = ops.relu(x if drawn is None else x + self.drawn(drawn))
        x = x + ops.relu(self.mix(self.dropout(x, training=training)))
        return self.logits(self.dropout(x, training=training))


class HeadPrior(keras.Model):
    """The prior over the codes of heads; described by a HeadPriorConfig.

    Called on code indices (N, S, h, w, depth) int32 and traits (N, T) float32 it returns logits
    (N, S, h, w, depth, num_embeddings) float32. The logits of a code depend on its place, the traits, the codes of
    earlier cells (slab by slab, row by row) and the codes before it in its cell. Codes are seen as their codebook
    vectors.
    """

    def __init__(self, config):
        super().__init__(name="prior")
        self.config, self.num_embeddings = config, config.num_embeddings
        self.grid = (*config.grid, config.depth)  # of the codes of a head
        filters, (slabs, height, width) = config.filters, config.grid
        shape, seen = (None, *config.grid, filters), config.depth * config.latent_dim
        kept = {"initializer": "ones", "trainable": False}
        books = (config.depth, config.num_embeddings, config.latent_dim)
        self.codebooks = self.add_weight(shape=books, name="codebooks", **kept)
        self.scale = self.add_weight(shape=books[:1], name="scale", **kept)
        self.embedding = layers.Dense(filters, name="embedding")
        self.embedding.build((None, seen))
        self.place = layers.Embedding(height * width, filters, dtype="float32", name="place")
        self.slab = layers.Embedding(slabs, filters, dtype="float32", name="slab")
        self.place.build(None)
        self.slab.build(None)
        self.traits = [
            layers.Dense(filters, activation=activation, dtype="float32", name=f"traits_{i}")
            for i, activation in enumerate(("relu", None))
        ]
        self.traits[0].build((None, config.traits))
        self.traits[1].build((None, filters))
        self.causal, self.attention = [], {}
        for i in range(config.layers):
            self.causal.append(CausalLayer(filters, 5 if i == 0 else 3, i == 0, config.dropout, name=f"causal_{i}"))
            self.causal[-1].build(shape)
            if i in config.attention:
                self.attention[str(i)] = CausalAttention(filters, config.heads, config.dropout, name=f"attention_{i}")
                self.attention[str(i)].build(shape)
        self.norm = layers.LayerNormalization(dtype="float32", name="norm")
        self.norm.build((None, filters))
        self.depths = [
            DepthHead(config.wide, config.num_embeddings, not i, config.dropout, name=f"depth_{i}")
            for i in range(config.depth)
        ]
        for head in self.depths:
            head.build((None, filters), (None, 2 * config.latent_dim))
        self.built = True

    def know(self, codebooks):
        """Take the codebooks (depth, K, D) of a ResidualQuantizer."""
        codebooks = np.array([np.asarray(codebook) for codebook in codebooks])
        self.codebooks.assign(codebooks)
        self.scale.assign(1 / codebooks.std(axis=(1, 2)))

    def vectors(self, codes):
        """Return the codebook vectors (N, S, h, w, depth, D) of codes, scaled to deviation 1 by depth."""
        each = [ops.take(self.codebooks[i], codes[..., i], axis=0) * self.scale[i] for i in range(self.config.depth)]
        return ops.stack(each, axis=-2)

    def call(self, codes, traits, training=False):
        vectors = self.vectors(codes)
        x = self.embedding(ops.reshape(vectors, (-1, *self.config.grid, self.config.depth * self.config.latent_dim)))
        condition = self.condition(traits)
        for i, layer in enumerate(self.causal):
            x = layer(x, condition, training=training)
            if str(i) in self.attention:
                x = self.attention[str(i)](x, training=training)
        x = self.norm(x)
        # what is drawn already in a cell is told by the sum so far and the last vector
        sums = ops.cumsum(vectors / self.scale[:, None], axis=-2) * self.scale[0]
        told = [None, *ops.unstack(ops.concatenate([sums, vectors], axis=-1)[..., :-1, :], axis=-2)]
        logits = [head(x, drawn, training=training) for head, drawn in zip(self.depths, told)]
        return ops.stack(logits, axis=-2)

    def condition(self, traits):
        """Return what each cell is told of the traits (N, T) and its place: (N, S, h, w, C)."""
        slabs, height, width = self.config.grid
        told = self.traits[1](self.traits[0](traits))[:, None, None, None]
        slab = ops.reshape(self.slab(np.arange(slabs)), (1, slabs, 1, 1, -1))
        return told + slab + ops.reshape(self.place(np.arange(height * width)), (1, 1, height, width, -1))
