"""
The GeoTIFF files of a patch: read them, and accept only what their kind promises.

Four kinds: s1 (Sentinel-1, VV and VH in dB), s2 (Sentinel-2, 13 bands of reflectance x 10000), lc (four MODIS
land-cover layers at 10 m), dfc (the 10 m reference). `join_layers` makes a `Patch` of them. `check_s1` and `check_s2`
apply the rules for units and order of bands to any array.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from lcfuse_core.data import legends
from lcfuse_core.errors import DataError, GridError, MissingDataError

KINDS = ("s1", "s2", "lc", "dfc")
"""The files of a patch."""

S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""Order of the Sentinel-2 bands in files and arrays."""

B10 = S2_BANDS.index("B10")
"""Index of the cirrus band, which is nearly black."""

BANDS = {"s1": 2, "s2": 13, "lc": 4, "dfc": 1}
"""Number of bands of each kind."""

DTYPES = {"s1": ("float32", "float64"), "s2": ("uint16", "int16"), "lc": ("uint8",), "dfc": ("uint8",)}
"""DFC2020 has S1 as float64; some copies have S2 as int16. Both are converted to the first of the pair."""

UNITS = {
    "s1": "VV and VH in dB (10 log10 of the linear values)",
    "s2": "B1..B12 with B8A and B10, reflectance x 10000 as whole numbers",
    "lc": "IGBP and three LCCS layers as class codes",
    "dfc": "DFC2020 class codes",
}

LEGENDS = {
    "lc": (legends.IGBP, legends.LCCS_LAND_COVER, legends.LCCS_LAND_USE, legends.LCCS_HYDROLOGY),
    "dfc": (legends.DFC2020,),
}
"""Legend of each band of the files that hold class codes."""

SIDE_PX = (32, 4096)
"""Range of the sides of a patch (published ones have 256): networks need the least, memory limits the most."""

S1_RANGE_DB = (-100.0, 60.0)
"""Backscatter outside this range is not a measurement."""

S2_MAX = 32767
"""Reflectance x 10000 above this is a fill value, or a negative number read as unsigned."""

S2_OFFSET = 1000  # of products since processing baseline 04.00; SEN12MS and DFC2020 are older

OFFSET_REMOVED = f"s2: offset of +{S2_OFFSET} taken off all bands"
"""Description of the repair."""

_S2_DARKEST = 256  # the brightest value lies above: scattering by the air alone gives about 1000 in B1
_SWAPPED_DB = 3.0  # VH lies some 7 dB below VV on average; this far above it, the two are swapped

GRID_TOLERANCE_PX = 0.1
"""Layers of one patch may lie this far apart."""

