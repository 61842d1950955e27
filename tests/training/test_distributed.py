"""One training in two processes is the training of one process with the whole batch."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import torch
from miniatures import pack_one, write_patch, write_scene
from toys import toy_stack

from lcfuse_core import __main__ as shell
from lcfuse_core.errors import ParameterError, TrainingError
from lcfuse_core.methods.registry import name_of
from lcfuse_core.scoring import ledger
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import load_checkpoint, read_checkpoint
from lcfuse_core.training.distributed import Distributed, _SharedBatchNorm, choose_device, describe_device
from lcfuse_core.training.loop import train
from lcfuse_core.training.plan import TrainPlan

PLAN = TrainPlan(
    width=8, crop=32, batch=8, steps=4, report_every=4, learning_rate=1e-3, device="cpu", precision="float32"
)

needs_forkserver = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="no forkserver here"
)


def three_patches():
    """
    Toys, one of them half ignored: the crops of a batch have unequally many labelled pixels.

    Each process makes its own, since torch 2.13 cannot pickle uint16.
    """
    made = toy_stack(3)
    made.labels[0, :40] = 255
    return made


def one_of_several(rank, size, port, work):
    """What runs in each of the processes: *work(rank)*, pickled, under the variables that torchrun sets."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ.update(own, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    cloudpickle.loads(work)(rank)


