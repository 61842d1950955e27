"""
Tile a scene into overlapping windows, and blend them.

The weight of a pixel is the product of a row weight and a column weight; the weights of all windows sum to one at
every pixel. Towards an edge that is not an edge of the scene, a weight is 0 for `margin` pixels, where a network sees
padding instead of the scene, and then rises linearly over the rest of the overlap. A network whose receptive field
reaches no further than the margin gives the same map for any window size; others give a map without steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.errors import ParameterError


def _window_slices(length: int, window: int, overlap: int) -> list[slice]:
    """
    Return equal windows that cover `length` pixels, each overlapping the next by at least `overlap`.

    >>> _window_slices(100, 40, 10)
    [slice(0, 40, None), slice(30, 70, None), slice(60, 100, None)]
    >>> _window_slices(30, 40, 10)
    [slice(0, 30, None)]
    """
    window = min(window, length)
    starts = [*range(0, length - window, max(1, window - overlap)), length - window]
    return [slice(start, start + window) for start in starts]


def _side_weights(slices: list[slice], overlap: int, margin: int) -> list[NDArray[np.float32]]:
    """
    Return the weight of each window along one side, float32 (window,) each; at every pixel they sum to one.

    >>> [weights.tolist() for weights in _side_weights([slice(0, 4), slice(1, 5)], 3, 0)]
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


@dataclass(frozen=True)
class Tiling:
    """
    Windows over a scene of *shape*, (H, W) in pixels; see the head of this file.

    All windows have one size, that of the scene where it is smaller. Raises ParameterError if the overlap exceeds half
    the window, or the margin half the overlap.
    """

    shape: tuple[int, int]
    window: int = 512
    overlap: int = 64
    margin: int = 16

    def __post_init__(self) -> None:
        good = self.window >= 1 and 0 <= self.overlap <= self.window // 2
        if not good or not 0 <= 2 * self.margin <= self.overlap:
            found = f"window={self.window}, overlap={self.overlap}, margin={self.margin}"
            expected = "an overlap of at most half the window, a margin of at most half the overlap"
            raise ParameterError("windows", found=found, expected=expected, do="512, 64 and 16 suit most networks.")

    @cached_property
    def rows(self) -> list[slice]:
        """Rows of each row of windows."""
        return _window_slices(self.shape[0], self.window, self.overlap)

    @cached_property
    def cols(self) -> list[slice]:
        """Columns of each column of windows."""
        return _window_slices(self.shape[1], self.window, self.overlap)

    def finished(self, i: int) -> slice:
        """Return the rows of the scene that row *i* of windows completes."""
        rows = self.rows[i]
        return slice(rows.start, self.rows[i + 1].start if i + 1 < len(self.rows) else rows.stop)


class Predicted(NamedTuple):
    """A window by its row and column of windows: pixels with data (h, w), and probabilities (8, h, w) if any."""

    row: int
    col: int
    valid: NDArray[np.bool_]
    probabilities: NDArray[np.float32] | None


def blend(
    predictions: Iterable[Predicted], tiling: Tiling, n_classes: int
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
    """
    Add up the weighted predictions of all windows, row by row, and yield rows of the scene when they are complete.

    Yields rows, their probabilities (n_classes, h, W) and valid pixels (h, W); the arrays are reused, so copy what you
    keep. Memory grows with the width of the scene, not with its height.
    """
    height, width = tiling.rows[0].stop, tiling.shape[1]
    total, valid = np.zeros((n_classes, height, width), np.float32), np.zeros((height, width), bool)
    sizes = tiling.overlap, tiling.margin
    row_weights, col_weights = _side_weights(tiling.rows, *sizes), _side_weights(tiling.cols, *sizes)
    for window in predictions:
        cols = tiling.cols[window.col]
        valid[:, cols] |= window.valid
        if window.probabilities is not None:
            total[..., cols] += window.probabilities * np.outer(row_weights[window.row], col_weights[window.col])
        if window.col == len(tiling.cols) - 1:
            rows = tiling.finished(window.row)
            n = rows.stop - rows.start
            yield rows, total[:, :n], valid[:n]
            for array in (total, valid):
                array[..., : height - n, :] = array[..., n:, :].copy()
                array[..., height - n :, :] = 0
