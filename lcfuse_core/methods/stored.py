"""Networks that were trained before: shipped with the package, or kept in the data folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lcfuse_core import _runtime
from lcfuse_core.training import checkpoint, loop
from lcfuse_core.training.checkpoint import Run

SHIPPED = _runtime.SHIPPED / "checkpoints"
"""
Small networks trained on the sample of seed 0, so that most chapters run without training. The subfolder `adapted`
holds a network that was fine-tuned on the target regions of that sample; it is not for maps of other regions.
"""


def path_of(name: str) -> Path:
    """Return where the network of that file name is, or would be kept."""
    shipped = (SHIPPED / name, SHIPPED / "adapted" / name, SHIPPED / "large" / name)
    return next(filter(Path.exists, shipped), _runtime.data_folder() / "runs" / name)


def kept(name: str, train: Callable[[Path], Run]) -> Run:
    """
    Return the network stored under a name; if there is none, train and store it.

    Parameters
    ----------
    name : str
        File name of the checkpoint.
    train : callable
        Gets a folder of its own, from which an interrupted training continues.
    """
    path = path_of(name)
    # Chapters may run side by side.
    with _runtime.lock((_runtime.data_folder() / "runs" / name).with_suffix(".lock")):
        if not path.exists():
            checkpoint.save_checkpoint(train(path.with_suffix("")), path)
    # Read back even when it was trained just now: both ways must give the same maps.
    return on_device(checkpoint.load_checkpoint(path))


def on_device(run: Run) -> Run:
    """Move the network of a run to the device of its plan; return the run."""
    run.network.to(loop.choose_device(run.plan.device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return run


def seconds(run: Run) -> float:
    """Return the duration of a training in seconds."""
    return float(run.history[-1]["seconds"] or 0) if run.history else 0.0
