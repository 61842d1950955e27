"""
One claim in full: all that a reproduction report has to say of it, from the file and the ledger, and nothing typed in.

The fields are those that reports on reproducibility are asked for and seldom have: the value and its interval, the
spread over seeds by itself, a margin that was there first, the cost of this row and of everything tried, and what a
line rests on, down to the hash of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from lcfuse_core import claims, ledger
from lcfuse_core.claims import Claim, Entry, Finding

NONE = "–"


def report(claim: Claim, entries: Iterable[Entry]) -> pd.DataFrame:
    """
    What there is to say of a claim: one row a field, one column a kind of data that lines speak of.

    The kind that the claim needs has a column even when no line does: it says what a verdict would take.
    """
    lines = [ledger.flatten(dict(entry)) for entry in entries]
    found = claims.examine(claim, lines)
    kinds = [kind for kind in claims.MARKS if kind in found or kind == claim.needs]
    columns = {claims.MARKS[kind]: _column(claim, kind, found.get(kind), lines) for kind in kinds}
    if claim.needs in found or claim.relation == "untestable":
        columns[claims.MARKS[claim.needs]]["verdict"] = claims.verdict(claim, found)
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
        | claims.shown(finding, compared)
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
