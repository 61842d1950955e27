"""
The one protocol: what a method may learn from, on what it is judged, and what was found over several seeds.

A method learns from the MODIS labels of the training scenes that are not held out. It is judged once, on the test
split of the evaluation regions, pixel by pixel against the 10 m reference. That reference is opened here and nowhere
else, and nothing that is seen here goes back into a method.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from lcfuse_core.data.legends import igbp_to_dfc
from lcfuse_core.data.patches import Patch, Report, complete, index, iter_patches, patch_name, split_by_scene
from lcfuse_core.errors import MissingDataError
from lcfuse_core.scoring import ledger
from lcfuse_core.scoring.scores import N_CODES, Scores, confusion, summarise

NEED = ("s1", "s2", "lc", "dfc")
"""The files of an evaluation patch: images, the MODIS label as the floor, the reference."""

HELD_OUT = 1 / 8
"""Share of the training scenes that no network learns from: their MODIS labels give the early numbers."""

NAMES = {"forest": "Random forest", "fcn": "FCN", "unet": "U-Net", "deeplabv3plus": "DeepLabv3+"}
"""What learns, as tables call it."""

USUAL_LOSS = "cross_entropy"

PLAIN, WEIGHTED = 0.0, 0.5
"""Powers of the class weights: every pixel counts alike, or 1 / sqrt(frequency of its class)."""

SEEDS = "shipped/seeds.jsonl"
"""Ledger of all methods over several seeds, inside the package; `make seeds` writes it anew."""

PUBLISHED = "shipped/published.yaml"

Classify = Callable[[Patch], NDArray[np.uint8]]
"""A map, uint8 (H, W) of DFC2020 codes, from a patch. It must not look at the patch's `dfc`, and never gets it."""


@dataclass
class Result:
    """What became of one method: its confusion counts, int64 (11, 11), in each region (`scene_id`)."""

    by_region: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, region: str, counts: NDArray[np.int64]) -> None:
        """Add the counts of one more patch."""
        self.by_region[region] = self.by_region.get(region, 0) + counts

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of all regions together."""
        return sum(self.by_region.values(), np.zeros((N_CODES, N_CODES), np.int64))

    @property
    def scores(self) -> Scores:
        """Over all pixels of all regions; DataError when the reference holds no scored class."""
        return summarise(self.counts)

    @property
    def regions(self) -> dict[str, Scores]:
        """Scores of each region that has a scored pixel."""
        return {name: summarise(counts) for name, counts in self.by_region.items() if counts.any()}


def method_name(learner: str, class_weight_power: float, loss: str = USUAL_LOSS) -> str:
    """
    The name of a method in tables and in the ledger.

    loss : what a network minimises, named unless it is the usual one; a forest has none

    >>> method_name("unet", 0.0), method_name("fcn", 0.5), method_name("fcn", 1.0, "bag")
    ('U-Net, plain', 'FCN, weighted', 'FCN, weighted (power 1), bag')
    """
    known = {PLAIN: "plain", WEIGHTED: "weighted"}
    named = "" if loss == USUAL_LOSS or learner == "forest" else f", {loss}"
    return f"{NAMES[learner]}, {known.get(class_weight_power, f'weighted (power {class_weight_power:g})')}{named}"


def split_scenes(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    Training patches to learn from, and those of held-out scenes: always the same scenes, whatever the seed.

    Raises ParameterError when there are not two scenes.
    """
    return split_by_scene(table, HELD_OUT, seed=0)


def evaluation_patches(root: str | os.PathLike[str], split: str = "test") -> pd.DataFrame:
    """
    The rows of the index of *root* that are judged: those of the test split or, where there is none, all.

    split : "validation" gives the patches whose reference the regime *coarse + fine validation* may learn from,
        and never any others

    Raises MissingDataError when no such patch has images, MODIS label and reference.
    """
    whole = complete(index(root), NEED)
    if whole.empty:
        do = "Give a folder of DFC2020: its patches have s1, s2, lc and dfc files."
        raise MissingDataError(root, found="no patch with a reference", expected="at least one", do=do)
    chosen = whole[whole["split"] == split]
    if chosen.empty and split != "test":
        do = "Get the validation part of DFC2020 as well, or stay with coarse labels."
        raise MissingDataError(root, found=f"no patch of the {split} split", expected="at least one", do=do)
    return (whole if chosen.empty else chosen).reset_index(drop=True)


def by_variety(table: pd.DataFrame, first: int = 100) -> pd.DataFrame:
    """
    The *first* rows of an index, most varied first: what is worth looking at, chosen without the reference.

    Varied is a patch whose MODIS label names many classes. Unreadable patches are left out.
    """
    readable = iter_patches(table.head(first), Report(), ("s1", "s2", "lc"))
    n_classes = {patch.name: len(np.unique(modis_map(patch))) for patch in readable}
    names = pd.Series(list(map(patch_name, table.itertuples())), index=table.index)
    order = names.map(n_classes).dropna().sort_values(ascending=False, kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def modis_map(patch: Patch) -> NDArray[np.uint8]:
    """The floor: the MODIS label itself as a map. Its Savanna, which the reference does not know, is an error."""
    assert patch.lc is not None
    return igbp_to_dfc(patch.lc[0])


def judge(
    methods: Mapping[str, Classify], table: pd.DataFrame, *, progress: bool = False
) -> tuple[dict[str, Result], Report]:
    """
    The results of several *methods* (by name) on the patches of *table*, each read once and then dropped.

    Patches that are refused are skipped, counted and named in the report, for all methods alike. Raises
    DataError when not one could be read.
    """
    results, report = {name: Result() for name in methods}, Report()
    region_of = dict(zip(map(patch_name, table.itertuples()), table["scene_id"], strict=True))
    patches = iter_patches(table, report, NEED)
    for patch in tqdm(patches, total=len(table), unit="patch", disable=not progress):
        assert patch.dfc is not None
        shown = replace(patch, dfc=None)  # what a method sees
        for name, classify in methods.items():
            results[name].add(region_of[patch.name], confusion(patch.dfc, classify(shown)))
    report.check()
    return results, report


def recorded(label_regime: str = "coarse only") -> pd.DataFrame:
    """The ledger lines of a label regime that `scripts/seeds.py` wrote, from the sample worlds of several seeds."""
    with resources.as_file(resources.files("lcfuse_core") / SEEDS) as path:
        lines = ledger.read(path)
    return lines[lines["label_regime"] == label_regime].reset_index(drop=True)


def published() -> dict[str, Any]:
    """Figures of real data that the sample world is calibrated on, with their sources beside them in the file."""
    values: dict[str, Any] = yaml.safe_load((resources.files("lcfuse_core") / PUBLISHED).read_text())
    return values


def over_seeds(lines: pd.DataFrame, score: str = "aa", digits: int = 1) -> pd.DataFrame:
    """
    One row a method, the best mean first: its *score* in per cent with each seed, their mean and range.

    lines : a ledger, as `recorded` returns it
    """
    wide = 100 * lines.pivot(index="parameters.method", columns="seeds.world", values=f"scores.{score}")
    summary = pd.DataFrame({"mean": wide.mean(axis=1), "min": wide.min(axis=1), "max": wide.max(axis=1)})
    table = wide.rename(columns=lambda seed: f"seed {seed}").join(summary).round(digits)
    return table.sort_values("mean", ascending=False).rename_axis(index="method", columns=None)
