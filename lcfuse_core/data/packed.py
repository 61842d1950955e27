"""
Packed scenes: the patches of a scene joined, so that each pixel is stored once and crops are read fast.

Patches of SEN12MS overlap by half, so the files hold most pixels up to four times. In a packed scene `<scene_id>.npy`
has one record per square tile with all layers of the tile, uncompressed, and `<scene_id>.json` has the georeference,
the patches, and position and CRC-32 of each tile. Where patches overlap they agree bit for bit, so `layer` returns
each as it was read. `packing.pack` writes packed scenes; `patches.index` lists the patches in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from lcfuse_core import _runtime
from lcfuse_core.data.files import Layer
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError

FORMAT = "lcfuse packed scene, 2"
"""The `format` of the JSON file of a packed scene; JSON files without it are not packed scenes."""

_LAYERS = {
    "s1": ("<f4", 2), "s2": ("<u2", 13), "cells": ("<u2", 1), "igbp": ("u1", 1), "lccs": ("u1", 3), "dfc": ("u1", 1),
}  # fmt: skip
"""Type and bands of each layer of a tile. The first layer of lc is stored apart because training reads only that."""

STORED = {"s1": ("s1",), "s2": ("s2",), "lc": ("igbp", "lccs"), "dfc": ("dfc",)}
"""The layers of a tile that hold each kind of file."""

_REPACK = "Delete it and pack the scene again."


def packed_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the `.json` files of the packed scenes in a folder, sorted; files of any other kind are not listed."""
    return [path for path in sorted(Path(folder).glob("*.json")) if _is_record(path)]


def _is_record(path: Path) -> bool:
    """Return whether a JSON file describes a packed scene; one that cannot be read does if there are pixels beside."""
    try:
        content = json.loads(_runtime.read_document(path, "a packed scene"))
    except (ValueError, LcfuseError):
        return path.with_suffix(".npy").exists()
    return isinstance(content, dict) and str(content.get("format", "")).startswith(FORMAT.split(",")[0])


