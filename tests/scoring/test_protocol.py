"""The protocol: which patches are used for what, what is counted, and the committed ledger of several seeds."""

import json

import miniatures
import numpy as np
import pandas as pd
import pytest

from lcfuse_core.data import patches
from lcfuse_core.data.legends import SAVANNA, igbp_to_dfc
from lcfuse_core.errors import DataError, MissingDataError, ParameterError
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.scores import confusion, summarise


@pytest.fixture
def contest(tmp_path):
    """Phase archives with one validation and three test patches, from two regions; patch k has 8k rows of water."""
    root = tmp_path / "dfc2020"
    miniatures.write_patch(root, "validation", 0)
    for patch in (0, 1, 2):
        reference = np.where(miniatures.coordinates()[0] < 8 * patch, 10, 1).astype(np.uint8)
        miniatures.write_patch(root, "test", patch, dfc=reference[None])
    regions = {"validation": {"0": "north"}, "test": {"0": "east", "1": "west", "2": "west"}}
    (tmp_path / "world.json").write_text(json.dumps({"regions": regions}))
    return root


def all_forest(patch):
    """A map that is forest everywhere."""
    return np.ones(patch.s2.shape[1:], np.uint8)


def test_held_out_scenes_are_whole_and_always_the_same():
    table = pd.DataFrame({"scene_id": [f"scene {number // 4}" for number in range(64)], "patch": range(64)})
    learn, held_out = protocol.split_scenes(table)
    assert set(learn["scene_id"]) & set(held_out["scene_id"]) == set()
    assert held_out["scene_id"].nunique() == 2  # an eighth of sixteen
    assert len(learn) + len(held_out) == 64
    pd.testing.assert_frame_equal(protocol.split_scenes(table)[1], held_out)
    with pytest.raises(ParameterError, match="two scenes or more"):
        protocol.split_scenes(pd.DataFrame({"scene_id": ["1", "1"]}))


def test_the_patches_of_a_split_are_evaluated_and_those_without_a_split_where_there_is_no_test(contest, tmp_path):
    """The public bundle has no splits; validation patches are evaluated as a test only where there are no others."""
    assert protocol.evaluation_patches(contest)["split"].tolist() == ["test"] * 3
    assert protocol.evaluation_patches(contest, "validation")["split"].tolist() == ["validation"]
    folder = tmp_path / "bundle"
    miniatures.write_patch(folder, kinds=("s1", "s2", "lc"))
    with pytest.raises(MissingDataError, match="no patch with a reference"):
        protocol.evaluation_patches(folder)
    miniatures.write_patch(folder, "validation", 1)
    assert protocol.evaluation_patches(folder)["split"].tolist() == ["validation"]
    for patch in (3, 5):
        miniatures.write_patch(folder, "bundle", patch)
    miniatures.write_patch(folder, "bundle", 9, kinds=("s1", "s2", "dfc"))
    assert protocol.evaluation_patches(folder)["patch"].tolist() == [3, 5]


def test_validation_patches_are_never_taken_from_another_split(tmp_path):
    miniatures.write_patch(tmp_path, "bundle", 3)
    with pytest.raises(MissingDataError, match="no patch of the validation split"):
        protocol.evaluation_patches(tmp_path, "validation")


def test_counts_are_kept_by_region_and_add_up(contest):
    """A map of forest is wrong where the reference is water."""
    results, report = protocol.evaluate_methods({"forest": all_forest}, protocol.evaluation_patches(contest))
    result, cols = results["forest"], miniatures.COLS
    assert report.n_read == 3
    assert sorted(result.by_region) == ["east", "west"]
    assert result.by_region["east"][1, 1] == 32 * cols
    assert result.by_region["west"][10, 1] == (8 + 16) * cols
    assert result.counts.sum() == 3 * 32 * cols
    assert result.scores.aa == summarise(sum(result.by_region.values())).aa == 0.5
    assert result.scores.oa == pytest.approx(72 / 96)
    assert result.regions["east"].oa == 1
    assert result.regions["west"].oa == pytest.approx(40 / 64)


def test_parts_of_the_pixels_are_scored_in_the_same_pass(contest):
    """Near borders: six rows of each patch with water. A ledger line has scores, counts and the split."""
    result = protocol.evaluate_methods({"forest": all_forest}, protocol.evaluation_patches(contest))[0]["forest"]
    assert result.parts["near_borders"].counts.sum() == 2 * 6 * miniatures.COLS
    assert result.parts["small_objects"].counts.sum() == 0, "all objects of this reference reach the edge"
    assert (result.split, result.n_patches) == ("test", 3)
    kept = result.for_ledger()
    assert (kept["near_borders"]["aa"], kept["near_borders"]["oa"], kept["n_patches"]) == (0.5, 0.5, 3)
    assert kept["near_borders"]["counts"] == result.parts["near_borders"].by_region
    assert kept["regions"]["east"]["oa"] == 1
    assert "small_objects" not in kept


