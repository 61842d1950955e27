"""Drift: what has moved is told, what has not passes, and what is missing never passes."""

import pytest

from lcfuse_core.book import settings
from lcfuse_core.errors import MissingDataError
from lcfuse_core.scoring import drift, ledger

METHODS = [method for one in drift.read_tolerances()[1] for method in one.methods]


def write(path, kind, moved=None, missing=(), steps=400):
    """A ledger with a line for each method; *moved*: points by (method, score)."""
    for method in METHODS:
        if method in missing:
            continue
        scores = {
            score: 0.5 + (moved or {}).get((method, score), 0) / 100
            for score in ("aa", "oa", "miou_8", "miou_9", "kappa")
        }
        parameters = {"method": method, "steps": steps, "crop": 64, "batch": 16}
        seeds = {"world": 0, "training": 0}
        entry = ledger.new_entry(
            kind, parameters, scores, label_regime="coarse only", profile="smoke", seeds=seeds, synthetic=True
        )
        ledger.append(path, entry)
    return path


@pytest.fixture
def committed(tmp_path):
    return write(tmp_path / "committed.jsonl", "seeds")


def run(fresh, committed):
    return drift.main([str(fresh), "--committed", str(committed)])


def test_the_same_scores_have_not_moved(tmp_path, committed, capsys):
    assert run(write(tmp_path / "fresh.jsonl", "evaluation"), committed) == 0
    assert f"of {len(METHODS)} methods, at most 0.00 points apart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "score", "points", "code"),
    [("MODIS label", "aa", 0.001, 1), ("Random forest, plain", "aa", 0.9, 0), ("Random forest, plain", "aa", -1.1, 1),
     ("FCN, plain", "aa", 4.9, 0), ("FCN, plain", "aa", -5.1, 1), ("U-Net, plain", "oa", 7.9, 0)],
)  # fmt: skip
def test_each_score_has_a_tolerance_of_its_own(tmp_path, committed, capsys, method, score, points, code):
    fresh = write(tmp_path / "fresh.jsonl", "evaluation", {(method, score): points})
    assert run(fresh, committed) == code
    if code:
        said = capsys.readouterr().err
        assert method in said
        assert "1 of 30 scores have moved" in said


def test_a_method_that_is_missing_has_not_agreed(tmp_path, committed, capsys):
    """Neither one that was not run, nor one that was trained otherwise than the committed one."""
    assert run(write(tmp_path / "fresh.jsonl", "evaluation", missing=("FCN, plain",)), committed) == 1
    assert "5 of 30" in capsys.readouterr().err
    assert run(write(tmp_path / "other.jsonl", "evaluation", steps=10), committed) == 1
    assert "30 of 30" in capsys.readouterr().err


def test_nothing_to_compare_is_an_error(tmp_path, committed, capsys):
    assert run(tmp_path / "none.jsonl", committed) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(MissingDataError, match="lines of the chapter evaluation"):
        drift.check(write(tmp_path / "fresh.jsonl", "training"), committed)


def test_the_last_of_several_fresh_lines_counts(tmp_path, committed):
    fresh = write(tmp_path / "fresh.jsonl", "evaluation", {("MODIS label", "aa"): 9})
    write(fresh, "evaluation")
    assert drift.check(fresh, committed)["ok"].all()


def test_every_tolerance_has_a_reason_and_a_committed_line():
    """The committed ledger has each declared method, with the training of the smoke profile and seed 0."""
    smoke = settings.read_profile("smoke")
    lines = drift.read_committed()
    same = lines[(lines["seeds.world"] == 0) & (lines["parameters.steps"] == smoke["steps"])]
    assert set(METHODS) <= set(same["parameters.method"])
    assert all(len(one.why.split()) >= 8 for one in drift.read_tolerances()[1])
