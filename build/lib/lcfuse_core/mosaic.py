"""Where the patches of a scene lie: one grid for all of them, and the tiles that they share."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from affine import Affine
from rasterio.crs import CRS

from lcfuse_core.errors import GridError, LcfuseError
from lcfuse_core.layers import GRID_TOLERANCE_PX, read_place
from lcfuse_core.scenes import Report, patch_name

TILE_PX = (16, 256)
"""Smallest and largest side of a tile: half a patch of SEN12MS is 128."""


@dataclass(frozen=True)
class Place:
    """One patch in its scene: first row and column, and size, in pixels."""

    row: pd.DataFrame  # of the index, one row
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Layout:
    """A scene: kinds of files, georeference, size in pixels, side of a tile, patches from north to south."""

    kinds: list[str]
    crs: CRS
    transform: Affine
    height: int
    width: int
    tile: int
    places: list[Place]


_Placed = tuple[pd.DataFrame, CRS, Affine, tuple[int, int]]
"""A patch: its row of the index, CRS, transform and size."""


def find_layout(rows: pd.DataFrame, kinds: list[str], report: Report) -> Layout:
    """Where each patch lies, from the headers of its S1 files; one that lies off the grid of most is skipped."""
    crs, first, found = _on_one_grid(_georeferences(rows, report), report)
    found = _in_step(found, report)
    west = min(transform.c for _, _, transform, _ in found)
    north = max(transform.f for _, _, transform, _ in found)
    origin = Affine(first.a, 0, west, 0, first.e, north)
    places = [Place(row, round((t.f - north) / t.e), round((t.c - west) / t.a), *size) for row, _, t, size in found]
    places.sort(key=lambda place: (place.top, place.left))
    height = max(place.top + place.height for place in places)
    width = max(place.left + place.width for place in places)
    return Layout(kinds, crs, origin, height, width, _tile_side(places), places)


def _in_step(found: list[_Placed], report: Report) -> list[_Placed]:
    """Without the few patches that lie between the places of all others, as when a file's origin is wrong."""
    _, _, first, size = found[0]
    corners = np.array([[round((t.f - first.f) / t.e), round((t.c - first.c) / t.a)] for _, _, t, _ in found])
    if math.gcd(*size, *corners.ravel().tolist()) >= TILE_PX[0]:
        return found
    steps = [step for step in range(math.gcd(*size), TILE_PX[0] - 1, -1) if math.gcd(*size) % step == 0]
    choices = [Counter(map(tuple, corners % step)).most_common(1)[0] for step in steps]
    if not choices or max(n for _, n in choices) <= len(found) / 2:
        return found
    best = int(np.argmax([n for _, n in choices]))
    kept = (corners % steps[best] == choices[best][0]).all(axis=1)
    for (row, _, transform, _), is_kept in zip(found, kept, strict=True):
        if not is_kept:
            where, expected = f"origin {transform.c}, {transform.f}", f"steps of {steps[best]} pixels as in its scene"
            report.skipped.append((_name(row), _refusal(row, where, expected)))
    return [one for one, is_kept in zip(found, kept, strict=True) if is_kept]


def _refusal(row: pd.DataFrame, found: str, expected: str) -> str:
    """Why a patch is left out of its scene."""
    do = "Fetch it again, or train from the patch files."
    return str(GridError(row["s1"].iloc[0], found=found, expected=expected, do=do))


def _georeferences(rows: pd.DataFrame, report: Report) -> list[_Placed]:
    """Of all patches that have a readable header and a georeference; GridError when none has."""
    found: list[_Placed] = []
    nowhere = None
    for number, path in enumerate(rows["s1"]):
        row = rows.iloc[[number]]
        try:
            crs, transform, size = read_place(path, "s1")
            if crs is None or transform is None:
                do = "Train from the patch files: scenes are put together by their georeference."
                nowhere = GridError(path, found="no georeference", expected="one in every patch", do=do)
                raise nowhere
        except LcfuseError as error:
            report.skipped.append((_name(row), str(error)))
            continue
        found.append((row, crs, transform, size))
    if not found and nowhere is not None:
        raise nowhere
    if not found:
        report.check()
    return found


def _name(row: pd.DataFrame) -> str:
    return patch_name(next(row.itertuples()))


def _on_one_grid(placed: list[_Placed], report: Report) -> tuple[CRS, Affine, list[_Placed]]:
    """CRS and transform of one patch like most, and the patches of its grid and size; others are skipped."""
    grids = [(crs.to_wkt(), t.a, t.e, round(t.c % t.a), round(t.f % t.e), size) for _, crs, t, size in placed]
    [(most, _)] = Counter(grids).most_common(1)
    _, crs, first, first_size = placed[grids.index(most)]
    kept = []
    for one in placed:
        row, other_crs, other, size = one
        steps = (other.c - first.c) / first.a, (other.f - first.f) / first.e
        off = max(abs(step - round(step)) for step in steps)
        is_same = (other.a, other.b, other.d, other.e) == (first.a, 0, 0, first.e) and other_crs == crs
        if is_same and off <= GRID_TOLERANCE_PX and size == first_size:
            kept.append(one)
            continue
        found = f"{other_crs}, {tuple(other)[:6]}, {size} pixels"
        expected = f"the grid of its scene, {crs}, {tuple(first)[:6]}, {first_size} pixels"
        report.skipped.append((_name(row), _refusal(row, found, expected)))
    if not kept:
        found = f"{tuple(first)[:6]}"
        raise GridError(placed[0][0]["s1"].iloc[0], found=found, expected="north-up pixels", do="Warp it first.")
    return crs, first, kept


def _tile_side(places: list[Place]) -> int:
    """The largest tile that every patch holds a whole number of: 128 for SEN12MS."""
    side = math.gcd(*(number for p in places for number in (p.top, p.left, p.height, p.width)))
    while side > TILE_PX[1] and side % 2 == 0:
        side //= 2
    if not TILE_PX[0] <= side <= TILE_PX[1]:
        raise GridError(
            places[0].row["s1"].iloc[0],
            found=f"a scene of patches whose places and sizes share a step of {side} pixels",
            expected=f"a step of {TILE_PX[0]}..{TILE_PX[1]} (SEN12MS: 128)",
            do="Leave out the patches that lie off the others' grid, or train from the patch files.",
        )
    return side


def tiles_of(place: Place, side: int) -> list[tuple[int, int]]:
    """The tiles that a patch covers."""
    rows = range(place.top // side, (place.top + place.height) // side)
    return [(i, j) for i in rows for j in range(place.left // side, (place.left + place.width) // side)]
