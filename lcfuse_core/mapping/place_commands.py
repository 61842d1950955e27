"""
Fetch real images and real MODIS labels of any place, and map it: `python -m lcfuse_core place ...`.

    place --lon 11.5 --lat 48.3 --out DIR                 images, MODIS label and a reference of 5.12 x 5.12 km
    place --lon 11.5 --lat 48.3 --map --out DIR           and a map of 10 m that is learned from the label
    place --places FILE.yaml --out DIR [--jobs N]         many
    place --places FILE.yaml --out DIR --score            and a run of the chapter your_place on each, into the ledger

The folder of a place is in the layout of DFC2020: chapters and commands take it as `data_root`. The same command
continues after an interruption, and finds a place that is complete. With --estimate it prints what would be downloaded
and about how long it would take, from the indexes of the files, and reads no pixel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lcfuse_core import _runtime
from lcfuse_core.errors import LcfuseError, ParameterError
from lcfuse_core.mapping import places
from lcfuse_core.mapping.place_layers import Request
from lcfuse_core.scoring import ledger

_MEGABYTES_PER_MINUTE = 150.0  # 20 Mbit per second: an assumption, as no public server was measured
_MAP_MINUTES = 5.5
_SCORE_MINUTES = {"smoke": 2.5, "colab": 5.5, "full": 5.5}
"""
Processor time of `map`, and of a run of the chapter your_place by profile, on 5.12 km with 122 coarse cells.

The smoke profile was measured: 140 s on one thread, on the synthetic place (2026-11-29). The others add the 0.46 s that
each further training step took, up to the 549 steps for 122 labelled cells; fewer labels take fewer. A real place of
2.08 km took 1.1 and 1.4 minutes.
"""


def add_parser(parsers: Any) -> None:
    """Add `place` to the commands of `__main__`."""
    place = parsers.add_parser(
        "place", help="fetch images and labels of a place", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
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
    place.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    """Fetch one place or many; return 1 if any failed."""
    one = options.lon is not None and options.lat is not None
    if one == (options.places is not None):
        do = "Give --lon and --lat for one place, --places FILE for many."
        found = "both --lon and --places" if one else "neither --lon and --lat nor --places"
        raise ParameterError("place", found=found, expected="one of them", do=do)
    if options.jobs < 1:
        raise ParameterError("--jobs", found=str(options.jobs), expected="1 or more", do="Give a whole number.")
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
    record = json.loads((folder / "place.json").read_text(encoding="utf-8"))
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
