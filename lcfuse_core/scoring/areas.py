"""
Estimate the area of each class from a map and a sample of reference pixels, with confidence intervals.

An area counted from the pixels of a map contains the errors of the map, and they do not cancel: a class that is often
mistaken for another comes out too small. A probability sample of pixels, stratified by the map, gives the size of the
errors, and so corrects the areas and gives their standard errors.

In arrays, rows are the classes of the map (the strata) and columns those of the reference. Equation numbers are those
of the reference.

References
----------
Olofsson, Foody, Herold, Stehman, Woodcock and Wulder (2014), Good practices for estimating area and assessing
accuracy of land change, Remote Sensing of Environment 148, 42-57: equations 4, 9, 10 and section 5.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DataError

_Z_95 = 1.959964  # quantile of the normal distribution for an interval of 95 per cent


def _adjusted(
    sample: NDArray[np.integer], mapped: NDArray[np.floating | np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return the error-adjusted area of each reference class, and its standard error, both float64 (n,).

    *sample*, int (n, n), are pixels by (map class, reference class); *mapped* (n,) is the area of each map class.

    >>> _adjusted(np.array([[9, 1], [2, 8]]), np.array([100, 300]))[0].round(1).tolist()
    [150.0, 250.0]
    """
    n, total = np.asarray(sample, np.float64), np.asarray(mapped, np.float64)
    n_i = n.sum(axis=1)
    thin = (total > 0) & (n_i < 2)
    if thin.any() or not total.sum() > 0:
        found = f"map class {', '.join(map(str, np.flatnonzero(thin)))} with fewer than two samples"
        do = "Sample 50 pixels of every class of the map."
        raise DataError("areas", found=found if thin.any() else "no area", expected="two or more each", do=do)
    weight = total / total.sum()  # W_i
    share = n / np.maximum(n_i, 1)[:, None]  # n_ij / n_i.
    area = (weight[:, None] * share).sum(axis=0)  # equations 4 and 9, as a proportion
    variance = share * (1 - share) / np.maximum(n_i - 1, 1)[:, None]
    error = np.sqrt((weight[:, None] ** 2 * variance).sum(axis=0))  # equation 10
    return area * total.sum(), error * total.sum()


def pixels_of(classes: NDArray[np.integer]) -> dict[str, int]:
    """Count the pixels of each scored class of a map (H, W), by name."""
    return {DFC2020.name_of(code): int((classes == code).sum()) for code in SCORED}


def from_confusion(counts: NDArray[np.integer], mapped: dict[str, int]) -> pd.DataFrame:
    """
    Return a table of areas in hectares: of the map's pixels, error-adjusted, and half the width of the 95 % interval.

    Parameters
    ----------
    counts : ndarray of int, shape (11, 11)
        Sampled pixels by (reference code, mapped code), as `scores.confusion` returns them.
    mapped : dict of str to int
        Pixels of 10 m of each class of the whole map, by name, as `pixels_of` returns them.

    Raises
    ------
    DataError
        If a class that was mapped has fewer than two samples.
    """
    codes, names = list(SCORED), [DFC2020.name_of(code) for code in SCORED]
    sample = np.asarray(counts)[np.ix_(codes, codes)].T
    hectares = np.array([mapped[name] for name in names]) / 100
    area, error = _adjusted(sample, hectares)
    return pd.DataFrame({"map, ha": hectares, "adjusted, ha": area, "± ha": _Z_95 * error}, index=names)
