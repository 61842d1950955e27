"""
Losses that ask each pixel for the label of its cell, as if a coarse label were true of its whole cell, and those
that expect it to be wrong now and then.

All take logits (N, K, H, W) and return one number: the mean over the known pixels, each weighted by the weight of its
label. Axes: N crops, K = 8 classes that networks know, M coarse labels, 8 or 9, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lcfuse_core.errors import GridError

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
