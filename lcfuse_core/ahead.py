"""Work ahead in a thread: what comes next is made while what came last is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ahead(items: Iterator[T], depth: int) -> Iterator[Iterator[T]]:
    """
    The same items in the same order, made by a thread that is up to *depth* of them ahead.

    What the thread raises is raised at the item that it could not make. The thread has ended when the context has, on
    whatever way: what it reads from may be closed then, and not before (a raster that is closed while another thread
    reads it takes the process down).
    """
    made: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    is_over = threading.Event()

    def put(item: T | None, error: BaseException | None, is_last: bool) -> None:
        while not is_over.is_set():
            try:
                made.put((item, error, is_last), timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item, None, False)
                if is_over.is_set():
                    return
            put(None, None, True)
        except BaseException as error:  # handed to the taker, whatever it is
            put(None, error, True)

    def take() -> Iterator[T]:
        while True:
            item, error, is_last = made.get()
            if error is not None:
                raise error
            if is_last:
                return
            yield item  # type: ignore[misc]

    worker = threading.Thread(target=work, name="lcfuse ahead", daemon=True)
    worker.start()
    try:
        yield take()
    finally:
        is_over.set()
        worker.join()
