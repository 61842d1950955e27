"""
How fast maps are counted, against scikit-learn and torchmetrics on the same arrays: `python benchmarks/scoring.py`.

    python benchmarks/scoring.py [--patches 5128] [--sklearn 200] [--out FILE]

As many patches as the DFC2020 test set has are drawn one after the other, so that no one ever holds them all, and each
is counted by all four in turn. scikit-learn is so slow that it gets the first few alone, and its time is scaled up.
Prints one JSON object: seconds, times as fast, memory of our own process, and how the time grows with patches.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lcfuse_core import _runtime
from lcfuse_core.scoring.scores import confusion

SIDE_PX, N_CLASSES = 256, 11
Labels = NDArray[np.uint8]
Count = Callable[[Labels, Labels], object]


def draw_patches(n: int, seed: int = 0) -> Iterator[tuple[Labels, Labels]]:
    """Smooth class patterns, shifted against each other at random: runs of equal codes, as maps have them."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.standard_normal((10, 512, 512)), (0, 8, 8), mode="wrap")
    codes = fields.argmax(axis=0).astype(np.uint8) + np.uint8(1)
    for _ in range(n):
        corners = rng.integers(0, 512 - SIDE_PX, (2, 2))
        one, other = (codes[row : row + SIDE_PX, col : col + SIDE_PX].copy() for row, col in corners)
        yield one, other


def counters() -> dict[str, Count]:
    """Who counts, by name: each takes a reference and a map, uint8 (256, 256)."""
    import torch
    from sklearn.metrics import confusion_matrix
    from torchmetrics.classification import MulticlassConfusionMatrix

    torch.set_num_threads(2)
    checked = MulticlassConfusionMatrix(N_CLASSES)
    unchecked = MulticlassConfusionMatrix(N_CLASSES, validate_args=False)

    def scikit_learn(reference: Labels, predicted: Labels) -> object:
        return confusion_matrix(reference.ravel(), predicted.ravel(), labels=range(N_CLASSES))

    def with_torch(metric: MulticlassConfusionMatrix) -> Count:
        return lambda reference, predicted: metric.update(torch.from_numpy(predicted), torch.from_numpy(reference))

    return {
        "lcfuse_core": confusion,
        "torchmetrics": with_torch(checked),
        "torchmetrics, unchecked": with_torch(unchecked),
        "scikit-learn": scikit_learn,
    }


def agree(n: int = 3) -> None:
    """Stop unless all count the same."""
    import torch
    from sklearn.metrics import confusion_matrix
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    for reference, predicted in draw_patches(n):
        ours = confusion(reference, predicted)
        theirs = confusion_matrix(reference.ravel(), predicted.ravel(), labels=range(N_CLASSES))
        tensors = torch.from_numpy(predicted), torch.from_numpy(reference)
        assert (ours == theirs).all()
        assert (ours == multiclass_confusion_matrix(*tensors, N_CLASSES).numpy()).all()


def race(n_patches: int, n_slow: int) -> dict[str, float]:
    """Seconds that each took for *n_patches*, all in one run over the same arrays."""
    runners = counters()
    seconds = dict.fromkeys(runners, 0.0)
    for number, (reference, predicted) in enumerate(draw_patches(n_patches)):
        for name, count in runners.items():
            if name == "scikit-learn" and number >= n_slow:
                continue
            began = time.perf_counter()
            count(reference, predicted)
            seconds[name] += time.perf_counter() - began
    seconds["scikit-learn"] *= n_patches / min(n_patches, n_slow)
    return seconds


def growth(sizes: tuple[int, ...] = (500, 1000, 2000, 4000)) -> dict[int, float]:
    """Microseconds a patch, for more and more patches: the same, if the cost is linear."""
    found = {}
    for n in sizes:
        total, spent = np.zeros((N_CLASSES, N_CLASSES), np.int64), 0.0
        for reference, predicted in draw_patches(n):
            began = time.perf_counter()
            total += confusion(reference, predicted)
            spent += time.perf_counter() - began
        found[n] = round(1e6 * spent / n, 1)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--patches", type=int, default=5128)
    parser.add_argument("--sklearn", type=int, default=200, help="patches that scikit-learn gets")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    given = parser.parse_args()
    before = "torch" in sys.modules, "sklearn" in sys.modules
    per_patch = growth()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the peers are imported
    assert before == (False, False)
    agree()
    seconds = race(given.patches, given.sklearn)
    ours = seconds["lcfuse_core"]
    report = {
        "patches": given.patches,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "times_as_fast_as": {name: round(value / ours, 1) for name, value in seconds.items()},
        "us_per_patch_of_n": per_patch,
        "peak_memory_mb": round(peak_mb),
        "versions": {name: version(name) for name in ("numpy", "pillow", "scikit-learn", "torch", "torchmetrics")},
        "machine": _runtime.machine(),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
