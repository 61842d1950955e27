"""
Checkpoints: the same network again, or a clear error, never code from a file.

Runs outlive kills, signals, full disks and damaged files, and end with the weights of an uninterrupted run.

`LCFUSE_KILLS=50 pytest tests/training/test_checkpoint.py -k killed` kills fifty runs instead of a few.
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

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save
from toys import relabelled, toy_stack
from tqdm import tqdm

from lcfuse_core.data.bands import Statistics
from lcfuse_core.errors import CheckpointError, DiskError, MissingDataError, ParameterError, TrainingError
from lcfuse_core.models import networks
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.training import checkpoint as checkpoints
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import (
    _DAMAGED,
    _DIGEST_KEY,
    _HEADER_KEY,
    LAST,
    PREVIOUS,
    Checkpointer,
    Run,
    load_checkpoint,
    save_checkpoint,
)
from lcfuse_core.training.loop import train
from lcfuse_core.training.plan import TrainPlan

STATISTICS = Statistics(tuple(0.1 * i for i in range(15)), tuple(1.0 + i for i in range(15)))
SMALL = TrainPlan(width=1, inputs=("s1",), steps=3)
PLAN = TrainPlan(width=4, crop=32, batch=4, steps=12, report_every=5, device="cpu", precision="float32")
EVERY_BIT = int(os.environ.get("LCFUSE_BITS", "37"))
"""LCFUSE_BITS=1, nightly, flips each bit of a checkpoint in turn."""
KILLS = int(os.environ.get("LCFUSE_KILLS", "4"))
STEPS_LOST = 5
"""At most, of a run that writes a checkpoint at every report of five steps, and every hundredth of a second."""

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")


def fresh_run(plan=SMALL):
    """A run that looks trained: weights, running means and history are not those of a fresh network."""
    torch.manual_seed(3)
    network = plan.build().eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 5)
    row = {"step": 3, "loss": 0.1, "learning_rate": 1e-3, "seconds": 0.5, "aa": None}
    return Run(network, plan, STATISTICS, [row])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One small checkpoint on disk."""
    return save_checkpoint(fresh_run(), tmp_path_factory.mktemp("run") / "last.safetensors")


