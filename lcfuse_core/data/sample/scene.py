"""
The sample scene: a georeferenced place of the synthetic world, as files of three kinds and three grids.

Stands in for: what a reader brings of a place of their own. Sentinel-2 as one file of 13 bands on a 10 m grid,
Sentinel-1 on the same, the MODIS label as a raster of one pixel a cell in the sinusoidal grid.
With weather, a corner lies outside of the swath (zeros) and a cloud hides some of the ground (a mask tells where).
Breaks down: as `world` does; the cloud is a white blob without a shadow. The region is one of the sample's test set,
the scene another than there: no network of the sample has learnt from it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from lcfuse_core import _runtime
from lcfuse_core.data.cells import SINUSOIDAL, modis_raster
from lcfuse_core.data.files import B10
from lcfuse_core.data.legends import IGNORE
from lcfuse_core.data.sample.sensors import draw_region
from lcfuse_core.data.sample.world import EVALUATION_SEASON, TEST_REGIONS, WorldPlan, make_scene

SIDE_PX = 900
REGION = 1
"""Number among `world.TEST_REGIONS`."""


@dataclass(frozen=True)
class Place:
    """Files of the sample scene; `truth` is the 10 m truth, for scoring alone."""

    s2: Path
    s1: Path
    coarse: Path
    clouds: Path
    truth: Path


def make_place(
    root: str | os.PathLike[str], seed: int = 0, *, side: int = SIDE_PX, region: int = REGION, weather: bool = True
) -> Place:
    """The sample scene of this seed under *root*; made when it is not there (some seconds)."""
    root = Path(root)
    place = Place(*(root / f"{name}.tif" for name in ("s2", "s1", "coarse", "clouds", "truth")))
    wanted = {"seed": seed, "side": side, "region": region, "weather": weather}
    with _runtime.lock(root.with_suffix(".lock")):
        record = root / "place.json"
        if not (record.exists() and json.loads(record.read_text()) == wanted):
            _write_place(place, seed, side, region, weather)
            record.write_text(json.dumps(wanted))
    return place


def _write_place(place: Place, seed: int, side: int, number: int, weather: bool) -> None:
    biome = TEST_REGIONS[number]
    signature = np.random.default_rng(signature_seed(seed, biome.name))
    region = draw_region(signature, biome, season=EVALUATION_SEASON, strangeness=WorldPlan().strangeness)
    scene = make_scene(np.random.default_rng((seed, 3, number, 2)), region, side)
    s2, cloud = scene.s2, np.zeros(scene.truth.shape, np.float32)
    if weather:
        s2, cloud = _under_weather(s2)
    place.s2.parent.mkdir(parents=True, exist_ok=True)
    codes, transform = modis_raster(scene.transform, scene.crs, scene.lc[0])
    _write(place.s2, s2, scene.crs, scene.transform)
    _write(place.s1, scene.s1.astype(np.float32), scene.crs, scene.transform)
    _write(place.clouds, (cloud > 0.05).astype(np.uint8)[None], scene.crs, scene.transform)
    _write(place.truth, scene.truth[None], scene.crs, scene.transform)
    _write(place.coarse, codes[None], SINUSOIDAL, transform, nodata=IGNORE)


def signature_seed(seed: int, region: str) -> tuple[int, ...]:
    """The seed from which the sample world draws the signatures of a test region: this scene is of the same."""
    return (seed, 2, int.from_bytes(region.encode()[:7], "big"), 1)


def _under_weather(s2: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """A cloud over the ground, its opacity 0..1, and nothing beyond the edge of the swath."""
    rows, cols = s2.shape[1:]
    row, col = np.mgrid[:rows, :cols] / max(rows, cols)
    ragged = 0.02 * (np.sin(23 * row) + np.sin(31 * col + 1) + np.sin(17 * (row + col)))
    cloud = np.clip(4 * (1 - np.hypot(row - 0.24, 0.7 * (col - 0.62)) / 0.1 + 8 * ragged), 0, 1).astype(np.float32)
    white = np.full(13, 6500.0)
    white[B10] = 1200
    s2 = np.rint(s2 * (1 - cloud) + white[:, None, None] * cloud).astype(np.uint16)
    s2[:, col + 0.3 * row < 0.12] = 0
    return s2, cloud


def _write(path: Path, array: NDArray[Any], crs: str, transform: Affine, **more: Any) -> None:
    count, height, width = array.shape
    profile = {"driver": "GTiff", "dtype": array.dtype, "count": count, "height": height, "width": width, **more}
    with rasterio.open(path, "w", crs=crs, transform=transform, tiled=True, compress="deflate", **profile) as file:
        file.write(array)
