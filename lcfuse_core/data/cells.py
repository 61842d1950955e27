"""
The coarse cell: which cell of the MODIS sinusoidal grid each 10 m pixel lies in.

A MODIS land-cover pixel is a square of 463.3 m in the sinusoidal projection of a sphere. Seen in UTM it is
a sheared parallelogram of arbitrary phase, never an axis-aligned 50 x 50 block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from lcfuse_core.data.legends import IGNORE

SPHERE_RADIUS_M = 6371007.181
"""Radius of the MODIS sphere (MODLAND grid definition)."""

SINUSOIDAL = f"+proj=sinu +R={SPHERE_RADIUS_M} +units=m +no_defs"
"""The grid of MODIS land products."""

CELL_M = 926.625433055833 / 2
"""Side of a 500 m cell: a tile of 10 degrees holds 2400 of them (MODLAND grid definition)."""

GRID_ROWS, GRID_COLS = 18 * 2400, 36 * 2400
"""Size of the global 500 m grid; row 0 is the north, column 0 the west."""


def modis_cells(
    transform: Affine, crs: CRS | str, shape: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """
    Row and column, in the global 500 m MODIS grid, of the cell that holds each pixel centre.

    transform, crs : georeference of the raster (any CRS that pyproj knows)
    shape : (H, W) in pixels

    Returns two int32 arrays of shape (H, W). A pixel always gets the same cell, whatever raster it is
    read from: patches that overlap agree on their overlap.
    """
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    easting = transform.a * cols + transform.b * rows + transform.c
    northing = transform.d * cols + transform.e * rows + transform.f
    to_lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = np.radians(to_lonlat.transform(easting, northing))
    # MODIS puts geodetic latitude straight on the sphere (as GDAL does with its R=6371007.181 sphere).
    x_m = SPHERE_RADIUS_M * lon * np.cos(lat)
    y_m = SPHERE_RADIUS_M * lat
    col = np.floor(x_m / CELL_M).astype(np.int32) + GRID_COLS // 2
    row = GRID_ROWS // 2 - 1 - np.floor(y_m / CELL_M).astype(np.int32)
    return row, col


def cell_ids(transform: Affine, crs: CRS | str, shape: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """
    Number the cells of a raster 0..n-1, north to south and west to east.

    Returns `ids`, int32 (H, W), and `keys`, int64 (n,): the cell's place in the global grid
    (row * GRID_COLS + col), so that cells of different rasters can be joined.
    """
    row, col = modis_cells(transform, crs, shape)
    keys, ids = np.unique(row.astype(np.int64) * GRID_COLS + col, return_inverse=True)
    return ids.reshape(shape).astype(np.int32), keys


def majority_share(labels: NDArray[np.integer], ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """
    How pure the cells are: share of the most common class in each cell that lies whole in the raster.

    labels : integers >= 0, shape (H, W)
    ids : cell of each pixel, as `cell_ids` numbers them

    >>> ids, _ = cell_ids(Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632", (150, 150))
    >>> majority_share(np.ones((150, 150), int), ids).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    counts = np.zeros((ids.max() + 1, labels.max() + 1))
    np.add.at(counts, (ids.ravel(), labels.ravel()), 1)
    size = counts.sum(axis=1)
    whole = size > 0.98 * CELL_M**2 / 100  # pixel counts of whole cells differ by a few
    return counts[whole].max(axis=1) / size[whole]


def modis_raster(transform: Affine, crs: Any, igbp: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Affine]:
    """
    A map of 10 m pixels that hold the code of their MODIS cell, turned back into one pixel a cell.

    igbp : uint8 (H, W), the same in all pixels of a cell, as in SEN12MS

    Returns codes (rows, cols), 255 where no pixel lies in the cell, and their transform in `SINUSOIDAL`.
    """
    row, col = modis_cells(transform, crs, igbp.shape)
    codes = np.full((row.max() - row.min() + 1, col.max() - col.min() + 1), IGNORE, np.uint8)
    codes[row - row.min(), col - col.min()] = igbp
    west = (int(col.min()) - GRID_COLS // 2) * CELL_M
    north = (GRID_ROWS // 2 - int(row.min())) * CELL_M
    return codes, Affine(CELL_M, 0, west, 0, -CELL_M, north)


CELL_PX = CELL_M / 10
"""Side of a cell in pixels of 10 m."""

MAX_STRETCH = 0.02
"""The ellipsoid and UTM change it by less."""

MAX_TILT, MAX_SHEAR = 0.06, 3.1
"""3 degrees from the central meridian at the pole; half the Earth from Greenwich (pi, in radians)."""

WIDTH_PX = 0.8
"""Standard deviation, in pixels, of the distance between an edge of labels and the line that it lies on."""


@dataclass(frozen=True)
class Recovered:
    """
    Cells read off a label.

    ids : int32 (H, W), cell of each pixel, 0..n-1 from north to south and west to east
    explained : share of the label's edges that lie within a pixel and a half of a line; NaN without any edge
    n_row_lines, n_col_lines : lines of each family that some edge lies on; with none of a family its lines are
        a guess, with one their direction is, and from two on both are told
    tilt, shear : see above; row_phase, col_phase : 0..1
    """

    ids: NDArray[np.int32]
    explained: float
    n_row_lines: int
    n_col_lines: int
    tilt: float
    shear: float
    row_phase: float
    col_phase: float


def recover(labels: NDArray[np.integer]) -> Recovered:
    """
    The coarse cells of a patch of 10 m pixels, from its coarse label alone.

    labels : class codes (H, W), or several layers of the same cells (L, H, W): more layers show more edges

    The cells are exact only where edges show them; see `Recovered`.
    """
    layers = labels if labels.ndim == 3 else labels[None]
    across = (np.diff(layers, axis=1) != 0).any(axis=0)  # (H-1, W): the label changes from this row to the next
    along = (np.diff(layers, axis=2) != 0).any(axis=0)  # (H, W-1)
    row_line = _row_lines(across)
    col_line = _col_lines(along, row_line)
    row, col = np.mgrid[: layers.shape[1], : layers.shape[2]] + 0.5
    cell_row = np.floor(row_line.coordinate(row, col)).astype(np.int64)
    cell_col = np.floor(col_line.coordinate(col, row)).astype(np.int64)
    n_cols = int(np.ptp(cell_col)) + 1
    keys = (cell_row - cell_row.min()) * n_cols + cell_col - cell_col.min()
    ids = np.unique(keys, return_inverse=True)[1].reshape(keys.shape).astype(np.int32)
    explained, n_rows, n_cols_seen = _explained(across, along, row_line, col_line)
    return Recovered(
        ids, explained, n_rows, n_cols_seen, row_line.slope, col_line.slope, row_line.phase, col_line.phase
    )


@dataclass(frozen=True)
class _Lines:
    """Lines at place = (k + phase) * spacing + slope * other."""

    slope: float
    phase: float
    spacing: float

    def coordinate(self, place: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        """Number of lines passed on the way there: whole numbers on the lines."""
        return (place - self.slope * other) / self.spacing - self.phase

    def distance(self, place: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels to the nearest line."""
        number = self.coordinate(place, other)
        return np.abs(number - np.round(number)) * self.spacing


def _row_lines(across: NDArray[np.bool_]) -> _Lines:
    """
    The lines between rows of cells, from the places where the label changes down a column of pixels.

    Sheared columns are crossed there too, but in runs of MAX_SHEAR pixels at most; an edge between rows runs on.
    """
    run = 2 * (int(MAX_SHEAR) + 1) + 1
    padded = np.pad(across, ((0, 0), (run // 2, run // 2)))
    row, col = np.nonzero(np.lib.stride_tricks.sliding_window_view(padded, run, axis=1).all(axis=2))
    # Lines are a cell apart at right angles.
    return _fit(row + np.float64(1), col + np.float64(0.5), MAX_TILT, lambda tilt: CELL_PX * np.hypot(1, tilt))


def _col_lines(along: NDArray[np.bool_], rows: _Lines) -> _Lines:
    """The lines between columns of cells, from changes along a row of pixels but for the steps of tilted rows."""
    row, col = np.nonzero(along)
    place, other = col + np.float64(1), row + np.float64(0.5)
    keep = rows.distance(other, place) > 1
    # Lines are a cell apart along a row of cells, which is not along a row of pixels.
    apart = CELL_PX / np.hypot(1, rows.slope)
    return _fit(place[keep], other[keep], MAX_SHEAR, lambda shear: apart * (1 - shear * rows.slope))


def _fit(
    place: NDArray[np.float64], other: NDArray[np.float64], max_slope: float, spacing: Callable[[float], float]
) -> _Lines:
    """The lines that most edges lie on: all slopes and phases are tried, the best is refined by least squares."""
    if not place.size:
        return _Lines(0.0, 0.0, spacing(0.0))
    # Half a pixel at the far end: a finer step finds nothing that the refinement would not.
    step = 0.5 / max(np.ptp(other), 32.0)
    slopes = np.arange(-max_slope, max_slope + step, step).tolist()
    few = slice(None, None, max(1, place.size // 800))  # enough to choose by
    tries = [_best_phase(place[few] - slope * other[few], spacing(slope)) for slope in slopes]
    best = int(np.argmax([score for score, _ in tries]))
    lines = _Lines(slopes[best], tries[best][1], spacing(slopes[best]))
    for reach in (4.0, 2.5, 1.5):
        lines = _refine(lines, place, other, reach)
    return lines


_BINS = 93  # of half a pixel
_DISTANCE = np.minimum(np.arange(_BINS), _BINS - np.arange(_BINS)) * CELL_PX / _BINS
_KERNEL = np.fft.rfft(np.exp(-0.5 * (_DISTANCE / WIDTH_PX) ** 2))


def _best_phase(offset: NDArray[np.float64], spacing: float) -> tuple[float, float]:
    """How many edges lie on lines of one slope, softly counted, and the phase (0..1) at which most do."""
    counts = np.bincount((offset % spacing * (_BINS / spacing)).astype(int) % _BINS, minlength=_BINS)
    score = np.fft.irfft(np.fft.rfft(counts) * _KERNEL, _BINS)
    best = int(score.argmax())
    return float(score[best]), (best + 0.5) / _BINS


def _refine(lines: _Lines, place: NDArray[np.float64], other: NDArray[np.float64], reach: float) -> _Lines:
    """
    Slope and phase by least squares over the edges within *reach* pixels of a line.

    The spacing too, where three lines or more tell it.
    """
    near = lines.distance(place, other) <= reach
    number = np.round(lines.coordinate(place[near], other[near]))
    if near.sum() < 12 or np.ptp(other[near]) < 8:
        return lines
    design = np.stack([other[near], np.ones(near.sum()), number], axis=1)
    if len(np.unique(number)) >= 3:
        slope, shift, spacing = np.linalg.lstsq(design, place[near], rcond=None)[0].tolist()
        if abs(spacing / lines.spacing - 1) <= MAX_STRETCH:
            return _Lines(slope, shift / spacing % 1, spacing)
    slope, shift = np.linalg.lstsq(design[:, :2], place[near] - number * lines.spacing, rcond=None)[0].tolist()
    return _Lines(slope, shift / lines.spacing % 1, lines.spacing)


def _explained(
    across: NDArray[np.bool_], along: NDArray[np.bool_], rows: _Lines, cols: _Lines, reach: float = 1.5
) -> tuple[float, int, int]:
    """Share of all edges near a line, and how many lines of each family have a run of them."""
    r1, c1 = np.nonzero(across)
    r2, c2 = np.nonzero(along)
    row, col = np.concatenate([r1 + 1.0, r2 + 0.5]), np.concatenate([c1 + 0.5, c2 + 1.0])
    if not row.size:
        return float("nan"), 0, 0
    near_row, near_col = rows.distance(row, col) <= reach, cols.distance(col, row) <= reach
    seen_rows = _seen(rows.coordinate(row, col)[near_row & ~near_col])
    seen_cols = _seen(cols.coordinate(col, row)[near_col & ~near_row])
    return float((near_row | near_col).mean()), seen_rows, seen_cols


def _seen(numbers: NDArray[np.float64]) -> int:
    """Lines with a dozen pixels of edge on them."""
    return int((np.unique(np.round(numbers), return_counts=True)[1] >= 12).sum())
