"""Methods compared by pairs of one seed and one world."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lcfuse_core.data.legends import SCORED
from lcfuse_core.methods.registry import BOUNDS, METHODS
from lcfuse_core.scoring import compare, intervals, ledger, protocol, scores
from lcfuse_core.scoring.compare import Step


def region_counts(rng, aa):
    """Counts (11, 11) of one region, in which about *aa* of the pixels of each class are right."""
    counts = np.zeros((11, 11), np.int64)
    for code in SCORED:
        n = int(rng.integers(200, 2000))
        right = int(n * np.clip(aa + rng.normal(0, 0.05), 0, 1))
        counts[code, code], counts[code, SCORED[0] if code != SCORED[0] else SCORED[1]] = right, n - right
    return counts


def line(method, world, aa, training=0):
    """A line of a method with four regions, which have the same pixels for all methods."""
    rng = np.random.default_rng(world)
    counts = {name: region_counts(rng, aa) for name in ("cape", "delta", "north", "river")}
    own = asdict(scores.summarise(sum(counts.values())))
    own["regions"] = {name: asdict(scores.summarise(one)) for name, one in counts.items()}
    own["counts"] = {name: one.tolist() for name, one in counts.items()}
    return {
        "parameters": {"method": method, "steps": 400}, "label_regime": "coarse only", "regime": "inductive",
        "seeds": {"world": world, "training": training}, "scores": own, "cost": {"train_s": 10.0 + world},
        "hashes": {"evaluation": f"world {world}"},
    }  # fmt: skip


def table_of(methods):
    """The lines of methods, by name with their AA in each world, as `ledger.read` returns them."""
    return pd.json_normalize([line(name, *one) for name, aas in methods.items() for one in enumerate(aas)])


def without_counts(lines):
    return lines.drop(columns=lines.filter(like="scores.counts.").columns)


@pytest.fixture
def lines():
    """Three methods, three seeds: `b` is ten points over `a` everywhere, `c` sometimes over and sometimes under `b`."""
    return table_of({"a": (0.4, 0.5, 0.6), "b": (0.5, 0.6, 0.7), "c": (0.6, 0.5, 0.75)})


def test_a_gain_is_a_pair_of_one_seed(lines):
    """Hard seeds cancel: a steady gain has next to no spread though the scores spread by 20 points."""
    found = compare.gains(lines, [Step("steady", "b", "a"), Step("shaky", "c", "b")])
    steady, shaky = found.loc["steady"], found.loc["shaky"]
    assert steady[["seed 0", "seed 1", "seed 2"]].to_numpy(float) == pytest.approx([10, 10, 10], abs=0.3)
    assert (steady["better"], bool(steady["exceeds spread"])) == ("3 of 3", True)
    assert steady["spread"] < 0.5 < 5 < shaky["spread"]
    assert (shaky["better"], bool(shaky["exceeds spread"])) == ("2 of 3", False)


def test_lines_of_other_data_make_no_pair(lines):
    """Seeds are compared on the same world only, and a step without a pair is left out."""
    of_b = lines["parameters.method"] == "b"
    lines.loc[of_b & (lines["seeds.world"] == 1), "hashes.evaluation"] = "other"
    found = compare.gains(lines, [Step("steady", "b", "a"), Step("not recorded", "b", "d")])
    assert list(found.index) == ["steady"]
    assert found.loc["steady", "better"] == "2 of 2"
    lines.loc[of_b, "hashes.evaluation"] = "other"
    assert compare.gains(lines, [Step("steady", "b", "a")]).empty


def arrays_of(lines, method):
    """Counts (worlds, 1, regions, 11, 11) of a method."""
    own = lines[lines["parameters.method"] == method].sort_values("seeds.world")
    return np.array(own.filter(regex=r"^scores\.counts\.").to_numpy().tolist())[:, None]


def test_the_overview_has_a_row_a_method_best_first(lines):
    """Means over seeds, pooled and regional, their range, and the interval over worlds and regions."""
    found = compare.overview(lines)
    assert list(found.index) == ["c", "b", "a"]
    own = lines[lines["parameters.method"] == "b"]
    aa, row = 100 * own["scores.aa"], found.loc["b"]
    assert row[["AA", "least", "greatest"]].tolist() == pytest.approx([aa.mean(), aa.min(), aa.max()], abs=0.051)
    assert row[["seeds", "labels", "regime", "train s"]].tolist() == [3, "coarse only", "inductive", 11]
    one = intervals.hierarchical(arrays_of(lines, "b"))
    assert row[["low", "high"]].tolist() == pytest.approx([100 * one.low, 100 * one.high], abs=0.051)
    assert row["regional AA"] == pytest.approx(100 * own.filter(regex=r"regions\..*\.aa$").to_numpy().mean(), abs=0.051)
    assert row["cells per region"] == round(own["scores.n_pixels"].mean() / 4 / scores.CELL_PX)


def test_the_interval_of_a_gain_is_paired_over_worlds_and_regions(lines):
    found = compare.gains(lines, [Step("", "c", "a")]).iloc[0]
    one = intervals.hierarchical(arrays_of(lines, "c"), arrays_of(lines, "a"))
    expected = [100 * one.low, 100 * one.high, 100 * one.value]
    assert found[["low", "high", "mean"]].tolist() == pytest.approx(expected, abs=0.051)
    own, other = (lines[lines["parameters.method"] == name].filter(regex=r"regions\..*\.aa$") for name in "ca")
    assert found["regional"] == pytest.approx(100 * (own.to_numpy() - other.to_numpy()).mean(), abs=0.051)


def test_one_world_has_an_interval_over_its_regions_and_lines_without_counts_have_none(lines):
    """A single pair has no spread either, and does not exceed it."""
    single, step = table_of({"a": (0.4,), "b": (0.5,)}), [Step("", "b", "a")]
    groups, others = (arrays_of(single, name)[0, 0] for name in "ba")
    one = intervals.interval(groups, method="jackknife")
    gain = intervals.difference(groups, others, method="jackknife")
    assert compare.overview(single).loc["b", "low"] == pytest.approx(100 * one.low, abs=0.051)
    found = compare.gains(single, step).iloc[0]
    assert found["low"] == pytest.approx(100 * gain.low, abs=0.051)
    assert np.isnan(found["spread"])
    assert not found["exceeds spread"]
    for table in (compare.overview(without_counts(lines)), compare.gains(without_counts(lines), step)):
        assert table[["low", "high"]].isna().all(axis=None)


def test_p_values_are_those_of_a_paired_t_test_adjusted_by_holm(lines):
    found = compare.gains(lines, [Step("steady", "b", "a"), Step("shaky", "c", "b")])
    wide = compare.by_seed(lines)
    worlds = np.stack([wide.loc["b"] - wide.loc["a"], wide.loc["c"] - wide.loc["b"]])
    expected = intervals.holm(stats.ttest_1samp(worlds, 0, axis=1).pvalue)
    np.testing.assert_allclose(found["p, Holm"], expected, atol=1e-4)


def test_several_trainings_in_a_world_are_averaged_and_as_many_in_each_are_in_the_interval():
    """Two worlds with two trainings each, a third world with one."""
    entries = [line("a", 0, 0.4), line("a", 1, 0.5), line("a", 2, 0.6), line("a", 0, 0.5, 7), line("a", 1, 0.6, 7)]
    lines = pd.json_normalize(entries)
    assert compare.by_seed(lines).loc["a", 0] == pytest.approx(100 * lines["scores.aa"].iloc[[0, 3]].mean())
    first = intervals.hierarchical(arrays_of(lines.head(3), "a"))
    assert compare.overview(lines).loc["a", "low"] == pytest.approx(100 * first.low, abs=0.051)


def test_of_two_lines_of_a_run_the_newer_counts(tmp_path, monkeypatch):
    """A method that was run again after a change."""
    for aa in (0.4, 0.6):
        ledger.append(tmp_path / "methods.jsonl", line("a", 0, aa))
    monkeypatch.setattr(compare, "SHIPPED", tmp_path)
    found = compare.recorded_methods()
    assert compare.by_seed(found).loc["a", 0] == pytest.approx(60, abs=4)
    assert len(found) == 1


def test_the_steps_name_registered_methods():
    """From the label to the fusion without a gap: a step starts from a method that is reached before, or beside it."""
    steps = (*compare.ABLATION, *compare.ALTERNATIVES)
    named = {name for step in steps for name in (step.method, step.over)}
    assert named | {compare.FUSION} <= {*METHODS, compare.BOUND}
    assert len({step.adds for step in steps}) == len(steps)
    reached = {compare.BASELINE}
    for step in compare.ABLATION:
        assert step.over in reached or step.method in reached, step.adds
        reached.add(step.method)
    assert compare.FUSION in reached
    assert all(step.over in reached or "calibrated" in step.over for step in compare.ALTERNATIVES)


def test_the_shipped_lines_are_synthetic_and_of_known_methods():
    """What the chapter shows: one line a method and seed, each with its regime."""
    lines = compare.recorded_methods()
    assert lines["synthetic"].all()
    assert set(lines["parameters.method"]) <= {*METHODS, *BOUNDS}
    assert compare._BOUND_SAME_REGIONS not in set(lines["parameters.method"])  # evaluated on other patches
    assert not lines.duplicated(["parameters.method", "seeds.world"]).any()
    assert (lines.groupby("seeds.world")["hashes.evaluation"].nunique() == 1).all()
    crossed = lines[lines["parameters.method"].str.contains("times the steps")]  # losses, by regions of training
    assert (crossed.groupby("parameters.method")["seeds.world"].nunique() == 5).to_numpy().tolist() == [True] * 6
    assert set(lines["label_regime"]) <= set(ledger.LABEL_REGIMES)
    for (method, regime), _ in lines.groupby(["parameters.method", "regime"]):
        assert regime == (METHODS | BOUNDS)[method].regime, method
    assert len(compare.gains(lines))


def test_the_shipped_trainings_are_a_complete_design():
    """As many trainings of each method in each world, on the same patches, with the scores of the same regions."""
    lines = compare.recorded_trainings()
    n = lines.groupby(["parameters.method", "seeds.world"])["seeds.training"].nunique()
    assert (n == n.max()).all()
    assert n.max() == 3
    assert len(n) == 5 * lines["parameters.method"].nunique()
    assert (lines.groupby("seeds.world")["hashes.evaluation"].nunique() == 1).all()
    regional = lines.filter(regex=r"^scores\.regions\..*\.aa$").dropna(axis=1, how="all")
    assert regional.notna().all(axis=None)
    assert {compare.FUSION, compare.INDUCTIVE, compare.INTERPOLATED} <= set(lines["parameters.method"])


def test_a_line_is_found_by_method_and_seed(lines):
    """Without what it does not say; empty where there is none."""
    found = compare.line(lines, "b", 1)
    assert (found["parameters.method"], found["seeds.world"]) == ("b", 1)
    assert not found.isna().any()
    assert compare.line(lines, "b", 7).empty


def record_of(**changes):
    """A record of a world as `benchmarks/sensitivity.py` writes it."""
    aa = {
        compare.FUSION: (70.0, 60.0),
        compare.INTERPOLATED: (50.0, 40.0),
        compare.INDUCTIVE: (65.0, 61.0),
        "member: FCN": (68.0, 55.0),
        "member: Random forest": (66.0, 57.0),
    }
    scores = {name: dict(zip(("pooled", "regional"), values, strict=True)) for name, values in aa.items()}
    world = {"seed": 1, "domain_shift": 0.3, "label_noise": 0.9, "patches": 1, "cells": 30.5, "steps": 200}
    return world | {"aa": scores, "margin": {"pooled": 2.0, "regional": -1.0}} | changes


def recorded(monkeypatch, folder, *records):
    (folder / "sensitivity.json").write_text(json.dumps(records))
    monkeypatch.setattr(compare, "SHIPPED", folder)
    return compare.sensitivity()


def test_gains_on_other_worlds_are_those_of_the_records(tmp_path, monkeypatch):
    """The best member is the one with the highest score; a method that a record lacks has no gain."""
    shipped = compare.sensitivity()[["interpolated label", "inductive network", "best member"]]
    assert shipped.notna().all(axis=None)
    table = recorded(monkeypatch, tmp_path, record_of()).set_index("score")
    assert table[["interpolated label", "inductive network", "best member"]].to_numpy().tolist() == [
        [20.0, 5.0, 2.0],
        [20.0, -1.0, 3.0],
    ]
    assert table[["official, inductive", "official, transductive", "purity"]].isna().all().all()
    assert table.loc["pooled", ["recalibrated", "area factor"]].tolist() == [False, 1.0]


def test_in_a_series_one_factor_differs(tmp_path, monkeypatch):
    """Worlds of another seed, of other steps, or alone with their values, are in no series."""
    records = [record_of(domain_shift=1.6), record_of(), record_of(seed=2), record_of(steps=400, label_noise=0.3)]
    table = recorded(monkeypatch, tmp_path, *records, record_of(cells=244.0))
    shifts, cells = compare.series(table, "domain shift"), compare.series(table, "cells")
    assert [own["score"].unique().tolist() for own in shifts] == [["pooled"], ["regional"]]
    assert [own["domain shift"].tolist() for own in shifts] == [[0.3, 1.6]] * 2
    assert [own["cells"].tolist() for own in cells] == [[30.5, 244.0]] * 2
    assert compare.series(table, "label noise") == []


def test_a_gain_vanishes_between_a_gain_and_a_loss():
    assert compare.zeros([0.3, 1.0, 2.0], [4.0, 2.0, 1.0]) == []
    assert compare.zeros([0.0, 1.0, 2.0], [-1.0, 3.0, 0.0]) == [0.25, 2.0]
    assert compare.zeros([30.0, 122.0], [float("nan"), 1.0]) == []


def test_the_most_frequent_classes_of_the_recalibrated_label_are_the_real_ones():
    """Each row sums to one; where values are published, the largest is that of the same class."""
    real = pd.DataFrame(protocol.published()["class_given_label"]).T.reindex(index=SCORED, columns=SCORED)
    for which, n_same in (("reported", 5), ("dfc2020", 8)):
        table = compare.label_frequencies(which)
        assert np.allclose(table.sum(axis=1), 1, atol=0.01)
        same = table.to_numpy().argmax(axis=1) == real.fillna(0).to_numpy().argmax(axis=1)
        assert same.sum() == n_same
    assert np.abs(np.diag(table) - np.diag(real)).max() < 0.15
