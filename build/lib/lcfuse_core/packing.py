"""
Packing: a scene of SEN12MS put together again from its patches, so that training can read any window of it.

Patches of a scene overlap by half, so the files hold most pixels up to four times. A packed scene holds them once,
in tiles (`tiles`), with the coarse cell of each pixel beside the labels. Nothing is lost: where patches overlap they
must agree to the bit, and `PackedScene.patch` gives back each as `scenes.read_patch` read it. That is also the best
check there is of a pixel inside a file: a flipped bit is seen wherever a neighbour holds the same pixel.

A packed scene is two files, which `packs` reads: `<scene_id>.tiles` with the pixels, `<scene_id>.json` with what is
where. The second is written last, so that a scene that is not finished is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from lcfuse_core.cells import modis_cells
from lcfuse_core.errors import DataError, DiskError, GridError, LcfuseError
from lcfuse_core.layers import KINDS, part_transform
from lcfuse_core.mosaic import Layout, Place, find_layout, tiles_of
from lcfuse_core.packs import FORMAT, read_record, seal
from lcfuse_core.scenes import Patch, Report, iter_patches
from lcfuse_core.tiles import KINDS as CHUNK_KINDS
from lcfuse_core.tiles import TileWriter, disk_error

Pieces = dict[str, NDArray[Any]]
"""The layers of one tile by kind, (bands, T, T) each."""


@dataclass
class PackReport(Report):
    """What became of the patches (see `scenes.Report`), and of the scenes."""

    packed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{len(self.packed)} scenes packed, {len(self.kept)} were there, {len(self.refused)} refused"
        return "\n".join([head, *(f"  refused {name}: {why}" for name, why in self.refused), super().__str__()])


def pack(table: pd.DataFrame, out: str | os.PathLike[str], *, progress: bool = False) -> PackReport:
    """
    Pack every scene of an index of complete patches (`scenes.complete`) into the folder *out*.

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
