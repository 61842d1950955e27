"""
Patches on disk: index a folder of SEN12MS or DFC2020, split it by scene, read it, compare it with what is published.

Three layouts are recognised, by file names alone (folders may be nested, wrapped or flat):

    sen12ms          ROIs1158_spring_s2_124_p100.tif           UTM
    dfc2020-phase    ROIs0000_validation_s2_0_p7.tif           without georeference
    dfc2020-bundle   ROIs0000_autumn_s2_CapeTown_p7.tif        UTM

What is published about SEN12MS is in `download.official`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lcfuse_core.data.files import KINDS, join_layers, read_layer
from lcfuse_core.data.files import Patch as Patch  # where a reader looks for it
from lcfuse_core.data.packed import STORED, open_scene, packed_paths
from lcfuse_core.download.official import natural_order, sen12ms
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError

_FILE_NAME = re.compile(r"(ROIs\d+_[a-z]+)_(s1|s2|lc|dfc)_(\w+)_p(\d+)\.tif")
_TRAINING_KINDS = ("s1", "s2", "lc")


@dataclass
class Report:
    """Results of reading many patches: their number, and (name, description) of the repaired and the skipped."""

    n_read: int = 0
    repaired: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.n_read} patches read ({len(self.repaired)} of them repaired), {len(self.skipped)} skipped"
        lines = [f"  repaired {name}: {what}" for name, what in self.repaired]
        return "\n".join([head, *lines, *(f"  skipped {name}: {why}" for name, why in self.skipped)])

    def note(self, name: str, repairs: Sequence[str]) -> None:
        """Count a patch that was read, and what was repaired in it."""
        self.n_read += 1
        if repairs:
            self.repaired.append((name, "; ".join(repairs)))

    def add(self, other: Report) -> None:
        """Add the results of another part of the patches."""
        self.n_read += other.n_read
        self.repaired += other.repaired
        self.skipped += other.skipped

    def check(self) -> None:
        """Raise DataError if not a single patch was read."""
        if not self.n_read:
            first = self.skipped[0][1] if self.skipped else "an empty index"
            found = f"no readable patch among {len(self.skipped)}, the first because of: {first}"
            raise DataError("patches", found=found, expected="at least one", do="Repair or download the data.")


def index(root: str | os.PathLike[str]) -> pd.DataFrame:
    """
    List the patches under a folder, in any of the three layouts or in packed scenes, in a fixed order.

    Hidden files and `__MACOSX` are ignored. All of SEN12MS (542,000 files) takes some seconds on a local disk.

    Returns
    -------
    DataFrame
        One row per patch: layout, split ("train" for SEN12MS, "validation" or "test" for the phase archives, else
        ""), season, scene, patch (int), s1, s2, lc, dfc (path of the GeoTIFF or of the packed scene, or None),
        scene_id (what a split keeps together).
        `attrs["odd"]` holds (file, reason) of TIFF files that were not used; `incomplete` lists them.

    Raises
    ------
    MissingDataError
        If *root* is not a folder, holds no patch, or a folder in it cannot be listed.
    """
    root = Path(root)
    found: dict[tuple[str, str, int], list[str | None]] = {}  # paths by patch, in the order of KINDS
    odd = []
    for path in _tif_files(root):
        match = _FILE_NAME.fullmatch(os.path.basename(path))
        if match is None:
            odd.append((path, "not used: not named like a patch"))
            continue
        season, kind, scene, number = match.groups()
        paths = found.setdefault((sys.intern(season), sys.intern(scene), int(number)), [None] * len(KINDS))
        first = paths[KINDS.index(kind)]
        if first is None:
            paths[KINDS.index(kind)] = path
        else:
            odd.append((path, f"not used: second copy of {first}"))
    for path in map(str, packed_paths(root)):
        packed = open_scene(path)
        paths = [path if set(STORED[kind]) <= set(packed.layers) else None for kind in KINDS]
        found |= {_parts_of(name): paths for name in packed.names}
    if not found:
        expected = "SEN12MS or DFC2020 files, such as ROIs1158_spring_s2_124_p100.tif"
        do = "Check the folder, unpack the archives, or make the sample world."
        raise MissingDataError(root, found="no file named like a patch", expected=expected, do=do)
    regions, columns = _regions(root), ("layout", "split", "season", "scene", "patch", *KINDS, "scene_id")
    about = {key: _about(*key, regions) for key in found}
    keys = sorted(found, key=lambda key: _order(about[key][0], *key))
    rows = ((*about[key][:2], *key, *found[key], about[key][2]) for key in keys)
    table = pd.DataFrame(dict(zip(columns, zip(*rows, strict=True), strict=True)), dtype=object)  # as str, None is NaN
    table = table.astype({"patch": "int64"})
    table.attrs["odd"] = tuple(odd)
    return table


def _tif_files(root: Path) -> Iterator[str]:
    """Yield the paths of all TIFF files under *root*, sorted, without the litter of archives made on a Mac."""

    def refuse(error: OSError) -> None:  # where os.walk would silently skip a folder
        found, do = f"a folder that cannot be listed ({error.strerror})", "Check its permissions and the disk."
        raise MissingDataError(str(error.filename), found=found, expected="a readable folder", do=do) from None

    if not root.is_dir():
        raise MissingDataError(root, found="no such folder", expected="a data folder", do="Check the path.")
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if name != "__MACOSX" and not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith((".tif", ".tiff")) and not name.startswith("."):
                yield os.path.join(folder, name)


def _regions(root: Path) -> dict[str, dict[str, str]]:
    """Return the region of each patch of the phase archives by split and number: only the sample world records it."""
    path = next((p for p in (root / "world.json", root.parent / "world.json") if p.is_file()), None)
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["regions"])
    except (ValueError, KeyError, TypeError):
        found, expected = "no readable `regions`", "the record that `sample.world` writes"
        raise DataError(path, found=found, expected=expected, do="Make the world again.") from None


def _about(season: str, scene: str, patch: int, regions: dict[str, dict[str, str]]) -> tuple[str, str, str]:
    """Return layout, split and scene id of a patch."""
    part = season.split("_")[1]
    if not season.startswith("ROIs0000"):
        return "sen12ms", "train", sys.intern(f"{season}_{scene}")
    if part in ("validation", "test"):
        region = regions.get(part, {}).get(str(patch), f"{part}_{scene}")
        return "dfc2020-phase", sys.intern(part), sys.intern(region)
    return "dfc2020-bundle", "", scene


def _order(layout: str, season: str, scene: str, patch: int) -> tuple[Any, ...]:
    return layout, season, int(scene) if scene.isdigit() else -1, scene, patch


def _parts_of(name: str) -> tuple[str, str, int]:
    """Return season, scene and number of a patch from its name."""
    roi, season, rest = name.split("_", 2)
    scene, patch = rest.rsplit("_p", 1)
    return sys.intern(f"{roi}_{season}"), sys.intern(scene), int(patch)


def patch_name(row: Any) -> str:
    """Return the name of an index row, as in its files but without the kind: ROIs1158_spring_124_p100."""
    return f"{row.season}_{row.scene}_p{row.patch}"


def _names(table: pd.DataFrame) -> pd.Series:
    return pd.Series(list(map(patch_name, table.itertuples())), index=table.index, dtype=object)


def complete(table: pd.DataFrame, need: Iterable[str] = _TRAINING_KINDS) -> pd.DataFrame:
    """Return the rows of an index that have every kind in *need*, numbered anew; `incomplete` lists the others."""
    return table[table[_kinds(need)].notna().all(axis=1)].reset_index(drop=True)


def incomplete(table: pd.DataFrame, need: Iterable[str] = _TRAINING_KINDS) -> pd.DataFrame:
    """Return what `complete` leaves out and what `index` did not use: columns what (patch or file) and reason."""
    kinds = _kinds(need)
    rows = [
        (patch_name(row), "has no " + ", ".join(kind for kind in kinds if getattr(row, kind) is None))
        for row in table[table[kinds].isna().any(axis=1)].itertuples()
    ]
    return pd.DataFrame([*rows, *table.attrs.get("odd", ())], columns=["what", "reason"])


def _kinds(need: Iterable[str]) -> list[str]:
    kinds = list(need)
    if not set(kinds) <= set(KINDS):
        raise ParameterError("need", found=f"{kinds}", expected=f"kinds out of {KINDS}", do="Correct the kind.")
    return kinds


def with_truth(table: pd.DataFrame, truth_root: str | os.PathLike[str]) -> pd.DataFrame:
    """
    Return the index with the `dfc` files under *truth_root* filled in where season, scene and patch agree.

    Raises MissingDataError if not a single patch has one.
    """
    files = {(row.season, row.scene, row.patch): row.dfc for row in index(truth_root).itertuples()}
    keys = zip(table["season"], table["scene"], table["patch"], strict=True)
    filled = table.copy()
    filled["dfc"] = pd.Series([files.get(key) for key in keys], index=table.index, dtype=object)
    if filled["dfc"].isna().all():
        found, expected = "no dfc file of any patch in the index", "truth of the same seasons, scenes and patches"
        do = "Check that both folders belong together."
        raise MissingDataError(truth_root, found=found, expected=expected, do=do)
    return filled


def split_by_scene(table: pd.DataFrame, fraction: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    Hold out about a fraction of the scenes (at least one) and keep every scene whole.

    Neighbouring SEN12MS patches overlap by half: a split by patch would leak held-out pixels into training.

    Returns (train, held_out). Raises ParameterError unless there are two scenes and 0 < *fraction* < 1.
    """
    scenes = sorted(set(table["scene_id"]))
    if not 0 < fraction < 1 or len(scenes) < 2:
        found, expected = f"fraction {fraction} of {len(scenes)} scene(s)", "0 < fraction < 1, of two scenes or more"
        raise ParameterError("split_by_scene", found=found, expected=expected, do="Change the fraction or add scenes.")
    n_held = min(max(1, round(fraction * len(scenes))), len(scenes) - 1)
    is_held = table["scene_id"].isin(np.random.default_rng(seed).permutation(scenes)[:n_held].tolist())
    return table[~is_held].reset_index(drop=True), table[is_held].reset_index(drop=True)


