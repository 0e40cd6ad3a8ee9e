"""Measures how good generated slices are: faithful, varied, new; each figure beside what real slices get.

    python evaluate.py                        both presets against the training split, the test split as floor
    python evaluate.py --tune                 the same with the held-out training cases, to choose by
    python evaluate.py --preset head          whole heads, and slices cut out of them
    python evaluate.py --real DIR --fake DIR  any two folders of images
    python evaluate.py --utility              what samples of sharp are worth to train a segmenter on: hours
    python evaluate.py --anomalies            how well `predict.py restore` finds lesions planted in real slices

All sets are measured in the same way: generated slices; real slices of people that no model has seen, whose figures say
what real slices get; and the reconstructions of these, which are as good as a decoder can make them. docs/evaluation.md
explains every row. Writes evaluation.json, nearest.png (it shows training slices, so do not publish it) and
nearest_distances.png; with several temperatures also temperatures.png, the curve of fidelity against variety.
"""

import argparse
import functools
import json
from pathlib import Path

from brains import cli, config

SAMPLES = 544  # slices to generate: the size of the test split
UTILITY = 2176  # the same with --utility: the slices of 68 people
HEADS = 136  # heads to generate; four slices of each make SAMPLES
BOTH = "both"  # presets
OF_MODELS = (
    "candidates samples temperature tune utility anomalies models data url".split()
)  # flags that folders do not take


def parse_arguments(arguments=None):
    description = "Measure generated slices beside real ones. Figures of different numbers of samples do not compare."
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    cli.add_sampling_arguments(parser, "of sampling; several draw a curve", nargs="+")
    add(
        "--samples",
        type=cli.positive,
        metavar="N",
        help=f"slices to generate ({SAMPLES}, with --utility {UTILITY:,}), or heads ({HEADS})",
    )
    add("--tune", action="store_true", help="use held-out training cases; the test split then stays unseen")
    meaning = "train segmenters on generated slices, and test them on real ones; run again to continue"
    add("--utility", action="store_true", help=meaning)
    add("--anomalies", action="store_true", help="plant lesions in real slices, and measure how well they are found")
    add("--seed", type=cli.seed, default=0, metavar="N", help="of all that is drawn (%(default)s)")
    meaning = "folder of real images; case_NNN in a name tells the person, and a tenth of the people is held out"
    add("--real", type=Path, metavar="DIR", help=meaning)
    add("--fake", type=Path, metavar="DIR", help="folder of generated images, instead of the models'")
    cli.add_data_arguments(parser)
    cli.add_model_arguments(parser, presets=(*config.GENERATIVE, BOTH), default=BOTH)
    args = parser.parse_args(arguments)
    if (args.real is None) != (args.fake is None):
        parser.error("--real and --fake go together")
    unused = [f"--{name}" for name in OF_MODELS if getattr(args, name)]
    if args.real and unused:
        parser.error(f"{unused[0]} does not go with --real and --fake")
    sampled = [f"--{name}" for name in "utility candidates samples temperature".split() if getattr(args, name)]
    if args.anomalies and sampled:
        parser.error(f"{sampled[0]} does not go with --anomalies, which draws no samples")
    if args.utility and len(args.temperature or []) > 1:
        parser.error("--utility takes one temperature")
    if args.utility and args.preset == BOTH:
        args.preset = "sharp"
    both = args.preset == BOTH and not args.models
    args.models = [cli.short(config.MODELS / name) for name in config.OF_SLICES] if both else [cli.choose_models(args)]
    return args


if __name__ == "__main__":
    cli.parse_early(parse_arguments)

import numpy as np
from tqdm import tqdm

from brains import anomalies, contenders, devices, headcontenders, headjudge, lesions, plots, utility, weights
from brains.backend import keras
from brains.cli import UsageError, UserError, note
from brains.fidelity import images_of
from brains.judge import Judge
from brains.names import hold_out, owners
from brains.surprise import views_of
from brains.usual import SCALE, measure_usual


def find_segmenter():
    """Return the segmenter and the sha256 of its weights, or None twice, and a note, if there is none."""
    folder = config.MODELS / "tissue"
    if weights.is_set(folder):
        return weights.load_segmenter(folder), weights.digests(folder)["segmenter"]
    note(f"note: no segmenter in {cli.short(folder)}, so without anatomy; `python train.py --preset tissue` trains one")
    return None, None


def halves_of(real, seed):
    """Return the SliceSets of two halves of the people of real slices, drawn by the seed."""
    half = np.isin(real.groups, hold_out(real.groups, 0.5, seed))
    return real.take(half), real.take(~half)


