"""
Losses that compare a network's logits with coarse labels.

A loss is built once per training and called on each batch:

    loss = build_loss("cross_entropy", weights)
    value = loss(logits, batch)

Every loss is a mean over labelled pixels, so its scale depends neither on the crop nor on the batch size; pixels with
label 255 have no effect. Pixel-level losses compare each pixel with its label, cell-level losses compare the mean
prediction of a coarse cell with the cell's label. `LOSSES`, at the foot of this file, lists them all by name.

Axes: N crops, H rows, W columns, n labelled pixels, S segments, K = 8 fine classes, M = 9 coarse labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import DataError, GridError, ParameterError
from lcfuse_core.models import transition

_TINY = 1e-7
"""Smallest probability whose logarithm is taken: a wrong label costs at most 16."""


@dataclass(frozen=True)
class Batch:
    """The labels of a batch of crops."""

    labels: Tensor  # uint8 (N, H, W): classes 0..7, 8 = Savanna (if the labels keep it), 255 = ignored
    cells: Tensor | None = None  # integer (N, H, W): cell of each pixel, from 0 in each crop; None: a crop is one cell


Loss = Callable[[Tensor, Batch], Tensor]
"""Scalar loss of logits (N, K, H, W) and their batch; differentiable in the logits."""


@dataclass(frozen=True)
class LabelModel:
    """Properties of the labels that are known before training."""

    class_weights: Tensor | None  # float (M,), weight of each coarse label; None: all 1
    matrix: Tensor  # float (K, M), the transition matrix p(coarse | fine)
    label_share: Tensor | None = None  # (M,), pixels or proportion of each coarse label; None: equal

    @cached_property
    def posterior(self) -> Tensor:
        """Return p(fine | coarse), (M, K), by Bayes' rule with the class prior that explains the label shares."""
        matrix = self.matrix.double().cpu().numpy()
        share = np.ones(matrix.shape[1]) if self.label_share is None else self.label_share.double().cpu().numpy()
        return torch.from_numpy(transition.posterior(matrix, transition.class_prior(matrix, share)))


def class_weights(counts: Tensor | NDArray[np.integer], power: float = 0.5) -> Tensor:
    """
    Return class weights proportional to 1 / frequency^power, float32 (K,).

    Parameters
    ----------
    counts : Tensor or ndarray
        Pixels of each class, (K,).
    power : float
        0 weights all pixels equally, 1 all classes equally.

    Returns
    -------
    Tensor
        Weights with mean 1 over the classes that occur, 0 for the others.

    Raises
    ------
    DataError, ParameterError
        If no class occurs, or *power* is outside 0..1.

    Examples
    --------
    >>> class_weights(torch.tensor([900, 100, 0])).tolist()
    [0.5, 1.5, 0.0]
    """
    if not 0 <= power <= 1:
        raise ParameterError("class weights", found=f"power {power}", expected="0 to 1", do="0.5 is usual.")
    counts = torch.as_tensor(counts).double()
    present = counts > 0
    if not present.any():
        do = "Check the label layer: are all its classes ignored ones (Savanna, Snow/Ice)?"
        raise DataError("class weights", found="no labelled pixel", expected="labels of at least one class", do=do)
    weights = torch.zeros_like(counts)
    weights[present] = counts[present] ** -power
    return (weights / weights[present].mean()).float()


# Pixel-level losses ------------------------------------------------------------------------------


class _Pixels(NamedTuple):
    """The labelled pixels of a batch."""

    log_p: Tensor  # float (n, K)
    label: Tensor  # int64 (n,)
    weight: Tensor  # float (n,), of the label
    position: Tensor  # int64 (n,), in the flattened batch

    @property
    def log_p_label(self) -> Tensor:
        """Return the log-probability of each pixel's label, (n,)."""
        return self.log_p.gather(1, self.label[:, None]).squeeze(1)


