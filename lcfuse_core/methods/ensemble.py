"""
The members of the default fusion and further ones, trained on an experiment.

    fused, seconds = fusion_of(experiment)
    classes = fused.classify(patch)

With few coarse cells per region (`few_cells`) the default fusion has a third member, which has not learned from the
target regions, and fine-tunes for fewer steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lcfuse_core.methods import baselines, few_cells, fusion
from lcfuse_core.methods.adapt import Predict, adaptation_plan
from lcfuse_core.methods.experiment import Experiment, seconds
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.models import forest
from lcfuse_core.scoring.identity import is_sample
from lcfuse_core.scoring.protocol import WEIGHTED
from lcfuse_core.training import loop

_DEFAULT = FusionPlan()


def adapted_member(experiment: Experiment, kind: str, **changes: Any) -> tuple[Predict, float]:
    """Fine-tune a weighted network on the target regions, with *changes* to the plan."""
    return experiment.adapted_network(experiment.network(kind), **changes)


def _briefly_adapted(experiment: Experiment) -> tuple[Predict, float]:
    """Fine-tune an FCN for `few_cells.steps_for`; with few cells `cell_forward` is the better loss to start from."""
    run = experiment.network(loss="cell_forward") if _is_transferable(experiment) else experiment.network()
    steps = few_cells.steps_for(cells_per_region(experiment), adaptation_plan(experiment.plan("fcn", WEIGHTED)).steps)
    return experiment.adapted_network(run, steps=steps)


def _source_member(experiment: Experiment, **changes: Any) -> tuple[Predict, float]:
    run = experiment.network(**changes)
    return partial(loop.predict, run), seconds(run)


def _target_forest(experiment: Experiment) -> tuple[Predict, float]:
    """Return the probabilities of a weighted forest that was trained on the target regions, and the seconds."""

    def train() -> tuple[forest.Forest, float]:
        began = time.perf_counter()
        trees = forest.train_forest(experiment.target_source, seed=experiment.seeds["training"])
        return trees, time.perf_counter() - began

    trees, spent = experiment.once("target forest", train)
    return partial(forest.predict, trees), spent


def _interpolated_label(experiment: Experiment) -> tuple[Predict, float]:
    """Return the interpolated MODIS label as probabilities."""
    source = experiment.target_source
    return lambda patch: baselines.interpolated(few_cells.labels_of(patch, source)), 0.0


_FCN, _FOREST, _SOURCE_FCN = "FCN", "Random forest", "source FCN, cell_forward"
_BRIEF_FCN, _INTERPOLATED = "FCN, few cells", "interpolated label"

_MEMBERS: dict[str, Callable[[Experiment], tuple[Predict, float]]] = {
    _FCN: partial(adapted_member, kind="fcn"),
    _FOREST: _target_forest,
    "FCN per region": partial(adapted_member, kind="fcn", each_region=True),
    "source FCN": _source_member,
    _SOURCE_FCN: partial(_source_member, loss="cell_forward"),
    "Full resolution": partial(adapted_member, kind="full_resolution"),
    _INTERPOLATED: _interpolated_label,
    _BRIEF_FCN: _briefly_adapted,
}
"""
Possible ensemble members: functions that return probabilities and the seconds of their training. All learn from the
target regions except the source FCNs, which may know classes that the labels of the target regions lack, and the
interpolated label, which is not trained.
"""

FUSED = (_FCN, _FOREST)
"""
Members of the default fusion. A member was added if its mean gain on sample worlds of seeds 100 and 101, which no table
shows, was larger than the spread of the gain. The registry has a row for what each adds on the tabled worlds.
"""

FURTHER = tuple(name for name in _MEMBERS if name not in (*FUSED, _BRIEF_FCN))
"""Members that could be added to the default fusion."""


def shared_member(experiment: Experiment, name: str) -> tuple[Predict, float]:
    """Return a member whose predictions are computed once per patch, for all methods that use it."""
    predict, spent = _MEMBERS[name](experiment)
    return experiment.shared(name, predict), spent


def _weights_of(experiment: Experiment, members: tuple[str, ...] = FUSED) -> dict[str, float]:
    """
    Return the members of the default fusion, and their weights, for the cells that the target regions have.

    With enough cells (`few_cells.FEW_CELLS` per region) they are *members* with equal weights. Below, the FCN is
    fine-tuned for fewer steps, and a network of the source regions is added with `few_cells.third_weight`; the
    interpolated label instead, where the source regions are synthetic and the target regions are not.
    """
    cells = cells_per_region(experiment)
    third = _SOURCE_FCN if _is_transferable(experiment) else _INTERPOLATED
    if not few_cells.scarcity(cells) or third in members:
        return dict.fromkeys(members, 1 / len(members))
    source, seed = experiment.target_source, experiment.seeds["training"]

    def preference() -> float:
        unseen = _MEMBERS[third](experiment)[0] if third == _SOURCE_FCN else few_cells.held_out_label(source, seed)
        return few_cells.preference(unseen, few_cells.held_out_forest(source, seed), source, experiment.matrix)

    weight = few_cells.third_weight(cells, experiment.once(("preference", third), preference))
    members = tuple(_BRIEF_FCN if name == _FCN else name for name in members)
    return {**dict.fromkeys(members, (1 - weight) / len(members)), third: weight}


def cells_per_region(experiment: Experiment) -> float:
    """Return the coarse cells per target region."""
    n_regions = len(experiment.target_regions)
    return experiment.once("cells per region", lambda: few_cells.cells_per_region(experiment.target_source, n_regions))


def _is_transferable(experiment: Experiment) -> bool:
    """Return whether networks of the source regions can be used in the target regions: both synthetic, or neither."""
    return is_sample(experiment.train_root) == is_sample(experiment.data_root)


def fusion_of(
    experiment: Experiment, plan: FusionPlan = _DEFAULT, members: tuple[str, ...] = FUSED, *, for_few_cells: bool = True
) -> tuple[Fusion, float]:
    """
    Return the fusion of these members, fitted on the coarse labels of the target regions, and the seconds.

    *for_few_cells*: whether a third member is added when cells are few, see `_weights_of`.
    """
    weights = _weights_of(experiment, members) if for_few_cells else dict.fromkeys(members, 1 / len(members))
    # Each augmented patch is predicted once only, so nothing is shared.
    learn = shared_member if plan.symmetries == 1 else lambda experiment, name: _MEMBERS[name](experiment)
    learned = {name: learn(experiment, name) for name in weights}
    predicts, began = {name: predict for name, (predict, _) in learned.items()}, time.perf_counter()
    fused = Fusion(predicts, plan, experiment.posterior if plan.prior_power else None, weights=weights)
    if plan.calibrated or plan.weighted:
        gather = partial(fusion.gather, predicts, experiment.target_source)
        fused.fit(experiment.once(("evidence", tuple(weights)), gather), experiment.matrix)
    return fused, sum(spent for _, spent in learned.values()) + time.perf_counter() - began
