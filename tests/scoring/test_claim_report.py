"""One claim in full: every field that a report on reproducibility should have, from the line and the file."""

import pytest
from test_claims import EASIER, HARD, claim, line

from lcfuse_core import _runtime
from lcfuse_core.scoring import claims
from lcfuse_core.scoring.claims import report

FIELDS = {
    "claim", "made by", "tested as", "reported", "margin, fixed before", "ours", "interval", "seeds", "difference",
    "verdict", "causes", "hardware", "training, hours", "GPU-hours", "peak memory", "code", "lock", "data",
    "checkpoint", "parameters", "command",
}  # fmt: skip


def lines(**changes):
    return [line("ours", EASIER, **changes), line("MODIS label", HARD, **changes)]


def test_a_claim_with_lines_has_every_field():
    shown = report(claim(), lines())["● real"]
    assert set(shown.index) == FIELDS
    assert shown["verdict"] == "reproduced"
    assert shown["difference"] == "+10.0"
    assert shown["margin, fixed before"] == "0 points"
    assert shown["lock"] == f"{_runtime.lock_digest()[:12]}…"
    assert shown["data"].endswith("evaluation abc…")
    assert shown["checkpoint"] == "not in the line"
    assert "method ours" in shown["parameters"]


def test_a_claim_without_lines_says_what_it_takes():
    shown = report(claim(download="10 GB", hours=3), [])["● real"]
    assert shown["verdict"] == "not run yet: run it; 10 GB; 3.0 h"
    assert shown["command"] == "run it"
    assert set(shown.index) <= FIELDS


def test_other_data_have_a_column_and_no_verdict():
    shown = report(claim(), lines(data_kind="synthetic"))
    assert list(shown.columns) == ["○ synthetic", "● real"]
    assert shown.loc["verdict", "○ synthetic"] == "no verdict: other data"
    assert shown.loc["verdict", "● real"].startswith("not run yet")
    assert shown.loc["ours", "● real"] == claims.NONE


def test_the_cost_is_of_the_row_and_of_all_that_was_tried():
    tried = [line("ours", EASIER), line("MODIS label", HARD), line("given up", HARD), line("given up too", HARD)]
    for one in tried:
        one["cost"] = {"train_s": 3600.0, "gpu_hours": 0.5, "peak_memory_mb": 100.0}
    shown = report(claim(), tried)["● real"]
    assert shown["training, hours"] == "2.00 of this row, 4.00 of all lines"
    assert shown["GPU-hours"] == "1.00 of this row, 2.00 of all lines"
    assert shown["peak memory"] == "100 MB"


def test_changed_code_is_told():
    tried = lines()
    tried[0]["code"]["commit"] = "0123456789abcdef+changes"
    assert report(claim(), tried).loc["code", "● real"].endswith("commit 0123456789ab… with changes")


@pytest.mark.parametrize("one", claims.read_claims(), ids=lambda one: one.id)
def test_every_claim_of_the_book_can_be_reported(one):
    shown = report(one, claims.recorded())
    assert shown.loc["claim"].eq(one.sentence).all()
    assert shown.loc["verdict"].ne(claims.NONE).all()
