"""
The coarse map of a scene: which label the 500 m cell of each 10 m pixel has, and what that says of the pixel.

A MODIS product is often handed on in degrees or in UTM, where its cells have been resampled and no longer have their
outline. Here each pixel first finds its cell in the sinusoidal grid (`cells`), and the raster is read at the centre of
that cell, so that outlines are those of MODIS whatever grid the raster came in. Any other coarse map is read pixel by
pixel: its own cells are what they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import RasterioError

from lcfuse_core.data.cells import CELL_M, lonlat_to_modis, modis_to_lonlat
from lcfuse_core.data.legends import DFC2020, IGNORE, N_COARSE, SAVANNA, SAVANNA_INDEX, dfc_to_index, igbp_to_dfc
from lcfuse_core.errors import DataError, GridError, LegendError, MissingDataError
from lcfuse_core.mapping.scene import Grid, place_of
from lcfuse_core.models.transition import Matrix, class_prior, from_accuracy, posterior

LATTICE_PX = 64
"""Projections are computed at every 64th pixel and interpolated between: 640 m are flat to a centimetre."""

LAYER = "LC_Type1"
"""The IGBP layer of an MCD12Q1 file."""

Table = NDArray[np.uint8]
"""Coarse label 0..8 (Savanna: 8), 255 = says nothing, for each code 0..255 of a raster."""


@dataclass(frozen=True)
class CoarseMap:
    """An open coarse map: the file, the legend's table, and whether its cells are those of MODIS."""

    path: Path
    file: Any
    table: Table
    classes: Table  # DFC2020 code of each code
    modis_cells: bool
    codes: NDArray[np.uint8]
    corner: tuple[int, int]

    def labels(self, grid: Grid, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Coarse labels 0..8 of the pixels of these rows and columns, 255 where there is none: uint8 (h, w)."""
        return self.table[self.codes_at(grid, rows, cols)]

    def dfc2020(self, grid: Grid, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """The same as DFC2020 codes 0..10, for looking at: uint8 (h, w)."""
        return self.classes[self.codes_at(grid, rows, cols)]

    def codes_at(self, grid: Grid, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """The raster's own codes at these pixels, 255 outside of it: uint8 (h, w)."""
        if not self.modis_cells:
            return self._pick(*_project(grid, rows, cols, self.file.crs))
        x_m, y_m = _project(grid, rows, cols, None)
        cell_col = np.floor(x_m / CELL_M).astype(np.int32)
        cell_row = np.floor(y_m / CELL_M).astype(np.int32)
        # Few cells, many pixels: look each cell up once.
        first_col, first_row = cell_col.min(), cell_row.min()
        n_cols, n_rows = cell_col.max() - first_col + 1, cell_row.max() - first_row + 1
        centre_x = (first_col + np.arange(n_cols) + 0.5) * CELL_M
        centre_y = (first_row + np.arange(n_rows) + 0.5) * CELL_M
        xs, ys = (field.ravel() for field in np.meshgrid(centre_x, centre_y))
        there = Transformer.from_crs("EPSG:4326", self.file.crs, always_xy=True)
        codes = self._pick(*there.transform(*modis_to_lonlat(xs, ys))).reshape(n_rows, n_cols)
        return codes[cell_row - first_row, cell_col - first_col]

    def _pick(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Codes of the raster's pixels at x, y in its own CRS."""
        with np.errstate(invalid="ignore"):
            col, row = place_of(~self.file.transform, np.asarray(x), np.asarray(y))
            row, col = np.floor(row) - self.corner[0], np.floor(col) - self.corner[1]
            height, width = self.codes.shape
            inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        at = np.where(inside, row, 0).astype(np.intp), np.where(inside, col, 0).astype(np.intp)
        return np.where(inside, self.codes[at], np.uint8(IGNORE)).astype(np.uint8)

    def shares(self, grid: Grid) -> NDArray[np.float64]:
        """Pixels of the lattice with each label, float64 (9,): how common the labels are in the scene."""
        every = max(1, min(LATTICE_PX, min(grid.shape) // 8))
        rows = range(0, grid.shape[0], every)
        found = [self.labels(grid, slice(row, row + 1), slice(0, grid.shape[1]))[0, ::every] for row in rows]
        return np.bincount(np.concatenate(found), minlength=256)[:N_COARSE].astype(np.float64)

    def posterior(self, grid: Grid) -> Matrix:
        """
        p(fine | coarse), (9, 8), from one stated accuracy of the labels and their shares in this scene.

        Raises DataError when the map says nothing of the scene.
        """
        counts = self.shares(grid)
        if not counts[:SAVANNA_INDEX].any():
            do = "Give the map of this place, or map without a coarse map."
            raise DataError(self.path, found="no label in the scene", expected="some cells with a class", do=do)
        matrix = from_accuracy(counts)
        return posterior(matrix, class_prior(matrix, counts))


@contextmanager
def open_coarse(
    path: str | os.PathLike[str], grid: Grid, legend: str | os.PathLike[str] = "igbp", *, band: int = 1
) -> Iterator[CoarseMap]:
    """
    Open the coarse map at *path* for the scene on *grid*.

    path : a raster of class codes (uint8) in any CRS, or an MCD12Q1 file (.hdf) where GDAL has the driver
    legend : "igbp" (MCD12Q1; cells of MODIS), "dfc2020", or a YAML or JSON file `{code: DFC2020 code or name}`

    Only the part over the scene is held in memory. Raises MissingDataError, DataError (damaged or not uint8),
    LegendError on an unknown legend or code, GridError without a georeference on either side or without common ground.
    """
    path = Path(path)
    if grid.crs is None:
        do = "Georeference the scene, or map without a coarse map."
        raise GridError(path, found="a scene without georeference", expected="a CRS", do=do)
    with _opened(path) as file:
        if not 1 <= band <= file.count or file.dtypes[band - 1] != "uint8":
            found = f"{file.count} bands of {file.dtypes[0]}"
            raise DataError(
                path, found=found, expected=f"uint8 codes in band {band}", do="Choose the layer of classes."
            )
        if file.crs is None:
            do = "Georeference it, as with gdal_translate -a_srs."
            raise GridError(path, found="no CRS", expected="a georeferenced map", do=do)
        codes, corner = _part_over(file, grid, band)
        if file.nodata is not None:
            codes[codes == file.nodata] = IGNORE
        modis = str(legend) == "igbp"
        yield CoarseMap(path, file, *_tables(legend, codes), modis, codes, corner)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise MissingDataError(path, found="no such file", expected="a coarse map", do="Check the path.")
    try:
        with rasterio.open(path) as file:
            inside = layer_of(file.subdatasets)
            if inside is None:
                yield file
                return
        with rasterio.open(inside) as file:
            yield file
    except RasterioError as error:
        reason = str(error.__cause__ or error).rstrip(".")
        do = "Download it again."
        if path.suffix.lower() == ".hdf":
            do = f"If GDAL lacks HDF4, turn layer {LAYER} into a GeoTIFF where it has it (gdal_translate), or use one."
        raise DataError(path, found=f"a file that cannot be read ({reason})", expected="a raster", do=do) from None


def layer_of(subdatasets: list[str]) -> str | None:
    """
    The IGBP layer among the subdatasets of an MCD12Q1 file; None where there are none.

    >>> layer_of(['HDF4_EOS:EOS_GRID:"a.hdf":MCD12Q1:LC_Type1', 'HDF4_EOS:EOS_GRID:"a.hdf":MCD12Q1:QC'])
    'HDF4_EOS:EOS_GRID:"a.hdf":MCD12Q1:LC_Type1'
    """
    if not subdatasets:
        return None
    found = [name for name in subdatasets if name.endswith((f":{LAYER}", f"/{LAYER}"))]
    if len(found) != 1:
        names = ", ".join(name.rsplit(":", 1)[-1] for name in subdatasets[:8])
        raise DataError(
            "coarse map", found=f"layers {names}", expected=f"one {LAYER}", do="Convert the layer you mean."
        )
    return found[0]


def _part_over(file: Any, grid: Grid, band: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The codes of the raster over the scene and two cells around, and the row and column where they begin."""
    around = 2 * LATTICE_PX
    rows, cols = grid.shape
    lattice = np.meshgrid(np.linspace(-around, cols + around, 33), np.linspace(-around, rows + around, 33))
    easting, northing = place_of(grid.place, lattice[0].ravel(), lattice[1].ravel())
    x, y = Transformer.from_crs(grid.crs, file.crs, always_xy=True).transform(easting, northing)
    col, row = place_of(~file.transform, np.asarray(x), np.asarray(y))
    known = np.isfinite(row) & np.isfinite(col)
    low = [max(0, int(np.floor(v[known].min())) - 2) if known.any() else 0 for v in (row, col)]
    high = [
        min(size, int(np.ceil(v[known].max())) + 2) if known.any() else 0
        for v, size in zip((row, col), file.shape, strict=True)
    ]
    if high[0] <= low[0] or high[1] <= low[1]:
        do = "Give the tile or cut-out that covers the scene."
        raise GridError(file.name, found="a map of another place", expected="common ground with the scene", do=do)
    window = ((low[0], high[0]), (low[1], high[1]))
    return file.read(band, window=window), (low[0], low[1])


def _tables(legend: str | os.PathLike[str], codes: NDArray[np.uint8]) -> tuple[Table, Table]:
    """Coarse label and DFC2020 code of each code; LegendError on codes of the scene that the legend does not know."""
    if str(legend) == "igbp":
        known = np.array([*range(18), IGNORE])
        dfc = igbp_to_dfc(known)
    elif str(legend) == "dfc2020":
        known = np.array([0, *DFC2020.codes, IGNORE])
        dfc = np.array([0, *DFC2020.codes, 0])
    else:
        pairs = _read_legend(Path(legend))
        known, dfc = np.array([*pairs, IGNORE]), np.array([*pairs.values(), 0])
    strange = sorted(set(np.unique(codes).tolist()) - set(known.tolist()))
    if strange:
        found = f"class code {', '.join(map(str, strange))}"
        do = "Give the legend of this map: a YAML file {code: DFC2020 code or name}."
        raise LegendError("coarse map", found=found, expected=f"codes of the legend {legend}", do=do)
    table = np.full(256, IGNORE, np.uint8)
    table[known] = dfc_to_index(dfc.astype(np.uint8))
    table[known[dfc == SAVANNA]] = SAVANNA_INDEX
    classes = np.zeros(256, np.uint8)
    classes[known] = dfc
    return table, classes


def _read_legend(path: Path) -> dict[int, int]:
    """Pairs of a legend file, code to DFC2020 code (0: says nothing)."""
    if not path.is_file():
        do = "Give igbp, dfc2020 or a file."
        raise LegendError("legend", found=f"'{path}'", expected="igbp, dfc2020 or a file that is there", do=do)
    text = path.read_text()
    try:
        pairs = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise LegendError(path, found=f"no YAML or JSON ({error})", expected="{code: class}", do="Mend it.") from None
    names = {name.lower(): code for name, code in zip(DFC2020.names, DFC2020.codes, strict=True)} | {"none": 0}
    known = {0, *DFC2020.codes}
    wanted = f"DFC2020 codes 0..10 or {', '.join(DFC2020.names)}, none"
    if not isinstance(pairs, Mapping) or not pairs:
        raise LegendError(path, found=type(pairs).__name__, expected="{code: class}", do="Mend it.")
    found: dict[int, int] = {}
    for code, target in pairs.items():
        value = names.get(target.lower()) if isinstance(target, str) else target
        if not str(code).isdigit() or not 0 <= int(code) < IGNORE or value not in known:
            raise LegendError(path, found=f"{code}: {target}", expected=f"0..254: {wanted}", do="Mend that line.")
        assert value is not None
        found[int(code)] = int(value)
    return found


def _project(grid: Grid, rows: slice, cols: slice, crs: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Coordinates of the pixel centres, (h, w) each: in *crs*, or, with None, in metres of the MODIS sphere.

    Computed on a lattice that is fixed to the scene, so that a pixel has the same place whatever part is asked for.
    """
    row_at, col_at = _lattice(rows), _lattice(cols)
    col, row = np.meshgrid(col_at + 0.5, row_at + 0.5)
    easting, northing = place_of(grid.place, col.ravel(), row.ravel())
    to = "EPSG:4326" if crs is None else crs
    x, y = Transformer.from_crs(grid.crs, to, always_xy=True).transform(easting, northing)
    if crs is None:
        x, y = lonlat_to_modis(x, y)
    return (
        _between(np.reshape(x, col.shape), row_at, col_at, rows, cols),
        _between(np.reshape(y, col.shape), row_at, col_at, rows, cols),
    )


def _lattice(pixels: slice) -> NDArray[np.int64]:
    first, last = pixels.start // LATTICE_PX, (pixels.stop - 1) // LATTICE_PX + 1
    return np.arange(first, last + 1) * LATTICE_PX


def _between(
    values: NDArray[np.float64],
    row_at: NDArray[np.int64],
    col_at: NDArray[np.int64],
    rows: slice,
    cols: slice,
) -> NDArray[np.float64]:
    """Bilinear interpolation of lattice values, first down the columns, then along the rows."""

    def steps(at: NDArray[np.int64], pixels: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        away = np.arange(pixels.start, pixels.stop) - at[0]
        return away // LATTICE_PX, (away % LATTICE_PX) / LATTICE_PX

    below, down = steps(row_at, rows)
    tall = values[below] * (1 - down)[:, None] + values[below + 1] * down[:, None]
    right, along = steps(col_at, cols)
    return tall[:, right] * (1 - along) + tall[:, right + 1] * along
