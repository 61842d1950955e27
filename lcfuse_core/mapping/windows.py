"""
Overlapping windows over a scene: where they lie, how they are blended, and which rows each row of them finishes.

Weights are a product of one for rows and one for columns, and sum to one at every pixel. Towards an edge that is not
the scene's, a weight is 0 for `margin` pixels, where a network sees the padding instead of the scene, and then rises
in a line over the rest of the overlap. A network whose receptive field reaches no further than the margin so gives the
same map whatever the windows; one that sees further gives a map without steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.errors import ParameterError


def window_slices(length: int, window: int, overlap: int) -> list[slice]:
    """
    Equal windows that cover `length` pixels, each overlapping the next by at least `overlap`.

    >>> window_slices(100, 40, 10)
    [slice(0, 40, None), slice(30, 70, None), slice(60, 100, None)]
    >>> window_slices(30, 40, 10)
    [slice(0, 30, None)]
    """
    window = min(window, length)
    starts = [*range(0, length - window, max(1, window - overlap)), length - window]
    return [slice(start, start + window) for start in starts]


def side_weights(slices: list[slice], overlap: int, margin: int = 0) -> list[NDArray[np.float32]]:
    """
    Weight of each window along one side, float32 (window,) each; at every pixel they sum to one.

    >>> [weights.tolist() for weights in side_weights([slice(0, 4), slice(1, 5)], overlap=3)]
    [[1.0, 0.75, 0.5, 0.25], [0.25, 0.5, 0.75, 1.0]]
    """
    length = slices[-1].stop
    total = np.zeros(length)
    raw = []
    for pixels in slices:
        inside = np.arange(1, pixels.stop - pixels.start + 1)
        weight = np.ones(len(inside))
        for distance, at_edge in ((inside, pixels.start == 0), (inside[::-1], pixels.stop == length)):
            if not at_edge:
                weight *= np.clip((distance - margin) / (overlap - 2 * margin + 1), 0, 1)
        total[pixels] += weight
        raw.append(weight)
    return [(weight / total[pixels]).astype(np.float32) for weight, pixels in zip(raw, slices, strict=True)]


class Unit(NamedTuple):
    """
    What is finished at once: the rows that one row of windows completes, in the columns of one panel.

    number : from 0, in the order of work
    first, last : rows of windows that it needs
    """

    number: int
    panel: int
    first: int
    last: int
    rows: slice
    cols: slice


@dataclass(frozen=True)
class Tiling:
    """
    Windows over a scene of *shape*, (H, W) in pixels. Raises ParameterError on sizes that cannot be.

    window, overlap, margin : pixels; see the head of this file
    panel : widest part that is worked on at once. Memory grows with it, and with nothing else
    """

    shape: tuple[int, int]
    window: int = 512
    overlap: int = 64
    margin: int = 16
    panel: int = 11264

    def __post_init__(self) -> None:
        good = self.window >= 1 and 0 <= self.overlap <= self.window // 2
        if not good or not 0 <= 2 * self.margin <= self.overlap or self.panel < 1:
            found = f"window={self.window}, overlap={self.overlap}, margin={self.margin}, panel={self.panel}"
            expected = "an overlap of at most half the window, a margin of at most half the overlap"
            raise ParameterError("windows", found=found, expected=expected, do="512, 64 and 16 do for most.")

    @cached_property
    def rows(self) -> list[slice]:
        """Rows of each row of windows."""
        return window_slices(self.shape[0], self.window, self.overlap)

    @cached_property
    def cols(self) -> list[slice]:
        """Columns of each column of windows."""
        return window_slices(self.shape[1], self.window, self.overlap)

    @cached_property
    def row_weights(self) -> list[NDArray[np.float32]]:
        """See `side_weights`."""
        return side_weights(self.rows, self.overlap, self.margin)

    @cached_property
    def col_weights(self) -> list[NDArray[np.float32]]:
        """See `side_weights`."""
        return side_weights(self.cols, self.overlap, self.margin)

    @cached_property
    def panels(self) -> list[slice]:
        """Columns of the panels: side by side, of nearly one width."""
        n = -(-self.shape[1] // self.panel)
        edges = np.linspace(0, self.shape[1], n + 1).astype(int).tolist()
        return [slice(left, right) for left, right in pairwise(edges)]

    def columns_of(self, panel: int) -> list[int]:
        """Numbers of the columns of windows that a panel needs."""
        cols = self.panels[panel]
        return [j for j, part in enumerate(self.cols) if part.start < cols.stop and part.stop > cols.start]

    def units(self) -> Iterator[Unit]:
        """The parts of the scene in the order of work; together they are the scene, once."""
        number, starts = 0, [part.start for part in self.rows]
        for panel, cols in enumerate(self.panels):
            for i, start in enumerate(starts):
                stop = starts[i + 1] if i + 1 < len(starts) else self.shape[0]
                first = next(k for k, part in enumerate(self.rows) if part.stop > start)
                yield Unit(number, panel, first, i, slice(start, stop), cols)
                number += 1

    @property
    def n_windows(self) -> int:
        """Windows that are looked at; those that two panels share count twice."""
        return len(self.rows) * sum(len(self.columns_of(panel)) for panel in range(len(self.panels)))
