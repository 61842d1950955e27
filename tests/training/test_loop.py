"""The training loop: it learns, reproducibly, and stops with an error when it cannot continue; the feed of crops."""

import inspect
import os
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import toy_patch, toy_stack

from lcfuse_core.data.legends import igbp_to_dfc
from lcfuse_core.data.source import PatchStack
from lcfuse_core.errors import DataError, TrainingError
from lcfuse_core.models import transition
from lcfuse_core.models.losses import LOSSES, MIXED_LABEL_LOSSES
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import load_checkpoint
from lcfuse_core.training.distributed import Distributed
from lcfuse_core.training.loop import classify, evaluate, feed, learning_rate, predict, prefetch, train
from lcfuse_core.training.plan import TrainPlan

SHORT = TrainPlan(width=4, crop=32, batch=4, steps=5, device="cpu")
TINY = TrainPlan(width=4, crop=32, batch=4, steps=6, report_every=2, device="cpu")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stack():
    """Four toy patches of 64 x 64."""
    return toy_stack()


def test_the_loop_is_short():
    """A student can copy it: at most thirty lines after the docstring."""
    lines = inspect.getsource(train).split('"""')[2].strip().splitlines()
    assert len(lines) <= 30


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_learns_a_toy_world(network, stack):
    """Labels that can be read off the pixels are learnt, also for a patch that was not trained on."""
    width = NETWORKS[network].default_width // 2
    plan = replace(TINY, network=network, width=width, batch=8, steps=60, learning_rate=0.01)
    run = train(stack, plan, progress=False)
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < 0.5 * losses[0]
    unseen = toy_patch(1000)
    right = classify(run, unseen) == igbp_to_dfc(unseen.lc[0])
    assert right.mean() > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_plan_gives_the_same_bits(precision, stack):
    """Weights and losses of two trainings are equal, whatever random numbers were drawn between; none is drawn here."""
    plan = replace(TINY, precision=precision)
    first = train(stack, plan, progress=False)
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    second = train(stack, plan, progress=False)
    assert torch.rand(()) == expected
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]
    state = second.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.network.state_dict().items())
    other = train(stack, replace(plan, seed=1), progress=False)
    assert not torch.equal(other.network.classify.weight, first.network.classify.weight)


def test_validation_does_not_change_the_weights(stack):
    """Its agreement stands in the history; weights are those of a training without."""
    plain = train(stack, TINY, progress=False)
    watched = train(stack, TINY, validation=toy_stack(1), progress=False)
    assert [row["aa"] for row in plain.history] == [None] * 3
    assert watched.history[-1]["aa"] == evaluate(watched, toy_stack(1)).aa
    assert torch.equal(plain.network.classify.weight, watched.network.classify.weight)


def test_nan_stops_training_and_keeps_the_last_checkpoint(stack, tmp_path, monkeypatch):
    """A loss that becomes NaN at step 5: the error names the checkpoint of step 4, and that is whole."""
    calls = []

    def build_poisoned(name, *known):
        loss = build(name, *known)
        return lambda logits, batch: loss(logits, batch) * (calls.append(0) or (1, np.nan)[len(calls) == 5])

    build = loop.build_loss
    monkeypatch.setattr(loop, "build_loss", build_poisoned)
    with pytest.raises(TrainingError, match=r"found loss nan.*The checkpoint of step 4 is kept in .*last\.safetensors"):
        train(stack, TINY, tmp_path, progress=False)
    kept = load_checkpoint(tmp_path / "last.safetensors")
    assert kept.history[-1]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in kept.network.state_dict().values())


@pytest.mark.parametrize(("overflows", "error"), [(2, ""), (99, "gradient norm")])
def test_a_step_whose_gradient_overflows_in_float16_is_left_out(stack, monkeypatch, overflows, error):
    """The scale of the loss is halved; a gradient that is never finite ends the training."""
    calls, build = [], loop.build_loss

    def build_steep(name, *known):
        loss = build(name, *known)
        return lambda logits, batch: loss(logits, batch) * (calls.append(0) or (1, 1e20)[len(calls) <= overflows])

    monkeypatch.setattr(loop, "build_loss", build_steep)
    plan = replace(TINY, precision="float16", steps=40, batch=1, report_every=40)
    if error:
        with pytest.raises(TrainingError, match=error):
            train(stack, plan, progress=False)
        assert len(calls) == 27
    else:
        run = train(stack, plan, progress=False)
        assert all(tensor.isfinite().all() for tensor in run.network.state_dict().values())


