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
    return both.assign(regime=both["regime"].fillna(by_name) if "regime" in both else by_name)  # old lines have none


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
    aa, rows = by_seed(lines), {}
    for method, own in lines.groupby("parameters.method", sort=False):
        values = aa.loc[str(method)].dropna()
        regional = own.filter(regex=_REGIONAL)
        n_regions = regional.notna().sum(axis=1).mean()
        rows[method] = {
            "AA": values.mean(),
            **_ends(lines, str(method)),
            "regional AA": 100 * regional.mean(axis=1).mean(),
            "mIoU(8)": 100 * own["scores.miou_8"].mean(),
            "OA": 100 * own["scores.oa"].mean(),
            "least": values.min(),
            "greatest": values.max(),
            "seeds": len(own),
            "cells per region": own["scores.n_pixels"].mean() / CELL_PX / n_regions if n_regions else np.nan,
            "regime": " / ".join(own["regime"].unique()) if "regime" in own else "",
            "labels": " / ".join(own["label_regime"].unique()),
            "train s": own["cost.train_s"].median(),
        }
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("method").round({"cells per region": 0})
    return _rounded(table).sort_values("AA", ascending=False, kind="stable")


def gains(lines: pd.DataFrame, steps: Iterable[Step] = ABLATION) -> pd.DataFrame:
    """
    Return what each step adds to AA, in points, by pairs on one world; steps without a pair are left out.

    Columns: one per world; mean, spread (standard deviation over the worlds; NaN for one pair), low and high (95 % over
    worlds and regions), regional (the mean gain in the mean of the regions' AA), better ("4 of 5" worlds), "exceeds
    spread": whether the mean gain does, and "p, Holm": of a paired t-test over worlds, adjusted for the steps' number.
    """
    aa, data, rows, p = by_seed(lines), ledger.by_seed(lines, "hashes.evaluation"), {}, []
    regional = lines.filter(regex=_REGIONAL).mean(axis=1)
    of_regions = by_seed(lines.assign(**{"scores.regional": regional}), "regional")
    for step in steps:
        if step.method not in data.index or step.over not in data.index:
            continue
        one, other = data.loc[step.method], data.loc[step.over]
        pairs = sorted(int(seed) for seed in data.columns[np.asarray((one == other) & one.notna(), bool)])
        if not pairs:
            continue
        gain = (aa.loc[step.method, pairs] - aa.loc[step.over, pairs]).astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = gain.mean() / (gain.std() / np.sqrt(len(gain)))
        p.append(2 * special.stdtr(len(gain) - 1, -abs(t)))
        rows[step.adds] = {
            **{f"seed {seed}": value for seed, value in gain.items()},
            "mean": gain.mean(),
            "spread": gain.std(),
            **_ends(lines[lines["seeds.world"].isin(pairs)], step.method, step.over),
            "regional": (of_regions.loc[step.method, pairs] - of_regions.loc[step.over, pairs]).mean(),
            "better": f"{int(np.sum(gain.to_numpy() > 0))} of {len(gain)}",
            "exceeds spread": bool(gain.mean() > gain.std()),
        }
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("step")
    ends = ["mean", "spread", "low", "high", "regional", "better", "exceeds spread"]
    seeds = sorted({name for name in table if name not in ends}, key=lambda name: int(str(name).split()[1]))
    table = _rounded(table.reindex(columns=[*seeds, *ends]))
    return table.assign(**{"p, Holm": intervals.holm(p).round(4)})


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


def _ends(lines: pd.DataFrame, *methods: str) -> dict[str, float]:
    """Return the ends in per cent of the interval of a method, or of the difference of two; NaN without counts."""
    own = lines[lines["parameters.method"].isin(methods)].drop_duplicates(_RUN, keep="last")
    own = own[[*_RUN, *own.filter(regex=r"^scores\.counts\.")]].dropna(axis=1, how="all").dropna()
    runs = [set(map(tuple, own.loc[own[_RUN[0]] == method, _RUN[1:]].to_numpy().tolist())) for method in methods]
    by_world: dict[int, list[tuple[int, int]]] = {}
    for world, training in sorted(set.intersection(*runs)) if len(own.columns) > len(_RUN) + 1 else ():
        by_world.setdefault(world, []).append((world, training))
    if not by_world:
        return {"low": np.nan, "high": np.nan}
    n_trainings = min(map(len, by_world.values()))  # as many in each world
    kept, found = [run for runs in by_world.values() for run in runs[:n_trainings]], own.set_index(_RUN)
    shape = (len(by_world), n_trainings, -1, N_CODES, N_CODES)
    one, *others = (np.array(found.loc[[(method, *run) for run in kept]].to_numpy().tolist()) for method in methods)
    one, other = one.reshape(shape), others[0].reshape(shape) if others else None
    if len(by_world) > 1:
        interval = intervals.hierarchical(one, other)
    elif other is None:
        interval = intervals.interval(one[0, 0], method="jackknife")
    else:
        interval = intervals.difference(one[0, 0], other[0, 0], method="jackknife")
    return {"low": 100 * interval.low, "high": 100 * interval.high}
