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

Results on several sample worlds with the same regions vary for both reasons: `hierarchical` draws worlds and regions.

References
----------
Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 11 and 12. Cameron and Miller (2015), J. Human
Resources 50(2), on few clusters. MacKinnon, Nielsen and Webb (2023), J. Econometrics 232(2), on the cluster jackknife.
Owen (2007), Ann. Appl. Stat. 1(2), on the bootstrap of two crossed factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import GridError, ParameterError
from lcfuse_core.scoring.scores import N_CODES, compute_score

_METHODS = ("bootstrap", "jackknife", "percentile")

_LEVEL = 0.95  # nominal coverage
_DRAWS = 999  # of `interval` and `difference`
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


def interval(groups: NDArray[np.integer], score: str = "aa", *, method: str = "bootstrap") -> Interval:
    """
    Compute a score of all groups together, with its 95 % confidence interval.

    Parameters
    ----------
    groups : ndarray of int, shape (n, 11, 11)
        Confusion counts of each scene (or region). Groups in which the score is undefined are left out.
    score : str
        A name that `scores.compute_score` takes, such as "aa" or "recall.Water".
    method : str
        "bootstrap", "jackknife" or "percentile"; see the head of this file.

    Raises
    ------
    GridError, ParameterError
        If the counts have another shape; if the method or score is unknown.
    """
    return _interval(_checked(groups), partial(compute_score, name=score), 0.0, method)


