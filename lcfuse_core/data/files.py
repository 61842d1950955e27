"""
The files of a patch: s1 (Sentinel-1, VV and VH in dB), s2 (Sentinel-2, 13 bands of reflectance x 10000), lc (four MODIS
land-cover layers at 10 m), dfc (the 10 m reference).

`read_layer` reads and checks one of them, `read_window` a part of a checked one; `join_layers` makes a `Patch` of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from lcfuse_core.data import legends
from lcfuse_core.data.bands import OFFSET_REMOVED, check_s1, check_s2, subtract_offset
from lcfuse_core.data.rasters import Raster, corners_apart, georeference, ground_size, open_raster, sensor_bands
from lcfuse_core.errors import DataError, GridError

KINDS = ("s1", "s2", "lc", "dfc")
"""The files of a patch."""

LEGENDS = {
    "lc": (legends.IGBP, legends.LCCS_LAND_COVER, legends.LCCS_LAND_USE, legends.LCCS_HYDROLOGY),
    "dfc": (legends.DFC2020,),
}
"""Legend of each band of the files that hold class codes."""

_SIDE_PX = (32, 4096)
"""Range of the sides of a patch (published ones have 256): networks need the least, memory limits the most."""

_PATCH_PIXEL_M, _PATCH_SIDE_M = (8.0, 12.5), (5.0, 20.0)
"""Ranges of the pixel of a georeferenced patch on the ground: the root of its area, and its sides."""

GRID_TOLERANCE_PX = 0.1
"""Layers of one patch may lie this far apart."""


@dataclass(frozen=True)
class Patch:
    """
    One checked patch of H x W pixels of 10 m, rows north to south.

    s1 is backscatter VV and VH, sigma0 in dB (2, H, W); s2 top-of-atmosphere reflectance x 10000, B1 to B12 with B8A
    after B8 (13, H, W); lc the MODIS land cover at 10 m: IGBP, LCCS land cover, LCCS land use, LCCS surface hydrology
    (4, H, W); dfc the DFC2020 codes of the 10 m reference (H, W). crs and transform are None without georeference.
    `repairs` describes what was corrected while reading.
    """

    name: str
    s1: NDArray[np.float32]
    s2: NDArray[np.uint16]
    lc: NDArray[np.uint8] | None = None
    dfc: NDArray[np.uint8] | None = None
    crs: CRS | None = None
    transform: Affine | None = None
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One checked file: float32 (s1), uint16 (s2) or uint8 (lc, dfc) of shape (bands, H, W), and what was corrected."""

    data: NDArray[Any]
    crs: CRS | None
    transform: Affine | None
    repairs: tuple[str, ...] = ()


def read_layer(path: str | os.PathLike[str], kind: str) -> Layer:
    """
    Read and check the file at *path* of a kind out of `KINDS`.

    Raises
    ------
    MissingDataError
        If there is no such file.
    LegendError
        If it holds an unknown class code.
    DataError
        If it is damaged, or has other bands, size, dtype or unit, or pixels without data.
    GridError
        If its georeference cannot be used, see `georeference`.
    """
    with _opened(path, kind) as (raster, crs, transform):
        data, valid = _pixels(raster, kind)
    if kind in LEGENDS:
        for number, legend in enumerate(LEGENDS[kind]):
            # 0 means "no label" in the output of some tools; MCD12Q1 of collection 6 has no class 0.
            codes = np.flatnonzero(np.bincount(data[number].reshape(-1)))
            legend.check(codes[codes != 0], f"{path}, band {number + 1} ({legend.name})")
        return Layer(data, crs, transform)
    if not valid.all():
        found = f"{(~np.broadcast_to(valid, data.shape[1:])).sum()} pixels without data (nodata or mask of the file)"
        raise DataError(path, found=found, expected="data everywhere", do="Leave the patch out.")
    if kind == "s1":
        check_s1(path, data)
        return Layer(data.astype(np.float32, copy=False), crs, transform)
    offset = check_s2(path, data)
    data = data.astype(np.uint16, copy=False)
    if offset:
        subtract_offset(data, offset)
    return Layer(data, crs, transform, (OFFSET_REMOVED,) if offset else ())


