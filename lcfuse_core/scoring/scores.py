"""
How good a map is, counted pixel by pixel against a reference.

All labels here are DFC2020 codes 0..10. First count (`confusion`), then add the counts of many patches with
`+`, then sum them up once (`summarise`). Scores of patches are never averaged: a patch with ten pixels of
water would weigh as much as a lake.

Only pixels whose reference is one of the eight scored classes are judged. The DFC2020 reference holds no
others; where a reference does (MODIS labels hold Savanna), those pixels are left out. A predicted 0, Savanna
or Snow/Ice counts as an error.

A class that is not in the reference has no recall, F1 or IoU, and is left out of the means; a class that is there and
never predicted has recall 0. A patch without a judged pixel adds nothing, and cannot be scored by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lcfuse_core.data.legends import DFC2020, SCORED, SNOW
from lcfuse_core.errors import DataError, GridError, LegendError, ParameterError

N_CODES = 11
"""DFC2020 codes 0 (none) to 10 (water)."""

BLOCK_PX = 1 << 20
"""Pixels counted at once: two bytes of working memory each, 2 MB however large the map."""

CODE_BITS = 4
"""A pair of codes fits into one byte: the reference in the upper half, the map in the lower."""


@dataclass(frozen=True)
class Scores:
    """
    The scores of one map, all 0..1 but kappa (-1..1); none of the overall ones is ever NaN.

    aa : average accuracy, the mean recall over the scored classes in the reference
    oa : overall accuracy, the share of pixels that are right
    miou_8 : mean intersection over union over the (eight) scored classes in the reference
    miou_9 : the contest's convention: the eight and Snow/Ice, divided by 9 whatever the reference holds
    kappa : Cohen's kappa (1960); 0 where chance alone would agree everywhere
    quantity : quantity disagreement, the share of pixels by which the class *areas* of map and reference differ:
        half the sum of the absolute differences of area shares (Pontius and Millones 2011, equations 2 and 3)
    n_pixels, n_present : judged pixels; scored classes in the reference
    recall, precision, f1, iou : by class name; NaN where it cannot be said: recall, F1 and IoU of a class that is
        not in the reference, precision of a class that was never predicted
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

    @property
    def allocation(self) -> float:
        """Allocation disagreement: the share of pixels that are wrong though the class areas may be right."""
        return 1 - self.oa - self.quantity

    def as_dict(self) -> dict[str, float | int | dict[str, float]]:
        """The fields as plain Python values, for the ledger."""
        return asdict(self)


def confusion(reference: NDArray[np.integer], predicted: NDArray[np.integer]) -> NDArray[np.int64]:
    """
    Count pixels by (reference code, predicted code).

    reference, predicted : integer arrays of DFC2020 codes 0..10, any one shape

    Returns int64 (11, 11), indexed `[reference, predicted]`. Row 0 (reference unknown) stays zero; column 0
    (nothing predicted) does not. Sums to the number of known pixels. Raises GridError when the shapes differ,
    LegendError on a code that is not DFC2020's.

    >>> counts = confusion(np.array([[1, 1, 10, 0]]), np.array([[1, 10, 10, 10]]))
    >>> counts[1, 1], counts[1, 10], counts.sum()
    (np.int64(1), np.int64(1), np.int64(3))
    """
    reference, predicted = np.asarray(reference), np.asarray(predicted)
    _check(reference, predicted)
    counts = np.zeros(1 << 2 * CODE_BITS, np.int64)
    reference, predicted = reference.reshape(-1), predicted.reshape(-1)
    for start in range(0, reference.size, BLOCK_PX):
        block = slice(start, start + BLOCK_PX)
        pairs = reference[block].astype(np.uint8)  # a copy
        pairs *= np.uint8(1 << CODE_BITS)  # faster than a shift
        pairs |= predicted[block].astype(np.uint8, copy=False)
        # Pillow counts bytes as they are; np.bincount, thrice as slow, first makes eight bytes of each.
        counts += Image.fromarray(pairs[None]).histogram()
    table = counts.reshape(1 << CODE_BITS, 1 << CODE_BITS)[:N_CODES, :N_CODES].copy()
    table[DFC2020.unknown] = 0
    return table


def _check(reference: NDArray[np.integer], predicted: NDArray[np.integer]) -> None:
    if reference.shape != predicted.shape:
        raise GridError(
            "confusion",
            found=f"reference {reference.shape}, predicted {predicted.shape}",
            expected="arrays of one shape",
            do="Bring both to one grid first.",
        )
    for where, codes in (("reference", reference), ("predicted", predicted)):
        whole = np.issubdtype(codes.dtype, np.integer)
        if not whole or (codes.size and (codes.min() < 0 or codes.max() >= N_CODES)):
            found = f"codes {codes.min()}..{codes.max()}" if whole else f"{codes.dtype} values"
            raise LegendError(
                where,
                found=found,
                expected=f"integer DFC2020 codes 0..{N_CODES - 1}",
                do="Recode IGBP labels with igbp_to_dfc, network classes with index_to_dfc.",
            )


def confusion_of_many(
    pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]],
) -> NDArray[np.int64]:
    """Add up the counts of many `(reference, predicted)` pairs, one at a time; int64 (11, 11)."""
    total = np.zeros((N_CODES, N_CODES), np.int64)
    for reference, predicted in pairs:
        total += confusion(reference, predicted)
    return total


