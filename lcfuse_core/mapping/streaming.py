"""
From an open scene to finished strips of its map, in constant memory: read, prepare, ask, blend, each in its thread.

    sections -> windows -> probabilities -> strips of classes, confidence, probabilities

Each stage is a generator that works ahead of the next (`ahead`), so that reading and writing cost next to nothing while
the network computes. All that decides a number happens in one order, so that a map is the same, to the bit, whether
it was made in one go or after a hundred interruptions.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import DataError
from lcfuse_core.mapping.coarse import CoarseMap
from lcfuse_core.mapping.members import Member, together
from lcfuse_core.mapping.scene import Scene, Seen
from lcfuse_core.mapping.windows import Tiling, Unit
from lcfuse_core.methods.fusion import FusionPlan, coarse_prior
from lcfuse_core.models.transition import Matrix
from lcfuse_core.training.feed import ahead

STEPS = 250
"""Probabilities and confidence are stored as whole numbers 0..250, in steps of 0.004."""

NOTHING = 255
"""Their value where the map has no class."""

CHUNK_ROWS = 64


class Strip(NamedTuple):
    """
    A finished part of a map.

    classes : uint8 (h, w), DFC2020 codes, 0 where nothing was seen
    confidence : uint8 (h, w), highest probability times STEPS; NOTHING where there is no class
    probabilities : uint8 (8, h, w), the same for each class in the order of SCORED; None when not asked for
    """

    unit: Unit
    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None


class _Window(NamedTuple):
    row: int
    col: int
    valid: NDArray[np.bool_]
    channels: list[Tensor]  # of each member; none when nothing is seen


class _Said(NamedTuple):
    row: int
    col: int
    valid: NDArray[np.bool_]
    logits: list[list[Tensor]]  # of each member, of each flip and rotation; none when nothing is seen


class _Answer(NamedTuple):
    row: int
    col: int
    valid: NDArray[np.bool_]
    probabilities: NDArray[np.float32] | None


def strips(
    scene: Scene,
    members: Sequence[Member],
    tiling: Tiling,
    units: Sequence[Unit],
    plan: FusionPlan,
    *,
    coarse: CoarseMap | None = None,
    posterior: Matrix | None = None,
    keep_probabilities: bool = False,
) -> Generator[Strip | int]:
    """
    The strips of *units* in their order, and between them the number of windows that were looked at since.

    units : of `tiling.units()`, all or those that are not done yet

    Threads read from *scene* until this generator has ended or is closed: close it before the scene.
    """
    finish = _Finish(scene, plan, coarse, posterior, keep_probabilities)
    for part in _together(units):
        with (
            ahead(_sections(scene, tiling, part), 4) as sections,
            ahead(_windows(sections, members, tiling, part), 2) as windows,
            ahead(_said(windows, members, plan), 1) as said,
            ahead(_answers(said, members, plan), 1) as answers,
        ):
            yield from _blend(answers, tiling, part, finish)


def _together(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units that follow one another in one panel."""
    part: list[Unit] = []
    for unit in units:
        if part and (unit.panel != part[-1].panel or unit.number != part[-1].number + 1):
            yield part
            part = []
        part.append(unit)
    if part:
        yield part


def _sections(scene: Scene, tiling: Tiling, part: list[Unit]) -> Iterator[Seen]:
    """What each window of *part* adds to those above it and to its left: every pixel is read once."""
    wanted = tiling.columns_of(part[0].panel)
    top = tiling.rows[part[0].first].start
    for i in range(part[0].first, part[-1].last + 1):
        left = tiling.cols[wanted[0]].start
        for j in wanted:
            yield scene.read(slice(top, tiling.rows[i].stop), slice(left, tiling.cols[j].stop))
            left = tiling.cols[j].stop
        top = tiling.rows[i].stop


def _windows(
    sections: Iterator[Seen], members: Sequence[Member], tiling: Tiling, part: list[Unit]
) -> Iterator[_Window]:
    """Every window of *part*, row by row, with the channels that each member takes."""
    wanted = tiling.columns_of(part[0].panel)
    above: list[Seen | None] = [None] * len(wanted)
    for i in range(part[0].first, part[-1].last + 1):
        below = tiling.rows[min(i + 1, len(tiling.rows) - 1)].start - tiling.rows[i].start
        seen: Seen | None = None
        for k, j in enumerate(wanted):
            column = _joined(above[k], next(sections), axis=-2)
            above[k] = _cut(column, np.s_[..., below:, :])
            step = tiling.cols[j].start - tiling.cols[wanted[max(0, k - 1)]].start
            seen = _joined(None if seen is None else _cut(seen, np.s_[..., step:]), column, axis=-1)
            channels = [member.prepare(seen) for member in members] if seen.valid.any() else []
            yield _Window(i, j, seen.valid, channels)


def _cut(seen: Seen, part: tuple[Any, ...]) -> Seen:
    """A copy of a part, which does not hold the whole in memory."""
    return Seen(*(None if layer is None else layer[part].copy() for layer in seen))  # type: ignore[arg-type]


def _joined(one: Seen | None, other: Seen, axis: int) -> Seen:
    """Two parts side by side."""
    if one is None:
        return other
    pairs = zip(one, other, strict=True)
    return Seen(*(None if a is None else np.concatenate([a, b], axis=axis) for a, b in pairs))  # type: ignore[arg-type]


