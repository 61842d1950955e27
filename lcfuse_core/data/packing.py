"""
Packing: a scene of SEN12MS put together again from its patches, so that training can read any window of it.

Patches of a scene overlap by half, so the files hold most pixels up to four times. A packed scene holds them once,
in tiles (`tiles`), with the coarse cell of each pixel beside the labels. Nothing is lost: where patches overlap they
must agree to the bit, and `PackedScene.patch` gives back each as `patches.read_patch` read it. That is also the best
check there is of a pixel inside a file: a flipped bit is seen wherever a neighbour holds the same pixel.

A packed scene is two files, which `packs` reads: `<scene_id>.tiles` with the pixels, `<scene_id>.json` with what is
where. The second is written last, so that a scene that is not finished is not there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from tqdm import tqdm

from lcfuse_core.data.cells import modis_cells
from lcfuse_core.data.files import GRID_TOLERANCE_PX, KINDS, part_transform, read_place
from lcfuse_core.data.packed import FORMAT, read_record, seal
from lcfuse_core.data.patches import Patch, Report, iter_patches, patch_name
from lcfuse_core.data.tiles import KINDS as CHUNK_KINDS
from lcfuse_core.data.tiles import TileWriter, disk_error
from lcfuse_core.errors import DataError, DiskError, GridError, LcfuseError

Pieces = dict[str, NDArray[Any]]
"""The layers of one tile by kind, (bands, T, T) each."""


@dataclass
class PackReport(Report):
    """What became of the patches (see `patches.Report`), and of the scenes."""

    packed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{len(self.packed)} scenes packed, {len(self.kept)} were there, {len(self.refused)} refused"
        return "\n".join([head, *(f"  refused {name}: {why}" for name, why in self.refused), super().__str__()])


def pack(table: pd.DataFrame, out: str | os.PathLike[str], *, progress: bool = False) -> PackReport:
    """
    Pack every scene of an index of complete patches (`patches.complete`) into the folder *out*.

    A scene that is there, of the same files, is kept: an interrupted call goes on where it was. A damaged patch is
    left out, a scene whose patches contradict each other is refused, and the report names both. The patches are
    only read, never changed or removed.

    Raises DiskError when the disk is full; the scenes finished before are kept.
    """
    report = PackReport()
    groups = table.groupby("scene_id", sort=True)
    for scene_id, rows in tqdm(groups, unit="scene", disable=not progress):
        try:
            is_new = pack_scene(rows, out, report)
        except DiskError:
            raise
        except LcfuseError as error:
            report.refused.append((str(scene_id), str(error)))
            continue
        (report.packed if is_new else report.kept).append(str(scene_id))
    return report


def pack_scene(rows: pd.DataFrame, out: str | os.PathLike[str], report: Report | None = None) -> bool:
    """
    Pack one scene; False when it was there already, of the same files.

    rows : its patches, from an index; every kind of file that all of them have is packed

    Raises GridError when the patches do not lie on one grid (or nowhere: the phase archives of DFC2020), DataError
    when two of them differ where they overlap or none can be read, DiskError when the disk is full.
    """
    report = Report() if report is None else report
    kinds = [kind for kind in KINDS if rows[kind].notna().all()]
    scene_id, out = str(rows["scene_id"].iloc[0]), Path(out)
    source = _fingerprint(rows, kinds)
    if _is_done(out / f"{scene_id}.json", source):
        return False
    layout = find_layout(rows, kinds, report)
    half_made = _make_room(out, layout, scene_id)
    try:
        with TileWriter(half_made / "tiles") as writer:
            patches = _write_tiles(layout, writer, report)
        record = _record(layout, patches, writer) | {"scene_id": scene_id, "source": source}
        (half_made / "json").write_text(seal(record), encoding="utf-8")
        for part in ("tiles", "json"):  # the record last
            os.replace(half_made / part, out / f"{scene_id}.{part}")
    except OSError as error:
        raise _as_disk_error(out, error) from None
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return True


def _as_disk_error(out: Path, error: OSError) -> OSError:
    """Errors of ours (a missing file, say) as they are, those of the system as a DiskError."""
    return error if isinstance(error, LcfuseError) else disk_error(out, error, 0)


def _fingerprint(rows: pd.DataFrame, kinds: list[str]) -> str:
    """Of names, sizes and times of the files: they tell whether a scene has to be packed again."""
    files = sorted(str(path) for kind in kinds for path in rows[kind])
    stats = [(os.path.basename(file), os.stat(file)) for file in files if os.path.isfile(file)]
    return _digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_done(path: Path, source: str) -> bool:
    """Whether the scene was packed from the same files; a record that cannot be read counts as none."""
    try:
        return path.exists() and path.with_suffix(".tiles").exists() and read_record(path)["source"] == source
    except DataError:
        return False


def _make_room(out: Path, layout: Layout, scene_id: str) -> Path:
    """A folder to write into; DiskError before anything is written, when the scene cannot fit."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
        half_made = Path(tempfile.mkdtemp(dir=out, prefix=f".{scene_id}-"))
    except OSError as error:
        raise _as_disk_error(out, error) from None
    tiles = {tile for place in layout.places for tile in tiles_of(place, layout.tile)}
    # What is compressed takes next to nothing.
    kinds = [kind for kind in CHUNK_KINDS.values() if not kind.is_compressed]
    need = len(tiles) * layout.tile**2 * sum(kind.bands * np.dtype(kind.dtype).itemsize for kind in kinds)
    if need > free:
        half_made.rmdir()
        found, expected = f"{free:,} bytes free", f"{need:,} bytes for {scene_id}"
        raise DiskError(out, found=found, expected=expected, do="Free some space or choose another disk.")
    return half_made


