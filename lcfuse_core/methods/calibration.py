"""
Calibration: how sure a member may be, and how much it should count, judged by coarse labels alone.

No pixel's class is known, but the label of its cell is. A member is good when its mean over the pixels of a cell,
sent through the transition matrix, makes the cell's label likely. `reliability` is for the reader of a map, who has a
reference.

Axes: A members, J cells, n pixels, K = 8 fine classes, M = 9 coarse labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import label_index, patch_cells
from lcfuse_core.errors import DataError
from lcfuse_core.methods.adapt import Predict
from lcfuse_core.models.transition import Matrix

N = len(SCORED)


class Evidence(NamedTuple):
    """
    What cells say about one member.

    log_p : float32 (n, 8), log-probabilities of a sample of pixels
    cell : int64 (n,), the cell of each, 0..J-1
    label : int64 (J,), coarse label 0..8
    """

    log_p: NDArray[np.float32]
    cell: NDArray[np.int64]
    label: NDArray[np.int64]

    def likelihood(self, matrix: Matrix, temperature: float = 1.0) -> NDArray[np.float64]:
        """p(label) of each cell, (J,): the mean over its pixels of sum_k p(k)^(1/temperature) / Z x T[k, label]."""
        p = _softmax(self.log_p / temperature)
        values = (p * matrix[:, self.label[self.cell]].T).sum(axis=1)
        size = np.bincount(self.cell, minlength=len(self.label))
        return np.bincount(self.cell, values, len(self.label)) / np.maximum(size, 1)


def gather(
    members: Mapping[str, Predict], patches: Iterable[Patch], *, pixels: int = 2048, seed: int = 0
) -> dict[str, Evidence]:
    """
    What each member says of a sample of *pixels* of every patch, by the cells that they lie in.

    Raises DataError when no patch has a coarse label.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in members}
    cells: list[NDArray] = []
    labels: list[NDArray] = []
    n_cells = 0
    for patch in patches:
        label = label_index(patch, "modis+savanna").reshape(-1)
        known = np.flatnonzero(label < N_COARSE)
        if not len(known):
            continue
        chosen = np.sort(rng.choice(known, min(pixels, len(known)), replace=False))
        key = patch_cells(patch).reshape(-1)[chosen].astype(np.int64) * N_COARSE + label[chosen]
        there, number = np.unique(key, return_inverse=True)
        cells.append(number + n_cells)
        labels.append(there % N_COARSE)
        n_cells += len(there)
        for name, member in members.items():
            probabilities = member(patch).reshape(N, -1)[:, chosen].T
            parts[name].append(np.log(np.maximum(probabilities, np.float32(1e-7))))
    if not cells:
        raise DataError(
            "calibration", found="no coarse label", expected="labelled patches", do="Check the label layer."
        )
    cell, label_of = (np.concatenate(numbers).astype(np.int64) for numbers in (cells, labels))
    return {name: Evidence(np.concatenate(logs), cell, label_of) for name, logs in parts.items()}


def best_temperature(evidence: Evidence, matrix: Matrix) -> float:
    """The temperature, 0.2 to 10, under which a member's cells make their labels likeliest."""

    def misfit(log_temperature: float) -> float:
        likelihood = evidence.likelihood(matrix, float(np.exp(log_temperature)))
        return -float(np.log(np.maximum(likelihood, 1e-12)).mean())

    found = minimize_scalar(misfit, bounds=(np.log(0.2), np.log(10)), method="bounded", options={"xatol": 0.01})
    return float(np.exp(found.x))


def member_weights(likelihoods: NDArray[np.floating], iterations: int = 500) -> NDArray[np.float64]:
    """
    Weights, (A,), sum 1, of the mean of members under which the cells' labels are likeliest.

    likelihoods : (A, J), p(label of cell j) by member a alone

    Maximises sum_j log sum_a w_a L_aj, which has one maximum, by the EM steps of a mixture. A member that adds nothing
    to the others gets next to no weight; equal members stay equal.
    """
    likelihood = np.asarray(likelihoods, np.float64)
    weights = np.full(len(likelihood), 1 / len(likelihood))
    for _ in range(iterations):
        joint = weights[:, None] * likelihood
        before, weights = weights, (joint / np.maximum(joint.sum(axis=0), 1e-300)).mean(axis=1)
        weights /= weights.sum()
        if np.abs(weights - before).max() < 1e-7:
            break
    return weights


def reliability(
    probabilities: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 10
) -> dict[str, NDArray[np.float64]]:
    """
    Is 80 per cent sure right 80 times in 100? By bins of confidence: mean confidence, share right, and pixels.

    probabilities : (n,), of the class that was chosen
    right : (n,), whether it was

    Keys confidence, accuracy (NaN for empty bins) and count; the expected calibration error is
    sum |accuracy - confidence| x count / n over the bins that hold pixels.
    """
    number = np.minimum((np.asarray(probabilities) * bins).astype(np.int64), bins - 1)
    count = np.bincount(number, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(number, probabilities, bins) / count
        accuracy = np.bincount(number, right, bins) / count
    return {"confidence": confidence, "accuracy": accuracy, "count": count}


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
