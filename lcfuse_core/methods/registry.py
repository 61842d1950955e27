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

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lcfuse_core.data import patches, source
from lcfuse_core.data.legends import SCORED, index_to_dfc
from lcfuse_core.data.streamed import open_source
from lcfuse_core.methods import adapt, baselines
from lcfuse_core.methods.adapt import Predict, images_of
from lcfuse_core.methods.ensemble import FURTHER, FUSED, adapted_member, fusion_of, shared_member
from lcfuse_core.methods.experiment import BOTH, Experiment, kept, path_of, seconds
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.models import forest, transition
from lcfuse_core.models.losses import LOSSES, MIXED_LABEL_LOSSES
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.models.transition import Matrix
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.protocol import PLAIN, WEIGHTED, Classify
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import Run
from lcfuse_core.training.plan import TrainPlan

_Regime = Literal["inductive", "transductive"]


@dataclass(frozen=True)
class Learned:
    """
    A trained method.

    Attributes
    ----------
    classify : callable
        Draws the map of a patch.
    train_s : float
        Duration of the training, seconds.
    rows : DataFrame, optional
        Index rows to evaluate on; None: those of the test split.
    hashes, parameters : mapping
        For the ledger: SHA-256 of the checkpoint; parameters that differ from those of the experiment.
    """

    classify: Classify
    train_s: float = 0.0
    rows: pd.DataFrame | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """
    A row of the registry.

    Attributes
    ----------
    learn : callable
        Trains the method on the data of an experiment.
    regime : str
        "inductive", or "transductive": it learns from images and coarse labels of the evaluated regions.
    label_regime : str
        One of `ledger.LABEL_REGIMES`.
    """

    learn: Callable[[Experiment], Learned]
    regime: _Regime = "inductive"
    label_regime: str = "coarse only"


def _row(regime: _Regime, learn: Callable[..., Learned]) -> Callable[..., Method]:
    """Turn a function that learns on an experiment, with arguments, into one from these arguments to a row."""

    @wraps(learn)
    def row(*args: Any, **kwargs: Any) -> Method:
        return Method(lambda experiment: learn(experiment, *args, **kwargs), regime)

    return row


_inductive, _transductive = partial(_row, "inductive"), partial(_row, "transductive")


def mapped(predict: Predict) -> Classify:
    """Return the function that draws maps from probabilities."""
    return lambda patch: index_to_dfc(predict(patch).argmax(axis=0))


# Inductive methods


@_inductive
def baseline(experiment: Experiment, /, classify: Classify) -> Learned:
    """Draw maps without training."""
    return Learned(classify)


@_inductive
def _forest(experiment: Experiment, /, power: float, *, neighbourhood: int = 0, prior_power: float = 0.0) -> Learned:
    began, seed, opened = time.perf_counter(), experiment.seeds["training"], experiment.training_source()
    trees = forest.train_forest(opened, seed=seed, class_weight_power=power, neighbourhood=neighbourhood)
    spent = round(time.perf_counter() - began, 2)
    return Learned(partial(forest.classify, trees, prior_power=prior_power), spent)


@_inductive
def _network(experiment: Experiment, /, kind: str, power: float, *, longer: bool = False, **changes: Any) -> Learned:
    """Train a network with *changes* to its plan; *longer*: for `_STEPS_RATIO` times the steps."""
    plan = replace(experiment.plan(kind, power), **changes)
    plan = replace(plan, steps=round(_STEPS_RATIO * plan.steps)) if longer else plan
    return _of_run(experiment, experiment.trained(plan))


_fcn = partial(_network, "fcn", WEIGHTED)


def learner(kind: str, power: float) -> Method:
    """Return the method of a key of `protocol.NAMES`: "forest", or a network with the experiment's loss."""
    return _forest(power) if kind == "forest" else _network(kind, power)


def _of_run(experiment: Experiment, run: Run) -> Learned:
    """Return the method of a trained network; of that of the parameter `checkpoint` the plan is recorded."""
    is_given = run is experiment.given
    file = Path(experiment.parameters["checkpoint"]) if is_given else path_of(experiment.checkpoint_name(run.plan))
    parameters = {name: getattr(run.plan, name) for name in ("loss", "steps", "crop", "batch")} if is_given else {}
    hashes = {"checkpoint": hashlib.sha256(file.read_bytes()).hexdigest()}
    return Learned(partial(loop.classify, run), seconds(run), hashes=hashes, parameters=parameters)