# Writing ------------------------------------------------------------------------------------------


def _write_tiles(layout: Layout, writer: TileWriter, report: Report) -> list[dict[str, Any]]:
    """
    All tiles of a scene, row by row; returns what is to be recorded of its patches.

    Only the patches that touch a row of tiles are in memory: two rows of them, 140 MB for a scene of SEN12MS.
    """
    corner, n_cols = _cell_corner(layout)
    records: list[dict[str, Any]] = []
    in_reach: list[tuple[Place, Patch]] = []
    waiting = list(layout.places)
    for i in range(layout.height // layout.tile):
        while waiting and waiting[0].top < (i + 1) * layout.tile:
            place = waiting.pop(0)
            for patch in iter_patches(place.row, report, layout.kinds):
                in_reach.append((place, patch))
                records.append(_patch_record(place, patch))
        in_reach = [(place, patch) for place, patch in in_reach if place.top + place.height > i * layout.tile]
        for j, (_, pieces) in sorted(_merge(in_reach, i, layout.tile).items()):
            for kind, piece in pieces.items():
                writer.add(kind, i, j, piece)
            transform = part_transform(layout.transform, i * layout.tile, j * layout.tile)
            row, col = modis_cells(transform, layout.crs, (layout.tile, layout.tile))
            writer.add("cells", i, j, (row - corner[0]) * n_cols + col - corner[1])
    if not records:
        report.check()
    return records


def _merge(in_reach: list[tuple[Place, Patch]], i: int, side: int) -> dict[int, tuple[Patch, Pieces]]:
    """The tiles of row *i*, by column, with the patch each came from; DataError where two patches differ."""
    merged: dict[int, tuple[Patch, Pieces]] = {}
    for place, patch in in_reach:
        for row, col in tiles_of(place, side):
            if row != i:
                continue
            pieces = _pieces(patch, row * side - place.top, col * side - place.left, side)
            owner, there = merged.setdefault(col, (patch, pieces))
            if owner is not patch:
                _check_same(owner, patch, there, pieces)
    return merged


def _pieces(patch: Patch, top: int, left: int, side: int) -> Pieces:
    """The part of each layer of a patch, views."""
    layers: Pieces = {"s2": patch.s2, "s1": patch.s1}
    if patch.lc is not None:
        layers |= {"igbp": patch.lc[:1], "lccs": patch.lc[1:]}
    if patch.dfc is not None:
        layers["dfc"] = patch.dfc[None]
    return {kind: layer[:, top : top + side, left : left + side] for kind, layer in layers.items()}


def _check_same(first: Patch, second: Patch, there: Pieces, pieces: Pieces) -> None:
    """DataError unless the same pixels hold the same bits, -0.0 and 0.0 apart."""
    for kind, piece in pieces.items():
        bits = f"u{piece.dtype.itemsize}"
        n = int((there[kind].view(bits) != piece.view(bits)).sum())
        if n:
            raise DataError(
                f"{first.name} and {second.name}",
                found=f"{n} different {kind} values where they overlap",
                expected="the same pixels, bit for bit",
                do="One of the two is damaged: fetch both again, or leave out the wrong one.",
            )


def _cell_corner(layout: Layout) -> tuple[tuple[int, int], int]:
    """
    Row and column of the first coarse cell of the scene, and the number of columns: seen along its border.

    Raises GridError when there are more cells than the two bytes of a pixel can number.
    """
    height, width = layout.height, layout.width
    strips = [((0, 0), (1, width)), ((height - 1, 0), (1, width)), ((0, 0), (height, 1)), ((0, width - 1), (height, 1))]
    places = [(part_transform(layout.transform, row, col), size) for (row, col), size in strips]
    cells = [modis_cells(transform, layout.crs, size) for transform, size in places]
    rows, cols = (np.concatenate([pair[axis].ravel() for pair in cells]) for axis in (0, 1))
    if np.ptp(rows) * np.ptp(cols) > 65_000:
        found, expected = f"{np.ptp(rows)} x {np.ptp(cols)} coarse cells", "at most 65,000 (SEN12MS: some 10,000)"
        do = "Pack its parts as scenes of their own."
        raise GridError(layout.places[0].row["s1"].iloc[0], found=found, expected=expected, do=do)
    return (int(rows.min()), int(cols.min())), int(np.ptp(cols)) + 1


def _patch_record(place: Place, patch: Patch) -> dict[str, Any]:
    """What it takes to give a patch back: name, place, its own transform to the last bit, repairs."""
    return {
        "name": patch.name,
        "window": [place.top, place.left, place.height, place.width],
        "transform": list(patch.transform or ())[:6],
        "repairs": list(patch.repairs),
    }


def _record(layout: Layout, patches: list[dict[str, Any]], writer: TileWriter) -> dict[str, Any]:
    """What the second file of a packed scene says."""
    corner, n_cols = _cell_corner(layout)
    return {
        "format": FORMAT,
        "crs": layout.crs.to_wkt(),
        "transform": list(layout.transform)[:6],
        "size": [layout.height, layout.width],
        "tile": layout.tile,
        "cells": {"row": corner[0], "col": corner[1], "n_cols": n_cols},
        "patches": patches,
        "n_bytes": writer.n_bytes,
        "chunks": writer.chunks,
    }


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
