"""
How fast each network trains and maps, what of a step is loading, and how far the arithmetic alone would let it go.

    python benchmarks/training.py [--size 512] [--rounds 5] [--crop 64] [--batch 16] [--out training.json]

One packed scene of the sample world lies in the page cache. For each network, three ways of making a step take turns,
round after round, so that all meet the same machine; figures are medians of the rounds. On the processor, with one
thread, seconds are those that this process computed, so that what else runs there does not count:

  resident   the same batch again and again, normalised and on the device already: the bare step
  fed        what training does: crops drawn, cut, carried over, turned, normalised, and the step
  plain      the plain recipe: each sample read from its files with rasterio, float32, channels first, one by one

`loading share` is the share of a *fed* step that is not the bare step, measured by itself: making a batch over making a
batch and a bare step. FLOP are counted by torch's FlopCounterMode, two for a multiplication and addition; bytes are
those of the inputs, outputs and weights of each layer, forward, three times for a training step. On CUDA the time that
both would take at the device's peaks (`--tflops`, `--gb-per-s`: from its data sheet) stands beside the measured time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lcfuse_core import _runtime
from lcfuse_core.data import packing, patches
from lcfuse_core.data.legends import IGNORE
from lcfuse_core.data.source import PatchSource
from lcfuse_core.data.streamed import open_source
from lcfuse_core.models.losses import Batch, cross_entropy
from lcfuse_core.models.networks import NETWORKS, parameter_count
from lcfuse_core.training import loop, monitor
from lcfuse_core.training.checkpoint import Run
from lcfuse_core.training.distributed import Distributed, choose_device
from lcfuse_core.training.loop import feed
from lcfuse_core.training.plan import TrainPlan
from lcfuse_core.training.predict import forward
from loading import Files, baseline_way, make_scene, write_patches

Step = Callable[[], None]


def main() -> None:
    """Make a scene, measure each network, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the scene in pixels, a multiple of 128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a way in a round")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile")
    parser.add_argument("--tflops", type=float, help="peak of the device in the precision used, 10^12 FLOP/s")
    parser.add_argument("--gb-per-s", type=float, help="peak of its memory, 10^9 bytes/s")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    result: dict[str, Any] = {"networks": {}}
    with tempfile.TemporaryDirectory() as folder:
        table = write_patches(Path(folder) / "data", make_scene(options.size))
        packing.pack(table, Path(folder) / "packs")
        stack = open_source(Path(folder) / "packs", memory_gb=0)
        for name in options.networks.split(","):
            result["networks"][name] = measure(name, stack, table, options)
    device = choose_device(options.device)
    result["made on"] = {
        **_runtime.machine(), "device": device.type, "load": os.getloadavg(), "threads": torch.get_num_threads(),
        "crop": options.crop, "batch": options.batch, "rounds": options.rounds, "compiled": options.compiled,
    }  # fmt: skip
    result["on CUDA"] = "in this file" if device.type == "cuda" else "not measured"
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(name: str, stack: PatchSource, table: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one network."""
    processes = Distributed(choose_device(options.device))
    plan = TrainPlan(network=name, crop=options.crop, batch=options.batch, steps=10**9, device=options.device)
    plan = replace(plan, compiled=options.compiled)
    statistics_of = stack.statistics()
    torch.manual_seed(0)
    run = Run(plan.build().to(processes.device).to(memory_format=torch.channels_last), plan, statistics_of)
    batches = feed(stack, plan, statistics_of, processes)
    images, batch, _ = next(batches)
    with processes.wrap(run.network, plan.compiled) as network:
        step = stepper(network, plan, processes)
        ways: dict[str, Step] = {
            "resident": lambda: step(images, batch),
            "loading": lambda: sink(next(batches)),
            "fed": lambda: step(*next(batches)[:2]),
            "plain": plain_recipe(table, plan, processes),
        }
        seconds = take_turns(ways, options.rounds, options.steps, processes)
    counted = count(run.network, images)
    shown: dict[str, Any] = {"parameters": parameter_count(run.network)}
    for way in ("resident", "fed", "plain"):
        shown[f"samples a second, {way}"] = round(options.batch / median(seconds[way]), 1)
    # On a GPU loading runs beside the step: there the fed step against the bare one tells what it costs.
    made, bare, fed = (median(seconds[way]) for way in ("loading", "resident", "fed"))
    shown["share of the bare step"] = round(median(ratios(seconds["resident"], seconds["fed"])), 3)
    share = max(0.0, 1 - bare / fed) if processes.on_gpu else made / (made + bare)
    shown["loading share"] = round(share, 3)
    shown["times the plain recipe"] = round(median(ratios(seconds["plain"], seconds["fed"])), 2)
    shown |= counted | floor(counted, bare, options) | inference(run, table, options.rounds) | monitor.memory()
    return shown


def sink(_: object) -> None:
    """Make a batch and drop it."""


def stepper(network: nn.Module, plan: TrainPlan, processes: Distributed) -> Callable[[Tensor, Batch], None]:
    """A step of training, as `training.loop.train` makes it."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=processes.on_gpu or None)

    def step(images: Tensor, batch: Batch) -> None:
        value = cross_entropy(forward(network, images, plan.precision), batch.labels)
        optimiser.zero_grad()
        value.backward()
        length = nn.utils.clip_grad_norm_(network.parameters(), plan.clip_norm)
        if not processes.on_gpu:
            assert np.isfinite(value.item() + length.item())
        optimiser.step()

    return step


def plain_recipe(table: pd.DataFrame, plan: TrainPlan, processes: Distributed) -> Step:
    """Patches read one by one with rasterio, float32, channels first: what a first version looks like."""
    network = plan.build().to(processes.device)
    files = Files(table, np.random.default_rng(0))
    draw = baseline_way(files, plan.crop, keep=True)
    ignored = torch.arange(256, dtype=torch.uint8)
    ignored[8:] = IGNORE  # its ten classes; ours are eight, and which is which does not matter for time
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        images, labels = (torch.from_numpy(array).to(processes.device) for array in draw(plan.batch))
        value = cross_entropy(network(images), ignored.to(processes.device)[labels])
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), plan.clip_norm)
        optimiser.step()
        value.item()

    return step


