"""Every figure of evaluate.py on sets where the answer is known, and the script as a user runs it."""

import functools
import json
import shutil

import numpy as np
import pytest
from conftest import head
from PIL import Image
from scipy.ndimage import gaussian_filter

import modules
import ssim
from brains import classifiers, config, fidelity
from brains.fidelity import SliceSet, unit
from brains.judge import Codes, Judge, judge_prior, nearest, repeats, ssim_of_nearest
from brains.statistics import bootstrap_interval, mean


def people(numbers, slices=8):
    """Return the SliceSet of slices of some people."""
    grey = np.stack([head(number, k, size=128) for number in numbers for k in range(slices)])
    return SliceSet(grey, np.repeat([f"case_{number:03}" for number in numbers], slices))


@pytest.fixture(scope="module")
def population():
    return people(range(160), slices=4)


@pytest.fixture(scope="module")
def halves(population):
    """Two halves of one population, cut by person."""
    first = np.isin(population.groups, np.random.default_rng(0).permutation(np.unique(population.groups))[:80])
    return population.take(first), population.take(~first)


def blurred(some, sigma=1.0):
    return some._replace(grey=gaussian_filter(some.grey, (0, sigma, sigma)))


# --- fidelity and variety ---------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_has_its_closed_form():
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(2, 100_000, 4))
    scale, shift = np.array([1, 2, 3, 1]), np.array([1, 0, -2, 0.5])
    assert fidelity.frechet_distance(points, points) == pytest.approx(0, abs=1e-6)
    expected = np.sum(shift**2) + np.sum((scale - 1) ** 2)
    assert fidelity.frechet_distance(points, others * scale + shift) == pytest.approx(expected, rel=0.02)


def test_pyramid_adds_up_and_tells_scales_apart():
    rng = np.random.default_rng(0)
    flat = fidelity.laplacian_pyramid(np.full((2, 128, 128), 0.4, np.float32))
    assert [level.shape for level in flat] == [(2, side, side) for side in (128, 64, 32, 16)]
    for level in flat[:-1]:
        np.testing.assert_allclose(level, 0, atol=1e-6)
    np.testing.assert_allclose(flat[-1], 0.4, atol=1e-6)
    stripes = np.tile(np.float32([0, 1]), (1, 128, 64))  # a pixel wide
    energy = [np.abs(level).mean() for level in fidelity.laplacian_pyramid(stripes)[:-1]]
    assert energy[0] > 10 * max(energy[1:])
    noise = fidelity.laplacian_pyramid(rng.normal(size=(1, 128, 128)).astype(np.float32))
    assert noise[0].std() > noise[1].std() > noise[2].std()


def test_sliced_distance_of_a_set_to_itself_is_zero_and_blur_raises_the_finest(halves):
    real, others = (fidelity.laplacian_pyramid(unit(half.grey)) for half in halves)
    blur = fidelity.laplacian_pyramid(unit(blurred(halves[1]).grey))
    itself, floor, of_blur = (
        np.array(fidelity.sliced_wasserstein(some, real, seed=0)) for some in (real, others, blur)
    )
    assert np.all(itself == 0) and np.all(floor > 0)
    ratio = of_blur / floor
    assert ratio[0] > 5 and ratio[0] > 1.5 * ratio[1:].max()


def test_neighbourhoods_of_one_population_are_full_and_a_missing_mode_is_seen():
    rng = np.random.default_rng(0)
    modes = np.array([[0, 0, 0, 0], [40, 0, 0, 0]])
    both = np.repeat(modes, 300, axis=0)
    own = np.arange(600).astype(str)
    real, whole = rng.normal(size=(2, 600, 4)) + both
    half = rng.normal(size=(600, 4)) + modes[0]
    full = fidelity.neighbourhoods(whole, own, real, own)
    assert full["density"].value == pytest.approx(1, abs=0.1)
    for name in ("precision", "recall", "coverage"):
        assert full[name].value > 0.9 and full[name].low < full[name].value < full[name].high
    missing = fidelity.neighbourhoods(half, own, real, own)
    assert missing["precision"].value > 0.9 and missing["density"].value == pytest.approx(1, abs=0.1)
    assert 0.4 < missing["recall"].value <= 0.5 and 0.4 < missing["coverage"].value <= 0.5
    assert fidelity.neighbourhoods(whole + 100, own, real, own)["precision"].value == 0


