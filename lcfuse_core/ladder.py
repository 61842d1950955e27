"""
The ladder: every method of the book by name, and how it learns; a new loss is a row of it by its name in `LOSSES`.

    bench = Bench(chapter)
    learned = METHODS["FCN, weighted"](bench)
    results, _ = protocol.judge({"FCN, weighted": learned.classify}, bench.rows)

All methods learn from the same scenes, with the same plan where they train networks. Those whose name ends in "at home"
also learn from images and MODIS labels of the regions that are mapped, those "fresh at home" from nothing else; no
method reads the reference of the test split.
Trained networks are found again (`Chapter.trained`); what is learnt of a region is kept in memory with its bench.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lcfuse_core import adaptation, baselines, forest, patches, protocol, training
from lcfuse_core.adaptation import Predict
from lcfuse_core.bench import BOTH, Bench, at_home_plan, clusters_at_home, counted, estimated, seconds
from lcfuse_core.fusion import Fusion, FusionPlan
from lcfuse_core.legends import index_to_dfc
from lcfuse_core.losses import HEARS_SAVANNA, LOSSES
from lcfuse_core.networks import NETWORKS
from lcfuse_core.patches import PatchStack
from lcfuse_core.protocol import PLAIN, WEIGHTED, Classify
from lcfuse_core.transition import Matrix

COARSE, VALIDATION = "coarse only", "coarse + fine validation"


@dataclass(frozen=True)
class Learned:
    """A method that has learnt: its maps, the seconds that learning took, the labels it was allowed."""

    classify: Classify
    train_s: float = 0.0
    label_regime: str = COARSE


Method = Callable[[Bench], Learned]


def mapped(predict: Predict) -> Classify:
    """Maps from probabilities."""
    return lambda patch: index_to_dfc(predict(patch).argmax(axis=0))


def floor(classify: Classify) -> Method:
    """A map that needs no learning."""
    return lambda bench: Learned(classify)


def grown(power: float, *, neighbourhood: int = 0, prior_power: float = 0.0) -> Method:
    """A random forest."""

    def learn(bench: Bench) -> Learned:
        stack, began = bench.here.training_stack(), time.perf_counter()
        seed = bench.here.parameters["seed"]
        trees = forest.train_forest(stack, seed=seed, class_weight_power=power, neighbourhood=neighbourhood)
        spent = round(time.perf_counter() - began, 2)
        return Learned(partial(forest.classify, trees, prior_power=prior_power), spent)

    return learn


def network(kind: str = "fcn", power: float = WEIGHTED, **changes: Any) -> Method:
    """A network trained on the training scenes, with *changes* to its plan."""

    def learn(bench: Bench) -> Learned:
        run = bench.network(kind, power, **changes)
        return Learned(partial(training.classify, run), seconds(run))

    return learn


def corrected(loss: str, source: Callable[[Bench], Matrix], regime: str = COARSE, **changes: Any) -> Method:
    """A network whose loss takes its transition matrix from *source*."""

    def learn(bench: Bench) -> Learned:
        matrix = tuple(map(tuple, source(bench).tolist()))
        learned = network(loss=loss, transition=matrix, **changes)(bench)
        return replace(learned, label_regime=regime)

    return learn


def at_home(kind: str = "fcn", power: float = WEIGHTED, *, fresh: bool = False, **changes: Any) -> Method:
    """A network that goes on learning in each region, or learns there alone."""

    def learn(bench: Bench) -> Learned:
        run = bench.network(kind, power)
        predict, spent = bench.network_at_home(run, fresh=fresh, **changes)
        return Learned(mapped(predict), spent if fresh else seconds(run) + spent)

    return learn


def clusters(*, named_by_network: bool) -> Method:
    """Groups of like pixels in each region, named by the labels of its cells."""

    def learn(bench: Bench) -> Learned:
        predict, spent = clusters_at_home(bench, named_by_network)
        return Learned(mapped(predict), spent)

    return learn


def together_at_home(bench: Bench) -> Fusion:
    """The members of the fusion, each at home in every region, with the tempered coarse prior."""
    members = {kind: bench.network_at_home(bench.network(kind))[0] for kind in FUSED}
    return Fusion(members, FusionPlan(calibrated=False), bench.posterior)


FUSED = ("fcn", "full_resolution")
"""The networks of the default fusion."""


def fused(plan: FusionPlan, kinds: tuple[str, ...] = FUSED) -> Method:
    """A fusion of networks at home."""

    def learn(bench: Bench) -> Learned:
        members, spent = {}, 0.0
        for kind in kinds:
            run = bench.network(kind)
            members[kind], own = bench.network_at_home(run)
            spent += seconds(run) + own
        fusion, began = Fusion(members, plan, bench.posterior), time.perf_counter()
        fusion.fit(bench.patches_there(), bench.matrix)
        return Learned(fusion.classify, spent + time.perf_counter() - began)

    return learn


def student(*, confidence: float = 0.0) -> Method:
    """A weighted FCN that goes on learning in each region from the fusion's map of it, with plain labels of pixels."""

    def learn(bench: Bench) -> Learned:
        began, run = time.perf_counter(), bench.network()
        teacher = together_at_home(bench)
        labels = adaptation.pseudo_labels(teacher.predict, bench.patches_there(), confidence=confidence)
        stack = bench.there.with_labels(labels)
        own = adaptation.by_region(stack, [bench.region_of[name] for name in stack.names])
        plan = at_home_plan(run.plan, loss="cross_entropy")
        models = adaptation.adapted(run, own, plan)
        return Learned(mapped(bench.by_region(models, training.predict)), time.perf_counter() - began)

    return learn


