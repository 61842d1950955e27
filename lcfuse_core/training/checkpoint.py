"""
Checkpoints: a trained network in one file, and the files from which an interrupted training continues.

A checkpoint is a safetensors file: a JSON header with plan, channel statistics, legend and history, then the weights,
guarded by a SHA-256. Reading one runs no code, unlike torch's own format, which is a pickle.

The folder of a run holds `last.safetensors` and the checkpoint before it, `previous.safetensors`, which also hold the
state of the optimiser, the schedule and the random generators. A new one is written beside them, synchronised to the
disk, and then renamed, so that a whole one exists at any moment. A damaged one is reported and set aside, and the
previous one is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from lcfuse_core import __version__, _runtime
from lcfuse_core.data.bands import Statistics
from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import CheckpointError, MissingDataError, ParameterError, TrainingError, disk_error
from lcfuse_core.training.plan import TrainPlan

_HEADER_KEY, _DIGEST_KEY = "lcfuse", "sha256"
"""Keys of the safetensors metadata that hold our header and its digest."""

LAST, PREVIOUS, _DAMAGED = "last.safetensors", "previous.safetensors", "damaged.safetensors"
"""The newest checkpoint of a run, the one before it, and one that was found damaged."""

_FORMAT, _VERSION = "lcfuse checkpoint", 1
_STATE = "state:"  # prefix of the tensors that only an unfinished training needs
_OPTIMISER, _SCALER = f"{_STATE}optimiser.", f"{_STATE}scaler."
_CROPS, _TORCH = f"{_STATE}crops", f"{_STATE}torch"


@dataclass(frozen=True)
class Run:
    """
    A trained network, with all that is needed to use it.

    `history` has a row per report: step, loss (mean since the last row), learning_rate, seconds since the start, aa
    (agreement with the validation labels, 0-1, or None; aa_NAME for several sources), crops_per_s and memory_mb.
    """

    network: nn.Module
    plan: TrainPlan
    statistics: Statistics
    history: list[dict[str, float | None]] = field(default_factory=list)


@dataclass
class TrainState:
    """The progress of a training, beside its network."""

    step: int = 0  # steps taken
    losses: list[float] = field(default_factory=list)  # of the steps since the last report
    seconds: float = 0.0  # so far, without interruptions
    tensors: dict[str, Tensor] = field(default_factory=dict)  # see `capture`; empty in a finished run


def capture(optimiser: Optimizer, scaler: GradScaler, crops: Tensor) -> dict[str, Tensor]:
    """Return copies of the states of optimiser, loss scaler, torch's generator, and the generator of *crops*."""
    tensors = {_CROPS: crops, _TORCH: torch.get_rng_state()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}{number}.{name}": torch.as_tensor(value).cpu() for name, value in values.items()}
    return tensors | {f"{_SCALER}{name}": torch.tensor(value) for name, value in scaler.state_dict().items()}


