"""The data: what is fetched, what is refused, and the arrays that come out."""

import shutil
import sys
import zipfile

import numpy as np
import pytest
from conftest import SLICES, head, zip_folder
from PIL import Image

import dataset
from dataset import UserError


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch, tmp_path):
    """No test reaches a real address, waits between attempts or writes to the real data folder."""
    monkeypatch.setattr(dataset, "SOURCES", ())
    monkeypatch.setattr(dataset.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(dataset, "DATASET", tmp_path / "dataset")
    dataset.note.cache_clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OASIS_URL", raising=False)


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_split_is_the_two_by_two_mean_in_natural_order(tmp_path):
    folder = tmp_path / "keras_png_slices_test"
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (3, 256, 256), dtype=np.uint8)
    for name, level in zip(("case_010_slice_0", "case_009_slice_10", "case_009_slice_2"), levels):
        Image.fromarray(level).save(folder / f"{name}.nii.png")
    images, names, _ = dataset.load_split("test", folder)
    assert names == [f"case_{name}.nii.png" for name in ("009_slice_2", "009_slice_10", "010_slice_0")]
    assert images.shape == (3, 128, 128, 1) and images.dtype == np.float32
    mean = levels[::-1].reshape(3, 128, 2, 128, 2).mean((2, 4)) / 255 - 0.5
    np.testing.assert_allclose(images[..., 0], mean, atol=1e-6)