def _said(windows: Iterator[_Window], members: Sequence[Member], plan: FusionPlan) -> Iterator[_Said]:
    """What the networks say of each window: all that this thread does, since it is what a map waits for."""
    for window in windows:
        asked = zip(members, window.channels, strict=False)  # none when nothing is seen
        said = [member.logits(channels, plan.symmetries) for member, channels in asked]
        yield _Said(window.row, window.col, window.valid, said)


def _answers(said: Iterator[_Said], members: Sequence[Member], plan: FusionPlan) -> Iterator[_Answer]:
    """What the members say together of each window."""
    for window in said:
        probabilities = None
        if window.logits:
            probabilities = together([Member.probabilities(one) for one in window.logits], members, plan.rule)
        yield _Answer(window.row, window.col, window.valid, probabilities)


def _blend(answers: Iterator[_Answer], tiling: Tiling, part: list[Unit], finish: _Finish) -> Iterator[Strip | int]:
    """Add up the windows of each row of windows, and let go of the rows that are finished by it."""
    panel, last_col = part[0].cols, tiling.columns_of(part[0].panel)[-1]
    height = tiling.rows[0].stop
    total = np.zeros((len(SCORED), height, panel.stop - panel.start), np.float32)
    valid = np.zeros(total.shape[1:], bool)
    due = {unit.last: unit for unit in part}
    for answer in answers:
        cols = tiling.cols[answer.col]
        here = slice(max(cols.start, panel.start), min(cols.stop, panel.stop))
        at, of = (
            slice(here.start - panel.start, here.stop - panel.start),
            slice(here.start - cols.start, here.stop - cols.start),
        )
        valid[:, at] |= answer.valid[:, of]
        if answer.probabilities is not None:
            weight = np.outer(tiling.row_weights[answer.row], tiling.col_weights[answer.col][of])
            total[..., at] += answer.probabilities[..., of] * weight
        yield 1
        if answer.col != last_col:
            continue
        rows = tiling.rows[answer.row]
        stop = tiling.rows[answer.row + 1].start if answer.row + 1 < len(tiling.rows) else rows.stop
        n = stop - rows.start
        if answer.row in due:
            yield finish(due[answer.row], total[:, :n], valid[:n])
        for field in (total, valid):
            field[..., : height - n, :] = field[..., n:, :].copy()
            field[..., height - n :, :] = 0


class _Finish:
    """The last step at each pixel: the coarse prior, the likeliest class, how likely it is."""

    def __init__(
        self,
        scene: Scene,
        plan: FusionPlan,
        coarse: CoarseMap | None,
        posterior: Matrix | None,
        keep_probabilities: bool,
    ) -> None:
        self.grid, self.plan, self.coarse, self.keep = scene.grid, plan, coarse, keep_probabilities
        self.posterior = plan.doubted(posterior) if posterior is not None and plan.prior_power else None
        self.codes = np.array(SCORED, np.uint8)

    def __call__(self, unit: Unit, total: NDArray[np.float32], valid: NDArray[np.bool_]) -> Strip:
        shape = valid.shape
        classes, confidence = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        kept = np.empty((len(SCORED), *shape), np.uint8) if self.keep else None
        for start in range(0, shape[0], CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, shape[0]))
            probabilities = total[:, rows]
            prior = self._prior(slice(unit.rows.start + rows.start, unit.rows.start + rows.stop), unit.cols)
            if prior is not None:
                probabilities = probabilities * prior
                probabilities /= np.maximum(probabilities.sum(axis=0), np.float32(1e-30))
            highest, index = _highest(probabilities)
            seen = valid[rows]
            if not np.isfinite(highest).all():
                do = "Train the network anew: it gives NaN for this scene."
                raise DataError("map", found="probabilities that are no numbers", expected="0 to 1", do=do)
            classes[rows] = np.where(seen, self.codes[index], 0)
            confidence[rows] = np.where(seen, _steps(highest), NOTHING)
            if kept is not None:
                kept[:, rows] = np.where(seen, _steps(probabilities), NOTHING)
        return Strip(unit, classes, confidence, kept)

    def _prior(self, rows: slice, cols: slice) -> NDArray[np.float32] | None:
        if self.coarse is None or self.posterior is None:
            return None
        power, blur_px = self.plan.prior_power, self.plan.prior_blur_px
        if not blur_px:  # largest value 1, before and after the power
            return coarse_prior(self.coarse.labels(self.grid, rows, cols), self.posterior**power)
        around = int(4 * blur_px + 0.5)  # as far as scipy's Gaussian reaches
        wide = [
            slice(max(0, part.start - around), min(size, part.stop + around))
            for part, size in zip((rows, cols), self.grid.shape, strict=True)
        ]
        inside = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip((rows, cols), wide, strict=True))
        prior = coarse_prior(self.coarse.labels(self.grid, *wide), self.posterior, blur_px)
        return prior[:, *inside] ** np.float32(power)


def _highest(probabilities: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Highest probability of (8, h, w) and its class, the first of equals; four times as fast as max and argmax."""
    highest, index = probabilities[0].copy(), np.zeros(probabilities.shape[1:], np.uint8)
    for number, one in enumerate(probabilities[1:], start=1):
        np.copyto(index, np.uint8(number), where=one > highest)
        np.maximum(highest, one, out=highest)
    return highest, index


def _steps(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probabilities 0..1 as whole numbers 0..STEPS."""
    return (probabilities * np.float32(STEPS) + np.float32(0.5)).astype(np.uint8)
