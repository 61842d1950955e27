"""
The registry: every method that the book compares, by name; each loss of `LOSSES` is a row.

    experiment = Experiment.from_profile("compare")
    learned = METHODS["FCN, weighted"].learn(experiment)
    results, _ = protocol.evaluate_methods({"FCN, weighted": learned.classify}, experiment.rows)

All methods learn from the same scenes, with the same plan if they train networks. *Inductive* methods learn only from
the source regions, the training scenes. *Transductive* methods, named "..., target regions", also learn from the
images and MODIS labels of the regions that are evaluated: networks are fine-tuned there or, "target regions only",
trained from fresh weights. The reference of the test split is never used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from lcfuse_core.data import patches, source
from lcfuse_core.data.legends import SCORED, index_to_dfc
from lcfuse_core.methods import adapt, baselines
from lcfuse_core.methods.adapt import Predict
from lcfuse_core.methods.experiment import BOTH, Experiment, seconds
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.models import forest, transition
from lcfuse_core.models.losses import LOSSES, MIXED_LABEL_LOSSES
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.models.transition import Matrix
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.protocol import PLAIN, WEIGHTED, Classify
from lcfuse_core.training import loop

DEFAULT = FusionPlan()


@dataclass(frozen=True)
class Learned:
    """
    A trained method.

    Parameters
    ----------
    classify : callable
        Draws the map of a patch.
    train_s : float
        Duration of the training in seconds.
    rows : DataFrame, optional
        Index rows to evaluate on; by default those of the test split.
    """

    classify: Classify
    train_s: float = 0.0
    rows: pd.DataFrame | None = None


@dataclass(frozen=True)
class Method:
    """
    A row of the registry.

    Parameters
    ----------
    learn : callable
        Trains the method on the data of an experiment.
    regime : str
        "inductive", or "transductive" if it learns from images and coarse labels of the evaluated regions.
    label_regime : str
        One of `ledger.LABEL_REGIMES`.
    """

    learn: Callable[[Experiment], Learned]
    regime: Literal["inductive", "transductive"] = "inductive"
    label_regime: str = "coarse only"


transductive = partial(Method, regime="transductive")


def mapped(predict: Predict) -> Classify:
    """Return the function that draws maps from probabilities."""
    return lambda patch: index_to_dfc(predict(patch).argmax(axis=0))


def baseline(classify: Classify) -> Method:
    """Return a method that draws maps without training."""
    return Method(lambda experiment: Learned(classify))


def _forest(power: float, *, neighbourhood: int = 0, prior_power: float = 0.0) -> Method:
    def learn(experiment: Experiment) -> Learned:
        stack, began = experiment.training_stack(), time.perf_counter()
        seed = experiment.parameters["seed"]
        trees = forest.train_forest(stack, seed=seed, class_weight_power=power, neighbourhood=neighbourhood)
        spent = round(time.perf_counter() - began, 2)
        return Learned(partial(forest.classify, trees, prior_power=prior_power), spent)

    return Method(learn)


def _network(kind: str = "fcn", power: float = WEIGHTED, **changes: Any) -> Method:
    def learn(experiment: Experiment) -> Learned:
        run = experiment.network(kind, power, **changes)
        return Learned(partial(loop.classify, run), seconds(run))

    return Method(learn)


def _corrected(loss: str, matrix_of: Callable[[Experiment], Matrix], label_regime: str = "coarse only") -> Method:
    """Return a network whose loss has the transition matrix of *matrix_of*."""

    def learn(experiment: Experiment) -> Learned:
        matrix = tuple(map(tuple, matrix_of(experiment).tolist()))
        return _network(loss=loss, transition=matrix).learn(experiment)

    return Method(learn, label_regime=label_regime)


def estimated(experiment: Experiment) -> Matrix:
    """Return the transition matrix by EM, from the posteriors of the weighted FCN on the held-out scenes."""
    run, rng = experiment.network(), np.random.default_rng(0)
    posteriors, labels = [], []
    for patch in experiment.held_out:
        label = source.label_index(patch, BOTH).reshape(-1)
        chosen = rng.choice(label.size, min(4096, label.size), replace=False)
        posteriors.append(loop.predict(run, patch).reshape(len(SCORED), -1).T[chosen])
        labels.append(label[chosen])
    return transition.estimate(np.concatenate(posteriors), np.concatenate(labels), experiment.matrix)


def counted(experiment: Experiment) -> Matrix:
    """Return the transition matrix counted on the validation patches, whose reference track 2 may use."""
    table = patches.complete(patches.index(experiment.data_root), protocol.NEED)
    found, _ = patches.read_many(table[table["split"] == "validation"], protocol.NEED)
    pairs = [(source.label_index(patch, "fine"), source.label_index(patch, BOTH)) for patch in found]
    fine, coarse = (np.stack(side) for side in zip(*pairs, strict=True))
    return transition.counted(fine, coarse)


def _adapted(kind: str = "fcn", power: float = WEIGHTED, *, fresh: bool = False, **changes: Any) -> Method:
    """Return a network that is fine-tuned on the target regions, or (*fresh*) trained only there."""

    def learn(experiment: Experiment) -> Learned:
        run = experiment.network(kind, power)
        predict, spent = experiment.adapted_network(run, fresh=fresh, **changes)
        return Learned(mapped(predict), spent if fresh else seconds(run) + spent)

    return transductive(learn)


def _clusters(*, guess_by_network: bool) -> Method:
    """Return clusters of pixels in each target region, with classes from the labels of the cells."""

    def learn(experiment: Experiment) -> Learned:
        run = experiment.network() if guess_by_network else None
        fit = partial(
            adapt.fit_clusters,
            matrix=experiment.matrix,
            seed=experiment.parameters["seed"],
            guess=None if run is None else partial(loop.predict, run),
        )
        began = time.perf_counter()
        models = {region: fit(stack) for region, stack in experiment.target_regions.items()}
        spent = time.perf_counter() - began + (0 if run is None else seconds(run))
        return Learned(mapped(experiment.by_region(models, adapt.predict_clusters)), spent)

    return transductive(learn)


def _target_forest(experiment: Experiment) -> tuple[Predict, float]:
    """Return the probabilities of a weighted forest that was trained on the target regions, and the seconds."""
    began = time.perf_counter()

    def train() -> tuple[forest.Forest, float]:
        trees = forest.train_forest(experiment.target_stack, seed=experiment.parameters["seed"])
        return trees, time.perf_counter() - began

    trees, spent = experiment.once("target forest", train)
    return partial(forest.predict, trees), spent


def _forest_of_target_regions(experiment: Experiment) -> Learned:
    predict, spent = _target_forest(experiment)
    return Learned(mapped(predict), spent)


def _with_prior(plan: FusionPlan) -> Method:
    """Return the weighted FCN of the source regions, times the prior given the coarse labels of the target region."""

    def learn(experiment: Experiment) -> Learned:
        run = experiment.network()
        fusion = Fusion({"fcn": partial(loop.predict, run)}, plan, experiment.posterior)
        return Learned(fusion.classify, seconds(run))

    return Method(learn)


Member = Callable[[Experiment], tuple[Predict, float]]


def _network_member(kind: str, **changes: Any) -> Member:
    def member(experiment: Experiment) -> tuple[Predict, float]:
        run = experiment.network(kind)
        predict, spent = experiment.adapted_network(run, **changes)
        return predict, seconds(run) + spent

    return member


def _source_network(experiment: Experiment) -> tuple[Predict, float]:
    run = experiment.network()
    return partial(loop.predict, run), seconds(run)


MEMBERS: dict[str, Member] = {
    "FCN": _network_member("fcn"),
    "FCN per region": _network_member("fcn", each_region=True),
    "source FCN": _source_network,
    "Full resolution": _network_member("full_resolution"),
    "Random forest": _target_forest,
}
"""
Possible ensemble members: functions that return probabilities and the seconds of their training. All learn from the
target regions except the source FCN, which may know classes that the labels of the target regions lack.
"""

FUSED = ("FCN", "Random forest")
"""
Members of the default fusion. A member was added if its mean gain on sample worlds of seeds 100 and 101, which no table
shows, was larger than the spread of the gain. The registry has a row for what each adds on the tabled worlds.
"""


def fusion_of(
    experiment: Experiment, plan: FusionPlan = DEFAULT, members: tuple[str, ...] = FUSED
) -> tuple[Fusion, float]:
    """Return the fusion of these members, not yet fitted, and the seconds of their training."""
    learned = {name: MEMBERS[name](experiment) for name in members}
    # Augmented patches have the name of the original: their predictions must not be cached by name.
    keep = experiment.cached if plan.symmetries == 1 else lambda key, predict: predict
    predicts = {name: keep(("member", name), predict) for name, (predict, _) in learned.items()}
    return Fusion(predicts, plan, experiment.posterior), sum(spent for _, spent in learned.values())


def _fused(plan: FusionPlan = DEFAULT, members: tuple[str, ...] = FUSED) -> Method:
    def learn(experiment: Experiment) -> Learned:
        fusion, spent = fusion_of(experiment, plan, members)
        began = time.perf_counter()
        fusion.fit(experiment.target_patches(), experiment.matrix)
        return Learned(fusion.classify, spent + time.perf_counter() - began)

    return transductive(learn)


def _student(experiment: Experiment) -> Learned:
    """Return a weighted FCN that is fine-tuned on the fusion's maps of the target regions: self-training."""
    run, (teacher, spent) = experiment.network(), fusion_of(experiment)
    began = time.perf_counter()
    labels = adapt.pseudo_labels(teacher.predict, experiment.target_patches())
    plan = adapt.adaptation_plan(run.plan, loss="cross_entropy")
    own = loop.train(experiment.target_stack.with_labels(labels), plan, progress=False, start=run)
    return Learned(partial(loop.classify, own), spent + time.perf_counter() - began)


