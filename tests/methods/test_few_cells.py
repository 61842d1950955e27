"""Few coarse cells: weights and steps that depend on their number, and the comparison on held-out cells."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import lc_array

from lcfuse_core.data.source import PatchStack
from lcfuse_core.methods import baselines, few_cells
from lcfuse_core.methods.adapt import images_of
from lcfuse_core.methods.few_cells import _LEAST_WEIGHT, FEW_CELLS, steps_for, third_weight
from lcfuse_core.models import transition
from lcfuse_core.sample.world import TEST_REGIONS, WorldPlan
from lcfuse_core.scoring.scores import CELL_PX

MATRIX = transition.from_accuracy(np.ones(9))


@pytest.mark.parametrize("preference", [0.0, 0.3, 1.0])
def test_the_third_weight_falls_continuously_to_exactly_zero(preference):
    cells = np.linspace(0, 2 * FEW_CELLS, 4001)
    weights = np.array([third_weight(n, preference) for n in cells])
    assert weights[0] == _LEAST_WEIGHT + (1 - _LEAST_WEIGHT) * preference
    assert np.all(np.diff(weights) <= 0)
    assert np.abs(np.diff(weights)).max() < 2.01 * (cells[1] - cells[0]) / FEW_CELLS
    assert np.all((weights == 0) == (cells >= FEW_CELLS))


def test_steps_grow_with_the_cells_up_to_all_of_them():
    assert [steps_for(FEW_CELLS * part, 900) for part in (0, 0.25, 0.5, 1, 7)] == [1, 225, 450, 900, 900]


def test_the_regions_of_the_sample_have_enough_cells_for_two_members():
    """So that its recorded scores are those of the mean of two members."""
    assert WorldPlan().n_test / len(TEST_REGIONS) * 512**2 / CELL_PX > FEW_CELLS


def test_cells_are_counted_by_region_where_the_label_is_known(tiny):
    known = np.isin(lc_array()[0], range(1, 18)) & (lc_array()[0] != 15)
    source = tiny.target_source
    assert few_cells.cells_per_region(source) == pytest.approx(2 * known.sum() / CELL_PX)
    assert few_cells.cells_per_region(source, 2) == pytest.approx(known.sum() / CELL_PX)


@pytest.fixture
def coloured():
    """A source of two classes in cells of 8 pixels: the first band is bright where the label is 5, in 5 of 6 cells."""
    rng, n = np.random.default_rng(0), 64
    stack = PatchStack.empty(1, n, n)
    rows, cols = np.mgrid[:n, :n] // 8
    cells = (rows * 8 + cols).astype(np.int32)
    truth = rng.integers(0, 2, 64)
    labels = np.where(rng.random(64) < 1 / 6, 1 - truth, truth)
    s2 = np.full((13, n, n), 1000, np.uint16) + rng.integers(0, 200, (13, n, n)).astype(np.uint16)
    s2[0] += (3000 * truth[cells]).astype(np.uint16)
    s1 = rng.normal(-10, 1, (2, n, n)).astype(np.float32)
    stack.put("one", s2, s1, np.where(labels[cells] == 1, 5, 0).astype(np.uint8), cells)
    return stack, np.where(truth[cells] == 1, 5, 0)


def certain(classes, confidence=0.95):
    """Return a member that predicts these classes."""
    p = np.full((8, *classes.shape), (1 - confidence) / 7, np.float32)
    np.put_along_axis(p, classes[None], confidence, axis=0)
    return lambda patch: p


def test_the_better_of_two_predictions_of_cells_is_preferred(coloured):
    """With a probability of one half for equal ones, and near 0 or 1 for many cells and different ones."""
    source, truth = coloured
    right, wrong = certain(truth), certain(5 - truth)
    assert few_cells.preference(right, wrong, source, MATRIX) > 0.99
    assert few_cells.preference(wrong, right, source, MATRIX) < 0.01
    assert few_cells.preference(right, right, source, MATRIX) == 0.5


def test_the_held_out_forest_is_not_trained_on_the_label_of_the_cell(coloured):
    """It finds the classes by their colour; a wrong label of one cell does not change the prediction there."""
    source, truth = coloured
    [(patch, window)] = images_of(source)
    predicted = few_cells.held_out_forest(source, seed=0)(patch)
    np.testing.assert_allclose(predicted.sum(axis=0), 1, atol=1e-5)
    assert (predicted.argmax(axis=0) == truth).mean() > 0.95
    changed = PatchStack.empty(1, 64, 64)
    inside = window.cells.numpy() == 0
    labels = window.labels.numpy().copy()
    labels[inside] = 7  # a class that no other cell has
    changed.put("one", patch.s2, patch.s1, labels, window.cells.numpy())
    own = few_cells.held_out_forest(changed, seed=0)(patch)
    assert own[7][inside].max() == 0


def test_the_held_out_label_is_that_of_the_other_cells(coloured):
    source, _ = coloured
    [(patch, window)] = images_of(source)
    predicted, labels = few_cells.held_out_label(source, seed=0)(patch), window.labels.numpy().copy()
    np.testing.assert_allclose(predicted.sum(axis=0), 1, atol=1e-5)
    fold = few_cells._folds(source, 0)["one"]
    expected = baselines.interpolated(np.where(fold == fold[0, 0], 255, labels).astype(np.uint8))
    np.testing.assert_allclose(predicted[:, 0, 0], expected[:, 0, 0])


def test_labels_are_found_for_images_without_them(tiny, patch):
    [bare, *_] = [own for own, _ in images_of(tiny.target_source)]
    assert bare.lc is None
    own = few_cells.labels_of(patch, tiny.target_source)
    np.testing.assert_array_equal(few_cells.labels_of(bare, tiny.target_source), own)
    turned = replace(patch, lc=patch.lc[:, ::-1].copy())  # as test-time augmentation does
    np.testing.assert_array_equal(few_cells.labels_of(turned, tiny.target_source), own[::-1])
    np.testing.assert_array_equal(baselines.interpolated(own), baselines.soft_label(patch))


def test_a_source_with_labels_in_one_cell_is_no_error(coloured):
    """The forest has no label for that cell, and all classes are equally likely there."""
    source, _ = coloured
    [(patch, window)] = images_of(source)
    lonely = PatchStack.empty(1, 64, 64)
    labels = torch.where(window.cells == 0, window.labels, 255).numpy().astype(np.uint8)
    lonely.put("one", patch.s2, patch.s1, labels, window.cells.numpy())
    assert np.allclose(few_cells.held_out_forest(lonely, seed=0)(patch)[:, 0, 0], 1 / 8)
