"""
The layers of a place: Sentinel-2 composite, Sentinel-1, MODIS label and reference on one grid.

What was read is kept as arrays in a folder until the place is complete: an interruption costs one image at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.data import cells, stac
from lcfuse_core.data.bands import S2_BANDS
from lcfuse_core.data.stac import Catalogue, Grid, Item
from lcfuse_core.errors import DataError, FetchError, MissingDataError

_CONSTANT_DB = (-12.0, -19.0)
"""VV and VH where a place has no Sentinel-1: constant channels, which networks leave out (`data.bands`)."""

_MAX_UNSEEN = 0.05  # proportion of pixels that may be under cloud on all chosen dates
_MIN_CLEAR = 0.2  # proportion of a date's pixels that must show the ground for the date to be of use
_READERS = 6  # images that are read at once
_CANDIDATES = 12  # dates whose scene classification is read, in the order of their cloud cover
_MAX_CLOUDS = 10.0  # per cent of an item under cloud, by the catalogue, where there is no scene classification


@dataclass
class PlaceReader:
    """
    Reads the layers of one place.

    Parameters
    ----------
    title : str
        Name of the place, for messages.
    grid : Grid
        Its pixels.
    year, period : int, str
        Of the MODIS label; of the images, two dates as in "2021-06-01/2021-08-31".
    n_dates : int
        Dates in the composite.
    settings, modis_settings, reference_settings : dict
        Parts of the file of services; no *reference_settings*: no reference.
    part : Path
        Folder for what was read.
    progress : bool
        Whether to show a bar.

    Attributes
    ----------
    record : dict
        Items, dates, addresses and attributions of what was read.
    """

    title: str
    grid: Grid
    year: int
    period: str
    n_dates: int
    settings: dict[str, Any]
    modis_settings: dict[str, Any]
    reference_settings: dict[str, Any] | None
    part: Path
    progress: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.catalogue = Catalogue(self.settings["url"], self.settings.get("token"))
        self.bar = partial(tqdm, disable=not self.progress, desc=self.title, unit="image")

    def kept(self, name: str, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return an array from the folder of what was read, or read it and keep it there."""
        path = self.part / f"{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.npy"
        if path.exists():
            try:
                found: NDArray[Any] = np.load(path)
                return found
            except (ValueError, EOFError, OSError):
                path.unlink()  # damaged, as by a full disk: it is read again
        values = read()
        with _runtime.atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
        return values

    def _fetch(self, jobs: list[Callable[[], NDArray[Any]]]) -> None:
        """Read several images at once, as the time goes into waiting for answers; they are kept on disk."""
        with ThreadPoolExecutor(_READERS) as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                for future in self.bar(as_completed(futures), total=len(futures)):
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def download_bytes(self) -> int:
        """
        Return about how many bytes the place takes, by the indexes of the files; no pixel is read.

        The dates are those of least cloud by the catalogue's own figure; the scene classification may choose others.
        """
        days = self._days()
        dates = sorted(days, key=lambda date: (_cloud_cover(days[date]), date))[: self.n_dates]
        assets = [*filter(None, [*self._bands, self.settings.get("scenes")])]
        addresses = [self.catalogue.signed(item, asset) for date in dates for item in days[date] for asset in assets]
        if radar := self.settings.get("sentinel1"):
            passes = self.catalogue.search(radar, self.grid, self.period)[: 2 * self.n_dates]
            addresses += [self.catalogue.signed(item, asset) for item in passes for asset in ("vv", "vh")]
        if self.reference_settings is not None:
            url, degrees = self.reference_settings["url"], self.reference_settings["tile_degrees"]
            addresses += [url.format(tile=tile, year=self.year) for tile in _tiles(self.grid, degrees)]
        addresses.append(self.modis_settings["url"].format(year=self.year))
        with ThreadPoolExecutor(_READERS) as pool:
            return sum(pool.map(lambda address: stac.window_bytes(address, self.grid), addresses))

    # Sentinel-2

    def sentinel2(self) -> NDArray[np.uint16]:
        """Return the composite: of each pixel and band the median of its clear dates."""
        days = self._clear_days()
        seen = np.stack([mask for _, _, mask in days])
        unseen = ~seen.any(axis=0)
        self.record["sentinel2"]["unseen_share"] = round(float(unseen.mean()), 4)
        if unseen.mean() > _MAX_UNSEEN:
            found = f"{100 * unseen.mean():.0f} % of the pixels without a clear view on all {len(days)} dates"
            do = "Take more --dates, other --months or another --year."
            raise MissingDataError(self.title, found=found, expected=f"at most {_MAX_UNSEEN:.0%}", do=do)
        seen |= unseen  # a few pixels that no date shows get the median of all dates; the record has their share
        composite = np.zeros((len(S2_BANDS), self.grid.side, self.grid.side), np.uint16)  # B10 of L2A stays 0
        bands = [(band, asset) for band, asset in enumerate(self._bands) if asset]
        self._fetch([partial(self._band, items, asset) for _, asset in bands for _, items, _ in days])
        for band, asset in bands:
            values = np.stack([self._band(items, asset) for _, items, _ in days])
            values[~seen | (values == 0)] = np.nan
            if np.isnan(values).all(axis=0).any():
                found = f"pixels without data in {asset} on all dates"
                do = "Take more --dates or another place."
                raise MissingDataError(self.title, found=found, expected="reflectance everywhere", do=do)
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

    def _days(self) -> dict[str, list[Item]]:
        """Return the items of each date of the season."""
        items = self.catalogue.search(self.settings["sentinel2"], self.grid, self.period)
        if not items:
            found = f"no Sentinel-2 image of {self.title} in {self.period}"
            do = "Take other --months, another --year or a place on land."
            raise MissingDataError(self.catalogue.url, found=found, expected="some", do=do)
        days: dict[str, list[Item]] = {}
        for item in items:
            days.setdefault(item.date, []).append(item)
        return days

    def _clear_days(self) -> list[tuple[str, list[Item], NDArray[np.bool_]]]:
        """Return the clearest dates of the season with their items and masks of clear pixels, in order of time."""
        days, found_days = self._days(), []
        for date in sorted(days, key=lambda date: (_cloud_cover(days[date]), date))[:_CANDIDATES]:
            mask = self._clear(date, days[date])
            found_days.append((float(mask.mean()), date, mask))
            if sum(share > 0.98 for share, *_ in found_days) >= self.n_dates:
                break  # enough dates without any cloud: the others need not be read
        best = sorted(found_days, key=lambda day: (-day[0], day[1]))[: self.n_dates]
        best = sorted((day for day in best if day[0] >= _MIN_CLEAR), key=lambda day: day[1])
        if not best:
            clearest = max((share for share, *_ in found_days), default=0)
            found = (
                f"{len(found_days)} dates in {self.period}, the clearest with {100 * clearest:.0f} % of clear pixels"
            )
            do = "Take other --months or another --year."
            raise MissingDataError(self.title, found=found, expected=f"{100 * _MIN_CLEAR:.0f} %", do=do)
        chosen = [(date, days[date], mask) for _, date, mask in best]
        self.record["sentinel2"] = {
            "catalogue": self.catalogue.url,
            "level": "L2A" if self.settings.get("scenes") else "L1C",
            "licence": self.settings.get("licence", ""),
            "dates": {date: round(share, 4) for share, date, _ in best},
            "items": [self._described(item) for _, own, _ in chosen for item in own],
        }
        return chosen

    def _clear(self, date: str, items: list[Item]) -> NDArray[np.bool_]:
        """Return which pixels show the ground: by the scene classification, for L1C by the catalogue's figure."""
        asset = self.settings.get("scenes")
        if asset is None:
            return np.full((self.grid.side, self.grid.side), _cloud_cover(items) <= _MAX_CLOUDS)
        scenes = self.kept(f"{date}-scenes", partial(self._mosaic, items, asset, Resampling.nearest))
        return np.isin(scenes, stac.CLEAR)

    def _described(self, item: Item) -> dict[str, Any]:
        asset = next(name for name in self._bands if name)
        baseline = item.properties.get("s2:processing_baseline", item.properties.get("processing:version"))
        address = stac.without_token(item.address(asset))
        known = {"id": item.id, "date": item.date, "address": address}
        return known | {"baseline": baseline, "offset": item.offset(asset)}

    def _band(self, items: list[Item], asset: str) -> NDArray[Any]:
        """Return the reflectance x 10000 of one band and date."""
        name = f"{items[0].date}-{asset}"
        return self.kept(name, partial(self._mosaic, items, asset, Resampling.bilinear, with_offset=True))

    def _mosaic(
        self, items: list[Item], asset: str, resampling: Resampling, *, with_offset: bool = False
    ) -> NDArray[Any]:
        """Return the pixels of the items of one date, the first that has data at each pixel; 0 where none has."""
        whole = np.zeros((self.grid.side, self.grid.side), np.float32)
        for item in items:
            values = self.catalogue.read(item, asset, self.grid, resampling).astype(np.float32)
            if with_offset:  # 0 is no data, also where the offset would make it negative
                values = np.where(values > 0, np.maximum(values + item.offset(asset), 1), 0)
            whole = np.where(whole == 0, values, whole)
            if whole.all():
                break
        return whole

    # Sentinel-1

    def sentinel1(self) -> NDArray[np.float32]:
        """Return VV and VH in dB, the median of the season's passes, or constant channels if there are none."""
        constant = np.empty((2, self.grid.side, self.grid.side), np.float32)
        constant[:] = np.array(_CONSTANT_DB, np.float32)[:, None, None]
        self.record["sentinel1"] = None
        collection = self.settings.get("sentinel1")
        if not collection:
            self.record["sentinel1_reason"] = "the catalogue has no terrain-corrected Sentinel-1: Sentinel-2 alone"
            return constant
        items = self.catalogue.search(collection, self.grid, self.period)[: 2 * self.n_dates]
        try:
            self._fetch([partial(self._backscatter, item, asset) for item in items for asset in ("vv", "vh")])
            passes = [[self._backscatter(item, asset) for asset in ("vv", "vh")] for item in items]
        except FetchError as error:
            self.record["sentinel1_reason"] = f"Sentinel-2 alone: {error}"
            return constant
        power = np.where(np.array(passes, np.float32) > 0, passes, np.nan).reshape(-1, *constant.shape)
        if not len(power) or np.isnan(power).all(axis=0).any():
            self.record["sentinel1_reason"] = "the passes do not cover the place: Sentinel-2 alone"
            return constant
        self.record["sentinel1"] = {
            "items": [
                {"id": item.id, "date": item.date, "address": stac.without_token(item.address("vv"))} for item in items
            ],
            "unit": "gamma0, dB",
        }
        return (10 * np.log10(np.nanmedian(power, axis=0))).astype(np.float32)

    def _backscatter(self, item: Item, asset: str) -> NDArray[Any]:
        read = partial(self.catalogue.read, item, asset, self.grid, Resampling.bilinear)
        return self.kept(f"{item.id}-{asset}", read)

    # Labels

    def modis(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Affine]:
        """
        Return the IGBP codes of the coarse cells, as an `lc` file has them (4, H, W), and as one pixel per cell.

        The global file is a copy in degrees of the sinusoidal grid. The centre of each true cell lies in a pixel of
        the copy that has the cell's own code; at the cells' edges the copy is up to half a pixel off.
        """
        settings = self.modis_settings
        address = settings["url"].format(year=self.year)
        shape = (self.grid.side, self.grid.side)
        row, col = cells.modis_cells(self.grid.transform, self.grid.crs, shape)
        keys, number = np.unique(row.astype(np.int64) * cells.GRID_COLS + col, return_inverse=True)
        x = (keys % cells.GRID_COLS - cells.GRID_COLS // 2 + 0.5) * cells.CELL_M
        y = (cells.GRID_ROWS // 2 - keys // cells.GRID_COLS - 0.5) * cells.CELL_M
        lon, lat = cells.modis_to_lonlat(x, y)
        try:
            codes = self.kept("modis", partial(stac.read_nearest, address, lon, lat))
        except FetchError as error:
            if not stac.is_absent(error):
                raise
            do = "Take a year that is published, or correct the file of services."
            found = f"no MODIS label of {self.year} at that address"
            raise MissingDataError(address, found=found, expected="MCD12Q1 of the year", do=do) from None
        if not ((codes >= 1) & (codes <= 17)).any():
            do = "Take a place on land or another year."
            raise MissingDataError(address, found="no label at the place", expected="IGBP codes 1..17", do=do)
        codes = np.where((codes >= 1) & (codes <= 17), codes, 255).astype(np.uint8)
        igbp = codes[number].reshape(shape)
        self.record["modis"] = {
            "address": address,
            "year": self.year,
            "cells": len(keys),
            "classes": {int(code): int((codes == code).sum()) for code in np.unique(codes)},
            "licence": settings.get("licence", ""),
            "attribution": settings.get("attribution", ""),
        }
        label = np.full((4, *shape), 255, np.uint8)
        label[0] = np.where(igbp == 255, 0, igbp)  # 0: no label, in patches
        raster, transform = cells.modis_raster(self.grid.transform, self.grid.crs, igbp)
        return label, raster, transform

    def reference(self) -> NDArray[np.uint8] | None:
        """Return the DFC2020 codes of the 10 m map of another model, 0 where it has none; None without a reference."""
        self.record["reference"] = None
        if self.reference_settings is None:
            return None
        settings = self.reference_settings
        shape = (self.grid.side, self.grid.side)
        codes, addresses = np.zeros(shape, np.uint8), []
        for tile in _tiles(self.grid, settings["tile_degrees"]):
            address = settings["url"].format(tile=tile, year=self.year)
            try:
                read = partial(stac.read_window, address, self.grid, Resampling.nearest)
                part = self.kept(f"reference-{tile}", read)
            except FetchError as error:
                if stac.is_absent(error):  # tiles without land do not exist
                    continue
                raise
            addresses.append(address)
            codes = np.where(codes == 0, part, codes).astype(np.uint8)
        table = np.zeros(256, np.uint8)
        for code, own in settings["classes"].items():
            table[int(code)] = int(own)
        unknown = sorted(set(np.unique(codes).tolist()) - {0, *map(int, settings["classes"])})
        if unknown or not addresses:
            found = f"codes {unknown}" if unknown else "no tile"
            do = "Choose another --reference, or none."
            raise DataError(settings["url"], found=found, expected="a map of the place in its legend", do=do)
        self.record["reference"] = {
            "name": settings.get("name", ""),
            "kind": "map of another model: agreement, not accuracy",
            "addresses": addresses,
            "licence": settings.get("licence", ""),
            "attribution": settings.get("attribution", ""),
        }
        return table[codes]


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
