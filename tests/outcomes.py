"""What tests look at after a script has run: pictures, weights and config.json."""

import json

import h5py
import numpy as np
from PIL import Image

from brains.config import STAGES


def assert_picture(path, shape=None):
    """Assert that a file is a picture that is not blank, grey and of a shape if one is given."""
    with Image.open(path) as image:
        image.load()
        grey = np.asarray(image.convert("L"))
        assert grey.std() > 5, f"{path} is blank"
        if shape:
            assert grey.shape == shape and image.mode == "L"


def arrays_of(folder):
    """Return every array of a set of weights by file and name."""
    arrays = {}
    for path in folder.glob("*.weights.h5"):
        with h5py.File(path) as file:
            file.visititems(
                lambda key, item: arrays.__setitem__(path.name + key, item[()]) if hasattr(item, "shape") else None
            )
    assert len(arrays) > 20
    return arrays


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def timeless(folder):
    """Return what config.json says of a set, but for how long the epochs took."""
    content = config_of(folder)
    for stage in STAGES:
        for epoch in content.get(stage, {}).get("history", []):
            epoch.pop("seconds")
    return content


def assert_same_set(folder, expected):
    """Assert that two sets of weights are equal to the bit, and came about in the same way."""
    arrays = arrays_of(folder)
    assert arrays.keys() == arrays_of(expected).keys()
    for name, array in arrays_of(expected).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert timeless(folder) == timeless(expected)
