"""
The rival without a field of view: a random forest that looks at one pixel at a time.

It learns from the same coarse labels as the networks and is hard to beat where they are noisy (Schmitt et
al. 2020, ISPRS Annals V-3-2020, use one as a baseline): a pixel cannot know the shape of its coarse cell.
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
    """
    A trained forest and what it takes to use it.

    statistics : that its channels were normalised with
    neighbourhood : radius in pixels of the window that it saw beside the pixel itself; 0: none
    label_share : share of each class in the labels that it was drawn from, (8,)
    """

    trees: RandomForestClassifier
    statistics: Statistics
    neighbourhood: int = 0
    label_share: tuple[float, ...] = (1 / len(SCORED),) * len(SCORED)


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
    Grow a forest on a sample of the labelled pixels of *stack*; the same seed gives the same forest.

    n_pixels : size of the sample (all known pixels, where there are fewer)
    class_weight_power : 0 draws classes as often as they occur, 1 all alike, as in `losses.class_weights`
    neighbourhood : radius in pixels of a square window; its mean and deviation become features too

    Raises DataError when no pixel is labelled, ParameterError on a size below one.
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

    # Leaves of five pixels: a label that is wrong now and then is outvoted.
    trees = RandomForestClassifier(n_trees, min_samples_leaf=5, random_state=int(rng.integers(2**31)))
    trees.fit(_features(stack, statistics, chosen, neighbourhood), labels)
    counts = class_counts(stack.labels).double()
    return Forest(trees, statistics, neighbourhood, tuple((counts / counts.sum()).tolist()))


def sample_pixels(labels: Tensor, n_pixels: int, power: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """
    Places (in the flattened *labels*) of about *n_pixels* known pixels, sorted, none twice.

    Each class gets its share of n_pixels, frequency^(1 - power) over the sum of these; a class that has fewer
    gives all it has.
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
    What the trees see of each pixel: its channels (C, H, W) and, of the window of that radius, mean and deviation.

    Returns (C, H, W), or (3 C, H, W). At the edge of a patch the window is cut.
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
    """Features of the chosen pixels, (n, features), one patch at a time."""
    pixels = stack.labels[0].numel()
    rows = []
    for number, (s2, s1) in enumerate(zip(stack.s2, stack.s1, strict=True)):
        here = chosen[(chosen >= number * pixels) & (chosen < (number + 1) * pixels)] - number * pixels
        rows.append(features(normalise(s2, s1, statistics), neighbourhood).flatten(1).numpy()[:, here].T)
    return np.concatenate(rows)


def predict(forest: Forest, images: Images, prior_power: float = 0.0) -> NDArray[np.float32]:
    """
    Probabilities, float32 (8, H, W), as `training.predict`; a class that was never seen has 0.

    prior_power : probabilities are divided by (share of the class among the labels)^prior_power: 1 asks which class
        explains the pixel best, however rare it is; for a forest whose sample has classes as they occur
    """
    s2, s1 = s2_and_s1(images)
    channels = features(normalise(torch.as_tensor(s2), torch.as_tensor(s1), forest.statistics), forest.neighbourhood)
    votes = forest.trees.predict_proba(channels.flatten(1).T.numpy())  # (H * W, classes seen)
    seen = forest.trees.classes_
    votes /= np.array(forest.label_share)[seen] ** prior_power
    probabilities = np.zeros((len(SCORED), votes.shape[0]), np.float32)
    probabilities[seen] = (votes / votes.sum(axis=1, keepdims=True)).T
    return probabilities.reshape(len(SCORED), *channels.shape[1:])


def classify(forest: Forest, images: Images, prior_power: float = 0.0) -> NDArray[np.uint8]:
    """The most probable class at each pixel, uint8 (H, W), as DFC2020 codes."""
    return index_to_dfc(predict(forest, images, prior_power).argmax(axis=0))
