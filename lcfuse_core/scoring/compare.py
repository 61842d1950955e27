"""
Compare methods by their committed ledger lines over several seeds.

`shipped/methods.jsonl` has a line per method and seed, as `lcfuse_core compare` writes it: of a sample world and of a
training on it. Methods are compared world by world, because a difficult world is difficult for all of them. Intervals
are over worlds and regions (`intervals.hierarchical`), or over regions where there is one world.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from lcfuse_core._runtime import SHIPPED
from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.scoring import intervals, ledger, protocol
from lcfuse_core.scoring.scores import CELL_PX, N_CODES

BASELINE, OFFICIAL, SINGLE = "MODIS label", "DeepLabv3+, plain", "FCN, weighted"
"""The label as a map, the recipe of the contest's baseline, and the best network with (weighted) cross-entropy."""

OFFICIAL_TARGET = "DeepLabv3+, plain, target regions only"
"""The recipe of the contest's baseline, trained on the target regions instead."""

FUSION, BOUND = "Fusion, target regions", "DeepLabv3+, supervised, source regions"
"""The default fusion, and a network trained on fine labels of other regions, those of the validation patches."""

INTERPOLATED, INDUCTIVE = "MODIS label, interpolated", "FCN, weighted, cell_forward"
"""The best map without images, and one of the best networks of the source regions."""

_ADAPTED, _ADAPTED_PLAINLY = "FCN, cell_mean, target regions", "FCN, cross_entropy, target regions"
_LONGER = "FCN, weighted, 3.25 times the steps"
_LONGER_TARGET = f"{_LONGER}, target regions only"
_LONGER_CELL = "FCN, weighted, cell_mean, 3.25 times the steps, target regions only"
_BOUND_SAME_REGIONS = "DeepLabv3+, supervised, target regions"


class Step(NamedTuple):
    """One row of an ablation: *method* differs from *over* only in what *adds* names."""

    adds: str
    method: str
    over: str


ABLATION = (
    Step("training on images (plain DeepLabv3+)", OFFICIAL, BASELINE),
    Step("receptive field smaller than a cell", "FCN, plain", OFFICIAL),
    Step("class weights", SINGLE, "FCN, plain"),
    Step("Sentinel-1 in addition to Sentinel-2", SINGLE, "FCN, weighted, S2 alone"),
    Step("coarse prior on one network", "FCN, weighted, with coarse prior", SINGLE),
    Step("target regions beside the source regions", "FCN, weighted, source and target regions", SINGLE),
    Step("3.25 times the steps", _LONGER, SINGLE),
    Step("target regions instead of source regions", _LONGER_TARGET, _LONGER),
    Step("cell-level loss", _LONGER_CELL, _LONGER_TARGET),
    Step("first 400 of 1,300 steps in source regions", _ADAPTED, _LONGER_CELL),
    Step("random forest as second member", FUSION, _ADAPTED),
)
"""
From the label to the fusion, and what was tried beside. Each step changes one factor, with equal steps and learning
rate otherwise; only where the first steps are in the source regions, the rate rises again for the others, to 4e-3.
"""

ALTERNATIVES = (
    Step("product instead of mean", "Fusion by product, target regions", FUSION),
    Step("test-time augmentation", "Fusion with TTA, target regions", FUSION),
    Step("temperature scaling", "Fusion calibrated, target regions", FUSION),
    Step("member weights", "Fusion weighted, target regions", "Fusion calibrated, target regions"),
    Step("coarse prior on the fusion", "Fusion with coarse prior, target regions", FUSION),
    Step("third member: FCN, source regions", "Fusion and source FCN, target regions", FUSION),
    Step("third member: full resolution", "Fusion and Full resolution, target regions", FUSION),
    Step("third member: FCN per region", "Fusion and FCN per region, target regions", FUSION),
    Step("student network (self-training)", "Student of the fusion, target regions", FUSION),
    Step("one network per region", "FCN, cell_mean, each target region", _ADAPTED),
    Step("larger receptive field (U-Net)", "U-Net, cell_mean, target regions", _ADAPTED),
    Step("full-resolution network", "Full resolution, cell_mean, target regions", _ADAPTED),
    Step("random initial weights", "FCN, cell_mean, target regions only", _ADAPTED),
    Step("cross-entropy in fine-tuning", _ADAPTED_PLAINLY, _ADAPTED),
)
"""What could be added or done otherwise; the default fusion has none of it."""

