"""
One training on many processors: what `torchrun` started, how they share a batch, and on which device.

    torchrun --nproc-per-node 2 -m lcfuse_core train DATA --out RUN

starts the same program several times and tells each who it is, by environment variables. Each process draws the places
of the whole batch, cuts its own part of it, and runs it through its own copy of the network. Three things are then
exchanged, so that the result is that of one process with the whole batch:

- batch normalisation: mean and variance are those of the whole batch (`SharedBatchNorm`);
- the loss: every process sees the logits and labels of the whole batch. Our losses are means over known pixels or over
  cells, and a mean of means would be another loss. Logits are small: 8 numbers a pixel;
- the gradient: torch's DistributedDataParallel sums it over the processes while it is being computed.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from lcfuse_core.errors import ParameterError, TrainingError
from lcfuse_core.models.losses import Batch

_DDP_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}
"""Running means are the same in all processes as it is; torch 2.13 calls the option by another name."""


@dataclass(frozen=True)
class World:
    """
    Who this process is.

    device : where it computes
    rank, size : its number and how many there are; the first writes files and shows progress
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The share of this process of *n* crops. ParameterError when they cannot be shared evenly."""
        if n % self.size:
            found, expected = f"{n} crops for {self.size} processes", "a batch that divides by their number"
            raise ParameterError("plan: batch", found=found, expected=expected, do="Change one of the two.")
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    @property
    def on_gpu(self) -> bool:
        """Whether this process computes on a GPU."""
        return self.device.type == "cuda"

    @contextmanager
    def spread(self, network: nn.Module, compiled: bool = False) -> Iterator[nn.Module]:
        """The network as training calls it: statistics of the whole batch, gradients averaged over all processes."""
        called, before = network, torch.backends.cudnn.benchmark
        with _shared_statistics(network, self):
            if self.size > 1:
                devices = [self.device] if self.on_gpu else None
                called = nn.parallel.DistributedDataParallel(network, device_ids=devices, **_OWN_BUFFERS)
            torch.backends.cudnn.benchmark = self.on_gpu  # crops have one size: look for the fastest way once
            try:
                yield cast(nn.Module, torch.compile(called)) if compiled else called
            finally:
                torch.backends.cudnn.benchmark = before

    def whole(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Logits and labels of all processes, in the order of the batch; gradients reach the own logits alone."""
        if self.size == 1:
            return logits, batch
        others = self._gathered(_at_least_float32(logits.detach()))
        others[self.rank] = logits
        together = torch.cat([part.to(logits.dtype) for part in others])
        cells = None if batch.cells is None else torch.cat(self._gathered(batch.cells))
        return together, Batch(torch.cat(self._gathered(batch.labels)), cells)

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor)
        return parts

    def any(self, flag: bool) -> bool:
        """Whether it is true in one of the processes, at least."""
        if self.size == 1:
            return flag
        told = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """
    The processes that `torchrun` started, or this one alone where it did not.

    device : as in a plan; with "auto" or "cuda" every process takes the GPU of its number on its machine

    Messages go through NCCL between GPUs and through gloo between processors. Raises TrainingError when another
    process has gone.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if size == 1:
        yield World(chosen)
        return
    if chosen == torch.device("cuda"):
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    is_ours = not distributed.is_initialized()
    if is_ours:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    world = World(chosen, distributed.get_rank(), distributed.get_world_size())
    try:
        yield world
    except RuntimeError as error:
        if not _is_of_the_others(error):
            raise
        do = "Start it again with the same command and folder: it goes on from the last checkpoint."
        found, expected = f"process {world.rank} lost another one", f"all {world.size} processes"
        raise TrainingError("training", found=found, expected=expected, do=do) from error
    finally:
        if is_ours:
            distributed.destroy_process_group()


def _is_of_the_others(error: RuntimeError) -> bool:
    """Whether an error came from the exchange with the others; gloo's have no class of their own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def choose_device(name: str) -> torch.device:
    """The device of that name ("auto": the GPU if there is one); ParameterError when it is not there."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "cuda" and not has_gpu):
        expected = "auto, cpu or a GPU that is here"
        raise ParameterError("device", found=repr(name), expected=expected, do="Take auto.")
    return device


@contextmanager
def _shared_statistics(network: nn.Module, world: World) -> Iterator[None]:
    """Let batch normalisation take mean and variance over the batches of all processes, for a while."""
    layers = [layer for layer in network.modules() if type(layer) is nn.BatchNorm2d]
    if world.size > 1:
        for layer in layers:
            if world.on_gpu:
                layer.process_group = None  # type: ignore[assignment]
                layer.__class__ = nn.SyncBatchNorm  # type: ignore[assignment]
            else:
                layer.__class__ = SharedBatchNorm
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.BatchNorm2d


class SharedBatchNorm(nn.BatchNorm2d):
    """
    Batch normalisation over the batches of all processes, which hold equally many pixels each.

    What torch's SyncBatchNorm does on GPUs, and on the processor not at all (Ioffe & Szegedy 2015, arXiv 1502.03167,
    for the formula).
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalised *images* (N, C, H, W)."""
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        values = _at_least_float32(images)
        n = values.numel() // values.shape[1] * distributed.get_world_size()
        mean = _sum_over_all(values.sum(dim=(0, 2, 3))) / n  # (C,)
        centred = values - mean[:, None, None]
        variance = _sum_over_all(centred.square().sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / max(n - 1, 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _sum_over_all(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total
