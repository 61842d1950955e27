"""
The methods side by side: what the committed lines say of each over several seeds, and what each step adds.

`shipped/methods.jsonl` has a line for each method of the ladder and each seed, as `scripts/methods.py` writes it. A
seed gives a sample world and trainings of its own, so a hard seed is hard for all: methods are compared seed by seed,
on the same data, and never by their means alone. All is read off lines: nothing is trained, and no reference opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DataError
from lcfuse_core.scoring import intervals, ledger, protocol
from lcfuse_core.scoring.intervals import Interval
from lcfuse_core.scoring.scores import N_CODES

LINES = "shipped/methods.jsonl"

FLOOR, OFFICIAL, SINGLE = "MODIS label", "DeepLabv3+, plain", "FCN, weighted"
"""What the fusion is held against: the label as a map, the contest's recipe, and the best of the cheap networks."""

FUSION, BOUND = "Fusion, at home", "DeepLabv3+, fine labels of other regions"
"""The default fusion, and what no method on coarse labels is expected to reach: fine labels, of other regions."""

AT_HOME_BOUND = "DeepLabv3+, fine labels of the same regions"


class Step(NamedTuple):
    """One rung: *method* differs from *over* in what *adds* says, and in nothing else."""

    adds: str
    method: str
    over: str


AT_HOME = "FCN, cell_mean, at home"

LADDER = (
    Step("an image, learnt from (official recipe)", OFFICIAL, FLOOR),
    Step("a field smaller than a cell", "FCN, plain", OFFICIAL),
    Step("class weights", SINGLE, "FCN, plain"),
    Step("Sentinel-1 beside Sentinel-2", SINGLE, "FCN, weighted, S2 alone"),
    Step("the label of the place as a prior", "FCN, weighted, with coarse prior", SINGLE),
    Step("the labels of the place as a teacher", AT_HOME, SINGLE),
    Step("asked by cells, not by pixels", AT_HOME, "FCN, cross_entropy, at home"),
    Step("a forest that learnt there too", FUSION, AT_HOME),
)
"""From the label to the fusion and its members, one change at a time; a rung may lean on any other."""

ASIDE = (
    Step("members by product", "Fusion by product, at home", FUSION),
    Step("flips and rotations", "Fusion turned eight ways, at home", FUSION),
    Step("temperatures", "Fusion calibrated, at home", FUSION),
    Step("weights of members", "Fusion weighted, at home", "Fusion calibrated, at home"),
    Step("a prior on top", "Fusion with coarse prior, at home", FUSION),
    Step("a third member: the FCN of elsewhere", "Fusion and FCN elsewhere, at home", FUSION),
    Step("a third member: full resolution", "Fusion and Full resolution, at home", FUSION),
    Step("a third member: an FCN for each region", "Fusion and FCN by region, at home", FUSION),
    Step("a student of the fusion", "Student of the fusion, at home", FUSION),
    Step("a network for each region", "FCN, cell_mean, at home by region", AT_HOME),
    Step("a larger field (U-Net)", "U-Net, cell_mean, at home", AT_HOME),
    Step("all at full resolution", "Full resolution, cell_mean, at home", AT_HOME),
    Step("fresh weights, no start from elsewhere", "FCN, cell_mean, fresh at home", AT_HOME),
    Step("the labels of the place among all others", "FCN, weighted, everywhere", SINGLE),
)
"""What could be added or done otherwise: none of it is in the default fusion."""


class Bar(NamedTuple):
    """The fusion's mean gain over *against* shall be over *mean* points, and at least *each* with every seed."""

    against: str
    mean: float
    each: float = float("-inf")


BARS = (Bar(OFFICIAL, 15, 10), Bar(FLOOR, 15), Bar(BOUND, 0), Bar(SINGLE, 0, 0))
"""
Set before the runs. On DFC2020 the best winner was 15 points of AA over the official baseline; a fusion that costs more
than one small network has to be over it with every seed.
"""


