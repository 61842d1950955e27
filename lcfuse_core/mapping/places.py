"""
Real images and real MODIS labels of any place: coordinates in, a folder of patches out.

    place = fetch_place(Request(lon=11.5, lat=48.3, year=2021), Path("places"))

writes `places/N48.300_E11.500` in the layout of the DFC2020 public bundle, which every chapter and command takes as
`data_root`, the whole scene as four files that `map` takes, and `place.json` with the items, dates, addresses, offsets
and attributions. Only the pixels of the place are read, some tens of megabytes.

- Sentinel-2 L2A: the median of the clearest dates of a season, reflectance x 10000. L2A has no B10; its band is 0. L1C
  instead, if the file of services names a catalogue of it.
- Sentinel-1, terrain corrected, in dB, if the catalogue has it and may be read; else the bands are constant, and every
  method learns from Sentinel-2 alone.
- MODIS MCD12Q1 (IGBP) of the year: of each cell of the sinusoidal grid the value of the pixel that holds its centre.
- A 10 m map by another model as the reference: agreement with it is not accuracy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from lcfuse_core import _runtime
from lcfuse_core._yaml import load_yaml
from lcfuse_core.data import cells
from lcfuse_core.data.rasters import open_raster
from lcfuse_core.errors import DataError, MissingDataError, ParameterError
from lcfuse_core.mapping.coarse import open_coarse
from lcfuse_core.mapping.place_layers import PATCH_PX, PlaceReader, Request
from lcfuse_core.mapping.scene import Grid
from lcfuse_core.sample import world
from lcfuse_core.scoring.identity import PLACE_RECORD, SHIPPED_SERVICES, data_digest

SERVICES = _runtime.SHIPPED / "services.yaml"


def read_services(path: str | os.PathLike[str] = SERVICES) -> dict[str, Any]:
    """Read a file of services; DataError if it is not of the form of the shipped one."""
    found: Any = load_yaml(_runtime.read_document(path, "a file of services"), str(path))
    parts = ("catalogues", "modis", "references")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in parts):
        do = f"Compare it with {SERVICES.name}."
        raise DataError(path, found="another form", expected=f"mappings {', '.join(parts)}", do=do)
    return found


def fetch_place(
    request: Request,
    out: Path,
    *,
    services: str | os.PathLike[str] = SERVICES,
    progress: bool = False,
) -> Path:
    """
    Fetch a place, and return its folder; a place that is complete is kept.

    What was read is kept in a folder beside it until the place is complete: after an interruption the same call
    continues. The folder appears all at once under its name.

    Parameters
    ----------
    request : Request
        Where and when.
    out : Path
        Folder that gets a folder for the place.
    services : path
        Addresses. Ledger lines count as of a real place (`identity.data_kind`) only with those of `SERVICES`, since any
        others may serve any image.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    ParameterError
        If the services lack the catalogue or the reference, or a place of another request or other services has the
        name.
    MissingDataError
        If there is no image, no clear date, or no MODIS label.
    FetchError
        If a service does not answer.
    """
    final = out / request.title
    known = _services_of(request, services)
    digest = hashlib.sha256(json.dumps([asdict(request), known], sort_keys=True, default=str).encode()).hexdigest()[:12]
    origin = {
        "request": json.loads(json.dumps(asdict(request))),  # with lists, as it is read back
        "services": SHIPPED_SERVICES if known == read_services(SERVICES) else f"others, {digest}",
    }
    if (final / PLACE_RECORD).exists():
        record = json.loads((final / PLACE_RECORD).read_text(encoding="utf-8"))
        if {name: record.get(name) for name in origin} == origin:
            return final
        found, do = "a place of another request or other services", "Give another --name, or delete the folder."
        raise ParameterError(final, found=found, expected="a new name", do=do)
    part = out / f".{request.title}.{digest}.part"
    with _runtime.lock(part.with_suffix(".lock")):
        part.mkdir(parents=True, exist_ok=True)
        reader = PlaceReader(request, known, part, progress)
        layers, grid = reader.layers(), reader.grid
        sources = [reader.record[name] for name in ("modis", "reference") if reader.record[name]]
        record = {
            **origin,
            "grid": {"crs": str(grid.crs), "transform": tuple(grid.affine)[:6], "side": grid.shape[0]},
            **reader.record,
            "attribution": [
                f"Contains modified Copernicus Sentinel data {request.year}",
                *(source["attribution"] for source in sources),
            ],
        }
        _write_layers(part / "place", request.title, request.season[0], grid, layers, record)
        if final.exists():
            shutil.rmtree(final)  # a folder without a record: not of this function, or unfinished
        (part / "place").rename(final)
        shutil.rmtree(part)
    part.with_suffix(".lock").unlink(missing_ok=True)
    return final


def download_bytes(request: Request, services: str | os.PathLike[str] = SERVICES) -> int:
    """Return about how many bytes `fetch_place` would read, by the indexes of the files; raises as it does."""
    return PlaceReader(request, _services_of(request, services), Path()).download_bytes()


def _services_of(request: Request, path: str | os.PathLike[str]) -> dict[str, Any]:
    known = read_services(path)
    for kind, name in (("catalogues", request.catalogue), ("references", request.reference)):
        if name and name not in known[kind]:
            expected = ", ".join(known[kind])
            raise ParameterError(f"place: {kind}", found=name, expected=expected, do="Correct the name.")
    return known


def read_place(folder: Path) -> dict[str, Any]:
    """Return the record of a place; MissingDataError if it is none, or lacks its images, label or reference."""
    do = "Give a folder that `python -m lcfuse_core place` wrote, with a reference."
    names = (PLACE_RECORD, "s2.tif", "coarse.tif", "reference.tif")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise MissingDataError(folder, found=f"no {', '.join(missing)}", expected="a place", do=do)
    try:
        record = json.loads((folder / PLACE_RECORD).read_text(encoding="utf-8"))
        return record | {"attribution": [str(line) for line in record["attribution"]]}
    except (ValueError, KeyError, TypeError) as error:
        found = f"no record of a place ({error})"
        raise DataError(folder / PLACE_RECORD, found=found, expected="that of `place`", do=do) from None


def sample_place(out: Path, seed: int = 0) -> Path:
    """
    Return a **synthetic** place in the form of a fetched one, made at first use: for pages without a network.

    The scene of the sample (5.12 km, the region "inland sea marsh") with the label of its coarse cells; its reference
    is the truth.
    """
    final = out / f"synthetic_{seed}"
    with _runtime.lock(final.with_suffix(".lock")):
        if not (final / PLACE_RECORD).exists():
            files = world.make_sample_scene(out / f"scene-{seed}", seed, side=512, weather=False)
            with open_raster(files.s2) as s2, open_raster(files.s1) as s1, open_raster(files.truth) as truth:
                layers = {"s2": s2.read(), "s1": s1.read(), "dfc": truth.read()}
                grid = Grid(s2.crs, s2.transform, s2.shape)
            layers["lc"] = np.full((4, *grid.shape), 255, np.uint8)
            with open_coarse(files.coarse, grid) as coarse:
                layers["lc"][0] = coarse.codes_at(*(slice(0, side) for side in grid.shape))
            record = {"synthetic": True, "attribution": ["synthetic sample"], "sentinel1": {}}
            part = final.with_name(f".{final.name}.part")
            _write_layers(part, f"synthetic{seed}", "year", grid, layers, record)
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
    return final


def _write_layers(
    folder: Path,
    title: str,
    season: str,
    grid: Grid,
    layers: dict[str, NDArray[Any]],
    record: dict[str, Any],
) -> None:
    """Write the patches, the scene, its label as one pixel per cell and, last, the record."""
    shutil.rmtree(folder, ignore_errors=True)
    season = f"ROIs0000_{season}"
    corners = product(*(range(0, side, PATCH_PX) for side in grid.shape))
    for number, (row, col) in enumerate(corners):
        for kind, array in layers.items():
            path = folder / season / f"{kind}_{title}" / f"{season}_{kind}_{title}_p{number}.tif"
            window = array[:, row : row + PATCH_PX, col : col + PATCH_PX]
            _write(path, window, grid.crs, grid.affine @ Affine.translation(col, row))
    scene = {"s2": layers["s2"]}
    scene |= {"s1": layers["s1"]} if record["sentinel1"] is not None else {}
    scene |= {"reference": layers["dfc"]} if "dfc" in layers else {}
    for name, array in scene.items():
        _write(folder / f"{name}.tif", array, grid.crs, grid.affine, compress="deflate")
    label = np.where(layers["lc"][0] == 0, np.uint8(255), layers["lc"][0])  # 0: no label, in patches
    codes, transform = cells.modis_raster(grid.affine, str(grid.crs), label)
    _write(folder / "coarse.tif", codes[None], cells.SINUSOIDAL, transform, nodata=255)
    record["digest"] = data_digest(folder)
    _runtime.write_atomic(folder / PLACE_RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, array: NDArray[Any], crs: CRS | str | None, transform: Affine, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "dtype": array.dtype, "count": count, "height": height, "width": width, **options}
    with rasterio.open(path, "w", crs=crs, transform=transform, interleave="pixel", **profile) as file:
        file.write(array)


def read_places(path: str | os.PathLike[str]) -> list[Request]:
    """Read a list of places: a YAML sequence of mappings with the fields of `Request` and, ignored here, a `reason`."""
    rows = load_yaml(_runtime.read_document(path, "a list of places"), str(path))
    requests: list[Request] = []
    for number, row in enumerate(rows if isinstance(rows, list) else [None], start=1):
        if not isinstance(row, dict):
            do = "Give a list of mappings with lon and lat."
            raise DataError(path, found=f"{row or rows!r}"[:80], expected="a list of places", do=do)
        values: dict[str, Any] = {
            str(key): tuple(value) if isinstance(value, list) else value for key, value in row.items()
        }
        values.pop("reason", None)
        try:
            requests.append(Request(**values))
        except ParameterError as error:
            where = f"{path}, number {number}: {error.where}"
            raise ParameterError(where, found=error.found, expected=error.expected, do=error.do) from None
    titles = [request.title.casefold() for request in requests]  # one folder to some file systems
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice or not requests:
        found = f"{', '.join(twice)} twice" if twice else "no place"
        raise DataError(path, found=found, expected="places of different names", do="Correct the list.")
    return requests
