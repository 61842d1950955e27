"""
Count pixels by reference and mapped class, and compute accuracy scores from the counts.

Labels are DFC2020 codes 0..10. Count the pixels of each patch with `confusion`, add up the counts of many patches,
and compute the scores once with `summarise`. Scores of patches are never averaged: a patch with ten pixels of water
would weigh as much as a lake.

Only pixels whose reference is one of the eight scored classes are evaluated. The DFC2020 reference holds no others;
where a reference does (MODIS labels hold Savanna), those pixels are left out. A mapped 0, Savanna or Snow/Ice counts
as an error. A class that is absent from the reference has neither recall nor F1 nor IoU and is left out of the means;
a class that is present and never mapped has recall 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from lcfuse_core.data.cells import CELL_M
from lcfuse_core.data.legends import DFC2020, SCORED, SNOW
from lcfuse_core.errors import DataError, GridError, LegendError, ParameterError

N_CODES = 11
"""DFC2020 codes 0 (none) to 10 (water)."""

CELL_PX = CELL_M**2 / 100
"""Pixels of 10 m in a coarse cell; the count of a whole cell differs by a few."""

_BORDER_PX = 3
"""Distance of pixels near borders, in rows or columns: half a field road, more than the shift between satellites."""

_BLOCK_PX = 1 << 20  # counted at once: two bytes of working memory each, 2 MB however large the map
_CODE_BITS = 4  # a pair of codes fits into one byte: the reference in the upper half, the map in the lower
_CODES = list(SCORED)
_NAMES = [DFC2020.name_of(code) for code in SCORED]


@dataclass(frozen=True)
class Scores:
    """
    The scores of one map, all 0..1 but kappa (-1..1); none of the overall scores is ever NaN.

    Attributes
    ----------
    aa, oa : float
        Average accuracy, the mean recall over the scored classes in the reference; overall accuracy.
    miou_8 : float
        Mean intersection over union, over those of the eight scored classes that the reference holds.
    miou_9 : float
        By the convention of the contest: of the eight and Snow/Ice, divided by 9 whatever there is.
    kappa : float
        Cohen 1960, Educ. Psychol. Meas. 20, equation 1; 0 where chance alone would agree everywhere.
    quantity : float
        Quantity disagreement: half the sum of the absolute differences between area shares of map and reference
        (Pontius and Millones 2011, Int. J. Remote Sens. 32(15), equations 2 and 3).
    n_pixels, n_present : int
        Evaluated pixels, and scored classes in the reference.
    recall, precision, f1, iou : dict
        By class name (producer's and user's accuracy are recall and precision). NaN is an undefined score: precision
        of a class that is not mapped, the others of a class that is absent from the reference.
    """

    aa: float
    oa: float
    miou_8: float
    miou_9: float
    kappa: float
    quantity: float
    n_pixels: int
    n_present: int
    recall: dict[str, float]
    precision: dict[str, float]
    f1: dict[str, float]
    iou: dict[str, float]


def confusion(reference: NDArray[np.integer], predicted: NDArray[np.integer]) -> NDArray[np.int64]:
    """
    Count pixels by (reference code, mapped code).

    Parameters
    ----------
    reference, predicted : ndarray of int, of one shape
        DFC2020 codes 0..10.

    Returns
    -------
    ndarray of int64, shape (11, 11)
        Indexed `[reference, predicted]`; sums to the number of known pixels. Row 0 (reference unknown) stays zero,
        column 0 (nothing mapped) does not.

    Raises
    ------
    GridError, LegendError
        If the shapes differ; if a code is not one of DFC2020.
    """
    reference, predicted = np.asarray(reference), np.asarray(predicted)
    if reference.shape != predicted.shape:
        found = f"reference {reference.shape}, predicted {predicted.shape}"
        raise GridError("confusion", found=found, expected="arrays of one shape", do="Bring both to one grid first.")
    for where, codes in (("reference", reference), ("predicted", predicted)):
        whole = np.issubdtype(codes.dtype, np.integer)
        if not whole or (codes.size and (codes.min() < 0 or codes.max() >= N_CODES)):
            found = f"codes {codes.min()}..{codes.max()}" if whole else f"{codes.dtype} values"
            do = "Recode IGBP labels with igbp_to_dfc, network classes with index_to_dfc."
            raise LegendError(where, found=found, expected=f"integer DFC2020 codes 0..{N_CODES - 1}", do=do)
    counts = np.zeros(1 << 2 * _CODE_BITS, np.int64)
    reference, predicted = reference.reshape(-1), predicted.reshape(-1)
    for start in range(0, reference.size, _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        pairs = reference[block].astype(np.uint8)  # a copy
        pairs *= np.uint8(1 << _CODE_BITS)  # faster than a shift
        pairs |= predicted[block].astype(np.uint8, copy=False)
        # Pillow counts bytes directly; np.bincount first makes eight bytes of each and takes three times as long.
        counts += Image.fromarray(pairs[None]).histogram()
    table = counts.reshape(1 << _CODE_BITS, 1 << _CODE_BITS)[:N_CODES, :N_CODES].copy()
    table[DFC2020.unknown] = 0
    return table


def confusion_of_many(pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]]) -> NDArray[np.int64]:
    """Add up `confusion` of many `(reference, predicted)` pairs, read one at a time; int64 (11, 11)."""
    return sum((confusion(*pair) for pair in pairs), np.zeros((N_CODES, N_CODES), np.int64))


def compute_score(counts: NDArray[np.number], name: str) -> NDArray[np.float64]:
    """
    Compute one score of each of many confusion matrices at once.

    Parameters
    ----------
    counts : ndarray of number, shape (..., 11, 11)
        As `confusion` returns them.
    name : str
        "aa", "oa", "miou_8" or "miou_9" (see `Scores`), or "recall." and a class name, such as "recall.Water".

    Returns
    -------
    ndarray of float64, shape (...)
        NaN where the score is undefined, as that of a matrix without a pixel to evaluate.
    """
    if name == "oa":
        return _ratio(counts[..., _CODES, _CODES].sum(-1), counts[..., _CODES, :].sum((-2, -1)))
    if name == "aa":
        right, in_reference = counts[..., _CODES, _CODES].astype(np.float64), counts[..., _CODES, :].sum(-1)
        # In the memory order of *right*, on which the last digit of the sum depends.
        recall = np.divide(right, in_reference, out=np.zeros_like(right), where=in_reference > 0)
        return _ratio(recall.sum(-1), (in_reference > 0).sum(-1))
    if name in ("miou_8", "miou_9"):
        codes = _CODES if name == "miou_8" else [*_CODES, SNOW]
        scored, both = counts[..., codes, :], counts[..., codes, codes]
        in_reference, in_map = scored.sum(-1), scored.sum(-2)[..., codes]
        iou = _ratio(both, in_reference + in_map - both, otherwise=0.0)
        present = in_reference > 0
        n = present.sum(-1) if name == "miou_8" else 9 * present[..., :8].any(-1)
        return _ratio((iou * present).sum(-1), n)
    if name.removeprefix("recall.") in _NAMES:
        code = SCORED[_NAMES.index(name.removeprefix("recall."))]
        return _ratio(counts[..., code, code], counts[..., code, :].sum(-1))
    known = f"aa, oa, miou_8, miou_9 or recall. with one of {', '.join(_NAMES)}"
    raise ParameterError("score", found=repr(name), expected=known, do="Correct the name.")


def _ratio(part: NDArray[np.number], whole: NDArray[np.number], otherwise: float = np.nan) -> NDArray[np.float64]:
    """Divide; *otherwise* where *whole* is zero."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole)
    return np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole > 0)


