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
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import DataError, GridError, ParameterError
from lcfuse_core.models import transition

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


TINY = 1e-7
"""Least probability whose logarithm is taken: labels that are wrong cost at most 16."""


@dataclass(frozen=True)
class Batch:
    """
    What a loss may look at beside the logits.

    labels : uint8 (N, H, W), network classes 0..7, 8 = Savanna where labels keep it, 255 = ignore
    cells : integer (N, H, W), coarse cell of each pixel, numbered from 0 within each crop; None: each crop one cell
    """

    labels: Tensor
    cells: Tensor | None = None


Loss = Callable[[Tensor, Batch], Tensor]
"""Scalar of logits (N, 8, H, W) and their batch; differentiable in the logits."""


class Pixels(NamedTuple):
    """
    The known pixels of a batch, one a row.

    log_p : float (n, K), log-probabilities
    label : int64 (n,)
    weight : float (n,), of the pixel's label
    place : int64 (n,), in the flattened batch
    """

    log_p: Tensor
    label: Tensor
    weight: Tensor
    place: Tensor


def known_pixels(logits: Tensor, labels: Tensor, class_weights: Tensor | None, n_labels: int | None = None) -> Pixels:
    """
    Log-probabilities and labels of the pixels that have one of the first *n_labels* (None: K) labels.

    Raises GridError when the sizes differ.
    """
    check_sizes(logits, labels)
    n_labels = logits.shape[1] if n_labels is None else n_labels
    # A sum over 10^5 pixels needs more digits than bfloat16 has.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = labels.reshape(-1)
    place = (flat < n_labels).nonzero().squeeze(1)
    label = flat[place].long()
    log_p = F.log_softmax(logits, dim=1).movedim(1, -1).reshape(-1, logits.shape[1])[place]
    weight = log_p.new_ones(len(place)) if class_weights is None else class_weights.to(log_p)[label]
    return Pixels(log_p, label, weight, place)


def check_sizes(logits: Tensor, labels: Tensor) -> None:
    """Raise GridError unless there is one label a pixel."""
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        found = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        raise GridError("loss", found=found, expected="(N, K, H, W) and (N, H, W)", do="Crop both alike.")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight x value over the sum of weights; 0, with a gradient of 0, where nothing weighs."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """
    Mean over the known pixels of -log p(label), each pixel weighted by the weight of its class.

    logits : float (N, K, H, W)
    labels : integer (N, H, W), classes 0..K-1; all others, as 255, are ignored
    class_weights : float (K,) or None for all one; the mean divides by the sum of the weights used

    Returns a scalar: float32, or float64 for such logits. Zero, with a gradient of zero, when no pixel has a
    label and a weight. Raises GridError when the sizes differ.

    >>> float(cross_entropy(torch.zeros(1, 8, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8)))  # log 8
    2.079441547393799
    """
    check_sizes(logits, labels)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    n_classes = logits.shape[1]
    weights = logits.new_ones(n_classes) if class_weights is None else class_weights.to(logits)[:n_classes]
    known = labels < n_classes
    target = labels.long().where(known, -100)  # torch's own value for "ignore"
    total = F.cross_entropy(logits, target, weights, reduction="sum")
    weight = (weights[target.where(known, 0)] * known).sum()
    # Where nothing is known, total and its gradient are 0, and 0 / tiny is 0.
    return total / weight.clamp(min=torch.finfo(total.dtype).tiny)


@dataclass(frozen=True)
class CrossEntropy:
    """`cross_entropy` with each pixel's label, as if a coarse label were true of its whole cell."""

    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        return cross_entropy(logits, batch.labels, self.class_weights)


@dataclass(frozen=True)
class GeneralisedCrossEntropy:
    """
    (1 - p(label)^q) / q: between cross-entropy (q -> 0) and mean absolute error (q = 1).

    Zhang & Sabuncu 2018 (arXiv 1805.07836), whose q is 0.7: a pixel that contradicts its label pulls
    with p^q of the force that it has under cross-entropy, so that wrong labels are not learnt by heart.
    """

    class_weights: Tensor | None = None
    q: float = 0.7

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        log_p, label, weight, _ = known_pixels(logits, batch.labels, self.class_weights)
        return weighted_mean(-torch.expm1(self.q * _of(log_p, label)) / self.q, weight)


@dataclass(frozen=True)
class SymmetricCrossEntropy:
    """
    alpha x cross-entropy + beta x reverse cross-entropy, in which label and prediction change places.

    Wang et al. 2019 (arXiv 1908.06112): log of a label that is 0 is set to `log_zero`, so that the reverse part is
    -log_zero x (1 - p(label)). The more beta outweighs alpha, the less wrong labels are learnt by heart.
    """

    class_weights: Tensor | None = None
    alpha: float = 0.1
    beta: float = 1.0
    log_zero: float = -4.0

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        log_p, label, weight, _ = known_pixels(logits, batch.labels, self.class_weights)
        log_right = _of(log_p, label)
        reverse = self.log_zero * torch.expm1(log_right)  # -log_zero (1 - p)
        return weighted_mean(reverse * self.beta - log_right * self.alpha, weight)


