"""
The progress of a training: a bar, a file of metrics, and TensorBoard files.

`metrics.jsonl` in the folder of a run has one JSON object per report. If the package tensorboard is installed, the
same numbers are written for it: `tensorboard --logdir FOLDER` draws them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.errors import disk_error
from lcfuse_core.training.checkpoint import Row

_METRICS = "metrics.jsonl"


class Log:
    """
    The bar and the files of one training, from *step* on; without a folder only the bar.

    Metrics of the reports in *history* are kept; later lines, of a start that was killed, are removed. Raises DiskError
    if a line cannot be written.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str] | None,
        history: Iterable[Row],
        *,
        step: int,
        batch: int,
        show_progress: bool,
    ) -> None:
        self.batch, self.show_progress, self.step = batch, show_progress, step
        self._reported_at, self._reported_step = time.perf_counter(), step
        self._metrics = None if run_dir is None else Path(run_dir) / _METRICS
        self._events = None if run_dir is None else _summary_writer(run_dir, step)
        self._bar: tqdm[Any] | None = None
        if self._metrics is not None:
            kept = {row["step"]: json.dumps(row) for row in _read(self._metrics)}
            lines = [kept.get(row["step"], json.dumps(row)) for row in history]
            _write(self._metrics, "".join(f"{line}\n" for line in lines), "w")

    def steps(self, batches: Iterable[Any], total: int) -> Iterator[tuple[int, Any]]:
        """Yield the number of each step with its batch, while the bar shows crops per second, time left and loss."""
        unit: dict[str, Any] = {"unit": "crop", "unit_scale": self.batch}
        with tqdm(batches, total=total, initial=self.step, disable=not self.show_progress, **unit) as self._bar:
            yield from enumerate(self._bar, self.step)

    def report(self, row: Row) -> None:
        """Show and write a line of the history, with the rate since the last line and the memory in use."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        if self._metrics is None:
            return
        now, step = time.perf_counter(), int(row["step"] or 0)
        rate = (step - self._reported_step) * self.batch / max(now - self._reported_at, 1e-9)
        self._reported_at, self._reported_step = now, step
        full = {**row, "crops_per_s": round(rate, 1), **memory()}
        _write(self._metrics, json.dumps(full) + "\n", "a")
        if self._events is not None:
            for name, value in full.items():
                if name != "step" and value is not None and math.isfinite(value):
                    self._events.add_scalar(name, value, step)
            self._events.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._events is not None:
            self._events.close()


def memory() -> dict[str, float]:
    """Return the peak memory of this process in MB (2**20 bytes), and of its GPU if it has one."""
    used = {"memory_mb": round(_runtime.peak_memory_mb(), 1)}
    if torch.cuda.is_available():
        used["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return used


def read_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; a last line that was cut is left out."""
    return list(_read(Path(run_dir) / _METRICS))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # a run was killed while it wrote
            return


def _write(path: Path, text: str, mode: str) -> None:
    try:
        with path.open(mode) as file:
            file.write(text)
    except OSError as error:
        raise disk_error(path, error, len(text)) from None


def _summary_writer(run_dir: str | os.PathLike[str], step: int) -> Any:
    """Return a writer for TensorBoard whose file hides what an earlier start wrote for *step* and later, or None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run_dir), purge_step=step)
