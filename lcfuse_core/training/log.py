"""
What a training tells while it runs: a bar, a file of metrics, and files for TensorBoard.

`metrics.jsonl` in the folder of a run has one JSON object a line for each report. The TensorBoard file beside it has
the same numbers; `tensorboard --logdir FOLDER` draws them. Its format is simple enough to be written here, which spares
a large package: records framed with lengths and checksums (TFRecord), each an `Event` of TensorFlow's event.proto.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.errors import disk_error
from lcfuse_core.training.checkpoint import Row

METRICS = "metrics.jsonl"


class Log:
    """
    The bar and the files of one training.

    run_dir : where the files go; None: a bar alone
    history : the lines that a resumed run has behind it; what it wrote after its last checkpoint is dropped
    watched : whether to show a bar

    Raises DiskError when a line cannot be written.
    """

    def __init__(
        self, run_dir: str | os.PathLike[str] | None, history: Iterable[Row], *, step: int, batch: int, watched: bool
    ) -> None:
        self.batch, self.watched, self.step = batch, watched, step
        self._told_at, self._told_step = time.perf_counter(), step
        self._metrics = None if run_dir is None else Path(run_dir) / METRICS
        self._events = None if run_dir is None else EventFile(Path(run_dir), step)
        self._bar: tqdm[Any] | None = None
        if self._metrics is not None:
            kept = {row["step"]: json.dumps(row) for row in _read(self._metrics)}
            lines = [kept.get(row["step"], json.dumps(row)) for row in history]
            _write(self._metrics, "".join(f"{line}\n" for line in lines).encode(), "wb")

    def steps(self, batches: Iterable[Any], total: int) -> Iterator[tuple[int, Any]]:
        """The number of each step with its batch, while the bar moves: crops a second, time left, loss."""
        unit: dict[str, Any] = {"unit": "crop", "unit_scale": self.batch}
        with tqdm(batches, total=total, initial=self.step, disable=not self.watched, **unit) as self._bar:
            yield from enumerate(self._bar, self.step)

    def report(self, row: Row) -> None:
        """Show a line of the history, and write it with the rate since the last and the memory in use."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        if self._metrics is None or self._events is None:
            return
        now, step = time.perf_counter(), int(row["step"] or 0)
        rate = (step - self._told_step) * self.batch / max(now - self._told_at, 1e-9)
        self._told_at, self._told_step = now, step
        full = {**row, "crops_per_s": round(rate, 1), **memory()}
        _write(self._metrics, (json.dumps(full) + "\n").encode(), "ab")
        self._events.add(step, {name: value for name, value in full.items() if name != "step"})


def memory() -> dict[str, float]:
    """Most memory that this process has had, in MB (2**20 bytes), and that of its GPU."""
    told = {"memory_mb": round(_runtime.peak_memory_mb(), 1)}
    if torch.cuda.is_available():
        told["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return told


def read_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line that was cut is left out."""
    return list(_read(Path(run_dir) / METRICS))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # a run was killed while it wrote
            return


def _write(path: Path, content: bytes, mode: str) -> None:
    try:
        with path.open(mode) as file:
            file.write(content)
    except OSError as error:
        raise disk_error(path, error, len(content)) from None


class EventFile:
    """
    Numbers over steps in a file that TensorBoard reads.

    Every start of a run has a file of its own; its first event tells TensorBoard to forget what an earlier, killed
    start had written for *step* and later.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.lcfuse"
        version = _field(3, b"brain.Event:2")
        begin = _varint_field(2, step) + _field(7, _varint_field(1, 1))  # SessionLog.START
        _write(self.path, _record(_time() + version) + _record(_time() + begin), "wb")

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """One number for each name; None and NaN are left out."""
        summary = b"".join(
            _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", value))  # tag, simple_value
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        )
        _write(self.path, _record(_time() + _varint_field(2, step) + _field(5, summary)), "ab")


def _time() -> bytes:
    return b"\x09" + struct.pack("<d", time.time())  # wall_time


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in the wire format of protocol buffers."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _record(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, data, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """
    CRC-32C (Castagnoli; RFC 3720, appendix B.4).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_entry(value) for value in range(256)]
