"""
How fast training samples come from packed scenes, and from the patch files as others read them.

    python benchmarks/loading.py [--size 2048] [--rounds 7] [--out loading.json]
    python benchmarks/loading.py --busy [--size 768] [--out loading.json]

One scene of the sample world is written as SEN12MS writes it (patches of 256 px with half overlap) and packed; then
each way of loading draws samples in turn, round after round, so that all meet the same machine. Rates are medians of
the rounds. "warm": the files are in the page cache. "cold" (Linux): they are dropped from it before each turn, which is
then 16 samples; a disk of a virtual machine may still have them in its host's memory.

Then every store that was a candidate holds the same scene, and gives random windows of S2, S1 and the IGBP labels.
GDAL's own cache is kept small: of a data set of 100 GB and more it would hold next to nothing.

On a busy machine, `--busy` compares only the ways of reading patch files, in the processor time of this process, and
adds the figures to the JSON file.

The two peers are written here from their descriptions; neither is installed or copied:
  torchgeo    `SEN12MS.__getitem__`: three whole files, S2 to int32, joined to one float tensor, bands selected
  baseline    the official DFC2020 baseline: three whole files, S2 and S1 to float32, clipped, scaled, joined
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from lcfuse_core import _runtime
from lcfuse_core.data import packing, patches
from lcfuse_core.data.source import normalise
from lcfuse_core.data.streamed import open_source
from lcfuse_core.sample import world
from lcfuse_core.sample.sensors import draw_region
from stores import STORES

Draw = Callable[[int], Any]
"""Loads that many random samples."""


def main() -> None:
    """Make, pack, measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="side of the scene in pixels, a multiple of 128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a way of loading has in a round")
    parser.add_argument("--busy", action="store_true", help="only reading of files, in processor time")
    parser.add_argument("--folder", type=Path, help="where to write the scene (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["GDAL_CACHEMAX"] = "16"  # MB
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # stores hold pixels alone
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measured = from_files if options.busy else measure
        result = measured(Path(folder), options.size, options.rounds, options.seconds)
    if options.busy and options.out and options.out.exists():
        result = json.loads(options.out.read_text()) | result
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(root: Path, size: int, rounds: int, seconds: float) -> dict[str, Any]:
    """All figures."""
    scene = make_scene(size)
    table = write_patches(root / "data", scene)
    began = time.perf_counter()
    packing.pack(table, root / "packs")
    packed_in = time.perf_counter() - began
    bytes_of_files = sum(os.path.getsize(path) for kind in ("s1", "s2", "lc") for path in table[kind])
    bytes_packed = folder_size(root / "packs")
    return {
        "scene": {"size": size, "patches": len(table), "bytes of the files": bytes_of_files},
        "packed": {
            "bytes": bytes_packed,
            "share of the files": round(bytes_packed / bytes_of_files, 4),
            "seconds": round(packed_in, 1),
            "patches a second": round(len(table) / packed_in, 1),
        },
        "samples a second": loading(root, table, rounds, seconds),
        "stores": stores(root, scene, rounds, seconds),
        "made on": {**_runtime.machine(), "cores": os.cpu_count(), "load": os.getloadavg(), "rounds": rounds},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "rasterio": rasterio.__version__,
            "gdal": rasterio.__gdal_version__,
        },
    }


