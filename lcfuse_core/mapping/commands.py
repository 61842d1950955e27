"""The commands `map` and `place`: a map of any scene, and the images and labels of any place."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lcfuse_core import _runtime
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError
from lcfuse_core.mapping import places
from lcfuse_core.mapping.place_layers import Request
from lcfuse_core.scoring import ledger
from lcfuse_core.scoring.identity import PLACE_RECORD

_MAP = """
Map any scene from a shell.

    map --s2 FILE [--s1 FILE] --coarse FILE --out DIR                 trains on the coarse labels of the scene
    map --s2 FILE [--s1 FILE] [--coarse FILE] --model CHECKPOINT --out DIR
    map --list SCENES.csv ... --out DIR [--jobs N | --cluster A]      many, each in its own process and folder
    map --demo --out DIR                                              the synthetic sample scene

A finished map of the same inputs and options is found. The other options apply to every scene of a list; a column of
the list takes precedence over the option of the same name.
"""

_PLACE = """
Fetch real images and real MODIS labels of any place, and map it: `python -m lcfuse_core place ...`.

    place --lon 11.5 --lat 48.3 --out DIR                 images, MODIS label and a reference of 5.12 x 5.12 km
    place --lon 11.5 --lat 48.3 --map --out DIR           and a map of 10 m that is learned from the label
    place --places FILE.yaml --out DIR [--jobs N]         many
    place --places FILE.yaml --out DIR --score            and a run of the chapter your_place on each, into the ledger

The folder of a place is in the layout of DFC2020: chapters and commands take it as `data_root`. The same command
continues after an interruption, and finds a place that is complete. With --estimate it prints what would be downloaded
and about how long it would take, from the indexes of the files, and reads no pixel.
"""

_COLUMNS = ("name", "s2", "s1", "coarse", "clouds", "scl")  # of a list of scenes; the first two are required
_NOT_OF_A_SCENE = ("command", "list", "out", "quiet", "demo", "jobs", "cluster")

_MEGABYTES_PER_MINUTE = 150.0  # 20 Mbit per second: an assumption, as no public server was measured
_MAP_MINUTES = 5.5
_SCORE_MINUTES = {"smoke": 2.5, "colab": 5.5, "full": 5.5}
"""
Processor time of `map`, and of a run of the chapter your_place by profile, on 5.12 km with 122 coarse cells.

