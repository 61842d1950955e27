"""
Few coarse cells: how far the default fusion may rely on what it learned from the target regions.

A fine-tuned network and a random forest learn the target regions from their coarse cells. With few cells they learn
which class dominates a region, and little more; with noisy labels, not even that. A network that was trained on many
other regions may then be better, or worse if the regions differ. Which one holds is estimated from cells that are held
out: how likely their labels are, given the prediction of the network, and given that of a forest which was trained on
the other cells. The reference plays no part in it. Constants were chosen on development worlds
(`benchmarks/sensitivity.py`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from lcfuse_core.data.legends import IGNORE, N_COARSE, SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import PatchSource, label_index
from lcfuse_core.methods import baselines
from lcfuse_core.methods.adapt import Predict, PseudoLabels
from lcfuse_core.methods.fusion import gather
from lcfuse_core.models import forest
from lcfuse_core.models.transition import Matrix
from lcfuse_core.scoring.scores import CELL_PX

FEW_CELLS = 200.0
"""Labelled coarse cells per region from which the default fusion learns from the target regions alone."""

_LEAST_WEIGHT = 0.25
"""Weight of the third member of the default fusion with the fewest cells, even if the held-out cells are against it."""

_FOLDS, _N_PIXELS, _N_TREES = 4, 10_000, 40


def scarcity(cells: float) -> float:
    """
    Return how few *cells* per region there are: 1 for none, falling in proportion to exactly 0 from `FEW_CELLS` on.

    >>> scarcity(0), scarcity(50), scarcity(200), scarcity(1000)
    (1.0, 0.75, 0.0, 0.0)
    """
    return max(0.0, 1.0 - cells / FEW_CELLS)


def third_weight(cells: float, preference: float) -> float:
    """
    Return the weight of a third member, which has not learned from the target regions.

    Parameters
    ----------
    cells : float
        Coarse cells per region. From half of `FEW_CELLS` on the weight falls, and from `FEW_CELLS` on it is exactly 0.
    preference : float
        Of `preference`: for 0 the weight is 0.25, for 1 it is 1, and in proportion between.
    """
    return min(1.0, 2.0 * scarcity(cells)) * (_LEAST_WEIGHT + (1.0 - _LEAST_WEIGHT) * preference)


def steps_for(cells: float, steps: int) -> int:
    """Return the steps of fine-tuning for *cells* per region: *steps*, or fewer in proportion below `FEW_CELLS`."""
    return max(1, round(steps * (1.0 - scarcity(cells))))


def cells_per_region(source: PatchSource, n_regions: int = 1) -> float:
    """Return the labelled area of *source* in coarse cells, per region; Savanna is a label."""
    return float(source.class_counts(N_COARSE).sum()) / CELL_PX / n_regions


def preference(third: Predict, other: Predict, source: PatchSource, matrix: Matrix, *, pixels: int = 2048) -> float:
    """
    Return the probability that *third* predicts the labels of coarse cells better than *other*, 0 to 1.

    Parameters
    ----------
    third, other : callable
        Probabilities of a patch. Neither may have learned from the cell that it predicts.
    source : PatchSource
        Of the target regions, with labels "modis+savanna".
    matrix : ndarray, shape (8, 9)
        p(coarse | fine).
    pixels : int
        Sampled per patch, see `fusion.gather`.

    Returns
    -------
    float
        By the normal distribution, from the mean difference of log p(label) over the cells and its standard error.
    """
    evidence = gather({"third": third, "other": other}, source, pixels=pixels)
    ratio = np.log(np.maximum([own.likelihood(matrix) for own in evidence.values()], 1e-12))
    gain = ratio[0] - ratio[1]
    error = max(float(gain.std() / np.sqrt(len(gain))), 1e-9)
    return float(special.ndtr(gain.mean() / error))


def held_out_forest(source: PatchSource, seed: int) -> Predict:
    """
    Return a function that predicts each coarse cell of *source* by a small forest trained on the other cells.

    The cells are split into `_FOLDS` parts at random. A class that occurs in one part only cannot be predicted there.
    """
    folds, forests = _folds(source, seed), {}
    for fold in range(_FOLDS):
        labels = [
            torch.where(torch.from_numpy(folds[name] == fold), IGNORE, window.labels).to(torch.uint8)
            for name, window in zip(source.names, source.windows(), strict=True)
        ]
        if any((own < N_COARSE - 1).any() for own in labels):
            masked = PseudoLabels(source, labels)
            forests[fold] = forest.train_forest(masked, n_pixels=_N_PIXELS, n_trees=_N_TREES, seed=seed)

    def predict(patch: Patch) -> NDArray[np.float32]:
        held_out, shape = folds[patch.name], (N_COARSE - 1, *patch.s2.shape[1:])
        probabilities = np.full(shape, 1 / shape[0], np.float32)
        for fold, trees in forests.items():
            inside = held_out == fold
            if inside.any():
                probabilities[:, inside] = forest.predict(trees, patch)[:, inside]
        return probabilities

    return predict


def held_out_label(source: PatchSource, seed: int) -> Predict:
    """Return a function that interpolates the label of each coarse cell of *source* from the labels of the others."""
    folds = _folds(source, seed)

    def predict(patch: Patch) -> NDArray[np.float32]:
        labels, held_out = labels_of(patch, source), folds[patch.name]
        probabilities = np.empty((len(SCORED), *labels.shape), np.float32)
        for fold in range(_FOLDS):
            inside = held_out == fold
            probabilities[:, inside] = baselines.interpolated(np.where(inside, IGNORE, labels))[:, inside]
        return probabilities

    return predict


def labels_of(patch: Patch, source: PatchSource) -> NDArray[np.uint8]:
    """Return the coarse labels of a patch, uint8 (H, W), its own or, if it has none, those that *source* has for it."""
    if patch.lc is not None:
        return label_index(patch, "modis+savanna")
    [window] = source.part([source.names.index(patch.name)]).windows()
    return window.labels.numpy()


def _folds(source: PatchSource, seed: int) -> dict[str, NDArray[np.int64]]:
    """Return the part, 0 to `_FOLDS` - 1, to which the cell of each pixel belongs, (H, W), by name of the patch."""
    rng, parts = np.random.default_rng(seed), {}
    for name, window in zip(source.names, source.windows(), strict=True):
        cells = window.cells.numpy()
        parts[name] = rng.integers(0, _FOLDS, int(cells.max()) + 1)[cells]
    return parts
