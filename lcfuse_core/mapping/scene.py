"""
Read any scene by windows on one 10 m grid: Sentinel-2 L1C, Sentinel-1 and masks, whatever their files and grids.

Sentinel-2 sets the grid: that of its 10 m bands, or, where it is in degrees or of another pixel size, 10 m in the UTM
zone of its centre. Everything else is warped to it as it is read: Sentinel-1 bilinear, the 20 and 60 m bands and masks
by nearest neighbour, as in SEN12MS, where coarser bands are repeated pixels.

A pixel is valid where every sensor that is used has a value and no mask hides it. Other pixels are 0 in the arrays.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import aligned_target, calculate_default_transform
from rasterio.windows import Window

from lcfuse_core.data.files import (
    BANDS,
    DTYPES,
    OFFSET_REMOVED,
    S1_RANGE_DB,
    S2_BANDS,
    S2_MAX,
    SIDE_PX,
    UNITS,
    check_s1,
    check_s2,
    subtract_offset,
)
from lcfuse_core.errors import DataError, GridError, MissingDataError

Source = str | os.PathLike[str]

PIXEL_M = 10.0

B1_TO_B4 = slice(0, 4)
"""The atmosphere alone gives these bands a signal, so 0 means no data. In the others calm water may be 0."""

HIDDEN_SCL = (0, 1, 3, 8, 9, 10)
"""Codes of a scene classification (SCL) that hide the ground: no data, saturated, shadow, clouds, cirrus."""

_CACHE_BYTES = 192 * 2**20
"""GDAL's block cache: a row of blocks of all bands, so that each block is decoded once."""

_PROBES, _PROBE_PX = 6, 48
"""Values are checked in so many windows per side, of this size, before the first window is mapped."""

_BAND_NAME = re.compile(r"(?:^|[_.-])B(0?[1-9]|1[0-2]|8A)(?:_\d+m)?\.(?:jp2|tiff?)$", re.IGNORECASE)

_DRIVERS = {".jp2": "JP2OpenJPEG", ".hdf": "HDF4", ".h5": "HDF5", ".he5": "HDF5"}
"""GDAL's driver by suffix, GTiff for all others. Formats that refer to other files or addresses (VRT) are refused."""


@dataclass(frozen=True)
class Grid:
    """CRS and transform (both None without georeference) and shape (H, W) of a raster."""

    crs: CRS | None
    transform: Affine | None
    shape: tuple[int, int]

    @property
    def affine(self) -> Affine:
        """The transform, or the identity where there is none."""
        return self.transform or Affine.identity()


def coordinates(transform: Affine, col: Any, row: Any) -> tuple[Any, Any]:
    """Return x, y of columns and rows (numbers or arrays); with the inverse transform, columns and rows of x, y."""
    t = transform
    return t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f


class ScenePart(NamedTuple):
    """
    Part of a scene.

    s2 : uint16 (13, h, w), reflectance x 10000, B1 to B12 with B8A after B8, offset removed
    s1 : float32 (2, h, w), VV and VH in dB; None where the scene has none
    valid : bool (h, w)
    """

    s2: NDArray[np.uint16]
    s1: NDArray[np.float32] | None
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class _Bands:
    """Bands of one open file, on the grid of the scene."""

    path: Path
    file: Any
    nodata: float | None

    def read(self, rows: slice, cols: slice) -> NDArray[Any]:
        with _named_errors(self.path):
            return self.file.read(window=Window.from_slices(rows, cols))


