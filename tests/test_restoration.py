"""What is unusual: surprise, codes drawn anew, maps and their scale, and the lesions that they are tried on."""

import json

import nibabel
import numpy as np
import pytest
from builders import make_gated, make_pixelcnn
from conftest import SLICES, brains, head
from PIL import Image
from scipy import stats
from scipy.ndimage import zoom
from sklearn.metrics import average_precision_score, roc_auc_score

import dataset
import modules
from brains import anomalies, lesions, restoration, sampling, surprise, usual, volumes, weights
from brains.cli import UserError
from brains.names import owners
from brains.scan import Scan
from brains.usual import SCALE


@pytest.mark.parametrize("make", [make_pixelcnn, make_gated])
def test_surprise_is_minus_log2_of_the_probability(make):
    prior = make(grid=(4, 5), num_embeddings=9)
    rng = np.random.default_rng(0)
    codes, levels = rng.integers(0, 9, (5, 4, 5), np.int32), np.arange(5, dtype=np.int32) % 4
    probabilities = modules.categorical(prior(codes, levels)).probs_parameter()
    expected = -np.log2(np.take_along_axis(np.asarray(probabilities), codes[..., None], axis=-1))[..., 0]
    np.testing.assert_allclose(surprise.bits_of_codes(prior, codes, levels), expected, rtol=1e-5, atol=1e-5)


def test_codes_that_are_not_flagged_never_change_and_others_follow_the_prior():
    prior = make_pixelcnn(grid=(2, 2), num_embeddings=3, filters=8)
    rng = np.random.default_rng(0)
    for weight in prior.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5)
    codes = np.tile(np.array([[0, 2], [1, 0]], np.int32), (20_000, 1, 1))
    flagged = np.zeros(codes.shape, bool)
    flagged[:, 1, 0] = True
    uniforms = rng.random(codes.shape, np.float32)
    drawn = sampling.redraw(prior, codes, flagged, uniforms, np.zeros(len(codes), np.int32))
    np.testing.assert_array_equal(drawn[~flagged], codes[~flagged])
    probabilities = np.float64(modules.categorical(prior(codes[:1])).probs_parameter()[0, 1, 0])
    counts = np.bincount(drawn[:, 1, 0], minlength=3)
    assert stats.chisquare(counts, probabilities / probabilities.sum() * len(codes)).pvalue > 0.01


def test_views_are_undone():
    images = brains(3)
    assert surprise.VARIED[0] == surprise.View() and len(set(surprise.VARIED)) == 8
    for view in surprise.VARIED:
        inner = (slice(None), slice(1, -1), slice(1, -1))
        np.testing.assert_array_equal(view.back(view.of(images))[inner], images[inner])
        assert np.any(view.of(images) != images) or view == surprise.View()


def restored(vqvae, images, limit, seed=0, views=2 * (surprise.View(),)):
    levels = np.zeros(len(images), np.int32)
    return restoration.restore(vqvae, make_pixelcnn(), images, levels, views, limit, seed)


def test_slice_with_nothing_flagged_is_restored_to_its_reconstruction(vqvae):
    images = brains(4)
    found = restored(vqvae, images, limit=np.inf)
    np.testing.assert_array_equal(found.images, vqvae.decode(vqvae.encode(images)))
    assert not found.flagged.any() and (found.bits > 0).all()
    np.testing.assert_allclose(found.surprise.mean(axis=(1, 2)) * 64, found.bits, rtol=1e-5)


@pytest.mark.parametrize("view", surprise.VARIED)
def test_views_are_laid_on_the_slice(vqvae, view):
    images = brains(2)
    found = restored(vqvae, images, limit=np.inf, views=(view,))
    codes = vqvae.encode(view.of(images))
    seen = vqvae.decode(codes)
    np.testing.assert_array_equal(found.images, view.back(seen))
    cost = surprise.bits_of_codes(make_pixelcnn(), codes, np.zeros(2, np.int32))
    grid = found.surprise[:, 8::16, 8::16]
    np.testing.assert_allclose(grid[:, ::-1] if view.mirrored else grid, cost, rtol=1e-5)


