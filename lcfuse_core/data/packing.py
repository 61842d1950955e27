"""
Packing: write packed scenes (see `packed`) from the patches of SEN12MS.

A flipped bit inside a patch file is found wherever a neighbouring file holds the same pixel. The description of a
scene is written last, so that a scene that is not finished is not there; what an ended program left half-written is
removed by the next call.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from affine import Affine
from numpy.lib import format as npy
from numpy.typing import NDArray
from rasterio.crs import CRS
from tqdm import tqdm

from lcfuse_core._runtime import atomic_path, lock, write_atomic
from lcfuse_core.data.cells import modis_cells
from lcfuse_core.data.files import GRID_TOLERANCE_PX, KINDS, part_transform, read_georeference
from lcfuse_core.data.packed import FORMAT, PackedScene, digest_of, tile_type
from lcfuse_core.data.patches import Patch, Report, iter_patches, patch_name
from lcfuse_core.errors import DataError, DiskError, GridError, LcfuseError, disk_error

_TILE_PX = (16, 256)
"""Smallest and largest side of a tile: half a patch of SEN12MS is 128."""


@dataclass
class PackReport(Report):
    """Report on the patches (see `Report`) and on the scenes that were packed, kept or refused."""

    packed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{len(self.packed)} scenes packed, {len(self.kept)} were there, {len(self.refused)} refused"
        return "\n".join([head, *(f"  refused {name}: {why}" for name, why in self.refused), super().__str__()])


def pack(table: pd.DataFrame, out: str | os.PathLike[str], *, progress: bool = False) -> PackReport:
    """
    Pack every scene of an index of complete patches into the folder *out*.

    A scene that was packed from the same files is kept: an interrupted call continues where it was. A damaged patch
    is left out, a scene whose patches differ where they overlap is refused, and the report names both. The patches
    are only read.

    Raises
    ------
    DiskError
        If the disk is full or cannot be written, or another process packs into the folder; finished scenes are kept.
    """
    report, out = PackReport(), Path(out)
    try:
        with lock(out / ".packing", wait=False):
            for half_written in out.glob(".*.part"):
                half_written.unlink()
            for scene_id, rows in tqdm(table.groupby("scene_id", sort=True), unit="scene", disable=not progress):
                try:
                    is_new = _pack_scene(str(scene_id), rows, out, report)
                    (report.packed if is_new else report.kept).append(str(scene_id))
                except (DataError, GridError) as error:
                    report.refused.append((str(scene_id), str(error)))
    except BlockingIOError:
        do = "Wait for it to end, or choose another folder."
        raise DiskError(out, found="another process that packs into it", expected="one at a time", do=do) from None
    except LcfuseError:
        raise
    except OSError as error:
        raise disk_error(out, error) from None
    return report


def _pack_scene(scene_id: str, rows: pd.DataFrame, out: Path, report: Report) -> bool:
    """Pack one scene; False if it was packed from the same files before."""
    kinds = [kind for kind in KINDS if rows[kind].notna().all()]
    path, source = out / f"{scene_id}.json", _source(rows, kinds)
    try:
        if PackedScene(path).source == source:
            return False
    except LcfuseError:
        pass  # there is none, or it is damaged
    layout = _layout(rows, report)
    layers = ["s1", "s2", "cells", *(["igbp", "lccs"] if "lc" in kinds else []), *(["dfc"] if "dfc" in kinds else [])]
    dtype = tile_type(layers, layout.tile)
    per_side = layout.size[0] // layout.tile, layout.size[1] // layout.tile
    blocks = np.mgrid[: per_side[0], : per_side[1]].reshape(2, -1).T
    tiles = {(int(i), int(j)) for place in layout.places for i, j in blocks + np.floor_divide(place[1:], layout.tile)}
    need, free = len(tiles) * dtype.itemsize, shutil.disk_usage(out).free
    if need > free:
        found, expected = f"{free:,} bytes free", f"{need:,} bytes for {scene_id}"
        raise DiskError(out, found=found, expected=expected, do="Free some space or choose another disk.")
    path.unlink(missing_ok=True)
    with atomic_path(path.with_suffix(".npy")) as part, part.open("wb") as file:
        scene = _write_tiles(file, dtype, layout, kinds, report)
    scene |= {"scene_id": scene_id, "source": source, "layers": layers}
    write_atomic(path, json.dumps({"format": FORMAT, "sha256": digest_of(scene), "scene": scene}))
    return True


def _source(rows: pd.DataFrame, kinds: list[str]) -> str:
    """A digest of names, sizes and times of the files: it shows whether a scene must be packed again."""
    files = sorted(str(path) for kind in kinds for path in rows[kind])
    stats = [(os.path.basename(file), os.stat(file)) for file in files if os.path.isfile(file)]
    return digest_of([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


# Where the patches lie ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """A scene: georeference, size of a patch, side of a tile, and row, top and left pixel of each patch."""

    crs: CRS
    transform: Affine
    size: tuple[int, int]
    tile: int
    places: list[tuple[pd.DataFrame, int, int]]  # a row of the index, top and left

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the scene in pixels."""
        _, tops, lefts = zip(*self.places, strict=True)
        return max(tops) + self.size[0], max(lefts) + self.size[1]


