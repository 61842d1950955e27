"""
Read any scene by windows on one 10 m grid: Sentinel-2 L1C, Sentinel-1 and masks, whatever their files and grids.

Sentinel-2 sets the grid: that of its 10 m bands, or, where it is in degrees, of another pixel size, or in a projection
that distorts areas (Web Mercator), 10 m in the UTM zone of its centre. Everything else is warped to it as it is read:
Sentinel-1 bilinear, the 20 and 60 m bands and masks by nearest neighbour, as in SEN12MS, where coarser bands are
repeated pixels.

A pixel is valid where every sensor that is used has a value and no mask hides it. Other pixels are 0 in the arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import aligned_target, calculate_default_transform, transform_bounds
from rasterio.windows import Window

from lcfuse_core.data.bands import (
    N_S1,
    OFFSET_REMOVED,
    S1_RANGE_DB,
    S2_BANDS,
    S2_MAX,
    band_name,
    channels_of,
    check_s1,
    check_s2,
    subtract_offset,
)
from lcfuse_core.data.rasters import (
    Raster,
    corners_apart,
    georeference,
    ground_size,
    open_raster,
    read_errors,
    sensor_bands,
    transformer,
    utm,
)
from lcfuse_core.errors import DataError, GridError

Source = str | os.PathLike[str]

CLEAR = (4, 5, 6, 7, 11)
"""Classes of the scene classification (SCL) that show the ground: vegetation, soil, water, unclassified, snow."""

B1_TO_B4 = slice(0, 4)
"""The atmosphere alone gives these bands a signal, so 0 means no data. In the others calm water may be 0."""

_PIXEL_M = 10.0
_LEAST_PIXEL_M, _MOST_PIXEL_M = 0.1, 60.5  # coarser images show too little; 20 and 60 m bands are repeated pixels
_SIDE_PX = (32, 65_536)  # of a scene: networks need the least; memory grows with the width
_SHOWN_SCL = (2, *CLEAR)  # codes of a scene classification (SCL) that do not hide the ground: dark areas as well
_MOST_CODES = 32  # a mask has fewer values; cloud probabilities (0 to 100) have more
_CACHE_BYTES = 192 * 2**20  # of GDAL: a row of blocks of all bands, so that most blocks are decoded once
_PROBES, _PROBE_PX = 6, 48  # windows per side, and their side, in which values are checked before anything is mapped
_BAND_FILES = {".jp2", ".tif", ".tiff", ".img"}
# Folders of a product with further rasters that are named like bands: masks and previews.
_OTHER_FOLDERS = {"qi_data", "qi", "preview", "aux_data", "auxiliary", "html", "rep_info"}


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

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Least x and y, largest x and y of the corners, in units of the CRS."""
        rows, cols = self.shape
        x, y = self.affine @ np.array([(0, 0), (cols, 0), (0, rows), (cols, rows)]).T
        return x.min(), y.min(), x.max(), y.max()

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees; west > east across 180 degrees, as GeoJSON has it (RFC 7946)."""
        return transform_bounds(self.crs, "EPSG:4326", *self.extent)


class ScenePart(NamedTuple):
    """
    Part of a scene.

    Attributes
    ----------
    s2 : ndarray, uint16 (13, h, w)
        Reflectance x 10000, B1 to B12 with B8A after B8, offset removed.
    s1 : ndarray, float32 (2, h, w), optional
        VV and VH in dB; None where the scene has none.
    valid : ndarray, bool (h, w)
        Where there are data.
    """

    s2: NDArray[np.uint16]
    s1: NDArray[np.float32] | None
    valid: NDArray[np.bool_]

    @property
    def sensors(self) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Sentinel-2 and Sentinel-1, which is 0 where the scene has none."""
        return self.s2, np.zeros((N_S1, *self.valid.shape), np.float32) if self.s1 is None else self.s1


