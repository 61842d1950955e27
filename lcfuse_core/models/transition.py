"""
The transition matrix p(coarse | fine): what MODIS calls a cell of 500 m that a pixel of a known class lies in.

A matrix is float64 (8, 9): a row for each class that networks know, a column for each coarse label, the ninth being
Savanna; rows sum to one. Where it comes from decides the label regime:

    from_accuracy          coarse only: one published figure, and assumptions that the function states
    estimate, confident    coarse only: from a network's posteriors and the labels they meet
    counted                coarse + fine validation: from patches whose reference may be opened

Axes: K = 8 fine classes, M = 9 coarse ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.data.legends import DFC2020, IGNORE, N_COARSE, SAVANNA_INDEX, SCORED
from lcfuse_core.errors import DataError, GridError, ParameterError

Matrix = NDArray[np.float64]
N_FINE = len(SCORED)

MCD12Q1_ACCURACY = 0.67
"""Share of MODIS IGBP labels that are right: about 67 per cent, as reported second-hand for MCD12Q1."""

SAVANNA_PARTS = tuple(SCORED.index(code) for code in (1, 2, 4))
"""
Forest, Shrubland, Grassland: what a cell of Savanna or Woody savanna is made of.

IGBP defines both by a herbaceous ground and a tree cover of 10 to 60 per cent (MCD12Q1 C6 User Guide, table 3); shrubs
are our addition, for woody plants under 2 m.
"""


def from_accuracy(label_share: NDArray[np.floating], accuracy: float = MCD12Q1_ACCURACY) -> Matrix:
    """
    A matrix from one stated accuracy and how often each label occurs: no reference is opened.

    label_share : (9,), pixels or share of each coarse label; the ninth is Savanna (0 where labels ignore it)
    accuracy : p(coarse = fine), the same for every class

    Assumed: an error names class m as often as m occurs among the labels, and Savanna is named over Forest, Shrubland
    and Grassland alone. What is known of MODIS confusions class by class is not in it.

    >>> from_accuracy(np.ones(9), accuracy=1.0).round(2)[7].tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    """
    share = np.asarray(label_share, np.float64)
    if share.shape != (N_COARSE,) or not np.isfinite(share).all() or share.min() < 0 or share[:N_FINE].sum() == 0:
        found = f"shares {share.tolist()}"
        raise DataError("label shares", found=found, expected="nine, none negative", do="Count the labels first.")
    if not 0 < accuracy <= 1:
        raise ParameterError("accuracy", found=f"{accuracy}", expected="over 0, at most 1", do="0.67 is reported.")
    errors = np.tile(share / share.sum(), (N_FINE, 1))
    np.fill_diagonal(errors, 0)
    others = [k for k in range(N_FINE) if k not in SAVANNA_PARTS]
    errors[others, SAVANNA_INDEX] = 0
    total = errors.sum(axis=1, keepdims=True)
    errors = np.divide(errors, total, out=np.zeros_like(errors), where=total > 0)
    return rows_to_one(accuracy * np.eye(N_FINE, N_COARSE) + (1 - accuracy) * errors)


def counted(fine: NDArray[np.integer], coarse: NDArray[np.integer], smoothing: float = 1.0) -> Matrix:
    """
    Count p(coarse | fine) over pixels that have both labels: for the regime *coarse + fine validation* only.

    fine : network classes 0..7, 255 = unknown, any shape
    coarse : network classes 0..7, 8 = Savanna, 255 = unknown, the same shape
    smoothing : pixels added to every pair on the diagonal's side of doubt: a class without pixels keeps the identity
    """
    fine, coarse = np.asarray(fine), np.asarray(coarse)
    if fine.shape != coarse.shape:
        found = f"fine {fine.shape}, coarse {coarse.shape}"
        raise GridError("transition", found=found, expected="one shape", do="Hand over labels of the same pixels.")
    known = (fine != IGNORE) & (coarse != IGNORE)
    pairs = fine[known].astype(np.int64) * N_COARSE + coarse[known]
    counts = np.bincount(pairs, minlength=N_FINE * N_COARSE).reshape(N_FINE, N_COARSE)
    return rows_to_one(counts + smoothing * np.eye(N_FINE, N_COARSE))


def estimate(
    posteriors: NDArray[np.floating],
    labels: NDArray[np.integer],
    start: Matrix,
    *,
    pseudo_counts: float = 10.0,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Matrix:
    """
    Estimate the matrix under which *posteriors* explain *labels* best, by expectation maximisation.

    Label c is drawn from sum_k p(k | image) T[k, c]. The expected pairs under the present T give the next T, which
    never fits worse; the start matters where posteriors are vague, as classes could change their names.

    Parameters
    ----------
    posteriors : array of shape (n, 8)
        p(fine | image) of pixels, or mean posteriors of cells; best from held-out scenes.
    labels : array of shape (n,)
        Coarse labels 0 to 8 of the same; 255 = unknown.
    start, pseudo_counts
        First guess and prior: each of its rows counts as *pseudo_counts* further observations. Entries of zero
        start at one in a thousand.
    iterations, tolerance
        It ends after so many iterations, or when no entry moves by more than *tolerance*.

    References
    ----------
    Dempster, Laird and Rubin 1977, Maximum likelihood from incomplete data via the EM algorithm.
    """
    known = np.asarray(labels) != IGNORE
    if not known.any():
        raise DataError("transition", found="no labelled pixel", expected="at least one", do="Check the labels.")
    q, label = np.asarray(posteriors, np.float64)[known], np.asarray(labels)[known].astype(np.int64)
    matrix = rows_to_one(start + 1e-3)
    for _ in range(iterations):
        responsibility = q * matrix[:, label].T  # (n, K), p(fine, coarse label | image)
        responsibility /= np.maximum(responsibility.sum(axis=1, keepdims=True), 1e-300)
        pairs = np.stack([np.bincount(label, row, N_COARSE) for row in responsibility.T])  # (K, M)
        before, matrix = matrix, rows_to_one(pairs + pseudo_counts * start)
        if np.abs(matrix - before).max() < tolerance:
            break
    return matrix


def confident(posteriors: NDArray[np.floating], labels: NDArray[np.integer], start: Matrix) -> Matrix:
    """
    The matrix by confident learning: count only pixels whose class the network is sure of.

    Arguments as in `estimate`. A pixel is counted as class k when p(k) is the highest among those classes that reach
    their own threshold: the mean of p(k) over pixels *labelled* k (Northcutt, Jiang & Chuang 2021, "Confident
    learning", JAIR 70). A class that no pixel is counted for keeps its row of *start*.
    """
    q, label = np.asarray(posteriors, np.float64), np.asarray(labels)
    threshold = np.array([q[label == k, k].mean() if (label == k).any() else np.inf for k in range(N_FINE)])
    sure = np.where(q >= threshold, q, 0)
    counts = np.zeros((N_FINE, N_COARSE))
    chosen = (sure.max(axis=1) > 0) & (label != IGNORE)
    np.add.at(counts, (sure[chosen].argmax(axis=1), label[chosen].astype(np.int64)), 1)
    seen = counts.sum(axis=1, keepdims=True) > 0
    return rows_to_one(np.where(seen, counts, start))


def rows_to_one(counts: NDArray[np.floating]) -> Matrix:
    """Divide each row by its sum. Raises DataError on a row without a positive one, naming its class."""
    total = np.asarray(counts, np.float64).sum(axis=1, keepdims=True)
    if not (total > 0).all() or not np.isfinite(total).all() or np.min(counts) < 0:
        bad = [DFC2020.name_of(SCORED[k]) for k in np.flatnonzero(~(total[:, 0] > 0))]
        found = f"no coarse label for {', '.join(bad) or 'a class'}, or counts that are negative or no numbers"
        raise DataError("transition", found=found, expected="counts of at least one label a class", do="Smooth it.")
    return counts / total


def without_savanna(matrix: Matrix) -> Matrix:
    """The matrix for labels that ignore Savanna: p(coarse | fine, coarse is one of the eight), (8, 8)."""
    return rows_to_one(matrix[:, :N_FINE])


def class_prior(matrix: Matrix, label_share: NDArray[np.floating], iterations: int = 1000) -> NDArray[np.float64]:
    """
    Shares of the fine classes, (K,), under which *matrix* gives the label shares (M,) that are seen: maximum
    likelihood, by expectation maximisation, from equal shares.

    >>> class_prior(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0.55, 0.45])).round(3).tolist()
    [0.5, 0.5]
    """
    share = np.asarray(label_share, np.float64) / np.sum(label_share)
    prior = np.full(len(matrix), 1 / len(matrix))
    for _ in range(iterations):
        joint = prior[:, None] * matrix  # (K, M)
        seen = np.maximum(joint.sum(axis=0), 1e-300)
        before, prior = prior, (joint / seen) @ share
        prior /= prior.sum()
        if np.abs(prior - before).max() < 1e-9:
            break
    return prior


def posterior(matrix: Matrix, prior: NDArray[np.floating]) -> Matrix:
    """
    p(fine | coarse) by Bayes' rule, (M, K), rows to one: what a label says about its pixels before any image.

    A label that cannot occur under *matrix* says what the prior says.
    """
    joint = (matrix * np.asarray(prior)[:, None]).T  # (M, K)
    impossible = joint.sum(axis=1, keepdims=True) <= 0
    return rows_to_one(np.where(impossible, np.asarray(prior)[None], joint))