@dataclass(frozen=True)
class Bootstrapping:
    """
    Cross-entropy with a label that is partly the network's own opinion: beta x label + (1 - beta) x p.

    The soft form of Reed et al. 2015 (arXiv 1412.6596), with a beta of 0.95.
    """

    class_weights: Tensor | None = None
    beta: float = 0.95

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        log_p, label, weight, _ = known_pixels(logits, batch.labels, self.class_weights)
        own = -(log_p.exp() * log_p).sum(dim=1)
        return weighted_mean((1 - self.beta) * own - self.beta * _of(log_p, label), weight)


@dataclass(frozen=True)
class ForwardCorrection:
    """
    Cross-entropy of what MODIS would say: -log sum_k p(k) T[k, label].

    Patrini et al. 2017 (arXiv 1609.03683). The network is free to call a pixel of a Croplands cell Forest
    where forests are often called Croplands; no label but the coarse one is asked of the sum.
    """

    transition: Tensor
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        matrix = self.transition.to(logits.device)
        log_p, label, weight, _ = known_pixels(logits, batch.labels, self.class_weights, matrix.shape[1])
        chance = (log_p.exp() * matrix.to(log_p).T[label]).sum(dim=1)
        return weighted_mean(-chance.clamp(min=TINY).log(), weight)


@dataclass(frozen=True)
class ImplicitPosterior:
    """
    Not the label is the target but a prior p(fine | label); the network's own statistics sharpen it.

    Rolf et al. 2022 (arXiv 2202.14000): if the network's answers q_i come from a generative model, then pixel i has
    the posterior r_i ~ prior_i x q_i / sum_j q_j, class by class. "qr" draws q to r, "rq" draws r to q:

        QR = sum_k Q_k log Q_k - mean_i sum_k q_ik log prior_ik + log K,    Q = mean of q over the pixels
        RQ = mean_i KL(r_i || q_i)

    log K, our addition, changes no gradient and keeps QR from being negative. Their priors blur the labels in space;
    ours are constant in a cell and come from the transition matrix. Q and the means are taken over the known pixels
    of the batch, weighted by their label's weight, so small batches make them noisy.
    """

    posterior: Tensor  # (M, K), p(fine | coarse), rows to one
    class_weights: Tensor | None = None
    direction: str = "qr"
    floor: float = 1e-4  # of a prior: a class that a label excludes costs 9, not infinity

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        table = self.posterior.to(logits.device)
        log_q, label, weight, _ = known_pixels(logits, batch.labels, self.class_weights, len(table))
        if not weight.any():
            return logits.sum() * 0
        table = (table.to(log_q) + self.floor) / (1 + self.floor * table.shape[1])
        log_prior, share = table.log()[label], (weight / weight.sum())[:, None]
        q = log_q.exp()
        log_mean = (share * q).sum(dim=0).clamp(min=TINY).log()  # (K,)
        if self.direction == "qr":
            return (log_mean.exp() * log_mean).sum() - (share * q * log_prior).sum() + _log(log_q.shape[1])
        log_r = F.log_softmax(log_prior + log_q - log_mean, dim=1)
        return (share * log_r.exp() * (log_r - log_q)).sum()


def _of(log_p: Tensor, label: Tensor) -> Tensor:
    """Log-probability of each pixel's label."""
    return log_p.gather(1, label[:, None]).squeeze(1)


def _log(number: int) -> float:
    return float(torch.tensor(number, dtype=torch.float64).log())