def read_window(
    path: str | os.PathLike[str], kind: str, row: int, col: int, out: NDArray[Any], *, georeferenced: bool = False
) -> tuple[CRS | None, Affine | None]:
    """
    Read the window at *row*, *col* of a file that `read_layer` accepted, without its checks.

    *out*, a view or an array (bands, rows, cols) in the dtype of `read_layer`, takes the first bands of the file in the
    order of the kind. Values are those of the file, with any S2 offset. Returns CRS and transform of the file if it is
    *georeferenced*, else None and None.
    """
    with open_raster(path, is_mapped=True) as file:
        raster = sensor_bands(path, file, kind)
        raster = replace(raster, bands=raster.bands[: len(out)])
        data, _ = _pixels(raster, kind, slice(row, row + out.shape[1]), slice(col, col + out.shape[2]), out)
        if data is not out:
            out[:] = data
        return georeference(path, file) if georeferenced else (None, None)


def _pixels(
    raster: Raster,
    kind: str,
    rows: slice | None = None,
    cols: slice | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read pixels of a file of a patch, and where it has data; labels are 0 where it has none. As `Raster.read`."""
    if kind not in LEGENDS:
        return raster.read(rows, cols, out)
    data, valid = replace(raster, nodata=None).read(rows, cols, out)
    if raster.nodata or not valid.all():
        data[(data == raster.nodata) | ~valid] = 0
    return data, valid


def join_layers(name: str, paths: dict[str, str], layers: dict[str, Layer]) -> Patch:
    """
    Join the layers of one patch, by kind, s1 and s2 among them; *paths* are for the message of a GridError.

    The layers must be of one size and, where georeferenced, lie within `GRID_TOLERANCE_PX` of each other.
    """
    crs, transform = _common_grid(paths, layers)
    repairs = tuple(repair for layer in layers.values() for repair in layer.repairs)
    lc = layers["lc"].data if "lc" in layers else None
    dfc = layers["dfc"].data[0] if "dfc" in layers else None
    return Patch(name, layers["s1"].data, layers["s2"].data, lc, dfc, crs, transform, repairs)


def read_georeference(path: str | os.PathLike[str], kind: str) -> tuple[CRS | None, Affine | None, tuple[int, int]]:
    """Read CRS, transform and size (H, W) of a file from its header; raises as `read_layer` does."""
    with _opened(path, kind) as (raster, crs, transform):
        return crs, transform, raster.file.shape


@contextmanager
def _opened(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[Raster, CRS | None, Affine | None]]:
    """Open a file of a patch and check bands, dtype, size and pixel size."""
    with open_raster(path) as file:
        raster, (crs, transform) = sensor_bands(path, file, kind), georeference(path, file)
        low, high = _SIDE_PX
        if not low <= min(file.shape) <= max(file.shape) <= high:
            found, expected = f"{file.shape[0]} x {file.shape[1]} pixels", f"sides of {low}..{high} (published: 256)"
            do = "Cut patches of a fitting size, or take the published file."
            raise DataError(path, found=found, expected=expected, do=do)
        if transform is not None and crs is not None:
            width, height = ground_size(path, crs, transform, file.shape)
            sizes = (np.sqrt(width * height), *_PATCH_PIXEL_M), *((side, *_PATCH_SIDE_M) for side in (width, height))
            if not all(low <= size <= high for size, low, high in sizes):
                found = f"pixels of {width:.3g} x {height:.3g} m on the ground"
                do = "Take the published patch, or warp it to 10 m in its UTM zone (gdalwarp -tr 10 10)."
                raise GridError(path, found=found, expected="pixels of 10 m", do=do)
        yield raster, crs, transform


def _common_grid(paths: dict[str, str], layers: dict[str, Layer]) -> tuple[CRS | None, Affine | None]:
    """Return the one georeference of all layers that have any (s1 first); GridError if they lie apart."""
    size = layers["s1"].data.shape[1:]
    placed = next((layer for layer in layers.values() if layer.transform is not None), layers["s1"])
    crs, transform = placed.crs, placed.transform
    do = "Bring the layers of the patch onto one grid (gdalwarp), or leave it out."
    for kind, layer in layers.items():
        if layer.data.shape[1:] != size:
            found, expected = f"{layer.data.shape[1:]} pixels", f"{size} as in {paths['s1']}"
            raise GridError(paths[kind], found=found, expected=expected, do=do)
        if layer.transform is None or transform is None:
            continue
        apart, pixel = corners_apart(layer.transform, transform, size), np.hypot(transform.a, transform.d)
        if layer.crs != crs or apart > GRID_TOLERANCE_PX * pixel:
            found = f"{layer.crs}, {tuple(layer.transform)[:6]}"
            expected = f"{crs}, {tuple(transform)[:6]} as the layers before it"
            raise GridError(paths[kind], found=found, expected=expected, do=do)
    return crs, transform
