"""
How large a class is, from a map and a sample of references: the error-adjusted estimate and its interval.

Counting a map's pixels gives an area with the map's errors in it, and they do not cancel: a class that is often
mistaken for another comes out too small. A probability sample of pixels, stratified by the map, tells how large the
errors are, and so corrects the areas and says how sure they are.

After Olofsson, Foody, Herold, Stehman, Woodcock and Wulder 2014, "Good practices for estimating area and assessing
accuracy of land change", Remote Sensing of Environment 148, 42-57: equations 1 to 11 and section 5.

Axes: rows are the classes of the map (the strata), columns those of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DataError, GridError, ParameterError

Z_95 = 1.959964
"""Quantile of the normal distribution for an interval of 95 per cent."""


@dataclass(frozen=True)
class AreaEstimate:
    """
    Areas and accuracies, float64 arrays by class; all but `mapped` from the sample.

    mapped : area as the map's pixels give it, in the unit of the strata
    area, area_se : error-adjusted area and its standard error, in the same unit
    users, users_se : user's accuracy (1 - commission error); NaN for a class that was not mapped
    producers, producers_se : producer's accuracy (1 - omission error); NaN for a class without reference
    overall, overall_se : overall accuracy
    """

    mapped: NDArray[np.float64]
    area: NDArray[np.float64]
    area_se: NDArray[np.float64]
    users: NDArray[np.float64]
    users_se: NDArray[np.float64]
    producers: NDArray[np.float64]
    producers_se: NDArray[np.float64]
    overall: float
    overall_se: float


def adjusted(sample: NDArray[np.integer], mapped: NDArray[np.floating | np.integer]) -> AreaEstimate:
    """
    Areas from an error matrix of a sample that is stratified by the map.

    sample : (n, n), sampled pixels by (map class, reference class)
    mapped : (n,), area of each map class, any unit; the sum is the area of the region

    Raises GridError when the shapes do not fit, DataError when a class that was mapped has fewer than two samples.

    >>> estimate = adjusted(np.array([[9, 1], [2, 8]]), np.array([100, 300]))
    >>> estimate.area.round(1).tolist(), round(estimate.overall, 3)
    ([150.0, 250.0], 0.825)
    """
    n, total = np.asarray(sample, np.float64), np.asarray(mapped, np.float64)
    if n.ndim != 2 or n.shape[0] != n.shape[1] or total.shape != n.shape[:1]:
        found = f"a sample of shape {n.shape} with areas {total.shape}"
        raise GridError("areas", found=found, expected="(n, n) with (n,)", do="Give both for the same classes.")
    n_i = n.sum(axis=1)
    thin = (total > 0) & (n_i < 2)
    if thin.any() or not total.sum() > 0:
        found = f"map class {', '.join(map(str, np.flatnonzero(thin)))} with fewer than two samples"
        do = "Sample every class of the map: stratified_sample(map, per_class=50)."
        raise DataError("areas", found=found if thin.any() else "no area", expected="two or more each", do=do)
    weight = total / total.sum()  # W_i
    some = np.maximum(n_i, 1)
    share = n / some[:, None]  # n_ij / n_i.
    p = weight[:, None] * share  # equation 4
    column = p.sum(axis=0)  # equation 9, the proportion of area of each reference class
    within = share * (1 - share) / np.maximum(n_i - 1, 1)[:, None]
    column_se = np.sqrt((weight[:, None] ** 2 * within).sum(axis=0))  # equation 10
    right = np.diag(share)
    users = np.where(n_i > 0, right, np.nan)  # equation 2
    users_variance = right * (1 - right) / np.maximum(n_i - 1, 1)  # equation 6
    overall = float(np.diag(p).sum())  # equation 1
    overall_se = float(np.sqrt((weight**2 * users_variance).sum()))  # equation 5
    with np.errstate(invalid="ignore", divide="ignore"):
        producers = np.where(column > 0, np.diag(p) / column, np.nan)  # equation 3
    producers_se = _producers_se(n, total, users_variance, np.nan_to_num(producers))
    return AreaEstimate(
        total, column * total.sum(), column_se * total.sum(), users, np.sqrt(users_variance), producers,
        np.where(column > 0, producers_se, np.nan), overall, overall_se,
    )  # fmt: skip


def _producers_se(
    n: NDArray[np.float64],
    total: NDArray[np.float64],
    users_variance: NDArray[np.float64],
    producers: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Equation 7: standard error of the producer's accuracy, (n,)."""
    n_i = n.sum(axis=1)
    some = np.maximum(n_i, 1)
    share = n / some[:, None]
    estimated = (total[:, None] * share).sum(axis=0)  # N_.j
    own = total**2 * (1 - producers) ** 2 * users_variance
    spread = total[:, None] ** 2 * share * (1 - share) / np.maximum(n_i - 1, 1)[:, None]
    others = producers**2 * (spread.sum(axis=0) - np.diag(spread))
    return np.sqrt(own + others) / np.maximum(estimated, 1e-300)


def stratified_sample(
    classes: NDArray[np.integer], per_class: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """
    Rows and columns of a random sample of pixels, *per_class* of each class of a map (all, where it has fewer).

    classes : int (H, W), DFC2020 codes; 0, no class, is not sampled

    Only the map decides who is drawn: the reference is looked at afterwards, at these pixels alone.
    """
    if per_class < 2:
        raise ParameterError("per_class", found=f"{per_class}", expected="2 or more", do="Take 50.")
    flat = np.asarray(classes).reshape(-1)
    drawn = []
    for code in np.unique(flat[flat != DFC2020.unknown]):
        members = np.flatnonzero(flat == code)
        drawn.append(rng.choice(members, min(per_class, len(members)), replace=False))
    chosen = np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.intp)
    rows, cols = np.unravel_index(chosen, classes.shape)
    return rows, cols


def pixels_of(classes: NDArray[np.integer]) -> dict[str, int]:
    """Pixels of each scored class of a map (H, W), by name."""
    return {DFC2020.name_of(code): int((classes == code).sum()) for code in SCORED}


def from_confusion(counts: NDArray[np.integer], mapped: dict[str, int]) -> pd.DataFrame:
    """
    A table of areas in hectares: of the map's pixels, error-adjusted, and half the width of the 95 % interval.

    counts : int (11, 11) by (reference code, predicted code), as `scores.confusion` gives it for the sampled pixels
    mapped : pixels of 10 m of each class, by name, as `scene_map.Made.areas`

    One row a scored class.
    """
    codes, names = list(SCORED), [DFC2020.name_of(code) for code in SCORED]
    sample = np.asarray(counts)[np.ix_(codes, codes)].T
    estimate = adjusted(sample, np.array([mapped[name] for name in names]) / 100)
    columns = {
        "map, ha": estimate.mapped,
        "adjusted, ha": estimate.area,
        "± ha": Z_95 * estimate.area_se,
        "user's accuracy": estimate.users,
        "producer's accuracy": estimate.producers,
    }
    return pd.DataFrame(columns, index=names)
