"""
Claims and verdicts: what the paper and others say, tested by the ledger, by a rule that was fixed before.

`shipped/claims.yaml` (the book's `claims.yaml`) holds the claims, their margins, and the rule in words. A verdict is
computed from ledger lines and nothing else: a claim that needs real data stays "not run yet" until a line of a run on
real data is there, and becomes a result with that line. Synthetic and semi-real runs are shown beside it, under their
name, and never give the verdict of a claim about the Earth.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lcfuse_core.errors import DataError
from lcfuse_core.scoring import intervals, ledger
from lcfuse_core.scoring.intervals import Interval
from lcfuse_core.scoring.protocol import SEEDS

CLAIMS = "shipped/claims.yaml"

METHODS = "shipped/methods.jsonl"
"""Ledger of the ladder of methods, beside `protocol.SEEDS`; its lines are the newer ones."""

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
OTHERWISE, UNTESTABLE, NOT_RUN = "within the margin under another protocol", "not testable here", "not run yet"
VERDICTS = (REPRODUCED, OTHERWISE, PARTLY, NOT_REPRODUCED, UNTESTABLE, NOT_RUN)

MARKS = {"synthetic": "○ synthetic", "semi-real": "◐ semi-real", "unverified": "◌ unverified", "real": "● real"}
"""How tables tell the kinds of data apart: by a sign and by the word."""

Entry = Mapping[str, Any]
"""A ledger line, its nested names joined by dots (`ledger.flatten`)."""


class Claim(BaseModel):
    """One claim, as in the file; scores and margins in per cent and points. See there for the rule."""

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
    def _has_what_its_relation_needs(self) -> Claim:
        need: dict[str, tuple[str, ...]] = {
            "more than": ("where", "against", "margin", "command"),
            "equals": ("where", "reported", "margin", "command"),
            "at least": ("where", "reported", "margin", "command"),
            "was done": ("where", "command"),
            "untestable": (),
        }
        missing = [name for name in need[self.relation] if getattr(self, name) in (None, {}, "")]
        if missing:
            raise ValueError(f"`{self.relation}` needs {', '.join(missing)}")
        return self

    @property
    def reported_text(self) -> str:
        """The source's value, or that it gives none."""
        return "not reported" if self.reported is None else f"{self.reported:g} %"

    @property
    def to_do(self) -> str:
        """What it takes to have a verdict: command, download, hours."""
        return f"{NOT_RUN}: {self.command}; {self.download or 'no download'}; {self.hours} h"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    fixed: date
    claims: list[Claim]


@dataclass(frozen=True)
class Finding:
    """
    What the lines of one kind of data say about a claim, in per cent and points; the interval alone is 0..1.

    ours : mean over seeds; interval : over regions, of the first seed whose lines have counts; None without any
    seeds : each seed's score, the spread that an interval over regions does not show
    difference : to the reported value, or to what the claim compares with
    """

    data_kind: str
    ours: float
    interval: Interval | None
    seeds: dict[int, float]
    difference: float
    lines: list[Entry]

    @property
    def gpu_hours(self) -> float:
        """Of all lines together; NaN where one does not say."""
        return float(np.sum([one.get("cost.gpu_hours", np.nan) for one in self.lines]))


def read_claims(text: str | None = None) -> list[Claim]:
    """The claims of the book, or of a YAML *text*. Raises DataError that names the claim and what is wrong."""
    found = _read(text).claims
    names = [claim.id for claim in found]
    if len(set(names)) < len(names):
        raise DataError("claims.yaml", found="an id twice", expected="each once", do="Rename one.")
    return found


def fixed_on() -> date:
    """The day since which the book's rule and margins stand."""
    return _read().fixed


