"""
A closer look at maps: the same judging as `protocol.judge`, of a part of the pixels, or of cells in place of pixels.

    closer, _ = closeups.judge(methods, rows, closeups.near_borders)
    closer["FCN, plain"].scores.aa

Made for the claim that a map has a *resolution* of 10 m, which shows near borders and nowhere else, and for the
question whether it says what MODIS says once it is seen at 500 m. As there, the reference is opened when all methods
have learnt, and nothing that is seen here goes back into one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core import patches, protocol, spatial_scores
from lcfuse_core.protocol import Classify, Result
from lcfuse_core.scenes import Patch, Report, iter_patches, patch_name

BORDER_PX = 3
"""How far from a border of the reference a pixel is near it: 30 m; see `spatial_scores.confusion_near_borders`."""

Count = Callable[[Patch, NDArray[np.uint8]], NDArray[np.int64]]
"""Counts, int64 (11, 11), of a patch with its reference and a map of it, uint8 (H, W)."""


def near_borders(patch: Patch, answer: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Confusion of the pixels within `BORDER_PX` of a border of the reference."""
    assert patch.dfc is not None
    return spatial_scores.confusion_near_borders(patch.dfc, answer, BORDER_PX)


def as_modis(patch: Patch, answer: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Coarse cells by MODIS class and the map's majority; the reference plays no part."""
    return spatial_scores.cell_confusion(protocol.modis_map(patch), answer, patches.patch_cells(patch))


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
