"""
Test the claims of the paper and of others by ledger lines, with a rule that was fixed before any run on real data.

`shipped/claims.yaml` (the book's `claims.yaml`) holds the claims, margins, protocols, and the rule in words.
A verdict is computed from ledger lines alone, of the kind of data that the claim needs and of runs that follow its
protocol. Other lines are shown beside it under their own name; they decide nothing, neither for nor against a claim.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lcfuse_core._runtime import SHIPPED
from lcfuse_core._yaml import load_yaml
from lcfuse_core.errors import DataError
from lcfuse_core.scoring import intervals, ledger
from lcfuse_core.scoring.intervals import Interval
from lcfuse_core.scoring.scores import N_CODES, PARTS, summarise

_REPRODUCED, _INCONCLUSIVE, _NOT_REPRODUCED = "reproduced", "inconclusive", "not reproduced"
_OTHER_PROTOCOL, _UNTESTABLE, _NOT_RUN = "under another protocol", "not testable here", "not run yet"

MARKS = {
    "synthetic": "○ synthetic", "semi-real": "◐ semi-real", "unverified": "◌ unverified", "adopted": "◑ adopted",
    "place": "◒ real places", "real": "● real",
}  # fmt: skip
"""Kinds of data in tables: a sign and the word."""

_NONE = "–"
_WITH_INTERVAL = ("aa", "oa", "miou_8", "miou_9")

_SCORES = (
    *(name for name in ledger.flatten(asdict(summarise(np.eye(N_CODES, dtype=int)))) if not name.startswith("n_")),
    *(f"{part}.{name}" for part in PARTS for name in ("aa", "oa")),
)
"""What a ledger line may hold as a score of all pixels or of a part of them."""

_REQUIRED = {
    "more than": ("where", "against", "margin", "protocol", "command"),
    "equals": ("where", "reported", "margin", "protocol", "command"),
    "at least": ("where", "reported", "margin", "protocol", "command"),
    "was done": ("where", "protocol", "command"),
    "untestable": (),
}

_Entry = Mapping[str, Any]  # a ledger line, its nested names joined by dots (`ledger.flatten`)
_Fields = dict[str, str | int | float]


class _OnPlaces(BaseModel):
    """What takes the place of fields of a claim where it is tested on real places; see `of_places`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sentence: str
    means: str
    where: _Fields
    against: _Fields
    protocol: _Fields
    command: str
    download: str