_REGIONAL = r"^scores\.regions\..*\.aa$"
_RUN = ["parameters.method", "seeds.world", "seeds.training"]


def recorded_methods() -> pd.DataFrame:
    """Read the newest committed line of each method and seed, and the bounds on the same worlds."""
    lines = ledger.read(SHIPPED / "methods.jsonl")
    bounds = protocol.recorded_seeds("fine")
    # One of the bounds is scored on other patches, those of the validation regions.
    same_patches = bounds["parameters.method"] != _BOUND_SAME_REGIONS
    bounds = bounds[bounds["hashes.evaluation"].isin(lines["hashes.evaluation"]) & same_patches]
    both = pd.concat([lines, bounds], ignore_index=True).drop_duplicates(_RUN, keep="last")
    by_name = both["parameters.method"].str.contains("target region").map({True: "transductive", False: "inductive"})
    return both.assign(regime=both["regime"].fillna(by_name))  # old lines have none


def recorded_trainings() -> pd.DataFrame:
    """
    Read the lines of the methods that were trained several times on each sample world.

    The design is complete: as many trainings of each method in each world as there are in the world with the fewest.
    """
    further, lines = ledger.read(SHIPPED / "trainings.jsonl"), recorded_methods()
    own = lines[lines["parameters.method"].isin(further["parameters.method"].unique())]
    both = pd.concat([own, further], ignore_index=True).drop_duplicates(_RUN, keep="first")
    groups = both.groupby(_RUN[:2])
    return both[groups.cumcount() < groups.size().min()].reset_index(drop=True)


def line(lines: pd.DataFrame, method: str, seed: int) -> pd.Series:
    """Return the line of a method and world without the fields that it lacks; empty if there is none."""
    own = lines[(lines["parameters.method"] == method) & (lines["seeds.world"] == seed)]
    return own.iloc[-1].dropna() if len(own) else pd.Series(dtype=object)


def by_seed(lines: pd.DataFrame, score: str = "aa") -> pd.DataFrame:
    """Return a score in per cent: a row per method in the order of *lines*, a column per world; NaN without a line."""
    wide = 100 * ledger.by_seed(lines, f"scores.{score}")
    return wide.loc[lines["parameters.method"].unique()].rename_axis(index="method", columns="seed")


def overview(lines: pd.DataFrame) -> pd.DataFrame:
    """
    Return one row per method, the best mean AA first; scores are means over seeds in per cent.

    Columns: AA (pooled over regions), low and high (95 % over worlds and regions), regional AA (the mean of the
    regions' own), mIoU(8), OA, least and greatest AA of the worlds, seeds, cells per region (the evaluated area in
    coarse cells), regime, labels, train s (median).
    """
    aa, regional = by_seed(lines), lines.filter(regex=_REGIONAL)
    ends = pd.DataFrame([_ends(lines, method) for method in aa.index], aa.index, ["low", "high"])
    more = {"regional": regional.mean(axis=1), "n_regions": regional.notna().sum(axis=1)}
    own = lines.assign(**more).groupby("parameters.method", sort=False)
    columns = {
        "AA": aa.mean(axis=1),
        "low": ends["low"],
        "high": ends["high"],
        "regional AA": 100 * own["regional"].mean(),
        "mIoU(8)": 100 * own["scores.miou_8"].mean(),
        "OA": 100 * own["scores.oa"].mean(),
        "least": aa.min(axis=1),
        "greatest": aa.max(axis=1),
        "seeds": own.size(),
        "cells per region": own["scores.n_pixels"].mean() / CELL_PX / own["n_regions"].mean().replace(0, np.nan),
        "regime": own["regime"].unique().map(" / ".join),
        "labels": own["label_regime"].unique().map(" / ".join),
        "train s": own["cost.train_s"].median(),
    }
    table = pd.DataFrame(columns).rename_axis("method").round({"cells per region": 0})
    return _rounded(table).sort_values("AA", ascending=False, kind="stable")


