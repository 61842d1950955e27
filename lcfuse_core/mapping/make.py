"""
Make the map of a scene: from its files to a folder, in one call.

    landcover.tif        classes, DFC2020 codes, 0 = none; with colours and names
    confidence.tif       the highest probability, in steps of 0.004; 255 = none
    probabilities.tif    the probability of each class, if asked for
    landcover.json       record of inputs with their SHA-256, networks, plan, versions, areas

The key of a job is a digest of all that determines its pixels. A finished job is found by its key; an interrupted one
starts again; a job that another process is working on is waited for.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from lcfuse_core import __version__, _runtime
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import DFC2020, IGNORE, SAVANNA_INDEX, SCORED
from lcfuse_core.data.sample import world
from lcfuse_core.data.source import N_S1, PatchStack
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.mapping.coarse import CoarseMap, open_coarse
from lcfuse_core.mapping.predict import Member, choose, load_member, plan_for, strips
from lcfuse_core.mapping.scene import Scene, Source, open_scene
from lcfuse_core.mapping.windows import Tiling
from lcfuse_core.mapping.write import LAYERS, create, disk_errors, write_cog
from lcfuse_core.methods import adapt
from lcfuse_core.methods.fusion import FusionPlan
from lcfuse_core.training import checkpoint

_MAX_WINDOWS, _WINDOW_PX = 64, 256
"""Adaptation uses at most so many windows of this side: 170 MB, and more than a thousand coarse cells."""

_MIN_VALID = 0.9
"""Fraction of a window's pixels that must be valid: others are not learnt from, but they distort the statistics."""


@dataclass(frozen=True)
class Inputs:
    """The files of a scene, see `open_scene` and `open_coarse`; *datetime* (ISO 8601) if no file name contains it."""

    s2: tuple[Source, ...]
    s1: tuple[Source, ...] = ()
    coarse: Source | None = None
    legend: str = "igbp"
    clouds: Source | None = None
    scl: Source | None = None
    datetime: str = ""


@dataclass(frozen=True)
class MapOptions:
    """
    Options of `make_map`.

    plan : fusion of members and coarse prior; None: `plan_for` the inputs
    window, overlap, margin : pixels; see `windows.Tiling`
    probabilities : whether to keep the probabilities of all classes
    learn : whether to adapt the members to the scene first, on its coarse map; see `adapt_to_scene`
    learning_steps : training steps of that; None: as many as `methods.adapt` takes
    """

    plan: FusionPlan | None = None
    window: int = 512
    overlap: int = 64
    margin: int = 16
    probabilities: bool = False
    learn: bool = False
    learning_steps: int | None = None


@dataclass(frozen=True)
class Made:
    """A finished map: its folder, the content of `landcover.json`, and whether it was there already."""

    folder: Path
    record: dict[str, Any]
    found: bool = False

    def path(self, name: str = "landcover") -> Path:
        """Return the file of a layer: landcover, confidence or, if it was kept, probabilities."""
        return self.folder / f"{name}.tif"


