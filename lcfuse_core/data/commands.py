"""
The real data from a shell: `python -m lcfuse_core data ...`.

    data list   [--profile P]             what there is, how large, under which licence
    data fetch  --profile P | ID ...      get it: goes on where it was cut, verifies, unpacks; twice does nothing
    data verify [--profile P | ID ...]    read everything that is here to the last byte
    data status [--profile P] [--inspect]  what is here, by item and by scene
    data pack   [ID ...]                  put the scenes together from their patches, for training
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lcfuse_core.data import manifest, patches
from lcfuse_core.data.download import Fetcher
from lcfuse_core.data.fetched import Store
from lcfuse_core.data.manifest import ByHand, Choice, Ftp, Https, Item, Manifest, disk_size, download_size
from lcfuse_core.errors import LcfuseError, MissingDataError, ParameterError

NEED = {
    "sen12ms": ("s1", "s2", "lc"),
    "dfc2020": ("s1", "s2", "lc", "dfc"),
    "dfc2020-bundle": ("s1", "s2", "lc", "dfc"),
}
"""The files of a complete patch, by folder under the data root."""

SHOWN = 30
"""Lines of detail in a status; `--json` has all."""


def add_parser(commands: Any) -> None:
    """Add `data` to the commands of `__main__`."""
    data = commands.add_parser(
        "data", help="list, fetch and verify the real data", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    actions = data.add_subparsers(required=True)
    for name, function, text in (
        ("list", list_data, "what there is"),
        ("fetch", fetch_data, "get it, verify it, unpack it"),
        ("verify", verify_data, "read what is here to the last byte"),
        ("status", show_status, "what is here, by item and by scene"),
        ("pack", pack_scenes, "put the scenes together from their patches, for training"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("items", nargs="*", metavar="ID", help="items; see `data list`")
        action.add_argument("--profile", help="the items of smoke, colab or full")
        action.add_argument("--root", type=Path, default=Path("data"), help="data folder (default: data)")
        action.add_argument("--manifest", type=Path, help="another manifest than the package's own")
        action.add_argument("--json", action="store_true", help="print one JSON document")
        action.set_defaults(command=function)
        if name == "status":
            action.add_argument("--inspect", action="store_true", help="read every patch: only this finds damage")
        if name == "fetch":
            action.add_argument("--drop-archives", action="store_true", help="keep only what is unpacked")


def _choices(options: argparse.Namespace, book: Manifest) -> list[Choice]:
    """The items that were asked for; all when none was named. Raises ParameterError on what is not known."""
    if options.items and options.profile:
        found = f"--profile {options.profile} and {' '.join(options.items)}"
        raise ParameterError("data", found=found, expected="a profile or items", do="Drop one.")
    if options.profile:
        return book.subset(options.profile).items
    return [Choice(item=book.item(name).id) for name in options.items or [item.id for item in book.items]]


def list_data(options: argparse.Namespace) -> int:
    """Print the manifest."""
    book = manifest.read(options.manifest)
    chosen = _choices(options, book)
    if options.json:
        return _print_json([_describe(book, book.item(choice.item)) for choice in chosen])
    for name, dataset in book.datasets.items():
        items = [book.item(choice.item) for choice in chosen if book.item(choice.item).dataset == name]
        if items:
            print(f"{dataset.title}\n  {dataset.licence.name} ({dataset.licence.where}, {dataset.licence.read_on})")
            print(f"  {dataset.licence.note}\n" * bool(dataset.licence.note), end="")
            print("\n".join(f"  {item.id:26} {_size(item):>12}  {item.what}" for item in items) + "\n")
    for name, subset in book.subsets.items():
        down, disk = download_size(book, subset.items), disk_size(book, subset.items)
        print(f"{name}: {subset.what}\n  download {down}\n  on disk, unpacked {disk}")
        print("".join(f"  {note.strip()}\n" for note in subset.notes), end="")
    return 0


def _size(item: Item) -> str:
    if item.size != "unknown":
        return f"{item.size / 1e9:.3f} GB"
    return "unknown" if item.about is None else f"~{item.about / 1e9:.3f} GB"


def _describe(book: Manifest, item: Item) -> dict[str, Any]:
    """An item with what it shares with its data set, for `--json`."""
    dataset = book.dataset(item)
    shared = dataset.model_dump(mode="json", include={"doi", "citation", "licence", "chapters"})
    own = item.model_dump(mode="json", exclude={"defects", "sources"})
    sources = [source.model_dump(mode="json") for source in book.sources(item)]
    extra = {"sources": sources, "profiles": book.profiles(item), "defects": dataset.defects + item.defects}
    return own | shared | extra


def fetch_data(options: argparse.Namespace) -> int:
    """Fetch what was named; 0 when all of it is here."""
    if not options.items and not options.profile:
        do = "For instance: --profile colab; `data list` shows what each takes."
        raise ParameterError("data fetch", found="nothing named", expected="--profile or items", do=do)
    book, store = manifest.read(options.manifest), Store(options.root)
    chosen = _choices(options, book)
    if not options.json:
        print(f"download {download_size(book, chosen)}\non disk, unpacked {disk_size(book, chosen)}")
    fetcher = Fetcher(book, store, keep=not options.drop_archives, progress=not options.json)
    try:
        outcomes = fetcher.fetch(chosen)
    except KeyboardInterrupt:
        print("Stopped. What is here stays: the same command goes on.", file=sys.stderr)
        return 130
    if options.json:
        _print_json([asdict(outcome) for outcome in outcomes])
    else:
        print("\n".join(f"{outcome.item}: {outcome.state}; {outcome.said}" for outcome in outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def verify_data(options: argparse.Namespace) -> int:
    """Read what is here; 0 when it is what it was when it was fetched."""
    book, store = manifest.read(options.manifest), Store(options.root)
    items = [book.item(choice.item) for choice in _choices(options, book)]
    here = [item for item in items if item.file and store.record(item) is not None]
    if not here:
        do = "Fetch something first: `data fetch`."
        raise MissingDataError(store.root, found="no record of fetched data", expected="some", do=do)
    verdicts = {item.id: _verified(store, item) for item in here}
    if options.json:
        _print_json(verdicts)
    else:
        print("\n".join(line for name, found in verdicts.items() for line in _verdict(name, found)))
    return 0 if all(found["whole"] for found in verdicts.values()) else 1


def _verified(store: Store, item: Item) -> dict[str, Any]:
    """What reading an item to the last byte tells: whether it is whole, what is not, and that by scene."""
    faults = store.faults(item)
    members = [member.path for member in store.members(item)] if item.unpack is not None else []
    scenes_of = {"files": Counter(map(_scene_of, members)), "damaged": Counter(_scene_of(p.name) for p, _ in faults)}
    return {
        "whole": not faults,
        "files": len(members) or 1,
        "damaged": [{"file": str(path), "why": why} for path, why in faults],
        "scenes": {
            scene: {"files": n, "damaged": scenes_of["damaged"][scene]}
            for scene, n in sorted(scenes_of["files"].items(), key=lambda pair: patches.natural_order(pair[0]))
        },
    }


def _scene_of(path: str) -> str:
    """
    The scene of a patch file, by its name; what is no patch is of none.

    >>> _scene_of("ROIs1868_summer/s2_104/ROIs1868_summer_s2_104_p7.tif"), _scene_of("readme.txt")
    ('ROIs1868_summer_104', '')
    """
    return re.sub(r"(?:.*/)?(\w+)_(?:s1|s2|lc|dfc)_(\w+)_p\d+\.tif|.*", r"\1_\2", path, count=1).strip("_")


def _verdict(name: str, found: dict[str, Any]) -> Iterator[str]:
    damaged = found["damaged"]
    yield f"{name}: " + (f"{len(damaged)} files damaged or missing; fetch it again" if damaged else "whole")
    yield from (f"  {one['file']}: {one['why']}" for one in damaged)
    for scene, counts in found["scenes"].items():
        if counts["damaged"]:
            yield f"  {scene}: {counts['damaged']} of {counts['files']} files"


def show_status(options: argparse.Namespace) -> int:
    """Say what is here, by item and by patch; 0 when all that was asked for is."""
    book, store = manifest.read(options.manifest), Store(options.root)
    chosen = _choices(options, book)
    states = {choice.item: store.state(book.item(choice.item)) for choice in chosen if book.item(choice.item).file}
    done = all(store.is_done(choice, book.item(choice.item)) for choice in chosen if book.item(choice.item).file)
    wanted = [scene for choice in chosen for scene in _scene_ids(book.item(choice.item), choice)]
    folders = {
        name: _patches(store.root, name, need, wanted if name == "sen12ms" else [], options.inspect)
        for name, need in NEED.items()
        if (store.root / name).is_dir()
    }
    if options.json:
        for found in folders.values():
            found["scenes"] = _records(found["scenes"])
        _print_json({"items": states, "done": done, "folders": folders})
        return 0 if done else 1
    for choice in chosen:
        item = book.item(choice.item)
        if item.file:
            print(f"{item.id:26} {states[item.id]}")
            if states[item.id] == "missing":
                print("".join(f"{'':27}{line}\n" for line in _ways(book, item)), end="")
    for name, found in folders.items():
        print(f"{name}/: {found['said']}")
        for rows in (_rows(found["scenes"]), [list(pair.values()) for pair in found["incomplete"]]):
            print("".join(f"  {line}\n" for line in _lines(rows)), end="")
    return 0 if done else 1


def _lines(rows: list[list[Any]]) -> list[str]:
    """The first rows of a table, in words."""
    more = [f"... and {len(rows) - SHOWN} more; `--json` has all"] if len(rows) > SHOWN else []
    return ["  ".join(map(str, row)) for row in rows[:SHOWN]] + more


def _scene_ids(item: Item, choice: Choice) -> list[str]:
    """The scenes of SEN12MS that a choice names."""
    season = str(item.file).rsplit("_", 1)[0]
    return [f"{season}_{scene}" for scene in choice.scenes]


def _ways(book: Manifest, item: Item) -> Iterator[str]:
    """Where an item can be had, one line each."""
    for source in book.sources(item):
        if isinstance(source, Ftp | Https):
            yield f"{source.url}" + (f" ({source.note})" if source.note else "")
        elif isinstance(source, ByHand):
            yield f"{source.page}" + (" (log-in): " if source.log_in else ": ") + source.do


def _patches(root: Path, name: str, need: tuple[str, ...], wanted: list[str], inspect: bool) -> dict[str, Any]:
    """Patches under a folder: how many are complete, what is there of each scene, and what is left out and why."""
    try:
        table = patches.index(root / name)
        lists = patches.read_official_lists(root / "downloads") if name == "sen12ms" else None
    except LcfuseError as error:
        return {"said": str(error), "complete": 0, "scenes": pd.DataFrame(), "incomplete": []}
    report = patches.inspect(patches.complete(table, need), workers=2, progress=True) if inspect else None
    status = patches.scene_status(table, lists=lists, wanted=wanted, report=report, need=need)
    whole, odd = patches.usable(table, need)
    left_out = [{"what": what, "reason": reason} for what, reason in odd.itertuples(index=False)]
    said = f"{len(whole)} of {len(table)} patches complete, in {whole['scene_id'].nunique()} scenes"
    if lists is not None:
        said += "".join(f"\n  {line}" for line in patches.official_differences(table, lists))
    if report is not None:
        left_out += [{"what": what, "reason": reason} for what, reason in report.skipped]
    return {"said": said, "complete": len(whole), "scenes": status, "incomplete": left_out}


def _records(status: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The table of `patches.scene_status` by scene, for JSON: a count that is not known is null."""
    rows = status.astype(object).where(status.notna(), None)
    return {
        str(scene): dict(zip(rows.columns, row, strict=True))
        for scene, row in zip(rows.index, rows.to_numpy(), strict=True)
    }


