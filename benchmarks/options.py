"""
What the options of a training plan do to the network: ways of drawing crops, and a moving average of the weights.

    python benchmarks/options.py [--steps 60] [--seeds 3] [--out options.json]

An FCN learns from the MODIS labels of the sample world's training scenes, once for each option and seed. It is judged
on four patches of the scenes that were held out, against their 10 m truth, which the sample has: no test label is
touched, so that the answer may be used for a choice. Reported: AA and OA, their mean over the seeds, and the difference
to the default for each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lcfuse_core import _runtime
from lcfuse_core.book import chapter
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import TrainPlan

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "scene sampling": {"sampling": "scene"},
    "class sampling": {"sampling": "class"},
    "class sampling, plain loss": {"sampling": "class", "class_weight_power": 0.0},
    "average 0.98": {"ema": 0.98},
}


def main() -> None:
    """Train, judge, print, and write the JSON file after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = chapter.Chapter("sample", {"seed": 0})
    stack = here.training_stack()
    judge = here.held_out_stack("fine").part(list(range(0, 12, 3)))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in OPTIONS}
    for seed in range(options.seeds):
        for name, changes in OPTIONS.items():
            plan = replace(TrainPlan(steps=options.steps, seed=seed, report_every=options.steps), **changes)
            began = time.perf_counter()
            run = loop.train(stack, plan, progress=False)
            scores = loop.evaluate(run, judge)
            took = round(time.perf_counter() - began, 1)
            found[name].append({"aa": 100 * scores.aa, "oa": 100 * scores.oa, "seconds": took})
            text = json.dumps(summary(found, options.steps), indent=1)
            if options.out:
                options.out.write_text(text + "\n")
    print(text)


def summary(found: dict[str, list[dict[str, float]]], steps: int) -> dict[str, Any]:
    """Means, and differences to the default, over the seeds that are there."""
    result: dict[str, Any] = {}
    for name, rows in found.items():
        pairs = list(zip(rows, found["default"], strict=False))
        if not pairs:
            continue
        result[name] = {"seeds": len(rows)}
        for score in ("aa", "oa"):
            differences = [round(own[score] - default[score], 2) for own, default in pairs]
            result[name] |= {
                score: round(statistics.mean(row[score] for row in rows), 2),
                f"{score} - default": differences,
            }
    return {"steps": steps, "options": result, "made on": {**_runtime.machine(), "load": os.getloadavg()}}


if __name__ == "__main__":
    main()