def _read(text: str | None = None) -> _File:
    text = text or resources.files("lcfuse_core").joinpath(CLAIMS).read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    try:
        return _File(**raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        do = "Correct the file; its head says what each relation needs."
        raise DataError("claims.yaml", found=f"{place}: {first['msg']}", expected="a claim", do=do) from None


def recorded(own: str | os.PathLike[str] | None = None) -> list[Entry]:
    """
    The ledger lines that verdicts rest on: the committed ones and, of the ledger *own*, those that are not synthetic.

    So a real run of a reader's counts on the spot, while the book's synthetic lines stay those that were committed.
    """
    lines: list[dict[str, Any]] = []
    for name in (SEEDS, METHODS):
        with resources.as_file(resources.files("lcfuse_core") / name) as path:
            lines += ledger.read_entries(path)[0].values() if path.exists() else []
    if own is not None and Path(own).exists():
        lines += [line for line in ledger.read_entries(own)[0].values() if not line.get("synthetic")]
    return [ledger.flatten(line) for line in lines]


def examine(claim: Claim, entries: Iterable[Entry]) -> dict[str, Finding]:
    """What the ledger says of a claim, by kind of data; kinds without a line that fits are left out."""
    if claim.relation == "untestable":
        return {}
    lines = [entry if "schema" not in entry else ledger.flatten(dict(entry)) for entry in entries]
    found = {}
    for kind in ledger.DATA_KINDS:
        ours = _by_seed(lines, claim.where, kind, f"scores.{claim.score}")
        theirs = _by_seed(lines, claim.against, kind, f"scores.{claim.score}") if claim.against else {}
        if claim.against:
            ours = {seed: line for seed, line in ours.items() if seed in theirs and _same_data(line, theirs[seed])}
        if ours:
            found[kind] = _finding(claim, kind, ours, theirs)
    return found


def _by_seed(lines: Iterable[Entry], where: Mapping[str, Any], kind: str, score: str) -> dict[int, Entry]:
    """The newest line of each seed that fits, by seed."""
    fitting = {}
    for line in lines:
        fits = all(line.get(name) == value for name, value in where.items()) and kind_of(line) == kind
        if fits and line.get(score) is not None:
            fitting[int(line.get("seeds.training", 0))] = line
    return dict(sorted(fitting.items()))


def kind_of(line: Entry) -> str:
    """Schema 1 told synthetic from the rest alone; what it did not make itself it cannot vouch for."""
    return str(line.get("data_kind") or ("synthetic" if line.get("synthetic") else "unknown"))


def _same_data(one: Entry, other: Entry) -> bool:
    return one.get("hashes.evaluation") == other.get("hashes.evaluation")


def _finding(claim: Claim, kind: str, ours: dict[int, Entry], theirs: dict[int, Entry]) -> Finding:
    score = f"scores.{claim.score}"
    seeds = {seed: 100 * line[score] for seed, line in ours.items()}
    if claim.against:
        difference = float(np.mean([seeds[seed] - 100 * theirs[seed][score] for seed in ours]))
    else:
        difference = float(np.mean(list(seeds.values()))) - (claim.reported or float("nan"))
    each = (_interval(claim, line, theirs.get(seed)) for seed, line in ours.items())
    interval = next((one for one in each if one is not None), None)
    lines = [*ours.values(), *(theirs[seed] for seed in ours if seed in theirs)]
    return Finding(kind, float(np.mean(list(seeds.values()))), interval, seeds, difference, lines)


def _interval(claim: Claim, line: Entry, other: Entry | None) -> Interval | None:
    """Over regions, for a score of `intervals.BY_NAME`, where the line has the counts that it takes."""
    *part, name = claim.score.split(".")
    score, before = intervals.BY_NAME.get(name), ".".join(["scores", *part, "counts."])
    counts, others = _counts(line, before), _counts(other or {}, before)
    if score is None or len(counts) < 2:
        return None
    if not claim.against:
        return intervals.interval(np.stack([counts[region] for region in sorted(counts)]), score)
    if set(others) != set(counts):
        return None
    one, two = (np.stack([groups[region] for region in sorted(counts)]) for groups in (counts, others))
    return intervals.difference(one, two, score)


def _counts(line: Entry, before: str) -> dict[str, np.ndarray]:
    """Confusion counts by region, of a part of the pixels (such as those near borders) if *before* names one."""
    return {name: np.array(value) for name, value in line.items() if name.startswith(before)}


def verdict(claim: Claim, findings: Mapping[str, Finding]) -> str:
    """One of VERDICTS, by the rule in the file, from the data that the claim needs and no other."""
    if claim.relation == "untestable":
        return UNTESTABLE
    finding = findings.get(claim.needs)
    if finding is None:
        return NOT_RUN
    said = _compare(claim, finding)
    same = all(line.get(name) == value for line in finding.lines for name, value in claim.protocol.items())
    return said if same or said != REPRODUCED else OTHERWISE


def _compare(claim: Claim, finding: Finding) -> str:
    margin, interval = claim.margin or 0.0, finding.interval
    # Without an interval there are no ends that could lie on one side of the margin.
    ends = (float("nan"), float("nan")) if interval is None else (100 * interval.low, 100 * interval.high)
    if claim.relation == "was done":
        return REPRODUCED
    if claim.relation == "more than":
        if interval is None:
            return PARTLY if finding.difference > margin else NOT_REPRODUCED
        if ends[0] > margin:
            return REPRODUCED
        return PARTLY if ends[1] > margin else NOT_REPRODUCED
    assert claim.reported is not None
    low = claim.reported - margin
    high = claim.reported + margin if claim.relation == "equals" else float("inf")
    if low <= finding.ours <= high:
        return REPRODUCED
    misses = interval is None or ends[1] < low or ends[0] > high
    return NOT_REPRODUCED if misses else PARTLY


def table(claims: Iterable[Claim], entries: Iterable[Entry]) -> pd.DataFrame:
    """
    One row a claim and kind of data: id, data, verdict, ours, reported, difference, interval, seeds, source.

    A claim without any line on the data that it needs has a row that says so; `outstanding` tells what it takes.
    """
    lines, rows = list(entries), []
    for claim in claims:
        found = examine(claim, lines)
        said = verdict(claim, found)
        head = {"claim": claim.id, "source": claim.source, "reported": claim.reported_text}
        for kind in [kind for kind in ledger.DATA_KINDS if kind in found]:
            own = said if kind == claim.needs else "no verdict: other data"
            # Nobody's score on real places is to be held against one on other data.
            compared = kind == claim.needs or bool(claim.against)
            rows.append(head | {"data": MARKS[kind]} | shown(found[kind], compared) | {"verdict": own})
        if claim.needs not in found:
            rows.append(head | {"data": MARKS[claim.needs], "verdict": said})
    columns = ["claim", "data", "verdict", "ours", "reported", "difference", "interval", "seeds", "source"]
    return pd.DataFrame(rows, columns=columns, dtype=object).fillna("–")


def outstanding(claims: Iterable[Claim], entries: Iterable[Entry]) -> pd.DataFrame:
    """
    What stands between the claims and their verdicts: one row for those that the same thing would decide.

    Columns: verdict, so far; command, download, hours, of a run that would give one; or why there is none. Index: ids.
    """
    lines, rows = list(entries), dict[tuple[str, ...], list[str]]()
    for claim in claims:
        said = verdict(claim, examine(claim, lines))
        if said == NOT_RUN:
            row = (said, claim.command, claim.download or "none", str(claim.hours))
            rows.setdefault(row, []).append(claim.id)
        elif said == UNTESTABLE:
            rows.setdefault((said, claim.means, "–", "–"), []).append(claim.id)
    index = pd.Index([", ".join(ids) for ids in rows.values()], name="claims", dtype=object)
    return pd.DataFrame(list(rows), index, ["verdict", "command, or why none", "download", "hours"], dtype=object)


def shown(finding: Finding, compared: bool) -> dict[str, str]:
    """What tables show of a finding; compared : whether its difference may be shown at all."""
    interval, values = finding.interval, list(finding.seeds.values())
    return {
        "ours": f"{finding.ours:.1f} %",
        "interval": f"{100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval else "–",
        "seeds": f"{min(values):.1f} to {max(values):.1f} ({len(values)})" if len(values) > 1 else "one",
        "difference": f"{finding.difference:+.1f}" if compared and np.isfinite(finding.difference) else "–",
    }


def summary(claims: Iterable[Claim], entries: Iterable[Entry]) -> pd.DataFrame:
    """How many claims have each verdict, and which: one row a verdict, those of VERDICTS in order."""
    lines, found = list(entries), dict[str, list[str]]()
    for claim in claims:
        found.setdefault(verdict(claim, examine(claim, lines)), []).append(claim.id)
    rows = {name: {"claims": len(found[name]), "which": ", ".join(found[name])} for name in VERDICTS if name in found}
    return pd.DataFrame.from_dict(rows, "index").rename_axis("verdict")


NONE = "–"


def report(claim: Claim, entries: Iterable[Entry]) -> pd.DataFrame:
    """
    What there is to say of a claim: one row a field, one column a kind of data that lines speak of.

    The kind that the claim needs has a column even when no line does: it says what a verdict would take.
    """
    lines = [ledger.flatten(dict(entry)) for entry in entries]
    found = examine(claim, lines)
    kinds = [kind for kind in MARKS if kind in found or kind == claim.needs]
    columns = {MARKS[kind]: _column(claim, kind, found.get(kind), lines) for kind in kinds}
    if claim.needs in found or claim.relation == "untestable":
        columns[MARKS[claim.needs]]["verdict"] = verdict(claim, found)
    return pd.DataFrame(columns, dtype=object).fillna(NONE)


def _column(claim: Claim, kind: str, finding: Finding | None, lines: Sequence[Entry]) -> dict[str, str]:
    head = {
        "claim": claim.sentence,
        "made by": f"{claim.source}, {claim.at}",
        "tested as": claim.means,
        "reported": claim.reported_text,
        "margin, fixed before": NONE if claim.margin is None else f"{claim.margin:g} points",
    }
    if finding is None:
        return head | {"verdict": claim.to_do if kind == claim.needs else NONE, "command": claim.command or NONE}
    compared = kind == claim.needs or bool(claim.against)
    return (
        head
        | shown(finding, compared)
        | {"verdict": "no verdict: other data", "causes": claim.causes}
        | _cost(finding, lines)
        | _rests_on(finding.lines[0])
        | {"command": claim.command or NONE}
    )


def _cost(finding: Finding, lines: Sequence[Entry]) -> dict[str, str]:
    """Of this row's lines and, since a row that was kept is not all that was paid for, of all lines."""
    hours = [sum(line.get("cost.train_s") or 0.0 for line in some) / 3600 for some in (finding.lines, lines)]
    gpu = [sum(line.get("cost.gpu_hours") or 0.0 for line in some) for some in (finding.lines, lines)]
    memory = [line["cost.peak_memory_mb"] for line in finding.lines if line.get("cost.peak_memory_mb")]
    one = finding.lines[0]
    return {
        "hardware": f"{one.get('machine.processor', NONE)}, GPU: {one.get('machine.gpu') or 'none'}",
        "training, hours": f"{hours[0]:.2f} of this row, {hours[1]:.2f} of all lines",
        "GPU-hours": f"{gpu[0]:.2f} of this row, {gpu[1]:.2f} of all lines",
        "peak memory": f"{max(memory):.0f} MB" if memory else NONE,
    }


def _rests_on(line: Entry) -> dict[str, str]:
    """Code, lock, data, parameters and weights of the first of the lines."""
    data = [f"{line.get(f'data.{role}') or role} {_short(line, f'hashes.{role}')}" for role in ("train", "evaluation")]
    parameters = (f"{name[11:]} {value}" for name, value in line.items() if name.startswith("parameters."))
    return {
        "code": f"{line.get('code.version', NONE)}, commit {_short(line, 'code.commit')}",
        "lock": _short(line, "code.lock"),
        "data": "; ".join(data),
        "checkpoint": _short(line, "hashes.checkpoint"),
        "parameters": ", ".join(parameters),
    }


def _short(line: Entry, name: str) -> str:
    """The first digits of a hash, enough to tell it from others."""
    value = str(line.get(name) or "")
    changed = " with changes" if value.endswith("+changes") else ""
    return f"{value[:12]}…{changed}" if value else "not in the line"