def from_files(root: Path, size: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Samples a second of processor time of the ways that read patch files."""
    table, result = write_patches(root / "data", make_scene(size)), {}
    for side in (256, 128, 64):
        files = Files(table, np.random.default_rng(0))
        ways = {
            "torchgeo": lambda s=side, f=files: torchgeo_way(f, s),
            "rasterio windows": lambda s=side, f=files: window_way(f, s),
            "files": lambda s=side: own_way(root / "data", s),
            "files, with cells": lambda s=side: own_way(root / "data", s, cells=True),
        }
        found = rates(ways, None, rounds, seconds, time.process_time)
        against = {f"{own} / torchgeo": round(found[own] / found["torchgeo"], 2) for own in list(ways)[2:]}
        result[f"{side} px"] = {**found, **against}
    about = {"patches": len(table), "rounds": rounds, "load": os.getloadavg(), **_runtime.machine()}
    return {"samples a second of processor time, from files, warm": {**result, "made on": about}}


def make_scene(size: int) -> world.Scene:
    """One scene of the sample world, seed 0."""
    region = draw_region(np.random.default_rng(0), world.BIOMES[0], season=0.3, domain_shift=1.0)
    return world.make_scene(np.random.default_rng(1), region, size)


def write_patches(root: Path, scene: world.Scene) -> pd.DataFrame:
    """Patches of 256 px at every 128 px, uncompressed and pixel-interleaved, as SEN12MS has them."""
    layers = {"s1": scene.s1.astype(np.float32), "s2": scene.s2, "lc": scene.lc}
    starts = range(0, scene.truth.shape[0] - 255, 128)
    for number, (row, col) in enumerate((row, col) for row in starts for col in starts):
        for kind, array in layers.items():
            path = root / f"ROIs1158_spring/{kind}_1/ROIs1158_spring_{kind}_1_p{number}.tif"
            write_tif(
                path, array[:, row : row + 256, col : col + 256], scene, scene.transform @ Affine.translation(col, row)
            )
    return patches.complete(patches.index(root))


def write_tif(path: Path, array: NDArray[Any], scene: world.Scene, transform: Affine) -> None:
    """One patch file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    with rasterio.open(
        path, "w", driver="GTiff", **profile, crs=scene.crs, transform=transform, interleave="pixel"
    ) as file:
        file.write(array)


# Ways of loading ----------------------------------------------------------------------------------


@dataclass
class Files:
    """Random patches from their files."""

    table: pd.DataFrame
    rng: np.random.Generator

    def rows(self, n: int) -> Iterator[Any]:
        """Rows of the index."""
        for number in self.rng.integers(len(self.table), size=n):
            yield self.table.iloc[number]

    def crop(self, size: int) -> tuple[int, int]:
        """Corner of a crop in a patch."""
        row, col = self.rng.integers(0, 257 - size, 2)
        return int(row), int(col)


def torchgeo_way(files: Files, size: int) -> Draw:
    """Three whole files; a crop is cut afterwards, as a random crop among its transforms does."""

    def read(path: str) -> torch.Tensor:
        with rasterio.open(path) as file:
            array = file.read()
        return torch.from_numpy(array.astype(np.int32) if array.dtype == np.uint16 else array)

    bands = torch.arange(15)

    def draw(n: int) -> None:
        for row in files.rows(n):
            mask = read(row.lc).long()[0]
            image = torch.index_select(torch.cat([read(row.s1), read(row.s2)]), 0, bands)
            top, left = files.crop(size)
            part = np.s_[..., top : top + size, left : left + size]
            assert image[part].shape[1:] == mask[part].shape

    return draw


def baseline_way(files: Files, size: int, *, keep: bool = False) -> Draw:
    """Three whole files, scaled for its network; a crop is cut afterwards, and handed over if asked to *keep* it."""
    classes = np.array([0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10])

    def draw(n: int) -> Any:
        kept = []
        for row in files.rows(n):
            with rasterio.open(row.s2) as file:
                s2 = np.clip(file.read().astype(np.float32), 0, 10000) / 10000
            with rasterio.open(row.s1) as file:
                s1 = np.clip(np.nan_to_num(file.read()), -25, 0) / 25 + 1
            with rasterio.open(row.lc) as file:
                labels = np.take(classes, file.read(1))
            image = np.concatenate([s2, s1])
            top, left = files.crop(size)
            part = np.s_[..., top : top + size, left : left + size]
            assert image[part].shape[1:] == labels[part].shape
            if keep:
                kept.append((image[part], labels[part]))
        return tuple(map(np.stack, zip(*kept, strict=True))) if keep else None

    return draw


def window_way(files: Files, size: int) -> Draw:
    """Only the rows and columns of the crop, through rasterio's windows: the best that files allow."""

    def draw(n: int) -> None:
        for row in files.rows(n):
            top, left = files.crop(size)
            for kind, bands in (("s2", None), ("s1", None), ("lc", 1)):
                with rasterio.open(row[kind]) as file:
                    file.read(bands, window=Window(left, top, size, size))

    return draw


def checked_way(files: Files) -> Draw:
    """`patches.read_patch`, with all its checks."""

    def draw(n: int) -> None:
        for row in files.rows(n):
            patches.read_patch(row)

    return draw


def own_way(folder: Path, size: int, *, scaled: bool = False, turned: bool = True, cells: bool = False) -> Draw:
    """`PatchFiles.cut` of files or packed scenes: eight symmetries (if *turned*), and the coarse *cells* if wanted."""
    source, generator = open_source(folder, memory_gb=0), torch.Generator().manual_seed(0)
    channels = source.statistics() if scaled else None

    def draw(n: int) -> None:
        places = source.places(n, size, generator)
        s2, s1, _, _ = source.cut(places if turned else [(*place[:3], 0) for place in places], size, cells=cells)
        if channels is not None:
            normalise(s2, s1, channels)

    return draw


def loading(root: Path, table: pd.DataFrame, rounds: int, seconds: float) -> dict[str, Any]:
    """Samples a second of each way, by side of the sample, warm and cold."""
    result: dict[str, Any] = {}
    for size in (256, 128, 64):
        for state in ("warm", "cold"):
            files = Files(table, np.random.default_rng(0))
            ways = {
                "torchgeo": lambda s=size, f=files: torchgeo_way(f, s),
                "baseline": lambda s=size, f=files: baseline_way(f, s),
                "rasterio windows": lambda s=size, f=files: window_way(f, s),
                "read_patch": lambda f=files: checked_way(f),
                "files": lambda s=size: own_way(root / "data", s),
                "packed": lambda s=size: own_way(root / "packs", s),
                "packed, not turned": lambda s=size: own_way(root / "packs", s, turned=False),
                "packed, normalised": lambda s=size: own_way(root / "packs", s, scaled=True),
            }
            if state == "cold":
                del ways["packed, normalised"]  # its statistics read all of the scene
            found = rates(ways, root if state == "cold" else None, rounds, seconds)
            peers = [
                (ours, peer) for ours in ("files", "packed", "packed, not turned") for peer in ("torchgeo", "baseline")
            ]
            against = {f"{ours} / {peer}": round(found[ours] / found[peer], 1) for ours, peer in peers}
            result[f"{size} px, {state}"] = {**found, **against}
    return result


def rates(
    ways: dict[str, Callable[[], Draw]],
    cold: Path | None,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Samples a second of each way: the median over rounds in which each has its turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    draws = {name: make() for name, make in ways.items()}
    for number in range(rounds + 1):
        for name, make in ways.items():
            if cold is not None:
                draws.pop(name, None)  # what is mapped cannot be dropped
                forget(cold)
                draws[name] = make()
            n, began = 0, clock()
            while not n or (cold is None and clock() - began < seconds):
                draws[name](16)
                n += 16
            if number:  # the first round warms up what lies outside the files
                found[name].append(n / (clock() - began))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def forget(root: Path) -> None:
    """Drop the files from the page cache."""
    for path in root.rglob("*.*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Stores -------------------------------------------------------------------------------------------


def stores(root: Path, scene: world.Scene, rounds: int, seconds: float) -> dict[str, Any]:
    """Bytes and speed of each store that was a candidate: windows of S2, S1 and IGBP, not turned."""
    layers = {"s2": scene.s2, "s1": scene.s1.astype(np.float32), "igbp": scene.lc[:1]}
    n_bytes = sum(layer.nbytes for layer in layers.values())
    opened, result = {}, {}
    for name, make in STORES.items():
        folder = root / "stores" / name
        folder.mkdir(parents=True)
        began = time.perf_counter()
        opened[name] = make(folder, layers)
        result[name] = {
            "bytes a byte": round(folder_size(folder) / n_bytes, 3),
            "write MB/s": round(n_bytes / 1e6 / (time.perf_counter() - began)),
        }
        _check(opened[name](), layers)
    side = scene.truth.shape[0]
    for size, state in ((256, "warm"), (64, "warm"), (64, "cold")):
        rng = np.random.default_rng(0)
        ways = {name: lambda s=size, o=reopen, g=rng: window_draw(o(), s, side, g) for name, reopen in opened.items()}
        for name, rate in rates(ways, root / "stores" if state == "cold" else None, rounds, seconds).items():
            result[name][f"{size} px a second, {state}"] = rate
    return result


def _check(read: Any, layers: dict[str, NDArray[Any]]) -> None:
    """A store that is fast and wrong is no store."""
    for kind in layers:
        np.testing.assert_array_equal(read(kind, 100, 37, 130), layers[kind][:, 100:230, 37:167])


def window_draw(read: Any, size: int, side: int, rng: np.random.Generator) -> Draw:
    """Random windows of the three layers that training reads."""

    def draw(n: int) -> None:
        for row, col in rng.integers(0, side - size + 1, (n, 2)).tolist():
            for kind in ("s2", "s1", "igbp"):
                read(kind, row, col, size)

    return draw


def folder_size(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
