"""The prior of the head preset: a flow that carries noise to the latents of a head, given what a person is.

A network learns the velocity at which mixtures of noise and latents move on straight lines from the one to the other.
To sample, noise is moved along. All cells move together, so that a head is one thing: its outline and ventricles come
first, then its gyri, then its grain.

Lipman et al. 2023, Flow Matching for Generative Modeling, arXiv 2210.02747
Liu et al. 2022, Flow Straight and Fast, arXiv 2209.03003
Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752
Peebles and Xie 2022, Scalable Diffusion Models with Transformers, arXiv 2212.09748       (how blocks are told the time)
"""

import numpy as np

from brains.backend import keras, layers, ops, tf
from brains.layers import SafeConv2D, with_neighbours

PATCH = 2  # cells a side of what the transformer takes as one
FREQUENCIES = np.geomspace(1, 1000, 32, dtype=np.float32)  # of the waves by which the time is told
SHIFT = 4  # how far times are shifted to noise, see `time_of`
STEPS = 8  # of sampling, each with two looks at the velocity
PORTION = 4  # heads that are sampled at a time


class SlabConv2D(layers.Layer):
    """A convolution of a grid (N, S, h, w, C) over each slab together with those below and above."""

    def __init__(self, filters, kernel_size, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.convolution = SafeConv2D(filters, kernel_size, kernel_initializer=kernel_initializer, name="convolution")

    def build(self, shape):
        self.convolution.build((None, *shape[2:-1], 3 * shape[-1]))

    def call(self, x):
        near = with_neighbours(x)
        y = self.convolution(ops.reshape(near, (-1, *near.shape[2:])))
        return ops.reshape(y, (-1, *x.shape[1:-1], y.shape[-1]))


class LocalBlock(layers.Layer):
    """Two convolutions, added to the input (N, S, h, w, C); it begins as the identity.

    Between them the condition (N, W) counts as a scale and a shift.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.norms = [layers.LayerNormalization(name=f"norm_{i}") for i in range(2)]
        self.first = SlabConv2D(filters, 3, name="first")
        self.second = SlabConv2D(filters, 3, kernel_initializer="zeros", name="second")
        self.told = layers.Dense(2 * filters, kernel_initializer="zeros", name="told")

    def build(self, shape, condition):
        for layer in (*self.norms, self.first, self.second):
            layer.build(shape)
        self.told.build(condition)

    def call(self, x, condition):
        scale, shift = ops.split(self.told(condition)[:, None, None, None], 2, axis=-1)
        y = self.norms[1](self.first(ops.silu(self.norms[0](x)))) * (1 + scale) + shift
        return x + self.second(ops.silu(y))


class GlobalBlock(layers.Layer):
    """Attention of all patches to all, then a network at each; both added to the input (N, T, W).

    The condition (N, 6 W) scales and shifts what enters both and weighs what they add. It is the same for all blocks,
    each of which adds a vector of its own (Chen et al. 2023, arXiv 2310.00426).
    """

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        plain = {"center": False, "scale": False}
        self.norms = [layers.LayerNormalization(**plain, name=f"norm_{i}") for i in range(2)]
        self.enter = layers.Dense(3 * width, use_bias=False, name="enter")
        self.leave = layers.Dense(width, use_bias=False, name="leave")
        self.widen = layers.Dense(4 * width, use_bias=False, activation="gelu", name="widen")
        self.narrow = layers.Dense(width, use_bias=False, name="narrow")

    def build(self, shape):
        for layer in (*self.norms, self.enter, self.leave, self.widen):
            layer.build(shape)
        self.narrow.build((None, 4 * self.width))
        self.own = self.add_weight(shape=(6 * self.width,), initializer="zeros", name="own")

    def call(self, x, condition):
        scale, shift, weight, scale_2, shift_2, weight_2 = ops.split((condition + self.own)[:, None], 6, axis=-1)
        y = self.enter(self.norms[0](x) * (1 + scale) + shift)
        y = ops.reshape(y, (-1, x.shape[1], 3, self.heads, self.width // self.heads))
        seen = ops.dot_product_attention(*(y[:, :, i] for i in range(3)))
        x = x + weight * self.leave(ops.reshape(seen, (-1, *x.shape[1:])))
        y = self.norms[1](x) * (1 + scale_2) + shift_2
        return x + weight_2 * self.narrow(self.widen(y))


class HeadFlow(keras.Model):
    """The flow of the latents of heads; described by a HeadFlowConfig.

    Called on mixtures (N, S, h, w, D) float32 of noise and standardised latents, their times (N,) float32 from 0, where
    they are noise, to 1, where they are latents, and traits (N, T) float32, it returns velocities (N, S, h, w, D)
    float32.
    """

    def __init__(self, config):
        super().__init__(name="flow", autocast=False)  # times need more than bfloat16
        self.config, self.grid = config, config.grid
        filters, width, shape = config.filters, config.width, (None, *config.grid, config.filters)
        slabs, rows, columns = config.grid
        self.patches = slabs, rows // PATCH, columns // PATCH
        kept = {"trainable": False, "dtype": "float32"}
        self.middle = self.add_weight(
            shape=(*config.grid, config.latent_dim), initializer="zeros", name="middle", **kept
        )
        self.deviation = self.add_weight(shape=(), initializer="ones", name="deviation", **kept)
        self.stretch = self.add_weight(shape=(), initializer="ones", name="stretch", **kept)
        self.told = {}
        for name, size in (("time", 2 * len(FREQUENCIES)), ("traits", config.traits)):
            self.told[name] = [
                layers.Dense(width, activation=activation, name=f"{name}_{i}")
                for i, activation in enumerate(("silu", None))
            ]
            self.told[name][0].build((None, size))
            self.told[name][1].build((None, width))
        self.enter = SlabConv2D(filters, 3, name="enter")
        self.enter.build((None, *config.grid, config.latent_dim))
        self.before, self.after = (
            [LocalBlock(filters, name=f"{name}_{i}") for i in range(config.local_blocks)]
            for name in ("before", "after")
        )
        for block in (*self.before, *self.after):
            block.build(shape, (None, width))
        self.gather = layers.Dense(width, use_bias=False, name="gather")
        self.gather.build((None, PATCH * PATCH * filters))
        tokens = int(np.prod(self.patches))
        self.place = self.add_weight(
            shape=(tokens, width), initializer=keras.initializers.RandomNormal(0.02), name="place"
        )
        self.modulation = layers.Dense(6 * width, kernel_initializer="zeros", name="modulation")
        self.modulation.build((None, width))
        self.blocks = [GlobalBlock(width, config.heads, name=f"block_{i}") for i in range(config.blocks)]
        for block in self.blocks:
            block.build((None, tokens, width))
        self.spread = layers.Dense(PATCH * PATCH * filters, use_bias=False, name="spread")
        self.spread.build((None, width))
        self.join = layers.Dense(filters, use_bias=False, name="join")
        self.join.build((None, 2 * filters))
        self.norm = layers.LayerNormalization(name="norm")
        self.norm.build(shape)
        self.leave = layers.Dense(config.latent_dim, kernel_initializer="zeros", dtype="float32", name="leave")
        self.leave.build(shape)
        self.built = True

    def know(self, latents):
        """Take the mean of latents (N, S, h, w, D), and their standard deviation about it, to standardise others."""
        middle = np.mean(latents, axis=0)
        self.middle.assign(middle)
        self.deviation.assign(np.sqrt(np.mean((latents - middle) ** 2)))

    def standardised(self, latents):
        """Return latents (N, S, h, w, D) less their mean, over their standard deviation."""
        return (latents - self.middle) / self.deviation

    def call(self, mixtures, times, traits):
        waves = times[:, None] * FREQUENCIES
        time = self._told("time", ops.concatenate([ops.sin(waves), ops.cos(waves)], axis=-1))
        condition = ops.silu(time + self._told("traits", traits))
        near = self.enter(mixtures)
        for block in self.before:
            near = block(near, condition)
        far = self.gather(self._in_patches(near)) + ops.cast(self.place, self.compute_dtype)
        modulation = self.modulation(condition)
        for block in self.blocks:
            far = block(far, modulation)
        x = self.join(ops.concatenate([near, self._in_cells(self.spread(far))], axis=-1))
        for block in self.after:
            x = block(x, condition)
        return self.leave(self.norm(x))

    def _told(self, name, values):
        first, second = self.told[name]
        return second(first(values))

    def _in_patches(self, cells):
        """Cut a grid (N, S, h, w, C) into patches (N, T, 4 C)."""
        slabs, rows, columns = self.patches
        split = ops.reshape(cells, (-1, slabs, rows, PATCH, columns, PATCH, cells.shape[-1]))
        joined = ops.transpose(split, (0, 1, 2, 4, 3, 5, 6))
        return ops.reshape(joined, (-1, slabs * rows * columns, PATCH * PATCH * cells.shape[-1]))

    def _in_cells(self, patches):
        """Put patches (N, T, 4 C) together to a grid (N, S, h, w, C)."""
        filters = patches.shape[-1] // (PATCH * PATCH)
        split = ops.reshape(patches, (-1, *self.patches, PATCH, PATCH, filters))
        return ops.reshape(ops.transpose(split, (0, 1, 2, 4, 3, 5, 6)), (-1, *self.grid, filters))


def time_of(share):
    """Return the times of shares of the way, both from 0 to 1: of training, of sampling and of validation.

    Heads are large, so noise hides what they have everywhere only at times near 0: there it is decided how large the
    ventricles are. So more of the way is spent there (Esser et al. 2024, arXiv 2403.03206).
    """
    return share / (share + SHIFT * (1 - share))


def velocity_error(flow, latents, traits, times, noise):
    """Return the mean squared error (N,) of a HeadFlow's velocities between noise and latents (N, S, h, w, D).

    That of always answering the mean is about 2. `times` (N,) are from 0 to 1.
    """
    latents, share = flow.standardised(latents), times[:, None, None, None, None]
    velocities = flow(share * latents + (1 - share) * noise, times, traits)
    return ops.mean((velocities - (latents - noise)) ** 2, axis=(1, 2, 3, 4))


def sample_latents(flow, num, seed, traits, temperature=1.0, progress=iter):
    """Draw latents (num, S, h, w, D) float32 from a HeadFlow, for traits (num, T) float32.

    The same seed draws the same latents, the first ones whatever their number. A temperature under 1 begins with less
    noise. `progress` wraps the iteration over portions, as tqdm does.
    """
    seeds = np.random.default_rng(seed).integers(0, 2**63, num)
    shape = (*flow.grid, flow.config.latent_dim)
    times = tf.constant(time_of(np.linspace(0, 1, STEPS + 1, dtype=np.float32)))

    @tf.function(input_signature=[tf.TensorSpec((None, *shape)), tf.TensorSpec((None, traits.shape[1]))])
    def move(latents, traits):
        """Move noise to latents, by the velocity halfway through each step (the midpoint method)."""
        for i in tf.range(STEPS):
            step = times[i + 1] - times[i]
            halfway = latents + velocity(latents, times[i], traits) * step / 2
            latents += velocity(halfway, times[i] + step / 2, traits) * step
        return latents * (flow.stretch * flow.deviation) + flow.middle

    def velocity(latents, time, traits):
        return flow(latents, tf.repeat(time, tf.shape(latents)[0]), traits)

    drawn = [np.zeros((0, *shape), np.float32)]
    for start in progress(range(0, num, PORTION)):
        own = slice(start, start + PORTION)
        noise = np.stack([np.random.default_rng(each).standard_normal(shape, np.float32) for each in seeds[own]])
        drawn.append(np.asarray(move(np.float32(temperature) * noise, traits[own])))
    return np.concatenate(drawn)


def sample_heads(vqvae, flow, num, seed, traits, temperature=1.0, progress=iter):
    """Draw code indices (num, S, h, w, depth) int32 of heads: those of latents that `sample_latents` draws."""
    return vqvae.codes_of(sample_latents(flow, num, seed, traits, temperature, progress))
