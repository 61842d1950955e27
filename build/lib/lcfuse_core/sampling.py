"""
Where training cuts its crops: every place alike, every scene alike, or every class alike.

    area    each place that patches cover is equally likely (the default)
    scene   a scene first, all alike, then a place in it: a small scene is heard as often as a large one
    class   a class first, all alike, then one of its pixels, then a crop that holds the pixel

A stack says what there is (`Places`), a `Sampler` draws from it. `benchmarks/README.md` has what each does to the
scores on the sample: none but the first earned to be the default.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.legends import N_COARSE

SAMPLING = ("area", "scene", "class")

TRIES = 10_000
"""Draws before it is clear that no covered place will be met."""

Place = tuple[int, int, int, int]
"""Patch or scene by its number, row and column of the upper left pixel of a crop, and symmetry 0..7."""

Block = tuple[int, int, int]
"""Patch or scene by its number, row and column of the upper left pixel of a block of labels."""


class Places(Protocol):
    """What a stack tells of its places."""

    def places(self, n: int, size: int, generator: torch.Generator) -> list[Place]:
        """*n* places of crops of *size* pixels, all equally likely."""
        ...

    def scene_names(self) -> list[str]:
        """The scene of each number."""
        ...

    def extent(self, number: int) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def is_whole(self, number: int, row: int, col: int, size: int) -> bool:
        """Whether a crop inside the extent is covered."""
        ...

    def blocks(self) -> list[Block]:
        """Blocks of labels that cover every pixel once."""
        ...

    def block_labels(self, block: Block) -> NDArray[np.uint8]:
        """Network classes of a block, uint8 (H, W)."""
        ...


class Sampler:
    """
    Draws the places of crops in one of the ways of SAMPLING.

    Everything random comes from the generator that is handed over: the same state gives the same places. Raises
    DataError when classes are to be drawn alike and no pixel has one.
    """

    def __init__(self, stack: Places, kind: str = "area") -> None:
        self.stack, self.kind = stack, kind
        if kind == "scene":
            names = stack.scene_names()
            self._scenes = [[n for n, own in enumerate(names) if own == name] for name in dict.fromkeys(names)]
        if kind == "class":
            self._blocks = stack.blocks()
            self._counts = torch.stack([_counts(stack.block_labels(block)) for block in self._blocks])  # (B, K)
            self._present = self._counts.sum(dim=0).nonzero().flatten().tolist()
            if not self._present:
                do = "Check the labels, or draw by area."
                raise DataError("class sampling", found="no labelled pixel", expected="at least one", do=do)

    def places(self, n: int, size: int, generator: torch.Generator) -> list[Place]:
        """*n* places of crops of *size* pixels, each in one of its eight flips and rotations."""
        if self.kind == "area":
            return self.stack.places(n, size, generator)
        self.stack.places(1, size, generator)  # says so where no crop of this size fits
        draw = self._in_a_scene if self.kind == "scene" else self._with_a_class
        return [(*draw(size, generator), _below(8, generator)) for _ in range(n)]

    def _in_a_scene(self, size: int, generator: torch.Generator) -> tuple[int, int, int]:
        for _ in range(TRIES):
            numbers = self._scenes[_below(len(self._scenes), generator)]
            number = numbers[_below(len(numbers), generator)]
            rows, cols = self.stack.extent(number)
            if min(rows, cols) < size:
                continue
            row, col = _below(rows - size + 1, generator), _below(cols - size + 1, generator)
            if self.stack.is_whole(number, row, col, size):
                return number, row, col
        raise _no_place(size)

    def _with_a_class(self, size: int, generator: torch.Generator) -> tuple[int, int, int]:
        for _ in range(TRIES):
            chosen = self._present[_below(len(self._present), generator)]
            weights = self._counts[:, chosen].double()
            number, top, left = block = self._blocks[int(torch.multinomial(weights, 1, generator=generator))]
            labels = self.stack.block_labels(block)
            pixels = np.flatnonzero(labels == chosen)
            row, col = divmod(int(pixels[_below(len(pixels), generator)]), labels.shape[1])
            rows, cols = self.stack.extent(number)
            if min(rows, cols) < size:
                continue
            corner = _around(top + row, size, rows, generator), _around(left + col, size, cols, generator)
            if self.stack.is_whole(number, *corner, size):
                return number, *corner
        raise _no_place(size)


def _counts(labels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.bincount(labels.reshape(-1), minlength=256)[:N_COARSE])


def _no_place(size: int) -> ParameterError:
    found, expected = f"{size}", "a size for which covered squares can be met"
    return ParameterError("crop size", found=found, expected=expected, do="Take smaller crops.")


def _below(n: int, generator: torch.Generator) -> int:
    """A number 0..n-1."""
    return int(torch.randint(n, (), generator=generator))


def _around(pixel: int, size: int, n: int, generator: torch.Generator) -> int:
    """Where *size* pixels that hold this one may begin, among *n*."""
    first, last = max(0, pixel - size + 1), min(pixel, n - size)
    return first + _below(last - first + 1, generator)