def measure(judge, sets, halves, reconstructed, repeats, membership):
    """Return the Figures of each set of slices {column: {row: Figure}}, and the nearest real slices {column: found}.

    `halves` are two SliceSets of real slices that are compared with each other. `reconstructed` names the columns of
    reconstructed held-out slices. `repeats` are functions by column that give the Figures of repeated grids from the
    nearest real slices, and `membership` are Figures by column.
    """
    found = {}
    compared = {name: (slices, judge.real) for name, slices in sets.items()}
    if min(len(half.grey) for half in halves) >= judge.count:
        compared["training halves"] = halves
    progress = functools.partial(tqdm, unit="set", leave=False, disable=None)
    measuring = functools.partial(progress, desc="measuring")
    likeness = devices.on_all_cores(lambda pair, stop: judge.likeness(*pair), compared.values(), measuring)
    figures = dict(zip(compared, likeness))
    for name, pair in progress(compared.items(), desc="telling apart"):
        figures[name] |= judge.pixels(*pair)
    for name, slices in progress(sets.items(), desc="looking for copies"):
        remembered, found[name] = judge.memory(slices)
        figures[name] |= judge.misreading(slices) | remembered | judge.tissue(slices, name in reconstructed)
        if name in repeats:
            figures[name] |= repeats[name](found[name])
        figures[name] |= membership.get(name, {})
    return figures, found


def columns_of(made, part):
    """Return a part of what models made, {column: value}. If there are several, the columns begin with their names."""
    columns = {}
    for name, each in made.items():
        prefix = f"{name} " if len(made) > 1 else ""
        columns |= {prefix + column: value for column, value in getattr(each, part).items()}
    return columns


def table(columns):
    """Return {column: {row: Figure}} as lines of text."""
    rows = dict.fromkeys(row for figures in columns.values() for row in figures)
    width = max(26, *(len(name) + 2 for name in columns))
    first = max(32, *(len(row) + 2 for row in rows))
    lines = [f"{'':{first}}" + "".join(f"{name:{width}}" for name in columns)]
    for row in rows:
        lines.append(f"{row:{first}}" + "".join(f"{str(figures.get(row, '')):{width}}" for figures in columns.values()))
    return "\n".join(line.rstrip() for line in lines)


def as_json(columns):
    return {name: {row: figure._asdict() for row, figure in figures.items()} for name, figures in columns.items()}