@dataclass
class Scene:
    """
    An open scene, as `open_scene` yields it.

    grid : of all that `read` returns
    files : all files that it is read from
    repairs : descriptions of what `read` corrects
    """

    grid: Grid
    files: tuple[Path, ...]
    repairs: tuple[str, ...] = ()
    _s2: list[_Bands] = field(default_factory=list)
    _s1: list[_Bands] = field(default_factory=list)
    _masks: list[tuple[_Bands, tuple[int, ...]]] = field(default_factory=list)
    _offset: int = 0

    @property
    def has_s1(self) -> bool:
        """Whether the scene has Sentinel-1."""
        return bool(self._s1)

    def read(self, rows: slice, cols: slice) -> ScenePart:
        """Return the pixels of these rows and columns; DataError names a file that cannot be read."""
        parts = [bands.read(rows, cols) for bands in self._s2]
        # A negative int16 becomes more than S2_MAX.
        s2 = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts)).view(np.uint16)
        valid = (s2[B1_TO_B4] > 0).all(axis=0) & (s2.max(axis=0) <= S2_MAX)
        for bands, part in zip(self._s2, parts, strict=True):
            if bands.nodata:
                valid &= (part != bands.nodata).all(axis=0)
        for bands, hidden in self._masks:
            codes = bands.read(rows, cols)[0]
            valid &= ~np.isin(codes, hidden) if hidden else codes == 0
        s1 = None
        if self._s1:
            s1 = np.concatenate([bands.read(rows, cols) for bands in self._s1]).astype(np.float32, copy=False)
            with np.errstate(invalid="ignore"):
                valid &= ((s1 > S1_RANGE_DB[0]) & (s1 < S1_RANGE_DB[1])).all(axis=0)
                valid &= (s1 != 0).any(axis=0)  # in ESA's products 0 means no data
            s1[:, ~valid] = 0
        if self._offset:
            subtract_offset(s2, self._offset)
        s2[:, ~valid] = 0
        return ScenePart(s2, s1, valid)


