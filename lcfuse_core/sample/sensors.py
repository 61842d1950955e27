"""
What the satellites measure of the sample world: Sentinel-2, Sentinel-1 and the MODIS land-cover label.

Stands in for: Sentinel-2 L1C by linear mixing of seven materials, blurred by a point spread and resampled to the
bands' own resolutions; Sentinel-1 backscatter with speckle; the yearly MODIS label of a 463.3 m cell, chosen by a
classifier that sees blurred class fractions and confuses classes as MCD12Q1 does.
Limits: no clouds, shadows of terrain, tides, bidirectional effects, layover, or dates that differ between the
sensors. Mixing is linear; speckle and noise are independent from pixel to pixel, also within the repeated pixels of
the coarser bands. The errors of the label are coherent in a scene and random between cells; real ones also follow
land forms. Figures measured here say how methods compare, not how well they map the Earth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage, special

from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import SAVANNA, SCORED, dfc_to_index
from lcfuse_core.sample.landscape import ROAD_OBJECT, Biome, Cover, Landscape, random_field

# Surface reflectance x 10000 of seven materials in B1..B8, B8A, B9, B10, B11, B12: round figures in the shape of
# published spectra (leaf pigments in the red, cell structure in the near infrared, water at 1.6 and 2.2 micrometres).
_MATERIALS = ("green leaves", "needles", "dry plants", "soil", "built", "water", "shade")
_REFLECTANCE = np.array(
    [
        [250, 300, 620, 350, 950, 2500, 3250, 3450, 3650, 3500, 0, 1900, 850],
        [180, 200, 380, 260, 520, 1400, 1750, 1850, 1950, 1900, 0, 900, 400],
        [550, 750, 1150, 1500, 1850, 2150, 2350, 2550, 2750, 2750, 0, 3300, 2400],
        [750, 950, 1400, 1900, 2200, 2400, 2600, 2750, 2950, 2950, 0, 3700, 3200],
        [1150, 1250, 1400, 1550, 1680, 1780, 1880, 1980, 2050, 2050, 0, 2200, 2000],
        [450, 420, 400, 260, 180, 140, 120, 110, 100, 90, 0, 50, 30],
        [60, 60, 80, 70, 90, 170, 220, 230, 250, 240, 0, 130, 70],
    ],
    float,
)
# Light scattered by the air before it reaches the ground: the blue bands see mostly that.
_PATH = np.array([1000, 750, 480, 300, 240, 190, 160, 140, 120, 60, 8, 20, 10], float)
# Share of the surface signal left after water vapour; B9 and B10 look at its absorption bands.
_VAPOUR = np.array([0.9, 0.92, 0.94, 0.95, 0.95, 0.96, 0.96, 0.96, 0.97, 0.28, 0.001, 0.96, 0.95])
BAND_RESOLUTION_M = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20)

# Mean logits of the materials in each class, in the order of SCORED.
_MIXTURE = np.array(
    [
        # leaves needles dry   soil  built  water shade
        [1.6, 0.4, -0.8, -2.2, -4.0, -4.0, 0.6],  # Forest
        [0.6, -1.2, 0.8, 0.3, -3.5, -4.0, -0.4],  # Shrubland
        [1.3, -3.0, 0.9, -0.5, -4.0, -4.0, -1.6],  # Grassland
        [1.0, -2.0, 0.3, -1.0, -4.0, 0.3, 0.0],  # Wetlands
        [1.4, -3.5, 0.3, 0.4, -3.5, -4.0, -1.8],  # Croplands
        [-0.2, -2.5, -0.4, 0.2, 1.4, -3.5, -0.6],  # Urban
        [-2.0, -4.0, 0.0, 1.8, 0.0, -3.5, -0.8],  # Barren
        [-3.5, -5.0, -4.0, -3.5, -4.0, 2.5, -1.5],  # Water
    ]
)
# Mean sigma0 in dB, VV and VH, of each class (order of SCORED), and how much one object differs from the next.
_BACKSCATTER_DB = np.array(
    [
        [-9.5, -15.0],
        [-12.0, -18.5],
        [-13.0, -20.0],
        [-12.0, -19.0],
        [-11.5, -18.5],
        [-7.0, -13.5],
        [-15.0, -23.0],
        [-19.5, -27.0],
    ]
)
LABEL_NOISE = 0.45
"""Scale of the noise of the MODIS label in the sample."""
_LOOKS = 4.4
"""Equivalent number of looks of Sentinel-1 GRD in interferometric wide swath mode."""

REPORTED, CALIBRATED = "reported", "dfc2020"
"""How the label confuses classes: as reported for MCD12Q1, or calibrated on DFC2020."""

# p(MODIS class | class that dominates the cell), rows and columns in the order of SCORED, then Savanna: round
# figures after the confusions reported for MCD12Q1 Collection 6 (Sulla-Menashe et al. 2019): cropland, grassland,
# shrubland and savanna are taken for one another, wetlands are mostly missed, water and towns mostly found.
_REPORTED = np.array(
    [
        # forest shrub grass wetl  crop  urban barren water savanna
        [0.51, 0.01, 0.03, 0.02, 0.03, 0.01, 0.00, 0.00, 0.39],
        [0.04, 0.29, 0.18, 0.01, 0.05, 0.01, 0.05, 0.00, 0.37],
        [0.02, 0.05, 0.45, 0.01, 0.14, 0.01, 0.03, 0.00, 0.29],
        [0.10, 0.04, 0.19, 0.22, 0.10, 0.01, 0.01, 0.06, 0.27],
        [0.02, 0.02, 0.15, 0.01, 0.60, 0.02, 0.00, 0.00, 0.18],
        [0.02, 0.01, 0.06, 0.01, 0.09, 0.70, 0.03, 0.01, 0.07],
        [0.00, 0.23, 0.25, 0.00, 0.04, 0.02, 0.40, 0.02, 0.04],
        [0.01, 0.00, 0.01, 0.04, 0.01, 0.01, 0.02, 0.90, 0.00],
    ]
)
# The same, calibrated so that p(DFC2020 class | MODIS label) in the test regions of the sample is about that of the
# real test set (GDAOSU; `shipped/published.yaml`), by `benchmarks/label_confusion.py`. It is no estimate of the
# confusions of the real label: the sample has other class proportions, so the same p(class | label) needs others.
_CALIBRATED = np.array(
    [
        # forest shrub grass wetl  crop  urban barren water savanna
        [0.52, 0.01, 0.02, 0.09, 0.01, 0.00, 0.01, 0.00, 0.34],
        [0.01, 0.58, 0.27, 0.03, 0.01, 0.00, 0.04, 0.00, 0.06],
        [0.01, 0.31, 0.44, 0.05, 0.04, 0.02, 0.04, 0.00, 0.09],
        [0.07, 0.06, 0.48, 0.10, 0.06, 0.02, 0.02, 0.01, 0.18],
        [0.00, 0.01, 0.60, 0.04, 0.30, 0.01, 0.01, 0.00, 0.03],
        [0.01, 0.01, 0.10, 0.05, 0.02, 0.71, 0.09, 0.00, 0.01],
        [0.01, 0.35, 0.33, 0.01, 0.03, 0.03, 0.19, 0.01, 0.04],
        [0.01, 0.05, 0.22, 0.09, 0.01, 0.03, 0.15, 0.43, 0.01],
    ]
)

MEAN_CONFUSION = {REPORTED: _REPORTED, CALIBRATED: _CALIBRATED}
"""Means over the world, around which each region draws its own; real confusions depend on place and neighbourhood."""
MOSAIC_WEIGHT = {REPORTED: 1.6, CALIBRATED: 0.0}
"""Weight of Savanna in cells where woody and open land mix; the calibration left next to none (0.01 if free)."""


@dataclass(frozen=True)
class Region:
    """The signatures of one region, which differ between regions and seasons."""

    biome: Biome
    materials: NDArray[np.float64]  # (7, 13) reflectance x 10000
    mixture: NDArray[np.float64]  # (8, 7) logits
    backscatter_db: NDArray[np.float64]  # (8, 2)
    haze: float
    confusion: NDArray[np.float64]  # (8, 9) p(MODIS class | dominant class): the scored classes, then Savanna
    label_noise: float  # scale of the Gumbel noise in the logits of a cell's label
    mosaic: float  # weight of Savanna where woody and open land share a cell


def draw_region(
    rng: np.random.Generator,
    biome: Biome,
    *,
    season: float,
    domain_shift: float,
    label_noise: float = LABEL_NOISE,
    label_confusion: str = REPORTED,
) -> Region:
    """
    Draw the signatures of a region.

    Parameters
    ----------
    rng, biome : Generator, Biome
        Source of random numbers, and the land cover of the region.
    season : float
        -1 (leafless, dry) .. 1 (high season); scales the green share of all but needle-leaved plants.
    domain_shift : float
        Standard deviation, in logits, of the region's own departure in each class and material.
    label_noise : float
        Scale of the Gumbel noise in the logits of a cell's label.
    label_confusion : str
        Key of `MEAN_CONFUSION`, around which the confusions of the region's label are drawn.
    """
    vigour = 1.2 * season - 1.1 * biome.aridity
    leaves, needles, dry, soil = 0, 1, 2, 3
    mixture = _MIXTURE + domain_shift * rng.standard_normal(_MIXTURE.shape)
    planted = [SCORED.index(code) for code in (Cover.FOREST, Cover.SHRUB, Cover.GRASS, Cover.WETLAND, Cover.CROP)]
    mixture[planted, leaves] += vigour
    mixture[planted, dry] += 0.6 * biome.aridity - 0.4 * season
    mixture[planted, soil] += 0.8 * biome.aridity
    forest = SCORED.index(Cover.FOREST)
    mixture[forest, needles] += 3.0 * (biome.conifers - 0.4)
    mixture[forest, leaves] -= 1.2 * (biome.conifers - 0.4)
    tone = np.exp(rng.normal(0, 0.12, (len(_MATERIALS), 1)) + rng.normal(0, 0.05, _REFLECTANCE.shape))
    tone[5] *= np.exp(rng.normal(0.2, 0.5))  # turbid or clear water
    wet_db = rng.normal(0, 0.6) + domain_shift * rng.normal(0, 1.0, (len(SCORED), 2))
    return Region(
        biome=biome,
        materials=_REFLECTANCE * tone,
        mixture=mixture,
        backscatter_db=_BACKSCATTER_DB + wet_db,
        haze=rng.lognormal(0, 0.15),
        confusion=_draw_confusion(rng, MEAN_CONFUSION[label_confusion]),
        label_noise=label_noise,
        mosaic=MOSAIC_WEIGHT[label_confusion],
    )


def see_sentinel2(rng: np.random.Generator, land: Landscape, region: Region) -> NDArray[np.uint16]:
    """Simulate top-of-atmosphere reflectance x 10000 of a landscape, uint16 (13, H, W)."""
    shape = land.truth.shape
    logits = region.mixture[dfc_to_index(land.truth)]  # H, W, 7
    logits += _by_object(rng, land, (7,), spread=0.55)
    for material in range(7):
        patchy = 0.3 * random_field(rng, shape, 40) + 0.3 * random_field(rng, shape, 5)
        logits[..., material] += patchy + 0.45 * rng.standard_normal(shape)
    share = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    surface = np.moveaxis(share @ region.materials, -1, 0)  # 13, H, W
    seen = _PATH[:, None, None] * region.haze + _VAPOUR[:, None, None] * surface
    seen = np.stack([_resolve(band, m) for band, m in zip(seen, BAND_RESOLUTION_M, strict=True)])
    seen *= 1 + 0.03 * rng.standard_normal((13, 1, 1))
    noise = 30 * rng.standard_normal(seen.shape) * (_VAPOUR > 0.1)[:, None, None]
    return np.clip(np.rint(seen + noise), 1, 65535).astype(np.uint16)


def see_sentinel1(rng: np.random.Generator, land: Landscape, region: Region) -> NDArray[np.float64]:
    """
    Simulate backscatter sigma0 in dB (VV, VH), float64 (2, H, W): class, object, texture, speckle; at most 0 dB.

    In single precision, and by functions without vector instructions: those of numpy differ in the last digit between
    kinds of processors, and nothing rounds that away here as it is in Sentinel-2.
    """
    shape = land.truth.shape
    mean_db = region.backscatter_db[dfc_to_index(land.truth)]
    mean_db += _by_object(rng, land, (2,), spread=1.0)
    mean_db = np.moveaxis(mean_db, -1, 0) + 0.8 * random_field(rng, shape, 40) + 0.7 * random_field(rng, shape, 5)
    power = ndimage.gaussian_filter(special.exp10(mean_db / 10), (0, 0.7, 0.7))
    speckle = rng.gamma(_LOOKS, 1 / _LOOKS, power.shape)
    in_db = special.xlogy(10 / math.log(10), power * speckle)
    return np.minimum(in_db, 0.0).astype(np.float32).astype(np.float64)


def _by_object(
    rng: np.random.Generator, land: Landscape, size: tuple[int, ...], *, spread: float
) -> NDArray[np.float64]:
    """Draw one value per field or town, shared by its pixels; crops, which are at all stages of growth, vary more."""
    numbers, place = np.unique(land.objects, return_inverse=True)
    draw = rng.normal(0, spread, (len(numbers), *size))
    draw[(numbers == 0) | (numbers == ROAD_OBJECT)] = 0
    shift = draw[place.reshape(land.objects.shape)]
    return np.where((land.truth == Cover.CROP)[..., None], 1.5 * shift, shift)


def _resolve(band: NDArray[np.float64], resolution_m: int) -> NDArray[np.float64]:
    """Apply a point spread of about one pixel of the band, then average over its pixels and repeat them at 10 m."""
    factor = resolution_m // 10
    band = ndimage.gaussian_filter(band, 0.45 * factor + 0.2)
    if factor == 1:
        return band
    padded = np.pad(band, [(0, -n % factor) for n in band.shape], mode="edge")
    rows, cols = (n // factor for n in padded.shape)
    mean = padded.reshape(rows, factor, cols, factor).mean(axis=(1, 3))
    return mean.repeat(factor, 0).repeat(factor, 1)[: band.shape[0], : band.shape[1]]


_CONFUSION_CONCENTRATION = 20.0


def _draw_confusion(rng: np.random.Generator, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw the confusion matrix of a region: each row from a Dirichlet distribution around that of *mean*."""
    return np.stack([rng.dirichlet(_CONFUSION_CONCENTRATION * row + 0.02) for row in mean])


