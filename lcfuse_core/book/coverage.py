"""
Do 95 % intervals hold the true score in 95 % of cases? A simulation in which the truth is known.

Stands in for: scoring a map on a handful of scenes. A scene is a smooth random pattern of the eight scored classes,
some common and some rare, in a mix of its own; the map is wrong in smooth patches of pixels, more often for some
classes, and in some scenes more than in others. Breaks down: scenes are equally large and independent of each other,
wrong pixels get one class, and no patch overlaps another.

A population of scenes is made once; its AA is the true one, to the last digit. Each data set draws some of its scenes
at random, and each kind of interval is asked whether it holds that AA.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from lcfuse_core.data.legends import SCORED
from lcfuse_core.scoring import intervals
from lcfuse_core.scoring.scores import N_CODES, compute_score

SIDE_PX = 64
FIELD_PX, ERROR_PX = 6.0, 3.0
"""Standard deviation of the Gaussian that smooths the classes, and the errors: how far pixels are alike."""

COMMON = np.linspace(0.8, -0.8, len(SCORED))
"""How strong each class is in all scenes; in each scene, one standard deviation of noise is added."""

EASE = np.linspace(1.0, -0.4, len(SCORED))
"""How easy each class is (probit of its recall in an average scene): 84 % for the first, 34 % for the last."""

SCENE_EASE, CLASS_EASE = 0.5, 0.6
"""Standard deviations of what a scene, and each class in a scene, adds to that."""

PIXELS = "pixels, as if independent"


def _smooth(rng: np.random.Generator, n: int, sigma_px: float) -> NDArray[np.float64]:
    """Gaussian random fields of mean 0 and deviation 1, float (n, SIDE_PX, SIDE_PX)."""
    noise = rng.standard_normal((n, SIDE_PX, SIDE_PX))
    fields = ndimage.gaussian_filter(noise, (0, sigma_px, sigma_px), mode="wrap")
    return fields / fields.std(axis=(1, 2), keepdims=True)


def draw_scene(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A reference and a map of one scene, uint8 (SIDE_PX, SIDE_PX) of DFC2020 codes."""
    n_classes = len(SCORED)
    mix = COMMON + rng.standard_normal(n_classes)
    classes = (_smooth(rng, n_classes, FIELD_PX) + mix[:, None, None]).argmax(axis=0)
    ease = EASE + SCENE_EASE * rng.standard_normal() + CLASS_EASE * rng.standard_normal(n_classes)
    wrong = _smooth(rng, 1, ERROR_PX)[0] > ease[classes]
    codes = np.array(SCORED, np.uint8)
    return codes[classes], codes[(classes + wrong) % n_classes]


def draw_population(n_scenes: int = 3000, seed: int = 0) -> NDArray[np.int64]:
    """Confusion counts of many scenes, int64 (n_scenes, 11, 11): seven seconds for 3,000."""
    rng = np.random.default_rng(seed)
    found = np.zeros((n_scenes, N_CODES, N_CODES), np.int64)
    for counts in found:
        reference, predicted = draw_scene(rng)
        np.add.at(counts, (reference, predicted), 1)
    return found


def coverage(
    population: NDArray[np.int64],
    n_scenes: Iterable[int] = (7, 30),
    *,
    data_sets: int = 500,
    methods: Iterable[str] = intervals.METHODS,
    draws: int = 199,
    seed: int = 0,
) -> pd.DataFrame:
    """
    How often 95 % intervals hold the true AA, and how wide they are, both in per cent.

    n_scenes : scenes in a data set; 7 is the number of regions of DFC2020, 30 about that of SEN12MS's hold-out scenes
    data_sets : drawn for each number of scenes; draws : of a bootstrap

    Returns one row a number of scenes and kind of interval: columns scenes, interval, covered, width, data_sets.
    """
    truth = float(compute_score(population.sum(axis=0), "aa"))
    rng, rows = np.random.default_rng(seed), []
    for n in n_scenes:
        found: dict[str, list[intervals.Interval]] = {}
        for number in range(data_sets):
            sample = population[rng.integers(0, len(population), n)]
            found.setdefault(PIXELS, []).append(intervals.over_pixels(sample.sum(axis=0)))
            for method in methods:
                one = intervals.interval(sample, method=method, draws=draws, seed=number)
                found.setdefault(f"scenes, {method}", []).append(one)
        for kind, all_of_it in found.items():
            covered = 100 * np.mean([truth in one for one in all_of_it])
            width = 100 * np.mean([one.high - one.low for one in all_of_it])
            rows.append((n, kind, covered, width, data_sets))
    return pd.DataFrame(rows, columns=["scenes", "interval", "covered", "width", "data_sets"])


def examples(population: NDArray[np.int64], n_scenes: int = 7, n_sets: int = 25, seed: int = 0) -> pd.DataFrame:
    """
    Intervals of a few data sets, to look at: columns data_set, interval, value, low, high in per cent.

    `attrs["truth"]` is the true AA in per cent.
    """
    rng, rows = np.random.default_rng(seed), []
    for number in range(n_sets):
        sample = population[rng.integers(0, len(population), n_scenes)]
        kinds = {PIXELS: intervals.over_pixels(sample.sum(axis=0)), "scenes, bootstrap": intervals.interval(sample)}
        rows += [(number, kind, 100 * one.value, 100 * one.low, 100 * one.high) for kind, one in kinds.items()]
    table = pd.DataFrame(rows, columns=["data_set", "interval", "value", "low", "high"])
    table.attrs["truth"] = 100 * float(compute_score(population.sum(axis=0), "aa"))
    return table
