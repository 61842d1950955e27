"""
A training outlives kills, signals, full disks and damaged files, and ends where it would have ended without them.

`LCFUSE_KILLS=50 pytest tests/test_survival.py -k killed` kills fifty runs instead of a few.
"""

import errno
import json
import multiprocessing
import os
import pickle
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import toy_stack

from lcfuse_core.errors import CheckpointError, DiskError, ParameterError, TrainingError
from lcfuse_core.models import networks
from lcfuse_core.training import checkpoint, loop, predict, survival
from lcfuse_core.training.log import Log, read_metrics
from lcfuse_core.training.loop import TrainPlan, load_checkpoint, train
from lcfuse_core.training.survival import DAMAGED, LAST, PREVIOUS

PLAN = TrainPlan(width=4, crop=32, batch=4, steps=12, report_every=5, device="cpu", precision="float32")
KILLS = int(os.environ.get("LCFUSE_KILLS", "6"))

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")


@pytest.fixture(scope="module")
def stack():
    """Two toy patches."""
    return toy_stack(2)


@pytest.fixture(scope="module")
def whole(stack):
    """The run that nothing happens to."""
    return train(stack, PLAN, progress=False)


def is_same(first, second):
    """Whether two runs ended alike, bit for bit: weights and history, but for the time that they took."""
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    rows = [[{**row, "seconds": 0} for row in run.history] for run in (first, second)]
    return rows[0] == rows[1] and ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def stop_after(monkeypatch, step, how=signal.SIGTERM):
    """Send this process a signal while it takes that step (from 1)."""
    rate, sent = loop.learning_rate, []

    def interrupted(number, plan):
        if number + 1 == step and not sent:  # a report asks for the rate, too
            sent.append(number)
            os.kill(os.getpid(), how)
        return rate(number, plan)

    monkeypatch.setattr(loop, "learning_rate", interrupted)


def interrupt(stack, plan, folder, step, **more):
    """A run that is stopped by SIGTERM in that step."""
    with pytest.MonkeyPatch.context() as patched:
        stop_after(patched, step)
        with pytest.raises(TrainingError, match=f"found SIGTERM.*goes on from step {step}"):
            train(stack, plan, folder, progress=False, **more)


# Going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "changes"),
    [(3, {}), (10, {"ema": 0.9}), (3, {"precision": "bfloat16"}), (9, {"network": "unet"})],
)
def test_an_interrupted_run_ends_where_the_whole_one_does(stack, tmp_path, step, changes):
    """Bit for bit: weights, batch statistics, losses and agreement; in the middle of a report, and at its end."""
    plan, validation = replace(PLAN, **changes), toy_stack(1, size=32)
    interrupt(stack, plan, tmp_path, step, validation=validation)
    resumed = train(stack, plan, tmp_path, validation=validation, progress=False)
    assert is_same(resumed, train(stack, plan, validation=validation, progress=False))
    assert is_same(load_checkpoint(tmp_path / LAST), resumed)


def test_random_numbers_of_torch_go_on_too(stack, tmp_path, monkeypatch):
    """A network with dropout, whose numbers come from torch's own generator."""

    class Forgetful(networks.FCN):
        def forward(self, image):
            return super().forward(torch.nn.functional.dropout(image, 0.2, self.training))

    monkeypatch.setitem(networks.NETWORKS, "fcn", Forgetful)
    torch.manual_seed(1)
    interrupt(stack, PLAN, tmp_path, 7)
    torch.manual_seed(2)
    resumed = train(stack, PLAN, tmp_path, progress=False)
    assert is_same(resumed, train(stack, PLAN, progress=False))


def test_a_run_may_be_interrupted_again_and_again(stack, tmp_path, whole):
    for step in (2, 3, 7, 11):
        interrupt(stack, PLAN, tmp_path, step)
    assert is_same(train(stack, PLAN, tmp_path, progress=False), whole)


def test_a_run_from_other_weights_goes_on(stack, tmp_path, whole):
    """`start` counts: its weights are those of the interrupted run, and another start is another run."""
    interrupt(stack, PLAN, tmp_path, 4, start=whole)
    with pytest.raises(ParameterError, match="a run with other first weights"):
        train(stack, PLAN, tmp_path, progress=False)
    resumed = train(stack, PLAN, tmp_path, progress=False, start=whole)
    assert is_same(resumed, train(stack, PLAN, progress=False, start=whole))


