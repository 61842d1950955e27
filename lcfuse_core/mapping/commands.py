"""
Map any scene from a shell: `python -m lcfuse_core map ...`.

    map --s2 FILE [--s1 FILE] [--coarse FILE] --out DIR        one scene
    map --list SCENES.csv --out DIR [--jobs N | --cluster A]   many, each in its own process and folder

A scene that was finished by the same command is found. The other options apply to every scene of a list; a column of
the list takes precedence over the option of the same name.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lcfuse_core import _runtime
from lcfuse_core.errors import MissingDataError, ParameterError

COLUMNS = ("name", "s2", "s1", "coarse", "clouds", "scl")
"""Columns of a list of scenes; only `name` and `s2` are required."""


def add_parser(commands: Any) -> None:
    """Add `map` to the commands of `__main__`."""
    mapped = commands.add_parser(
        "map", help="map a scene, or many", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    mapped.add_argument("--s2", nargs="+", type=Path, help="13 bands: one file, one per band, or a .SAFE folder")
    mapped.add_argument("--s1", nargs="+", type=Path, default=[], help="VV and VH in dB: one file, or two")
    mapped.add_argument("--coarse", type=Path, help="coarse map of classes, such as MCD12Q1")
    mapped.add_argument("--legend", default="igbp", help="of the coarse map: igbp, dfc2020, or a YAML file")
    mapped.add_argument("--clouds", type=Path, help="mask, not 0 where clouds hide the ground")
    mapped.add_argument("--scl", type=Path, help="scene classification of Sen2Cor, as a mask")
    mapped.add_argument("--model", action="append", type=Path, default=[], help="checkpoint or run; may be repeated")
    mapped.add_argument("--out", type=Path, required=True, help="folder of the map")
    mapped.add_argument("--window", type=int, default=512, help="side of a window, px (default: 512)")
    mapped.add_argument("--overlap", type=int, default=64, help="overlap of two windows, px (default: 64)")
    mapped.add_argument("--symmetries", type=int, default=1, help="flips and rotations averaged: 1, 2, 4 or 8")
    mapped.add_argument("--prior-power", type=float, help="exponent of the coarse prior (default: 0.6; 0 with --learn)")
    mapped.add_argument("--learn", action="store_true", help="first adapt the networks to the scene, from --coarse")
    mapped.add_argument("--probabilities", action="store_true", help="keep the probabilities of all classes")
    mapped.add_argument("--quiet", action="store_true", help="do not show the progress bar")
    mapped.add_argument("--list", type=Path, help=f"CSV of scenes with columns {', '.join(COLUMNS)}")
    mapped.add_argument("--jobs", type=int, default=1, help="scenes of a list at a time, on this machine")
    mapped.add_argument("--cluster", default="", metavar="ADDRESS", help="Dask scheduler that maps a list")
    mapped.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    if (options.list is None) == (options.s2 is None):
        found = "both --s2 and --list" if options.s2 else "neither --s2 nor --list"
        do = "Give --s2 FILE for one scene, --list FILE for many."
        raise ParameterError("map", found=found, expected="either --s2 or --list", do=do)
    if options.jobs < 1:
        raise ParameterError("--jobs", found=str(options.jobs), expected="1 or more", do="Give a whole number.")
    return _map_one(options) if options.list is None else _map_list(options)


def _map_one(options: argparse.Namespace) -> int:
    """Map one scene; print where the map is and the areas of its classes."""
    # torch is imported only here, so that `--help` and the other commands are quick.
    from lcfuse_core.mapping import make, predict

    networks = [predict.load_member(path) for path in options.model] or predict.default_members()
    if not options.model:
        print(predict.SYNTHETIC)
    changes = {} if options.prior_power is None else {"prior_power": options.prior_power}
    plan = predict.plan_for(options.coarse is not None, adapted=options.learn, symmetries=options.symmetries, **changes)
    margin = min(make.MapOptions.margin, options.overlap // 4)
    made = make.make_map(
        make.Inputs(tuple(options.s2), tuple(options.s1), options.coarse, options.legend, options.clouds, options.scl),
        networks,
        options.out,
        make.MapOptions(
            plan, options.window, options.overlap, margin, probabilities=options.probabilities, learn=options.learn
        ),
        progress=not options.quiet,
        report=print,
    )
    valid, found = made.record["valid_fraction"], " (found)" if made.found else ""
    print(f"{made.path()}{found}: {100 * valid:.1f} % of the scene has a class")
    for name, pixels in made.record["pixels"].items():
        print(f"  {name:<15} {pixels / 100:12,.1f} ha")
    return 0


class _Scene(NamedTuple):
    """A row of a list: its name, and the arguments of the command that maps it."""

    name: str
    arguments: tuple[str, ...]
    threads: int | None


def _map_list(options: argparse.Namespace) -> int:
    """Map the scenes of a list; report the failures together and return 1 if there are any."""
    threads = 1 if options.cluster or options.jobs > 1 else None
    scenes = [_Scene(name, row, threads) for name, row in _read_list(options)]
    failures = {}
    for scene, outcome in _runtime.map_parallel(_map_apart, scenes, jobs=options.jobs, cluster=options.cluster):
        code, text = (1, str(outcome)) if isinstance(outcome, BaseException) else outcome
        if code:
            failures[scene.name] = text
        print(f"{scene.name}: {'failed' if code else text}", flush=True)
    print(f"{len(scenes)} scenes: {len(scenes) - len(failures)} mapped, {len(failures)} failed")
    for name, text in failures.items():
        print(f"{name}: {text}", file=sys.stderr)
    return int(bool(failures))


def _map_apart(scene: _Scene) -> tuple[int, str]:
    """
    Map one scene in a process of its own; return its exit code and the line to report.

    The process ends its work when the one that started it is killed, such as a worker of a cluster: a second process
    for the same folder then waits for it (`make_map` holds a lock) and finds the map.
    """
    threads = {} if scene.threads is None else {"OMP_NUM_THREADS": str(scene.threads)}
    command = [sys.executable, "-m", "lcfuse_core", "map", *scene.arguments]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would break if this process were killed
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=threads | os.environ, check=False)
        output.seek(0)
        lines = output.read().splitlines()
    marked = [line for line in lines if line.startswith("error: " if done.returncode else scene.arguments[1])]
    return done.returncode, (marked or lines or [f"exit code {done.returncode}"])[-1]


def _read_list(options: argparse.Namespace) -> list[tuple[str, tuple[str, ...]]]:
    """
    Return the name and the arguments of each scene of a list; relative paths start at the list's own folder.

    Raises MissingDataError or ParameterError that names the line, before any scene is mapped.
    """
    path: Path = options.list
    if not path.is_file():
        raise MissingDataError(path, found="no such file", expected="a CSV of scenes", do="Check the path.")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or []
    if not rows or not {"name", "s2"} <= set(columns) <= set(COLUMNS):
        found = f"columns {', '.join(columns)}" if rows else "no scene"
        expected = f"name, s2, and some of {', '.join(COLUMNS[2:])}"
        raise ParameterError(path, found=found, expected=expected, do="Correct the first line.")
    scenes: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows, start=2):
        where, name = f"{path}, line {number}", (row["name"] or "").strip()
        if not name or name in scenes or Path(name).name != name or name.startswith("."):
            do = "Name each scene once, by a name that a folder may have."
            raise ParameterError(where, found=repr(name), expected="a unique name", do=do)
        if None in row or not (row["s2"] or "").strip():
            found = "too many columns" if None in row else "no s2"
            do = "Give the Sentinel-2 file of the scene in column s2."
            raise ParameterError(where, found=found, expected=", ".join(columns), do=do)
        given = {}
        for column in COLUMNS[1:]:
            if (row.get(column) or "").strip():
                given[column] = [(path.parent / row[column].strip()).absolute()]
                if not given[column][0].exists():
                    raise MissingDataError(where, found=f"no {given[column][0]}", expected="a file", do="Check it.")
        scenes[name] = _arguments(options, options.out / name, given)
    return list(scenes.items())


def _arguments(options: argparse.Namespace, out: Path, given: dict[str, list[Path]]) -> tuple[str, ...]:
    """Return the arguments that map one scene of a list; paths are absolute, for a worker in another folder."""
    legend = Path(options.legend).absolute() if Path(options.legend).is_file() else options.legend
    found: list[object] = ["--out", out.absolute(), "--quiet", "--legend", legend]
    for name in ("window", "overlap", "symmetries", "prior_power"):
        value = getattr(options, name)
        found += [] if value is None else [f"--{name.replace('_', '-')}", value]
    found += [f"--{name}" for name in ("learn", "probabilities") if getattr(options, name)]
    for model in options.model:
        found += ["--model", model.absolute()]
    for name in COLUMNS[1:]:
        paths = given.get(name) or _as_list(getattr(options, name))
        found += [f"--{name}", *(file.absolute() for file in paths)] if paths else []
    return tuple(map(str, found))


def _as_list(value: Path | Sequence[Path] | None) -> list[Path]:
    return [] if value is None else [value] if isinstance(value, Path) else list(value)
