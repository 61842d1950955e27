"""The default fusion: two members, and a third one when the target regions have few coarse cells."""

from dataclasses import replace

import numpy as np
import pytest

from lcfuse_core.methods import baselines, ensemble
from lcfuse_core.methods.adapt import pseudo_labelled
from lcfuse_core.methods.ensemble import _BRIEF_FCN, _INTERPOLATED, _MEMBERS, _SOURCE_FCN, FUSED, _weights_of, fusion_of
from lcfuse_core.methods.few_cells import FEW_CELLS, steps_for, third_weight
from lcfuse_core.methods.fusion import FusionPlan, combine


@pytest.fixture
def with_cells(tiny, monkeypatch):
    """Return a function that returns an experiment whose regions have that many cells."""

    def experiment(cells, *, transferable=True, preference=None):
        monkeypatch.setattr(ensemble, "_is_transferable", lambda _: transferable)
        third = _SOURCE_FCN if transferable else _INTERPOLATED
        known = {} if preference is None else {("preference", third): preference}
        return replace(tiny, memory={"cells per region": cells, **known})

    return experiment


def test_with_enough_cells_the_fusion_is_the_mean_of_its_two_members(with_cells, patch):
    experiment = with_cells(FEW_CELLS)
    assert _weights_of(experiment) == {"FCN": 0.5, "Random forest": 0.5}
    fused, _ = fusion_of(experiment)
    parts = [_MEMBERS[name](experiment)[0](patch) for name in FUSED]
    np.testing.assert_array_equal(fused.predict(patch), combine(parts, [1, 1]))


def test_with_few_cells_a_network_of_the_source_regions_is_added(with_cells, patch):
    experiment = with_cells(0.75 * FEW_CELLS, preference=0.4)
    third = third_weight(0.75 * FEW_CELLS, 0.4)
    expected = {_BRIEF_FCN: (1 - third) / 2, "Random forest": (1 - third) / 2, _SOURCE_FCN: third}
    assert _weights_of(experiment) == pytest.approx(expected)
    fused, spent = fusion_of(experiment)
    parts = [_MEMBERS[name](experiment)[0](patch) for name in expected]
    np.testing.assert_allclose(fused.predict(patch), combine(parts, list(expected.values())), rtol=1e-6)
    assert spent > 0
    two, _ = fusion_of(experiment, for_few_cells=False)
    assert two.weights == {"FCN": 0.5, "Random forest": 0.5}
    both = (*FUSED, _SOURCE_FCN)
    assert _weights_of(experiment, both) == dict.fromkeys(both, 1 / 3)  # a row of the registry that has it anyway


def test_the_weight_is_estimated_from_held_out_cells(with_cells):
    experiment = with_cells(30.0)
    weights = _weights_of(experiment)
    assert 0 <= experiment.memory["preference", _SOURCE_FCN] <= 1
    assert weights[_SOURCE_FCN] == third_weight(30.0, experiment.memory["preference", _SOURCE_FCN])


@pytest.mark.parametrize(("transferable", "start"), [(True, {"loss": "cell_forward"}), (False, {})])
def test_fine_tuning_for_few_cells_is_shorter(with_cells, monkeypatch, transferable, start):
    seen = []
    experiment = with_cells(FEW_CELLS / 2, transferable=transferable)
    monkeypatch.setattr(type(experiment), "network", lambda self, kind="fcn", **changes: changes)
    monkeypatch.setattr(type(experiment), "adapted_network", lambda self, run, **how: (seen.append((run, how)), 0.0))
    monkeypatch.setattr(ensemble, "seconds", lambda run: 0.0)
    _MEMBERS[_BRIEF_FCN](experiment)
    full = ensemble.adaptation_plan(experiment.plan("fcn", 0.5)).steps
    assert seen == [(start, {"steps": steps_for(FEW_CELLS / 2, full)})]


def test_synthetic_networks_are_not_used_on_other_data(tiny, tmp_path):
    """Nor networks of real data on the sample: the interpolated label takes their place."""
    assert ensemble._is_transferable(tiny)
    mixed = replace(tiny, memory={"cells per region": 30.0, ("preference", _INTERPOLATED): 0.5})
    mixed.parameters = tiny.parameters | {"train_root": str(tmp_path / "world" / "sen12ms")}
    (tmp_path / "world" / "sen12ms").mkdir(parents=True)
    (tmp_path / "world" / "world.json").write_text("{}")
    assert not ensemble._is_transferable(mixed)
    assert list(_weights_of(mixed)) == [_BRIEF_FCN, "Random forest", _INTERPOLATED]


def test_the_interpolated_label_is_a_member_of_every_kind_of_fusion(with_cells, patch):
    """Of weighted ones, of pseudo-labels, and of test-time augmentation, which turns it with the images."""
    experiment = with_cells(30.0, transferable=False)
    np.testing.assert_array_equal(_MEMBERS[_INTERPOLATED](experiment)[0](patch), baselines.soft_label(patch))
    for plan in (FusionPlan(), FusionPlan(calibrated=True, weighted=True), FusionPlan(symmetries=4)):
        fused, _ = fusion_of(experiment, plan)
        assert list(fused.members) == [_BRIEF_FCN, "Random forest", _INTERPOLATED]
        np.testing.assert_allclose(fused.predict(patch).sum(axis=0), 1, atol=1e-5)
    labelled = pseudo_labelled(fusion_of(experiment)[0].predict, experiment.target_source)
    assert len(labelled.labels) == len(experiment.rows)
