"""
Calibrate the confusions of the sample's MODIS label on p(DFC2020 class | MODIS label) of the real test set.

    python benchmarks/label_confusion.py [--seeds 0 1 2 3 4] [--out FILE]

The label step of the sample (`sample.sensors.see_modis`) depends on the land cover alone, so no image is made.
The expected frequencies of class and label follow from the classes of the cells and the confusion matrix of each
region, which is drawn around a mean matrix Q. Many Q give about the same p(class | label). Q minimises the squared
distance to the published values (`published.yaml`; the diagonal counts four times) and to their order (the most
frequent class of a label), plus `CLOSENESS` times two relative entropies: of its rows to the confusions that are
reported for the product, and of the frequencies of the labels to those before. The result, rounded, is
`sensors.MEAN_CONFUSION["dfc2020"]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lcfuse_core import _runtime
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import DFC2020, SCORED, dfc_to_index
from lcfuse_core.sample import sensors, world
from lcfuse_core.sample.landscape import make_landscape
from lcfuse_core.sample.sensors import CALIBRATED, MEAN_CONFUSION, MOSAIC_WEIGHT, REPORTED
from lcfuse_core.scoring import protocol

CLOSENESS, _STEPS, _RATE = 0.015, 300, 0.05


class Cells(NamedTuple):
    """Of the coarse cells of scenes: class weights and Savanna area that the label sees, and pixels of each class."""

    belief: Tensor
    mixed: Tensor
    pixels: Tensor


def cells_of(seed: int, number: int) -> Cells:
    """Return the cells of a test scene of a sample world."""
    biome, side = world.TEST_REGIONS[number % len(world.TEST_REGIONS)], world._EVALUATION_SIZE + 2 * world._MARGIN
    rng = np.random.default_rng((seed, 2, number, 2))  # as in `world._write_scene`
    crs, transform = world._draw_grid(rng, biome, side)
    truth = make_landscape(rng, biome, (side, side)).truth
    ids, keys = cell_ids(transform, crs, truth.shape)
    belief, mixed = sensors.as_classified(sensors.cell_shares(rng, truth, ids, len(keys)))
    inner = np.s_[world._MARGIN : -world._MARGIN, world._MARGIN : -world._MARGIN]
    index = len(SCORED) * ids[inner].ravel() + dfc_to_index(truth)[inner].ravel()
    pixels = np.bincount(index, minlength=len(SCORED) * len(keys)).reshape(len(keys), -1).astype(float)
    return Cells(*(torch.from_numpy(array[pixels.any(axis=1)]) for array in (belief, mixed, pixels)))


def joint(scenes: list[Cells], matrices: Iterable[Tensor], mosaic: float) -> Tensor:
    """Return the expected joint frequencies of class and label (8, 8), Savanna as Forest, of scenes and their Q."""
    total = torch.zeros(len(SCORED), len(SCORED) + 1, dtype=torch.float64)
    for cells, matrix in zip(scenes, matrices, strict=True):
        odds = cells.belief @ matrix
        odds = torch.cat([odds[:, :-1], odds[:, -1:] + mosaic * cells.mixed[:, None]], dim=1)
        p_label = torch.softmax(torch.log(odds + 1e-6) / sensors.LABEL_NOISE, dim=1)  # what Gumbel noise does
        total = total + cells.pixels.T @ p_label
    merged = torch.cat([total[:, :1] + total[:, -1:], total[:, 1:-1]], dim=1)
    return merged / merged.sum()


def given_label(frequencies: Tensor) -> Tensor:
    """Return p(class | label), a row per label, from joint frequencies."""
    return (frequencies / frequencies.sum(dim=0)).T


def drawn(mean: Tensor, n: int) -> Tensor:
    """Draw the matrices of *n* regions around a mean, as `sensors.draw_region` does."""
    concentration = sensors._CONFUSION_CONCENTRATION * mean + 0.02
    return torch.distributions.Dirichlet(concentration.expand(n, *mean.shape)).rsample()


def targets() -> Tensor:
    """Return the published p(class | label), a row per label; NaN where none is given."""
    table = np.full((len(SCORED), len(SCORED)), np.nan)
    for label, row in protocol.published()["class_given_label"].items():
        for code, value in row.items():
            table[SCORED.index(label), SCORED.index(code)] = value
    return torch.from_numpy(table)


def calibrate(scenes: list[Cells]) -> Tensor:
    """Return the mean confusion matrix (8, 9) with which these scenes have about the published frequencies."""
    torch.manual_seed(0)
    target, reported = targets(), torch.from_numpy(MEAN_CONFUSION[REPORTED])
    given, largest = ~target.isnan(), target.nan_to_num(0).argmax(dim=1, keepdim=True)
    weight = (given.double() + 3 * torch.eye(len(SCORED)))[given]
    before = joint(scenes, drawn(reported, len(scenes)), MOSAIC_WEIGHT[REPORTED]).sum(dim=0)
    reported = (reported + 0.01) / (reported + 0.01).sum(dim=1, keepdim=True)
    logits = torch.log(reported).requires_grad_()
    optimiser = torch.optim.Adam([logits])
    for step in range(_STEPS):
        optimiser.param_groups[0]["lr"] = _RATE * (1 - step / _STEPS)
        matrix = torch.softmax(logits, dim=1)
        found = joint(scenes, drawn(matrix, len(scenes)), MOSAIC_WEIGHT[CALIBRATED])
        p = given_label(found)
        misfit = (weight * (p - target)[given] ** 2).sum()
        disorder = (torch.relu(p - p.gather(1, largest)) ** 2).sum()
        rows = (matrix * torch.log(matrix / reported)).sum(dim=1).mean()
        labels = (before * torch.log(before / found.sum(dim=0))).sum()
        optimiser.zero_grad()
        (misfit + 10 * disorder + CLOSENESS * (rows + labels)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return torch.softmax(logits, dim=1).detach()


def rounded(matrix: Tensor) -> Tensor:
    """Round to 0.01; rows still sum to 1, by their largest entry."""
    figures = (100 * matrix).round()
    figures[torch.arange(len(figures)), figures.argmax(dim=1)] += 100 - figures.sum(dim=1)
    return figures / 100


def tables(scenes: list[Cells]) -> dict[str, pd.DataFrame]:
    """Return the calibrated matrix, and p(class | label): published, of both tables of `sensors`, and now."""
    matrix = rounded(calibrate(scenes))
    means = {name: torch.from_numpy(mean) for name, mean in MEAN_CONFUSION.items()} | {"now": matrix}
    names = [DFC2020.name_of(code) for code in SCORED]
    found = {"matrix": pd.DataFrame(matrix.numpy(), names, [*names, "Savanna"])}
    found["published"] = pd.DataFrame(targets().numpy(), names, names)
    for name, mean in means.items():
        mosaic = MOSAIC_WEIGHT.get(name, MOSAIC_WEIGHT[CALIBRATED])
        total = sum(joint(scenes, drawn(mean, len(scenes)), mosaic) for _ in range(10)) / 10
        found[name] = pd.DataFrame(given_label(total).numpy(), names, names)
        found[name]["label"] = total.sum(dim=0).numpy()
    return found


def main() -> None:
    """Calibrate, and print the matrix, the frequencies and, in the last column, how frequent each label is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="sample worlds")
    parser.add_argument("--out", type=Path, help="JSON to write, lcfuse_core/shipped/label_frequencies.json")
    options = parser.parse_args()
    found = tables([cells_of(seed, number) for seed in options.seeds for number in range(world.WorldPlan().n_test)])
    for name, table in found.items():
        print(f"\n{name}\n{table.round(2).to_string()}")
    if options.out:
        values = {name: found[name].iloc[:, : len(SCORED)].round(3).to_numpy().tolist() for name in MEAN_CONFUSION}
        _runtime.write_atomic(options.out, json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
