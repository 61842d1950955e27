"""
Training: one loop, on the processor, on a GPU or on many.

`learning_rate`, `batches` and `loss_of` hold the ideas; `train` is the order of things. The same plan, data, machine
and number of threads give the same weights, to the bit, on the processor, interrupted or not. What happens around the
loop has files of its own: `feed` brings the crops, `processes` joins several processes, `survival` keeps checkpoints,
`progress` tells how it goes, `inference` draws maps.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.source import PatchStack, Statistics
from lcfuse_core.models import transition
from lcfuse_core.models.losses import NEEDS_TRANSITION, Batch, Loss, build_loss, class_weights
from lcfuse_core.training import distributed, survival
from lcfuse_core.training.checkpoint import Row, Run, TrainPlan, load_checkpoint, network_digest, save_checkpoint
from lcfuse_core.training.distributed import World, choose_device
from lcfuse_core.training.feed import Stack, feed
from lcfuse_core.training.log import Log
from lcfuse_core.training.predict import classify, evaluate, forward, precision, predict
from lcfuse_core.training.survival import Keeper, Position

__all__ = [
    "Run",
    "Stack",
    "TrainPlan",
    "batches",
    "choose_device",
    "classify",
    "evaluate",
    "learning_rate",
    "load_checkpoint",
    "precision",
    "predict",
    "save_checkpoint",
    "train",
]

CHECKPOINT = survival.LAST
"""Name of the checkpoint in the folder of a run."""

Validation = PatchStack | Mapping[str, PatchStack]
"""What is evaluated at each report: a stack, or several by name."""


def learning_rate(step: int, plan: TrainPlan) -> float:
    """
    Rate of step 0, 1, ...: a line up to the highest, then half a cosine down towards zero.

    Rising first, because the first gradients of fresh weights are wild; falling to the end, because small
    steps settle (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts).

    >>> plan = TrainPlan(steps=100, learning_rate=1.0, warm_up=0.1)
    >>> [round(learning_rate(step, plan), 3) for step in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    rising = round(plan.warm_up * plan.steps)
    if step < rising:
        return plan.learning_rate * (step + 1) / rising
    done = (step - rising) / (plan.steps - rising)  # 0..1
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def batches(stack: Stack, plan: TrainPlan, statistics: Statistics) -> Iterator[tuple[Tensor, Batch]]:
    """
    All batches of a training: random crops with their labels, drawn from the plan's seed.

    Yields images, float32 (N, C, crop, crop), and their labels and cells, (N, crop, crop), on the plan's device.
    """
    for images, batch, _ in feed(stack, plan, statistics, World(choose_device(plan.device))):
        yield images, batch


def loss_of(stack: Stack, plan: TrainPlan) -> Loss:
    """
    The plan's loss, knowing the class weights and the label shares of *stack*, and the transition matrix.

    A plan that gives no matrix, with a loss that needs one, takes `transition.from_accuracy`.
    """
    n_labels = N_COARSE if plan.labels == "modis+savanna" else len(SCORED)
    counts = stack.class_counts(n_labels)
    weights = class_weights(counts, plan.class_weight_power).to(choose_device(plan.device))
    if plan.loss not in NEEDS_TRANSITION:
        return build_loss(plan.loss, weights)
    share = stack.class_counts(N_COARSE).numpy()
    matrix = transition.from_accuracy(share) if plan.transition is None else np.array(plan.transition)
    if n_labels < N_COARSE:
        matrix = transition.without_savanna(matrix)
    return build_loss(plan.loss, weights, torch.from_numpy(matrix), counts)


def train(
    stack: Stack,
    plan: TrainPlan,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    validation: Validation | None = None,
    progress: bool = True,
    start: Run | None = None,
    interval_s: float = 60.0,
) -> Run:
    """
    Train a network as *plan* says, on the labels of *stack*; go on where an interrupted run of it has stopped.

    run_dir : folder of the run: its checkpoints (see `survival`), metrics and TensorBoard files (see `progress`). With
        an unfinished run of the same plan and data it goes on, with a finished one it returns that
    validation : evaluated at each report, into the history; changes nothing else. Of several stacks by name, the first
        is `aa`, and each has its `aa_NAME`
    start : go on from a copy of this run's network, with its channel statistics, instead of fresh weights
    interval_s : a checkpoint is written at each report, and when this many seconds have passed since the last

    Under `torchrun` all processes share the work; the first one writes. Raises TrainingError when loss or gradient stop
    being finite, or when a signal (SIGTERM, Ctrl-C) asked a run with a folder to stop; ParameterError when the folder
    holds another run; DiskError when it cannot be written. The last checkpoint is whole in any case.
    """
    identity = {} if run_dir is None else _identity(stack, start)
    with (
        distributed.joined(plan.device) as world,
        torch.random.fork_rng(devices=[]),  # the caller's random numbers go on as if nothing had happened
        Keeper(run_dir, plan, identity, interval_s=interval_s, writes=world.is_first) as keeper,
    ):
        run, at = _found(keeper, world) or _fresh(stack, plan, start)
        run.network.to(world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if at.step < plan.steps:
            run = run_steps(run, at, stack, world, keeper, validation, progress)
    run.network.eval()
    return run


def run_steps(
    run: Run, at: Position, stack: Stack, world: World, keeper: Keeper, validation: Validation | None, progress: bool
) -> Run:
    """The loop: the steps from `at.step` on. Returns the network that they lead to."""
    plan, loss = run.plan, loss_of(stack, run.plan)
    optimiser = torch.optim.AdamW(run.network.parameters(), weight_decay=plan.weight_decay, fused=world.on_gpu or None)
    result = Average(run, plan.ema)
    crops = survival.restore(at.tensors, optimiser, result.averaged) if at.tensors else None
    log = Log(keeper.folder if world.is_first else None, run.history, step=at.step, batch=plan.batch, watched=progress)
    tally = Tally(at.losses, keeper, is_late=world.on_gpu)
    began = time.perf_counter() - at.seconds
    with (
        closing(feed(stack, plan, run.statistics, world, first=at.step, state=crops)) as fed,
        world.spread(run.network, plan.compiled) as network,
    ):
        network.train()
        for step, (images, batch, crops) in log.steps(fed, plan.steps):
            optimiser.param_groups[0]["lr"] = learning_rate(step, plan)
            logits = forward(network, images, plan.precision)  # (n, 8, crop, crop), n crops of this process
            value = loss(*world.whole(logits, batch))
            optimiser.zero_grad()
            (value * world.size).backward()  # of which the mean over the processes is taken
            length = nn.utils.clip_grad_norm_(run.network.parameters(), plan.clip_norm)
            tally.add(value, length)  # stops when they are no numbers
            optimiser.step()
            result.follow(step)

            seconds, is_last = time.perf_counter() - began, step + 1 == plan.steps
            is_told, is_report = world.any(bool(keeper.asked)), (step + 1) % plan.report_every == 0 or is_last
            if is_report:
                log.report(_report(result.run, step, tally.settled(), seconds, validation if world.is_first else None))
                at.losses.clear()
            if not is_last and (is_report or is_told or keeper.is_due()):
                tally.settled()
                state = survival.capture(optimiser, crops, result.averaged)
                keeper.save(run, Position(step + 1, at.losses, seconds, state))
            if is_told and not is_last:
                raise keeper.stopped()
    keeper.save(result.run, Position(plan.steps, seconds=seconds))
    return result.run


def _identity(stack: Stack, start: Run | None) -> dict[str, str]:
    """What decides a training beside its plan."""
    return {"training data": stack.digest(), "first weights": "" if start is None else network_digest(start.network)}


def _found(keeper: Keeper, world: World) -> tuple[Run, Position] | None:
    """What an earlier start has left: the first process looks, and tidies up, before the others do."""
    found = keeper.find() if world.is_first else None
    world.wait()
    return found if world.is_first else keeper.find()


def _fresh(stack: Stack, plan: TrainPlan, start: Run | None) -> tuple[Run, Position]:
    """A network before its first step."""
    torch.default_generator.manual_seed(plan.seed)
    network = plan.build() if start is None else deepcopy(start.network)
    return Run(network, plan, stack.statistics() if start is None else start.statistics), Position()


class Average:
    """
    A moving average of the weights of *run* and of the means that batch normalisation keeps, or these themselves.

    decay : how much of the average stays at each step, less in the first ones; 0: no average. A network of averaged
        weights often maps better than the last one of them (Polyak & Juditsky 1992; Tarvainen & Valpola 2017, arXiv
        1703.01780, from whom the moving form)

    run : with the averaged network; averaged : its tensors by name, none without an average
    """

    def __init__(self, run: Run, decay: float) -> None:
        self.decay, self._followed = decay, run.network.state_dict()
        self.run = replace(run, network=deepcopy(run.network)) if decay else run
        self.averaged: dict[str, Tensor] = dict(self.run.network.state_dict()) if decay else {}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take the weights after this step in."""
        kept = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.averaged.items():
            if tensor.is_floating_point():
                tensor.lerp_(self._followed[name], 1 - kept)
            else:
                tensor.copy_(self._followed[name])


class Tally:
    """
    The losses of the steps since the last report, in *losses*.

    Asking a GPU for a number makes it wait: with *is_late* the numbers of many steps are asked for at once, and always
    before a checkpoint is written. Otherwise no weight is touched by a loss or gradient that is no number.
    """

    def __init__(self, losses: list[float], keeper: Keeper, *, is_late: bool) -> None:
        self.losses, self._keeper, self._most = losses, keeper, 100 if is_late else 1
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor, gradient: Tensor) -> None:
        """Loss of a step, and the length of its gradient."""
        self._waiting.append(torch.stack([loss.detach().float(), gradient.detach().float()]))
        if len(self._waiting) >= self._most:
            self.settled()

    def settled(self) -> list[float]:
        """All losses as numbers; TrainingError when one, or a gradient, is none."""
        for loss, gradient in torch.stack(self._waiting).tolist() if self._waiting else []:
            if not (math.isfinite(loss) and math.isfinite(gradient)):
                raise self._keeper.failed(loss, gradient)
            self.losses.append(loss)
        self._waiting.clear()
        return self.losses


def _report(run: Run, step: int, losses: list[float], seconds: float, validation: Validation | None) -> Row:
    """One more line of the history."""
    row: Row = {
        "step": step + 1,
        "loss": math.fsum(losses) / len(losses),
        "learning_rate": learning_rate(step, run.plan),
        "seconds": round(seconds, 2),
        "aa": None,
    }
    stacks = {} if validation is None else validation if isinstance(validation, Mapping) else {"": validation}
    for name, stack in stacks.items():
        agreement = evaluate(run, stack).aa
        row |= {"aa": agreement if row["aa"] is None else row["aa"]} | ({f"aa_{name}": agreement} if name else {})
    run.history.append(row)
    return row