_AGAIN = "Download or unpack the file again."


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
        If it is not a TIFF, is truncated, or has other bands, size, dtype or unit, or NaN.
    """
    with _opened(path, kind) as file:
        data, (crs, transform) = file.read(), _georeference(file)
    if kind == "s1":
        check_s1(path, data)
        return Layer(data.astype(np.float32, copy=False), crs, transform)
    if kind == "s2":
        offset = check_s2(path, data)
        data = data.astype(np.uint16, copy=False)
        if offset:
            subtract_offset(data, offset)
        return Layer(data, crs, transform, (OFFSET_REMOVED,) if offset else ())
    for number, legend in enumerate(LEGENDS[kind]):
        # 0 means "no label" in older MODIS collections and in the output of some tools.
        legend.check(data[number][data[number] != 0], f"{path}, band {number + 1} ({legend.name})")
    return Layer(data, crs, transform)


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
    with _opened(path, kind) as file:
        return *_georeference(file), file.shape


def read_window(
    path: str | os.PathLike[str], kind: str, row: int, col: int, rows: int, cols: int, bands: int | None = None
) -> Layer:
    """
    Read a window of a file that `read_layer` accepted, without its checks; *bands* is a single band, or None for all.

    Values are those of the file in the dtype of `read_layer`, with any S2 offset; data are (bands, rows, cols).
    """
    with _opened(path, kind) as file:
        window = Window(col, row, cols, rows)
        data = file.read([bands] if bands else None, window=window).astype(DTYPES[kind][0], copy=False)
        return Layer(data, *_georeference(file))


def part_transform(transform: Affine, row: int, col: int) -> Affine:
    """Return the transform of the part of a raster that begins at *row*, *col*."""
    t = transform
    return Affine(t.a, t.b, t.c + t.a * col + t.b * row, t.d, t.e, t.f + t.d * col + t.e * row)


def check_s1(where: str | os.PathLike[str], s1: NDArray[np.floating]) -> None:
    """
    Raise DataError unless an array (2, ...) plausibly holds VV and VH in dB, in this order and finite everywhere.

    *where* names the file in the message.
    """
    n_bad = int((~np.isfinite(s1)).sum())
    if n_bad:
        found, do = f"{n_bad} values that are NaN or infinite", f"Leave the patch out. {_AGAIN}"
        raise DataError(where, found=found, expected="backscatter in dB everywhere", do=do)
    low, high = S1_RANGE_DB
    for band, values in zip(("VV", "VH"), s1, strict=True):
        smallest, largest = values.min(), values.max()
        # Of 1,000 and more pixels in dB some are always dark; linear power is never below zero.
        if smallest >= 0 or smallest < low or largest > high:
            found = f"{band} from {smallest:.4g} to {largest:.4g}"
            expected = f"dB: some pixels below 0, all within {low:g}..{high:g}"
            do = "If the file holds linear power, convert it: 10 log10(value)."
            raise DataError(where, found=found, expected=expected, do=do)
    vv, vh = s1.reshape(2, -1).mean(axis=1)
    if vh > vv + _SWAPPED_DB:
        found, do = f"VH {vh - vv:.1f} dB above VV on average", "Write the bands in the order VV, VH."
        raise DataError(where, found=found, expected="VV first, and VH below it", do=do)


def check_s2(where: str | os.PathLike[str], s2: NDArray[np.integer], *, noisy: bool = False) -> int:
    """
    Raise DataError unless an array (13, ...) plausibly holds reflectance x 10000 of all bands in file order.

    Returns the offset to subtract from all bands: 1000 for products since baseline 04.00, else 0. It shows in
    B10, which is else nearly black; under clouds B10 is bright too, but not everywhere. In large scenes (*noisy*) 1 %
    of the pixels may be dark nevertheless.
    """
    smallest, largest = int(s2.min()), int(s2.max())
    if smallest < 0 or largest > S2_MAX or largest < _S2_DARKEST:
        found = f"values from {smallest} to {largest}"
        expected = f"reflectance x 10000, within 0..{S2_MAX} and not all below {_S2_DARKEST}"
        do = f"Convert it if it has another scale; leave it out if it is no-data. {_AGAIN}"
        raise DataError(where, found=found, expected=expected, do=do)
    # The light of the cirrus band hardly reaches the ground; B1 is bright by the air alone.
    if np.median(s2[B10]) > np.median(s2[0]):
        found, expected = "band 11 brighter than band 1 on the whole", f"{UNITS['s2']}: B10 (cirrus) is nearly black"
        raise DataError(where, found=found, expected=expected, do="Bring the bands into file order.")
    darkest = np.percentile(s2[B10], 1) / 0.9 if noisy else s2[B10].min()
    return S2_OFFSET if darkest >= S2_OFFSET else 0


def subtract_offset(s2: NDArray[np.uint16], offset: int) -> None:
    """Subtract the offset from reflectance x 10000 in place; values below it become 0."""
    np.maximum(s2, offset, out=s2)
    s2 -= np.uint16(offset)


def _common_grid(paths: dict[str, str], layers: dict[str, Layer]) -> tuple[CRS | None, Affine | None]:
    """Return the one georeference of all layers that have any (s1 first); GridError if they lie apart."""
    size = layers["s1"].data.shape[1:]
    placed = next((layer for layer in layers.values() if layer.transform is not None), layers["s1"])
    for kind, layer in layers.items():
        if layer.data.shape[1:] != size:
            found, expected = f"{layer.data.shape[1:]} pixels", f"{size} as in {paths['s1']}"
        elif layer.transform is not None and not _same_grid(layer, placed):
            found = f"{layer.crs}, {tuple(layer.transform)[:6]}"
            expected = f"{placed.crs}, {tuple(placed.transform or ())[:6]} as the layers before it"
        else:
            continue
        do = "Bring the layers of the patch onto one grid (gdalwarp), or leave it out."
        raise GridError(paths[kind], found=found, expected=expected, do=do)
    return placed.crs, placed.transform


def _same_grid(layer: Layer, other: Layer) -> bool:
    """Return whether CRS are equal and corners no further apart than the tolerance."""
    assert layer.transform is not None
    assert other.transform is not None
    rows, cols = layer.data.shape[1:]
    # a, b, d, e are steps per pixel, c and f the origin: the difference that each makes across the raster.
    across = np.array((cols, rows, 1, cols, rows, 1))
    apart = np.abs(np.subtract(layer.transform[:6], other.transform[:6])) * across
    pixel = np.hypot(other.transform.a, other.transform.d)
    return bool(layer.crs == other.crs and apart.max() <= GRID_TOLERANCE_PX * pixel)


def _georeference(file: Any) -> tuple[CRS | None, Affine | None]:
    is_placed = file.crs is not None and file.transform != Affine.identity()
    return (file.crs, file.transform) if is_placed else (None, None)


@contextmanager
def _opened(path: str | os.PathLike[str], kind: str) -> Iterator[Any]:
    """Open a file and check bands, dtype and size; what GDAL cannot read becomes a DataError."""
    if not os.path.isfile(path):
        raise MissingDataError(path, found="no such file", expected=f"a {kind} file", do=_AGAIN)
    # Only TIFF, and only this file: no listing of the folder, no side-car that changes what is read.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), warnings.catch_warnings():
        # The phase archives of DFC2020 have no georeference, as documented.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path, driver="GTiff") as file:
                _check_header(path, kind, file)
                yield file
        except RasterioError as error:
            reason = str(error.__cause__ or error).replace(f"'{path}' ", "").rstrip(".")
            found = f"a damaged file of {os.path.getsize(path):,} bytes ({reason})"
            raise DataError(path, found=found, expected="a whole GeoTIFF", do=_AGAIN) from None


def _check_header(path: str | os.PathLike[str], kind: str, file: Any) -> None:
    low, high = SIDE_PX
    if file.count != BANDS[kind]:
        found, expected, do = f"{file.count} bands", f"{BANDS[kind]} bands: {UNITS[kind]}", _AGAIN
    elif not set(file.dtypes) <= set(DTYPES[kind]):
        found, expected = f"dtype {file.dtypes[0]}", f"{' or '.join(DTYPES[kind])}: {UNITS[kind]}"
        do = "Convert the file to that dtype and unit, or take the published one."
    elif not low <= min(file.shape) <= max(file.shape) <= high:
        found, expected = f"{file.shape[0]} x {file.shape[1]} pixels", f"sides of {low}..{high} (published: 256 x 256)"
        do = "Cut patches of a fitting size, or take the published file."
    else:
        return
    raise DataError(path, found=found, expected=expected, do=do)
