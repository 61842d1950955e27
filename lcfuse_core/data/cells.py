"""
Coarse cells: the cell of the MODIS sinusoidal grid that each 10 m pixel lies in.

A MODIS land-cover pixel is a square of 463.3 m in the sinusoidal projection of a sphere. In UTM it is a sheared
parallelogram of arbitrary phase, not an axis-aligned block of 50 x 50 pixels.

The phase archives of DFC2020 have no georeference. `recover` finds their cells from the edges of the coarse label,
which lie on two families of equally spaced lines over the few kilometres of a patch (k = 0, 1, ...):

    between rows     row = (k + row phase) * height + tilt * col
    between columns  col = (k + column phase) * width + shear * row

Height and width follow from the size of a cell. Fitted are the tilt (circles of latitude against the UTM grid), the
shear (x = R lon cos(lat) grows with the distance from Greenwich and the equator), the phases and 2 % of the spacing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from lcfuse_core.data.legends import IGNORE

_SPHERE_RADIUS_M = 6371007.181
"""Radius of the MODIS sphere (MODLAND grid definition)."""

SINUSOIDAL = f"+proj=sinu +R={_SPHERE_RADIUS_M} +units=m +no_defs"
"""The projection of MODIS land products."""

CELL_M = 926.625433055833 / 2
"""Side of a 500 m cell: a tile of 10 degrees holds 2400 of them (MODLAND grid definition)."""

_CELL_PX = CELL_M / 10
"""Side of a cell in pixels of 10 m."""

GRID_ROWS, GRID_COLS = 18 * 2400, 36 * 2400
"""Size of the global 500 m grid; row 0 is the north, column 0 the west."""

_MAX_STRETCH = 0.02  # of the spacing: the ellipsoid and UTM change it by less
_MAX_TILT = 0.06  # 3 degrees from the central meridian at the pole, in radians
_MAX_SHEAR = 3.1  # half the Earth from Greenwich: pi, in radians
_WIDTH_PX = 0.8  # standard deviation of the distance between an edge of labels and its line


def lonlat_to_modis(lon_deg: Any, lat_deg: Any) -> tuple[Any, Any]:
    """
    Project geodetic longitude and latitude (degrees) to x and y in metres of the MODIS sinusoidal grid.

    MODIS uses geodetic latitude directly on the sphere, as GDAL does for `SINUSOIDAL`.
    """
    lon, lat = np.radians(lon_deg), np.radians(lat_deg)
    return _SPHERE_RADIUS_M * lon * np.cos(lat), _SPHERE_RADIUS_M * lat


def modis_to_lonlat(x_m: Any, y_m: Any) -> tuple[Any, Any]:
    """Return longitude and latitude (degrees) of coordinates in the MODIS grid: the inverse of `lonlat_to_modis`."""
    lat = np.asarray(y_m) / _SPHERE_RADIUS_M
    return np.degrees(x_m / (_SPHERE_RADIUS_M * np.cos(lat))), np.degrees(lat)


def modis_cells(
    transform: Affine, crs: CRS | str, shape: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """
    Return row and column, in the global 500 m MODIS grid, of the cell that holds each pixel centre.

    Parameters
    ----------
    transform, crs : Affine, CRS
        Georeference of the raster, in any CRS that pyproj supports.
    shape : tuple of int
        Size (H, W) in pixels.

    Returns
    -------
    row, col : int32 arrays, shape (H, W)
        The same for a pixel in whatever raster it is: overlapping patches agree.
    """
    # The projection is smooth: interpolate it between points _STEP pixels apart, and compute it exactly for the few
    # pixels that lie so near a border of a cell that the error could matter.
    points = [np.arange(0, side + 2 * _STEP, _STEP) for side in shape]
    coarse = _grid_position(transform, crs, *np.meshgrid(*points, indexing="ij"))
    # Linear interpolation between every second point misses the points between by four times as much.
    misses = [part[:, :-2:2] + part[:, 2::2] - 2 * part[:, 1:-1:2] for part in (coarse, coarse.swapaxes(1, 2))]
    error = 0.5 * max(np.abs(miss).max(initial=0) for miss in misses)
    if not error < 0.05:  # at the date line or a pole; NaN outside the CRS
        position = _grid_position(transform, crs, *np.mgrid[: shape[0], : shape[1]])
    else:
        position = _between(_between(coarse, shape[0]).swapaxes(1, 2), shape[1]).swapaxes(1, 2)
        near = (np.abs(position - np.round(position)) <= error + 1e-6).any(axis=0).nonzero()
        position[:, *near] = _grid_position(transform, crs, *near)
    row, col = np.floor(position).astype(np.int32)
    return GRID_ROWS // 2 - 1 - row, col + GRID_COLS // 2


_STEP = 8


def _grid_position(
    transform: Affine, crs: CRS | str, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return y and x in cells, from the origin of the MODIS grid, of the centres of some pixels, (2, ...)."""
    x_m, y_m = lonlat_to_modis(*_to_lonlat(crs).transform(*transform @ np.stack([cols + 0.5, rows + 0.5])))
    return np.stack([y_m / CELL_M, x_m / CELL_M])