class Segments(NamedTuple):
    """
    The cells of a batch, as far as its crops show them.

    p : float (n, K), probabilities of the known pixels
    number : int64 (n,), segment of each of them
    label : int64 (S,)
    size : float (S,), pixels of each
    weight : float (S,), size x weight of the label
    """

    p: Tensor
    number: Tensor
    label: Tensor
    size: Tensor
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over each segment of *values*, (n, ...) -> (S, ...)."""
        total = values.new_zeros((len(self.size), *values.shape[1:])).index_add_(0, self.number, values)
        return total / self.size.view(-1, *[1] * (values.ndim - 1))


def segments(logits: Tensor, batch: Batch, class_weights: Tensor | None, n_labels: int | None = None) -> Segments:
    """The segments of a batch, as they are met; labels from *n_labels* on (None: K) are unknown."""
    log_p, label, _, place = known_pixels(logits, batch.labels, class_weights, n_labels)
    n_labels = logits.shape[1] if n_labels is None else n_labels
    crop = place // batch.labels[0].numel()
    cell = torch.zeros_like(crop) if batch.cells is None else batch.cells.reshape(-1)[place].long()
    n_cells = int(cell.max()) + 1 if len(cell) else 1
    key = (crop * n_cells + cell) * n_labels + label
    # Numbered by a table of all keys that may occur: cheaper than sorting the pixels.
    size = torch.bincount(key, minlength=len(batch.labels) * n_cells * n_labels)
    there = size.nonzero().squeeze(1)
    number = torch.empty_like(size)
    number[there] = torch.arange(len(there), device=size.device)
    pixels = size[there].to(log_p)
    label_weight = torch.ones_like(pixels) if class_weights is None else class_weights.to(pixels)[there % n_labels]
    return Segments(log_p.exp(), number[key], there % n_labels, pixels, pixels * label_weight)


@dataclass(frozen=True)
class CellAggregation:
    """
    Cross-entropy of the mean prediction over the cell: -log sum_k T[k, label] mean p(k).

    Workman et al. 2023 (arXiv 2211.15790) aggregate to the region and compare with its label. Without a transition
    matrix (the identity) the whole cell is still asked to be of its label's class, but may be so on average; with it,
    p(label) is the chance that a pixel drawn from the cell makes MODIS say so.
    """

    transition: Tensor | None = None
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        n_labels = logits.shape[1] if self.transition is None else self.transition.shape[1]
        cells = segments(logits, batch, self.class_weights, n_labels)
        share = cells.mean(cells.p)  # (S, K)
        if self.transition is not None:
            share = share @ self.transition.to(share)  # (S, M)
        chance = share.gather(1, cells.label[:, None]).squeeze(1)
        return weighted_mean(-chance.clamp(min=TINY).log(), cells.weight)


@dataclass(frozen=True)
class LabelSuperResolution:
    """
    The class shares of a cell should have the mean and variance that its label tells of.

    Malkin et al. 2019 (ICLR, "Label super-resolution networks"): given its label, the share of class k in a cell is
    taken as normal with mean eta and variance rho^2; what the network says of n pixels is normal too, with mean
    mu = mean p and variance sigma^2 = sum p (1 - p) / n^2. The loss is minus the log of how well the two agree,

        sum_k (mu - eta)^2 / (2 (sigma^2 + rho^2)) + log(1 + sigma^2 / rho^2) / 2,

    up to a constant that makes its least value 0. eta is p(fine | coarse). rho^2 is not known from a transition
    matrix; we take that of a Dirichlet distribution, eta (1 - eta) / (1 + concentration), and at least `least_rho` ^2.
    """

    posterior: Tensor  # (M, K), p(fine | coarse), rows to one
    class_weights: Tensor | None = None
    concentration: float = 3.0
    least_rho: float = 0.1

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        cells = segments(logits, batch, self.class_weights, len(self.posterior))
        mean = cells.mean(cells.p)  # (S, K)
        variance = cells.mean(cells.p * (1 - cells.p)) / cells.size[:, None]
        expected = self.posterior.to(mean)[cells.label]
        spread = (expected * (1 - expected) / (1 + self.concentration)).clamp(min=self.least_rho**2)
        misfit = (mean - expected).square() / (2 * (variance + spread)) + torch.log1p(variance / spread) / 2
        return weighted_mean(misfit.sum(dim=1), cells.weight)


@dataclass(frozen=True)
class Bag:
    """
    A cell is a bag: its label's class is somewhere in it, and the pixels of other labels' cells are unlabelled.

    In the spirit of Perantoni & Bruzzone (arXiv 2510.06769), who learn from coarse cells as from bags of positive and
    unlabelled instances; the form is ours. Two parts, of which the second counts `negative` times:

    - positive: -log of the power mean (mean p(label)^a)^(1/a) over the cell, between the mean (a = 1) and the most
      sure pixel (a -> infinity): a part of the cell suffices;
    - unlabelled: any other class k may hold p(k | label) of the cell for nothing, and pays -log(1 - excess) beyond,
      never less than 0, as in the non-negative risk of Kiryo et al. 2017 (arXiv 1703.00593).
    """

    posterior: Tensor  # (M, K), p(fine | coarse), rows to one
    class_weights: Tensor | None = None
    power: float = 4.0
    negative: float = 1.0

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        n_classes = logits.shape[1]  # a bag of Savanna has no class of its own: it is left out
        cells = segments(logits, batch, self.class_weights, n_classes)
        own = cells.p.gather(1, cells.label[cells.number][:, None]).squeeze(1).clamp(min=TINY)
        positive = -cells.mean(own**self.power).log() / self.power
        excess = (cells.mean(cells.p) - self.posterior.to(cells.p)[cells.label]).clamp(0, 1 - TINY)
        others = 1 - torch.eye(n_classes).to(excess)[cells.label]
        unlabelled = -(torch.log1p(-excess) * others).sum(dim=1)
        return weighted_mean(positive + self.negative * unlabelled, cells.weight)
