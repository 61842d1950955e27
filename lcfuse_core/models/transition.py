"""
The transition matrix p(coarse | fine): the MODIS label of a 500 m cell, given the class of a pixel in it.

A matrix is float64 (8, 9): one row per fine class, one column per coarse label, the ninth being Savanna; rows sum to
one. Its source decides the label regime:

    from_accuracy   coarse only: one published accuracy, and assumptions that the function lists
    estimate        coarse only: from a network's posteriors and the labels of the same pixels
    counted         coarse + fine validation: from patches whose reference may be read

Axes: K = 8 fine classes, M = 9 coarse labels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.data.legends import DFC2020, IGNORE, N_COARSE, SAVANNA_INDEX, SCORED
from lcfuse_core.errors import DataError, GridError, ParameterError

Matrix = NDArray[np.float64]
_N_FINE = len(SCORED)

_MCD12Q1_ACCURACY = 0.67
"""Proportion of MODIS IGBP labels that are right: about 67 per cent, as reported second-hand for MCD12Q1."""

_SAVANNA_PARTS = tuple(SCORED.index(code) for code in (1, 2, 4))
"""
Forest, Shrubland, Grassland: the components of a cell of Savanna or Woody savanna.

IGBP defines both by a herbaceous ground and a tree cover of 10 to 60 per cent (MCD12Q1 C6 User Guide, table 3); shrubs
are our addition, for woody plants under 2 m.
"""


def from_accuracy(label_share: NDArray[np.floating], accuracy: float = _MCD12Q1_ACCURACY) -> Matrix:
    """
    Return a matrix from one accuracy and the label shares; no reference is read.

    We assume that a wrong label is class m as often as m occurs among the labels, and that only Forest, Shrubland and
    Grassland are labelled Savanna. Class-specific confusions of MODIS are not included.

    *label_share* holds pixels or proportions of the nine coarse labels (Savanna: 0 if labels ignore it), *accuracy* is
    p(coarse = fine), equal for all classes. Raises DataError or ParameterError on other values.

    >>> from_accuracy(np.ones(9), accuracy=1.0).round(2)[7].tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    """
    share = np.asarray(label_share, np.float64)
    if share.shape != (N_COARSE,) or not np.isfinite(share).all() or share.min() < 0 or share[:_N_FINE].sum() == 0:
        found = f"shares {share.tolist()}"
        raise DataError("label shares", found=found, expected="nine, none negative", do="Count the labels first.")
    if not 0 < accuracy <= 1:
        raise ParameterError("accuracy", found=f"{accuracy}", expected="over 0, at most 1", do="0.67 is reported.")
    errors = np.tile(share / share.sum(), (_N_FINE, 1))
    np.fill_diagonal(errors, 0)
    others = [k for k in range(_N_FINE) if k not in _SAVANNA_PARTS]
    errors[others, SAVANNA_INDEX] = 0
    total = errors.sum(axis=1, keepdims=True)
    errors = np.divide(errors, total, out=np.zeros_like(errors), where=total > 0)
    return _rows_to_one(accuracy * np.eye(_N_FINE, N_COARSE) + (1 - accuracy) * errors)


def counted(pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]]) -> Matrix:
    """
    Count p(coarse | fine) over pixels that have both labels: for the regime *coarse + fine validation* only.

    *pairs* are the fine and the coarse labels of one patch after the other. Both hold network classes 0..7 (coarse also
    8 = Savanna), 255 = unknown, in one shape (else GridError). One pixel is added to the diagonal: a class without
    pixels keeps the identity.
    """
    counts = np.eye(_N_FINE, N_COARSE)
    for fine, coarse in pairs:
        if fine.shape != coarse.shape:
            found = f"fine {fine.shape}, coarse {coarse.shape}"
            raise GridError("transition", found=found, expected="one shape", do="Pass labels of the same pixels.")
        known = (fine != IGNORE) & (coarse != IGNORE)
        both = fine[known].astype(np.int64) * N_COARSE + coarse[known]
        counts += np.bincount(both, minlength=counts.size).reshape(counts.shape)
    return _rows_to_one(counts)


def estimate(posteriors: NDArray[np.floating], labels: NDArray[np.integer], start: Matrix) -> Matrix:
    """
    Estimate the matrix under which *labels* are likeliest, by expectation maximisation.

    Label c is drawn from sum_k p(k | image) T[k, c]. The expected pairs under the present T give the next T, which
    never fits worse (Dempster, Laird & Rubin 1977), until no entry moves. The start matters if the posteriors are
    vague.

    *posteriors* (n, 8) are p(fine | image) of pixels, best from held-out scenes, *labels* (n,) their coarse labels 0..8
    (255 = unknown; DataError if all are). *start* (8, 9) is the first guess (zeros count as 1e-3) and the prior:
    each row weighs as much as ten observations.
    """
    known = np.asarray(labels) != IGNORE
    if not known.any():
        raise DataError("transition", found="no labelled pixel", expected="at least one", do="Check the labels.")
    q, label = np.asarray(posteriors, np.float64)[known], np.asarray(labels)[known].astype(np.int64)
    matrix = _rows_to_one(start + 1e-3)
    for _ in range(100):
        responsibility = q * matrix[:, label].T  # (n, K), p(fine, coarse label | image)
        responsibility /= np.maximum(responsibility.sum(axis=1, keepdims=True), 1e-300)
        pairs = np.stack([np.bincount(label, row, N_COARSE) for row in responsibility.T])  # (K, M)
        before, matrix = matrix, _rows_to_one(pairs + 10.0 * start)
        if np.abs(matrix - before).max() < 1e-6:
            break
    return matrix


def _rows_to_one(counts: NDArray[np.floating]) -> Matrix:
    """Divide each row by its sum. Raises DataError on a row without a positive value and names its class."""
    total = np.asarray(counts, np.float64).sum(axis=1, keepdims=True)
    if not (total > 0).all() or not np.isfinite(total).all() or np.min(counts) < 0:
        bad = [DFC2020.name_of(SCORED[k]) for k in np.flatnonzero(~(total[:, 0] > 0))]
        found = f"no coarse label for {', '.join(bad) or 'a class'}, or negative or non-finite counts"
        raise DataError("transition", found=found, expected="counts of at least one label a class", do="Smooth it.")
    return counts / total


def without_savanna(matrix: Matrix) -> Matrix:
    """Return the matrix for labels that ignore Savanna: p(coarse | fine, coarse is one of the eight), (8, 8)."""
    return _rows_to_one(matrix[:, :_N_FINE])


def class_prior(matrix: Matrix, label_share: NDArray[np.floating]) -> NDArray[np.float64]:
    """
    Estimate the shares of the fine classes, (K,), that explain the label shares (M,): maximum likelihood by EM.

    >>> class_prior(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0.55, 0.45])).round(3).tolist()
    [0.5, 0.5]
    """
    share = np.asarray(label_share, np.float64) / np.sum(label_share)
    prior = np.full(len(matrix), 1 / len(matrix))
    for _ in range(1000):
        joint = prior[:, None] * matrix  # (K, M)
        expected = np.maximum(joint.sum(axis=0), 1e-300)
        before, prior = prior, (joint / expected) @ share
        prior /= prior.sum()
        if np.abs(prior - before).max() < 1e-9:
            break
    return prior


def posterior(matrix: Matrix, prior: NDArray[np.floating]) -> Matrix:
    """Return p(fine | coarse), (M, K), by Bayes' rule; labels that cannot occur under *matrix* have the prior."""
    joint = (matrix * np.asarray(prior)[:, None]).T  # (M, K)
    impossible = joint.sum(axis=1, keepdims=True) <= 0
    return _rows_to_one(np.where(impossible, np.asarray(prior)[None], joint))