def test_map_of_a_slice_depends_on_no_other_slice(vqvae):
    images, limit = brains(3), median_bits(vqvae)
    together, alone = restored(vqvae, images, limit), restored(vqvae, images[1:2], limit)
    np.testing.assert_allclose(alone.parts[:, 0], together.parts[:, 1], atol=1e-3)


def median_bits(vqvae):
    codes = vqvae.encode(brains(3))
    return np.median(surprise.bits_of_codes(make_pixelcnn(), codes, np.zeros(3, np.int32)))


def test_same_seed_gives_the_same_map(vqvae):
    one, again, other = (restored(vqvae, brains(3), median_bits(vqvae), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.parts, again.parts)
    assert 0 < one.flagged.mean() < 1 and np.any(one.parts != other.parts)


@pytest.fixture(scope="module")
def finder(trained, miniature):
    """A Finder with the models of the miniature."""
    slices, content = dataset.load_split("train", miniature), weights.load_config(trained)
    normal = anomalies.measure_normal(slices.images, owners(slices.names)[1], np.arange(len(slices.images)))
    views = surprise.views_of(content["data"]["mirrored"])
    models = weights.load_models(trained)
    return anomalies.Finder(*models, weights.load_usual(trained), views, normal, content["seed"])


def test_scale_of_maps_is_that_of_held_out_slices(finder, trained, miniature):
    slices, content = dataset.load_split("train", miniature), weights.load_config(trained)
    cases, levels = owners(slices.names)
    held_out = np.isin(cases, content["data"]["held_out_cases"])
    maps = finder.scores(slices.images[held_out], levels[held_out])["map"]
    for bits in (1, 4, 8):
        assert np.mean(maps >= bits) == pytest.approx(2.0**-bits, rel=0.1)
    assert maps.min() == pytest.approx(0, abs=1e-6) and maps.max() <= SCALE[-1]


def test_planted_square_is_found(finder, miniature):
    slices = dataset.load_split("test", miniature)
    images, mask = slices.images.copy(), np.zeros(slices.images.shape[:3], bool)
    mask[:, 50:62, 70:82] = True
    images[mask] = 0.5
    maps = finder.scores(images, owners(slices.names)[1])["map"]
    assert roc_auc_score(mask.ravel(), maps.ravel()) > 0.95
    assert maps[mask].mean() > 3 * maps[~mask].mean()


def test_level_is_read_from_a_slice(finder, miniature):
    slices = dataset.load_split("test", miniature)
    read = finder.usual.read_levels(slices.images)
    assert np.abs(read - owners(slices.names)[1]).mean() < 1.5  # of SLICES levels; a guess errs by 2
    assert read.max() < SLICES


def test_what_costs_far_more_than_any_held_out_slice_is_off_the_scale():
    import predict

    assert "off the scale: 2.5 times" in predict.rank({"excess": 2.48, "percentile": 100.0})
    assert predict.rank({"excess": 1.2, "percentile": 100.0}).startswith("more than any")
    assert "more than 99 % of" in predict.rank({"excess": 0.9, "percentile": 99.7})


def test_bits_are_ranked_among_slices_of_about_that_level():
    scale = np.zeros(len(SCALE))
    known = usual.Usual(0.0, scale, scale, np.array([10, 20, 30, 99.0]), np.array([0, 1, 2, 9]), scale)
    percentiles, excess = known.rank([25, 5, 60, 200, 25], [1, 1, 1, 9, 5])
    np.testing.assert_allclose(percentiles, [200 / 3, 0, 100, 100, 0])  # nearest to level 5 is that of 30 bits
    np.testing.assert_allclose(excess, [25 / 30, 5 / 30, 2, 200 / 99, 25 / 30])


# --- lesions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", lesions.KINDS)
def test_lesion_changes_its_place_and_nothing_else(kind):
    images, others = brains(6), brains(12)[6:]
    for radius in lesions.SIZES.values():
        planted = lesions.plant(kind, radius, images, others, seed=0)
        again = lesions.plant(kind, radius, images, others, seed=0)
        np.testing.assert_array_equal(planted.images, again.images)
        area = planted.masks.sum(axis=(1, 2))
        assert (np.abs(np.sqrt(area / np.pi) / radius - 1) < 0.35).all()
        changed = np.abs(planted.images - images)[..., 0]
        assert (changed.max(axis=(1, 2)) > 0.02).all() and np.abs(planted.images).max() <= 0.5
        inside, outside = changed[planted.masks].mean(), changed[~planted.masks].mean()
        assert inside > 20 * outside


def test_tissue_is_exchanged_between_people_at_the_same_level():
    groups, levels = np.repeat(["a", "b", "c"], 6), np.tile(np.arange(6), 3)
    levels[0] = 99  # nobody else has it
    images = np.arange(18, dtype=np.float32).reshape(18, 1, 1, 1)
    scene = anomalies.choose_scene(images, groups, levels, seed=0)
    own, other = scene.images.ravel().astype(int), scene.others.ravel().astype(int)
    assert (levels[own] == levels[other]).all() and (groups[own] != groups[other]).all() and 0 not in own
    assert np.unique(scene.groups, return_counts=True)[1].max() == anomalies.PLANTED
    with pytest.raises(UserError, match="no two people"):
        anomalies.choose_scene(images[:6], groups[:6], levels[:6], seed=0)


def test_binned_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c", "d"], 5)
    truth = rng.random((20, 32, 32)) < 0.03
    scores = rng.normal(size=truth.shape) + 2 * truth
    figures = anomalies.detection(scores, truth, groups)
    assert figures["average precision"].value == pytest.approx(
        average_precision_score(truth.ravel(), scores.ravel()), abs=0.01
    )
    assert figures["AUROC"].value == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()), abs=0.002)
    thresholds = np.quantile(scores, np.linspace(0.8, 1, 400))
    dice = max(2 * np.sum(truth & (scores >= each)) / (truth.sum() + np.sum(scores >= each)) for each in thresholds)
    assert figures["best Dice"].value == pytest.approx(dice, abs=0.005)
    for figure in (each.figure for each in figures.values()):
        assert figure.low < figure.value < figure.high


