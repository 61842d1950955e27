"""
The real data from a shell: `python -m lcfuse_core data ...`.

    data list   [--profile P]              what there is, how large, under which licence
    data fetch  --profile P | ID ...       download, verify, unpack; continues where it was cut; twice does nothing
    data adopt  FOLDER                     check an unpacked SEN12MS or DFC2020 by its names, numbers and sizes
    data verify [--profile P | ID ...]     read what was fetched, and without P or ID what was packed, to the last byte
    data status [--profile P] [--inspect]  what is here, by item and by scene
    data pack   [SCENE ...]                put the scenes together from their patches, for training
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lcfuse_core.data import patches
from lcfuse_core.download import manifest, official, records
from lcfuse_core.download.fetch import Fetcher
from lcfuse_core.download.manifest import Choice, Item, Manifest, disk_size, download_size, packed_size
from lcfuse_core.errors import LcfuseError, MissingDataError, ParameterError

_NEED = {
    "sen12ms": ("s1", "s2", "lc"),
    "dfc2020": ("s1", "s2", "lc", "dfc"),
    "dfc2020-bundle": ("s1", "s2", "lc", "dfc"),
}
"""The files of a complete patch, by folder under the data root."""

_SHOWN = 30
"""Lines of detail in a status."""


def add_parser(commands: Any) -> None:
    """Add `data` to the commands of `__main__`."""
    data = commands.add_parser(
        "data", help="list, fetch and verify the real data", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    actions = data.add_subparsers(required=True)
    for name, function, names, text in (
        ("list", _list_data, "ID", "what there is"),
        ("fetch", _fetch_data, "ID", "download it, verify it, unpack it"),
        ("adopt", _adopt_data, "FOLDER", "check folders that were unpacked without `fetch`"),
        ("verify", _verify_data, "ID", "read what is here to the last byte"),
        ("status", _show_status, "ID", "what is here, by item and by scene"),
        ("pack", _pack_scenes, "SCENE", "put the scenes together from their patches, for training"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("items", nargs="+" if name == "adopt" else "*", metavar=names, help="see `data list`")
        action.add_argument("--profile", help="the items of smoke, colab or full")
        action.add_argument("--root", type=Path, default=Path("data"), help="data folder (default: data)")
        action.add_argument("--manifest", type=Path, help="another manifest than the package's own")
        action.set_defaults(command=function)
        if name == "status":
            action.add_argument("--inspect", action="store_true", help="read every patch: only this finds damage")
        if name == "fetch":
            action.add_argument("--drop-archives", action="store_true", help="keep only what is unpacked")


def _choices(options: argparse.Namespace, book: Manifest) -> list[Choice]:
    """The items of the command line; all if none is named. Raises ParameterError on an unknown name."""
    if options.items and options.profile:
        found = f"--profile {options.profile} and {' '.join(options.items)}"
        raise ParameterError("data", found=found, expected="a profile or items", do="Drop one.")
    if options.profile:
        return book.subset(options.profile).items
    return [Choice(item=book.item(name).id) for name in options.items or [item.id for item in book.items]]


def _list_data(options: argparse.Namespace) -> int:
    """Print the manifest."""
    book = manifest.read(options.manifest)
    chosen = [book.item(choice.item) for choice in _choices(options, book)]
    for name, dataset in book.datasets.items():
        lines = [
            f"  {item.id:26} {packed_size(book, item)!s:>12}  {item.what}" for item in chosen if item.dataset == name
        ]
        if lines:
            licence = dataset.licence
            print(f"{dataset.title}\n  {licence.name} ({licence.where}, {licence.read_on})")
            print(f"  {licence.note}\n" * bool(licence.note) + "\n".join(lines) + "\n")
    for name, subset in book.subsets.items():
        down, disk = download_size(book, subset.items), disk_size(book, subset.items)
        print(f"{name}: {subset.what}\n  download {down}\n  on disk, unpacked {disk}")
        print("".join(f"  {note.strip()}\n" for note in subset.notes), end="")
    return 0


def _fetch_data(options: argparse.Namespace) -> int:
    """Fetch the named items; 0 when all of them are here."""
    if not options.items and not options.profile:
        do = "For instance: --profile colab; `data list` shows what each takes."
        raise ParameterError("data fetch", found="nothing named", expected="--profile or items", do=do)
    book = manifest.read(options.manifest)
    chosen = _choices(options, book)
    print(f"download {download_size(book, chosen)}\non disk, unpacked {disk_size(book, chosen)}")
    try:
        outcomes = Fetcher(book, records.Store(options.root), keep=not options.drop_archives).fetch(chosen)
    except KeyboardInterrupt:
        print("What is here stays: the same command goes on.", file=sys.stderr)
        raise
    print("\n".join(f"{outcome.item}: {outcome.state}; {outcome.message}" for outcome in outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _adopt_data(options: argparse.Namespace) -> int:
    """Check folders that were unpacked without `fetch`, and mark them as adopted; 0 when all are."""
    book = manifest.read(options.manifest)
    for name in options.items:
        lines = records.adopt(Path(name), book, options.root / "downloads")
        print("\n  ".join([f"{name}: adopted", *lines]))
    return 0


def _verify_data(options: argparse.Namespace) -> int:
    """Read what is here, packed scenes too unless items or a profile are named; 0 when it is as it was written."""
    from lcfuse_core.data.packed import PackedScene, packed_paths  # only here: other commands start at once

    book, store = manifest.read(options.manifest), records.Store(options.root)
    items = [book.item(choice.item) for choice in _choices(options, book)]
    here = [item for item in items if item.file and store.record(item) is not None]
    folder = store.root / "packs"
    files = [] if options.items or options.profile else sorted([*packed_paths(folder), *folder.glob("*.npy")])
    lost = [file for file in files if file.suffix == ".npy" and not file.with_suffix(".json").exists()]
    packs = [file for file in files if file.suffix == ".json"]
    if not here and not packs and not lost:
        do = "Fetch something first: `data fetch`."
        raise MissingDataError(store.root, found="no record of fetched data", expected="some", do=do)
    faults = {item.id: store.faults(item) for item in here}
    for name, damaged in faults.items():
        print(f"{name}: " + (f"{len(damaged)} files damaged or missing; fetch it again" if damaged else "whole"))
        print("".join(f"  {path}: {why}\n" for path, why in damaged), end="")
    wrong: dict[Path, list[str]] = {}
    for path in packs:
        try:
            wrong[path] = PackedScene(path).verify()
        except LcfuseError as error:
            wrong[path] = [str(error)]
    do = "Delete it and pack the scene again."
    wrong |= {file: [f"{file}: found no description (.json) beside it. {do}"] for file in lost}
    n_damaged = sum(map(bool, wrong.values()))
    if wrong:
        state = f"{n_damaged} of {len(wrong)} damaged" if n_damaged else f"{len(wrong)} whole"
        print(f"packed scenes: {state}")
    _print_lines([line for lines in wrong.values() for line in lines])
    return int(any(faults.values()) or n_damaged > 0)


def _show_status(options: argparse.Namespace) -> int:
    """Print what is here, by item and by scene; 0 when all that was named is."""
    book, store = manifest.read(options.manifest), records.Store(options.root)
    chosen = [(choice, item) for choice in _choices(options, book) if (item := book.item(choice.item)).file]
    for _, item in chosen:
        state = store.state(item)
        print(f"{item.id:26} {state}")
        if state == "missing":
            print("".join(f"{'':27}{line}\n" for line in _ways(book, item)), end="")
    wanted = [f"{str(item.file).rpartition('_')[0]}_{scene}" for choice, item in chosen for scene in choice.scenes]
    for name, need in _NEED.items():
        if (store.root / name).is_dir():
            _print_patches(store.root, name, need, wanted if name == "sen12ms" else [], options.inspect)
    return 0 if all(store.is_done(choice, item) for choice, item in chosen) else 1


def _print_lines(lines: list[str]) -> None:
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    print("".join(f"  {line}\n" for line in lines[:_SHOWN] + more), end="")


def _ways(book: Manifest, item: Item) -> list[str]:
    """Where an item can be had, one line each."""
    return [
        f"{source.page}" + (" (log-in): " if source.log_in else ": ") + source.do
        if isinstance(source, manifest.ByHand)
        else f"{source.url}" + (f" ({source.note})" if source.note else "")
        for source in book.sources(item)
        if not isinstance(source, manifest.Made)
    ]


def _print_patches(root: Path, name: str, need: tuple[str, ...], wanted: list[str], inspect: bool) -> None:
    """Print the patches under a folder: how many are complete, the state of each scene, what is left out and why."""
    print(f"{name}/ ({records.provenance(root / name)}): ", end="")
    try:
        table, lists = patches.index(root / name), None
        files = [root / "downloads" / file for file, _ in official.sen12ms().lists.values()]
        if name == "sen12ms" and all(file.is_file() for file in files):
            lists = official.read_official_lists(root / "downloads")
    except LcfuseError as error:
        print(error)
        return
    report = patches.inspect(patches.complete(table, need), workers=2, progress=True) if inspect else None
    whole, left_out = patches.usable(table, need)
    print(f"{len(whole)} of {len(table)} patches complete, in {whole['scene_id'].nunique()} scenes")
    if lists is not None:
        print("".join(f"  {line}\n" for line in patches.official_differences(table, lists)), end="")
    status = patches.scene_status(table, lists=lists, wanted=wanted, report=report, need=need)
    if len(status):
        print(status.to_string(max_rows=_SHOWN))
    _print_lines(["  ".join(pair) for pair in [*left_out.itertuples(index=False), *(report.skipped if report else [])]])


def _pack_scenes(options: argparse.Namespace) -> int:
    """Pack the patches under `sen12ms`, or the named scenes; 0 when all of them are packed."""
    root: Path = options.root
    table, left_out = patches.usable(patches.index(root / "sen12ms"))
    named = set(options.items)
    strange = sorted(named - set(table["scene_id"]))
    if strange:
        found, expected = f"no patches of {', '.join(strange)}", "scene ids such as ROIs1868_summer_104"
        raise ParameterError("data pack", found=found, expected=expected, do="See `data status`.")
    chosen = table[table["scene_id"].isin(named)] if named else table
    # Imported here, with torch, so that the other commands start at once.
    from lcfuse_core.data import packing

    report = packing.pack(chosen, root / "packs", progress=True)
    mark = records.provenance(root / "sen12ms")
    records.mark_folder(root / "packs", "packs", mark, f"packed from files that were {mark}")
    print(report)
    _print_lines([f"left out {'  '.join(row)}" for row in left_out.to_numpy().tolist()])
    return 1 if report.refused else 0
