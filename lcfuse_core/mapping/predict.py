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
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.data.bands import channels_of, check_channels
from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.data.source import normalise
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.mapping.coarse import CoarseMap
from lcfuse_core.mapping.scene import B1_TO_B4, Scene, ScenePart, Source
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

STEPS, _NODATA = 250, 255
"""Probabilities and confidence are stored as whole numbers 0..250, in steps of 0.004; 255 where there is no class."""


@dataclass(frozen=True)
class _Layer:
    """A raster of a map, uint8 (bands, H, W): codes of the legend DFC2020, or probabilities in `STEPS`."""

    bands: Sequence[str]
    nodata: int = _NODATA
    is_codes: bool = False


LAYERS = {
    "landcover": _Layer(["land cover"], DFC2020.unknown, is_codes=True),
    "confidence": _Layer(["highest probability"]),
    "probabilities": _Layer([DFC2020.name_of(code) for code in SCORED]),
}
"""The rasters of a map, by the name of the file."""

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


# Windows -------------------------------------------------------------------------------------------------------------


def _window_slices(length: int, window: int, overlap: int) -> list[slice]:
    """
    Return equal windows that cover `length` pixels, each overlapping the next by at least `overlap`.

    >>> _window_slices(100, 40, 10)
    [slice(0, 40, None), slice(30, 70, None), slice(60, 100, None)]
    >>> _window_slices(30, 40, 10)
    [slice(0, 30, None)]
    """
    window = min(window, length)
    starts = [*range(0, length - window, max(1, window - overlap)), length - window]
    return [slice(start, start + window) for start in starts]


def _side_weights(slices: list[slice], overlap: int, margin: int) -> list[NDArray[np.float32]]:
    """
    Return the weight of each window along one side, float32 (window,) each; at every pixel they sum to one.

    >>> [weights.tolist() for weights in _side_weights([slice(0, 4), slice(1, 5)], 3, 0)]
    [[1.0, 0.75, 0.5, 0.25], [0.25, 0.5, 0.75, 1.0]]
    """
    length = slices[-1].stop
    total = np.zeros(length)
    raw = []
    for pixels in slices:
        inside = np.arange(1, pixels.stop - pixels.start + 1)
        weight = np.ones(len(inside))
        for distance, at_edge in ((inside, pixels.start == 0), (inside[::-1], pixels.stop == length)):
            if not at_edge:
                weight *= np.clip((distance - margin) / (overlap - 2 * margin + 1), 0, 1)
        total[pixels] += weight
        raw.append(weight)
    return [(weight / total[pixels]).astype(np.float32) for weight, pixels in zip(raw, slices, strict=True)]


@dataclass(frozen=True)
class Tiling:
    """
    Windows over a scene of *shape*, (H, W) in pixels; see `blend`.

    All windows have one size, that of the scene where it is smaller. Raises ParameterError if the overlap exceeds half
    the window, or the margin half the overlap.
    """

    shape: tuple[int, int]
    window: int = 512
    overlap: int = 64
    margin: int = 16

    def __post_init__(self) -> None:
        good = self.window >= 1 and 0 <= self.overlap <= self.window // 2
        if not good or not 0 <= 2 * self.margin <= self.overlap:
            found = f"window={self.window}, overlap={self.overlap}, margin={self.margin}"
            expected = "an overlap of at most half the window, a margin of at most half the overlap"
            raise ParameterError("windows", found=found, expected=expected, do="512, 64 and 16 suit most networks.")

    @cached_property
    def rows(self) -> list[slice]:
        """Rows of each row of windows."""
        return _window_slices(self.shape[0], self.window, self.overlap)

    @cached_property
    def cols(self) -> list[slice]:
        """Columns of each column of windows."""
        return _window_slices(self.shape[1], self.window, self.overlap)

    def finished(self, i: int) -> slice:
        """Return the rows of the scene that row *i* of windows completes."""
        rows = self.rows[i]
        return slice(rows.start, self.rows[i + 1].start if i + 1 < len(self.rows) else rows.stop)


class Window(NamedTuple):
    """
    A window by its row and column of windows, its pixels with data (h, w), and what is known of it.

    First that is what each member has prepared, a list that is empty where no pixel has data, and last the
    probabilities (8, h, w), None where no pixel has data.
    """

    row: int
    col: int
    valid: NDArray[np.bool_]
    content: Any


def blend(
    predictions: Iterable[Window], tiling: Tiling, n_classes: int
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
    """
    Add up the weighted predictions of all windows, row by row, and yield rows of the scene when they are complete.

    The weight of a pixel is the product of a row weight and a column weight; the weights of all windows sum to one at
    every pixel. Towards an edge that is not an edge of the scene, a weight is 0 for `margin` pixels, where a network
    sees padding instead of the scene, and then rises linearly over the rest of the overlap. A network whose receptive
    field reaches no further than the margin gives the same map for any window size; others give a map without steps.

    Yields rows, their probabilities (n_classes, h, W) and valid pixels (h, W); the arrays are reused, so copy what you
    keep. Memory grows with the width of the scene, not with its height.
    """
    height, width = tiling.rows[0].stop, tiling.shape[1]
    total, valid = np.zeros((n_classes, height, width), np.float32), np.zeros((height, width), bool)
    sizes = tiling.overlap, tiling.margin
    row_weights, col_weights = _side_weights(tiling.rows, *sizes), _side_weights(tiling.cols, *sizes)
    for window in predictions:
        cols = tiling.cols[window.col]
        valid[:, cols] |= window.valid
        if window.content is not None:
            total[..., cols] += window.content * np.outer(row_weights[window.row], col_weights[window.col])
        if window.col == len(tiling.cols) - 1:
            rows = tiling.finished(window.row)
            n = rows.stop - rows.start
            yield rows, total[:, :n], valid[:n]
            for array in (total, valid):
                array[..., : height - n, :] = array[..., n:, :].copy()
                array[..., height - n :, :] = 0


# Strips of the map ---------------------------------------------------------------------------------------------------


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


def _windows(scene: Scene, members: Sequence[Member], tiling: Tiling) -> Iterator[Window]:
    """Yield every window, row by row, with the input of each member."""
    for (row, rows), (col, cols) in product(enumerate(tiling.rows), enumerate(tiling.cols)):
        # Overlaps are read twice: keeping them instead was as fast, in three times the code.
        part = scene.read(rows, cols)
        prepared = [member.prepare(part, (rows, cols)) for member in members] if part.valid.any() else []
        yield Window(row, col, part.valid, prepared)


def _forward(windows: Iterable[Window], members: Sequence[Member], plan: FusionPlan) -> Iterator[Window]:
    """Apply the networks, and do nothing else: this thread is the slowest. Other members compute in the next one."""
    for window in windows:
        pairs = zip(members, window.content, strict=False)
        found = [m.forward(own, plan.symmetries) if isinstance(m, Network) else own for m, own in pairs]
        yield window._replace(content=found)


def _fused(windows: Iterable[Window], members: Sequence[Member], plan: FusionPlan) -> Iterator[Window]:
    """Combine the members' probabilities of each window as `fusion.Fusion` does."""
    for window in windows:
        parts = [probabilities() for probabilities in window.content]
        if len(parts) > 1:
            parts = [combine(parts, [member.weight for member in members], plan.rule)]
        yield window._replace(content=parts[0] if parts else None)


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