@_inductive
def given_network(experiment: Experiment, /) -> Learned:
    """Take the network of the parameter `checkpoint` as it is."""
    assert experiment.given is not None
    return _of_run(experiment, experiment.given)


@_inductive
def _corrected(experiment: Experiment, /, loss: str, matrix_of: Callable[[Experiment], Matrix]) -> Learned:
    """Train a network whose loss has the transition matrix of *matrix_of*."""
    matrix = tuple(map(tuple, matrix_of(experiment).tolist()))
    return _fcn(loss=loss, transition=matrix).learn(experiment)


def _estimated(experiment: Experiment) -> Matrix:
    """Return the transition matrix by EM, from the posteriors of the weighted FCN on the held-out scenes."""
    run, rng, held_out = experiment.network(), np.random.default_rng(0), experiment.held_out_source(BOTH)
    size = min(4096, max(1, adapt.MOST_PIXELS // len(held_out)), held_out.shape[0] * held_out.shape[1])
    # Not a list of parts: see `forest.train_forest`.
    posteriors = np.empty((len(held_out), size, len(SCORED)), np.float32)
    labels = np.empty((len(held_out), size), np.uint8)
    for n, (patch, window) in enumerate(images_of(held_out)):
        label = window.labels.numpy().reshape(-1)
        chosen = rng.choice(label.size, size, replace=False)
        posteriors[n], labels[n] = loop.predict(run, patch).reshape(len(SCORED), -1).T[chosen], label[chosen]
    return transition.estimate(posteriors.reshape(-1, len(SCORED)), labels.reshape(-1), experiment.matrix)


def _counted(experiment: Experiment) -> Matrix:
    """Return the transition matrix counted on the validation patches, whose reference track 2 may use."""
    table = patches.complete(patches.index(experiment.data_root), protocol.NEED)
    found = patches.iter_patches(table[table["split"] == "validation"], patches.Report(), protocol.NEED)
    return transition.counted((source.label_index(patch, "fine"), source.label_index(patch, BOTH)) for patch in found)


@_inductive
def _with_prior(experiment: Experiment, /, **values: float) -> Learned:
    """Multiply the weighted FCN of the source regions by the prior given the coarse labels of the target region."""
    run = experiment.network()
    fused = Fusion({"fcn": partial(loop.predict, run)}, FusionPlan(**values), experiment.posterior)  # type: ignore[arg-type]
    return Learned(fused.classify, seconds(run))


# Transductive methods


@_transductive
def _target_only(
    experiment: Experiment, /, kind: str, power: float, *, longer: bool = False, **changes: Any
) -> Learned:
    """Train a network on the target regions alone; *longer*: with the steps and the learning rate of `_network`."""
    plan = experiment.plan(kind, power)
    if longer:
        changes |= {"steps": round(_STEPS_RATIO * plan.steps), "learning_rate": plan.learning_rate}
    predict, spent = experiment.adapted_network(plan, **changes)
    return Learned(mapped(predict), spent)


@_transductive
def _clusters(experiment: Experiment, /, *, guess_by_network: bool) -> Learned:
    """Cluster the pixels of each target region, with classes from the labels of the cells."""
    run, began = experiment.network() if guess_by_network else None, time.perf_counter()
    guess, seed = None if run is None else partial(loop.predict, run), experiment.seeds["training"]
    fit = partial(adapt.fit_clusters, matrix=experiment.matrix, seed=seed, guess=guess)
    models = {region: fit(open_source(rows, BOTH)) for region, rows in experiment.target_regions.items()}
    spent = time.perf_counter() - began + (0 if run is None else seconds(run))
    return Learned(mapped(experiment.by_region(models, adapt.predict_clusters)), spent)


@_transductive
def _on_all_regions(experiment: Experiment, /) -> Learned:
    """Train an FCN on the coarse labels of source and target regions together."""
    plan = experiment.plan("fcn", WEIGHTED)

    def train(folder: Path) -> Run:
        rows = pd.concat([experiment.training_rows()[0], experiment.rows], ignore_index=True)
        return loop.train(open_source(rows), plan, folder, progress=False)

    name = experiment.checkpoint_name(plan, "source and target regions", experiment.data_digest(experiment.data_root))
    run = kept(name, train)
    return Learned(partial(loop.classify, run), seconds(run))


# Ensembles


@_transductive
def _member(experiment: Experiment, /, learn: Callable[..., tuple[Predict, float]], **arguments: Any) -> Learned:
    """Take one member of an ensemble, as *learn* returns it."""
    predict, spent = learn(experiment, **arguments)
    return Learned(mapped(predict), spent)


@_transductive
def _fused(
    experiment: Experiment, /, members: tuple[str, ...] = FUSED, *, for_few_cells: bool = True, **values: Any
) -> Learned:
    """Fuse members by a plan of these *values*; see `ensemble.fusion_of`."""
    fused, spent = fusion_of(experiment, FusionPlan(**values), members, for_few_cells=for_few_cells)
    return Learned(fused.classify, spent)


@_transductive
def _student(experiment: Experiment, /) -> Learned:
    """Fine-tune a weighted FCN on the fusion's maps of the target regions: self-training."""
    run, (teacher, spent) = experiment.network(), fusion_of(experiment)
    plan = adapt.adaptation_plan(run.plan, loss="cross_entropy")

    def train(folder: Path) -> Run:
        labelled = adapt.pseudo_labelled(teacher.predict, experiment.target_source)
        return loop.train(labelled, plan, folder, progress=False, start=run)

    own = kept(experiment.adapted_name(run, plan, "pseudo-labels of the fusion"), train)
    return Learned(partial(loop.classify, own), spent + seconds(own))


@_inductive
def _supervised(experiment: Experiment, /, trained_on: str, evaluated_on: str) -> Learned:
    """
    Train the official network on fine labels: an upper bound, not a method of the book.

    *trained_on* "source" are the training scenes; "validation" are three of four validation patches, as in the
    published experiment. *evaluated_on* is the "test" split, or every "fourth" validation patch: the same regions.
    """
    plan = replace(experiment.plan("deeplabv3plus", PLAIN), labels="fine")
    rows = protocol.evaluation_patches(experiment.data_root, "validation")
    fourth = rows.index % 4 == 3
    if trained_on == "source":
        run = experiment.trained(plan)
    else:
        name = experiment.checkpoint_name(plan, "validation", experiment.data_digest(experiment.data_root))
        run = kept(name, lambda path: loop.train(open_source(rows[~fourth], "fine"), plan, path, progress=False))
    return Learned(partial(loop.classify, run), seconds(run), rows[fourth] if evaluated_on == "fourth" else None)


# The table

_STEPS_RATIO = 1 + adapt.ADAPTATION_STEPS_FRACTION
"""The steps of training and fine-tuning together, as a multiple of those of the training: 1,300 of 400."""

_POWERS = {"plain": PLAIN, "weighted": WEIGHTED}
_KINDS = {kind: protocol.NAMES.get(kind, "Full resolution") for kind in NETWORKS}
_MATRIX_LOSSES = ("forward", "cell_forward")
_LONGER = f"{_STEPS_RATIO:g} times the steps"
_LONG_PLAIN: dict[str, Any] = {"longer": True, "loss": "cross_entropy"}
_FIXED = ("learning_rate", "warm_up", "weight_decay", "clip_norm")
_with_fine = partial(replace, label_regime="coarse + fine validation")


def name_of(plan: TrainPlan) -> str:
    """
    Return the name that tables have for a network of this plan.

    It ends in the settings that no method of a table changes, where they differ from the default: a claim about a
    method is decided by no other network.
    """
    weights = {power: how for how, power in _POWERS.items()}.get(plan.class_weight_power)
    parts = [_KINDS[plan.network], weights or f"weighted (power {plan.class_weight_power:g})"]
    parts += [plan.loss] if plan.loss != "cross_entropy" else []
    parts += [f"{'+'.join(plan.inputs).upper()} alone"] if len(plan.inputs) == 1 else []
    parts += ["late fusion"] if plan.fusion == "late" else []
    parts += {"modis": [], BOTH: ["Savanna a mixture"], "fine": ["supervised"]}[plan.labels]
    usual = {name: getattr(TrainPlan, name) for name in _FIXED} | {"width": NETWORKS[plan.network].default_width}
    own = {name: getattr(plan, name) for name in usual}
    parts += [f"{name} {value:g}" for name, value in own.items() if value not in (None, usual[name])]
    return ", ".join(parts)


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
    "FCN, weighted, S2 alone": _fcn(inputs=("s2",)),
    "FCN, weighted, S1 alone": _fcn(inputs=("s1",)),
    "FCN, weighted, late fusion": _fcn(fusion="late"),
    **{f"FCN, weighted, {loss}": _fcn(loss=loss) for loss in LOSSES if loss != "cross_entropy"},
    **{f"FCN, weighted, {loss}, Savanna a mixture": _fcn(loss=loss, labels=BOTH) for loss in MIXED_LABEL_LOSSES},
    **{f"FCN, weighted, {loss}, matrix by EM": _corrected(loss, _estimated) for loss in _MATRIX_LOSSES},
    **{f"FCN, weighted, {loss}, matrix counted": _with_fine(_corrected(loss, _counted)) for loss in _MATRIX_LOSSES},
    "FCN, weighted, with coarse prior": _with_prior(prior_power=0.6),
    "FCN, weighted, with hard coarse prior": _with_prior(prior_power=1, prior_blur_px=0, prior_doubt=0),
    # For an ablation: network, weights, loss and data changed one at a time, with equal steps and learning rate.
    f"DeepLabv3+, plain, {_LONGER}": _network("deeplabv3plus", PLAIN, longer=True),
    f"FCN, plain, {_LONGER}": _network("fcn", PLAIN, longer=True),
    f"FCN, weighted, {_LONGER}": _fcn(longer=True),
    **{f"FCN, weighted, {loss}, {_LONGER}": _fcn(loss=loss, longer=True) for loss in ("cell_mean", "cell_forward")},
    f"DeepLabv3+, plain, {_LONGER}, target regions only": _target_only("deeplabv3plus", PLAIN, **_LONG_PLAIN),
    f"FCN, weighted, {_LONGER}, target regions only": _target_only("fcn", WEIGHTED, **_LONG_PLAIN),
    f"FCN, weighted, cell_mean, {_LONGER}, target regions only": _target_only("fcn", WEIGHTED, longer=True),
    # Transductive methods; networks are fine-tuned with the loss cell_mean, members are shared with the fusions.
    "FCN, weighted, source and target regions": _on_all_regions(),
    "Clusters, target regions": _clusters(guess_by_network=False),
    "Clusters and FCN, target regions": _clusters(guess_by_network=True),
    "FCN, cross_entropy, target regions": _member(adapted_member, kind="fcn", loss="cross_entropy"),
    "FCN, cell_mean, target regions": _member(shared_member, name="FCN"),
    "FCN, cell_mean, each target region": _member(shared_member, name="FCN per region"),
    "FCN, cell_mean, target regions only": _target_only("fcn", WEIGHTED),
    "DeepLabv3+, plain, target regions only": _target_only("deeplabv3plus", PLAIN, loss="cross_entropy"),
    "U-Net, cell_mean, target regions": _member(adapted_member, kind="unet"),
    "Full resolution, cell_mean, target regions": _member(shared_member, name="Full resolution"),
    "Random forest, weighted, target regions": _member(shared_member, name="Random forest"),
    "Fusion, target regions": _fused(),
    "Fusion of two members, target regions": _fused(for_few_cells=False),
    **{f"Fusion and {name}, target regions": _fused((*FUSED, name)) for name in FURTHER},
    "Fusion by product, target regions": _fused(rule="product"),
    "Fusion with TTA, target regions": _fused(symmetries=8),
    "Fusion calibrated, target regions": _fused(calibrated=True),
    "Fusion weighted, target regions": _fused(calibrated=True, weighted=True),
    "Fusion with coarse prior, target regions": _fused(prior_power=0.3),
    "Student of the fusion, target regions": _student(),
}
"""Every method that is compared, by its name in tables and in the ledger."""

BOUNDS: dict[str, Method] = {
    name: replace(_supervised(*patches_of), label_regime="fine")
    for name, patches_of in {
        "DeepLabv3+, supervised, training scenes": ("source", "test"),
        "DeepLabv3+, supervised, source regions": ("validation", "test"),
        "DeepLabv3+, supervised, target regions": ("validation", "fourth"),
    }.items()
}
"""
Bounds: the official network on fine labels of the training scenes, of other regions, and of the same regions. The
*source regions* of the second are those of the validation patches, which have fine labels also on real data.
"""
