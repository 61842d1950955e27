"""
One coarse cell under a loss: which of its pixels a loss pulls at, and what it would make of the cell.

For the pages on losses. A cell is taken out of its patch as a row of pixels: where in a cell a pixel lies means nothing
to any loss (a test holds them to it), so nothing is lost. Logits are (1, 8, 1, n) here, n the pixels of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core.book.images import band
from lcfuse_core.data.legends import SCORED, dfc_to_index
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import label_index, patch_cells
from lcfuse_core.errors import DataError
from lcfuse_core.models.losses import Batch, Loss

N = len(SCORED)


@dataclass(frozen=True)
class OneCell:
    """
    A cell that lies whole in its patch.

    inside : bool (H, W)
    label : network class 0..7 that MODIS gives it
    """

    patch: Patch
    inside: NDArray[np.bool_]
    label: int

    @property
    def n_pixels(self) -> int:
        """Pixels of the cell: about 2,100."""
        return int(self.inside.sum())

    @property
    def batch(self) -> Batch:
        """What a loss is told of the cell."""
        return Batch(torch.full((1, 1, self.n_pixels), self.label, dtype=torch.uint8))

    @property
    def truth(self) -> NDArray[np.float64] | None:
        """Shares of the classes by the patch's reference, (8,); None where it has none or knows no pixel."""
        if self.patch.dfc is None:
            return None
        known = dfc_to_index(self.patch.dfc)[self.inside]
        known = known[known < N]
        return np.bincount(known, minlength=N) / len(known) if len(known) else None

    def row(self, field: Tensor) -> Tensor:
        """The pixels of the cell, (1, C, 1, n), of a field (1, C, H, W) on the patch."""
        return field[:, :, torch.from_numpy(self.inside)][:, :, None]

    def felt(self, loss: Loss, opinion: Tensor) -> NDArray[np.float64]:
        """How hard each pixel is pulled towards the cell's label (`pull`) from an *opinion* (1, 8, 1, n); (H, W)."""
        return self.on_patch(pull(loss, opinion, self.batch, self.label))

    def on_patch(self, values: Tensor) -> NDArray[np.float64]:
        """A value a pixel, (n,), put back in its place; NaN outside the cell, (H, W)."""
        field = np.full(self.inside.shape, np.nan)
        field[self.inside] = values.double().numpy()
        return field


def varied_cell(patch: Patch) -> OneCell:
    """
    Of the whole cells with a label of the eight classes, the one whose near infrared varies most.

    Chosen by image and label; the reference is not looked at. Raises DataError when the patch has no such cell.
    """
    ids, told = patch_cells(patch), label_index(patch, "modis")
    rim = np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])
    usable = np.setdiff1d(ids[told < N], rim)
    if not len(usable):
        do = "Take another patch: most hold a dozen such cells."
        raise DataError(patch.name, found="no whole cell with a label", expected="one", do=do)
    spread = pd.Series(band(patch, "B8").ravel()).groupby(ids.ravel()).std()[usable]
    inside = ids == spread.idxmax()
    labels = told[inside]
    return OneCell(patch, inside, int(np.bincount(labels[labels < N]).argmax()))


def gradient(loss: Loss, logits: Tensor, batch: Batch) -> Tensor:
    """Of the loss of n pixels, times n: what each pixel feels under a mean over pixels; as *logits*, (1, 8, 1, n)."""
    free = logits.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(free, batch) * batch.labels.numel(), free)
    return slope


def pull(loss: Loss, logits: Tensor, batch: Batch, label: int) -> Tensor:
    """How hard each pixel is pulled towards *label*, (n,): minus the gradient in its logit; negative: pushed away."""
    return -gradient(loss, logits, batch)[0, label, 0]


def pull_curve(loss: Loss, label: int, rival: int, chances: Tensor) -> NDArray[np.float64]:
    """
    The pull towards its label of a pixel alone, undecided between label and *rival*, by its p(label).

    chances : (n,), p(label), each judged as a pixel, and a cell, of its own
    """
    logits = torch.full((len(chances), N, 1, 1), -30.0, dtype=torch.float64)
    logits[:, label, 0, 0], logits[:, rival, 0, 0] = chances.double().logit(), 0
    one = Batch(torch.full((1, 1, 1), label, dtype=torch.uint8))
    return np.array([float(pull(loss, pixel[None], one, label)) for pixel in logits])


def left_alone(loss: Loss, logits: Tensor, batch: Batch, *, steps: int = 60, rate: float = 0.1) -> Tensor:
    """
    The cell's logits after *steps* of gradient descent in which every pixel may go where it likes.

    No weights are shared, so this is the bare wish of a loss: what it would make of the cell if nothing but the label
    and the starting opinion counted. A pixel moves by *rate* times its `gradient` in each step.
    """
    for _ in range(steps):
        logits = logits - rate * gradient(loss, logits, batch)
    return logits


def shares(logits: Tensor) -> NDArray[np.float64]:
    """Mean probability of each class over the cell, (8,)."""
    return logits.softmax(1).mean(dim=(0, 2, 3)).double().numpy()


def costs(loss: Loss, label: int, rival: int) -> NDArray[np.float64]:
    """What a cell of 100 pixels costs, above the least, if 0, 1 ... 100 are sure of the label, the rest of *rival*."""
    batch = Batch(torch.full((1, 1, 100), label, dtype=torch.uint8))
    sure = 8 * torch.eye(N)
    found = []
    for n in range(101):
        classes = torch.tensor([label] * n + [rival] * (100 - n))
        found.append(float(loss(sure[classes].T[None, :, None], batch)))
    return np.array(found) - min(found)
