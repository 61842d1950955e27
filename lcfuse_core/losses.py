"""
Losses: how wrong a network's logits are, given the labels it may learn from.

Every loss is made once, from what stays the same for a whole training, and then called on each batch:

    loss = build_loss("cross_entropy", weights)
    value = loss(logits, batch)

`LOSSES` is the list of them; the battery of tests goes over the list. A loss is a mean over known pixels,
so that neither crop nor batch size changes its scale, and a pixel whose label is 255 has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lcfuse_core.errors import DataError, GridError, ParameterError
from lcfuse_core.legends import IGNORE


@dataclass(frozen=True)
class Batch:
    """
    What a loss may look at beside the logits.

    labels : uint8 (N, H, W), network classes 0..7, 255 = ignore
    """

    labels: Tensor


Loss = Callable[[Tensor, Batch], Tensor]
"""Scalar of logits (N, 8, H, W) and their batch; differentiable in the logits."""


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """
    Mean over the known pixels of -log p(label), each pixel weighted by the weight of its class.

    logits : float (N, K, H, W)
    labels : integer (N, H, W), classes 0..K-1, 255 = ignore
    class_weights : float (K,) or None for all one; the mean divides by the sum of the weights used

    Returns a scalar: float32, or float64 for such logits. Zero, with a gradient of zero, when no pixel has a
    label and a weight. Raises GridError when the sizes differ.

    >>> float(cross_entropy(torch.zeros(1, 8, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8)))  # log 8
    2.079441547393799
    """
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        found = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        raise GridError("loss", found=found, expected="(N, K, H, W) and (N, H, W)", do="Crop both alike.")
    # A sum over 10^5 pixels needs more digits than bfloat16 has.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = torch.ones(logits.shape[1]) if class_weights is None else class_weights
    weights, target, known = weights.to(logits), labels.long(), labels != IGNORE
    total = F.cross_entropy(logits, target, weights, ignore_index=IGNORE, reduction="sum")
    weight = (weights[target.where(known, 0)] * known).sum()
    # Where nothing is known, total and its gradient are 0, and 0 / tiny is 0.
    return total / weight.clamp(min=torch.finfo(total.dtype).tiny)


def class_weights(counts: Tensor | NDArray[np.integer], power: float = 0.5) -> Tensor:
    """
    Weights ~ 1 / frequency^power, so that rare classes are heard; float32 (K,).

    counts : pixels of each class, (K,)
    power : 0 weighs all pixels alike, 1 all classes alike; 0.5 lies between

    Mean one over the classes that occur, zero for those that do not. Raises DataError when none does,
    ParameterError on a power outside 0..1.

    >>> class_weights(torch.tensor([900, 100, 0])).tolist()
    [0.5, 1.5, 0.0]
    """
    if not 0 <= power <= 1:
        raise ParameterError("class weights", found=f"power {power}", expected="0 to 1", do="0.5 is usual.")
    counts = torch.as_tensor(counts).double()
    present = counts > 0
    if not present.any():
        raise DataError(
            "class weights",
            found="no labelled pixel",
            expected="labels of at least one class",
            do="Check the label layer: are all its classes ignored ones (Savanna, Snow/Ice)?",
        )
    weights = torch.zeros_like(counts)
    weights[present] = counts[present] ** -power
    return (weights / weights[present].mean()).float()


@dataclass(frozen=True)
class CrossEntropy:
    """`cross_entropy` with each pixel's label, as if a coarse label were true of its whole cell."""

    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        return cross_entropy(logits, batch.labels, self.class_weights)


LOSSES: dict[str, Callable[[Tensor | None], Loss]] = {"cross_entropy": CrossEntropy}
"""Makers of losses: each takes the class weights (K,), or None for all one."""


def build_loss(name: str, class_weights: Tensor | None = None) -> Loss:
    """A loss by its name in LOSSES. Raises ParameterError on an unknown name."""
    if name not in LOSSES:
        known = ", ".join(LOSSES)
        raise ParameterError("loss", found=repr(name), expected=f"one of {known}", do="Choose one of these.")
    return LOSSES[name](class_weights)
