"""
Write maps as GeoTIFFs with the legend's colours, names and tags, and read them again.

A file is written beside its place, reopened and compared, as GDAL reports not every error of a disk, and then renamed.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from lcfuse_core import _runtime
from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.data.rasters import georeference, open_raster, read_errors
from lcfuse_core.errors import DataError, DiskError, LcfuseError
from lcfuse_core.mapping.scene import Grid, Source

STEPS, _NODATA = 250, 255
"""Probabilities and confidence are stored as whole numbers 0..250, in steps of 0.004; 255 where there is no class."""


@dataclass(frozen=True)
class _Layer:
    """A raster of a map, uint8 (bands, H, W): codes of the legend DFC2020, or probabilities in `STEPS`."""

    bands: Sequence[str]
    nodata: int = _NODATA
    is_codes: bool = False


LAYERS = {
    "landcover": _Layer(["land cover"], DFC2020.unknown, is_codes=True),
    "confidence": _Layer(["highest probability"]),
    "probabilities": _Layer([DFC2020.name_of(code) for code in SCORED]),
}
"""The rasters of a map, by the name of the file."""


@dataclass(frozen=True)
class _LandCoverMap:
    """A map as read: classes uint8 (H, W), CRS and transform (both None without georeference)."""

    classes: NDArray[np.uint8]
    crs: CRS | None
    transform: Affine | None


def read_map(path: Source) -> _LandCoverMap:
    """
    Read a map in DFC2020 codes, such as `make.make_map` writes.

    Raises MissingDataError, DataError unless the file has one band of uint8, LegendError on other codes.
    """
    path = Path(path)
    with open_raster(path) as raster:
        if (raster.count, raster.dtypes[0]) != (1, "uint8"):
            found = f"{raster.count} bands of {raster.dtypes[0]}"
            do = "Give a map of classes; gdal_translate -ot Byte -b NUMBER writes one of its codes."
            raise DataError(path, found=found, expected="1 band of uint8", do=do)
        with read_errors(path, "Write the map again."):
            classes = raster.read(1)
            classes[raster.read_masks(1) == 0] = DFC2020.unknown  # by the nodata value or mask of the file
        crs, transform = georeference(path, raster)
    DFC2020.check(classes, str(path))
    return _LandCoverMap(classes, crs, transform)


def create(path: Path, layer: _Layer, grid: Grid, tags: Mapping[str, str]) -> Any:
    """Open a new GeoTIFF for writing, with the names, colours, nodata value and tags of *layer*."""
    rows, cols = grid.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": len(layer.bands), "height": rows, "width": cols}
    profile |= {"nodata": layer.nodata, "crs": grid.crs, "transform": grid.transform, "BIGTIFF": "IF_SAFER"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        raster = rasterio.open(path, "w", **profile)
    raster.descriptions = tuple(layer.bands)
    if layer.is_codes:
        raster.write_colormap(1, {code: DFC2020.rgba(code) for code in range(256)})
        names = {f"CLASS_{code}": DFC2020.name_of(code) for code in DFC2020.codes}
        raster.update_tags(LEGEND=DFC2020.name, **names)
    else:
        raster.colorinterp = [ColorInterp.gray] * len(layer.bands)
        raster.scales = [1 / STEPS] * len(layer.bands)
    raster.update_tags(**tags)
    return raster


def write_cog(source: Path, path: Path, layer: _Layer, strips: Sequence[slice], crc: int) -> None:
    """
    Copy a GeoTIFF of `create` to a Cloud-Optimised GeoTIFF: tiles of 512 px, deflated, with overviews.

    Raises OSError if the CRC-32 of the pixels of *path*, read by *strips* of rows, is not *crc*, or if an overview
    cannot be read.
    """
    options = {
        "COMPRESS": "DEFLATE",
        "LEVEL": "6" if layer.is_codes else "1",  # probabilities are noise: more effort gains nothing
        "BLOCKSIZE": "512",
        "OVERVIEW_RESAMPLING": "MODE" if layer.is_codes else "AVERAGE",
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "2",
    }
    with rasterio.Env(GDAL_PAM_ENABLED="NO"):
        rasterio.shutil.copy(str(source), str(path), driver="COG", **options)
    found = 0
    with open_raster(path) as raster:
        for rows in strips:
            found = zlib.crc32(raster.read(window=Window.from_slices(rows, (0, raster.width))), found)
        n_overviews = len(raster.overviews(1))
    for level in range(n_overviews):
        with rasterio.open(path, driver="GTiff", OVERVIEW_LEVEL=level) as raster:
            for _, window in raster.block_windows(1):
                raster.read(window=window)
    if found != crc:
        raise OSError("the pixels read back differ from those written")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk or of GDAL into a DiskError."""
    _runtime.check_output(path)
    try:
        yield
    except LcfuseError:
        raise
    except (RasterioError, CPLE_BaseError, OSError) as error:
        found = getattr(error, "strerror", None) or str(error)
        do = "Free space or choose another folder, and run it again; an earlier map is untouched."
        raise DiskError(path, found=found, expected="to write the map", do=do) from error
