"""
Read the coarse map of a scene: the label of the 500 m cell that each 10 m pixel lies in.

MODIS products are often distributed in degrees or in UTM, where their cells have been resampled and have lost their
outline. Here each pixel first gets its cell of the sinusoidal grid (`data.cells`), and the raster is read at the centre
of that cell, so that outlines are those of MODIS whatever the grid of the raster. Other coarse maps are read per pixel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pyproj import Transformer

from lcfuse_core.data.cells import CELL_M, lonlat_to_modis, modis_to_lonlat
from lcfuse_core.data.legends import DFC2020, IGNORE, N_COARSE, SAVANNA, SAVANNA_INDEX, dfc_to_index, igbp_to_dfc
from lcfuse_core.errors import DataError, GridError, LegendError
from lcfuse_core.mapping.scene import Grid, Source, coordinates, open_raster
from lcfuse_core.models.transition import Matrix, class_prior, from_accuracy, posterior

_LATTICE_PX = 64
"""Projections are computed at every 64th pixel and interpolated: accurate to a centimetre over 640 m."""

_LAYER = "LC_Type1"
"""The IGBP layer of an MCD12Q1 file."""

_Table = NDArray[np.uint8]
"""One value for each code 0..255 of a raster."""


@dataclass(frozen=True)
class CoarseMap:
    """
    An open coarse map, as `open_coarse` yields it, on the grid of its scene.

    codes, corner : the raster's codes over the scene, and the row and column of the raster where they begin
    """

    path: Path
    codes: NDArray[np.uint8]
    corner: tuple[int, int]
    grid: Grid
    _file: Any
    _labels: _Table
    _classes: _Table
    _modis_cells: bool

    def labels(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the coarse labels 0..8 of these pixels, 255 where there is none: uint8 (h, w)."""
        return self._labels[self.codes_at(rows, cols)]

    def dfc2020(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the same as DFC2020 codes 0..10, for figures: uint8 (h, w)."""
        return self._classes[self.codes_at(rows, cols)]

    def codes_at(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the raster's own codes at these pixels, 255 outside of it: uint8 (h, w)."""
        if not self._modis_cells:
            return self._pick(*_project(self.grid, rows, cols, self._file.crs))
        x_m, y_m = _project(self.grid, rows, cols, None)
        cell_col = np.floor(x_m / CELL_M).astype(np.int32)
        cell_row = np.floor(y_m / CELL_M).astype(np.int32)
        # There are few cells and many pixels: each cell is looked up once.
        first_col, first_row = cell_col.min(), cell_row.min()
        n_cols, n_rows = cell_col.max() - first_col + 1, cell_row.max() - first_row + 1
        centre_x = (first_col + np.arange(n_cols) + 0.5) * CELL_M
        centre_y = (first_row + np.arange(n_rows) + 0.5) * CELL_M
        xs, ys = (centres.ravel() for centres in np.meshgrid(centre_x, centre_y))
        to_raster = Transformer.from_crs("EPSG:4326", self._file.crs, always_xy=True)
        codes = self._pick(*to_raster.transform(*modis_to_lonlat(xs, ys))).reshape(n_rows, n_cols)
        return codes[cell_row - first_row, cell_col - first_col]

    def _pick(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Return the codes of the raster's pixels at x, y in its own CRS."""
        with np.errstate(invalid="ignore"):
            col, row = coordinates(~self._file.transform, np.asarray(x), np.asarray(y))
            row, col = np.floor(row) - self.corner[0], np.floor(col) - self.corner[1]
            height, width = self.codes.shape
            inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        at = np.where(inside, row, 0).astype(np.intp), np.where(inside, col, 0).astype(np.intp)
        return np.where(inside, self.codes[at], np.uint8(IGNORE)).astype(np.uint8)

    def posterior(self) -> Matrix:
        """
        Return p(fine | coarse), (9, 8), from one stated accuracy and the frequency of the labels in this scene.

        Raises DataError if the scene has no label.
        """
        height, width = self.grid.shape
        step = max(1, min(_LATTICE_PX, min(height, width) // 8))
        lines = [self.labels(slice(row, row + 1), slice(0, width))[0, ::step] for row in range(0, height, step)]
        counts = np.bincount(np.concatenate(lines), minlength=256)[:N_COARSE].astype(np.float64)
        if not counts[:SAVANNA_INDEX].any():
            do = "Give the map of this area, or map without a coarse map."
            raise DataError(self.path, found="no label in the scene", expected="some cells with a class", do=do)
        matrix = from_accuracy(counts)
        return posterior(matrix, class_prior(matrix, counts))


@contextmanager
def open_coarse(path: Source, grid: Grid, legend: Source = "igbp") -> Iterator[CoarseMap]:
    """
    Open the coarse map at *path* for the scene on *grid*; only the part over the scene is held in memory.

    Parameters
    ----------
    path : path
        A raster of class codes (uint8, first band) in any CRS, or an MCD12Q1 file (.hdf) if GDAL has the driver.
    grid : Grid
        Grid of the scene.
    legend : str or path
        "igbp" (MCD12Q1; cells of MODIS), "dfc2020", or a YAML or JSON file `{code: DFC2020 code or name}`.

    Raises
    ------
    MissingDataError, DataError, LegendError, GridError
        If the file is missing, damaged or not uint8; if a code or the legend is unknown; without a georeference on
        either side or without overlap.
    """
    path = Path(path)
    if grid.crs is None:
        do = "Georeference the scene, or map without a coarse map."
        raise GridError(path, found="a scene without georeference", expected="a CRS", do=do)
    advice = "Download it again."
    if path.suffix.lower() == ".hdf":
        advice = f"If GDAL lacks HDF4, convert layer {_LAYER} to a GeoTIFF where it has it (gdal_translate)."
    with open_raster(path, advice) as container:
        layer = _igbp_layer(container.subdatasets)
        with open_raster(layer, advice) if layer else container as file:
            if file.dtypes[0] != "uint8":
                found = f"{file.count} bands of {file.dtypes[0]}"
                do = "Choose the layer of classes."
                raise DataError(path, found=found, expected="uint8 codes in band 1", do=do)
            if file.crs is None:
                do = "Georeference it, as with gdal_translate -a_srs."
                raise GridError(path, found="no CRS", expected="a georeferenced map", do=do)
            codes, corner = _part_over(file, grid)
            if file.nodata is not None:
                codes[codes == file.nodata] = IGNORE
            yield CoarseMap(path, codes, corner, grid, file, *_tables(legend, codes), str(legend) == "igbp")


def _igbp_layer(subdatasets: list[str]) -> str | None:
    """
    Return the IGBP layer among the subdatasets of an MCD12Q1 file, None if there are none.

    >>> _igbp_layer(['HDF4_EOS:EOS_GRID:"a.hdf":MCD12Q1:LC_Type1', 'HDF4_EOS:EOS_GRID:"a.hdf":MCD12Q1:QC'])
    'HDF4_EOS:EOS_GRID:"a.hdf":MCD12Q1:LC_Type1'
    """
    if not subdatasets:
        return None
    found = [name for name in subdatasets if name.endswith((f":{_LAYER}", f"/{_LAYER}"))]
    if len(found) != 1:
        names = ", ".join(name.rsplit(":", 1)[-1] for name in subdatasets[:8])
        do = "Convert the layer of classes to a GeoTIFF."
        raise DataError("coarse map", found=f"layers {names}", expected=f"one {_LAYER}", do=do)
    return found[0]


def _part_over(file: Any, grid: Grid) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the codes of the raster over the scene and two cells around, and where they begin in the raster."""
    around = 2 * _LATTICE_PX
    rows, cols = grid.shape
    lattice = np.meshgrid(np.linspace(-around, cols + around, 33), np.linspace(-around, rows + around, 33))
    easting, northing = coordinates(grid.affine, lattice[0].ravel(), lattice[1].ravel())
    x, y = Transformer.from_crs(grid.crs, file.crs, always_xy=True).transform(easting, northing)
    col, row = coordinates(~file.transform, np.asarray(x), np.asarray(y))
    known = np.isfinite(row) & np.isfinite(col)
    window = []
    for values, size in zip((row[known], col[known]), file.shape, strict=True):
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        window.append((max(0, int(np.floor(low)) - 2), min(size, int(np.ceil(high)) + 2)))
    if not known.any() or any(high <= low for low, high in window):
        do = "Give the tile or cut-out that covers the scene."
        raise GridError(file.name, found="a map of another area", expected="an overlap with the scene", do=do)
    return file.read(1, window=tuple(window)), (window[0][0], window[1][0])


def _tables(legend: Source, codes: NDArray[np.uint8]) -> tuple[_Table, _Table]:
    """Return coarse label and DFC2020 code of each code; LegendError if the legend lacks a code of the scene."""
    if str(legend) == "igbp":
        known = np.array([*range(18), IGNORE])
        dfc = igbp_to_dfc(known)
    elif str(legend) == "dfc2020":
        known = np.array([0, *DFC2020.codes, IGNORE])
        dfc = np.array([0, *DFC2020.codes, 0])
    else:
        pairs = _read_legend(Path(legend))
        known, dfc = np.array([*pairs, IGNORE]), np.array([*pairs.values(), 0])
    unknown = sorted(set(np.unique(codes).tolist()) - set(known.tolist()))
    if unknown:
        found = f"class code {', '.join(map(str, unknown))}"
        do = "Give the legend of this map: a YAML file {code: DFC2020 code or name}."
        raise LegendError("coarse map", found=found, expected=f"codes of the legend {legend}", do=do)
    labels = np.full(256, IGNORE, np.uint8)
    labels[known] = dfc_to_index(dfc.astype(np.uint8))
    labels[known[dfc == SAVANNA]] = SAVANNA_INDEX
    classes = np.zeros(256, np.uint8)
    classes[known] = dfc
    return labels, classes


def _read_legend(path: Path) -> dict[int, int]:
    """Return the pairs of a legend file, code to DFC2020 code (0: not used)."""
    if not path.is_file():
        do = "Give igbp, dfc2020 or a file."
        raise LegendError("legend", found=f"'{path}'", expected="igbp, dfc2020 or an existing file", do=do)
    text = path.read_text()
    try:
        pairs = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        found = f"neither YAML nor JSON ({error})"
        raise LegendError(path, found=found, expected="{code: class}", do="Correct the file.") from None
    if not isinstance(pairs, Mapping) or not pairs:
        raise LegendError(path, found=type(pairs).__name__, expected="{code: class}", do="Correct the file.")
    classes = {name.lower(): code for name, code in zip(DFC2020.names, DFC2020.codes, strict=True)} | {"none": 0}
    found_pairs: dict[int, int] = {}
    for code, target in pairs.items():
        value = classes.get(target.lower()) if isinstance(target, str) else target
        if not str(code).isdigit() or not 0 <= int(code) < IGNORE or value not in {0, *DFC2020.codes}:
            expected = f"0..254: DFC2020 codes 0..10 or {', '.join(DFC2020.names)}, none"
            raise LegendError(path, found=f"{code}: {target}", expected=expected, do="Correct that line.")
        found_pairs[int(code)] = int(value)
    return found_pairs


def _project(grid: Grid, rows: slice, cols: slice, crs: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return coordinates of the pixel centres, (h, w) each: in *crs*, or, with None, in metres of the MODIS sphere.

    Interpolated on a lattice that is fixed to the scene, so that a pixel gets the same coordinates in every window.
    """
    (row_at, *row_steps), (col_at, *col_steps) = (_lattice(pixels) for pixels in (rows, cols))
    col, row = np.meshgrid(col_at + 0.5, row_at + 0.5)
    easting, northing = coordinates(grid.affine, col.ravel(), row.ravel())
    to = "EPSG:4326" if crs is None else crs
    x, y = Transformer.from_crs(grid.crs, to, always_xy=True).transform(easting, northing)
    if crs is None:
        x, y = lonlat_to_modis(x, y)
    (below, down), (right, along) = row_steps, col_steps

    def interpolate(values: Any) -> NDArray[np.float64]:
        values = np.reshape(values, col.shape)
        tall = values[below] * (1 - down)[:, None] + values[below + 1] * down[:, None]
        return tall[:, right] * (1 - along) + tall[:, right + 1] * along

    return interpolate(x), interpolate(y)


def _lattice(pixels: slice) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return lattice positions around *pixels*, and for each pixel the position before it and the fraction beyond."""
    first, last = pixels.start // _LATTICE_PX, (pixels.stop - 1) // _LATTICE_PX + 1
    away = np.arange(pixels.start, pixels.stop) - first * _LATTICE_PX
    return np.arange(first, last + 1) * _LATTICE_PX, away // _LATTICE_PX, (away % _LATTICE_PX) / _LATTICE_PX
