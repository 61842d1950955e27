"""The default fusion: two members, and a third one when the target regions have few coarse cells."""

from dataclasses import replace

import numpy as np
import pytest
from miniatures import lc_array

from lcfuse_core.data import patches
from lcfuse_core.data.sample.world import WorldPlan
from lcfuse_core.methods import baselines, ensemble
from lcfuse_core.methods.adapt import images_of, pseudo_labelled
from lcfuse_core.methods.ensemble import FEW_CELLS, FUSED, MEMBERS, fusion_of, steps_for, third_weight, weights_of
from lcfuse_core.methods.fusion import FusionPlan, combine
from lcfuse_core.scoring.spatial import CELL_PX


@pytest.fixture
def with_cells(tiny, monkeypatch):
    """Return a function that returns an experiment whose regions have that many cells."""

    def experiment(cells, *, transferable=True):
        monkeypatch.setattr(ensemble, "is_transferable", lambda _: transferable)
        return replace(tiny, memory={"cells per region": cells})

    return experiment


@pytest.fixture(scope="module")
def patch(tiny):
    [first, _] = patches.iter_patches(tiny.rows, patches.Report(), ("s1", "s2", "lc"))
    return first


def test_the_third_weight_falls_continuously_to_exactly_zero():
    cells = np.linspace(0, 2 * FEW_CELLS, 4001)
    weights = np.array([third_weight(n) for n in cells])
    assert weights[0] == ensemble.MOST_WEIGHT
    assert np.all(np.diff(weights) <= 0)
    assert np.abs(np.diff(weights)).max() < 1.01 * ensemble.MOST_WEIGHT * (cells[1] - cells[0]) / FEW_CELLS
    assert np.all((weights == 0) == (cells >= FEW_CELLS))


def test_steps_grow_with_the_cells_up_to_all_of_them():
    assert [steps_for(FEW_CELLS * part, 900) for part in (0, 0.25, 0.5, 1, 7)] == [1, 225, 450, 900, 900]


def test_the_regions_of_the_sample_have_enough_cells_for_two_members():
    """So that its recorded scores are those of the mean of two members."""
    scenes_per_region = WorldPlan().n_test / 6
    assert scenes_per_region * 512**2 / CELL_PX > FEW_CELLS


def test_cells_are_counted_by_region_where_the_label_is_known(tiny):
    known = np.isin(lc_array()[0], range(1, 18)) & (lc_array()[0] != 15)
    n_regions = len(set(tiny.region_of.values()))
    found = ensemble.cells_per_region(replace(tiny, memory={}))
    assert found == pytest.approx(2 * known.sum() / CELL_PX / n_regions)


def test_with_enough_cells_the_fusion_is_the_mean_of_its_two_members(with_cells, patch):
    experiment = with_cells(FEW_CELLS)
    assert weights_of(experiment) == {"FCN": 0.5, "Random forest": 0.5}
    fused, _ = fusion_of(experiment)
    parts = [MEMBERS[name](experiment)[0](patch) for name in FUSED]
    np.testing.assert_array_equal(fused.predict(patch), combine(parts, [1, 1]))


def test_with_few_cells_a_network_of_the_source_regions_is_added(with_cells, patch):
    experiment = with_cells(FEW_CELLS / 2)
    half = (1 - ensemble.MOST_WEIGHT / 2) / 2
    expected = {"FCN, few cells": half, "Random forest": half, "source FCN, cell_forward": ensemble.MOST_WEIGHT / 2}
    assert weights_of(experiment) == pytest.approx(expected)
    fused, spent = fusion_of(experiment)
    parts = [MEMBERS[name](experiment)[0](patch) for name in expected]
    np.testing.assert_allclose(fused.predict(patch), combine(parts, list(expected.values())), rtol=1e-6)
    assert spent > 0
    two, _ = fusion_of(experiment, few_cells=False)
    assert two.weights == {"FCN": 0.5, "Random forest": 0.5}
    both = (*FUSED, "source FCN, cell_forward")
    assert weights_of(experiment, both) == dict.fromkeys(both, 1 / 3)  # a row of the registry that has it anyway


def test_fine_tuning_for_few_cells_starts_from_cell_forward_and_is_shorter(with_cells, monkeypatch):
    seen = []
    experiment = with_cells(FEW_CELLS / 2)
    monkeypatch.setattr(type(experiment), "network", lambda self, kind="fcn", **changes: changes)
    monkeypatch.setattr(type(experiment), "adapted_network", lambda self, run, **how: (seen.append((run, how)), 0.0))
    monkeypatch.setattr(ensemble, "seconds", lambda run: 0.0)
    MEMBERS["FCN, few cells"](experiment)
    full = ensemble.adaptation_plan(experiment.plan("fcn", 0.5)).steps
    assert seen == [({"loss": "cell_forward"}, {"steps": steps_for(FEW_CELLS / 2, full)})]


def test_synthetic_networks_are_not_used_on_other_data(tiny, tmp_path):
    """Nor networks of real data on the sample: the interpolated label takes their place."""
    assert ensemble.is_transferable(tiny)
    mixed = replace(tiny, memory={"cells per region": 30.0})
    mixed.parameters = tiny.parameters | {"train_root": str(tmp_path / "world" / "sen12ms")}
    (tmp_path / "world" / "sen12ms").mkdir(parents=True)
    (tmp_path / "world" / "world.json").write_text("{}")
    assert not ensemble.is_transferable(mixed)
    assert list(weights_of(mixed)) == [*FUSED, "interpolated label"]


def test_the_interpolated_label_is_found_for_images_without_a_label(tiny, patch):
    predict, _ = MEMBERS["interpolated label"](tiny)
    expected = baselines.soft_label(patch)
    np.testing.assert_array_equal(predict(patch), expected)
    [bare, *_] = [own for own, _ in images_of(tiny.target_source)]
    assert bare.lc is None
    assert bare.name == patch.name
    np.testing.assert_array_equal(predict(bare), expected)


def test_the_interpolated_label_is_a_member_of_every_kind_of_fusion(with_cells, patch):
    """Of weighted ones, of pseudo-labels, and of test-time augmentation, which turns it with the images."""
    experiment = with_cells(30.0, transferable=False)
    for plan in (FusionPlan(), FusionPlan(calibrated=True, weighted=True), FusionPlan(symmetries=4)):
        fused, _ = fusion_of(experiment, plan)
        assert list(fused.members) == [*FUSED, "interpolated label"]
        np.testing.assert_allclose(fused.predict(patch).sum(axis=0), 1, atol=1e-5)
    labelled = pseudo_labelled(fusion_of(experiment)[0].predict, experiment.target_source)
    assert len(labelled.labels) == len(experiment.rows)
