"""What is published about SEN12MS: its size, official lists, hold-out scenes and defects (`shipped/sen12ms.yaml`)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from lcfuse_core._runtime import SHIPPED
from lcfuse_core._yaml import load_yaml
from lcfuse_core.errors import DataError

_LISTED_NAME = re.compile(r"(ROIs\d+_[a-z]+)_(?:(?:s1|s2|lc)_)?(\d+)_p(\d+)(?:\.tif)?")


@dataclass(frozen=True)
class Official:
    """Facts about SEN12MS as published."""

    n_triplets: int
    n_scenes: int
    lists: dict[str, tuple[str, int]]  # file and number of patches of the official lists, by "train" and "test"
    hold_out: dict[str, int]  # number of patches of each official hold-out scene, by scene id
    defects: dict[str, str]  # faults of published patches, by patch name


@cache
def sen12ms() -> Official:
    """Return the facts that are shipped with the package."""
    facts = load_yaml((SHIPPED / "sen12ms.yaml").read_bytes(), "sen12ms.yaml")
    hold_out = {f"{season}_{number}": n for season, scenes in facts["hold_out"].items() for number, n in scenes.items()}
    lists = {name: (entry["file"], entry["patches"]) for name, entry in facts["lists"].items()}
    return Official(facts["triplets"], facts["scenes"], lists, hold_out, facts["defects"])


def read_official_lists(folder: str | os.PathLike[str]) -> pd.DataFrame | None:
    """
    Read the official train and test lists: columns list, scene_id, name. None if neither is in *folder*.

    Raises DataError if a list is missing or incomplete, or if the test list is not of the official hold-out scenes.
    """
    facts, rows = sen12ms(), []
    paths = {name: Path(folder) / file for name, (file, _) in facts.lists.items()}
    if not any(path.is_file() for path in paths.values()):
        return None
    for name, path in paths.items():
        lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
        names = {match.groups() for match in map(_LISTED_NAME.fullmatch, lines) if match}
        if not len(names) == len(lines) == facts.lists[name][1]:
            found, expected = f"{len(names):,} patch names in {len(lines):,} lines", f"{facts.lists[name][1]:,} names"
            raise DataError(path, found=found, expected=expected, do="Fetch both lists again.")
        rows += [(name, f"{season}_{scene}", f"{season}_{scene}_p{patch}") for season, scene, patch in sorted(names)]
    lists = pd.DataFrame(rows, columns=["list", "scene_id", "name"])
    is_test = lists["list"] == "test"
    held_out = set(facts.hold_out)
    if strays := set(lists["scene_id"][is_test]) ^ held_out | set(lists["scene_id"][~is_test]) & held_out:
        found = f"{', '.join(sorted(strays)[:3])} in the wrong list"
        raise DataError(folder, found=found, expected="the official hold-out scenes", do="Fetch both lists again.")
    return lists


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts scene 9 before scene 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