def test_nan_in_an_image_stops_training_at_once(tmp_path, monkeypatch):
    """A stack with a NaN in S1, made by other means than read_patch, does not train."""
    stack = toy_stack(1, size=32)
    statistics = stack.statistics()
    monkeypatch.setattr(PatchStack, "statistics", lambda stack: statistics)
    stack.s1[0, 0, 3, 3] = torch.nan
    with pytest.raises(TrainingError, match="No checkpoint was written yet"):
        train(stack, TINY, tmp_path, progress=False)
    assert not (tmp_path / "last.safetensors").exists()


def test_labels_of_ignored_pixels_are_refused():
    empty = toy_stack(1)
    empty.labels[:] = 255
    with pytest.raises(DataError, match="no labelled pixel"):
        train(empty, TINY, progress=False)


@given(steps=st.integers(1, 2000), warm_up=st.floats(0, 1), highest=st.floats(1e-6, 1))
def test_learning_rate_rises_and_falls(steps, warm_up, highest):
    """Always positive and never above the highest; no step of the fall goes up, none of the rise down."""
    plan = TrainPlan(steps=steps, warm_up=warm_up, learning_rate=highest)
    rates = np.array([learning_rate(step, plan) for step in range(steps)])
    top = int(rates.argmax())
    assert rates.min() > 0
    assert rates.max() <= highest * (1 + 1e-12)
    assert (np.diff(rates[: top + 1]) >= 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert rates[top] == pytest.approx(highest)


def test_batches_are_normalised_crops_with_their_labels_and_cells():
    """Only the sensors of the plan; cells for the losses that need them."""
    stack = toy_stack()
    stack.cells = stack.labels.int()

    def first(**changes):
        return next(feed(stack, replace(TINY, **changes), stack.statistics(), Distributed(CPU)))

    images, batch, _ = first()
    assert (images.shape, images.dtype) == ((4, 15, 32, 32), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype, batch.cells) == ((4, 32, 32), torch.uint8, None)
    assert abs(float(images.mean())) < 0.3
    assert not torch.equal(first(seed=1)[0], images)
    again, with_cells, _ = first(loss="cell_mean")
    assert torch.equal(again, images)
    assert torch.equal(with_cells.cells, batch.labels.int())
    assert torch.equal(first(inputs=("s1",))[0], images[:, 13:])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(loss):
    """Two finite steps, on labels with Savanna for the losses that use it; the weights move."""
    labels = "modis+savanna" if loss in MIXED_LABEL_LOSSES else "modis"
    patch = toy_patch(0, size=32)
    patch.lc[0, :8] = 9
    stack = PatchStack([patch], labels)
    plan = replace(TINY, loss=loss, labels=labels, steps=2, width=4)
    first, second = (train(stack, replace(plan, steps=n), progress=False) for n in (1, 2))
    assert all(np.isfinite(row["loss"]) for row in second.history)
    assert not torch.equal(first.network.classify.weight, second.network.classify.weight)


def test_a_plan_without_a_matrix_takes_the_stated_accuracy(stack):
    """And one with a matrix takes that; without Savanna, the part of it that has none."""

    def matrix_of(**changes):
        return loop._loss_of(stack, replace(TINY, loss="forward", **changes)).keywords["known"].matrix

    assert matrix_of().shape == (8, 8)
    np.testing.assert_allclose(matrix_of().sum(axis=1), 1)
    own = (np.eye(8, 9) + 0.1) / 1.9
    rows = tuple(map(tuple, own.tolist()))
    np.testing.assert_allclose(matrix_of(transition=rows), transition.without_savanna(own))
    np.testing.assert_allclose(matrix_of(transition=rows, labels="modis+savanna"), own)


def test_a_run_can_be_fine_tuned(stack):
    """A copy of its network, its statistics and not the new stack's; the run itself stays as it was."""
    learnt = train(stack, TINY, progress=False)
    before = learnt.network.classify.weight.clone()
    there = toy_stack(1, size=32)
    plan = replace(learnt.plan, steps=1, learning_rate=1e-8, weight_decay=0)
    again = train(there, plan, progress=False, start=learnt)
    assert torch.equal(learnt.network.classify.weight, before)
    torch.testing.assert_close(again.network.classify.weight, before, atol=1e-6, rtol=1e-5)
    assert again.statistics == learnt.statistics != there.statistics()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["auto", "float16"])
