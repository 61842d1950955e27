"""
Packed scenes: any window of a scene, its patches as they were, and training crops at any offset.

`packing` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from affine import Affine
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rasterio.crs import CRS
from torch import Tensor

from lcfuse_core.data.cells import GRID_COLS
from lcfuse_core.data.files import part_transform
from lcfuse_core.data.legends import DFC2020, IGBP, IGNORE, SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import (
    LABEL_KINDS,
    N_S1,
    N_S2,
    Crops,
    PatchSource,
    Place,
    check_labels,
    class_counts,
    label_index,
)
from lcfuse_core.data.tiles import REPACK, Chunk, TileReader
from lcfuse_core.errors import DataError, MissingDataError, ParameterError

FORMAT = 1
"""Version of the files; raised when their layout changes."""


def seal(record: dict[str, Any]) -> str:
    """A record as JSON, with its own SHA-256."""
    return json.dumps({"sha256": _digest(record), "record": record})


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a packed scene; DataError when it is damaged or of another format."""
    try:
        sealed = json.loads(Path(path).read_text(encoding="utf-8"))
        is_whole = sealed["sha256"] == _digest(sealed["record"])
    except FileNotFoundError:
        do = "Pack the scene first (packing.pack)."
        raise MissingDataError(path, found="no such file", expected="a packed scene", do=do) from None
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise DataError(path, found="a damaged record", expected="a packed scene", do=REPACK)
    record: dict[str, Any] = sealed["record"]
    if record["format"] != FORMAT:
        raise DataError(path, found=f"format {record['format']}", expected=f"format {FORMAT}", do=REPACK)
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class PackedScene:
    """
    One packed scene of H x W pixels of 10 m; parts of it may be covered by no patch.

    path : its `.json` file; the `.tiles` lie beside it
    scene_id, crs, transform, shape : what it is and where
    names : of its patches
    digest : SHA-256 of its record, and so of its pixels
    covered : bool (rows, cols), which of its tiles of `tile` x `tile` pixels hold pixels

    Raises MissingDataError when a file is not there, DataError when one is damaged (see `tiles.TileReader`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        record = read_record(path)
        self.digest = _digest(record)
        self.scene_id: str = record["scene_id"]
        self.crs, self.transform = CRS.from_wkt(record["crs"]), Affine(*record["transform"])
        self.shape: tuple[int, int] = tuple(record["size"])
        self.tile: int = record["tile"]
        chunks = {kind: [Chunk(*place) for place in places] for kind, places in record["chunks"].items()}
        grid = self.shape[0] // self.tile, self.shape[1] // self.tile
        self.tiles = TileReader(self.path.with_suffix(".tiles"), chunks, record["n_bytes"], self.tile, grid)
        self.covered = self.tiles.has("s1")
        self._patches = {patch["name"]: patch for patch in record["patches"]}
        self._cells = record["cells"]

    def __reduce__(self) -> tuple[type[PackedScene], tuple[Path]]:
        # A loader's worker opens the file itself; the mapped pixels do not travel.
        return PackedScene, (self.path,)

    @property
    def names(self) -> list[str]:
        """Names of the patches that the scene was put together from, north to south."""
        return list(self._patches)

    def window_of(self, name: str) -> tuple[int, int, int, int]:
        """Where a patch lies in the scene: row, column, rows, columns. ParameterError when it is not of the scene."""
        if name not in self._patches:
            raise ParameterError(name, found="no such patch", expected=f"one of {self.scene_id}", do="See `names`.")
        row, col, rows, cols = self._patches[name]["window"]
        return row, col, rows, cols

    def patch(self, name: str) -> Patch:
        """The patch of that name, equal to what `patches.read_patch` read: pixels, CRS, transform and repairs."""
        window, record = self.window_of(name), self._patches[name]
        return self._patch(name, window, Affine(*record["transform"]), tuple(record["repairs"]))

    def read(self, row: int, col: int, rows: int, cols: int) -> Patch:
        """
        Any window, as a patch: new arrays of *rows* x *cols* pixels from *row*, *col*.

        Raises ParameterError when a part of it lies outside the scene or is covered by no patch.
        """
        self._check_window(row, col, rows, cols)
        shifted = part_transform(self.transform, row, col)
        return self._patch(f"{self.scene_id} [{row}:{row + rows}, {col}:{col + cols}]", (row, col, rows, cols), shifted)

    def _patch(
        self, name: str, window: tuple[int, int, int, int], transform: Affine, repairs: tuple[str, ...] = ()
    ) -> Patch:
        layers = {kind: self.tiles.window(kind, *window) for kind in self.tiles.kinds if kind != "cells"}
        lc = np.concatenate([layers["igbp"], layers["lccs"]]) if "igbp" in layers else None
        dfc = layers["dfc"][0] if "dfc" in layers else None
        return Patch(name, layers["s1"], layers["s2"], lc, dfc, self.crs, transform, repairs)

    def cells(self, row: int, col: int, rows: int, cols: int) -> NDArray[np.int32]:
        """Coarse cell of each pixel of a window, int32 (rows, cols): a number within the scene; see `cell_keys`."""
        self._check_window(row, col, rows, cols)
        return self.tiles.window("cells", row, col, rows, cols)[0].astype(np.int32)

    def cell_keys(self, numbers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Place of those cells in the global MODIS grid (row * GRID_COLS + col), as `cells.cell_ids` has them."""
        row, col = np.divmod(numbers.astype(np.int64), self._cells["n_cols"])
        return (row + self._cells["row"]) * GRID_COLS + col + self._cells["col"]

    def is_covered(self, row: int, col: int, rows: int, cols: int) -> bool:
        """Whether every pixel of a window inside the scene is there."""
        side = self.tile
        part = self.covered[row // side : (row + rows - 1) // side + 1, col // side : (col + cols - 1) // side + 1]
        return bool(part.all())

    def _check_window(self, row: int, col: int, rows: int, cols: int) -> None:
        is_inside = 0 <= row < row + rows <= self.shape[0] and 0 <= col < col + cols <= self.shape[1]
        if not is_inside or not self.is_covered(row, col, rows, cols):
            found = f"rows {row}..{row + rows}, columns {col}..{col + cols}"
            expected = f"a window inside {self.shape} pixels that patches cover (see `covered`)"
            raise ParameterError(self.scene_id, found=found, expected=expected, do="Choose another window.")

    def n_places(self, size: int) -> int:
        """Places where a square of *size* pixels lies inside the scene, covered or not; 0 when none is covered."""
        rows, cols = self.shape[0] - size + 1, self.shape[1] - size + 1
        whole = -(-size // self.tile)
        if min(rows, cols) < 1 or min(self.covered.shape) < whole:
            return 0
        # A covered square holds a whole block of covered tiles, and the other way round.
        blocks = sliding_window_view(self.covered, (whole, whole)).all(axis=(2, 3))
        return rows * cols if blocks.any() else 0

    def verify(self) -> list[str]:
        """What is damaged, in words; reads every byte. An empty list says that all is well."""
        return self.tiles.damaged()


class PackedScenes(PatchSource):
    """
    Packed scenes to train from: as `patches.PatchStack`, but on disk, and with crops at any offset of a scene.

    source : the folder of packed scenes, or a list of their `.json` files
    labels : "modis" or "fine", as for `patches.PatchStack`
    only : scene ids to take; what is held out is not even opened

    `len` is the number of patches that the scenes were put together from. Raises MissingDataError when there is no
    scene, one of *only* is not there, or a scene has no such labels; DataError when one is damaged.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        labels: str = "modis",
        *,
        only: Iterable[str] | None = None,
    ) -> None:
        check_labels(labels)
        self.scenes = [PackedScene(path) for path in _paths(source, only)]
        self.labels = labels
        self._kind, self._classes = _class_table(labels)
        for scene in self.scenes:
            if self._kind not in scene.tiles.kinds:
                found, expected = f"{', '.join(scene.tiles.kinds)}", f"{self._kind}, for {labels} labels"
                raise MissingDataError(scene.path, found=found, expected=expected, do="Pack it with that layer.")

    def __len__(self) -> int:
        return sum(len(scene.names) for scene in self.scenes)

    def crops(self, n: int, size: int, generator: torch.Generator, *, turned: bool = True) -> Crops:
        """Return *n* random squares, upright unless *turned*; see `PatchSource.crops`."""
        return self.cut(self.places(n, size, generator, turned=turned), size)

    def places(self, n: int, size: int, generator: torch.Generator, *, turned: bool = True) -> list[Place]:
        """Draw positions (scene, row, column, symmetry); ParameterError if no scene holds such a square."""
        drawn = self._draw(n, size, generator)
        symmetries = torch.randint(8 if turned else 1, (n,), generator=generator).tolist()
        return [(*place, symmetry) for place, symmetry in zip(drawn, symmetries, strict=True)]

    def cut(self, places: Sequence[Place], size: int) -> Crops:
        """The squares of *size* pixels at these places."""
        n = len(places)
        s2, s1 = np.empty((n, N_S2, size, size), np.uint16), np.empty((n, N_S1, size, size), np.float32)
        codes, cells = np.empty((n, 1, size, size), np.uint8), np.empty((n, 1, size, size), np.uint16)
        for k, (number, row, col, symmetry) in enumerate(places):
            for kind, crops in (("s2", s2), ("s1", s1), (self._kind, codes), ("cells", cells)):
                self.scenes[number].tiles.window(kind, row, col, size, size, out=_turned(crops[k], symmetry))
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
        """SHA-256 of all that training can see, from the scenes' records: they hold a CRC-32 of every tile."""
        told = [self.labels, *(scene.digest for scene in self.scenes)]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def windows(self) -> Iterator[Crops]:
        """Yield every covered pixel once, tile by tile."""
        for number, scene in enumerate(self.scenes):
            for i, j in np.argwhere(scene.covered).tolist():
                crops = self.cut([(number, i * scene.tile, j * scene.tile, 0)], scene.tile)
                yield Crops(*(tensor[0] for tensor in crops))

    def class_counts(self, n_classes: int = len(SCORED)) -> Tensor:
        """Pixels of each class of the labels over all covered pixels, int64 (n_classes,), each counted once."""
        counts = torch.zeros(n_classes, dtype=torch.int64)
        for scene in self.scenes:
            for i, j in np.argwhere(scene.covered).tolist():
                counts += class_counts(self._classes[scene.tiles.read(self._kind, i, j)[0]], n_classes)
        return counts


def _turned(square: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """A view of *square* (..., H, W): what is written into it stands there as `patches.turn` would turn it."""
    upright = square[..., :: -1 if symmetry & 2 else 1, :: -1 if symmetry & 4 else 1]
    return upright.swapaxes(-1, -2) if symmetry & 1 else upright


def _class_table(labels: str) -> tuple[str, NDArray[np.uint8]]:
    """Kind of chunk that holds such labels, and the network class of each of its codes, uint8 (256,)."""
    kind, legend = ("dfc", DFC2020) if LABEL_KINDS[labels][-1] == "dfc" else ("igbp", IGBP)
    codes = np.array([0, *legend.codes], np.uint8)
    s2, s1 = np.zeros((N_S2, 1, len(codes)), np.uint16), np.zeros((N_S1, 1, len(codes)), np.float32)
    lc, dfc = (None, codes[None]) if kind == "dfc" else (codes[None, None], None)
    patch = Patch("all codes", s1, s2, lc, dfc)
    classes = np.full(256, IGNORE, np.uint8)  # other codes were refused when the scene was packed
    classes[codes] = label_index(patch, labels)[0]
    return kind, classes


def _paths(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], only: Iterable[str] | None) -> list[Path]:
    """Records of the scenes to take, in the order of their names."""
    if isinstance(source, (str, os.PathLike)):
        paths, where = sorted(Path(source).glob("*.json")), Path(source)
    else:
        paths, where = [Path(path) for path in source], Path("packed scenes")
    wanted = {path.stem for path in paths} if only is None else set(only)
    missing = sorted(wanted - {path.stem for path in paths})
    if missing or not wanted:
        found = f"no packed {', '.join(missing) or 'scene'}"
        raise MissingDataError(where, found=found, expected="packed scenes", do="Pack them first (packing.pack).")
    return [path for path in paths if path.stem in wanted]
