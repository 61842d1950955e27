"""
One file of a patch: read it, and let nothing through that its kind does not promise.

Four kinds: s1 (Sentinel-1, VV and VH in dB), s2 (Sentinel-2, 13 bands of reflectance x 10000), lc (four MODIS
land-cover layers at 10 m), dfc (the 10 m reference). `patches.read_patch` joins them.
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

from lcfuse_core.data import legends
from lcfuse_core.errors import DataError, GridError, MissingDataError

KINDS = ("s1", "s2", "lc", "dfc")
"""The files of a patch."""

BANDS = {"s1": 2, "s2": 13, "lc": 4, "dfc": 1}

DTYPES = {"s1": ("float32", "float64"), "s2": ("uint16", "int16"), "lc": ("uint8",), "dfc": ("uint8",)}
"""DFC2020 has S1 as float64; some copies have S2 as int16. Both are stored as the first of the pair."""

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
"""A patch has sides within this range (published ones 256): networks take no less, memory no more."""

S1_RANGE_DB = (-100.0, 60.0)
"""Backscatter outside this range is no measurement."""

SWAPPED_DB = 3.0
"""VH lies some 7 dB below VV on average, and never this far above it: then the two are swapped."""

S2_MAX = 32767
"""Reflectance x 10000 above this is a fill value, or a negative number read as unsigned."""

S2_DARKEST = 256
"""The brightest value of a patch lies above: even over dark water the air alone gives about 1000 in B1."""

S2_OFFSET, B10 = 1000, 10
"""Offset of products since processing baseline 04.00; it shows in B10 (cirrus), else nearly black."""

KNOWN_BAD = ("ROIs1868_summer_s1_146_p202.tif",)
"""Files that are damaged in the published SEN12MS (NaN)."""

GRID_TOLERANCE_PX = 0.1
"""Layers of one patch may lie this far apart."""

AGAIN = "Download or unpack the file again."


@dataclass(frozen=True)
class Layer:
    """
    One checked file: *data* (bands, H, W) as float32 (s1), uint16 (s2) or uint8 (lc, dfc).

    crs, transform : georeference, both None where the file has none
    repairs : what was mended, in words
    """

    data: NDArray[Any]
    crs: CRS | None
    transform: Affine | None
    repairs: tuple[str, ...] = ()


def read_layer(path: str | os.PathLike[str], kind: str) -> Layer:
    """
    Read and check the file at *path* of a kind out of `KINDS`.

    Raises MissingDataError when there is no such file, LegendError on an unknown class code, and DataError on
    all else: not a TIFF, truncated, other bands, size or dtype, NaN, values that are not in the kind's unit.
    """
    data, crs, transform = _read(path, kind)
    if kind == "s1":
        return Layer(_check_s1(path, data), crs, transform)
    if kind == "s2":
        data, repairs = _check_s2(path, data)
        return Layer(data, crs, transform, repairs)
    for number, legend in enumerate(LEGENDS[kind]):
        # 0 is "no label" in older MODIS collections and in what some tools write.
        legend.check(data[number][data[number] != 0], f"{path}, band {number + 1} ({legend.name})")
    return Layer(data, crs, transform)


def read_place(path: str | os.PathLike[str], kind: str) -> tuple[CRS | None, Affine | None, tuple[int, int]]:
    """CRS, transform and size (H, W) of a file, from its header alone; raises as `read_layer` does."""
    with _opened(path, kind) as file:
        return *_georeference(file), file.shape


def part_transform(transform: Affine, row: int, col: int) -> Affine:
    """The transform of the part of a raster that begins at *row*, *col*."""
    t = transform
    return Affine(t.a, t.b, t.c + t.a * col + t.b * row, t.d, t.e, t.f + t.d * col + t.e * row)


def _read(path: str | os.PathLike[str], kind: str) -> tuple[NDArray[Any], CRS | None, Affine | None]:
    """All bands and the georeference; only the frame of the file is checked."""
    with _opened(path, kind) as file:
        return file.read(), *_georeference(file)


def _georeference(file: Any) -> tuple[CRS | None, Affine | None]:
    is_placed = file.crs is not None and file.transform != Affine.identity()
    return (file.crs, file.transform) if is_placed else (None, None)


@contextmanager
def _opened(path: str | os.PathLike[str], kind: str) -> Iterator[Any]:
    """The file, open and with a frame that fits its kind; what GDAL cannot read becomes a DataError."""
    if not os.path.isfile(path):
        raise MissingDataError(path, found="no such file", expected=f"a {kind} file", do=AGAIN)
    # Only TIFF, and only this file: no listing of the folder, no side-car that changes what is read.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), warnings.catch_warnings():
        # The phase archives of DFC2020 have no georeference, as documented.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path, driver="GTiff") as file:
                _check_frame(path, kind, file.count, file.dtypes, file.shape)
                yield file
        except RasterioError as error:
            # GDAL's own words are the cause; its traceback would only hide what matters.
            reason = str(error.__cause__ or error).replace(f"'{path}' ", "").rstrip(".")
            found = f"a damaged file of {os.path.getsize(path):,} bytes ({reason})"
            raise DataError(path, found=found, expected="a whole GeoTIFF", do=AGAIN) from None


def _check_frame(
    path: str | os.PathLike[str], kind: str, count: int, dtypes: tuple[str, ...], shape: tuple[int, int]
) -> None:
    """Bands, dtype and size, before anything is read."""
    if count != BANDS[kind]:
        raise DataError(path, found=f"{count} bands", expected=f"{BANDS[kind]} bands: {UNITS[kind]}", do=AGAIN)
    if not set(dtypes) <= set(DTYPES[kind]):
        raise DataError(
            path,
            found=f"dtype {dtypes[0]}",
            expected=f"{' or '.join(DTYPES[kind])}: {UNITS[kind]}",
            do="Convert the file to that dtype and unit, or take the published one.",
        )
    if min(shape) < SIDE_PX[0] or max(shape) > SIDE_PX[1]:
        raise DataError(
            path,
            found=f"{shape[0]} x {shape[1]} pixels",
            expected=f"sides of {SIDE_PX[0]}..{SIDE_PX[1]} (published patches have 256 x 256)",
            do="Cut patches of a fitting size, or take the published file.",
        )


def _check_s1(path: str | os.PathLike[str], data: NDArray[Any]) -> NDArray[np.float32]:
    """Finite, in dB; float64 becomes float32."""
    n_bad = int((~np.isfinite(data)).sum())
    if n_bad:
        is_known = os.path.basename(path) in KNOWN_BAD
        raise DataError(
            path,
            found=f"{n_bad} values that are NaN or infinite",
            expected="backscatter in dB everywhere",
            do="It is published so: leave the patch out." if is_known else f"Leave the patch out. {AGAIN}",
        )
    low, high = S1_RANGE_DB
    for band, values in zip(("VV", "VH"), data, strict=True):
        smallest, largest = values.min(), values.max()
        # Of 1,000 and more pixels in dB some are always dark; linear power is never below zero.
        if smallest >= 0 or smallest < low or largest > high:
            raise DataError(
                path,
                found=f"{band} from {smallest:.4g} to {largest:.4g}",
                expected=f"dB: some pixels below 0, all within {low:g}..{high:g}",
                do="If the file holds linear power, convert it: 10 log10(value).",
            )
    vv, vh = data.mean(axis=(1, 2))
    if vh > vv + SWAPPED_DB:
        raise DataError(
            path,
            found=f"VH {vh - vv:.1f} dB above VV on average",
            expected="VV first, and VH below it",
            do="Write the bands in the order VV, VH, or take the published file.",
        )
    return data.astype(np.float32, copy=False)


def _check_s2(path: str | os.PathLike[str], data: NDArray[Any]) -> tuple[NDArray[np.uint16], tuple[str, ...]]:
    """Reflectance x 10000 as uint16; the +1000 offset of newer products is taken off and reported."""
    smallest, largest = int(data.min()), int(data.max())
    if smallest < 0 or largest > S2_MAX or largest < S2_DARKEST:
        raise DataError(
            path,
            found=f"values from {smallest} to {largest}",
            expected=f"reflectance x 10000, within 0..{S2_MAX} and not all below {S2_DARKEST}",
            do=f"Convert it if it has another scale; leave it out if it is no-data. {AGAIN}",
        )
    reflectance = data.astype(np.uint16, copy=False)
    # Light of the cirrus band hardly reaches the ground; B1 shines by the air alone.
    if np.median(reflectance[B10]) > np.median(reflectance[0]):
        raise DataError(
            path,
            found="band 11 brighter than band 1 on the whole",
            expected=f"{UNITS['s2']}: B10 (cirrus) is nearly black",
            do="Bring the bands into file order, or take the published file.",
        )
    if reflectance[B10].min() < S2_OFFSET:
        return reflectance, ()
    # L1C of baseline 04.00 and later adds 1000 to every band; SEN12MS and DFC2020 are older.
    np.maximum(reflectance, S2_OFFSET, out=reflectance)
    reflectance -= np.uint16(S2_OFFSET)
    return reflectance, (f"s2: offset of +{S2_OFFSET} taken off all bands",)


def common_grid(paths: dict[str, str], layers: dict[str, Layer]) -> tuple[CRS | None, Affine | None]:
    """The one georeference of all layers that have any (s1 leads); GridError when they lie apart."""
    size = layers["s1"].data.shape[1:]
    placed = next((layer for layer in layers.values() if layer.transform is not None), layers["s1"])
    for kind, layer in layers.items():
        if layer.data.shape[1:] != size:
            found, expected = f"{layer.data.shape[1:]} pixels", f"{size} as in {paths['s1']}"
        elif layer.transform is not None and not _same_place(layer, placed):
            found = f"{layer.crs}, {tuple(layer.transform)[:6]}"
            expected = f"{placed.crs}, {tuple(placed.transform or ())[:6]} as the layers before it"
        else:
            continue
        do = "Bring the layers of the patch onto one grid (gdalwarp), or leave it out."
        raise GridError(paths[kind], found=found, expected=expected, do=do)
    return placed.crs, placed.transform


def _same_place(layer: Layer, other: Layer) -> bool:
    """Same CRS, and corners no further apart than the tolerance."""
    assert layer.transform is not None
    assert other.transform is not None
    rows, cols = layer.data.shape[1:]
    # a, b, d, e are steps by pixel, c and f the origin: what each difference comes to across the raster.
    across = np.array((cols, rows, 1, cols, rows, 1))
    apart = np.abs(np.subtract(layer.transform[:6], other.transform[:6])) * across
    pixel = np.hypot(other.transform.a, other.transform.d)
    return bool(layer.crs == other.crs and apart.max() <= GRID_TOLERANCE_PX * pixel)
