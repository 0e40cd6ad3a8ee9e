"""The training loop of every stage, and its checkpoints. It knows nothing of the networks that it trains."""

import json
import math
import re
import sys
import time
import zipfile

import numpy as np

from brains import devices, stream
from brains.backend import keras, tf
from brains.cli import UserError, note, written


class Training:
    """A model in training: everything that a checkpoint holds.

    `settings` is what a resumed training must have in common with the interrupted one. `history` holds a dict of
    figures for each finished epoch. Without a `path` nothing is written. `kept` holds the weights to end with, if these
    are not the last ones: those of the epoch where a figure `monitor` was lowest, or, if `averaged` is set, the mean
    over the steps of the last epoch (Izmailov et al. 2018, arXiv 1803.05407). `others` are further variables that the
    checkpoint keeps. `schedule` and `seed` are what `fit` goes by. `about` is what config.json says of it besides.
    """

    def __init__(self, name, model, optimizer, path, settings, *, monitor=None, others=(), schedule=None, seed=None):
        self.name, self.model, self.optimizer, self.path = name, model, optimizer, path
        self.settings, self.monitor, self.others = settings, monitor, [*others]
        self.schedule, self.seed = schedule, seed
        optimizer.build(model.trainable_variables)
        self.history, self.kept, self.averaged, self.about = [], {}, False, {}

    @property
    def best_epoch(self):
        """The number, from 1, of the epoch whose weights are kept."""
        if self.monitor is None:
            return len(self.history)
        return 1 + int(np.argmin([epoch[self.monitor] for epoch in self.history]))

    def finish_epoch(self, figures):
        """Add an epoch's figures to the history and write a checkpoint. Raises UserError if one is not finite."""
        if not all(map(math.isfinite, figures.values())):
            raise UserError(f"{self.name}: the loss is no longer finite; the old weights stay, try another --seed")
        self.history.append(figures)
        if self.monitor and self.best_epoch == len(self.history):
            self.kept = self.weights()
        if self.path and devices.writes():
            state = json.dumps({"settings": self.settings, "history": self.history})
            arrays = {key: np.asarray(variable) for key, variable in self._variables().items()}
            arrays |= {f"kept/{key}": array for key, array in self.kept.items()}
            with written(self.path) as part:
                np.savez(part, state=state, **arrays)

    def average(self, number):
        """Make `kept` the mean of the weights after the steps of this epoch, of which `number` were before this one."""
        for key, array in self.weights().items():
            self.kept[key] = array if number == 0 else self.kept[key] + (array - self.kept[key]) / (number + 1)

    def weights(self):
        """Return the weights of the model as they are now, {path: array}."""
        return {key: np.asarray(variable) for key, variable in by_path(self.model.weights).items()}

    def _variables(self):
        """Return all variables by a name that is the same in every process."""
        groups = {"model": self.model.variables, "optimizer": self.optimizer.variables, "other": self.others}
        return {f"{group}/{key}": each for group in groups for key, each in by_path(groups[group]).items()}

    def restore(self):
        """Take up the checkpoint, if there is one. Raises UserError if it is broken or of other settings."""
        if not self.path.exists():
            return
        state, arrays = load_checkpoint(self.path)
        if state["settings"].get("follows") != self.settings.get("follows"):
            note(f"{self.path} follows other networks than these; starting that stage afresh")
            return
        for name, value in self.settings.items():
            if (had := state["settings"].get(name)) != value:
                raise UserError(
                    f"{self.path}: the interrupted training had {name} {had}, this one has {value}; rerun with the "
                    "original flags, or without --resume to start afresh"
                )
        variables = self._variables()
        saved = {key for key in arrays if not key.startswith("kept/")}
        if saved != variables.keys() or any(arrays[key].shape != variables[key].shape for key in saved):
            raise UserError(f"{self.path}: of other networks than these; train without --resume")
        for key, variable in variables.items():
            variable.assign(arrays[key])
        self.kept = {key.removeprefix("kept/"): arrays[key] for key in arrays.keys() - saved}
        self.history = state["history"]
        note(f"{self.name}: continuing after epoch {len(self.history)}")


def by_path(variables):
    """Return Keras variables by path, {path: variable}, without the counters that Keras adds within a process."""
    named = {}
    for variable in variables:
        path = re.sub(r"(adam|seed_generator)_\d+", r"\1", variable.path)
        repeated = sum(key.split("#")[0] == path for key in named)
        named[f"{path}#{repeated}" if repeated else path] = variable
    return named


def load_checkpoint(path):
    """Return the state (settings and history) and the arrays by name of a checkpoint. Raises UserError if broken."""
    try:
        with np.load(path) as saved:
            arrays = dict(saved)
        return json.loads(str(arrays.pop("state"))), arrays
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: a broken checkpoint; delete it or train without --resume") from error


