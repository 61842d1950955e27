"""
Packed scenes: a scene of SEN12MS joined from its patches, from which training reads crops at any offset.

Patches of a scene overlap by half, so the files hold most pixels up to four times. A packed scene holds each pixel
once, beside the number of its coarse cell: `<scene_id>.npy` has one record per square tile with all layers of the
tile, uncompressed, and `<scene_id>.json` has the georeference, the patches, and place and CRC-32 of each tile. Nothing
is lost: where patches overlap they must agree bit for bit, and `PackedScene.patch` returns each as it was read.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from affine import Affine
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rasterio.crs import CRS

from lcfuse_core.data.files import part_transform
from lcfuse_core.data.legends import DFC2020, IGBP, IGNORE
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import (
    LABEL_KINDS,
    N_S1,
    N_S2,
    Crops,
    PatchSource,
    Place,
    check_labels,
    label_index,
)
from lcfuse_core.errors import DataError, MissingDataError, ParameterError

FORMAT = "lcfuse packed scene, 2"
"""The `format` of the JSON file of a packed scene; another file in the folder is not taken for one."""

_LAYERS = {
    "s1": ("<f4", 2), "s2": ("<u2", 13), "cells": ("<u2", 1), "igbp": ("u1", 1), "lccs": ("u1", 3), "dfc": ("u1", 1),
}  # fmt: skip
"""Type and bands of each layer of a tile. The first layer of lc is apart: training reads it alone."""

_REPACK = "Delete it and pack the scene again."


# Reading ------------------------------------------------------------------------------------------


def packed_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the `.json` files of the packed scenes in a folder, sorted; files of any other kind are not listed."""
    return [path for path in sorted(Path(folder).glob("*.json")) if _is_record(path)]


def _is_record(path: Path) -> bool:
    """Whether a JSON file describes a packed scene; one that cannot be read does if there are pixels beside it."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return path.with_suffix(".npy").exists()
    return isinstance(content, dict) and str(content.get("format", "")).startswith(FORMAT.split(",")[0])


def _read_record(path: Path) -> dict[str, Any]:
    """The description of a packed scene; DataError when it is damaged or of another format."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] == FORMAT and content["sha256"] == digest_of(content["scene"]):
            scene: dict[str, Any] = content["scene"]
            return scene
        found = "a damaged description" if content["format"] == FORMAT else f"format {content['format']!r}"
    except FileNotFoundError:
        do = "Pack the scene first (packed.pack)."
        raise MissingDataError(path, found="no such file", expected="a packed scene", do=do) from None
    except (ValueError, KeyError, TypeError):
        found = "a damaged description"
    raise DataError(path, found=found, expected=f"format {FORMAT!r}", do=_REPACK)


