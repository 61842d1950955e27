"""Crops on their way: the same whoever fetches them, and a worker that fails is heard."""

import threading
import time
from contextlib import closing

import pytest
import torch
from toys import toy_stack

from lcfuse_core.data.source import channel_statistics
from lcfuse_core.training.checkpoint import TrainPlan
from lcfuse_core.training.distributed import World
from lcfuse_core.training.feed import ahead, feed
from lcfuse_core.training.loop import train

PLAN = TrainPlan(width=4, crop=32, batch=4, steps=5, device="cpu")
CPU = torch.device("cpu")


def test_a_failing_read_ends_training_with_its_own_error(monkeypatch, tmp_path):
    """A run that could not read its data is whole up to there."""
    stack, calls = toy_stack(1), []
    cut = type(stack).cut

    def broken(self, places, size):
        calls.append(0)
        if len(calls) > 3:
            raise OSError("input/output error")
        return cut(self, places, size)

    with monkeypatch.context() as patched:
        patched.setattr(type(stack), "cut", broken)
        with pytest.raises(OSError, match="input/output error"):
            train(stack, PLAN, tmp_path, progress=False, interval_s=0)
    resumed, whole = train(stack, PLAN, tmp_path, progress=False), train(stack, PLAN, progress=False)
    assert torch.equal(resumed.network.classify.weight, whole.network.classify.weight)


def test_the_processes_share_the_places_of_a_batch():
    """Two halves are the whole batch, in its order, and leave the generator in the same state."""
    stack = toy_stack(2)
    statistics = channel_statistics(stack)
    whole, *halves = (list(feed(stack, PLAN, statistics, World(CPU, *who))) for who in ((), (0, 2), (1, 2)))
    for one, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(one.images, torch.cat([first.images, second.images]))
        assert torch.equal(one.batch.labels, torch.cat([first.batch.labels, second.batch.labels]))
        assert torch.equal(one.state, first.state)


def test_a_feed_goes_on_from_a_state():
    """The batches of the steps that are left, and no others."""
    stack = toy_stack(2)
    statistics = channel_statistics(stack)
    whole = list(feed(stack, PLAN, statistics, World(CPU)))
    rest = list(feed(stack, PLAN, statistics, World(CPU), first=2, state=whole[1].state))
    assert len(rest) == 3
    assert all(torch.equal(one.images, other.images) for one, other in zip(whole[2:], rest, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gets_what_the_processor_gets():
    """Turned and normalised there, of the same crops: uint16 travels as it is."""
    stack = toy_stack(2)
    statistics = channel_statistics(stack)
    on_gpu = feed(stack, PLAN, statistics, World(torch.device("cuda")))
    for one, other in zip(feed(stack, PLAN, statistics, World(CPU)), on_gpu, strict=True):
        torch.testing.assert_close(other.images.cpu(), one.images, rtol=1e-5, atol=1e-5)
        assert torch.equal(other.batch.labels.cpu(), one.batch.labels)
        assert torch.equal(other.state, one.state)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "lcfuse ahead"]


def test_it_changes_nothing():
    for n in (100, 0):
        with ahead(iter(range(n)), 3) as items:
            assert list(items) == list(range(n))


def test_no_further_than_it_may():
    """One is taken, two wait, one is ready for the queue."""
    made, third = [], threading.Event()

    def numbers():
        for n in range(100):
            made.append(n)
            if n == 3:
                third.set()
            yield n

    with ahead(numbers(), 2) as items:
        assert next(items) == 0
        assert third.wait(60)
        time.sleep(0.05)  # as long as it likes: the queue is full
        assert made == [0, 1, 2, 3]
    assert made == [0, 1, 2, 3]


def test_an_error_is_raised_in_its_turn():
    """What came before it is still handed over; then its own error, not a hang."""

    def failing():
        yield from (1, 2)
        raise OSError("the disk has gone")

    with ahead(failing(), 5) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(OSError, match="the disk has gone"):
            next(items)
        assert list(items) == []


def test_no_thread_outlives_its_use():
    """A chain that is left by an error, which keeps alive all frames that it came through: what is read can close."""

    def slow(items):
        for item in items:
            time.sleep(0.001)
            yield item

    def chain():
        with ahead(iter(range(10_000)), 2) as first, ahead(slow(first), 2) as second, ahead(slow(second), 2) as third:
            yield from third

    def use():
        with closing(chain()) as taken:
            for n in taken:
                assert len(threads()) == 3
                1 / (3 - n)

    with pytest.raises(ZeroDivisionError) as caught:
        use()
    assert caught.traceback  # alive
    assert not threads()