def test_dementia_is_told_from_bits_among_people_of_one_age(monkeypatch):
    from brains.people import Person

    people = {f"case_{i:03}": Person(70 + i % 3, "F", (0, 0.5, 1)[i % 3]) for i in range(30)}
    groups = np.repeat(list(people), 2)
    costs = {case: 100 + 50 * (person.cdr == 1) - 500 * (person.cdr == 0.5) for case, person in people.items()}
    monkeypatch.setattr(anomalies, "bits", lambda prior, codes, levels: np.array([costs[code] for code in codes]))
    coder = type("Coder", (), {"encode": staticmethod(lambda images: images)})
    figure, numbers = anomalies.demented(coder, None, groups, groups, np.zeros(60, int), people)
    assert figure.value == 1 and numbers == (10, 10)
    assert anomalies.demented(coder, None, groups[:2], groups[:2], np.zeros(2, int), people) == (None, (0, 1))


# --- predict.py restore and evaluate.py --anomalies -------------------------------------------------------------------


def test_restore_writes_what_it_found(program, trained, tmp_path):
    Image.fromarray(head(441, 3)).save(tmp_path / "mine_slice_3.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)).save(tmp_path / "cat.png")
    call = ("predict.py", "restore", tmp_path / "mine_slice_3.png", tmp_path / "cat.png", "--seed", 5, "--no-show")
    call = (*call, "--out", tmp_path / "out")
    stdout, stderr = program.run(*call)
    assert "cat: level" in stdout and "cat: no level in the name" in stderr
    about = json.loads((tmp_path / "out" / "restore.json").read_text())
    mine, cat = about["slices"]
    assert (mine["slice"], mine["level"], mine["level from"]) == ("mine_slice_3", 3, "name")
    assert cat["level from"] == "image" and cat["percentile"] == 100 and cat["bits"] > mine["bits"]
    values = np.load(tmp_path / "out" / "mine_slice_3_map.npy")
    assert values.dtype == np.float32 and values.shape == (128, 128) and 0 <= values.min() <= values.max() <= 16
    grey = np.asarray(Image.open(tmp_path / "out" / "mine_slice_3_map.png"))
    np.testing.assert_allclose(grey / 255 * 16, values, atol=0.04)
    assert Image.open(tmp_path / "out" / "cat_restored.png").size == (128, 128)
    assert (tmp_path / "out" / "restorations.png").stat().st_size > 1000
    stdout, _ = program.run(*call[:-1], tmp_path / "again", "--level", 3)
    assert "cat: level 3 (from the --level)" in stdout
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "mine_slice_3_map.npy"), values)


