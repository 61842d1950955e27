"""
A map that is being made: raw layers on the disk and a journal of the parts that are in them, to go on after a kill.

A part is written, brought to the disk, and only then noted with its checksum. Whoever opens the same job again, known
by its key, gets the parts that are there and whose bytes are as noted; all else is made again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.errors import DiskError
from lcfuse_core.mapping.windows import Unit

JOURNAL = "journal.jsonl"


class Worklog:
    """
    The folder of one job.

    bands : of each layer, by name; a layer is a file of uint8 (bands, H, W)
    done : numbers of the parts that are finished

    Raises DiskError when the disk is full or cannot be written; finished parts stay.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int], bands: Mapping[str, int]) -> None:
        self.folder, self.shape, self.bands = folder, shape, dict(bands)
        self.done: set[int] = set()
        self._noted: dict[int, dict[str, object]] = {}
        journal = folder / JOURNAL
        with self._disk():
            if not self._read(journal, key):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                journal.write_text(json.dumps({"key": key}) + "\n")
            self._files = {name: os.open(self.path(name), os.O_RDWR | os.O_CREAT, 0o644) for name in bands}
            for name, file in self._files.items():
                os.ftruncate(file, bands[name] * shape[0] * shape[1])
        for number, entry in self._noted.items():
            rows, cols = (slice(*entry[side]) for side in ("rows", "cols"))  # type: ignore[misc]
            if entry["crc"] == self._checksum({name: self._get(name, rows, cols) for name in bands}):
                self.done.add(number)
        self._journal = journal.open("a")

    def _read(self, journal: Path, key: str) -> bool:
        """Take over what a journal of this key notes; a line that was cut ends it."""
        try:
            lines = journal.read_text().splitlines()
            if not lines or json.loads(lines[0]) != {"key": key}:
                return False
        except (OSError, ValueError):
            return False
        whole = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                self._noted[int(entry["unit"])] = entry
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line) + 1
        os.truncate(journal, min(whole, journal.stat().st_size))
        return True

    def path(self, name: str) -> Path:
        """The file of a layer."""
        return self.folder / f"{name}.raw"

    def write(self, unit: Unit, layers: Mapping[str, NDArray[np.uint8]]) -> None:
        """Keep the finished part *unit*: of each layer, uint8 (bands, h, w)."""
        with self._disk():
            for name, data in layers.items():
                self._put(name, unit.rows, unit.cols, data)
                os.fsync(self._files[name])
            entry = {
                "unit": unit.number,
                "rows": [unit.rows.start, unit.rows.stop],
                "cols": [unit.cols.start, unit.cols.stop],
                "crc": self._checksum(layers),
            }
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self.done.add(unit.number)

    def _put(self, name: str, rows: slice, cols: slice, data: NDArray[np.uint8]) -> None:
        height, width = self.shape
        whole = cols.stop - cols.start == width
        for band, plane in enumerate(np.ascontiguousarray(data)):
            begin = (band * height + rows.start) * width + cols.start
            runs = [plane] if whole else plane
            for number, run in enumerate(runs):
                _write_all(self._files[name], memoryview(run).cast("B"), begin + number * width)

    def _get(self, name: str, rows: slice, cols: slice) -> NDArray[np.uint8]:
        stack = np.memmap(self.path(name), np.uint8, "r", shape=(self.bands[name], *self.shape))
        return np.array(stack[:, rows, cols])

    @staticmethod
    def _checksum(layers: Mapping[str, NDArray[np.uint8]]) -> int:
        total = 0
        for name in sorted(layers):
            total = zlib.crc32(np.ascontiguousarray(layers[name]).data, total)
        return total

    def _disk(self) -> _Disk:
        return _Disk(self.folder)

    def close(self) -> None:
        """Let go of the files; they stay."""
        self._journal.close()
        for file in self._files.values():
            os.close(file)

    def remove(self) -> None:
        """The map is finished elsewhere: the folder is not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_all(file: int, content: memoryview, place: int) -> None:
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


class _Disk:
    """OSError of the disk becomes a DiskError that says what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, DiskError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            do = "Free space" if full else "Check its permissions"
            raise DiskError(
                self.folder,
                found=f"{error.strerror or error}",
                expected="a disk that can be written",
                do=f"{do} and run the same command again: finished parts are kept.",
            ) from None
