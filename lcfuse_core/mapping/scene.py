"""
A scene as it comes, read by windows on one 10 m grid: Sentinel-2 L1C, Sentinel-1, and masks, whatever file or grid.

Sentinel-2 sets the grid: that of its 10 m bands, or, where it is in degrees or of another pixel size, 10 m in the UTM
zone of its centre. All else is warped to it as it is read: Sentinel-1 bilinear, the 20 and 60 m bands and masks by
nearest neighbour, as in SEN12MS, where coarser bands are repeated pixels.

A pixel counts as seen where every sensor that is used has a value and no mask hides it. What is not seen is 0 in the
arrays and False in `Seen.valid`.
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

from lcfuse_core.data.files import B10, BANDS, S1_RANGE_DB, S2_DARKEST, S2_MAX, S2_OFFSET, SIDE_PX, SWAPPED_DB
from lcfuse_core.errors import DataError, GridError, MissingDataError

PIXEL_M = 10.0
S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""Order of the bands in a scene, that of SEN12MS."""

LIT = slice(0, 4)
"""B1 to B4: the air alone shines in them, so 0 means no data. In the others calm water may be 0."""

HIDDEN_SCL = (0, 1, 3, 8, 9, 10)
"""Codes of a scene classification (SCL) that hide the ground: no data, saturated, shadow, clouds, cirrus."""

CACHE_BYTES = 192 * 2**20
"""GDAL's block cache: a row of blocks of all bands, so that each block is decoded once."""

PROBES, PROBE_PX = 6, 48
"""Values are checked on so many windows a side, of this size, before the first is mapped."""

