"""
The training loop, for one processor, a GPU or several of them.

The same plan, data, machine and number of threads give the same weights, to the bit, on the processor, interrupted or
not. `train` is the loop; `Monitor` holds what happens around a step: checkpoints, metrics, validation, stopping; `feed`
brings the crops to the device.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.source import Crops, PatchSource, PatchStack, Statistics, normalise, turn_each
from lcfuse_core.models import transition
from lcfuse_core.models.losses import TRANSITION_LOSSES, Batch, Loss, build_loss, class_weights
from lcfuse_core.training import distributed
from lcfuse_core.training.checkpoint import (
    Checkpointer,
    Row,
    Run,
    TrainState,
    capture,
    load_checkpoint,
    network_digest,
    restore,
    save_checkpoint,
)
from lcfuse_core.training.distributed import Distributed, choose_device
from lcfuse_core.training.log import Log
from lcfuse_core.training.plan import TrainPlan
from lcfuse_core.training.predict import classify, evaluate, forward, predict

__all__ = [
    "Monitor",
    "Run",
    "TrainPlan",
    "choose_device",
    "classify",
    "evaluate",
    "feed",
    "learning_rate",
    "load_checkpoint",
    "loss_of",
    "predict",
    "prefetch",
    "save_checkpoint",
    "train",
]

Validation = PatchStack | Mapping[str, PatchStack]
"""What a network is evaluated on at each report: one stack, or several by name."""


def train(
    stack: PatchSource,
    plan: TrainPlan,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    validation: Validation | None = None,
    progress: bool = True,
    start: Run | None = None,
    interval_s: float = 60.0,
) -> Run:
    """
    Train a network on the labels of *stack*, or continue an interrupted training.

    Parameters
    ----------
    stack : PatchSource
        Source of the crops: patches in memory or packed scenes.
    plan : TrainPlan
        All hyperparameters.
    run_dir : path, optional
        Folder for checkpoints, metrics and TensorBoard files; an unfinished run of the same plan and data is continued.
    validation : PatchStack or mapping, optional
        Evaluated at each report, without effect on the training; of several, the first is `aa`, each has `aa_NAME`.
    progress : bool
        Whether to show a bar.
    start : Run, optional
        Fine-tune a copy of this network, with its channel statistics, instead of fresh weights.
    interval_s : float
        Checkpoints are written at each report, and when so many seconds have passed since the last.

    Raises
    ------
    TrainingError
        If the loss or the gradient is NaN or infinite, or a signal (SIGTERM, Ctrl-C) stops a run with a folder.
    ParameterError, DiskError
        If the folder holds another run or cannot be written; the last checkpoint stays whole.
    """
    with (
        distributed.joined(plan.device) as processes,
        torch.random.fork_rng(devices=[]),  # the caller's random numbers stay as they are
        Monitor(stack, plan, run_dir, processes, validation, start, progress, interval_s) as monitor,
    ):
        run = monitor.resume() or fresh_run(stack, plan, start)
        run.network.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if monitor.is_finished:
            return run
        compute_loss = loss_of(stack, plan)
        parameters = list(run.network.parameters())
        optimiser = torch.optim.AdamW(parameters, weight_decay=plan.weight_decay, fused=processes.on_gpu or None)
        first, crops = monitor.begin(run, optimiser)
        batches = feed(stack, plan, run.statistics, processes, first=first, state=crops)
        with processes.wrap(run.network, plan.compiled) as network:
            network.train()
            for step, images, batch in monitor.steps(batches):
                optimiser.param_groups[0]["lr"] = learning_rate(step, plan)
                logits = forward(network, images, plan.precision)  # (n, 8, crop, crop), n crops of this process
                loss = compute_loss(*processes.gather(logits, batch))
                optimiser.zero_grad()
                (loss * processes.size).backward()  # gradients are averaged over the processes
                norm = nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
                monitor.check(loss, norm)  # raises an error if one is NaN, before the weights change
                optimiser.step()
                monitor.report(step)  # at intervals: metrics, validation, checkpoint
    run.network.eval()
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


def loss_of(stack: PatchSource, plan: TrainPlan) -> Loss:
    """
    Return the plan's loss, with the class weights and label shares of *stack* and the transition matrix.

    Without a matrix in the plan, a loss that needs one uses `transition.from_accuracy`.
    """
    n_labels = N_COARSE if plan.labels == "modis+savanna" else len(SCORED)
    counts = stack.class_counts(n_labels)
    weights = class_weights(counts, plan.class_weight_power).to(choose_device(plan.device))
    if plan.loss not in TRANSITION_LOSSES:
        return build_loss(plan.loss, weights)
    share = stack.class_counts(N_COARSE).numpy()
    matrix = transition.from_accuracy(share) if plan.transition is None else np.array(plan.transition)
    if n_labels < N_COARSE:
        matrix = transition.without_savanna(matrix)
    return build_loss(plan.loss, weights, torch.from_numpy(matrix), counts)


def fresh_run(stack: PatchSource, plan: TrainPlan, start: Run | None = None) -> Run:
    """Return a network before its first step: fresh weights from the plan's seed, or a copy of the one of *start*."""
    torch.default_generator.manual_seed(plan.seed)
    network = plan.build() if start is None else deepcopy(start.network)
    return Run(network, plan, stack.statistics() if start is None else start.statistics)


