"""
Adaptation: what can be learnt of a place from its own images and its own coarse labels, before it is mapped.

Signatures differ between regions: soils, crops, season, haze. A network that has learnt elsewhere meets the place to be
mapped as a stranger, yet MODIS has labelled that place too. All that is used here of an evaluation region is what any
user has: images and MODIS label. Its reference is never read; the label regime stays *coarse only*.

    adapted          go on training a network on the region's coarse labels
    pseudo_labels    map the region, and train a student on that map
    shifted_prior    learn the region's class shares from the network's answers
    fit_clusters     no network at all: group the region's pixels, and let the labels of the cells name the groups
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
from lcfuse_core.training.checkpoint import Run, TrainPlan
from lcfuse_core.training.loop import train

AT_HOME_LOSS, AT_HOME_RATE, AT_HOME_SHARE = "cell_mean", 4e-3, 2.25
"""How a network goes on learning at home: its loss, highest rate, and steps as a multiple of those it has behind it."""

Predict = Callable[[Patch], NDArray[np.float32]]
"""Probabilities (8, H, W) from a patch: its images and its MODIS label; it never gets the patch's `dfc`."""

N = len(SCORED)


def by_region(stack: PatchStack, regions: Sequence[str]) -> dict[str, PatchStack]:
    """The patches of each region as a stack of their own; *regions* names that of each patch of *stack*."""
    if len(regions) != len(stack):
        found = f"{len(regions)} regions for {len(stack)} patches"
        raise DataError("regions", found=found, expected="one for each patch", do="Name the region of each.")
    return {
        name: stack.part([number for number, own in enumerate(regions) if own == name])
        for name in dict.fromkeys(regions)
    }


def adapted(run: Run | None, regions: Mapping[str, PatchStack], plan: TrainPlan) -> dict[str, Run]:
    """
    A network for each region: a copy of *run*'s that has gone on learning, on the region's own labels.

    run : None starts from fresh weights: nothing is then known but the region itself
    plan : steps, rate, loss ... of the going on. Class weights and shares are the region's own, and so are the
        statistics that batch normalisation keeps (adaptive batch normalisation, Li et al. 2016, arXiv 1603.04779)

    A region without a single label of the eight classes keeps the network as it is; without one, DataError.
    """
    models = {}
    for name, stack in regions.items():
        if run is not None and not class_counts(stack.labels).any():
            models[name] = run
        else:
            models[name] = train(stack, plan, progress=False, start=run)
    return models


def at_home_plan(plan: TrainPlan, **changes: Any) -> TrainPlan:
    """How a network of *plan* goes on learning at home; *changes* to the loss, the rate and the rest."""
    steps = max(1, round(AT_HOME_SHARE * plan.steps))
    short = replace(plan, steps=steps, report_every=steps, loss=AT_HOME_LOSS, learning_rate=AT_HOME_RATE)
    return replace(short, **changes)


def pseudo_labels(predict: Predict, patches: Iterable[Patch], *, confidence: float = 0.0) -> NDArray[np.uint8]:
    """
    The most probable class of each pixel, uint8 (N, H, W), 255 where its probability is under *confidence*.

    What a student learns from, by `stack.with_labels(...)`: hard labels at 10 m, in which the errors of the coarse
    ones are partly repaired. Training on confident areas alone is L2HNet's idea (Li et al. 2022).
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


def shifted_prior(
    posteriors: NDArray[np.floating], prior: NDArray[np.floating], *, iterations: int = 200, tolerance: float = 1e-6
) -> NDArray[np.float64]:
    """
    Class shares, (8,), of a place that a network's posteriors (n, 8) were made in.

    Saerens, Latinne & Decaestecker 2002 (Neural Computation 14, 21): posteriors made under *prior* are re-weighted by
    new / old shares, and their mean is the next guess, until it stays. Right where the posteriors are calibrated and
    only the shares have changed; to be applied by `reweighted`.
    """
    q, old = np.asarray(posteriors, np.float64), np.asarray(prior, np.float64)
    new = old
    for _ in range(iterations):
        weighted = q * np.divide(new, old, out=np.zeros_like(new), where=old > 0)
        before, new = new, (weighted / np.maximum(weighted.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
        new = new / new.sum()
        if np.abs(new - before).max() < tolerance:
            break
    return new


def reweighted(probabilities: NDArray[np.float32], factors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probabilities (8, H, W), each class times its factor, and to one again."""
    scaled = probabilities * np.asarray(factors, np.float32)[:, None, None]
    return scaled / np.maximum(scaled.sum(axis=0), np.float32(1e-30))


