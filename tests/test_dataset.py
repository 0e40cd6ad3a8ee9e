"""The slices of folders and zips: the arrays that come out, and what is refused."""

import re
import shutil
import zipfile

import numpy as np
import pytest
from conftest import SLICES, head, serve, tissue, zip_folder
from PIL import Image

import dataset
from brains import config
from brains.cli import UserError
from brains.names import case_of


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """The data folder of a test, not the real one."""
    monkeypatch.setattr(config, "DATASET", tmp_path / "dataset")
    return config.DATASET


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_split_is_the_two_by_two_mean_in_natural_order(tmp_path):
    folder = tmp_path / "keras_png_slices_test"
    folder.mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (3, 256, 256), dtype=np.uint8)
    for name, values in zip(("case_010_slice_0", "case_009_slice_10", "case_009_slice_2"), grey):
        Image.fromarray(values).save(folder / f"{name}.nii.png")
    images, names, _ = dataset.load_split("test", folder)
    assert names == [f"case_{name}.nii.png" for name in ("009_slice_2", "009_slice_10", "010_slice_0")]
    assert images.shape == (3, 128, 128, 1) and images.dtype == np.float32
    mean = grey[::-1].reshape(3, 128, 2, 128, 2).mean((2, 4)) / 255 - 0.5
    np.testing.assert_allclose(images[..., 0], mean, atol=1e-6)


def test_case_of_a_name():
    assert case_of("case_441_slice_3.nii.png") == "case_441"
    assert case_of("my scan.png") == "my scan.png"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_image_formats_and_colours(tmp_path, format, mode):
    if (format, mode) == ("JPEG", "P"):
        pytest.skip("JPEG has no palette")
    grey = np.where(np.arange(200) < 100, 0, 255).astype(np.uint8) * np.ones((200, 1), np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "image", format=format)
    image = dataset.load_image(tmp_path / "image")
    assert image.shape == (128, 128, 1) and image.dtype == np.float32
    np.testing.assert_allclose(image[:, :60], -0.5, atol=0.03)
    np.testing.assert_allclose(image[:, 68:], 0.5, atol=0.03)


def test_transparency_is_black(tmp_path):
    rgba = np.full((64, 64, 4), 255, np.uint8)
    rgba[:, :32, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "image.png")
    image = dataset.load_image(tmp_path / "image.png")
    assert image[64, 10] == -0.5 and image[64, 120] == 0.5


def test_proportions_are_kept_by_padding(tmp_path):
    Image.new("L", (400, 100), 255).save(tmp_path / "wide.png")
    image = dataset.load_image(tmp_path / "wide.png")[..., 0]
    assert (image[:47] == -0.5).all() and (image[81:] == -0.5).all() and (image[49:79] == 0.5).all()


def test_long_and_thin_image_is_shrunk_before_it_is_padded(tmp_path):
    make_thin(tmp_path / "thin.png")
    assert dataset.load_image(tmp_path / "thin.png").shape == (128, 128, 1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_images_are_scaled_by_their_own_range(tmp_path, dtype):
    ramp = np.linspace(1000, 3000, 128).astype(dtype) * np.ones((128, 1), dtype)
    Image.fromarray(ramp).save(tmp_path / "deep.tiff")
    image = dataset.load_image(tmp_path / "deep.tiff")[..., 0]
    np.testing.assert_allclose(image[0], np.linspace(-0.5, 0.5, 128), atol=1e-3)


def test_constant_deep_image_is_black(tmp_path):
    Image.fromarray(np.full((9, 9), 700, np.uint16)).save(tmp_path / "flat.png")
    assert (dataset.load_image(tmp_path / "flat.png") == -0.5).all()


def test_saved_image_comes_back(tmp_path):
    image = dataset.prepare(head(1, 3).astype(np.float32))
    dataset.save_image(tmp_path / "image.png", image)
    with Image.open(tmp_path / "image.png") as saved:
        assert (saved.mode, saved.size) == ("L", (128, 128))
    np.testing.assert_allclose(dataset.load_image(tmp_path / "image.png"), image, atol=0.5 / 255 + 1e-6)


def make_empty(path):
    path.write_bytes(b"")


def make_text(path):
    path.write_text("not an image")


def make_truncated(path):
    Image.fromarray(head(1, 1)).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:5000])


def make_thin(path):
    Image.new("1", (50_000_000, 1)).save(path, format="PNG")


def make_huge(path):
    Image.new("1", (10_000, 10_000)).save(path, format="PNG")


def make_bomb(path):
    Image.new("1", (30_000, 30_000)).save(path, format="PNG")


