"""
From a folder of files to checked patches: index SEN12MS or DFC2020, split by scene, read.

Three layouts are known, by the names of the files alone (folders may be nested, wrapped or flat):

    sen12ms          ROIs1158_spring_s2_124_p100.tif           UTM
    dfc2020-phase    ROIs0000_validation_s2_0_p7.tif           no georeference
    dfc2020-bundle   ROIs0000_autumn_s2_CapeTown_p7.tif        UTM
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from lcfuse_core.data.files import KINDS, common_grid, read_layer
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError

_FILE_NAME = re.compile(r"(ROIs\d+_[a-z]+)_(s1|s2|lc|dfc)_(\w+)_p(\d+)\.tif")


@dataclass(frozen=True)
class Patch:
    """
    One checked patch of H x W pixels of 10 m, rows north to south.

    s1 : float32 (2, H, W), backscatter VV and VH in dB
    s2 : uint16 (13, H, W), top-of-atmosphere reflectance x 10000 in file order, offset removed:
        B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12
    lc : uint8 (4, H, W) or None, MODIS at 10 m: IGBP, LCCS land cover, LCCS land use, LCCS hydrology
    dfc : uint8 (H, W) or None, DFC2020 codes of the 10 m reference
    crs, transform : georeference, both None where the files have none
    repairs : what was mended on reading, in words
    """

    name: str
    s1: NDArray[np.float32]
    s2: NDArray[np.uint16]
    lc: NDArray[np.uint8] | None = None
    dfc: NDArray[np.uint8] | None = None
    crs: CRS | None = None
    transform: Affine | None = None
    repairs: tuple[str, ...] = ()


@dataclass
class Report:
    """What became of the patches that were to be read; `print(report)` names each that was not plain."""

    n_read: int = 0
    repaired: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.repaired)} of them repaired), {len(self.skipped)} skipped"
        head = f"{self.n_read} patches read ({counts}"
        lines = [f"  repaired {name}: {what}" for name, what in self.repaired]
        return "\n".join([head, *lines, *(f"  skipped {name}: {why}" for name, why in self.skipped)])

    def check(self) -> None:
        """Raise DataError when not one patch could be read."""
        if not self.n_read:
            first = self.skipped[0][1] if self.skipped else "an empty index"
            found = f"no readable patch among {len(self.skipped)}, the first because of: {first}"
            raise DataError("patches", found=found, expected="at least one", do="Mend or fetch the data.")


def index(root: str | os.PathLike[str], *, visited: dict[str, int] | None = None) -> pd.DataFrame:
    """
    One row per patch found under *root*, in any of the three layouts; the same for the same files.

    Columns: layout, split ("train" for SEN12MS, "validation" or "test" for the phase archives, else ""),
    season, scene, patch (int), s1, s2, lc, dfc (path or None), scene_id (what a split keeps together).
    `attrs["odd"]` holds (file, reason) of TIFF files that were not used: see `incomplete`. Hidden files and
    `__MACOSX` are passed over. For a large folder see `inventory.index`, which lists it once.

    visited : filled with the folders that were listed and the time each was last changed (ns)

    Raises MissingDataError when *root* is no folder, cannot be listed or holds no patch.
    """
    found: dict[tuple[str, str, int], dict[str, str]] = {}
    odd: list[tuple[str, str]] = []
    for path in _tif_files(Path(root), {} if visited is None else visited):
        match = _FILE_NAME.fullmatch(os.path.basename(path))
        if match is None:
            odd.append((path, "not used: not named like a patch"))
            continue
        season, kind, scene, number = match.groups()
        first = found.setdefault((season, scene, int(number)), {}).setdefault(kind, path)
        if first != path:
            odd.append((path, f"not used: second copy of {first}"))
    if not found:
        raise MissingDataError(
            root,
            found="no file named like a patch",
            expected="SEN12MS or DFC2020 files, such as ROIs1158_spring_s2_124_p100.tif",
            do="Check the folder, unpack the archives, or make the sample world.",
        )
    regions = _regions(Path(root))
    rows = sorted((_row(*key, files, regions) for key, files in found.items()), key=_order)
    found.clear()  # of 180,662 triplets it takes 60 MB
    table = pd.DataFrame(rows, dtype=object).astype({"patch": "int64"})  # as str, None would become NaN
    table.attrs["odd"] = tuple(odd)
    return table


def _tif_files(root: Path, visited: dict[str, int]) -> Iterator[str]:
    """Paths of all TIFF files under *root*, sorted, without the litter of archives made on a Mac."""
    if not root.is_dir():
        raise MissingDataError(root, found="no such folder", expected="a data folder", do="Check the path.")
    for folder, folders, files in os.walk(root, onerror=_refuse_folder):
        visited[folder] = os.stat(folder).st_mtime_ns
        folders[:] = sorted(name for name in folders if name != "__MACOSX" and not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith((".tif", ".tiff")) and not name.startswith("."):
                yield os.path.join(folder, name)


def _refuse_folder(error: OSError) -> None:
    """Half a data set is worse than none: os.walk would pass over what it cannot list."""
    raise MissingDataError(
        str(error.filename),
        found=f"a folder that cannot be listed ({error.strerror})",
        expected="a readable folder",
        do="Check its permissions and the disk.",
    ) from None


def _regions(root: Path) -> dict[str, dict[str, str]]:
    """Region of each patch number of the phase archives, by split: only the sample world tells."""
    path = next((p for p in (root / "world.json", root.parent / "world.json") if p.is_file()), None)
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["regions"])
    except (ValueError, KeyError, TypeError):
        found, expected = "no readable `regions`", "the description that `world` writes"
        raise DataError(path, found=found, expected=expected, do="Make the world again.") from None


def _row(
    season: str, scene: str, patch: int, files: dict[str, str], regions: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """One row of the index."""
    part = season.split("_")[1]
    if not season.startswith("ROIs0000"):
        layout, split, scene_id = "sen12ms", "train", f"{season}_{scene}"
    elif part in ("validation", "test"):
        layout, split = "dfc2020-phase", part
        scene_id = regions.get(part, {}).get(str(patch), f"{part}_{scene}")
    else:
        layout, split, scene_id = "dfc2020-bundle", "", scene
    place = {"layout": layout, "split": split, "season": season, "scene": scene, "patch": patch}
    return place | {kind: files.get(kind) for kind in KINDS} | {"scene_id": scene_id}


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    number = int(row["scene"]) if row["scene"].isdigit() else -1
    return row["layout"], row["season"], number, row["scene"], row["patch"]


def patch_name(row: Any) -> str:
    """Name of an index row, as in its files but without the kind: ROIs1158_spring_124_p100."""
    return f"{row.season}_{row.scene}_p{row.patch}"


def complete(table: pd.DataFrame, need: Iterable[str] = ("s1", "s2", "lc")) -> pd.DataFrame:
    """The rows of an index that have every kind in *need*, numbered anew; `incomplete` tells of the rest."""
    return table[table[_kinds(need)].notna().all(axis=1)].reset_index(drop=True)


def incomplete(table: pd.DataFrame, need: Iterable[str] = ("s1", "s2", "lc")) -> pd.DataFrame:
    """What `complete` leaves out and `index` did not use: columns what (patch or file) and reason."""
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
    The index with the `dfc` files under *truth_root* filled in, where season, scene and patch agree.

    Raises MissingDataError when not a single patch has one.
    """
    truth = index(truth_root)
    files = {(row.season, row.scene, row.patch): row.dfc for row in truth.itertuples()}
    places = zip(table["season"], table["scene"], table["patch"], strict=True)
    filled = table.copy()
    filled["dfc"] = pd.Series([files.get(place) for place in places], index=table.index, dtype=object)
    if filled["dfc"].isna().all():
        raise MissingDataError(
            truth_root,
            found="no dfc file of any patch in the index",
            expected="truth of the same seasons, scenes and patches",
            do="Check that both folders belong together.",
        )
    return filled