def see_modis(
    rng: np.random.Generator, truth: NDArray[np.uint8], transform: Affine, crs: str, region: Region
) -> NDArray[np.uint8]:
    """
    Simulate the yearly IGBP label of the coarse cells, nearest neighbour at 10 m: uint8 (H, W).

    *truth*, uint8 (H, W), are DFC2020 codes at 10 m, georeferenced by *transform* and *crs*; cells that its edge cuts
    are classified by the part inside.
    """
    ids, keys = cell_ids(transform, crs, truth.shape)
    share = cell_shares(rng, truth, ids, len(keys))
    belief, mixed = as_classified(share)
    odds = belief @ region.confusion
    odds[:, -1] += region.mosaic * mixed
    label = np.argmax(np.log(odds + 1e-6) + region.label_noise * rng.gumbel(size=odds.shape), axis=1)
    code = np.array((*SCORED, SAVANNA), np.uint8)[label]
    return _igbp(code, share, region.biome)[ids]


def as_classified(share: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return how a 500 m classifier weighs the classes of cells with class shares *share*, (n_cells, 8).

    The weights (n_cells, 8) sum to 1. The second array (n_cells,) is the area that reads as Savanna: as much woody land
    as there is open land beside it.
    """
    belief = np.power(share, 1.6) * _DETECTION
    belief /= belief.sum(axis=1, keepdims=True)
    woody, open_ = share[:, :2].sum(axis=1), share[:, [2, 4]].sum(axis=1)
    return belief, np.minimum(woody, open_)


# A 500 m classifier overlooks small towns and narrow wetlands.
_DETECTION = np.array([1.0, 0.9, 1.0, 0.6, 1.0, 0.7, 1.0, 1.0])


def cell_shares(
    rng: np.random.Generator, truth: NDArray[np.uint8], ids: NDArray[np.int32], n_cells: int
) -> NDArray[np.float64]:
    """Return class shares of the cells, (n_cells, 8), after the wide point spread of MODIS and a geolocation error."""
    index = dfc_to_index(truth)
    size = np.bincount(ids.ravel(), minlength=n_cells)
    shift = np.rint(rng.normal(0, 11, 2)).astype(int)  # about a quarter of a cell
    shares = []
    for k in range(len(SCORED)):
        blurred = ndimage.uniform_filter(np.roll(index == k, shift, (0, 1)).astype(np.float32), 35)
        shares.append(np.bincount(ids.ravel(), blurred.ravel(), n_cells) / size)
    return np.maximum(np.stack(shares, axis=1), 0)


def _igbp(code: NDArray[np.uint8], share: NDArray[np.float64], biome: Biome) -> NDArray[np.uint8]:
    """Return the IGBP code of a DFC2020 code, chosen by the content of the cell and the biome."""
    table = np.zeros(11, np.uint8)
    for cover, number in zip(Cover, (0, 7, 10, 11, 12, 13, 16, 17), strict=True):  # forest and shrubs: see below
        table[cover] = number
    warm = abs(biome.latitude) < 23.5
    table[Cover.FOREST] = 1 if biome.conifers > 0.7 else 5 if biome.conifers > 0.3 else 2 if warm else 4
    table[Cover.SHRUB] = 7 if biome.aridity > 0.5 else 6
    igbp = table[code]
    woody, natural = share[:, 0], share[:, :3].sum(axis=1)
    igbp[(code == Cover.CROP) & (natural > 0.4)] = 14
    igbp[code == SAVANNA] = np.where(woody > 0.3, 8, 9)[code == SAVANNA]
    return igbp


def lccs_layers(igbp: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """
    Return the three LCCS layers of an IGBP map: land cover, land use, surface hydrology, uint8 (3, H, W).

    A plain table: in the real product they are classified on their own and may contradict IGBP.
    """
    return _LCCS[:, igbp]


_LCCS = np.full((3, 256), 255, np.uint8)
_LCCS[0, 1:18] = (11, 12, 13, 14, 15, 41, 43, 21, 22, 31, 31, 31, 1, 42, 2, 1, 3)
_LCCS[1, 1:18] = (10, 10, 10, 10, 10, 40, 40, 20, 20, 30, 30, 36, 9, 35, 2, 1, 3)
_LCCS[2, 1:18] = (10, 10, 10, 10, 10, 40, 40, 20, 20, 30, 50, 30, 1, 30, 2, 1, 3)