@pytest.mark.parametrize(
    "make, words",
    [
        (None, "cannot be read"),
        (lambda path: path.mkdir(), "not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
        (make_empty, "empty"),
        (make_text, "not an image"),
        (make_truncated, "broken"),
        (make_huge, "too many"),
        (make_bomb, "too many"),
    ],
)
def test_bad_image_is_named_in_one_line(tmp_path, make, words):
    path = tmp_path / "bad.png"
    if make:
        make(path)
    with pytest.raises(UserError, match=words) as caught:
        dataset.load_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- folders and zips that the user has -------------------------------------------------------------------------------


def nest_parent(top, folder):
    return top.parent


def nest_alone(top, folder):
    for split in ("train", "test"):
        shutil.copytree(top / f"keras_png_slices_{split}", folder / f"keras_png_slices_{split}")
    return folder


def nest_github(top, folder):
    shutil.copytree(top, folder / "COMP3710-3ffd9e3" / "Lab2" / top.name)
    return folder


def nest_litter(top, folder):
    shutil.copytree(top, folder / "a" / top.name)
    litter = folder / "__MACOSX" / "keras_png_slices_test"
    litter.mkdir(parents=True)
    cut = folder / ".unpacking" / "keras_png_slices_test"
    cut.mkdir(parents=True)
    (cut / "case_441_slice_0.nii.png").write_bytes(b"half")
    (litter / "._case_441_slice_0.nii.png").write_bytes(b"Mac OS X")
    (folder / "a" / top.name / "keras_png_slices_test" / ".DS_Store").write_bytes(b"Bud1")
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("nest", [lambda top, folder: top, nest_parent, nest_alone, nest_github, nest_litter])
def test_nestings_met_in_the_wild(miniature, tmp_path, nest, zipped, capsys):
    data = nest(miniature, tmp_path / "nested")
    if zipped:
        data = zip_folder(data, tmp_path / "data.zip")
    images, names, _ = dataset.load_split("test", data)
    assert names == [f"case_{case}_slice_{k}.nii.png" for case in (441, 442) for k in range(SLICES)]
    np.testing.assert_array_equal(images, dataset.load_split("test", miniature).images)
    assert "differs from the genuine" in capsys.readouterr().err


def test_split_that_is_missing_or_empty_is_refused(miniature, tmp_path):
    shutil.copytree(miniature / "keras_png_slices_test", tmp_path / "keras_png_slices_test")
    assert len(dataset.load_split("test", tmp_path).names) == 2 * SLICES  # no other split need be there
    (tmp_path / "keras_png_slices_validate").mkdir()
    with pytest.raises(UserError, match="no slices in a folder keras_png_slices_train"):
        dataset.load_split("train", tmp_path)
    with pytest.raises(UserError, match="keras_png_slices_validate: no slices here"):
        dataset.load_split("validate", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        dataset.load_split("test", tmp_path / "nowhere")


def test_part_of_the_genuine_split_is_used_with_a_note_of_both_numbers(miniature, tmp_path, monkeypatch, capsys):
    whole = dataset.load_split("test", miniature)
    monkeypatch.setitem(dataset.GENUINE, "test", (len(whole.names), whole.digest))
    capsys.readouterr()
    assert dataset.is_genuine("test", dataset.load_split("test", miniature).digest)
    assert capsys.readouterr().err == ""
    folder = shutil.copytree(miniature / "keras_png_slices_test", tmp_path / "keras_png_slices_test")
    (folder / whole.names[3]).unlink()
    (folder / whole.names[9]).unlink()
    part = dataset.load_split("test", tmp_path)
    assert part.names == [name for name in whole.names if name not in (whole.names[3], whole.names[9])]
    assert not dataset.is_genuine("test", part.digest)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder) in line and "14 images where that has 16" in line


@pytest.mark.parametrize(
    "make, words", [(make_text, "not an image"), (make_truncated, "broken"), (make_empty, "empty")]
)
def test_broken_file_in_a_split_is_named(miniature, tmp_path, make, words):
    folder = shutil.copytree(miniature / "keras_png_slices_test", tmp_path / "keras_png_slices_test")
    make(folder / "case_441_slice_5.nii.png")
    with pytest.raises(UserError, match=f"case_441_slice_5.nii.png.*{words}"):
        dataset.load_split("test", tmp_path)


def test_corrupt_zip_is_refused_and_leaves_nothing(miniature_zip, tmp_path, kept):
    content = bytearray(miniature_zip.read_bytes())
    with zipfile.ZipFile(miniature_zip) as archive:
        offset = next(info.header_offset for info in archive.infolist() if "_test/case_442" in info.filename)
    content[offset + 5000] ^= 255
    (tmp_path / "corrupt.zip").write_bytes(content)
    with pytest.raises(UserError, match="corrupt at .*case_442"):
        dataset.load_split("test", tmp_path / "corrupt.zip")
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="half.zip: neither a folder nor a sound zip"):
        dataset.load_split("test", tmp_path / "half.zip")
    assert not list(kept.iterdir())