@dataclass
class Scene:
    """
    An open scene, as `open_scene` yields it.

    Attributes
    ----------
    grid : Grid
        Of all that `read` returns.
    files, repairs : tuple of Path, tuple of str
        All files that it is read from; what `read` corrects, and what is to be known about the files.
    channels : tuple of str
        Those that a sample of the scene has data in.
    """

    grid: Grid
    files: tuple[Path, ...]
    repairs: tuple[str, ...]
    _s2: Sequence[Raster]
    _s1: Sequence[Raster]
    _masks: Sequence[tuple[Raster, tuple[int, ...]]]
    _offset: int = 0
    channels: tuple[str, ...] = ()

    @property
    def has_s1(self) -> bool:
        """Whether the scene has Sentinel-1."""
        return bool(self._s1)

    def read(self, rows: slice, cols: slice) -> ScenePart:
        """Return the pixels of these rows and columns; DataError names a file that cannot be read."""
        bands, has_data = _read_all(self._s2, rows, cols)
        # A negative int16 becomes more than S2_MAX.
        s2 = np.ascontiguousarray(bands).view(np.uint16)
        valid = (s2[B1_TO_B4] > 0).all(axis=0) & (s2.max(axis=0) <= S2_MAX) & has_data
        for raster, shown in self._masks:
            valid &= np.isin(raster.read(rows, cols)[0][0], shown)
        s1 = None
        if self._s1:
            bands, has_data = _read_all(self._s1, rows, cols)
            s1 = bands.astype(np.float32, copy=False)
            with np.errstate(invalid="ignore"):
                valid &= ((s1 > S1_RANGE_DB[0]) & (s1 < S1_RANGE_DB[1])).all(axis=0)
            valid &= (s1 != 0).any(axis=0) & has_data  # in ESA's products 0 means no data
            s1[:, ~valid] = 0
        if self._offset:
            subtract_offset(s2, self._offset)
        s2[:, ~valid] = 0
        return ScenePart(s2, s1, valid)


def _read_all(rasters: Sequence[Raster], rows: slice, cols: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the bands of all rasters of a sensor, and where all have data."""
    bands, has_data = zip(*(raster.read(rows, cols) for raster in rasters), strict=True)
    return np.concatenate(bands) if len(bands) > 1 else bands[0], reduce(np.logical_and, has_data)


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
        One file of VV and VH in dB, or one file each; or none. Names of bands and files determine the order.
    clouds, scl : path, optional
        Rasters on any grid: a mask that is not 0 where clouds hide the ground, whose outside counts as hidden; a scene
        classification (codes of Sen2Cor).

    Raises
    ------
    MissingDataError, DataError, GridError
        If a file is missing, damaged, of other bands, unit, pixel size or dtype, without valid pixels, without the
        georeference that another file has, or of another area. Side-car files are not read.
    """
    s2_paths, s1_paths = (
        [Path(given)] if isinstance(given, (str, os.PathLike)) else [*map(Path, given)] for given in (s2, s1)
    )
    if len(s2_paths) > 1 or s2_paths[0].is_dir():
        s2_paths = _band_files(s2_paths)
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), ExitStack() as stack:
        rasters = _open_bands(stack, s2_paths, "s2", S2_BANDS)
        grid, notes = _ten_metre_grid(rasters[1 if len(rasters) > 1 else 0])
        of_s2 = [_on_grid(stack, raster, grid, Resampling.nearest, nodata=0) for raster in rasters]
        of_s1, masks = [], []
        if s1_paths:
            names = [band_name("s1", path.stem) or "" for path in s1_paths]
            if sorted(names) == ["VH", "VV"]:
                s1_paths.sort(key=lambda path: band_name("s1", path.stem) == "VH")
            elif len(s1_paths) == 2 and {"HH", "HV"} & set(names):
                do = "Give VV and VH: networks were trained on these."
                raise DataError(s1_paths[0], found=f"a file named {' and '.join(names)}", expected="VV and VH", do=do)
            rasters = _open_bands(stack, s1_paths, "s1", ("VV", "VH"))
            notes += _resolution(rasters[0], "s1")
            of_s1 = [_on_grid(stack, raster, grid, Resampling.bilinear, nodata=np.nan) for raster in rasters]
        for given, shown, outside in ((clouds, (0,), 255), (scl, _SHOWN_SCL, 0)):
            if given is not None:
                path, file = Path(given), stack.enter_context(open_raster(given))
                with read_errors(path):
                    codes = _sample_of_codes(file) if file.count == 1 else np.empty(0, np.uint8)
                if file.count != 1 or codes.dtype.kind not in "iu" or codes.size > _MOST_CODES:
                    found = f"bands: {file.count}, {file.dtypes[0]}" + f", {codes.size} values" * (file.count == 1)
                    do = "Write a mask that is 0 where the ground is visible: a probability needs a threshold."
                    raise DataError(path, found=found, expected=f"1 band, up to {_MOST_CODES} whole numbers", do=do)
                # A nodata tag of 0 is common in masks, and 0 means clear.
                mask = _on_grid(stack, Raster(path, file, (1,)), grid, Resampling.nearest, nodata=outside)
                masks.append((mask, shown))
        files = (*s2_paths, *s1_paths, *(mask.path for mask, _ in masks))
        scene = Scene(grid, files, tuple(notes), of_s2, of_s1, masks)
        _check_values(scene)
        yield scene


