"""Slices that are read as a stream are those of the arrays, from memory or from a file, in the order of the seed."""

import numpy as np
import pytest

import dataset
from brains import config, stream
from brains.backend import tf
from brains.cli import UserError
from brains.stream import drawn, flip_half, move_half


@pytest.mark.parametrize("cache", [config.CACHE, 0], ids=["memory", "file"])
def test_slices_are_those_of_the_array(miniature, tmp_path, monkeypatch, cache):
    monkeypatch.setattr(config, "CACHE", cache)
    expected = dataset.load_split("train", miniature)
    opened = stream.open_split("train", tmp_path, miniature)
    assert (opened.names, opened.digest, len(opened.images)) == (expected.names, expected.digest, 48)
    assert any(tmp_path.iterdir()) == (cache == 0)
    np.testing.assert_array_equal(opened.images[5:9], expected.images[5:9])
    chosen = [40, 3, 3]
    np.testing.assert_array_equal(opened.images[chosen], expected.images[chosen])
    assert opened.images[chosen].dtype == np.float32


def test_codes_come_back_from_a_file(tmp_path):
    codes = np.random.default_rng(0).integers(0, 1024, (300, 16, 16))
    store = stream.Store(codes.shape, np.uint16, tmp_path / "codes.bin", limit=0)
    for start in range(0, 300, 128):
        store[start : start + 128] = codes[start : start + 128]
    np.testing.assert_array_equal(store[[299, 0, 130]], codes[[299, 0, 130]])


def test_a_file_that_cannot_be_written_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        stream.Store((10, 4), np.uint16, tmp_path / "missing" / "codes.bin", limit=0)


@pytest.mark.parametrize("cache", [config.CACHE, 0], ids=["memory", "file"])
def test_stream_gives_the_batches_of_the_array(miniature, tmp_path, monkeypatch, cache):
    monkeypatch.setattr(config, "CACHE", cache)
    expected, opened = dataset.load_split("train", miniature), stream.open_split("train", tmp_path, miniature)
    strategy = tf.distribute.get_strategy()

    def batches(images, epoch):
        def read(chosen, draws):
            return [flip_half(images[chosen], draws)]

        fed, number = stream.feed(strategy, read, stream.shuffled(48, 20, (0, epoch)), (0, epoch))
        content = [(float(share), np.asarray(batch)) for share, batch in fed]
        assert len(content) == number == 3 and all(share == 1 for share, _ in content)
        return [batch for _, batch in content]

    first = batches(opened.images, 0)
    assert [len(batch) for batch in first] == [20, 20, 8]
    for batch, other in zip(first, batches(expected.images, 0)):
        np.testing.assert_array_equal(batch, other)
    original = {image.tobytes() for image in expected.images}
    turned = {image[::-1].tobytes() for image in expected.images}
    seen = [image.tobytes() for batch in first for image in batch]
    assert set(seen) <= original | turned and len(set(seen) & turned - original) > 10
    assert not np.array_equal(first[0], batches(opened.images, 1)[0])


def test_mean_and_variance_of_a_stream_are_those_of_the_array(miniature, tmp_path):
    images = stream.open_split("train", tmp_path, miniature).images
    mean, variance = stream.moments(images, np.arange(len(images)))
    np.testing.assert_allclose(mean, images[:].mean(axis=0), atol=1e-6)
    assert variance == pytest.approx(images[:].var(dtype=np.float64), rel=1e-9)


def test_half_of_the_slices_are_moved_by_a_pixel():
    images = np.zeros((4000, 9, 9, 1), np.float32)
    images[:, 4, 4] = 1
    places = np.argmax(move_half(images, drawn(0, 4000)).reshape(4000, 81), axis=1)
    counts = np.bincount(places, minlength=81).reshape(9, 9)
    assert counts.sum() == counts[3:6, 3:6].sum() and counts[4, 4] / 4000 == pytest.approx(5 / 9, abs=0.03)
    assert np.delete(counts[3:6, 3:6].ravel(), 4) / 4000 == pytest.approx(1 / 18, abs=0.02)
