"""
Tiles of a scene in one file: written once, read anywhere, every byte under a checksum.

A chunk is one kind of layer in one square tile. What training reads lies as it is and is memory-mapped: images hardly
compress, and a crop is then a copy of a few rows. The other layers are compressed (zstd) and shrink to a few per cent.
`benchmarks/README.md` has the figures that decided this.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lcfuse_core.errors import DataError, DiskError, MissingDataError

ALIGNMENT = 64
"""Chunks begin at multiples of this many bytes, so that their numbers can be read in place."""

REPACK = "Delete it and pack the scene again."


@dataclass(frozen=True)
class Kind:
    """What a chunk of this kind holds: *bands* layers of *dtype*, compressed or as they are."""

    bands: int
    dtype: str
    is_compressed: bool


KINDS = {
    "s2": Kind(13, "<u2", is_compressed=False),
    "s1": Kind(2, "<f4", is_compressed=False),
    "igbp": Kind(1, "<u1", is_compressed=False),
    "cells": Kind(1, "<u2", is_compressed=False),
    "lccs": Kind(3, "<u1", is_compressed=True),
    "dfc": Kind(1, "<u1", is_compressed=True),
}
"""The first layer of lc apart from the other three: training reads it alone, and often."""


class Chunk(NamedTuple):
    """Where the tile (row, col) of a kind lies in the file, in bytes, and the CRC-32 of those bytes."""

    row: int
    col: int
    start: int
    length: int
    crc: int


class TileWriter:
    """
    Writes chunks one after the other into a new file, and remembers where they are.

    Use it as a context manager. Raises DiskError when the disk is full or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.chunks: dict[str, list[Chunk]] = {}
        self.n_bytes = 0
        self._codec = pa.Codec("zstd")
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__

    def add(self, kind: str, row: int, col: int, values: NDArray[Any]) -> None:
        """Add the tile (row, col) of a kind out of `KINDS`: *values* of shape (bands, T, T), or (T, T) for one."""
        data: bytes = np.ascontiguousarray(values, KINDS[kind].dtype).tobytes()
        if KINDS[kind].is_compressed:
            data = self._codec.compress(data, asbytes=True)
        gap = -self.n_bytes % ALIGNMENT
        self._write(bytes(gap) + data)
        chunk = Chunk(row, col, self.n_bytes + gap, len(data), zlib.crc32(data))
        self.chunks.setdefault(kind, []).append(chunk)
        self.n_bytes += gap + len(data)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise disk_error(self.path, error, self.n_bytes + len(data)) from None

    def __enter__(self) -> TileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Close the file, and bring it to the disk unless something went wrong anyway."""
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            if kind is None:
                raise disk_error(self.path, error, self.n_bytes) from None


def disk_error(path: Path, error: OSError, n_bytes: int) -> DiskError:
    """What a disk refused, in the words of a user."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DiskError(
        path,
        found=f"{error.strerror or error}" + (" (the disk is full)" if is_full else ""),
        expected=f"room for {n_bytes:,} bytes or more",
        do="Free some space or choose another disk, and call again: what was finished is kept.",
    )


