"""Slices cut from volumes: of a phantom whose left, front and top are marked, however a file holds it."""

import csv

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from scipy.ndimage import affine_transform

import dataset
from brains.names import case_of
from brains.volumes import ATLAS, COARSE, case_names, cut, find_volumes, load_reference, load_volume

EXTENT = np.array([192, 224, 150])  # mm
MIDDLE = np.array([96, 112, 90])  # of the part that is to be cut, mm
CODES = ("RAS", "LAS", "RPI", "LPS", "ASL", "PIR", "SRA", "ILP")


def phantom(sides):
    """A head (X, Y, Z) float32, left to right, back to front, bottom to top, in voxels of `sides` mm."""
    reference = load_reference()
    sides = np.array(sides, float)
    to_reference = sides / (COARSE, COARSE, 1)
    offset = (np.array(reference.shape) - 1) / 2 - MIDDLE / (COARSE, COARSE, 1)
    shape = tuple(np.ceil(EXTENT / sides).astype(int))
    head = affine_transform(reference, to_reference, offset, output_shape=shape, order=1, mode="nearest")
    for low, high in (
        ((30, 100, 80), (40, 110, 90)),
        ((90, 190, 80), (100, 200, 90)),
        ((90, 100, 102), (100, 110, 112)),
    ):
        low, high = (np.round(np.array(corner) / sides).astype(int) for corner in (low, high))
        head[tuple(map(slice, low, high))] = 200  # left, front and top
    return head


def save(path, head, code, sides=(2, 2, 2)):
    """Write a volume with its axes running towards the letters of `code`; Analyze does not say so."""
    image = nibabel.Nifti1Image(head, np.diag([*map(float, sides), 1]))
    image = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(code)))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".img":
        header = nibabel.AnalyzeHeader()
        header.set_data_shape(image.shape)
        header.set_data_dtype(np.float32)
        header.set_zooms(image.header.get_zooms())
        image = nibabel.AnalyzeImage(np.asarray(image.dataobj), None, header)
    nibabel.save(image, path)
    return path


@pytest.fixture(scope="module")
def head():
    return phantom((2, 2, 2))


@pytest.fixture(scope="module")
def slices(head):
    return cut(head, np.array([2.0, 2.0, 2.0]))[0]


@pytest.mark.parametrize("code", CODES)
def test_volume_lies_the_same_whatever_its_orientation(head, code, tmp_path):
    volume, sides = load_volume(save(tmp_path / "head.nii.gz", head, code))
    np.testing.assert_array_equal(volume, head)
    np.testing.assert_allclose(sides, 2)
    volume, sides = load_volume(save(tmp_path / "head.img", head, code).with_suffix(".hdr"), code)
    np.testing.assert_array_equal(volume, head)


def test_slices_show_the_part_that_the_reference_shows_left_above_front_at_the_right(slices):
    assert slices.shape == (32, 256, 256) and slices.dtype == np.uint8
    assert np.all(slices.min(axis=(1, 2)) == 0) and np.all(slices.max(axis=(1, 2)) == 255)
    reference = np.moveaxis(load_reference(), 2, 0)
    small = slices.reshape(32, 64, 4, 64, 4).mean(axis=(2, 4))
    assert np.corrcoef(small[3:-3].ravel(), reference[3:-3].ravel())[0, 1] > 0.97
    left, front, top = slices[10, 64:68, 119:125], slices[10, 124:130, 210:214], slices[:, 124:130, 119:125]
    assert left.mean() > 220 and slices[10, 187:191, 119:125].mean() < 150
    assert front.mean() > 220 and slices[10, 124:130, 42:46].mean() < 150
    assert np.all(top[28:31].mean(axis=(1, 2)) > 220) and top[:24].mean() < 150


def test_voxels_need_not_be_cubes(slices):
    thick = cut(phantom((1.5, 2, 4)), np.array([1.5, 2, 4]))[0]
    assert np.abs(thick[4:-4].astype(float) - slices[4:-4]).mean() < 6


def test_volume_in_atlas_space_is_cut_and_nothing_else():
    volume = np.random.default_rng(0).random(ATLAS, np.float32)
    slices, likeness, scale, *_ = cut(volume, np.ones(3))
    assert likeness is None and scale == 1
    middle = volume[:, :, 72:104]
    low, high = middle.min(axis=(0, 1)), middle.max(axis=(0, 1))
    expected = np.zeros((32, 256, 256))
    expected[:, 40:216, 24:232] = np.moveaxis(np.round((middle - low) / (high - low) * 255), 2, 0)
    assert np.abs(slices - expected).max() <= 1