def known_pixels(logits: Tensor, batch: Batch, known: LabelModel, n_labels: int | None = None) -> _Pixels:
    """Return the pixels that have one of the first *n_labels* (None: K) labels; GridError if sizes differ."""
    logits = _checked(logits, batch.labels)
    n_labels = logits.shape[1] if n_labels is None else n_labels
    flat = batch.labels.reshape(-1)
    position = (flat < n_labels).nonzero().squeeze(1)
    label = flat[position].long()
    log_p = F.log_softmax(logits, dim=1).movedim(1, -1).reshape(-1, logits.shape[1])[position]
    weights = known.class_weights
    weight = log_p.new_ones(len(position)) if weights is None else weights.to(log_p)[label]
    return _Pixels(log_p, label, weight, position)


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits in at least float32: a sum over 10^5 pixels needs more digits than bfloat16 has."""
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        found = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        raise GridError("loss", found=found, expected="(N, K, H, W) and (N, H, W)", do="Crop both alike.")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return sum(weight x value) / sum(weight), or 0 with a gradient of 0 if all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """
    Compute the weighted mean over the labelled pixels of -log p(label).

    Parameters
    ----------
    logits : Tensor
        Float (N, K, H, W).
    labels : Tensor
        Integer (N, H, W): classes 0..K-1; other values, such as 255, are ignored.
    class_weights : Tensor, optional
        Float (K,). The mean divides by the sum of the weights used. None: all 1.

    Returns
    -------
    Tensor
        Scalar, at least float32; 0 with a gradient of 0 if no pixel has a label with a weight.

    Raises
    ------
    GridError
        If the sizes differ.

    Examples
    --------
    >>> float(cross_entropy(torch.zeros(1, 8, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8)))  # log 8
    2.079441547393799
    """
    logits = _checked(logits, labels)
    n_classes = logits.shape[1]
    weights = logits.new_ones(n_classes) if class_weights is None else class_weights.to(logits)[:n_classes]
    known = labels < n_classes
    target = labels.long().where(known, -100)  # torch's own value for "ignore"
    total = F.cross_entropy(logits, target, weights, reduction="sum")
    weight = (weights[target.where(known, 0)] * known).sum()
    # Without a labelled pixel, total and its gradient are 0, and 0 / tiny is 0.
    return total / weight.clamp(min=torch.finfo(total.dtype).tiny)


def generalised_cross_entropy(logits: Tensor, batch: Batch, known: LabelModel) -> Tensor:
    """
    Compute (1 - p(label)^q) / q: between cross-entropy (q -> 0) and mean absolute error (q = 1).

    Zhang & Sabuncu 2018 (arXiv 1805.07836), with their q = 0.7. The gradient of a pixel is p^q times that of
    cross-entropy, so labels that contradict the prediction are not memorised.
    """
    pixels = known_pixels(logits, batch, known)
    return weighted_mean(-torch.expm1(0.7 * pixels.log_p_label) / 0.7, pixels.weight)


def symmetric_cross_entropy(logits: Tensor, batch: Batch, known: LabelModel) -> Tensor:
    """
    Compute 0.1 x cross-entropy + 1 x reverse cross-entropy, in which label and prediction are exchanged.

    Wang et al. 2019 (arXiv 1908.06112). The logarithm of a label that is 0 is set to -4, so the reverse part is
    4 (1 - p(label)). The larger its factor, the less wrong labels are memorised.
    """
    pixels = known_pixels(logits, batch, known)
    log_p = pixels.log_p_label
    reverse = -4.0 * torch.expm1(log_p)  # 4 (1 - p)
    return weighted_mean(reverse - 0.1 * log_p, pixels.weight)


def bootstrapping(logits: Tensor, batch: Batch, known: LabelModel) -> Tensor:
    """
    Compute cross-entropy with the target 0.95 x label + 0.05 x p: partly the network's own prediction.

    The soft form of Reed et al. 2015 (arXiv 1412.6596), with their weight.
    """
    pixels = known_pixels(logits, batch, known)
    entropy = -(pixels.log_p.exp() * pixels.log_p).sum(dim=1)
    return weighted_mean((1 - 0.95) * entropy - 0.95 * pixels.log_p_label, pixels.weight)


def forward_correction(logits: Tensor, batch: Batch, known: LabelModel) -> Tensor:
    """
    Compute the cross-entropy of the coarse label that the prediction implies: -log sum_k p(k) T[k, label].

    Patrini et al. 2017 (arXiv 1609.03683). A pixel of a Croplands cell may be predicted as Forest at little cost where
    forests are often labelled Croplands.
    """
    matrix = known.matrix.to(logits.device)
    log_p, label, weight, _ = known_pixels(logits, batch, known, matrix.shape[1])
    p_label = (log_p.exp() * matrix.to(log_p).T[label]).sum(dim=1)
    return weighted_mean(-p_label.clamp(min=_TINY).log(), weight)


def implicit_posterior(logits: Tensor, batch: Batch, known: LabelModel, *, direction: str) -> Tensor:
    """
    Compute the divergence from a prior p(fine | label), (M, K), which replaces the label as target.

    Rolf et al. 2022 (arXiv 2202.14000): if the predictions q_i come from a generative model, pixel i has the posterior
    r_i ~ prior_i x q_i / sum_j q_j, class by class. Direction "qr" fits q to r, "rq" fits r to q::

        QR = sum_k Q_k log Q_k - mean_i sum_k q_ik log prior_ik + log K,    Q = mean of q over the pixels
        RQ = mean_i KL(r_i || q_i)

    We add log K: it changes no gradient and keeps QR from being negative. Their priors are label maps blurred in
    space; ours are constant in a cell and come from the transition matrix. Q and the means are over the labelled
    pixels of the batch with the weights of their labels, so they are noisy in small batches.
    """
    table = known.posterior.to(logits.device)
    log_q, label, weight, _ = known_pixels(logits, batch, known, len(table))
    if not weight.any():
        return logits.sum() * 0
    # A class that a label excludes costs 9, not infinity.
    table = (table.to(log_q) + 1e-4) / (1 + 1e-4 * table.shape[1])
    log_prior, share = table.log()[label], (weight / weight.sum())[:, None]
    q = log_q.exp()
    log_mean = (share * q).sum(dim=0).clamp(min=_TINY).log()  # (K,)
    if direction == "qr":
        return (log_mean.exp() * log_mean).sum() - (share * q * log_prior).sum() + math.log(log_q.shape[1])
    log_r = F.log_softmax(log_prior + log_q - log_mean, dim=1)
    return (share * log_r.exp() * (log_r - log_q)).sum()


# Cell-level losses -------------------------------------------------------------------------------


class _Segments(NamedTuple):
    """The labelled parts of coarse cells that the crops of a batch contain."""

    p: Tensor  # float (n, K), probabilities of the labelled pixels
    number: Tensor  # int64 (n,), segment of each of these pixels
    label: Tensor  # int64 (S,)
    size: Tensor  # float (S,), in pixels
    weight: Tensor  # float (S,), size x weight of the label

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over each segment of *values*, (n, ...) -> (S, ...)."""
        total = values.new_zeros((len(self.size), *values.shape[1:])).index_add_(0, self.number, values)
        return total / self.size.view(-1, *[1] * (values.ndim - 1))


