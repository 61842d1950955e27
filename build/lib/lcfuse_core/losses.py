"""
Losses: how wrong a network's logits are, given the labels it may learn from.

Every loss is made once, from what stays the same for a whole training, and then called on each batch:

    loss = build_loss("cross_entropy", weights)
    value = loss(logits, batch)

`LOSSES` is the list of them; the battery of tests goes over the list. A loss is a mean over known pixels,
so that neither crop nor batch size changes its scale, and a pixel whose label is 255 has no part in it. Those that
look at pixels one by one are in `pixel_losses`, those that look at whole cells in `cell_losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core import transition
from lcfuse_core.cell_losses import Bag, CellAggregation, LabelSuperResolution
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.legends import SCORED
from lcfuse_core.pixel_losses import (
    Batch,
    Bootstrapping,
    CrossEntropy,
    ForwardCorrection,
    GeneralisedCrossEntropy,
    ImplicitPosterior,
    Loss,
    SymmetricCrossEntropy,
    cross_entropy,
)

__all__ = ["LOSSES", "Batch", "Knowledge", "Loss", "build_loss", "class_weights", "cross_entropy"]


@dataclass(frozen=True)
class Knowledge:
    """
    What is known of the labels before training starts.

    class_weights : float (M,), a weight for each coarse label, or None for all one
    transition : float (8, M), p(coarse | fine), M = 8, or 9 with Savanna; None: labels are taken as true
    label_share : float (M,), pixels or share of each coarse label; None: all alike
    """

    class_weights: Tensor | None = None
    transition: Tensor | None = None
    label_share: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """The transition matrix, or the identity."""
        return torch.eye(len(SCORED), dtype=torch.float64) if self.transition is None else self.transition

    @cached_property
    def posterior(self) -> Tensor:
        """p(fine | coarse), (M, K): Bayes' rule with the shares of fine classes that explain the labels' shares."""
        matrix = self.matrix.double().cpu().numpy()
        share = np.ones(matrix.shape[1]) if self.label_share is None else self.label_share.double().cpu().numpy()
        prior = transition.class_prior(matrix, share)
        return torch.from_numpy(transition.posterior(matrix, prior))


LOSSES: dict[str, Callable[[Knowledge], Loss]] = {
    "cross_entropy": lambda known: CrossEntropy(known.class_weights),
    "generalised": lambda known: GeneralisedCrossEntropy(known.class_weights),
    "symmetric": lambda known: SymmetricCrossEntropy(known.class_weights),
    "bootstrapping": lambda known: Bootstrapping(known.class_weights),
    "forward": lambda known: ForwardCorrection(known.matrix, known.class_weights),
    "posterior_qr": lambda known: ImplicitPosterior(known.posterior, known.class_weights, "qr"),
    "posterior_rq": lambda known: ImplicitPosterior(known.posterior, known.class_weights, "rq"),
    "cell_mean": lambda known: CellAggregation(None, known.class_weights),
    "cell_forward": lambda known: CellAggregation(known.matrix, known.class_weights),
    "super_resolution": lambda known: LabelSuperResolution(known.posterior, known.class_weights),
    "bag": lambda known: Bag(known.posterior, known.class_weights),
}
"""Makers of losses from what is known of the labels."""

HEARS_SAVANNA = ("forward", "posterior_qr", "posterior_rq", "cell_forward", "super_resolution")
"""Losses that can learn from the coarse label Savanna, as a mixture of classes; the others ignore it."""

NEEDS_TRANSITION = (*HEARS_SAVANNA, "bag")
"""Losses that make use of p(coarse | fine)."""


def build_loss(
    name: str,
    class_weights: Tensor | None = None,
    transition: Tensor | None = None,
    label_share: Tensor | None = None,
) -> Loss:
    """A loss by its name in LOSSES, from `Knowledge`. Raises ParameterError on an unknown name."""
    if name not in LOSSES:
        known = ", ".join(LOSSES)
        raise ParameterError("loss", found=repr(name), expected=f"one of {known}", do="Choose one of these.")
    return LOSSES[name](Knowledge(class_weights, transition, label_share))


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