def test_training_on_a_gpu(stack, precision):
    """The same loop, its result usable on the processor."""
    plan = replace(TINY, device="cuda", batch=8, steps=60, learning_rate=0.02, precision=precision)
    run = train(stack, plan, progress=False)
    unseen = toy_patch(1000)
    assert (classify(run, unseen) == igbp_to_dfc(unseen.lc[0])).mean() > 0.9
    on_gpu = predict(run, unseen)
    run.network.cpu()
    np.testing.assert_allclose(predict(run, unseen), on_gpu, atol=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.skipif("LCFUSE_COMPILE" not in os.environ, reason="takes a minute: set LCFUSE_COMPILE")
def test_a_compiled_network_learns_the_same(stack):
    """To the digits that another order of sums leaves; its checkpoint is that of any network."""
    plain, compiled = (
        train(stack, replace(TINY, compiled=on, precision="float32"), progress=False) for on in (False, True)
    )
    assert compiled.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-3)
    assert compiled.network.state_dict().keys() == plain.network.state_dict().keys()


# The feed of crops -------------------------------------------------------------------------------


def fed(*who, device=CPU):
    """All batches of two toy patches for a process: images, labels, and states of the generator."""
    stack = toy_stack(2)
    batches = list(feed(stack, SHORT, stack.statistics(), Distributed(device, *who)))
    return [[images, batch.labels, state] for images, batch, state in batches]


def test_the_processes_share_the_places_of_a_batch():
    """Two halves are the whole batch, in its order, and leave the generator in the same state."""
    for whole, first, second in zip(fed(), fed(0, 2), fed(1, 2), strict=True):
        assert all(torch.equal(whole[k], torch.cat([first[k], second[k]])) for k in (0, 1))
        assert torch.equal(whole[2], first[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gets_what_the_processor_gets():
    """Turned and normalised there, of the same crops: uint16 travels as it is."""
    for one, other in zip(fed(), fed(device=torch.device("cuda")), strict=True):
        torch.testing.assert_close(other[0].cpu(), one[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(other[1].cpu(), one[1])
        assert torch.equal(other[2], one[2])


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lcfuse prefetch")]


def test_an_error_is_raised_in_its_turn():
    """What came before it is still handed over; then its own error, not a hang."""

    def failing():
        yield from (1, 2)
        raise OSError("the disk has gone")

    with prefetch(failing(), 5) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(OSError, match="the disk has gone"):
            next(items)
        assert list(items) == []


def test_no_thread_outlives_its_use():
    """Also when it is left by an error, which keeps alive all frames that it came through: what is read can close."""

    def use():
        with prefetch(iter(range(10_000)), 2) as items:
            for n in items:
                assert threads()
                1 / (3 - n)

    with pytest.raises(ZeroDivisionError) as caught:
        use()
    assert caught.traceback  # alive
    assert not threads()


def test_the_thread_is_at_most_so_far_ahead():
    """One item is taken, two wait; then the others come in their order."""
    made, third = [], threading.Event()

    def numbers():
        for n in range(5):
            made.append(n)
            if n == 2:
                third.set()
            yield n

    with prefetch(numbers(), 2) as items:
        assert next(items) == 0
        assert third.wait(60)
        time.sleep(0.05)
        assert made == [0, 1, 2]
        assert list(items) == [1, 2, 3, 4]