def difference(
    groups: NDArray[np.integer], others: NDArray[np.integer], score: str = "aa", *, method: str = "bootstrap"
) -> Interval:
    """
    Compute by how much one map scores higher than another, paired: both maps are resampled by the same scenes.

    The interval, in -1..1, is far narrower than those of the two scores suggest: a difficult scene is so for both maps.

    Parameters
    ----------
    groups, others : ndarray of int, shape (n, 11, 11)
        Counts of the two maps in the *same* scenes in the same order.
    score, method
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

    return _interval(np.stack([one, other], axis=1), gain, -1.0, method)


def _checked(groups: NDArray[np.integer]) -> NDArray[np.int64]:
    groups = np.asarray(groups)
    if groups.ndim != 3 or groups.shape[1:] != (N_CODES, N_CODES):
        raise GridError("groups", found=f"shape {groups.shape}", expected="(n, 11, 11)", do="Stack the counts.")
    return groups.astype(np.int64)


def _interval(groups: NDArray[np.int64], score: _Score, least: float, method: str) -> Interval:
    """Compute the interval of a score that lies in least..1, over the groups that have it."""
    if method not in _METHODS:
        raise ParameterError("method", found=repr(method), expected=", ".join(_METHODS), do="Choose one of them.")
    groups = groups[~np.isnan(score(groups))]
    n = len(groups)
    value = float(score(groups.sum(0))) if n else float("nan")
    if n < 2:
        return Interval(value, float("nan"), float("nan"), n)
    if method == "percentile":
        values = np.concatenate([score(drawn.sum(1)) for drawn in _draw(groups)])
        low, high = np.nanquantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Interval(value, float(low), float(high), n)
    error = float(_jackknife(groups[None], score)[0])
    if method == "jackknife":
        n_errors = float(special.stdtrit(n - 1, (1 + _LEVEL) / 2))
    else:
        # Each drawn score in its own standard errors; Efron and Tibshirani, equation 12.20.
        studentised = [
            _in_errors(np.abs(score(drawn.sum(1)) - value), _jackknife(drawn, score)) for drawn in _draw(groups)
        ]
        n_errors = float(np.nanquantile(np.concatenate(studentised), _LEVEL, method="higher"))
    half = n_errors * error if error else 0.0
    return Interval(value, max(least, value - half), min(1.0, value + half), n)


def _draw(groups: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield groups drawn with replacement, int (some draws, n, ...), `_DRAWN_BYTES` at a time."""
    rng, n = np.random.default_rng(0), len(groups)
    numbers = np.stack([rng.integers(0, n, n) for _ in range(_DRAWS)])
    at_once = max(1, _DRAWN_BYTES // groups.nbytes)
    for start in range(0, _DRAWS, at_once):
        yield groups[numbers[start : start + at_once]]


def _in_errors(away: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide by the error, which is zero where one group was drawn again and again, or all groups are alike."""
    certain = np.where(away < 1e-12, 0.0, np.inf)
    return np.divide(away, error, out=certain, where=error >= 1e-12)


def _jackknife(drawn: NDArray[np.int64], score: _Score) -> NDArray[np.float64]:
    """Compute the standard error of scores by leaving each group out once; Efron and Tibshirani, equation 11.5."""
    without = score(drawn.sum(1, keepdims=True) - drawn)
    n = without.shape[1]
    n_defined = np.maximum((~np.isnan(without)).sum(1, keepdims=True), 1)
    mean = np.nansum(without, 1, keepdims=True) / n_defined
    return np.sqrt((n - 1) / n * np.nansum((without - mean) ** 2, 1))


def hierarchical(
    worlds: NDArray[np.integer], others: NDArray[np.integer] | None = None, *, draws: int = 499, seed: int = 0
) -> Interval:
    """
    Compute the mean AA over worlds, or the mean paired difference, with its 95 % interval over worlds and regions.

    Worlds and regions are two crossed random factors: each draw takes worlds and regions with replacement, the same
    regions in each world. A percentile interval of five worlds is too narrow (`benchmarks/hierarchical.py`). So each
    draw is divided by its own standard error, which adds the variances of worlds and regions and subtracts that of
    their interaction. The interval is symmetric and not wider than Student's with the fewer degrees of freedom.

    Parameters
    ----------
    worlds, others : ndarray of int, shape (worlds, trainings, regions, 11, 11)
        Counts of one map, and of the map to subtract. Scores of the trainings in a world are averaged.
    draws, seed : int
        Of the bootstrap.

    Raises
    ------
    GridError
        If the shapes do not fit, or with fewer than two worlds or regions.
    """
    sides = [np.asarray(worlds, np.int64)] + ([] if others is None else [np.asarray(others, np.int64)])
    shape = sides[0].shape
    fits = len(shape) == 5 and shape[3:] == (N_CODES, N_CODES) and all(side.shape == shape for side in sides)
    if not fits or min(shape[0], shape[2]) < 2:
        found = " and ".join(f"shape {side.shape}" for side in sides)
        expected = "(worlds, trainings, regions, 11, 11), two worlds and two regions or more"
        raise GridError("hierarchical", found=found, expected=expected, do="Use `interval` for one world.")
    n_worlds, _, n_regions, *_ = shape

    def pseudo_values(regions: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the score of each world in each draw, and the contribution of each region to it by the jackknife."""
        score_of, parts = 0.0, 0.0
        for sign, side in zip((1, -1), sides, strict=False):
            drawn = side[:, :, regions]  # (worlds, trainings, draws, regions, 11, 11)
            whole = drawn.sum(3)
            own, without = compute_score(whole, "aa"), compute_score(whole[:, :, :, None] - drawn, "aa")
            score_of = score_of + sign * own.mean(1)
            parts = parts + sign * (n_regions * own[..., None] - (n_regions - 1) * without).mean(1)
        return np.asarray(score_of), np.asarray(parts)

    by_world, parts = pseudo_values(np.arange(n_regions)[None])
    value, error = float(by_world.mean()), float(_crossed_error(parts[:, 0]))
    rng = np.random.default_rng(seed)
    drawn_worlds, drawn_regions = (rng.integers(0, n, (draws, n)) for n in (n_worlds, n_regions))
    at_once, away = max(1, _DRAWN_BYTES // sides[0].nbytes), []
    for start in range(0, draws, at_once):
        chosen = drawn_worlds[start : start + at_once]
        by_world, parts = pseudo_values(drawn_regions[start : start + at_once])
        at = (chosen, np.arange(len(chosen))[:, None])
        away.append(_in_errors(np.abs(by_world[at].mean(1) - value), _crossed_error(parts[at])))
    # Where one factor has nearly all the variance, few of it make the draws more extreme than Student's t.
    student = special.stdtrit(min(n_worlds, n_regions) - 1, (1 + _LEVEL) / 2)
    n_errors = min(student, np.nanquantile(np.concatenate(away), _LEVEL, method="higher"))
    half = float(n_errors) * error if error else 0.0
    least = 0.0 if others is None else -1.0
    return Interval(value, max(least, value - half), min(1.0, value + half), n_worlds * n_regions)


def _crossed_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of the mean of values (..., worlds, regions) of two crossed random factors."""
    worlds, regions = values.shape[-2:]
    by_world, by_region = values.mean(-1), values.mean(-2)
    mean = by_world.mean(-1)[..., None, None]
    rest = values - by_world[..., None] - by_region[..., None, :] + mean
    both = (rest**2).sum((-2, -1)) / ((worlds - 1) * (regions - 1) * worlds * regions)
    of_worlds, of_regions = by_world.var(-1, ddof=1) / worlds, by_region.var(-1, ddof=1) / regions
    return np.sqrt(np.maximum(of_worlds + of_regions - both, np.maximum(of_worlds, of_regions)))


def components(scores: NDArray[np.floating]) -> dict[str, float]:
    """
    Split the variance of a score into parts of worlds, regions, trainings and their interaction.

    The model is y[w, t, r] = mean + world w + region r + (region r in world w) + training t in w + rest, all random and
    independent. Each part is estimated from the mean squares of the balanced design (method of moments); a negative
    estimate becomes 0.

    Parameters
    ----------
    scores : ndarray of float, shape (worlds, trainings, regions)
        Such as the AA of each region, at least two of each factor. The trainings of different worlds are unrelated.

    Returns
    -------
    dict of str to float
        Variances of "world", "region", "region in world", "training" (common to all regions) and "rest" (training in
        one region), in squared units of *scores*.

    Raises
    ------
    GridError
        If a factor has fewer than two levels, or a score is missing.

    References
    ----------
    Searle, Casella and McCulloch (1992), Variance Components, chapter 4.
    """
    y = np.asarray(scores, np.float64)
    if y.ndim != 3 or min(y.shape) < 2 or not np.isfinite(y).all():
        expected = "(worlds, trainings, regions), two of each or more, without gaps"
        raise GridError("components", found=f"shape {y.shape}", expected=expected, do="Give complete scores.")
    n_worlds, n_trainings, n_regions = y.shape
    world, region = y.mean((1, 2), keepdims=True), y.mean((0, 1), keepdims=True)
    training, cell = y.mean(2, keepdims=True), y.mean(1, keepdims=True)
    free = n_worlds * (n_trainings - 1)

    def square(away: NDArray[np.float64], copies: int, degrees: int) -> float:
        return copies * float((away**2).sum()) / degrees

    rest = square(y - training - cell + world, 1, free * (n_regions - 1))
    of_training = square(training - world, n_regions, free)
    both = square(cell - world - region + y.mean(), n_trainings, (n_worlds - 1) * (n_regions - 1))
    of_region = square(region - y.mean(), n_worlds * n_trainings, n_regions - 1)
    of_world = square(world - y.mean(), n_trainings * n_regions, n_worlds - 1)
    found = {
        "world": (of_world - of_training - both + rest) / (n_trainings * n_regions),
        "region": (of_region - both) / (n_worlds * n_trainings),
        "region in world": (both - rest) / n_trainings,
        "training": (of_training - rest) / n_regions,
        "rest": rest,
    }
    return {name: max(0.0, value) for name, value in found.items()}


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """
    Adjust p-values for their number by the method of Holm (1979), Scand. J. Stat. 6; NaN is no test and stays NaN.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]
    adjusted = np.full(values.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


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