def test_reach_is_measured_to_other_people():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 4))
    owners = np.repeat(np.arange(30), 10)
    near_repeats = np.repeat(centres[:30], 10, axis=0) + rng.normal(scale=1e-3, size=(300, 4))
    others = np.repeat(centres[30:], 10, axis=0) + rng.normal(scale=1e-3, size=(300, 4))
    assert fidelity.neighbourhoods(near_repeats, owners, others, owners)["recall"].value > 0.6
    alone = np.arange(300)  # were every slice a person, hardly any would be in reach of another person's
    assert fidelity.neighbourhoods(near_repeats, alone, others, alone)["recall"].value < 0.1


def test_ssim_of_pairs_is_one_for_a_single_slice_and_never_pairs_a_person_with_itself(population):
    one = population.take(np.zeros(10, int))._replace(groups=np.arange(10).astype(str))
    assert fidelity.pair_ssim(one, seed=0).value == pytest.approx(1)
    two = people([1, 5], slices=1)
    twice = two.take(np.repeat([0, 1], 20))
    expected = modules.ssim(fidelity.as_images(two.take([0])), fidelity.as_images(two.take([1])))[0]
    np.testing.assert_allclose(fidelity.pair_ssim(twice, seed=0), expected, atol=1e-5)  # the interval too


def test_classifiers_cannot_tell_one_population_apart_but_a_blurred_one(halves):
    first, second = halves
    for told_apart in (classifiers.two_sample_auc, classifiers.network_auc):
        same = told_apart(first, second, seed=0)
        assert same.low < 0.5 < same.high and same.value == pytest.approx(0.5, abs=0.12)
        assert told_apart(blurred(first), second, seed=0).value > 0.98


def test_classifier_without_background_does_not_see_a_faint_one(halves):
    first, second = halves
    haze = first._replace(grey=np.maximum(first.grey, 3))
    assert classifiers.two_sample_auc(haze, second, seed=0).value > 0.98
    without = classifiers.two_sample_auc(haze, second, seed=0, floor=classifiers.BACKGROUND)
    assert without.value == pytest.approx(0.5, abs=0.12)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_nearest_finds_a_slice_and_its_mirror_image(population):
    queries = population.take([3, 10])
    queries.grey[1] = queries.grey[1][::-1]
    correlation, index, mirrored = nearest(queries, population)
    np.testing.assert_allclose(correlation, 1, atol=1e-5)
    assert index.tolist() == [3, 10] and mirrored[1]
    np.testing.assert_allclose(ssim_of_nearest(queries, population, index, mirrored), 1, atol=1e-5)


def test_planted_copies_are_caught_and_nothing_else(halves):
    real, others = halves
    by_person = np.isin(others.groups, np.unique(others.groups)[::2])
    held_out, generated = others.take(by_person), others.take(~by_person)
    planted = [2, 30, 77]
    rng = np.random.default_rng(0)
    for place, source in zip(planted, (0, 50, 100)):
        noisy = real.grey[source][::-1] + rng.normal(0, 1, (128, 128))
        generated.grey[place] = np.clip(np.round(noisy), 0, 255)
    limit = nearest(held_out, real)[0].max()
    assert np.flatnonzero(nearest(generated, real)[0] > limit).tolist() == planted
    figures, _ = Judge(real, held_out, 20, seed=0).memory(generated)
    assert figures["nearer than any held-out"].value == pytest.approx(3 / len(generated.grey))
    assert 3 / len(generated.grey) <= figures["nearer than 95 % of held-out"].value < 0.2
    none, _ = Judge(real, generated, 20, seed=0).memory(held_out)
    assert none["nearer than any held-out"].value == none["nearer than any held-out"].low == 0
    assert 0.05 < none["nearer than any held-out"].high < 0.15  # none of 40 people


def test_repeated_grids_are_counted():
    rng = np.random.default_rng(0)
    known, grids = rng.integers(0, 128, (50, 8, 8)), rng.integers(0, 128, (10, 8, 8))
    grids[4] = known[7]
    grids[6] = known[9]
    grids[6, 0, :3] += 1  # 3 of 64 codes are 4.7 %
    grids[8] = known[9]
    grids[8, 0, :4] += 1
    figures = list(repeats(Codes(grids, np.arange(10), None), known).values())
    assert figures[0].value == 0.1 and figures[1].value == 0.2


# --- the prior and the intervals --------------------------------------------------------------------------------------


