"""What happens around a step: a bar, an estimate of the time, metrics, TensorBoard files, validation."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from toys import toy_stack

from lcfuse_core.training import monitor
from lcfuse_core.training.loop import evaluate, train
from lcfuse_core.training.plan import TrainPlan

PLAN = TrainPlan(width=4, crop=32, batch=4, steps=4, report_every=2, device="cpu")


def test_a_run_leaves_a_line_for_each_report(tmp_path, monkeypatch):
    """The history, with rate and memory; for several validation sources, the agreement with each; no TensorBoard."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    sources = {"modis": toy_stack(1), "fine": toy_stack(2)}
    run = train(toy_stack(1), PLAN, tmp_path, validation=sources, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.history
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["aa"] == lines[-1]["aa_modis"] == evaluate(run, sources["modis"]).aa
    assert lines[-1]["aa_fine"] == evaluate(run, sources["fine"]).aa
    assert all(line["crops_per_s"] > 0 and line["memory_mb"] > 10 for line in lines)
    assert not list(tmp_path.glob("events.*"))


def test_a_large_validation_source_is_sampled_evenly(monkeypatch):
    """From the first patch to the last, so that each report takes about the same time."""
    monkeypatch.setattr(monitor, "_MOST_VALIDATION", 3)
    source = toy_stack(7, size=32)
    run = train(toy_stack(4), replace(PLAN, steps=20, learning_rate=0.02), validation=source, progress=False)
    assert run.history[-1]["aa"] == evaluate(run, source.part([0, 3, 6])).aa != evaluate(run, source).aa


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
    run = train(toy_stack(1), PLAN, tmp_path, progress=False)
    assert calls[:2] == [(str(tmp_path), 0), ("loss", run.history[0]["loss"], 2)]
    assert ("loss", run.history[1]["loss"], 4) in calls
    assert calls[-2:] == ["flush", "close"]
    assert "aa" not in {call[0] for call in calls}


def test_tensorboard_itself_reads_the_files(tmp_path):
    """If it is installed."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(toy_stack(1), PLAN, tmp_path, progress=False)
    losses = accumulators.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in losses] == [
        (row["step"], pytest.approx(row["loss"])) for row in run.history
    ]


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_shows_rate_loss_and_time_left(capsys, progress):
    """In crops, not in steps; nothing is shown without a bar."""
    train(toy_stack(1), PLAN, progress=progress)
    shown = capsys.readouterr().err
    assert all((text in shown) == progress for text in ("16/16", "crop/s", "loss="))


@pytest.mark.parametrize(("seconds", "minutes"), [(6.0, "about 6 min for 63 steps of 6.000 s"), (0.9, "")])
def test_the_minutes_of_a_long_training_are_estimated(capsys, monkeypatch, seconds, minutes):
    """From the duration of ten steps; one that takes less than a minute needs no estimate."""
    plan = TrainPlan(width=4, crop=32, batch=2, steps=77, report_every=20, device="cpu", precision="float32")
    clock = [0.0]

    def tick(loss, norm):
        clock[0] += seconds
        if clock[0] > 20 * seconds:
            raise KeyboardInterrupt

    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(monitor.Monitor, "check", lambda self, *loss: (tick(*loss), self._unread.append(torch.ones(2))))
    with pytest.raises(KeyboardInterrupt):
        train(toy_stack(1, size=32), plan)
    shown = capsys.readouterr().err
    assert minutes in shown
    assert ("computed on the processor in float32" in shown) == bool(minutes)
