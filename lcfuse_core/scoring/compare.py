"""
Compare methods by their committed ledger lines over several seeds, and new scores with the committed ones.

`shipped/methods.jsonl` has a line per method and seed, as `lcfuse_core compare` writes it. A seed stands for a sample
world and for separate trainings. Methods are compared seed by seed, on the same data, because a difficult world is
difficult for all of them.

    python -m lcfuse_core.scoring.compare NEW.jsonl [--committed FILE]

checks for drift. NEW is the ledger of a run of the chapters, as `make test` writes it. Each score is compared with the
line of the same method, seed and training in the committed ledger, within the tolerance that `shipped/tolerances.yaml`
declares. The exit code is 1 if a score is further away or missing, and 2 if nothing can be compared.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core._runtime import SHIPPED, load_yaml
from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError
from lcfuse_core.scoring import intervals, ledger, protocol
from lcfuse_core.scoring.intervals import Interval
from lcfuse_core.scoring.scores import N_CODES

BASELINE, OFFICIAL, SINGLE = "MODIS label", "DeepLabv3+, plain", "FCN, weighted"
"""The label as a map, the recipe of the contest's baseline, and the best of the small networks."""

FUSION, BOUND = "Fusion, target regions", "DeepLabv3+, supervised, source regions"
"""The default fusion, and an upper bound for coarse labels: a network trained on fine labels of other regions."""

_ADAPTED = "FCN, cell_mean, target regions"
_BOUND_SAME_REGIONS = "DeepLabv3+, supervised, target regions"


class Step(NamedTuple):
    """One row of an ablation: *method* differs from *over* only in what *adds* names."""

    adds: str
    method: str
    over: str


ABLATION = (
    Step("training on images (official recipe)", OFFICIAL, BASELINE),
    Step("receptive field smaller than a cell", "FCN, plain", OFFICIAL),
    Step("class weights", SINGLE, "FCN, plain"),
    Step("Sentinel-1 in addition to Sentinel-2", SINGLE, "FCN, weighted, S2 alone"),
    Step("coarse prior on one network", "FCN, weighted, with coarse prior", SINGLE),
    Step("fine-tuning on the target regions", _ADAPTED, SINGLE),
    Step("cell-level loss", _ADAPTED, "FCN, cross_entropy, target regions"),
    Step("random forest as second member", FUSION, _ADAPTED),
)
"""From the label to the fusion and its members, one change at a time."""

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
    Step("joint training, source and target regions", "FCN, weighted, source and target regions", SINGLE),
)
"""What could be added or done otherwise; the default fusion has none of it."""

REQUIREMENTS = ((OFFICIAL, 15, 10), (BASELINE, 15), (BOUND, 0), (SINGLE, 0, 0))
"""
By how many points of AA the fusion must exceed each method on average and, where there is a third value, with each
seed. Set before the runs: on DFC2020 the best winner was 15 points over the official baseline, and a fusion that costs
more than one small network has to exceed it with every seed.
"""