def test_zip_without_slices_is_refused_and_leaves_nothing(miniature, tmp_path, kept):
    masks = zip_folder(miniature / "keras_png_slices_seg_train", tmp_path / "masks.zip")
    with pytest.raises(UserError, match="masks.zip: no slices in a folder"):
        dataset.load_split("test", masks)
    assert not list(kept.iterdir())


def test_zip_with_an_entry_of_the_folder_itself(miniature_zip, tmp_path):
    shutil.copy(miniature_zip, tmp_path / "dot.zip")
    with zipfile.ZipFile(tmp_path / "dot.zip", "a") as archive:
        archive.writestr("./", b"")
    assert len(dataset.load_split("test", tmp_path / "dot.zip").names) == 2 * SLICES


@pytest.mark.parametrize("name", ["../../evil.png", "/tmp/evil.png", "a\\..\\..\\evil.png", "C:/evil.png"])
def test_zip_with_a_member_that_climbs_out_is_refused(miniature_zip, tmp_path, kept, name):
    evil = shutil.copy(miniature_zip, tmp_path / "evil.zip")
    with zipfile.ZipFile(evil, "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(UserError, match="would land outside"):
        dataset.load_split("test", evil)
    assert not list(kept.iterdir())
    with serve(evil) as server, pytest.raises(UserError, match="would land outside"):
        dataset.load_split("test", url=f"{server.url}/data.zip")
    assert not list(kept.iterdir())


def test_zip_is_extracted_once_and_anew_when_it_has_changed(miniature, miniature_zip, tmp_path, kept):
    shutil.copy(miniature_zip, tmp_path / "data.zip")
    paths = dataset.slice_paths("test", tmp_path / "data.zip")
    (folder,) = kept.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        f"keras_png_slices_{split}" for split in (*config.SPLITS, *config.MASKS)
    }
    paths[0].write_bytes(b"mine")
    assert dataset.slice_paths("test", tmp_path / "data.zip")[0].read_bytes() == b"mine"
    zip_folder(miniature / "keras_png_slices_test", tmp_path / "data.zip")
    assert dataset.load_split("test", tmp_path / "data.zip").names == [path.name for path in paths]
    assert dataset.slice_paths("test", tmp_path / "data.zip")[0].parent != paths[0].parent


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_lie_under_their_slices(miniature):
    slices, masks = dataset.load_split("train", miniature), dataset.load_masks("train", miniature)
    assert masks.shape == (len(slices.names), 128, 128) and masks.dtype == np.uint8
    for name, mask in zip(slices.names, masks):
        case, k = (int(part) for part in re.findall(r"\d+", name))
        np.testing.assert_array_equal(85 * mask, tissue(case, k)[::2, ::2])


def test_masks_that_are_missing_or_no_masks_are_refused_in_one_line(miniature, tmp_path):
    top = tmp_path / "set"
    shutil.copytree(miniature, top)
    folder = top / "keras_png_slices_seg_test"
    mask = folder / "seg_441_slice_3.nii.png"
    bad = {
        "64x64 pixels": Image.new("L", (64, 64)),
        "values 0, 7": Image.fromarray(np.resize(np.uint8([0, 7]), (256, 256))),
    }
    for message, image in bad.items():
        image.save(mask)
        with pytest.raises(UserError, match=rf"seg_441_slice_3.nii.png: not a mask .*{message}.*85 CSF"):
            dataset.load_masks("test", top)
    mask.unlink()
    with pytest.raises(UserError, match="no masks of 1 of 16 slices, as seg_441_slice_3.nii.png"):
        dataset.load_masks("test", top)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no masks in a folder keras_png_slices_seg_test"):
        dataset.load_masks("test", top)
    assert len(dataset.load_split("test", top).names) == 16  # a set without masks is used as before


def test_masks_are_found_beside_a_split_that_is_named(miniature):
    masks = dataset.load_masks("test", miniature / "keras_png_slices_test")
    np.testing.assert_array_equal(masks, dataset.load_masks("test", miniature))


# --- the script -------------------------------------------------------------------------------------------------------


def test_dataset_script_says_what_is_there(miniature, program):
    out, _ = program.run("dataset.py", "--data", miniature)
    assert f"train: {6 * SLICES} slices of 6 cases, not genuine" in out and "(16, 128, 128, 1)" in out
    assert f"validate: {2 * SLICES} slices of 2 cases, not genuine" in out
    assert out.count(": masks of all, not genuine; 1.9% CSF, 10.") == 3


@pytest.mark.parametrize("flag", ["--data", "--url"])
def test_flags_of_the_slices_do_not_go_with_cutting_them(program, tmp_path, flag):
    line = program.fails("dataset.py", flag, tmp_path, "slices", tmp_path, tmp_path / "new", status=2)
    assert flag in line and not (tmp_path / "new").exists()
