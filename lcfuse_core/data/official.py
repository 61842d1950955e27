"""
What SEN12MS should hold: official lists, hold-out scenes, known defects; and what a folder holds of it.

The facts stand in `shipped/sen12ms.yaml`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import pandas as pd
import yaml

from lcfuse_core.data.scenes import Report, complete, incomplete, patch_name
from lcfuse_core.errors import DataError

_LINE = re.compile(r"(ROIs\d+_[a-z]+)_(?:(?:s1|s2|lc)_)?(\d+)_p(\d+)(?:\.tif)?")


@dataclass(frozen=True)
class Official:
    """
    SEN12MS as published.

    n_triplets, n_scenes : of the whole set
    lists : file name and number of patches of the official lists, by "train" and "test"
    hold_out : patches of each official hold-out scene, by scene id
    defects : what is wrong with a published patch, by its name
    """

    n_triplets: int
    n_scenes: int
    lists: dict[str, tuple[str, int]]
    hold_out: dict[str, int]
    defects: dict[str, str]


@cache
def sen12ms() -> Official:
    """The facts that are shipped with the package."""
    facts = yaml.safe_load(resources.files("lcfuse_core").joinpath("shipped/sen12ms.yaml").read_text())
    hold_out = {f"{season}_{number}": n for season, scenes in facts["hold_out"].items() for number, n in scenes.items()}
    lists = {name: (entry["file"], entry["patches"]) for name, entry in facts["lists"].items()}
    return Official(facts["triplets"], facts["scenes"], lists, hold_out, facts["defects"])


def read_lists(folder: str | os.PathLike[str]) -> pd.DataFrame | None:
    """
    The official lists in *folder*: columns list ("train" or "test"), scene_id, name. None when they are not there.

    Raises DataError when one is there without the other, has another number of lines than published, names what is
    no patch, or when the lists do not part the scenes as published.
    """
    paths = {name: Path(folder) / file for name, (file, _) in sen12ms().lists.items()}
    there = [path for path in paths.values() if path.is_file()]
    if not there:
        return None
    if len(there) < len(paths):
        expected = " and ".join(path.name for path in paths.values())
        raise DataError(folder, found=f"only {there[0].name}", expected=expected, do="Fetch both lists.")
    both = pd.concat([_read_list(path, name) for name, path in paths.items()], ignore_index=True)
    held = set(both.loc[both["list"] == "test", "scene_id"])
    strays = held ^ set(sen12ms().hold_out) | held & set(both.loc[both["list"] == "train", "scene_id"])
    if strays:
        found = f"{', '.join(sorted(strays)[:3])} in the wrong list"
        raise DataError(folder, found=found, expected="the official hold-out scenes", do="Fetch both lists again.")
    return both


def _read_list(path: Path, name: str) -> pd.DataFrame:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    expected = f"{sen12ms().lists[name][1]:,} names of patches, such as ROIs1158_spring_s1_1_p30.tif"
    rows = []
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{path}, line {number}", found=repr(line), expected=expected, do="Fetch the list again.")
        season, scene, patch = match.groups()
        rows.append((name, f"{season}_{scene}", f"{season}_{scene}_p{patch}"))
    if len(set(rows)) != sen12ms().lists[name][1]:
        raise DataError(path, found=f"{len(set(rows)):,} names", expected=expected, do="Fetch the list again.")
    return pd.DataFrame(rows, columns=["list", "scene_id", "name"])


def usable(table: pd.DataFrame, need: Iterable[str] = ("s1", "s2", "lc")) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    The rows of an index that have every file in *need* and no known defect; and what was left out, with the reason.

    The second has columns what and reason, as `scenes.incomplete`.
    """
    need = list(need)
    whole = complete(table, need)
    names = pd.Series([patch_name(row) for row in whole.itertuples()], index=whole.index, dtype=object)
    is_bad = names.isin(sen12ms().defects)
    reasons = [(name, f"published damaged: {sen12ms().defects[name]}") for name in names[is_bad]]
    left_out = pd.concat([incomplete(table, need), pd.DataFrame(reasons, columns=["what", "reason"])])
    return whole[~is_bad].reset_index(drop=True), left_out.reset_index(drop=True)


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An index of SEN12MS as (train, held out) by the official hold-out scenes; either may be empty."""
    is_held = table["scene_id"].isin(sen12ms().hold_out)
    return table[~is_held].reset_index(drop=True), table[is_held].reset_index(drop=True)


def status(
    table: pd.DataFrame,
    *,
    lists: pd.DataFrame | None = None,
    wanted: Iterable[str] = (),
    report: Report | None = None,
    need: Iterable[str] = ("s1", "s2", "lc"),
) -> pd.DataFrame:
    """
    What is there of each scene of an index.

    lists : the official lists (`read_lists`): then every published scene has a row, and what it should hold is known
    wanted : further scenes that have a row even when nothing of them is there
    report : of reading the patches (`inventory.inspect`): only it can tell which are damaged

    One row a scene id, with columns
        held_out : whether it is an official hold-out scene
        expected : patches as published; <NA> where that is not known
        complete : patches with every file in *need* and no fault known
        incomplete : patches that lack a file
        damaged : patches that *report* names; <NA> without a report
        defective : patches damaged as published
        missing : expected patches of which no file is there; <NA> where that is not known
        state : "missing" (nothing is there), "damaged", "incomplete" (a file or patch is missing), "complete", or
            "unknown" (no file is missing of any patch that is there, but their number is not known)
    """
    facts = sen12ms()
    patches = _patches(table, list(need), report)
    if lists is not None:
        absent = lists[~lists["name"].isin(patches["name"])]
        patches = pd.concat([patches, absent[["scene_id", "name"]].assign(kind="missing")])
        published = {str(scene): len(rows) for scene, rows in lists.groupby("scene_id")}
    else:
        published = facts.hold_out
    scenes = sorted({*patches["scene_id"], *wanted}, key=natural)
    counts = pd.crosstab(patches["scene_id"], patches["kind"]).reindex(index=scenes, fill_value=0)
    counts = counts.reindex(columns=["complete", "incomplete", "damaged", "defective", "missing"], fill_value=0)
    result = counts.astype("Int64").rename_axis(index="scene_id", columns=None)
    result.insert(0, "expected", pd.Series([published.get(scene) for scene in scenes], result.index, "Int64"))
    result.insert(0, "held_out", result.index.isin(facts.hold_out))
    if lists is None:
        result["missing"] = (result["expected"] - result[["complete", "incomplete", "damaged"]].sum(axis=1)).clip(
            lower=0
        )
    result["state"] = [_state(row) for row in result.itertuples()]
    if report is None:
        result["damaged"] = pd.array([pd.NA] * len(result), "Int64")
    return result


def _patches(table: pd.DataFrame, need: list[str], report: Report | None) -> pd.DataFrame:
    """Scene, name and kind (complete, incomplete, damaged, defective) of each row of an index."""
    names = pd.Series([patch_name(row) for row in table.itertuples()], index=table.index, dtype=object)
    kind = pd.Series("complete", index=table.index).mask(table[need].isna().any(axis=1), "incomplete")
    if report is not None:
        is_damaged = names.isin([name for name, _ in report.skipped])
        kind = kind.mask(is_damaged & (kind == "complete"), "damaged")
    kind = kind.mask(names.isin(sen12ms().defects), "defective")
    return pd.DataFrame({"scene_id": table["scene_id"], "name": names, "kind": kind})


def _state(row: tuple) -> str:
    here = row.complete + row.incomplete + row.damaged + row.defective  # type: ignore[attr-defined]
    if not here:
        return "missing"
    if row.damaged:  # type: ignore[attr-defined]
        return "damaged"
    if row.incomplete or (row.missing is not pd.NA and row.missing):  # type: ignore[attr-defined]
        return "incomplete"
    return "unknown" if row.expected is pd.NA else "complete"  # type: ignore[attr-defined]


def natural(name: str) -> list[tuple[int, str]]:
    """Scene 9 before scene 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def differences(table: pd.DataFrame, lists: pd.DataFrame) -> list[str]:
    """In words, how an index differs from the official lists; empty when it does not."""
    found = []
    here, listed = {patch_name(row) for row in table.itertuples()}, set(lists["name"])
    for names, what in ((listed - here, "of the lists not here"), (here - listed, "here in no list")):
        known = sorted(name for name in names if name in sen12ms().defects)
        unknown = sorted(names - set(known), key=natural)
        if unknown:
            found.append(f"{len(unknown):,} patches {what}: {', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}")
        found += [f"{name} {what}: published damaged ({sen12ms().defects[name]})" for name in known]
    return found
