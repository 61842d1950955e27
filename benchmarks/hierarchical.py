"""
Measure how often the interval over worlds and regions contains the true mean score, and how often simpler ones do.

    python benchmarks/hierarchical.py [--sets 400] [--worlds 5] [--regions 6] [--draws 399] [--seed 0]

Each data set has some worlds with the same regions. The recall of a class in a region of a world is, on the scale of
probits, the sum of random effects: world, region, and region in the world. The true value is the mean score of many
worlds with many draws of regions. Intervals: `hierarchical`, the 95 % of its draws (percentile), Student's t of worlds.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

from lcfuse_core.scoring.intervals import hierarchical
from lcfuse_core.scoring.scores import N_CODES, compute_score

EFFECTS = {
    "worlds": (0.5, 0.0, 0.1),
    "regions": (0.1, 0.5, 0.1),
    "regions in a world": (0.1, 0.1, 0.5),
    "all alike": (0.3, 0.3, 0.3),
    "as the sample": (0.15, 0.1, 0.3),
}
"""Standard deviations of the effects of world, region, and region in a world, on the scale of probits."""

CODES = np.array([1, 4, 6, 10])
SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def simulate(
    rng: np.random.Generator, n_worlds: int, regions: NDArray[np.float64], effects: tuple[float, ...]
) -> NDArray:
    """Return counts (worlds, 1, regions, 11, 11); *regions* has the effects of the regions on each class."""
    n_regions = len(regions)
    probit = 0.3 + effects[0] * rng.standard_normal((n_worlds, 1, 1)) + effects[1] * regions
    probit = probit + effects[2] * rng.standard_normal((n_worlds, n_regions, len(CODES)))
    n_pixels = rng.multinomial(20_000, rng.dirichlet(5 * SHARES, (n_worlds, n_regions)))
    right = rng.binomial(n_pixels, special.ndtr(probit))
    counts = np.zeros((n_worlds, 1, n_regions, N_CODES, N_CODES), np.int64)
    counts[:, 0, :, CODES, CODES] = np.moveaxis(right, -1, 0)
    counts[:, 0, :, CODES, 0] = np.moveaxis(n_pixels - right, -1, 0)
    return counts


def coverage(effects: tuple[float, ...], options: argparse.Namespace) -> dict[str, float]:
    """Return for one combination of effects the coverage of each interval and the width of ours, in per cent."""
    rng = np.random.default_rng(options.seed)

    def draw(n_worlds: int) -> NDArray[np.int64]:
        return simulate(rng, n_worlds, rng.standard_normal((options.regions, len(CODES))), effects)

    truth = float(np.mean([compute_score(draw(10)[:, 0].sum(1), "aa").mean() for _ in range(2000)]))
    inside, widths = [], []
    for number in range(options.sets):
        sample = draw(options.worlds)
        one = hierarchical(sample, draws=options.draws, seed=number)
        worlds, regions = (rng.integers(0, n, (options.draws, n)) for n in (options.worlds, options.regions))
        drawn = sample[:, 0][worlds[:, :, None], regions[:, None]].sum(2)
        low, high = np.quantile(compute_score(drawn, "aa").mean(1), [0.025, 0.975])
        each = compute_score(sample[:, 0].sum(1), "aa")
        student = stats.t.interval(0.95, options.worlds - 1, each.mean(), stats.sem(each))
        inside.append((truth in one, low <= truth <= high, student[0] <= truth <= student[1]))
        widths.append(one.high - one.low)
    shares = 100 * np.mean(inside, axis=0)
    names = ("hierarchical", "percentile", "t of worlds")
    return dict(zip(names, shares, strict=True)) | {"width": 100 * float(np.median(widths))}


def main() -> None:
    """Measure and print a table: a row per combination of effects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("sets", 400), ("worlds", 5), ("regions", 6), ("draws", 399), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rows = {name: coverage(effects, options) for name, effects in EFFECTS.items()}
    print(pd.DataFrame.from_dict(rows, "index").rename_axis("largest effect").round(1).to_string())


if __name__ == "__main__":
    main()