def summarise(counts: NDArray[np.integer]) -> Scores:
    """
    Compute all scores of one confusion matrix, int (11, 11) as `confusion` returns it.

    Raises DataError if the counts hold no pixel of a scored class, GridError if they have another shape.

    >>> summarise(confusion(np.array([1, 1, 10, 10]), np.array([1, 1, 10, 1]))).aa
    0.75
    """
    table = np.asarray(counts, np.float64)
    if table.shape != (N_CODES, N_CODES):
        raise GridError("counts", found=f"shape {table.shape}", expected="(11, 11)", do="Use confusion().")
    scored = np.zeros_like(table)  # without the rows of classes that are not scored
    scored[_CODES] = table[_CODES]
    n_pixels = scored.sum()
    if n_pixels == 0:
        do = "Check that the reference is the DFC2020 layer and not empty."
        raise DataError("counts", found="no pixel with a scored reference class", expected="at least one", do=do)
    right, in_reference, in_map = np.diag(scored)[_CODES], scored.sum(1)[_CODES], scored.sum(0)[_CODES]
    present = in_reference > 0
    agreement, chance = np.trace(scored) / n_pixels, float(scored.sum(0) @ scored.sum(1) / n_pixels**2)

    def by_name(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(_NAMES, values.tolist(), strict=True))

    return Scores(
        **{name: float(compute_score(table, name)) for name in ("aa", "oa", "miou_8", "miou_9")},
        kappa=float((agreement - chance) / (1 - chance)) if chance < 1 else 0.0,
        quantity=float(np.abs(scored.sum(1) - scored.sum(0)).sum() / 2 / n_pixels),
        n_pixels=int(n_pixels),
        n_present=int(present.sum()),
        recall=by_name(_ratio(right, in_reference)),
        precision=by_name(_ratio(right, in_map)),
        f1=by_name(np.where(present, _ratio(2 * right, in_reference + in_map), np.nan)),
        iou=by_name(np.where(present, _ratio(right, in_reference + in_map - right), np.nan)),
    )


