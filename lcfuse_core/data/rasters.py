"""
The door for rasters: the one function that opens them, what they state about their pixels, and the bands of a sensor.

`open_raster` is the only door for a raster. It accepts GeoTIFF, JPEG 2000 and ENVI by their first bytes, whatever the
name of the file, because rasters of other formats can refer to other files and addresses. `Raster` reads the bands of
a sensor with the statements of the file applied: order of the bands by name, nodata, mask, scale and offset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from lcfuse_core import _runtime
from lcfuse_core.data.bands import DTYPES, UNITS, band_name, band_order
from lcfuse_core.errors import DataError, GridError, MissingDataError

_AGAIN = "Download or unpack the file again."

_BLOCK_BYTES = 2**28
"""GDAL decodes a block at a time: a file that declares larger ones is refused before it takes the memory."""

_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}

_DRIVERS = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG", b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}  # fmt: skip
"""GDAL's driver by the first bytes of a file; ENVI is known by its header beside it."""

_CONVERT = "gdal_translate makes a GeoTIFF of the layer that is wanted"
_REFUSED = {
    b"\x0e\x03\x13\x01": (
        "an HDF4 file",
        f"GDAL needs the driver HDF4 (conda package libgdal-hdf4, or QGIS). Where it has it, {_CONVERT}:"
        """ gdal_translate 'HDF4_EOS:EOS_GRID:"{name}":MCD12Q1:LC_Type1' igbp.tif""",
    ),
    b"\x89HDF": ("an HDF5 or netCDF file", f"""{_CONVERT}: gdal_translate -b 1 'NETCDF:"{{name}}":LAYER' layer.tif."""),
    b"CDF": ("a netCDF file", f"""{_CONVERT}: gdal_translate -b 1 'NETCDF:"{{name}}":LAYER' layer.tif."""),
    b"<!": ("a web page", _AGAIN),
    b"<html": ("a web page", _AGAIN),
    b"<": ("an XML file (VRT, WMS and their like)", f"It may refer to other files and addresses: {_CONVERT}."),
    b"EHFA": ("an ERDAS Imagine file", f"It may refer to other files: {_CONVERT}."),
}
"""What is known by its first bytes and is not read, and the advice."""


GEOREFERENCE_OPTIONAL = _runtime.IgnoredWarning(NotGeoreferencedWarning)
"""For a `with` block in which a raster needs no georeference."""


def open_raster(path: str | os.PathLike[str], *, is_mapped: bool = False) -> Any:
    """
    Open a GeoTIFF, JPEG 2000 or ENVI file for reading, alone: side-car files are not read (but the header of ENVI).

    The file is closed by `with`, as any of rasterio's. If *is_mapped*, an uncompressed GeoTIFF on a local disk is read
    through a memory map: for 13 interleaved bands a third of the time.

    Raises MissingDataError if there is no such file, DataError if it is of another format, damaged, or declares blocks
    that would take too much memory.
    """
    path = Path(path).absolute()  # rasterio then takes no name for an address
    if re.search("[\ud800-\udfff]", str(path)):  # bytes that are no text, for which Python has such characters
        do = "Rename the file or folder: records could not hold its name."
        raise DataError(ascii(str(path)), found="a name that is not UTF-8", expected="a name in UTF-8", do=do)
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no such file"
        advice = "Give its raster files." if os.path.isdir(path) else "Check the path, or unpack the file again."
        raise MissingDataError(path, found=found, expected="a raster file", do=advice)
    driver = _driver(path)
    # An empty listing keeps GDAL from side-car files; ENVI needs its header, and GDAL then looks for it by name.
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE" if driver == "ENVI" else "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
    if is_mapped and _is_local(os.stat(path).st_dev):
        options["GTIFF_VIRTUAL_MEM_IO"] = "YES"
    with rasterio.Env(**options), read_errors(path):
        with GEOREFERENCE_OPTIONAL:  # the phase archives of DFC2020 have none
            file = rasterio.open(path, driver=driver)
        if file.count == 0:
            raise DataError(path, found="no band", expected="a raster", do=_AGAIN)
        bands = file.count if file.interleaving is None or file.interleaving.value == "PIXEL" else 1
        size = max(rows * cols for rows, cols in set(file.block_shapes)) * bands
        n_bytes = max(4 if name == "complex_int16" else np.dtype(name).itemsize for name in set(file.dtypes))
        whole = file.width * file.height * file.count * n_bytes if driver == "ENVI" else 0
        if size * n_bytes > _BLOCK_BYTES or (whole and whole > path.stat().st_size):
            rows, cols = file.block_shapes[0]
            found = f"blocks of {rows} x {cols} pixels in a file of {path.stat().st_size:,} bytes"
            advice = "Write it anew with tiles of 512 pixels: gdal_translate -co TILED=YES."
            if whole:
                found, advice = f"{path.stat().st_size:,} of {whole:,} bytes that its header declares", _AGAIN
            file.close()
            raise DataError(path, found=found, expected="a whole raster in small blocks", do=advice)
    return file