The smoke profile was measured: 140 s on one thread, on the synthetic place (2026-11-29). The others add the 0.46 s that
each further training step took, up to the 549 steps for 122 labelled cells; fewer labels take fewer. A real place of
2.08 km took 1.1 and 1.4 minutes.
"""


def add_parser(commands: Any) -> None:
    """Add `map` and `place` to the commands of `__main__`."""
    raw = argparse.RawTextHelpFormatter
    mapped = commands.add_parser("map", help="map a scene, or many", description=_MAP, formatter_class=raw)
    mapped.add_argument("--s2", nargs="+", type=Path, help="13 bands: one file, one per band, or a .SAFE folder")
    mapped.add_argument("--s1", nargs="+", type=Path, default=[], help="VV and VH in dB: one file, or two")
    mapped.add_argument("--coarse", type=Path, help="coarse map of classes, such as MCD12Q1")
    mapped.add_argument("--legend", help="of the coarse map: igbp (as MCD12Q1 has it), dfc2020, or a YAML file")
    mapped.add_argument("--band", help="of the coarse map, such as a year: its number or its name")
    mapped.add_argument("--clouds", type=Path, help="mask, not 0 where clouds hide the ground")
    mapped.add_argument("--scl", type=Path, help="scene classification of Sen2Cor, as a mask")
    mapped.add_argument("--model", nargs="+", type=Path, default=[], help="checkpoints or folders of runs")
    mapped.add_argument("--adapt", action="store_true", help="first fine-tune --model on the labels of --coarse")
    mapped.add_argument("--steps", type=int, help="training steps on the scene (default: 900; fewer with few cells)")
    mapped.add_argument("--prior-power", type=float, help="exponent of the coarse prior (default: 0.6 with --model)")
    mapped.add_argument("--symmetries", type=int, default=1, help="flips and rotations averaged: 1, 2, 4 or 8")
    mapped.add_argument("--window", type=int, default=512, help="side of a window, px (default: 512)")
    mapped.add_argument("--probabilities", action="store_true", help="keep the probabilities of all classes")
    mapped.add_argument("--out", type=Path, required=True, help="folder of the map")
    mapped.add_argument("--quiet", action="store_true", help="do not show the progress bar")
    mapped.add_argument("--demo", action="store_true", help="map the synthetic sample scene, by synthetic networks")
    mapped.add_argument("--list", type=Path, help=f"CSV of scenes with columns {', '.join(_COLUMNS)}")
    mapped.add_argument("--jobs", type=int, default=1, help="scenes of a list at a time, on this machine")
    mapped.add_argument("--cluster", default="", metavar="ADDRESS", help="Dask scheduler that maps a list")
    mapped.set_defaults(command=_run_map)
    place = commands.add_parser(
        "place", help="fetch images and labels of a place", description=_PLACE, formatter_class=raw
    )
    place.add_argument("--lon", type=float, help="longitude of the centre, degrees")
    place.add_argument("--lat", type=float, help="latitude of the centre, degrees")
    place.add_argument("--size", type=float, default=5.12, help="side, km (default: 5.12)")
    place.add_argument("--year", type=int, default=2021, help="of images and label (default: 2021)")
    place.add_argument(
        "--months", type=int, nargs=2, metavar=("FIRST", "LAST"), help="default: summer; tropics: all year"
    )
    place.add_argument("--dates", type=int, default=4, help="clearest dates in the composite (default: 4)")
    place.add_argument("--name", default="", help="of the folder (default: the coordinates)")
    place.add_argument("--places", type=Path, help="YAML list of places with lon, lat, name ...")
    place.add_argument("--catalogue", default="", help="of images (default: earth-search)")
    place.add_argument("--reference", default="worldcover", help='10 m map to compare with, or "" for none')
    place.add_argument(
        "--services", type=Path, default=places.SERVICES, help="other addresses, in a file as shipped/services.yaml"
    )
    place.add_argument("--out", type=Path, required=True, help="folder of the places")
    place.add_argument("--map", action="store_true", help="map the place from its MODIS label, too")
    place.add_argument("--estimate", action="store_true", help="print megabytes and minutes, fetch nothing")
    place.add_argument("--score", action="store_true", help="run the chapter your_place on each place, too")
    place.add_argument("--profile", default="smoke", choices=_runtime.PROFILES, help="of these runs (default: smoke)")
    place.add_argument("--json", action="store_true", help="print the record of each place as one line of JSON")
    place.add_argument("--quiet", action="store_true", help="do not show the progress bar")
    place.add_argument("--jobs", type=int, default=1, help="places at a time, on this machine")
    place.add_argument("--cluster", default="", metavar="ADDRESS", help="Dask scheduler that fetches a list")
    place.set_defaults(command=_run_place)


def _check_jobs(options: argparse.Namespace) -> None:
    if options.jobs < 1:
        raise ParameterError("--jobs", found=str(options.jobs), expected="1 or more", do="Give a whole number.")


# Scenes -------------------------------------------------------------------------------------------------------------


def _run_map(options: argparse.Namespace) -> int:
    given = [f"--{name}" for name in ("s2", "list", "demo") if getattr(options, name)]
    if len(given) != 1:
        do = "Give --s2 FILE for one scene, --list FILE for many, --demo to try it."
        raise ParameterError("map", found=" and ".join(given) or "no scene", expected="one of the three", do=do)
    _check_jobs(options)
    if unused := _unused(options):
        found, do = ", ".join(f"--{name}" for name in unused), "Leave it out, or give what it belongs to."
        raise ParameterError("map", found=found, expected="options that have an effect", do=do)
    return _map_list(options) if options.list else _map_one(options)


def _unused(options: argparse.Namespace) -> list[str]:
    """Return the names of options that were given and would have no effect beside the others."""
    names = [] if options.list else ["cluster"]
    names += [] if options.list or options.coarse else ["legend", "band"]
    names += ["s1", "coarse", "clouds", "scl", "model"] if options.demo else []
    names += ["steps"] if (options.model or options.demo) and not options.adapt else []
    given = [name for name in names if getattr(options, name) not in (None, "", [])]
    return given + ["jobs"] * (options.jobs > 1 and not options.list)


def _map_one(options: argparse.Namespace) -> int:
    """Map one scene; print where the map is and the areas of its classes."""
    # torch is imported only here, so that `--help` and the other commands are quick.
    from lcfuse_core.mapping import make, predict

    if options.demo:
        print(predict.SYNTHETIC)
        inputs, _ = make.chosen_inputs({"s2_path": "", "seed": 0}, _runtime.data_folder())
        networks = predict.default_members()
    else:
        files = options.coarse, options.legend, options.clouds, options.scl, options.band
        inputs = make.Inputs(tuple(options.s2), tuple(options.s1), *files)
        networks = [predict.load_member(path) for path in options.model]
    plan = make.MapOptions(**{name: getattr(options, name) for name in make.MapOptions.__dataclass_fields__})
    print(make.make_map(inputs, networks, options.out, plan, progress=not options.quiet, report=print).summary())
    return 0


def _map_list(options: argparse.Namespace) -> int:
    """Map the scenes of a list; report the failures together and return 1 if there are any."""
    rows = _read_list(options.list)
    unused = [f"--{name}" for name in ("legend", "band") if getattr(options, name) not in (None, "")]
    if unused and not options.coarse and not any("coarse" in row for row in rows.values()):
        found, do = f"{' and '.join(unused)} without a coarse map", "Leave it out, or give the column coarse."
        raise ParameterError(options.list, found=found, expected="a coarse map in some scene", do=do)
    scenes = [(name, _arguments(options, name, row)) for name, row in rows.items()]
    map_scene = partial(_map_apart, threads="1" if options.cluster or options.jobs > 1 else "")
    failures = {}
    for (name, _), outcome in _runtime.map_parallel(map_scene, scenes, jobs=options.jobs, cluster=options.cluster):
        code, text = (1, str(outcome)) if isinstance(outcome, BaseException) else outcome
        if code:
            failures[name] = text
        print(f"{name}: {'failed' if code else text}", flush=True)
    print(f"{len(scenes)} scenes: {len(scenes) - len(failures)} mapped, {len(failures)} failed")
    for name, text in failures.items():
        print(f"{name}: {text}", file=sys.stderr)
    return int(bool(failures))


def _map_apart(scene: tuple[str, tuple[str, ...]], threads: str) -> tuple[int, str]:
    """
    Map one scene, given by its name and the arguments, in a process of its own; return exit code and line to report.

    The process ends its work when the one that started it is killed, such as a worker of a cluster: a second process
    for the same folder then waits for it (`make_map` holds a lock) and finds the map.
    """
    _, arguments = scene
    environment = ({"OMP_NUM_THREADS": threads} if threads else {}) | os.environ
    command = [sys.executable, "-m", "lcfuse_core", "map", *arguments]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would break if this process were killed
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
        output.seek(0)
        lines = output.read().splitlines()
    marked = [line for line in lines if line.startswith("error: " if done.returncode else arguments[1])]
    return done.returncode, (marked or lines or [f"exit code {done.returncode}"])[-1]


def _read_list(path: Path) -> dict[str, dict[str, Path]]:
    """
    Return the files of each scene of a list by column; relative paths start at the list's own folder.

    Raises MissingDataError, DataError or ParameterError that names the line, before any scene is mapped.
    """
    try:
        text = _runtime.read_document(path, "a CSV of scenes").decode("utf-8-sig")  # Excel writes a byte order mark
    except UnicodeDecodeError as error:
        found = f"a byte that is not UTF-8 ({error.reason})"
        raise DataError(path, found=found, expected="a CSV in UTF-8", do="Save it in that encoding.") from None
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows, columns = list(reader), reader.fieldnames or []
    except csv.Error as error:
        raise DataError(path, found=f"no CSV ({error})", expected="a CSV of scenes", do="Correct the file.") from None
    if not rows or not {"name", "s2"} <= set(columns) <= set(_COLUMNS) or len(set(columns)) < len(columns):
        found = f"columns {', '.join(columns)}" if rows else "no scene"
        expected = f"name, s2, and some of {', '.join(_COLUMNS[2:])}"
        do = "Correct the first line: each column once, separated by commas."
        raise ParameterError(path, found=found, expected=expected, do=do)
    scenes: dict[str, dict[str, Path]] = {}
    for number, row in enumerate(rows, start=2):
        where, name = f"{path}, line {number}", (row["name"] or "").strip()
        is_used = name.casefold() in map(str.casefold, scenes)  # one folder to some file systems
        if is_used or Path(name).name != name or name.startswith(".") or not name.isprintable():
            do = "Name each scene once, by a name that a folder may have."
            raise ParameterError(where, found=repr(name), expected="a unique name", do=do)
        if None in row:
            do = "Give one value for each column, and put a path with a comma in quotation marks."
            raise ParameterError(where, found="too many columns", expected=", ".join(columns), do=do)
        if not (row["s2"] or "").strip():
            do = "Give the Sentinel-2 file of the scene in column s2."
            raise ParameterError(where, found="no s2", expected=", ".join(columns), do=do)
        given = {column: (row.get(column) or "").strip() for column in _COLUMNS[1:]}
        scenes[name] = {column: (path.parent / value).absolute() for column, value in given.items() if value}
        for file in scenes[name].values():
            if not os.path.exists(file):  # False as well for a name that no file can have
                raise MissingDataError(where, found=f"no {str(file)!r}", expected="a file", do="Check it.")
    return scenes


def _arguments(options: argparse.Namespace, name: str, row: dict[str, Path]) -> tuple[str, ...]:
    """Return the arguments that map one scene of a list; paths are absolute, for a worker in another folder."""
    words: list[object] = ["--out", (options.out / name).absolute(), "--quiet"]
    known = vars(options) | row
    known |= {} if known["coarse"] else {"legend": None, "band": None}
    for option, value in known.items():
        if option == "legend" and value and Path(value).is_file():
            value = Path(value)
        if option not in _NOT_OF_A_SCENE and value is not None and value is not False and value != []:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words.append(f"--{option.replace('_', '-')}")
            words += [given.absolute() if isinstance(given, Path) else given for given in values]
    return tuple(map(str, words))


# Places -------------------------------------------------------------------------------------------------------------


def _run_place(options: argparse.Namespace) -> int:
    """Fetch one place or many; return 1 if any failed."""
    one = options.lon is not None and options.lat is not None
    if one == (options.places is not None):
        do = "Give --lon and --lat for one place, --places FILE for many."
        found = "both --lon and --places" if one else "neither --lon and --lat nor --places"
        raise ParameterError("place", found=found, expected="one of them", do=do)
    _check_jobs(options)
    if options.places:
        requests = places.read_places(options.places)
    else:
        place = options.lon, options.lat, options.size, options.year, options.name
        months = options.months and tuple(options.months)
        requests = [Request(*place, months, options.dates, reference=options.reference)]
    if options.catalogue:
        requests = [replace(request, catalogue=options.catalogue) for request in requests]
    out = options.out.absolute()
    if options.estimate:
        return _estimate(requests, options)
    fetch: Callable[[Request], Path] = partial(
        places.fetch_place, out=out, services=options.services.absolute(), progress=not options.quiet and one
    )
    if one:
        folder = fetch(requests[0])
        _finish(folder, options)
        return _score([folder], requests, options) if options.score else 0
    failed, folders = 0, []
    for request, outcome in _runtime.map_parallel(fetch, requests, jobs=options.jobs, cluster=options.cluster):
        if isinstance(outcome, BaseException):
            failed += 1
            print(f"{request.title}: {outcome}", file=sys.stderr)
        else:
            _finish(outcome, options)
            folders.append(outcome)
    print(f"{len(requests)} places: {len(requests) - failed} complete, {failed} failed")
    not_scored = _score(sorted(folders), requests, options) if options.score and folders else 0
    return int(failed > 0 or not_scored > 0)


def _estimate(requests: list[Request], options: argparse.Namespace) -> int:
    """Print megabytes and minutes of each place and of all; return 1 if one cannot be had."""
    total, failed = 0.0, 0
    for request in requests:
        try:
            megabytes = places.download_bytes(request, options.services) / 1e6
        except LcfuseError as error:
            failed += 1
            print(f"{request.title}: {error}", file=sys.stderr)
            continue
        total += megabytes
        print(f"{request.title}: {megabytes:.1f} MB")
    n, minutes = len(requests) - failed, total / _MEGABYTES_PER_MINUTE
    compute = n * (_MAP_MINUTES * options.map + _SCORE_MINUTES[options.profile] * options.score)
    print(
        f"{n} places: {total:.1f} MB, {minutes:.1f} minutes at {_MEGABYTES_PER_MINUTE:.0f} MB per minute"
        + (f"; maps and runs of your_place: about {compute:.0f} minutes of one processor core" if compute else "")
    )
    return int(failed > 0)


def _score(folders: list[Path], requests: list[Request], options: argparse.Namespace) -> int:
    """
    Run the chapter your_place on places, as a grid, and append its lines to the ledger; return its exit code.

    Lines of places of a list name the list: claims are about lists that were written beforehand.
    """
    runs = options.out.absolute() / "runs"
    words = ["run", "your_place", "--profile", options.profile, "--out", str(runs), "--jobs", str(options.jobs)]
    words += [word for folder in folders for word in ("-p", "data_root", str(folder))]
    environment = {name: value for name, value in os.environ.items() if name != "LCFUSE_LEDGER"}
    code = subprocess.run([sys.executable, "-m", "lcfuse_core", *words], env=environment, check=False).returncode
    out = ledger.default_path()
    known = ledger.read_entries(out).values() if out.exists() else []
    lines = [line for path in sorted(runs.rglob("ledger.jsonl")) for line in ledger.read_entries(path).values()]
    if options.places:
        name, listed = _list_name(options.places, requests), {request.title for request in requests}
        for line in lines:
            line["data"] |= {"places": name} if line["data"]["evaluation"] in listed else {}
    new = [line for line in lines if line not in known]
    for line in new:
        ledger.append(out, line)
    print(f"{len(new)} new lines in {out}")
    return code


def _list_name(path: Path, requests: list[Request]) -> str:
    """Return the file name of a list and a digest of its requests, so that a list that was changed has another name."""
    rows = sorted(json.dumps(asdict(request), sort_keys=True) for request in requests)
    return f"{path.name} {hashlib.sha256(''.join(rows).encode()).hexdigest()[:12]}"


def _finish(folder: Path, options: argparse.Namespace) -> None:
    """Print what a place has, and map it from its own MODIS label if that is wanted."""
    record = json.loads((folder / PLACE_RECORD).read_text(encoding="utf-8"))
    if options.json:
        print(json.dumps({"folder": str(folder), **record}))
    else:
        images = record["sentinel2"]
        radar = "Sentinel-1" if record["sentinel1"] else record["sentinel1_reason"]
        print(f"{folder}: Sentinel-2 of {', '.join(images['dates'])}; {radar}; {record['modis']['cells']} MODIS cells")
        for line in record["attribution"]:
            print(f"  {line}")
    if options.map:
        from lcfuse_core.mapping import make  # with torch

        s1 = (folder / "s1.tif",) if (folder / "s1.tif").exists() else ()
        inputs = make.Inputs((folder / "s2.tif",), s1, folder / "coarse.tif")
        out = folder.with_name(f"{folder.name}_map")  # beside the place, whose files have one digest
        print(make.make_map(inputs, [], out, progress=not options.quiet, report=print).summary())
