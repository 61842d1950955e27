"""
Test the claims of the paper and of others by ledger lines, with a rule that was fixed before any run on real data.

`shipped/claims.yaml` (the book's `claims.yaml`) holds the claims, their margins, and the rule in words. A verdict is
computed from ledger lines only: a claim that needs real data stays "not run yet" until there is a line of a run on real
data. Synthetic and semi-real runs are shown beside it under their name, and never give the verdict of a claim about
real regions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lcfuse_core._runtime import SHIPPED
from lcfuse_core.errors import DataError
from lcfuse_core.scoring import intervals, ledger
from lcfuse_core.scoring.intervals import Interval

_REPRODUCED, _PARTLY, _NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
_OTHER_PROTOCOL, _UNTESTABLE, _NOT_RUN = "within the margin under another protocol", "not testable here", "not run yet"
VERDICTS = (_REPRODUCED, _OTHER_PROTOCOL, _PARTLY, _NOT_REPRODUCED, _UNTESTABLE, _NOT_RUN)

MARKS = {"synthetic": "○ synthetic", "semi-real": "◐ semi-real", "unverified": "◌ unverified", "real": "● real"}
"""Kinds of data in tables: a sign and the word."""

_NONE = "–"
_WITH_INTERVAL = ("aa", "oa", "miou_8", "miou_9")

_REQUIRED = {
    "more than": ("where", "against", "margin", "command"),
    "equals": ("where", "reported", "margin", "command"),
    "at least": ("where", "reported", "margin", "command"),
    "was done": ("where", "command"),
    "untestable": (),
}

_Entry = Mapping[str, Any]  # a ledger line, its nested names joined by dots (`ledger.flatten`)


class Claim(BaseModel):
    """One claim, as in the file, which explains the fields; scores and margins in per cent and points."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    source: str
    at: str
    sentence: str
    means: str
    relation: Literal["more than", "equals", "at least", "was done", "untestable"]
    score: str = "aa"
    reported: float | None = None
    margin: float | None = None
    needs: Literal["synthetic", "semi-real", "real"] = "real"
    where: dict[str, str | int | float] = {}
    against: dict[str, str | int | float] = {}
    protocol: dict[str, str | int | float] = {}
    command: str = ""
    download: str = ""
    hours: float | Literal["unknown"] = "unknown"
    causes: str = "untested"

    @model_validator(mode="after")
    def _check_fields_of_relation(self) -> Claim:
        missing = [name for name in _REQUIRED[self.relation] if getattr(self, name) in (None, {}, "")]
        if missing:
            raise ValueError(f"`{self.relation}` needs {', '.join(missing)}")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    fixed: date
    claims: list[Claim]


@dataclass(frozen=True)
class Finding:
    """The result for a claim by the lines of one kind of data, in per cent and points; only the interval is 0..1."""

    data_kind: str
    ours: float  # mean over seeds
    interval: Interval | None  # over regions, of the first seed whose lines have counts
    seeds: dict[int, float]  # score of each seed, a spread that the interval does not contain
    difference: float  # to the reported value, or to the method that the claim compares with
    lines: list[_Entry]


def read_claims(text: str | None = None) -> list[Claim]:
    """Read the claims of the book, or of a YAML *text*. Raises DataError that names the claim and the fault."""
    found = _read(text).claims
    if len({claim.id for claim in found}) < len(found):
        raise DataError("claims.yaml", found="an id twice", expected="each once", do="Rename one.")
    return found


def fixed_on() -> date:
    """Return the day on which the book's rule and margins were fixed."""
    return _read().fixed


