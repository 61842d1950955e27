"""
Train the members of a map on the coarse labels of the scene itself.

With few coarse cells a network and a random forest learn which class dominates the scene, and little more. The rule of
`methods.few_cells` therefore adds a third member that has not learned from the scene, with a weight that is estimated
from held-out cells, and trains for fewer steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lcfuse_core import _runtime
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import IGNORE, N_COARSE, SAVANNA_INDEX
from lcfuse_core.data.source import PatchStack
from lcfuse_core.errors import DataError
from lcfuse_core.mapping.coarse import CoarseMap
from lcfuse_core.mapping.predict import Forest, InterpolatedLabel, Member, Network, Where, load_member
from lcfuse_core.mapping.scene import Scene, Source
from lcfuse_core.methods import few_cells
from lcfuse_core.methods.adapt import Predict, adaptation_plan
from lcfuse_core.models import transition
from lcfuse_core.models.forest import train_forest
from lcfuse_core.training import checkpoint, loop
from lcfuse_core.training.plan import TrainPlan

_STEPS = 900  # of training on one scene, as the method table fine-tunes a network on its target regions
_MAX_WINDOWS, _WINDOW_PX = 64, 256  # for training, and their side: 170 MB, and more than a thousand coarse cells
_MIN_VALID = 0.9  # fraction of a window's pixels: others are not learnt from, but they distort the statistics
_MOST_HELD_OUT_PX = 2**20  # 40 MB: windows within it are read as one patch for the estimate from held-out cells


def train_on_scene(
    scene: Scene,
    coarse: CoarseMap,
    networks: Sequence[Network],
    folder: Source,
    *,
    steps: int | None = None,
    progress: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[list[Member], dict[str, Any]]:
    """
    Train networks and a random forest on windows of *scene* with their coarse labels.

    Below `few_cells.FEW_CELLS` labelled cells a third member is added: the interpolated label, or the given networks
    as they were. Its weight depends on the number of cells, and on the probability that it predicts the labels of
    held-out cells better than a forest that was trained on the other cells.

    Parameters
    ----------
    scene, coarse : Scene, CoarseMap
        Images and labels.
    networks : sequence of Network
        Copies are fine-tuned; without any, one network is trained from fresh weights.
    folder : path
        Each training has a folder in it: a finished one is found, an interrupted one continues.
    steps : int, optional
        Training steps; by default 900, in proportion to the cells if these are few.
    progress : bool
        Whether to show a bar.
    report : callable
        Gets a message if a third member was added.

    Returns
    -------
    members, record : list of Member, dict
        Trained members with their weights, and what is recorded of their training: cells, steps, third member.

    Raises
    ------
    DataError
        If no window is clear enough and labelled with one of the eight classes.
    """
    starts: list[checkpoint.Run | None] = [network.run for network in networks] or [None]
    fresh = TrainPlan(inputs=("s2", "s1") if scene.has_s1 else ("s2",))
    crop = max((start.plan if start else fresh).crop for start in starts)
    windows = _training_windows(scene, coarse, crop=crop, seed=fresh.seed)
    stack = _labelled_stack(scene, coarse, windows)
    cells = few_cells.cells_per_region(stack)
    if steps is None:
        steps = few_cells.steps_for(cells, _STEPS)
    third, record = _third_members(scene, coarse, networks, windows, stack, cells)
    record = {"cells": round(cells, 1), "steps": steps, **record}
    if third:
        report(
            f"{cells:.0f} labelled coarse cells, fewer than {few_cells.FEW_CELLS:.0f}: {steps} training steps, and a"
            f" third member, {record['third_member']}, with a weight of {record['third_weight']:.2f} (probability that"
            f" it predicts held-out cells better than a forest: {record['preference']:.2f})"
        )
    members: list[Member] = []
    for start in starts:
        plan = adaptation_plan(start.plan if start else fresh, steps=steps, report_every=steps)
        weights = checkpoint.network_digest(start.network) if start else ""
        parts = (stack.digest(), weights, plan, _runtime.code_digest(*_runtime.TRAINING_CODE))
        run_dir = Path(folder) / f"trained-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
        loop.train(stack, plan, run_dir, progress=progress, start=start)
        # Read back even when it was trained just now: both ways must give the same map.
        members.append(replace(load_member(run_dir), name=run_dir.name))
    members.append(Forest(train_forest(stack, seed=fresh.seed)))
    if third:
        share = (1 - sum(member.weight for member in third)) / len(members)
        members = [replace(member, weight=share) for member in members] + third
    return members, record


def _third_members(
    scene: Scene,
    coarse: CoarseMap,
    networks: Sequence[Network],
    windows: Sequence[Where],
    stack: PatchStack,
    cells: float,
) -> tuple[list[Member], dict[str, Any]]:
    """Return what has not learned from the scene, with its weight, if cells are few; and the record of the estimate."""
    if not few_cells.scarcity(cells):
        return [], {"third_member": None, "third_weight": 0.0, "preference": None}
    # Cells at the border of two windows would be cut, and a forest would learn from one part of what it is tested on.
    rows, cols = (slice(min(w[i].start for w in windows), max(w[i].stop for w in windows)) for i in (0, 1))
    if (rows.stop - rows.start) * (cols.stop - cols.start) <= _MOST_HELD_OUT_PX:
        stack = _labelled_stack(scene, coarse, [(rows, cols)])
    matrix, seed = transition.from_accuracy(stack.class_counts(N_COARSE).double().numpy()), TrainPlan().seed
    unseen = _mean_of(networks) if networks else few_cells.held_out_label(stack, seed)
    preference = few_cells.preference(unseen, few_cells.held_out_forest(stack, seed), stack, matrix)
    weight = few_cells.third_weight(cells, preference)
    third: list[Member] = [replace(network, weight=weight / len(networks)) for network in networks]
    name = "the given network" if len(networks) == 1 else "the given networks" if networks else "the interpolated label"
    record = {"third_member": name, "third_weight": round(weight, 4), "preference": round(preference, 4)}
    return third or [InterpolatedLabel(coarse, weight)], record


def _mean_of(networks: Sequence[Network]) -> Predict:
    predicts = [partial(loop.predict, network.run) for network in networks]
    return lambda patch: np.mean([predict(patch) for predict in predicts], axis=0)


def _training_windows(scene: Scene, coarse: CoarseMap, *, crop: int, seed: int) -> list[Where]:
    """
    Return the rows and columns of up to 64 random, disjoint windows of *scene* that are clear and labelled.

    crop : side of training crops; windows of a scene smaller than 256 px are smaller, down to it
    """
    side = min(_WINDOW_PX, *scene.grid.shape)
    if side < crop:
        found, expected = f"{scene.grid.shape} pixels", f"{crop} per side"
        raise DataError(scene.files[0], found=found, expected=expected, do="Map it with --model, without training.")
    corners = [*product(*(range(0, size - side + 1, side) for size in scene.grid.shape))]
    found_windows = []
    for number in np.random.default_rng(seed).permutation(len(corners)):
        row, col = corners[number]
        window = slice(row, row + side), slice(col, col + side)
        labels, valid = coarse.labels(*window), scene.read(*window).valid
        if valid.mean() >= _MIN_VALID and (labels[valid] < SAVANNA_INDEX).any():
            found_windows.append(window)
        if len(found_windows) == _MAX_WINDOWS:
            break
    if not found_windows:
        do = "Give the map of this area, or map it with --model, without training."
        expected = "one that is clear and has a coarse label"
        raise DataError(scene.files[0], found="no window for training", expected=expected, do=do)
    return found_windows


def _labelled_stack(scene: Scene, coarse: CoarseMap, windows: Sequence[Where]) -> PatchStack:
    """Return windows of one size with labels 0..7 (255: not valid, unlabelled or Savanna)."""
    height, width = (part.stop - part.start for part in windows[0])
    stack = PatchStack.empty(len(windows), height, width)
    for window in windows:
        part, labels = scene.read(*window), coarse.labels(*window)
        row, col = (pixels.start for pixels in window)
        affine = scene.grid.affine @ scene.grid.affine.translation(col, row)
        stack.put(
            f"row {row}, column {col}",
            *part.sensors,
            np.where(part.valid & (labels < SAVANNA_INDEX), labels, np.uint8(IGNORE)),
            cell_ids(affine, str(scene.grid.crs), labels.shape)[0],
        )
    return stack