def test_a_finished_run_is_found(stack, tmp_path, whole, monkeypatch):
    """No step is taken again, and nothing is written."""
    train(stack, PLAN, tmp_path, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(loop, "run_steps", None)
    found = train(stack, PLAN, tmp_path, progress=False)
    assert is_same(found, whole)
    assert not found.network.training
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_of_a_resumed_run_are_those_of_one_run(stack, tmp_path):
    """A line for each report, none twice, whatever was written after the last checkpoint."""
    interrupt(stack, PLAN, tmp_path, 7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 99}\n{"step": 11, "lo')
    run = train(stack, PLAN, tmp_path, progress=False)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert [line["loss"] for line in lines] == [row["loss"] for row in run.history]
    assert all(line["crops_per_s"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 13, "seed": 1}, "a run with steps 12, seed 0, expected 13, 1"),
        ({"network": "unet"}, "a run with network 'fcn', expected 'unet'"),
    ],
)
def test_the_folder_of_another_plan_is_refused(stack, tmp_path, change, message):
    train(stack, PLAN, tmp_path, progress=False)
    with pytest.raises(ParameterError, match=message):
        train(stack, replace(PLAN, **change), tmp_path, progress=False)


def test_the_folder_of_other_data_is_refused(stack, tmp_path):
    """Also when a single label differs."""
    interrupt(stack, PLAN, tmp_path, 3)
    labels = stack.labels.clone()
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 4
    with pytest.raises(ParameterError, match="a run with other training data"):
        train(stack.with_labels(labels), PLAN, tmp_path, progress=False)


def test_a_network_that_no_run_left_is_refused(stack, tmp_path, whole):
    """A file saved by hand under the name of a run's checkpoint is not overwritten."""
    checkpoint.save_checkpoint(whole, tmp_path / LAST)
    with pytest.raises(ParameterError, match="a network that is no run"):
        train(stack, PLAN, tmp_path, progress=False)


def test_another_device_may_go_on(stack, tmp_path, whole):
    """The plan's device is the machine's affair."""
    interrupt(stack, replace(PLAN, device="auto"), tmp_path, 3)
    assert is_same(train(stack, PLAN, tmp_path, progress=False), whole)


# Checkpoints -------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_when_the_time_is_over(stack, tmp_path, monkeypatch):
    """With an interval of nothing after every step; with a long one at the reports, and at the end."""
    saved = []
    save = survival.Keeper.save
    monkeypatch.setattr(survival.Keeper, "save", lambda self, run, at: (saved.append(at.step), save(self, run, at)))
    train(stack, PLAN, tmp_path / "often", progress=False, interval_s=0)
    assert saved == list(range(1, 13))
    saved.clear()
    train(stack, PLAN, tmp_path / "seldom", progress=False, interval_s=1e9)
    assert saved == [5, 10, 12]
    assert sorted(path.name for path in (tmp_path / "often").glob("*.safetensors*")) == [LAST, PREVIOUS]


