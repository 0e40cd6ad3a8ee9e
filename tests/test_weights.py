"""Sets of weights: what is saved comes back, and what does not belong is refused."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import make_pixelcnn, make_vqvae
from conftest import ROOT, brains

from brains import config, sampling, weights
from brains.cli import UserError
from brains.sharp import Critic


def make_set(folder, vqvae, **changes):
    """Write a set of weights whose PixelCNN has changes of its configuration; returns that PixelCNN."""
    pixelcnn = make_pixelcnn(**changes)
    models = {"vqvae": vqvae, "pixelcnn": pixelcnn, "critic": Critic(config.CriticConfig(filters=(4, 4), dropout=0.1))}
    content = {"vqvae": {}, "pixelcnn": {}, "critic": {"candidates": 3}, "data": {"held_out_cases": []}}
    weights.save_set(folder, models, content, brains().mean(axis=0))
    return pixelcnn


def test_set_reconstructs_and_samples_the_same_in_another_process(vqvae, tmp_path):
    images = brains()
    pixelcnn = make_set(tmp_path / "set", vqvae)
    np.save(tmp_path / "images.npy", images)
    script = """
import sys
import numpy as np
from brains import sampling, weights
vqvae, pixelcnn = weights.load_models("set")
images, codes = vqvae(np.load("images.npy"))[0], sampling.sample(pixelcnn, 3, seed=1)
np.savez("there.npz", codebook=vqvae.quantizer.codebook, images=images, codes=codes)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    there = np.load(tmp_path / "there.npz")
    np.testing.assert_array_equal(there["codebook"], vqvae.quantizer.codebook)
    np.testing.assert_array_equal(there["images"], vqvae(images)[0])
    np.testing.assert_array_equal(there["codes"], sampling.sample(pixelcnn, 3, seed=1))


def damage_nothing(folder):
    """The control: the folder that each other case damages loads."""


def lose_config(folder):
    (folder / weights.CONFIG).unlink()


def break_config(folder):
    (folder / weights.CONFIG).write_text("{")


def earlier_version(folder):
    content = json.loads((folder / weights.CONFIG).read_text())
    del content["pixelcnn"]["network"]["class"]
    (folder / weights.CONFIG).write_text(json.dumps(content))


def unknown_network(folder):
    content = json.loads((folder / weights.CONFIG).read_text())
    content["pixelcnn"]["network"]["class"] = "Transformer"
    (folder / weights.CONFIG).write_text(json.dumps(content))


def lose_weights(folder):
    (folder / weights.weights_file("vqvae")).unlink()


def truncate_weights(folder):
    path = folder / weights.weights_file("pixelcnn")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_shape(folder):
    content = json.loads((folder / weights.CONFIG).read_text())
    content["pixelcnn"]["network"]["filters"] = 24
    (folder / weights.CONFIG).write_text(json.dumps(content))


def other_pixelcnn(folder):
    shutil.copy(folder.parent / "other" / weights.weights_file("pixelcnn"), folder)


def other_vqvae(folder):
    shutil.copy(folder.parent / "other" / weights.weights_file("vqvae"), folder)


def other_trained_on(folder):
    content = json.loads((folder / weights.CONFIG).read_text())
    content["pixelcnn"]["trained_on"] = "0" * 64
    (folder / weights.CONFIG).write_text(json.dumps(content))


def lose_critic(folder):
    (folder / weights.weights_file("critic")).unlink()


def other_prior_of_critic(folder):
    content = json.loads((folder / weights.CONFIG).read_text())
    content["critic"]["trained_on"] = "0" * 64
    (folder / weights.CONFIG).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage, words",
    [
        (damage_nothing, None),
        (lose_config, "no trained weights here"),
        (break_config, "not the configuration"),
        (earlier_version, "written by an earlier version"),
        (unknown_network, "does not fit the network"),
        (lose_weights, "missing"),
        (truncate_weights, "truncated or no weights file"),
        (change_shape, "does not fit the network"),
        (other_pixelcnn, "not the weights that config.json describes"),
        (other_vqvae, "not the weights that config.json describes"),
        (other_trained_on, "codes of another VQ-VAE"),
        (lose_critic, "critic.weights.h5: missing"),
        (other_prior_of_critic, "another PixelCNN"),
    ],
)
def test_weights_that_do_not_belong_are_refused(vqvae, tmp_path, damage, words):
    make_set(tmp_path / "set", vqvae, filters=16)
    if damage in (other_pixelcnn, other_vqvae):
        other = make_pixelcnn(filters=16)
        other.head.bias.assign(other.head.bias + 1)
        models = {"vqvae": make_vqvae(), "pixelcnn": other}  # its codebook lies elsewhere
        content = {"vqvae": {}, "pixelcnn": {}, "data": {"held_out_cases": []}}
        weights.save_set(tmp_path / "other", models, content, brains().mean(axis=0))
    damage(tmp_path / "set")

    def load():
        return weights.load_models(tmp_path / "set"), weights.load_critic(tmp_path / "set")

    if words is None:
        assert load()[1][1] == 3
        return
    with pytest.raises(UserError, match=words) as caught:
        load()
    assert str(tmp_path / "set") in str(caught.value) and "\n" not in str(caught.value)


def test_kill_at_any_rename_leaves_a_whole_set(vqvae, tmp_path, monkeypatch):
    rename = Path.rename
    for survived in itertools.count():
        folder = tmp_path / f"after_{survived}" / "set"
        old = make_set(folder, vqvae, filters=8).config
        renames = []

        def dying_rename(source, target):
            if len(renames) == survived:
                raise KeyboardInterrupt
            renames.append(target)
            return rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying_rename)
            try:
                new = make_set(folder, vqvae, filters=16).config
                finished = True
            except KeyboardInterrupt:
                new, finished = make_pixelcnn(filters=16).config, False
        assert weights.load_models(folder)[1].config in (old, new)
        make_set(folder, vqvae, filters=24)  # and the next training is stored as ever
        assert weights.load_models(folder)[1].config.filters == 24
        assert [path.name for path in folder.parent.iterdir()] == ["set"]
        if finished:
            break
    assert survived >= 3


def test_neither_a_link_nor_what_lies_beside_is_lost(vqvae, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "elsewhere")
    for ending in ("old", "new", "tmp"):
        (tmp_path / f"set.{ending}").mkdir()
        (tmp_path / f"set.{ending}" / "thesis.tex").touch()
    for filters in (8, 16):
        make_set(tmp_path / "set", vqvae, filters=filters)
        assert weights.load_models(tmp_path / "set")[1].config.filters == filters
    assert (tmp_path / "set").is_symlink() and len(list(tmp_path.rglob("thesis.tex"))) == 3


@pytest.mark.parametrize("name", ["thesis.tex", ".git"])
def test_folder_with_other_files_is_not_replaced(vqvae, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=name):
        make_set(tmp_path, vqvae)
    assert (tmp_path / name).exists()


def test_every_preset_comes_back_from_its_configuration():
    for preset in config.PRESETS.values():
        for network in vars(preset).values():
            name = type(network).__name__.removesuffix("Config")
            if name in weights.NETWORKS:
                model = weights.build(json.loads(json.dumps({"class": name, **vars(network)})))
                assert model.config == network and weights.describe(model)["class"] == name
