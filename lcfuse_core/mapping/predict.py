"""
Predict a scene in overlapping windows, from files of any height in constant memory.

    windows -> logits -> class probabilities -> blended strips -> coarse prior -> classes and confidence

Each step before the blending works ahead in its own thread (`prefetch`), so that reading costs next to no
time while the network computes. The order of computation is fixed: the same inputs give the same map, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.data.bands import channels_of, check_channels
from lcfuse_core.data.legends import SCORED
from lcfuse_core.data.source import normalise
from lcfuse_core.errors import DataError
from lcfuse_core.mapping.coarse import CoarseMap
from lcfuse_core.mapping.scene import B1_TO_B4, Scene, ScenePart, Source
from lcfuse_core.mapping.windows import Predicted, Tiling, blend
from lcfuse_core.mapping.write import LAYERS, STEPS
from lcfuse_core.methods import baselines
from lcfuse_core.methods.fusion import FusionPlan, combine
from lcfuse_core.models import forest
from lcfuse_core.training import checkpoint, loop
from lcfuse_core.training.loop import prefetch
from lcfuse_core.training.predict import logits as network_logits
from lcfuse_core.training.predict import probabilities as mean_softmax

_N = len(SCORED)
_SHIPPED = _runtime.SHIPPED / "checkpoints"  # small networks that come with the package, one per file
_BLOCK_PX = 512  # columns of a strip that are finished at a time

SYNTHETIC = (
    "The networks that come with the package are trained on synthetic scenes: their maps are for trying out only."
)

Where = tuple[slice, slice]
"""Rows and columns of a window of the scene."""

_Probabilities = Callable[[], NDArray[np.float32]]
"""Function that computes the probabilities (8, h, w) of a window."""


@dataclass(frozen=True)
class Network:
    """
    A trained network as an ensemble member.

    `prepare`, `forward` and the function that this returns each work in a thread of their own.
    """

    name: str
    run: checkpoint.Run
    weight: float = 1.0

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, the plan and the statistics."""
        parts = (checkpoint.network_digest(self.run.network), self.run.plan, self.run.statistics)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def prepare(self, part: ScenePart, where: Where) -> Tensor:
        """Return the channels (1, C, h, w), mean 0 and standard deviation 1; 0 where there is no data."""
        s2, s1 = map(torch.from_numpy, part.sensors)
        channels = normalise(s2, s1, self.run.statistics, self.run.plan.inputs)
        if not part.valid.all():
            channels *= torch.from_numpy(part.valid)
        return channels[None].contiguous(memory_format=torch.channels_last)

    def forward(self, prepared: Tensor, symmetries: int) -> _Probabilities:
        """Compute the logits of so many flips and rotations; return what gives the mean of their probabilities."""
        return partial(mean_softmax, network_logits(self.run, prepared, symmetries))

    def predict(self, s2: NDArray[np.uint16], s1: NDArray[np.float32]) -> NDArray[np.float32]:
        """
        Return the probabilities (8, h, w) of one image; pixels of 0 in B1 to B4 have no data.

        Raises DataError if a window without gaps does not have the channels of the network.
        """
        part = ScenePart(s2, s1, np.asarray((s2[B1_TO_B4] > 0).all(axis=0)))
        if part.valid.all():
            check_channels("scene", channels_of(s2, s1), self.run.statistics, self.run.plan.inputs)
        return self.forward(self.prepare(part, np.s_[:, :]), 1)()


@dataclass(frozen=True)
class Forest:
    """A random forest as an ensemble member; it classifies single pixels, so flips do not change its result."""

    forest: forest.Forest
    name: str = "random forest"
    weight: float = 1.0

    def prepare(self, part: ScenePart, where: Where) -> _Probabilities:
        """Return what gives the probabilities of the trees."""
        return partial(forest.predict, self.forest, part.sensors)


