"""Fast sampling from the prior of heads: cell by cell, from cached activations (see brains/sampling.py).

What the slab below adds is computed once for a whole slab; at a cell only its own layer's earlier neighbours, and the
keys and values of all earlier cells, are looked up.
"""

import numpy as np

from brains import devices
from brains.sampling import invert

MOST = 16  # heads in a batch


def sample_heads(prior, num, seed, traits, temperature=1.0, progress=iter):
    """Draw code indices (num, S, h, w, depth) int32 from a HeadPrior, for traits (num, T) float32.

    The same seed draws the same codes. `progress` wraps the iteration over batches, as tqdm does.
    """
    shape = (*prior.config.grid, prior.config.depth)
    size = int(np.clip(-(-num // devices.cores()), 1, MOST))
    seeds = np.random.default_rng(seed).integers(0, 2**63, num)  # of each head, so that the first ones stay the same
    weights = {path: np.asarray(value) for path, value in ((each.path, each) for each in prior.weights)}

    def draw(start, stop):
        own = slice(start, min(num, start + size))
        uniforms = np.stack([np.random.default_rng(each).random(shape, np.float32) for each in seeds[own]])
        return _draw(_Cache(prior, weights, traits[own]), uniforms, temperature, stop)

    return np.concatenate(devices.on_all_cores(draw, range(0, num, size), progress))


def _draw(cache, uniforms, temperature, stop):
    """Draw the codes (N, S, h, w, depth) of heads from uniform numbers, or give up when the Event `stop` is set."""
    codes = np.zeros(uniforms.shape, np.int32)
    for slab, row, column in np.ndindex(uniforms.shape[1:4]):
        if stop.is_set():
            break
        if row == column == 0:
            cache.start(slab)
        context = cache.context(row, column)
        drawn = codes[:, slab, row, column]
        for depth in range(uniforms.shape[4]):
            logits = cache.logits(context, drawn, depth)
            drawn[:, depth] = invert(logits, temperature, uniforms[:, slab, row, column, depth])
        cache.add(drawn, row, column)
    return codes


class _Cache:
    """The activations of a HeadPrior for the cells of N heads drawn so far."""

    def __init__(self, prior, weights, traits):
        self.config, config = prior.config, prior.config
        self.grid = config.grid
        self.codebooks, self.scale = np.asarray(prior.codebooks), np.asarray(prior.scale)
        self.embedding = _dense_of(prior.embedding)
        told = _dense(np.maximum(_dense(traits, _dense_of(prior.traits[0])), 0), _dense_of(prior.traits[1]))
        place, slab = np.asarray(prior.place.embeddings), np.asarray(prior.slab.embeddings)
        self.layers = [_CausalCache(layer, self.grid, told, place, slab) for layer in prior.causal]
        self.attention = {i: _AttentionCache(layer, self.grid, len(traits)) for i, layer in prior.attention.items()}
        self.norm = _norm_of(prior.norm)
        self.depths = [
            [
                _dense_of(head.context),
                head.drawn and np.asarray(head.drawn.kernel),
                *map(_dense_of, (head.mix, head.logits)),
            ]
            for head in prior.depths
        ]

    def start(self, slab):
        for layer in self.layers:
            layer.start(slab)

    def context(self, row, column):
        x = None
        for i, layer in enumerate(self.layers):
            x = layer.at(x, row, column)
            if str(i) in self.attention:
                x = self.attention[str(i)].at(x)
        return _normed(x, self.norm)

    def logits(self, context, drawn, depth):
        enter, of_drawn, mix, logits = self.depths[depth]
        x = _dense(context, enter)
        if depth:
            last = self.codebooks[depth - 1][drawn[:, depth - 1]] * self.scale[depth - 1]
            so_far = sum(self.codebooks[i][drawn[:, i]] for i in range(depth)) * self.scale[0]
            x = x + np.concatenate([so_far, last], axis=-1) @ of_drawn
        x = np.maximum(x, 0)
        x = x + np.maximum(_dense(x, mix), 0)
        return _dense(x, logits)

    def add(self, drawn, row, column):
        vectors = [self.codebooks[i][drawn[:, i]] * self.scale[i] for i in range(self.config.depth)]
        self.layers[0].store(_dense(np.concatenate(vectors, axis=-1), self.embedding), row, column)


class _CausalCache:
    """The inputs of a CausalLayer in this slab, and what the slab below and the condition add to it."""

    def __init__(self, layer, grid, told, place, slab):
        slabs, self.height, self.width = grid
        self.first, self.margin = layer.first, layer.own.kernel_size[0] // 2
        kernel, self.bias = np.asarray(layer.own.kernel), np.asarray(layer.own.bias)
        self.taps = [tuple(tap) for tap in np.argwhere(layer.own.mask[..., 0, 0])]
        self.kernel = np.concatenate([kernel[tap] for tap in self.taps])
        self.below = np.asarray(layer.below.kernel)
        self.norm = None if layer.first else _norm_of(layer.norm)
        self.mix = [np.asarray(layer.mix.kernel)[0, 0], np.asarray(layer.mix.bias)]
        condition = np.asarray(layer.condition.kernel)[0, 0]
        self.told, self.place, self.slab = told @ condition, place @ condition, slab @ condition
        margin, filters = self.margin, len(condition)
        self.seen = np.zeros((len(told), self.height + margin, self.width + 2 * margin, filters), np.float32)

    def start(self, slab):
        """Begin a slab: what was seen in the last one is now below."""
        self.base = (self.bias + self.told + self.slab[slab])[:, None] + self.place
        if slab:
            own = self.seen[:, self.margin :, self.margin : self.margin + self.width]
            padded = np.pad(own, [(0, 0), (1, 1), (1, 1), (0, 0)])
            for i, j in np.ndindex(3, 3):
                part = padded[:, i : i + self.height, j : j + self.width].reshape(len(own), -1, own.shape[-1])
                self.base += part @ self.below[i, j]
        self.seen[:] = 0

    def store(self, y, row, column):
        self.seen[:, row + self.margin, column + self.margin] = y

    def at(self, x, row, column):
        if not self.first:
            self.store(_normed(x, self.norm), row, column)
        near = np.concatenate([self.seen[:, row + i, column + j] for i, j in self.taps], axis=-1)
        signal, gate = np.split(near @ self.kernel + self.base[:, row * self.width + column], 2, axis=-1)
        update = _dense(np.tanh(signal) / (1 + np.exp(-np.maximum(gate, -80))), self.mix)
        return update if self.first else x + update


class _AttentionCache:
    """The keys and values of a CausalAttention for all cells so far."""

    def __init__(self, layer, grid, number):
        self.heads, self.length = layer.heads, 0
        self.norm, self.enter, self.leave = _norm_of(layer.norm), np.asarray(layer.enter.kernel), _dense_of(layer.leave)
        cells, size = int(np.prod(grid)), layer.filters // layer.heads
        self.keys = np.zeros((number, self.heads, cells, size), np.float32)
        self.values = np.zeros_like(self.keys)

    def at(self, x):
        split = (_normed(x, self.norm) @ self.enter).reshape(len(x), 3, self.heads, -1)
        query, self.keys[:, :, self.length], self.values[:, :, self.length] = split.swapaxes(0, 1)
        self.length += 1
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        weights = (keys @ query[..., None])[..., 0] / np.sqrt(np.float32(query.shape[-1]))
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return x + _dense((weights[:, :, None] @ values).reshape(len(x), -1), self.leave)


def _dense_of(layer):
    return [np.asarray(layer.kernel), np.asarray(layer.bias)]


def _dense(x, weights):
    return x @ weights[0] + weights[1]


def _norm_of(layer):
    return [np.asarray(layer.gamma), np.asarray(layer.beta), layer.epsilon]


def _normed(x, norm):
    gamma, beta, epsilon = norm
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + epsilon) * gamma + beta