def spawn(work, size=2):
    """
    Call *work(rank)* in as many processes, which know of each other as under torchrun; their exit codes.

    They are forked from a process that has imported torch and done nothing else: a fork of this one, which has
    threads by now, may wait for ever for a lock that a thread held.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload(["lcfuse_core.training.loop"])
    arguments = [(rank, size, port, cloudpickle.dumps(work)) for rank in range(size)]
    children = [clean.Process(target=one_of_several, args=each) for each in arguments]
    for one in children:
        one.start()
    for one in children:
        one.join(timeout=120)
        one.kill()
        one.join()
    return [one.exitcode for one in children]


@needs_forkserver
@pytest.mark.slow
@pytest.mark.parametrize(("network", "loss"), [("fcn", "cross_entropy"), ("unet", "cell_mean")])
def test_two_processes_make_the_network_of_one(tmp_path, network, loss):
    """In float32 only the order of sums differs: nothing is left of it in double precision."""
    plan, path = replace(PLAN, network=network, loss=loss), tmp_path / "two.pt"

    def in_double():
        build = TrainPlan.build
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainPlan, "build", lambda plan, channels: build(plan, channels).double())
            patch.setattr(loop, "forward", lambda called, images, precision: called(images.double()))
            return train(three_patches(), plan, progress=False).network.state_dict()

    def work(rank):
        weights = in_double()
        if rank == 0:
            torch.save(weights, path)

    assert spawn(work) == [0, 0]
    one, two = in_double(), torch.load(path, weights_only=True)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-9, atol=1e-12)


@needs_forkserver
@pytest.mark.slow
def test_a_run_of_two_goes_on_as_a_run_of_one(tmp_path):
    """A signal to one of them stops both, after the same step; the folder is that of any run."""

    def work(rank):
        if rank == 1:
            rate = loop.learning_rate
            loop.learning_rate = lambda step, plan: (step == 1 and os.kill(os.getpid(), 15), rate(step, plan))[1]
        with pytest.raises(TrainingError, match=r"found (SIGTERM|a signal to another process).* goes on from step"):
            train(three_patches(), PLAN, tmp_path / "run", progress=False)

    assert spawn(work) == [0, 0]
    assert read_checkpoint(tmp_path / "run" / "last.safetensors")[1]["step"] == 2
    resumed = train(three_patches(), PLAN, tmp_path / "run", progress=False)
    whole = train(three_patches(), PLAN, progress=False).network.state_dict()
    for name, tensor in resumed.network.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-4)


@needs_forkserver
@pytest.mark.slow
def test_a_process_that_dies_is_noticed_by_the_other():
    """It ends with an error that says what to do, and does not wait for ever."""

    def work(rank):
        if rank == 1:
            loop.learning_rate = lambda step, plan: os._exit(3)
        with pytest.raises(TrainingError, match=r"process 0 lost another one.*goes on from the last checkpoint"):
            train(three_patches(), PLAN, progress=False)

    assert spawn(work) == [0, 3]


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ParameterError, match="7 crops for 2 processes, expected a batch that divides"):
        Distributed(torch.device("cpu"), 1, 2).part(7)


@pytest.fixture
def group_of_one(monkeypatch, tmp_path):
    """A group of one process: what is exchanged comes back as it is."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_shared_batch_norm_is_torchs_own_where_one_process_has_all(group_of_one):
    """Output, gradients and running means; in evaluation too."""
    torch.manual_seed(0)
    images = torch.randn(3, 5, 8, 7) * 3 + 1
    own, shared = torch.nn.BatchNorm2d(5), _SharedBatchNorm(5)
    with torch.no_grad():
        own.weight.copy_(torch.rand(5) + 0.5)
    shared.load_state_dict(own.state_dict())
    grads = []
    for layer in (own, shared):
        seen = images.clone().requires_grad_()
        (layer(seen) * torch.linspace(-1, 1, 7)).square().sum().backward()
        grads.append((seen.grad, layer.weight.grad, layer.bias.grad))
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], tensor)
    torch.testing.assert_close(shared.eval()(images), own.eval()(images))
    assert shared.train()(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_gpus_make_the_network_of_one(tmp_path):
    """The same command on GPUs, through NCCL: the same losses, to the digits that float32 has there."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from toys import toy_stack\nfrom lcfuse_core.training import loop\n"
        "plan = loop.TrainPlan(width=8, crop=32, batch=8, steps=4, report_every=4, device='cuda')\n"
        "loop.train(toy_stack(), plan, sys.argv[2], progress=False)\n"
    )
    (tmp_path / "script.py").write_text(script)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    losses = []
    for size in ("1", "2"):
        arguments = [str(tmp_path / "script.py"), str(Path(__file__).parents[1]), str(tmp_path / size)]
        subprocess.run([*start, size, *arguments], check=True, timeout=300)
        losses.append(load_checkpoint(tmp_path / size / "last.safetensors").history[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_device_that_is_missing_is_refused():
    for name in ("cuda:77", "tpu!", "meta"):
        with pytest.raises(ParameterError, match="a GPU of this machine"):
            choose_device(name)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("on_colab", [True, False])
def test_the_device_is_described_with_advice_on_colab(monkeypatch, on_colab):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x") if on_colab else monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    found = describe_device("cpu", "bfloat16")
    assert found.startswith("computed on the processor in bfloat16")
    assert ("Change runtime type" in found) == on_colab


@pytest.mark.slow
def test_torchrun_trains_what_evaluate_scores(tmp_path, monkeypatch):
    """On a packed scene of two small patches; the first process writes, both say where; one process evaluates."""
    pack_one(tmp_path / "packs", write_scene(tmp_path / "data"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["lcfuse_core", "train", str(tmp_path / "packs"), "--out", str(tmp_path / "run")]
    for name, value in {"steps": 2, "batch": 4, "crop": 32, "width": 4, "report_every": 1}.items():
        command += ["-p", name, str(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"2 steps, loss \d+\.\d+: ", done.stdout)) == 2  # on one line or two: both write at once
    run = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert [row["step"] for row in run.history] == [1, 2]
    for patch in (1, 2):
        write_patch(tmp_path / "dfc2020", "test", patch)
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "_data"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = ["--train-root", tmp_path / "packs", "--data", tmp_path / "dfc2020", "--ledger", tmp_path / "lines.jsonl"]
    assert shell.main(["evaluate", "--checkpoint", *map(str, [tmp_path / "run", *words])]) == 0
    lines = ledger.read(tmp_path / "lines.jsonl")
    assert set(lines["parameters.method"]) == {"MODIS label", name_of(run.plan)}
    assert lines["scores.n_patches"].tolist() == [2, 2]
