"""What a training tells: a bar, lines of JSON, and files that TensorBoard reads."""

import struct

import pytest
from toys import toy_stack

from lcfuse_core.training import log as progress
from lcfuse_core.training.checkpoint import TrainPlan
from lcfuse_core.training.log import EventFile, Log, crc32c, read_metrics
from lcfuse_core.training.loop import evaluate, train

PLAN = TrainPlan(width=4, crop=32, batch=4, steps=4, report_every=2, device="cpu")


def records(path):
    """Contents of the records of a TFRecord file, each checked against both of its checksums."""
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        length, of_length = struct.unpack_from("<QI", content, at)
        data = content[at + 12 : at + 12 + length]
        (of_data,) = struct.unpack_from("<I", content, at + 12 + length)
        assert of_length == progress._masked(content[at : at + 8])
        assert of_data == progress._masked(data)
        found.append(data)
        at += 16 + length
    return found


def test_checksums_are_those_of_the_standard():
    """RFC 3720, appendix B.4: 32 bytes of zeros, of ones, and counting."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_events_are_as_tensorboard_wants_them(tmp_path):
    """By hand, from the field numbers of event.proto: version, start of a session, a value of a step."""
    file = EventFile(tmp_path, 300)
    file.add(301, {"loss": 0.5, "aa": None, "nan": float("nan")})
    version, session, event = (data[9:] for data in records(file.path))  # after the time
    assert version == b"\x1a\x0dbrain.Event:2"
    assert session == b"\x10\xac\x02" + b"\x3a\x02\x08\x01"  # step 300; SessionLog.START
    value = b"\x0a\x04loss" + b"\x15" + struct.pack("<f", 0.5)
    assert event == b"\x10\xad\x02" + b"\x2a\x0d" + b"\x0a\x0b" + value
    assert file.path.name.startswith("events.out.tfevents.")


def test_tensorboard_itself_reads_them(tmp_path):
    """Where it is installed."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(toy_stack(1), PLAN, tmp_path, progress=False)
    read = accumulators.EventAccumulator(str(tmp_path)).Reload()
    losses = read.Scalars("loss")
    assert [event.step for event in losses] == [2, 4]
    assert [event.value for event in losses] == pytest.approx([row["loss"] for row in run.history])


def test_a_run_leaves_a_line_and_an_event_for_each_report(tmp_path):
    """The numbers of the history, and beside them rate and memory; of several validation stacks, each its own."""
    stacks = {"modis": toy_stack(1), "fine": toy_stack(2)}
    run = train(toy_stack(1), PLAN, tmp_path, validation=stacks, progress=False)
    lines = read_metrics(tmp_path)
    assert [{name: line[name] for name in row} for line, row in zip(lines, run.history, strict=True)] == run.history
    assert lines[-1]["aa"] == lines[-1]["aa_modis"] == evaluate(run, stacks["modis"]).aa
    assert lines[-1]["aa_fine"] == evaluate(run, stacks["fine"]).aa
    assert all(line["crops_per_s"] > 0 and line["memory_mb"] > 10 for line in lines)
    (events,) = tmp_path.glob("events.*")
    assert len(records(events)) == 2 + 2
    assert b"aa_fine" in events.read_bytes()


def test_a_bar_tells_rate_loss_and_time_left(capsys):
    """For who watches; nothing at all otherwise."""
    train(toy_stack(1), PLAN, progress=True)
    said = capsys.readouterr().err
    assert "16/16" in said
    assert "crop/s" in said
    assert "loss=" in said
    train(toy_stack(1), PLAN, progress=False)
    assert capsys.readouterr().err == ""


def test_a_bar_of_a_resumed_run_begins_where_it_was(capsys):
    log = Log(None, [], step=3, batch=2, watched=True)
    assert list(log.steps(["a"], 4)) == [(3, "a")]
    assert "8/8" in capsys.readouterr().err
