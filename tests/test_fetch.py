"""Fetching: which addresses are tried, what is kept of what they give, and how failures are told."""

import hashlib
import shutil

import numpy as np
import pytest
from conftest import serve

import dataset
from brains import archives, config, sources
from brains.cli import UserError


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """The data folder of a test. No test writes to the real one, reaches a real address or waits between attempts."""
    monkeypatch.setattr(sources, "SOURCES", ())
    monkeypatch.setattr(archives.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(config, "DATASET", tmp_path / "dataset")
    return config.DATASET


@pytest.fixture
def genuine_miniature(miniature, monkeypatch):
    """The digests of the miniature in place of those of the genuine set."""
    for split in (*config.SPLITS, *config.MASKS):
        paths = dataset.slice_paths(split, miniature)
        digest = sources.digest_of({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths})
        monkeypatch.setitem(sources.GENUINE, split, (len(paths), digest))


def fetched():
    """The names of the folders that were fetched."""
    return sorted(path.name for path in (config.DATASET / config.TOP_FOLDER).glob("*") if path.is_dir())


def state(folder):
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked(server):
    """The paths that a server was asked for."""
    return [path for path, _ in server.requests]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_fetch_puts_the_splits_and_their_masks_in_place(server, miniature, kept):
    images = dataset.load_split("train", url=f"{server.url}/data.zip").images
    np.testing.assert_array_equal(images, dataset.load_split("train", miniature).images)
    np.testing.assert_array_equal(dataset.load_masks("train"), dataset.load_masks("train", miniature))
    assert fetched() == sorted(f"keras_png_slices_{split}" for split in (*config.SPLITS, *config.MASKS))
    assert [path.name for path in kept.iterdir()] == [config.TOP_FOLDER]  # no zip, part or temporary folder
    assert f"{server.url}/data.zip" in (kept / config.TOP_FOLDER / "source.txt").read_text()
    dataset.load_split("test", url=f"{server.url}/data.zip")
    assert len(server.requests) == 1


def test_only_what_is_missing_is_fetched(server, kept):
    dataset.load_split("test", url=f"{server.url}/data.zip")
    mine = kept / config.TOP_FOLDER / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    mine.write_bytes(b"mine")
    shutil.rmtree(kept / config.TOP_FOLDER / "keras_png_slices_test")
    dataset.load_split("test", url=f"{server.url}/data.zip")
    assert mine.read_bytes() == b"mine"


def test_sets_of_two_addresses_are_never_mixed(server, miniature_zip, kept):
    folder = kept / config.TOP_FOLDER
    dataset.load_split("test", url=f"{server.url}/data.zip")
    shutil.rmtree(folder / "keras_png_slices_test")
    before = state(kept)
    with serve(miniature_zip) as other, pytest.raises(UserError, match="not mixed") as caught:
        dataset.load_split("test", url=f"{other.url}/data.zip")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert state(kept) == before and "keras_png_slices_test" not in fetched()
    assert not other.requests  # it is refused before anything is sent


@pytest.mark.usefixtures("genuine_miniature")
def test_a_user_s_set_and_the_genuine_one_are_never_mixed(server, monkeypatch, kept):
    monkeypatch.setattr(sources, "SOURCES", (f"{server.url}/data.zip",))
    for first, second in ((f"{server.url}/mine.zip", None), (None, f"{server.url}/mine.zip")):
        dataset.load_split("test", url=first)
        shutil.rmtree(kept / config.TOP_FOLDER / "keras_png_slices_test")
        before = state(kept)
        requests = len(server.requests)
        with pytest.raises(UserError, match="not mixed"):
            dataset.load_split("test", url=second)
        assert state(kept) == before and "keras_png_slices_test" not in fetched()
        assert len(server.requests) == requests
        shutil.rmtree(kept / config.TOP_FOLDER)


def test_slices_of_an_unknown_source_are_not_added_to(server, miniature, kept):
    shutil.copytree(miniature / "keras_png_slices_train", kept / config.TOP_FOLDER / "keras_png_slices_train")
    before = state(kept)
    with pytest.raises(UserError, match="an unknown source.*not mixed"):
        dataset.load_split("test", url=f"{server.url}/data.zip")
    assert state(kept) == before and fetched() == ["keras_png_slices_train"]


@pytest.fixture
def full_disk(monkeypatch):
    """A disk with space for half of an image; calling this frees some."""

    def full(archive, info, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_extract", full)
        yield patch.undo


def test_full_disk_leaves_nothing_half_written(server, full_disk, kept):
    with pytest.raises(UserError, match="No space left on device"):
        dataset.load_split("test", url=f"{server.url}/data.zip")
    assert [path.suffix for path in kept.iterdir()] == [".part"]
    full_disk()
    dataset.load_split("test", url=f"{server.url}/data.zip")  # with space again, without a second transfer
    assert server.requests[-1][1] == f"bytes={len(server.content)}-"


def test_full_disk_leaves_nothing_of_a_zip(miniature, miniature_zip, full_disk, kept):
    with pytest.raises(UserError, match="No space left on device"):
        dataset.load_split("test", miniature_zip)
    assert not list(kept.iterdir())
    full_disk()
    assert dataset.load_split("test", miniature_zip).names == dataset.load_split("test", miniature).names


# --- transfers --------------------------------------------------------------------------------------------------------


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
    server.cuts = archives.ATTEMPTS
    with pytest.raises(UserError, match="gave up after 4 attempts"):
        dataset.load_split("test", url=f"{server.url}/cut")
    assert not fetched()
    dataset.load_split("test", url=f"{server.url}/cut")
    assert server.requests[-1][1] is not None


@pytest.mark.parametrize(
    "path, words, requests",
    [
        ("/404", "HTTP status 404", 1),
        ("/500", "HTTP status 500", archives.ATTEMPTS),
        ("/page", "not a zip but a web page", 1),
        ("/garbage", "neither a folder nor a sound zip", 1),
    ],
)
def test_bad_answers_are_told_in_one_line(server, path, words, requests, kept):
    with pytest.raises(UserError, match=words) as caught:
        dataset.load_split("test", url=server.url + path)
    assert server.url + path in str(caught.value) and "--data" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == requests
    assert not list(kept.iterdir())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/data.zip", "http://a..b/data.zip", "nonsense"])
def test_address_without_a_server_is_told_in_one_line(url):
    with pytest.raises(UserError, match="refused|not an address") as caught:
        dataset.load_split("test", url=url)
    assert "\n" not in str(caught.value)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("genuine_miniature")
def test_next_built_in_address_is_tried_and_the_genuine_set_accepted(server, monkeypatch, capsys):
    monkeypatch.setattr(sources, "SOURCES", tuple(server.url + path for path in ("/page", "/404", "/data.zip")))
    dataset.load_split("test")
    assert asked(server) == ["/page", "/404", "/data.zip"]
    assert "differs" not in capsys.readouterr().err


@pytest.mark.usefixtures("genuine_miniature")
@pytest.mark.parametrize("how", ["url", "OASIS_URL"])
def test_named_address_that_fails_is_an_error_and_no_other_is_asked(server, monkeypatch, how, kept):
    monkeypatch.setattr(sources, "SOURCES", (f"{server.url}/data.zip",))
    monkeypatch.setenv("OASIS_URL", f"{server.url}/{'404' if how == 'OASIS_URL' else 'data.zip'}")
    with pytest.raises(UserError, match="HTTP status 404") as caught:
        dataset.load_split("test", url=f"{server.url}/404" if how == "url" else None)
    assert f"{server.url}/404" in str(caught.value) and "\n" not in str(caught.value)
    assert asked(server) == ["/404"] and not list(kept.iterdir())


def test_named_address_may_give_any_set(server, monkeypatch, capsys):
    monkeypatch.setattr(sources, "SOURCES", (f"{server.url}/404",))
    monkeypatch.setenv("OASIS_URL", f"{server.url}/data.zip")
    dataset.load_split("test")
    assert asked(server) == ["/data.zip"] and "differs from the genuine" in capsys.readouterr().err


@pytest.mark.parametrize("named", [False, True])
def test_built_in_address_must_give_the_genuine_set_named_or_not(server, monkeypatch, named, kept):
    monkeypatch.setattr(sources, "SOURCES", (f"{server.url}/data.zip",))
    with pytest.raises(UserError, match="not the genuine ones"):
        dataset.load_split("test", url=f"{server.url}/data.zip" if named else None)
    assert not fetched() and not list(kept.iterdir())


def test_what_was_said_of_one_address_is_said_again_of_the_next(server, miniature_zip, monkeypatch, capsys):
    with serve(miniature_zip) as other:
        monkeypatch.setattr(sources, "SOURCES", (f"{server.url}/404", f"{other.url}/404"))
        for _ in range(2):  # and in the next call
            with pytest.raises(UserError, match="HTTP status 404"):
                dataset.load_split("test")
            lines = capsys.readouterr().err.splitlines()
            assert lines.count("  HTTP status 404") == 2
            assert lines[::2] == [f"fetching {server.url}/404", f"fetching {other.url}/404"]