def _segments_of(logits: Tensor, batch: Batch, known: LabelModel, n_labels: int | None = None) -> _Segments:
    """Return the segments of a batch; labels from *n_labels* on (None: K) are ignored."""
    log_p, label, _, position = known_pixels(logits, batch, known, n_labels)
    n_labels = logits.shape[1] if n_labels is None else n_labels
    crop = position // batch.labels[0].numel()
    cell = torch.zeros_like(crop) if batch.cells is None else batch.cells.reshape(-1)[position].long()
    n_cells = int(cell.max()) + 1 if len(cell) else 1
    key = (crop * n_cells + cell) * n_labels + label
    # Numbered by a table of all keys that may occur: cheaper than sorting the pixels.
    size = torch.bincount(key, minlength=len(batch.labels) * n_cells * n_labels)
    used = size.nonzero().squeeze(1)
    number = torch.empty_like(size)
    number[used] = torch.arange(len(used), device=size.device)
    pixels = size[used].to(log_p)
    label, weights = used % n_labels, known.class_weights
    weight = pixels if weights is None else pixels * weights.to(pixels)[label]
    return _Segments(log_p.exp(), number[key], label, pixels, weight)


def cell_aggregation(logits: Tensor, batch: Batch, known: LabelModel, *, corrected: bool) -> Tensor:
    """
    Compute the cross-entropy of the mean prediction over the cell: -log sum_k T[k, label] mean p(k).

    Workman et al. 2023 (arXiv 2211.15790), who aggregate to the region. If not *corrected* by the transition matrix,
    only the average over the cell has to be of its label's class.
    """
    cells = _segments_of(logits, batch, known, known.matrix.shape[1] if corrected else None)
    share = cells.mean(cells.p)  # (S, K)
    if corrected:
        share = share @ known.matrix.to(share)  # (S, M)
    p_label = share.gather(1, cells.label[:, None]).squeeze(1)
    return weighted_mean(-p_label.clamp(min=_TINY).log(), cells.weight)


