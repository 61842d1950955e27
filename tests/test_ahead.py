"""Working ahead changes nothing but the time: the same items, the same errors, and no thread that outlives its use."""

import threading
import time
from contextlib import closing

import pytest

from lcfuse_core.ahead import ahead


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
