"""
What happens around a training step: progress, metrics, validation, checkpoints, and stopping.

The folder of a run has `metrics.jsonl`, the history with one JSON object per report. If the package tensorboard is
installed, the same numbers are written for it: `tensorboard --logdir FOLDER` draws them.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.data.source import PatchSource
from lcfuse_core.models.losses import Batch
from lcfuse_core.training.checkpoint import Checkpointer, Run, TrainState, capture, network_digest, restore
from lcfuse_core.training.distributed import Distributed, describe_device
from lcfuse_core.training.plan import TrainPlan
from lcfuse_core.training.predict import evaluate

Validation = PatchSource | Mapping[str, PatchSource]
"""What a network is evaluated on at each report: one source, or several by name."""

_MOST_VALIDATION = 64
"""Patches that are evaluated at each report: of a larger source so many, evenly spread."""

_WARM_UP, _TIMED = 3, 10
"""Steps before the duration of a step is measured, and steps of that measurement."""

_SMALLEST_SCALE = 2.0**-10  # of the loss in float16: below it the gradient overflows for another reason


class Monitor(ExitStack):
    """
    The callbacks of one run, as a context manager; the parameters are those of `loop.train`.

    On a GPU losses are read only every 100 steps, because reading one waits for the GPU, and always before a checkpoint
    is written; on the processor a NaN never reaches the weights.
    """

    def __init__(
        self,
        source: PatchSource,
        plan: TrainPlan,
        run_dir: str | os.PathLike[str] | None,
        processes: Distributed,
        validation: Validation | None,
        start: Run | None,
        progress: bool,
        interval_s: float,
    ) -> None:
        super().__init__()
        identity = {}
        if run_dir is not None:
            weights = "" if start is None else network_digest(start.network)
            identity = {"training data": source.digest(), "first weights": weights}
        self.checkpointer = Checkpointer(run_dir, plan, identity, interval_s=interval_s, writes=processes.is_first)
        self.plan, self.processes, self.progress = plan, processes, progress and processes.is_first
        named = validation if isinstance(validation, Mapping) else {"": validation}
        self.validation = {name: _spread(own) for name, own in named.items() if own is not None and processes.is_first}
        self.state = TrainState()
        self._unread: list[Tensor] = []  # losses and gradient norms
        self._times: list[float] = []  # at the begin and the end of the measured steps

    def __enter__(self) -> Self:
        """Lock the folder of the run, and note signals instead of ending at once."""
        self.enter_context(self.checkpointer)
        return self

    def resume(self) -> Run | None:
        """Return the network of an earlier start in the same folder; the first process looks before the others."""
        found = self.checkpointer.find() if self.processes.is_first else None
        self.processes.wait()
        found = found if self.processes.is_first else self.checkpointer.find()
        if found is None:
            return None
        run, self.state = found
        return run

    @property
    def is_finished(self) -> bool:
        """Return whether all steps have been taken."""
        return self.state.step >= self.plan.steps

    def begin(self, run: Run, optimiser: Optimizer, scaler: torch.amp.GradScaler) -> tuple[int, Tensor | None]:
        """Restore the optimiser; return the next step and the state of the generator of crops (None: fresh)."""
        self.run, self.optimiser, self.scaler = run, optimiser, scaler
        self._crops = restore(self.state.tensors, optimiser, scaler) if self.state.tensors else None
        self._events: Any = None
        if self.checkpointer.writes:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:  # optional
                pass
            else:
                # Its file hides what an earlier start wrote for this step and later.
                self._events = SummaryWriter(str(self.checkpointer.folder), purge_step=self.state.step)
                self.callback(self._events.close)
        self._began = time.perf_counter() - self.state.seconds
        self._reported = self.state.step, time.perf_counter()
        return self.state.step, self._crops

    def steps(self, batches: Generator[tuple[Tensor, Batch, Tensor]]) -> Iterator[tuple[int, Tensor, Batch]]:
        """Yield number, images and labels of each step, while a bar shows crops per second, time left and loss."""
        shown: dict[str, Any] = {"unit": "crop", "unit_scale": self.plan.batch, "disable": not self.progress}
        first = self.state.step
        # Kept open until the training ends, also by an error: only then may the files that are read be closed.
        self.enter_context(closing(batches))
        with tqdm(batches, total=self.plan.steps, initial=first, **shown) as self._bar:
            for step, (images, batch, crops) in enumerate(self._bar, first):
                self._crops = crops
                yield step, images, batch
                if self.progress and step - first in (_WARM_UP, _WARM_UP + _TIMED):
                    self._estimate()

    def _estimate(self) -> None:
        """Measure the duration of some steps, and print the minutes of a training that takes more than one."""
        if self.processes.on_gpu:
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())
        if len(self._times) == 1:
            return
        each, left = (self._times[1] - self._times[0]) / _TIMED, self.plan.steps - self.state.step
        if left * each >= 60:
            text = f"about {left * each / 60:.0f} min for {left:,} steps of {each:.3f} s, validation not included"
            where = describe_device(self.plan.device, self.plan.precision)
            self._bar.write(f"{text}; {where}", file=sys.stderr)

    def check(self, loss: Tensor, norm: Tensor) -> None:
        """Note the loss of a step and the norm of its gradient; TrainingError if one is NaN or infinite."""
        self._unread.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        if len(self._unread) >= (100 if self.processes.on_gpu else 1):
            self._read()

    def _read(self) -> None:
        for loss, norm in torch.stack(self._unread).tolist() if self._unread else []:
            # A gradient may overflow in float16: the scaler leaves out that step and lowers the scale.
            is_left_out = self.scaler.is_enabled() and self.scaler.get_scale() > _SMALLEST_SCALE
            if not (math.isfinite(loss) and (math.isfinite(norm) or is_left_out)):
                raise self.checkpointer.failed(loss, norm)
            self.state.losses.append(loss)
        self._unread.clear()

    def report(self, step: int) -> None:
        """Write metrics and a checkpoint if they are due, and the last checkpoint; TrainingError after a signal."""
        self.state.step, self.state.seconds = step + 1, time.perf_counter() - self._began
        is_stopped = self.processes.any(bool(self.checkpointer.stop_signal))
        is_report = self.state.step % self.plan.report_every == 0 or self.is_finished
        if is_report or is_stopped or self.checkpointer.is_due():
            self._read()
            if is_report:
                self._add_row()
            if self.checkpointer.writes and self._crops is not None:
                self.state.tensors = {} if self.is_finished else capture(self.optimiser, self.scaler, self._crops)
                self.checkpointer.save(self.run, self.state)
        if is_stopped and not self.is_finished:
            raise self.checkpointer.stopped()

    def _add_row(self) -> None:
        """Add a row to the history, and show it."""
        losses, step, now = self.state.losses, self.state.step, time.perf_counter()
        row: dict[str, float | None] = {
            "step": step,
            "loss": math.fsum(losses) / len(losses),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "seconds": round(self.state.seconds, 2),
            "aa": None,
        }
        losses.clear()
        for name, source in self.validation.items():
            agreement = evaluate(self.run, source).aa
            row |= {"aa": agreement if row["aa"] is None else row["aa"]} | ({f"aa_{name}": agreement} if name else {})
        (earlier, before), self._reported = self._reported, (step, time.perf_counter())
        row["crops_per_s"] = round((step - earlier) * self.plan.batch / max(now - before, 1e-9), 1)
        row |= memory()
        self.run.history.append(row)
        self._bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        if self._events is not None:
            for name, value in row.items():
                if name != "step" and value is not None and math.isfinite(value):
                    self._events.add_scalar(name, value, step)
            self._events.flush()


def _spread(source: PatchSource) -> PatchSource:
    """Return at most `_MOST_VALIDATION` patches of a source, evenly spread over it."""
    if len(source) <= _MOST_VALIDATION:
        return source
    return source.part(np.linspace(0, len(source) - 1, _MOST_VALIDATION).astype(int).tolist())


def memory() -> dict[str, float]:
    """Return the peak memory of this process in MB (2**20 bytes), and of its GPU if it has one."""
    used = {"memory_mb": round(_runtime.peak_memory_mb(), 1)}
    if torch.cuda.is_available():
        used["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return used