def split_by_scene(table: pd.DataFrame, fraction: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    Hold out about *fraction* of the scenes (at least one) and keep every scene whole.

    Neighbouring SEN12MS patches overlap by half: a split by patch would show held-out pixels in training.
    Returns (train, held_out). Raises ParameterError when there are not two scenes to part.
    """
    scenes = sorted(set(table["scene_id"]))
    if not 0 < fraction < 1 or len(scenes) < 2:
        raise ParameterError(
            "split_by_scene",
            found=f"fraction {fraction} of {len(scenes)} scene(s)",
            expected="a fraction between 0 and 1, of two scenes or more",
            do="Change the fraction or add scenes.",
        )
    n_held = min(max(1, round(fraction * len(scenes))), len(scenes) - 1)
    held = np.random.default_rng(seed).permutation(scenes)[:n_held].tolist()
    is_held = table["scene_id"].isin(held)
    return table[~is_held].reset_index(drop=True), table[is_held].reset_index(drop=True)


def read_patch(row: Any, need: Iterable[str] | None = None) -> Patch:
    """
    Read and check the files of one row of an index (a Series, or a tuple of `itertuples`).

    need : the kinds to read; they must be there, and no other file is opened. By default every file there is.
        s1 and s2 are always read.

    One fault is mended and noted in `repairs`: the +1000 offset of newer Sentinel-2 products. Every other is
    refused: MissingDataError (no such file), DataError (damaged; other bands, dtype, unit; NaN), LegendError
    (unknown class code), GridError (layers of different size or place).
    """
    name = patch_name(row)
    there = {kind: getattr(row, kind) for kind in KINDS if getattr(row, kind) is not None}
    wanted = {"s1", "s2", *(there if need is None else _kinds(need))}
    missing = " and ".join(kind for kind in KINDS if kind in wanted - set(there))
    if missing:
        found = f"only {', '.join(there.values())}"
        do = f"Fetch the {missing} file of this patch, or leave it out (scenes.complete)."
        raise MissingDataError(name, found=found, expected=f"{missing} beside it", do=do)
    paths = {kind: there[kind] for kind in KINDS if kind in wanted}
    layers = {kind: read_layer(path, kind) for kind, path in paths.items()}
    crs, transform = common_grid(paths, layers)
    repairs = tuple(repair for layer in layers.values() for repair in layer.repairs)
    lc = layers["lc"].data if "lc" in layers else None
    dfc = layers["dfc"].data[0] if "dfc" in layers else None
    return Patch(name, layers["s1"].data, layers["s2"].data, lc, dfc, crs, transform, repairs)


def iter_patches(table: pd.DataFrame, report: Report, need: Iterable[str] | None = None) -> Iterator[Patch]:
    """Read the rows of an index one by one; what is refused goes into *report* with its reason, and on."""
    need = None if need is None else _kinds(need)
    for row in table.itertuples():
        try:
            patch = read_patch(row, need)
        except LcfuseError as error:
            report.skipped.append((patch_name(row), str(error)))
            continue
        report.n_read += 1
        if patch.repairs:
            report.repaired.append((patch.name, "; ".join(patch.repairs)))
        yield patch


def read_many(table: pd.DataFrame, need: Iterable[str] | None = None) -> tuple[list[Patch], Report]:
    """
    Read all rows of an index (see `read_patch`). Refused ones are skipped, counted and named in the report.

    A patch of 256 x 256 takes 2.6 MB. Raises DataError when not one patch of the table could be read.
    """
    report = Report()
    patches = list(iter_patches(table, report, need))
    report.check()
    return patches, report
