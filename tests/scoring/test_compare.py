"""Methods side by side: pairs of one seed and one world, intervals from whatever a line tells, verdicts by the rule."""

import json

import numpy as np
import pandas as pd
import pytest

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DataError, MissingDataError
from lcfuse_core.methods.registry import METHODS
from lcfuse_core.scoring import compare, intervals, ledger
from lcfuse_core.scoring.compare import Bar, Step
from lcfuse_core.scoring.scores import summarise

REGIONS = ("cape", "delta", "north", "river")


def region_counts(rng, aa):
    """Counts (11, 11) of one region, in which about *aa* of the pixels of each class are right."""
    counts = np.zeros((11, 11), np.int64)
    for code in SCORED:
        n = int(rng.integers(200, 2000))
        right = int(n * np.clip(aa + rng.normal(0, 0.05), 0, 1))
        counts[code, code], counts[code, SCORED[0] if code != SCORED[0] else SCORED[1]] = right, n - right
    return counts


def line(method, seed, counts, *, with_counts=True, regime="coarse only", data=None, train_s=10.0):
    """A ledger line of a method, as `scripts/methods.py` and the chapters write it."""
    scores = summarise(sum(counts.values())).as_dict()
    scores["regions"] = {name: summarise(one).as_dict() for name, one in counts.items()}
    if with_counts:
        scores["counts"] = {name: one.tolist() for name, one in counts.items()}
    return {
        "schema": 2, "parameters": {"method": method, "steps": 400}, "label_regime": regime,
        "seeds": {"world": seed, "training": seed}, "scores": scores, "cost": {"train_s": train_s + seed},
        "hashes": {"evaluation": data or f"world {seed}"},
    }  # fmt: skip


def made(methods, seeds=(0, 1, 2), **options):
    """Lines of methods, by name with their AA in each seed; the regions of a seed have the same pixels for all."""
    found = []
    for seed in seeds:
        for method, aas in methods.items():
            rng = np.random.default_rng(seed)
            counts = {name: region_counts(rng, aas[seed]) for name in REGIONS}
            found.append(line(method, seed, counts, **options))
    return found


def table_of(lines):
    return pd.json_normalize(lines)


@pytest.fixture
def lines():
    """Three methods, three seeds: `b` is ten points over `a` everywhere, `c` now over, now under `b`."""
    return table_of(made({"a": (0.4, 0.5, 0.6), "b": (0.5, 0.6, 0.7), "c": (0.6, 0.5, 0.75)}))


def test_a_gain_is_a_pair_of_one_seed(lines):
    """Hard seeds cancel: a steady gain has next to no spread though the scores spread by 20 points."""
    found = compare.gains(lines, [Step("steady", "b", "a"), Step("shaky", "c", "b")])
    steady, shaky = found.loc["steady"], found.loc["shaky"]
    assert steady[["seed 0", "seed 1", "seed 2"]].to_numpy(float) == pytest.approx([10, 10, 10], abs=0.3)
    assert (steady["better"], bool(steady["earns"])) == ("3 of 3", True)
    assert steady["spread"] < 0.5 < 5 < shaky["spread"]
    assert (shaky["better"], bool(shaky["earns"])) == ("2 of 3", False)
    assert steady["low"] <= steady["seed 0"] <= steady["high"]


def test_lines_of_other_data_make_no_pair(lines):
    """Seeds are compared on the same world only, and a step without a pair is left out."""
    lines.loc[(lines["parameters.method"] == "b") & (lines["seeds.world"] == 1), "hashes.evaluation"] = "other"
    found = compare.gains(lines, [Step("steady", "b", "a"), Step("nobody's", "b", "d")])
    assert list(found.index) == ["steady"]
    assert found.loc["steady", "better"] == "2 of 2"


def test_a_single_pair_has_no_spread_and_earns_nothing():
    """One seed shows nothing."""
    lines = table_of(made({"a": (0.4,), "b": (0.5,)}, seeds=(0,)))
    found = compare.gains(lines, [Step("steady", "b", "a")]).loc["steady"]
    assert np.isnan(found["spread"])
    assert not found["earns"]


def test_the_overview_has_a_row_a_method_best_first(lines):
    """Means over seeds, the seeds' range, the median cost, and the interval of the first seed over its regions."""
    found = compare.overview(lines, digits=6)
    assert list(found.index) == ["c", "b", "a"]
    aa = 100 * lines[lines["parameters.method"] == "b"]["scores.aa"]
    row = found.loc["b"]
    assert row[["AA", "least", "greatest"]].tolist() == pytest.approx([aa.mean(), aa.min(), aa.max()])
    assert row[["seeds", "labels", "train s"]].tolist() == [3, "coarse only", 11]
    groups = compare.first_seed(lines, "b")
    one = intervals.interval(groups, method="jackknife")
    assert row[["low", "high"]].tolist() == pytest.approx([100 * one.low, 100 * one.high])
    assert one.value == pytest.approx(float(aa.iloc[0]) / 100)