def _layout(rows: pd.DataFrame, report: Report) -> _Layout:
    """Find the place of each patch from its S1 file; the few that are off the common grid are skipped and reported."""
    placed = []
    for number, path in enumerate(rows["s1"]):
        row = rows.iloc[[number]]
        try:
            crs, transform, size = read_georeference(path, "s1")
            if crs is None or transform is None:
                raise _off_grid(row, "no georeference", "one in every patch")
            placed.append((row, crs, transform, size))
        except LcfuseError as error:
            _skip(report, row, error)
    if not placed:
        report.check()

    grids = [(c.to_wkt(), t.a, t.b, t.d, t.e, round(t.c % t.a), round(t.f % t.e), s) for _, c, t, s in placed]
    [(most, _)] = Counter(grids).most_common(1)
    _, crs, first, size = placed[grids.index(most)]
    if first.b or first.d:
        raise _off_grid(placed[0][0], f"a grid that is turned, {tuple(first)[:6]}", "pixels with north up")
    kept, corners = [], []
    for row, other_crs, t, other_size in placed:
        corner = np.array([(t.f - first.f) / first.e, (t.c - first.c) / first.a])
        is_same = (other_crs, t.a, t.b, t.d, t.e, other_size) == (crs, first.a, 0, 0, first.e, size)
        if is_same and np.abs(corner - corner.round()).max() <= GRID_TOLERANCE_PX:
            kept.append((row, t))
            corners.append(corner.round().astype(int))
        else:
            expected = f"the grid of its scene, {crs}, {tuple(first)[:6]}, {size} pixels"
            _skip(report, row, _off_grid(row, f"{other_crs}, {tuple(t)[:6]}, {other_size} pixels", expected))

    # The largest step that most corners share: an origin that is wrong lies between the places of the others.
    steps = [n for n in range(math.gcd(*size), _TILE_PX[0] - 1, -1) if math.gcd(*size) % n == 0]
    shared = [Counter(map(tuple, np.mod(corners, n))).most_common(1)[0] for n in steps]
    best = int(np.argmax([n for _, n in shared])) if shared else 0
    side = math.gcd(*size, *np.ravel(corners).tolist())
    in_step = [True] * len(kept)
    if shared and shared[best][1] > len(kept) / 2:
        side, in_step = steps[best], (np.mod(corners, steps[best]) == shared[best][0]).all(axis=1).tolist()
    step = side
    while side > _TILE_PX[1] and side % 2 == 0:
        side //= 2
    if not _TILE_PX[0] <= side <= _TILE_PX[1]:
        found = f"a scene of patches whose places and sizes share a step of {step} pixels"
        raise _off_grid(kept[0][0], found, f"a step of {_TILE_PX[0]}..{_TILE_PX[1]} (SEN12MS: 128)")
    for (row, t), is_kept in zip(kept, in_step, strict=True):
        if not is_kept:
            _skip(report, row, _off_grid(row, f"origin {t.c}, {t.f}", f"steps of {step} pixels as in its scene"))

    chosen = [(row, t) for (row, t), is_kept in zip(kept, in_step, strict=True) if is_kept]
    west, north = min(t.c for _, t in chosen), max(t.f for _, t in chosen)
    places = [(row, round((t.f - north) / t.e), round((t.c - west) / t.a)) for row, t in chosen]
    places.sort(key=lambda place: place[1:])
    return _Layout(crs, Affine(first.a, 0, west, 0, first.e, north), size, side, places)


def _off_grid(row: pd.DataFrame, found: str, expected: str) -> GridError:
    return GridError(row["s1"].iloc[0], found=found, expected=expected, do="Fetch it again, or train from patch files.")


def _skip(report: Report, row: pd.DataFrame, error: LcfuseError) -> None:
    report.skipped.append((patch_name(next(row.itertuples())), str(error)))


# Writing ------------------------------------------------------------------------------------------


