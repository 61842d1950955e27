"""Crops on their way: the same whoever fetches them, and a worker that fails is heard."""

import pytest
import torch
from toys import toy_stack

from lcfuse_core.feed import feed
from lcfuse_core.patches import channel_statistics
from lcfuse_core.processes import World
from lcfuse_core.runs import TrainPlan
from lcfuse_core.training import train

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