def digest_of(value: Any) -> str:
    """Return a SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tile_type(kinds: Iterable[str], side: int) -> np.dtype[Any]:
    """Return the type of the record of a tile: one field (bands, side, side) per layer."""
    return np.dtype([(kind, dtype, (n, side, side)) for kind, (dtype, n) in _LAYERS.items() if kind in kinds])


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
    tile : int
        Side of a tile in pixels.
    covered : ndarray of bool, shape (H / tile, W / tile)
        Which tiles hold pixels.
    digest : str
        SHA-256 of its description, which holds a CRC-32 of each tile.

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
        self.digest = digest_of(record)
        self.scene_id: str = record["scene_id"]
        self.source: str = record["source"]  # a digest of names, sizes and times of the files it was packed from
        self.crs, self.transform = CRS.from_wkt(record["crs"]), Affine(*record["transform"])
        self.shape: tuple[int, int] = tuple(record["size"])
        self.tile: int = record["tile"]
        self._patches = {patch["name"]: patch for patch in record["patches"]}
        self._tiles: list[tuple[int, int, int]] = record["tiles"]  # row, column, CRC-32
        self._records = _mapped(self.path.with_suffix(".npy"), tile_type(record["layers"], self.tile), len(self._tiles))
        self.layers = {kind: self._records[kind] for kind in record["layers"]}
        grid = self.shape[0] // self.tile, self.shape[1] // self.tile
        numbers = np.full(grid, len(self._tiles))  # of a tile that is not stored: an index out of range
        for number, (row, col, _) in enumerate(self._tiles):
            numbers[row, col] = number
        self.covered = numbers < len(self._tiles)
        self._numbers: list[list[int]] = numbers.tolist()
        self._is_whole = bool(self.covered.all())

    def __reduce__(self) -> tuple[type[PackedScene], tuple[Path]]:
        # A worker process opens the file itself; the mapped pixels are not sent.
        return PackedScene, (self.path,)

    @property
    def names(self) -> list[str]:
        """Names of the patches that the scene was joined from, north to south."""
        return list(self._patches)

    def window_of(self, name: str) -> tuple[int, int, int, int]:
        """Return row, column, rows and columns of a patch in the scene. Raises ParameterError on an unknown name."""
        if name not in self._patches:
            raise ParameterError(name, found="no such patch", expected=f"one of {self.scene_id}", do="See `names`.")
        row, col, rows, cols = self._patches[name]["window"]
        return row, col, rows, cols

    def patch(self, name: str) -> Patch:
        """Return the patch of that name, equal to what `read_patch` read: pixels, CRS, transform and repairs."""
        stored = self.read(*self.window_of(name))
        record = self._patches[name]
        return replace(stored, name=name, transform=Affine(*record["transform"]), repairs=tuple(record["repairs"]))

    def read(self, row: int, col: int, rows: int, cols: int) -> Patch:
        """
        Return any window of *rows* x *cols* pixels from *row*, *col* on, as a patch with arrays of its own.

        Raises ParameterError if a part of it lies outside the scene or is covered by no patch.
        """
        layers = {kind: self._window(kind, row, col, rows, cols) for kind in self.layers if kind != "cells"}
        name, place = f"{self.scene_id} [{row}:{row + rows}, {col}:{col + cols}]", (self.transform, row, col)
        lc = np.concatenate([layers["igbp"], layers["lccs"]]) if "igbp" in layers else None
        dfc = layers["dfc"][0] if "dfc" in layers else None
        return Patch(name, layers["s1"], layers["s2"], lc, dfc, self.crs, part_transform(*place))

    def cells(self, row: int, col: int, rows: int, cols: int) -> NDArray[np.int32]:
        """Return the coarse cell of each pixel of a window, int32 (rows, cols), numbered within the scene."""
        return self._window("cells", row, col, rows, cols)[0].astype(np.int32)

    def _window(self, kind: str, row: int, col: int, rows: int, cols: int) -> NDArray[Any]:
        is_inside = 0 <= row < row + rows <= self.shape[0] and 0 <= col < col + cols <= self.shape[1]
        if not is_inside or not self.is_covered(row, col, rows, cols):
            found = f"rows {row}..{row + rows}, columns {col}..{col + cols}"
            expected = f"a window inside {self.shape} pixels that patches cover (see `covered`)"
            raise ParameterError(self.scene_id, found=found, expected=expected, do="Choose another window.")
        dtype, bands = _LAYERS[kind]
        out = np.empty((bands, rows, cols), dtype)
        self.fill({kind: out}, row, col, rows, cols)
        return out

    def fill(self, out: Mapping[str, NDArray[Any]], row: int, col: int, rows: int, cols: int) -> None:
        """
        Copy a covered window into the arrays of *out*: layer -> array or view of shape (bands, rows, cols).

        Nothing is checked: see `is_covered`, and `verify` for damage.
        """
        side = self.tile
        for i in range(row // side, (row + rows - 1) // side + 1):
            top, bottom = max(row, i * side), min(row + rows, (i + 1) * side)
            for j in range(col // side, (col + cols - 1) // side + 1):
                left, right = max(col, j * side), min(col + cols, (j + 1) * side)
                number = self._numbers[i][j]
                part = np.s_[number, :, top - i * side : bottom - i * side, left - j * side : right - j * side]
                to = np.s_[:, top - row : bottom - row, left - col : right - col]
                for kind, array in out.items():
                    array[to] = self.layers[kind][part]

    def is_covered(self, row: int, col: int, rows: int, cols: int) -> bool:
        """Return whether every pixel of a window inside the scene is stored."""
        if self._is_whole:
            return True
        side = self.tile
        part = self.covered[row // side : (row + rows - 1) // side + 1, col // side : (col + cols - 1) // side + 1]
        return bool(part.all())

    def n_places(self, size: int) -> int:
        """Return at how many places a square of *size* pixels lies inside the scene; 0 when none is covered."""
        rows, cols = self.shape[0] - size + 1, self.shape[1] - size + 1
        whole = -(-size // self.tile)
        if min(rows, cols) < 1 or min(self.covered.shape) < whole:
            return 0
        # There is a covered square where, and only where, a whole block of tiles is covered.
        blocks = sliding_window_view(self.covered, (whole, whole)).all(axis=(2, 3))
        return rows * cols if blocks.any() else 0

    def verify(self) -> list[str]:
        """Read every byte and return a sentence for each damaged tile; an empty list if there is none."""
        return [
            f"{self.path.with_suffix('.npy')}: found a wrong checksum of the tile in row {row}, column {col}, "
            f"expected CRC-32 {crc:08x}. The disk or a copy has damaged it. {_REPACK}"
            for number, (row, col, crc) in enumerate(self._tiles)
            if zlib.crc32(self._records[number].tobytes()) != crc
        ]


def _mapped(path: Path, dtype: np.dtype[Any], n_tiles: int) -> NDArray[Any]:
    """The tiles in a file, mapped into memory. Raises as `PackedScene`."""
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


class PackedScenes(PatchSource):
    """
    Packed scenes to train from: as `PatchStack`, but on disk, and with crops at any offset of a scene.

    Parameters
    ----------
    source : path or iterable of paths
        The folder of packed scenes, or their `.json` files.
    labels : str
        Which labels the crops have, as for `PatchStack`.
    only : iterable of str, optional
        Ids of the scenes to use; files of other scenes are not opened.

    Raises
    ------
    MissingDataError
        If there is no scene, one of *only* is missing, or a scene has no such labels.
    DataError
        If a scene is damaged.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        labels: str = "modis",
        *,
        only: Iterable[str] | None = None,
    ) -> None:
        check_labels(labels)
        self.scenes = [PackedScene(path) for path in _chosen_paths(source, only)]
        self.labels = labels
        self._kind, self._classes = _class_table(labels)
        for scene in self.scenes:
            if self._kind not in scene.layers:
                found, expected = f"{', '.join(scene.layers)}", f"{self._kind}, for {labels} labels"
                raise MissingDataError(scene.path, found=found, expected=expected, do="Pack it with that layer.")

    def __len__(self) -> int:
        """Return the number of patches that the scenes were joined from."""
        return sum(len(scene.names) for scene in self.scenes)

    def crops(self, n: int, size: int, generator: torch.Generator, *, turned: bool = True) -> Crops:
        """
        Return *n* random squares of *size* pixels, each in one of its eight flips and rotations if *turned*.

        Every covered square is equally likely, whatever the size of its scene. The same state of *generator* (on the
        CPU) gives the same crops. Raises ParameterError if no scene holds such a square.
        """
        return self.cut(self.places(n, size, generator, turned=turned), size)

    def places(self, n: int, size: int, generator: torch.Generator, *, turned: bool = True) -> list[Place]:
        """Return the places of such squares: scene, row, column and symmetry of each."""
        drawn = self._draw(n, size, generator)
        symmetries = torch.randint(8 if turned else 1, (n,), generator=generator).tolist()
        return [(*place, symmetry) for place, symmetry in zip(drawn, symmetries, strict=True)]

    def cut(self, places: Sequence[Place], size: int) -> Crops:
        """Return the squares of *size* pixels at these places; cells are numbered within their scene."""
        n = len(places)
        s2, s1 = np.empty((n, N_S2, size, size), np.uint16), np.empty((n, N_S1, size, size), np.float32)
        codes, cells = np.empty((n, 1, size, size), np.uint8), np.empty((n, 1, size, size), np.uint16)
        arrays: dict[str, NDArray[Any]] = {"s2": s2, "s1": s1, self._kind: codes, "cells": cells}
        for k, (number, row, col, symmetry) in enumerate(places):
            out = {kind: _turned(array[k], symmetry) for kind, array in arrays.items()}
            self.scenes[number].fill(out, row, col, size, size)
        labels, numbers = np.take(self._classes, codes[:, 0]), cells[:, 0].astype(np.int32)
        return Crops(*(torch.from_numpy(array) for array in (s2, s1, labels, numbers)))

    def _draw(self, n: int, size: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
        """Scene, row and column of *n* squares: uniform over all places, drawn anew where a part is missing."""
        n_places = [scene.n_places(size) if size > 0 else 0 for scene in self.scenes]
        ends = np.cumsum(n_places)
        if not ends[-1]:
            expected = "a size for which some scene has a covered square"
            raise ParameterError("crop size", found=f"{size}", expected=expected, do="Take smaller crops.")
        drawn: list[tuple[int, int, int]] = []
        while len(drawn) < n:
            for place in torch.randint(int(ends[-1]), (n - len(drawn),), generator=generator).tolist():
                number = int(np.searchsorted(ends, place, side="right"))
                scene = self.scenes[number]
                row, col = divmod(place - int(ends[number]) + n_places[number], scene.shape[1] - size + 1)
                if scene.is_covered(row, col, size, size):
                    drawn.append((number, row, col))
        return drawn

    def digest(self) -> str:
        """Return a SHA-256 of all that training can read, from the descriptions of the scenes and the labels."""
        return hashlib.sha256("\n".join([self.labels, *(scene.digest for scene in self.scenes)]).encode()).hexdigest()

    def windows(self) -> Iterator[Crops]:
        """Yield every covered pixel once, tile by tile."""
        for number, scene in enumerate(self.scenes):
            for i, j in np.argwhere(scene.covered).tolist():
                crops = self.cut([(number, i * scene.tile, j * scene.tile, 0)], scene.tile)
                yield Crops(*(tensor[0] for tensor in crops))


def _turned(square: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """A view of *square* (..., H, W) in which an array is stored as `source.turn` would turn it."""
    upright = square[..., :: -1 if symmetry & 2 else 1, :: -1 if symmetry & 4 else 1]
    return upright.swapaxes(-1, -2) if symmetry & 1 else upright


def _class_table(labels: str) -> tuple[str, NDArray[np.uint8]]:
    """The layer that holds such labels, and the network class of each of its codes, uint8 (256,)."""
    kind, legend = ("dfc", DFC2020) if LABEL_KINDS[labels][-1] == "dfc" else ("igbp", IGBP)
    codes = np.array([0, *legend.codes], np.uint8)
    s2, s1 = np.zeros((N_S2, 1, len(codes)), np.uint16), np.zeros((N_S1, 1, len(codes)), np.float32)
    lc, dfc = (None, codes[None]) if kind == "dfc" else (codes[None, None], None)
    classes = np.full(256, IGNORE, np.uint8)  # other codes were refused when the scene was packed
    classes[codes] = label_index(Patch("all codes", s1, s2, lc, dfc), labels)[0]
    return kind, classes


def _chosen_paths(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], only: Iterable[str] | None
) -> list[Path]:
    """The `.json` files of the scenes to use."""
    is_folder = isinstance(source, str | os.PathLike)
    paths = packed_paths(source) if is_folder else [Path(path) for path in source]  # type: ignore[arg-type, union-attr]
    wanted = {path.stem for path in paths} if only is None else set(only)
    missing = sorted(wanted - {path.stem for path in paths})
    if missing or not wanted:
        found, where = f"no packed {', '.join(missing) or 'scene'}", source if is_folder else "packed scenes"
        do = "Pack them first (packed.pack, or `data pack`)."
        raise MissingDataError(where, found=found, expected="packed scenes", do=do)  # type: ignore[arg-type]
    return [path for path in paths if path.stem in wanted]
