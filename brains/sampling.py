"""Fast sampling from the priors: the codes that `modules.sample` draws, from cached activations.

At each step only the activations at the new position are computed; what they add to later positions is kept
(Ramachandran et al. 2017, Fast Generation for Convolutional Autoregressive Models, arXiv 1704.06001). It is done in
NumPy, because at one position of a few grids calling TensorFlow would cost more than the arithmetic.
"""

import numpy as np
from scipy.sparse import csr_array

from brains import devices
from brains.backend import ops, tf
from brains.sharp import GatedPixelCNN

FEWEST, MOST = 32, 128  # grids in a batch: what is worth a core of its own, and what fits its cache
JUDGED = 16  # slices decoded and judged at a time on a core: few, so that they fit its cache


def sample(pixelcnn, num, seed, temperature=1.0, levels=None, progress=iter):
    """Draw code indices (num, h, w) int32 from a prior; see `modules.sample`, whose codes these are.

    The same seed draws the same codes, and the first of many are those of few, if their levels are the same. `levels`
    (num,) are slice levels, for a prior that knows them (default: spread evenly over all). `progress` wraps the
    iteration over batches, as tqdm does.
    """
    uniforms = np.random.default_rng(seed).random((num, *pixelcnn.grid), np.float32)
    levels = spread_levels(pixelcnn, num) if levels is None else np.asarray(levels, np.int32)
    none = np.zeros(uniforms.shape, np.int32)
    return redraw(pixelcnn, none, none == 0, uniforms, levels, temperature, progress)