def restore(tensors: Mapping[str, Tensor], optimiser: Optimizer, scaler: GradScaler) -> Tensor:
    """Put the result of `capture` back into *optimiser*, *scaler* and torch's generator; return the state of crops."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(weights))}
    scale: dict[str, float] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMISER):
            number, key = name.removeprefix(_OPTIMISER).split(".")
            like = weights[int(number)]
            # In the memory layout of the weight: another layout would round sums in another order.
            state[int(number)][key] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        elif name.startswith(_SCALER):
            scale[name.removeprefix(_SCALER)] = tensor.item()
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    if scale and scaler.is_enabled():  # a run may go on on a device that computes in another type
        scaler.load_state_dict(scale)
    torch.set_rng_state(tensors[_TORCH])
    return tensors[_CROPS]


def network_digest(network: nn.Module) -> str:
    """Return the SHA-256 of the weights and their names."""
    return _digest("", _weights(network))


def save_checkpoint(run: Run, path: str | os.PathLike[str]) -> Path:
    """Write *run* to one file. Raises OSError if the disk is full or protected; *path* is then as it was before."""
    return _runtime.write_atomic(path, _content(run))


def load_checkpoint(path: str | os.PathLike[str]) -> Run:
    """
    Read a network for the processor, in evaluation mode; no code from the file is run.

    Raises
    ------
    MissingDataError, CheckpointError
        If there is no such file; if it is not a checkpoint of this package, is damaged or does not fit its plan.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Run, dict[str, Any] | None, dict[str, Tensor]]:
    """Read a network, the progress of its training and the tensors to continue it; raises as `load_checkpoint`."""
    header, tensors = _read(Path(path))
    state = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_STATE)}
    try:
        plan, history = TrainPlan.from_header(header["plan"]), list(header["history"])
        # Earlier checkpoints do not name the channels: they have all of them.
        statistics = Statistics(**{name: tuple(values) for name, values in header["statistics"].items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refusal(path, f"a header that cannot be used ({error!r})") from None
    with torch.device("meta"):  # shapes without memory: the width in a file may be absurd
        network = plan.build(statistics.channels)
    if _shapes(network.state_dict()) != _shapes(tensors):
        raise _refusal(path, f"weights that do not fit a {plan.network} of this plan")
    network.load_state_dict(tensors, assign=True)
    return Run(network.eval(), plan, statistics, history), header.get("progress"), state


def _content(run: Run, state: TrainState | None = None, identity: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a checkpoint; those of a run in a folder also hold its state and identity."""
    header = {"format": _FORMAT, "version": _VERSION, "package": __version__, "plan": asdict(run.plan)}
    header |= {"statistics": asdict(run.statistics), "legend": list(SCORED), "history": run.history}
    tensors = _weights(run.network)
    if state is not None:
        seconds = round(state.seconds, 3)
        header["progress"] = {"step": state.step, "losses": state.losses, "seconds": seconds, "identity": identity}
        tensors |= {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    text = json.dumps(header)
    return save(tensors, {_HEADER_KEY: text, _DIGEST_KEY: _digest(text, tensors)})


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a header and of all tensors by name."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file after all checks that need no plan."""
    if not path.is_file():
        raise _missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text, digest = metadata[_HEADER_KEY], metadata[_DIGEST_KEY]
        header = json.loads(text)
    except KeyError:
        raise _refusal(path, "a safetensors file without our header") from None
    except (SafetensorError, OSError, MemoryError, ValueError, RuntimeError) as error:
        if not path.is_file():  # a running training has just renamed it
            raise _missing(path) from None
        found = f"an unreadable or cut file ({error})"
        with path.open("rb") as start:
            if start.read(2).startswith((b"PK", b"\x80")):
                found = "a pickle or zip (as torch.save writes; it could run code, so it was not opened)"
        raise _refusal(path, found) from None
    if digest != _digest(text, tensors):
        raise _refusal(path, "a digest that does not fit the content: the file is damaged")
    header = header if isinstance(header, dict) else {}
    for name, expected in {"format": _FORMAT, "version": _VERSION, "legend": list(SCORED)}.items():
        if header.get(name) != expected:
            raise _refusal(path, f"{name} {header.get(name)!r}", f"{name} {expected!r}, as this version writes it")
    return header, tensors


def _missing(path: Path) -> MissingDataError:
    found = "a folder, device or pipe" if path.exists() else "no such file"
    return MissingDataError(path, found=found, expected="a checkpoint", do="Train first, or check the path.")


def _refusal(path: str | os.PathLike[str], found: str, expected: str = "a whole checkpoint") -> CheckpointError:
    return CheckpointError(path, found=found, expected=expected, do="Fetch it again, or train anew.")


class Checkpointer(ExitStack):
    """
    Reads and writes the checkpoints of one run in a folder, as a context manager; without a folder it does nothing.

    In its context the folder is locked against other runs, and SIGTERM or Ctrl-C only set `stop_signal`; a second one
    interrupts at once. A checkpoint of another plan (apart from the device) or another *identity* (data, initial
    weights) is refused. A kill costs at most *interval_s* seconds of work. Of several processes, one *writes*.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        plan: TrainPlan,
        identity: Mapping[str, str],
        *,
        interval_s: float,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self.folder = None if folder is None else Path(folder)
        self.plan, self.identity, self.interval_s = plan, dict(identity), interval_s
        self.writes = writes and folder is not None
        self.stop_signal = ""
        self.saved_step: int | None = None
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        if self.folder is not None and self.writes:
            self.enter_context(_runtime.lock(self.folder / "lock"))
            for draft in self.folder.glob(f"*{LAST}.new*"):  # of a run that was killed while it wrote
                draft.unlink()
        if self.folder is not None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.callback(signal.signal, number, signal.signal(number, self._note_signal))
        return self

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal:
            raise KeyboardInterrupt
        self.stop_signal = signal.Signals(number).name

    def find(self) -> tuple[Run, TrainState] | None:
        """
        Return the newest whole checkpoint of this run, or None if there is none; warn of a damaged one.

        Raises CheckpointError if all checkpoints are damaged, ParameterError if they are those of another run.
        """
        damaged: list[CheckpointError] = []
        for path in () if self.folder is None else (self.folder / LAST, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                run, progress, tensors = read_checkpoint(path)
            except CheckpointError as error:
                damaged.append(error)
                continue
            self._check(path, run.plan, progress)
            assert progress is not None
            state = TrainState(progress["step"], progress["losses"], progress["seconds"], tensors)
            if damaged and self.writes:
                os.replace(path.with_name(LAST), path.with_name(_DAMAGED))
                warnings.warn(f"{damaged[0]} The one before it is used, of step {state.step}.", stacklevel=2)
            self.saved_step = state.step
            return replace(run, plan=self.plan), state
        if damaged:
            raise damaged[0]
        return None

    def _check(self, path: Path, plan: TrainPlan, progress: Mapping[str, Any] | None) -> None:
        do = "Choose another folder, or empty this one."
        if progress is None:
            raise ParameterError(path, found="a network without a run", expected="a run of this plan", do=do)
        wanted = asdict(self.plan)
        differing = {name: own for name, own in asdict(plan).items() if own != wanted[name] and name != "device"}
        if differing:
            found = ", ".join(f"{name} {value!r}" for name, value in differing.items())
            expected = ", ".join(repr(wanted[name]) for name in differing)
            raise ParameterError(path, found=f"a run with {found}", expected=expected, do=do)
        for name, value in self.identity.items():
            if progress["identity"].get(name) != value:
                raise ParameterError(path, found=f"a run with other {name}", expected=f"the same {name}", do=do)

    def is_due(self) -> bool:
        """Return whether the interval since the last checkpoint has passed."""
        return self.writes and time.monotonic() - self._saved_at >= self.interval_s

    def save(self, run: Run, state: TrainState) -> None:
        """
        Write a checkpoint and the metrics; the last checkpoint becomes the previous one.

        Raises DiskError if the disk is full or protected, and then leaves whole what is there.
        """
        if self.folder is None or not self.writes:
            return
        content = _content(run, state, self.identity)
        last, previous, draft = (self.folder / name for name in (LAST, PREVIOUS, f"{LAST}.new"))
        try:
            _runtime.write_atomic(draft, content)
            if last.exists():
                os.replace(last, previous)
            os.replace(draft, last)
            _runtime.write_atomic(self.folder / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in run.history))
        except OSError as error:
            raise disk_error(last, error, len(content)) from None
        self.saved_step, self._saved_at = state.step, time.monotonic()

    def stopped(self) -> TrainingError:
        """Return the error to raise when a signal has stopped the run."""
        found = self.stop_signal or "a signal to another process"
        do = f"Call it again with {self.folder}: it goes on from step {self.saved_step}."
        return TrainingError("training", found=found, expected=f"{self.plan.steps} steps", do=do)

    def failed(self, loss: float, gradient: float) -> TrainingError:
        """Return the error to raise when the loss or the gradient is NaN or infinite."""
        kept = "No checkpoint was written yet."
        if self.folder is not None and self.saved_step is not None:
            kept = f"The checkpoint of step {self.saved_step} is kept in {self.folder / LAST}."
        found, do = f"loss {loss}, gradient norm {gradient}", "Lower the learning rate, or look for NaN in the patches."
        return TrainingError("training", found=found, expected="finite numbers", do=f"{do} {kept}")
