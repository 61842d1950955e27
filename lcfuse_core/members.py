"""
Trained networks as the members of a map: found, chosen by the sensors that a scene has, asked window by window.

A `Member` prepares the channels of a window in one thread and answers for them in another. What it answers for a whole
patch is what `fusion.turned_mean` over `training.predict` gives.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core import runs, training
from lcfuse_core.errors import DataError, MissingDataError
from lcfuse_core.fusion import FusionPlan, combine, symmetries_of, temper
from lcfuse_core.patches import N_S1, normalise, turn
from lcfuse_core.rasters import LIT, Seen
from lcfuse_core.runs import Run

SHIPPED = Path(__file__).parent / "shipped" / "checkpoints"
"""Small networks that come with the package, one a file."""

SYNTHETIC = (
    "The networks that come with the package have learnt from synthetic scenes: look at their map, do not use it."
)


@dataclass(frozen=True)
class Member:
    """
    One network and its share in a map.

    name : of the file it came from
    sha256 : of that file
    """

    name: str
    run: Run
    sha256: str = ""
    temperature: float = 1.0
    weight: float = 1.0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The sensors it looks at."""
        return self.run.plan.inputs

    def prepare(self, seen: Seen) -> Tensor:
        """Channels (1, C, h, w) of a window, mean 0 and deviation 1; 0, the mean of all, where nothing was seen."""
        s1 = np.zeros((N_S1, *seen.valid.shape), np.float32) if seen.s1 is None else seen.s1
        channels = normalise(torch.from_numpy(seen.s2), torch.from_numpy(s1), self.run.statistics, self.inputs)
        if not seen.valid.all():
            channels *= torch.from_numpy(seen.valid)
        return channels[None].contiguous(memory_format=torch.channels_last)

    def logits(self, channels: Tensor, symmetries: int = 1) -> list[Tensor]:
        """What the network says of each of *symmetries* flips and rotations of a window, turned back."""
        device = next(self.run.network.parameters()).device
        chosen = symmetries_of(symmetries, channels.shape[-2] == channels.shape[-1])
        said = []
        with torch.inference_mode(), training.precision(self.run.plan.precision, device):
            image = channels.to(device)
            for symmetry in chosen:
                seen = turn(image, symmetry).contiguous(memory_format=torch.channels_last)
                said.append(turn(turn(self.run.network(seen)[0], symmetry & 6), symmetry & 1))
        return said

    @staticmethod
    def probabilities(said: Sequence[Tensor]) -> NDArray[np.float32]:
        """Of each class at each pixel, float32 (8, h, w): the mean over what `logits` gave."""
        with torch.inference_mode():
            total = said[0].float().softmax(dim=0)
            for one in said[1:]:
                total += one.float().softmax(dim=0)
            return (total / len(said)).cpu().numpy() if len(said) > 1 else total.cpu().numpy()

    def answer(self, channels: Tensor, symmetries: int = 1) -> NDArray[np.float32]:
        """Probabilities, float32 (8, h, w), the mean over *symmetries* flips and rotations of the window."""
        return self.probabilities(self.logits(channels, symmetries))

    def ask(self, s2: NDArray[np.uint16], s1: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of one window of which all is seen but zeros: a `mapping.Predict`."""
        return self.answer(self.prepare(Seen(s2, s1, np.asarray((s2[LIT] > 0).all(axis=0)))))


def together(parts: Sequence[NDArray[np.float32]], members: Sequence[Member], rule: str) -> NDArray[np.float32]:
    """The members' answers to one window, tempered and combined as `fusion.Fusion` does."""
    if len(parts) == 1:
        return temper(parts[0], members[0].temperature)
    tempered = [temper(part, member.temperature) for part, member in zip(parts, members, strict=True)]
    return combine(tempered, [member.weight for member in members], rule)


def load_member(path: str | os.PathLike[str]) -> Member:
    """
    The network in a checkpoint, or in the folder of a run, ready to answer on the device that its plan names.

    Raises MissingDataError or CheckpointError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / training.CHECKPOINT
    run = runs.load_checkpoint(path)
    network: Any = run.network.to(training.choose_device(run.plan.device))
    network.to(memory_format=torch.channels_last)
    return Member(path.stem, run, hashlib.sha256(path.read_bytes()).hexdigest())


def default_members() -> list[Member]:
    """The networks that come with the package, by name; see SYNTHETIC. MissingDataError when there are none."""
    files = sorted(SHIPPED.glob("*.safetensors"))
    if not files:
        do = "Give a network that you have trained: --model CHECKPOINT."
        raise MissingDataError(SHIPPED, found="no checkpoint", expected="some", do=do)
    return [load_member(file) for file in files]


def choose(members: Sequence[Member], has_s1: bool) -> list[Member]:
    """
    The members for a scene: with Sentinel-1 those that look at it, or all where none does; without, the others.

    Raises DataError when none is left.
    """
    with_s1 = [member for member in members if "s1" in member.inputs]
    chosen = with_s1 if has_s1 and with_s1 else [member for member in members if "s1" not in member.inputs]
    if not chosen:
        names = ", ".join(member.name for member in members)
        do = "Give its file (--s1), or a network that looks at Sentinel-2 alone (--model)."
        found = f"no Sentinel-1, which {names} looks at"
        raise DataError("members", found=found, expected="every sensor of a network", do=do)
    return chosen


PRIOR_POWER = 0.6
"""
Exponent of the coarse prior for members that have learnt elsewhere, chosen on sample worlds of seeds 100 and 101. Those
that have learnt from the labels of the place know them already, and lose by it (chapter *fusion*).
"""


def plan_for(coarse: bool, *, at_home: bool = False, **changes: Any) -> FusionPlan:
    """How members are brought together for a map, where there is a coarse map and where there is none."""
    return FusionPlan(**({"prior_power": PRIOR_POWER if coarse and not at_home else 0.0} | changes))
