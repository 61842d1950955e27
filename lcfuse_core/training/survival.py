"""
How a training outlives what happens to it: a lost connection, a full disk, a signal, a killed process.

In the folder of a run lie `last.safetensors` and the checkpoint before it, `previous.safetensors`. Each holds all that
is needed to go on: weights, optimiser, the place in the schedule, the states of the random numbers, the history. A new
one is written beside them, brought to the disk, and only then are the names moved: at any moment there is a whole one.
Reading one runs no code from it (`runs`). A damaged one is named and set aside, and the one before it is used.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from lcfuse_core import _runtime
from lcfuse_core.errors import CheckpointError, ParameterError, TrainingError, disk_error
from lcfuse_core.training.checkpoint import STATE, Run, TrainPlan, checkpoint_bytes, read_checkpoint, write_whole

LAST, PREVIOUS, DAMAGED = "last.safetensors", "previous.safetensors", "damaged.safetensors"
"""The newest checkpoint, the one before it, and one that was found damaged."""

OPTIMISER, CROPS, TORCH, AVERAGE = f"{STATE}optimiser.", f"{STATE}crops", f"{STATE}torch", f"{STATE}average."
"""Names of what a checkpoint of an unfinished training holds beside the weights."""

MAY_DIFFER = ("device",)
"""What may change in a plan while a run is interrupted: the machine that it goes on with."""


@dataclass
class Position:
    """
    How far a training is.

    step : steps that were taken
    losses : of the steps since the last report
    seconds : that it has taken so far, breaks left out
    tensors : weights, optimiser and random states, by name; none when the run is finished
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Keeper:
    """
    Keeps the checkpoints of one run in a folder, as a context; outside of it, and without a folder, it does nothing.

    identity : what a run must share with the one that left a checkpoint here, beside its plan: data, start
    interval_s : most seconds of work that a kill can cost
    writes : whether this process is the one that writes, of several

    In its context the folder is locked against other runs, and SIGTERM and Ctrl-C are heard: see `asked`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        plan: TrainPlan,
        identity: Mapping[str, Any],
        *,
        interval_s: float,
        writes: bool = True,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.plan, self.identity, self.interval_s = plan, dict(identity), interval_s
        self.writes = writes and folder is not None
        self.asked = ""  # the signal that asked this process to stop
        self.saved_step: int | None = None
        self._saved_at = time.monotonic()
        self._undo = ExitStack()

    def __enter__(self) -> Keeper:
        if self.folder is not None and self.writes:
            self._undo.enter_context(_runtime.lock(self.folder / "lock"))
            for draft in self.folder.glob(f"{LAST}.new*"):  # of a run that was killed while it wrote
                draft.unlink()
        if self.folder is not None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._undo.callback(signal.signal, number, signal.signal(number, self._hear))
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._undo.close()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # for the second time: now
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name

    def find(self) -> tuple[Run, Position] | None:
        """
        The newest whole checkpoint of this run, or None where there is none.

        Warns of a damaged one. Raises CheckpointError when there are none but damaged ones, ParameterError when they
        are those of another run.
        """
        if self.folder is None:
            return None
        damaged: list[CheckpointError] = []
        for path in (self.folder / LAST, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                run, progress, tensors = read_checkpoint(path)
            except CheckpointError as error:
                damaged.append(error)
                continue
            self._check(path, run.plan, progress)
            assert progress is not None
            position = Position(progress["step"], progress["losses"], progress["seconds"], tensors)
            if damaged and self.writes:
                os.replace(self.folder / LAST, self.folder / DAMAGED)
                warnings.warn(f"{damaged[0]} The one before it is used, of step {position.step}.", stacklevel=2)
            self.saved_step = position.step
            return replace(run, plan=self.plan), position
        if damaged:
            raise damaged[0]
        return None

    def _check(self, path: Path, plan: TrainPlan, progress: Mapping[str, Any] | None) -> None:
        do = "Choose another folder, or empty this one."
        if progress is None:
            raise ParameterError(path, found="a network that is no run", expected="a run of this plan", do=do)
        same = {name: getattr(self.plan, name) for name in MAY_DIFFER}
        names = [name for name in plan.__dataclass_fields__ if name not in same]
        differing = [name for name in names if getattr(plan, name) != getattr(self.plan, name)]
        if differing:
            found = ", ".join(f"{name} {getattr(plan, name)!r}" for name in differing)
            expected = ", ".join(repr(getattr(self.plan, name)) for name in differing)
            raise ParameterError(path, found=f"a run with {found}", expected=expected, do=do)
        for what, own in self.identity.items():
            if progress["identity"].get(what) != own:
                raise ParameterError(path, found=f"a run with other {what}", expected=f"the same {what}", do=do)

    def is_due(self) -> bool:
        """Whether a checkpoint has to be written: the time is over."""
        return self.writes and time.monotonic() - self._saved_at >= self.interval_s

    def save(self, run: Run, position: Position) -> None:
        """
        Write a checkpoint; the one of before becomes the previous one.

        Raises DiskError when the disk is full or cannot be written; both are then as they were.
        """
        if self.folder is None or not self.writes:
            return
        progress = {
            "step": position.step,
            "losses": position.losses,
            "seconds": round(position.seconds, 3),
            "identity": self.identity,
        }
        content = checkpoint_bytes(run, progress, position.tensors)
        last, previous, draft = (self.folder / name for name in (LAST, PREVIOUS, f"{LAST}.new"))
        try:
            write_whole(draft, content)
            if last.exists():
                os.replace(last, previous)
            os.replace(draft, last)
        except OSError as error:
            raise disk_error(last, error, len(content)) from None
        self.saved_step, self._saved_at = position.step, time.monotonic()

    def stopped(self) -> TrainingError:
        """What to raise when a signal has asked to stop, and the checkpoint is written."""
        found, expected = f"{self.asked or 'a signal to another process'}", f"{self.plan.steps} steps"
        do = f"It goes on from step {self.saved_step} when it is called again with {self.folder}."
        return TrainingError("training", found=found, expected=expected, do=do)

    def failed(self, loss: float, gradient: float) -> TrainingError:
        """What to raise when loss or gradient are no numbers."""
        kept = "No checkpoint was written yet."
        if self.folder is not None and self.saved_step is not None:
            kept = f"That of step {self.saved_step} is kept in {self.folder / LAST}."
        return TrainingError(
            "training",
            found=f"loss {loss}, gradient of length {gradient}",
            expected="finite numbers",
            do=f"Lower the learning rate, or look for bad values in the patches. {kept}",
        )


def capture(optimiser: torch.optim.Optimizer, crops: Tensor, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    What a training needs to go on, beside the weights: copies on the processor.

    crops : state of the generator of the crops; average : moving average of the weights, empty where none is kept
    """
    state = {CROPS: crops, TORCH: torch.get_rng_state()}
    for number, values in optimiser.state_dict()["state"].items():
        state |= {f"{OPTIMISER}{number}.{name}": torch.as_tensor(value).cpu() for name, value in values.items()}
    return state | {f"{AVERAGE}{name}": tensor.cpu() for name, tensor in average.items()}


def restore(tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, average: Mapping[str, Tensor]) -> Tensor:
    """Put back what `capture` took, into *optimiser*, *average* and torch's generator; returns the crops' state."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(weights))}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMISER):
            number, key = name.removeprefix(OPTIMISER).split(".")
            like = weights[int(number)]
            # Laid out in memory as the weight is: another layout would round sums in another order.
            state[int(number)][key] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for name, tensor in average.items():
        tensor.copy_(tensors[f"{AVERAGE}{name}"])
    torch.set_rng_state(tensors[TORCH])
    return tensors[CROPS]