def make_map(
    inputs: Inputs,
    members: Sequence[Member],
    out: Source,
    options: MapOptions | None = None,
    *,
    progress: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Made:
    """
    Map the scene of *inputs* into the folder *out*.

    Of *members*, those are used that fit the sensors of the scene (`choose`). *progress* shows a bar; *report* gets
    messages on adaptation and repairs. Raises what `open_scene`, `open_coarse` and `choose` raise, before anything
    is written, and DiskError.
    """
    options, out = options or MapOptions(), Path(out)
    plan = options.plan or plan_for(inputs.coarse is not None, adapted=options.learn)
    if (plan.prior_power or options.learn) and inputs.coarse is None:
        found = f"{'adaptation' if options.learn else 'a prior power'} without a coarse map"
        do = "Give one, or set prior_power to 0 and do not adapt."
        raise ParameterError("plan", found=found, expected="a coarse map", do=do)
    with ExitStack() as stack:
        scene = stack.enter_context(open_scene(inputs.s2, inputs.s1, clouds=inputs.clouds, scl=inputs.scl))
        coarse = None
        if inputs.coarse is not None:
            coarse = stack.enter_context(open_coarse(inputs.coarse, scene.grid, inputs.legend))
        chosen = choose(members, scene.has_s1)
        tiling = Tiling(scene.grid.shape, options.window, options.overlap, options.margin)
        stack.enter_context(disk_errors(out))
        stack.enter_context(_runtime.lock(out / ".lock"))
        if options.learn and coarse is not None:
            report("adapting the networks to the coarse map of this scene")
            chosen = [adapt_to_scene(scene, coarse, m, out, steps=options.learning_steps) for m in chosen]
        job = _Job(inputs, options, scene, coarse, chosen, plan, tiling)
        key = job.key()
        finished = _finished(out, key)
        if finished is None:
            for repair in scene.repairs:
                report(repair)
            finished = Made(out, job.make(out, key, progress))
    return finished


@dataclass(frozen=True)
class _Job:
    """All that determines a map."""

    inputs: Inputs
    options: MapOptions
    scene: Scene
    coarse: CoarseMap | None
    members: Sequence[Member]
    plan: FusionPlan
    tiling: Tiling

    @property
    def files(self) -> list[Path]:
        return [*self.scene.files, *([self.coarse.path] if self.coarse else [])]

    def key(self) -> str:
        """Return a digest of all that determines the pixels; files by path, size and time, as reading them is slow."""
        legend = Path(self.inputs.legend)
        networks = [(m.name, m.digest, m.temperature, m.weight) for m in self.members]
        rules = legend.read_text() if legend.is_file() else self.inputs.legend
        return _digest(self.files, networks, rules, self.plan, self.tiling, self.options.probabilities, "mapping.make")

    def make(self, out: Path, key: str, progress: bool) -> dict[str, Any]:
        """Write all files of the map, the record last, and return it."""
        for part in (*out.glob(".part-*"), *out.glob(".*.part")):  # left by a process that was killed
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        for name in ("landcover.json", "probabilities.tif"):
            (out / name).unlink(missing_ok=True)
        names = [name for name in LAYERS if name != "probabilities" or self.options.probabilities]
        tags = {"SOFTWARE": f"lcfuse_core {__version__}", "PRIOR_POWER": f"{self.plan.prior_power:g}"}
        counts, crc = np.zeros(256, np.int64), dict.fromkeys(names, 0)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as folder, ThreadPoolExecutor(1) as pool:
            hashes = pool.submit(lambda: [{"name": path.name, "sha256": _sha256(path)} for path in self.files])
            raw = {name: Path(folder) / f"{name}.tif" for name in names}
            with ExitStack() as stack:
                files = {n: stack.enter_context(create(raw[n], LAYERS[n], self.scene.grid, tags)) for n in names}
                made = strips(
                    self.scene, self.members, self.tiling, self.plan,
                    coarse=self.coarse, layers=names, progress=progress,
                )  # fmt: skip
                # Closed before the scene, whatever happens: its threads read from the scene's files.
                for rows, strip in stack.enter_context(closing(made)):
                    for name, pixels in strip.items():
                        files[name].write(pixels, window=Window.from_slices(rows, (0, self.tiling.shape[1])))
                        crc[name] = zlib.crc32(pixels.data, crc[name])
                    counts += np.bincount(strip["landcover"].ravel(), minlength=256)
            parts = [self.tiling.finished(i) for i in range(len(self.tiling.rows))]
            for name in names:
                write_cog(raw[name], out / f"{name}.tif", LAYERS[name], parts, crc[name])
            pixels_by_class = {DFC2020.name_of(code): int(counts[code]) for code in SCORED}
            record = {"key": key} | self.describe() | {"inputs": hashes.result(), "pixels": pixels_by_class}
        record["valid_fraction"] = round(sum(pixels_by_class.values()) / int(counts.sum()), 6)
        paths = [out / f"{name}.tif" for name in names]
        record["files"] = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in paths}
        _runtime.write_atomic(out / "landcover.json", json.dumps(record, indent=1) + "\n")
        return record

    def describe(self) -> dict[str, Any]:
        """Return the part of the record that is known beforehand; names of files are without their folders."""
        grid = self.scene.grid
        networks = [
            {"name": m.name, "sha256": m.digest, "network": m.run.plan.network, "inputs": list(m.run.plan.inputs),
             "weight": m.weight, "temperature": m.temperature}
            for m in self.members
        ]  # fmt: skip
        return {
            "datetime": self.inputs.datetime or _acquired(self.scene.files[0]),
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "version": __version__,
            "commit": _runtime.commit(),
            "crs": None if grid.crs is None else grid.crs.to_string(),
            "transform": list(grid.affine)[:6],
            "shape": list(grid.shape),
            "repairs": list(self.scene.repairs),
            "members": networks,
            "fusion": asdict(self.plan),
            "legend": Path(self.inputs.legend).name if self.coarse else None,
            "windows": {name: getattr(self.tiling, name) for name in ("window", "overlap", "margin")},
        }


