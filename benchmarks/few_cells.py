"""
Compare the default fusion with its members and with the interpolated label when regions have few coarse cells.

    python benchmarks/few_cells.py [--worlds development|fresh] [--patches 1 4 8] [--only SEED ...] [--out FILE]

Each world is a sample world of another domain shift and label noise, with 1, 4 or 8 patches (30, 122 or 244 cells) in
each of six regions. The rule of `methods.ensemble` was chosen on the development worlds and evaluated once on the
fresh ones. The table has the AA over all pixels and the mean of the regions' AA; *margin* is the default fusion minus
the best of the others. Worlds and networks are kept in the data folder, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lcfuse_core import _runtime
from lcfuse_core.data.sample.world import WorldPlan, make_world
from lcfuse_core.methods import ensemble
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.methods.registry import METHODS, mapped
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.compare import FUSION, INDUCTIVE, INTERPOLATED

WORLDS = {
    "development": [(200, 1.15, 0.45), (201, 0.3, 0.9), (202, 1.6, 0.25)],
    "fresh": [(300, 1.15, 0.45), (301, 0.3, 0.9), (302, 0.3, 0.25), (303, 1.6, 0.9), (304, 0.7, 0.6)],
}
"""Seed, domain shift and label noise of each world."""


def make(seed: int, shift: float, noise: float) -> Path:
    """Make a world with 16 training scenes and 8 patches in each of six regions."""
    plan = WorldPlan(seed, n_train=16, n_validation=1, n_test=12, domain_shift=shift, label_noise=noise)
    return make_world(_runtime.data_folder() / "few-cells" / f"{seed}", plan, workers=1)


def first_patches(world: Path, n: int) -> Path:
    """Copy the first *n* patches of each test region to a folder beside the world, and return it."""
    root = world.with_name(f"{world.name}-{n}")
    if not (root / "world.json").exists():
        rows = protocol.evaluation_patches(world / "dfc2020").groupby("scene_id").head(n)
        for file in map(Path, rows[list(protocol.NEED)].to_numpy().ravel()):
            to = root / "dfc2020" / file.parent.name / file.name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
        shutil.copyfile(world / "world.json", root / "world.json")  # it names the regions
    return root / "dfc2020"


def scores_of(world: Path, n: int, steps: int) -> tuple[pd.DataFrame, float]:
    """Return the pooled and the regional AA of each method in per cent, and the cells per region."""
    experiment = Experiment.from_profile(
        "few cells", train_root=str(world / "sen12ms"), data_root=str(first_patches(world, n)), steps=steps
    )
    fused, _ = ensemble.fusion_of(experiment)
    methods = {name: METHODS[name].learn(experiment).classify for name in (INTERPOLATED, INDUCTIVE)}
    members = {f"member: {name}": mapped(member) for name, member in fused.members.items()}
    found, _ = protocol.evaluate_methods(methods | members | {FUSION: fused.classify}, experiment.rows)
    rows = {
        name: (100 * one.scores.aa, 100 * np.mean([own.aa for own in one.regions.values()]))
        for name, one in found.items()
    }
    table = pd.DataFrame.from_dict(rows, "index", columns=["pooled", "regional"])
    return table, ensemble.cells_per_region(experiment)


def measure(worlds: Iterable[tuple[int, float, float]], sizes: Iterable[int], steps: int) -> list[dict[str, Any]]:
    """Return one record per world and number of patches."""
    records = []
    for seed, shift, noise in worlds:
        root = make(seed, shift, noise)
        for n in sizes:
            table, cells = scores_of(root, n, steps)
            margin = table.loc[FUSION] - table.drop(index=FUSION).max()
            record = {"seed": seed, "domain_shift": shift, "label_noise": noise, "patches": n, "cells": round(cells, 1)}
            records.append(
                record | {"steps": steps, "aa": table.round(2).T.to_dict(), "margin": margin.round(2).to_dict()}
            )
            print(json.dumps(records[-1]), flush=True)
    return records


def summary(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return the mean margin over the worlds for each number of patches, and the number of worlds."""
    rows = [{"patches": one["patches"], "cells": one["cells"], **one["margin"]} for one in records]
    groups = pd.DataFrame(rows).groupby("patches")
    return groups.mean().assign(worlds=groups.size()).round(1)


def main() -> None:
    """Measure, print the table of margins, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--worlds", choices=WORLDS, default="fresh")
    parser.add_argument("--only", type=int, nargs="+", help="seeds")
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 4, 8], help="per region")
    parser.add_argument("--steps", type=int, default=400, help="of training in the source regions")
    parser.add_argument(
        "--out", type=Path, help="JSON to add the records to, such as lcfuse_core/shipped/few_cells.json"
    )
    options = parser.parse_args()
    chosen = [world for world in WORLDS[options.worlds] if not options.only or world[0] in options.only]
    records = measure(chosen, options.patches, options.steps)
    if options.out:
        known = json.loads(options.out.read_text()) if options.out.exists() else []
        own = {(one["seed"], one["patches"]) for one in records}
        records = [one for one in known if (one["seed"], one["patches"]) not in own] + records
        _runtime.write_atomic(
            options.out, json.dumps(sorted(records, key=lambda r: (r["seed"], r["patches"])), indent=1)
        )
    print(summary(records).to_string())


if __name__ == "__main__":
    main()