def header_of(path):
    """Our header, as it stands in the file."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[_HEADER_KEY])


def forge(checkpoint, path, tensors=None, **changes):
    """Write another file with parts of the header changed and a digest that fits."""
    text = json.dumps(header_of(checkpoint) | changes)
    return write(path, text, tensors or load(checkpoint.read_bytes()))


def write(path, text, tensors):
    """A file of our form with any *text* for a header."""
    path.write_bytes(save(tensors, {_HEADER_KEY: text, _DIGEST_KEY: checkpoints._digest(text, tensors)}))
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpoint_brings_the_run_back(network, tmp_path):
    """Weights to the bit, plan, statistics, history; and the network gives the same logits."""
    run = fresh_run(replace(SMALL, network=network, width=2, inputs=["s2", "s1"]))
    again = load_checkpoint(save_checkpoint(run, tmp_path / "new folder" / "run.safetensors"))
    assert (again.plan, again.statistics, again.history) == (run.plan, run.statistics, run.history)
    state = again.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.network.state_dict().items())
    image = torch.randn(1, 15, 32, 32)
    assert torch.equal(again.network(image), run.network(image))
    assert all(weights.requires_grad for weights in again.network.parameters())


@pytest.mark.parametrize("every", [97, pytest.param(EVERY_BIT, marks=pytest.mark.slow)])
def test_one_flipped_bit_is_found(checkpoint, every):
    """Any bit of the file: odd steps, so that all places in a byte have their turn."""
    content, damaged = checkpoint.read_bytes(), checkpoint.with_name("flipped.safetensors")
    for bit in range(0, 8 * len(content), every):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_checkpoint(damaged)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_a_cut_file_is_found(checkpoint, share, tmp_path):
    """A download that broke off says so."""
    content = checkpoint.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="unreadable or cut"):
        load_checkpoint(tmp_path / "cut")


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_is_not_opened(write, tmp_path):
    """Code in a checkpoint does not run."""
    with (tmp_path / "model.pth").open("wb") as file:
        write(Bomb(tmp_path / "boom"), file)
    with pytest.raises(CheckpointError, match="a pickle or zip"):
        load_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "boom").exists()


def test_files_of_other_kinds_are_refused(checkpoint, tmp_path):
    """No file, a folder, other people's safetensors, other JSON."""
    with pytest.raises(MissingDataError, match="no such file"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(MissingDataError, match="found a folder"):
        load_checkpoint(tmp_path)
    foreign = tmp_path / "foreign"
    for metadata in (None, {"format": "pt"}):
        foreign.write_bytes(save({"weight": torch.zeros(3)}, metadata))
        with pytest.raises(CheckpointError, match="without our header"):
            load_checkpoint(foreign)
    for header in ("[]", "{", "[" * 100_000, '{"format": "mine"}'):
        with pytest.raises(CheckpointError, match=r"unreadable|found format (None|'mine')"):
            load_checkpoint(write(foreign, header, {"weight": torch.zeros(3)}))


def test_a_well_made_file_must_fit_too(checkpoint, tmp_path):
    """A right digest is not enough; and an absurd width in a header of a few bytes takes no gigabytes."""
    plan, other = header_of(checkpoint)["plan"], tmp_path / "other"
    for message, changes in {
        "version 2, expected version 1": {"version": 2},
        r"legend \[1, 2\]": {"legend": [1, 2]},
        "weights that do not fit a fcn": {"plan": plan | {"width": 2}},
        "weights that do not fit a unet": {"plan": plan | {"network": "unet", "width": 4096}},
        "found 9, expected one of network, width": {"plan": plan | {"speed": 9}},
        "found 'vit'": {"plan": plan | {"network": "vit"}},
        "found '1'": {"plan": plan | {"width": "1"}},
        "AttributeError": {"plan": None},
        "channel statistics": {"statistics": {"mean": [0], "std": [1]}},
        "missing 1 required positional argument": {"statistics": {"mean": [0]}},
        "not iterable": {"history": None},
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(forge(checkpoint, other, **changes))


def test_weights_must_have_the_plans_names_shapes_and_types(checkpoint, tmp_path):
    """One tensor of another shape, precision or name, one too few, one too many."""
    tensors = load(checkpoint.read_bytes())
    bias = tensors.pop("classify.bias")
    more = {"classify.bias": bias, "more": bias.clone()}
    for wrong in ({"classify.bias": bias[:4]}, {"classify.bias": bias.double()}, {"bias": bias}, {}, more):
        with pytest.raises(CheckpointError, match="weights that do not fit a fcn"):
            load_checkpoint(forge(checkpoint, tmp_path / "x", tensors | wrong))


# Runs that are interrupted -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack():
    """Two toy patches."""
    return toy_stack(2)


@pytest.fixture(scope="module")
def whole(stack):
    """The run that nothing happens to."""
    return train(stack, PLAN, progress=False)


def is_same(first, second):
    """Whether two runs ended alike, bit for bit: weights and history, apart from time and memory."""
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    names = {"seconds", "crops_per_s", "memory_mb"}
    rows = [[{k: v for k, v in row.items() if k not in names} for row in run.history] for run in (first, second)]
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


@pytest.mark.parametrize(
    ("step", "changes"), [(10, {"batch": 8}), (3, {"precision": "float16"}), (9, {"network": "unet"})]
)
def test_an_interrupted_run_ends_where_the_whole_one_does(stack, tmp_path, step, changes):
    """
    Bit for bit: weights, batch statistics, losses and agreement; in the middle of a report, and at its end.

    The metrics have a line for each report, none twice, whatever was written after the last checkpoint.
    """
    plan, validation = replace(PLAN, **changes), toy_stack(1, size=32)
    interrupt(stack, plan, tmp_path, step, validation=validation)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 99}\n{"step": 11, "lo')
    resumed = train(stack, plan, tmp_path, validation=validation, progress=False)
    assert is_same(resumed, train(stack, plan, validation=validation, progress=False))
    assert is_same(load_checkpoint(tmp_path / LAST), resumed)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert lines == resumed.history


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
    monkeypatch.setattr(loop, "forward", None)
    found = train(stack, PLAN, tmp_path, progress=False)
    assert is_same(found, whole)
    assert not found.network.training
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_folder_of_another_run_is_refused(stack, tmp_path, whole):
    """Another plan or other data, also if a single label differs; only the device is the machine's affair."""
    interrupt(stack, PLAN, tmp_path, 3)
    labels = stack.labels.clone()
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 4
    for message, source, changes in (
        ("a run with steps 12, seed 0, expected 13, 1", stack, {"steps": 13, "seed": 1}),
        ("a run with network 'fcn', expected 'unet'", stack, {"network": "unet"}),
        ("a run with other training data", relabelled(stack, labels), {}),
    ):
        with pytest.raises(ParameterError, match=message):
            train(source, replace(PLAN, **changes), tmp_path, progress=False)
    assert is_same(train(stack, replace(PLAN, device="auto"), tmp_path, progress=False), whole)
    with pytest.raises(ParameterError, match="a run with steps 12, expected 13"):  # also when it is finished
        train(stack, replace(PLAN, steps=13), tmp_path, progress=False)


def test_a_network_that_no_run_left_is_refused(stack, tmp_path, whole):
    """A file saved by hand under the name of a run's checkpoint is not overwritten."""
    save_checkpoint(whole, tmp_path / LAST)
    with pytest.raises(ParameterError, match="a network without a run"):
        train(stack, PLAN, tmp_path, progress=False)


def test_a_checkpoint_is_written_when_the_time_is_over(stack, tmp_path, monkeypatch):
    """With an interval of nothing after every step; with a long one at the reports, and at the end."""
    saved, save = [], Checkpointer.save
    monkeypatch.setattr(
        Checkpointer, "save", lambda self, run, state: (saved.append(state.step), save(self, run, state))
    )
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
    assert (tmp_path / _DAMAGED).exists()
    assert load_checkpoint(tmp_path / PREVIOUS).history[-1]["step"] == 10


def test_without_a_whole_checkpoint_the_damage_is_an_error(stack, tmp_path):
    interrupt(stack, PLAN, tmp_path, 8)
    for name in (LAST, PREVIOUS):
        damage(tmp_path / name, "cut")
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        train(stack, PLAN, tmp_path, progress=False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(stack, tmp_path, whole, monkeypatch, how):
    """Of the very step in which it came; the handlers are put back."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop_after(monkeypatch, 6, how)
    with pytest.raises(TrainingError, match=f"found {how.name}, expected 12 steps.* goes on from step 6"):
        train(stack, PLAN, tmp_path, progress=False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    monkeypatch.undo()
    assert is_same(train(stack, PLAN, tmp_path, progress=False), whole)


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
    """Train in a child process that stores the number of its step, and dies while it writes if *death* says where."""
    # The lock of tqdm is shared by forked processes: a child that is killed while it holds it would block the parent.
    tqdm.set_lock(threading.RLock())
    rate = loop.learning_rate

    def counted(step, plan):
        reached.value = step
        return rate(step, plan)

    loop.learning_rate = counted
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
        found = Checkpointer(tmp_path, PLAN, {}, interval_s=1).find()
        saved = 0 if found is None else found[1].step
        assert reached.value - saved <= STEPS_LOST
    assert is_same(train(stack, PLAN, tmp_path, progress=False), whole)
    assert [path.name for path in tmp_path.glob("*.new*")] == []


def test_two_starts_in_one_folder_take_turns(stack, tmp_path, whole):
    """The second waits, and then finds the finished run; threads, as of Dask, cannot and do not set handlers."""
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(train(stack, PLAN, tmp_path, progress=False))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [is_same(run, whole) for run in made] == [True, True]


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


def test_without_a_folder_ctrl_c_is_pythons_own(stack, monkeypatch):
    stop_after(monkeypatch, 2, signal.SIGINT)
    # What was started in the background by a shell ignores Ctrl-C; this test does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(stack, PLAN, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