def recorded(path: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """
    The newest line of each method and seed, of *path* or of the package, and the bounds on the same worlds.

    Raises MissingDataError when there is no such file, DataError when it holds no line.
    """
    with resources.as_file(resources.files("lcfuse_core") / LINES) as shipped:
        lines = ledger.read(path or shipped)
    if lines.empty:
        do = "Run scripts/methods.py --out FILE."
        raise DataError(path or LINES, found="no line", expected="one a method and seed", do=do)
    bounds = protocol.recorded("fine")
    # The third of the bounds is of the validation regions themselves: other patches, no row beside these.
    same = bounds["hashes.evaluation"].isin(lines["hashes.evaluation"]) & (bounds["parameters.method"] != AT_HOME_BOUND)
    bounds = bounds[same]
    both = pd.concat([lines, bounds], ignore_index=True)
    return both.drop_duplicates(["parameters.method", "seeds.world", "seeds.training"], keep="last")


def line(lines: pd.DataFrame, method: str, seed: int) -> pd.Series:
    """The line of a method and seed, without what it does not say; empty where there is none."""
    own = lines[(lines["parameters.method"] == method) & (lines["seeds.world"] == seed)]
    return own.iloc[-1].dropna() if len(own) else pd.Series(dtype=object)


def by_seed(lines: pd.DataFrame, score: str = "aa") -> pd.DataFrame:
    """A score in per cent: a row a method, as the ladder lists them, a column a seed; NaN where there is no line."""
    wide = 100 * lines.pivot(index="parameters.method", columns="seeds.world", values=f"scores.{score}")
    return wide.loc[lines["parameters.method"].unique()].rename_axis(index="method", columns="seed")


def overview(lines: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """
    One row a method, the best mean AA first.

    Columns: AA, its least and greatest of the seeds, low and high (95 % over the regions of the method's first seed),
    mIoU(8), OA, seeds, labels (the regime), train s (median). Scores in per cent, means over seeds; `first_seed`
    tells how the interval is made.
    """
    aa = by_seed(lines)
    rows = {}
    for method, own in lines.groupby("parameters.method", sort=False):
        values = aa.loc[str(method)].dropna()
        one = _over_regions(first_seed(lines, str(method)))
        rows[method] = {
            "AA": values.mean(),
            "least": values.min(),
            "greatest": values.max(),
            "low": 100 * one.low,
            "high": 100 * one.high,
            "mIoU(8)": 100 * own["scores.miou_8"].mean(),
            "OA": 100 * own["scores.oa"].mean(),
            "seeds": len(values),
            "labels": " / ".join(own["label_regime"].unique()),
            "train s": own["cost.train_s"].median(),
        }
    table = _rounded(pd.DataFrame.from_dict(rows, "index").rename_axis("method"), digits)
    return table.sort_values("AA", ascending=False, kind="stable")


def recalls(lines: pd.DataFrame, digits: int = 0) -> pd.DataFrame:
    """Recall of each scored class in per cent, mean over seeds; a row a method, as in the ledger."""
    names = {f"scores.recall.{DFC2020.name_of(code)}": DFC2020.name_of(code) for code in SCORED}
    means = 100 * lines.groupby("parameters.method", sort=False)[list(names)].mean()
    return means.rename(columns=names).rename_axis("method").round(digits)


def gains(lines: pd.DataFrame, steps: Iterable[Step] = LADDER, digits: int = 1) -> pd.DataFrame:
    """
    What each step adds to AA, in points, by pairs of one seed and one world; steps without a pair are left out.

    Columns: a column a seed; mean, spread (standard deviation over the pairs; NaN for a single one), low and high (95 %
    over regions, of the first pair), better ("4 of 5" seeds), and earns: the mean gain is above the spread.
    """
    aa, rows = by_seed(lines), {}
    for step in steps:
        pairs = _pairs(lines, step)
        if not pairs:
            continue
        with_it, without = aa.loc[[step.method, step.over], pairs].to_numpy(float)
        gain = pd.Series(with_it - without, index=pairs)
        one = _difference(lines, step, pairs[0])
        spread = gain.std()
        rows[step.adds] = {
            **{f"seed {seed}": value for seed, value in gain.items()},
            "mean": gain.mean(),
            "spread": spread,
            "low": 100 * one.low,
            "high": 100 * one.high,
            "better": f"{int(np.sum(gain.to_numpy() > 0))} of {len(gain)}",
            "earns": bool(gain.mean() > spread),
        }
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("adds")
    ends = ["mean", "spread", "low", "high", "better", "earns"]
    seeds = sorted({name for name in table if name not in ends}, key=lambda name: int(str(name).split()[1]))
    return _rounded(table.reindex(columns=[*seeds, *ends]), digits)


def _rounded(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Rounded, without a minus before zero, which would look like a loss."""
    floats = table.select_dtypes("float").columns
    return table.assign(**(table[floats].round(digits) + 0.0))


def verdicts(lines: pd.DataFrame, bars: Iterable[Bar] = BARS, method: str = FUSION) -> pd.DataFrame:
    """
    Whether *method* clears each bar: a row a bar with the points asked for and found, and a verdict in words.

    "met" when the mean gain is above what was asked, and no seed is below what was asked of each; "not recorded" when
    no seed has both lines.
    """
    rows = {}
    for bar in bars:
        found = gains(lines, [Step("", method, bar.against)], digits=6)
        each = f", {bar.each:g} with each seed" if bar.each > float("-inf") else ""
        row: dict[str, Any] = {"asked": f"over {bar.mean:g}{each}", "mean": np.nan, "least": np.nan, "seeds": 0}
        if len(found):
            gain = found.filter(like="seed ").iloc[0]
            row |= {"mean": gain.mean(), "least": gain.min(), "seeds": len(gain)}
        met = row["mean"] > bar.mean and row["least"] >= bar.each
        row["verdict"] = ("met" if met else "not met") if row["seeds"] else "not recorded"
        rows[bar.against] = row
    return pd.DataFrame.from_dict(rows, "index").rename_axis("against").round(1)


def first_seed(lines: pd.DataFrame, method: str, seed: int | None = None) -> NDArray[np.int64] | None:
    """
    Counts of each region, int (n, 11, 11) in the order of their names, of a method's first *seed*; None: not known.

    A line without counts has the recall of each class in each region. Times the pixels of that class, which any line
    of the same data tells, that is what AA takes; which class a wrong pixel was given to is then not known (code 0).
    """
    own = lines[lines["parameters.method"] == method].sort_values("seeds.world")
    own = own if seed is None else own[own["seeds.world"] == seed]
    if own.empty:
        return None
    line = own.iloc[0].dropna()
    counts = _counts(line)
    if not counts:
        counts = _from_recalls(line, _pixels_of_classes(lines, str(line["hashes.evaluation"])))
    return np.stack([counts[name] for name in sorted(counts)]) if counts else None


def _counts(line: Mapping[Any, Any] | pd.Series) -> dict[str, NDArray[np.int64]]:
    before = "scores.counts."
    return {
        str(name).removeprefix(before): np.array(value, np.int64)
        for name, value in line.items()
        if str(name).startswith(before)
    }


def _pixels_of_classes(lines: pd.DataFrame, data: str) -> dict[str, NDArray[np.int64]]:
    """Reference pixels of each code, (11,), in each region, from any line of the same data that has counts."""
    for source in (lines, _with_counts()):
        own = source.loc[source["hashes.evaluation"] == data, source.columns.str.startswith("scores.counts.")]
        own = own.dropna(how="all")
        if len(own):
            return {name: counts.sum(axis=1) for name, counts in _counts(own.iloc[0].dropna()).items()}
    return {}


@cache
def _with_counts() -> pd.DataFrame:
    return protocol.recorded()


def _from_recalls(line: pd.Series, pixels: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    found = {}
    for region, there in pixels.items():
        counts = np.zeros((N_CODES, N_CODES), np.int64)
        for code in SCORED:
            recall = line.get(f"scores.regions.{region}.recall.{DFC2020.name_of(code)}", 0.0)
            counts[code, code] = round(recall * there[code])
            counts[code, 0] = there[code] - counts[code, code]
        found[region] = counts
    return found


def _over_regions(counts: NDArray[np.int64] | None) -> Interval:
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)
    return nothing if counts is None else intervals.interval(counts, method="jackknife")


def _pairs(lines: pd.DataFrame, step: Step) -> list[int]:
    """Seeds with a line of both methods on the same data."""
    data = lines.pivot(index="parameters.method", columns="seeds.world", values="hashes.evaluation")
    if step.method not in data.index or step.over not in data.index:
        return []
    one, other = data.loc[step.method], data.loc[step.over]
    return sorted(int(seed) for seed in data.columns[np.asarray((one == other) & one.notna(), bool)])


def _difference(lines: pd.DataFrame, step: Step, seed: int) -> Interval:
    one, other = (first_seed(lines, method, seed) for method in (step.method, step.over))
    if one is None or other is None or one.shape != other.shape:
        return _over_regions(None)
    return intervals.difference(one, other, method="jackknife")
