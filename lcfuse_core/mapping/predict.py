"""
From a network's probabilities to a map, in memory: a patch or a small scene in overlapping windows, as a GeoTIFF.

A map is uint8 (H, W) in DFC2020 codes, 0 = no class. Scene and probabilities are held in memory (about 70 bytes a
pixel: 36 MB for 700 x 700). For a whole tile, from files to files in constant memory, see `scene_map`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import MemoryFile

from lcfuse_core.data.legends import DFC2020, SCORED, index_to_dfc
from lcfuse_core.errors import DataError, GridError, MissingDataError
from lcfuse_core.mapping.windows import Tiling
from lcfuse_core.mapping.write import category_names, legend_tags, write_whole

Predict = Callable[[NDArray[np.uint16], NDArray[np.float32]], NDArray[np.float32]]
"""Probabilities (8, h, w) of one window of S2 (13, h, w) and S1 (2, h, w)."""


@dataclass(frozen=True)
class LandCoverMap:
    """A map as read: classes uint8 (H, W), CRS and transform (both None without georeference), tags."""

    classes: NDArray[np.uint8]
    crs: CRS | None = None
    transform: Affine | None = None
    tags: dict[str, str] = field(default_factory=dict)


def map_scene(
    predict: Predict,
    s2: NDArray[np.uint16],
    s1: NDArray[np.float32],
    *,
    window: int = 256,
    overlap: int = 64,
    margin: int = 0,
) -> NDArray[np.float32]:
    """
    Probabilities of a whole scene, float32 (8, H, W), predicted in windows and blended where they overlap.

    predict : called with S2 (13, h, w) and S1 (2, h, w) of one window; returns (8, h, w)
    window, overlap, margin : pixels; see `windows`. All windows have one size (that of the scene where it is smaller):
        the last of a row or column is moved back, not cut. In an overlap the weight of a window falls linearly to
        its edge, where a network sees least around it

    Raises GridError when S1 and S2 differ in size or *predict* returns another size, ParameterError on a
    window or overlap that cannot be, DataError on probabilities that are not finite.
    """
    tiling = _check_scene(s2, s1, window, overlap, margin)
    total = np.zeros((len(SCORED), *tiling.shape), np.float32)
    for rows, row_weight in zip(tiling.rows, tiling.row_weights, strict=True):
        for cols, col_weight in zip(tiling.cols, tiling.col_weights, strict=True):
            probabilities = predict(s2[:, rows, cols], s1[:, rows, cols])
            weight = np.outer(row_weight, col_weight)
            _check_window(probabilities, (len(SCORED), *weight.shape))
            total[:, rows, cols] += probabilities * weight
    return total


def _check_scene(s2: NDArray[np.uint16], s1: NDArray[np.float32], window: int, overlap: int, margin: int) -> Tiling:
    if s2.ndim != 3 or s1.ndim != 3 or s2.shape[1:] != s1.shape[1:]:
        raise GridError(
            "map_scene",
            found=f"S2 {s2.shape}, S1 {s1.shape}",
            expected="(13, H, W) and (2, H, W)",
            do="Hand over both layers of one patch or scene.",
        )
    return Tiling((s2.shape[1], s2.shape[2]), window, overlap, margin)


def _check_window(probabilities: NDArray[np.float32], expected: tuple[int, ...]) -> None:
    if probabilities.shape != expected:
        raise GridError(
            "predict",
            found=f"shape {probabilities.shape}",
            expected=f"{expected}",
            do="The function must return probabilities at the size of its window.",
        )
    if not np.isfinite(probabilities).all():
        raise DataError(
            "predict",
            found="NaN or infinite probabilities",
            expected="finite ones",
            do="Check the patch for NaN and that the network was trained to the end.",
        )


def most_likely(probabilities: NDArray[np.floating]) -> NDArray[np.uint8]:
    """
    DFC2020 codes (H, W) of the likeliest class of probabilities (8, H, W); of equals, the first.

    >>> most_likely(np.eye(8)[:, None, :]).tolist()
    [[1, 2, 4, 5, 6, 7, 9, 10]]
    """
    return index_to_dfc(probabilities.argmax(0).astype(np.uint8))


def write_map(
    path: str | os.PathLike[str],
    classes: NDArray[np.uint8],
    *,
    crs: CRS | str | None,
    transform: Affine | None,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """
    Write a map, uint8 (H, W) in DFC2020 codes, as a GeoTIFF that shows the legend's colours and names.

    crs, transform : georeference, or None and None for a patch that has none (the DFC2020 phase archives)
    tags : what else to keep with it, such as the run that made it

    Nodata is 0; tiled, deflated. The names stand in tags (`CLASS_1=Forest`) and, for QGIS and GDAL, in a
    small file beside the map, `<name>.aux.xml`: a GeoTIFF has no place for them. The map appears whole or not
    at all.
    Raises GridError or LegendError on what is no map, DiskError when it cannot be written.
    """
    path = Path(path)
    _check_map(path, classes, crs, transform)
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": classes.shape[0],
        "width": classes.shape[1],
    }
    profile |= {"nodata": DFC2020.unknown, "tiled": True, "blockxsize": 256, "blockysize": 256}
    profile |= {"compress": "deflate", "crs": crs} | ({} if transform is None else {"transform": transform})
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**profile) as raster:
            raster.write(classes.astype(np.uint8), 1)
            raster.write_colormap(1, {code: DFC2020.rgba(code) for code in range(256)})
            raster.update_tags(**legend_tags(), **(tags or {}))
            raster.set_band_description(1, "land cover")
        content = memory.read()
    write_whole(Path(f"{path}.aux.xml"), category_names())
    write_whole(path, content)
    return path


def _check_map(path: Path, classes: NDArray[np.uint8], crs: CRS | str | None, transform: Affine | None) -> None:
    if classes.ndim != 2 or not np.issubdtype(classes.dtype, np.integer):
        found = f"{classes.dtype} {classes.shape}"
        raise GridError(path, found=found, expected="integer codes (H, W)", do="Use most_likely() first.")
    if (crs is None) != (transform is None):
        found = "only a transform" if crs is None else "only a CRS"
        raise GridError(path, found=found, expected="both or neither", do="Take both from the same patch.")
    DFC2020.check(classes, str(path))


def read_map(path: str | os.PathLike[str]) -> LandCoverMap:
    """
    Read a map that `write_map` (or anyone) wrote in DFC2020 codes.

    Raises MissingDataError, DataError on a file that is no one-band uint8 raster, LegendError on other codes.
    """
    path = Path(path)
    if not path.exists():
        raise MissingDataError(path, found="no such file", expected="a map", do="Write it with write_map() first.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as raster:
                found = f"{raster.count} bands of {raster.dtypes[0]}"
                plain = (raster.count, raster.dtypes[0]) == (1, "uint8")
                classes, tags = raster.read(1), raster.tags()
                crs, transform = raster.crs, raster.transform
    except RasterioIOError as error:
        raise DataError(path, found=str(error), expected="a readable raster", do="Write the map again.") from error
    if not plain:
        raise DataError(path, found=found, expected="1 band of uint8", do="Is this a map of classes?")
    DFC2020.check(classes, str(path))
    return LandCoverMap(classes, crs, None if crs is None else transform, tags)
