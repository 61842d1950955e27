"""
Make the map of a scene: from its files to a folder, in one call.

    landcover.tif        classes, DFC2020 codes, 0 = none; with colours and names
    confidence.tif       the highest probability, in steps of 0.004; 255 = none
    probabilities.tif    the probability of each class, if asked for
    landcover.json       record of inputs and products with their SHA-256, members, training, fusion, versions, areas
    trained-.../         the network that was trained on the coarse labels of the scene, if any

A finished map is found if the content of its inputs and products is that of the record and nothing else that decides
its pixels has changed. Otherwise it is made again, and replaces the earlier one when it is complete and has been read
back. An interrupted training continues; a folder that another process is working on is waited for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from lcfuse_core import __version__, _runtime
from lcfuse_core.data.bands import check_channels
from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.data.rasters import GEOREFERENCE_OPTIONAL, open_raster
from lcfuse_core.download.archives import sha256_of
from lcfuse_core.errors import DiskError, LcfuseError, ParameterError
from lcfuse_core.mapping.coarse import open_coarse
from lcfuse_core.mapping.learn import train_on_scene
from lcfuse_core.mapping.predict import LAYERS, STEPS, Member, Network, Tiling, choose, strips
from lcfuse_core.mapping.scene import Grid, Source, open_scene
from lcfuse_core.methods.fusion import FusionPlan
from lcfuse_core.sample import world

_PRIOR_POWER = 0.6
"""
Exponent of the coarse prior for networks trained in other regions, chosen on sample worlds of seeds 100 and 101.
Members that were trained on the labels of the scene already contain them, and lose by a prior (chapter *fusion*).
"""


@dataclass(frozen=True)
class Inputs:
    """The files of a scene, see `open_scene` and `open_coarse`."""

    s2: tuple[Source, ...]
    s1: tuple[Source, ...] = ()
    coarse: Source | None = None
    legend: str | None = None
    clouds: Source | None = None
    scl: Source | None = None
    band: int | str | None = None


@dataclass(frozen=True)
class MapOptions:
    """
    Options of `make_map`.

    Parameters
    ----------
    adapt : bool
        Whether to fine-tune given networks on the coarse labels of the scene, and to add a random forest.
    steps : int, optional
        Training steps on the scene; by default 900, or fewer with few coarse cells.
    prior_power : float, optional
        Exponent of the coarse prior; by default 0.6, or 0 without a coarse map or after training on it.
    symmetries : int
        1, 2, 4 or 8 flips and rotations whose predictions are averaged (TTA).
    window : int
        Side of a window, px; overlap and margin are an eighth and a 32nd of it (see `predict.Tiling`).
    probabilities : bool
        Whether to keep the probabilities of all classes.
    """

    adapt: bool = False
    steps: int | None = None
    prior_power: float | None = None
    symmetries: int = 1
    window: int = 512
    probabilities: bool = False


@dataclass(frozen=True)
class _Made:
    """A finished map: its folder, the content of `landcover.json`, and whether it was there already."""

    folder: Path
    record: dict[str, Any]
    found: bool = False

    def path(self, name: str = "landcover") -> Path:
        """Return the file of a layer: landcover, confidence or, if it was kept, probabilities."""
        return self.folder / f"{name}.tif"

    def summary(self) -> str:
        """Return where the map is and the areas of its classes, in lines to print."""
        valid, found = self.record["valid_fraction"], " (found)" if self.found else ""
        areas = (f"\n  {name:<15} {pixels / 100:12,.1f} ha" for name, pixels in self.record["pixels"].items())
        return f"{self.path()}{found}: {100 * valid:.1f} % of the scene has a class" + "".join(areas)


def make_map(
    inputs: Inputs,
    networks: Sequence[Network],
    out: Source,
    options: MapOptions | None = None,
    *,
    progress: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> _Made:
    """
    Map the scene of *inputs* into the folder *out*.

    Parameters
    ----------
    inputs : Inputs
        Files of the scene.
    networks : sequence of Network
        Those that fit the sensors of the scene are used (`choose`). Without any, a network and a random forest are
        trained on the coarse labels of the scene, and their probabilities averaged: the default fusion of the book,
        which has a third member where the scene has few coarse cells (`learn.train_on_scene`).
    out : path
        Folder of the map.
    options : MapOptions, optional
        See there.
    progress : bool
        Whether to show bars.
    report : callable
        Gets messages on training and repairs.

    Raises
    ------
    ParameterError
        If training or a prior needs a coarse map and there is none.
    DataError, GridError, LegendError, MissingDataError
        See `open_scene`, `open_coarse` and `choose`; nothing has been written then.
    DiskError
        If the folder cannot be written; an earlier map stays.
    """
    options, out = options or MapOptions(), Path(out)
    learns = options.adapt or not networks
    if inputs.coarse is None and (learns or options.prior_power):
        found = "no coarse map and no network" if not networks else "no coarse map"
        do = "Give --coarse MAP, such as MCD12Q1, to train on the scene, or --model CHECKPOINT alone."
        raise ParameterError("map", found=found, expected="what the map is to be made from", do=do)
    power = options.prior_power
    if power is None:
        power = 0.0 if learns or inputs.coarse is None else _PRIOR_POWER
    plan = FusionPlan(symmetries=options.symmetries, prior_power=power)
    with ExitStack() as stack:
        scene = stack.enter_context(open_scene(inputs.s2, inputs.s1, clouds=inputs.clouds, scl=inputs.scl))
        coarse = None
        if inputs.coarse is not None:
            coarse = stack.enter_context(open_coarse(inputs.coarse, scene.grid, inputs.legend, band=inputs.band))
        chosen = choose(networks, scene.has_s1)
        for member in chosen:
            check_channels(scene.files[0], scene.channels, member.run.statistics, member.run.plan.inputs)
        tiling = Tiling(scene.grid.shape, options.window, options.window // 8, options.window // 32)
        legend = Path(inputs.legend or "igbp")
        rules = (legend.read_bytes() if legend.is_file() else legend.name), inputs.band
        roles = [len(scene.files), *(bool(given) for given in (inputs.s1, inputs.clouds, inputs.scl, coarse))]
        digests = [member.digest for member in chosen]
        decided = (digests, learns, options.steps, rules, roles, plan, tiling, options.probabilities)
        key = hashlib.sha256(repr((decided, _runtime.code_digest("mapping.make"))).encode()).hexdigest()
        stack.enter_context(_disk_errors(out))
        stack.enter_context(_runtime.lock(out / ".lock"))
        files = [*scene.files, *([coarse.path] if coarse else [])]
        products = {(out / f"{name}.tif").resolve() for name in LAYERS}
        if lost := [path for path in files if path.resolve() in products]:
            do = "Choose another --out: its products would replace the file."
            raise ParameterError(out, found=f"the input {lost[0].name} in it", expected="another folder", do=do)
        if made := _found(out, key, files):
            return made
        repairs = [*scene.repairs, *(coarse.repairs if coarse else ())]
        for repair in repairs:
            report(repair)
        members: Sequence[Member] = chosen
        training = None
        if learns and coarse is not None:
            report("training a network and a random forest on the coarse map of this scene")
            members, training = train_on_scene(
                scene, coarse, chosen, out, steps=options.steps, progress=progress, report=report
            )
        crs, total = scene.grid.crs, sum(member.weight for member in members)
        record = {
            "key": key,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "version": __version__,
            "commit": _runtime.commit(),
            "crs": None if crs is None else crs.to_string(),
            "transform": list(scene.grid.affine)[:6],
            "shape": list(scene.grid.shape),
            "repairs": repairs,
            "members": [{"name": m.name, "weight": round(m.weight / total, 4)} | _network(m) for m in members],
            "training": training,
            "fusion": asdict(plan),
            "windows": {name: getattr(tiling, name) for name in ("window", "overlap", "margin")},
            "legend": coarse and legend.name,
        }
        names = [name for name in LAYERS if name != "probabilities" or options.probabilities]
        # Closed before the scene, whatever happens: its threads read from the scene's files.
        map_strips = closing(strips(scene, members, tiling, plan, coarse=coarse, layers=names, progress=progress))
        _write(out, names, stack.enter_context(map_strips), scene.grid, record, files)
        return _Made(out, record)


def _network(member: Member) -> dict[str, Any]:
    """Return what the record holds of a network."""
    if not isinstance(member, Network):
        return {}
    plan = member.run.plan
    return {"sha256": member.digest, "network": plan.network, "inputs": list(plan.inputs)}


def _write(
    out: Path,
    names: Sequence[str],
    made: Iterable[tuple[slice, dict[str, NDArray[np.uint8]]]],
    grid: Grid,
    record: dict[str, Any],
    inputs: Sequence[Path],
) -> None:
    """Write all layers of a map and its record under temporary names, then rename them; complete the record."""
    for part in (*out.glob(".part-*"), *out.glob(".*.part")):  # left by a process that was killed
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    with ExitStack() as stack:
        # Renamed in the reverse order, the record last.
        files = ["landcover.json", *(f"{name}.tif" for name in names)]
        parts = {name: stack.enter_context(_runtime.atomic_path(out / name)) for name in files}
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".part-", dir=out))
        hashes = stack.enter_context(ThreadPoolExecutor(1)).submit(_hashes, inputs)
        raw = {name: Path(folder) / f"{name}.tif" for name in names}
        tags = {"SOFTWARE": f"lcfuse_core {__version__}", "PRIOR_POWER": f"{record['fusion']['prior_power']:g}"}
        counts, written, crc = _write_strips(raw, made, grid, tags)
        for name in names:
            _write_cog(raw[name], parts[f"{name}.tif"], name, written, crc[name])
        record["inputs"] = hashes.result()
        record["pixels"] = {DFC2020.name_of(code): int(counts[code]) for code in SCORED}
        record["valid_fraction"] = round(sum(record["pixels"].values()) / int(counts.sum()), 6)
        record["files"] = {name: sha256_of(parts[name]) for name in files[1:]}
        record["sha256"] = _digest(record)
        parts["landcover.json"].write_text(json.dumps(record, indent=1) + "\n")
        # Products of an earlier map must never lie beside those of this one, also if the renaming is interrupted.
        for name in ("landcover.json", *(f"{name}.tif" for name in LAYERS)):
            (out / name).unlink(missing_ok=True)


def _write_strips(
    raw: Mapping[str, Path],
    made: Iterable[tuple[slice, dict[str, NDArray[np.uint8]]]],
    grid: Grid,
    tags: dict[str, str],
) -> tuple[NDArray[np.int64], list[slice], dict[str, int]]:
    """Write the strips of a map to plain files; return pixels by code, the rows of each strip, and CRC-32 by layer."""
    counts, written, crc = np.zeros(256, np.int64), [], dict.fromkeys(raw, 0)
    with ExitStack() as stack:
        rasters = {name: stack.enter_context(_create(raw[name], name, grid, tags)) for name in raw}
        for rows, strip in made:
            for name, pixels in strip.items():
                rasters[name].write(pixels, window=Window.from_slices(rows, (0, grid.shape[1])))
                crc[name] = zlib.crc32(pixels.data, crc[name])
            counts += np.bincount(strip["landcover"].ravel(), minlength=256)
            written.append(rows)
    return counts, written, crc


def _create(path: Path, name: str, grid: Grid, tags: Mapping[str, str]) -> Any:
    """Open a new GeoTIFF for writing, with the names, colours, nodata value and tags of a layer."""
    layer, (rows, cols) = LAYERS[name], grid.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": len(layer.bands), "height": rows, "width": cols}
    profile |= {"nodata": layer.nodata, "crs": grid.crs, "transform": grid.transform, "BIGTIFF": "IF_SAFER"}
    with GEOREFERENCE_OPTIONAL:
        raster = rasterio.open(path, "w", **profile)
    raster.descriptions = tuple(layer.bands)
    if layer.is_codes:
        raster.write_colormap(1, {code: DFC2020.rgba(code) for code in range(256)})
        names = {f"CLASS_{code}": DFC2020.name_of(code) for code in DFC2020.codes}
        raster.update_tags(LEGEND=DFC2020.name, **names)
    else:
        raster.colorinterp = [ColorInterp.gray] * len(layer.bands)
        raster.scales = [1 / STEPS] * len(layer.bands)
    raster.update_tags(**tags)
    return raster


def _write_cog(source: Path, path: Path, name: str, written: Sequence[slice], crc: int) -> None:
    """
    Copy a GeoTIFF of `_create` to a Cloud-Optimised GeoTIFF: tiles of 512 px, deflated, with overviews.

    Raises OSError if the CRC-32 of the pixels of *path*, read by the rows *written*, is not *crc*, or if an overview
    cannot be read.
    """
    is_codes = LAYERS[name].is_codes
    options = {
        "COMPRESS": "DEFLATE",
        "LEVEL": "6" if is_codes else "1",  # probabilities are noise: more effort gains nothing
        "BLOCKSIZE": "512",
        "OVERVIEW_RESAMPLING": "MODE" if is_codes else "AVERAGE",
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "2",
    }
    with rasterio.Env(GDAL_PAM_ENABLED="NO"):
        rasterio.shutil.copy(str(source), str(path), driver="COG", **options)
    found = 0
    with open_raster(path) as raster:
        for rows in written:
            found = zlib.crc32(raster.read(window=Window.from_slices(rows, (0, raster.width))), found)
        n_overviews = len(raster.overviews(1))
    for level in range(n_overviews):
        with rasterio.open(path, driver="GTiff", OVERVIEW_LEVEL=level) as raster:
            for _, window in raster.block_windows(1):
                raster.read(window=window)
    if found != crc:
        raise OSError("the pixels read back differ from those written")


def _digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record, without the field that holds it."""
    text = json.dumps({name: value for name, value in record.items() if name != "sha256"})
    return hashlib.sha256(text.encode()).hexdigest()