class Claim(BaseModel):
    """One claim, as in the file, which explains the fields; scores and margins in per cent and points."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    source: str
    at: str
    sentence: str
    means: str
    relation: Literal["more than", "equals", "at least", "was done", "untestable"]
    score: str = "aa"
    reported: float | None = Field(None, ge=0, le=100)
    margin: float | None = Field(None, ge=0, le=100)
    needs: Literal["synthetic", "semi-real", "place", "real"] = "real"
    where: _Fields = {}
    against: _Fields = {}
    protocol: _Fields = {}
    differs: str = ""
    command: str = ""
    download: str = ""
    on_places: _OnPlaces | None = None

    @model_validator(mode="after")
    def _check_fields_of_relation(self) -> Claim:
        missing = [name for name in _REQUIRED[self.relation] if getattr(self, name) in (None, {}, "")]
        if self.relation != "untestable":  # without them, a short run or the validation part could decide
            missing += [f"protocol {name}" for name in ("split", "parameters.steps") if name not in self.protocol]
        if missing:
            raise ValueError(f"`{self.relation}` needs {', '.join(missing)}")
        if self.score not in _SCORES:
            raise ValueError(f"score {self.score!r} is none of {', '.join(_SCORES)}")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    fixed: date
    claims: list[Claim]


@dataclass(frozen=True)
class _Finding:
    """The result for a claim by the lines of one kind of data, in per cent and points; only the interval is 0..1."""

    data_kind: str
    ours: float  # mean over seeds
    interval: Interval | None  # over regions, of the first seed whose lines have counts
    seeds: dict[tuple[int, int], float]  # score by seeds (world, training), a spread that the interval does not contain
    difference: float  # to the reported value, or to the method that the claim compares with
    lines: list[_Entry]
    departures: tuple[str, ...] = ()  # from the claim's protocol, such as "steps 40 instead of 5000"


def read_claims(text: str | None = None) -> list[Claim]:
    """Read the claims of the book, or of a YAML *text*. Raises DataError that names the claim and the fault."""
    found = _read(text).claims
    if len({claim.id for claim in found}) < len(found):
        raise DataError("claims.yaml", found="an id twice", expected="each once", do="Rename one.")
    return found


def of_places(claims: Iterable[Claim]) -> list[Claim]:
    """Return those of *claims* that are also tested on real places, as claims of their own: `ensemble, places`."""
    further = {"needs": "place", "on_places": None}
    return [
        claim.model_copy(update={**dict(claim.on_places), "id": f"{claim.id}, places", **further})
        for claim in claims
        if claim.on_places is not None
    ]


def fixed_on() -> date:
    """Return the day on which the rule, the margins and the protocols of the book were last changed."""
    return _read().fixed


def _read(text: str | None = None) -> _File:
    values = load_yaml(text or (SHIPPED / "claims.yaml").read_bytes(), "claims.yaml")
    try:
        return _File.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
        do = "Correct the file; its head explains the fields of each relation."
        raise DataError("claims.yaml", found=found, expected="version, fixed and claims", do=do) from None


def evidence(own: str | os.PathLike[str] | None = None) -> list[_Entry]:
    """
    Read the ledger lines that verdicts rest on: the committed ones and, of the ledger *own*, those not synthetic.

    Each line has `data_kind`, also an old one. The lines of real places are pooled: see `_pooled_places`.
    """
    lines: list[dict[str, Any]] = []
    for path in (SHIPPED / "seeds.jsonl", SHIPPED / "methods.jsonl"):  # the newer lines last
        lines += ledger.read_entries(path).values() if path.exists() else []
    if own is not None and Path(own).exists():
        lines += [line for line in ledger.read_entries(own).values() if not line.get("synthetic")]
    found = [ledger.flatten(line | {"data_kind": _kind_of(line)}) for line in lines]
    places = [line for line in found if line["data_kind"] == "place"]
    return [*(line for line in found if line["data_kind"] != "place"), *_pooled_places(places)]


def _pooled_places(lines: Iterable[_Entry]) -> list[_Entry]:
    """
    Join the ledger lines of single places to one line per list of places, method, settings and seeds: each place is a
    region.

    Of two lines of a place, the newer counts; fields in which the places differ are left out. `scores.n_places` is the
    number of places. Lines are compared with each other only if they are of the same places, by `hashes.evaluation`.
    """
    settings = ("data.places", "kind", "label_regime", "profile", "parameters.steps", "seeds.world", "seeds.training")
    names = ("parameters.method", *settings)
    groups: dict[tuple[Any, ...], dict[str, _Entry]] = {}
    for line in lines:
        groups.setdefault(tuple(line.get(name) for name in names), {})[str(line.get("hashes.evaluation"))] = line
    pooled: list[_Entry] = []
    for group in groups.values():
        own = list(group.values())
        counts = {name: n for line in own for name, n in line.items() if name.startswith("scores.counts.")}
        if not counts:
            continue
        head = {
            name: value
            for name, value in own[0].items()
            if not name.startswith(("scores.", "hashes.")) and all(line.get(name) == value for line in own)
        }
        scores = asdict(summarise(np.sum([*counts.values()], axis=0))) | {
            "n_places": len(own),
            "n_patches": sum(int(line.get("scores.n_patches") or 0) for line in own),
        }
        same = hashlib.sha256("\n".join(sorted(group)).encode()).hexdigest()
        pooled.append({**head, **ledger.flatten({"scores": scores}), **counts, "hashes.evaluation": same})
    return pooled


def _kind_of(line: _Entry) -> str:
    """Return the kind of data; lines of schema 1 only distinguish synthetic data from others, which are unknown."""
    return str(line.get("data_kind") or ("synthetic" if line.get("synthetic") else "unknown"))


def examine(claim: Claim, entries: Iterable[_Entry]) -> dict[str, _Finding]:
    """
    Return the findings for a claim by kind of data; kinds without a line that fits are left out.

    Lines that follow the claim's protocol come first; only where there are none, others are taken, and the finding
    names their departures from it.
    """
    lines, found = [ledger.flatten(dict(entry)) for entry in entries], {}
    for kind in ledger.DATA_KINDS if claim.relation != "untestable" else ():
        own = [line for line in lines if _kind_of(line) == kind]
        finding = _find(claim, kind, [line for line in own if not _departures(claim, line)]) or _find(claim, kind, own)
        if finding:
            found[kind] = finding
    return found


def _departures(claim: Claim, line: _Entry) -> list[str]:
    """Return in what a line differs from the protocol of a claim, also by not stating it."""
    return [
        f"{name.rpartition('.')[2]} {line.get(name, 'not stated')} instead of {value}"
        for name, value in claim.protocol.items()
        if line.get(name) != value
    ]


def _find(claim: Claim, kind: str, lines: list[dict[str, Any]]) -> _Finding | None:
    score = f"scores.{claim.score}"

    def newest(where: _Fields) -> dict[tuple[int, int], _Entry]:
        by_seeds: dict[tuple[int, int], _Entry] = {}
        for line in lines:
            if line.get(score) is not None and all(line.get(name) == value for name, value in where.items()):
                by_seeds[int(line.get("seeds.world") or 0), int(line.get("seeds.training") or 0)] = line
        return dict(sorted(by_seeds.items()))

    ours, theirs = newest(claim.where), newest(claim.against) if claim.against else {}
    if claim.against:  # the same pixels, not only the same data: a damaged patch may have been left out
        same = ("hashes.evaluation", "split", "scores.n_pixels")
        ours = {
            seeds: line
            for seeds, line in ours.items()
            if seeds in theirs and all(line.get(name) == theirs[seeds].get(name) for name in same)
        }
    if not ours:
        return None
    values = {seeds: 100 * line[score] for seeds, line in ours.items()}
    mean = float(np.mean(list(values.values())))
    difference = mean - (float("nan") if claim.reported is None else claim.reported)
    if claim.against:
        difference = float(np.mean([values[seeds] - 100 * theirs[seeds][score] for seeds in ours]))
    interval = next(filter(None, (_interval(claim, line, theirs.get(seeds)) for seeds, line in ours.items())), None)
    used = [*ours.values(), *(theirs[seeds] for seeds in ours if claim.against)]
    departures = dict.fromkeys(text for line in used for text in _departures(claim, line))
    return _Finding(kind, mean, interval, values, difference, used, tuple(departures))


def _interval(claim: Claim, line: _Entry, other: _Entry | None) -> Interval | None:
    """Return the interval over regions, if there is one for this score and the lines have the counts of regions."""
    *part, name = claim.score.split(".")  # such as small_objects.aa: counts of a part of the pixels
    prefix = ".".join(["scores", *part, "counts."])
    sides = [
        {region: value for region, value in one.items() if region.startswith(prefix)} for one in (line, other) if one
    ]
    if name not in _WITH_INTERVAL or len(sides[0]) < 2 or any(set(side) != set(sides[0]) for side in sides):
        return None
    ours, *others = (np.array([side[region] for region in sorted(side)]) for side in sides)
    return intervals.difference(ours, others[0], name) if others else intervals.interval(ours, name)


def verdict(claim: Claim, findings: Mapping[str, _Finding]) -> str:
    """Return the verdict by the rule in the file, from data of the kind that the claim needs."""
    if claim.relation == "untestable":
        return _UNTESTABLE
    finding = findings.get(claim.needs)
    if finding is None:
        return _NOT_RUN
    if finding.departures or claim.differs:
        return _OTHER_PROTOCOL
    margin, interval = claim.margin or 0.0, finding.interval
    low, high = (np.nan, np.nan) if interval is None else (100 * interval.low, 100 * interval.high)
    if claim.relation == "was done":
        return _REPRODUCED
    if claim.relation == "more than":
        if low > margin:
            return _REPRODUCED
        can_exceed = finding.difference > margin if interval is None else high > margin
        return _INCONCLUSIVE if can_exceed else _NOT_REPRODUCED
    assert claim.reported is not None
    least = claim.reported - margin
    greatest = claim.reported + margin if claim.relation == "equals" else float("inf")
    if least <= finding.ours <= greatest:
        return _REPRODUCED
    return _NOT_REPRODUCED if interval is None or high < least or low > greatest else _INCONCLUSIVE


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


def _shown(claim: Claim, finding: _Finding, findings: Mapping[str, _Finding]) -> dict[str, str]:
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
        found = examine(claim, lines)
        so_far, shown = verdict(claim, found), (claim.command, claim.download or "none")
        if so_far in (_REPRODUCED, _INCONCLUSIVE, _NOT_REPRODUCED):
            continue
        if so_far == _UNTESTABLE:
            shown = (claim.means, _NONE)
        elif so_far == _OTHER_PROTOCOL:
            shown = ("; ".join(filter(None, (*found[claim.needs].departures, claim.differs))), shown[1])
        rows.setdefault((so_far, *shown), []).append(claim.id)
    index = pd.Index([", ".join(ids) for ids in rows.values()], name="claims", dtype=object)
    return pd.DataFrame(list(rows), index, ["verdict", "command, or why none", "download"], dtype=object)


_PROVENANCE = {
    "processor": "machine.processor", "GPU": "machine.gpu", "training, s": "cost.train_s",
    "peak memory, MB": "cost.peak_memory_mb", "commit": "code.commit", "lock": "code.lock",
    "training data": "hashes.train", "evaluation data": "hashes.evaluation", "checkpoint": "hashes.checkpoint",
}  # fmt: skip


def report(claim: Claim, entries: Iterable[_Entry]) -> pd.DataFrame:
    """Report on one claim in full: one row per field, one column per kind of data that has lines or that it needs."""
    found, columns = examine(claim, entries), {}
    for kind in [kind for kind in MARKS if kind in found or kind == claim.needs]:
        column = {
            "claim": claim.sentence,
            "made by": f"{claim.source}, {claim.at}",
            "tested as": claim.means,
            "reported": _reported(claim),
            "margin, fixed before": _NONE if claim.margin is None else f"{claim.margin:g} points",
            "protocol": ", ".join(f"{name} {value}" for name, value in claim.protocol.items()),
            "verdict": verdict(claim, found),
            "command": claim.command or _NONE,
        }
        if kind in found:
            line = found[kind].lines[0]
            column |= _shown(claim, found[kind], found)
            column["other protocol"] = "; ".join(found[kind].departures) or _NONE
            for title, name in _PROVENANCE.items():  # hashes by their first digits
                column[title] = re.sub(r"(\w{12})\w{20,}", r"\1…", str(line.get(name) or _NONE))
            parameters = (f"{name[11:]} {value}" for name, value in line.items() if name.startswith("parameters."))
            column["parameters"] = ", ".join(parameters)
        columns[MARKS[kind]] = column
    return pd.DataFrame(columns, dtype=object).fillna(_NONE)