def read_patch(row: Any, need: Iterable[str] | None = None) -> Patch:
    """
    Read and check the files of one row of an index (a Series or a named tuple).

    Kinds outside *need* are not opened, except s1 and s2; by default all files are read. The +1000 offset of newer
    Sentinel-2 products is removed and noted in `repairs`; any other fault is an error.

    Raises MissingDataError, DataError (damaged; other bands, dtype or unit), LegendError (unknown class code) or
    GridError (layers on different grids).
    """
    name = patch_name(row)
    available = {kind: getattr(row, kind) for kind in KINDS if getattr(row, kind) is not None}
    wanted = {"s1", "s2", *(available if need is None else _kinds(need))}
    missing = " and ".join(kind for kind in KINDS if kind in wanted - set(available))
    if missing:
        found = f"only {', '.join(available.values())}"
        do = f"Fetch the {missing} file of this patch, or leave it out (patches.complete)."
        raise MissingDataError(name, found=found, expected=f"{missing} beside it", do=do)
    paths = {kind: available[kind] for kind in KINDS if kind in wanted}
    layers = {
        kind: open_scene(path).layer(name, kind) if is_packed(path) else read_layer(path, kind)
        for kind, path in paths.items()
    }
    return join_layers(name, paths, layers)


def is_packed(path: str) -> bool:
    """Return whether a file named in an index is a packed scene, else it is a GeoTIFF."""
    return path.endswith(".json")