def damage(path, how):
    """Cut a file, or flip one bit in its middle."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "bit"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(stack, tmp_path, whole, how):
    """It is set aside, never takes the place of the whole one, and the run ends as if nothing had been."""
    interrupt(stack, PLAN, tmp_path, 8)
    damage(tmp_path / LAST, how)
    with pytest.warns(UserWarning, match=r"last\.safetensors: found .* one before it is used, of step 5"):
        resumed = train(stack, PLAN, tmp_path, progress=False)
    assert is_same(resumed, whole)
    assert (tmp_path / DAMAGED).exists()
    assert load_checkpoint(tmp_path / PREVIOUS).history[-1]["step"] == 10


def test_without_a_whole_checkpoint_the_damage_is_told(stack, tmp_path):
    """Nothing starts anew in silence."""
    interrupt(stack, PLAN, tmp_path, 8)
    for name in (LAST, PREVIOUS):
        damage(tmp_path / name, "cut")
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        train(stack, PLAN, tmp_path, progress=False)


class Hostile:
    """What a pickle can do to those who open it."""

    def __reduce__(self):
        return (Path.write_text, (Path(os.environ["LCFUSE_HOSTILE"]), "ran"))


def test_a_hostile_pickle_is_refused_without_running(stack, tmp_path, monkeypatch):
    """As torch.save would write it, and bare; it is named, and does nothing."""
    trace = tmp_path / "trace"
    monkeypatch.setenv("LCFUSE_HOSTILE", str(trace))
    for write in (
        lambda: torch.save(Hostile(), tmp_path / LAST),
        lambda: (tmp_path / LAST).write_bytes(pickle.dumps(Hostile())),
    ):
        write()
        with pytest.raises(CheckpointError, match="could run code, so it was not opened"):
            train(stack, PLAN, tmp_path, progress=False)
    assert not trace.exists()
    pickle.loads((tmp_path / LAST).read_bytes())  # noqa: S301
    assert trace.read_text() == "ran"  # it would have


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_full_disk_ends_the_run_and_costs_no_checkpoint(stack, tmp_path, whole, monkeypatch, at):
    """The error names the disk; once there is room, the run goes on from the last whole checkpoint."""
    with monkeypatch.context() as patched:
        calls, function = [], getattr(os, at)

        def full(*arguments):
            calls.append(0)
            if len(calls) > 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments)

        patched.setattr(os, at, full)
        with pytest.raises(DiskError, match=r"last\.safetensors: found No space left on device.*call again"):
            train(stack, PLAN, tmp_path, progress=False, interval_s=0)
    assert is_same(train(stack, PLAN, tmp_path, progress=False), whole)
    assert [path.name for path in tmp_path.glob("*.part")] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_metrics_is_told(tmp_path):
    """Linux has a disk that is always full."""
    log = Log(tmp_path, [], step=0, batch=1, watched=False)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"metrics\.jsonl.*disk is full"):
        log.report({"step": 1, "loss": 0.5})


# Signals and kills -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(stack, tmp_path, whole, monkeypatch, how):
    """Of the very step in which it came; the handlers are put back."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop_after(monkeypatch, 6, how)
    with pytest.raises(TrainingError, match=f"found {how.name}, expected 12 steps. It goes on from step 6"):
        train(stack, PLAN, tmp_path, progress=False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    monkeypatch.undo()
    assert is_same(train(stack, PLAN, tmp_path, progress=False), whole)


def test_without_a_folder_ctrl_c_is_pythons_own(stack, monkeypatch):
    stop_after(monkeypatch, 2, signal.SIGINT)
    # What was started in the background by a shell ignores Ctrl-C; this test does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(stack, PLAN, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_a_thread_leaves_signals_alone(stack, tmp_path, whole):
    """Python lets the main thread alone set handlers; a worker of Dask is none."""
    made = []
    thread = threading.Thread(target=lambda: made.append(train(stack, PLAN, tmp_path, progress=False)))
    thread.start()
    thread.join()
    assert is_same(made[0], whole)


def killed_inside(place, calls):
    """Let this process die in the middle of writing a checkpoint, at that call of a function of os."""
    function, left = getattr(os, place), [calls]

    def deadly(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    setattr(os, place, deadly)


def in_child(stack, folder, reached, death):
    """A run in a process of its own, which tells the step it is in and may be doomed to die while it writes."""
    rate = loop.learning_rate

    def told(step, plan):
        reached.value = step
        return rate(step, plan)

    loop.learning_rate = told
    if death:
        killed_inside(*death)
    train(stack, PLAN, folder, progress=False, interval_s=0.01)


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_where_the_whole_one_does(stack, tmp_path, whole, number):
    """
    SIGKILL, several times in each run: at any moment, or inside the writing of a checkpoint.

    Bit for bit the weights of the run that was left alone; no kill costs more than the steps of an interval.
    """
    rng, fork = random.Random(number), multiprocessing.get_context("fork")
    reached = fork.Value("i", 0)
    for _ in range(3):
        place = rng.choice(["fsync", "replace", "replace"]) if number % 2 else ""
        death = (place, rng.randint(1, 9)) if place else None
        child = fork.Process(target=in_child, args=(stack, tmp_path, reached, death))
        child.start()
        child.join(timeout=60 if death else rng.uniform(0.02, 0.4))
        child.kill()
        child.join()
        kept = survival.Keeper(tmp_path, PLAN, loop._identity(stack, None), interval_s=1)
        found = kept.find()
        saved = 0 if found is None else found[1].step
        assert reached.value - saved <= STEPS_LOST
    assert is_same(train(stack, PLAN, tmp_path, progress=False), whole)
    assert [path.name for path in tmp_path.glob("*.new*")] == []


STEPS_LOST = 5
"""Of a run that writes a checkpoint at every report of five steps, and every hundredth of a second."""


def test_the_files_of_a_run_say_what_they_are(stack, tmp_path):
    """An unfinished checkpoint can be used as a network already; its header is plain JSON."""
    interrupt(stack, PLAN, tmp_path, 6)
    run, progress, tensors = checkpoint.read_checkpoint(tmp_path / LAST)
    assert json.loads(json.dumps(progress))["step"] == 6
    assert {name.split(".")[0] for name in tensors} == {"state:optimiser", "state:crops", "state:torch"}
    assert predict.classify(run, (stack.s2[0].numpy(), stack.s1[0].numpy())).shape == (64, 64)


def test_two_starts_in_one_folder_take_turns(stack, tmp_path, whole):
    """The second waits, and then finds the finished run."""
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(train(stack, PLAN, tmp_path, progress=False))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [is_same(run, whole) for run in made] == [True, True]
    assert len(list(tmp_path.glob("events.*"))) == 1
