"""
Crops on their way to the device: drawn, cut, carried over, turned, normalised.

On the processor one batch is made when it is asked for. For a GPU a thread works ahead: it draws and cuts the next
batches, in pinned memory, and sends them as they are (uint16 reflectance, half the bytes of floats) while the GPU is
busy; turning and normalising is then the GPU's work. Both ways give the same numbers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lcfuse_core.data.packed import PackedScenes
from lcfuse_core.data.source import Crops, PatchStack, Statistics, normalise, turn_each
from lcfuse_core.models.losses import Batch
from lcfuse_core.training.checkpoint import TrainPlan
from lcfuse_core.training.distributed import World

Stack = PatchStack | PackedScenes
"""What training draws its crops from: patches in memory, or packed scenes on the disk."""

DEPTH = 2
"""Batches that wait for a GPU: one on its way, one being cut."""


class Fed(NamedTuple):
    """A batch on the device, and the state of the generator after it was drawn: what a resumed run goes on from."""

    images: Tensor
    batch: Batch
    state: Tensor


def feed(
    stack: Stack, plan: TrainPlan, statistics: Statistics, world: World, *, first: int = 0, state: Tensor | None = None
) -> Generator[Fed]:
    """
    The batches of the steps from *first* on; of each, the part of this process.

    state : of the generator before that step, as a checkpoint has it; None: fresh, from the plan's seed

    For a GPU a thread runs until this generator has ended or is closed. Raises what the cutting of a crop raises (a
    damaged or missing file), also when the thread met it.
    """
    rng = torch.Generator().manual_seed(plan.seed)
    if state is not None:
        rng.set_state(state)
    on_gpu = world.device.type == "cuda"
    made = _made(stack, plan, rng, first, world.part(plan.batch), on_gpu)
    with ahead(made, DEPTH) if on_gpu else nullcontext(made) as drawn:
        for crops, symmetries, after in drawn:
            here = Crops(*(tensor.to(world.device, non_blocking=on_gpu) for tensor in crops))
            s2, s1, labels, cells = turn_each(here, symmetries) if symmetries else here
            yield Fed(normalise(s2, s1, statistics, plan.inputs), Batch(labels, cells), after)


def _made(
    stack: Stack, plan: TrainPlan, rng: torch.Generator, first: int, part: slice, on_gpu: bool
) -> Iterator[tuple[Crops, list[int], Tensor]]:
    """Crops on the processor, how they still have to be turned, and the state of the generator after them."""
    for _ in range(first, plan.steps):
        places = stack.places(plan.batch, plan.crop, rng)[part]
        state = rng.get_state()
        if not on_gpu:
            yield stack.cut(places, plan.crop), [], state
            continue
        upright = stack.cut([(*place[:3], 0) for place in places], plan.crop)
        yield Crops(*(tensor.pin_memory() for tensor in upright)), [place[3] for place in places], state


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
