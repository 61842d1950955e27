"""
The ladder: every method of the book by name, and how it learns; a new loss is a row of it by its name in `LOSSES`.

    bench = Bench(chapter)
    learned = METHODS["FCN, weighted"](bench)
    results, _ = protocol.evaluate_methods({"FCN, weighted": learned.classify}, bench.rows)

All methods learn from the same scenes, with the same plan where they train networks. Those "at home" also learn from
images and MODIS labels of the places that are mapped, all regions together or "by region", those "fresh at home" from
nothing else; no method reads the reference of the test split.
Trained networks are found again (`Chapter.trained`); what is learnt at home is kept in memory with its bench.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lcfuse_core.data import source as patches
from lcfuse_core.data.legends import index_to_dfc
from lcfuse_core.data.source import PatchStack
from lcfuse_core.methods import adapt, baselines
from lcfuse_core.methods.adapt import Predict, at_home_plan
from lcfuse_core.methods.bench import BOTH, Bench, clusters_at_home, counted, estimated, forest_at_home, seconds
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.models import forest
from lcfuse_core.models.losses import HEARS_SAVANNA, LOSSES
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.models.transition import Matrix
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.protocol import PLAIN, WEIGHTED, Classify
from lcfuse_core.training import loop

DEFAULT = FusionPlan()
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
        return Learned(partial(loop.classify, run), seconds(run))

    return learn


def corrected(loss: str, source: Callable[[Bench], Matrix], regime: str = COARSE, **changes: Any) -> Method:
    """A network whose loss takes its transition matrix from *source*."""

    def learn(bench: Bench) -> Learned:
        matrix = tuple(map(tuple, source(bench).tolist()))
        learned = network(loss=loss, transition=matrix, **changes)(bench)
        return replace(learned, label_regime=regime)

    return learn


def at_home(
    kind: str = "fcn", power: float = WEIGHTED, *, fresh: bool = False, each_region: bool = False, **changes: Any
) -> Method:
    """A network that goes on learning in the places to be mapped, or (*fresh*) learns there alone."""

    def learn(bench: Bench) -> Learned:
        run = bench.network(kind, power)
        predict, spent = bench.network_at_home(run, fresh=fresh, each_region=each_region, **changes)
        return Learned(mapped(predict), spent if fresh else seconds(run) + spent)

    return learn


def clusters(*, named_by_network: bool) -> Method:
    """Groups of like pixels in each region, named by the labels of its cells."""

    def learn(bench: Bench) -> Learned:
        predict, spent = clusters_at_home(bench, named_by_network)
        return Learned(mapped(predict), spent)

    return learn


def forest_in_place(bench: Bench) -> Learned:
    """A weighted forest grown in the places to be mapped, on their labels."""
    predict, spent = forest_at_home(bench)
    return Learned(mapped(predict), spent)


def with_prior(plan: FusionPlan) -> Method:
    """The weighted FCN of elsewhere, times what the coarse label of the place says."""

    def learn(bench: Bench) -> Learned:
        run = bench.network()
        fusion = Fusion({"fcn": partial(loop.predict, run)}, plan, bench.posterior)
        return Learned(fusion.classify, seconds(run))

    return learn


def _network_member(kind: str, **changes: Any) -> Callable[[Bench], tuple[Predict, float]]:
    def member(bench: Bench) -> tuple[Predict, float]:
        run = bench.network(kind)
        predict, spent = bench.network_at_home(run, **changes)
        return predict, seconds(run) + spent

    return member


def _network_elsewhere(bench: Bench) -> tuple[Predict, float]:
    run = bench.network()
    return partial(loop.predict, run), seconds(run)


MEMBERS: dict[str, Callable[[Bench], tuple[Predict, float]]] = {
    "FCN": _network_member("fcn"),
    "FCN by region": _network_member("fcn", each_region=True),
    "FCN elsewhere": _network_elsewhere,
    "Full resolution": _network_member("full_resolution"),
    "Random forest": forest_at_home,
}
"""
What may be fused: probabilities and the seconds that learning took. All have learnt at home but the FCN elsewhere: it
has never seen the place, and so remembers classes that the labels of the place do not show.
"""

FUSED = ("FCN", "Random forest")
"""
The members of the default fusion: on sample worlds of seeds 100 and 101, which no table shows, a member was let in when
its mean gain there was larger than the spread of the gain. What each adds on the worlds that tables show is a row of
the ladder.
"""


def fused(plan: FusionPlan = DEFAULT, members: tuple[str, ...] = FUSED) -> Method:
    """A fusion of members that have learnt at home."""

    def learn(bench: Bench) -> Learned:
        fusion, spent = fusion_at_home(bench, plan, members)
        began = time.perf_counter()
        fusion.fit(bench.patches_there(), bench.matrix)
        return Learned(fusion.classify, spent + time.perf_counter() - began)

    return learn


def fusion_at_home(
    bench: Bench,
    plan: FusionPlan = DEFAULT,
    members: tuple[str, ...] = FUSED,
) -> tuple[Fusion, float]:
    """The fusion of these members, nothing fitted yet, and the seconds that their learning took."""
    learnt = {name: MEMBERS[name](bench) for name in members}
    # Turned patches have the names of those they come from: what was said of one holds for no other.
    keep = bench.remembered if plan.symmetries == 1 else lambda key, predict: predict
    predicts = {name: keep(("member", name), predict) for name, (predict, _) in learnt.items()}
    return Fusion(predicts, plan, bench.posterior), sum(spent for _, spent in learnt.values())


def student(*, confidence: float = 0.0) -> Method:
    """A weighted FCN that goes on learning from the fusion's map of the places, pixel by pixel."""

    def learn(bench: Bench) -> Learned:
        run, (teacher, spent) = bench.network(), fusion_at_home(bench)
        began = time.perf_counter()
        labels = adapt.pseudo_labels(teacher.predict, bench.patches_there(), confidence=confidence)
        plan = at_home_plan(run.plan, loss="cross_entropy")
        own = loop.train(bench.there.with_labels(labels), plan, progress=False, start=run)
        return Learned(partial(loop.classify, own), spent + time.perf_counter() - began)

    return learn


