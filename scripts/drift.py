"""
Compare the scores of a run of the chapters with the committed ones.

    python scripts/drift.py NEW.jsonl [--committed FILE]

NEW is the ledger of the run, as `make test` writes it. Each score is compared with the line of the same method, seed
and training in the committed ledger, within the tolerance that `shipped/tolerances.yaml` declares. The exit code is 1
if a score is further away or missing, and 2 if nothing can be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from lcfuse_core._runtime import SHIPPED
from lcfuse_core._yaml import load_yaml
from lcfuse_core.errors import LcfuseError, MissingDataError
from lcfuse_core.scoring import ledger


def compare(new: Path, committed: Path = SHIPPED / "seeds.jsonl") -> pd.DataFrame:
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
                was, is_now = (_percent(line, f"scores.{score}") for line in (then, now))
                ok = abs(is_now - was) <= points + 1e-9  # NaN is not
                rows.append((method, score, was, is_now, is_now - was, points, ok))
    return pd.DataFrame(rows, columns=["method", "score", "committed", "new", "difference", "tolerance", "ok"])


def _percent(lines: pd.DataFrame, column: str) -> float:
    return 100 * float(lines[column].iloc[0]) if len(lines) and column in lines else float("nan")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("new", type=Path)
    parser.add_argument("--committed", type=Path, default=SHIPPED / "seeds.jsonl", help="default: that of the package")
    given = parser.parse_args(arguments)
    try:
        found = compare(given.new, given.committed)
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
    sys.exit(main())
