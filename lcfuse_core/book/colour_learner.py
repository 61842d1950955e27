"""
A learner that knows only colours: three layers of 1 x 1 convolutions, taught in seconds under any loss.

For the pages on losses: it answers for a pixel from its fifteen channels alone, so pixels that look alike must get the
same answer, and what a label says of one cell is shared with all that look like it. No rival of the networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lcfuse_core.data.legends import IGNORE, N_COARSE, SCORED, index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import PatchStack, Statistics, channel_statistics, class_counts, label_index, normalise
from lcfuse_core.models.losses import HEARS_SAVANNA, Batch, Loss, build_loss, class_weights
from lcfuse_core.models.transition import Matrix, counted, from_accuracy

N = len(SCORED)


@dataclass
class Lesson:
    """
    What is learnt from: a few patches of one size, and every *every*-th pixel of them in each direction.

    matrix : p(coarse | fine), (8, 9), for the losses that take one; None: from one stated accuracy
    """

    shown: Sequence[Patch]
    every: int = 4
    matrix: Matrix | None = None

    @cached_property
    def statistics(self) -> Statistics:
        """Of the channels of all that is shown."""
        return channel_statistics(self.shown)

    @cached_property
    def batch(self) -> Batch:
        """Labels, Savanna kept, and cells of the pixels that are looked at."""
        stack = PatchStack(self.shown, "modis+savanna")
        return Batch(self._thin(stack.labels), self._thin(stack.cells))

    @cached_property
    def images(self) -> Tensor:
        """Their normalised channels, (N, 15, h, w)."""
        return torch.stack([self._thin(self.channels(patch)[0]) for patch in self.shown])

    @cached_property
    def counts(self) -> Tensor:
        """Pixels of each coarse label, (9,)."""
        return class_counts(self.batch.labels, N_COARSE)

    def channels(self, patch: Patch) -> Tensor:
        """All pixels of a patch as the learner sees them, (1, 15, H, W)."""
        return normalise(patch.s2, patch.s1, self.statistics)[None]

    def loss(self, name: str, *, weighted: bool = True) -> Loss:
        """A loss by its name in LOSSES, told the label shares and the matrix."""
        matrix = from_accuracy(self.counts.double().numpy()) if self.matrix is None else self.matrix
        weights = class_weights(self.counts) if weighted else None
        return build_loss(name, weights, torch.from_numpy(np.ascontiguousarray(matrix)), self.counts)

    def heard(self, name: str) -> Batch:
        """The batch as that loss takes it: most losses ignore Savanna."""
        labels = self.batch.labels
        if name not in HEARS_SAVANNA:
            labels = labels.where(labels < N, torch.tensor(IGNORE, dtype=labels.dtype))
        return Batch(labels, self.batch.cells)

    def teach(self, name: str, *, steps: int = 100, seed: int = 0) -> nn.Sequential:
        """A learner (images -> logits), taught under that loss from weights that depend on *seed* alone."""
        learner, loss, batch = fresh(seed), self.loss(name), self.heard(name)
        optimiser = torch.optim.Adam(learner.parameters(), 0.01)
        for _ in range(steps):
            optimiser.zero_grad()
            loss(learner(self.images), batch).backward()
            optimiser.step()
        return learner.requires_grad_(False)

    def drawn(self, learner: nn.Sequential, patch: Patch) -> NDArray[np.uint8]:
        """Its map of a whole patch, uint8 (H, W), DFC2020 codes."""
        return index_to_dfc(learner(self.channels(patch)).argmax(dim=1)[0].numpy().astype(np.uint8))

    def agreement(self, learner: nn.Sequential) -> float:
        """Share of the labels of the eight classes that it repeats."""
        labels = self.batch.labels
        same = learner(self.images).argmax(dim=1) == labels
        return float(same[labels < N].double().mean())

    def average_accuracy(self, learner: nn.Sequential) -> float:
        """Mean recall of the reference of the patches shown: an illustration where its truth was planted, no score."""
        truth = torch.from_numpy(np.stack([label_index(patch, "fine") for patch in self.shown]))
        answer, truth = learner(self.images).argmax(dim=1), self._thin(truth)
        found = [(answer == k)[truth == k].double().mean() for k in range(N) if (truth == k).any()]
        return float(torch.stack(found).mean())

    def posteriors(self, learner: nn.Sequential, patches: Sequence[Patch]) -> tuple[NDArray, NDArray]:
        """Its p(fine | image), (n, 8), of thinned pixels of other *patches*, and their coarse labels, (n,)."""
        seen = [self._thin(learner(self.channels(patch)).softmax(1)[0]).reshape(N, -1).T for patch in patches]
        told = [label_index(patch, "modis+savanna")[:: self.every, :: self.every].reshape(-1) for patch in patches]
        return torch.cat(seen).numpy(), np.concatenate(told)

    def _thin(self, field: Tensor) -> Tensor:
        return field[..., :: self.every, :: self.every].contiguous()


def fresh(seed: int) -> nn.Sequential:
    """The network, untaught; the generator of the caller is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second, third = nn.Conv2d(15, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, N, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


def counted_on(patches: Iterable[Patch]) -> Matrix:
    """p(coarse | fine), (8, 9), counted on *patches* whose reference may be opened, all pixels of all of them."""
    pairs = [(label_index(patch, "fine").ravel(), label_index(patch, "modis+savanna").ravel()) for patch in patches]
    fine, coarse = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return counted(fine, coarse)
