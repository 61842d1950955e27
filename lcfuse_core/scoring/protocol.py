"""
The protocol of evaluation: what a method may learn from, and on which patches and how it is scored.

A method learns from the MODIS labels of the training scenes that are not held out. It is evaluated once, on the test
split of the evaluation regions, pixel by pixel against the 10 m reference. That reference is opened only here, and
nothing learned from it goes back into a method.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from lcfuse_core._runtime import SHIPPED
from lcfuse_core._yaml import load_yaml
from lcfuse_core.data.legends import igbp_to_dfc
from lcfuse_core.data.patches import Patch, Report, complete, index, iter_patches, patch_name, split_by_scene
from lcfuse_core.errors import MissingDataError
from lcfuse_core.scoring import ledger
from lcfuse_core.scoring.scores import CELL_PX, N_CODES, PARTS, Scores, confusion, score_table, summarise

NEED = ("s1", "s2", "lc", "dfc")
"""The files of an evaluation patch: images, the MODIS label as the baseline, the reference."""

HELD_OUT = 1 / 8
"""Fraction of the training scenes that no network learns from: their MODIS labels are for validation."""

NAMES = {"forest": "Random forest", "fcn": "FCN", "unet": "U-Net", "deeplabv3plus": "DeepLabv3+"}
"""Names of the learners in tables."""

PLAIN, WEIGHTED = 0.0, 0.5
"""Powers of the class weights: every pixel counts alike, or 1 / sqrt(frequency of its class)."""

Classify = Callable[[Patch], NDArray[np.uint8]]
"""From a patch to a map, uint8 (H, W) of DFC2020 codes. The patch comes without its reference, `dfc`."""


@dataclass
class Result:
    """
    Confusion counts of one method, int64 (11, 11), in each region (`scene_id`), and of parts of the pixels.

    `split` and `n_patches` say which patches were evaluated; `parts` has a result for each of `scores.PARTS`.
    """

    by_region: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    split: str = ""
    n_patches: int = 0
    parts: dict[str, Result] = field(default_factory=dict)

    def add(self, region: str, counts: NDArray[np.int64]) -> None:
        """Add the counts of one more patch."""
        self.by_region[region] = self.by_region.get(region, 0) + counts
        self.n_patches += 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the counts of all regions together."""
        return sum(self.by_region.values(), np.zeros((N_CODES, N_CODES), np.int64))

    @property
    def scores(self) -> Scores:
        """Return the scores over all pixels of all regions; DataError if the reference holds no scored class."""
        return summarise(self.counts)

    @property
    def regions(self) -> dict[str, Scores]:
        """Return the scores of each region that has a scored pixel."""
        return {name: summarise(counts) for name, counts in self.by_region.items() if counts.any()}

    def for_ledger(self) -> dict[str, Any]:
        """Return what a ledger line keeps: scores, those of regions and of parts, and counts, which intervals need."""
        kept = asdict(self.scores) | {
            "regions": {name: asdict(own) for name, own in self.regions.items()},
            "counts": self.by_region,
            "n_patches": self.n_patches,
        }
        for name, part in self.parts.items():
            if part.counts.any():
                kept[name] = {"aa": part.scores.aa, "oa": part.scores.oa, "counts": part.by_region}
        return kept


def result_table(results: Mapping[str, Result]) -> pd.DataFrame:
    """
    Return the scores of each map as `scores.score_table` does, and beside the pooled AA the mean of the regions' AA.

    A map that only shows which class dominates each region has a high pooled AA and a low regional one. *Cells per
    region* is the mean area of the evaluated pixels of a region in coarse cells.
    """
    table = score_table({name: result.scores for name, result in results.items()})
    regional = {name: 100 * np.mean([one.aa for one in result.regions.values()]) for name, result in results.items()}
    table.insert(1, "regional AA %", pd.Series(regional).round(1))
    cells = {name: result.counts.sum() / CELL_PX / len(result.by_region) for name, result in results.items()}
    table["cells per region"] = pd.Series(cells).round().astype(int)
    return table


def method_name(learner: str, class_weight_power: float, loss: str = "cross_entropy") -> str:
    """
    Return the name of a method in tables and in the ledger; *learner* is a key of `NAMES`.

    >>> method_name("unet", 0.0), method_name("fcn", 0.5), method_name("fcn", 1.0, "bag")
    ('U-Net, plain', 'FCN, weighted', 'FCN, weighted (power 1), bag')
    """
    weights = {PLAIN: "plain", WEIGHTED: "weighted"}.get(class_weight_power)
    suffix = "" if loss == "cross_entropy" or learner == "forest" else f", {loss}"
    return f"{NAMES[learner]}, {weights or f'weighted (power {class_weight_power:g})'}{suffix}"