def _on_all_regions(experiment: Experiment) -> Learned:
    """Return an FCN that is trained on the coarse labels of source and target regions together."""
    target = source.PatchStack(experiment.target_patches(), "modis", at_most=len(experiment.rows))
    stack = source.joined([experiment.training_stack(), target])
    run = loop.train(stack, experiment.plan("fcn", WEIGHTED), progress=False)
    return Learned(partial(loop.classify, run), seconds(run))


def _supervised(trained_on: str, evaluated_on: str) -> Method:
    """
    Return the official network on fine labels: an upper bound, not a method of the book.

    *trained_on* "source" are the training scenes; "validation" are three of four validation patches, as in the
    published experiment. *evaluated_on* is the "test" split, or every "fourth" validation patch: the same regions.
    """

    def learn(experiment: Experiment) -> Learned:
        plan = replace(experiment.plan("deeplabv3plus", PLAIN), labels="fine")
        rows = protocol.evaluation_patches(experiment.data_root, "validation")
        fourth = rows.index % 4 == 3

        def train() -> Any:
            return loop.train(source.read_stack(rows[~fourth], "fine")[0], plan, progress=False)

        run = experiment.trained(plan) if trained_on == "source" else experiment.once("supervised", train)
        return Learned(partial(loop.classify, run), seconds(run), rows[fourth] if evaluated_on == "fourth" else None)

    return Method(learn, label_regime="fine")


