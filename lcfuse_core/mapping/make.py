"""
A map of any scene: from its files to a folder with the finished map, in one call that goes on where it was stopped.

    landcover.tif        classes, DFC2020 codes, 0 = none; with its colours, names, and a style for QGIS beside it
    confidence.tif       the highest probability, in steps of 0.004; 255 = none
    probabilities.tif    that of each class, if asked for
    landcover.json       what it was made from and by: inputs with their SHA-256, networks, plan, versions (STAC)

The key of a job is a digest of all that decides its pixels. A job that is finished is found, one that was killed goes
on, and one that somebody else is at is waited for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lcfuse_core import __version__, _runtime
from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.data.sample import world
from lcfuse_core.errors import ParameterError
from lcfuse_core.mapping.coarse import CoarseMap, open_coarse
from lcfuse_core.mapping.members import Member, choose, learn_at_home, plan_for
from lcfuse_core.mapping.scene import Scene, open_scene
from lcfuse_core.mapping.streaming import NOTHING, STEPS, Strip, strips
from lcfuse_core.mapping.windows import Tiling
from lcfuse_core.mapping.worklog import Worklog
from lcfuse_core.mapping.write import NAME, Layer, as_json, legend_tags, qml, stac_item, write_cog, write_whole
from lcfuse_core.methods.fusion import FusionPlan

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Inputs:
    """
    The files of a scene; see `rasters.open_scene` and `coarse.open_coarse`.

    datetime : when Sentinel-2 flew over, ISO 8601; empty: as the file names tell, if they do
    """

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
    How a scene is mapped, beside the members.

    plan : how members and coarse prior are brought together; None: the default of fusion
    window, overlap, margin, panel : pixels; see `windows.Tiling`
    probabilities : whether those of all classes are kept
    learn : whether the members first go on learning in this scene, from its coarse map; see `home.learn_at_home`
    learning_steps : of that; None: as many as `home` takes
    """

    plan: FusionPlan | None = None
    window: int = 512
    overlap: int = 64
    margin: int = 16
    panel: int = 11264
    probabilities: bool = False
    learn: bool = False
    learning_steps: int | None = None


@dataclass(frozen=True)
class Made:
    """
    A finished map.

    folder : where its files are
    item : the STAC item, as in `landcover.json`
    found : whether it was there already
    """

    folder: Path
    item: dict[str, Any]
    found: bool = False

    @property
    def classes(self) -> Path:
        """The class map."""
        return self.folder / f"{NAME}.tif"

    @property
    def confidence(self) -> Path:
        """The confidence."""
        return self.folder / "confidence.tif"

    @property
    def probabilities(self) -> Path:
        """Those of all classes, if they were asked for."""
        return self.folder / "probabilities.tif"

    @property
    def seen(self) -> float:
        """Share of the scene's pixels that have a class."""
        return float(self.item["properties"]["lcfuse:seen"])

    @property
    def areas(self) -> dict[str, int]:
        """Pixels of each class, by name."""
        return dict(self.item["properties"]["lcfuse:pixels"])


def make_map(
    inputs: Inputs,
    members: Sequence[Member],
    out: Source,
    options: MapOptions | None = None,
    *,
    progress: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Made:
    """
    Map the scene of *inputs* into the folder *out*.

    members : networks; those that fit the sensors of the scene are asked, see `members.choose`
    progress : a bar with the time left
    tell : called with what a reader should know: repairs, and how much of a map was there already

    Raises what `open_scene`, `open_coarse` and `members.choose` raise, before anything is written, and DiskError.
    """
    options, out = options or MapOptions(), Path(out)
    plan = options.plan or plan_for(inputs.coarse is not None, at_home=options.learn)
    if (plan.prior_power or options.learn) and inputs.coarse is None:
        found = "learning at home" if options.learn else "a prior power"
        do = "Give one, or set prior_power to 0 and learn nothing."
        raise ParameterError("plan", found=f"{found} without a coarse map", expected="a coarse map", do=do)
    with ExitStack() as stack:
        scene = stack.enter_context(open_scene(inputs.s2, inputs.s1, clouds=inputs.clouds, scl=inputs.scl))
        coarse = None
        if inputs.coarse is not None:
            coarse = stack.enter_context(open_coarse(inputs.coarse, scene.grid, inputs.legend))
        chosen = choose(members, scene.has_s1)
        if options.learn and coarse is not None:
            tell("learning from the coarse map of this scene")
            chosen = [learn_at_home(scene, coarse, m, out, steps=options.learning_steps) for m in chosen]
        tiling = Tiling(scene.grid.shape, options.window, options.overlap, options.margin, options.panel)
        files = [*scene.files, *([coarse.path] if coarse else [])]
        key = _key(files, inputs.legend, chosen, plan, tiling, options.probabilities)
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_runtime.lock(out / ".lock"))
        finished = _finished(out, key)
        if finished is not None:
            return finished
        for repair in scene.repairs:
            tell(repair)
        return _make(out, key, scene, coarse, chosen, plan, tiling, inputs, files, options, progress, tell)


