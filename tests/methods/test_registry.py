"""The registry: every method learns without the reference, and each row has its regime."""

import hashlib
from dataclasses import replace

import pytest
from miniatures import dfc_array, lc_array

from lcfuse_core.methods import ensemble, experiment, registry
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.methods.registry import BOUNDS, METHODS, _counted, _estimated, name_of
from lcfuse_core.models.losses import LOSSES, MIXED_LABEL_LOSSES
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.scoring import protocol
from lcfuse_core.training.plan import TrainPlan

QUICK = ("MODIS label, interpolated", "FCN, weighted, forward, matrix counted", "Fusion, target regions")


def test_every_network_and_loss_is_a_row():
    """Every network, plain and weighted; every loss; those that can with Savanna as a mixture too."""
    assert {f"FCN, weighted, {loss}" for loss in LOSSES} - set(METHODS) == {"FCN, weighted, cross_entropy"}
    assert {f"FCN, weighted, {loss}, Savanna a mixture" for loss in MIXED_LABEL_LOSSES} <= set(METHODS)
    assert sum(name.endswith((", plain", ", weighted")) for name in METHODS) == 2 * (len(NETWORKS) + 1)
    for kind in protocol.NAMES:
        assert protocol.method_name(kind, 0.0) in METHODS


def test_names_show_the_regime():
    """Methods that learn from target regions are named so and are transductive; all others are inductive."""
    for name, method in METHODS.items():
        assert (method.regime == "transductive") == ("target region" in name), name
        assert (method.label_regime == "coarse + fine validation") == ("counted" in name)
    assert {(method.regime, method.label_regime) for method in BOUNDS.values()} == {("inductive", "fine")}


@pytest.fixture
def plans(tiny, monkeypatch):
    """The plans by which methods train networks, which are not trained."""
    seen, run = [], tiny.network()

    def note(experiment, plan, *further):
        seen.append(plan)
        return "name"

    monkeypatch.setattr(Experiment, "checkpoint_name", note)
    monkeypatch.setattr(registry, "_of_run", lambda experiment, run: None)
    for module in (experiment, registry):
        monkeypatch.setattr(module, "kept", lambda name, train: run)
    return seen


def test_plans_are_named_as_their_rows(tiny, plans):
    """So that the line of a checkpoint in a ledger is one of the method's."""
    of_networks = [name for name in METHODS if name.startswith(tuple(registry._KINDS.values()))]
    rows = [name for name in of_networks if not any(word in name for word in ("matrix", "prior", "target"))]
    for name in rows:
        METHODS[name].learn(replace(tiny, memory={}))
    assert [name_of(plan) for plan in plans] == [name.removesuffix(", 3.25 times the steps") for name in rows]
    assert {(plan.steps, "3.25" in name) for name, plan in zip(rows, plans, strict=True)} == {(2, False), (6, True)}


@pytest.mark.parametrize(
    ("changes", "end"),
    [({"width": 32}, "plain"), ({"width": 8}, "plain, width 8"), ({"learning_rate": 0.5}, "plain, learning_rate 0.5")],
)
def test_a_network_with_other_settings_is_no_method_of_a_claim(changes, end):
    """The width or the learning rate is part of no protocol, so that the name has to tell it."""
    assert name_of(TrainPlan(class_weight_power=0, **changes)) == f"FCN, {end}"


def test_a_network_is_recorded_with_the_digest_of_its_file(tiny):
    """The file is found by the plan that the checkpoint states, which is the plan that was asked for."""
    learned = registry.learner("fcn", 0.5).learn(tiny)
    file = experiment.path_of(tiny.checkpoint_name(tiny.plan("fcn", 0.5)))
    assert learned.hashes["checkpoint"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_ablation_crosses_loss_and_data_with_equal_plans(tiny, plans):
    for where in ("", ", target regions only"):
        for loss in ("", ", cell_mean"):
            METHODS[f"FCN, weighted{loss}, 3.25 times the steps{where}"].learn(replace(tiny, memory={}))
    assert {(plan.steps, plan.learning_rate) for plan in plans} == {(6, 5e-3)}
    assert [plan.loss for plan in plans] == 2 * ["cross_entropy", "cell_mean"]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_every_method_draws_maps_in_the_legend(tiny, name):
    """Of patches whose reference it does not get."""
    learned = METHODS[name].learn(tiny)
    assert learned.train_s >= 0
    results, report = protocol.evaluate_methods({name: learned.classify}, tiny.rows)
    assert report.n_read == 2
    assert 0 <= results[name].scores.aa <= 1


def test_transductive_methods_do_without_the_reference(tiny, tmp_path):
    blind = replace(tiny, memory={})
    blind.rows = tiny.rows.assign(dfc=str(tmp_path / "nowhere.tif"))
    assert blind.target_source.labels.max() > 7  # Savanna is kept as a class of its own
    for name in ("FCN, cell_mean", "Student of the fusion", "Clusters"):
        METHODS[f"{name}, target regions"].learn(blind)


def test_a_member_is_computed_once_per_patch_for_all_fusions(tiny, monkeypatch):
    """In the pass over the patches, whatever the number of methods that use it."""
    calls = []

    def counting(experiment):
        predict, spent = ensemble._target_forest(experiment)
        return lambda patch: calls.append(patch.name) or predict(patch), spent

    monkeypatch.setitem(ensemble._MEMBERS, "Random forest", counting)
    names = [f"{name}, target regions" for name in ("Random forest, weighted", "Fusion", "Fusion by product")]
    methods = {name: METHODS[name].learn(replace(tiny, memory=tiny.memory)).classify for name in names}
    protocol.evaluate_methods(methods, tiny.rows)
    assert sorted(calls) == sorted(tiny.target_source.names)


def test_matrices_are_of_their_sources(tiny):
    """The counted matrix is that of the validation patch; the others need no reference."""
    fine, coarse = dfc_array()[0], lc_array()[0]
    matrix = _counted(tiny)
    assert matrix.shape == _estimated(tiny).shape == tiny.matrix.shape == (8, 9)
    water_called_crops = ((fine == 10) & (coarse == 12) | (fine == 10) & (coarse == 14)).sum()
    known = ((fine == 10) & (coarse != 15)).sum()
    assert matrix[7, 4] == pytest.approx(water_called_crops / (known + 1))
