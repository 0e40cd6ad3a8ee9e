"""Tissue: the segmenter, the masks beside samples, and sets that are written with them."""

import numpy as np
import pytest
from conftest import SEGMENTER, SLICES, brains, stop_at, tissue
from outcomes import assert_picture, assert_same_set, config_of
from PIL import Image

import dataset
from brains import export, names, stream, weights
from brains.tissue import dice, recoloured, tissue_loss


def test_segmenter_learns_the_tissues_of_a_phantom(labelled, segmenter, program):
    slices, masks = dataset.load_split("test", labelled), dataset.load_masks("test", labelled)
    scores = dice(weights.load_segmenter(segmenter).label(slices.images), masks, names.owners(slices.names)[0])
    assert scores.shape == (2, 3) and scores.min() > 0.95, scores
    last = config_of(segmenter)["segmenter"]["history"][-1]
    assert last["validation_Dice of white matter"] > 0.95
    assert_picture(program.folder / "outputs" / "segmenter_training_plot.png")


def test_dice_is_pooled_over_the_slices_of_a_group():
    masks = np.zeros((3, 4, 4), np.uint8)
    masks[0], masks[1, 0] = 1, 2
    labels = masks.copy()
    labels[0, 0] = 0  # 12 of 16 pixels of CSF in the first slice
    labels[1] = 2  # 4 of the 16 pixels are grey matter
    scores = dice(labels, masks, np.array(["a", "a", "b"]))
    np.testing.assert_allclose(scores, [[2 * 12 / 28, 2 * 4 / 20, 1], [1, 1, 1]])


def test_contrast_changes_but_not_the_place(labelled):
    images = dataset.load_split("test", labelled).images[:4]
    draws = stream.drawn((0, 0), 4)
    changed = recoloured(images, draws)
    np.testing.assert_array_equal(changed, recoloured(images, draws))
    assert changed.dtype == np.float32 and changed.min() >= -0.5 and changed.max() <= 0.5
    for image, other in zip(images[..., 0], changed[..., 0]):
        assert np.abs(image - other).max() > 0.02
        alike = {
            shift: np.corrcoef(image.ravel(), np.roll(other, shift, axis=(0, 1)).ravel())[0, 1]
            for shift in range(-2, 3)
        }
        assert max(alike, key=alike.get) == 0


def test_loss_falls_to_zero_as_the_logits_get_right(labelled):
    masks = dataset.load_masks("test", labelled)[:2]
    images = np.zeros((*masks.shape, 1), np.float32)
    right = 50 * np.eye(4, dtype=np.float32)[masks]
    loss, figures = tissue_loss(lambda images, training: right, images, masks)
    assert float(loss) == pytest.approx(0, abs=1e-3)
    assert float(figures["overlap of CSF"]) * 2 == pytest.approx(float(figures["size of CSF"]))
    assert float(tissue_loss(lambda images, training: -right, images, masks)[0]) > 10


@pytest.mark.long
def test_interrupted_training_ends_the_same(labelled, program, tmp_path):
    call = ("train.py", "--data", labelled, *SEGMENTER, 2, "--models")
    program.run(*call, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "segmenter", 1)
        program.run(*call, tmp_path / "models", status=130)
    _, err = program.run(*call, tmp_path / "models", "--resume")
    assert "segmenter: continuing after epoch 1" in err
    assert_same_set(tmp_path / "models", tmp_path / "whole")


def test_predict_tells_the_tissue_of_files(labelled, segmenter, program, tmp_path):
    path = labelled / "keras_png_slices_test" / "case_441_slice_0.nii.png"
    out, _ = program.run("predict.py", "tissue", path, "--out", tmp_path, "--no-show")
    mask = np.asarray(Image.open(tmp_path / "case_441_slice_0_tissue.png"))
    assert mask.shape == (128, 128) and set(np.unique(mask)) <= {0, 85, 170, 255}
    truth = np.asarray(Image.open(labelled / "keras_png_slices_seg_test" / "seg_441_slice_0.nii.png"))[::2, ::2]
    assert np.mean(mask == truth) > 0.95
    assert_picture(tmp_path / "tissue.png")
    program.run("predict.py", "tissue", "--random", 3, "--data", labelled, "--seed", 1, "--out", tmp_path, "--no-show")
    assert len(list(tmp_path.glob("*_tissue.png"))) >= 3
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "cat.png")
    assert "a colour image" in program.fails("predict.py", "tissue", tmp_path / "cat.png")


def test_generated_slices_come_with_their_tissue(trained, segmenter, program, tmp_path):
    program.run("predict.py", "generate", 3, "--tissue", "--seed", 0, "--out", tmp_path, "--no-show")
    assert len(list(tmp_path.glob("generated_00?.png"))) == 3
    model = weights.load_segmenter(segmenter)
    vqvae, _ = weights.load_models(trained)
    labels = model.label(vqvae.decode(np.load(tmp_path / "codes.npy")))
    for number in range(3):
        mask = np.asarray(Image.open(tmp_path / f"generated_{number:03}_tissue.png"))
        np.testing.assert_array_equal(mask, 85 * labels[number])


def test_exported_set_is_read_back_as_it_was_made(sharp, trained, segmenter, small, program, tmp_path):
    target = tmp_path / "new" / "set"
    models = ("--preset", "sharp", "--models", sharp[0])
    call = ("predict.py", "generate", 9, *models, "--export", target, "--seed", 0, "--out", tmp_path, "--no-show")
    out, _ = program.run(*call)
    assert f"{2 * SLICES} slices of 2 cases" in out and not list(tmp_path.glob("generated_*.png"))
    slices, masks = dataset.load_split("train", target), dataset.load_masks("train", target)
    assert slices.names == [f"case_{case:03}_slice_{k}.nii.png" for case in (1, 2) for k in range(SLICES)]
    vqvae, _ = weights.load_models(sharp[0])
    decoded = vqvae.decode(np.load(tmp_path / "codes.npy"))
    np.testing.assert_array_equal(dataset.to_grey(slices.images), dataset.to_grey(decoded))
    np.testing.assert_array_equal(masks, weights.load_segmenter(segmenter).label(decoded))
    with Image.open(
        target / "keras_png_slices_data" / "keras_png_slices_seg_train" / "seg_001_slice_0.nii.png"
    ) as mask:
        assert mask.size == (256, 256) and mask.mode == "L"
    assert "is there already" in program.fails(*call)
    assert "know no levels" in program.fails("predict.py", "generate", "--export", tmp_path / "none", status=2)
    program.fails(*call, "--level", 3, status=2)


def test_export_that_fails_leaves_nothing(tmp_path):
    def portions():
        yield brains(4), np.zeros((4, 128, 128), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.write_set(tmp_path / "set", portions(), 4)
    assert not list(tmp_path.iterdir())


def test_sets_for_another_purpose_are_refused(segmenter, trained, program, miniature, tmp_path):
    path = miniature / "keras_png_slices_test" / "case_441_slice_0.nii.png"
    for call in (("predict.py", "reconstruct", path), ("predict.py", "generate"), ("ssim.py", "--data", miniature)):
        assert "holds no " in program.fails(*call, "--models", segmenter)
    assert "holds no " in program.fails("predict.py", "tissue", path, "--models", trained)
    top = tmp_path / "keras_png_slices_train"
    top.mkdir()
    for case in (1, 2):
        Image.fromarray(np.uint8(tissue(case, 0))).save(top / f"case_{case:03}_slice_0.nii.png")
    assert "no masks in a folder" in program.fails("train.py", "--preset", "tissue", "--data", tmp_path)