SIDES = (4, 5, 4)  # mm


@pytest.fixture(scope="module")
def volume():
    """A head (X, Y, Z), in voxels of SIDES, like the mean slices, and a bright cube in it, as a mask.

    A bright column in a corner makes all slices of one contrast.
    """
    reference = zoom(volumes.load_reference()[:, :, ::4], (1, 4 / 5, 1), order=1)
    values = np.pad(reference, ((0, 0), (0, 0), (4, 4)), mode="edge")
    mask = np.zeros(values.shape, bool)
    mask[30:33, 17:20, 7:10] = True
    values = np.where(mask, 255, values / 2)
    values[1, 1] = 255
    return values.astype(np.float32), mask


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "SAL", "AIL", "IPR", "RSA", "LAI"])
def test_map_of_a_volume_lies_where_the_lesion_is(volume, code, tmp_path):
    values, mask = volume
    to_file = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    )
    affine = np.diag([*SIDES, 1.0]) @ nibabel.orientations.inv_ornt_aff(to_file, values.shape)
    stored = nibabel.apply_orientation(values, to_file)
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "head.nii.gz")
    scan = Scan(tmp_path / "head.nii.gz")
    images = np.stack([dataset.prepare(np.float32(grey))[..., 0] for grey in scan.slices])
    scan.save(tmp_path / "map.nii.gz", np.where(images > 0.2, 16, 0) * (np.arange(128) > 20), 16)
    found = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(found.affine, affine)
    there, wanted = np.argwhere(np.asarray(found.dataobj) > 8), np.argwhere(nibabel.apply_orientation(mask, to_file))
    np.testing.assert_allclose(there.mean(axis=0), wanted.mean(axis=0), atol=0.5)
    assert len(there) == pytest.approx(len(wanted), rel=0.5)