def label_super_resolution(logits: Tensor, batch: Batch, known: LabelModel) -> Tensor:
    """
    Compare the predicted class shares of a cell with the distribution of shares that its label implies.

    Malkin et al. 2019 (ICLR, "Label super-resolution networks"): given the label, the share of class k in a cell is
    normal with mean eta and variance rho^2; the predicted share over n pixels is normal with mean mu = mean p and
    variance sigma^2 = sum p (1 - p) / n^2. The loss is minus the logarithm of their overlap,

        sum_k (mu - eta)^2 / (2 (sigma^2 + rho^2)) + log(1 + sigma^2 / rho^2) / 2,

    up to a constant that makes its minimum 0. eta is p(fine | coarse), (M, K). A transition matrix does not give rho^2;
    we take that of a Dirichlet distribution of concentration 3, eta (1 - eta) / 4, and at least 0.1^2.
    """
    cells = _segments_of(logits, batch, known, len(known.posterior))
    mean = cells.mean(cells.p)  # (S, K)
    variance = cells.mean(cells.p * (1 - cells.p)) / cells.size[:, None]
    expected = known.posterior.to(mean)[cells.label]
    spread = (expected * (1 - expected) / 4.0).clamp(min=0.1**2)
    misfit = (mean - expected).square() / (2 * (variance + spread)) + torch.log1p(variance / spread) / 2
    return weighted_mean(misfit.sum(dim=1), cells.weight)


def bag_loss(logits: Tensor, batch: Batch, known: LabelModel) -> Tensor:
    """
    Multiple-instance loss: the label's class occurs somewhere in the cell; all other pixels are unlabelled.

    Our form of the positive-unlabelled bags of Perantoni & Bruzzone (arXiv 2510.06769), the sum of two parts:

    - positive: -log of the power mean (mean p(label)^4)^(1/4) over the cell, between the mean (power 1) and the maximum
      (power infinity): a part of the cell is enough;
    - unlabelled: any other class k may cover p(k | label) of the cell at no cost and costs
      -log(1 - excess) beyond, never less than 0, as in the risk of Kiryo et al. 2017 (arXiv 1703.00593).
    """
    cells = _segments_of(logits, batch, known)  # Savanna is not one of the network's classes: its cells are ignored
    p_label = cells.p.gather(1, cells.label[cells.number][:, None]).squeeze(1).clamp(min=_TINY)
    positive = -cells.mean(p_label**4.0).log() / 4.0
    excess = (cells.mean(cells.p) - known.posterior.to(cells.p)[cells.label]).clamp(0, 1 - _TINY)
    others = 1 - torch.eye(logits.shape[1]).to(excess)[cells.label]
    unlabelled = -(torch.log1p(-excess) * others).sum(dim=1)
    return weighted_mean(positive + unlabelled, cells.weight)


# Registry ----------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": lambda logits, batch, known: cross_entropy(logits, batch.labels, known.class_weights),
    "generalised": generalised_cross_entropy,
    "symmetric": symmetric_cross_entropy,
    "bootstrapping": bootstrapping,
    "forward": forward_correction,
    "posterior_qr": partial(implicit_posterior, direction="qr"),
    "posterior_rq": partial(implicit_posterior, direction="rq"),
    "cell_mean": partial(cell_aggregation, corrected=False),
    "cell_forward": partial(cell_aggregation, corrected=True),
    "super_resolution": label_super_resolution,
    "bag": bag_loss,
}
"""Losses by name: functions of logits, `Batch` and `LabelModel`."""

MIXED_LABEL_LOSSES = ("forward", "posterior_qr", "posterior_rq", "cell_forward", "super_resolution")
"""Losses that use the coarse label Savanna, as a mixture of fine classes; the others ignore it."""

TRANSITION_LOSSES = (*MIXED_LABEL_LOSSES, "bag")
"""Losses that use p(coarse | fine)."""

CELL_LOSSES = ("cell_mean", "cell_forward", "super_resolution", "bag")
"""Losses that use the cells of a batch."""


def build_loss(
    name: str, class_weights: Tensor | None = None, transition: Tensor | None = None, label_share: Tensor | None = None
) -> Loss:
    """Return the loss of that name in `LOSSES` (*transition* None: the identity). ParameterError on another name."""
    if name not in LOSSES:
        known = f"one of {', '.join(LOSSES)}"
        raise ParameterError("loss", found=repr(name), expected=known, do="Choose one of these.")
    matrix = torch.eye(len(SCORED), dtype=torch.float64) if transition is None else transition
    return partial(LOSSES[name], known=LabelModel(class_weights, matrix, label_share))