@cache
def _is_local(device: int) -> bool:
    """Return whether a device is a local one (of Linux): a mapped page that a drive cannot read ends the process."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(mount[2] == number and mount[mount.index("-") + 1] in _LOCAL for mount in mounts)


def _driver(path: Path) -> str:
    """Return GDAL's driver for a file by its first bytes; DataError if it is of no format that is accepted."""
    with path.open("rb") as file:
        head = file.read(64)
    for start, driver in _DRIVERS.items():
        if head.startswith(start):
            return driver
    for header in (path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr")):
        if header.is_file():
            with header.open("rb") as file:
                if file.read(4) == b"ENVI":
                    return "ENVI"
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    known = next((_REFUSED[start] for start in _REFUSED if text.startswith(start)), None)
    name, advice = known or (f"it begins with {head[:8]!r}", _AGAIN)
    found = name if advice != _AGAIN else f"a damaged file of {path.stat().st_size:,} bytes ({name})"
    raise DataError(path, found=found, expected="a GeoTIFF, JPEG 2000 or ENVI raster", do=advice.format(name=path.name))


@contextmanager
def read_errors(path: str | os.PathLike[str], do: str = _AGAIN) -> Iterator[None]:
    """Turn an error of GDAL, or of too little memory, into a DataError that names the file."""
    try:
        yield
    except (RasterioError, MemoryError) as error:
        reason = str(error.__cause__ or error).replace(f"'{path}' ", "").rstrip(".")
        size = f"{os.path.getsize(path):,} bytes" if os.path.isfile(path) else "unknown size"
        found = f"a damaged file of {size} ({reason})"
        raise DataError(path, found=found, expected="a whole raster", do=do) from None


# Georeference --------------------------------------------------------------------------------------------------------


def georeference(path: str | os.PathLike[str], file: Any) -> tuple[CRS | None, Affine | None]:
    """
    Return CRS and transform of an open raster, None and None if it has neither.

    Longitudes beyond 180 degrees (0 to 360, or across the line) are counted from a meridian in the raster instead.
    Raises GridError if it has only one of them or ground control points instead, or if the transform is not a grid.
    """
    t, points = file.transform, file.gcps[0]
    has_transform = t != Affine.identity()
    if not has_transform and (points or file.rpcs):
        found = f"{len(points)} ground control points" if points else "rational polynomial coefficients"
        do = "Warp it first: gdalwarp; Sentinel-1 GRD: calibrate, terrain-correct and convert it to dB in SNAP."
        raise GridError(path, found=f"{found} and no transform", expected="a georeferenced grid", do=do)
    if file.crs is None and not has_transform:
        return None, None
    if file.crs is None or not has_transform:
        found = "a transform without CRS" if has_transform else "a CRS without transform"
        do = "State both (gdal_edit.py -a_srs, -a_ullr), or neither to use the pixels alone."
        raise GridError(path, found=found, expected="both or neither", do=do)
    if not np.isfinite(t[:6]).all() or not 1e-16 < abs(t.determinant) < 1e16 or max(map(abs, t[:6])) > 1e10:
        do = "Georeference it again: gdal_edit.py -a_ullr."
        raise GridError(path, found=f"the transform {tuple(t)[:6]}", expected="finite pixels of some area", do=do)
    west, east = sorted((t.c, t.c + t.a * file.width))
    beyond = max(-180 - west, east - 180)
    # A map of the world may reach over 180 degrees by half a pixel.
    if file.crs.is_geographic and beyond > (1 if east - west > 359 else 1e-9):
        meridian = (west + east) / 2
        return CRS.from_string(f"{file.crs.to_proj4()} +pm={meridian!r}"), Affine.translation(-meridian, 0) @ t
    return file.crs, t


def utm(longitude: float, latitude: float) -> str:
    """Return the UTM zone of a place."""
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + int((longitude + 180) // 6) % 60 + 1}"


def transformer(path: str | os.PathLike[str], source: Any, target: Any) -> Transformer:
    """Return the transformer between two CRS, longitude or easting first; GridError if they cannot be related."""
    try:
        return _transformer(source, target)
    except ProjError:
        found = "a CRS that is local, of another planet or unknown"
        do = "State the right one: gdal_edit.py -a_srs EPSG:..."
        raise GridError(path, found=found, expected="a CRS on Earth", do=do) from None


@lru_cache(maxsize=32)  # making one takes as long as opening a file
def _transformer(source: Any, target: Any) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def ground_size(path: str | os.PathLike[str], crs: Any, t: Affine, shape: tuple[int, int]) -> tuple[float, float]:
    """Return width and height, in metres on the ground, of the pixel in the middle of a raster; inf where undefined."""
    corners = np.array([(0, 1, 0), (0, 0, 1)]) + np.array([shape[1] // 2, shape[0] // 2])[:, None]
    lon, lat = transformer(path, crs, "EPSG:4326").transform(*t @ corners)
    if not np.isfinite([lon, lat]).all() or np.abs(lat).max() > 90:
        return np.inf, np.inf
    sizes = Geod(ellps="WGS84").inv(np.repeat(lon[0], 2), np.repeat(lat[0], 2), lon[1:], lat[1:])[2]
    return float(sizes[0]), float(sizes[1])


def corners_apart(transform: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """Return how far corners of two rasters of *shape* (H, W) lie apart at most along an axis, in units of the CRS."""
    rows, cols = shape
    # a, b, d, e are steps per pixel, c and f the origin: the difference that each makes across the raster.
    return float((np.abs(np.subtract(transform[:6], other[:6])) * (cols, rows, 1, cols, rows, 1)).max())


# Bands of a sensor ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raster:
    """Bands of an open file, in the order of their kind, with nodata, mask, scale and offset as the file states."""

    path: Path
    file: Any
    bands: tuple[int, ...]
    nodata: float | None = None
    has_mask: bool = False
    scale: float = 1.0
    offset: float = 0.0

    def read(
        self, rows: slice | None = None, cols: slice | None = None, out: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """
        Return pixels (bands, h, w), and where the file has data: bool (h, w), or (1, 1) if everywhere.

        If *out* has the dtype of the file, the pixels are read into it and it is returned, unless they are scaled, or
        *out* is stored as GDAL would misread it.
        """
        window = None if rows is None or cols is None else Window.from_slices(rows, cols)
        if out is not None:
            # GDAL 3.10 with a memory map takes a view with such steps between columns for the layout of the file.
            is_mistaken = self.file.count > 1 and out.strides[-1] == self.file.count * out.itemsize
            if is_mistaken or any(np.dtype(self.file.dtypes[band - 1]) != out.dtype for band in self.bands):
                out = None
        with read_errors(self.path):
            data = self.file.read(self.bands, window=window, out=out)
            valid = self.file.dataset_mask(window=window) > 0 if self.has_mask else np.ones((1, 1), bool)
        if self.nodata is not None:
            same = np.isnan(data) if np.isnan(self.nodata) else data == self.nodata
            # Where 0 is the fill value, a band may be 0 by itself: calm water in the short-wave infrared.
            valid = valid & ~(same.any(axis=0) if self.nodata else same.all(axis=0))
        if (self.scale, self.offset) != (1.0, 0.0):
            data = (data * self.scale + self.offset).astype(np.float32)
        return data, valid


def sensor_bands(path: str | os.PathLike[str], file: Any, kind: str, *, single: str = "") -> Raster:
    """
    Return the bands of *kind* in an open file; with *single*, the one band of that name (file per band).

    Raises DataError unless number, names and dtype of the bands are those of the kind.
    """
    path = Path(path)
    order = (0,) if single and file.count == 1 else band_order(path, kind, file.descriptions)
    unused = [number for number, use in enumerate(file.colorinterp) if use == ColorInterp.alpha and number not in order]
    if unused:
        do = "Write it as nodata (gdalwarp -dstnodata 0) or as a mask (gdal_translate -mask), without the band."
        raise DataError(path, found=f"an alpha band ({unused[0] + 1})", expected="the bands of the sensor", do=do)
    stated = band_name(kind, file.descriptions[0] or "") if single else None
    if stated not in (None, single):
        do = "Rename the file, or correct the description of its band."
        raise DataError(path, found=f"a band described as {stated}", expected=single, do=do)
    scale, offset = file.scales[order[0]], file.offsets[order[0]]
    is_scaled = (scale, offset) != (1.0, 0.0)
    if is_scaled and kind == "s2" and np.isclose(scale, (1, 1e-4), rtol=1e-6).any():
        is_scaled = round(offset / scale) not in (0, -1000)  # an offset of -0.1 is the one that `check_s2` finds
        scale, offset = 1.0, 0.0
    if len({*zip(file.scales, file.offsets, strict=True)}) > 1 or (is_scaled and kind != "s1"):
        do = "Write out the scaled values: gdal_translate -unscale."
        found = f"scale {file.scales[0]:g} and offset {file.offsets[0]:g}"
        raise DataError(path, found=found, expected=UNITS[kind], do=do)
    dtypes = {file.dtypes[number] for number in order}
    accepted = (*DTYPES[kind], *(("int16", "uint16", "int32") if is_scaled and kind == "s1" else ()))
    if not dtypes <= set(accepted):
        do = "Convert the file to that dtype and unit, or take the published one."
        if kind == "s1":
            do = "Digital numbers must be calibrated to sigma0, terrain-corrected and converted to dB, as in SNAP."
        expected = f"{' or '.join(DTYPES[kind])}: {UNITS[kind]}"
        raise DataError(path, found=f"dtype {file.dtypes[0]}", expected=expected, do=do)
    flags = file.mask_flag_enums[0]
    has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    nodata = None if single and kind == "s2" and not file.nodata else file.nodata
    return Raster(path, file, tuple(number + 1 for number in order), nodata, has_mask, scale, offset)