def _sample_of_codes(file: Any) -> NDArray[Any]:
    """Return the values in up to nine windows of a mask: to decompress all of it may take minutes."""
    windows = (Window.from_slices(*window) for window in _sample(file.shape, 3, 256))
    return np.unique(np.concatenate([file.read(1, window=window).ravel() for window in windows]))


def _sample(shape: tuple[int, int], n: int, side: int) -> list[tuple[slice, slice]]:
    """Return up to n x n windows that are spread evenly over an image, from corner to corner, row by row."""
    starts = (np.unique(np.linspace(0, max(0, size - side), n, dtype=int)).tolist() for size in shape)
    return [(slice(r, min(r + side, shape[0])), slice(c, min(c + side, shape[1]))) for r, c in product(*starts)]


def _band_files(paths: Sequence[Path]) -> list[Path]:
    """Return the 13 single-band files among *paths* (or in folders), in the order of the bands."""
    inside = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    if any("MSIL2A" in part for path in (*paths, *inside) for part in path.parts[-6:]):
        found, do = "a Sentinel-2 L2A product", "Take the L1C product of the same scene: L2A has no B10."
        raise DataError(paths[0], found=found, expected="an L1C product", do=do)
    if any("IMG_DATA" in file.parts for file in inside):
        inside = [file for file in inside if "IMG_DATA" in file.parts]
    found_files: dict[str | None, list[Path]] = {}
    for file in inside:
        is_other = file.parent not in paths and file.parent.name.lower() in _OTHER_FOLDERS
        if file.suffix.lower() in _BAND_FILES and not file.name.startswith(".") and not is_other:
            found_files.setdefault(_file_band(file), []).append(file)
    if missing := [band for band in S2_BANDS if band not in found_files]:
        do = "Give the 13 bands of one L1C product (L2A has no B10), or one file of them."
        raise DataError(paths[0], found=f"no {', '.join(missing)}", expected="B01 to B12 and B8A", do=do)
    if twice := [band for band in S2_BANDS if len(found_files[band]) > 1]:
        found = f"{twice[0]} more than once ({', '.join(file.name for file in found_files[twice[0]])})"
        raise DataError(paths[0], found=found, expected="each band once", do="Give the folder of one product.")
    return [found_files[band][0] for band in S2_BANDS]


def _file_band(file: Path) -> str | None:
    """Return the Sentinel-2 band at the end of a file's name, which a resolution may follow: `..._B02_10m.jp2`."""
    words = file.stem.replace("-", "_").replace(".", "_").split("_")
    last = words[-2] if len(words) > 1 and words[-1].lower() in ("10m", "20m", "60m") else words[-1]
    return band_name("s2", last) if last[:1] in "Bb" else None


