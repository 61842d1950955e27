"""
The members of the default fusion and further ones, trained on an experiment.

    fused, seconds = fusion_of(experiment)
    classes = fused.classify(patch)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lcfuse_core.methods import fusion
from lcfuse_core.methods.adapt import Predict
from lcfuse_core.methods.experiment import Experiment, seconds
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.models import forest
from lcfuse_core.training import loop

DEFAULT = FusionPlan()

Member = Callable[[Experiment], tuple[Predict, float]]


def _adapted_member(kind: str, **changes: Any) -> Member:
    def member(experiment: Experiment) -> tuple[Predict, float]:
        run = experiment.network(kind)
        predict, spent = experiment.adapted_network(run, **changes)
        return predict, seconds(run) + spent

    return member


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


MEMBERS: dict[str, Member] = {
    "FCN": _adapted_member("fcn"),
    "FCN per region": _adapted_member("fcn", each_region=True),
    "source FCN": _source_member(),
    "source FCN, cell_forward": _source_member(loss="cell_forward"),
    "Full resolution": _adapted_member("full_resolution"),
    "Random forest": _target_forest,
}
"""
Possible ensemble members: functions that return probabilities and the seconds of their training. All learn from the
target regions except the source FCNs, which may know classes that the labels of the target regions lack.
"""

FUSED = ("FCN", "Random forest")
"""
Members of the default fusion. A member was added if its mean gain on sample worlds of seeds 100 and 101, which no table
shows, was larger than the spread of the gain. The registry has a row for what each adds on the tabled worlds.
"""


def shared_member(experiment: Experiment, name: str) -> tuple[Predict, float]:
    """Return a member whose predictions are computed once per patch, for all methods that use it."""
    predict, spent = MEMBERS[name](experiment)
    return experiment.shared(name, predict), spent


def fusion_of(
    experiment: Experiment, plan: FusionPlan = DEFAULT, members: tuple[str, ...] = FUSED
) -> tuple[Fusion, float]:
    """Return the fusion of these members, fitted on the coarse labels of the target regions, and the seconds."""
    # Each augmented patch is predicted once only, so nothing is shared.
    learn = shared_member if plan.symmetries == 1 else lambda experiment, name: MEMBERS[name](experiment)
    learned = {name: learn(experiment, name) for name in members}
    predicts, began = {name: predict for name, (predict, _) in learned.items()}, time.perf_counter()
    fused = Fusion(predicts, plan, experiment.posterior if plan.prior_power else None)
    if plan.calibrated or plan.weighted:
        gather = partial(fusion.gather, predicts, experiment.target_source)
        fused.fit(experiment.once(("evidence", members), gather), experiment.matrix)
    return fused, sum(spent for _, spent in learned.values()) + time.perf_counter() - began