def test_folder_of_volumes_becomes_a_set_like_the_genuine_one(head, slices, program, tmp_path):
    volumes, target = tmp_path / "volumes", tmp_path / "slices"
    for number in range(1, 6):
        for session in ("MR1", "MR2") if number == 2 else ("MR1",):
            atlas = volumes / f"disc1/OAS1_{number:04}_{session}/PROCESSED/MPRAGE/T88_111/x_t88_gfc.img"
            save(atlas, np.random.default_rng(number).random(ATLAS, np.float32), "RAS", (1, 1, 1))
    save(volumes / "disc1/OAS1_0001_MR1/RAW/x_mpr-1_anon.img", head, "RAS")  # not the one in atlas space
    (volumes / "participants.tsv").write_text("participant_id\tage\tsex\n")
    out, _ = program.run("dataset.py", "slices", volumes, target)
    assert "6 volumes, 192 slices" in out
    assert (target / "participants.tsv").read_text() == "participant_id\tage\tsex\n"
    with open(target / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [f"case_{case}" for case in ("001", "002", "002_MR2", "003", "004", "005")]
    assert case_of("case_002_MR2_slice_3.nii.png") == "case_002"  # sessions of a person are held out together
    assert rows[1]["person"] == rows[2]["person"] == "OAS1_0002" and rows[1]["split"] == rows[2]["split"]
    splits = {row["person"]: row["split"] for row in rows}
    assert sorted(splits.values()) == ["test", "train", "train", "train", "validate"]
    for row in rows:
        folder = target / "keras_png_slices_data" / f"keras_png_slices_{row['split']}"
        assert all((folder / f"{row['case']}_slice_{k}.nii.png").exists() for k in range(32))
    assert "is there already" in program.fails("dataset.py", "slices", volumes, target)


def test_what_cannot_be_used_is_named_and_passed_by(head, slices, program, tmp_path):
    volumes, target = tmp_path / "volumes", tmp_path / "slices"
    save(volumes / "sub-1/anat/sub-1_T1w.nii.gz", head, "RAS")
    save(volumes / "sub-1/anat/sub-1_run-2_T1w.nii", head, "RAS")
    save(volumes / "sub-2/sub-2_T1w.nii", np.where(head > 190, np.nan, head), "LPS")
    save(volumes / "sub-3.nii", np.full((20, 20, 20), 7.0, np.float32), "RAS")
    save(volumes / "sub-4.nii", np.stack([head, head], axis=-1)[:20], "RAS")
    save(volumes / "sub-5.nii", head[:, :, :10], "RAS")
    with open(save(volumes / "sub-8.nii", head, "RAS"), "r+b") as file:
        file.seek(280)  # srow_x of the header, where the x axis lies
        file.write(np.full(4, np.nan, np.float32).tobytes())
    (volumes / "sub-6.nii.gz").write_bytes(b"no volume")
    (volumes / "sub-7.hdr").write_bytes(b"no volume either")
    out, err = program.run("dataset.py", "slices", volumes, target)
    assert "people: 1 to train, 0 to validate, 1 to test" in out
    for line in (
        "sub-1: 2 files",
        "voxels are no numbers",
        "is constant",
        "not one volume",
        "too low",
        "sub-6",
        "sub-7",
        "sub-8",
    ):
        assert line in err, line
    written = sorted((target / "keras_png_slices_data").rglob("*_slice_10.nii.png"))
    assert len(written) == 2
    assert any(np.array_equal(np.asarray(Image.open(path)), slices[10]) for path in written)


def test_labels_are_cut_as_their_volumes_are(head, slices, program, tmp_path):
    volumes, target = tmp_path / "volumes", tmp_path / "slices"
    for number, code in enumerate(("RAS", "ASL", "LPS"), start=1):
        folder = volumes / f"sub-{number}"
        save(folder / f"sub-{number}_T1w.nii.gz", head, code)
        save(folder / f"sub-{number}_dseg.nii.gz", (10 * (head > 60) + 10 * (head > 120)).astype(np.float32), code)
    call = ("dataset.py", "slices", volumes, target, "--labels", "*_dseg.nii.gz", "--labels-map")
    assert "values 20; say what they are with --labels-map" in program.run(*call, "10=csf", status=1)[1]
    assert not list(target.iterdir())
    out, _ = program.run(*call, "10=csf,20=white")
    assert "3 volumes, 96 slices" in out
    grey = slices[10] * (head[:, :, 40].max() / 255)  # as the head has it, but for rounding
    for path in (target / "keras_png_slices_data").glob("*_seg_*/seg_*_slice_10.nii.png"):
        mask = np.asarray(Image.open(path))
        assert np.mean((mask == 255) == (grey > 120)) > 0.97 and np.mean((mask > 0) == (grey > 60)) > 0.97
    for split in ("train", "test"):
        masks = dataset.load_masks(split, target)
        assert len(masks) == len(dataset.load_split(split, target).names) and set(np.unique(masks)) == {0, 1, 3}


def test_labels_that_do_not_fit_are_named(head, program, tmp_path):
    volumes = tmp_path / "volumes"
    for number in range(3):
        save(volumes / f"sub-{number}.nii", head, "RAS")
    save(volumes / "labels" / "sub-1_x.nii", head[:-1], "RAS")
    save(volumes / "labels" / "sub-2_x.nii", head, "RAS", (2, 2, 1))
    call = ("dataset.py", "slices", volumes, tmp_path / "slices", "--labels")
    _, err = program.run(*call, "labels/sub-*.nii", status=1)
    (missing,) = [line for line in err.splitlines() if "no file, or more than one, matches --labels" in line]
    assert "sub-0.nii" in missing  # it does not get those of another person
    assert "sub-1_x.nii have (95, 112, 75) voxels of [2. 2. 2.] mm, it has (96, 112, 75)" in err
    assert "sub-2_x.nii have (96, 112, 75) voxels of [2. 2. 1.] mm" in err
    program.fails(*call, "*", "--labels-map", "1=bone", status=2)
    program.fails(*call[:-1], "--labels-map", "1=csf", status=2)


def test_labels_are_found_by_name_by_session_or_as_the_only_ones(tmp_path):
    files = {
        "flat/head1.nii": "flat/head1_seg.nii",
        "flat/head10.nii": "flat/head10_seg.nii",
        "flat/head2.nii": None,
        "sub-1/ses-a/sub-1_ses-a_T1w.nii": "sub-1/ses-a/sub-1_ses-a_seg.nii",
        "person/scan.nii": "person/manual_seg.nii",
    }
    for path in [*files, *filter(None, files.values())]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    found = {
        path: labels
        for folder in ("flat", "sub-1", "person")
        for path, _, _, labels in find_volumes(tmp_path / folder, "*_seg.nii")
    }
    assert found == {tmp_path / path: labels and tmp_path / labels for path, labels in files.items()}


def test_scripts_take_a_folder_of_volumes(head, trained, program, tmp_path):
    volumes = tmp_path / "study"
    for number in range(3):
        save(volumes / f"sub-{number}.nii", head, "LAS")
    _, err = program.run("ssim.py", "--data", volumes, "--no-show")
    assert "cutting slices from 3 volumes" in err
    out, err = program.run("dataset.py", "--data", volumes)
    assert "cutting" not in err and "validate: not there" in out
    made = next(program.folder.glob("dataset/study-*"))
    (made / "keras_png_slices_data").rename(made / ".slicing")  # as when it was killed
    _, err = program.run("ssim.py", "--data", volumes, "--no-show")
    assert "cutting" in err and (made / "keras_png_slices_data").is_dir()


def test_no_two_people_share_a_case_and_none_has_two(tmp_path):
    for path in (
        "OAS1_0002_MR1/T88_111/a_t88_gfc.img",
        "OAS1_0002_MR1/RAW/a.img",
        "OAS1_0003_MR1/RAW/a.img",  # without one in atlas space
        "OAS1_0003_MR2/RAW/a.img",
        "OAS2_0002_MR1/a.nii",
        "sub-01/ses-a/sub-01_FLAIR.nii",
        "sub-01/ses-a/sub-01_T1w.nii",
        "derivatives/tool/sub-01/ses-a/brain_T1w.nii",
        "sub-01/ses-b/a.nii",
        "mine.nii",
    ):
        path = (tmp_path / path).with_suffix(".hdr" if path.endswith(".img") else ".nii")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    volumes = find_volumes(tmp_path)
    people = [(volume.person, volume.session) for volume in volumes]
    cases = dict(zip(people, case_names(volumes)))
    assert cases["OAS1_0002", "MR1"] == "case_002" and "T88_111" in str(
        volumes[people.index(("OAS1_0002", "MR1"))].path
    )
    assert volumes[people.index(("sub-01", "ses-a"))].path == tmp_path / "sub-01/ses-a/sub-01_T1w.nii"
    assert cases["OAS1_0003", "MR1"] == "case_003" and cases["OAS1_0003", "MR2"] == "case_003_MR2"
    assert cases["sub-01", "ses-b"] == cases["sub-01", "ses-a"] + "_ses-b"
    cases_of = {}
    for (person, _), name in cases.items():
        cases_of.setdefault(case_of(name), set()).add(person)
    assert len(cases) == 7 and len(cases_of) == 5 and all(len(some) == 1 for some in cases_of.values())


def test_wrong_calls_are_refused_in_one_line(program, tmp_path):
    assert "no volumes here" in program.fails("dataset.py", "slices", tmp_path, tmp_path / "new")
    assert "not a folder" in program.fails("dataset.py", "slices", tmp_path / "none", tmp_path / "new")
    program.fails("dataset.py", "slices", tmp_path, tmp_path / "new", "--orientation", "RRS", status=2)