def _read(text: str | None = None) -> _File:
    try:
        return _File(**yaml.safe_load(text or (SHIPPED / "claims.yaml").read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        do = "Correct the file; its head explains the fields of each relation."
        raise DataError("claims.yaml", found=found, expected="a claim", do=do) from None


def evidence(own: str | os.PathLike[str] | None = None) -> list[_Entry]:
    """
    Read the ledger lines that verdicts rest on: the committed ones and, of the ledger *own*, those not synthetic.

    Each line has `data_kind`, also an old one.
    """
    lines: list[dict[str, Any]] = []
    for path in (SHIPPED / "seeds.jsonl", SHIPPED / "methods.jsonl"):  # the newer lines last
        lines += ledger.read_entries(path)[0].values() if path.exists() else []
    if own is not None and Path(own).exists():
        lines += [line for line in ledger.read_entries(own)[0].values() if not line.get("synthetic")]
    return [ledger.flatten(line | {"data_kind": _kind_of(line)}) for line in lines]


def _kind_of(line: _Entry) -> str:
    """Return the kind of data; lines of schema 1 only distinguish synthetic data from others, which are unknown."""
    return str(line.get("data_kind") or ("synthetic" if line.get("synthetic") else "unknown"))


def examine(claim: Claim, entries: Iterable[_Entry]) -> dict[str, Finding]:
    """Return the findings for a claim by kind of data; kinds without a line that fits are left out."""
    if claim.relation == "untestable":
        return {}
    lines, found, score = [ledger.flatten(dict(entry)) for entry in entries], {}, f"scores.{claim.score}"
    for kind in ledger.DATA_KINDS:
        ours = _newest_by_seed(lines, claim.where, kind, score)
        theirs = _newest_by_seed(lines, claim.against, kind, score) if claim.against else {}
        if claim.against:
            data = {seed: line.get("hashes.evaluation") for seed, line in theirs.items()}
            ours = {s: line for s, line in ours.items() if s in data and line.get("hashes.evaluation") == data[s]}
        if ours:
            found[kind] = _find(claim, kind, ours, theirs)
    return found


def _newest_by_seed(lines: Iterable[_Entry], where: _Entry, kind: str, score: str) -> dict[int, _Entry]:
    fitting = (
        line
        for line in lines
        if _kind_of(line) == kind
        and line.get(score) is not None
        and all(line.get(name) == value for name, value in where.items())
    )
    return dict(sorted({int(line.get("seeds.training") or 0): line for line in fitting}.items()))


def _find(claim: Claim, kind: str, ours: dict[int, _Entry], theirs: dict[int, _Entry]) -> Finding:
    score = f"scores.{claim.score}"
    seeds = {seed: 100 * line[score] for seed, line in ours.items()}
    mean = float(np.mean(list(seeds.values())))
    if claim.against:
        difference = float(np.mean([seeds[seed] - 100 * theirs[seed][score] for seed in ours]))
    else:
        difference = mean - (claim.reported or float("nan"))
    each = (_interval(claim, line, theirs.get(seed)) for seed, line in ours.items())
    interval = next((one for one in each if one is not None), None)
    return Finding(kind, mean, interval, seeds, difference, [*ours.values(), *(theirs[s] for s in ours if s in theirs)])


def _interval(claim: Claim, line: _Entry, other: _Entry | None) -> Interval | None:
    """Return the interval over regions, if there is one for this score and the line has the counts of regions."""
    *part, name = claim.score.split(".")  # such as near_borders.aa: counts of a part of the pixels
    prefix = ".".join(["scores", *part, "counts."])
    counts, others = (
        {region: np.array(value) for region, value in (one or {}).items() if region.startswith(prefix)}
        for one in (line, other)
    )
    if name not in _WITH_INTERVAL or len(counts) < 2 or (claim.against and set(others) != set(counts)):
        return None
    ours = np.stack([counts[region] for region in sorted(counts)])
    if not claim.against:
        return intervals.interval(ours, name)
    return intervals.difference(ours, np.stack([others[region] for region in sorted(counts)]), name)


def verdict(claim: Claim, findings: Mapping[str, Finding]) -> str:
    """Return one of `VERDICTS`, by the rule in the file, from data of the kind that the claim needs."""
    if claim.relation == "untestable":
        return _UNTESTABLE
    finding = findings.get(claim.needs)
    if finding is None:
        return _NOT_RUN
    result = _compare(claim, finding)
    same = all(line.get(name) == value for line in finding.lines for name, value in claim.protocol.items())
    return result if same or result != _REPRODUCED else _OTHER_PROTOCOL


def _compare(claim: Claim, finding: Finding) -> str:
    margin, interval = claim.margin or 0.0, finding.interval
    low, high = (np.nan, np.nan) if interval is None else (100 * interval.low, 100 * interval.high)
    if claim.relation == "was done":
        return _REPRODUCED
    if claim.relation == "more than":
        if low > margin:
            return _REPRODUCED
        can_exceed = finding.difference > margin if interval is None else high > margin
        return _PARTLY if can_exceed else _NOT_REPRODUCED
    assert claim.reported is not None
    least = claim.reported - margin
    greatest = claim.reported + margin if claim.relation == "equals" else float("inf")
    if least <= finding.ours <= greatest:
        return _REPRODUCED
    return _NOT_REPRODUCED if interval is None or high < least or low > greatest else _PARTLY


def table(claims: Iterable[Claim], entries: Iterable[_Entry]) -> pd.DataFrame:
    """Return one row per claim and kind of data, that which the claim needs always among them (see `outstanding`)."""
    lines, rows = list(entries), []
    for claim in claims:
        found = examine(claim, lines)
        head = {"claim": claim.id, "source": claim.source, "reported": _reported(claim)}
        rows += [head | {"data": MARKS[kind]} | _shown(claim, one, found) for kind, one in found.items()]
        if claim.needs not in found:
            rows.append(head | {"data": MARKS[claim.needs], "verdict": verdict(claim, found)})
    columns = ["claim", "data", "verdict", "ours", "reported", "difference", "interval", "seeds", "source"]
    return pd.DataFrame(rows, columns=columns, dtype=object).fillna(_NONE)


def _reported(claim: Claim) -> str:
    return "not reported" if claim.reported is None else f"{claim.reported:g} %"


def _shown(claim: Claim, finding: Finding, findings: Mapping[str, Finding]) -> dict[str, str]:
    """Return the cells of a finding; a score on other data is not compared with a reported one."""
    interval, values, needed = finding.interval, list(finding.seeds.values()), finding.data_kind == claim.needs
    compared = (needed or bool(claim.against)) and np.isfinite(finding.difference)
    return {
        "ours": f"{finding.ours:.1f} %",
        "interval": f"{100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval else _NONE,
        "seeds": f"{min(values):.1f} to {max(values):.1f} ({len(values)})" if len(values) > 1 else "one",
        "difference": f"{finding.difference:+.1f}" if compared else _NONE,
        "verdict": verdict(claim, findings) if needed else "no verdict: other data",
    }


def outstanding(claims: Iterable[Claim], entries: Iterable[_Entry]) -> pd.DataFrame:
    """Return what it takes to have verdicts, or why there is none: one row for the claims that the same run decides."""
    lines, rows = list(entries), dict[tuple[str, ...], list[str]]()
    for claim in claims:
        so_far = verdict(claim, examine(claim, lines))
        row = (so_far, claim.command, claim.download or "none", str(claim.hours))
        row = (so_far, claim.means, _NONE, _NONE) if so_far == _UNTESTABLE else row
        if so_far in (_NOT_RUN, _UNTESTABLE):
            rows.setdefault(row, []).append(claim.id)
    index = pd.Index([", ".join(ids) for ids in rows.values()], name="claims", dtype=object)
    return pd.DataFrame(list(rows), index, ["verdict", "command, or why none", "download", "hours"], dtype=object)


def summary(claims: Iterable[Claim], entries: Iterable[_Entry]) -> pd.DataFrame:
    """Return how many claims have each verdict, and which: one row per verdict, in the order of `VERDICTS`."""
    lines = list(entries)
    found = {claim.id: verdict(claim, examine(claim, lines)) for claim in claims}
    which = {name: [claim for claim, result in found.items() if result == name] for name in VERDICTS}
    rows = {name: {"claims": len(ids), "which": ", ".join(ids)} for name, ids in which.items() if ids}
    return pd.DataFrame.from_dict(rows, "index").rename_axis("verdict")


def report(claim: Claim, entries: Iterable[_Entry]) -> pd.DataFrame:
    """Report on one claim in full: one row per field, one column per kind of data that has lines or that it needs."""
    lines = [ledger.flatten(dict(entry)) for entry in entries]
    found, columns = examine(claim, lines), {}
    for kind in [kind for kind in MARKS if kind in found or kind == claim.needs]:
        column = {
            "claim": claim.sentence,
            "made by": f"{claim.source}, {claim.at}",
            "tested as": claim.means,
            "reported": _reported(claim),
            "margin, fixed before": _NONE if claim.margin is None else f"{claim.margin:g} points",
        }
        if kind in found:
            column |= _shown(claim, found[kind], found) | {"causes": claim.causes}
            column |= _cost(found[kind].lines, lines) | _provenance(found[kind].lines[0])
        elif claim.relation == "untestable":
            column["verdict"] = _UNTESTABLE
        else:
            column["verdict"] = f"{_NOT_RUN}: {claim.command}; {claim.download or 'no download'}; {claim.hours} h"
        columns[MARKS[kind]] = column | {"command": claim.command or _NONE}
    return pd.DataFrame(columns, dtype=object).fillna(_NONE)


def _cost(own: Sequence[_Entry], everything: Sequence[_Entry]) -> dict[str, str]:
    """Return the cost of this row's lines and of all lines, since more was run than the rows that were kept."""

    def total(lines: Sequence[_Entry], name: str) -> float:
        return sum(line.get(f"cost.{name}") or 0.0 for line in lines)

    hours = [total(lines, "train_s") / 3600 for lines in (own, everything)]
    memory = [line["cost.peak_memory_mb"] for line in own if line.get("cost.peak_memory_mb")]
    return {
        "hardware": f"{own[0].get('machine.processor', _NONE)}, GPU: {own[0].get('machine.gpu') or 'none'}",
        "training, hours": f"{hours[0]:.2f} of this row, {hours[1]:.2f} of all lines",
        "GPU-hours": f"{total(own, 'gpu_hours'):.2f} of this row, {total(everything, 'gpu_hours'):.2f} of all lines",
        "peak memory": f"{max(memory):.0f} MB" if memory else _NONE,
    }


def _provenance(line: _Entry) -> dict[str, str]:
    """Return code, lock, data, parameters and weights of a line, hashes by their first digits."""

    def short(name: str) -> str:
        value = str(line.get(name) or "")
        changed = " with changes" if value.endswith("+changes") else ""
        return f"{value[:12]}…{changed}" if value else "not in the line"

    data = [f"{line.get(f'data.{role}') or role} {short(f'hashes.{role}')}" for role in ("train", "evaluation")]
    parameters = (f"{name[11:]} {value}" for name, value in line.items() if name.startswith("parameters."))
    return {
        "code": f"{line.get('code.version', _NONE)}, commit {short('code.commit')}",
        "lock": short("code.lock"),
        "data": "; ".join(data),
        "checkpoint": short("hashes.checkpoint"),
        "parameters": ", ".join(parameters),
    }
