"""Slices and codes as streams, in memory or beyond it: kept in a Store, shuffled, changed by a seed, fed to devices."""

import math

import numpy as np

import dataset
from brains import config
from brains.backend import tf
from brains.cli import UserError, writing
from modules import BATCH

DRAWS = np.dtype([("flip", float), ("move", float), ("offset", float, 2)])  # of an image


class Store:
    """Items (N, ...), kept as `dtype` in memory up to `limit` bytes and otherwise in a file; written slice by slice.

    `unpacked` turns kept items into what indexing returns; `packed` turns what is written into kept items.
    """

    def __init__(self, shape, dtype, path, limit=None, unpacked=None, packed=None):
        self.shape, self.dtype, self.path = shape, np.dtype(dtype), path
        self.unpacked, self.packed = unpacked or (lambda items: items), packed or (lambda items: items)
        self.kept = None
        if math.prod(shape) * self.dtype.itemsize <= (config.CACHE if limit is None else limit):
            self.kept = np.empty(shape, dtype)
        else:
            self._write(b"", 0, "wb")

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, chosen):
        kept = self.kept
        if kept is None:  # mapped for this call only, so that what was read does not stay in memory
            kept = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        return self.unpacked(np.array(kept[chosen]))

    def __setitem__(self, chosen, items):
        items = np.ascontiguousarray(self.packed(items), self.dtype)
        if self.kept is None:
            self._write(items.data, chosen.start * math.prod(self.shape[1:]) * self.dtype.itemsize, "r+b")
        else:
            self.kept[chosen] = items

    def _write(self, content, place, mode):
        with writing(self.path), open(self.path, mode) as file:
            file.seek(place)
            file.write(content)


def store_of_images(count, path, limit=None):
    """Return a Store for images (count, 128, 128, 1) float32 in [-0.5, 0.5] as `dataset.prepare` makes them.

    Their values are quarters of grey values. Kept as such they take half the size of floats and lose nothing.
    """
    shape, half, steps = (count, config.SIZE, config.SIZE, 1), np.float32(0.5), np.float32(1020)
    how = {"unpacked": lambda kept: kept / steps - half, "packed": lambda images: np.round((images + half) * steps)}
    return Store(shape, np.uint16, path, limit, **how)


def open_split(split, folder, data=None, url=None):
    """Return what `dataset.load_split` gives, with images in a Store, whose file, if it needs one, is in `folder`."""
    return dataset.load_split(split, data, url, lambda count: store_of_images(count, folder / "slices.bin"))


def open_masks(split, folder, data=None, url=None):
    """Return what `dataset.read_masks` gives, with masks in a Store, whose file, if it needs one, is in `folder`."""

    def allocate(count):
        return Store((count, config.SIZE, config.SIZE), np.uint8, folder / "masks.bin", config.CACHE // 4)

    return dataset.read_masks(split, data, url, allocate)


def encode(vqvae, images, path):
    """Return the code indices (N, h, w) int32 of images, in a Store."""
    dtype = np.min_scalar_type(vqvae.config.num_embeddings - 1)
    limit = config.CACHE // 8
    codes = Store((len(images), *vqvae.grid), dtype, path, limit, unpacked=lambda kept: kept.astype(np.int32))
    for part in parts(len(images)):
        codes[part] = vqvae.encode(images[part])
    return codes


def parts(count, size=BATCH):
    """Return slices that cover 0..count-1, each as long as what goes through a network at a time."""
    return [slice(i, min(count, i + size)) for i in range(0, count, size)]


def moments(images, chosen):
    """Return the mean (128, 128, 1) float64 of the chosen images and the variance of their pixels.

    Raises UserError if they are almost constant.
    """
    total, squares = 0, 0
    for part in parts(len(chosen)):
        batch = images[chosen[part]].astype(np.float64)
        total, squares = total + batch.sum(axis=0), squares + np.sum(batch**2)
    mean = total / len(chosen)
    variance = float(squares / len(chosen) / mean.size - mean.mean() ** 2)
    if variance < 1e-6:
        raise UserError("the training slices are almost constant; nothing can be learned from them")
    return mean, variance


def drawn(seed, count):
    """Return uniform numbers in [0, 1) that decide how images change, whichever worker changes them.

    They are an array (count,) with the fields `flip` and `move`, whether an image is, and `offset`, by how much.
    """
    return np.random.default_rng(seed).random((count, 4)).view(DRAWS)[:, 0]


def flip_half(images, draws):
    """Flip each image (N, H, W, 1) with probability 1/2 along the vertical axis: left and right of the head."""
    return np.where(draws["flip"][:, None, None, None] < 0.5, images[:, ::-1], images)


def move_half(images, draws):
    """Move each image (N, H, W, 1) with probability 1/2 by -1, 0 or 1 pixel along both axes."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    corners = np.where(draws["move"][:, None] < 0.5, (3 * draws["offset"]).astype(int), 1)
    places = zip(padded, corners)
    return np.stack([image[top : top + height, left : left + width] for image, (top, left) in places])


def shuffled(count, batch_size, seed):
    """Return batches of indices that together are 0..count-1, in an order given by the seed."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def feed(strategy, read, batches, seed):
    """Return the batches as `strategy` takes them, and their number.

    Each replica gets its part of a batch, and the share of the batch that this part is. `read(indices, draws)` gives
    the arrays of some items, for which it may use what is `drawn` by the seed. A batch with fewer items than
    replicas is left out; UserError is raised if that leaves none.
    """
    replicas = strategy.num_replicas_in_sync
    batches = [batch for batch in batches if len(batch) >= replicas]
    if not batches:
        raise UserError(f"a batch needs a slice for each of {replicas} devices; raise the batch size")

    def pipeline(context):
        here = context.num_replicas_in_sync // context.num_input_pipelines  # replicas of this worker

        def part(number):
            batch, replica = batches[number // here], context.input_pipeline_id * here + number % here
            draws = drawn((*seed, number // here), len(batch))
            mine = np.array_split(np.arange(len(batch)), context.num_replicas_in_sync)[replica]
            return np.float32(len(mine) / len(batch)), *read(batch[mine], draws[mine])

        example = part(0)
        types = [value.dtype for value in example]

        def load(number):
            arrays = tf.numpy_function(part, [number], types)
            for array, value in zip(arrays, example):
                array.set_shape((None, *value.shape[1:]) if value.ndim else ())
            return arrays

        numbers = tf.data.Dataset.range(len(batches) * here)
        return numbers.map(load, num_parallel_calls=2, deterministic=True).prefetch(2 * here)

    return strategy.distribute_datasets_from_function(pipeline), len(batches)