def test_map_of_a_volume_that_does_not_say_how_it_lies_does_not_either(volume, tmp_path):
    values, _ = volume
    nibabel.save(nibabel.AnalyzeImage(values, np.diag([*SIDES, 1.0])), tmp_path / "head.img")
    scan = Scan(tmp_path / "head.hdr")
    scan.save(tmp_path / "map.nii.gz", np.ones((32, 128, 128)), 16)
    header = nibabel.load(tmp_path / "map.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 0 and header["cal_max"] == 16
    np.testing.assert_allclose(header.get_zooms(), SIDES)


def test_what_is_usual_is_measured_where_it_is_missing(program, sharp, miniature, tmp_path):
    folder, _ = sharp
    before = weights.load_usual(folder)
    (folder / "usual.npz").unlink()
    call = ("evaluate.py", "--anomalies", "--preset", "sharp", "--data", miniature, "--no-show", "--out", tmp_path)
    assert "measuring what is usual" in program.run(*call)[1]
    for old, new in zip(before, weights.load_usual(folder)):
        np.testing.assert_allclose(new, old, rtol=0.02, atol=0.02)


def test_restore_takes_volumes(program, trained, volume, tmp_path):
    values, _ = volume
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*SIDES, 1.0])), tmp_path / "head.nii.gz")
    stdout, _ = program.run("predict.py", "restore", tmp_path / "head.nii.gz", "--no-show", "--out", tmp_path)
    found = nibabel.load(tmp_path / "head_map.nii.gz")
    assert found.shape == values.shape and np.asarray(found.dataobj).max() > 1
    assert len(json.loads((tmp_path / "restore.json").read_text())["slices"]) == 32 and "head_slice_31" in stdout
    nibabel.save(nibabel.Nifti1Image(values[:, :, :3], np.diag([*SIDES, 1.0])), tmp_path / "thin.nii.gz")
    assert "thin.nii.gz: is too low" in program.fails("predict.py", "restore", tmp_path / "thin.nii.gz", "--no-show")


def test_restore_says_what_is_wrong(program, sharp, trained, tmp_path):
    folder, _ = sharp
    Image.fromarray(head(1, 2)).save(tmp_path / "mine_slice_9.png")
    call = ("predict.py", "restore", tmp_path / "mine_slice_9.png", "--no-show", "--seed", 0)
    line = program.fails(*call, "--preset", "sharp", status=2)
    assert "level 9: the models in" in line and "know levels 0 to 7" in line
    both = ("predict.py", "restore", tmp_path / "some.nii", "--level", 3, "--no-show")
    assert "--level does not go with a volume" in program.fails(*both, status=2)
    assert "name image files, or --random" in program.run("predict.py", "restore", status=2)[1]
    (tmp_path / "text.nii").write_text("not a volume")
    assert "text.nii: cannot be read" in program.fails("predict.py", "restore", tmp_path / "text.nii", "--no-show")
    path = trained / "usual.npz"
    content = path.read_bytes()
    try:
        flipped = bytearray(content)
        for place in range(200, len(content) - 200, 97):
            flipped[place] ^= 255
        for damage, words in (
            (b"", "broken"),
            (content[:300], "broken"),
            (bytes(flipped), "broken"),
            (None, "missing"),
        ):
            path.write_bytes(damage) if damage is not None else path.unlink()
            line = program.fails(*call)
            assert f"usual.npz: {words}; " in line and "`python evaluate.py --anomalies`" in line
        path.write_bytes((folder / "usual.npz").read_bytes())
        assert "measured with another PixelCNN" in program.fails(*call)
    finally:
        path.write_bytes(content)


def test_anomalies_are_measured_by_kind_and_size(program, sharp, miniature, tmp_path):
    call = ("evaluate.py", "--anomalies", "--preset", "sharp", "--data", miniature, "--samples", 16)
    assert "--samples does not go with --anomalies" in program.run(*call, status=2)[1]
    stdout, _ = program.run(*call[:-2], "--no-show", "--out", tmp_path)
    about = json.loads((tmp_path / "anomalies.json").read_text())["models"]["trained_models/sharp"]
    figures = about["figures"]
    assert set(figures) == {
        "map",
        "difference and surprise",
        "surprise",
        "brightness",
        "distance to the mean",
        "reconstruction error",
    }
    precision = figures["map"]["average precision"]
    assert len(precision) == len(lesions.KINDS) * len(lesions.SIZES)
    assert precision["bright, large"]["value"] > 0.1 and figures["map"]["AUROC"]["bright, large"]["value"] > 0.7
    assert figures["map"]["AUROC by slice"]["bright, large"]["value"] > 0.7
    mean = np.mean([each["value"] for each in precision.values()])
    assert about["means"]["mean"]["map"]["value"] == pytest.approx(mean)
    assert "bright, large" in stdout and (tmp_path / "anomalies.png").exists()
