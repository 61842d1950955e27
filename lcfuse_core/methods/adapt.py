"""
Domain adaptation: what can be learned from the images and the coarse labels of a target region before it is mapped.

Signatures differ between regions: soils, crops, season, haze. A network that was trained on source regions has a domain
shift to overcome in a target region, but MODIS labels exist there as well. Learning from them is transductive: it uses
the images that are evaluated. The reference is never read; the label regime stays *coarse only*.

    adapted          fine-tune a network on the region's coarse labels
    pseudo_labels    map the region, as labels for a student network (self-training)
    fit_clusters     without a network: cluster the region's pixels, and estimate the class of each cluster from cells
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lcfuse_core.data.legends import IGNORE, N_COARSE, SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import (
    Images,
    PatchStack,
    Statistics,
    channel_statistics,
    class_counts,
    normalise,
    s2_and_s1,
)
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.models.transition import Matrix
from lcfuse_core.training.checkpoint import Run
from lcfuse_core.training.loop import train
from lcfuse_core.training.plan import TrainPlan

ADAPTATION_LOSS, ADAPTATION_RATE, ADAPTATION_STEPS_FRACTION = "cell_mean", 4e-3, 2.25
"""Fine-tuning on a target region: loss, highest learning rate, and steps as a multiple of those of the training."""

Predict = Callable[[Patch], NDArray[np.float32]]
"""Probabilities, float32 (8, H, W), of a patch from its images and its MODIS label, never from its reference."""

N = len(SCORED)


def by_region(stack: PatchStack, regions: Sequence[str]) -> dict[str, PatchStack]:
    """Return a stack for each region; *regions* has the region of each patch of *stack*."""
    if len(regions) != len(stack):
        found = f"{len(regions)} regions for {len(stack)} patches"
        raise DataError("regions", found=found, expected="one for each patch", do="Name the region of each.")
    return {
        name: stack.part([number for number, own in enumerate(regions) if own == name])
        for name in dict.fromkeys(regions)
    }


def adapted(run: Run | None, regions: Mapping[str, PatchStack], plan: TrainPlan) -> dict[str, Run]:
    """
    Return a network for each region: a copy that was fine-tuned on the region's coarse labels.

    Parameters
    ----------
    run : Run or None
        The network to start from; None starts from fresh weights.
    regions : mapping
        Stacks by region. A region without a label of the eight classes keeps the network as it is.
    plan : TrainPlan
        Of the fine-tuning. Class weights and shares are the region's own, and so are the statistics of batch
        normalisation (adaptive batch normalisation, Li et al. 2016, arXiv 1603.04779).

    Returns
    -------
    dict of str to Run
        By region.

    Raises
    ------
    DataError
        If a region has no label and *run* is None.
    """
    models = {}
    for name, stack in regions.items():
        if run is not None and not class_counts(stack.labels).any():
            models[name] = run
        else:
            models[name] = train(stack, plan, progress=False, start=run)
    return models


def adaptation_plan(plan: TrainPlan, **changes: Any) -> TrainPlan:
    """Return the plan by which a network of *plan* is fine-tuned on target regions, with *changes*."""
    steps = max(1, round(ADAPTATION_STEPS_FRACTION * plan.steps))
    short = replace(plan, steps=steps, report_every=steps, loss=ADAPTATION_LOSS, learning_rate=ADAPTATION_RATE)
    return replace(short, **changes)


def pseudo_labels(predict: Predict, patches: Iterable[Patch], *, confidence: float = 0.0) -> NDArray[np.uint8]:
    """
    Return the most probable class of each pixel, as labels for a student network by `stack.with_labels(...)`.

    Parameters
    ----------
    predict : callable
        The teacher's probabilities.
    patches : iterable of Patch
        What to label.
    confidence : float
        Lowest probability of a label, from 0 to less than 1. Training on confident areas alone follows L2HNet
        (Li et al. 2022).

    Returns
    -------
    ndarray of uint8, shape (N, H, W)
        Class indices; 255 where the probability is below *confidence*.
    """
    if not 0 <= confidence < 1:
        found = f"{confidence}"
        raise ParameterError("confidence", found=found, expected="0 to less than 1", do="0 keeps every pixel.")
    maps = []
    for patch in patches:
        probabilities = predict(patch)
        best = probabilities.argmax(axis=0).astype(np.uint8)
        maps.append(np.where(probabilities.max(axis=0) < confidence, np.uint8(IGNORE), best))
    return np.stack(maps)


@dataclass(frozen=True)
class Clusters:
    """
    Clusters of similar pixels in one region, and the probable class of each.

    centres : (G, C), in channels normalised by *statistics*
    classes : (G, 8), p(class | cluster)
    """

    centres: NDArray[np.float32]
    classes: Matrix
    statistics: Statistics


def fit_clusters(
    stack: PatchStack,
    matrix: Matrix,
    *,
    seed: int,
    n_clusters: int = 128,
    pseudo_count_cells: float = 0.5,
    guess: Predict | None = None,
) -> Clusters:
    """
    Cluster the pixels of a region by k-means, and estimate the class of each cluster from the labels of the cells.

    The winners of DFC2020 clustered scene by scene; this form is ours. The label of a cell is modelled as drawn from
    one of its pixels, hence a cluster g, a class k by p(k | g), and a label by the transition matrix.

    Parameters
    ----------
    stack : PatchStack
        Of the region, with labels "modis+savanna".
    matrix : ndarray, shape (8, 9)
        p(coarse | fine).
    seed : int
        Of the sample of pixels and of k-means.
    n_clusters : int
        Number of clusters G.
    pseudo_count_cells : float
        Weight of the prior of a cluster's classes, in cells.
    guess : callable, optional
        Probabilities of a network, whose mean over each cluster is that prior; by default all classes alike.

    Raises
    ------
    DataError
        If no pixel has a label.
    """
    statistics = channel_statistics(stack)
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(len(stack)):  # every eighth pixel is enough for k-means
        pixels = _pixels(stack, number, statistics)
        parts.append(pixels[rng.choice(len(pixels), max(1, len(pixels) // 8), replace=False)])
    # Only here: see `forest.train_forest`.
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(n_clusters, random_state=int(rng.integers(2**31)), n_init=1, batch_size=4096)
    centres = means.fit(np.concatenate(parts)).cluster_centers_.astype(np.float32)
    shares, labels, sizes, guesses = [], [], [], np.zeros((n_clusters, N))
    for number in range(len(stack)):
        group = _nearest(_pixels(stack, number, statistics), centres)
        share, label, size = _cells(group, stack.labels[number].numpy(), stack.cells[number].numpy(), n_clusters)
        shares.append(share)
        labels.append(label)
        sizes.append(size)
        if guess is not None:
            patch = Patch(stack.names[number], stack.s1[number].numpy(), stack.s2[number].numpy())
            np.add.at(guesses, group, guess(patch).reshape(N, -1).T)
    prior = np.full((n_clusters, N), 1 / N) if guess is None else (guesses + 1) / (guesses + 1).sum(1, keepdims=True)
    h, label, size = np.concatenate(shares), np.concatenate(labels), np.concatenate(sizes)
    if not len(h):
        raise DataError("clusters", found="no labelled pixel", expected="at least one", do="Check the labels.")
    classes = classes_of_clusters(h, label, size / 2146, matrix, prior, pseudo_count_cells)
    return Clusters(centres, classes, statistics)


def classes_of_clusters(
    shares: NDArray[np.floating],
    labels: NDArray[np.integer],
    weights: NDArray[np.floating],
    matrix: Matrix,
    prior: Matrix,
    pseudo_counts: float,
    iterations: int = 100,
) -> Matrix:
    """
    Return p(class | cluster), (G, 8), the most likely given the labels of the cells, by EM.

    The likelihood of a cell's label is sum_gk share[g] p(k | g) T[k, label].

    Parameters
    ----------
    shares : ndarray, shape (J, G)
        Shares of the clusters in each cell.
    labels : ndarray of int, shape (J,)
        Coarse labels of the cells.
    weights : ndarray, shape (J,)
        Weights of the cells.
    matrix : ndarray, shape (8, 9)
        The transition matrix T = p(coarse | fine).
    prior : ndarray, shape (G, 8)
        Of the classes of each cluster.
    pseudo_counts : float
        Weight of the prior, in cells.
    iterations : int
        Most EM steps.
    """
    likelihood = matrix[:, labels].T  # (J, 8)
    classes = prior
    for _ in range(iterations):
        chance = np.maximum(((shares @ classes) * likelihood).sum(axis=1, keepdims=True), 1e-300)
        evidence = shares.T @ (weights[:, None] * likelihood / chance)  # (G, 8)
        expected = classes * evidence + pseudo_counts * prior
        before, classes = classes, expected / expected.sum(axis=1, keepdims=True)
        if np.abs(classes - before).max() < 1e-5:
            break
    return classes


def predict_clusters(clusters: Clusters, images: Images) -> NDArray[np.float32]:
    """Return probabilities, float32 (8, H, W): those of the nearest cluster of each pixel."""
    s2, s1 = s2_and_s1(images)
    channels = normalise(torch.as_tensor(s2), torch.as_tensor(s1), clusters.statistics)
    group = _nearest(channels.flatten(1).T.numpy(), clusters.centres)
    return clusters.classes.astype(np.float32)[group].T.reshape(N, *channels.shape[1:])


def _pixels(stack: PatchStack, number: int, statistics: Statistics) -> NDArray[np.float32]:
    """Return the normalised channels of a patch, one row per pixel."""
    return normalise(stack.s2[number], stack.s1[number], statistics).flatten(1).T.numpy()


def _nearest(pixels: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centre of each pixel: least |c|^2 / 2 - c x, as |x|^2 is the same for all."""
    return ((centres**2).sum(axis=1) / 2 - pixels @ centres.T).argmin(axis=1)


def _cells(
    group: NDArray[np.int64], labels: NDArray[np.uint8], cells: NDArray[np.int32], n_groups: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return shares of clusters (J, G), label (J,) and size in pixels (J,) of each labelled cell."""
    known = labels.reshape(-1) < N_COARSE
    key = cells.reshape(-1)[known].astype(np.int64) * N_COARSE + labels.reshape(-1)[known]
    found, number = np.unique(key, return_inverse=True)
    counts = np.bincount(number * n_groups + group[known], minlength=len(found) * n_groups)
    counts = counts.reshape(len(found), n_groups).astype(np.float64)
    size = counts.sum(axis=1)
    return counts / np.maximum(size[:, None], 1), found % N_COARSE, size
