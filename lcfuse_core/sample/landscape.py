"""
The ground of the sample world: synthetic land cover at 10 m, known for every pixel.

Stands in for: the mix, size and shape of real land cover around towns, farms, rivers and coasts. Natural classes
compete as the largest of weighted Gaussian random fields; fields are warped, rotated strips; wetlands fringe
the water; roads join the towns.
Limits: no relief, no geology, no history. Rivers do not run downhill, towns do not sit on rivers, and the
eight classes are crisp: no pixel is half shrub, though many real ones are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


class Cover(IntEnum):
    """DFC2020 codes of the classes of the sample world."""

    FOREST, SHRUB, GRASS, WETLAND, CROP, URBAN, BARREN, WATER = 1, 2, 4, 5, 6, 7, 9, 10


ROAD_OBJECT = -1


@dataclass(frozen=True)
class Biome:
    """
    The land cover of one kind of region.

    Parameters
    ----------
    latitude, longitude : float
        Degrees, of a real region of that kind.
    forest, shrub, grass, barren : float
        Weight of each natural class (standard deviations of its field).
    crops, lakes, wetlands : float
        Share of the area that may become so, 0-1.
    water : tuple of str
        Any of "river", "coast".
    towns, town_radius_m : float
        Expected number in a 5 km square, and their typical radius.
    conifers, aridity : float
        Share of forest that is needle-leaved, 0-1; 0 humid .. 1 arid, which dries vegetation and bares soil.
    size : float
        Factor for the size of homogeneous areas (fields, woods, lakes, rivers, towns), whose shares stay about equal.
    """

    name: str
    latitude: float
    longitude: float
    forest: float = 0.0
    shrub: float = 0.0
    grass: float = 0.0
    barren: float = -1.0
    crops: float = 0.3
    lakes: float = 0.02
    wetlands: float = 0.2
    water: tuple[str, ...] = ()
    towns: float = 2.0
    town_radius_m: float = 300.0
    conifers: float = 0.3
    aridity: float = 0.3
    size: float = 1.0


@dataclass(frozen=True)
class Landscape:
    """Land cover (uint8 DFC2020 codes) and objects (int32: one number per field or town), both (H, W)."""

    truth: NDArray[np.uint8]
    objects: NDArray[np.int32]


def random_field(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> NDArray[np.float64]:
    """
    Draw a smooth Gaussian random field, shape (H, W), mean 0, variance 1, correlated over about `scale_px`.

    White noise on a coarse grid, smoothed, then drawn out by cubic B-splines: cheap for any scale, and without
    a library call whose last digit depends on the processor.
    """
    step = max(1.0, scale_px / 2)
    coarse = [int(np.ceil(n / step)) + 6 for n in shape]
    knots = ndimage.gaussian_filter(rng.standard_normal(coarse), 0.8, mode="wrap")
    starts = rng.random(2)
    rows = _spline(knots, starts[0] + np.arange(shape[0]) / step)
    field = _spline(rows.T, starts[1] + np.arange(shape[1]) / step).T
    at_knots = ndimage.convolve1d(ndimage.convolve1d(knots, _AT_KNOT, 0, mode="wrap"), _AT_KNOT, 1, mode="wrap")
    return (field - at_knots.mean()) / at_knots.std()


_AT_KNOT = (1 / 6, 4 / 6, 1 / 6)


def _spline(knots: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate a uniform cubic B-spline along axis 0, with coefficients *knots* (K, M), at *places* in 0..K-4."""
    first = places.astype(int)
    t = (places - first)[:, None]
    cubed, squared, rest = t * t * t, t * t, 1 - t  # products, as the last digit of a power depends on the processor
    weights = (rest * rest * rest, 3 * cubed - 6 * squared + 4, -3 * cubed + 3 * squared + 3 * t + 1, cubed)
    return sum(w * knots[first + k] for k, w in enumerate(weights)) / 6


def make_landscape(rng: np.random.Generator, biome: Biome, shape: tuple[int, int]) -> Landscape:
    """Draw the land cover of one scene of *shape* (H, W) pixels of 10 m."""
    truth, objects = _nature(rng, biome, shape), np.zeros(shape, np.int32)
    _farm(rng, biome, truth, objects)
    water = _water(rng, biome, shape)
    truth[water] = Cover.WATER
    truth[_fringe(rng, biome, water) & (truth != Cover.WATER)] = Cover.WETLAND
    _build(rng, biome, truth, objects)
    return Landscape(truth, objects)