def _hashes(files: Sequence[Path]) -> list[dict[str, str]]:
    return [{"name": path.name, "sha256": sha256_of(path)} for path in files]


def _found(out: Path, key: str, files: Sequence[Path]) -> _Made | None:
    """Return the map in *out*, if it is of this key, and the content of its inputs and products is that recorded."""
    try:
        record = json.loads((out / "landcover.json").read_text())
        same = record["key"] == key and record["sha256"] == _digest(record) and record["inputs"] == _hashes(files)
        whole = same and all(sha256_of(out / name) == recorded for name, recorded in record["files"].items())
        return _Made(out, record, found=True) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # no record, or a damaged one
        return None


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk or of GDAL into a DiskError."""
    _runtime.check_output(path)
    try:
        yield
    except LcfuseError:
        raise
    except (RasterioError, CPLE_BaseError, OSError) as error:
        found = getattr(error, "strerror", None) or str(error)
        do = "Free space or choose another folder, and run it again; an earlier map is untouched."
        raise DiskError(path, found=found, expected="to write the map", do=do) from error


def chosen_inputs(parameters: Mapping[str, Any], data: Path) -> tuple[Inputs, Path | None]:
    """
    Return the inputs that a chapter's parameters name, or, without `s2_path`, the sample scene and its reference.

    *data* is the folder in which the sample scene of `seed` is kept.
    """
    if not parameters["s2_path"]:
        place = world.make_sample_scene(data / f"place-{parameters['seed']}", parameters["seed"])
        return Inputs((place.s2,), (place.s1,), place.coarse, clouds=place.clouds), place.truth
    s1 = (parameters["s1_path"],) if parameters["s1_path"] else ()
    return Inputs((parameters["s2_path"],), s1, parameters["coarse_path"] or None), None