def iter_patches(table: pd.DataFrame, report: Report, need: Iterable[str] | None = None) -> Iterator[Patch]:
    """Read the rows of an index one by one; patches that `read_patch` refuses are noted in *report* and skipped."""
    need = None if need is None else _kinds(need)
    for row in table.itertuples():
        try:
            patch = read_patch(row, need)
        except LcfuseError as error:
            report.skipped.append((patch_name(row), str(error)))
            continue
        report.note(patch.name, patch.repairs)
        yield patch


def read_many(table: pd.DataFrame, need: Iterable[str] | None = None) -> tuple[list[Patch], Report]:
    """
    Read all rows of an index as `iter_patches` does, 2.6 MB for each patch of 256 x 256.

    Raises DataError if not a single patch could be read.
    """
    report = Report()
    patches = list(iter_patches(table, report, need))
    report.check()
    return patches, report


def inspect(table: pd.DataFrame, *, workers: int = 1, progress: bool = False) -> Report:
    """Read every patch of an index, some 15 ms each, and return the report alone: which are damaged or repaired."""
    parts = [table.iloc[start : start + 64] for start in range(0, len(table), 64)]
    report = Report()
    with ExitStack() as stack:
        run = map if workers == 1 else stack.enter_context(ProcessPoolExecutor(workers)).map
        for part in tqdm(run(_inspect, parts), total=len(parts), unit="64 patches", disable=not progress):
            report.add(part)
    return report


