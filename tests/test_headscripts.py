"""Heads as a user meets them: training with a table of people, volumes generated and reconstructed, and bad input."""

import json
import shutil
import subprocess
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from builders import make_flow, make_head_vqvae
from conftest import SLICES, brains, stop_at
from outcomes import assert_picture, assert_same_set, config_of
from PIL import Image

import dataset
import modules
from brains import config, headfiles, people, traits, utility, volumes, weights

STUDY = "ID,M/F,Hand,Age,CDR\n" + "".join(f"OAS1_{i:04}_MR1,{'FM'[i % 2]},R,{20 + 9 * i},\n" for i in range(1, 7))


def shrink(patch):
    head = config.PRESETS["head"]
    networks = {
        "vqvae_network": replace(
            head.vqvae_network,
            depth=2,
            filters=(8, 8, 16),
            bottleneck=16,
            decoder_filters=(16, 8, 8),
            residual_blocks=1,
        ),
        "discriminator_network": config.DiscriminatorConfig(filters=(8, 8, 16)),
        "flow_network": replace(head.flow_network, filters=8, width=16, blocks=1, heads=2),
    }
    patch.setitem(config.PRESETS, "head", replace(head, **networks))


@pytest.fixture(scope="session")
def heads(program, miniature, tmp_path_factory):
    """A folder of weights of a small head preset that knows people's ages, and the call that trained them."""
    table = tmp_path_factory.mktemp("people") / "study.csv"
    table.write_text(STUDY)
    epochs = [part for stage in ("vqvae", "adversarial", "flow") for part in (f"--{stage}-epochs", 2)]
    arguments = ("train.py", "--preset", "head", "--data", miniature, "--people", table, *epochs, "--embeddings", 16)
    arguments = (*arguments, "--deterministic", "--no-show")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        program.run(*arguments)
    return program.folder / "trained_models" / "head", arguments


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A folder of untrained weights of heads of 32 slices."""
    folder = tmp_path_factory.mktemp("whole") / "head"
    small = {"levels": 32, "size": 128, "filters": (4, 4, 8), "depth": 2}
    vqvae = make_head_vqvae(**small)
    prior = make_flow(grid=vqvae.cells)
    content = {"preset": "head", "vqvae": {}, "flow": {"people": {"ages": [20, 90], "F": {"20": 1}, "M": {}}}}
    content["data"] = {"held_out_cases": []}
    weights.save_set(folder, {"vqvae": vqvae, "flow": prior}, content, np.zeros((128, 128, 1), np.float32), None)
    return folder


def test_training_keeps_counts_of_people_and_no_one_s_age(heads):
    content = config_of(heads[0])
    counts = content["flow"]["people"]
    assert sum(sum(counts[sex].values()) for sex in "FM") == 5  # one case of six is held out
    assert counts.keys() == {"ages", "F", "M"} and content["data"]["held_out_from"] == ["vqvae", "adversarial", "flow"]
    assert "usual.npz" not in {path.name for path in heads[0].iterdir()}


def test_heads_of_an_age_are_written_as_volumes_with_a_page(program, heads, segmenter):
    how = ("--preset", "head", "--seed", 3, "--no-show", "--slices", "--tissue")
    out, _ = program.run("predict.py", "generate", 3, *how, "--age", 30, 70, "--sex", "F", "--out", "o")
    folder = program.folder / "o"
    assert "head_001.nii.gz: 70 years, F" in out and "head_002.nii.gz: 30 years, F" in out
    image = nibabel.load(folder / "head_000.nii.gz")
    assert image.shape == (128, 128, SLICES) and nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.header.get_zooms(), (2, 2, 1))
    grey = np.asarray(image.dataobj)
    assert grey.dtype == np.uint8 and np.ptp(grey) > 0
    for level in range(SLICES):
        assert np.array_equal(Image.open(folder / f"head_000_slice_{level}.png"), grey[:, :, level])
    tissue = nibabel.load(folder / "head_000_tissue.nii.gz")
    assert np.array_equal(tissue.affine, image.affine) and set(np.unique(tissue.dataobj)) <= {0, 1, 2, 3}
    page = (folder / "head_000.html").read_text()
    assert "head_000: 30 years, F" in page and "https://cdn" not in page
    assert np.load(folder / "codes.npy").shape == (3, 2, 16, 16, 2)
    assert_picture(folder / "generations.png")


def test_same_seed_gives_the_same_heads_and_unasked_people_are_as_those_learned_from(program, heads):
    how = ("predict.py", "generate", 2, "--preset", "head", "--seed", 4, "--no-show")
    first, _ = program.run(*how, "--out", "a")
    again, _ = program.run(*how, "--out", "b")
    assert first.replace("a/", "") == again.replace("b/", "") and " years, " in first
    names = ("codes.npy", "head_000.nii.gz")
    for name in names[:1]:
        assert (program.folder / "a" / name).read_bytes() == (program.folder / "b" / name).read_bytes()


def test_single_slices_come_out_of_heads(program, heads):
    how = ("--preset", "head", "--seed", 4, "--no-show", "--level", 1, 6, "--out", "single")
    program.run("predict.py", "generate", 3, *how)
    written = sorted(path.name for path in (program.folder / "single").glob("*.png"))
    assert written == ["generated_000.png", "generated_001.png", "generated_002.png", "generations.png"]


def test_exported_heads_are_a_set_to_train_on(program, heads, segmenter):
    target = program.folder / "exported"
    program.run("predict.py", "generate", "--preset", "head", "--seed", 4, "--no-show", "--export", target)
    assert len([*target.glob("*/keras_png_slices_train/*.png")]) == 4 * SLICES
    assert len([*target.glob("*/keras_png_slices_seg_train/*.png")]) == 4 * SLICES


def test_random_heads_of_the_test_split_are_reconstructed(program, heads, miniature):
    how = ("--preset", "head", "--data", miniature, "--seed", 1, "--no-show", "--out", "r")
    out, _ = program.run("predict.py", "reconstruct", "--random", 2, *how)
    assert {"case_441", "case_442"} == {line.split("/")[1][:8] for line in out.splitlines() if ".nii.gz" in line}
    assert_picture(program.folder / "r" / "reconstructions.png")
    assert "2 whole heads" in program.fails("predict.py", "reconstruct", "--random", 3, *how)


def head_volume():
    """A volume (176, 208, 176) in the atlas grid: brighter to the left, to the front and to the top."""
    x, y, z = np.mgrid[-1 : 1 : 176 * 1j, -1 : 1 : 208 * 1j, -1 : 1 : 176 * 1j]
    inside = (x / 0.8) ** 2 + (y / 0.85) ** 2 + z**2 < 1
    return np.float32(inside * (500 - 150 * x + 100 * y + 200 * z))


@pytest.mark.parametrize("code", ["RAS", "LPI"])
def test_volume_is_reconstructed_in_its_own_space_and_grey_scale(program, whole, code, monkeypatch):
    affine = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(code), (176, 208, 176))
    as_given = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    )
    volume = nibabel.apply_orientation(head_volume(), as_given)
    path = program.folder / f"head_{code}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    from brains.heads import HeadVQVAE

    monkeypatch.setattr(HeadVQVAE, "encode", lambda self, stacks: stacks)
    monkeypatch.setattr(HeadVQVAE, "decode", lambda self, stacks: stacks)  # a perfect model
    program.run("predict.py", "reconstruct", path, "--models", whole, "--no-show", "--out", "v")
    image = nibabel.load(program.folder / "v" / f"head_{code}_reconstruction.nii.gz")
    np.testing.assert_allclose(image.affine, affine)
    result = np.asarray(image.dataobj)
    middle = nibabel.apply_orientation(
        result,
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt(code), nibabel.orientations.axcodes2ornt("RAS")
        ),
    )
    np.testing.assert_allclose(middle[40:136, 50:158, 75:100], head_volume()[40:136, 50:158, 75:100], rtol=0.02)
    assert not middle[:, :, :70].any() and not middle[:, :, 106:].any()


def test_written_heads_lie_as_they_are(tmp_path):
    slices = np.zeros((32, 128, 128), np.uint8)
    slices[:, 30:98, 20:108] = 100
    slices[:, 30:50] += 50  # left
    slices[:, :, 90:108] += 60  # front
    slices[28:] += np.uint8(40) * (slices[28:] > 0)  # top
    slices[:, 64, 64] = 240
    headfiles.save_volume(tmp_path / "head.nii.gz", slices)
    image = nibabel.load(tmp_path / "head.nii.gz")
    data = np.asarray(image.dataobj).astype(float)
    centre = np.array([63.5, 63.5, 15.5])
    for axis, sign in ((0, -1), (1, 1), (2, 1)):  # left, front, top are where x falls, y and z grow
        places = nibabel.affines.apply_affine(image.affine, np.argwhere(data > 0))[:, axis]
        assert np.sign(np.corrcoef(places, data[data > 0])[0, 1]) == sign
    assert np.abs(nibabel.affines.apply_affine(image.affine, centre)).max() < 30  # near the origin
    found = volumes.cut(*volumes.load_volume(tmp_path / "head.nii.gz"))
    np.testing.assert_array_equal(found.slices[:, ::2, ::2], slices)  # the loop closes
    assert found.likeness is None
    for scan in (10 * data, data / 300):  # a scan on the same grid is of another grey scale
        stretched = volumes.cut(scan.astype(np.float32), np.array(volumes.VOXEL, float)).slices
        assert (stretched.max(axis=(1, 2)) == 255).all()


def test_bad_input_of_heads_is_one_clear_line(program, heads, whole, trained, miniature, tmp_path):
    generate = ("predict.py", "generate", "--no-show", "--seed", 0)
    assert "people of 2" in program.fails(*generate, "--preset", "head", "--age", 19, status=2)
    assert "are of slices" in program.fails(*generate, "--age", 50, status=2)
    assert "are of slices" in program.fails(*generate, "--slices", status=2)
    assert "no critic" in program.fails(*generate, "--preset", "head", "--candidates", 2, status=2)
    assert "levels 0 to 7" in program.fails(*generate, "--preset", "head", "--level", 8, status=2)
    image = tmp_path / "slice.png"
    Image.fromarray(np.uint8(brains(1)[0, ..., 0] * 255 + 128)).save(image)
    reconstruct = ("predict.py", "reconstruct", "--no-show", "--models")
    assert "whole heads" in program.fails(*reconstruct, whole, image, status=2)
    train = ("train.py", "--no-show", "--data", miniature)
    assert "--people does not go" in program.fails(*train, "--people", "x.csv", status=2)
    for content, message in (
        ("name,years\na,3\n", "needs the columns"),
        (STUDY.replace(",29,", ",old,"), "no number of years"),
        (STUDY + "OAS1_0001_MR1,F,R,29,\n", "two rows"),
        (STUDY.replace("OAS1_0001_MR1,M", "OAS1_0001_MR1,X"), "neither F nor M"),
        ("participant_id\tage\tsex\nsub-1\t30\tF\n", "none of the cases"),
    ):
        (tmp_path / "people.csv").write_text(content)
        arguments = (*train, "--preset", "head", "--people", tmp_path / "people.csv", "--models", tmp_path / "m")
        assert message in program.fails(*arguments)


def test_incomplete_heads_are_named_and_passed_by(program, miniature, tmp_path, monkeypatch):
    shutil.copytree(miniature, tmp_path / "data")
    (tmp_path / "data" / "keras_png_slices_train" / "case_003_slice_2.nii.png").unlink()
    shrink(monkeypatch)
    with monkeypatch.context() as patch:
        stop_at(patch, "VQ-VAE", 1)
        arguments = (
            "train.py",
            "--preset",
            "head",
            "--data",
            tmp_path / "data",
            "--models",
            tmp_path / "m",
            "--no-show",
        )
        _, err = program.run(*arguments, "--vqvae-epochs", 2, status=130)
    assert "case_003: not one slice of each of 8 levels" in err


def test_tables_of_people_in_both_formats(tmp_path):
    (tmp_path / "study.csv").write_text(STUDY)
    study = people.by_case(people.read_people(tmp_path / "study.csv"))
    assert study["case_002"] == (38, "F", 0) and len(study) == 6
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\tsex\nsub-b\t30.5\tmale\nsub-a\tn/a\tF\n")
    (tmp_path / "cases.csv").write_text("case,person,session\ncase_001,sub-a,\ncase_002,sub-b,\n")
    folder = tmp_path / "keras_png_slices_data" / "keras_png_slices_train"
    folder.mkdir(parents=True)
    found = people.people_of_cases(["case_001", "case_002", "case_003"], folder, False)
    assert found == [(None, "F", 0), (30.5, "M", 0), (None, None, 0)]


def test_people_are_drawn_as_often_as_they_were(tmp_path):
    everyone = [people.Person(age, sex) for age, sex in ((25, "F"), (27, "F"), (71, "F"), (30, "M"))]
    counts = traits.count_people(everyone)
    assert counts == {"ages": [25, 71], "F": {"20": 2, "70": 1}, "M": {"30": 1}}
    drawn = traits.draw_people(counts, 2000, 0)
    women = np.mean([person.sex == "F" for person in drawn])
    assert abs(women - 0.75) < 0.05 and all(25 <= person.age <= 71 for person in drawn)
    old = traits.draw_people(counts, 4, 0, ages=[70, 26], sexes=["F", "M"])
    assert [(person.age, person.sex) for person in old] == [(70, "F"), (26, "M"), (70, "F"), (26, "M")]


def test_heads_change_as_they_are_told(tmp_path):
    stacks = np.stack([brains(8)] * 64)
    told = traits.traits_of([people.Person(75, "M")] * 64)
    draws = (
        np.random.default_rng(0)
        .random((64, 4))
        .view(np.dtype([("flip", float), ("move", float), ("offset", float, 2)]))
    )
    changed, traits_then = traits.changed(stacks, told, draws[:, 0])
    plain = np.all(traits_then[:, 4:] == 0, axis=1)
    same, mirrored = plain & (traits_then[:, 3] == 1), plain & (traits_then[:, 3] == -1)
    np.testing.assert_allclose(changed[same], stacks[same], atol=1e-6)
    np.testing.assert_allclose(changed[mirrored], stacks[mirrored][:, :, ::-1], atol=1e-6)
    assert 0 < np.mean(traits_then[:, 1] == 0) < 0.4 and np.any(~plain)
    moved = traits.change(stacks[0], np.array([2, -1]), 0, 0)
    np.testing.assert_array_equal(moved[:, 4:-4, 4:-4], stacks[0][:, 2:-6, 5:-3])


def test_evaluation_of_heads_writes_a_table(program, heads, miniature, segmenter):
    how = ("--preset", "head", "--data", miniature, "--samples", 4, "--seed", 0, "--no-show", "--out", "e")
    out, _ = program.run("evaluate.py", *how)
    assert "slices cut out of 4 heads, 16 of each compared" in out and "whole heads" in out
    content = json.loads((program.folder / "e" / "heads.json").read_text())
    assert content["heads"].keys() == {"generated", "held out", "reconstructed"}
    for column in content["heads"].values():
        assert "SSIM of neighbours, at borders" in column and "sagittal, classifier AUC" in column
    assert "Dice of grey matter" in content["slices"]["reconstructed"]
    assert content["latents"]["held out"]["velocity error"]["value"] > 0


def test_similarity_is_that_of_the_slices_of_whole_heads(program, heads, miniature, tmp_path):
    shutil.copytree(miniature, tmp_path / "data")
    test = tmp_path / "data" / "keras_png_slices_test"
    (test / "case_441_slice_2.nii.png").unlink()
    ssim = ("ssim.py", "--preset", "head", "--no-show", "--data", tmp_path / "data", "--out", tmp_path)
    _, err = program.run(*ssim)
    assert "passed by: case_441" in err
    figures = json.loads((tmp_path / "ssim.json").read_text())
    vqvae, head = weights.load_vqvae(heads[0]), dataset.load_split("test", miniature).images[None, 8:]
    decoded = vqvae.decode(vqvae.encode(head))
    assert figures["slices"] == 8
    assert figures["reconstructions"]["mean"] == pytest.approx(modules.ssim(head[0], decoded[0]).mean(), abs=1e-5)
    (test / "case_442_slice_0.nii.png").unlink()
    assert "not one slice of each of 8 levels" in program.fails(*ssim)


def test_heads_are_worth_something_to_train_a_segmenter_on(program, heads, miniature, segmenter, monkeypatch):
    monkeypatch.setattr(utility, "STEPS", 2)
    monkeypatch.setattr(utility, "REPEATS", 1)
    how = ("--utility", "--preset", "head", "--data", miniature, "--samples", 15, "--seed", 0, "--no-show")
    out, _ = program.run("evaluate.py", *how, "--out", "u")
    assert "2 people and generated" in out  # 15 slices make two heads of eight
    content = json.loads((program.folder / "u" / "utility.json").read_text())
    assert {name.split(",")[0] for name in content["scores"]} == {"2 people", "generated", "2 people and generated"}


def test_evaluation_refuses_what_heads_do_not_have(program, heads, miniature):
    evaluate = ("evaluate.py", "--preset", "head", "--data", miniature, "--no-show")
    assert "no critic" in program.fails(*evaluate, "--candidates", 2, status=2)
    assert "take one" in program.fails(*evaluate, "--temperature", 1, 0.9, status=2)
    assert "models of slices" in program.fails(*evaluate, "--anomalies", status=2)


def test_weights_of_heads_are_kept_in_half_the_bytes_and_say_the_same(whole):
    model, kept = make_flow(grid=(8, 16, 16)), weights.load_models(whole)[1]
    size = (whole / "flow.weights.h5").stat().st_size
    assert size < 2 * model.count_params() + 3000 * len(model.weights)  # HDF5 adds some
    for ours, theirs in zip(model.weights, kept.weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.long
def test_training_of_heads_interrupted_in_its_later_stages_ends_as_one_never_interrupted(program, heads, tmp_path):
    arguments = (*heads[1], "--models", tmp_path / "models")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        for stage in ("adversarial", "flow"):
            with pytest.MonkeyPatch.context() as inner:
                stop_at(inner, stage, 1)
                program.run(*arguments, *([] if stage == "adversarial" else ["--resume"]), status=130)
        program.run(*arguments, "--resume")
    assert_same_set(tmp_path / "models", heads[0])


@pytest.mark.long
def test_page_shows_a_brain_in_a_browser(program, heads, tmp_path):
    browser = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    program.run("predict.py", "generate", 1, "--preset", "head", "--seed", 0, "--no-show", "--out", tmp_path)
    shot = tmp_path / "shot.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}", "--window-size=900,500"]
    subprocess.run([*command, f"file://{tmp_path}/head_000.html"], check=True, capture_output=True, timeout=120)
    assert_picture(shot)