@lru_cache(maxsize=32)
def _to_lonlat(crs: CRS | str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def _between(points: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Interpolate (2, points _STEP apart, any) linearly at 0, 1 ... n - 1 along the second axis."""
    first, weight = np.divmod(np.arange(n), _STEP)
    weight = weight[:, None] / _STEP
    return points[:, first] * (1 - weight) + points[:, first + 1] * weight


def cell_ids(transform: Affine, crs: CRS | str, shape: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """
    Number the cells of a raster 0..n-1, north to south and west to east.

    Returns
    -------
    ids : int32 array, shape (H, W)
        Number of the cell of each pixel.
    keys : int64 array, shape (n,)
        Position of each cell in the global grid, row * GRID_COLS + col: the same in every raster.
    """
    row, col = modis_cells(transform, crs, shape)
    top, left, n_cols = int(row.min()), int(col.min()), int(np.ptp(col)) + 1
    if (int(np.ptp(row)) + 1) * n_cols > 64 * row.size:  # nearly the whole globe
        keys, ids = np.unique(row.astype(np.int64) * GRID_COLS + col, return_inverse=True)
        return ids.reshape(shape).astype(np.int32), keys
    number = (row - top) * n_cols + col - left
    is_there = np.bincount(number.ravel()) > 0
    ids = (np.cumsum(is_there, dtype=np.int32) - 1)[number]
    rows, cols = np.divmod(is_there.nonzero()[0], n_cols)
    return ids, (rows + top) * GRID_COLS + cols + left


def majority_share(labels: NDArray[np.integer], ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """
    Return the share of the most common class in each cell that lies completely in the raster.

    *labels* are integers >= 0, *ids* the numbers of the cells as from `cell_ids`, both of shape (H, W).

    >>> ids, _ = cell_ids(Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632", (150, 150))
    >>> majority_share(np.ones((150, 150), int), ids).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    counts = np.zeros((ids.max() + 1, labels.max() + 1))
    np.add.at(counts, (ids.ravel(), labels.ravel()), 1)
    size = counts.sum(axis=1)
    whole = size > 0.98 * CELL_M**2 / 100  # pixel counts of whole cells differ by a few
    return counts[whole].max(axis=1) / size[whole]


def modis_raster(transform: Affine, crs: CRS | str, igbp: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Affine]:
    """
    Convert a 10 m map of MODIS codes (H, W), constant in each cell, to one pixel per cell.

    Returns the codes, uint8 (rows, cols), 255 where no pixel lies in the cell, and their transform in `SINUSOIDAL`.
    """
    row, col = modis_cells(transform, crs, igbp.shape)
    codes = np.full((row.max() - row.min() + 1, col.max() - col.min() + 1), IGNORE, np.uint8)
    codes[row - row.min(), col - col.min()] = igbp
    west = (int(col.min()) - GRID_COLS // 2) * CELL_M
    north = (GRID_ROWS // 2 - int(row.min())) * CELL_M
    return codes, Affine(CELL_M, 0, west, 0, -CELL_M, north)


@dataclass(frozen=True)
class _Recovered:
    """Cells recovered from a label, exact only where edges of the label show them."""

    ids: NDArray[np.int32]  # cell of each pixel (H, W), 0..n-1 from north to south and west to east
    explained: float  # share of the label's edges within a pixel and a half of a line; NaN without any edge
    n_row_lines: int  # lines with an edge on them: without any their position is a guess; one fixes their direction
    n_col_lines: int


def recover(labels: NDArray[np.integer]) -> _Recovered:
    """
    Recover the coarse cells of a patch of 10 m pixels from its coarse label alone.

    *labels* are class codes (H, W), or several layers of the same cells (L, H, W), which show more edges.
    """
    layers = labels if labels.ndim == 3 else labels[None]
    across = (np.diff(layers, axis=1) != 0).any(axis=0)  # (H-1, W): the label changes from this row to the next
    along = (np.diff(layers, axis=2) != 0).any(axis=0)  # (H, W-1)
    row_line = _row_lines(across)
    col_line = _col_lines(along, row_line)
    row, col = np.mgrid[: layers.shape[1], : layers.shape[2]] + 0.5
    cell_row = np.floor(row_line.coordinate(row, col)).astype(np.int64)
    cell_col = np.floor(col_line.coordinate(col, row)).astype(np.int64)
    keys = (cell_row - cell_row.min()) * (int(np.ptp(cell_col)) + 1) + cell_col - cell_col.min()
    ids = np.unique(keys, return_inverse=True)[1].reshape(keys.shape).astype(np.int32)
    return _Recovered(ids, *_explained(across, along, row_line, col_line))


@dataclass(frozen=True)
class _Lines:
    """Lines at place = (k + phase) * spacing + slope * other."""

    slope: float
    phase: float
    spacing: float

    def coordinate(self, place: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return k of each point, a whole number on the lines."""
        return (place - self.slope * other) / self.spacing - self.phase

    def distance(self, place: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distance to the nearest line in pixels."""
        number = self.coordinate(place, other)
        return np.abs(number - np.round(number)) * self.spacing


def _row_lines(across: NDArray[np.bool_]) -> _Lines:
    """
    Fit the lines between rows of cells to the label changes down the columns of pixels.

    Sheared columns of cells cause such changes too, but in runs of at most _MAX_SHEAR pixels, which are left out.
    """
    run = 2 * (int(_MAX_SHEAR) + 1) + 1
    padded = np.pad(across, ((0, 0), (run // 2, run // 2)))
    row, col = np.nonzero(np.lib.stride_tricks.sliding_window_view(padded, run, axis=1).all(axis=2))
    # Lines are a cell apart at right angles.
    return _fit(row + np.float64(1), col + np.float64(0.5), _MAX_TILT, lambda tilt: _CELL_PX * np.hypot(1, tilt))


def _col_lines(along: NDArray[np.bool_], rows: _Lines) -> _Lines:
    """Fit the lines between columns of cells to label changes along rows, except the steps of tilted rows."""
    row, col = np.nonzero(along)
    place, other = col + np.float64(1), row + np.float64(0.5)
    keep = rows.distance(other, place) > 1
    # Lines are a cell apart along a row of cells, which is not along a row of pixels.
    apart = _CELL_PX / np.hypot(1, rows.slope)
    return _fit(place[keep], other[keep], _MAX_SHEAR, lambda shear: apart * (1 - shear * rows.slope))


def _fit(
    place: NDArray[np.float64], other: NDArray[np.float64], max_slope: float, spacing: Callable[[float], float]
) -> _Lines:
    """Find the lines that most edges lie on: try all slopes and phases, refine the best by least squares."""
    if not place.size:
        return _Lines(0.0, 0.0, spacing(0.0))
    # Half a pixel at the far end: the refinement finds what lies between.
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
_DISTANCE = np.minimum(np.arange(_BINS), _BINS - np.arange(_BINS)) * _CELL_PX / _BINS
_KERNEL = np.fft.rfft(np.exp(-0.5 * (_DISTANCE / _WIDTH_PX) ** 2))


def _best_phase(offset: NDArray[np.float64], spacing: float) -> tuple[float, float]:
    """Return the (smoothed) number of edges on lines of one slope at the best phase, and that phase (0..1)."""
    counts = np.bincount((offset % spacing * (_BINS / spacing)).astype(int) % _BINS, minlength=_BINS)
    score = np.fft.irfft(np.fft.rfft(counts) * _KERNEL, _BINS)
    best = int(score.argmax())
    return float(score[best]), (best + 0.5) / _BINS


def _refine(lines: _Lines, place: NDArray[np.float64], other: NDArray[np.float64], reach: float) -> _Lines:
    """Fit slope, phase and, from three lines on, spacing by least squares to the edges within *reach* pixels."""
    near = lines.distance(place, other) <= reach
    number = np.round(lines.coordinate(place[near], other[near]))
    if near.sum() < 12 or np.ptp(other[near]) < 8:
        return lines
    design = np.stack([other[near], np.ones(near.sum()), number], axis=1)
    if len(np.unique(number)) >= 3:
        slope, shift, spacing = np.linalg.lstsq(design, place[near], rcond=None)[0].tolist()
        if abs(spacing / lines.spacing - 1) <= _MAX_STRETCH:
            return _Lines(slope, shift / spacing % 1, spacing)
    slope, shift = np.linalg.lstsq(design[:, :2], place[near] - number * lines.spacing, rcond=None)[0].tolist()
    return _Lines(slope, shift / lines.spacing % 1, lines.spacing)


def _explained(
    across: NDArray[np.bool_], along: NDArray[np.bool_], rows: _Lines, cols: _Lines
) -> tuple[float, int, int]:
    """Return the share of all edges near a line, and the number of lines of each family that have a run of them."""
    r1, c1 = np.nonzero(across)
    r2, c2 = np.nonzero(along)
    row, col = np.concatenate([r1 + 1.0, r2 + 0.5]), np.concatenate([c1 + 0.5, c2 + 1.0])
    if not row.size:
        return float("nan"), 0, 0
    near_row, near_col = rows.distance(row, col) <= 1.5, cols.distance(col, row) <= 1.5
    seen_rows = _seen(rows.coordinate(row, col)[near_row & ~near_col])
    seen_cols = _seen(cols.coordinate(col, row)[near_col & ~near_row])
    return float((near_row | near_col).mean()), seen_rows, seen_cols


def _seen(numbers: NDArray[np.float64]) -> int:
    """Count the lines with at least a dozen pixels of edge."""
    return int((np.unique(np.round(numbers), return_counts=True)[1] >= 12).sum())
