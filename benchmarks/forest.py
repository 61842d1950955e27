"""
Seconds to classify a patch of 256 x 256 pixels by a random forest: scikit-learn, and the compiled trees of the book.

    python benchmarks/forest.py [--rounds 10] [--out forest.json]

The forest of 100 trees learns from the target regions of the sample world, as the member of the default fusion does.
Both take turns on one thread and predict the same pixels; their probabilities are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from lcfuse_core.data.patches import read_many
from lcfuse_core.data.source import normalise
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.models import forest


def main() -> None:
    """Measure in turns, print the medians, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment.from_profile("forest")
    trained = forest.train_forest(experiment.target_source, seed=0)
    [patch], _ = read_many(experiment.rows.head(1))

    def by_scikit_learn() -> Any:
        channels = normalise(torch.as_tensor(patch.s2), torch.as_tensor(patch.s1), trained.statistics)
        return trained.trees.predict_proba(channels.flatten(1).T.numpy())

    began = time.perf_counter()
    found = forest.predict(trained, patch)
    first = time.perf_counter() - began
    expected = by_scikit_learn()
    expected = (expected / expected.sum(1, keepdims=True)).T.astype(np.float32)
    seconds: dict[str, list[float]] = {"scikit-learn": [], "compiled trees": []}
    for _ in range(options.rounds):
        seconds["scikit-learn"].append(timed(by_scikit_learn))
        seconds["compiled trees"].append(timed(lambda: forest.predict(trained, patch)))
    of_each = {name: round(median(values), 3) for name, values in seconds.items()}
    result = {
        "seconds per patch": of_each,
        "least": {name: round(min(values), 3) for name, values in seconds.items()},
        "ratio": round(of_each["scikit-learn"] / of_each["compiled trees"], 2),
        "first patch, with import and compilation or its cache": round(first, 2),
        "nodes": sum(tree.tree_.node_count for tree in trained.trees.estimators_),
        "equal": bool(np.array_equal(found.reshape(8, -1)[trained.trees.classes_], expected)),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