def everywhere(**changes: Any) -> Method:
    """One network, fresh, on the coarse labels of training scenes and of the regions to be mapped."""

    def learn(bench: Bench) -> Learned:
        plan = replace(bench.here.plan("fcn", WEIGHTED), **changes)
        modis = PatchStack(bench.patches_there(), "modis", at_most=len(bench.rows))
        stack = patches.joined([bench.here.training_stack(), modis])
        run = bench.once(("everywhere", plan), lambda: loop.train(stack, plan, progress=False))
        return Learned(partial(loop.classify, run), seconds(run))

    return learn


POWERS = {"plain": PLAIN, "weighted": WEIGHTED}
KINDS = {kind: protocol.NAMES.get(kind, "Full resolution") for kind in NETWORKS}

METHODS: dict[str, Method] = {
    "MODIS label": floor(protocol.modis_label_map),
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
    **{f"FCN, {loss}, at home": at_home(loss=loss) for loss in ("cross_entropy", "cell_mean")},
    "FCN, cell_mean, at home by region": at_home(each_region=True),
    "FCN, cell_mean, fresh at home": at_home(fresh=True),
    "DeepLabv3+, plain, fresh at home": at_home("deeplabv3plus", PLAIN, fresh=True, loss="cross_entropy"),
    "U-Net, cell_mean, at home": at_home("unet"),
    "Full resolution, cell_mean, at home": at_home("full_resolution"),
    "Random forest, weighted, at home": forest_in_place,
    "FCN, weighted, with coarse prior": with_prior(FusionPlan(prior_power=0.6)),
    "FCN, weighted, with hard coarse prior": with_prior(FusionPlan(prior_power=1, prior_blur_px=0, prior_doubt=0)),
    "Fusion, at home": fused(),
    **{f"Fusion and {name}, at home": fused(members=(*FUSED, name)) for name in MEMBERS if name not in FUSED},
    "Fusion by product, at home": fused(FusionPlan(rule="product")),
    "Fusion turned eight ways, at home": fused(FusionPlan(symmetries=8)),
    "Fusion calibrated, at home": fused(FusionPlan(calibrated=True)),
    "Fusion weighted, at home": fused(FusionPlan(calibrated=True, weighted=True)),
    "Fusion with coarse prior, at home": fused(FusionPlan(prior_power=0.3)),
    "Student of the fusion, at home": student(),
}
"""Every method that is compared, by its name in tables and in the ledger."""
