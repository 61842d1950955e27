"""Drift: scores of a run of the chapters against the committed ones, within declared tolerances."""

import pytest
import yaml

import drift
from lcfuse_core._runtime import SHIPPED
from lcfuse_core.errors import DataError, MissingDataError
from lcfuse_core.scoring import ledger

SCORES = ("aa", "oa", "miou_8", "miou_9", "kappa")
DECLARED = yaml.safe_load((SHIPPED / "tolerances.yaml").read_text())["scores"]
METHODS = [method for one in DECLARED for method in one["methods"]]


@pytest.fixture
def write(tmp_path):
    """A function that appends lines to a ledger, one for each method with a tolerance, and returns its path."""

    def written(name, kind="evaluation", moved=None, methods=METHODS, steps=400):
        for method in methods:
            entry = {
                "kind": kind, "label_regime": "coarse only", "seeds": {"world": 0},
                "parameters": {"method": method, "steps": steps, "crop": 64, "batch": 16},
                "scores": {score: 0.5 + (moved or {}).get((method, score), 0) / 100 for score in SCORES},
            }  # fmt: skip
            ledger.append(tmp_path / name, entry)
        return tmp_path / name

    return written


@pytest.fixture
def code_of(write):
    """A function that returns the exit code for a new ledger."""
    committed = write("committed.jsonl", "seeds")

    def code(new):
        return drift.main([str(new), "--committed", str(committed)])

    return code


@pytest.mark.parametrize(
    ("method", "score", "points", "code"),
    [("MODIS label", "aa", 0, 0), ("MODIS label", "aa", 0.001, 1), ("Random forest, plain", "aa", 0.9, 0),
     ("Random forest, plain", "aa", -1.1, 1), ("FCN, plain", "aa", 4.9, 0), ("FCN, plain", "aa", -5.1, 1),
     ("U-Net, plain", "oa", 7.9, 0)],
)  # fmt: skip
def test_each_score_has_its_own_tolerance(write, code_of, capsys, method, score, points, code):
    assert code_of(write("new.jsonl", moved={(method, score): points})) == code
    printed = capsys.readouterr()
    if code:
        assert method in printed.err
        assert "1 of 30 scores have moved" in printed.err
    else:
        assert f"of {len(METHODS)} methods, at most {points:.2f} points apart" in printed.out


def test_a_method_that_is_missing_has_drifted(write, code_of, capsys):
    """Neither one that was not run, nor one that was trained otherwise than the committed one."""
    assert code_of(write("new.jsonl", methods=[name for name in METHODS if name != "FCN, plain"])) == 1
    assert "5 of 30" in capsys.readouterr().err
    assert code_of(write("other.jsonl", steps=10)) == 1
    assert "30 of 30" in capsys.readouterr().err


def test_nothing_to_compare_is_an_error(write, code_of, tmp_path, capsys):
    assert code_of(tmp_path / "none.jsonl") == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(MissingDataError, match="lines of the chapter evaluation"):
        drift.compare(write("new.jsonl", "training"))
    ledger.append(tmp_path / "odd.jsonl", {"kind": "evaluation"})
    with pytest.raises(DataError, match=r"lines without .*parameters\.method"):
        drift.compare(tmp_path / "odd.jsonl")


def test_the_last_of_several_new_lines_counts(write, code_of):
    write("new.jsonl", moved={("MODIS label", "aa"): 9})
    assert code_of(write("new.jsonl")) == 0


def test_every_tolerance_has_a_reason_and_a_committed_line():
    """The committed ledger has each declared method, with the training of the smoke profile and seed 0."""
    smoke = yaml.safe_load((SHIPPED / "profiles" / "smoke.yaml").read_text())
    lines = ledger.read(SHIPPED / "seeds.jsonl")
    same = lines[(lines["seeds.world"] == 0) & (lines["parameters.steps"] == smoke["steps"])]
    assert set(METHODS) <= set(same["parameters.method"])
    assert all(len(one["why"].split()) >= 8 for one in DECLARED)