@dataclass(frozen=True)
class InterpolatedLabel:
    """The interpolated coarse label as an ensemble member: the same for any windows, as its labels have a margin."""

    coarse: CoarseMap
    weight: float = 1.0
    name: str = "interpolated label"

    def prepare(self, part: ScenePart, where: Where) -> _Probabilities:
        """Return what gives the proportions of the labels around each pixel."""
        labels, inside = self.coarse.labels_around(*where, baselines.REACH_PX)
        return lambda: baselines.interpolated(labels)[:, *inside]


Member = Network | Forest | InterpolatedLabel


def load_member(path: Source) -> Network:
    """
    Return the network in a checkpoint, or in the folder of a run, on the device that its plan names.

    Raises MissingDataError or CheckpointError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / checkpoint.LAST
    run = checkpoint.load_checkpoint(path)
    network: Any = run.network.to(loop.choose_device(run.plan.device))
    network.to(memory_format=torch.channels_last)
    return Network(path.stem, run)


def default_members() -> list[Network]:
    """Return the networks that come with the package (see `SYNTHETIC`), by sensors and weighting of the classes."""
    members = [load_member(file) for file in _SHIPPED.glob("*.safetensors")]
    return sorted(members, key=lambda member: (member.run.plan.inputs, member.run.plan.class_weight_power))


def choose(members: Sequence[Network], has_s1: bool) -> list[Network]:
    """
    Return the members that fit the sensors of a scene.

    With Sentinel-1 these are the members that use it, or all if none does; without, those that do not use it. Raises
    DataError if none is left.
    """
    with_s1 = [member for member in members if "s1" in member.run.plan.inputs]
    chosen = with_s1 if has_s1 and with_s1 else [member for member in members if member not in with_s1]
    if members and not chosen:
        found = f"no Sentinel-1, which {', '.join(member.name for member in members)} uses"
        do = "Give its file (--s1), or a network that uses Sentinel-2 alone (--model)."
        raise DataError("members", found=found, expected="every sensor of a network", do=do)
    return chosen


def strips(
    scene: Scene,
    members: Sequence[Member],
    tiling: Tiling,
    plan: FusionPlan,
    *,
    coarse: CoarseMap | None = None,
    layers: Iterable[str] = LAYERS,
    progress: bool = False,
) -> Generator[tuple[slice, dict[str, NDArray[np.uint8]]]]:
    """
    Yield strips of the map of a scene from north to south: their rows, and the pixels (bands, h, W) of *layers*.

    Threads read from *scene* until this generator has ended or is closed: close it before the scene.
    """
    posterior = coarse.posterior() if coarse is not None and plan.prior_power else None
    with (
        prefetch(_windows(scene, members, tiling), 2) as windows,
        prefetch(_forward(windows, members, plan), 1) as logits,
        prefetch(_fused(logits, members, plan), 1) as predictions,
    ):
        n = len(tiling.rows) * len(tiling.cols)
        for rows, total, valid in blend(tqdm(predictions, total=n, unit="window", disable=not progress), tiling, _N):
            strip = {
                name: np.full((len(LAYERS[name].bands), *valid.shape), LAYERS[name].nodata, np.uint8) for name in layers
            }
            for start in range(0, valid.shape[1], _BLOCK_PX):
                cols = slice(start, min(start + _BLOCK_PX, valid.shape[1]))
                prior = None
                if coarse is not None and posterior is not None:
                    labels, inside = coarse.labels_around(rows, cols, plan.prior_reach_px)
                    prior = plan.prior_factor(labels, posterior)[:, *inside]
                block = {name: pixels[..., cols] for name, pixels in strip.items()}
                _finish(block, total[..., cols], valid[:, cols], prior)
            yield rows, strip


class _Window(NamedTuple):
    row: int
    col: int
    valid: NDArray[np.bool_]
    inputs: list[Any]  # of each member: what it prepared, then its probabilities; empty where no pixel has data


def _windows(scene: Scene, members: Sequence[Member], tiling: Tiling) -> Iterator[_Window]:
    """Yield every window, row by row, with the input of each member; every pixel is read once."""
    above: list[ScenePart | None] = [None] * len(tiling.cols)
    top = 0
    for i, rows in enumerate(tiling.rows):
        kept = tiling.finished(i).stop - rows.start  # the rows from here on belong to the next windows, too
        part, left, start = None, 0, 0
        for j, cols in enumerate(tiling.cols):
            new = scene.read(slice(top, rows.stop), slice(left, cols.stop))
            column = _joined(above[j], new, axis=-2)
            above[j] = _cut(column, np.s_[..., kept:, :])
            part = _joined(part and _cut(part, np.s_[..., cols.start - start :]), column, axis=-1)
            left, start = cols.stop, cols.start
            prepared = [member.prepare(part, (rows, cols)) for member in members] if part.valid.any() else []
            yield _Window(i, j, part.valid, prepared)
        top = rows.stop


def _cut(part: ScenePart, where: tuple[Any, ...]) -> ScenePart:
    """Return a copy of a part, which does not keep the whole in memory."""
    return ScenePart(*(None if layer is None else layer[where].copy() for layer in part))  # type: ignore[arg-type]


def _joined(first: ScenePart | None, second: ScenePart, axis: int) -> ScenePart:
    """Return two parts side by side."""
    if first is None:
        return second
    pairs = zip(first, second, strict=True)
    return ScenePart(*(None if a is None else np.concatenate([a, b], axis=axis) for a, b in pairs))  # type: ignore[arg-type]


def _forward(windows: Iterable[_Window], members: Sequence[Member], plan: FusionPlan) -> Iterator[_Window]:
    """Apply the networks, and do nothing else: this thread is the slowest. Other members compute in the next one."""
    for window in windows:
        pairs = zip(members, window.inputs, strict=False)
        found = [m.forward(own, plan.symmetries) if isinstance(m, Network) else own for m, own in pairs]
        yield window._replace(inputs=found)


def _fused(windows: Iterable[_Window], members: Sequence[Member], plan: FusionPlan) -> Iterator[Predicted]:
    """Combine the members' probabilities of each window as `fusion.Fusion` does."""
    for row, col, valid, inputs in windows:
        parts = [probabilities() for probabilities in inputs]
        if len(parts) > 1:
            parts = [combine(parts, [member.weight for member in members], plan.rule)]
        yield Predicted(row, col, valid, parts[0] if parts else None)


