"""
A random forest that classifies single pixels: the baseline without a receptive field.

It learns from the same coarse labels as the networks. Schmitt et al. 2020 (ISPRS Annals V-3-2020) use one as a
baseline; it is hard to beat under label noise, because a single pixel does not reveal the shape of its coarse cell.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lcfuse_core.data.bands import Statistics
from lcfuse_core.data.legends import SCORED, index_to_dfc
from lcfuse_core.data.source import Crops, Images, PatchSource, network_input, normalise
from lcfuse_core.errors import ParameterError
from lcfuse_core.models.losses import class_weights

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier


@dataclass(frozen=True)
class Forest:
    """A trained forest, with the normalisation and the features of its pixels."""

    trees: RandomForestClassifier
    statistics: Statistics
    neighbourhood: int = 0  # radius in pixels of the window whose statistics are features too; 0: none
    label_share: tuple[float, ...] = (1 / len(SCORED),) * len(SCORED)  # proportion of each class among the labels

    @cached_property
    def _votes_of(self) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        """The function that gives the sum of the trees' class proportions, (n, classes that occur), of n pixels."""
        from lcfuse_core.models import trees  # only here, as scikit-learn in `train_forest`: numba compiles it

        return partial(trees.votes, trees.pack([tree.tree_ for tree in self.trees.estimators_]))


def train_forest(
    source: PatchSource,
    *,
    n_pixels: int = 50_000,
    seed: int,
    n_trees: int = 100,
    class_weight_power: float = 0.5,
    neighbourhood: int = 0,
) -> Forest:
    """
    Train a forest on a sample of the labelled pixels of *source*; the same seed gives the same forest.

    The sample holds about *n_pixels* (all, if there are fewer), drawn without repetition from all windows; one window
    at a time is in memory. The proportion of a class in it is proportional to frequency^(1 - *class_weight_power*): 0
    samples classes as often as they occur, 1 all equally often, and a class with fewer pixels contributes all of them.
    *neighbourhood* is the radius in pixels of a window whose mean and standard deviation become features too. Raises
    DataError if no pixel is labelled.
    """
    if n_pixels < 1 or n_trees < 1:
        found = f"{n_pixels} pixels, {n_trees} trees"
        raise ParameterError("forest", found=found, expected="1 or more of each", do="50000 and 100 are usual.")
    rng, counts = np.random.default_rng(seed), source.class_counts()
    chosen = _draw_pixels(counts, n_pixels, class_weight_power, rng)
    statistics = source.statistics()
    n_chosen, n_features = sum(map(len, chosen)), len(statistics.channels) * (3 if neighbourhood else 1)
    # Not a list of parts: small arrays between the large ones of each window would keep the memory of these in use.
    rows, labels, filled = np.empty((n_chosen, n_features), np.float32), np.empty(n_chosen, np.uint8), 0
    seen = np.zeros(len(SCORED), np.int64)  # pixels of each class in the windows so far
    for window in source.windows(cells=False):
        flat, inside = window.labels.numpy().reshape(-1), []
        for index, n in enumerate(np.bincount(flat, minlength=len(SCORED))[: len(SCORED)]):
            first, last = np.searchsorted(chosen[index], (seen[index], seen[index] + n))
            inside.append(np.flatnonzero(flat == index)[chosen[index][first:last] - seen[index]])
            seen[index] += n
        pixels = np.sort(np.concatenate(inside))
        here = slice(filled, filled + len(pixels))
        rows[here], labels[here] = _features_of(pixels, window, statistics, neighbourhood), flat[pixels]
        filled = here.stop
    # Only here: scikit-learn takes half as long to import as all else that a chapter uses.
    from sklearn.ensemble import RandomForestClassifier

    # Leaves of five pixels outvote occasional wrong labels.
    trees = RandomForestClassifier(n_trees, min_samples_leaf=5, random_state=int(rng.integers(2**31)))
    trees.fit(rows, labels)
    return Forest(trees, statistics, neighbourhood, tuple((counts.double() / counts.sum()).tolist()))


def _draw_pixels(counts: Tensor, n_pixels: int, power: float, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Draw about *n_pixels* of the pixels of all classes; return, by class, sorted numbers below its count."""
    shares = (counts * class_weights(counts, power)).double()
    wanted = (n_pixels * shares / shares.sum()).round().long()
    return [
        np.sort(rng.choice(int(count), min(int(want), int(count)), replace=False)) if count else np.empty(0, np.int64)
        for want, count in zip(wanted, counts, strict=True)
    ]


def _features_of(
    pixels: NDArray[np.int64], window: Crops, statistics: Statistics, neighbourhood: int
) -> NDArray[np.float32]:
    """Return the features of some pixels of a window, (n, features): a sample has few in each of many windows."""
    layers = [layer.numpy() for layer in (window.s2, window.s1)]
    if neighbourhood == 0:
        s2, s1 = (layer.reshape(len(layer), 1, -1)[:, :, pixels] for layer in layers)
        return normalise(s2, s1, statistics).flatten(1).numpy().T
    found = np.empty((len(pixels), 3 * len(statistics.channels)), np.float32)
    for own, (row, col) in zip(found, zip(*np.unravel_index(pixels, window.labels.shape), strict=True), strict=True):
        top, left = max(0, row - neighbourhood), max(0, col - neighbourhood)
        s2, s1 = (layer[:, top : row + neighbourhood + 1, left : col + neighbourhood + 1] for layer in layers)
        around = _features(normalise(s2, s1, statistics), neighbourhood)
        own[:] = around[:, row - top, col - left]
    return found


def _features(channels: Tensor, neighbourhood: int) -> Tensor:
    """
    Return the channels (C, H, W) and, for a radius > 0, mean and standard deviation of the window: (3 C, H, W).

    At the edge of a patch the window is smaller.
    """
    if neighbourhood == 0:
        return channels
    mean, square = (
        F.avg_pool2d(values, 2 * neighbourhood + 1, 1, neighbourhood, count_include_pad=False)
        for values in (channels, channels.square())
    )
    return torch.cat([channels, mean, (square - mean.square()).clamp(min=0).sqrt()])


def predict(forest: Forest, images: Images, prior_power: float = 0.0) -> NDArray[np.float32]:
    """
    Return probabilities, float32 (8, H, W); classes that do not occur in the training labels have 0.

    They are divided by (share of the class among the labels)^prior_power. A power of 1 gives likelihoods, for a forest
    whose sample has classes as often as they occur. Raises DataError if the images do not have the forest's channels.
    """
    channels = _features(network_input(images, forest.statistics), forest.neighbourhood)
    pixels = channels.flatten(1).numpy().T
    present, n_threads = forest.trees.classes_, torch.get_num_threads()
    votes_of = forest._votes_of  # before the threads
    with ThreadPoolExecutor(n_threads) as pool:  # without Python's lock
        votes = np.concatenate(list(pool.map(votes_of, np.array_split(pixels, n_threads))))
    votes /= len(forest.trees.estimators_) * np.array(forest.label_share)[present] ** prior_power
    probabilities = np.zeros((len(SCORED), len(votes)), np.float32)
    probabilities[present] = (votes / votes.sum(axis=1, keepdims=True)).T
    return probabilities.reshape(len(SCORED), *channels.shape[1:])


def classify(forest: Forest, images: Images, prior_power: float = 0.0) -> NDArray[np.uint8]:
    """Return the most probable class of each pixel, uint8 (H, W), as DFC2020 codes."""
    return index_to_dfc(predict(forest, images, prior_power).argmax(axis=0))
