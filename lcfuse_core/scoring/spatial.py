"""
Scores that ask *where* a map is right: near the borders of the reference, and inside the coarse cells.

All of them are counts that add up over patches, like `scores.confusion`: count first, add, then take the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from lcfuse_core.data import source
from lcfuse_core.data.cells import CELL_M
from lcfuse_core.data.patches import Patch, Report, iter_patches, patch_name
from lcfuse_core.errors import GridError
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.protocol import Classify, Result
from lcfuse_core.scoring.scores import N_CODES, confusion

CELL_PX = CELL_M**2 / 100
"""Pixels of 10 m in a coarse cell; the count of a whole one differs from it by a few."""


def near_border(labels: NDArray[np.integer], radius_px: int) -> NDArray[np.bool_]:
    """
    Pixels that have another known class within *radius_px* (rows or columns, whichever is more).

    labels : codes (H, W), 0 where unknown; an unknown pixel is never near a border, and makes none

    >>> near_border(np.array([[1, 1, 1, 6, 6]]), 1).astype(int)
    array([[0, 0, 1, 1, 0]])
    """
    size = 2 * radius_px + 1
    known = labels > 0
    low = np.where(known, labels, N_CODES)  # larger than any code: it never is the least
    least = ndimage.minimum_filter(low, size, mode="nearest")
    greatest = ndimage.maximum_filter(np.where(known, labels, 0), size, mode="nearest")
    return known & (least != greatest)


def confusion_near_borders(
    reference: NDArray[np.integer], predicted: NDArray[np.integer], radius_px: int = 3
) -> NDArray[np.int64]:
    """
    `confusion` of the pixels within *radius_px* of a border of the reference alone, int64 (11, 11).

    The band around borders in which maps from coarse labels go wrong first; such a band is the *trimap* of Kohli,
    Ladický and Torr (2009), here with a border between any two known classes. Three pixels of 10 m are half a field
    road, and beyond the shift between the two satellites. What is left, `confusion` minus this, is the interior.
    """
    _check(reference, predicted)
    near = near_border(reference, radius_px)
    return confusion(reference[near], predicted[near])


def _check(reference: NDArray[np.integer], predicted: NDArray[np.integer]) -> None:
    if reference.shape != predicted.shape or reference.ndim != 2:
        raise GridError(
            "borders",
            found=f"reference {reference.shape}, predicted {predicted.shape}",
            expected="two arrays (H, W) of one shape",
            do="Bring both to one grid first; a score of borders needs to know the neighbours.",
        )


@dataclass(frozen=True)
class BorderCount:
    """How many border pixels of map and reference meet each other; counts of patches add up with `+`."""

    map_px: int = 0
    map_met: int = 0
    reference_px: int = 0
    reference_met: int = 0

    def __add__(self, other: BorderCount) -> BorderCount:
        return BorderCount(
            self.map_px + other.map_px,
            self.map_met + other.map_met,
            self.reference_px + other.reference_px,
            self.reference_met + other.reference_met,
        )

    @property
    def precision(self) -> float:
        """Share of the map's border pixels with one of the reference nearby; NaN without any."""
        return self.map_met / self.map_px if self.map_px else float("nan")

    @property
    def recall(self) -> float:
        """Share of the reference's border pixels with one of the map nearby; NaN without any."""
        return self.reference_met / self.reference_px if self.reference_px else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of the two: 0 when no borders meet, NaN when the reference has none."""
        if not self.reference_px:
            return float("nan")
        both = self.precision + self.recall if self.map_px else 0.0
        return 2 * self.precision * self.recall / both if both else 0.0


def border_count(reference: NDArray[np.integer], predicted: NDArray[np.integer], tolerance_px: int = 2) -> BorderCount:
    """
    How well the lines of a map lie on those of the reference, whatever classes they part: the *boundary F1*.

    The measure of Csurka, Larlus and Perronnin (2013), with two changes that are ours: borders of all classes are one
    set, and counts are added over patches instead of averaging scores of images. A border pixel has another class
    beside or below it; "nearby" is within *tolerance_px* rows and columns. Pixels where the reference is unknown are
    in neither set.
    """
    _check(reference, predicted)
    known = reference > 0
    true, drawn = _borders(reference, known), _borders(predicted, known)
    size = 2 * tolerance_px + 1
    near_true, near_drawn = (ndimage.maximum_filter(lines, size, mode="constant") for lines in (true, drawn))
    return BorderCount(
        int(drawn.sum()), int((drawn & near_true).sum()), int(true.sum()), int((true & near_drawn).sum())
    )


def _borders(labels: NDArray[np.integer], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    lines = np.zeros(labels.shape, bool)
    lines[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & known[:, :-1] & known[:, 1:]
    lines[:-1] |= (labels[:-1] != labels[1:]) & known[:-1] & known[1:]
    return lines


def cell_confusion(
    coarse: NDArray[np.integer], predicted: NDArray[np.integer], ids: NDArray[np.int32]
) -> NDArray[np.int64]:
    """
    Count *coarse cells* by (MODIS class, majority class of the map), int64 (11, 11): does the map, seen at 500 m,
    say what MODIS says?

    coarse : MODIS label as DFC2020 codes (H, W); predicted : a map (H, W); ids : `cells.cell_ids` of the patch

    Only cells that lie whole in the patch are counted. A cell's MODIS class is that of most of its pixels, since a
    label that was resampled to 10 m can be off by one at a cell's rim; of classes with equally many pixels the lower
    code counts. `scores.summarise` makes scores of the counts: OA is the share of cells that agree, among those whose
    MODIS class is scored. Raises GridError when the shapes differ.
    """
    if not coarse.shape == predicted.shape == ids.shape:
        found = f"MODIS label {coarse.shape}, predicted {predicted.shape}, cells {ids.shape}"
        raise GridError("cell_confusion", found=found, expected="one shape", do="Use the cells of this patch.")
    modis, _ = _majority(coarse, ids)
    mapped, n_pixels = _majority(predicted, ids)
    whole = n_pixels > 0.98 * CELL_PX
    return confusion(modis[whole], mapped[whole])


def _majority(labels: NDArray[np.integer], ids: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The most common class of each cell, and the pixels of the cell."""
    n_cells = int(ids.max()) + 1 if ids.size else 0
    pairs = ids.reshape(-1) * np.int64(N_CODES) + labels.reshape(-1)
    counts = np.bincount(pairs, minlength=n_cells * N_CODES).reshape(n_cells, N_CODES)
    return counts.argmax(1).astype(np.uint8), counts.sum(1)


