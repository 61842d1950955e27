"""
Compute confidence intervals of scores, and of paired differences, over scenes or regions.

Land cover and its errors are spatially autocorrelated: pixels of a field are right or wrong together. What was sampled
at random are scenes or regions, so these groups are left out or drawn again, never pixels. There are three methods:

    bootstrap    draw groups with replacement, studentise each draw by its own jackknife; symmetric. The default.
    jackknife    leave each group out once; Student's t with one degree of freedom fewer than groups. Fast.
    percentile   draw groups with replacement, take the middle 95 % of the scores. Too narrow for few groups.

With scenes in the tens or regions in single figures, as usual for land cover, the first two have the nominal coverage
and the third does not (chapter *uncertainty*). With fewer than five groups no method gives a useful interval; that of
the bootstrap then spans all possible scores. Intervals end where the score does, at 0 and 1.

References
----------
Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 11 and 12. Cameron and Miller (2015), J. Human
Resources 50(2), on few clusters. MacKinnon, Nielsen and Webb (2023), J. Econometrics 232(2), on the cluster jackknife.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import GridError, ParameterError
from lcfuse_core.scoring.scores import N_CODES, compute_score

METHODS = ("bootstrap", "jackknife", "percentile")

_LEVEL = 0.95  # nominal coverage
_DRAWN_BYTES = 1 << 23  # drawn groups that are scored at once: 8 MB, and as much again while one is left out

_Score = Callable[[NDArray[np.number]], NDArray[np.float64]]  # from stacked counts to one number each, or NaN


@dataclass(frozen=True)
class Interval:
    """A score with its confidence interval; `low` and `high` are NaN where fewer than two groups have the score."""

    value: float
    low: float
    high: float
    n_groups: int

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def interval(
    groups: NDArray[np.integer], score: str = "aa", *, method: str = "bootstrap", draws: int = 999, seed: int = 0
) -> Interval:
    """
    Compute a score of all groups together, with its 95 % confidence interval.

    Parameters
    ----------
    groups : ndarray of int, shape (n, 11, 11)
        Confusion counts of each scene (or region). Groups in which the score is undefined are left out.
    score : str
        A name that `scores.compute_score` takes, such as "aa" or "recall.Water".
    method : str
        One of `METHODS`.
    draws, seed : int
        Of the bootstrap.

    Raises
    ------
    GridError
        If the counts have another shape.
    ParameterError
        If the method or score is unknown.
    """
    return _interval(_checked(groups), partial(compute_score, name=score), 0.0, method, draws, seed)


def difference(
    groups: NDArray[np.integer],
    others: NDArray[np.integer],
    score: str = "aa",
    *,
    method: str = "bootstrap",
    draws: int = 999,
    seed: int = 0,
) -> Interval:
    """
    Compute by how much one map scores higher than another, paired: both maps are resampled by the same scenes.

    The interval, in -1..1, is far narrower than those of the two scores suggest, because a difficult scene is difficult
    for both maps.

    Parameters
    ----------
    groups, others : ndarray of int, shape (n, 11, 11)
        Counts of the two maps in the *same* scenes in the same order.
    score, method, draws, seed
        As for `interval`.

    Raises
    ------
    GridError, ParameterError
        As `interval`, and if the reference pixels of the two maps differ.
    """
    one, other = _checked(groups), _checked(others)
    if one.shape != other.shape or (one.sum(-1) != other.sum(-1)).any():
        expected, do = "the same reference pixels in each scene", "Evaluate both maps on the same patches."
        raise GridError("difference", found="different ones", expected=expected, do=do)

    def gain(pairs: NDArray[np.number]) -> NDArray[np.float64]:
        return compute_score(pairs[..., 0, :, :], score) - compute_score(pairs[..., 1, :, :], score)

    return _interval(np.stack([one, other], axis=1), gain, -1.0, method, draws, seed)


def _checked(groups: NDArray[np.integer]) -> NDArray[np.int64]:
    groups = np.asarray(groups)
    if groups.ndim != 3 or groups.shape[1:] != (N_CODES, N_CODES):
        raise GridError("groups", found=f"shape {groups.shape}", expected="(n, 11, 11)", do="Stack the counts.")
    return groups.astype(np.int64)


def _interval(groups: NDArray[np.int64], score: _Score, least: float, method: str, draws: int, seed: int) -> Interval:
    """Compute the interval of a score that lies in least..1, over the groups that have it."""
    if method not in METHODS:
        raise ParameterError("method", found=repr(method), expected=", ".join(METHODS), do="Choose one of them.")
    groups = groups[~np.isnan(score(groups))]
    n = len(groups)
    value = float(score(groups.sum(0))) if n else float("nan")
    if n < 2:
        return Interval(value, float("nan"), float("nan"), n)
    if method == "percentile":
        values = np.concatenate([score(drawn.sum(1)) for drawn in _draw(groups, draws, seed)])
        low, high = np.nanquantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Interval(value, float(low), float(high), n)
    error = float(_jackknife(groups[None], score)[0])
    if method == "jackknife":
        n_errors = float(special.stdtrit(n - 1, (1 + _LEVEL) / 2))
    else:
        studentised = [_studentise(drawn, score, value) for drawn in _draw(groups, draws, seed)]
        n_errors = float(np.nanquantile(np.concatenate(studentised), _LEVEL, method="higher"))
    half = n_errors * error if error else 0.0
    return Interval(value, max(least, value - half), min(1.0, value + half), n)


def _draw(groups: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield groups drawn with replacement, int (some draws, n, ...), `_DRAWN_BYTES` at a time."""
    rng, n = np.random.default_rng(seed), len(groups)
    numbers = np.stack([rng.integers(0, n, n) for _ in range(draws)])
    at_once = max(1, _DRAWN_BYTES // groups.nbytes)
    for start in range(0, draws, at_once):
        yield groups[numbers[start : start + at_once]]


def _studentise(drawn: NDArray[np.int64], score: _Score, value: float) -> NDArray[np.float64]:
    """Return how many of its own standard errors each drawn score is away; Efron and Tibshirani, equation 12.20."""
    away, error = np.abs(score(drawn.sum(1)) - value), _jackknife(drawn, score)
    # The error is zero where one group was drawn again and again, or all groups are alike.
    certain = np.where(away < 1e-12, 0.0, np.inf)
    return np.divide(away, error, out=certain, where=error >= 1e-12)


def _jackknife(drawn: NDArray[np.int64], score: _Score) -> NDArray[np.float64]:
    """Compute the standard error of scores by leaving each group out once; Efron and Tibshirani, equation 11.5."""
    without = score(drawn.sum(1, keepdims=True) - drawn)
    n = without.shape[1]
    n_defined = np.maximum((~np.isnan(without)).sum(1, keepdims=True), 1)
    mean = np.nansum(without, 1, keepdims=True) / n_defined
    return np.sqrt((n - 1) / n * np.nansum((without - mean) ** 2, 1))


def over_pixels(counts: NDArray[np.integer]) -> Interval:
    """
    Compute the interval of AA that *would* hold if every pixel were drawn independently, to show that it is wrong.

    AA is then a mean of independent proportions, each of binomial variance p (1 - p) / n. *counts* is int (11, 11).
    """
    codes = list(SCORED)
    in_reference = counts[codes].sum(1)
    present = in_reference > 0
    recall = counts[codes, codes][present] / in_reference[present]
    error = np.sqrt((recall * (1 - recall) / in_reference[present]).sum()) / present.sum()
    half = float(special.ndtri((1 + _LEVEL) / 2) * error)
    value = float(recall.mean())
    return Interval(value, value - half, value + half, int(in_reference.sum()))


def interval_table(groups: NDArray[np.integer], *, method: str = "bootstrap") -> pd.DataFrame:
    """Return AA and the recall of each scored class with their intervals (see `interval`), in per cent."""
    names = {"AA": "aa"} | {DFC2020.name_of(code): f"recall.{DFC2020.name_of(code)}" for code in SCORED}
    found = {row: interval(groups, score, method=method) for row, score in names.items()}
    rows = {row: [100 * one.value, 100 * one.low, 100 * one.high, one.n_groups] for row, one in found.items()}
    return pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high", "groups"]).round(1)
