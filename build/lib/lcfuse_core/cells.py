"""
The coarse cell: which cell of the MODIS sinusoidal grid each 10 m pixel lies in.

A MODIS land-cover pixel is a square of 463.3 m in the sinusoidal projection of a sphere. Seen in UTM it is
a sheared parallelogram of arbitrary phase, never an axis-aligned 50 x 50 block.
"""

from __future__ import annotations

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer

SPHERE_RADIUS_M = 6371007.181
"""Radius of the MODIS sphere (MODLAND grid definition)."""

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