def _write_tiles(
    file: BinaryIO, dtype: np.dtype[Any], layout: _Layout, kinds: list[str], report: Report
) -> dict[str, Any]:
    """
    Write the tiles of a scene, row by row, and return its description.

    Only the patches that touch a row of tiles are in memory: two rows of patches, 140 MB for a scene of SEN12MS.
    """
    side, (height, width), (rows, cols) = layout.tile, layout.shape, layout.size
    cell_row, cell_col, n_cols = _cell_numbers(layout)
    tiles: list[list[int]] = []
    patches: list[dict[str, Any]] = []
    in_reach: list[tuple[int, int, Patch]] = []
    waiting = list(layout.places)
    _write_header(file, dtype, 0)
    for i in range(height // side):
        while waiting and waiting[0][1] < (i + 1) * side:
            row, top, left = waiting.pop(0)
            for patch in iter_patches(row, report, kinds):
                in_reach.append((top, left, patch))
                place = {"window": [top, left, rows, cols], "transform": list(patch.transform or ())[:6]}
                patches.append({"name": patch.name, "repairs": list(patch.repairs), **place})
        in_reach = [(top, left, patch) for top, left, patch in in_reach if top + rows > i * side]
        for j, record in _merged(in_reach, i, layout, dtype):
            at = part_transform(layout.transform, i * side, j * side)
            cells = modis_cells(at, layout.crs, (side, side))
            record["cells"] = (cells[0] - cell_row) * n_cols + cells[1] - cell_col
            content = record.tobytes()
            file.write(content)
            tiles.append([i, j, zlib.crc32(content)])
    if not patches:
        report.check()
    file.seek(0)
    _write_header(file, dtype, len(tiles))  # of the same length: numpy leaves room for any count
    return {
        "crs": layout.crs.to_wkt(),
        "transform": list(layout.transform)[:6],
        "size": [height, width],
        "tile": side,
        "cells": {"row": cell_row, "col": cell_col, "n_cols": n_cols},
        "patches": patches,
        "tiles": tiles,
    }


def _write_header(file: BinaryIO, dtype: np.dtype[Any], n_tiles: int) -> None:
    about = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (n_tiles,)}
    npy.write_array_header_1_0(file, about)


def _merged(
    in_reach: list[tuple[int, int, Patch]], i: int, layout: _Layout, dtype: np.dtype[Any]
) -> list[tuple[int, NDArray[Any]]]:
    """The tiles of row *i* by column, without their cells; DataError where two patches differ."""
    side, made = layout.tile, dict[int, tuple[Patch, NDArray[Any]]]()
    for top, left, patch in in_reach:
        for j in range(left // side, (left + layout.size[1]) // side):
            part = np.s_[..., i * side - top : (i + 1) * side - top, j * side - left : (j + 1) * side - left]
            record = np.zeros((), dtype)
            for kind, layer in _layers(patch).items():
                record[kind] = layer[part]
            owner, stored = made.setdefault(j, (patch, record))
            if stored.tobytes() != record.tobytes():  # bit for bit: -0.0 is not 0.0
                _refuse(owner, patch, stored, record)
    return [(j, record) for j, (_, record) in sorted(made.items())]


def _layers(patch: Patch) -> dict[str, NDArray[Any]]:
    layers: dict[str, NDArray[Any]] = {"s2": patch.s2, "s1": patch.s1}
    if patch.lc is not None:
        layers |= {"igbp": patch.lc[:1], "lccs": patch.lc[1:]}
    return layers if patch.dfc is None else layers | {"dfc": patch.dfc[None]}


def _refuse(first: Patch, second: Patch, one: NDArray[Any], other: NDArray[Any]) -> None:
    n = {kind: int((_bits(one[kind]) != _bits(other[kind])).sum()) for kind in one.dtype.names or ()}
    raise DataError(
        f"{first.name} and {second.name}",
        found=" and ".join(f"{count} different {kind} values" for kind, count in n.items() if count) + " in a tile",
        expected="the same pixels, bit for bit, where they overlap",
        do="One of the two is damaged: fetch both again, or leave out the wrong one.",
    )


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"u{values.dtype.itemsize}")


def _cell_numbers(layout: _Layout) -> tuple[int, int, int]:
    """Row and column of the first coarse cell of a scene, and the number of columns, from the cells on its border."""
    height, width = layout.shape
    rows: list[int] = []
    cols: list[int] = []
    strips = [(0, 0, 1, width), (height - 1, 0, 1, width), (0, 0, height, 1), (0, width - 1, height, 1)]
    for top, left, n_rows, n_cols in strips:
        at = part_transform(layout.transform, top, left)
        for found, cells in zip((rows, cols), modis_cells(at, layout.crs, (n_rows, n_cols)), strict=True):
            found += [int(cells.min()), int(cells.max())]
    if (max(rows) - min(rows)) * (max(cols) - min(cols)) > 65_000:  # two bytes per pixel
        found_cells = f"{max(rows) - min(rows)} x {max(cols) - min(cols)} coarse cells"
        raise _off_grid(layout.places[0][0], found_cells, "at most 65,000 in a scene (SEN12MS: some 10,000)")
    return min(rows), min(cols), max(cols) - min(cols) + 1