def _rows(status: pd.DataFrame) -> list[list[Any]]:
    """One line a scene: its id, its state, and the counts that are not nought."""
    if status.empty:
        return []
    counts = status.drop(columns=["held_out", "state"])
    return [
        [scene, state, ", ".join(f"{n} {what}" for what, n in row.items() if n is not pd.NA and n)]
        for scene, state, (_, row) in zip(status.index, status["state"], counts.iterrows(), strict=True)
    ]


def pack_scenes(options: argparse.Namespace) -> int:
    """Pack what is unpacked under `sen12ms`, or the scenes that were named; 0 when all of it is packed."""
    root: Path = options.root
    table, left_out = patches.usable(patches.index(root / "sen12ms"))
    named = set(options.items)
    strange = sorted(named - set(table["scene_id"]))
    if strange:
        found, expected = f"no patches of {', '.join(strange)}", "scene ids such as ROIs1868_summer_104"
        raise ParameterError("data pack", found=found, expected=expected, do="See `data status`.")
    chosen = table[table["scene_id"].isin(named)] if named else table
    # Only here, with torch: the other commands answer at once.
    from lcfuse_core.data import packing

    report = packing.pack(chosen, root / "packs", progress=not options.json)
    if options.json:
        _print_json(asdict(report) | {"left_out": left_out.to_numpy().tolist()})
    else:
        print(report)
        print("".join(f"  left out {line}\n" for line in _lines(left_out.to_numpy().tolist())), end="")
    return 1 if report.refused else 0


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=1, ensure_ascii=False))
    return 0
