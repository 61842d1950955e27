"""
One training on several processors: the processes that `torchrun` started, how they share a batch, and the device.

    torchrun --nproc-per-node 2 -m lcfuse_core train DATA --out RUN

starts the same program several times and numbers the processes by environment variables. Each process draws the
positions of all crops of the batch, cuts its own part, and runs it through its own copy of the network. Three things
are exchanged, so that the result is that of one process with the whole batch:

- batch normalisation: mean and variance are those of the whole batch (`_SharedBatchNorm`);
- the loss: every process computes it from the logits and labels of the whole batch (8 numbers per pixel), because our
  losses are means over labelled pixels or cells, and a mean of means is another loss;
- the gradient: torch's DistributedDataParallel averages it over the processes while it is computed.
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
from lcfuse_core.training.predict import compute_dtype

_DDP_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}
"""Running means are equal in all processes already; torch 2.13 has another name for the option."""


@dataclass(frozen=True)
class Distributed:
    """One of the processes of a training; the first one (rank 0) writes files and shows progress."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        """Return whether this process computes on a GPU."""
        return self.device.type == "cuda"

    def part(self, n: int) -> slice:
        """Return the part of this process of *n* crops. Raises ParameterError if *n* is not a multiple of the size."""
        if n % self.size:
            found, expected = f"{n} crops for {self.size} processes", "a batch that divides by their number"
            raise ParameterError("plan: batch", found=found, expected=expected, do="Change one of the two.")
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    @contextmanager
    def wrap(self, network: nn.Module, compiled: bool = False) -> Iterator[nn.Module]:
        """
        Yield the network in training mode, and leave it in evaluation mode.

        Batch statistics are those of the whole batch, and gradients are averaged over all processes.
        """
        wrapped, before = network, torch.backends.cudnn.benchmark
        network.train()
        layers = [layer for layer in network.modules() if type(layer) is nn.BatchNorm2d]
        if self.size > 1:
            for layer in layers:
                if self.on_gpu:
                    layer.process_group = None  # type: ignore[assignment]
                layer.__class__ = nn.SyncBatchNorm if self.on_gpu else _SharedBatchNorm  # type: ignore[assignment]
            devices = [self.device] if self.on_gpu else None
            wrapped = nn.parallel.DistributedDataParallel(network, device_ids=devices, **_OWN_BUFFERS)
        torch.backends.cudnn.benchmark = self.on_gpu  # crops have one size: search for the fastest algorithm once
        try:
            yield cast(nn.Module, torch.compile(wrapped)) if compiled else wrapped
        finally:
            torch.backends.cudnn.benchmark = before
            for layer in layers:
                layer.__class__ = nn.BatchNorm2d
            network.eval()

    def gather(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Return logits and labels of all processes in the order of the batch; gradients reach the own logits only."""
        if self.size == 1:
            return logits, batch
        parts = self._gather(_at_least_float32(logits.detach()))
        parts[self.rank] = logits
        whole = torch.cat([part.to(logits.dtype) for part in parts])
        cells = None if batch.cells is None else torch.cat(self._gather(batch.cells))
        return whole, Batch(torch.cat(self._gather(batch.labels)), cells)

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor)
        return parts

    def any(self, flag: bool) -> bool:
        """Return whether *flag* is true in at least one process."""
        if self.size == 1:
            return flag
        number = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
        return bool(number)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[Distributed]:
    """
    Join the processes that `torchrun` started; without it, yield this process alone.

    *device* is that of a plan; with "auto" or "cuda" every process takes the GPU of its number on its machine. Messages
    use NCCL between GPUs and gloo between processors. Raises TrainingError if another process has ended.
    """
    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Distributed(chosen)
        return
    if chosen == torch.device("cuda"):
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    is_ours = not distributed.is_initialized()
    if is_ours:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    processes = Distributed(chosen, distributed.get_rank(), distributed.get_world_size())
    try:
        yield processes
    except RuntimeError as error:
        # Errors of the exchange with other processes; those of gloo have no class of their own.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        do = "Start it again with the same command and folder: it goes on from the last checkpoint."
        found, expected = f"process {processes.rank} lost another one", f"all {processes.size} processes"
        raise TrainingError("training", found=found, expected=expected, do=do) from error
    finally:
        if is_ours:
            distributed.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Return the device of that name ("auto": the GPU if there is one). Raises ParameterError if it is missing."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "cuda" and not has_gpu):
        expected = "auto, cpu or a GPU of this machine"
        raise ParameterError("device", found=repr(name), expected=expected, do="Take auto.")
    return device


def describe_device(name: str = "auto", precision: str = "auto") -> str:
    """
    Return a sentence about the device of a plan and its precision, with advice if Colab has a GPU that is not used.

    >>> describe_device("cpu", "float32")
    'computed on the processor in float32'
    """
    device = choose_device(name)
    where = {"cpu": "the processor", "mps": "the GPU"}.get(device.type, "")
    if device.type == "cuda":
        gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
        where = f"{torch.cuda.get_device_name(device)} ({gigabytes:.0f} GB)"
    use_gpu = device.type == "cpu" and "COLAB_RELEASE_TAG" in os.environ
    advice = "; for a GPU choose Runtime, Change runtime type, and run all cells again" if use_gpu else ""
    return f"computed on {where} in {str(compute_dtype(precision, device)).removeprefix('torch.')}{advice}"


class _SharedBatchNorm(nn.BatchNorm2d):
    """
    Batch normalisation over the batches of all processes, which hold equally many pixels each.

    torch's SyncBatchNorm for processors, where torch has none (Ioffe & Szegedy 2015, arXiv 1502.03167).
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised *images* (N, C, H, W)."""
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.num_batches_tracked is not None and self.momentum is not None  # noqa: PT018
        values = _at_least_float32(images)
        n = values.numel() // values.shape[1] * distributed.get_world_size()
        mean = _Sum.apply(values.sum(dim=(0, 2, 3))) / n  # (C,)
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / max(n - 1, 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs. torch's own is deprecated or private."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
