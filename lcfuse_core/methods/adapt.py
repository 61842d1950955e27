"""
Domain adaptation: what can be learned from the images and the coarse labels of a target region before it is mapped.

Signatures differ between regions: soils, crops, season, haze. A network that was trained on source regions has a domain
shift to overcome in a target region, but MODIS labels exist there as well. Learning from them is transductive: it uses
the images that are evaluated. The reference is never read; the label regime stays *coarse only*.

    adapted          fine-tune a network on the region's coarse labels
    pseudo_labelled  map the region, as labels for a student network (self-training)
    fit_clusters     without a network: cluster the region's pixels, and estimate the class of each cluster from cells

Everything reads its `PatchSource` patch by patch and keeps a bounded sample of pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core.data.bands import Statistics
from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import Crops, Images, PatchSource, network_input, normalise
from lcfuse_core.errors import DataError
from lcfuse_core.models.transition import Matrix
from lcfuse_core.training.checkpoint import Run
from lcfuse_core.training.loop import train
from lcfuse_core.training.plan import TrainPlan

_ADAPTATION_LOSS, _ADAPTATION_RATE, ADAPTATION_STEPS_FRACTION = "cell_mean", 4e-3, 2.25
"""Fine-tuning on a target region: loss, highest learning rate, and steps as a multiple of those of the training."""

MOST_PIXELS = 2**22
"""Most pixels of a sample, over all patches: fewer per patch are taken of more than 512 patches of 256 x 256."""

Predict = Callable[[Patch], NDArray[np.float32]]
"""Probabilities, float32 (8, H, W), of a patch from its images and its MODIS label, never from its reference."""

_N, _N_CLUSTERS = len(SCORED), 128


def adapted(run: Run | None, source: PatchSource, plan: TrainPlan, folder: str | os.PathLike[str] | None = None) -> Run:
    """
    Return a copy of a network that was fine-tuned on the coarse labels of a target region.

    Parameters
    ----------
    run : Run or None
        The network to start from; None starts from fresh weights.
    source : PatchSource
        Of the region. Without a label of the eight classes the network stays as it is.
    plan : TrainPlan
        Of the fine-tuning. Class weights and shares are the region's own, and so are the statistics of batch
        normalisation (adaptive batch normalisation, Li et al. 2016, arXiv 1603.04779).
    folder : path, optional
        From which an interrupted training continues.

    Raises
    ------
    DataError
        If the region has no label and *run* is None.
    """
    if run is not None and not source.class_counts().any():
        return run
    return train(source, plan, folder, progress=False, start=run)


def adaptation_plan(plan: TrainPlan, **changes: Any) -> TrainPlan:
    """Return the plan by which a network of *plan* is fine-tuned on target regions, with *changes*."""
    steps = max(1, round(ADAPTATION_STEPS_FRACTION * plan.steps))
    short = replace(plan, steps=steps, report_every=steps, loss=_ADAPTATION_LOSS, learning_rate=_ADAPTATION_RATE)
    return replace(short, **changes)


def images_of(source: PatchSource) -> Iterator[tuple[Patch, Crops]]:
    """Yield the images of each patch of a source, as a `Patch` without labels, and its window with labels and cells."""
    for name, window in zip(source.names, source.windows(), strict=True):
        yield Patch(name, window.s1.numpy(), window.s2.numpy()), window


def pseudo_labelled(predict: Predict, source: PatchSource) -> PseudoLabels:
    """
    Return a source of the same images with the most probable class of each pixel as labels for a student network.

    Parameters
    ----------
    predict : callable
        The teacher's probabilities.
    source : PatchSource
        What to label. The labels, a byte per pixel, are held in memory.
    """
    classes = (predict(patch).argmax(axis=0).astype(np.uint8) for patch, _ in images_of(source))
    return PseudoLabels(source, [torch.from_numpy(one) for one in classes])


class PseudoLabels(PatchSource):
    """Images and cells of a source of patches with other labels: uint8 (H, W), 0..7, for each patch."""

    def __init__(self, source: PatchSource, labels: Sequence[Tensor]) -> None:
        self.source, self.labels, self.names, self.shape = source, labels, source.names, source.shape

    def fill(self, number: int, row: int, col: int, out: Sequence[NDArray[Any]]) -> None:
        """Copy the window of a patch that begins at *row*, *col*, with the own labels."""
        self.source.fill(number, row, col, out)
        rows, cols = out[2].shape
        out[2][:] = self.labels[number][row : row + rows, col : col + cols].numpy()

    def part(self, numbers: Sequence[int]) -> PseudoLabels:
        """Return the patches of these numbers."""
        return PseudoLabels(self.source.part(numbers), [self.labels[number] for number in numbers])

    def digest(self) -> str:
        """Return a SHA-256 of pixels, cells and labels."""
        total = hashlib.sha256(self.source.digest().encode())
        for labels in self.labels:
            total.update(labels.numpy().tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class _Clusters:
    """Clusters of similar pixels in one region, and the probable class of each."""

    centres: NDArray[np.float32]  # (G, C), in channels normalised by *statistics*
    classes: Matrix  # (G, 8), p(class | cluster)
    statistics: Statistics


def fit_clusters(source: PatchSource, matrix: Matrix, *, seed: int, guess: Predict | None = None) -> _Clusters:
    """
    Cluster the pixels of a region by k-means, and estimate the class of each cluster from the labels of the cells.

    The winners of DFC2020 clustered scene by scene; this form is ours. The label of a cell is modelled as drawn from
    one of its pixels, hence a cluster g, a class k by p(k | g), and a label by the transition matrix.

    Parameters
    ----------
    source : PatchSource
        Of the region, with labels "modis+savanna".
    matrix : ndarray, shape (8, 9)
        p(coarse | fine).
    seed : int
        Of the sample of pixels and of k-means.
    guess : callable, optional
        Probabilities of a network, whose mean over each cluster is the prior of its classes, with the weight of half a
        cell; by default all classes alike.

    Raises
    ------
    DataError
        If no pixel has a label.
    """
    statistics = source.statistics()
    rng, n_pixels = np.random.default_rng(seed), source.shape[0] * source.shape[1]
    size = max(1, min(n_pixels // 8, MOST_PIXELS // len(source)))  # every eighth pixel is enough for k-means
    # Not a list of parts: see `forest.train_forest`.
    sample = np.empty((len(source), size, len(statistics.channels)), np.float32)
    for n, window in enumerate(source.windows(cells=False)):
        pixels = _pixels(window.s2, window.s1, statistics)
        sample[n] = pixels[rng.choice(len(pixels), size, replace=False)]
    # Only here: see `forest.train_forest`.
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(_N_CLUSTERS, random_state=int(rng.integers(2**31)), n_init=1, batch_size=4096)
    centres = means.fit(sample.reshape(-1, sample.shape[-1])).cluster_centers_.astype(np.float32)
    cells, guesses = [], np.zeros((_N_CLUSTERS, _N))
    for patch, window in images_of(source):
        group = _nearest(_pixels(window.s2, window.s1, statistics), centres)
        cells.append(_cells(group, window))
        if guess is not None:
            np.add.at(guesses, group, guess(patch).reshape(_N, -1).T)
    prior = np.full((_N_CLUSTERS, _N), 1 / _N) if guess is None else (guesses + 1) / (guesses + 1).sum(1, keepdims=True)
    shares, labels, sizes = (np.concatenate(parts) for parts in zip(*cells, strict=True))
    if not len(shares):
        raise DataError("clusters", found="no labelled pixel", expected="at least one", do="Check the labels.")
    classes = _classes_of_clusters(shares, labels, sizes / 2146, matrix, prior)
    return _Clusters(centres, classes, statistics)


def _classes_of_clusters(shares: NDArray, labels: NDArray, weights: NDArray, matrix: Matrix, prior: Matrix) -> Matrix:
    """
    Return p(class | cluster), (G, 8), the most likely given the labels of the cells, by EM.

    The likelihood of a cell's label is sum_gk share[g] p(k | g) T[k, label]: *shares* (J, G) of the clusters in each
    cell, coarse *labels* (J,) and *weights* (J,) of the cells, the transition *matrix* T = p(coarse | fine). The
    *prior* (G, 8) of the classes of each cluster weighs as much as half a cell.
    """
    likelihood = matrix[:, labels].T  # (J, 8)
    classes = prior
    for _ in range(100):
        chance = np.maximum(((shares @ classes) * likelihood).sum(axis=1, keepdims=True), 1e-300)
        evidence = shares.T @ (weights[:, None] * likelihood / chance)  # (G, 8)
        expected = classes * evidence + 0.5 * prior
        before, classes = classes, expected / expected.sum(axis=1, keepdims=True)
        if np.abs(classes - before).max() < 1e-5:
            break
    return classes


def predict_clusters(clusters: _Clusters, images: Images) -> NDArray[np.float32]:
    """Return probabilities, float32 (8, H, W): those of the nearest cluster of each pixel."""
    channels = network_input(images, clusters.statistics)
    group = _nearest(channels.flatten(1).T.numpy(), clusters.centres)
    return clusters.classes.astype(np.float32)[group].T.reshape(_N, *channels.shape[1:])


def _pixels(s2: Tensor, s1: Tensor, statistics: Statistics) -> NDArray[np.float32]:
    """Return the normalised channels of a patch, one row per pixel."""
    return normalise(s2, s1, statistics).flatten(1).T.numpy()


def _nearest(pixels: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centre of each pixel: least |c|^2 / 2 - c x, as |x|^2 is the same for all."""
    return ((centres**2).sum(axis=1) / 2 - pixels @ centres.T).argmin(axis=1)


def _cells(group: NDArray[np.int64], window: Crops) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return shares of clusters (J, G), label (J,) and size in pixels (J,) of each labelled cell."""
    labels, cells = window.labels.numpy().reshape(-1), window.cells.numpy().reshape(-1)
    known = labels < N_COARSE
    key = cells[known].astype(np.int64) * N_COARSE + labels[known]
    found, number = np.unique(key, return_inverse=True)
    counts = np.bincount(number * _N_CLUSTERS + group[known], minlength=len(found) * _N_CLUSTERS)
    counts = counts.reshape(len(found), _N_CLUSTERS)
    size = counts.sum(axis=1)
    return counts / size[:, None], found % N_COARSE, size
