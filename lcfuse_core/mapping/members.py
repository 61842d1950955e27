"""
Trained networks as the members of a map: found, chosen by the sensors that a scene has, asked window by window.

A `Member` prepares the channels of a window in one thread and answers for them in another. What it answers for a whole
patch is what `fusion.tta_mean` over `training.predict` gives.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core import _runtime
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX
from lcfuse_core.data.source import N_S1, PatchStack, normalise, turn
from lcfuse_core.errors import DataError, MissingDataError
from lcfuse_core.mapping.coarse import CoarseMap
from lcfuse_core.mapping.scene import LIT, Scene, Seen
from lcfuse_core.methods import adapt
from lcfuse_core.methods.fusion import FusionPlan, combine, symmetries_of, temper
from lcfuse_core.training import checkpoint, loop
from lcfuse_core.training.checkpoint import Run

SHIPPED = _runtime.SHIPPED / "checkpoints"
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
        with torch.inference_mode(), loop.precision(self.run.plan.precision, device):
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
        path = path / loop.CHECKPOINT
    run = checkpoint.load_checkpoint(path)
    network: Any = run.network.to(loop.choose_device(run.plan.device))
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


WINDOWS, WINDOW_PX = 64, 256
"""So many windows of this side are learnt from at most: 170 MB, and more than a thousand coarse cells."""

LEAST_SEEN = 0.9
"""Share of a window's pixels that must be seen: of the others nothing is learnt, but they spoil the statistics."""


def learn_at_home(
    scene: Scene, coarse: CoarseMap, member: Member, folder: str | os.PathLike[str], *, steps: int | None = None
) -> Member:
    """
    A copy of *member* that has gone on learning from windows of *scene* and their coarse labels.

    steps : of training; None: `adapt.ADAPTATION_STEPS_FRACTION` of those that the network has behind it

    The same scene, map and member find the checkpoint that is in *folder*. Raises DataError when no window is clear
    enough and labelled with one of the eight classes.
    """
    plan = adapt.adaptation_plan(member.run.plan)
    if steps is not None:
        plan = adapt.adaptation_plan(member.run.plan, steps=steps, report_every=steps)
    path = Path(folder) / f"at-home-{_key(scene, coarse, member, plan)}.safetensors"
    if not path.exists():
        stack = windows_to_learn_from(scene, coarse, crop=plan.crop, seed=plan.seed)
        learnt = adapt.adapted(member.run, {"scene": stack}, plan)["scene"]
        checkpoint.save_checkpoint(learnt, path)
    return load_member(path)


def windows_to_learn_from(scene: Scene, coarse: CoarseMap, *, crop: int, seed: int) -> PatchStack:
    """
    Up to `WINDOWS` windows of *scene*, drawn at random, with labels 0..7 (255: unseen, unlabelled or Savanna).

    crop : side of the crops that training will take; a scene smaller than `WINDOW_PX` has smaller windows, down to it
    """
    side = min(WINDOW_PX, *scene.grid.shape)
    if side < crop:
        do = "Map it without learning."
        raise DataError(scene.files[0], found=f"{scene.grid.shape} pixels", expected=f"{crop} a side", do=do)
    found: list[tuple[slice, slice]] = []
    for rows, cols in _places(scene.grid.shape, side, seed):
        labels, valid = coarse.labels(scene.grid, rows, cols), scene.read(rows, cols).valid
        if valid.mean() >= LEAST_SEEN and (labels[valid] < SAVANNA_INDEX).any():
            found.append((rows, cols))
        if len(found) == WINDOWS:
            break
    if not found:
        do = "Give the map of this place, or map without learning."
        expected = "one that is clear and has a coarse label"
        raise DataError(scene.files[0], found="no window to learn from", expected=expected, do=do)
    stack = PatchStack.empty(len(found), side, side)
    for rows, cols in found:
        _put(stack, scene, coarse, rows, cols)
    return stack


def _put(stack: PatchStack, scene: Scene, coarse: CoarseMap, rows: slice, cols: slice) -> None:
    seen, labels = scene.read(rows, cols), coarse.labels(scene.grid, rows, cols)
    s1 = np.zeros((N_S1, *labels.shape), np.float32) if seen.s1 is None else seen.s1
    known = seen.valid & (labels < SAVANNA_INDEX)
    if scene.grid.crs is None:
        cells = np.zeros(labels.shape, np.int32)
    else:
        place = scene.grid.place @ scene.grid.place.translation(cols.start, rows.start)
        cells = cell_ids(place, scene.grid.crs, labels.shape)[0]
    own = np.where(known, labels, np.uint8(IGNORE))
    stack.put(f"row {rows.start}, column {cols.start}", seen.s2, s1, own, cells)


def _places(shape: tuple[int, int], side: int, seed: int) -> Iterator[tuple[slice, slice]]:
    """Windows that do not overlap, in an order drawn from *seed*."""
    corners = [(row, col) for row in range(0, shape[0] - side + 1, side) for col in range(0, shape[1] - side + 1, side)]
    for number in np.random.default_rng(seed).permutation(len(corners)):
        row, col = corners[number]
        yield slice(row, row + side), slice(col, col + side)


def _key(scene: Scene, coarse: CoarseMap, member: Member, plan: checkpoint.TrainPlan) -> str:
    """What the result rests on; files by place, size and time."""
    files = [*scene.files, coarse.path]
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    parts = [stats, member.sha256, asdict(plan), _runtime.code_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
