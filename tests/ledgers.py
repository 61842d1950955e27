"""Ledger lines of invented methods, in the form of `lcfuse_core compare`, for tests."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd

from lcfuse_core.data.legends import SCORED
from lcfuse_core.scoring.scores import summarise

REGIONS = ("cape", "delta", "north", "river")


def region_counts(rng, aa):
    """Counts (11, 11) of one region, in which about *aa* of the pixels of each class are right."""
    counts = np.zeros((11, 11), np.int64)
    for code in SCORED:
        n = int(rng.integers(200, 2000))
        right = int(n * np.clip(aa + rng.normal(0, 0.05), 0, 1))
        counts[code, code], counts[code, SCORED[0] if code != SCORED[0] else SCORED[1]] = right, n - right
    return counts


def line(method, seed, counts, *, with_counts=True):
    """A line of a method with one seed."""
    scores = asdict(summarise(sum(counts.values())))
    scores["regions"] = {name: asdict(summarise(one)) for name, one in counts.items()}
    if with_counts:
        scores["counts"] = {name: one.tolist() for name, one in counts.items()}
    return {
        "schema": 2, "parameters": {"method": method, "steps": 400}, "label_regime": "coarse only",
        "seeds": {"world": seed, "training": seed}, "scores": scores, "cost": {"train_s": 10.0 + seed},
        "hashes": {"evaluation": f"world {seed}"},
    }  # fmt: skip


def made(methods, seeds=(0, 1, 2), **options):
    """Lines of methods, by name with their AA in each seed; the regions of a seed have the same pixels for all."""
    found = []
    for seed in seeds:
        for method, aas in methods.items():
            rng = np.random.default_rng(seed)
            found.append(line(method, seed, {name: region_counts(rng, aas[seed]) for name in REGIONS}, **options))
    return found


def table_of(lines):
    """The lines as `ledger.read` returns them."""
    return pd.json_normalize(lines)


def write(path, lines):
    """Write lines to a file and return its path."""
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path
