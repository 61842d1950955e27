"""The closer look: the part that is counted, who sees what, and what goes into the ledger."""

import numpy as np
import pytest
from test_protocol import all_forest, contest  # noqa: F401 - a fixture

from lcfuse_core import closeups, patches, protocol, scenes
from lcfuse_core.errors import DataError
from lcfuse_core.scores import confusion
from lcfuse_core.spatial_scores import near_border


@pytest.fixture
def rows(contest):  # noqa: F811
    return protocol.evaluation_patches(contest)


def test_of_all_pixels_it_is_the_protocol(rows):
    """With the plain confusion it gives what `protocol.judge` gives, region by region."""
    methods = {"forest": all_forest, "MODIS label": protocol.modis_map}
    found, report = closeups.judge(methods, rows, lambda patch, answer: confusion(patch.dfc, answer))
    expected, _ = protocol.judge(methods, rows)
    assert report.n_read == 3
    for name in methods:
        assert list(found[name].by_region) == list(expected[name].by_region) == ["east", "west"]
        for region, counts in expected[name].by_region.items():
            np.testing.assert_array_equal(found[name].by_region[region], counts)


def test_near_borders_three_pixels_on_either_side_are_counted(rows):
    """Patch n has its border in column 8 n, so the first has none."""
    found, _ = closeups.judge({"forest": all_forest}, rows, closeups.near_borders)
    assert found["forest"].by_region["east"].sum() == 0
    read, _ = scenes.read_many(rows, protocol.NEED)
    expected = sum(near_border(patch.dfc, 3).sum() for patch in read)
    assert found["forest"].counts.sum() == expected > 0


def test_the_label_agrees_with_itself_in_every_cell(rows):
    methods = {"MODIS label": protocol.modis_map, "forest": all_forest}
    found, _ = closeups.judge(methods, rows, closeups.as_modis)
    label = found["MODIS label"].counts
    assert label.sum() == np.trace(label) == found["forest"].counts.sum()
    read, _ = scenes.read_many(rows, protocol.NEED)
    assert label.sum() <= sum(patches.patch_cells(patch).max() + 1 for patch in read)


def test_no_method_sees_the_reference(rows):
    def looks(patch):
        assert patch.dfc is None
        return all_forest(patch)

    closeups.judge({"looks": looks}, rows, closeups.near_borders)


def test_a_ledger_line_takes_scores_and_counts_of_a_part(rows):
    found, _ = closeups.judge({"forest": all_forest}, rows, closeups.near_borders)
    part = closeups.for_ledger(found["forest"])
    assert part["aa"] == found["forest"].scores.aa
    assert part["counts"] == found["forest"].by_region


def test_nothing_to_read_is_an_error(rows):
    with pytest.raises(DataError):
        closeups.judge({"forest": all_forest}, rows.assign(s1="nowhere.tif"), closeups.near_borders)
