"""Tallies: groups add up to the whole, and memory is that of the groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcfuse_core.errors import LegendError, ParameterError
from lcfuse_core.scoring.scores import confusion, summarise
from lcfuse_core.scoring.tallies import Tally

places = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=12)


@given(places, st.integers(0, 2**32 - 1))
def test_groups_of_every_level_add_up_to_the_whole(names, seed):
    """Regions, scenes and patches: each level's counts sum to those of one long patch."""
    rng = np.random.default_rng(seed)
    reference, predicted = rng.integers(1, 11, (2, len(names), 8, 8)).astype(np.uint8)
    tally = Tally()
    for number, (region, scene) in enumerate(names):
        tally.add(reference[number], predicted[number], region=region, scene=region + scene, patch=str(number))
    whole = confusion(reference, predicted)
    np.testing.assert_array_equal(tally.counts, whole)
    for level in tally.levels:
        np.testing.assert_array_equal(sum(tally.groups[level].values()), whole)
    assert len(tally.by("patch")) == len(names)
    assert set(tally.by("region")) == {region for region, _ in names}


def test_a_group_is_scored_by_its_own_pixels():
    """One scene right, one wrong, one without a judged pixel: that one has no row."""
    tally = Tally(("scene",))
    ones, tens, threes = (np.full((4, 4), code, np.uint8) for code in (1, 10, 3))
    tally.add(ones, ones, scene="right")
    tally.add(ones, tens, scene="wrong")
    tally.add(threes, ones, scene="Savanna alone")
    tally.add(0 * ones, ones, scene="nothing known")
    assert {name: one.oa for name, one in tally.scores("scene").items()} == {"right": 1, "wrong": 0}
    assert tally.table("scene")["pixels"].to_dict() == {"right": 16, "wrong": 16}
    assert summarise(tally.counts).oa == 0.5


def test_memory_does_not_grow_with_patches():
    """A thousand patches of two scenes leave two matrices; the patches' arrays are not kept or changed."""
    tally, ones = Tally(("scene",)), np.ones((8, 8), np.uint8)
    for number in range(1000):
        tally.add(ones, ones, scene=str(number % 2))
    assert [counts.nbytes for counts in tally.groups["scene"].values()] == [968, 968]
    assert tally.counts.sum() == 64_000


def test_what_cannot_be_placed_is_refused_and_not_counted():
    ones, tally = np.ones((2, 2), np.uint8), Tally(("region", "scene"))
    with pytest.raises(ParameterError, match=r"found names for scene, expected a name for each of region, scene"):
        tally.add(ones, ones, scene="1")
    with pytest.raises(LegendError):
        tally.add(ones, 99 * ones, region="a", scene="1")
    with pytest.raises(ParameterError, match="'patch', expected one of region, scene"):
        tally.by("patch")
    with pytest.raises(ParameterError, match="found tile"):
        Tally(("tile",))
    assert tally.counts.sum() == 0
    assert tally.groups == {"region": {}, "scene": {}}
