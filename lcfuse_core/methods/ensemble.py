"""
The members of the default fusion and further ones, trained on an experiment.

    fused, seconds = fusion_of(experiment)
    classes = fused.classify(patch)

A fine-tuned network and a random forest learn the target regions from their coarse cells. With few cells they learn
which class dominates a region, and little more: a network that was trained on many other regions is then better. Below
`FEW_CELLS` cells per region the default fusion therefore has a third member, which has not learned from the target
regions, and fine-tunes for fewer steps; from there on it has two members.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.data import patches
from lcfuse_core.data.identity import is_sample
from lcfuse_core.data.legends import N_COARSE
from lcfuse_core.data.patches import Patch
from lcfuse_core.methods import baselines, fusion
from lcfuse_core.methods.adapt import Predict, adaptation_plan
from lcfuse_core.methods.experiment import Experiment, seconds
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.models import forest
from lcfuse_core.scoring.protocol import WEIGHTED
from lcfuse_core.scoring.spatial import CELL_PX
from lcfuse_core.training import loop

DEFAULT = FusionPlan()

FEW_CELLS, MOST_WEIGHT = 200.0, 0.85
"""
Labelled coarse cells per region from which the default fusion learns from the target regions alone, and the weight of
its third member where there are almost none. Chosen on development worlds (`benchmarks/few_cells.py`).
"""

Member = Callable[[Experiment], tuple[Predict, float]]


def scarcity(cells: float) -> float:
    """
    Return how few *cells* per region there are: 1 for none, falling in proportion to 0 from `FEW_CELLS` on.

    >>> scarcity(0), scarcity(50), scarcity(200), scarcity(1000)
    (1.0, 0.75, 0.0, 0.0)
    """
    return max(0.0, 1.0 - cells / FEW_CELLS)


def third_weight(cells: float) -> float:
    """Return the weight of the third member of the default fusion for *cells* per region; it falls to exactly 0."""
    return MOST_WEIGHT * scarcity(cells)


def steps_for(cells: float, steps: int) -> int:
    """Return the steps of fine-tuning for *cells* per region: *steps*, or fewer in proportion below `FEW_CELLS`."""
    return max(1, round(steps * (1.0 - scarcity(cells))))


def cells_per_region(experiment: Experiment) -> float:
    """Return the mean over target regions of the labelled area in coarse cells; Savanna is a label."""
    regions = experiment.target_regions

    def count() -> float:
        return sum(float(opened.class_counts(N_COARSE).sum()) for opened in regions.values()) / CELL_PX / len(regions)

    return experiment.once("cells per region", count)


def is_transferable(experiment: Experiment) -> bool:
    """Return whether networks of the source regions can be used in the target regions: both synthetic, or neither."""
    return is_sample(experiment.train_root) == is_sample(experiment.data_root)


def _adapted_member(kind: str, **changes: Any) -> Member:
    def member(experiment: Experiment) -> tuple[Predict, float]:
        run = experiment.network(kind)
        predict, spent = experiment.adapted_network(run, **changes)
        return predict, seconds(run) + spent

    return member


def _briefly_adapted(experiment: Experiment) -> tuple[Predict, float]:
    """Fine-tune the FCN of loss `cell_forward`, which is the better start when cells are few, by `steps_for`."""
    run = experiment.network(loss="cell_forward")
    steps = steps_for(cells_per_region(experiment), adaptation_plan(experiment.plan("fcn", WEIGHTED)).steps)
    predict, spent = experiment.adapted_network(run, steps=steps)
    return predict, seconds(run) + spent


def _source_member(**changes: Any) -> Member:
    def member(experiment: Experiment) -> tuple[Predict, float]:
        run = experiment.network(**changes)
        return partial(loop.predict, run), seconds(run)

    return member


def _target_forest(experiment: Experiment) -> tuple[Predict, float]:
    """Return the probabilities of a weighted forest that was trained on the target regions, and the seconds."""

    def train() -> tuple[forest.Forest, float]:
        began = time.perf_counter()
        trees = forest.train_forest(experiment.target_source, seed=experiment.seeds["training"])
        return trees, time.perf_counter() - began

    trees, spent = experiment.once("target forest", train)
    return partial(forest.predict, trees), spent


def _interpolated_label(experiment: Experiment) -> tuple[Predict, float]:
    """Return the interpolated MODIS label as probabilities; the label of a patch without one is read from its file."""

    def predict(patch: Patch) -> NDArray[np.float32]:
        if patch.lc is None:
            rows = experiment.rows[[name == patch.name for name in experiment.region_of]]
            [patch] = patches.iter_patches(rows, patches.Report(), ("s1", "s2", "lc"))
        return baselines.soft_label(patch)

    return predict, 0.0


FCN, FOREST, SOURCE_FCN = "FCN", "Random forest", "source FCN, cell_forward"
BRIEF_FCN, INTERPOLATED = "FCN, few cells", "interpolated label"

MEMBERS: dict[str, Member] = {
    FCN: _adapted_member("fcn"),
    FOREST: _target_forest,
    "FCN per region": _adapted_member("fcn", each_region=True),
    "source FCN": _source_member(),
    SOURCE_FCN: _source_member(loss="cell_forward"),
    "Full resolution": _adapted_member("full_resolution"),
    INTERPOLATED: _interpolated_label,
    BRIEF_FCN: _briefly_adapted,
}
"""
Possible ensemble members: functions that return probabilities and the seconds of their training. All learn from the
target regions except the source FCNs, which may know classes that the labels of the target regions lack, and the
interpolated label, which is not trained.
"""

FUSED = (FCN, FOREST)
"""
Members of the default fusion. A member was added if its mean gain on sample worlds of seeds 100 and 101, which no table
shows, was larger than the spread of the gain. The registry has a row for what each adds on the tabled worlds.
"""

FURTHER = tuple(name for name in MEMBERS if name not in (*FUSED, BRIEF_FCN))
"""Members that could be added to the default fusion."""


def shared_member(experiment: Experiment, name: str) -> tuple[Predict, float]:
    """Return a member whose predictions are computed once per patch, for all methods that use it."""
    predict, spent = MEMBERS[name](experiment)
    return experiment.shared(name, predict), spent


def weights_of(experiment: Experiment, members: tuple[str, ...] = FUSED) -> dict[str, float]:
    """
    Return the members of the default fusion, and their weights, for the cells that the target regions have.

    From `FEW_CELLS` on they are *members* with equal weights. Below, a network of the source regions is added, and the
    FCN is fine-tuned from it; where such networks cannot be used, the interpolated label is added instead.
    """
    third_share = third_weight(cells_per_region(experiment))
    third = SOURCE_FCN if is_transferable(experiment) else INTERPOLATED
    if not third_share or third in members:
        return dict.fromkeys(members, 1 / len(members))
    if is_transferable(experiment):
        members = tuple(BRIEF_FCN if name == FCN else name for name in members)
    return {**dict.fromkeys(members, (1 - third_share) / len(members)), third: third_share}


def fusion_of(
    experiment: Experiment, plan: FusionPlan = DEFAULT, members: tuple[str, ...] = FUSED, *, few_cells: bool = True
) -> tuple[Fusion, float]:
    """
    Return the fusion of these members, fitted on the coarse labels of the target regions, and the seconds.

    *few_cells*: whether a third member is added when cells are few, see `weights_of`.
    """
    weights = weights_of(experiment, members) if few_cells else dict.fromkeys(members, 1 / len(members))
    # Each augmented patch is predicted once only, so nothing is shared.
    learn = shared_member if plan.symmetries == 1 else lambda experiment, name: MEMBERS[name](experiment)
    learned = {name: learn(experiment, name) for name in weights}
    predicts, began = {name: predict for name, (predict, _) in learned.items()}, time.perf_counter()
    fused = Fusion(predicts, plan, experiment.posterior if plan.prior_power else None, weights=weights)
    if plan.calibrated or plan.weighted:
        gather = partial(fusion.gather, predicts, experiment.target_source)
        fused.fit(experiment.once(("evidence", tuple(weights)), gather), experiment.matrix)
    return fused, sum(spent for _, spent in learned.values()) + time.perf_counter() - began