def _acquired(path: Path) -> str | None:
    """
    Return the acquisition time in the names of a Sentinel-2 product, None if they have none.

    >>> _acquired(Path("S2A_MSIL1C_20180502T102031_N0206_R065_T32UPU_20180502T122524.SAFE/x/T32UPU_B02.jp2"))
    '2018-05-02T10:20:31Z'
    """
    match = re.search(r"(?:MSIL1C|_T\d\d[A-Z]{3})_(\d{8}T\d{6})", str(path))
    return match and datetime.strptime(match[1], "%Y%m%dT%H%M%S").strftime("%Y-%m-%dT%H:%M:%SZ")


def _digest(files: Sequence[Path], *parts: object) -> str:
    """Return the SHA-256 of files (by path, size and time), of values, and of the code of the last of them."""
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    code = _runtime.code_digest(str(parts[-1]))
    return hashlib.sha256(repr((stats, parts, code)).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(out: Path, key: str) -> Made | None:
    """Return the map in *out*, if it is complete and of this key."""
    try:
        record = json.loads((out / "landcover.json").read_text())
        complete = all((out / name).stat().st_size == file["bytes"] for name, file in record["files"].items())
        return Made(out, record, found=True) if complete and record["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def chosen_inputs(parameters: Mapping[str, Any], data: Path) -> tuple[Inputs, Path | None]:
    """
    Return the inputs that a chapter's parameters name, or, without `s2_path`, the sample scene and its reference.

    data : folder in which the sample scene of `seed` is kept
    """
    if not parameters["s2_path"]:
        place = world.make_sample_scene(data / f"place-{parameters['seed']}", parameters["seed"])
        return Inputs((place.s2,), (place.s1,), place.coarse, clouds=place.clouds), place.truth
    s1 = (parameters["s1_path"],) if parameters["s1_path"] else ()
    return Inputs((parameters["s2_path"],), s1, parameters["coarse_path"] or None), None


def adapt_to_scene(
    scene: Scene, coarse: CoarseMap, member: Member, folder: Source, *, steps: int | None = None
) -> Member:
    """
    Return a copy of *member* that was trained further on windows of *scene* with their coarse labels.

    The same scene, map and member find the checkpoint that is kept in *folder*. Without *steps*, `methods.adapt`
    determines their number. Raises DataError if no window is clear enough and labelled with one of the eight classes.
    """
    plan = adapt.adaptation_plan(member.run.plan)
    if steps is not None:
        plan = adapt.adaptation_plan(member.run.plan, steps=steps, report_every=steps)
    key = _digest([*scene.files, coarse.path], member.digest, plan, "methods.adapt")
    path = Path(folder) / f"adapted-{key[:16]}.safetensors"
    if not path.exists():
        stack = training_windows(scene, coarse, crop=plan.crop, seed=plan.seed)
        checkpoint.save_checkpoint(adapt.adapted(member.run, stack, plan), path)
    return load_member(path)


def training_windows(scene: Scene, coarse: CoarseMap, *, crop: int, seed: int) -> PatchStack:
    """
    Return up to 64 random, disjoint windows of *scene* with labels 0..7 (255: not valid, unlabelled or Savanna).

    crop : side of training crops; windows of a scene smaller than 256 px are smaller, down to it
    """
    side = min(_WINDOW_PX, *scene.grid.shape)
    if side < crop:
        found, expected = f"{scene.grid.shape} pixels", f"{crop} per side"
        raise DataError(scene.files[0], found=found, expected=expected, do="Map it without adaptation.")
    rows, cols = scene.grid.shape
    corners = [(row, col) for row in range(0, rows - side + 1, side) for col in range(0, cols - side + 1, side)]
    found_windows = []
    for number in np.random.default_rng(seed).permutation(len(corners)):
        row, col = corners[number]
        window = slice(row, row + side), slice(col, col + side)
        labels, valid = coarse.labels(*window), scene.read(*window).valid
        if valid.mean() >= _MIN_VALID and (labels[valid] < SAVANNA_INDEX).any():
            found_windows.append(window)
        if len(found_windows) == _MAX_WINDOWS:
            break
    if not found_windows:
        do = "Give the map of this area, or map without adaptation."
        expected = "one that is clear and has a coarse label"
        raise DataError(scene.files[0], found="no window for training", expected=expected, do=do)
    stack = PatchStack.empty(len(found_windows), side, side)
    for window in found_windows:
        part, labels = scene.read(*window), coarse.labels(*window)
        row, col = (pixels.start for pixels in window)
        affine = scene.grid.affine @ scene.grid.affine.translation(col, row)
        stack.put(
            f"row {row}, column {col}",
            part.s2,
            np.zeros((N_S1, side, side), np.float32) if part.s1 is None else part.s1,
            np.where(part.valid & (labels < SAVANNA_INDEX), labels, np.uint8(IGNORE)),
            cell_ids(affine, str(scene.grid.crs), labels.shape)[0],
        )
    return stack
