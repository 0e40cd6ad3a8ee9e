"""How well classifiers tell two sets of slices apart: trees that see energies, and a network that sees pixels.

Lopez-Paz and Oquab 2017, arXiv 1610.06545    (classifier two-sample test)
"""

import functools

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from brains.backend import keras, layers
from brains.config import SIZE
from brains.fidelity import as_images, laplacian_pyramid, unit
from brains.layers import detail
from brains.statistics import resampled, within

CELLS = 4  # a side of the grid in which the trees see the pyramid's energies
FOLDS, NETWORK_FOLDS = 5, 2  # of the trees, and of the network, which takes longer to fit
BACKGROUND = 0.04  # of white: below, nobody sees a difference from black
FILTERS = (16, 32, 64, 64)  # of the network, each at half the size
EPOCHS = 6  # of the network
AUC_RESAMPLES = 500  # fewer than for other intervals, because each one sorts all scores


def energies(images):
    """Return the mean absolute value of each scale of images (N, H, W) in the cells of a grid: (N, scales CELLS^2)."""
    energies_by_scale = []
    for scale in laplacian_pyramid(images):
        cells = np.abs(scale).reshape(len(scale), CELLS, scale.shape[1] // CELLS, CELLS, -1)
        energies_by_scale.append(cells.mean(axis=(2, 4)).reshape(len(scale), -1))
    return np.concatenate(energies_by_scale, axis=1)


def two_sample_auc(slices, real, seed, floor=0.0):
    """Return the Figure of the ROC AUC of trees that tell slices from as many real ones; 0.5 if they cannot.

    Each slice is judged by a classifier fitted without its group (Lopez-Paz and Oquab 2017). Less than `floor` is 0.
    """
    truth, groups = _labelled(slices, real)
    images = np.concatenate([unit(slices.grey), unit(real.grey)])
    features = energies(np.where(images < floor, 0, images))
    leaf = max(1, min(20, len(truth) // 20))  # slices in a leaf, small enough for few slices
    classifier = HistGradientBoostingClassifier(min_samples_leaf=leaf, early_stopping=False, random_state=seed)
    folds = _folds(slices, real, FOLDS, seed)
    scores = cross_val_predict(classifier, features, truth, groups=groups, cv=folds, method="predict_proba")[:, 1]
    return _auc(truth, scores, groups)


def network_auc(slices, real, seed):
    """Return what `two_sample_auc` does, of a small convolutional network that sees pixels, and no background."""
    truth, groups = _labelled(slices, real)
    images = np.concatenate([as_images(slices), as_images(real)])
    images[images < BACKGROUND - 0.5] = -0.5
    network, start = build_network(FILTERS, seed)
    scores = np.empty(len(truth))
    for fitted, judged in _folds(slices, real, NETWORK_FOLDS, seed).split(images, truth, groups):
        keras.utils.set_random_seed(seed)
        for variable, value in zip((*network.variables, *network.optimizer.variables), start):
            variable.assign(value)  # the same network afresh, because building and compiling takes seconds
        both = np.concatenate([images[fitted], images[fitted][:, ::-1]])  # mirror images too
        network.fit(both, np.tile(truth[fitted], 2), batch_size=32, epochs=EPOCHS, verbose=0)
        # networks of other folds have other scales, so that only ranks compare
        scores[judged] = rankdata(network.predict(images[judged], batch_size=64, verbose=0)[:, 0]) / len(judged)
    return _auc(truth, scores, groups)


@functools.cache
def build_network(filters, seed):
    """Return a network that gives slices (N, 128, 128, 1) in [-0.5, 0.5] logits (N, 1), compiled to be fitted.

    Also returns the values of its variables and of its optimizer's, as they start.
    """
    keras.utils.set_random_seed(seed)
    images = keras.Input((SIZE, SIZE, 1))
    x = layers.Concatenate()([2 * images, 16 * detail(images)])  # enlarged, detail counts from the start
    for number in filters:
        x = layers.Conv2D(number, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    network = keras.Model(images, layers.Dense(1)(x))
    network.compile(keras.optimizers.Adam(2e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    network.optimizer.build(network.trainable_variables)
    return network, [np.array(each) for each in (*network.variables, *network.optimizer.variables)]


def _labelled(slices, real):
    """Return 1 for slices and 0 for real ones (N,), and their groups (N,)."""
    return np.repeat([1, 0], [len(slices.grey), len(real.grey)]), np.concatenate([slices.groups, real.groups])


def _folds(slices, real, number, seed):
    """Return what cuts slices into so many folds, by group, or into fewer if there are fewer groups."""
    number = min(number, len(set(slices.groups)), len(set(real.groups)))
    return StratifiedGroupKFold(number, shuffle=True, random_state=seed)


def _auc(truth, scores, groups):
    """Return the Figure of the ROC AUC of scores (N,)."""
    drawn = resampled(groups)[:AUC_RESAMPLES]
    drawn = drawn[drawn[:, truth == 1].any(axis=1) & drawn[:, truth == 0].any(axis=1)]
    value = weighted_auc(truth, scores, np.ones((1, len(truth))))[0]
    return within(value, weighted_auc(truth, scores, drawn))


def weighted_auc(truth, scores, weights):
    """Return the ROC AUC (R,) of scores (N,) for a truth (N,) of 0 and 1, once for each set of weights (R, N).

    It is the share of pairs of a 1 and a 0 that the scores rank rightly; a tie counts half. scikit-learn's function
    takes one set of weights at a time, and milliseconds for each.
    """
    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank)
    starts = np.flatnonzero(np.diff(rank[order], prepend=-1))  # of runs of tied scores
    ones, zeros = (np.add.reduceat((weights * (truth == kind))[:, order], starts, axis=1) for kind in (1, 0))
    below = np.cumsum(zeros, axis=1) - zeros / 2
    return np.sum(ones * below, axis=1) / (ones.sum(axis=1) * zeros.sum(axis=1))