def test_prior_of_known_probabilities_costs_what_it_must():
    pixelcnn = modules.PixelCNN(
        config.PixelCNNConfig(grid=(2, 2), num_embeddings=4, filters=8, residual_blocks=1, masked_layers=1)
    )
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    kernel, _ = pixelcnn.head.get_weights()
    pixelcnn.head.set_weights([np.zeros_like(kernel), np.log(probabilities)])
    training = np.random.default_rng(0).choice(4, (4000, 2, 2), p=probabilities).astype(np.int32)
    own = np.arange(4000)
    test = Codes(np.zeros((6, 2, 2), np.int32), np.repeat([0, 1, 2], 2), np.zeros(6, np.int32))
    sets = {"training": Codes(training, own, np.zeros(4000, np.int32)), "test": test}
    results = judge_prior(pixelcnn, sets, 64)
    assert results["training"]["bits a code"].value == pytest.approx(1.75, abs=0.05)
    assert results["training"]["histogram, bits a code"].value == pytest.approx(1.75, abs=0.05)
    assert results["training"]["perplexity"].value == pytest.approx(2**1.75, abs=0.1)
    assert results["test"]["bits a code"].value == pytest.approx(1)
    assert results["test"]["bits a slice"].value == pytest.approx(4)
    assert results["test"]["uniform, bits a code"].value == 2
    assert results["test"]["codes in use"].value == 1


def test_interval_over_people_knows_that_slices_of_one_are_alike():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=20), 50)
    low, high = bootstrap_interval(values, np.repeat(np.arange(20), 50))
    assert low < values.mean() < high and high - low == pytest.approx(4 * values.std() / np.sqrt(20), rel=0.2)
    slice_low, slice_high = bootstrap_interval(values, np.arange(1000))
    assert high - low > 4 * (slice_high - slice_low)