def _open_bands(stack: ExitStack, paths: Sequence[Path], kind: str, names: Sequence[str]) -> list[Raster]:
    """Open the files of a sensor, one of all bands or one per band, and check them."""
    if len(paths) not in (1, len(names)):
        do = f"Give one file, or one for each of {', '.join(names)}."
        raise DataError(paths[0], found=f"{len(paths)} files", expected=f"1 or {len(names)}", do=do)
    rasters = []
    for path, name in zip(paths, names, strict=False):
        file = stack.enter_context(open_raster(path))
        georeference(path, file)
        rasters.append(sensor_bands(path, file, kind, single=name if len(paths) > 1 else ""))
    return rasters


def _resolution(raster: Raster, kind: str) -> list[str]:
    """Return what is to be known about the pixel size of an image, if anything; GridError if it is too coarse."""
    crs, transform = georeference(raster.path, raster.file)
    if transform is None:
        return [f"{kind}: no georeference, the map has none"] if kind == "s2" else []
    width, height = ground_size(raster.path, crs, transform, raster.file.shape)
    if not _LEAST_PIXEL_M < min(width, height) <= max(width, height) <= _MOST_PIXEL_M:
        found = f"pixels of {width:.4g} x {height:.4g} m on the ground"
        do = "Give the image at its own resolution of 10 m, or correct its CRS and transform."
        raise GridError(raster.path, found=found, expected=f"10 m, at most {_MOST_PIXEL_M:.0f} m", do=do)
    is_ten = 0.8 * _PIXEL_M < min(width, height) <= max(width, height) < 1.25 * _PIXEL_M
    return [] if is_ten else [f"{kind}: pixels of {width:.3g} x {height:.3g} m, resampled to 10 m"]


def _ten_metre_grid(raster: Raster) -> tuple[Grid, list[str]]:
    """Return the grid of B2, or of the one file, if it has 10 m; else 10 m in its own or the UTM projection; notes."""
    path, file = raster.path, raster.file
    notes, (crs, t) = _resolution(raster, "s2"), georeference(path, file)
    grid = Grid(crs, t, file.shape)
    if crs is not None and t is not None:
        to_lonlat = transformer(path, crs, "EPSG:4326")
        centre = to_lonlat.transform(*t @ (file.width / 2, file.height / 2))
        width, height = ground_size(path, crs, t, file.shape)
        in_metres = crs.is_projected and crs.linear_units_factor[1] == 1
        # UTM changes areas by 0.1 %; Web Mercator by a factor of 4 at 60 degrees. Nothing better near the poles.
        is_true = abs(width * height / abs(t.determinant) - 1) < 0.01 or abs(centre[1]) >= 84
        upright = t.b == t.d == 0 and t.a > 0 > t.e
        if not (in_metres and is_true and upright and np.allclose((t.a, -t.e), _PIXEL_M, rtol=1e-6)):
            target = crs if in_metres and is_true else _utm(path, *centre)
            with read_errors(path, "Check its CRS and transform."):
                at, cols, rows = calculate_default_transform(
                    crs, target, file.width, file.height, *grid.extent, resolution=_PIXEL_M
                )
            at, cols, rows = aligned_target(at, cols, rows, _PIXEL_M)
            grid = Grid(target, at, (rows, cols))
    if not _SIDE_PX[0] <= min(grid.shape) <= max(grid.shape) <= _SIDE_PX[1]:
        found, expected = f"{grid.shape} pixels of 10 m", f"sides of {_SIDE_PX[0]} to {_SIDE_PX[1]}"
        raise DataError(path, found=found, expected=expected, do="Cut a scene of such a size.")
    return grid, notes


def _utm(path: Path, longitude: float, latitude: float) -> CRS:
    """Return the UTM zone of a place."""
    if not (np.isfinite([longitude, latitude]).all() and abs(latitude) < 84):
        found = f"a centre at {longitude:.4g}, {latitude:.4g} degrees"
        do = "Check its CRS and transform; near the poles, warp it to a polar grid of 10 m first."
        raise GridError(path, found=found, expected="a centre between 84 S and 84 N", do=do)
    return CRS.from_string(utm(longitude, latitude))


