"""The progress of a training: a bar, lines of JSON, and TensorBoard files."""

import sys
from types import ModuleType

import pytest
from toys import toy_stack

from lcfuse_core.training.log import Log, read_metrics
from lcfuse_core.training.loop import evaluate, train
from lcfuse_core.training.plan import TrainPlan

PLAN = TrainPlan(width=4, crop=32, batch=4, steps=4, report_every=2, device="cpu")


def test_a_run_leaves_a_line_for_each_report(tmp_path):
    """The numbers of the history, and beside them rate and memory; for several validation stacks, each its own."""
    stacks = {"modis": toy_stack(1), "fine": toy_stack(2)}
    run = train(toy_stack(1), PLAN, tmp_path, validation=stacks, progress=False)
    lines = read_metrics(tmp_path)
    assert [{name: line[name] for name in row} for line, row in zip(lines, run.history, strict=True)] == run.history
    assert lines[-1]["aa"] == lines[-1]["aa_modis"] == evaluate(run, stacks["modis"]).aa
    assert lines[-1]["aa_fine"] == evaluate(run, stacks["fine"]).aa
    assert all(line["crops_per_s"] > 0 and line["memory_mb"] > 10 for line in lines)


def test_tensorboard_gets_the_numbers_of_each_report(tmp_path, monkeypatch):
    """By torch's SummaryWriter, which hides what an earlier start wrote after the resumed step; None is left out."""
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = Log(tmp_path, [], step=3, batch=2, show_progress=False)
    log.report({"step": 4, "loss": 0.5, "aa": None})
    log.close()
    assert calls[:2] == [(str(tmp_path), 3), ("loss", 0.5, 4)]
    assert calls[-2:] == ["flush", "close"]
    assert "aa" not in {call[0] for call in calls}


def test_without_tensorboard_there_are_only_metrics(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(toy_stack(1), PLAN, tmp_path, progress=False)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]
    assert not list(tmp_path.glob("events.*"))


def test_tensorboard_itself_reads_the_files(tmp_path):
    """If it is installed."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(toy_stack(1), PLAN, tmp_path, progress=False)
    losses = accumulators.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in losses] == [
        (row["step"], pytest.approx(row["loss"])) for row in run.history
    ]


def test_the_bar_shows_rate_loss_and_time_left(capsys):
    """Only if it is wanted."""
    train(toy_stack(1), PLAN, progress=True)
    shown = capsys.readouterr().err
    assert "16/16" in shown
    assert "crop/s" in shown
    assert "loss=" in shown
    train(toy_stack(1), PLAN, progress=False)
    assert capsys.readouterr().err == ""


def test_the_bar_of_a_resumed_run_begins_where_it_was(capsys):
    log = Log(None, [], step=3, batch=2, show_progress=True)
    assert list(log.steps(["a"], 4)) == [(3, "a")]
    assert "8/8" in capsys.readouterr().err
