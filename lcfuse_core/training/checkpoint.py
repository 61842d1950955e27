"""
A training as a thing to keep: its plan, its result, and the file that holds both.

The file is a safetensors file: a JSON header and plain numbers after it. Reading it runs no code, unlike
torch's own format, which is a pickle. The header says all that is needed to use the network: plan, channel
statistics, legend.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lcfuse_core import __version__
from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.source import LABEL_KINDS, N_S1, N_S2, Statistics
from lcfuse_core.errors import CheckpointError, MissingDataError, ParameterError
from lcfuse_core.models.losses import LOSSES
from lcfuse_core.models.networks import NETWORKS, build

FORMAT = "lcfuse checkpoint"
FORMAT_VERSION = 1
HEADER_KEY, DIGEST_KEY = "lcfuse", "sha256"
"""Name and version of our header, and the keys of the safetensors metadata that hold it and its digest."""

STATE = "state:"
"""How the names of tensors begin that only a training which goes on needs; see `survival`."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "network": tuple(NETWORKS),
    "loss": tuple(LOSSES),
    "labels": tuple(LABEL_KINDS),
    "fusion": ("early", "late"),
    "precision": ("auto", "float32", "bfloat16"),
    "sampling": ("area",),
    "compiled": (False, True),
}
INPUTS = (("s2",), ("s1",), ("s2", "s1"), ("s1", "s2"))
RANGES: dict[str, tuple[float, float]] = {
    "width": (1, 4096),
    "class_weight_power": (0, 1),
    "crop": (32, 8192),
    "batch": (1, 65536),
    "steps": (1, 10**9),
    "learning_rate": (1e-8, 1),
    "warm_up": (0, 1),
    "weight_decay": (0, 1),
    "clip_norm": (1e-3, math.inf),
    "ema": (0, 0.999999),
    "report_every": (1, 10**9),
    "seed": (0, 2**63 - 1),
}
"""What a plan may say; both ends belong to a range."""


@dataclass(frozen=True)
class TrainPlan:
    """
    All that decides a training, beside the data. Raises ParameterError on a value it does not know.

    >>> TrainPlan(steps=100).network
    'fcn'
    """

    network: str = "fcn"  # sees less than a coarse cell, so it cannot learn the cell's shape
    width: int | None = None  # channels of the first layer; None: the network's small default
    inputs: tuple[str, ...] = ("s2", "s1")
    fusion: str = "early"  # of both sensors: stacked channels, or "late": a branch for each
    labels: str = "modis"  # "fine" is the upper bound: the 10 m reference
    loss: str = "cross_entropy"
    transition: tuple[tuple[float, ...], ...] | None = None  # p(coarse | fine), (8, 9); None: from_accuracy
    class_weight_power: float = 0.5  # average accuracy counts classes alike, labels do not
    sampling: str = "area"  # of the crops: every position is equally likely
    crop: int = 64  # many small crops of many scenes beat few large ones
    batch: int = 16  # crops in a step, on all processes together
    steps: int = 800
    learning_rate: float = 5e-3  # the highest; see training.learning_rate
    warm_up: float = 0.1  # share of the steps in which the rate rises
    weight_decay: float = 1e-2
    clip_norm: float = 1.0  # longest gradient: one odd batch must not undo the others
    ema: float = 0.0  # keep a moving average of the weights, this much of it from before; 0: the last weights
    report_every: int = 100  # steps between lines of the history, evaluations and checkpoints
    seed: int = 0
    device: str = "auto"  # the GPU if there is one; or "cpu", "cuda:1" ...
    precision: str = "auto"  # bfloat16 where the processor computes in it
    compiled: bool = False  # by torch.compile: minutes at the start, a faster step on a GPU

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))  # a list, when read from JSON or YAML
        if self.inputs not in INPUTS:
            _refuse("inputs", self.inputs, "s2, s1 or both")
        if self.fusion == "late" and len(self.inputs) < 2:
            _refuse("fusion", self.fusion, "early, as there is one sensor alone")
        if self.transition is not None:
            object.__setattr__(self, "transition", _matrix(self.transition))
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known or isinstance(value, bool) != isinstance(known[0], bool):
                _refuse(name, value, f"one of {', '.join(map(str, known))}")
        for name, (low, high) in RANGES.items():
            self._check_number(name, low, high)

    def _check_number(self, name: str, low: float, high: float) -> None:
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        if value is None and default is None:
            return
        kinds = (int, float) if isinstance(default, float) else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            _refuse(name, value, f"{'a number' if float in kinds else 'a whole number'} from {low} to {high}")

    @property
    def in_channels(self) -> int:
        """Channels of the chosen sensors."""
        return N_S2 * ("s2" in self.inputs) + N_S1 * ("s1" in self.inputs)

    def build(self) -> nn.Module:
        """The network of this plan, with fresh weights from torch's global random generator."""
        channels = (N_S2, N_S1) if self.fusion == "late" else self.in_channels
        return build(self.network, in_channels=channels, width=self.width)


