"""
Write maps as GeoTIFFs with the legend's colours, names and tags, and read them again.

A file is written beside its place, reopened and compared, as GDAL reports not every error of a disk, and then renamed.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

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
from lcfuse_core.data.rasters import open_raster
from lcfuse_core.errors import DataError, DiskError, GridError, LcfuseError
from lcfuse_core.mapping.scene import Grid, Source
from lcfuse_core.mapping.windows import window_slices

STEPS, NODATA = 250, 255
"""Probabilities and confidence are stored as whole numbers 0..250, in steps of 0.004; 255 where there is no class."""


@dataclass(frozen=True)
class Layer:
    """
    A raster of a map, uint8 (bands, H, W).

    scale : value of a step; 1 for codes
    palette : whether the values are codes of the legend DFC2020
    """

    bands: Sequence[str]
    nodata: int
    scale: float = 1.0
    palette: bool = False


LAYERS = {
    "landcover": Layer(["land cover"], DFC2020.unknown, palette=True),
    "confidence": Layer(["highest probability"], NODATA, 1 / STEPS),
    "probabilities": Layer([DFC2020.name_of(code) for code in SCORED], NODATA, 1 / STEPS),
}
"""The rasters of a map, by the name of the file."""


@dataclass(frozen=True)
class LandCoverMap:
    """A map as read: classes uint8 (H, W), CRS and transform (both None without georeference), tags."""

    classes: NDArray[np.uint8]
    crs: CRS | None = None
    transform: Affine | None = None
    tags: dict[str, str] = field(default_factory=dict)


def write_map(
    path: Source,
    classes: NDArray[np.uint8],
    *,
    crs: CRS | str | None,
    transform: Affine | None,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """
    Write a map as a tiled, deflated GeoTIFF, with class names in tags and, for QGIS and GDAL, in `<name>.aux.xml`.

    Parameters
    ----------
    path : path
        File to write; folders are made.
    classes : ndarray of uint8, shape (H, W)
        DFC2020 codes, 0 = no class (nodata).
    crs, transform : CRS or str, Affine
        Georeference, or None and None for a patch that has none (the DFC2020 phase archives).
    tags : mapping, optional
        Further tags, such as the run that made the map.

    Raises
    ------
    GridError, LegendError, DiskError
        If *classes* is not a map, or the file cannot be written; an earlier file at *path* then stays as it was.
    """
    path = Path(path)
    if classes.ndim != 2 or not np.issubdtype(classes.dtype, np.integer):
        found = f"{classes.dtype} {classes.shape}"
        raise GridError(path, found=found, expected="integer codes (H, W)", do="Use most_likely() first.")
    if (crs is None) != (transform is None):
        found = "only a transform" if crs is None else "only a CRS"
        raise GridError(path, found=found, expected="both or neither", do="Take both from the same patch.")
    DFC2020.check(classes, str(path))
    grid = Grid(crs if crs is None else CRS.from_user_input(crs), transform, classes.shape)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    pixels = classes.astype(np.uint8)
    with disk_errors(path), _runtime.atomic_path(path) as part, _runtime.atomic_path(f"{path}.aux.xml") as aux:
        with create(part, LAYERS["landcover"], grid, tags, **options) as raster:
            raster.write(pixels, 1)
        _compare(part, [slice(0, len(pixels))], zlib.crc32(pixels.tobytes()))
        write_category_names(aux)
    return path


def read_map(path: Source) -> LandCoverMap:
    """
    Read a map in DFC2020 codes, such as `write_map` and `make_map` write.

    Raises MissingDataError, DataError unless the file has one band of uint8, LegendError on other codes.
    """
    path = Path(path)
    with open_raster(path) as raster:
        if (raster.count, raster.dtypes[0]) != (1, "uint8"):
            found = f"{raster.count} bands of {raster.dtypes[0]}"
            raise DataError(path, found=found, expected="1 band of uint8", do="Is this a map of classes?")
        try:
            classes, tags = raster.read(1), raster.tags()
        except RasterioError as error:
            raise DataError(path, found=f"{error}", expected="a whole raster", do="Write the map again.") from None
        crs, transform = raster.crs, raster.transform
    DFC2020.check(classes, str(path))
    return LandCoverMap(classes, crs, None if crs is None else transform, tags)


def create(path: Path, layer: Layer, grid: Grid, tags: Mapping[str, str] | None = None, **options: Any) -> Any:
    """Open a new GeoTIFF for writing, with the names, colours, nodata value and tags of *layer*."""
    rows, cols = grid.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": len(layer.bands), "height": rows, "width": cols}
    profile |= {"nodata": layer.nodata, "crs": grid.crs, "BIGTIFF": "IF_SAFER"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        raster = rasterio.open(
            path, "w", **profile, **({} if grid.transform is None else {"transform": grid.transform})
        )
    raster.descriptions = tuple(layer.bands)
    if layer.palette:
        raster.write_colormap(1, {code: DFC2020.rgba(code) for code in range(256)})
        names = {f"CLASS_{code}": DFC2020.name_of(code) for code in DFC2020.codes}
        raster.update_tags(LEGEND=DFC2020.name, **names)
    else:
        raster.colorinterp = [ColorInterp.gray] * len(layer.bands)
        raster.scales = [layer.scale] * len(layer.bands)
    raster.update_tags(**(tags or {}))
    return raster


def write_cog(source: Path, path: Path, layer: Layer, strips: Sequence[slice], crc: int) -> None:
    """
    Copy a GeoTIFF of `create` to a Cloud-Optimised GeoTIFF: tiles of 512 px, deflated, with overviews.

    Raises OSError if the CRC-32 of the pixels of *path*, read by *strips* of rows, is not *crc*.
    """
    options = {
        "COMPRESS": "DEFLATE",
        "LEVEL": "6" if layer.palette else "1",  # probabilities are noise: more effort gains nothing
        "BLOCKSIZE": "512",
        "OVERVIEW_RESAMPLING": "MODE" if layer.palette else "AVERAGE",
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "2",
    }
    with rasterio.Env(GDAL_PAM_ENABLED="NO"):
        rasterio.shutil.copy(str(source), str(path), driver="COG", **options)
    _compare(path, strips, crc)


def _compare(path: Path, strips: Sequence[slice], crc: int) -> None:
    """Raise OSError unless the pixels of a file are those that were written, and its overviews can be read."""
    found = 0
    with open_raster(path) as raster:
        for rows in strips:
            found = zlib.crc32(raster.read(window=Window.from_slices(rows, (0, raster.width))), found)
        n_overviews = len(raster.overviews(1))
    for level in range(n_overviews):
        with rasterio.open(path, driver="GTiff", OVERVIEW_LEVEL=level) as raster:
            for rows in window_slices(raster.height, 2048, 0):
                raster.read(window=Window.from_slices(rows, (0, raster.width)))
    if found != crc:
        raise OSError("the pixels read back differ from those written")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk or of GDAL into a DiskError."""
    try:
        yield
    except LcfuseError:
        raise
    except (RasterioError, CPLE_BaseError, OSError) as error:
        found = getattr(error, "strerror", None) or str(error)
        do = "Free space or choose another folder, and run it again; an earlier map is untouched."
        raise DiskError(path, found=found, expected="to write the map", do=do) from error


def write_category_names(path: Path) -> None:
    """Write GDAL's side-car file (PAM) with the name of each code from 0."""
    names = [DFC2020.name_of(code) for code in range(max(DFC2020.codes) + 1)]
    rows = "".join(f"      <Category>{escape(name)}</Category>\n" for name in names)
    band = f'  <PAMRasterBand band="1">\n    <CategoryNames>\n{rows}    </CategoryNames>\n  </PAMRasterBand>\n'
    path.write_text(f"<PAMDataset>\n{band}</PAMDataset>\n", encoding="utf-8")