_POWERS = {"plain": PLAIN, "weighted": WEIGHTED}
_KINDS = {kind: protocol.NAMES.get(kind, "Full resolution") for kind in NETWORKS}
_MATRIX_LOSSES = ("forward", "cell_forward")

METHODS: dict[str, Method] = {
    "MODIS label": baseline(protocol.modis_label_map),
    "MODIS label, interpolated": baseline(baselines.soft_map),
    "MODIS label, pixels swapped": baseline(baselines.swapped_map),
    "Random forest, plain": _forest(PLAIN),
    "Random forest, weighted": _forest(WEIGHTED),
    "Random forest, weighted, neighbourhood": _forest(WEIGHTED, neighbourhood=3),
    "Random forest, divided by label shares": _forest(PLAIN, prior_power=0.5),
    **{f"{name}, {how}": _network(kind, power) for kind, name in _KINDS.items() for how, power in _POWERS.items()},
    "DeepLabv3+, plain, S2 alone": _network("deeplabv3plus", PLAIN, inputs=("s2",)),
    "FCN, weighted, S2 alone": _network(inputs=("s2",)),
    "FCN, weighted, S1 alone": _network(inputs=("s1",)),
    "FCN, weighted, late fusion": _network(fusion="late"),
    **{f"FCN, weighted, {loss}": _network(loss=loss) for loss in LOSSES if loss != "cross_entropy"},
    **{f"FCN, weighted, {loss}, Savanna a mixture": _network(loss=loss, labels=BOTH) for loss in MIXED_LABEL_LOSSES},
    **{f"FCN, weighted, {loss}, matrix by EM": _corrected(loss, estimated) for loss in _MATRIX_LOSSES},
    **{
        f"FCN, weighted, {loss}, matrix counted": _corrected(loss, counted, "coarse + fine validation")
        for loss in _MATRIX_LOSSES
    },
    "FCN, weighted, source and target regions": transductive(_on_all_regions),
    "Clusters, target regions": _clusters(guess_by_network=False),
    "Clusters and FCN, target regions": _clusters(guess_by_network=True),
    **{f"FCN, {loss}, target regions": _adapted(loss=loss) for loss in ("cross_entropy", "cell_mean")},
    "FCN, cell_mean, each target region": _adapted(each_region=True),
    "FCN, cell_mean, target regions only": _adapted(fresh=True),
    "DeepLabv3+, plain, target regions only": _adapted("deeplabv3plus", PLAIN, fresh=True, loss="cross_entropy"),
    "U-Net, cell_mean, target regions": _adapted("unet"),
    "Full resolution, cell_mean, target regions": _adapted("full_resolution"),
    "Random forest, weighted, target regions": transductive(_forest_of_target_regions),
    "FCN, weighted, with coarse prior": _with_prior(FusionPlan(prior_power=0.6)),
    "FCN, weighted, with hard coarse prior": _with_prior(FusionPlan(prior_power=1, prior_blur_px=0, prior_doubt=0)),
    "Fusion, target regions": _fused(),
    **{f"Fusion and {name}, target regions": _fused(members=(*FUSED, name)) for name in MEMBERS if name not in FUSED},
    "Fusion by product, target regions": _fused(FusionPlan(rule="product")),
    "Fusion with TTA, target regions": _fused(FusionPlan(symmetries=8)),
    "Fusion calibrated, target regions": _fused(FusionPlan(calibrated=True)),
    "Fusion weighted, target regions": _fused(FusionPlan(calibrated=True, weighted=True)),
    "Fusion with coarse prior, target regions": _fused(FusionPlan(prior_power=0.3)),
    "Student of the fusion, target regions": transductive(_student),
}
"""Every method that is compared, by its name in tables and in the ledger."""

BOUNDS: dict[str, Method] = {
    "DeepLabv3+, supervised, training scenes": _supervised("source", "test"),
    "DeepLabv3+, supervised, source regions": _supervised("validation", "test"),
    "DeepLabv3+, supervised, target regions": _supervised("validation", "fourth"),
}
"""Bounds: the official network on fine labels of the training scenes, of other regions, and of the same regions."""