def split_scenes(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split an index into training patches and those of held-out scenes, the same whatever the seed."""
    return split_by_scene(table, HELD_OUT, seed=0)


def evaluation_patches(root: str | os.PathLike[str], split: str = "test") -> pd.DataFrame:
    """
    Return the index rows of the patches under *root* that have images, MODIS label and reference.

    *split* is "test", or "validation": the patches whose reference the regime *coarse + fine validation* may learn
    from. Without a test split, "test" gives the patches without a split or else, if there are only those, the
    validation patches. Raises MissingDataError if there are none.
    """
    whole = complete(index(root), NEED)
    if whole.empty:
        do = "Give a folder of DFC2020: its patches have s1, s2, lc and dfc files."
        raise MissingDataError(root, found="no patch with a reference", expected="at least one", do=do)
    own, others = whole["split"] == split, whole["split"] != "validation"
    if not own.any() and split != "test":
        do = "Download the validation part of DFC2020 as well, or use coarse labels only."
        raise MissingDataError(root, found=f"no patch of the {split} split", expected="at least one", do=do)
    chosen = next((part for part in (own, others) if part.any()), ~others)
    return whole[chosen].reset_index(drop=True)


def by_variety(table: pd.DataFrame) -> pd.DataFrame:
    """Sort the first 100 rows of an index by the number of classes in the MODIS label, without unreadable patches."""
    readable = iter_patches(table.head(100), Report(), ("s1", "s2", "lc"))
    n_classes = {patch.name: len(np.unique(modis_label_map(patch))) for patch in readable}
    names = pd.Series(list(map(patch_name, table.itertuples())), index=table.index)
    order = names.map(n_classes).dropna().sort_values(ascending=False, kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def modis_label_map(patch: Patch) -> NDArray[np.uint8]:
    """Return the MODIS label as a map, the baseline. Its Savanna, a class that the reference lacks, is an error."""
    assert patch.lc is not None
    return igbp_to_dfc(patch.lc[0])


def evaluate_methods(
    methods: Mapping[str, Classify], table: pd.DataFrame, *, progress: bool = False
) -> tuple[dict[str, Result], Report]:
    """
    Evaluate several methods against the reference, reading each patch once and keeping none.

    Parameters
    ----------
    methods : mapping of str to callable
        Methods by name; each gets a patch without its reference.
    table : pandas.DataFrame
        Index rows of the patches, as `evaluation_patches` returns them.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    tuple of dict and Report
        A `Result` per method. Patches that are refused are skipped for all methods alike and named in the report.

    Raises
    ------
    DataError
        If no patch could be read.
    """
    split, report = " and ".join(sorted({own or "all" for own in table["split"]})), Report()
    results = {name: Result(split=split, parts={part: Result(split=split) for part in PARTS}) for name in methods}
    region_of = dict(zip(map(patch_name, table.itertuples()), table["scene_id"], strict=True))
    patches = iter_patches(table, report, NEED)
    for patch in tqdm(patches, total=len(table), unit="patch", disable=not progress):
        reference, region = patch.dfc, region_of[patch.name]
        assert reference is not None
        parts = {name: mask_of(reference) for name, mask_of in PARTS.items()}
        without_reference = replace(patch, dfc=None)
        for name, classify in methods.items():
            predicted = classify(without_reference)
            results[name].add(region, confusion(reference, predicted))
            for part, inside in parts.items():
                results[name].parts[part].add(region, confusion(reference[inside], predicted[inside]))
    report.check()
    return results, report


def recorded_seeds(label_regime: str = "coarse only") -> pd.DataFrame:
    """Return the committed ledger lines of a label regime that `make seeds` wrote for several sample worlds."""
    lines = ledger.read(SHIPPED / "seeds.jsonl")
    return lines[lines["label_regime"] == label_regime].reset_index(drop=True)


def published() -> dict[str, Any]:
    """Return the figures of real data that the sample world is calibrated on; the file gives their sources."""
    values: dict[str, Any] = load_yaml((SHIPPED / "published.yaml").read_bytes(), "published.yaml")
    return values


def over_seeds(lines: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, the best mean first: AA in per cent with each seed, their mean and range."""
    wide = 100 * ledger.by_seed(lines, "scores.aa")
    summary = pd.DataFrame({"mean": wide.mean(axis=1), "min": wide.min(axis=1), "max": wide.max(axis=1)})
    table = wide.rename(columns=lambda seed: f"seed {seed}").join(summary).round(1)
    return table.sort_values("mean", ascending=False).rename_axis(index="method", columns=None)