def redraw(pixelcnn, codes, flagged, uniforms, levels, temperature=1.0, progress=iter):
    """Return codes (N, h, w) int32 of which those flagged (N, h, w) bool are drawn anew, each given those before it.

    They are drawn by the uniform numbers (N, h, w) float32 in [0, 1). The others are as in `sample`.
    """
    size = int(np.clip(-(-len(codes) // devices.cores()), FEWEST, MOST))  # every core gets a batch, unless tiny

    def draw(chosen, stop):
        return _redraw(pixelcnn, codes[chosen], flagged[chosen], uniforms[chosen], levels[chosen], temperature, stop)

    return np.concatenate(devices.on_all_cores(draw, _batches(len(codes), size), progress))


def _batches(num, size):
    """Return slices that cover 0..num-1, each of `size` items; one empty slice if there are none."""
    return [slice(start, start + size) for start in range(0, max(1, num), size)]


def sample_best(vqvae, pixelcnn, critic, candidates, num, seed, temperature=1.0, levels=None, progress=iter):
    """Draw code indices (num, h, w) int32: for each slice the one of `candidates` that the critic finds most realistic.

    Without a critic (None) this is `sample`, whose arguments the others are.
    """
    if critic is None:
        return sample(pixelcnn, num, seed, temperature, levels, progress)
    levels = spread_levels(pixelcnn, num) if levels is None else np.asarray(levels, np.int32)
    drawn = sample(pixelcnn, num * candidates, seed, temperature, np.repeat(levels, candidates), progress)
    judge = tf.function(
        lambda codes: critic(ops.clip(vqvae.paint(vqvae.quantizer.lookup(codes)), -0.5, 0.5)),
        input_signature=[tf.TensorSpec((None, *pixelcnn.grid), "int32")],
    )
    size = MOST if tf.config.list_physical_devices("GPU") else JUDGED
    logits = devices.on_all_cores(lambda chosen, stop: np.asarray(judge(drawn[chosen])), _batches(len(drawn), size))
    best = np.concatenate(logits).reshape(num, candidates).argmax(axis=1)
    return drawn.reshape(num, candidates, *pixelcnn.grid)[np.arange(num), best]


def spread_levels(pixelcnn, num):
    """Return slice levels (num,) int32 spread evenly over those that a prior knows; zeros if it knows none."""
    return ((np.arange(num) + 0.5) * (pixelcnn.levels or 0) / num).astype(np.int32)


def _redraw(pixelcnn, codes, flagged, uniforms, levels, temperature, stop):
    """Draw flagged codes from uniform numbers (N, h, w) in [0, 1), or give up when the Event `stop` is set."""
    codes = codes.copy()
    cache = (GatedCache if isinstance(pixelcnn, GatedPixelCNN) else PlainCache)(pixelcnn, uniforms.shape, levels)
    for row, column in np.ndindex(pixelcnn.grid):
        if stop.is_set():
            break
        logits = cache.logits(row, column)
        drawn = invert(logits, temperature, uniforms[:, row, column])
        codes[:, row, column] = np.where(flagged[:, row, column], drawn, codes[:, row, column])
        cache.add(codes[:, row, column], row, column)
    return codes


def invert(logits, temperature, uniforms):
    """Return the codes (N,) at which the cumulative distribution of logits (N, K) passes the uniform numbers (N,)."""
    with np.errstate(over="ignore"):  # at a temperature near 0 all but the likeliest become minus infinity
        weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) / max(temperature, np.finfo(np.float32).tiny))
    cumulative = np.cumsum(weights, axis=-1)
    # the last code takes what rounding leaves between the cumulative sum and 1
    return np.sum(cumulative[:, :-1] <= uniforms[:, None] * cumulative[:, -1:], axis=-1)


class PlainCache:
    """The activations of a PixelCNN for the codes of N grids (N, h, w) drawn so far."""

    def __init__(self, pixelcnn, grid, levels):
        self.first = _Ahead(pixelcnn.first, grid)
        self.blocks = [
            (block.enter.get_weights(), _Ahead(block.masked, grid), block.leave.get_weights())
            for block in pixelcnn.blocks
        ]
        self.masked = [layer.get_weights() for layer in pixelcnn.masked]
        self.head = pixelcnn.head.get_weights()

    def logits(self, row, column):
        x = _relu(self.first.at(row, column))
        for enter, ahead, leave in self.blocks:
            ahead.add(_relu(_dense(x, enter)) @ ahead.kernels, row, column)
            x = x + _relu(_dense(_relu(ahead.at(row, column)), leave))
        for layer in self.masked:
            x = _relu(_dense(x, layer))
        return _dense(x, self.head)

    def add(self, codes, row, column):
        self.first.add(self.first.kernels[:, codes], row, column)  # a one-hot input picks rows of the kernel


class GatedCache:
    """The activations of a GatedPixelCNN for the codes of N grids (N, h, w) drawn so far."""

    def __init__(self, pixelcnn, grid, levels):
        _, self.height, self.width = grid
        self.embedding, self.wide, self.head = (
            pixelcnn.embedding.get_weights()[0],
            pixelcnn.wide.get_weights(),
            pixelcnn.head.get_weights(),
        )
        level = pixelcnn.level.get_weights()[0][levels]
        places = pixelcnn.place.get_weights()[0].reshape(*grid[1:], -1)
        first, *others = pixelcnn.gated
        self.layers = [_FirstLayerCache(first, grid, level, places, self.embedding)]
        self.layers += [_GatedLayerCache(layer, grid, level, places) for layer in others]

    def logits(self, row, column):
        x = None
        for layer in self.layers:
            x = layer.across(x, column)
        return _dense(_relu(_dense(_relu(x), self.wide)), self.head)

    def add(self, codes, row, column):
        first = self.layers[0]
        first.left[:, column + first.margin] = self.embedding[codes]
        first.codes[column + first.margin, :, row + first.margin] = codes
        if column == self.width - 1 and row < self.height - 1:  # the row is whole, so later rows can see it
            for layer, below in zip(self.layers, [*self.layers[1:], None]):
                result = layer.down(row)
                if below:
                    below.above[below.margin : below.margin + self.width, :, row + below.margin] = result


class _GatedLayerCache:
    """The inputs of a GatedLayer so far: those of the rows `above` (columns, N, rows, C) and `left` in this row.

    The columns of `above` come first, so that the rows and columns under a column of the kernel are one matrix without
    a copy. `base` (columns, N, 2 C) is all that the horizontal stack of this row adds up but the inputs to the left.
    """

    def __init__(self, layer, grid, level, places):
        number, height, width = grid
        self.first, self.margin, self.width = layer.first, layer.margin, width
        self.vertical, self.horizontal, self.link, self.mix = (
            part.get_weights() for part in (layer.vertical, layer.horizontal, layer.link, layer.mix)
        )
        condition = layer.condition.get_weights()[0][0, 0]
        # to the vertical and to the horizontal stack
        self.level, self.places = np.split(level @ condition, 2, axis=-1), np.split(places @ condition, 2, axis=-1)
        inputs = len(condition)
        self.above = np.zeros((width + 2 * self.margin, number, height + self.margin, inputs), np.float32)
        self.left = np.zeros((number, width + self.margin, inputs), np.float32)
        self.sums = np.empty((2, width * number, len(self.link[1])), np.float32)  # kept, since new ones cost time
        self._start_row(0, self.link[1])  # no row is above

    def _start_row(self, row, linked):
        self.base = linked + self.horizontal[1] + self.level[1] + self.places[1][row][:, None]

    def across(self, x, column):
        """Return the output (N, C) of the horizontal stack at a position, from that of the layer before."""
        if not self.first:
            self.left[:, column + self.margin] = x
        kernel, _ = self.horizontal
        seen = self.left[:, column : column + kernel.shape[1]]
        total = seen.reshape(len(seen), -1) @ kernel.reshape(-1, kernel.shape[-1])
        total += self.base[column]
        update = _dense(_gate(total), self.mix)
        return update if self.first else x + update

    def down(self, row):
        """Return the output (columns, N, C) of the vertical stack for a whole row."""
        total = self.sums_of(row).reshape(self.width, -1, len(self.vertical[1]))
        self._start_row(row + 1, _dense(total, self.link))
        return _gate(total + self.level[0] + self.places[0][row][:, None])

    def sums_of(self, row):
        """Return the sums (columns N, 2 C) of the vertical stack's convolution for a row."""
        kernel, bias = self.vertical
        rows, columns, inputs, outputs = kernel.shape
        known = min(rows, row + 1)  # of the rows under the kernel; those above the grid are zero
        total, product = self.sums
        total[:] = bias
        for column in range(columns):
            seen = self.above[column : column + self.width, :, row + rows - known : row + rows]
            weights = kernel[rows - known :, column].reshape(-1, outputs)
            total += np.matmul(seen.reshape(-1, known * inputs), weights, out=product)
        return total


class _FirstLayerCache(_GatedLayerCache):
    """The same for the first layer, whose inputs are embeddings: products with the kernel are looked up and added."""

    def __init__(self, layer, grid, level, places, embedding):
        super().__init__(layer, grid, level, places)
        rows, columns, inputs, outputs = self.vertical[0].shape
        self.taps = np.arange(columns * rows, dtype=np.int32)
        kernel = self.vertical[0].transpose(2, 1, 0, 3).reshape(inputs, -1)
        known = np.concatenate([embedding, np.zeros((1, inputs), np.float32)])  # the last one stands for no code
        self.products = (known @ kernel).reshape(-1, outputs)  # of each code with each tap
        self.codes = np.full(self.above.shape[:3], len(embedding), np.int32)

    def sums_of(self, row):
        columns, rows = self.vertical[0].shape[1], self.vertical[0].shape[0]
        seen = np.lib.stride_tricks.sliding_window_view(self.codes[:, :, row : row + rows], columns, axis=0)
        index = seen.swapaxes(2, 3).reshape(-1, len(self.taps)) * len(self.taps) + self.taps
        picks = (np.ones(index.size, np.float32), index.ravel(), np.arange(0, index.size + 1, len(self.taps)))
        return csr_array(picks, shape=(len(index), len(self.products))) @ self.products + self.vertical[1]


def _gate(x):
    signal, gate = np.split(x, 2, axis=-1)
    return np.tanh(signal) / (1 + np.exp(-np.maximum(gate, -80)))


def _dense(x, weights):
    kernel, bias = weights  # of a 1x1 convolution
    return x @ kernel[0, 0] + bias


class _Ahead:
    """The sums of a masked convolution at the positions (h, w) of N grids, over the inputs that are known so far."""

    def __init__(self, layer, grid):
        kernel, bias = layer.get_weights()
        number, height, width = grid
        taps = np.argwhere(layer.mask[..., 0, 0])
        self.margin = len(kernel) // 2
        self.kernels = np.stack([kernel[i, j] for i, j in taps])  # (taps, inputs, outputs)
        self.offsets = self.margin - taps  # from an input to the output that sees it through the tap
        shape = (height + self.margin, width + 2 * self.margin, number, len(bias))
        self.sums = np.broadcast_to(bias, shape).copy()

    def add(self, contributions, row, column):
        """Add contributions (taps, N, outputs) of the inputs at a position to the outputs that see it."""
        for (down, right), contribution in zip(self.offsets, contributions):
            self.sums[row + down, column + right + self.margin] += contribution

    def at(self, row, column):
        return self.sums[row, column + self.margin]


def _relu(x):
    return np.maximum(x, 0)