def measure_utility(args):
    """Measure what generated slices are worth to train a segmenter on; writes utility.json and returns the figure."""
    args.samples = args.samples or UTILITY
    asked = {"tune": args.tune, "samples": args.samples, "candidates": args.candidates}
    models = contenders.read_slices(args.models, args.data, args.url, **asked)[2][0]
    segmenter = weights.load_segmenter(config.MODELS / "tissue")
    known = weights.load_config(config.MODELS / "tissue")["data"]["held_out_cases"]
    if args.tune and set(models.content["data"]["held_out_cases"]) - set(known):
        note("note: some of the people who are tested on are known to the segmenter that labels the generated slices")
    real, people, test, digests = utility.read_labelled(models, args.data, args.url)
    temperature = args.temperature[0] if args.temperature else weights.load_temperature(models.folder)
    about = asked | {"candidates": models.critic[1], "seed": args.seed, "temperature": temperature, "data": digests}
    about |= {"models": weights.digests(models.folder), "segmenter": weights.digests(config.MODELS / "tissue")}
    scores = utility.Scores(args.out / "utility.json", about)
    vqvae, prior = weights.load_models(models.folder)
    if weights.knows_heads(models.folder):
        number = -(-args.samples // vqvae.config.levels)
        options = models.content, vqvae, prior, number, args.seed, temperature
        codes = scores.codes(lambda: headcontenders.sample(*options)[0])
        heads = images_of(headcontenders.decoded(vqvae, codes))
        images = heads.reshape(-1, *heads.shape[2:])
    else:
        codes = scores.codes(lambda: contenders.sample(models, vqvae, prior, args.samples, args.seed, temperature))
        images = vqvae.decode(codes)
    generated = utility.Labelled(images, segmenter.label(images), np.full(len(images), ""))
    keras.config.set_dtype_policy(devices.choose_precision())
    found = utility.measure(real, people, generated, test, scores, args.seed)
    results = utility.summary(found)
    print(table({column: {name: each[column] for name, each in results.items()} for column in utility.COLUMNS}))
    lowest, highest = ([function(each.mean(axis=(1, 2))) for each in found.values()] for function in (np.min, np.max))
    for name, low, high in zip(found, lowest, highest):
        print(f"{name}: mean Dice {low:.3f} to {high:.3f} in {utility.REPEATS} trainings")
    print(scores.path)
    return plots.draw_utility(results)


def measure_anomalies(args):
    """Measure how well models find lesions planted in held-out slices; writes anomalies.json and returns the figure.

    The figure shows the last ones of several models.
    """
    if any(map(weights.knows_heads, args.models)):
        raise UsageError("--anomalies: takes models of slices, --preset faithful or sharp")
    asked = {"tune": args.tune, "samples": SAMPLES, "candidates": 1}
    found = contenders.read_slices(args.models, args.data, args.url, **asked)[2]
    study = contenders.people_of(found[0])
    about = {"seed": args.seed, "tune": args.tune, "models": {}}
    for models in found:
        finder, scene = prepare_finder(models, args.seed)
        progress = functools.partial(tqdm, desc=f"planting, {models.folder.name}", leave=False, disable=None)
        results = anomalies.measure(finder, scene, progress)
        means, figures = anomalies.means_by_kind(results), {}
        for way, columns in results.items():
            figures[way] = {
                name: {", ".join(key): each.figure for key, each in column.items()} for name, column in columns.items()
            }
        name, number = models.folder.name, len(scene.images)
        print(f"{name}: average precision in {number} slices, mean over sizes", table(means), sep="\n")
        print(f"\n{name}: the map, by kind and size", table(figures["map"]), sep="\n")
        dementia = measure_dementia(models, finder, study) if study else {}
        about["models"][str(models.folder)] = {
            "means": as_json(means),
            "figures": {way: as_json(each) for way, each in figures.items()},
            "dementia": dementia,
        }
    with cli.written(args.out / "anomalies.json") as part:
        part.write_text(json.dumps(about, indent=1) + "\n")
    print(args.out / "anomalies.json")
    return plots.draw_anomalies(anomalies.examples(finder, scene), lesions.KINDS, SCALE[-1])


def measure_heads(args):
    """Measure whole heads and the slices cut out of them; writes heads.json."""
    (folder,) = args.models
    args.samples = args.samples or HEADS
    if args.candidates:
        raise UsageError(f"--candidates: the models in {folder} have no critic")
    if len(args.temperature or []) > 1:
        raise UsageError("--temperature: models of heads take one")
    about = {"samples": args.samples, "tune": args.tune, "seed": args.seed, "models": weights.digests(folder)}
    where = {"tune": args.tune, "seed": args.seed, "data": args.data, "url": args.url}
    made = headcontenders.make(folder, args.samples, args.temperature and args.temperature[0], **where)
    segmenter, about["segmenter"] = find_segmenter()
    held_out, halves = made.held_out_slices, [headjudge.slices_cut(half) for half in made.halves]
    cut = {name: headjudge.slices_cut(heads) for name, heads in made.sets.items() if name != "reconstructed"}
    cut |= {"held out": held_out, "reconstructed": headcontenders.all_slices(made.sets["reconstructed"])}
    sizes = {"reference": made.real_slices, **cut}
    count = contenders.number_compared(sizes, len(cut["generated"].grey), folder)
    judge = Judge(made.real_slices, held_out, count, args.seed, segmenter)
    figures = {"slices": measure(judge, cut, halves, ("reconstructed",), {}, {})[0]}
    judge = headjudge.HeadJudge(made.real, made.sets["held out"], made.slab, args.seed, segmenter)
    progress = functools.partial(tqdm, unit="set", desc="measuring heads", leave=False, disable=None)
    figures["heads"] = {name: judge.figures(heads) for name, heads in progress(made.sets.items())}
    figures["heads"]["generated"] |= judge.membership(made.sets["generated"], made.costs)
    figures["latents"] = made.prior
    titles = (f"slices cut out of {args.samples} heads, {count:,} of each compared", "whole heads", "latents of heads")
    for title, columns in zip(titles, figures.values()):
        print(f"{title}", table(columns), "", sep="\n")
    with cli.written(args.out / "heads.json") as part:
        part.write_text(json.dumps(about | {name: as_json(each) for name, each in figures.items()}, indent=1) + "\n")
    print(args.out / "heads.json")


def prepare_finder(models, seed):
    """Return the Finder with these Models, which are told what is usual if they do not know, and the Scene."""
    vqvae, prior = weights.load_models(models.folder)
    mirrored, images = models.content["data"].get("mirrored", False), models.training.images
    levels, seen = owners(models.training.names)[1], np.flatnonzero(~models.unseen)
    test = models.test or models.training
    chosen = slice(None) if models.test else models.unseen
    tested = [each[chosen] for each in (test.images, *owners(test.names))]
    contenders.check_levels(models, prior, levels, tested[2])
    if not weights.has_usual(models.folder):
        if not models.unseen.any():
            raise UserError(f"{models.folder}: what is usual cannot be measured on other slices than it was trained on")
        note(f"{models.folder}: measuring what is usual in held-out slices")
        where = images, levels, seen, np.flatnonzero(models.unseen)
        usual = measure_usual(vqvae, prior, views_of(mirrored), *where, models.content["seed"])
        weights.add_usual(models.folder, usual)
    normal = anomalies.measure_normal(images, levels, seen)
    if tested[2].max() >= len(normal.mean):
        raise UserError(f"{models.folder}: some slices are of a level that no training slice has")
    usual = weights.load_usual(models.folder)
    finder = anomalies.Finder(vqvae, prior, usual, views_of(mirrored), normal, seed)
    return finder, anomalies.choose_scene(*tested, seed)


def measure_dementia(models, finder, study):
    """Print whether bits tell people with dementia; returns the AUC and the numbers of people {part: figures}."""
    training = (models.training.images, *owners(models.training.names))
    sets = {"seen": [each[~models.unseen] for each in training], "unseen": contenders.unseen_slices(models)}
    found = {}
    for part, slices in sets.items():
        figure, (ill, others) = anomalies.demented(finder.vqvae, finder.prior, *slices, study)
        print(
            f"bits of {ill} people with dementia beside {others} without, {part} by the prior, of like age: AUC", figure
        )
        found[part] = {"AUC": figure and figure._asdict(), "with dementia": ill, "without": others}
    return found


def main(arguments=None):
    args = parse_arguments(arguments)
    cli.make_folder(args.out)
    if args.no_show:
        plots.hide()
    if args.utility or args.anomalies:
        name, draw = ("utility", measure_utility) if args.utility else ("anomalies", measure_anomalies)
        plots.save(draw(args), args.out / config.FIGURES[name])
        return plots.show()
    if not args.real and weights.knows_heads(args.models[0]):
        return measure_heads(args)
    args.samples = args.samples or SAMPLES
    segmenter, digest = find_segmenter()
    if args.real:
        made = {}
        real, held_out, generated, count = contenders.read_folders(args.real, args.fake, args.seed)
        about = {"real": str(args.real), "fake": str(args.fake)}
    else:
        asked = {"tune": args.tune, "samples": args.samples, "candidates": args.candidates}
        real, held_out, models, count = contenders.read_slices(args.models, args.data, args.url, **asked)
        study = contenders.people_of(models[0])
        options = (args.samples, args.temperature, args.seed, study)
        made = {each.folder.name: contenders.make(each, *options) for each in models}
        generated = columns_of(made, "generated")
        about = {"models": list(map(str, args.models)), "samples": args.samples, "tune": args.tune}
        about["temperature"] = {name: each.temperatures for name, each in made.items()}
        about["matched by age"] = bool(study)
        about["candidates"] = {name: each.candidates for name, each in made.items()}
    parts = {part: columns_of(made, part) for part in ("reconstructed", "repeats", "membership")}
    sets = {**generated, "held out": held_out, **parts["reconstructed"]}
    judge = Judge(real, held_out, count, args.seed, segmenter)
    figures, found = measure(judge, sets, halves_of(real, args.seed), **parts)
    sizes = {"reference": len(real.grey)} | {name: len(slices.grey) for name, slices in sets.items()}
    print(", ".join(f"{number:,} {name}" for name, number in sizes.items()) + f" slices; {count:,} of each compared")
    print(table(figures))
    for name, each in made.items():
        print(f"\nthe codes of {name} and their prior", table(each.prior), sep="\n")
    about |= {"segmenter": digest, "seed": args.seed, "sizes": sizes, "compared": count, "figures": as_json(figures)}
    about["prior"] = {name: as_json(each.prior) for name, each in made.items()}
    with cli.written(args.out / "evaluation.json") as part:
        part.write_text(json.dumps(about, indent=1) + "\n")
    print(args.out / "evaluation.json")
    nearest = plots.draw_nearest({name: (slices, found[name]) for name, slices in generated.items()}, real)
    plots.save(nearest, args.out / config.FIGURES["nearest"])
    distances = {name: correlation for name, (correlation, _, _) in found.items()}
    plots.save(plots.draw_distances(distances), args.out / config.FIGURES["distances"])
    if args.temperature and len(args.temperature) > 1:
        columns = iter(generated)
        curves = {name: {t: figures[next(columns)] for t in each.temperatures} for name, each in made.items()}
        floor = figures.get("training halves", figures["held out"])
        plots.save(plots.draw_temperatures(curves, floor), args.out / config.FIGURES["temperatures"])
    plots.show()


if __name__ == "__main__":
    cli.run(main)