def test_one_person_says_nothing_of_others():
    assert str(mean(np.arange(32) / 32, np.repeat("case_441", 32))) == "0.484"
    figures = {"black_image": ssim.summarise(np.ones(32), np.ones(32), np.repeat("case_441", 32))}
    assert ssim.table(figures).endswith("1.000")


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Fewer pairs, directions, trees and filters: the tests of the script ask what is measured, and not how well."""
    monkeypatch.setattr(fidelity, "PAIRS", 100)
    monkeypatch.setattr(fidelity, "DIRECTIONS", 64)
    classifier = functools.partial(classifiers.HistGradientBoostingClassifier, max_iter=5)
    monkeypatch.setattr(classifiers, "HistGradientBoostingClassifier", classifier)
    monkeypatch.setattr(classifiers, "EPOCHS", 1)
    monkeypatch.setattr(classifiers, "FILTERS", (2, 2))


def evaluation(program, *arguments):
    """What evaluate.py writes to evaluation.json."""
    program.run("evaluate.py", *arguments, "--no-show", "--out", "evaluated")
    return json.loads((program.folder / "evaluated" / "evaluation.json").read_text())


def test_models_are_measured_beside_real_slices(trained, program, few, miniature):
    arguments = ("--data", miniature, "--samples", 20, "--preset", "faithful")
    results = evaluation(program, *arguments)
    assert results["sizes"] == {"reference": 48, "generated": 20, "held out": 16, "reconstructed": 16}
    assert results["compared"] == 16
    assert results["figures"].keys() == {"generated", "held out", "reconstructed", "training halves"}
    assert results["prior"]["faithful"].keys() == {"training", "validation", "test", "generated"}
    finest = {name: figures["sliced Wasserstein, 128 px"]["value"] for name, figures in results["figures"].items()}
    assert min(finest["generated"], finest["reconstructed"]) > 3 * finest["held out"]  # after three epochs
    assert all(0 <= figures["network AUC"]["value"] <= 1 for figures in results["figures"].values())
    attacks = {row for row in results["figures"]["generated"] if row.startswith("membership")}
    assert attacks == {"membership, nearest sample", "membership, control", "membership, likelihood"}
    for name in ("nearest.png", "nearest_distances.png"):
        with Image.open(program.folder / "evaluated" / name) as image:
            assert np.asarray(image.convert("L")).std() > 5
    assert evaluation(program, *arguments) == results


def test_both_presets_and_several_temperatures_are_one_table(trained, sharp, program, few, miniature):
    results = evaluation(program, "--data", miniature, "--samples", 20, "--temperature", 0.7, 1, "--candidates", 2)
    assert results["candidates"] == {"faithful": 1, "sharp": 2}
    generated = [f"{preset} generated at {t}" for preset in ("faithful", "sharp") for t in (0.7, 1)]
    reconstructed = ["faithful reconstructed", "sharp reconstructed"]
    assert list(results["figures"]) == [*generated, "held out", *reconstructed, "training halves"]
    assert results["prior"]["sharp"].keys() >= {"test", "generated at 0.7", "generated at 1"}
    cooled, drawn = (results["prior"]["sharp"][f"generated at {t}"]["bits a code"]["value"] for t in (0.7, 1))
    assert cooled < drawn
    assert "grids that repeat" in results["figures"]["sharp generated at 1"]
    with Image.open(program.folder / "evaluated" / "temperatures.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_tuning_measures_by_held_out_cases_and_leaves_the_test_split_unread(
    trained, sharp, program, few, miniature, tmp_path
):
    top = tmp_path / miniature.name
    top.mkdir()
    (top / "keras_png_slices_train").symlink_to(miniature / "keras_png_slices_train")
    models = tmp_path / "models"
    shutil.copytree(trained, models)
    content = json.loads((models / "config.json").read_text())
    content["data"]["held_out_cases"] = ["case_002", "case_005"]
    (models / "config.json").write_text(json.dumps(content))
    results = evaluation(program, "--data", top, "--models", models, "--tune", "--samples", 20)
    assert results["sizes"] == {"reference": 32, "generated": 20, "held out": 16, "reconstructed": 16}
    assert results["prior"]["models"].keys() == {"training", "validation", "generated"}
    assert "keras_png_slices_test" in program.fails(
        "evaluate.py", "--data", top, "--no-show", "--out", tmp_path / "out"
    )
    assert "too few" in program.fails("evaluate.py", "--data", top, "--tune", "--no-show", "--out", tmp_path / "out")


def test_folders_of_images_are_measured(program, few, tmp_path):
    real, fake = tmp_path / "real", tmp_path / "fake"
    real.mkdir(), fake.mkdir()
    for case in range(60):
        for k in range(2):
            Image.fromarray(head(case, k)).save(real / f"case_{case:03}_slice_{k}.nii.png")
    for number in range(15):
        Image.fromarray(head(100 + number, 1, size=128)).convert("RGB").save(fake / f"{number}.jpg", quality=95)
    for number in range(5):  # copies of slices that may or may not be held out
        Image.fromarray(head(number, 0)).save(fake / f"copy_{number}.png")
    Image.new("L", (900, 300)).save(fake / "generations.png")  # predict.py's figure is no sample
    (fake / "notes.pdf").write_bytes(b"no image either")
    results = evaluation(program, "--real", real, "--fake", fake)
    assert results["figures"].keys() == {"generated", "held out", "training halves"} and results["prior"] == {}
    assert results["sizes"] == {"reference": 108, "generated": 20, "held out": 12} and results["compared"] == 12
    assert 0.1 <= results["figures"]["generated"]["nearer than any held-out"]["value"] <= 0.25
    assert results["real"] == str(real) and "tune" not in results


def test_what_cannot_be_measured_is_refused_in_one_line(trained, sharp, program, few, miniature, tmp_path):
    program.fails("evaluate.py", "--real", tmp_path, status=2)
    program.fails("evaluate.py", "--real", tmp_path, "--fake", tmp_path, "--tune", status=2)
    program.fails("evaluate.py", "--samples", "0", status=2)
    program.fails("evaluate.py", "--real", tmp_path, "--fake", tmp_path, "--candidates", 2, status=2)
    call = ("evaluate.py", "--preset", "faithful", "--data", miniature, "--candidates", 2, "--no-show")
    assert "no critic" in program.fails(*call, status=2)
    program.fails("evaluate.py", "--temperature", "nan", status=2)
    empty = tmp_path / "empty"
    empty.mkdir()
    slices = miniature / "keras_png_slices_train"
    assert "no images here" in program.fails("evaluate.py", "--real", slices, "--fake", empty, "--no-show")
    assert "not a folder" in program.fails("evaluate.py", "--real", tmp_path / "none", "--fake", slices, "--no-show")
    (empty / "broken.png").write_bytes(b"no image")
    assert "broken.png" in program.fails("evaluate.py", "--real", slices, "--fake", empty, "--no-show")
    assert "too few" in program.fails("evaluate.py", "--data", miniature, "--samples", "9", "--no-show")