def everywhere(**changes: Any) -> Method:
    """One network, fresh, on the coarse labels of training scenes and of the regions to be mapped."""

    def learn(bench: Bench) -> Learned:
        plan = replace(bench.here.plan("fcn", WEIGHTED), **changes)
        modis = PatchStack(bench.patches_there(), "modis", at_most=len(bench.rows))
        stack = patches.joined([bench.here.training_stack(), modis])
        run = bench.once(("everywhere", plan), lambda: training.train(stack, plan, progress=False))
        return Learned(partial(training.classify, run), seconds(run))

    return learn


POWERS = {"plain": PLAIN, "weighted": WEIGHTED}
KINDS = {kind: protocol.NAMES.get(kind, "Full resolution") for kind in NETWORKS}

METHODS: dict[str, Method] = {
    "MODIS label": floor(protocol.modis_map),
    "MODIS label, interpolated": floor(baselines.soft_map),
    "MODIS label, pixels swapped": floor(baselines.swapped_map),
    "Random forest, plain": grown(PLAIN),
    "Random forest, weighted": grown(WEIGHTED),
    "Random forest, weighted, neighbourhood": grown(WEIGHTED, neighbourhood=3),
    "Random forest, divided by label shares": grown(PLAIN, prior_power=0.5),
    **{f"{name}, {how}": network(kind, power) for kind, name in KINDS.items() for how, power in POWERS.items()},
    "FCN, weighted, S2 alone": network(inputs=("s2",)),
    "FCN, weighted, S1 alone": network(inputs=("s1",)),
    "FCN, weighted, late fusion": network(fusion="late"),
    **{f"FCN, weighted, {loss}": network(loss=loss) for loss in LOSSES if loss != "cross_entropy"},
    **{f"FCN, weighted, {loss}, Savanna a mixture": network(loss=loss, labels=BOTH) for loss in HEARS_SAVANNA},
    **{f"FCN, weighted, {loss}, matrix by EM": corrected(loss, estimated) for loss in ("forward", "cell_forward")},
    **{
        f"FCN, weighted, {loss}, matrix counted": corrected(loss, counted, VALIDATION)
        for loss in ("forward", "cell_forward")
    },
    "FCN, weighted, everywhere": everywhere(),
    "Clusters, at home": clusters(named_by_network=False),
    "Clusters and FCN, at home": clusters(named_by_network=True),
    **{f"FCN, {loss}, at home": at_home(loss=loss) for loss in ("cross_entropy", "generalised", "bag", "cell_mean")},
    "DeepLabv3+, plain, fresh at home": at_home("deeplabv3plus", PLAIN, fresh=True, loss="cross_entropy"),
    "FCN, cell_mean, fresh at home": at_home(fresh=True),
    "U-Net, cell_mean, at home": at_home("unet"),
    "Full resolution, cell_mean, at home": at_home("full_resolution"),
    "Fusion, at home": fused(FusionPlan(calibrated=False)),
    "Fusion without prior, at home": fused(FusionPlan(calibrated=False, prior_power=0)),
    "Student of the fusion, at home": student(),
    "Student of the sure fusion, at home": student(confidence=0.5),
}
"""Every method that is compared, by its name in tables and in the ledger."""