def test_case_of_a_name():
    assert dataset.case_of("case_441_slice_3.nii.png") == "case_441"
    assert dataset.case_of("my scan.png") == "my scan.png"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_image_formats_and_colours(tmp_path, format, mode):
    if (format, mode) == ("JPEG", "P"):
        pytest.skip("JPEG has no palette")
    levels = np.where(np.arange(200) < 100, 0, 255).astype(np.uint8) * np.ones((200, 1), np.uint8)
    Image.fromarray(levels).convert(mode).save(tmp_path / "image", format=format)
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
    for split in ("train", "validate"):
        with pytest.raises(UserError, match=f"no slices in a folder keras_png_slices_{split}"):
            dataset.load_split(split, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        dataset.load_split("test", tmp_path / "nowhere")


def test_genuine_split_with_files_missing_is_refused_with_their_number(miniature, tmp_path, monkeypatch):
    whole = dataset.load_split("test", miniature)
    first = miniature / "keras_png_slices_test" / whole.names[0]
    landmarks = {first.name: dataset.hashlib.sha256(first.read_bytes()).hexdigest()[:8]}
    monkeypatch.setitem(dataset.GENUINE, "test", dataset.Genuine(len(whole.names), whole.digest, landmarks))
    assert dataset.is_genuine("test", dataset.load_split("test", miniature).digest)
    folder = shutil.copytree(miniature / "keras_png_slices_test", tmp_path / "keras_png_slices_test")
    (folder / whole.names[3]).unlink()
    (folder / whole.names[9]).unlink()
    with pytest.raises(UserError, match="2 of the 16 slices"):
        dataset.load_split("test", tmp_path)


@pytest.mark.parametrize(
    "make, words", [(make_text, "not an image"), (make_truncated, "broken"), (make_empty, "empty")]
)
def test_broken_file_in_a_split_is_named(miniature, tmp_path, make, words):
    folder = shutil.copytree(miniature / "keras_png_slices_test", tmp_path / "keras_png_slices_test")
    make(folder / "case_441_slice_5.nii.png")
    with pytest.raises(UserError, match=f"case_441_slice_5.nii.png.*{words}"):
        dataset.load_split("test", tmp_path)


def test_corrupt_zip_is_refused(miniature_zip, tmp_path):
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


def test_zip_with_an_entry_of_the_folder_itself(miniature_zip, tmp_path):
    shutil.copy(miniature_zip, tmp_path / "dot.zip")
    with zipfile.ZipFile(tmp_path / "dot.zip", "a") as archive:
        archive.writestr("./", b"")
    assert len(dataset.load_split("test", tmp_path / "dot.zip").names) == 2 * SLICES


@pytest.mark.parametrize("name", ["../../evil.png", "/tmp/evil.png", "a\\..\\..\\evil.png", "C:/evil.png"])
def test_zip_with_a_member_that_climbs_out_is_refused(miniature_zip, tmp_path, name):
    shutil.copy(miniature_zip, tmp_path / "evil.zip")
    with zipfile.ZipFile(tmp_path / "evil.zip", "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(UserError, match="would land outside"):
        dataset.load_split("test", tmp_path / "evil.zip")
    dataset.DATASET.mkdir()
    with pytest.raises(UserError, match="would land outside"):
        dataset.unpack(tmp_path / "evil.zip", ["test"], genuine=False)
    assert not list(dataset.DATASET.iterdir())


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetched():
    return sorted(folder.name for folder in (dataset.DATASET / dataset.TOP_FOLDER).glob("*"))


def test_fetch_puts_the_splits_in_place_without_masks(server, miniature):
    images = dataset.load_split("train", url=f"{server.url}/data.zip").images
    np.testing.assert_array_equal(images, dataset.load_split("train", miniature).images)
    assert fetched() == [f"keras_png_slices_{split}" for split in ("test", "train", "validate")]
    assert [path.name for path in dataset.DATASET.iterdir()] == [dataset.TOP_FOLDER]  # no zip, part or temporary folder
    dataset.load_split("test", url=f"{server.url}/data.zip")
    assert len(server.requests) == 1


def test_only_what_is_missing_is_fetched(server, miniature):
    dataset.load_split("test", url=f"{server.url}/data.zip")
    kept = dataset.DATASET / dataset.TOP_FOLDER / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    kept.write_bytes(b"mine")
    shutil.rmtree(dataset.DATASET / dataset.TOP_FOLDER / "keras_png_slices_test")
    dataset.load_split("test", url=f"{server.url}/data.zip")
    assert kept.read_bytes() == b"mine"


def test_broken_transfer_is_resumed_where_the_server_allows_it(server):
    server.cuts = 2
    dataset.load_split("test", url=f"{server.url}/cut")
    first, *resumed = [header for _, header in server.requests]
    starts = [int(header.removeprefix("bytes=").removesuffix("-")) for header in resumed]
    assert first is None and 0 < starts[0] < starts[1] and len(starts) == 2


def test_broken_transfer_starts_anew_where_the_server_has_no_range(server):
    server.cuts = 2
    dataset.load_split("test", url=f"{server.url}/norange")
    assert len(server.requests) == 3


def test_transfer_of_an_earlier_run_is_continued(server):
    server.cuts = dataset.ATTEMPTS
    with pytest.raises(UserError, match="gave up after 4 attempts"):
        dataset.load_split("test", url=f"{server.url}/cut")
    assert not fetched()
    dataset.load_split("test", url=f"{server.url}/cut")
    assert server.requests[-1][1] is not None


@pytest.mark.parametrize(
    "path, words, requests",
    [
        ("/404", "HTTP status 404", 1),
        ("/500", "HTTP status 500", dataset.ATTEMPTS),
        ("/page", "not a zip but a web page", 1),
        ("/garbage", "neither a folder nor a sound zip", 1),
    ],
)
def test_bad_answers_are_told_in_one_line(server, path, words, requests):
    with pytest.raises(UserError, match=words) as caught:
        dataset.load_split("test", url=server.url + path)
    assert server.url + path in str(caught.value) and "--data" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == requests
    assert not list(dataset.DATASET.iterdir())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/data.zip", "http://a..b/data.zip", "nonsense"])
def test_address_without_a_server_is_told_in_one_line(url):
    with pytest.raises(UserError, match="refused|not an address") as caught:
        dataset.load_split("test", url=url)
    assert "\n" not in str(caught.value)


@pytest.fixture
def genuine_miniature(miniature, monkeypatch):
    """The digests of the miniature in place of those of the genuine set."""
    for split in dataset.SPLITS:
        images, _, digest = dataset.load_split(split, miniature)
        monkeypatch.setitem(dataset.GENUINE, split, dataset.Genuine(len(images), digest, {}))


def test_next_address_is_tried_and_the_genuine_set_accepted(server, monkeypatch, genuine_miniature, capsys):
    monkeypatch.setattr(dataset, "SOURCES", (f"{server.url}/404", f"{server.url}/data.zip"))
    monkeypatch.setenv("OASIS_URL", f"{server.url}/page")
    dataset.load_split("test")
    assert [path for path, _ in server.requests] == ["/page", "/404", "/data.zip"]
    assert "differs" not in capsys.readouterr().err


def test_built_in_address_must_give_the_genuine_set(server, monkeypatch):
    monkeypatch.setattr(dataset, "SOURCES", (f"{server.url}/data.zip",))
    with pytest.raises(UserError, match="not the genuine ones"):
        dataset.load_split("test")
    assert not fetched() and not list(dataset.DATASET.iterdir())


def test_full_disk_leaves_nothing_half_written(server, monkeypatch):
    def full(member, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / member.name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_extract", full)
        with pytest.raises(UserError, match="No space left on device"):
            dataset.load_split("test", url=f"{server.url}/data.zip")
    assert [path.suffix for path in dataset.DATASET.iterdir()] == [".part"]
    dataset.load_split("test", url=f"{server.url}/data.zip")  # with space again, without a second transfer
    assert server.requests[-1][1] == f"bytes={len(server.content)}-"


def test_dataset_script_says_what_is_there(miniature, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dataset.py", "--data", str(miniature)])
    dataset.main()
    out = capsys.readouterr().out
    assert f"train: {6 * SLICES} slices of 6 cases, not genuine" in out and "(16, 128, 128, 1)" in out