_BAND_NAME = re.compile(r"(?:^|[_.-])B(0?[1-9]|1[0-2]|8A)(?:_\d+m)?\.(?:jp2|tiff?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: CRS and transform (both None without georeference) and shape (H, W)."""

    crs: CRS | None
    transform: Affine | None
    shape: tuple[int, int]

    @property
    def place(self) -> Affine:
        """The transform, or rows and columns themselves where there is none."""
        return self.transform or Affine.identity()


def place_of(transform: Affine, col: Any, row: Any) -> tuple[Any, Any]:
    """Coordinates of columns and rows (numbers or arrays alike); with the inverse transform, the way back."""
    t = transform
    return t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f


class Seen(NamedTuple):
    """
    Part of a scene.

    s2 : uint16 (13, h, w), reflectance x 10000 in the order of `S2_BANDS`, offset taken off
    s1 : float32 (2, h, w), VV and VH in dB; None where the scene has none
    valid : bool (h, w)
    """

    s2: NDArray[np.uint16]
    s1: NDArray[np.float32] | None
    valid: NDArray[np.bool_]


@dataclass
class Scene:
    """
    An open scene; `read` gives any part of it.

    files : all that it is read from
    repairs : what is mended on the way, in words
    """

    grid: Grid
    files: tuple[Path, ...]
    repairs: tuple[str, ...] = ()
    _s2: list[_Source] = field(default_factory=list)
    _s1: list[_Source] = field(default_factory=list)
    _masks: list[tuple[_Source, tuple[int, ...]]] = field(default_factory=list)
    _offset: int = 0

    @property
    def has_s1(self) -> bool:
        """Whether Sentinel-1 is there."""
        return bool(self._s1)

    def read(self, rows: slice, cols: slice) -> Seen:
        """The pixels of these rows and columns. Raises DataError, naming the file, where one cannot be read."""
        s2, valid = self._read_s2(rows, cols)
        for source, hidden in self._masks:
            codes = source.read(rows, cols)[0]
            valid &= ~np.isin(codes, hidden) if hidden else codes == 0
        s1 = None
        if self._s1:
            s1, has_s1 = _clean_s1([source.read(rows, cols) for source in self._s1])
            valid &= has_s1
            s1[:, ~valid] = 0
        if self._offset:
            np.maximum(s2, self._offset, out=s2)
            s2 -= np.uint16(self._offset)
        s2[:, ~valid] = 0
        return Seen(s2, s1, valid)

    def _read_s2(self, rows: slice, cols: slice) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        parts = [source.read(rows, cols) for source in self._s2]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        s2 = np.ascontiguousarray(values).view(np.uint16)  # a negative int16 becomes more than S2_MAX
        valid = (s2[LIT] > 0).all(axis=0) & (s2.max(axis=0) <= S2_MAX)
        for source, part in zip(self._s2, parts, strict=True):
            if source.nodata:
                valid &= (part != source.nodata).all(axis=0)
        return s2, valid


@dataclass(frozen=True)
class _Source:
    """Bands of one open file, on the grid of the scene."""

    path: Path
    file: Any
    nodata: float | None

    def read(self, rows: slice, cols: slice) -> NDArray[Any]:
        window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
        with _damage(self.path):
            return self.file.read(window=window)


@contextmanager
def open_scene(
    s2: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    s1: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    clouds: str | os.PathLike[str] | None = None,
    scl: str | os.PathLike[str] | None = None,
) -> Iterator[Scene]:
    """
    Open the files of a scene and check them, by their heads and by a sample of their values.

    s2 : one file of 13 bands; or single-band files named `..._B01.jp2` to `..._B12.tif`; or a folder of them, such as
        an L1C product `.SAFE`. The +1000 of newer products is found in B10 and taken off
    s1 : one file of VV and VH in dB, or one file for each, in that order; or none
    clouds : a raster that is not 0 where clouds hide the ground, any grid. Pixels outside it count as hidden
    scl : a scene classification (codes of Sen2Cor), any grid; see HIDDEN_SCL

    Raises MissingDataError, DataError (damaged file, other bands, unit or dtype; nothing seen) or GridError (no
    georeference where another file has one, or no common ground). A file is known by its path alone: no side-car file
    beside it changes what is read.
    """
    options = {"GDAL_CACHEMAX": CACHE_BYTES, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    s2_paths, s1_paths = _files(s2, "Sentinel-2"), _files(s1, "Sentinel-1")
    bands = _band_files(s2_paths) if len(s2_paths) > 1 or s2_paths[0].is_dir() else s2_paths
    with rasterio.Env(**options), ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a patch without one is mapped without one
        files = [_open(stack, path) for path in bands]
        _check_bands(bands, files, "s2")
        grid = _ten_metres(bands, files)
        if min(grid.shape) < SIDE_PX[0]:
            found, expected = f"{grid.shape} pixels", f"sides of {SIDE_PX[0]} or more"
            raise DataError(bands[0], found=found, expected=expected, do="Cut a larger scene.")
        scene = Scene(grid, tuple(bands))
        scene._s2 = _on_grid(stack, bands, files, grid, Resampling.nearest, nodata=0)
        if s1_paths:
            files = [_open(stack, path) for path in s1_paths]
            _check_bands(s1_paths, files, "s1")
            scene._s1 = _on_grid(stack, s1_paths, files, grid, Resampling.bilinear, nodata=np.nan)
        for path, hidden, outside in ((clouds, (), 255), (scl, HIDDEN_SCL, 0)):
            if path is not None:
                file = _open(stack, Path(path))
                if file.count != 1 or not file.dtypes[0].startswith(("uint", "int")):
                    found = f"{file.count} bands of {file.dtypes[0]}"
                    raise DataError(path, found=found, expected="one band of codes", do="Give a mask.")
                [source] = _on_grid(stack, [Path(path)], [file], grid, Resampling.nearest, nodata=outside)
                scene._masks.append((source, hidden))
        masks = [source.path for source, _ in scene._masks]
        scene.files = (*bands, *s1_paths, *masks)
        _check_values(scene)
        yield scene


def _files(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], what: str) -> list[Path]:
    listed = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    paths = [Path(path) for path in listed]
    for path in paths:
        if not path.exists():
            raise MissingDataError(path, found="no such file", expected=f"{what}", do="Check the path.")
    return paths


def _band_files(paths: Sequence[Path]) -> list[Path]:
    """The 13 single-band files among *paths* (or in one folder), in the order of the bands."""
    inside = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    found: dict[str, list[Path]] = {}
    for file in inside:
        match = _BAND_NAME.search(file.name)
        if match and not file.name.startswith("."):
            found.setdefault(f"B{match[1].upper().lstrip('0')}", []).append(file)
    missing = [band for band in S2_BANDS if band not in found]
    if missing:
        do = "Give the 13 bands of one L1C product (L2A has no B10), or one file of them."
        raise DataError(paths[0], found=f"no {', '.join(missing)}", expected="B01 to B12 and B8A", do=do)
    twice = [band for band in S2_BANDS if len(found[band]) > 1]
    if twice:
        names = ", ".join(file.name for file in found[twice[0]])
        do = "Give the folder of one product."
        raise DataError(paths[0], found=f"{twice[0]} more than once ({names})", expected="each band once", do=do)
    return [found[band][0] for band in S2_BANDS]


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What GDAL cannot read becomes a DataError that names the file."""
    try:
        yield
    except RasterioError as error:
        reason = str(error.__cause__ or error).replace(f"'{path}' ", "").rstrip(".")
        found = f"a file that cannot be read ({reason})"
        raise DataError(path, found=found, expected="a whole raster", do="Download it again.") from None


def _open(stack: ExitStack, path: Path) -> Any:
    if not path.is_file():
        raise MissingDataError(path, found="no such file", expected="a raster", do="Check the path.")
    with _damage(path):
        return stack.enter_context(rasterio.open(path))


def _check_bands(paths: Sequence[Path], files: Sequence[Any], kind: str) -> None:
    """13 bands of whole numbers, or 2 of real ones, in one file or in files of one each."""
    kinds = {"s2": ("uint16", "int16"), "s1": ("float32", "float64")}[kind]
    units = {"s2": "B1..B12 with B8A, reflectance x 10000", "s1": "VV and VH in dB"}[kind]
    count = sum(file.count for file in files)
    for path, file in zip(paths, files, strict=True):
        if not set(file.dtypes) <= set(kinds):
            expected, do = f"{' or '.join(kinds)}: {units}", "Convert it to that unit."
            raise DataError(path, found=f"dtype {file.dtypes[0]}", expected=expected, do=do)
    if count != BANDS[kind]:
        do = "Sentinel-2 L2A (12 bands) will not do: B10 is missing." if count == 12 else "Choose the bands."
        raise DataError(paths[0], found=f"{count} bands", expected=f"{BANDS[kind]}: {units}", do=do)


def _ten_metres(paths: Sequence[Path], files: Sequence[Any]) -> Grid:
    """The grid of B2, or of the one file, where it is of 10 m; else 10 m in its own or the UTM projection."""
    lead = 1 if len(files) > 1 else 0
    path, file = paths[lead], files[lead]
    if file.crs is None or file.transform == Affine.identity():
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


def _utm(path: Path, file: Any) -> CRS:
    """The UTM zone of the centre of a raster."""
    centre = place_of(file.transform, file.width / 2, file.height / 2)
    longitude, latitude = Transformer.from_crs(file.crs, "EPSG:4326", always_xy=True).transform(*centre)
    if not (np.isfinite([longitude, latitude]).all() and abs(latitude) < 84):
        found = f"a centre at {longitude:.4g}, {latitude:.4g} degrees"
        do = "Check its CRS and transform; near the poles, warp it to a polar grid of 10 m first."
        raise GridError(path, found=found, expected="a place between 84 S and 84 N", do=do)
    zone = int((longitude + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def _on_grid(
    stack: ExitStack,
    paths: Sequence[Path],
    files: Sequence[Any],
    grid: Grid,
    resampling: Resampling,
    *,
    nodata: float,
) -> list[_Source]:
    """Each file as it is where it lies on *grid*, else through a warp that leaves *nodata* outside."""
    sources = []
    for path, file in zip(paths, files, strict=True):
        placed = file.crs is not None and file.transform != Affine.identity()
        if placed != (grid.crs is not None):
            found = "a georeference" if placed else "no georeference"
            do = "Give files that all have one, or none of them."
            raise GridError(path, found=found, expected="the same as Sentinel-2", do=do)
        if not placed and file.shape != grid.shape:
            found = f"{file.shape} pixels"
            raise GridError(path, found=found, expected=f"{grid.shape} as Sentinel-2", do="Georeference both.")
        if placed and not _same(file, grid):
            _check_overlap(path, file, grid)
            options = {"resampling": resampling, "src_nodata": file.nodata, "nodata": nodata}
            rows, cols = grid.shape
            with _damage(path):
                file = stack.enter_context(
                    WarpedVRT(file, crs=grid.crs, transform=grid.transform, width=cols, height=rows, **options)
                )
        sources.append(_Source(path, file, file.nodata))
    return sources


def _same(file: Any, grid: Grid) -> bool:
    apart = np.abs(np.subtract(file.transform[:6], grid.place[:6])) * (*grid.shape[::-1], 1, *grid.shape[::-1], 1)
    return bool(file.crs == grid.crs and file.shape == grid.shape and apart.max() < 0.01 * PIXEL_M)


def _check_overlap(path: Path, file: Any, grid: Grid) -> None:
    """Raise GridError when a raster does not meet the scene anywhere."""
    rows, cols = grid.shape
    easting, northing = place_of(grid.place, *np.meshgrid(np.linspace(0, cols, 9), np.linspace(0, rows, 9)))
    assert grid.crs is not None
    there = Transformer.from_crs(grid.crs, file.crs, always_xy=True).transform(easting, northing)
    left, bottom, right, top = file.bounds
    inside = (there[0] >= left) & (there[0] <= right) & (there[1] >= min(bottom, top)) & (there[1] <= max(bottom, top))
    if not np.any(inside):
        found = f"{file.crs} within {left:.6g}..{right:.6g}, {bottom:.6g}..{top:.6g}, away from the scene"
        do = "Check its CRS, or give the file of this place."
        raise GridError(path, found=found, expected="ground in common with Sentinel-2", do=do)


def _clean_s1(parts: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """VV and VH as float32, and where both are measurements."""
    s1 = np.concatenate(parts).astype(np.float32, copy=False)
    low, high = S1_RANGE_DB
    with np.errstate(invalid="ignore"):
        valid = ((s1 > low) & (s1 < high)).all(axis=0) & (s1 != 0).any(axis=0)  # ESA's products: 0 is no data
    return s1, valid


def _check_values(scene: Scene) -> None:
    """Unit and order of the bands, from a sample of windows; the offset is noted. Reads the corners, too."""
    rows, cols = scene.grid.shape
    parts = [
        scene.read(slice(r, min(r + PROBE_PX, rows)), slice(c, min(c + PROBE_PX, cols)))
        for r in _starts(rows)
        for c in _starts(cols)
    ]
    valid = np.concatenate([part.valid.ravel() for part in parts])
    if not valid.any():
        parts = [scene.read(slice(r, min(r + 256, rows)), slice(0, cols)) for r in range(0, rows, 256)]
        valid = np.concatenate([part.valid.ravel() for part in parts])
    if not valid.any():
        do = "Check that its files show the same place, and its masks."
        raise DataError(scene.files[0], found="no pixel with data", expected="a part that all files cover", do=do)
    s2 = np.concatenate([part.s2.reshape(13, -1) for part in parts], axis=1)[:, valid]
    if s2.max() < S2_DARKEST:
        found, expected = f"values up to {s2.max()}", f"reflectance x 10000, not all below {S2_DARKEST}"
        raise DataError(scene.files[0], found=found, expected=expected, do="Convert it to that scale.")
    if np.median(s2[B10]) > np.median(s2[0]):
        found, expected = "band 11 brighter than band 1", "B10 (cirrus) nearly black, as in file order"
        raise DataError(scene.files[0], found=found, expected=expected, do="Bring the bands into file order.")
    # Nearly all of B10 is black. With the offset of baseline 04.00 it is about 1000, noise may lie below.
    if np.percentile(s2[B10], 1) > 0.9 * S2_OFFSET:
        scene._offset = S2_OFFSET
        scene.repairs = (f"s2: offset of +{S2_OFFSET} taken off all bands",)
    if scene._s1:
        samples = [part.s1.reshape(2, -1) for part in parts if part.s1 is not None]
        _check_decibels(scene._s1[0].path, np.concatenate(samples, axis=1)[:, valid])


def _check_decibels(path: Path, s1: NDArray[np.float32]) -> None:
    for band, values in zip(("VV", "VH"), s1, strict=True):
        if values.min() >= 0:
            found = f"{band} from {values.min():.4g} to {values.max():.4g}"
            raise DataError(path, found=found, expected="dB: some below 0", do="Convert it: 10 log10(value).")
    vv, vh = s1.mean(axis=1)
    if vh > vv + SWAPPED_DB:
        found = f"VH {vh - vv:.1f} dB above VV"
        raise DataError(path, found=found, expected="VV first, and VH below it", do="Swap the bands.")


def _starts(length: int) -> list[int]:
    """Where the windows of the sample begin; the last one ends with the scene."""
    return sorted({int(start) for start in np.linspace(0, max(0, length - PROBE_PX), PROBES)})
