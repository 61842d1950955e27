"""
Map any scene from a shell.

    map --s2 FILE [--s1 FILE] --coarse FILE --out DIR                 trains on the coarse labels of the scene
    map --s2 FILE [--s1 FILE] [--coarse FILE] --model CHECKPOINT --out DIR
    map --list SCENES.csv ... --out DIR [--jobs N | --cluster A]      many, each in its own process and folder
    map --demo --out DIR                                              the synthetic sample scene

A finished map of the same inputs and options is found. The other options apply to every scene of a list; a column of
the list takes precedence over the option of the same name.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from lcfuse_core import _runtime
from lcfuse_core.errors import DataError, MissingDataError, ParameterError

_COLUMNS = ("name", "s2", "s1", "coarse", "clouds", "scl")  # of a list of scenes; the first two are required
_NOT_OF_A_SCENE = ("command", "list", "out", "quiet", "demo", "jobs", "cluster")


def add_parser(commands: Any) -> None:
    """Add `map` to the commands of `__main__`."""
    mapped = commands.add_parser(
        "map", help="map a scene, or many", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
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
    mapped.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    given = [f"--{name}" for name in ("s2", "list", "demo") if getattr(options, name)]
    if len(given) != 1:
        do = "Give --s2 FILE for one scene, --list FILE for many, --demo to try it."
        raise ParameterError("map", found=" and ".join(given) or "no scene", expected="one of the three", do=do)
    if options.jobs < 1:
        raise ParameterError("--jobs", found=str(options.jobs), expected="1 or more", do="Give a whole number.")
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
        if None in row or not (row["s2"] or "").strip():
            found = "too many columns" if None in row else "no s2"
            do = "Give the Sentinel-2 file of the scene in column s2."
            if None in row:
                do = "Give one value for each column, and put a path with a comma in quotation marks."
            raise ParameterError(where, found=found, expected=", ".join(columns), do=do)
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