def take_turns(ways: dict[str, Step], rounds: int, steps: int, processes: Distributed) -> dict[str, list[float]]:
    """Seconds a step of each way in each round; a first turn, not counted, warms up."""
    clock = time.perf_counter if processes.on_gpu else time.process_time
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, step in ways.items():
            wait(processes)
            began = clock()
            for _ in range(steps if number else 1):
                step()
            wait(processes)
            if number:
                seconds[way].append((clock() - began) / steps)
    return seconds


def wait(processes: Distributed) -> None:
    """Until the GPU has done what it was asked."""
    if processes.on_gpu:
        torch.cuda.synchronize()


def count(network: nn.Module, images: Tensor) -> dict[str, float]:
    """FLOP and bytes of a training step for one sample; the backward pass counts as two forward ones."""
    flops, n_bytes = FlopCounterMode(display=False), [0]

    def add(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        tensors = [*inputs, output, *layer.parameters(recurse=False)]
        n_bytes[0] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    leaves = [layer for layer in network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(add) for layer in leaves]
    with torch.no_grad(), flops:
        network(images)
    for hook in hooks:
        hook.remove()
    n = len(images)
    return {
        "GFLOP a sample": round(3 * flops.get_total_flops() / n / 1e9, 3),
        "MB a sample": round(3 * n_bytes[0] / n / 1e6, 1),
    }


def floor(counted: dict[str, float], bare: float, options: argparse.Namespace) -> dict[str, Any]:
    """What arithmetic and memory alone would take of a step, where the device's peaks are given."""
    shown: dict[str, Any] = {"GFLOP/s, bare step": round(counted["GFLOP a sample"] * options.batch / bare, 1)}
    if options.tflops:
        shown["arithmetic floor, share of the step"] = round(
            counted["GFLOP a sample"] * options.batch / 1e3 / options.tflops / bare, 3
        )
    if options.gb_per_s:
        shown["memory floor, share of the step"] = round(
            counted["MB a sample"] * options.batch / 1e3 / options.gb_per_s / bare, 3
        )
    return shown


def inference(run: Run, table: pd.DataFrame, rounds: int) -> dict[str, float]:
    """Patches of 256 x 256 that are mapped in a second."""
    patch = patches.read_patch(table.iloc[0])
    loop.predict(run, patch)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        loop.predict(run, patch)
        seconds.append(time.perf_counter() - began)
    return {"patches mapped a second": round(1 / median(seconds), 2)}


def ratios(first: list[float], second: list[float]) -> Iterator[float]:
    """One of each round."""
    return (a / b for a, b in zip(first, second, strict=True))


def median(values: Any) -> float:
    """Of the rounds."""
    return statistics.median(values)


if __name__ == "__main__":
    main()
