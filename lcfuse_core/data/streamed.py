"""
One source of patches for data of any size: in memory if they fit, else read from disk crop by crop.

    source = open_source("sen12ms", "modis")

The same patches give the same crops, statistics, counts and windows, whether they are held in memory, read from packed
scenes through memory maps, or read from GeoTIFFs window by window. Data that stay on disk are read and checked once;
the results are kept in the data folder, so that damaged patches are known before training begins.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from affine import Affine
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lcfuse_core import _runtime
from lcfuse_core.data.bands import CHANNELS, N_S1, N_S2, OFFSET_REMOVED, S2_OFFSET, Statistics, subtract_offset
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.files import join_layers, read_georeference, read_layer, read_window
from lcfuse_core.data.legends import DFC2020, IGBP, IGNORE, N_COARSE, SCORED
from lcfuse_core.data.packed import STORED, digest_of, open_scene
from lcfuse_core.data.patches import Patch, Report, complete, index, is_packed, iter_patches, patch_name, read_patch
from lcfuse_core.data.source import (
    LABEL_KINDS,
    Crops,
    PatchSource,
    PatchStack,
    Place,
    channel_sums,
    check_labels,
    class_counts,
    classes_of,
    label_index,
    other_size,
    patch_cells,
    statistics_of,
)
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError, disk_error

_MEMORY_GB = 1.0  # patches that need less (390 of 256 x 256 pixels) are held in memory
_BYTES_PER_PIXEL = 2 * N_S2 + 4 * N_S1 + 1 + 4  # as `Crops` holds them


def open_source(
    data: Path | str | pd.DataFrame, labels: str = "modis", *, memory_gb: float | None = None
) -> PatchSource:
    """
    Open patches for training: in memory if they fit, else on disk.

    Damaged patches are left out. Their number and names, and those of repaired patches, are printed.

    Parameters
    ----------
    data : path or DataFrame
        A folder of patches or of packed scenes, or chosen rows of `patches.index`.
    labels : str
        Kind of the labels, out of `source.LABEL_KINDS`.
    memory_gb : float, optional
        Budget for patches in memory, in 10^9 bytes; by default LCFUSE_MEMORY_GB or `_MEMORY_GB`.

    Raises
    ------
    MissingDataError
        If no patch has the files that these labels need.
    DataError
        If all patches are damaged.
    GridError
        If patches differ in size.
    ParameterError
        If the budget is not a number, or there are no such labels.
    """
    rows = labelled(data, labels)
    rows_px, cols_px = _size(rows)
    if len(rows) * rows_px * cols_px * _BYTES_PER_PIXEL <= 1e9 * _budget(memory_gb):
        stack, report = _read_stack(rows, labels)
        source: PatchSource = stack
    else:
        if not is_packed(rows["s1"].iloc[0]):
            print(f"{len(rows)} patches exceed the memory budget and are read from files; packed, reading is faster")
        source = stored = PatchFiles(rows, labels)
        report = stored.report
    if report.skipped or report.repaired:
        print(report)
    return source


def _read_stack(table: pd.DataFrame, labels: str) -> tuple[PatchStack, Report]:
    """
    Read the rows of an index into a stack, with half the memory of `read_many` and then a stack.

    Damaged patches are skipped, counted and named in the report; DataError if no patch is left.
    """
    report = Report()
    patches = iter_patches(table, report, LABEL_KINDS[labels])
    try:
        return PatchStack(patches, labels, at_most=len(table)), report
    except DataError:
        report.check()  # if no patch at all was read: give the reason for the first
        raise


def labelled(data: Path | str | pd.DataFrame, labels: str) -> pd.DataFrame:
    """
    Return the rows of a folder or an index that have the files for *labels*, and print how many lack one.

    Raises MissingDataError if all do, ParameterError on labels that are not in `source.LABEL_KINDS`.
    """
    check_labels(labels)
    table = data if isinstance(data, pd.DataFrame) else index(data)
    rows = complete(table, LABEL_KINDS[labels])
    if rows.empty:
        where = "patches" if isinstance(data, pd.DataFrame) else data
        found, expected = f"{len(table)} patches, none complete", f"patches with {', '.join(LABEL_KINDS[labels])} files"
        raise MissingDataError(where, found=found, expected=expected, do=f"Fetch the files for {labels} labels.")
    if len(rows) < len(table):
        print(f"{len(table) - len(rows)} of {len(table)} patches left out: they lack a file (patches.incomplete)")
    return rows


def _budget(memory_gb: float | None) -> float:
    text = os.environ.get("LCFUSE_MEMORY_GB", _MEMORY_GB) if memory_gb is None else memory_gb
    try:
        return float(text)
    except ValueError:
        do = "Set a number, such as 4, or unset it."
        raise ParameterError("LCFUSE_MEMORY_GB", found=repr(text), expected="10^9 bytes", do=do) from None


def _size(rows: pd.DataFrame) -> tuple[int, int]:
    """Return rows and columns of the first patch whose header can be read; those of SEN12MS if there is none."""
    for row in rows.itertuples():
        path = str(row.s1)
        try:
            if is_packed(path):
                return open_scene(path).window_of(patch_name(row))[2:]
            return read_georeference(path, "s1")[2]
        except LcfuseError:
            continue  # it is reported when the patches are read
    return 256, 256


class PatchFiles(PatchSource):
    """
    Patches on disk, of which only the pixels of a crop are read: GeoTIFFs or packed scenes.

    Parameters
    ----------
    rows : DataFrame
        Rows of `patches.index` that have the files for the labels.
    labels : str
        As for `PatchStack`.

    Attributes
    ----------
    report : Report
        The patches that were repaired, and those that are left out because they are damaged.

    Raises
    ------
    DataError, GridError
        As for `open_source`.
    """

    def __init__(self, rows: pd.DataFrame, labels: str = "modis") -> None:
        self.labels, self.report = labels, Report()
        self._kind = LABEL_KINDS[labels][-1]
        self._code_layer = STORED[self._kind][0]
        codes = np.array([0, *(DFC2020 if labels == "fine" else IGBP).codes], np.uint8)
        classes = np.full(256, IGNORE, np.uint8)  # patches with other codes are refused
        classes[codes] = classes_of(codes, labels)
        self._classes = classes.tobytes()
        facts = _check(rows, labels, self.report)
        self.report.check()
        is_whole = facts["size"].all(axis=1)
        if not is_whole.all():
            facts, rows = facts[is_whole], rows.iloc[np.flatnonzero(is_whole)]
        # Of each patch only its facts, name and paths are kept, some 800 bytes: SEN12MS has 180,662 patches.
        self._facts = facts
        self._paths = rows[list(LABEL_KINDS[labels])].to_numpy()
        self._scenes = [open_scene(path) if is_packed(path) else None for path in rows["s1"]]
        self.names = list(map(patch_name, rows.itertuples()))
        self.shape = tuple(self._facts["size"][0].tolist())
        for number in np.flatnonzero((self._facts["size"] != self.shape).any(axis=1))[:1]:
            raise other_size(self.names[number], self._facts["size"][number].tolist(), self)

    def part(self, numbers: Sequence[int]) -> PatchFiles:
        """Return the patches of these numbers as a source of their own."""
        chosen = copy(self)
        chosen._facts = self._facts[list(numbers)]
        chosen._paths = self._paths[list(numbers)]
        chosen._scenes = [self._scenes[number] for number in numbers]
        chosen.names = [self.names[number] for number in numbers]
        return chosen

    def statistics(self) -> Statistics:
        """Return mean and standard deviation of the channels from the sums of each patch."""
        sums = (torch.from_numpy(self._facts[name]) for name in ("sums", "squares"))
        return statistics_of((self.shape[0] * self.shape[1], *pair) for pair in zip(*sums, strict=True))

    def class_counts(self, n_classes: int = len(SCORED)) -> Tensor:
        """Count the pixels of each class of the labels."""
        return torch.from_numpy(self._facts["counts"][:, :n_classes].sum(axis=0))

    def digest(self) -> str:
        """Return a SHA-256 of names, pixels, labels and georeference, the same for files and packed scenes."""
        head = "\n".join([self.labels, *self.names])
        return hashlib.sha256(head.encode() + self._facts["sha256"].tobytes()).hexdigest()

    def _cut(self, places: Sequence[Place], rows: int, cols: int, cells: bool) -> Crops:
        """Translate the codes that `fill` copies, all at once: an index for each crop costs a tenth of the speed."""
        crops = super()._cut(places, rows, cols, cells)
        classes = np.frombuffer(bytearray(crops.labels.numpy()).translate(self._classes), np.uint8)
        return crops._replace(labels=torch.from_numpy(classes).view(crops.labels.shape))

    def fill(self, number: int, row: int, col: int, out: Sequence[NDArray[Any]]) -> None:
        """Copy codes of labels, not classes: `_cut` translates them. Cells are numbered differently in a stack."""
        s2, s1, codes, cells = out
        paths = dict(zip(LABEL_KINDS[self.labels], self._paths[number], strict=True))
        scene, shape = self._scenes[number], (codes.shape[0], codes.shape[1])
        layers: dict[str, NDArray[Any]] = {}
        if scene is not None:
            top, left, _, _ = scene.window_of(self.names[number])
            layers = {"s2": s2, "s1": s1} | ({"cells": cells[None]} if cells.size else {})
            if self._code_layer in scene.layers:
                layers[self._code_layer] = codes[None]
            scene.fill(layers, top + row, left + col, *shape)
        else:
            read_window(paths["s2"], "s2", row, col, s2)
            if offset := int(self._facts["offset"][number]):
                subtract_offset(s2, offset)
            crs, transform = read_window(paths["s1"], "s1", row, col, s1, georeferenced=cells.size > 0)
            if not cells.size:
                pass
            elif crs is not None and transform is not None:
                cells[:] = cell_ids(transform @ Affine.translation(col, row), crs, shape)[0]
            else:
                whole = _cells(self.names[number], tuple(paths.items()))
                cells[:] = whole[row : row + shape[0], col : col + shape[1]]
        if self._code_layer not in layers:
            read_window(paths[self._kind], self._kind, row, col, codes[None])


@lru_cache(maxsize=128)  # 262 kB each
def _cells(name: str, paths: tuple[tuple[str, str], ...]) -> NDArray[np.int32]:
    """Return the cells of a patch whose S1 file has no georeference: usually recovered from all of its label."""
    return patch_cells(join_layers(name, dict(paths), {kind: read_layer(path, kind) for kind, path in paths}))


# Reading everything once --------------------------------------------------------------------------

_FACTS = np.dtype([
    ("size", "i4", 2), ("offset", "i4"), ("sums", "f8", len(CHANNELS)), ("squares", "f8", len(CHANNELS)),
    ("counts", "i8", N_COARSE), ("sha256", "u1", 32),
], align=True)  # fmt: skip
"""What is kept of each patch, aligned as torch needs it; the size of a damaged patch is 0."""

# Facts and repairs of some patches, some 600 bytes each, by the identity of their files: links to a file share them.
_Linked = dict[tuple[Any, ...], tuple[NDArray[Any], tuple[str, ...]]]
_MOST_LINKED = 4096


def _check(rows: pd.DataFrame, labels: str, report: Report) -> NDArray[Any]:
    """Return the `_FACTS` of patches; scenes that were checked before, and whose files are unchanged, are not read."""
    facts, folder = np.zeros(len(rows), _FACTS), _runtime.data_folder() / "checked"
    linked: _Linked = {}
    try:
        with _runtime.lock(folder / ".lock"), tqdm(total=len(rows), unit="patch", disable=None) as bar:
            for numbers in rows.groupby("scene_id", sort=False).indices.values():
                own = rows.iloc[numbers]
                path = folder / f"{_version(own, labels)}.npz"
                if not path.exists():
                    with _runtime.atomic_path(path) as part, part.open("wb") as file:
                        np.savez(file, **_check_scene(own, labels, linked))
                with np.load(path) as known:
                    facts[numbers] = known["facts"]
                    found = json.loads(str(known["report"]))
                report.add(Report(**found))
                bar.update(len(numbers))
    except LcfuseError:
        raise
    except OSError as error:
        raise disk_error(folder, error) from None
    return facts


def _version(rows: pd.DataFrame, labels: str) -> str:
    """Return a digest of the names of some patches, and of the paths, sizes and times of their files."""
    paths = sorted({os.path.abspath(path) for kind in LABEL_KINDS[labels] for path in rows[kind]})
    stats = [(path, os.stat(path)) for path in paths if os.path.isfile(path)]
    files = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return digest_of([_FACTS.descr, labels, list(map(patch_name, rows.itertuples())), files])[:32]


def _check_scene(rows: pd.DataFrame, labels: str, linked: _Linked) -> dict[str, Any]:
    """Read the patches of a scene; return their `_FACTS`, and the report as JSON."""
    facts, report = np.zeros(len(rows), _FACTS), Report()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for number, (found, own) in enumerate(pool.map(partial(_check_patch, labels, linked), rows.itertuples())):
            facts[number] = found
            report.add(own)
    return {"facts": facts, "report": json.dumps(asdict(report))}


def _check_patch(labels: str, linked: _Linked, row: Any) -> tuple[NDArray[Any], Report]:
    """Read one patch, unless its files are links to those of another."""
    facts, report, name = np.zeros((), _FACTS), Report(), patch_name(row)
    try:
        files = _identities(row, labels)
        if files not in linked:
            patch = read_patch(row, LABEL_KINDS[labels])
            known = _facts_of(patch, labels), patch.repairs
            if len(linked) >= _MOST_LINKED:
                linked.clear()
            linked[files] = known
        else:
            known = linked[files]
    except LcfuseError as error:
        report.skipped.append((name, str(error)))
        return facts, report
    report.note(name, known[1])
    return known[0], report


def _identities(row: Any, labels: str) -> tuple[Any, ...]:
    """Return what tells the files of a patch apart: device and number on it; of a packed scene also the name."""
    stats = [os.stat(path) for kind in LABEL_KINDS[labels] if os.path.isfile(path := getattr(row, kind))]
    return (patch_name(row) if is_packed(row.s1) else "", *((stat.st_dev, stat.st_ino) for stat in stats))


def _facts_of(patch: Patch, labels: str) -> NDArray[Any]:
    facts = np.zeros((), _FACTS)
    classes = label_index(patch, labels)
    _, sums, squares = channel_sums(patch.s2, patch.s1)
    sha256 = hashlib.sha256(f"{patch.crs} {patch.transform}".encode())
    for layer in (patch.s2, patch.s1, classes):
        sha256.update(np.ascontiguousarray(layer).data)
    if patch.crs is None and patch.lc is not None:
        sha256.update(np.ascontiguousarray(patch.lc).data)  # the cells follow from it
    offset = S2_OFFSET if OFFSET_REMOVED in patch.repairs else 0
    digest = np.frombuffer(sha256.digest(), np.uint8)
    facts[...] = (classes.shape, offset, sums, squares, class_counts(classes, N_COARSE), digest)
    return facts
