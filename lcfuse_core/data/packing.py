"""
Packing: write packed scenes (see `packed`) from the patches of SEN12MS.

A flipped bit inside a patch file is found wherever a neighbouring file holds the same pixel. The description of a
scene is written last, so that an unfinished scene is not listed; the next call removes what an ended program left
half-written.
"""

from __future__ import annotations

import json
import math
import os
import zlib
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
from lcfuse_core.data.files import GRID_TOLERANCE_PX, KINDS, read_georeference
from lcfuse_core.data.packed import FORMAT, STORED, PackedScene, digest_of, tile_type
from lcfuse_core.data.patches import Patch, Report, iter_patches, patch_name
from lcfuse_core.errors import DataError, DiskError, GridError, LcfuseError, disk_error

_TILE_PX = (16, 256)
"""Smallest and largest side of a tile: half a patch of SEN12MS is 128."""


@dataclass
class _PackReport(Report):
    """Report on the patches (see `Report`) and on the scenes that were packed, kept or refused."""

    packed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{len(self.packed)} scenes packed, {len(self.kept)} were there, {len(self.refused)} refused"
        return "\n".join([head, *(f"  refused {name}: {why}" for name, why in self.refused), super().__str__()])


def pack(table: pd.DataFrame, out: str | os.PathLike[str], *, progress: bool = False) -> _PackReport:
    """
    Pack every scene of an index of complete patches into the folder *out*.

    A scene that was packed from the same files is kept: an interrupted call continues where it was. A damaged patch
    is left out; a scene whose patches differ where they overlap, or lie on different grids, is refused, and the report
    names both. The patches are only read.

    Raises
    ------
    DiskError
        If the disk is full or cannot be written, or another process packs into the folder; finished scenes are kept.
    """
    report, out = _PackReport(), Path(out)
    try:
        with lock(out / ".packing", wait=False):
            for half_written in out.glob(".*.part"):
                half_written.unlink()
            for name, rows in tqdm(table.groupby("scene_id", sort=True), unit="scene", disable=not progress):
                try:
                    is_new = _pack_scene(str(name), rows, out, report)
                    (report.packed if is_new else report.kept).append(str(name))
                except (DataError, GridError) as error:
                    report.refused.append((str(name), str(error)))
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
    stats = [(Path(path).name, os.stat(path)) for kind in kinds for path in rows[kind] if os.path.isfile(path)]
    source = digest_of(sorted([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats))
    path = out / f"{scene_id}.json"
    try:
        if PackedScene(path).source == source:
            return False
    except LcfuseError:
        pass  # there is none, or it is damaged
    grid = _common_grid(rows, report)
    layers = ["s1", "s2", "cells", *(layer for kind in kinds for layer in STORED[kind] if kind in ("lc", "dfc"))]
    path.unlink(missing_ok=True)
    with atomic_path(path.with_suffix(".npy")) as part, part.open("wb") as file:
        scene = _write_tiles(file, tile_type(layers, grid.tile), grid, kinds, report)
    scene |= {"scene_id": scene_id, "source": source, "layers": layers}
    write_atomic(path, json.dumps({"format": FORMAT, "sha256": digest_of(scene), "scene": scene}))
    return True


# Where the patches lie ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """The grid of a scene: georeference, size of a patch, side of a tile, and the patches that lie on it."""

    crs: CRS
    transform: Affine
    size: tuple[int, int]
    tile: int
    patches: list[tuple[int, int, pd.DataFrame]]  # top and left pixel, and the row of the index, north to south

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the scene in pixels."""
        tops, lefts, _ = zip(*self.patches, strict=True)
        return max(tops) + self.size[0], max(lefts) + self.size[1]


def _common_grid(rows: pd.DataFrame, report: Report) -> _Grid:
    """Return the grid that all patches share, from the S1 files; GridError names a patch that is off it."""
    placed: list[tuple[NDArray[Any], pd.DataFrame]] = []
    known: tuple[CRS, Affine, tuple[int, int]] | None = None
    for number, path in enumerate(rows["s1"]):
        row = rows.iloc[[number]]
        try:
            crs, t, size = read_georeference(path, "s1")
        except DataError as error:
            report.skipped.append((patch_name(next(row.itertuples())), str(error)))
            continue
        if crs is None or t is None or t.b or t.d:
            raise _off_grid(path, "a grid that is turned" if t else "no georeference", "a georeference with north up")
        known = known or (crs, t, size)
        first = known[1]
        corner = np.array([(t.f - first.f) / first.e, (t.c - first.c) / first.a])
        is_same = (crs, t.a, t.e, size) == (known[0], first.a, first.e, known[2])
        if not is_same or np.abs(corner - corner.round()).max() > GRID_TOLERANCE_PX:
            expected = f"the grid of its scene, {known[0]}, {tuple(first)[:6]}, {known[2]} pixels"
            raise _off_grid(path, f"{crs}, {tuple(t)[:6]}, {size} pixels", expected)
        placed.append((corner.round().astype(int), row))
    if known is None:
        report.check()
    assert known is not None
    crs, first, size = known
    top, left = np.min([corner for corner, _ in placed], axis=0).tolist()
    patches = sorted(((int(c[0]) - top, int(c[1]) - left, row) for c, row in placed), key=lambda place: place[:2])
    step = math.gcd(*size, *(pixels for place in patches for pixels in place[:2]))
    if step < _TILE_PX[0]:
        found = f"a scene of patches whose corners and sizes share a step of less than {_TILE_PX[0]} pixels"
        raise _off_grid(rows["s1"].iloc[0], found, "a step of 16 pixels or more (SEN12MS: 128)")
    tile = next(step >> n for n in range(9) if step >> n <= _TILE_PX[1] or step >> n & 1)
    return _Grid(crs, first @ Affine.translation(left, top), size, tile, patches)


def _off_grid(path: str, found: str, expected: str) -> GridError:
    return GridError(path, found=found, expected=expected, do="Fetch it again, or train from patch files.")


# Writing ------------------------------------------------------------------------------------------


def _write_tiles(file: BinaryIO, dtype: np.dtype[Any], grid: _Grid, kinds: list[str], report: Report) -> dict[str, Any]:
    """
    Write the tiles of a scene, row by row, and return its description.

    Only the patches that touch a row of tiles are in memory: two rows of patches, 140 MB for a scene of SEN12MS.
    """
    side, (height, width), (rows, cols) = grid.tile, grid.shape, grid.size
    first_row, first_col, n_cols = _cell_numbers(grid)
    tiles: list[list[int]] = []
    patches: list[dict[str, Any]] = []
    in_reach: list[tuple[int, int, Patch]] = []
    waiting = list(grid.patches)
    _write_header(file, dtype, 0)
    for north in range(0, height, side):
        while waiting and waiting[0][0] < north + side:
            top, left, row = waiting.pop(0)
            for patch in iter_patches(row, report, kinds):
                in_reach.append((top, left, patch))
                place = {"window": [top, left, rows, cols], "transform": list(patch.transform or ())[:6]}
                patches.append({"name": patch.name, "repairs": list(patch.repairs), **place})
        in_reach = [place for place in in_reach if place[0] + rows > north]
        for west, record in _merged(in_reach, north, grid, dtype).items():
            at = grid.transform @ Affine.translation(west, north)
            row_of, col_of = modis_cells(at, grid.crs, (side, side))
            record["cells"] = (row_of - first_row) * n_cols + col_of - first_col
            content = record.tobytes()
            file.write(content)
            tiles.append([north // side, west // side, zlib.crc32(content)])
    if not patches:
        report.check()
    file.seek(0)
    _write_header(file, dtype, len(tiles))  # of the same length: numpy leaves room for any count
    return {
        "crs": grid.crs.to_wkt(),
        "transform": list(grid.transform)[:6],
        "size": [height, width],
        "tile": side,
        "cells": {"row": first_row, "col": first_col, "n_cols": n_cols},
        "patches": patches,
        "tiles": tiles,
    }


def _write_header(file: BinaryIO, dtype: np.dtype[Any], n_tiles: int) -> None:
    about = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (n_tiles,)}
    npy.write_array_header_1_0(file, about)


def _merged(
    in_reach: list[tuple[int, int, Patch]], north: int, grid: _Grid, dtype: np.dtype[Any]
) -> dict[int, NDArray[Any]]:
    """Return a row of tiles by left pixel, without their cells; DataError where two patches differ."""
    made: dict[int, tuple[Patch, NDArray[Any]]] = {}
    for top, left, patch in in_reach:
        lc, dfc = patch.lc, patch.dfc
        layers: dict[str, NDArray[Any]] = {"s2": patch.s2, "s1": patch.s1}
        layers |= {} if lc is None else {"igbp": lc[:1], "lccs": lc[1:]}
        layers |= {} if dfc is None else {"dfc": dfc[None]}
        for west in range(left, left + grid.size[1], grid.tile):
            record: NDArray[Any] = np.zeros((), dtype)
            for name, layer in layers.items():
                record[name] = layer[:, north - top :, west - left :][:, : grid.tile, : grid.tile]
            first, stored = made.setdefault(west, (patch, record))
            if stored.tobytes() != record.tobytes():  # bit for bit: -0.0 is not 0.0
                n = {name: int((_bits(stored[name]) != _bits(record[name])).sum()) for name in layers}
                found = " and ".join(f"{count} different {name} values" for name, count in n.items() if count)
                expected = "the same pixels, bit for bit, where they overlap"
                do = "One of the two is damaged: fetch both again, or leave out the wrong one."
                where = f"{first.name} and {patch.name}"
                raise DataError(where, found=f"{found} in a tile", expected=expected, do=do)
    return {west: record for west, (_, record) in sorted(made.items())}


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"u{values.dtype.itemsize}")


def _cell_numbers(grid: _Grid) -> tuple[int, int, int]:
    """Return row and column of the first coarse cell of a scene, and its number of columns: cells on its border."""
    height, width = grid.shape
    strips = [(0, 0, 1, width), (height - 1, 0, 1, width), (0, 0, height, 1), (0, width - 1, height, 1)]
    cells = [modis_cells(grid.transform @ Affine.translation(*at[::-1]), grid.crs, (n, m)) for *at, n, m in strips]
    border = np.hstack([np.reshape(pair, (2, -1)) for pair in cells])
    (row, col), (n_rows, n_cols) = border.min(axis=1).tolist(), (np.ptp(border, axis=1) + 1).tolist()
    if n_rows * n_cols > 65_536:  # two bytes per pixel
        found, expected = f"{n_rows} x {n_cols} coarse cells", "at most 65,536 in a scene (SEN12MS: some 10,000)"
        raise _off_grid(grid.patches[0][2]["s1"].iloc[0], found, expected)
    return row, col, n_cols
