"""
Read the coarse map of a scene: the label of the 500 m cell that each 10 m pixel lies in.

MODIS products are often distributed in degrees or in UTM, where their cells have been resampled and have lost their
outline. Here each pixel first gets its cell of the sinusoidal grid (`data.cells`), and the raster is read at the centre
of that cell, so that outlines are those of MODIS whatever the grid of the raster. Other coarse maps are read per pixel.

Two properties of MODIS files are taken from the product where the file is known to state them wrongly: the sphere of
the sinusoidal grid (Earth Engine and ArcGIS write an ellipsoid, 8 to 19 km away), and IGBP class 0, which is water in
collections 5 and 5.1. `CoarseMap.repairs` reports both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import MaskFlags

from lcfuse_core.data import cells
from lcfuse_core.data.legends import (
    DFC2020,
    IGNORE,
    N_COARSE,
    SAVANNA,
    SAVANNA_INDEX,
    dfc_to_index,
    igbp_to_dfc,
    read_legend,
)  # fmt: skip
from lcfuse_core.data.rasters import georeference, ground_size, open_raster, read_errors, transformer
from lcfuse_core.errors import DataError, GridError, LegendError
from lcfuse_core.mapping.scene import Grid, Source
from lcfuse_core.models.transition import Matrix, class_prior, from_accuracy, posterior

_STEP_PX = 64  # between the pixels at which the frequencies of labels are counted: a cell has 46
_MOST_PX = 2**28  # of the map over the scene, which are held in memory
_MOST_LON = 180 - 1e-5  # degrees, a metre from the antimeridian
_COARSE_M = 400  # without a legend a map of such pixels is MCD12Q1, whose cells have 463 m; others have other legends

_OTHER_LAYER = re.compile(
    r"LC_(?:Type[2-5]|Prop\d)\w*|Land_Cover_Type_[2-5]\w*|(?<![A-Za-z])(?:QC|LW)(?![A-Za-z])", re.IGNORECASE
)
"""Layers of MCD12Q1 with other legends than IGBP, whose codes are valid IGBP codes nevertheless."""

_LABELS = dfc_to_index(np.arange(11))
_LABELS[SAVANNA] = SAVANNA_INDEX
"""Coarse label by DFC2020 code, 0..10."""


def cell_centres(keys: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return longitude and latitude of the centres of MODIS cells, given by their `keys` of `cells.cell_ids`.

    The centre of a cell that the antimeridian cuts may lie beyond it: then a point at the meridian stands for it.
    """
    rows, cols = np.divmod(keys, cells.GRID_COLS)
    x_m = (cols + 0.5 - cells.GRID_COLS / 2) * cells.CELL_M
    y_m = (cells.GRID_ROWS / 2 - 0.5 - rows) * cells.CELL_M
    lon, lat = cells.modis_to_lonlat(x_m, y_m)
    return np.clip(lon, -_MOST_LON, _MOST_LON), lat