def _finish(
    block: dict[str, NDArray[np.uint8]],
    probabilities: NDArray[np.float32],
    valid: NDArray[np.bool_],
    prior: NDArray[np.float32] | None,
) -> None:
    """Fill *block* where there are data: apply the prior, choose the most probable class, round the probabilities."""
    if prior is not None:
        probabilities = probabilities * prior
        probabilities /= np.maximum(probabilities.sum(axis=0), np.float32(1e-30))
    # Four times as fast as max and argmax; of equals, the first.
    highest, index = probabilities[0].copy(), np.zeros(valid.shape, np.uint8)
    for number, values in enumerate(probabilities[1:], start=1):
        np.copyto(index, np.uint8(number), where=values > highest)
        np.maximum(highest, values, out=highest)
    if not np.isfinite(highest).all():
        do = "Train the network again: it gives NaN for this scene."
        raise DataError("map", found="NaN or infinite probabilities", expected="0 to 1", do=do)
    np.copyto(block["landcover"][0], np.array(SCORED, np.uint8)[index], where=valid)
    np.copyto(block["confidence"][0], _steps(highest), where=valid)
    if "probabilities" in block:
        np.copyto(block["probabilities"], _steps(probabilities), where=valid)


def _steps(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return probabilities 0..1 as whole numbers 0..STEPS."""
    return (probabilities * np.float32(STEPS) + np.float32(0.5)).astype(np.uint8)
