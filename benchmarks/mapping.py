"""
What mapping a scene costs: speed, memory, seams.

    python benchmarks/mapping.py scale [--rows 10980] [--cols 10980]   time and memory against the bare networks
    python benchmarks/mapping.py area  [--rows 2745]                   twice the area, twice the time
    python benchmarks/mapping.py seams                                 windows shifted by half; naive tiles beside it

The scene is synthetic: a scene of the sample world, mirrored to the size asked for. Networks are those that come with
the package unless `--model` names others. Each prints JSON; `--out FILE` keeps it, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine

from lcfuse_core.data.bands import sensor_channels
from lcfuse_core.data.legends import index_to_dfc
from lcfuse_core.mapping import predict
from lcfuse_core.mapping import scene as rasters
from lcfuse_core.mapping.make import Inputs, MapOptions, make_map
from lcfuse_core.mapping.predict import Tiling, Window, blend
from lcfuse_core.sample import world
from lcfuse_core.training.predict import precision

SIDE_PX = 10980
"""Of a Sentinel-2 tile at 10 m."""

BLOCK_PX = 512


def big_scene(folder: Path, rows: int, cols: int, seed: int = 0) -> Inputs:
    """A scene of 15 bands of that size, in tiles and uncompressed, made by mirroring a sample scene; found if there."""
    place = world.make_sample_scene(folder / f"place-{seed}", seed, weather=False)
    out = []
    for kind, path in (("s2", place.s2), ("s1", place.s1)):
        target = folder / f"{kind}-{rows}x{cols}.tif"
        out.append(target)
        if target.exists():
            continue
        with rasterio.open(path) as file:
            part, profile = file.read(), file.profile
        side = part.shape[1]
        strip = np.concatenate([part, part[:, :, ::-1]], axis=2)
        strip = np.tile(strip, (1, 1, -(-cols // (2 * side))))[:, :, :cols]
        profile |= {"height": rows, "width": cols, "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
        profile.pop("compress", None)
        profile |= {"BIGTIFF": "IF_SAFER", "interleave": "band", "transform": Affine(10, 0, 499980, 0, -10, 5400000)}
        half = target.with_suffix(".part")
        with rasterio.open(half, "w", **profile) as file:
            for row in range(0, rows, BLOCK_PX):
                height = min(BLOCK_PX, rows - row)
                at = np.arange(row, row + height) % (2 * side)
                mirrored = np.where(at < side, at, 2 * side - 1 - at)
                file.write(strip[:, mirrored], window=((row, row + height), (0, cols)))
        half.rename(target)
    return Inputs((out[0],), (out[1],))


def chosen(paths: list[Path]) -> list[predict.Network]:
    """The networks of the command line, or those of the package."""
    return [predict.load_member(path) for path in paths] or predict.default_members()


def bare_seconds(member: predict.Network, tiling: Tiling, n: int) -> tuple[float, float]:
    """Wall and processor seconds of *n* forward passes on a window of this tiling, and nothing else."""
    size = min(tiling.window, *tiling.shape)
    n_channels = sum(map(len, sensor_channels(member.run.statistics.channels, member.run.plan.inputs)))
    image = torch.randn(1, n_channels, size, size).contiguous(memory_format=torch.channels_last)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode(), precision(member.run.plan.precision, torch.device("cpu")):
        for _ in range(n):
            member.run.network(image)
    return time.perf_counter() - wall, time.process_time() - cpu


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """A scene mapped from files to files, between two halves of the bare forward passes on as many windows."""
    inputs = big_scene(options.data, options.rows, options.cols)
    [member, *_] = predict.choose(chosen(options.model), has_s1=True)
    tiling = Tiling((options.rows, options.cols), options.window)
    n_windows = len(tiling.rows) * len(tiling.cols)
    bare_seconds(member, tiling, 2)  # warm up
    out = options.data / "map"
    shutil.rmtree(out, ignore_errors=True)
    before = bare_seconds(member, tiling, n_windows // 2)
    wall, cpu = time.perf_counter(), time.process_time()
    made = make_map(inputs, [member], out, MapOptions(window=options.window), progress=options.progress)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    after = bare_seconds(member, tiling, n_windows - n_windows // 2)
    n_channels = sum(map(len, sensor_channels(member.run.statistics.channels, member.run.plan.inputs)))
    return {
        "rows": options.rows, "cols": options.cols, "windows": n_windows, "window": options.window,
        "network": f"{member.run.plan.network}, {n_channels} channels, {member.name}",
        "map_s": round(wall, 1), "map_cpu_s": round(cpu, 1), "bare_cpu_s": round(before[1] + after[1], 1),
        "bare_s": round(before[0] + after[0], 1), "bare_halves_s": [round(before[0], 1), round(after[0], 1)],
        "ratio": round(wall / (before[0] + after[0]), 3), "peak_memory_mb": round(peak_mb),
        "valid_fraction": made.record["valid_fraction"],
    }  # fmt: skip


def area(options: argparse.Namespace) -> dict[str, Any]:
    """Half a scene and the whole of it, in turns."""
    halves, wholes = [], []
    [member, *_] = predict.choose(chosen(options.model), has_s1=True)
    for number in range(options.rounds):
        order = [(options.rows, halves), (2 * options.rows, wholes)]
        for rows, seconds in order if number % 2 == 0 else reversed(order):
            inputs = big_scene(options.data, rows, options.cols)
            out = options.data / f"map-{rows}"
            shutil.rmtree(out, ignore_errors=True)
            began = time.perf_counter()
            make_map(inputs, [member], out, MapOptions(window=options.window))
            seconds.append(time.perf_counter() - began)
    ratios = [whole / half for half, whole in zip(halves, wholes, strict=True)]
    return {
        "rows": [options.rows, 2 * options.rows], "cols": options.cols,
        "half_s": [round(s, 2) for s in halves], "whole_s": [round(s, 2) for s in wholes],
        "ratios": [round(r, 3) for r in ratios], "median_ratio": round(statistics.median(ratios), 3),
    }  # fmt: skip


def seams(options: argparse.Namespace) -> dict[str, Any]:
    """Pixels away from class borders that change when the windows are shifted by half."""
    place = world.make_sample_scene(options.data / "place-0", 0, weather=False)
    found = {}
    for member in predict.choose(chosen(options.model), has_s1=True):
        with rasters.open_scene(place.s2, place.s1) as scene:
            rows, cols = scene.grid.shape
            seen = scene.read(slice(0, rows), slice(0, cols))

        assert seen.s1 is not None
        for name, overlap, margin in (("blended", 64, 16), ("naive", 0, 0)):
            maps = [shifted_map(member.predict, seen.s2, seen.s1, 256, overlap, margin, shift) for shift in (0, 128)]
            found[f"{member.name}, {name}"] = differing(*maps)
    return found


def shifted_map(probabilities: Any, s2: Any, s1: Any, window: int, overlap: int, margin: int, shift: int) -> Any:
    """The map of the part of a scene from *shift* on, put back to its place; 0 before it."""
    whole = np.zeros(s2.shape[1:], np.uint8)
    s2, s1, part = s2[:, shift:, shift:], s1[:, shift:, shift:], whole[shift:, shift:]
    tiling = Tiling(part.shape, window, overlap, margin)
    predictions = (
        Window(i, j, np.ones((window, window), bool), probabilities(s2[:, rows, cols], s1[:, rows, cols]))
        for i, rows in enumerate(tiling.rows)
        for j, cols in enumerate(tiling.cols)
    )
    for rows, values, _ in blend(predictions, tiling, 8):
        part[rows] = index_to_dfc(values.argmax(axis=0))
    return whole


def differing(one: Any, other: Any) -> dict[str, float]:
    """Per cent of pixels that differ: all, and those a pixel and more away from a class border of the first map."""
    from scipy import ndimage

    inside = other > 0
    inside[:144] = inside[:, :144] = False  # the part's own edge: padding, not a seam
    inner = ndimage.maximum_filter(one, 3) == ndimage.minimum_filter(one, 3)
    differ = one != other
    return {
        "all_percent": round(100 * float(differ[inside].mean()), 4),
        "away_from_borders_percent": round(100 * float(differ[inside & inner].mean()), 4),
    }


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["scale", "area", "seams"])
    parser.add_argument("--rows", type=int, default=0, help=f"default: {SIDE_PX}, for area a quarter of it")
    parser.add_argument("--cols", type=int, default=SIDE_PX)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, action="append", default=[], help="checkpoint; default: the package's")
    parser.add_argument("--data", type=Path, default=Path("_data/mapping"), help="where the big scene is kept")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--out", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    options.rows = options.rows or (SIDE_PX // 4 if options.what == "area" else SIDE_PX)
    options.data.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    figures = {"scale": scale, "area": area, "seams": seams}[options.what](options)
    figures |= {"load_average": [round(before, 1), round(os.getloadavg()[0], 1)], "threads": torch.get_num_threads()}
    print(json.dumps({options.what: figures}, indent=1))
    if options.out:
        known = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps(known | {options.what: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