def recorded_methods(path: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Read the newest line of each method and seed, of *path* or of the package, and the bounds on the same worlds."""
    path = path or SHIPPED / "methods.jsonl"
    lines = ledger.read(path)
    if lines.empty:
        do = "Run python -m lcfuse_core compare --out FILE."
        raise DataError(path, found="no line", expected="one per method and seed", do=do)
    bounds = protocol.recorded_seeds("fine")
    # One of the bounds is scored on other patches, those of the validation regions.
    same_patches = bounds["parameters.method"] != _BOUND_SAME_REGIONS
    bounds = bounds[bounds["hashes.evaluation"].isin(lines["hashes.evaluation"]) & same_patches]
    both = pd.concat([lines, bounds], ignore_index=True)
    return both.drop_duplicates(["parameters.method", "seeds.world", "seeds.training"], keep="last")


def line(lines: pd.DataFrame, method: str, seed: int) -> pd.Series:
    """Return the line of a method and seed without the fields that it lacks; empty if there is none."""
    own = lines[(lines["parameters.method"] == method) & (lines["seeds.world"] == seed)]
    return own.iloc[-1].dropna() if len(own) else pd.Series(dtype=object)


def by_seed(lines: pd.DataFrame, score: str = "aa") -> pd.DataFrame:
    """Return a score in per cent: a row per method in the order of *lines*, a column per seed; NaN without a line."""
    wide = 100 * ledger.by_seed(lines, f"scores.{score}")
    return wide.loc[lines["parameters.method"].unique()].rename_axis(index="method", columns="seed")


def overview(lines: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """
    Return one row per method, the best mean AA first.

    Columns: AA, its least and greatest value of the seeds, low and high (95 % over the regions of the method's first
    seed), mIoU(8), OA, seeds, labels (the regime), train s (median). Scores are means over seeds in per cent.
    """
    aa = by_seed(lines)
    rows = {}
    for method, own in lines.groupby("parameters.method", sort=False):
        values = aa.loc[str(method)].dropna()
        counts = _region_counts(lines, str(method))
        one = _UNKNOWN if counts is None else intervals.interval(counts, method="jackknife")
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
    """Return the recall of each scored class in per cent, mean over seeds; a row per method, as in the ledger."""
    names = {f"scores.recall.{DFC2020.name_of(code)}": DFC2020.name_of(code) for code in SCORED}
    means = 100 * lines.groupby("parameters.method", sort=False)[list(names)].mean()
    return means.rename(columns=names).rename_axis("method").round(digits)


def gains(lines: pd.DataFrame, steps: Iterable[Step] = ABLATION, digits: int = 1) -> pd.DataFrame:
    """
    Return what each step adds to AA, in points, by pairs of one seed and one world; steps without a pair are left out.

    Columns: one per seed; mean, spread (standard deviation over the pairs; NaN for one pair), low and high (95 % over
    regions, of the first pair), better ("4 of 5" seeds), and "exceeds spread": whether the mean gain does.
    """
    aa, data, rows = by_seed(lines), ledger.by_seed(lines, "hashes.evaluation"), {}
    for step in steps:
        if step.method not in data.index or step.over not in data.index:
            continue
        one, other = data.loc[step.method], data.loc[step.over]
        pairs = sorted(int(seed) for seed in data.columns[np.asarray((one == other) & one.notna(), bool)])
        if not pairs:
            continue
        gain = aa.loc[step.method, pairs].astype(float) - aa.loc[step.over, pairs].astype(float)
        counts, others = (_region_counts(lines, method, pairs[0]) for method in (step.method, step.over))
        interval = _UNKNOWN
        if counts is not None and others is not None and counts.shape == others.shape:
            interval = intervals.difference(counts, others, method="jackknife")
        rows[step.adds] = {
            **{f"seed {seed}": value for seed, value in gain.items()},
            "mean": gain.mean(),
            "spread": gain.std(),
            "low": 100 * interval.low,
            "high": 100 * interval.high,
            "better": f"{int(np.sum(gain.to_numpy() > 0))} of {len(gain)}",
            "exceeds spread": bool(gain.mean() > gain.std()),
        }
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("step")
    ends = ["mean", "spread", "low", "high", "better", "exceeds spread"]
    seeds = sorted({name for name in table if name not in ends}, key=lambda name: int(str(name).split()[1]))
    return _rounded(table.reindex(columns=[*seeds, *ends]), digits)


def _rounded(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Round, without a minus before zero, which would look like a loss."""
    floats = table.select_dtypes("float").columns
    return table.assign(**(table[floats].round(digits) + 0.0))


def verdicts(
    lines: pd.DataFrame, requirements: Iterable[tuple[Any, ...]] = REQUIREMENTS, method: str = FUSION
) -> pd.DataFrame:
    """Return whether *method* meets each requirement (see `REQUIREMENTS`); "not recorded" if no seed has both lines."""
    rows = {}
    for against, mean, *each in requirements:
        found = gains(lines, [Step("", method, against)], digits=6)
        asked = f"over {mean:g}" + "".join(f", {points:g} with each seed" for points in each)
        row: dict[str, Any] = {"asked": asked, "mean": np.nan, "least": np.nan, "seeds": 0, "verdict": "not recorded"}
        if len(found):
            gain = found.filter(like="seed ").iloc[0]
            row |= {"mean": gain.mean(), "least": gain.min(), "seeds": len(gain)}
            met = gain.mean() > mean and all(gain.min() >= points for points in each)
            row["verdict"] = "met" if met else "not met"
        rows[against] = row
    return pd.DataFrame.from_dict(rows, "index").rename_axis("against").round(1)


_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"), 0)


def _region_counts(lines: pd.DataFrame, method: str, seed: int | None = None) -> NDArray[np.int64] | None:
    """Return the counts of each region, int (n, 11, 11) by name, of a method's first seed or of *seed*, if known."""
    own = lines[lines["parameters.method"] == method].sort_values("seeds.world")
    own = own if seed is None else own[own["seeds.world"] == seed]
    if own.empty:
        return None
    line = own.iloc[0].dropna()
    counts = _counts(line) or _counts_from_recalls(line, lines)
    return np.stack([counts[name] for name in sorted(counts)]) if counts else None


def _counts(line: Mapping[Any, Any] | pd.Series) -> dict[str, NDArray[np.int64]]:
    prefix = "scores.counts."
    values = {str(name): value for name, value in line.items() if str(name).startswith(prefix)}
    return {name.removeprefix(prefix): np.array(value, np.int64) for name, value in values.items()}


def _counts_from_recalls(line: pd.Series, lines: pd.DataFrame) -> dict[str, NDArray[np.int64]]:
    """
    Return what AA takes for a line without counts: its recalls times the pixels that another line of the data has.

    The class that a wrong pixel was mapped to is unknown, code 0.
    """
    for source in (lines, _committed_seeds()):
        same = source["hashes.evaluation"] == line["hashes.evaluation"]
        with_counts = source.loc[same, source.columns.str.startswith("scores.counts.")].dropna(how="all")
        if len(with_counts):
            in_reference = {name: counts.sum(axis=1) for name, counts in _counts(with_counts.iloc[0].dropna()).items()}
            break
    else:
        return {}
    found = {}
    for region, n_pixels in in_reference.items():
        counts = np.zeros((N_CODES, N_CODES), np.int64)
        for code in SCORED:
            recall = line.get(f"scores.regions.{region}.recall.{DFC2020.name_of(code)}", 0.0)
            counts[code, code] = round(recall * n_pixels[code])
            counts[code, 0] = n_pixels[code] - counts[code, code]
        found[region] = counts
    return found


@cache
def _committed_seeds() -> pd.DataFrame:
    return protocol.recorded_seeds()


def drift(new: Path, committed: Path = SHIPPED / "seeds.jsonl") -> pd.DataFrame:
    """
    Compare the scores of a new ledger with the committed ones: one row per method and score, in per cent.

    A method without a new line, or without a committed one of the same seed and training, is not `ok`. Of several new
    lines of a method the last counts. Raises MissingDataError if the new ledger has no line of the kind compared.
    """
    declared = load_yaml((SHIPPED / "tolerances.yaml").read_bytes(), "tolerances.yaml")
    lines, before = ledger.read(new), ledger.read(committed)
    lines = lines[lines["kind"] == declared["kind"]] if "kind" in lines else lines.iloc[:0]
    if lines.empty:
        kind = declared["kind"]
        expected, do = f"lines of the chapter {kind}", f"Run the chapter {kind} with LCFUSE_LEDGER set to this file."
        raise MissingDataError(new, found="none", expected=expected, do=do)
    before = before[before["label_regime"] == "coarse only"]
    training = ["parameters.method", "seeds.world", "parameters.steps", "parameters.crop", "parameters.batch"]
    ledger.check_fields(lines, *training)
    rows = []
    for tolerance in declared["scores"]:
        for method in tolerance["methods"]:
            now = lines[lines["parameters.method"] == method].tail(1)
            then = before.merge(now[training], on=training).tail(1) if len(now) else now
            for score, points in tolerance["within"].items():
                values = [_percent(line, f"scores.{score}") for line in (then, now)]
                ok = bool(abs(values[1] - values[0]) <= points + 1e-9)  # NaN is not
                rows.append((method, score, *values, values[1] - values[0], points, ok))
    return pd.DataFrame(rows, columns=["method", "score", "committed", "new", "difference", "tolerance", "ok"])


def _percent(lines: pd.DataFrame, column: str) -> float:
    return 100 * float(lines[column].iloc[0]) if len(lines) and column in lines else float("nan")


def _main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("new", type=Path)
    parser.add_argument("--committed", type=Path, default=SHIPPED / "seeds.jsonl", help="default: that of the package")
    given = parser.parse_args(arguments)
    try:
        found = drift(given.new, given.committed)
    except LcfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    moved = found[~found["ok"]]
    if len(moved):
        print(moved.round(2).to_string(index=False), file=sys.stderr)
        print(f"{len(moved)} of {len(found)} scores have moved: see shipped/tolerances.yaml.", file=sys.stderr)
        return 1
    widest = found["difference"].abs().max()
    print(f"No drift: {len(found)} scores of {found['method'].nunique()} methods, at most {widest:.2f} points apart.")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