def adam_along_cosine(schedule, count, learning_rate=None, **adam):
    """Return Adam whose rate falls to zero along a cosine over all steps of a Schedule on `count` items.

    It starts at the Schedule's learning rate unless another one is given.
    """
    steps = schedule.epochs * -(-count // schedule.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate or schedule.learning_rate, steps)
    return keras.optimizers.Adam(rate, **adam)


def gradients_of(training, loss, optimizers=None):
    """Return what `fit` takes, for one model and a `loss(*arrays)` that gives a scalar and figures.

    `optimizers` are pairs of an optimizer and the variables that it trains (default: the Training's, and all).
    """
    optimizers = optimizers or [(training.optimizer, training.model.trainable_variables)]

    def gradients(*arrays):
        with tf.GradientTape() as tape:
            value, figures = loss(*arrays)
        values = tape.gradient(value, [variables for _, variables in optimizers])
        return [(optimizer, some, variables) for (optimizer, variables), some in zip(optimizers, values)], figures

    return gradients


def make_step(strategy, gradients, signature):
    """Return a compiled training step on a batch from `stream.feed`, of the element_spec `signature`.

    `gradients(*arrays)` gives a list of (optimizer, gradients, variables), and figures: means over the arrays' items,
    or sums if the name ends in "counts". Both are combined over all replicas. The step returns the figures.
    """

    def replica_step(share, *arrays):
        updates, figures = gradients(*arrays)
        replicas = tf.distribute.get_replica_context()
        for optimizer, values, variables in updates:
            optimizer.apply([share * value for value in values], variables)  # Keras sums them over the replicas
        weighted = [value if name.endswith("counts") else share * value for name, value in figures.items()]
        return dict(zip(figures, replicas.all_reduce("sum", weighted)))

    # one graph for batches of any size: a resumed training must compute by the graph of the interrupted one
    @tf.function(input_signature=signature)
    def step(*batch):
        figures = strategy.run(replica_step, batch)
        return {name: strategy.experimental_local_results(value)[0] for name, value in figures.items()}

    return step


def fit(training, gradients, read, count, figures_of, line_of, until=None):
    """Train for all epochs, or `until` one, on the items 0..count-1; returns the Training.

    `read` gives the items (see `stream.feed`). `gradients` is what `make_step` takes. `figures_of` turns its means and
    sums over an epoch into the epoch's figures, and `line_of` these into a line to print. The model ends with the
    weights that the Training has `kept`, or with the last ones.
    """
    strategy, step = tf.distribute.get_strategy(), None
    epochs, batch_size = training.schedule.epochs, training.schedule.batch_size
    if len(training.history) > epochs:
        finished = f"{len(training.history)} epochs are finished, more than the {epochs} that are asked for"
        raise UserError(f"{training.path}: {finished}; rerun with as many or more, or without --resume")
    settings = {**training.settings, "epochs": epochs, "follows": None}
    devices.agree(strategy, settings, training.path, len(training.history))
    for epoch in range(len(training.history), epochs if until is None else until):
        print(f"{training.name}, epoch {epoch + 1}/{epochs}", flush=True)
        began, seed = time.perf_counter(), (training.seed, epoch)
        batches, number_of_batches = stream.feed(strategy, read, stream.shuffled(count, batch_size, seed), seed)
        step = step or make_step(strategy, gradients, batches.element_spec)
        verbose = 1 if sys.stdout.isatty() else 2
        progress = keras.utils.Progbar(number_of_batches, verbose=verbose, stateful_metrics=["loss"])
        totals, fed = {}, min(count, number_of_batches * batch_size)
        for number, batch in enumerate(batches):
            weight = min(batch_size, fed - number * batch_size) / fed
            for name, value in step(*batch).items():
                value = np.asarray(value, np.float64)
                totals[name] = totals.get(name, 0) + (value if name.endswith("counts") else weight * value)
            if training.averaged and epoch == epochs - 1:
                training.average(number)
            progress.update(number + 1, [("loss", totals["loss"] * fed / min(fed, (number + 1) * batch_size))])
        figures = figures_of(totals)
        training.finish_epoch(figures | {"seconds": round(time.perf_counter() - began, 1)})
        print(f"  {line_of(figures)}", flush=True)
    if len(training.history) == epochs and training.kept:
        for key, variable in by_path(training.model.weights).items():
            variable.assign(training.kept[key])
    return training


def validator(loss, chosen, *arrays, size=stream.BATCH):
    """Return what `fit` takes as `figures_of`: it adds to the totals the mean figures of a loss on the chosen items.

    The arrays may be Stores, of which only some items, `size` of them, are in memory at a time.
    """
    count, examples = len(chosen), [array[chosen[:1]] for array in arrays]
    signature = [tf.TensorSpec((None, *example.shape[1:]), example.dtype) for example in examples]
    evaluate = tf.function(lambda *batch: loss(*batch)[1], input_signature=signature)

    def figures_of(totals):
        figures = {name: float(value) for name, value in totals.items()}
        figures |= dict.fromkeys([f"validation_{name}" for name in totals], 0.0)
        for part in stream.parts(count, size):
            for name, value in evaluate(*(array[chosen[part]] for array in arrays)).items():
                figures[f"validation_{name}"] += (part.stop - part.start) / count * float(value)
        return figures

    return figures_of
