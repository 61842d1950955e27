"""
Measure how the gain of the default fusion depends on the sample world: one factor is changed at a time.

    python benchmarks/sensitivity.py [--worlds factors|development|fresh] [--patches 8] [--only NAME ...] [--out FILE]

Factors are domain shift, label noise, the size of homogeneous areas (and so the purity of the coarse cells), the
confusions of the label, and the number of cells per region: 1, 4, 8 or 16 patches (30, 122, 244 or 488 cells) in each
of six regions. The worlds of *factors* have one seed each, so a line of their table is one world and no mean. The rule
for few cells of `methods.ensemble` was chosen on the *development* worlds; the *fresh* ones were evaluated once.

Methods are the fusion, its members, the interpolated label, an inductive network and, on the worlds of *factors*, the
official recipe in both regimes. The table has the AA over all pixels and the mean of the regions' AA; *margin* is the
default fusion minus the best of the others. Worlds and networks are kept in the data folder, so an interrupted run
continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lcfuse_core import _runtime
from lcfuse_core.data.cells import majority_share
from lcfuse_core.data.patches import read_many
from lcfuse_core.data.source import patch_cells
from lcfuse_core.methods import ensemble
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.methods.registry import METHODS, mapped
from lcfuse_core.sample.sensors import CALIBRATED
from lcfuse_core.sample.world import WorldPlan, make_world
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.compare import FUSION, INDUCTIVE, INTERPOLATED, OFFICIAL, OFFICIAL_TARGET

FACTORS = ("domain_shift", "label_noise", "label_confusion", "area_factor")
"""What a world is named by, beside its seed: fields of `WorldPlan`."""


def planned(seed: int, *values: Any, **changes: Any) -> WorldPlan:
    """Return the plan of a world with 16 training scenes and 16 patches in each of six regions."""
    changes |= dict(zip(FACTORS, values, strict=False))
    return WorldPlan(seed, n_train=16, n_validation=1, n_test=24, **changes)


WORLDS = {
    "factors": {
        "base": planned(300),
        "recalibrated": planned(300, label_confusion=CALIBRATED),
        "shift 0.3": planned(300, 0.3),
        "noise 0.9": planned(300, label_noise=0.9),
        "areas 0.5": planned(300, area_factor=0.5),
        "areas 2": planned(300, area_factor=2.0),
        "shift 1.6": planned(300, 1.6),
        "noise 0.25": planned(300, label_noise=0.25),
        "base 301": planned(301),
        "recalibrated 301": planned(301, label_confusion=CALIBRATED),
    },
    "development": {"200": planned(200), "201": planned(201, 0.3, 0.9), "202": planned(202, 1.6, 0.25)},
    "fresh": {
        "300": planned(300),
        "301": planned(301, 0.3, 0.9),
        "302": planned(302, 0.3, 0.25),
        "303": planned(303, 1.6, 0.9),
        "304": planned(304, 0.7, 0.6),
    },
}


def make(plan: WorldPlan) -> Path:
    """Make a world in a folder that is named by its plan."""
    name = "-".join(str(getattr(plan, factor)) for factor in ("seed", *FACTORS))
    return make_world(_runtime.data_folder() / "sensitivity" / name, plan, workers=1)


def first_patches(world: Path, n: int) -> Path:
    """Copy the first *n* patches of each test region to a folder beside the world, and return it."""
    root = world.with_name(f"{world.name}-first-{n}")
    if not (root / "world.json").exists():
        rows = protocol.evaluation_patches(world / "dfc2020").groupby("scene_id").head(n)
        for file in map(Path, rows[list(protocol.NEED)].to_numpy().ravel()):
            to = root / "dfc2020" / file.parent.name / file.name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
        shutil.copyfile(world / "world.json", root / "world.json")  # it names the regions
    return root / "dfc2020"


def scores_of(experiment: Experiment, rivals: Iterable[str]) -> pd.DataFrame:
    """Return the pooled and the regional AA of the fusion, its members and the *rivals* in per cent."""
    fused, _ = ensemble.fusion_of(experiment)
    methods = {name: METHODS[name].learn(experiment).classify for name in rivals}
    members = {f"member: {name}": mapped(member) for name, member in fused.members.items()}
    found, _ = protocol.evaluate_methods(methods | members | {FUSION: fused.classify}, experiment.rows)
    rows = {
        name: (100 * one.scores.aa, 100 * np.mean([own.aa for own in one.regions.values()]))
        for name, one in found.items()
    }
    return pd.DataFrame.from_dict(rows, "index", columns=["pooled", "regional"])


def purity(rows: pd.DataFrame) -> float:
    """Return the mean share of the most common class in the coarse cells, also in those that a patch cuts."""
    patches, _ = read_many(rows)
    return float(np.concatenate([majority_share(patch.dfc, patch_cells(patch)) for patch in patches]).mean())


def measure(plan: WorldPlan, n: int, steps: int, rivals: Iterable[str]) -> dict[str, Any]:
    """Return the record of a world with *n* patches per region."""
    world = make(plan)
    experiment = Experiment.from_profile(
        "sensitivity", train_root=str(world / "sen12ms"), data_root=str(first_patches(world, n)), steps=steps
    )
    table = scores_of(experiment, rivals)
    margin = table.loc[FUSION] - table.drop(index=FUSION).max()
    return {
        **{name: value for name, value in asdict(plan).items() if name in ("seed", *FACTORS)},
        "patches": n,
        "cells": round(ensemble.cells_per_region(experiment), 1),
        "purity": round(purity(experiment.rows), 3),
        "steps": steps,
        "aa": table.round(2).T.to_dict(),
        "margin": margin.round(2).to_dict(),
    }


def add(record: dict[str, Any], path: Path) -> None:
    """Add a record to a JSON file; one of the same world, patches and steps is replaced."""
    known = json.loads(path.read_text()) if path.exists() else []
    records = {_key(one): one for one in [*known, record]}
    _runtime.write_atomic(path, json.dumps([records[key] for key in sorted(records)], indent=1) + "\n")


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    defaults = asdict(WorldPlan())  # the first records have no confusion and no area factor
    return tuple((defaults | record)[name] for name in ("seed", *FACTORS, "patches", "steps"))


def summary(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return the mean margin over the worlds for each number of patches, and the number of worlds."""
    rows = [{"patches": one["patches"], "cells": one["cells"], **one["margin"]} for one in records]
    groups = pd.DataFrame(rows).groupby("patches")
    return groups.mean().assign(worlds=groups.size()).round(1)


def main() -> None:
    """Measure world by world, print each record and the table of margins, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--worlds", choices=WORLDS, default="factors")
    parser.add_argument("--only", nargs="+", help="names of worlds, see WORLDS")
    parser.add_argument("--patches", type=int, nargs="+", default=[8], help="per region")
    parser.add_argument("--steps", type=int, default=400, help="of training in the source regions")
    parser.add_argument("--out", type=Path, help="JSON to add to, such as lcfuse_core/shipped/sensitivity.json")
    options = parser.parse_args()
    rivals = (INTERPOLATED, INDUCTIVE, *((OFFICIAL, OFFICIAL_TARGET) if options.worlds == "factors" else ()))
    records = []
    for name, plan in WORLDS[options.worlds].items():
        if options.only and name not in options.only:
            continue
        for n in options.patches:
            records.append(measure(plan, n, options.steps, rivals))
            print(json.dumps(records[-1]), flush=True)
            if options.out:
                add(records[-1], options.out)
    print(summary(records).to_string())


if __name__ == "__main__":
    main()
