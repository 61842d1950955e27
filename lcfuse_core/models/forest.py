"""
A random forest that classifies single pixels: the baseline without a receptive field.

It learns from the same coarse labels as the networks. Schmitt et al. 2020 (ISPRS Annals V-3-2020) use one as a
baseline; it is hard to beat under label noise, because a single pixel does not reveal the shape of its coarse cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lcfuse_core.data.legends import SCORED, index_to_dfc
from lcfuse_core.data.source import (
    Images,
    PatchStack,
    Statistics,
    channel_statistics,
    class_counts,
    normalise,
    s2_and_s1,
)
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


def train_forest(
    stack: PatchStack,
    *,
    n_pixels: int = 50_000,
    seed: int,
    n_trees: int = 100,
    class_weight_power: float = 0.5,
    neighbourhood: int = 0,
) -> Forest:
    """
    Train a forest on a sample of the labelled pixels of *stack*; the same seed gives the same forest.

    The sample holds *n_pixels* (all, if there are fewer). *class_weight_power* 0 samples classes as often as they
    occur, 1 all equally often, as in `losses.class_weights`. *neighbourhood* is the radius in pixels of a window whose
    mean and standard deviation become features too. Raises DataError if no pixel is labelled.
    """
    if n_pixels < 1 or n_trees < 1:
        found = f"{n_pixels} pixels, {n_trees} trees"
        raise ParameterError("forest", found=found, expected="1 or more of each", do="50000 and 100 are usual.")
    rng = np.random.default_rng(seed)
    chosen = sample_pixels(stack.labels, n_pixels, class_weight_power, rng)
    statistics = channel_statistics(stack)
    labels = stack.labels.numpy().reshape(-1)[chosen]
    # Only here: scikit-learn takes half as long to import as all else that a chapter uses.
    from sklearn.ensemble import RandomForestClassifier

    # Leaves of five pixels outvote occasional wrong labels.
    trees = RandomForestClassifier(n_trees, min_samples_leaf=5, random_state=int(rng.integers(2**31)))
    trees.fit(_features(stack, statistics, chosen, neighbourhood), labels)
    counts = class_counts(stack.labels).double()
    return Forest(trees, statistics, neighbourhood, tuple((counts / counts.sum()).tolist()))


def sample_pixels(labels: Tensor, n_pixels: int, power: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """
    Draw about *n_pixels* labelled pixels without repetition; return their sorted indices in the flattened *labels*.

    The share of a class is proportional to frequency^(1 - power); a class with fewer pixels contributes all of them.
    """
    counts = class_counts(labels)
    shares = (counts * class_weights(counts, power)).double()
    wanted = (n_pixels * shares / shares.sum()).round().long()
    flat = labels.numpy().reshape(-1)
    picks = [
        rng.choice(np.flatnonzero(flat == index), min(int(want), int(count)), replace=False)
        for index, (want, count) in enumerate(zip(wanted, counts, strict=True))
    ]
    return np.sort(np.concatenate(picks))


def features(channels: Tensor, neighbourhood: int) -> Tensor:
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


def _features(
    stack: PatchStack, statistics: Statistics, chosen: NDArray[np.int64], neighbourhood: int
) -> NDArray[np.float32]:
    """Return the features of the chosen pixels, (n, features), one patch at a time."""
    pixels = stack.labels[0].numel()
    rows = []
    for number, (s2, s1) in enumerate(zip(stack.s2, stack.s1, strict=True)):
        inside = chosen[(chosen >= number * pixels) & (chosen < (number + 1) * pixels)] - number * pixels
        rows.append(features(normalise(s2, s1, statistics), neighbourhood).flatten(1).numpy()[:, inside].T)
    return np.concatenate(rows)


def predict(forest: Forest, images: Images, prior_power: float = 0.0) -> NDArray[np.float32]:
    """
    Return probabilities, float32 (8, H, W); classes that do not occur in the training labels have 0.

    They are divided by (share of the class among the labels)^prior_power. A power of 1 gives likelihoods, for a forest
    whose sample has classes as often as they occur.
    """
    s2, s1 = s2_and_s1(images)
    channels = features(normalise(torch.as_tensor(s2), torch.as_tensor(s1), forest.statistics), forest.neighbourhood)
    votes = forest.trees.predict_proba(channels.flatten(1).T.numpy())  # (H * W, classes that occur)
    present = forest.trees.classes_
    votes /= np.array(forest.label_share)[present] ** prior_power
    probabilities = np.zeros((len(SCORED), votes.shape[0]), np.float32)
    probabilities[present] = (votes / votes.sum(axis=1, keepdims=True)).T
    return probabilities.reshape(len(SCORED), *channels.shape[1:])


def classify(forest: Forest, images: Images, prior_power: float = 0.0) -> NDArray[np.uint8]:
    """Return the most probable class of each pixel, uint8 (H, W), as DFC2020 codes."""
    return index_to_dfc(predict(forest, images, prior_power).argmax(axis=0))
