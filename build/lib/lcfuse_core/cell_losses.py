"""
Losses that ask a coarse label of its cell as a whole, on the cell's real geometry.

The pixels of a cell are averaged first, then judged: where in the cell its class lies is left to the images. A
*segment* here is the pixels of one cell that carry one label (a cell has one label; where georeference and label
disagree by a pixel, the few pixels make a segment of their own, which weighs little).

A crop cuts cells at its edges. What is left of a cell counts by its share: each segment weighs as many pixels as the
crop shows of it, times its label's weight. So the loss keeps the scale of a mean over pixels, a crop that holds
single pixels of a cell barely hears it, and a segment of one pixel is judged like a pixel. The part of a cell may
still be of other composition than the whole: crops of 128 pixels hold four whole cells or more, crops of 64 often none.

Axes: n known pixels, S segments, K = 8 fine classes, M = 8 or 9 coarse labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lcfuse_core.pixel_losses import TINY, Batch, known_pixels, weighted_mean


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