def _on_grid(stack: ExitStack, raster: Raster, grid: Grid, resampling: Resampling, *, nodata: float) -> Raster:
    """Return a raster as it is if it lies on *grid*, else through a warp that leaves *nodata* outside."""
    path, file = raster.path, raster.file
    own = Grid(*georeference(path, file), file.shape)
    if (own.crs is None) != (grid.crs is None):
        found = "no georeference" if own.crs is None else "a georeference"
        do = "Give files that all have one, or none of them."
        raise GridError(path, found=found, expected="the same as Sentinel-2", do=do)
    if own.crs is None and own.shape != grid.shape:
        found, expected = f"{own.shape} pixels", f"{grid.shape} as Sentinel-2"
        raise GridError(path, found=found, expected=expected, do="Georeference both.")
    is_same = own.crs == grid.crs and own.shape == grid.shape
    if is_same and corners_apart(own.affine, grid.affine, grid.shape) < 0.01 * _PIXEL_M:
        return raster
    rows, cols = grid.shape
    x, y = transformer(path, grid.crs, own.crs).transform(*grid.affine @ np.mgrid[0:cols:9j, 0:rows:9j])
    left, bottom, right, top = own.extent
    if not np.any((x >= left) & (x <= right) & (y >= bottom) & (y <= top)):
        found = f"{own.crs} within {left:.6g}..{right:.6g}, {bottom:.6g}..{top:.6g}, away from the scene"
        do = "Check its CRS, or give the file of this area."
        raise GridError(path, found=found, expected="an overlap with Sentinel-2", do=do)
    dtype = "float32" if np.isnan(nodata) and "int" in file.dtypes[0] else None
    with read_errors(path):
        warped = WarpedVRT(
            file, src_crs=own.crs, src_transform=own.transform, src_nodata=raster.nodata, resampling=resampling,
            nodata=nodata, crs=grid.crs, transform=grid.transform, width=cols, height=rows, dtype=dtype,
        )  # fmt: skip
    return replace(raster, file=stack.enter_context(warped), nodata=nodata or None, has_mask=False)


def _check_values(scene: Scene) -> None:
    """Check units and order of the bands in a sample of windows, and note the offset; the corners are read, too."""
    windows = _sample(scene.grid.shape, _PROBES, _PROBE_PX)
    parts = [part for part in (scene.read(*window) for window in windows) if part.valid.any()]
    if not parts:
        rows, cols = scene.grid.shape
        corners = product(range(0, rows, 256), range(0, cols, 4096))
        tiles = (scene.read(slice(r, min(r + 256, rows)), slice(c, min(c + 4096, cols))) for r, c in corners)
        parts = [*islice((part for part in tiles if part.valid.any()), 1)]
    if not parts:
        for window in windows if scene.has_s1 else ():
            radar = _read_all(scene._s1, *window)[0].reshape(N_S1, -1)
            if (known := (np.isfinite(radar) & (radar != 0)).all(axis=0)).any():  # outside of the range it is no data
                check_s1(scene._s1[0].path, radar[:, known].astype(np.float32))
        cause = ", ".join(mask.path.name for mask, _ in scene._masks)
        do = f"Check that its files show the same area{f', and the masks {cause}' if cause else ''}."
        raise DataError(scene.files[0], found="no pixel with data", expected="a part that all files cover", do=do)
    blocks = [
        (part, np.s_[row : row + 16, col : col + 16])
        for part in parts
        for row, col in product(*(range(0, size, 16) for size in part.valid.shape))
    ]
    s2 = [part.s2[:, *at][:, part.valid[at]] for part, at in blocks]
    s2_pixels, s1_pixels = np.concatenate(s2, axis=1), np.zeros((N_S1, 1), np.float32)
    scene._offset = check_s2(scene.files[0], s2_pixels, s2, noisy=True)
    if scene._offset:
        scene.repairs = (OFFSET_REMOVED, *scene.repairs)
    if scene.has_s1:
        s1 = [part.s1[:, *at][:, part.valid[at]] for part, at in blocks if part.s1 is not None]
        s1_pixels = np.concatenate(s1, axis=1)
        check_s1(scene._s1[0].path, s1_pixels, s1)
    scene.channels = channels_of(s2_pixels, s1_pixels)
