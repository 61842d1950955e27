"""
The sample: a small synthetic world, written in the exact layouts of SEN12MS and DFC2020.

Stands in for: training scenes of many biomes and seasons, labelled by MODIS alone, and an evaluation set of other
regions and another season, with a fine reference. `landscape` makes the ground and `sensors` what is measured of it;
both describe their limits.
Limits: 24 scenes instead of 252, eight classes without Savanna and Snow/Ice, a reference without errors.

`<root>/sen12ms` holds the training patches, `<root>/truth` their fine truth (for comparison only: a chapter that trains
on it says so), `<root>/dfc2020` the evaluation patches, `<root>/world.json` the record of what was made.

`make_sample_scene` writes one larger scene as a user would bring it: a file of 13 bands, a file of Sentinel-1, the
MODIS label as one pixel per cell in the sinusoidal grid. Its region is one of the test set, but no network has been
trained on the scene. A corner is outside the swath (zeros) and a cloud without a shadow hides some of the ground.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

from lcfuse_core import _runtime
from lcfuse_core.data.bands import B10
from lcfuse_core.data.cells import SINUSOIDAL, modis_raster
from lcfuse_core.data.legends import IGNORE
from lcfuse_core.data.rasters import GEOREFERENCE_OPTIONAL
from lcfuse_core.errors import ParameterError
from lcfuse_core.sample.landscape import Biome, Landscape, make_landscape
from lcfuse_core.sample.sensors import (
    LABEL_NOISE,
    MEAN_CONFUSION,
    REPORTED,
    Region,
    draw_region,
    lccs_layers,
    see_modis,
    see_sentinel1,
    see_sentinel2,
)

_PATCH, _STRIDE = 256, 128
_MARGIN = 64  # pixels drawn beyond a scene on each side, so that its edge cuts no coarse cell
_TRAIN_SIZE, _EVALUATION_SIZE = 384, 512

BIOMES = (
    Biome("temperate farmland", 48.3, 11.9, forest=0.4, grass=0.3, shrub=-1.2, crops=0.5, water=("river",)),
    Biome("mosaic", 45.1, 1.2, forest=0.4, grass=0.5, shrub=0.0, barren=-1.5, crops=0.35, wetlands=0.15),
    Biome("mediterranean", 38.7, -6.1, forest=-0.2, shrub=0.5, grass=0.2, barren=-0.5, crops=0.3, conifers=0.1,
          aridity=0.6, wetlands=0.06),
    Biome("boreal", 62.5, 26.2, forest=1.0, shrub=0.1, grass=-0.4, barren=-1.2, crops=0.08, lakes=0.15,
          wetlands=0.3, towns=0.8, conifers=0.9, aridity=0.0),
    Biome("arid", 33.9, 2.8, forest=-1.8, shrub=0.5, grass=0.1, barren=0.8, crops=0.12, wetlands=0.03, lakes=0.01,
          towns=1.2, aridity=1.0),
    Biome("delta", 23.1, 90.2, forest=-0.2, grass=0.4, shrub=-0.8, crops=0.4, lakes=0.08, wetlands=0.45,
          water=("river",), conifers=0.0, aridity=0.1),
    Biome("metropolis", 51.4, 0.1, forest=0.1, grass=0.3, shrub=-0.6, crops=0.2, wetlands=0.08, towns=8.0,
          town_radius_m=600, water=("river",)),
    Biome("coast", -23.9, -46.3, forest=0.5, shrub=0.1, grass=0.2, crops=0.15, wetlands=0.2, water=("coast",),
          conifers=0.0, towns=4.0, town_radius_m=450, aridity=0.2),
)  # fmt: skip

VALIDATION_REGIONS = (
    Biome("lowland port", 9.9, 106.5, forest=0.1, grass=0.2, shrub=0.0, barren=-0.8, crops=0.3, lakes=0.05,
          wetlands=0.4, water=("coast",), conifers=0.0, towns=4.0, town_radius_m=450, aridity=0.2),
    Biome("dry basin", 36.6, 59.2, forest=-0.6, grass=0.4, shrub=0.5, barren=0.4, crops=0.3, wetlands=0.05, towns=3.0,
          aridity=0.8),
    Biome("lake forest", 53.8, 27.9, forest=0.6, grass=0.2, shrub=-0.4, barren=-0.9, crops=0.25, lakes=0.1,
          wetlands=0.3, towns=2.0, conifers=0.6, aridity=0.1),
    Biome("subtropical suburb", -27.2, 152.9, forest=0.4, grass=0.3, shrub=0.1, barren=-0.4, crops=0.15, wetlands=0.2,
          water=("coast",), conifers=0.0, towns=7.0, town_radius_m=500, aridity=0.4),
)  # fmt: skip

TEST_REGIONS = (
    Biome("monsoon city", 19.1, 72.9, forest=0.2, grass=0.3, shrub=0.2, barren=-0.6, crops=0.2, wetlands=0.35,
          water=("coast",), conifers=0.0, towns=8.0, town_radius_m=600, aridity=0.3),
    Biome("inland sea marsh", 37.4, 49.4, forest=0.2, grass=0.3, shrub=0.0, barren=-0.8, crops=0.4, lakes=0.15,
          wetlands=0.45, towns=3.0, aridity=0.3),
    Biome("southern cape", -33.9, 18.6, forest=-0.3, grass=0.2, shrub=0.6, barren=0.2, crops=0.3, wetlands=0.1,
          water=("coast",), towns=5.0, town_radius_m=450, aridity=0.7),
    Biome("highland forest", 48.0, 8.2, forest=0.8, grass=0.4, shrub=-0.6, crops=0.25, wetlands=0.1, towns=2.0,
          conifers=0.6, aridity=0.1),
    Biome("northern river", 48.5, 135.1, forest=0.5, grass=0.4, shrub=0.2, crops=0.2, lakes=0.08, wetlands=0.4,
          water=("river",), conifers=0.4, towns=3.0, aridity=0.2),
    Biome("high plateau city", 19.4, -99.1, forest=0.1, grass=0.4, shrub=0.4, barren=0.1, crops=0.3, wetlands=0.08,
          towns=7.0, town_radius_m=600, conifers=0.5, aridity=0.6),
)  # fmt: skip

# SEN12MS folder, and how green the season is (-1..1).
_SEASONS = (
    ("ROIs1158_spring", 0.3),
    ("ROIs1868_summer", 0.8),
    ("ROIs1970_fall", 0.0),
    ("ROIs2017_winter", -0.5),
)
_EVALUATION_SEASON = -0.1


@dataclass(frozen=True)
class WorldPlan:
    """
    Size and seed of a sample world.

    Attributes
    ----------
    seed : int
        Everything follows from it.
    n_train : int
        Training scenes of 384 x 384 pixels, four patches each, through the biomes and seasons in turn.
    n_validation, n_test : int
        Evaluation scenes of 512 x 512 pixels, four patches each, through the regions in turn.
    domain_shift : float
        Standard deviation, in logits, of a region's signatures from the mean, in training and evaluation regions alike.
        Chosen so that networks trained on other regions lose as much accuracy as on real data.
    label_noise : float
        Scale of the noise in the logits of the MODIS label of a cell.
    label_confusion : str
        How the label confuses classes: as "reported" for MCD12Q1, or as in "dfc2020".
    area_factor : float
        Factor for the size of homogeneous areas; the larger, the purer the coarse cells.
    """

    seed: int = 0
    n_train: int = 24
    n_validation: int = 4
    n_test: int = 12
    domain_shift: float = 1.15
    label_noise: float = LABEL_NOISE
    label_confusion: str = REPORTED
    area_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.label_confusion not in MEAN_CONFUSION:
            expected = f"one of {', '.join(MEAN_CONFUSION)}"
            raise ParameterError("label_confusion", found=self.label_confusion, expected=expected, do="Choose one.")
        if not 0.1 <= self.area_factor <= 10:
            found, do = str(self.area_factor), "1 is the size of the sample."
            raise ParameterError("area_factor", found=found, expected="0.1 to 10", do=do)
        for name in ("n_train", "n_validation", "n_test"):
            if getattr(self, name) < 1:
                raise ParameterError(name, found=str(getattr(self, name)), expected="1 or more", do="Add a scene.")


@dataclass(frozen=True)
class Scene:
    """One synthetic scene as the sensors measure it; arrays share (H, W), `truth` is the planted land cover."""

    s1: NDArray[np.float64]
    s2: NDArray[np.uint16]
    lc: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    crs: str
    transform: Affine


def make_scene(rng: np.random.Generator, region: Region, size: int) -> Scene:
    """Draw one scene of *size* x *size* pixels of 10 m in *region*."""
    full = size + 2 * _MARGIN
    crs, transform = _draw_grid(rng, region.biome, full)
    land = make_landscape(rng, region.biome, (full, full))
    igbp = see_modis(rng, land.truth, transform, crs, region)
    inner = np.s_[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    land, igbp = Landscape(land.truth[inner], land.objects[inner]), igbp[inner]
    return Scene(
        s1=see_sentinel1(rng, land, region),
        s2=see_sentinel2(rng, land, region),
        lc=np.concatenate([igbp[None], lccs_layers(igbp)]),
        truth=land.truth,
        crs=crs,
        transform=transform @ Affine.translation(_MARGIN, _MARGIN),
    )


def _draw_grid(rng: np.random.Generator, biome: Biome, size: int) -> tuple[str, Affine]:
    """Draw a UTM grid of 10 m near the biome's location; origins are not multiples of 10 m, as in SEN12MS."""
    latitude, longitude = biome.latitude + rng.uniform(-0.4, 0.4), biome.longitude + rng.uniform(-0.4, 0.4)
    zone = int((longitude + 180) // 6) + 1
    crs = f"EPSG:{32600 + zone if latitude >= 0 else 32700 + zone}"
    easting, northing = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    return crs, Affine(10, 0, easting - 5 * size, 0, -10, northing + 5 * size)


def make_world(root: str | os.PathLike[str], plan: WorldPlan, *, workers: int = 2) -> Path:
    """
    Write the sample world under *root* and return *root*; a world of the same plan and code is kept.

    The files appear all at once: an interrupted call leaves nothing that looks finished.
    """
    root = Path(root)
    wanted = {"plan": asdict(plan), "code": _runtime.code_digest("sample.world")}
    if _holds(root, wanted):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=root.parent, prefix=f"{root.name}.part-"))
    try:
        jobs = _jobs(plan)
        digest = hashlib.sha256("".join(_write_scenes(unfinished, plan, jobs, workers)).encode()).hexdigest()
        files = {folder.name: len(list(folder.rglob("*.tif"))) for folder in sorted(unfinished.iterdir())}
        record = {"synthetic": True, **wanted, "regions": _regions(jobs), "files": files, "sha256": digest}
        (unfinished / "world.json").write_text(json.dumps(record, indent=1) + "\n")
        unfinished.chmod(0o755)  # a temporary folder is closed to others
        # Another process may have made the same world meanwhile, and may be reading it.
        if not _holds(root, wanted):
            shutil.rmtree(root, ignore_errors=True)
            unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def sample_folder(seed: int) -> Path:
    """Return the folder of the sample world of a seed in the data folder; make it at first use (half a minute)."""
    root = _runtime.data_folder() / f"world-{seed}"
    with _runtime.lock(root.with_suffix(".lock")):  # several runs may need it at once
        return make_world(root, WorldPlan(seed=seed))


