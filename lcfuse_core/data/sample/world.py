"""
The sample: a small synthetic world, written in the exact layouts of SEN12MS and DFC2020.

Stands in for: training scenes from many biomes and seasons, labelled by MODIS alone, and an evaluation set of other
regions, at another season, with a fine reference. What the pixels hold, and where that breaks down, is told in
`landscape` (the ground) and `sensors` (what is seen of it).
Breaks down: 24 scenes instead of 252, eight classes without Savanna and Snow/Ice, a reference without errors.

`<root>/sen12ms` training patches, `<root>/truth` their fine truth (for comparison only: no chapter trains on it without
saying so), `<root>/dfc2020` the evaluation patches, `<root>/world.json` what was made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning

from lcfuse_core import _runtime
from lcfuse_core.data.sample.landscape import Biome, Landscape, make_landscape
from lcfuse_core.data.sample.sensors import Region, draw_region, lccs_layers, see_modis, see_sentinel1, see_sentinel2
from lcfuse_core.errors import ParameterError

PATCH = 256
STRIDE = 128
MARGIN = 64
"""Pixels drawn beyond a scene on each side, so that no coarse cell is cut by the scene's edge."""

TRAIN_SIZE, EVALUATION_SIZE = 384, 512

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
SEASONS = (
    ("ROIs1158_spring", 0.3),
    ("ROIs1868_summer", 0.8),
    ("ROIs1970_fall", 0.0),
    ("ROIs2017_winter", -0.5),
)
EVALUATION_SEASON = -0.1


@dataclass(frozen=True)
class WorldPlan:
    """
    What to make.

    seed : everything follows from it
    n_train : training scenes of 384 x 384 px, four patches each, through the biomes and seasons in turn
    n_validation, n_test : evaluation scenes of 512 x 512 px, four patches each, through the regions in turn
    strangeness : how far a region's signatures depart from the mean, in logits; the same for training and
        evaluation regions. Set so that networks trained on other regions lose what real ones lose.
    """

    seed: int = 0
    n_train: int = 24
    n_validation: int = 4
    n_test: int = 12
    strangeness: float = 1.15

    def __post_init__(self) -> None:
        for name in ("n_train", "n_validation", "n_test"):
            if getattr(self, name) < 1:
                raise ParameterError(name, found=str(getattr(self, name)), expected="1 or more", do="Ask for a scene.")


@dataclass(frozen=True)
class Scene:
    """One scene as the sensors saw it; arrays share (H, W), and `truth` is what was planted."""

    s1: NDArray[np.float64]
    s2: NDArray[np.uint16]
    lc: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    crs: str
    transform: Affine


def make_scene(rng: np.random.Generator, region: Region, size: int) -> Scene:
    """Draw one scene of *size* x *size* px of 10 m in *region*."""
    full = size + 2 * MARGIN
    crs, transform = _place(rng, region.biome, full)
    land = make_landscape(rng, region.biome, (full, full))
    igbp = see_modis(rng, land.truth, transform, crs, region)
    inner = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
    land = Landscape(land.truth[inner], land.objects[inner])
    igbp = igbp[inner]
    return Scene(
        s1=see_sentinel1(rng, land, region),
        s2=see_sentinel2(rng, land, region),
        lc=np.concatenate([igbp[None], lccs_layers(igbp)]),
        truth=land.truth,
        crs=crs,
        transform=_corner(transform, MARGIN, MARGIN),
    )


def _place(rng: np.random.Generator, biome: Biome, size: int) -> tuple[str, Affine]:
    """A UTM zone and a north-up 10 m grid near the biome's place; origins are not multiples of 10 m, as in SEN12MS."""
    latitude, longitude = biome.latitude + rng.uniform(-0.4, 0.4), biome.longitude + rng.uniform(-0.4, 0.4)
    zone = int((longitude + 180) // 6) + 1
    crs = f"EPSG:{32600 + zone if latitude >= 0 else 32700 + zone}"
    easting, northing = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    return crs, Affine(10, 0, easting - 5 * size, 0, -10, northing + 5 * size)


def _corner(transform: Affine, row: int, col: int) -> Affine:
    """The transform of the part of a raster that begins at *row*, *col*."""
    t = transform
    return Affine(t.a, t.b, t.c + t.a * col + t.b * row, t.d, t.e, t.f + t.d * col + t.e * row)


def make_world(root: str | Path, plan: WorldPlan | None = None, *, workers: int = 2) -> Path:
    """
    Write the sample world under *root* and return *root*; a world of the same plan and code that is there is kept.

    The files appear all at once: an interrupted call leaves nothing that looks finished.
    """
    plan, root = plan or WorldPlan(), Path(root)
    wanted = {"plan": asdict(plan), "code": _code_digest()}
    if _holds(root, wanted):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    half_made = Path(tempfile.mkdtemp(dir=root.parent, prefix=f"{root.name}.part-"))
    try:
        jobs = _jobs(plan)
        digests = _write_scenes(half_made, plan, jobs, workers)
        record = {"synthetic": True, **wanted, "regions": _regions(jobs), "sha256": _digest(digests)}
        (half_made / "world.json").write_text(json.dumps(record, indent=1) + "\n")
        half_made.chmod(0o755)  # a temporary folder is closed to others
        # Another process may have made the same world meanwhile, and somebody may be reading it.
        if not _holds(root, wanted):
            shutil.rmtree(root, ignore_errors=True)
            half_made.rename(root)
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return root


def _holds(root: Path, wanted: dict[str, Any]) -> bool:
    """Whether a whole world of that plan and code lies there; its record is the last file that is written."""
    return (root / "world.json").exists() and read_world(root).items() >= wanted.items()


def _write_scenes(root: Path, plan: WorldPlan, jobs: list[_Job], workers: int) -> list[str]:
    write = partial(_write_scene, root, plan)
    if workers == 1:
        return list(map(write, jobs))
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(write, jobs))