def _make(
    out: Path,
    key: str,
    scene: Scene,
    coarse: CoarseMap | None,
    members: Sequence[Member],
    plan: FusionPlan,
    tiling: Tiling,
    inputs: Inputs,
    files: Sequence[Path],
    options: MapOptions,
    progress: bool,
    tell: Callable[[str], None],
) -> Made:
    """Make what is left of the map, write it out, and take the work away."""
    (out / f"{NAME}.json").unlink(missing_ok=True)
    bands = {NAME: 1, "confidence": 1} | ({"probabilities": len(SCORED)} if options.probabilities else {})
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(lambda: {path.name: sha256_of(path) for path in files})
        log = Worklog(out / ".work", key, scene.grid.shape, bands)
        try:
            if log.done:
                tell(f"going on: {len(log.done)} of {sum(1 for _ in tiling.units())} parts were there")
            _fill(log, scene, coarse, members, plan, tiling, options, progress)
            pixels, seen = _count(log)
        finally:
            log.close()
        paths = [write_cog(layer, scene.grid, out) for layer in _layers(log, bands, plan)]
        paths.append(write_whole(out / f"{NAME}.qml", qml()))
        properties = _properties(key, scene, members, plan, tiling, inputs, hashing.result())
        properties |= {"lcfuse:pixels": pixels, "lcfuse:seen": seen}
    assets = {path.stem if path.suffix == ".tif" else "style": path for path in paths}
    digests = {name: sha256_of(path) for name, path in assets.items()}
    name = re.sub(r"[^\w-]+", "_", scene.files[0].stem)
    item = stac_item(f"{name}-{key[:8]}", scene.grid, assets, properties, digests)
    write_whole(out / f"{NAME}.json", as_json(item))
    log.remove()
    return Made(out, item)


def _fill(
    log: Worklog,
    scene: Scene,
    coarse: CoarseMap | None,
    members: Sequence[Member],
    plan: FusionPlan,
    tiling: Tiling,
    options: MapOptions,
    progress: bool,
) -> None:
    """Make the parts that are not in the log yet."""
    due = [unit for unit in tiling.units() if unit.number not in log.done]
    posterior = coarse.posterior(scene.grid) if coarse is not None and plan.prior_power and due else None
    made = strips(
        scene, members, tiling, due, plan,
        coarse=coarse, posterior=posterior, keep_probabilities=options.probabilities,
    )  # fmt: skip
    # Closed whatever happens, as threads read from the scene: a full disk must not leave them to a file that closes.
    with closing(made), tqdm(total=_windows_of(tiling, due), unit="window", disable=not progress) as bar:
        for step in made:
            if not isinstance(step, Strip):
                bar.update(step)
                continue
            layers = {NAME: step.classes[None], "confidence": step.confidence[None]}
            if step.probabilities is not None:
                layers["probabilities"] = step.probabilities
            log.write(step.unit, layers)


def _windows_of(tiling: Tiling, units: Iterable[Any]) -> int:
    rows = {(unit.panel, row) for unit in units for row in range(unit.first, unit.last + 1)}
    return sum(len(tiling.columns_of(panel)) for panel, _ in rows)


def _count(log: Worklog) -> tuple[dict[str, int], float]:
    """Pixels of each class, and the share of pixels that have one."""
    content, counts = log.path(NAME), np.zeros(256, np.int64)
    with content.open("rb") as file:
        while block := file.read(1 << 24):
            counts += np.bincount(np.frombuffer(block, np.uint8), minlength=256)
    pixels = {DFC2020.name_of(code): int(counts[code]) for code in SCORED}
    return pixels, round(sum(pixels.values()) / int(counts.sum()), 6)