BORDER_PX = 3
"""How far from a border of the reference a pixel is near it: 30 m; see `spatial_scores.confusion_near_borders`."""

Count = Callable[[Patch, NDArray[np.uint8]], NDArray[np.int64]]
"""Counts, int64 (11, 11), of a patch with its reference and a map of it, uint8 (H, W)."""


def near_borders(patch: Patch, answer: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Confusion of the pixels within `BORDER_PX` of a border of the reference."""
    assert patch.dfc is not None
    return confusion_near_borders(patch.dfc, answer, BORDER_PX)


def as_modis(patch: Patch, answer: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Coarse cells by MODIS class and the map's majority; the reference plays no part."""
    return cell_confusion(protocol.modis_map(patch), answer, source.patch_cells(patch))


def judge(methods: Mapping[str, Classify], table: pd.DataFrame, count: Count) -> tuple[dict[str, Result], Report]:
    """
    What `protocol.judge` gives, with *count* in place of the confusion of all pixels.

    Each patch is read once and then dropped. Raises DataError when not one could be read.
    """
    results, report = {name: Result() for name in methods}, Report()
    region_of = dict(zip(map(patch_name, table.itertuples()), table["scene_id"], strict=True))
    for patch in iter_patches(table, report, protocol.NEED):
        shown = replace(patch, dfc=None)  # what a method sees
        for name, classify in methods.items():
            results[name].add(region_of[patch.name], count(patch, classify(shown)))
    report.check()
    return results, report


def for_ledger(result: Result) -> dict[str, Any]:
    """Scores and counts by region, as a ledger line keeps them under a name of their own, such as `near_borders`."""
    return {**asdict(result.scores), "counts": result.by_region}