@dataclass(frozen=True)
class CoarseMap:
    """
    An open coarse map, as `open_coarse` yields it, on the grid of its scene.

    Attributes
    ----------
    path, grid : Path, Grid
        The file, and the pixels of the scene.
    codes : ndarray, uint8 (h, w)
        Those of the raster over the scene.
    repairs : tuple of str
        What was taken from the product instead of the file.
    """

    path: Path
    codes: NDArray[np.uint8]
    grid: Grid
    repairs: tuple[str, ...]
    _own: Grid  # of the whole raster
    _corner: tuple[int, int]  # row and column of the raster where the codes begin
    _classes: NDArray[np.uint8]  # DFC2020 code by code of the raster, (256,)
    _modis_cells: bool

    def labels(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the coarse labels 0..8 of these pixels, 255 where there is none: uint8 (h, w)."""
        return _LABELS[self.dfc2020(rows, cols)]

    def dfc2020(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the same as DFC2020 codes 0..10, for figures: uint8 (h, w)."""
        return self._classes[self.codes_at(rows, cols)]

    def codes_at(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the raster's own codes at these pixels, 255 outside of it: uint8 (h, w)."""
        at = self.grid.affine @ Affine.translation(cols.start, rows.start)
        shape = rows.stop - rows.start, cols.stop - cols.start
        if not self._modis_cells:
            row, col = np.mgrid[: shape[0], : shape[1]] + 0.5
            return self._pick(*transformer(self.path, self.grid.crs, self._own.crs).transform(*at @ (col, row)))
        # There are few cells and many pixels: each cell is looked up once.
        ids, keys = cells.cell_ids(at, str(self.grid.crs), shape)
        lonlat = cell_centres(keys)
        return self._pick(*transformer(self.path, "EPSG:4326", self._own.crs).transform(*lonlat))[ids]

    def _pick(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Return the codes of the raster's pixels at x, y in its own CRS."""
        with np.errstate(invalid="ignore"):
            col, row = ~self._own.affine @ (_wrapped(x, self._own), np.asarray(y))
            row, col = np.floor(row) - self._corner[0], np.floor(col) - self._corner[1]
            height, width = self.codes.shape
            inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        at = np.where(inside, row, 0).astype(np.intp), np.where(inside, col, 0).astype(np.intp)
        return np.where(inside, self.codes[at], np.uint8(IGNORE)).astype(np.uint8)

    def labels_around(self, rows: slice, cols: slice, reach: int) -> tuple[NDArray[np.uint8], tuple[slice, slice]]:
        """Return the labels of these pixels and of up to *reach* pixels around them, and where these lie in them."""
        top, left = max(0, rows.start - reach), max(0, cols.start - reach)
        bottom, right = np.minimum((rows.stop + reach, cols.stop + reach), self.grid.shape).tolist()
        inside = np.s_[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
        return self.labels(slice(top, bottom), slice(left, right)), inside

    def posterior(self) -> Matrix:
        """
        Return p(fine | coarse), (9, 8), from one stated accuracy and the frequency of the labels in this scene.

        Raises DataError if the scene has no label.
        """
        height, width = self.grid.shape
        step = max(1, min(_STEP_PX, min(height, width) // 8))
        lines = [self.labels(slice(row, row + 1), slice(0, width))[0, ::step] for row in range(0, height, step)]
        counts = np.bincount(np.concatenate(lines), minlength=256)[:N_COARSE].astype(np.float64)
        if not counts[:SAVANNA_INDEX].any():
            do = "Give the map of this area, or map without a coarse map."
            raise DataError(self.path, found="no label in the scene", expected="some cells with a class", do=do)
        matrix = from_accuracy(counts)
        return posterior(matrix, class_prior(matrix, counts))


@contextmanager
def open_coarse(
    path: Source, grid: Grid, legend: Source | None = None, *, band: int | str | None = None
) -> Iterator[CoarseMap]:
    """
    Open the coarse map at *path* for the scene on *grid*; only the part over the scene is held in memory.

    Parameters
    ----------
    path, grid : path, Grid
        A raster of class codes, whole numbers 0..255 of any type, in any CRS; the grid of the scene.
    legend : str or path, optional
        "igbp" (MCD12Q1; cells of MODIS), "dfc2020", or a YAML or JSON file `{code: DFC2020 code or name}`. Without it
        the map is MCD12Q1, which must then have pixels of 400 m or more.
    band : int or str, optional
        Number or description of the band, needed where there are several (a band per year) unless one is `LC_Type1`.

    Raises
    ------
    MissingDataError, DataError, LegendError, GridError
        If the file is missing, damaged or of other values; if a code or the legend is unknown, or the band not chosen;
        without a georeference on either side or without overlap.
    """
    path = Path(path)
    if grid.crs is None:
        do = "Georeference the scene, or map without a coarse map."
        raise GridError(path, found="a scene without georeference", expected="a CRS", do=do)
    with open_raster(path) as file:
        crs, transform = georeference(path, file)
        if crs is None or transform is None:
            do = "Georeference it, as with gdal_edit.py -a_srs."
            raise GridError(path, found="no georeference", expected="a georeferenced map", do=do)
        notes, number = [], _chosen_band(path, file, band)
        if _is_modis_grid(path, crs, transform):
            notes.append(f"{path.name}: MODIS grid, read on its sphere and not on the ellipsoid stated")
            crs = CRS.from_proj4(cells.SINUSOIDAL)
        size = max(ground_size(path, crs, transform, file.shape))
        if legend is None and size < _COARSE_M:
            do = "Give its legend: igbp, dfc2020, or a YAML file {code: DFC2020 code or name}."
            found = f"pixels of {size:.3g} m and no legend"
            raise LegendError(path, found=found, expected="a legend, or MCD12Q1 in pixels of 463 m", do=do)
        own = Grid(crs, transform, file.shape)
        window = _window_over(path, own, grid)
        codes = _codes(path, file, number, window)
        is_igbp = legend is None or str(legend) == "igbp"
        stated = file.descriptions[number - 1] or path.stem
        if is_igbp and "LC_Type1" not in stated and (other := _OTHER_LAYER.search(stated)):
            do = "Give the layer LC_Type1, or the legend of this one: a YAML file {code: DFC2020 code or name}."
            raise LegendError(path, found=f"the layer {other[0]}", expected="IGBP classes", do=do)
        has_water_0 = is_igbp and _water_is_0(path, file, number, codes)
        if has_water_0:
            notes.append(f"{path.name}: code 0 read as water, as in collections 5 and 5.1 of MCD12Q1")
        classes = _classes(path, "igbp" if legend is None else legend, codes, has_water_0)
        (top, _), (left, _) = window
        yield CoarseMap(path, codes, grid, tuple(notes), own, (top, left), classes, is_igbp)


def _chosen_band(path: Path, file: Any, band: int | str | None) -> int:
    """Return the number of the band to read, from 1; DataError if it is missing or not clear."""
    names = [name or "" for name in file.descriptions]
    layers = [number for number, name in enumerate(names, 1) if re.search(r"(LC_Type1|Land_Cover_Type_1)$", name)]
    if band is None and (file.count == 1 or len(layers) == 1):
        return 1 if file.count == 1 else layers[0]
    if band is not None and str(band) in names:
        return names.index(str(band)) + 1
    if band is not None and str(band).isdecimal() and 1 <= int(band) <= file.count:
        return int(band)
    listed = ", ".join(f"{number} {name}".strip() for number, name in enumerate(names[:30], 1))
    found = f"{file.count} bands ({listed})" if band is None else f"band {band} asked of {listed}"
    do = "Choose one by number or name, or cut it out: gdal_translate -b NUMBER."
    raise DataError(path, found=found, expected="one band of classes, such as one year", do=do)


def _is_modis_grid(path: Path, crs: CRS, t: Affine) -> bool:
    """
    Return whether a raster is on the MODIS sinusoidal grid although its CRS states another ellipsoid than the sphere.

    Such are rasters whose CRS is named after MODIS, or whose pixels are whole cells of the grid (250 m to 1 km).
    """
    wkt = crs.to_wkt()
    radius = re.search(r"(?:SPHEROID|ELLIPSOID)\[[^,]*,\s*([\d.]+),\s*([\d.]+)", wkt)
    on_sphere = radius is not None and abs(float(radius[1]) - 6371007.181) < 0.01 and float(radius[2]) == 0
    if on_sphere or not re.search(r'PROJECTION\["Sinusoidal"|METHOD\["Sinusoidal"', wkt):
        return False
    is_named = "MODIS" in wkt.split(",")[0].upper()
    has_cells = any(np.allclose((abs(t.a), abs(t.e)), cells.CELL_M * k, rtol=1e-5) for k in (0.5, 1, 2))
    is_aligned = has_cells and abs(t.c / t.a - round(t.c / t.a)) < 0.02 and abs(t.f / t.e - round(t.f / t.e)) < 0.02
    if has_cells and not is_aligned and not is_named:
        found = "pixels of the size of MODIS cells on an ellipsoid, off the MODIS grid"
        do = f"State what it is on: gdal_edit.py -a_srs '{cells.SINUSOIDAL}' for MODIS."
        raise GridError(path, found=found, expected="a clear CRS", do=do)
    return is_aligned or is_named


def _window_over(path: Path, own: Grid, grid: Grid) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first and last rows and columns of the part of a raster, *own*, over the scene and two cells around."""
    around = 2 * _STEP_PX
    rows, cols = grid.shape
    points = np.mgrid[-around : cols + around : 33j, -around : rows + around : 33j].reshape(2, -1)
    x, y = transformer(path, grid.crs, own.crs).transform(*grid.affine @ points)
    col, row = ~own.affine @ (_wrapped(x, own), np.asarray(y))
    known = np.isfinite(row) & np.isfinite(col)
    window = []
    for values, size in zip((row[known], col[known]), own.shape, strict=True):
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        window.append((max(0, int(np.floor(low)) - 2), min(size, int(np.ceil(high)) + 2)))
    n_px = np.prod([high - low for low, high in window], dtype=float)
    if not known.any() or any(high <= low for low, high in window):
        do = "Give the tile or cut-out that covers the scene."
        raise GridError(path, found="a map of another area", expected="an overlap with the scene", do=do)
    if n_px > _MOST_PX:
        do = "Resample it to pixels of 10 m or more: gdalwarp -tr, -r mode."
        raise GridError(path, found=f"{n_px:.3g} pixels over the scene", expected=f"{_MOST_PX:.3g} or fewer", do=do)
    return window[0], window[1]


def _codes(path: Path, file: Any, number: int, window: Any) -> NDArray[np.uint8]:
    """Return class codes of a window as uint8, 255 where there are none; DataError on other numbers."""
    with read_errors(path):
        values = file.read(number, window=window)
        flags = file.mask_flag_enums[number - 1]
        unknown = file.read_masks(number, window=window) == 0 if MaskFlags.per_dataset in flags else values != values
    nodata, is_scaled = file.nodatavals[number - 1], (file.scales[number - 1], file.offsets[number - 1]) != (1, 0)
    unknown |= (values == nodata) if nodata is not None else False
    if values.dtype.kind == "c" or is_scaled or not np.all(unknown | (values == np.floor(values))):
        found = f"{file.count} bands of {file.dtypes[0]}{' with a scale' if is_scaled else ' with fractions'}"
        raise DataError(path, found=found, expected="whole codes 0..255", do="Choose the layer of classes.")
    outside = values[~unknown & ((values < 0) | (values > IGNORE))]
    if outside.size:
        do = "State the value that means no data (gdal_edit.py -a_nodata), or choose the layer of classes."
        raise LegendError(path, found=f"class code {outside[0]:g}", expected="codes 0..255", do=do)
    return np.where(unknown, IGNORE, values).astype(np.uint8)


def _water_is_0(path: Path, file: Any, number: int, codes: NDArray[np.uint8]) -> bool:
    """
    Return whether IGBP code 0 is water, as in collections 5 and 5.1, where 17 does not occur.

    Evidence is the name of layer or file, another value that the file declares as nodata, and code 17. Raises
    LegendError where zeros are left without evidence.
    """
    if not (codes == 0).any():
        return False
    text = f"{path.name} {file.descriptions[number - 1]} {file.tags()} {file.tags(number)}"
    if re.search(r"Land_Cover_Type_1|MCD12Q1[._](?:A\d+\..*)?0?(?:05|5)1?(?:\D|$)|water\W+0", text, re.IGNORECASE):
        return True
    shape = tuple(min(2048, side) for side in file.shape)
    with read_errors(path):
        overview = file.read(number, out_shape=shape)
    if (codes == 17).any() or (overview == 17).any():
        return False  # collection 6 and later: 0 is no class
    if file.nodatavals[number - 1] in (254, 255):
        return True
    do = "State which: gdal_edit.py -a_nodata 0 where 0 means no label, -a_nodata 255 where it means water."
    raise LegendError(path, found="code 0 without evidence of its meaning", expected="IGBP codes 1..17", do=do)


def _classes(path: Path, legend: Source, codes: NDArray[np.uint8], has_water_0: bool) -> NDArray[np.uint8]:
    """Return the DFC2020 code of each code 0..255; LegendError if the legend lacks a code of the scene."""
    if str(legend) == "igbp":
        pairs = dict(enumerate(igbp_to_dfc(np.arange(18)).tolist()))
        pairs[0] = pairs[17] if has_water_0 else 0
    elif str(legend) == "dfc2020":
        pairs = {code: code for code in (0, *DFC2020.codes)}
    else:
        pairs = read_legend(Path(legend))
    pairs = pairs | {IGNORE: 0}
    if unknown := sorted(set(np.unique(codes).tolist()) - set(pairs)):
        found = f"class code {', '.join(map(str, unknown))}"
        do = "Give the legend of this map: a YAML file {code: DFC2020 code or name}."
        raise LegendError(path, found=found, expected=f"codes of the legend {legend}", do=do)
    classes = np.zeros(256, np.uint8)
    classes[[*pairs]] = [*pairs.values()]
    return classes


def _wrapped(x: Any, own: Grid) -> NDArray[np.float64]:
    """Return x, in degrees, by full turns within the raster *own* where possible; in other units as it is."""
    x, (west, _, east, _) = np.asarray(x, np.float64), own.extent
    if own.crs is None or not own.crs.is_geographic:
        return x
    with np.errstate(invalid="ignore"):
        return np.where(x < west, x + 360 * np.ceil((west - x) / 360), x - 360 * np.ceil(np.maximum(0, x - east) / 360))
