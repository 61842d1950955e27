"""
Drift: do today's scores still agree with the committed ones?

    python -m lcfuse_core.drift FRESH.jsonl [--committed FILE]

FRESH is the ledger of a run of the chapters, as `make test` writes it. Each headline score is compared with the line of
the same method, seed and training in the committed ledger, within the tolerance that `shipped/tolerances.yaml` declares
for it, with the reason. Ends with 1, and a table of what has moved, when a score is further away or missing.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field

from lcfuse_core.errors import LcfuseError, MissingDataError
from lcfuse_core.scoring import ledger
from lcfuse_core.scoring.protocol import SEEDS

TOLERANCES = "shipped/tolerances.yaml"
SAME = ("parameters.method", "seeds.world", "parameters.steps", "parameters.crop", "parameters.batch")
"""What two lines must share to be runs of one thing."""


class Tolerance(BaseModel):
    """Methods that are held to one standard: by score, how many points of per cent a fresh one may be off, and why."""

    model_config = ConfigDict(extra="forbid")

    methods: list[str] = Field(min_length=1)
    within: dict[str, float] = Field(min_length=1)
    why: str = Field(min_length=20)


def read_tolerances(text: str | None = None) -> tuple[str, list[Tolerance]]:
    """The kind of ledger line that is compared, and the tolerances; of the package, or of a YAML *text*."""
    raw = yaml.safe_load(text or resources.files("lcfuse_core").joinpath(TOLERANCES).read_text(encoding="utf-8"))
    return str(raw["kind"]), [Tolerance(**one) for one in raw["scores"]]


def compare(fresh: pd.DataFrame, committed: pd.DataFrame, tolerances: list[Tolerance]) -> pd.DataFrame:
    """
    One row a method and score: committed, fresh and their difference in per cent, the tolerance, and `ok`.

    fresh, committed : ledgers as `ledger.read` returns them; of several fresh lines of a method the last counts

    A method without a fresh line, or a fresh line without a committed one, is not ok: its difference is NaN.
    """
    rows = []
    for tolerance in tolerances:
        for method in tolerance.methods:
            new = fresh[fresh["parameters.method"] == method].tail(1)
            old = committed.merge(new[list(SAME)], on=list(SAME)).tail(1) if len(new) else new
            for score, points in tolerance.within.items():
                before, now = (_percent(lines, score) for lines in (old, new))
                off = now - before
                ok = bool(abs(off) <= points + 1e-9)  # NaN is not
                rows.append((method, score, before, now, off, points, ok))
    return pd.DataFrame(rows, columns=["method", "score", "committed", "fresh", "difference", "tolerance", "ok"])


def _percent(lines: pd.DataFrame, score: str) -> float:
    name = f"scores.{score}"
    return 100 * float(lines[name].iloc[0]) if len(lines) and name in lines else float("nan")


def read_committed(path: Path | None = None) -> pd.DataFrame:
    """The committed ledger, of the label regime that the chapter runs."""
    with resources.as_file(resources.files("lcfuse_core") / SEEDS) as shipped:
        lines = ledger.read(path or shipped)
    return lines[lines["label_regime"] == "coarse only"]


def check(fresh: Path, committed: Path | None = None) -> pd.DataFrame:
    """`compare` two files. Raises MissingDataError when the fresh one has no line of the kind that is compared."""
    kind, tolerances = read_tolerances()
    lines = ledger.read(fresh)
    own: Any = lines[lines["kind"] == kind] if "kind" in lines else lines.iloc[:0]
    if own.empty:
        expected, do = f"lines of the chapter {kind}", f"Run the chapter {kind} with LCFUSE_LEDGER set to this file."
        raise MissingDataError(fresh, found="none", expected=expected, do=do)
    return compare(own, read_committed(committed), tolerances)


def main(arguments: list[str] | None = None) -> int:
    """0 when all scores agree, 1 when one has moved, 2 when nothing can be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fresh", type=Path)
    parser.add_argument("--committed", type=Path, help="instead of the package's own ledger")
    given = parser.parse_args(arguments)
    try:
        found = check(given.fresh, given.committed)
    except LcfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    moved = found[~found["ok"]]
    if len(moved):
        print(moved.round(2).to_string(index=False), file=sys.stderr)
        print(f"{len(moved)} of {len(found)} scores have moved: see {TOLERANCES} for the reasons.", file=sys.stderr)
        return 1
    widest = found["difference"].abs().max()
    print(f"No drift: {len(found)} scores of {found['method'].nunique()} methods, at most {widest:.2f} points apart.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