def summarise(counts: NDArray[np.integer]) -> Scores:
    """
    All scores of one confusion matrix, int (11, 11) as `confusion` returns it.

    Raises DataError when the counts hold no pixel of a scored class: there is nothing to judge.

    >>> summarise(confusion(np.array([1, 1, 10, 10]), np.array([1, 1, 10, 1]))).aa
    0.75
    """
    table = np.asarray(counts, np.float64)
    if table.shape != (N_CODES, N_CODES):
        raise GridError("counts", found=f"shape {table.shape}", expected="(11, 11)", do="Use confusion().")
    judged = _rows(table, SCORED)
    n_pixels = judged.sum()
    if n_pixels == 0:
        raise DataError(
            "counts",
            found="no pixel with a scored reference class",
            expected="at least one",
            do="Check that the reference is the DFC2020 layer and not empty.",
        )
    codes = list(SCORED)
    right, in_reference, in_map = np.diag(judged)[codes], judged.sum(1)[codes], judged.sum(0)[codes]
    recall = _ratio(right, in_reference)
    iou = np.where(in_reference > 0, _ratio(right, in_reference + in_map - right), np.nan)
    f1 = np.where(in_reference > 0, _ratio(2 * right, in_reference + in_map), np.nan)
    return Scores(
        aa=float(np.nanmean(recall)),
        oa=float(right.sum() / n_pixels),
        miou_8=float(np.nanmean(iou)),
        miou_9=_miou_9(table),
        kappa=_kappa(judged),
        quantity=float(np.abs(judged.sum(1) - judged.sum(0)).sum() / 2 / n_pixels),
        n_pixels=int(n_pixels),
        n_present=int((in_reference > 0).sum()),
        recall=_by_name(recall),
        precision=_by_name(_ratio(right, in_map)),
        f1=_by_name(f1),
        iou=_by_name(iou),
    )


def _rows(counts: NDArray[np.float64], codes: Iterable[int]) -> NDArray[np.float64]:
    """The same matrix with only the rows (reference classes) of *codes* left."""
    kept = np.zeros_like(counts)
    rows = list(codes)
    kept[rows] = counts[rows]
    return kept


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; NaN where *whole* is zero."""
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _miou_9(counts: NDArray[np.float64]) -> float:
    """Mean over nine classes as the official DFC2020 baseline takes it; a class that is not there adds 0."""
    codes = [*SCORED, SNOW]
    judged = _rows(counts, codes)
    right = np.diag(judged)[codes]
    union = judged.sum(1)[codes] + judged.sum(0)[codes] - right
    return float(np.nan_to_num(_ratio(right, union)).sum() / len(codes))


def _kappa(counts: NDArray[np.float64]) -> float:
    """(observed - chance) / (1 - chance) agreement, Cohen (1960), Educ. Psychol. Meas. 20, equation 1."""
    n = counts.sum()
    observed = np.trace(counts) / n
    chance = float(counts.sum(0) @ counts.sum(1) / n**2)
    return float((observed - chance) / (1 - chance)) if chance < 1 else 0.0


def _by_name(values: NDArray[np.float64]) -> dict[str, float]:
    return {DFC2020.name_of(code): float(value) for code, value in zip(SCORED, values, strict=True)}


def score_table(entries: Mapping[str, Scores], digits: int = 1) -> pd.DataFrame:
    """
    One row a map (by name), one column a score: per cent rounded to *digits*; kappa, -1..1, to one more.

    >>> list(score_table({"MODIS": summarise(confusion(np.array([1, 10]), np.array([1, 1])))}).columns)
    ['AA %', 'OA %', 'mIoU(8) %', 'mIoU(9) %', 'kappa']
    """
    rows = {
        name: {
            "AA %": round(100 * scores.aa, digits),
            "OA %": round(100 * scores.oa, digits),
            "mIoU(8) %": round(100 * scores.miou_8, digits),
            "mIoU(9) %": round(100 * scores.miou_9, digits),
            "kappa": round(scores.kappa, digits + 1),
        }
        for name, scores in entries.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def class_table(entries: Mapping[str, Scores], score: str = "recall", digits: int = 1) -> pd.DataFrame:
    """
    One row a scored class, one column a map: *score* ("recall", "precision", "f1" or "iou") in per cent.

    A cell is NaN where the score cannot be said (see `Scores`).
    """
    if score not in ("recall", "precision", "f1", "iou"):
        expected = "recall, precision, f1 or iou"
        raise ParameterError("score", found=repr(score), expected=expected, do="Choose one of them.")
    columns = {name: getattr(scores, score) for name, scores in entries.items()}
    names = [DFC2020.name_of(code) for code in SCORED]
    return (100 * pd.DataFrame(columns, index=names)).round(digits)


def area_table(counts: NDArray[np.integer], digits: int = 1) -> pd.DataFrame:
    """
    Whether the map gets the class *areas* right: one row a scored class, shares of the judged pixels in per cent.

    Columns: reference, map, and `error`, map minus reference in points. What the map calls none, Savanna or Snow/Ice
    has no row, so the column `map` may sum to less than 100. Half the absolute errors, and half of what has no row,
    add up to `Scores.quantity`.
    """
    judged = _rows(np.asarray(counts, np.float64), SCORED)
    codes, n_pixels = list(SCORED), judged.sum()
    shares = {"reference": judged.sum(1)[codes], "map": judged.sum(0)[codes]}
    table = 100 * pd.DataFrame(shares, index=[DFC2020.name_of(code) for code in codes]) / n_pixels
    table["error"] = table["map"] - table["reference"]
    return table.round(digits)