def digest_of(value: Any) -> str:
    """Return a SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tile_type(layers: Iterable[str], side: int) -> np.dtype[Any]:
    """Return the type of the record of a tile: one field (bands, side, side) per layer."""
    return np.dtype([(name, dtype, (n, side, side)) for name, (dtype, n) in _LAYERS.items() if name in layers])


def open_scene(path: str) -> PackedScene:
    """Return the packed scene of a `.json` file, opened once per process unless it was packed again."""
    return _open_scene(path, os.stat(path).st_mtime_ns if os.path.isfile(path) else 0)


@lru_cache(maxsize=300)  # all scenes of SEN12MS are 252
def _open_scene(path: str, _: int) -> PackedScene:
    return PackedScene(path)


class PackedScene:
    """
    One packed scene of H x W pixels of 10 m; parts of it may be covered by no patch.

    Parameters
    ----------
    path : path
        Its `.json` file; the `.npy` file lies beside it.

    Attributes
    ----------
    scene_id, crs, transform, shape
        Name, georeference, and size in pixels (H, W).
    digest : str
        SHA-256 of its description, which holds a CRC-32 of each tile.
    names : list of str
        The patches that the scene was joined from, north to south.
    tile : int
        Side of a tile in pixels.
    layers : dict
        Memory-mapped tiles by layer, (n, bands, tile, tile).

    Raises
    ------
    MissingDataError
        If one of the two files is missing.
    DataError
        If the description is damaged, or the pixels do not have the size that it states.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        record = _read_record(self.path)
        self.digest = digest_of({name: value for name, value in record.items() if name != "source"})
        self.scene_id: str = record["scene_id"]
        self.source: str = record["source"]  # a digest of names, sizes and times of the files it was packed from
        self.crs, self.transform = CRS.from_wkt(record["crs"]), Affine(*record["transform"])
        self.shape: tuple[int, int] = tuple(record["size"])
        self.tile: int = record["tile"]  # side of a tile in pixels
        self._patches = {patch["name"]: patch for patch in record["patches"]}
        self.names = list(self._patches)  # of the patches, north to south
        self._tiles: list[tuple[int, int, int]] = record["tiles"]  # row, column, CRC-32
        self._records = _mapped(self.path.with_suffix(".npy"), tile_type(record["layers"], self.tile), len(self._tiles))
        self.layers = {name: self._records[name] for name in record["layers"]}  # (n, bands, tile, tile)
        self._number = {(row, col): number for number, (row, col, _) in enumerate(self._tiles)}

    def window_of(self, name: str) -> tuple[int, int, int, int]:
        """Return row, column, rows and columns of a patch in the scene. Raises ParameterError on an unknown name."""
        if name not in self._patches:
            raise ParameterError(name, found="no such patch", expected=f"one of {self.scene_id}", do="See `names`.")
        row, col, rows, cols = self._patches[name]["window"]
        return row, col, rows, cols

    def layer(self, name: str, kind: str) -> Layer:
        """Return what `files.read_layer` read of that kind of a patch: pixels, CRS, transform and repairs."""
        record, window = self._patches[name], self.window_of(name)
        bands = [_LAYERS[layer][1] for layer in STORED[kind]]
        out = np.empty((sum(bands), *window[2:]), _LAYERS[STORED[kind][0]][0])
        self.fill(dict(zip(STORED[kind], np.split(out, np.cumsum(bands)[:-1]), strict=True)), *window)
        return Layer(out, self.crs, Affine(*record["transform"]), tuple(record["repairs"]) if kind == "s2" else ())

    def fill(self, out: Mapping[str, NDArray[Any]], row: int, col: int, rows: int, cols: int) -> None:
        """
        Copy a window into the arrays of *out*: layer -> array or view of shape (bands, rows, cols).

        Raises ParameterError if a part of the window is covered by no patch; `verify` finds damage.
        """
        side, layers = self.tile, [(self.layers[name], array) for name, array in out.items()]
        for north in range(row - row % side, row + rows, side):
            top, bottom = max(row, north), min(row + rows, north + side)
            for west in range(col - col % side, col + cols, side):
                left, right = max(col, west), min(col + cols, west + side)
                number = self._number.get((north // side, west // side))
                if number is None:
                    found = f"rows {row}..{row + rows}, columns {col}..{col + cols}"
                    expected, do = f"a window of {self.shape} pixels that patches cover", "Choose another window."
                    raise ParameterError(self.scene_id, found=found, expected=expected, do=do)
                for tiles, array in layers:
                    part = tiles[number, :, top - north : bottom - north, left - west : right - west]
                    array[:, top - row : bottom - row, left - col : right - col] = part

    def verify(self) -> list[str]:
        """Read every byte and return a sentence for each damaged tile; an empty list if there is none."""
        return [
            f"{self.path.with_suffix('.npy')}: found a wrong checksum of the tile in row {row}, column {col}, "
            f"expected CRC-32 {crc:08x}. The disk or a copy has damaged it. {_REPACK}"
            for number, (row, col, crc) in enumerate(self._tiles)
            if zlib.crc32(self._records[number].tobytes()) != crc
        ]


def _read_record(path: Path) -> dict[str, Any]:
    """Return the description of a packed scene; DataError if it is damaged or of another format."""
    try:
        content = json.loads(_runtime.read_document(path, "a packed scene"))
        if content["format"] == FORMAT and content["sha256"] == digest_of(content["scene"]):
            scene: dict[str, Any] = content["scene"]
            return scene
        found = "a damaged description" if content["format"] == FORMAT else f"format {content['format']!r}"
    except (ValueError, KeyError, TypeError, RecursionError):
        found = "a damaged description"
    raise DataError(path, found=found, expected=f"format {FORMAT!r}", do=_REPACK)


def _mapped(path: Path, dtype: np.dtype[Any], n_tiles: int) -> NDArray[Any]:
    """Return the tiles in a file, mapped into memory. Raises as `PackedScene`."""
    expected = f"{n_tiles} tiles of {dtype.itemsize:,} bytes"
    if not path.is_file():
        raise MissingDataError(path, found="no such file", expected=expected, do=_REPACK)
    size = path.stat().st_size
    try:
        mapped = np.load(path, mmap_mode="r")
        is_whole = (mapped.dtype, mapped.shape, mapped.offset + mapped.nbytes) == (dtype, (n_tiles,), size)
    except (ValueError, OSError, EOFError, SyntaxError, TokenError):  # a damaged header
        is_whole = False
    if not is_whole:
        raise DataError(path, found=f"{size:,} bytes that do not fit", expected=expected, do=_REPACK)
    return np.asarray(mapped)  # as a plain array, of which slices cost less
