"""Borders and coarse cells: by hand, by brute force, and on the true geometry of the MODIS grid."""

import math
from itertools import product

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_protocol import all_forest, contest  # noqa: F401 - a fixture

from lcfuse_core.data import patches, source
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.errors import DataError, GridError
from lcfuse_core.scoring import protocol, spatial
from lcfuse_core.scoring.scores import confusion, summarise
from lcfuse_core.scoring.spatial import BorderCount, border_count, cell_confusion, confusion_near_borders, near_border

maps = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from((0, 1, 6, 10)))


def others_within(labels, radius):
    """Brute force: for each pixel, whether another known class lies within the square around it."""
    rows, cols = labels.shape
    found = np.zeros(labels.shape, bool)
    for row, col in product(range(rows), range(cols)):
        window = labels[max(0, row - radius) : row + radius + 1, max(0, col - radius) : col + radius + 1]
        found[row, col] = labels[row, col] > 0 and bool(set(window[window > 0].tolist()) - {labels[row, col]})
    return found


@given(maps, st.integers(0, 4))
def test_near_a_border_is_what_it_says(labels, radius):
    np.testing.assert_array_equal(near_border(labels, radius), others_within(labels, radius))


def test_the_band_around_a_border_is_scored_by_itself():
    """Forest left, water right; the map's shore lies one pixel too far right, so two in four near it are right."""
    reference, predicted = np.ones((4, 20), np.uint8), np.ones((4, 20), np.uint8)
    reference[:, 10:], predicted[:, 11:] = 10, 10
    near = summarise(confusion_near_borders(reference, predicted, 2))
    assert near.n_pixels == 4 * 4
    assert near.oa == 0.75
    interior = confusion(reference, predicted) - confusion_near_borders(reference, predicted, 2)
    assert summarise(interior).oa == 1
    assert confusion_near_borders(reference, predicted, 0).sum() == 0


def test_lines_that_are_a_pixel_off_meet_within_the_tolerance_only():
    reference, predicted = np.ones((4, 20), np.uint8), np.full((4, 20), 6, np.uint8)
    reference[:, 10:], predicted[:, 12:] = 10, 7  # the classes do not matter, the lines do
    assert border_count(reference, predicted, 1) == BorderCount(4, 0, 4, 0)
    assert border_count(reference, predicted, 1).f1 == 0
    assert border_count(reference, predicted, 2).f1 == 1


def test_a_salted_map_has_many_lines_that_nothing_meets():
    """Every reference line is found, and most of what is drawn lies elsewhere: recall 1, low precision."""
    rng = np.random.default_rng(0)
    reference = np.ones((64, 64), np.uint8)
    reference[:, 60:] = 10
    found = border_count(reference, rng.integers(1, 3, (64, 64)).astype(np.uint8))
    assert found.recall == 1
    assert found.precision < 0.15
    assert found.f1 == pytest.approx(2 * found.precision / (1 + found.precision))


def test_border_counts_add_up_and_say_when_there_is_no_border():
    """A patch of one class cannot be scored; it adds the false lines of the map."""
    plain, halves = np.ones((4, 8), np.uint8), np.ones((4, 8), np.uint8)
    halves[:, 4:] = 6
    assert math.isnan(border_count(plain, plain).f1)
    assert math.isnan(border_count(plain, halves).f1)
    assert border_count(halves, plain) == BorderCount(0, 0, 4, 4 - 4)
    assert border_count(halves, plain).f1 == 0
    both = border_count(halves, halves) + border_count(plain, halves)
    assert both == BorderCount(8, 4, 4, 4)
    assert (both.precision, both.recall, both.f1) == (0.5, 1, pytest.approx(2 / 3))


@given(maps)
def test_a_map_of_the_reference_meets_all_its_lines(labels):
    found = border_count(labels, labels, 0)
    assert found.map_px == found.map_met == found.reference_px == found.reference_met


def test_unknown_pixels_have_no_lines():
    """Where the reference says nothing, neither its edge nor what the map draws there counts."""
    reference, predicted = np.ones((4, 8), np.uint8), np.ones((4, 8), np.uint8)
    reference[:, 4:] = 0
    predicted[:, 6:] = 10
    assert border_count(reference, predicted) == BorderCount()