def test_without_counts_the_interval_is_the_same():
    """Recalls of the regions, and the pixels of classes that any line of the same data tells, are all that AA takes."""
    methods = {"a": (0.4, 0.5, 0.6), "b": (0.5, 0.6, 0.7)}
    whole, bare = made(methods), made(methods, with_counts=False)
    mixed = table_of(
        [one if one["parameters"]["method"] == "a" else other for one, other in zip(whole, bare, strict=True)]
    )
    expected, found = (compare.gains(lines, [Step("", "b", "a")], digits=9) for lines in (table_of(whole), mixed))
    pd.testing.assert_frame_equal(expected, found)
    counts = compare.first_seed(mixed, "b", 2)
    np.testing.assert_array_equal(counts.sum(-1), compare.first_seed(table_of(whole), "b", 2).sum(-1))


def test_without_any_counts_there_is_no_interval():
    """Nothing is made up."""
    lines = table_of(made({"a": (0.4, 0.5, 0.6), "b": (0.5, 0.6, 0.7)}, with_counts=False))
    assert compare.overview(lines)[["low", "high"]].isna().all(axis=None)
    assert compare.gains(lines, [Step("", "b", "a")])[["low", "high"]].isna().all(axis=None)
    assert compare.first_seed(lines, "nobody") is None


def test_recalls_are_means_over_seeds(lines):
    """In per cent, by class name."""
    found = compare.recalls(lines, digits=6)
    own = lines[lines["parameters.method"] == "c"]
    assert list(found.columns) == [DFC2020.name_of(code) for code in SCORED]
    assert found.loc["c", "Water"] == pytest.approx(100 * own["scores.recall.Water"].mean())


@pytest.mark.parametrize(
    ("bar", "verdict"),
    [
        (Bar("a", 5, 5), "met"),
        (Bar("a", 15), "not met"),
        (Bar("a", 5, 12), "not met"),
        (Bar("d", 0), "not recorded"),
    ],
)
def test_a_bar_is_met_on_average_and_with_each_seed(lines, bar, verdict):
    """Ten points in each of three seeds."""
    found = compare.verdicts(lines, [bar], method="b").loc[bar.against]
    assert found["verdict"] == verdict
    assert found["seeds"] == (0 if bar.against == "d" else 3)


def write(path, lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_of_two_lines_of_a_run_the_newer_counts(tmp_path):
    """A method that was run again after a change."""
    old, new = made({"a": (0.4,)}, seeds=(0,)), made({"a": (0.6,)}, seeds=(0,))
    found = compare.recorded(write(tmp_path / "lines.jsonl", old + new))
    assert compare.by_seed(found).loc["a", 0] == pytest.approx(60, abs=4)
    assert len(found) == 1


def test_without_lines_there_is_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(MissingDataError):
        compare.recorded(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"scripts/methods\.py"):
        compare.recorded(tmp_path / "empty.jsonl")


def test_the_steps_and_bars_name_methods_that_there_are():
    """A method that is renamed in the ladder must be renamed here."""
    steps = (*compare.LADDER, *compare.ASIDE)
    named = {name for step in steps for name in (step.method, step.over)}
    assert named | {compare.FUSION, *(bar.against for bar in compare.BARS)} <= {*METHODS, compare.BOUND}
    assert len({step.adds for step in steps}) == len(steps)


def test_each_rung_leans_on_the_label_or_on_a_method():
    """From the label to the fusion without a gap: what a step leans on is reached before, or stands beside it."""
    reached = {compare.FLOOR}
    for step in compare.LADDER:
        assert step.over in reached or step.method in reached, step.adds
        reached.add(step.method)
    assert compare.FUSION in reached
    assert all(step.over in reached or "calibrated" in step.over for step in compare.ASIDE)


def test_the_shipped_lines_are_synthetic_and_of_known_methods():
    """What the chapter shows: one line a method and seed, each with its regime."""
    lines = compare.recorded()
    assert lines["synthetic"].all()
    assert set(lines["parameters.method"]) <= {
        *METHODS,
        *(name for name in lines["parameters.method"] if "fine labels" in name),
    }
    assert compare.AT_HOME_BOUND not in set(lines["parameters.method"])  # judged on other patches
    assert not lines.duplicated(["parameters.method", "seeds.world"]).any()
    assert set(lines["label_regime"]) <= set(ledger.LABEL_REGIMES)
    assert len(compare.gains(lines))


def test_a_line_is_found_by_method_and_seed(lines):
    """Without what it does not say; empty where there is none."""
    found = compare.line(lines, "b", 1)
    assert (found["parameters.method"], found["seeds.world"]) == ("b", 1)
    assert not found.isna().any()
    assert compare.line(lines, "b", 7).empty