def _nature(rng: np.random.Generator, biome: Biome, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw natural classes: at each pixel the largest of four weighted fields of a coarse and a fine scale."""
    codes = np.array((Cover.FOREST, Cover.SHRUB, Cover.GRASS, Cover.BARREN), np.uint8)
    weights = (biome.forest, biome.shrub, biome.grass, biome.barren)
    coarse_px = biome.size * rng.uniform(110, 240)
    strength = [
        weight
        + 0.8 * random_field(rng, shape, coarse_px)
        + 0.15 * random_field(rng, shape, biome.size * rng.uniform(9, 18))
        for weight in weights
    ]
    return codes[np.argmax(strength, axis=0)]


def _farm(rng: np.random.Generator, biome: Biome, truth: NDArray[np.uint8], objects: NDArray[np.int32]) -> None:
    """Turn the most suitable land into fields: strips of 8-40 px in a rotated and slightly warped grid."""
    shape = truth.shape
    suitability = random_field(rng, shape, 130 * biome.size) + 0.12 * random_field(rng, shape, 15 * biome.size)
    farmland = suitability > np.quantile(suitability, 1 - biome.crops)
    angle, warp = rng.uniform(0, np.pi), 6 * random_field(rng, shape, 120)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    along = cols * np.cos(angle) + rows * np.sin(angle) + warp
    across = rows * np.cos(angle) - cols * np.sin(angle) + warp
    strip = np.searchsorted(_cuts(rng, across, biome.size, 14.0), across)
    block = np.searchsorted(_cuts(rng, along, biome.size, 26.0), along)
    field = (1 + strip * 1000 + block).astype(np.int32)
    # Whole fields are cropped, left as pasture or kept as copses.
    use = rng.choice(
        np.array((Cover.CROP, Cover.GRASS, Cover.FOREST), np.uint8), size=field.max() + 1, p=(0.92, 0.056, 0.024)
    )
    truth[farmland] = use[field[farmland]]
    objects[farmland] = field[farmland]


def _cuts(rng: np.random.Generator, values: NDArray[np.float64], size: float, typical_px: float) -> NDArray[np.float64]:
    """Draw boundaries of strips of log-normal width, times *size*, over the range of *values*."""
    n = int(400 / min(size, 1.0))  # enough of them, also if they are narrow
    widths = size * np.clip(rng.lognormal(np.log(typical_px), 0.4, n), 8, 40)
    return values.min() + np.cumsum(widths)


def _water(rng: np.random.Generator, biome: Biome, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw lakes in the lows of a field, a meandering river of 1-7 px, a coast as a noisy half-plane."""
    low = random_field(rng, shape, 80 * biome.size) + 0.12 * random_field(rng, shape, 10 * biome.size)
    water = low < np.quantile(low, biome.lakes)
    if "river" in biome.water:
        course = random_field(rng, shape, 90 * biome.size)
        down, right = np.gradient(course)
        slope = np.hypot(down, right) + 1e-3
        water |= np.abs(course) / slope < biome.size * rng.uniform(1, 7) / 2
    if "coast" in biome.water:
        rows, cols = np.mgrid[: shape[0], : shape[1]]
        angle = rng.uniform(0, 2 * np.pi)
        inland = (cols - shape[1] / 2) * np.cos(angle) + (rows - shape[0] / 2) * np.sin(angle)
        shore = 25 * random_field(rng, shape, 60) + 6 * random_field(rng, shape, 12)
        water |= inland + shore < rng.uniform(-0.2, 0.1) * min(shape)
    return water


def _fringe(rng: np.random.Generator, biome: Biome, water: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Draw wetland: within a few hundred metres of water, or in damp hollows, where a field is high."""
    near_px = ndimage.distance_transform_edt(~water) if water.any() else np.full(water.shape, 1e3)
    damp = random_field(rng, water.shape, 80 * biome.size) + 0.12 * random_field(rng, water.shape, 9 * biome.size)
    damp += 1.5 * np.exp(-near_px / (15 * biome.size))
    return damp > np.quantile(damp, 1 - biome.wetlands)


def _build(rng: np.random.Generator, biome: Biome, truth: NDArray[np.uint8], objects: NDArray[np.int32]) -> None:
    """Draw towns as noisy discs with parks, and roads of one pixel between them; not on water."""
    rows, cols = np.mgrid[: truth.shape[0], : truth.shape[1]]
    n_towns = rng.poisson(biome.towns / biome.size**2 * truth.size / 500**2)
    centres = rng.uniform(0, 1, (n_towns, 2)) * truth.shape
    edge, parks = (random_field(rng, truth.shape, scale * biome.size) for scale in (12, 7))
    for number, (row, col) in enumerate(centres):
        radius_px = biome.size * biome.town_radius_m / 10 * rng.lognormal(0, 0.4)
        inside = np.hypot(rows - row, cols - col) < radius_px * (1 + 0.35 * edge)
        town = inside & (parks < 1.3) & (truth != Cover.WATER)
        truth[town], objects[town] = Cover.URBAN, 10_000_000 + number
    for start, end in itertools.pairwise(centres):
        steps = np.linspace(0, 1, int(2 * np.abs(end - start).max()) + 2)[:, None]
        bend = np.sin(np.pi * steps) * rng.normal(0, 20, 2)
        row, col = np.clip(start + (end - start) * steps + bend, 0, np.array(truth.shape) - 1).astype(int).T
        row, col = row[truth[row, col] != Cover.WATER], col[truth[row, col] != Cover.WATER]
        truth[row, col], objects[row, col] = Cover.URBAN, ROAD_OBJECT
