"""
How sure a score is: intervals and paired differences over scenes or regions, never over pixels.

Pixels of a field are right or wrong together, and fields of a scene too. What was drawn at random are scenes (or
regions), so they are what may be left out, or drawn again, to see how a score moves. Three ways, in `METHODS`:

    bootstrap    draw groups with replacement, studentise each draw by its own jackknife; symmetric. The default.
    jackknife    leave each group out once; Student's t with one degree of freedom fewer than groups. Quick.
    percentile   draw groups with replacement, take the middle 95 % of the scores. Too narrow for few groups.

With scenes in the tens or regions in single figures, which is what land cover has, the first two hold what they
promise and the third does not: `coverage` simulates it. No method makes much of fewer than five groups: the bootstrap
then says so by an interval over all that is possible. Intervals end where the score does, at 0 and 1.

References: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 11 and 12; Cameron and Miller
(2015), J. Human Resources 50(2), on few clusters; MacKinnon, Nielsen and Webb (2023), J. Econometrics 232(2), on the
cluster jackknife.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from lcfuse_core.data.legends import DFC2020, SCORED, SNOW
from lcfuse_core.errors import GridError, ParameterError
from lcfuse_core.scoring.scores import N_CODES

METHODS = ("bootstrap", "jackknife", "percentile")

DRAWN_BYTES = 1 << 23
"""Drawn groups that are scored at once: 8 MB, and as much again while one of them is left out."""

Score = Callable[[NDArray[np.number]], NDArray[np.float64]]
"""From counts (..., 11, 11) to scores (...): one number for each matrix, NaN where it cannot be said."""


@dataclass(frozen=True)
class Interval:
    """A score with its interval; `low` and `high` are NaN where fewer than two groups say anything about it."""

    value: float
    low: float
    high: float
    n_groups: int

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def average_accuracy(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """AA of each of many confusion matrices (..., 11, 11), as `scores.summarise` defines it; NaN when empty."""
    codes = list(SCORED)
    right = counts[..., codes, codes].astype(np.float64)
    in_reference = counts[..., codes, :].sum(-1).astype(np.float64)
    there = in_reference > 0
    recall = np.divide(right, in_reference, out=np.zeros_like(right), where=there)
    n_there = there.sum(-1)
    return np.divide(recall.sum(-1), n_there, out=np.full(n_there.shape, np.nan), where=n_there > 0)


def overall_accuracy(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """OA of each of many confusion matrices (..., 11, 11), as `scores.summarise` defines it; NaN when empty."""
    codes = list(SCORED)
    return _ratio(counts[..., codes, codes].sum(-1), counts[..., codes, :].sum((-2, -1)))


def mean_iou(n_classes: Literal[8, 9]) -> Score:
    """
    The score "mIoU" of one of the two conventions, as `scores.summarise` defines `miou_8` and `miou_9`.

    8 : mean over those of the eight scored classes that the reference holds
    9 : the official baseline's: the eight and Snow/Ice, divided by 9 whatever the reference holds
    """
    codes = list(SCORED) if n_classes == 8 else [*SCORED, SNOW]

    def miou(counts: NDArray[np.number]) -> NDArray[np.float64]:
        judged = counts[..., codes, :]
        in_reference, in_map = judged.sum(-1), judged.sum(-2)[..., codes]
        right = counts[..., codes, codes]
        iou = _ratio(right, in_reference + in_map - right, otherwise=0.0)
        there = in_reference > 0
        n = there.sum(-1) if n_classes == 8 else 9 * there[..., :8].any(-1)  # without a judged pixel: nothing to say
        return _ratio((iou * there).sum(-1), n)

    return miou


def _ratio(part: NDArray[np.number], whole: NDArray[np.number], otherwise: float = np.nan) -> NDArray[np.float64]:
    """Divide; *otherwise* where *whole* is zero."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole)
    return np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole > 0)


def recall_of(code: int) -> Score:
    """The score "recall of class *code*", for `interval` and `difference`."""

    def recall(counts: NDArray[np.number]) -> NDArray[np.float64]:
        right, there = counts[..., code, code].astype(np.float64), counts[..., code, :].sum(-1)
        return np.divide(right, there, out=np.full(right.shape, np.nan), where=there > 0)

    return recall


BY_NAME: dict[str, Score] = {
    "aa": average_accuracy,
    "oa": overall_accuracy,
    "miou_8": mean_iou(8),
    "miou_9": mean_iou(9),
}
"""Scores by their name in `scores.Scores` and in the ledger."""


def interval(
    groups: NDArray[np.integer],
    score: Score = average_accuracy,
    *,
    level: float = 0.95,
    method: str = "bootstrap",
    draws: int = 999,
    seed: int = 0,
) -> Interval:
    """
    A score of all groups together, with an interval that holds the true one in *level* of all samples of groups.

    groups : counts of each scene (or region), int (n, 11, 11), as `tallies` keep them
    method : one of METHODS; draws, seed : of the bootstrap

    Groups in which nothing can be scored are left out. Raises GridError on another shape, ParameterError on an
    unknown method or a level outside 0..1.
    """
    one = _checked(groups, method, level)
    return _interval(one[~np.isnan(score(one))], score, 0.0, level, method, draws, seed)