def test_pooled_and_regional_accuracy_stand_side_by_side():
    """A map that only shows which class dominates each region: AA 0.9 pooled, 0.5 in each region."""
    result = protocol.Result()
    for region, code, other in (("a", 1, 10), ("b", 10, 1)):
        result.add(region, confusion(np.repeat([code, other], [18000, 2000]), np.full(20000, code)))
    row = protocol.result_table({"dominant class": result}).loc["dominant class"]
    assert (row["AA %"], row["regional AA %"], row["cells per region"]) == (90, 50, 9)


def test_methods_get_patches_without_the_reference(contest):
    seen = []

    def note_reference(patch):
        seen.append(patch.dfc)
        return all_forest(patch)

    methods = {"one": note_reference, "two": note_reference}
    protocol.evaluate_methods(methods, protocol.evaluation_patches(contest))
    assert seen == [None] * 6


def test_a_damaged_patch_is_skipped_for_all_methods_and_named(contest):
    (contest / "s2_0" / "ROIs0000_test_s2_0_p1.tif").write_bytes(b"no image")
    methods = {"one": all_forest, "two": protocol.modis_label_map}
    results, report = protocol.evaluate_methods(methods, protocol.evaluation_patches(contest))
    assert [name for name, _ in report.skipped] == ["ROIs0000_test_0_p1"]
    pixels = 2 * miniatures.ROWS * miniatures.COLS
    assert [result.counts.sum() for result in results.values()] == [pixels, pixels]


def test_nothing_readable_is_an_error_not_a_score(contest):
    for file in (contest / "s1_0").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="no readable patch among 3"):
        protocol.evaluate_methods({"forest": all_forest}, protocol.evaluation_patches(contest))


def test_the_baseline_is_the_modis_label_with_its_savanna(contest):
    patch = patches.read_patch(next(protocol.evaluation_patches(contest).itertuples()))
    np.testing.assert_array_equal(protocol.modis_label_map(patch), igbp_to_dfc(patch.lc[0]))
    patch.lc[0] = 9
    assert (protocol.modis_label_map(patch) == SAVANNA).all()


def test_patches_are_sorted_by_the_classes_of_their_labels(contest):
    """The reference is not opened for it, and unreadable patches are left out."""
    for patch, codes in ((0, (10,)), (1, (1, 12, 13)), (2, (10, 11))):
        labels = miniatures.lc_array()
        labels[0] = np.resize(codes, labels[0].shape)
        miniatures.write_patch(contest, "test", patch, kinds=("lc",), lc=labels)
        (contest / "dfc_0" / f"ROIs0000_test_dfc_0_p{patch}.tif").write_bytes(b"must not be read")
    table = protocol.evaluation_patches(contest)
    assert protocol.by_variety(table)["patch"].tolist() == [1, 2, 0]
    (contest / "s2_0" / "ROIs0000_test_s2_0_p1.tif").write_bytes(b"no image")
    assert protocol.by_variety(table)["patch"].tolist() == [2, 0]


def test_seeds_are_summed_up_by_method_best_first():
    """Of two lines of a run the newer counts; lines of another form are refused by name."""
    lines = pd.DataFrame(
        [("a", 0, 0.1), ("a", 0, 0.4), ("a", 1, 0.5), ("b", 0, 0.6), ("b", 1, 0.5)],
        columns=["parameters.method", "seeds.world", "scores.aa"],
    )
    table = protocol.over_seeds(lines)
    assert list(table.columns) == ["seed 0", "seed 1", "mean", "min", "max"]
    assert table.loc["a"].tolist() == [40, 50, 45, 40, 50]
    assert list(table.index) == ["b", "a"]
    with pytest.raises(DataError, match=r"lines without scores\.aa"):
        protocol.over_seeds(lines.drop(columns="scores.aa"))


def test_shipped_bounds_are_kept_apart_from_the_methods():
    """Three bounds with fine labels, on the same worlds."""
    bounds, methods = protocol.recorded_seeds("fine"), protocol.recorded_seeds()
    assert len(bounds) == 3 * 5
    assert set(bounds["hashes.evaluation"]) == set(methods["hashes.evaluation"])
    assert not set(bounds["parameters.method"]) & set(methods["parameters.method"])