def read_world(root: str | Path) -> dict[str, Any]:
    """The record of a sample world: plan, regions of the evaluation patches, digest of all pixels."""
    record: dict[str, Any] = json.loads((Path(root) / "world.json").read_text())
    return record


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
        # Shifted by one a round, so that a biome meets all four seasons.
        season, greenness = SEASONS[(number + number // len(BIOMES)) % len(SEASONS)]
        jobs.append(_Job("train", number, BIOMES[number % len(BIOMES)], season, greenness))
    for split, regions, n in (
        ("validation", VALIDATION_REGIONS, plan.n_validation),
        ("test", TEST_REGIONS, plan.n_test),
    ):
        for number in range(n):
            biome = regions[number % len(regions)]
            jobs.append(_Job(split, number, biome, "ROIs0000", EVALUATION_SEASON))
    return jobs


def _regions(jobs: list[_Job]) -> dict[str, dict[str, str]]:
    """Region of each evaluation patch, by split and patch number: the phase archives do not tell."""
    regions: dict[str, dict[str, str]] = {"validation": {}, "test": {}}
    for job in jobs:
        if job.split != "train":
            regions[job.split].update({str(4 * job.number + k): job.biome.name for k in range(4)})
    return regions


def _write_scene(root: Path, plan: WorldPlan, job: _Job) -> str:
    """Make one scene, write its patches, and return the digest of its pixels."""
    stream = ("train", "validation", "test").index(job.split)
    # The scenes of one evaluation region share its signatures; each training scene is a region of its own.
    place = job.number if job.split == "train" else job.biome.name
    signature = np.random.default_rng((plan.seed, stream, _number(place), 1))
    region = draw_region(signature, job.biome, season=job.greenness, strangeness=plan.strangeness)
    rng = np.random.default_rng((plan.seed, stream, job.number, 2))
    training = job.split == "train"
    scene = make_scene(rng, region, TRAIN_SIZE if training else EVALUATION_SIZE)
    (_write_training if training else _write_evaluation)(root, job, scene)
    arrays = (scene.s1, scene.s2, scene.lc, scene.truth)
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def _number(place: int | str) -> int:
    return place if isinstance(place, int) else int.from_bytes(place.encode()[:7], "big")


def _code_digest() -> str:
    """Of the modules that make the pixels: a world made by other code is another world."""
    return _runtime.code_digest("data.sample.world")


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _write_training(root: Path, job: _Job, scene: Scene) -> None:
    """SEN12MS layout: 256 px patches at every 128 px, named <season>_<kind>_<scene>_p<patch>.tif."""
    starts = range(0, TRAIN_SIZE - PATCH + 1, STRIDE)
    corners = [(row, col) for row in starts for col in starts]
    layers: dict[str, NDArray[Any]] = {
        "s1": scene.s1.astype(np.float32),
        "s2": scene.s2,
        "lc": scene.lc,
        "dfc": scene.truth[None],
    }
    for patch, (row, col) in enumerate(corners, start=30):
        for kind, array in layers.items():
            top = root / ("truth" if kind == "dfc" else "sen12ms")
            name = f"{job.season}_{kind}_{job.number + 1}_p{patch}.tif"
            window = array[:, row : row + PATCH, col : col + PATCH]
            corner = _corner(scene.transform, row, col)
            _write(top / job.season / f"{kind}_{job.number + 1}" / name, window, scene.crs, corner)


def _write_evaluation(root: Path, job: _Job, scene: Scene) -> None:
    """DFC2020 phase archives: four patches that do not overlap, without georeference, S1 in float64."""
    suffix = "0" if job.split == "test" else "validation"
    layers: dict[str, NDArray[Any]] = {"s1": scene.s1, "s2": scene.s2, "lc": scene.lc, "dfc": scene.truth[None]}
    corners = [(row, col) for row in (0, PATCH) for col in (0, PATCH)]
    for patch, (row, col) in enumerate(corners, start=4 * job.number):
        for kind, array in layers.items():
            path = root / "dfc2020" / f"{kind}_{suffix}" / f"ROIs0000_{job.split}_{kind}_0_p{patch}.tif"
            _write(path, array[:, row : row + PATCH, col : col + PATCH], None, None)


def _write(path: Path, array: NDArray[Any], crs: str | None, transform: Affine | None) -> None:
    """An uncompressed, pixel-interleaved GeoTIFF without nodata tag, as the real files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "dtype": array.dtype, "count": count, "height": height, "width": width}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, crs=crs, transform=transform, interleave="pixel") as file:
            file.write(array)