def read_world(root: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the record of a sample world: plan, regions of the evaluation patches, digest of all pixels."""
    record: dict[str, Any] = json.loads((Path(root) / "world.json").read_text())
    return record


def _holds(root: Path, wanted: dict[str, Any]) -> bool:
    """Return whether a complete world of that plan and code is there; its record is the last file written."""
    return (root / "world.json").exists() and read_world(root).items() >= wanted.items()


@dataclass(frozen=True)
class _Job:
    split: str  # train, validation or test
    number: int  # of the scene within its split
    biome: Biome
    season: str
    greenness: float


def _jobs(plan: WorldPlan) -> list[_Job]:
    jobs = []
    for number in range(plan.n_train):
        # Shifted by one per round, so that a biome appears in all four seasons.
        season, greenness = _SEASONS[(number + number // len(BIOMES)) % len(_SEASONS)]
        jobs.append(_Job("train", number, BIOMES[number % len(BIOMES)], season, greenness))
    evaluation = (("validation", VALIDATION_REGIONS, plan.n_validation), ("test", TEST_REGIONS, plan.n_test))
    for split, regions, n in evaluation:
        for number in range(n):
            jobs.append(_Job(split, number, regions[number % len(regions)], "ROIs0000", _EVALUATION_SEASON))
    return jobs


def _regions(jobs: list[_Job]) -> dict[str, dict[str, str]]:
    """Return the region of each evaluation patch by split and number, which the phase archives do not contain."""
    regions: dict[str, dict[str, str]] = {"validation": {}, "test": {}}
    for job in jobs:
        if job.split != "train":
            regions[job.split].update({str(4 * job.number + k): job.biome.name for k in range(4)})
    return regions


def _write_scenes(root: Path, plan: WorldPlan, jobs: list[_Job], workers: int) -> list[str]:
    """Write the scenes in threads: numpy and scipy do most of the work, without Python's lock."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(partial(_write_scene, root, plan), jobs))


def _write_scene(root: Path, plan: WorldPlan, job: _Job) -> str:
    """Make one scene, write its patches, and return the digest of its pixels."""
    stream = ("train", "validation", "test").index(job.split)
    # The scenes of one evaluation region share its signatures; each training scene is a region of its own.
    signature = job.number if job.split == "train" else _region_number(job.biome)
    rng = np.random.default_rng((plan.seed, stream, signature, 1))
    biome = replace(job.biome, size=plan.area_factor)
    chosen = {name: getattr(plan, name) for name in ("domain_shift", "label_noise", "label_confusion")}
    region = draw_region(rng, biome, season=job.greenness, **chosen)
    rng = np.random.default_rng((plan.seed, stream, job.number, 2))
    training = job.split == "train"
    scene = make_scene(rng, region, _TRAIN_SIZE if training else _EVALUATION_SIZE)
    (_write_training if training else _write_evaluation)(root, job, scene)
    arrays = (scene.s1, scene.s2, scene.lc, scene.truth)
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def _region_number(biome: Biome) -> int:
    return int.from_bytes(biome.name.encode()[:7], "big")


def _write_training(root: Path, job: _Job, scene: Scene) -> None:
    """Write the SEN12MS layout: 256 px patches at every 128 px, named <season>_<kind>_<scene>_p<patch>.tif."""
    starts = range(0, _TRAIN_SIZE - _PATCH + 1, _STRIDE)
    layers: dict[str, NDArray[Any]] = {
        "s1": scene.s1.astype(np.float32),
        "s2": scene.s2,
        "lc": scene.lc,
        "dfc": scene.truth[None],
    }
    for patch, (row, col) in enumerate(((row, col) for row in starts for col in starts), start=30):
        for kind, array in layers.items():
            top = root / ("truth" if kind == "dfc" else "sen12ms")
            path = top / job.season / f"{kind}_{job.number + 1}" / f"{job.season}_{kind}_{job.number + 1}_p{patch}.tif"
            window = array[:, row : row + _PATCH, col : col + _PATCH]
            _write(path, window, scene.crs, scene.transform @ Affine.translation(col, row))


def _write_evaluation(root: Path, job: _Job, scene: Scene) -> None:
    """Write the DFC2020 phase archives: four separate patches without georeference, S1 in float64."""
    suffix = "0" if job.split == "test" else "validation"
    layers: dict[str, NDArray[Any]] = {"s1": scene.s1, "s2": scene.s2, "lc": scene.lc, "dfc": scene.truth[None]}
    corners = [(row, col) for row in (0, _PATCH) for col in (0, _PATCH)]
    for patch, (row, col) in enumerate(corners, start=4 * job.number):
        for kind, array in layers.items():
            path = root / "dfc2020" / f"{kind}_{suffix}" / f"ROIs0000_{job.split}_{kind}_0_p{patch}.tif"
            _write(path, array[:, row : row + _PATCH, col : col + _PATCH], None, None)


def _write(path: Path, array: NDArray[Any], crs: str | None, transform: Affine | None, **options: Any) -> None:
    """Write a pixel-interleaved GeoTIFF; without options uncompressed and without nodata, as the real files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "dtype": array.dtype, "count": count, "height": height, "width": width, **options}
    with (
        GEOREFERENCE_OPTIONAL,
        rasterio.open(path, "w", **profile, crs=crs, transform=transform, interleave="pixel") as file,
    ):
        file.write(array)


@dataclass(frozen=True)
class _SampleScene:
    """Files of the sample scene; `truth` is the 10 m truth, for scoring alone."""

    s2: Path
    s1: Path
    coarse: Path
    clouds: Path
    truth: Path


def make_sample_scene(
    root: str | os.PathLike[str], seed: int = 0, *, side: int = 900, region: int = 1, weather: bool = True
) -> _SampleScene:
    """
    Write the sample scene of this seed under *root*, unless it is there (some seconds), and return its files.

    *side* is its size in pixels, *region* a number among `TEST_REGIONS`; *weather* adds the cloud and the swath's edge.
    """
    root = Path(root)
    files = _SampleScene(*(root / f"{name}.tif" for name in ("s2", "s1", "coarse", "clouds", "truth")))
    wanted = {"seed": seed, "side": side, "region": region, "weather": weather}
    with _runtime.lock(root.with_suffix(".lock")):
        record = root / "place.json"
        if not (record.exists() and json.loads(record.read_text()) == wanted):
            record.unlink(missing_ok=True)  # of another scene, whose files are about to be replaced
            _write_sample_scene(files, seed, side, region, weather)
            _runtime.write_atomic(record, json.dumps(wanted))
    return files


def _write_sample_scene(files: _SampleScene, seed: int, side: int, number: int, weather: bool) -> None:
    biome = TEST_REGIONS[number]
    rng = np.random.default_rng((seed, 2, _region_number(biome), 1))  # as the test scenes of the region in the world
    region = draw_region(rng, biome, season=_EVALUATION_SEASON, domain_shift=WorldPlan().domain_shift)
    scene = make_scene(np.random.default_rng((seed, 3, number, 2)), region, side)
    s2, cloud = scene.s2, np.zeros(scene.truth.shape, np.float32)
    if weather:
        s2, cloud = _under_weather(s2)
    codes, transform = modis_raster(scene.transform, scene.crs, scene.lc[0])
    options = {"tiled": True, "compress": "deflate"}
    for path, array in (
        (files.s2, s2),
        (files.s1, scene.s1.astype(np.float32)),
        (files.clouds, (cloud > 0.05).astype(np.uint8)[None]),
        (files.truth, scene.truth[None]),
    ):
        _write(path, array, scene.crs, scene.transform, **options)
    _write(files.coarse, codes[None], SINUSOIDAL, transform, nodata=IGNORE, **options)


def _under_weather(s2: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Add a cloud and the edge of the swath; returns S2 and the cloud's opacity 0..1."""
    rows, cols = s2.shape[1:]
    row, col = np.mgrid[:rows, :cols] / max(rows, cols)
    ragged = 0.02 * (np.sin(23 * row) + np.sin(31 * col + 1) + np.sin(17 * (row + col)))
    cloud = np.clip(4 * (1 - np.hypot(row - 0.24, 0.7 * (col - 0.62)) / 0.1 + 8 * ragged), 0, 1).astype(np.float32)
    white = np.full(13, 6500.0)
    white[B10] = 1200
    s2 = np.rint(s2 * (1 - cloud) + white[:, None, None] * cloud).astype(np.uint16)
    s2[:, col + 0.3 * row < 0.12] = 0
    return s2, cloud