class Monitor:
    """
    The callbacks of one run, as a context manager: checkpoints, metrics, validation, and stopping.

    Parameters are those of `train`. On a GPU losses are read only every 100 steps, because reading one waits for the
    GPU, and always before a checkpoint is written; on the processor a NaN never reaches the weights.
    """

    def __init__(
        self,
        stack: PatchSource,
        plan: TrainPlan,
        run_dir: str | os.PathLike[str] | None,
        processes: Distributed,
        validation: Validation | None,
        start: Run | None,
        progress: bool,
        interval_s: float,
    ) -> None:
        identity = {}
        if run_dir is not None:
            weights = "" if start is None else network_digest(start.network)
            identity = {"training data": stack.digest(), "first weights": weights}
        self.checkpointer = Checkpointer(run_dir, plan, identity, interval_s=interval_s, writes=processes.is_first)
        self.plan, self.processes, self.progress = plan, processes, progress
        named = validation if isinstance(validation, Mapping) else {"": validation}
        self.validation = {name: stack for name, stack in named.items() if stack is not None and processes.is_first}
        self.state = TrainState()
        self._unread: list[Tensor] = []  # losses and gradient norms
        self._closing = ExitStack()

    def __enter__(self) -> Monitor:
        self._closing.enter_context(self.checkpointer)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def resume(self) -> Run | None:
        """Return the network of an earlier start in this folder; the first process looks before the others."""
        found = self.checkpointer.find() if self.processes.is_first else None
        self.processes.wait()
        found = found if self.processes.is_first else self.checkpointer.find()
        if found is None:
            return None
        run, self.state = found
        return run

    @property
    def is_finished(self) -> bool:
        """Return whether all steps have been taken."""
        return self.state.step >= self.plan.steps

    def begin(self, run: Run, optimiser: torch.optim.Optimizer) -> tuple[int, Tensor | None]:
        """Restore the optimiser; return the next step and the state of the generator of crops (None: fresh)."""
        self.run, self.optimiser = run, optimiser
        self.crops = restore(self.state.tensors, optimiser) if self.state.tensors else None
        folder = self.checkpointer.folder if self.processes.is_first else None
        self.log = Log(folder, run.history, step=self.state.step, batch=self.plan.batch, show_progress=self.progress)
        self._closing.callback(self.log.close)
        self._began = time.perf_counter() - self.state.seconds
        return self.state.step, self.crops

    def steps(self, batches: Generator[Fed]) -> Iterator[tuple[int, Tensor, Batch]]:
        """Yield the number, the images and the labels of each step."""
        self._closing.enter_context(closing(batches))
        for step, fed in self.log.steps(batches, self.plan.steps):
            self.crops = fed.state
            yield step, fed.images, fed.batch

    def check(self, loss: Tensor, norm: Tensor) -> None:
        """Note the loss of a step and the norm of its gradient; TrainingError if one is NaN or infinite."""
        self._unread.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        if len(self._unread) >= (100 if self.processes.on_gpu else 1):
            self._read()

    def _read(self) -> None:
        for loss, norm in torch.stack(self._unread).tolist() if self._unread else []:
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self.checkpointer.failed(loss, norm)
            self.state.losses.append(loss)
        self._unread.clear()

    def report(self, step: int) -> None:
        """Write metrics and a checkpoint if they are due, and the last checkpoint; TrainingError after a signal."""
        self.state.step, self.state.seconds = step + 1, time.perf_counter() - self._began
        is_stopped = self.processes.any(bool(self.checkpointer.stop_signal))
        is_report = self.state.step % self.plan.report_every == 0 or self.is_finished
        if is_report:
            self._read()
            self.log.report(self._row(step))
            self.state.losses.clear()
        if is_report or is_stopped or self.checkpointer.is_due():
            self._read()
            if self.checkpointer.writes and self.crops is not None:
                self.state.tensors = {} if self.is_finished else capture(self.optimiser, self.crops)
                self.checkpointer.save(self.run, self.state)
        if is_stopped and not self.is_finished:
            raise self.checkpointer.stopped()

    def _row(self, step: int) -> Row:
        """Add one row to the history and return it."""
        losses = self.state.losses
        row: Row = {
            "step": step + 1,
            "loss": math.fsum(losses) / len(losses),
            "learning_rate": learning_rate(step, self.plan),
            "seconds": round(self.state.seconds, 2),
            "aa": None,
        }
        for name, stack in self.validation.items():
            agreement = evaluate(self.run, stack).aa
            row |= {"aa": agreement if row["aa"] is None else row["aa"]} | ({f"aa_{name}": agreement} if name else {})
        self.run.history.append(row)
        return row