def score_table(entries: Mapping[str, Scores]) -> pd.DataFrame:
    """Return one row per map (by name), one column per score: per cent, rounded to 0.1, and kappa to 0.01."""
    fields = {"AA %": "aa", "OA %": "oa", "mIoU(8) %": "miou_8", "mIoU(9) %": "miou_9"}
    table = pd.DataFrame(index=list(entries))
    for title, name in fields.items():
        table[title] = [round(100 * getattr(one, name), 1) for one in entries.values()]
    return table.assign(kappa=[round(one.kappa, 2) for one in entries.values()])


def class_table(entries: Mapping[str, Scores]) -> pd.DataFrame:
    """Return one row per scored class, one column per map: recall in per cent."""
    columns = {name: scores.recall for name, scores in entries.items()}
    return (100 * pd.DataFrame(columns, index=_NAMES)).round(1)


# Parts of the pixels -----------------------------------------------------------------------------


def _near_borders(reference: NDArray[np.integer]) -> NDArray[np.bool_]:
    """
    Return where another known class lies within `_BORDER_PX`: the *trimap* of Kohli et al. (2009), IJCV 82.

    Maps from coarse labels are wrong first near borders. *reference* holds DFC2020 codes, int (H, W); a pixel that is 0
    (unknown) is never near a border and makes none.
    """
    size, known = 2 * _BORDER_PX + 1, reference > 0
    # Unknown pixels get a value that is never the least, or never the greatest, of a window.
    least = ndimage.minimum_filter(np.where(known, reference, N_CODES), size, mode="nearest")
    greatest = ndimage.maximum_filter(np.where(known, reference, 0), size, mode="nearest")
    return known & (least != greatest)


def _near_small_objects(reference: NDArray[np.integer]) -> NDArray[np.bool_]:
    """
    Return the pixels near borders with a part of an object smaller than a coarse cell within `_BORDER_PX`.

    An object is a set of pixels of one class, connected by their sides. Those at the edge of the patch are left out,
    because their size is unknown. The parameter is that of `_near_borders`.
    """
    near, small = _near_borders(reference), np.zeros(np.shape(reference), bool)
    for code in np.unique(reference[reference > 0]):
        objects, _ = ndimage.label(reference == code)
        is_small = np.bincount(objects.reshape(-1)) < CELL_PX
        is_small[[0, *objects[[0, -1]].reshape(-1), *objects[:, [0, -1]].reshape(-1)]] = False  # 0: of another class
        small |= is_small[objects]
    return near & ndimage.maximum_filter(small, 2 * _BORDER_PX + 1, mode="nearest")


PARTS = {"near_borders": _near_borders, "small_objects": _near_small_objects}
"""Parts of the pixels that are also scored on their own: functions from a reference (H, W) to bool (H, W)."""