def gains(lines: pd.DataFrame, steps: Iterable[Step] = ABLATION) -> pd.DataFrame:
    """
    Return what each step adds to AA, in points, by pairs on one world; steps without a pair are left out.

    Columns: one per world; mean, spread (standard deviation over the worlds; NaN for one pair), low and high (95 % over
    worlds and regions), regional (the mean gain in the mean of the regions' AA), better ("4 of 5" worlds), "exceeds
    spread": whether the mean gain does, and "p, Holm": of a paired t-test over worlds, adjusted for the steps' number.
    """
    aa, data = by_seed(lines), ledger.by_seed(lines, "hashes.evaluation")
    regional = lines.filter(regex=_REGIONAL).mean(axis=1)
    of_regions = by_seed(lines.assign(**{"scores.regional": regional}), "regional")
    by_world, regional_gain, ends = {}, {}, {}
    for step in steps:
        if step.method not in data.index or step.over not in data.index:
            continue
        paired = np.asarray(data.loc[step.method] == data.loc[step.over], bool)
        if paired.any():
            by_world[step.adds] = (aa.loc[step.method] - aa.loc[step.over])[paired]
            regional_gain[step.adds] = (of_regions.loc[step.method] - of_regions.loc[step.over])[paired].mean()
            pairs = lines[lines["seeds.world"].isin(data.columns[paired])]
            ends[step.adds] = _ends(pairs, step.method, step.over)
    gain = pd.DataFrame(by_world).T.sort_index(axis=1).astype(float)
    n, mean, spread = gain.count(axis=1), gain.mean(axis=1), gain.std(axis=1)
    t = (mean / gain.sem(axis=1)).abs().to_numpy()
    p = 2 * special.stdtr(n.to_numpy() - 1, -t)
    columns = {
        "mean": mean,
        "spread": spread,
        **pd.DataFrame(ends, ["low", "high"]).T,
        "regional": pd.Series(regional_gain, dtype=float),
        "better": (gain > 0).sum(axis=1).astype(str) + " of " + n.astype(str),
        "exceeds spread": mean > spread,
    }
    table = _rounded(gain.rename(columns="seed {:.0f}".format).join(pd.DataFrame(columns)))
    return table.rename_axis(index="step", columns=None).assign(**{"p, Holm": intervals.holm(p.tolist()).round(4)})


RIVALS = {
    "interpolated label": INTERPOLATED,
    "inductive network": INDUCTIVE,
    "official, inductive": OFFICIAL,
    "official, transductive": OFFICIAL_TARGET,
}
"""With what `sensitivity` compares the default fusion, by the names of its columns, beside the best of its members."""

_FACTORS = ("domain shift", "label noise", "recalibrated", "area factor", "cells")


def sensitivity() -> pd.DataFrame:
    """
    Return by how many points of AA the default fusion exceeds others on worlds of other properties.

    One row per record of `benchmarks/sensitivity.py` and score ("pooled" or "regional"). Columns: seed, steps, domain
    shift, label noise, recalibrated (whether the label confuses classes as in DFC2020), area factor, cells (per
    region), purity (of the cells), score, those of `RIVALS`, and best member (the best of the fusion's own members by
    the reference). NaN where a record has no value.
    """
    rows = []
    for one in json.loads((SHIPPED / "sensitivity.json").read_text(encoding="utf-8")):
        aa = pd.DataFrame(one["aa"]).T
        gain = aa.loc[FUSION] - aa
        names = ("seed", "steps", "domain_shift", "label_noise", "cells")
        world: dict[str, Any] = {name.replace("_", " "): one[name] for name in names}
        world["recalibrated"] = one.get("label_confusion", "reported") != "reported"  # the first records lack them
        world |= {"area factor": one.get("area_factor", 1.0), "purity": one.get("purity", np.nan)}
        for score in ("pooled", "regional"):
            others = {rival: gain[score].get(method, np.nan) for rival, method in RIVALS.items()}
            best = gain[score][gain.index.str.startswith("member")].min()
            rows.append({**world, "score": score, **others, "best member": best})
    return pd.DataFrame(rows)