# Crops on their way to the device ----------------------------------------------------------------


class Fed(NamedTuple):
    """A batch on the device, and the state of the generator after it was drawn, from which a resumed run continues."""

    images: Tensor
    batch: Batch
    state: Tensor


def feed(
    stack: PatchSource,
    plan: TrainPlan,
    statistics: Statistics,
    processes: Distributed,
    *,
    first: int = 0,
    state: Tensor | None = None,
) -> Generator[Fed]:
    """
    Yield the batches of the steps from *first* on, of each the part of this process.

    *state* is that of the generator before that step (None: the plan's seed). For a GPU a thread prepares the next
    batches in pinned memory while the GPU computes; uint16 reflectance is sent, half the bytes of floats, and turned
    and normalised on the GPU. Both ways give the same numbers. Errors of reading are raised here, also the thread's.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    if state is not None:
        generator.set_state(state)
    on_gpu = processes.on_gpu
    cut = _cut_batches(stack, plan, generator, first, processes.part(plan.batch), on_gpu)
    with prefetch(cut, 2) if on_gpu else nullcontext(cut) as prepared:
        for crops, symmetries, after in prepared:
            moved = Crops(*(tensor.to(processes.device, non_blocking=on_gpu) for tensor in crops))
            s2, s1, labels, cells = turn_each(moved, symmetries) if symmetries else moved
            yield Fed(normalise(s2, s1, statistics, plan.inputs), Batch(labels, cells), after)


def _cut_batches(
    stack: PatchSource, plan: TrainPlan, generator: torch.Generator, first: int, part: slice, on_gpu: bool
) -> Iterator[tuple[Crops, list[int], Tensor]]:
    """Yield crops on the processor, the symmetries still to be applied, and the state of the generator after them."""
    for _ in range(first, plan.steps):
        places = stack.places(plan.batch, plan.crop, generator)[part]
        state = generator.get_state()
        if on_gpu:
            upright = stack.cut([(*place[:3], 0) for place in places], plan.crop)
            yield Crops(*(tensor.pin_memory() for tensor in upright)), [place[3] for place in places], state
        else:
            yield stack.cut(places, plan.crop), [], state


Item = TypeVar("Item")


@contextmanager
def prefetch(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """
    Yield an iterator over the same items, which a thread makes up to *depth* items ahead.

    An error in the thread is raised at the item that it could not make. The thread has ended when the context has: the
    files that it reads may be closed then (closing a raster that another thread reads crashes the process).
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lcfuse prefetch")

    def take(waiting: deque[Future[Any]]) -> Iterator[Item]:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item

    try:
        yield take(deque(pool.submit(next, items, end) for _ in range(depth)))
    finally:
        pool.shutdown(cancel_futures=True)
