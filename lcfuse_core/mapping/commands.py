"""
A map of any scene from a shell: `python -m lcfuse_core map ...`.

    map --s2 FILE [--s1 FILE] [--coarse FILE] --out DIR        one scene
    map --list SCENES.csv --out DIR [--jobs N | --cluster A]   many, each through the chapter `maps`

A command that was stopped goes on when it is given again.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from lcfuse_core.book import grids, reruns, settings
from lcfuse_core.errors import MissingDataError, ParameterError

COLUMNS = ("name", "s2", "s1", "coarse")
"""Of a list of scenes; `name` and `s2` are needed, further columns are unknown."""


def add_parser(commands: Any) -> None:
    """Add `map` to the commands of `__main__`."""
    mapped = commands.add_parser(
        "map", help="map a scene, or many", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    mapped.add_argument("--s2", nargs="+", type=Path, help="13 bands: one file, one a band, or a .SAFE folder")
    mapped.add_argument("--s1", nargs="+", type=Path, default=[], help="VV and VH in dB: one file, or two")
    mapped.add_argument("--coarse", type=Path, help="coarse map of classes, such as MCD12Q1")
    mapped.add_argument("--legend", default="igbp", help="of the coarse map: igbp, dfc2020, or a YAML file")
    mapped.add_argument("--clouds", type=Path, help="mask, not 0 where clouds hide the ground")
    mapped.add_argument("--scl", type=Path, help="scene classification of Sen2Cor, as a mask")
    mapped.add_argument("--model", action="append", type=Path, default=[], help="checkpoint or run; may be repeated")
    mapped.add_argument("--out", type=Path, required=True, help="folder of the map")
    mapped.add_argument("--window", type=int, default=512, help="side of a window, px (default: 512)")
    mapped.add_argument("--overlap", type=int, default=64, help="of two windows, px (default: 64)")
    mapped.add_argument("--symmetries", type=int, default=1, help="flips and rotations averaged: 1, 2, 4 or 8")
    mapped.add_argument("--prior-power", type=float, help="exponent of the coarse prior (default: 0.6; 0 with --learn)")
    mapped.add_argument("--learn", action="store_true", help="first let the networks learn here, from --coarse")
    mapped.add_argument("--probabilities", action="store_true", help="keep those of all classes")
    mapped.add_argument("--quiet", action="store_true", help="no bar of progress")
    mapped.add_argument("--list", type=Path, help="CSV of scenes with columns name, s2, s1, coarse")
    mapped.add_argument("--jobs", type=int, default=1, help="scenes of a list at a time, on this machine")
    mapped.add_argument("--cluster", default="", metavar="ADDRESS", help="of a Dask scheduler, for a list")
    mapped.add_argument("--book", type=Path, default=grids.BOOK, help="folder of the chapters, for a list")
    mapped.set_defaults(command=run_map)


def run_map(options: argparse.Namespace) -> int:
    """Map one scene, or those of a list."""
    if (options.list is None) == (options.s2 is None):
        do = "Give --s2 FILE for one scene, --list FILE for many."
        raise ParameterError("map", found="both or neither", expected="either --s2 or --list", do=do)
    return map_many(options) if options.list is not None else map_one(options)


def map_one(options: argparse.Namespace) -> int:
    """Map one scene and say where the map is, and of what it is."""
    # What needs torch is imported when it is needed: `--help` and the other commands are quick.
    from lcfuse_core.mapping import make, members

    networks = [members.load_member(path) for path in options.model] or members.default_members()
    if not options.model:
        print(members.SYNTHETIC)
    changes = {} if options.prior_power is None else {"prior_power": options.prior_power}
    plan = members.plan_for(options.coarse is not None, at_home=options.learn, symmetries=options.symmetries, **changes)
    margin = min(make.MapOptions.margin, options.overlap // 4)
    made = make.make_map(
        make.Inputs(tuple(options.s2), tuple(options.s1), options.coarse, options.legend, options.clouds, options.scl),
        networks,
        options.out,
        make.MapOptions(
            plan, options.window, options.overlap, margin, probabilities=options.probabilities, learn=options.learn
        ),
        progress=not options.quiet,
        tell=print,
    )
    print(f"{made.classes}{' (found)' if made.found else ''}: {100 * made.seen:.1f} % of the scene has a class")
    for name, pixels in made.areas.items():
        print(f"  {name:<15} {pixels / 100:12,.1f} ha")
    return 0


def map_many(options: argparse.Namespace) -> int:
    """Map the scenes of a list, each in a folder of its own, on this machine or a cluster; 1 when one failed."""
    runs = listed(options.list, options.out, options.book)
    outcomes = reruns.execute_all(runs, jobs=options.jobs, cluster=options.cluster)
    print(reruns.report(outcomes))
    return int(any(outcome.state == "failed" for outcome in outcomes))


def listed(path: Path, out: Path, book: Path = grids.BOOK) -> list[grids.Run]:
    """
    The runs of the chapter `maps` that a list of scenes asks for; its paths are taken from the list's own folder.

    Raises MissingDataError or ParameterError, naming the line, before anything runs.
    """
    if not path.is_file():
        raise MissingDataError(path, found="no such file", expected="a CSV of scenes", do="Check the path.")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = ", ".join(COLUMNS)
    if not rows or not {"name", "s2"} <= set(rows[0]) <= set(COLUMNS):
        found = f"columns {', '.join(rows[0])}" if rows else "no scene"
        raise ParameterError(path, found=found, expected=f"name, s2, and some of {known}", do="Mend the first line.")
    runs, names = [], set()
    for number, row in enumerate(rows, start=2):
        name = (row["name"] or "").strip()
        if not name or name in names or Path(name).name != name or name.startswith("."):
            do = "Name each scene once, as a folder may be called."
            raise ParameterError(f"{path}, line {number}", found=repr(name), expected="a name of its own", do=do)
        names.add(name)
        given: dict[str, Any] = {"map_folder": str((out / name).absolute())}
        for column in ("s2", "s1", "coarse"):
            if row.get(column):
                place = (path.parent / row[column]).absolute()
                if not place.exists():
                    where, do = f"{path}, line {number}", "Check the path."
                    raise MissingDataError(where, found=f"no {place}", expected="a file", do=do)
                given[f"{column}_path"] = str(place)
        settings.check(given, known=settings.names_of("maps"))
        runs.append(grids.Run("maps", given, (out / name).absolute(), book))
    return runs