@dataclass(frozen=True)
class Clusters:
    """
    Groups of like pixels in one region, and what each is probably covered by.

    centres : (G, C), in channels normalised by *statistics*
    classes : (G, 8), p(class | group)
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
    Group the pixels of a region by k-means, then learn which class each group is from the labels of the cells.

    stack : of the region, labels "modis+savanna"
    matrix : p(coarse | fine), (8, 9)
    guess : a network's probabilities, whose mean over each group is the prior of its classes; None: equal shares
    pseudo_count_cells : how much that prior weighs, in cells

    The contest's winners clustered scene by scene; this form is ours: the label of a cell is drawn by taking one of
    its pixels, hence a group g, a class k by p(k | g), and a label by the transition matrix. `name_clusters` finds the
    p(k | g) under which the labels are likeliest. Raises DataError when no pixel has a label.
    """
    statistics = channel_statistics(stack)
    rng = np.random.default_rng(seed)
    sample = np.concatenate([_pixels(stack, n, statistics)[_some(rng, stack, n)] for n in range(len(stack))])
    # Only here: see `forest.train_forest`.
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(n_clusters, random_state=int(rng.integers(2**31)), n_init=1, batch_size=4096)
    centres = means.fit(sample).cluster_centers_.astype(np.float32)
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
    classes = name_clusters(h, label, size / 2146, matrix, prior, pseudo_count_cells)
    return Clusters(centres, classes, statistics)


def name_clusters(
    shares: NDArray[np.floating],
    labels: NDArray[np.integer],
    weights: NDArray[np.floating],
    matrix: Matrix,
    prior: Matrix,
    pseudo_counts: float,
    iterations: int = 100,
) -> Matrix:
    """
    p(class | group), (G, 8), from the cells' shares of groups (J, G), labels (J,) and weights (J,), by EM.

    The chance of a cell's label is sum_gk share[g] p(k | g) T[k, label]. *prior* counts as *pseudo_counts* further
    cells for each group.
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
    """Probabilities, float32 (8, H, W): those of each pixel's group."""
    s2, s1 = s2_and_s1(images)
    channels = normalise(torch.as_tensor(s2), torch.as_tensor(s1), clusters.statistics)
    group = _nearest(channels.flatten(1).T.numpy(), clusters.centres)
    return clusters.classes.astype(np.float32)[group].T.reshape(N, *channels.shape[1:])


def _pixels(stack: PatchStack, number: int, statistics: Statistics) -> NDArray[np.float32]:
    """Normalised channels of a patch, a row a pixel."""
    return normalise(stack.s2[number], stack.s1[number], statistics).flatten(1).T.numpy()


def _some(rng: np.random.Generator, stack: PatchStack, number: int, share: int = 8) -> NDArray[np.int64]:
    """Places of one pixel in *share*, for k-means to look at."""
    n_pixels = stack.labels[number].numel()
    return rng.choice(n_pixels, max(1, n_pixels // share), replace=False)


def _nearest(pixels: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest centre of each pixel: least |c|^2 / 2 - c x, as |x|^2 is the same for all."""
    return ((centres**2).sum(axis=1) / 2 - pixels @ centres.T).argmin(axis=1)


def _cells(
    group: NDArray[np.int64], labels: NDArray[np.uint8], cells: NDArray[np.int32], n_groups: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Of each cell with a label: its shares of groups (J, G), its label (J,) and its size in pixels (J,)."""
    known = labels.reshape(-1) < N_COARSE
    key = cells.reshape(-1)[known].astype(np.int64) * N_COARSE + labels.reshape(-1)[known]
    there, number = np.unique(key, return_inverse=True)
    counts = np.bincount(number * n_groups + group[known], minlength=len(there) * n_groups)
    counts = counts.reshape(len(there), n_groups).astype(np.float64)
    size = counts.sum(axis=1)
    return counts / np.maximum(size[:, None], 1), there % N_COARSE, size
