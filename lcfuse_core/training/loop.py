"""
The training loop, for one processor, a GPU or several of them.

The same plan, data, machine and number of threads give the same weights, to the bit, on the processor, interrupted or
not. `train` is the loop; `feed` brings the crops to the device; `monitor.Monitor` holds what happens around a step.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lcfuse_core.data.bands import Statistics, check_channels
from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.source import Crops, PatchSource, normalise, turn_each
from lcfuse_core.models import transition
from lcfuse_core.models.losses import CELL_LOSSES, TRANSITION_LOSSES, Batch, Loss, build_loss, class_weights
from lcfuse_core.training import distributed
from lcfuse_core.training.checkpoint import Run
from lcfuse_core.training.distributed import Distributed, choose_device
from lcfuse_core.training.monitor import Monitor, Validation
from lcfuse_core.training.plan import TrainPlan
from lcfuse_core.training.predict import classify, evaluate, forward, loss_scaler, predict

# With what chapters use beside the loop: they import this module alone.
__all__ = [
    "TrainPlan",
    "choose_device",
    "classify",
    "evaluate",
    "feed",
    "learning_rate",
    "predict",
    "prefetch",
    "train",
]


def train(
    source: PatchSource,
    plan: TrainPlan,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    validation: Validation | None = None,
    start: Run | None = None,
    progress: bool = True,
    interval_s: float = 60.0,
) -> Run:
    """
    Train a network on the labels of *source*, or continue an interrupted training.

    Parameters
    ----------
    source : PatchSource
        Source of the crops: patches in memory, packed scenes or files.
    plan : TrainPlan
        All hyperparameters.
    run_dir : path, optional
        Folder for checkpoints, metrics and TensorBoard files; an unfinished run of the same plan and data is continued.
        ParameterError if it holds another run, DiskError if it cannot be written; the last checkpoint stays whole.
    validation : PatchSource or mapping, optional
        Evaluated at each report, without effect on the training; of several, the first is `aa`, each has `aa_NAME`.
    start : Run, optional
        Fine-tune a copy of this network, with its channel statistics, instead of fresh weights; DataError if the images
        lack channels of it, or have another processing level.
    progress : bool
        Whether to show a bar, and an estimate of the minutes of a long training.
    interval_s : float
        Checkpoints are written at each report, and when so many seconds have passed since the last.

    Raises
    ------
    TrainingError
        If the loss or the gradient is NaN or infinite, or a signal (SIGTERM, Ctrl-C) stops a run with a folder.
    """
    with (
        distributed.joined(plan.device) as processes,
        torch.random.fork_rng(devices=[]),  # the caller's random numbers stay as they are
        Monitor(source, plan, run_dir, processes, validation, start, progress, interval_s) as monitor,
    ):
        run = monitor.resume() or _fresh_run(source, plan, start)
        run.network.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if monitor.is_finished:
            return run
        compute_loss = _loss_of(source, plan)
        parameters = list(run.network.parameters())
        optimiser = torch.optim.AdamW(parameters, weight_decay=plan.weight_decay, fused=processes.on_gpu or None)
        scaler = loss_scaler(plan.precision, processes.device)  # only for float16; otherwise it changes nothing
        first, crops = monitor.begin(run, optimiser, scaler)
        batches = feed(source, plan, run.statistics, processes, first=first, state=crops)
        with processes.wrap(run.network, plan.compiled) as network:  # in training mode
            for step, images, batch in monitor.steps(batches):
                optimiser.param_groups[0]["lr"] = learning_rate(step, plan)
                logits = forward(network, images, plan.precision)  # (n, 8, crop, crop), n crops of this process
                loss = compute_loss(*processes.gather(logits, batch))
                optimiser.zero_grad()
                scaler.scale(loss * processes.size).backward()  # gradients are averaged over the processes
                scaler.unscale_(optimiser)
                norm = nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
                monitor.check(loss, norm)  # raises an error if one is NaN, before the weights change
                scaler.step(optimiser)
                scaler.update()
                monitor.report(step)  # at intervals: metrics, validation, checkpoint
    return run


def learning_rate(step: int, plan: TrainPlan) -> float:
    """
    Return the rate of step 0, 1, ...: a linear warm-up, then half a cosine towards zero.

    The warm-up limits the first, noisy gradients; small steps at the end converge (Loshchilov & Hutter 2017, arXiv
    1608.03983, without restarts).

    >>> plan = TrainPlan(steps=100, learning_rate=1.0, warm_up=0.1)
    >>> [round(learning_rate(step, plan), 3) for step in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    rising = round(plan.warm_up * plan.steps)
    if step < rising:
        return plan.learning_rate * (step + 1) / rising
    done = (step - rising) / (plan.steps - rising)  # 0..1
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _loss_of(source: PatchSource, plan: TrainPlan) -> Loss:
    """
    Return the plan's loss, with the class weights and label shares of *source* and the transition matrix.

    Without a matrix in the plan, a loss that needs one uses `transition.from_accuracy`.
    """
    n_labels = N_COARSE if plan.labels == "modis+savanna" else len(SCORED)
    all_counts = source.class_counts(N_COARSE)
    counts = all_counts[:n_labels]
    weights = class_weights(counts, plan.class_weight_power).to(choose_device(plan.device))
    if plan.loss not in TRANSITION_LOSSES:
        return build_loss(plan.loss, weights)
    matrix = np.array(plan.transition) if plan.transition else transition.from_accuracy(all_counts.numpy())
    if n_labels < N_COARSE:
        matrix = transition.without_savanna(matrix)
    return build_loss(plan.loss, weights, torch.from_numpy(matrix), counts)


def _fresh_run(source: PatchSource, plan: TrainPlan, start: Run | None) -> Run:
    """Return a network before its first step: fresh weights from the plan's seed, or a copy of the one of *start*."""
    statistics = source.statistics()
    if start is not None:
        check_channels(source.names[0], statistics.channels, start.statistics, plan.inputs)
        return Run(deepcopy(start.network), plan, start.statistics)
    torch.default_generator.manual_seed(plan.seed)
    return Run(plan.build(statistics.channels), plan, statistics)


# Crops on their way to the device ----------------------------------------------------------------


def feed(
    source: PatchSource,
    plan: TrainPlan,
    statistics: Statistics,
    processes: Distributed,
    *,
    first: int = 0,
    state: Tensor | None = None,
) -> Generator[tuple[Tensor, Batch, Tensor]]:
    """
    Yield images, labels and the generator's state after each step from *first* on: the part of this process.

    *state* is that of the generator before the first step (None: the plan's seed). For a GPU a thread prepares the next
    batches in pinned memory while the GPU computes; uint16 reflectance is sent, half the bytes of floats, and turned
    and normalised on the GPU. Both ways give the same numbers. Errors of reading are raised here, also the thread's.
    Cells are left out unless the loss of the plan uses them.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    if state is not None:
        generator.set_state(state)
    on_gpu, part, with_cells = processes.on_gpu, processes.part(plan.batch), plan.loss in CELL_LOSSES

    def cut_batches() -> Iterator[tuple[Crops, list[int], Tensor]]:
        for _ in range(first, plan.steps):
            places = source.places(plan.batch, plan.crop, generator)[part]
            symmetries = [place[3] for place in places] if on_gpu else []
            upright = [(*place[:3], 0) for place in places]
            crops = source.cut(upright if on_gpu else places, plan.crop, cells=with_cells)
            crops = Crops(*(tensor.pin_memory() for tensor in crops)) if on_gpu else crops
            yield crops, symmetries, generator.get_state()

    batches = cut_batches()
    with prefetch(batches, 2) if on_gpu else nullcontext(batches) as prepared:
        for crops, symmetries, after in prepared:
            moved = Crops(*(tensor.to(processes.device, non_blocking=on_gpu) for tensor in crops))
            s2, s1, labels, cells = turn_each(moved, symmetries) if on_gpu else moved
            yield normalise(s2, s1, statistics, plan.inputs), Batch(labels, cells if with_cells else None), after


_Item = TypeVar("_Item")


@contextmanager
def prefetch(items: Iterator[_Item], depth: int) -> Iterator[Iterator[_Item]]:
    """
    Yield an iterator over the same items, which a thread makes up to *depth* items ahead.

    An error in the thread is raised at the item that it could not make. The thread has ended when the context has: the
    files that it reads may be closed then (closing a raster that another thread reads crashes the process).
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lcfuse prefetch")

    def take(waiting: deque[Future[Any]]) -> Iterator[_Item]:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item

    try:
        yield take(deque(pool.submit(next, items, end) for _ in range(depth)))
    finally:
        pool.shutdown(cancel_futures=True)
