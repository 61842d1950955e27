"""
Learning at home, for a scene of any size: windows of it with their coarse labels, on which a network goes on learning.

A network that has learnt elsewhere meets a scene as a stranger, but the coarse map knows the place. On the sample
worlds nothing is worth as much as this (chapter *methods_compared*). No reference is needed.

    member = learn_at_home(scene, coarse, member, folder)

What was learnt is kept in *folder* as a checkpoint, so that a map that was stopped goes on with the same network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lcfuse_core import adaptation, machines, runs
from lcfuse_core.cells import cell_ids
from lcfuse_core.coarse import CoarseMap
from lcfuse_core.errors import DataError
from lcfuse_core.legends import IGNORE, SAVANNA_INDEX
from lcfuse_core.members import Member, load_member
from lcfuse_core.patches import N_S1, PatchStack
from lcfuse_core.rasters import Scene

WINDOWS, WINDOW_PX = 64, 256
"""So many windows of this side are learnt from at most: 170 MB, and more than a thousand coarse cells."""

LEAST_SEEN = 0.9
"""Share of a window's pixels that must be seen: of the others nothing is learnt, but they spoil the statistics."""


def learn_at_home(
    scene: Scene, coarse: CoarseMap, member: Member, folder: str | os.PathLike[str], *, steps: int | None = None
) -> Member:
    """
    A copy of *member* that has gone on learning from windows of *scene* and their coarse labels.

    steps : of training; None: `adaptation.AT_HOME_SHARE` of those that the network has behind it

    The same scene, map and member find the checkpoint that is in *folder*. Raises DataError when no window is clear
    enough and labelled with one of the eight classes.
    """
    plan = adaptation.at_home_plan(member.run.plan)
    if steps is not None:
        plan = adaptation.at_home_plan(member.run.plan, steps=steps, report_every=steps)
    path = Path(folder) / f"at-home-{_key(scene, coarse, member, plan)}.safetensors"
    if not path.exists():
        stack = windows_to_learn_from(scene, coarse, crop=plan.crop, seed=plan.seed)
        learnt = adaptation.adapted(member.run, {"scene": stack}, plan)["scene"]
        runs.save_checkpoint(learnt, path)
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


def _key(scene: Scene, coarse: CoarseMap, member: Member, plan: runs.TrainPlan) -> str:
    """What the result rests on; files by place, size and time."""
    files = [*scene.files, coarse.path]
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    parts = [stats, member.sha256, asdict(plan), machines.code_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