def cells_of(side):
    """Cells of a patch in the north of Italy, sheared against its rows as real ones are."""
    return cell_ids(Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632", (side, side))[0]


def test_a_map_agrees_with_modis_where_most_of_the_cell_says_so():
    """Each whole cell: 60 % of its pixels as MODIS says, 40 % another class; then the other way round."""
    ids = cells_of(200)
    rng = np.random.default_rng(0)
    per_cell = rng.choice((1, 6, 10), ids.max() + 1).astype(np.uint8)
    coarse = per_cell[ids]
    other = rng.random(ids.shape) < 0.4
    mostly, hardly = np.where(other, 4, coarse).astype(np.uint8), np.where(~other, 4, coarse).astype(np.uint8)
    size = np.bincount(ids.ravel())
    n_whole = int((size > 0.98 * 463.3127**2 / 100).sum())
    agreeing = cell_confusion(coarse, mostly, ids)
    assert agreeing.sum() == n_whole >= 9
    assert summarise(agreeing).oa == 1
    assert summarise(cell_confusion(coarse, hardly, ids)).oa == 0
    assert cell_confusion(coarse, hardly, ids)[:, 4].sum() == n_whole


def test_no_whole_cell_means_no_count_and_savanna_is_not_judged():
    small = np.ones((20, 20), np.uint8)
    assert cell_confusion(small, small, cells_of(20)).sum() == 0
    ids = cells_of(200)
    savanna = np.full((200, 200), 3, np.uint8)
    counts = cell_confusion(savanna, savanna // 3, ids)
    assert counts[3, 1] == counts.sum() > 0
    with pytest.raises(ValueError, match="no pixel with a scored"):
        summarise(counts)


def test_grids_that_do_not_fit_are_refused():
    ones = np.ones((4, 4), np.uint8)
    with pytest.raises(GridError, match=r"\(4, 3\)"):
        border_count(ones, ones[:, :3])
    with pytest.raises(GridError, match=r"two arrays \(H, W\)"):
        confusion_near_borders(ones[None], ones[None])
    with pytest.raises(GridError, match="cells"):
        cell_confusion(ones, ones, np.zeros((3, 3), np.int32))


@pytest.fixture
def rows(contest):  # noqa: F811
    return protocol.evaluation_patches(contest)


def test_of_all_pixels_it_is_the_protocol(rows):
    """With the plain confusion it gives what `protocol.judge` gives, region by region."""
    methods = {"forest": all_forest, "MODIS label": protocol.modis_map}
    found, report = spatial.judge(methods, rows, lambda patch, answer: confusion(patch.dfc, answer))
    expected, _ = protocol.judge(methods, rows)
    assert report.n_read == 3
    for name in methods:
        assert list(found[name].by_region) == list(expected[name].by_region) == ["east", "west"]
        for region, counts in expected[name].by_region.items():
            np.testing.assert_array_equal(found[name].by_region[region], counts)


def test_near_borders_three_pixels_on_either_side_are_counted(rows):
    """Patch n has its border in column 8 n, so the first has none."""
    found, _ = spatial.judge({"forest": all_forest}, rows, spatial.near_borders)
    assert found["forest"].by_region["east"].sum() == 0
    read, _ = patches.read_many(rows, protocol.NEED)
    expected = sum(near_border(patch.dfc, 3).sum() for patch in read)
    assert found["forest"].counts.sum() == expected > 0


def test_the_label_agrees_with_itself_in_every_cell(rows):
    methods = {"MODIS label": protocol.modis_map, "forest": all_forest}
    found, _ = spatial.judge(methods, rows, spatial.as_modis)
    label = found["MODIS label"].counts
    assert label.sum() == np.trace(label) == found["forest"].counts.sum()
    read, _ = patches.read_many(rows, protocol.NEED)
    assert label.sum() <= sum(source.patch_cells(patch).max() + 1 for patch in read)


def test_no_method_sees_the_reference(rows):
    def looks(patch):
        assert patch.dfc is None
        return all_forest(patch)

    spatial.judge({"looks": looks}, rows, spatial.near_borders)


def test_a_ledger_line_takes_scores_and_counts_of_a_part(rows):
    found, _ = spatial.judge({"forest": all_forest}, rows, spatial.near_borders)
    part = spatial.for_ledger(found["forest"])
    assert part["aa"] == found["forest"].scores.aa
    assert part["counts"] == found["forest"].by_region


def test_nothing_to_read_is_an_error(rows):
    with pytest.raises(DataError):
        spatial.judge({"forest": all_forest}, rows.assign(s1="nowhere.tif"), spatial.near_borders)