def _matrix(rows: Any) -> tuple[tuple[float, ...], ...]:
    """A transition matrix as tuples, which a frozen plan can hold and JSON can write."""
    try:
        matrix = np.array(rows, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    good = matrix.shape == (len(SCORED), N_COARSE) and (matrix >= 0).all()
    if not good or not np.allclose(matrix.sum(axis=1), 1, atol=1e-6):
        _refuse("transition", rows, f"{len(SCORED)} rows of {N_COARSE} shares that sum to 1, or None")
    return tuple(map(tuple, matrix.tolist()))


def _refuse(name: str, value: object, expected: str) -> None:
    raise ParameterError(f"plan: {name}", found=repr(value), expected=expected, do="Correct the plan.")


Row = dict[str, float | None]
"""A line of a history."""


@dataclass(frozen=True)
class Run:
    """
    A trained network with what it takes to use it.

    history : one dict per report: step, loss (mean since the last), learning_rate, seconds since the start,
        aa (agreement with the validation labels, 0-1, or None) and, of several validation stacks, aa_NAME
    """

    network: nn.Module
    plan: TrainPlan
    statistics: Statistics
    history: list[Row] = field(default_factory=list)


def network_digest(network: nn.Module) -> str:
    """SHA-256 of the weights and their names."""
    return _digest("", {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


def save_checkpoint(run: Run, path: str | os.PathLike[str]) -> Path:
    """
    Write *run* to one file: whole and new, or, when anything fails, as it was before.

    Raises OSError (disk full, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, checkpoint_bytes(run))
    return path


def checkpoint_bytes(
    run: Run, progress: Mapping[str, Any] | None = None, state: Mapping[str, Tensor] | None = None
) -> bytes:
    """
    The content of a checkpoint: *run* and, for a training that goes on, how far it is.

    progress : goes into the header as it is; state : tensors on the processor, by names that begin with STATE
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in run.network.state_dict().items()}
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "package": __version__,
        "plan": asdict(run.plan),
        "statistics": asdict(run.statistics),
        "legend": list(SCORED),
        "history": run.history,
    }
    if progress is not None:
        header["progress"] = dict(progress)
    tensors |= {name: tensor.contiguous() for name, tensor in (state or {}).items()}
    text = json.dumps(header)
    return save(tensors, {HEADER_KEY: text, DIGEST_KEY: _digest(text, tensors)})


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint says: its header, letter by letter, then each tensor by name."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write beside *path*, then put in its place: a reader never sees half a file."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def load_checkpoint(path: str | os.PathLike[str]) -> Run:
    """
    Read what `save_checkpoint` wrote, onto the processor and ready to predict. Runs no code from the file.

    Raises MissingDataError when there is no such file, CheckpointError when it is no checkpoint of ours,
    damaged (cut, or a bit flipped), of a newer version, or when its numbers do not fit its plan.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Run, dict[str, Any] | None, dict[str, Tensor]]:
    """A checkpoint with what a training needs to go on, as `checkpoint_bytes` took it. Raises as `load_checkpoint`."""
    header, everything = _read(Path(path))
    _check_header(path, header)
    state = {name: tensor for name, tensor in everything.items() if name.startswith(STATE)}
    tensors = {name: tensor for name, tensor in everything.items() if name not in state}
    try:
        plan, history = TrainPlan(**header["plan"]), list(header["history"])
        statistics = Statistics(*(tuple(header["statistics"][name]) for name in ("mean", "std")))
    except (KeyError, TypeError, ValueError) as error:
        raise _refusal(path, f"a header that cannot be used ({error!r})") from None
    with torch.device("meta"):  # shapes without memory: a plan from a file may be absurd
        network = plan.build()
    wanted = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
    if wanted != {name: (value.shape, value.dtype) for name, value in tensors.items()}:
        raise _refusal(path, f"weights that do not fit a {plan.network} of this plan")
    network.load_state_dict(tensors, assign=True)
    return Run(network.eval(), plan, statistics, history), header.get("progress"), state


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.exists():
        do = "Train first, or check the path."
        raise MissingDataError(path, found="no such file", expected="a checkpoint", do=do)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text, digest = metadata[HEADER_KEY], metadata[DIGEST_KEY]
        header = json.loads(text)
    except KeyError:
        raise _refusal(path, "a safetensors file without our header") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _refusal(path, _what_it_is(path, error)) from None
    if digest != _digest(text, tensors):
        raise _refusal(path, "a digest that does not fit the content: the file is damaged")
    return header, tensors


def _what_it_is(path: Path, error: Exception) -> str:
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"PK" or start[:1] == b"\x80":
            return "a pickle or zip (as torch.save writes; it could run code, so it was not opened)"
    return f"an unreadable or cut file ({error})"


def _check_header(path: str | os.PathLike[str], header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _refusal(path, "the header of something else")
    if header.get("version") != FORMAT_VERSION:
        do = "Install the version of lcfuse_core that wrote it."
        raise _refusal(path, f"format version {header.get('version')}", f"version {FORMAT_VERSION}", do)
    if header.get("legend") != list(SCORED):
        raise _refusal(path, f"classes {header.get('legend')}", f"the DFC2020 codes {list(SCORED)}")


def _refusal(
    path: str | os.PathLike[str],
    found: str,
    expected: str = "a whole checkpoint of lcfuse_core",
    do: str = "Fetch it again, or train anew.",
) -> CheckpointError:
    return CheckpointError(path, found=found, expected=expected, do=do)