def _inspect(part: pd.DataFrame) -> Report:
    report = Report()
    for _ in iter_patches(part, report):
        pass
    return report


def usable(table: pd.DataFrame, need: Iterable[str] = _TRAINING_KINDS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the complete rows of an index without the published defects, and what was left out as in `incomplete`."""
    need = list(need)
    whole, defects = complete(table, need), sen12ms().defects
    is_bad = _names(whole).isin(defects)
    reasons = [(name, f"published damaged: {defects[name]}") for name in _names(whole[is_bad])]
    left_out = pd.concat([incomplete(table, need), pd.DataFrame(reasons, columns=["what", "reason"])])
    return whole[~is_bad].reset_index(drop=True), left_out.reset_index(drop=True)


def scene_status(
    table: pd.DataFrame,
    *,
    lists: pd.DataFrame | None = None,
    wanted: Iterable[str] = (),
    report: Report | None = None,
    need: Iterable[str] = _TRAINING_KINDS,
) -> pd.DataFrame:
    """
    Count the patches of each scene of an index, of *wanted* and of the official *lists*, by their state.

    Damaged patches are those of the *report* of `inspect`.

    Returns
    -------
    DataFrame
        By scene id: held_out (an official hold-out scene?), numbers of patches expected, complete, incomplete,
        damaged, defective (as published) and missing, <NA> if unknown, and state: "missing", "damaged",
        "incomplete", "complete", or "unknown" if all files of the patches are there but their number is unknown.
    """
    facts, names = sen12ms(), _names(table)
    kind = pd.Series("complete", index=table.index).mask(table[list(need)].isna().any(axis=1), "incomplete")
    if report is not None:
        kind = kind.mask(names.isin([name for name, _ in report.skipped]) & (kind == "complete"), "damaged")
    kind = kind.mask(names.isin(facts.defects), "defective")
    patches = pd.DataFrame({"scene_id": table["scene_id"], "kind": kind})
    published = facts.hold_out
    if lists is not None:
        published = {str(scene): len(rows) for scene, rows in lists.groupby("scene_id")}
        patches = pd.concat([patches, lists.loc[~lists["name"].isin(names), ["scene_id"]].assign(kind="missing")])
    scenes = sorted({*patches["scene_id"], *wanted}, key=natural_order)
    columns = ["complete", "incomplete", "damaged", "defective", "missing"]
    counts = pd.crosstab(patches["scene_id"], patches["kind"]).reindex(index=scenes, columns=columns, fill_value=0)
    result = counts.astype("Int64").rename_axis(index="scene_id", columns=None)
    result.insert(0, "expected", pd.Series([published.get(scene) for scene in scenes], result.index, "Int64"))
    result.insert(0, "held_out", result.index.isin(facts.hold_out))
    if lists is None:
        present = result[["complete", "incomplete", "damaged"]].sum(axis=1)
        result["missing"] = (result["expected"] - present).clip(lower=0)
    is_empty = result[["complete", "incomplete", "damaged", "defective"]].sum(axis=1) == 0
    lacks = (result["incomplete"] + result["missing"].fillna(0)) > 0
    result["state"] = np.select(
        [is_empty, result["damaged"] > 0, lacks, result["expected"].isna()],
        ["missing", "damaged", "incomplete", "unknown"],
        "complete",
    )
    if report is None:
        result["damaged"] = pd.array([pd.NA] * len(result), "Int64")
    return result


def official_differences(table: pd.DataFrame, lists: pd.DataFrame) -> list[str]:
    """Describe how an index differs from the official lists; empty if it does not."""
    differences = []
    here, listed, defects = set(_names(table)), set(lists["name"]), sen12ms().defects
    for names, what in ((listed - here, "of the lists not here"), (here - listed, "here in no list")):
        unknown = sorted(names - set(defects), key=natural_order)
        if unknown:
            more = ", ..." * (len(unknown) > 3)
            differences.append(f"{len(unknown):,} patches {what}: {', '.join(unknown[:3])}{more}")
        known = sorted(names & set(defects))
        differences += [f"{name} {what}: published damaged ({defects[name]})" for name in known]
    return differences