def difference(
    groups: NDArray[np.integer],
    others: NDArray[np.integer],
    score: Score = average_accuracy,
    *,
    level: float = 0.95,
    method: str = "bootstrap",
    draws: int = 999,
    seed: int = 0,
) -> Interval:
    """
    How much better one map is than another, paired: the same scenes are left out, or drawn, for both at once.

    groups, others : counts of the two maps in the *same* scenes, in the same order, int (n, 11, 11) each; see
        `interval`. Far narrower than what two intervals would suggest: a hard scene is hard for both.
    """
    one, other = _checked(groups, method, level), _checked(others, method, level)
    if one.shape != other.shape or (one.sum(-1) != other.sum(-1)).any():
        expected = "the same reference pixels in each scene"
        raise GridError("difference", found="other ones", expected=expected, do="Judge both maps on the same patches.")

    def gain(pairs: NDArray[np.number]) -> NDArray[np.float64]:
        return score(pairs[..., 0, :, :]) - score(pairs[..., 1, :, :])

    pairs = np.stack([one, other], axis=1)
    return _interval(pairs[~np.isnan(gain(pairs))], gain, -1.0, level, method, draws, seed)


def _checked(groups: NDArray[np.integer], method: str, level: float) -> NDArray[np.int64]:
    groups = np.asarray(groups)
    if groups.ndim != 3 or groups.shape[1:] != (N_CODES, N_CODES):
        raise GridError("groups", found=f"shape {groups.shape}", expected="(n, 11, 11)", do="Stack the counts.")
    if method not in METHODS:
        raise ParameterError("method", found=repr(method), expected=", ".join(METHODS), do="Choose one of them.")
    if not 0 < level < 1:
        raise ParameterError("level", found=f"{level}", expected="between 0 and 1", do="Give 0.95 for 95 %.")
    return groups.astype(np.int64)


def _interval(
    groups: NDArray[np.int64], score: Score, least: float, level: float, method: str, draws: int, seed: int
) -> Interval:
    """The interval of a score that lies in least..1."""
    n = len(groups)
    value = float(score(groups.sum(0))) if n else float("nan")
    if n < 2:
        return Interval(value, float("nan"), float("nan"), n)
    if method == "percentile":
        values = np.concatenate([score(drawn.sum(1)) for drawn in _drawn(groups, draws, seed)])
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
        return Interval(value, float(low), float(high), n)
    error = float(_jackknife(groups[None], score)[0])
    if method == "jackknife":
        errors_wide = float(special.stdtrit(n - 1, (1 + level) / 2))
    else:
        studentised = [_studentised(drawn, score, value) for drawn in _drawn(groups, draws, seed)]
        errors_wide = float(np.nanquantile(np.concatenate(studentised), level, method="higher"))
    half = errors_wide * error if error else 0.0
    return Interval(value, max(least, value - half), min(1.0, value + half), n)


def _drawn(groups: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Groups drawn with replacement, int (some draws, n, ...): as many draws at a time as `DRAWN_BYTES` holds."""
    rng, n = np.random.default_rng(seed), len(groups)
    numbers = np.stack([rng.integers(0, n, n) for _ in range(draws)])
    at_once = max(1, DRAWN_BYTES // groups.nbytes)
    for start in range(0, draws, at_once):
        yield groups[numbers[start : start + at_once]]


def _studentised(drawn: NDArray[np.int64], score: Score, value: float) -> NDArray[np.float64]:
    """How many of its own standard errors each drawn score lies away; Efron and Tibshirani (1993), equation 12.20."""
    away, error = np.abs(score(drawn.sum(1)) - value), _jackknife(drawn, score)
    # An error of nought: one group drawn again and again, or groups all alike.
    certain = np.where(away < 1e-12, 0.0, np.inf)
    return np.divide(away, error, out=certain, where=error >= 1e-12)


def _jackknife(drawn: NDArray[np.int64], score: Score) -> NDArray[np.float64]:
    """
    Standard error of each of many scores, from leaving each group out once.

    drawn : int (scores, n groups, ...). Efron and Tibshirani (1993), equation 11.5.
    """
    without = score(drawn.sum(1, keepdims=True) - drawn)
    n = without.shape[1]
    said = np.maximum((~np.isnan(without)).sum(1, keepdims=True), 1)
    mean = np.nansum(without, 1, keepdims=True) / said
    return np.sqrt((n - 1) / n * np.nansum((without - mean) ** 2, 1))


def over_pixels(counts: NDArray[np.integer], level: float = 0.95) -> Interval:
    """
    The interval that *would* hold if every pixel were drawn by itself: shown to be wrong, used for nothing else.

    AA is a mean of independent shares then, each of binomial variance p (1 - p) / n.
    """
    codes = list(SCORED)
    in_reference = counts[codes].sum(1)
    there = in_reference > 0
    recall = counts[codes, codes][there] / in_reference[there]
    error = np.sqrt((recall * (1 - recall) / in_reference[there]).sum()) / there.sum()
    half = float(special.ndtri((1 + level) / 2) * error)
    value = float(recall.mean())
    return Interval(value, value - half, value + half, int(in_reference.sum()))


def interval_table(groups: NDArray[np.integer], **options: float | str | int) -> pd.DataFrame:
    """AA and the recall of each scored class, with their intervals in per cent and the groups that have the class."""
    scores: dict[str, Score] = {"AA": average_accuracy}
    scores |= {DFC2020.name_of(code): recall_of(code) for code in SCORED}
    found = {name: interval(groups, score, **options) for name, score in scores.items()}  # type: ignore[arg-type]
    rows = {name: [100 * one.value, 100 * one.low, 100 * one.high, one.n_groups] for name, one in found.items()}
    return pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high", "groups"]).round(1)