class TileReader:
    """
    Reads tiles and windows of a file that `TileWriter` made.

    path : the file
    chunks : what is where, by kind
    n_bytes : size that the file must have
    tile : side of a tile in pixels
    grid : rows and columns of tiles

    A chunk is checked against its CRC-32 when it is first read. Raises DataError, naming the file and the tile, when
    it does not match; MissingDataError when there is no file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        chunks: dict[str, list[Chunk]],
        n_bytes: int,
        tile: int,
        grid: tuple[int, int],
    ) -> None:
        self.path, self.tile, self.grid = Path(path), tile, grid
        if not self.path.is_file():
            raise MissingDataError(path, found="no such file", expected="the pixels of a packed scene", do=REPACK)
        if self.path.stat().st_size != n_bytes:
            found = f"{self.path.stat().st_size:,} bytes"
            raise DataError(path, found=found, expected=f"{n_bytes:,} bytes", do=REPACK)
        self._bytes = np.asarray(np.memmap(self.path, np.uint8, "r"))
        self._codec = pa.Codec("zstd")
        self._places = {kind: self._table(places) for kind, places in chunks.items()}
        self._checked: set[tuple[str, int, int]] = set()
        self._shapes = {kind: (KINDS[kind].bands, tile, tile) for kind in chunks}

    def _table(self, places: list[Chunk]) -> list[list[Chunk | None]]:
        """The chunk of each tile of the grid, None where nothing is stored."""
        table: list[list[Chunk | None]] = [[None] * self.grid[1] for _ in range(self.grid[0])]
        for chunk in places:
            table[chunk.row][chunk.col] = chunk
        return table

    @property
    def kinds(self) -> list[str]:
        """The kinds of layers that are stored."""
        return list(self._places)

    def has(self, kind: str) -> NDArray[np.bool_]:
        """Which tiles of the grid are stored, bool (rows, cols)."""
        return np.array([[chunk is not None for chunk in row] for row in self._places[kind]])

    def read(self, kind: str, row: int, col: int) -> NDArray[Any]:
        """One tile, (bands, T, T), read-only; a view of the file where it is not compressed."""
        chunk, described, shape = self._places[kind][row][col], KINDS[kind], self._shapes[kind]
        if chunk is None:
            raise DataError(self.path, found=f"no {kind} tile at {row}, {col}", expected="one", do="Read elsewhere.")
        self._check(kind, chunk)
        if not described.is_compressed:
            return np.ndarray(shape, described.dtype, self._bytes, chunk.start)
        data = self._bytes[chunk.start : chunk.start + chunk.length]
        n_bytes = int(np.prod(shape)) * np.dtype(described.dtype).itemsize
        return np.frombuffer(self._codec.decompress(data, n_bytes), described.dtype).reshape(shape)

    def _check(self, kind: str, chunk: Chunk) -> None:
        """DataError unless the bytes of a chunk are those that were written; they are looked at once."""
        key = kind, chunk.row, chunk.col
        if key in self._checked:
            return
        if zlib.crc32(self._bytes[chunk.start : chunk.start + chunk.length].data) != chunk.crc:
            raise DataError(
                self.path,
                found=f"a wrong checksum of the {kind} tile in row {chunk.row}, column {chunk.col}",
                expected=f"CRC-32 {chunk.crc:08x}",
                do=f"The disk or a copy has damaged it. {REPACK}",
            )
        self._checked.add(key)

    def window(
        self, kind: str, row: int, col: int, rows: int, cols: int, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """
        Pixels of a window of the scene, (bands, rows, cols); all its tiles must be stored.

        out : where to put them, an array or view of that shape; by default a new array
        """
        if out is None:
            out = np.empty((KINDS[kind].bands, rows, cols), KINDS[kind].dtype)
        across = list(_spans(col, cols, self.tile))
        for i, from_rows, to_rows in _spans(row, rows, self.tile):
            for j, from_cols, to_cols in across:
                out[:, to_rows, to_cols] = self.read(kind, i, j)[:, from_rows, from_cols]
        return out

    def damaged(self) -> list[str]:
        """What is wrong with any chunk of the file, in words; reads all of it."""
        found = []
        self._checked.clear()
        for kind, table in self._places.items():
            for chunk in (chunk for row in table for chunk in row if chunk is not None):
                try:
                    self._check(kind, chunk)
                except DataError as error:
                    found.append(str(error))
        return found


def _spans(start: int, n: int, side: int) -> Iterator[tuple[int, slice, slice]]:
    """The tiles that *n* pixels from *start* lie in: number, where in the tile, where in the window."""
    for tile in range(start // side, (start + n - 1) // side + 1):
        first, last = max(start, tile * side), min(start + n, (tile + 1) * side)
        yield tile, slice(first - tile * side, last - tile * side), slice(first - start, last - start)