@contextmanager
def open_scene(
    s2: Source | Sequence[Source],
    s1: Source | Sequence[Source] = (),
    *,
    clouds: Source | None = None,
    scl: Source | None = None,
) -> Iterator[Scene]:
    """
    Open the files of a scene and check them, by their headers and by a sample of their values.

    Parameters
    ----------
    s2 : path or sequence of paths
        One file of 13 bands; or single-band files named `..._B01.jp2` to `..._B12.tif`; or a folder of them, such as an
        L1C product `.SAFE`. The offset of +1000 of newer products is recognised in B10 and removed.
    s1 : path or sequence of paths
        One file of VV and VH in dB, or one file each, in that order; or none.
    clouds : path, optional
        A raster on any grid that is not 0 where clouds hide the ground. Pixels outside it count as hidden.
    scl : path, optional
        A scene classification (codes of Sen2Cor) on any grid; see `HIDDEN_SCL`.

    Raises
    ------
    MissingDataError, DataError, GridError
        If a file is missing, damaged, of other bands, unit or dtype, without valid pixels, without the georeference
        that another file has, or of another area. Side-car files are not read.
    """
    options = {"GDAL_CACHEMAX": _CACHE_BYTES, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    s2_paths, s1_paths = (
        [Path(given)] if isinstance(given, (str, os.PathLike)) else [*map(Path, given)] for given in (s2, s1)
    )
    if len(s2_paths) > 1 or s2_paths[0].is_dir():
        s2_paths = _band_files(s2_paths)
    with rasterio.Env(**options), ExitStack() as stack:
        files = _open_bands(stack, s2_paths, "s2")
        grid = _ten_metre_grid(s2_paths, files)
        if min(grid.shape) < SIDE_PX[0]:
            found, expected = f"{grid.shape} pixels", f"sides of {SIDE_PX[0]} or more"
            raise DataError(s2_paths[0], found=found, expected=expected, do="Cut a larger scene.")
        scene = Scene(grid, tuple(s2_paths))
        scene._s2 = _on_grid(stack, s2_paths, files, grid, Resampling.nearest, nodata=0)
        if s1_paths:
            files = _open_bands(stack, s1_paths, "s1")
            scene._s1 = _on_grid(stack, s1_paths, files, grid, Resampling.bilinear, nodata=np.nan)
        for given, hidden, outside in ((clouds, (), 255), (scl, HIDDEN_SCL, 0)):
            if given is not None:
                path = Path(given)
                file = stack.enter_context(open_raster(path))
                if file.count != 1 or not file.dtypes[0].startswith(("uint", "int")):
                    found = f"{file.count} bands of {file.dtypes[0]}"
                    raise DataError(path, found=found, expected="one band of codes", do="Give a mask.")
                [mask] = _on_grid(stack, [path], [file], grid, Resampling.nearest, nodata=outside)
                scene._masks.append((mask, hidden))
        scene.files = (*s2_paths, *s1_paths, *(mask.path for mask, _ in scene._masks))
        _check_values(scene)
        yield scene


def open_raster(path: Path | str, do: str = "Give a GeoTIFF or JPEG 2000 file, or download it again.") -> Any:
    """
    Open a raster with the one driver of its suffix, so that it cannot refer to other files or addresses.

    path : a file, or the name of a subdataset of an HDF file
    do : advice in the error if GDAL cannot open it
    """
    subdataset = isinstance(path, str)
    if not subdataset and not Path(path).is_file():
        raise MissingDataError(path, found="no such file", expected="a raster", do="Check the path.")
    driver = f"{str(path)[:4]}Image" if subdataset else _DRIVERS.get(Path(path).suffix.lower(), "GTiff")
    with _named_errors(path, do), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a patch without one is mapped without one
        return rasterio.open(path, driver=driver)


@contextmanager
def _named_errors(path: Path | str, do: str = "Download it again.") -> Iterator[None]:
    """Turn an error of GDAL into a DataError that names the file."""
    try:
        yield
    except RasterioError as error:
        reason = str(error.__cause__ or error).replace(f"'{path}' ", "").rstrip(".")
        found = f"a file that cannot be read ({reason})"
        raise DataError(path, found=found, expected="a whole raster", do=do) from None


def _band_files(paths: Sequence[Path]) -> list[Path]:
    """Return the 13 single-band files among *paths* (or in folders), in the order of the bands."""
    inside = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    found: dict[str, list[Path]] = {band: [] for band in S2_BANDS}
    for file in inside:
        match = _BAND_NAME.search(file.name)
        if match and not file.name.startswith("."):
            found[f"B{match[1].upper().lstrip('0')}"].append(file)
    missing = [band for band, files in found.items() if not files]
    if missing:
        do = "Give the 13 bands of one L1C product (L2A has no B10), or one file of them."
        raise DataError(paths[0], found=f"no {', '.join(missing)}", expected="B01 to B12 and B8A", do=do)
    for band, files in found.items():
        if len(files) > 1:
            twice = f"{band} more than once ({', '.join(file.name for file in files)})"
            do = "Give the folder of one product."
            raise DataError(paths[0], found=twice, expected="each band once", do=do)
    return [files[0] for files in found.values()]


def _open_bands(stack: ExitStack, paths: Sequence[Path], kind: str) -> list[Any]:
    """Open the files of a sensor and check their bands and dtypes."""
    files = [stack.enter_context(open_raster(path)) for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not set(file.dtypes) <= set(DTYPES[kind]):
            expected, do = f"{' or '.join(DTYPES[kind])}: {UNITS[kind]}", "Convert it to that unit."
            raise DataError(path, found=f"dtype {file.dtypes[0]}", expected=expected, do=do)
    count = sum(file.count for file in files)
    if count != BANDS[kind]:
        do = "Sentinel-2 L2A (12 bands) does not fit: B10 is missing." if count == 12 else "Choose the bands."
        raise DataError(paths[0], found=f"{count} bands", expected=f"{BANDS[kind]}: {UNITS[kind]}", do=do)
    return files


def _ten_metre_grid(paths: Sequence[Path], files: Sequence[Any]) -> Grid:
    """Return the grid of B2, or of the one file, if it has 10 m; else 10 m in its own or the UTM projection."""
    lead = 1 if len(files) > 1 else 0
    path, file = paths[lead], files[lead]
    if not _is_placed(file):
        return Grid(None, None, file.shape)
    t = file.transform
    in_metres = file.crs.is_projected and file.crs.linear_units_factor[1] == 1
    upright = t.b == t.d == 0 and t.a > 0 > t.e
    if in_metres and upright and np.allclose((t.a, -t.e), PIXEL_M, rtol=1e-6):
        return Grid(file.crs, t, file.shape)
    crs = file.crs if in_metres else _utm(path, file)
    transform, cols, rows = calculate_default_transform(
        file.crs, crs, file.width, file.height, *file.bounds, resolution=PIXEL_M
    )
    transform, cols, rows = aligned_target(transform, cols, rows, PIXEL_M)
    return Grid(crs, transform, (rows, cols))


def _is_placed(file: Any) -> bool:
    return file.crs is not None and file.transform != Affine.identity()


def _utm(path: Path, file: Any) -> CRS:
    """Return the UTM zone of the centre of a raster."""
    centre = coordinates(file.transform, file.width / 2, file.height / 2)
    longitude, latitude = Transformer.from_crs(file.crs, "EPSG:4326", always_xy=True).transform(*centre)
    if not (np.isfinite([longitude, latitude]).all() and abs(latitude) < 84):
        found = f"a centre at {longitude:.4g}, {latitude:.4g} degrees"
        do = "Check its CRS and transform; near the poles, warp it to a polar grid of 10 m first."
        raise GridError(path, found=found, expected="a centre between 84 S and 84 N", do=do)
    zone = int((longitude + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def _on_grid(
    stack: ExitStack, paths: Sequence[Path], files: Sequence[Any], grid: Grid, resampling: Resampling, *, nodata: float
) -> list[_Bands]:
    """Return each file as it is if it lies on *grid*, else through a warp that leaves *nodata* outside."""
    sources = []
    for path, file in zip(paths, files, strict=True):
        if _is_placed(file) != (grid.crs is not None):
            found = "a georeference" if _is_placed(file) else "no georeference"
            do = "Give files that all have one, or none of them."
            raise GridError(path, found=found, expected="the same as Sentinel-2", do=do)
        if grid.crs is None and file.shape != grid.shape:
            found = f"{file.shape} pixels"
            raise GridError(path, found=found, expected=f"{grid.shape} as Sentinel-2", do="Georeference both.")
        if grid.crs is not None and not _same(file, grid):
            _check_overlap(path, file, grid)
            options = {"resampling": resampling, "src_nodata": file.nodata, "nodata": nodata}
            rows, cols = grid.shape
            with _named_errors(path):
                file = stack.enter_context(
                    WarpedVRT(file, crs=grid.crs, transform=grid.transform, width=cols, height=rows, **options)
                )
        sources.append(_Bands(path, file, file.nodata))
    return sources


def _same(file: Any, grid: Grid) -> bool:
    apart = np.abs(np.subtract(file.transform[:6], grid.affine[:6])) * (*grid.shape[::-1], 1, *grid.shape[::-1], 1)
    return bool(file.crs == grid.crs and file.shape == grid.shape and apart.max() < 0.01 * PIXEL_M)


def _check_overlap(path: Path, file: Any, grid: Grid) -> None:
    """Raise GridError if a raster does not meet the scene anywhere."""
    rows, cols = grid.shape
    easting, northing = coordinates(grid.affine, *np.meshgrid(np.linspace(0, cols, 9), np.linspace(0, rows, 9)))
    x, y = Transformer.from_crs(grid.crs, file.crs, always_xy=True).transform(easting, northing)
    left, bottom, right, top = file.bounds
    if not np.any((x >= left) & (x <= right) & (y >= min(bottom, top)) & (y <= max(bottom, top))):
        found = f"{file.crs} within {left:.6g}..{right:.6g}, {bottom:.6g}..{top:.6g}, away from the scene"
        do = "Check its CRS, or give the file of this area."
        raise GridError(path, found=found, expected="an overlap with Sentinel-2", do=do)


def _check_values(scene: Scene) -> None:
    """Check units and order of the bands in a sample of windows, and note the offset; the corners are read, too."""
    rows, cols = scene.grid.shape
    row_starts, col_starts = (
        sorted({int(start) for start in np.linspace(0, max(0, length - _PROBE_PX), _PROBES)}) for length in (rows, cols)
    )
    parts = [
        scene.read(slice(r, min(r + _PROBE_PX, rows)), slice(c, min(c + _PROBE_PX, cols)))
        for r in row_starts
        for c in col_starts
    ]
    if not any(part.valid.any() for part in parts):
        parts = [scene.read(slice(r, min(r + 256, rows)), slice(0, cols)) for r in range(0, rows, 256)]
    valid = np.concatenate([part.valid.ravel() for part in parts])
    if not valid.any():
        do = "Check that its files show the same area, and its masks."
        raise DataError(scene.files[0], found="no pixel with data", expected="a part that all files cover", do=do)
    s2 = np.concatenate([part.s2.reshape(13, -1) for part in parts], axis=1)[:, valid]
    scene._offset = check_s2(scene.files[0], s2, noisy=True)
    if scene._offset:
        scene.repairs = (OFFSET_REMOVED,)
    if scene.has_s1:
        s1 = np.concatenate([part.s1.reshape(2, -1) for part in parts if part.s1 is not None], axis=1)
        check_s1(scene._s1[0].path, s1[:, valid])