def series(table: pd.DataFrame, factor: str) -> list[pd.DataFrame]:
    """
    Return the parts of a table of `sensitivity` in which only *factor* differs, sorted by it.

    Parameters
    ----------
    table : DataFrame
        Of `sensitivity`.
    factor : str
        "domain shift", "label noise", "recalibrated", "area factor" (with which the purity differs) or "cells".

    Returns
    -------
    list of DataFrame
        One per world, steps and score, each with two values of the factor or more.
    """
    same = [name for name in ("seed", "steps", "score", *_FACTORS) if name != factor]
    parts = [own.sort_values(factor) for _, own in table.groupby(same)]
    return [own for own in parts if own[factor].nunique() > 1]


def label_frequencies(which: str) -> pd.DataFrame:
    """
    Return p(class | MODIS label) of the sample, a row per label, with Savanna as Forest.

    *which* are the confusions of the label, "reported" (the sample of the book) or "dfc2020" (`WorldPlan`). The values
    are expected ones for the landscapes of seeds 0 to 4, from `benchmarks/label_confusion.py`.
    """
    tables = json.loads((SHIPPED / "label_frequencies.json").read_text(encoding="utf-8"))
    names = [DFC2020.name_of(code) for code in SCORED]
    return pd.DataFrame(tables[which], names, names)


def zeros(x: Iterable[float], gain: Iterable[float]) -> list[float]:
    """
    Return where a gain vanishes, by linear interpolation between its values at ascending *x*; empty if it never does.

    >>> print(*zeros([1.0, 2.0, 4.0], [3.0, 1.0, -1.0]))
    3.0
    """
    at, value = np.array([[*x], [*gain]], float)
    turns = np.flatnonzero(value[:-1] * value[1:] < 0)
    left, right = value[turns], value[turns + 1]
    return sorted([*at[value == 0], *(at[turns] + (at[turns + 1] - at[turns]) * left / (left - right))])


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Round to 0.1, without a minus before zero, which would look like a loss."""
    floats = table.select_dtypes("float").columns
    return table.assign(**(table[floats].round(1) + 0.0))


def _ends(lines: pd.DataFrame, *methods: str) -> tuple[float, float]:
    """Return the ends in per cent of the interval of a method, or of the difference of two; NaN without counts."""
    own = lines[lines["parameters.method"].isin(methods)].drop_duplicates(_RUN, keep="last").set_index(_RUN)
    counts = own.filter(regex=r"^scores\.counts\.").dropna(axis=1, how="all").dropna()
    of_methods = [counts[counts.index.isin([method], level=0)].droplevel(0) for method in methods]
    runs = of_methods[0].index.intersection(of_methods[-1].index).sort_values()
    worlds = runs.to_frame(index=False).groupby("seeds.world")
    if runs.empty or len(counts.columns) < 2:
        return np.nan, np.nan
    n_trainings = worlds.size().min()
    runs = runs[worlds.cumcount() < n_trainings]  # as many in each world
    shape = (len(worlds), n_trainings, -1, N_CODES, N_CODES)
    one, *others = (np.array(side.loc[runs].to_numpy().tolist()).reshape(shape) for side in of_methods)
    other = others[0] if others else None
    if len(worlds) > 1:
        interval = intervals.hierarchical(one, other)
    elif other is None:
        interval = intervals.interval(one[0, 0], method="jackknife")
    else:
        interval = intervals.difference(one[0, 0], other[0, 0], method="jackknife")
    return 100 * interval.low, 100 * interval.high
