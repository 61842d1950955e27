"""
What is asked for, and the layers of a place: Sentinel-2 composite, Sentinel-1, MODIS label, reference on one grid.

What was read is kept as arrays in a folder until the place is complete: an interruption costs one image at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.enums import Resampling
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.data import cells
from lcfuse_core.data.bands import S2_BANDS
from lcfuse_core.data.rasters import utm
from lcfuse_core.errors import DataError, FetchError, MissingDataError, parameter_errors
from lcfuse_core.mapping import stac
from lcfuse_core.mapping.coarse import cell_centres
from lcfuse_core.mapping.scene import CLEAR, Grid
from lcfuse_core.mapping.stac import Catalogue, Item

PATCH_PX = 256
"""Side of the patches that a place is written in."""

_CONSTANT_DB = (-12.0, -19.0)  # VV and VH where a place has no Sentinel-1: networks leave them out (`data.bands`)
_MAX_UNSEEN = 0.05  # proportion of pixels that may be under cloud on all chosen dates
_MIN_CLEAR = 0.2  # proportion of a date's pixels that must show the ground for the date to be of use
_READERS = 6  # images that are read at once
_CANDIDATES = 12  # dates whose scene classification is read, in the order of their cloud cover
_MAX_CLOUDS = 10.0  # per cent of an item under cloud, by the catalogue, where there is no scene classification
_LAST_DAY = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_Month = Annotated[int, Field(ge=1, le=12)]


def _in_order(months: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if months is not None and (len(months) != 2 or months[0] > months[1]):
        raise ValueError("two months, the first not after the last")
    return months


@parameter_errors("place", "Correct the value.")
@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Request:
    """
    What is asked for. Raises ParameterError on a value out of range.

    Parameters
    ----------
    lon, lat : float
        Centre, degrees.
    size_km : float
        Side of the square, rounded up to whole patches of 2.56 km; for one patch or less, to 0.16 km.
    year : int
        Of the images and of the MODIS label.
    name : str
        Of the folder and of the patches; by default from the coordinates.
    months : tuple of int, optional
        First and last of the season; by default the summer of the hemisphere, all year in the tropics.
    dates : int
        Number of dates in the composite.
    catalogue, reference : str
        Names in the file of services; reference "" for none.
    """

    lon: Annotated[float, Field(ge=-180, le=180)]
    lat: Annotated[float, Field(ge=-80, le=84)]  # the range of UTM
    size_km: Annotated[float, Field(ge=0.64, le=41)] = 5.12  # at least a training crop
    year: Annotated[int, Field(ge=2016, le=2100)] = 2021  # since 2016 Sentinel-2 covers a summer
    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_]{0,99})?$")] = ""
    months: Annotated[tuple[_Month, ...] | None, AfterValidator(_in_order)] = None
    dates: Annotated[int, Field(ge=1, le=12)] = 4
    catalogue: str = "earth-search"
    reference: str = "worldcover"

    @property
    def title(self) -> str:
        """The name, or the coordinates as one: N48_3000_E11_5000."""
        if self.name:
            return self.name
        north, east = ("NS"[self.lat < 0], "EW"[self.lon < 0])
        return f"{north}{abs(self.lat):.4f}_{east}{abs(self.lon):.4f}".replace(".", "_")

    @property
    def grid(self) -> Grid:
        """The pixels: 10 m in the UTM zone of the centre, corners at multiples of 10 m."""
        crs = utm(self.lon, self.lat)
        step = PATCH_PX if self.size_km * 100 > PATCH_PX else 16
        side = step * math.ceil(round(self.size_km * 100 / step, 6))
        x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(self.lon, self.lat)
        west, north = 10 * round(x / 10) - 5 * side, 10 * round(y / 10) + 5 * side
        return Grid(CRS.from_string(crs), Affine(10, 0, west, 0, -10, north), (side, side))

    @property
    def season(self) -> tuple[str, str]:
        """The season's name for files, and its dates."""
        tropical, north = abs(self.lat) < 23.5, self.lat >= 0
        first, last = self.months or ((1, 12) if tropical else (6, 8) if north else (1, 3))
        name = "year" if last - first >= 6 else "summer" if self.months is None else "season"
        return name, f"{self.year}-{first:02}-01/{self.year}-{last:02}-{_LAST_DAY[last - 1]}"