def _layers(log: Worklog, bands: dict[str, int], plan: FusionPlan) -> list[Layer]:
    made = {"SOFTWARE": f"lcfuse_core {__version__}", "PRIOR_POWER": f"{plan.prior_power:g}"}
    classes = Layer(
        NAME, log.path(NAME), ["land cover"], DFC2020.unknown,
        resampling="MODE", palette=True, tags=legend_tags() | made,
    )  # fmt: skip
    sure = Layer("confidence", log.path("confidence"), ["highest probability"], NOTHING, 1 / STEPS, tags=made)
    each = [DFC2020.name_of(code) for code in SCORED]
    parts = Layer("probabilities", log.path("probabilities"), each, NOTHING, 1 / STEPS, tags=made)
    return [layer for layer in (classes, sure, parts) if layer.name in bands]


def _properties(
    key: str,
    scene: Scene,
    members: Sequence[Member],
    plan: FusionPlan,
    tiling: Tiling,
    inputs: Inputs,
    hashes: dict[str, str],
) -> dict[str, Any]:
    """What the map was made from and by. Names of files without their folders: those are nobody's business."""
    networks = [
        {
            "name": m.name,
            "sha256": m.sha256,
            "network": m.run.plan.network,
            "inputs": list(m.inputs),
            "weight": m.weight,
        }
        for m in members
    ]
    return {
        "datetime": inputs.datetime or time_of(scene.files[0]),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lcfuse:key": key,
        "lcfuse:version": __version__,
        "lcfuse:commit": _runtime.commit(),
        "lcfuse:code": _runtime.code_digest(),
        "lcfuse:inputs": hashes,
        "lcfuse:repairs": list(scene.repairs),
        "lcfuse:members": networks,
        "lcfuse:fusion": asdict(plan),
        "lcfuse:legend": Path(inputs.legend).name if inputs.coarse is not None else None,
        "lcfuse:windows": {name: getattr(tiling, name) for name in ("window", "overlap", "margin")},
    }


def time_of(path: Path) -> str | None:
    """
    When a Sentinel-2 product was taken, as the names on its path tell; None when they do not.

    >>> time_of(Path("S2A_MSIL1C_20180502T102031_N0206_R065_T32UPU_20180502T122524.SAFE/x/T32UPU_B02.jp2"))
    '2018-05-02T10:20:31Z'
    """
    match = re.search(r"(?:MSIL1C|_T\d\d[A-Z]{3})_(\d{8}T\d{6})", str(path))
    if not match:
        return None
    return datetime.strptime(match[1], "%Y%m%dT%H%M%S").strftime("%Y-%m-%dT%H:%M:%SZ")


def _key(
    files: Sequence[Path],
    legend: str,
    members: Sequence[Member],
    plan: FusionPlan,
    tiling: Tiling,
    probabilities: bool,
) -> str:
    """Digest of all that decides the pixels of a map; files by place, size and time, as reading them takes long."""
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    networks = [(m.name, m.sha256, m.temperature, m.weight, asdict(m.run.plan)) for m in members]
    rules = Path(legend).read_text() if Path(legend).is_file() else legend
    parts = [stats, networks, rules, asdict(plan), asdict(tiling), probabilities, _runtime.code_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, key: str) -> Made | None:
    """The map in *out*, if it is whole and of this key."""
    try:
        item = json.loads((out / f"{NAME}.json").read_text())
        if item["properties"]["lcfuse:key"] != key:
            return None
        sizes = [(out / asset["href"]).stat().st_size == asset["file:size"] for asset in item["assets"].values()]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Made(out, item, found=True) if all(sizes) else None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chosen_inputs(parameters: Mapping[str, Any], data: Path) -> tuple[Inputs, Path | None]:
    """
    The scene that a chapter's parameters name, and no truth; or, without `s2_path`, the sample scene and its truth.

    data : folder that the sample scene of `seed` is kept in
    """
    if not parameters["s2_path"]:
        place = world.make_sample_scene(data / f"place-{parameters['seed']}", parameters["seed"])
        return Inputs((place.s2,), (place.s1,), place.coarse, clouds=place.clouds), place.truth
    s1 = (parameters["s1_path"],) if parameters["s1_path"] else ()
    return Inputs((parameters["s2_path"],), s1, parameters["coarse_path"] or None), None