class PlaceReader:
    """
    Reads the layers of one place.

    Parameters
    ----------
    request, services : Request, dict
        What is asked for, and the content of the file of services.
    part : Path
        Folder for what was read.
    progress : bool
        Whether to show a bar.

    Attributes
    ----------
    record : dict
        Items, dates, addresses and attributions of what was read.
    """

    def __init__(self, request: Request, services: dict[str, Any], part: Path, progress: bool = False) -> None:
        self.request, self.part, self.progress = request, part, progress
        self.grid, (_, self.period) = request.grid, request.season
        self.settings = services["catalogues"][request.catalogue]
        self.modis_settings = services["modis"]
        self.reference_settings = services["references"][request.reference] if request.reference else None
        self.catalogue = Catalogue(self.settings["url"], self.settings.get("token"))
        self.record: dict[str, Any] = {}

    def layers(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of all layers (bands, H, W) by their names in the files of a patch."""
        found: dict[str, NDArray[Any]] = {"lc": self._modis()}  # first: without a label the images are of no use
        found |= {"s2": self._sentinel2(), "s1": self._sentinel1()}
        reference = self._reference()
        return found if reference is None else found | {"dfc": reference[None]}

    def _kept(self, name: str, read: Callable[..., NDArray[Any]], *arguments: Any) -> NDArray[Any]:
        """Return an array from the folder of what was read, or read it and keep it there."""
        path = self.part / f"{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.npy"
        with suppress(ValueError, EOFError, OSError):  # not there, or damaged, as by a full disk
            return np.load(path)
        values = read(*arguments)
        with _runtime.atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
        return values

    def _fetch(self, jobs: Sequence[Callable[[], NDArray[Any]]]) -> None:
        """Read several images at once, as the time goes into waiting for answers; they are kept on disk."""
        pool = ThreadPoolExecutor(_READERS)
        try:
            futures = [pool.submit(job) for job in jobs]
            title = self.request.title
            for future in tqdm(as_completed(futures), title, len(jobs), unit="image", disable=not self.progress):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def download_bytes(self) -> int:
        """
        Return about how many bytes the place takes, by the indexes of the files; no pixel is read.

        The dates are those of least cloud by the catalogue's own figure; the scene classification may choose others.
        """
        assets = [*filter(None, [*self._bands, self.settings.get("scenes")])]
        items = [item for day in self._days()[: self.request.dates] for item in day]
        addresses = [self.catalogue.signed(item, asset) for item in items for asset in assets]
        addresses += [self.catalogue.signed(item, asset) for item in self._passes() for asset in ("vv", "vh")]
        addresses += [*self._reference_tiles().values(), self.modis_settings["url"].format(year=self.request.year)]
        with ThreadPoolExecutor(_READERS) as pool:
            return sum(pool.map(lambda address: stac.window_bytes(address, self.grid), addresses))

    # Sentinel-2

    def _sentinel2(self) -> NDArray[np.uint16]:
        """Return the composite: of each pixel and band the median of its clear dates."""
        days = self._clear_days()
        seen = np.stack([mask for _, mask in days])
        unseen = ~seen.any(axis=0)
        self.record["sentinel2"]["unseen_share"] = round(float(unseen.mean()), 4)
        if unseen.mean() > _MAX_UNSEEN:
            found = f"{100 * unseen.mean():.0f} % of the pixels without a clear view on all {len(days)} dates"
            do = "Take more --dates, other --months or another --year."
            raise MissingDataError(self.request.title, found=found, expected=f"at most {_MAX_UNSEEN:.0%}", do=do)
        seen |= unseen  # a few pixels that no date shows get the median of all dates; the record has their share
        composite = np.zeros((len(S2_BANDS), *self.grid.shape), np.uint16)  # B10 of L2A stays 0
        bands = [(band, asset) for band, asset in enumerate(self._bands) if asset]
        self._fetch([partial(self._band, items, asset) for _, asset in bands for items, _ in days])
        for band, asset in bands:
            values = np.stack([self._band(items, asset) for items, _ in days])
            values[~seen | (values == 0)] = np.nan
            if np.isnan(values).all(axis=0).any():
                found = f"pixels without data in {asset} on all dates"
                do = "Take more --dates or another place."
                raise MissingDataError(self.request.title, found=found, expected="reflectance everywhere", do=do)
            composite[band] = np.clip(np.rint(np.nanmedian(values, axis=0)), 1, 32767)
        return composite

    @property
    def _bands(self) -> list[str | None]:
        """The asset of each band of S2_BANDS, None for B10 of L2A."""
        names: list[str | None] = self.settings["bands"]
        if len(names) != len(S2_BANDS):
            found, expected = f"{len(names)} names", f"{len(S2_BANDS)}, null for B10 of L2A"
            raise DataError("services: bands", found=found, expected=expected, do="Correct the file of services.")
        return names

    def _days(self) -> list[list[Item]]:
        """Return the items of each date of the season, by the cloud cover that the catalogue states."""
        items = self.catalogue.search(self.settings["sentinel2"], self.grid, self.period)
        if not items:
            found = f"no Sentinel-2 image of {self.request.title} in {self.period}"
            do = "Take other --months, another --year or a place on land."
            raise MissingDataError(self.catalogue.url, found=found, expected="some", do=do)
        return sorted((list(day) for _, day in groupby(items, key=attrgetter("date"))), key=_cloud_cover)

    def _clear_days(self) -> list[tuple[list[Item], NDArray[np.bool_]]]:
        """Return the items of the clearest dates of the season and their masks of clear pixels, in order of time."""
        days: list[tuple[float, list[Item], NDArray[np.bool_]]] = []
        for items in self._days()[:_CANDIDATES]:
            mask = self._clear(items)
            days.append((float(mask.mean()), items, mask))
            if sum(share > 0.98 for share, *_ in days) >= self.request.dates:
                break  # enough dates without any cloud: the others need not be read
        best = sorted(days, key=lambda day: (-day[0], day[1][0].date))[: self.request.dates]
        best = sorted((day for day in best if day[0] >= _MIN_CLEAR), key=lambda day: day[1][0].date)
        if not best:
            clearest = 100 * max(share for share, *_ in days)
            found = f"{len(days)} dates in {self.period}, the clearest with {clearest:.0f} % of clear pixels"
            do = "Take other --months or another --year."
            raise MissingDataError(self.request.title, found=found, expected=f"{100 * _MIN_CLEAR:.0f} %", do=do)
        asset = next(name for name in self._bands if name)
        self.record["sentinel2"] = {
            "catalogue": self.catalogue.url,
            "level": "L2A" if self.settings.get("scenes") else "L1C",
            "licence": self.settings.get("licence", ""),
            "dates": {items[0].date: round(share, 4) for share, items, _ in best},
            "items": [
                _described(item, asset) | {"baseline": item.baseline, "offset": item.offset(asset)}
                for _, items, _ in best
                for item in items
            ],
        }
        return [(items, mask) for _, items, mask in best]

    def _clear(self, items: list[Item]) -> NDArray[np.bool_]:
        """Return which pixels show the ground: by the scene classification, for L1C by the catalogue's figure."""
        asset = self.settings.get("scenes")
        if asset is None:
            return np.full(self.grid.shape, _cloud_cover(items) <= _MAX_CLOUDS)
        codes = self._kept(f"{items[0].date}-scenes", self._mosaic, items, asset, Resampling.nearest)
        return np.isin(codes, CLEAR)

    def _band(self, items: list[Item], asset: str) -> NDArray[Any]:
        """Return the reflectance x 10000 of one band and date."""
        return self._kept(f"{items[0].date}-{asset}", self._mosaic, items, asset, Resampling.bilinear, True)

    def _mosaic(self, items: list[Item], asset: str, resampling: Resampling, with_offset: bool = False) -> NDArray[Any]:
        """Return the pixels of the items of one date, the first that has data at each pixel; 0 where none has."""
        whole = np.zeros(self.grid.shape, np.float32)
        for item in items:
            values = self.catalogue.read(item, asset, self.grid, resampling).astype(np.float32)
            if with_offset:  # 0 is no data, also where the offset would make it negative
                values = np.where(values > 0, np.maximum(values + item.offset(asset), 1), 0)
            whole = np.where(whole == 0, values, whole)
            if whole.all():
                break
        return whole

    # Sentinel-1

    def _sentinel1(self) -> NDArray[np.float32]:
        """Return VV and VH in dB, the median of the season's passes, or constant channels if there are none."""
        constant = np.full((2, *self.grid.shape), np.array(_CONSTANT_DB)[:, None, None], np.float32)
        self.record["sentinel1"] = None
        if not self.settings.get("sentinel1"):
            self.record["sentinel1_reason"] = "the catalogue has no terrain-corrected Sentinel-1: Sentinel-2 alone"
            return constant
        items = self._passes()
        images = [partial(self._backscatter, item, asset) for item in items for asset in ("vv", "vh")]
        try:
            self._fetch(images)
            power = np.array([image() for image in images]).reshape(-1, *constant.shape)
        except FetchError as error:
            self.record["sentinel1_reason"] = f"Sentinel-2 alone: {error}"
            return constant
        power = np.where(power > 0, power, np.nan)
        if not len(power) or np.isnan(power).all(axis=0).any():
            self.record["sentinel1_reason"] = "the passes do not cover the place: Sentinel-2 alone"
            return constant
        self.record["sentinel1"] = {"items": [_described(item, "vv") for item in items], "unit": "gamma0, dB"}
        return (10 * np.log10(np.nanmedian(power, axis=0))).astype(np.float32)

    def _passes(self) -> list[Item]:
        radar = self.settings.get("sentinel1")
        found = self.catalogue.search(radar, self.grid, self.period) if radar else []
        return found[: 2 * self.request.dates]

    def _backscatter(self, item: Item, asset: str) -> NDArray[Any]:
        return self._kept(f"{item.id}-{asset}", self.catalogue.read, item, asset, self.grid, Resampling.bilinear)

    # Labels

    def _modis(self) -> NDArray[np.uint8]:
        """
        Return the IGBP codes of the coarse cells, as an `lc` file has them (4, H, W).

        The global file is a copy in degrees of the sinusoidal grid. The centre of each true cell lies in a pixel of
        the copy that has the cell's own code; at the cells' edges the copy is up to half a pixel off.
        """
        settings, year = self.modis_settings, self.request.year
        address = settings["url"].format(year=year)
        ids, keys = cells.cell_ids(self.grid.affine, str(self.grid.crs), self.grid.shape)
        try:
            codes = self._kept("modis", stac.read_nearest, address, *cell_centres(keys))
        except stac.AbsentError:
            do = "Take a year that is published, or correct the file of services."
            found = f"no MODIS label of {year} at that address"
            raise MissingDataError(address, found=found, expected="MCD12Q1 of the year", do=do) from None
        is_class = (codes >= 1) & (codes <= 17)
        if not is_class.any():
            do = "Take a place on land or another year."
            raise MissingDataError(address, found="no label at the place", expected="IGBP codes 1..17", do=do)
        codes = np.where(is_class, codes, 255).astype(np.uint8)
        self.record["modis"] = {
            "address": address,
            "year": year,
            "cells": len(keys),
            "classes": {int(code): int((codes == code).sum()) for code in np.unique(codes)},
            "licence": settings.get("licence", ""),
            "attribution": settings.get("attribution", ""),
        }
        label = np.full((4, *self.grid.shape), 255, np.uint8)
        label[0] = np.where(codes == 255, 0, codes)[ids]  # 0: no label, in patches
        return label

    def _reference(self) -> NDArray[np.uint8] | None:
        """Return the DFC2020 codes of the 10 m map of another model, 0 where it has none; None without a reference."""
        self.record["reference"] = None
        settings = self.reference_settings
        if settings is None:
            return None
        codes, addresses = np.zeros(self.grid.shape, np.uint8), []
        for tile, address in self._reference_tiles().items():
            try:
                part = self._kept(f"reference-{tile}", stac.read_window, address, self.grid, Resampling.nearest)
            except stac.AbsentError:  # tiles without land do not exist
                continue
            addresses.append(address)
            codes = np.where(codes == 0, part, codes).astype(np.uint8)
        table = np.zeros(256, np.uint8)
        classes = {int(code): int(own) for code, own in settings["classes"].items()}
        table[[*classes]] = [*classes.values()]
        unknown = sorted(set(np.unique(codes).tolist()) - {0, *classes})
        if unknown or not addresses:
            found = f"codes {unknown}" if unknown else "no tile"
            do = "Choose another --reference, or none."
            raise DataError(settings["url"], found=found, expected="a map of the place in its legend", do=do)
        self.record["reference"] = {
            "name": settings.get("name", self.request.reference),
            "kind": "map of another model: agreement, not accuracy",
            "addresses": addresses,
            "licence": settings.get("licence", ""),
            "attribution": settings.get("attribution", ""),
        }
        return table[codes]

    def _reference_tiles(self) -> dict[str, str]:
        """Return the address of each tile of the reference that the place touches; none without a reference."""
        if self.reference_settings is None:
            return {}
        tiles = _tiles(self.grid, self.reference_settings["tile_degrees"])
        return {tile: self.reference_settings["url"].format(tile=tile, year=self.request.year) for tile in tiles}


def _described(item: Item, asset: str) -> dict[str, Any]:
    return {"id": item.id, "date": item.date, "address": stac.without_token(item.address(asset))}


def _cloud_cover(items: list[Item]) -> float:
    """Return the cloud cover of a date in per cent, as its clearest item states it."""
    covers = [item.properties.get("eo:cloud_cover") for item in items]
    return min(float(cover) if isinstance(cover, int | float) else 100.0 for cover in covers)


def _tiles(grid: Grid, degrees: int) -> Iterator[str]:
    """Yield the tiles that a grid touches, named by their lower left corner, such as N48E009."""
    west, south, east, north = grid.bounds
    east += 360 * (east < west)
    for lat in range(math.floor(south / degrees) * degrees, math.ceil(north / degrees) * degrees, degrees):
        for lon in range(math.floor(west / degrees) * degrees, math.ceil(east / degrees) * degrees, degrees):
            wrapped = (lon + 180) % 360 - 180
            yield f"{'NS'[lat < 0]}{abs(lat):02}{'EW'[wrapped < 0]}{abs(wrapped):03}"
