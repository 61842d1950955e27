"""
A local mirror of the data: a small world in the archives and names of SEN12MS and DFC2020, with its own manifest.

    with serve(folder) as mirror:                       # makes the world, packs it, starts an FTP and an HTTP server
        main(["data", "fetch", "--profile", "colab", "--manifest", str(mirror.manifest), "--root", ...])

The items are those of the shipped manifest that the small world can fill; the profiles `colab` and `full` keep their
meaning. With *faults* each archive is cut or refused before it arrives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from servers import FTPServer, HTTPServer
from worlds import make_zip, md5, tar_gz

from lcfuse_core import _runtime
from lcfuse_core.sample import world

SCENES = {"spring": "1", "summer": "2", "fall": "3", "winter": "4"}
PARTS = ("validation", "test")
KINDS = ("s1", "s2", "lc", "dfc")
LISTS = ("sen12ms-test-list", "sen12ms-train-list")
WRAPS = {"s1": "", "s2": "s2_validation/", "lc": "ROIs0000_validation/lc_validation/", "dfc": ""}
"""Some of the real zips are flat, some wrapped."""


@dataclass(frozen=True)
class Mirror:
    """What is served: the manifest to fetch with, and the world that the archives hold."""

    manifest: Path
    world: Path


def small_world() -> Path:
    """
    Return a world of four training scenes (one per season), one validation and one test region.

    It is made once, in the data folder, and is only read.
    """
    plan = world.WorldPlan(0, n_train=4, n_validation=1, n_test=1)
    return world.make_world(_runtime.data_folder() / "mirror" / "world-0", plan, workers=1)


def small_worlds() -> Path:
    """Return the folder with the world of `compare --small` of seed 0, for data folders of tests to link to."""
    folder = _runtime.data_folder() / "small"
    with _runtime.lock(folder / "lock"):  # of two tests at a time, one makes it
        world.make_world(folder / "world-0", world.WorldPlan(0, n_train=4, n_validation=1, n_test=2), workers=1)
    return folder


@contextmanager
def serve(folder: Path, *, faults: bool = True) -> Iterator[Mirror]:
    """Serve the world of `small_world`; the manifest is in *folder*."""
    top = small_world()
    folder.mkdir(parents=True, exist_ok=True)
    with FTPServer() as ftp, HTTPServer() as http:
        path = folder / "manifest.yaml"
        text = yaml.safe_dump(_manifest(top, ftp, http, faults), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
        yield Mirror(path, top)


def _season(top: Path, folder: str, kind: str) -> bytes:
    """The archive of one season and kind, with a scene that no profile names."""
    files = sorted((top / "sen12ms" / folder).rglob(f"*_{kind}_*.tif"))
    content = {f"{folder}/{path.parent.name}/{path.name}": path.read_bytes() for path in files}
    return tar_gz(content | {f"{folder}/{kind}_99/{folder}_{kind}_99_p1.tif": b"another scene"})


def _phase(folder: Path, kind: str) -> bytes:
    """The archive of one kind of a phase of DFC2020."""
    return make_zip({f"{WRAPS[kind]}{path.name}": path.read_bytes() for path in sorted(folder.glob("*.tif"))})


def _manifest(top: Path, ftp: FTPServer, http: HTTPServer, faults: bool) -> dict:
    """The shipped manifest with these servers as its sources and what they serve as its checksums."""
    book = yaml.safe_load((_runtime.SHIPPED / "data_manifest.yaml").read_text(encoding="utf-8"))
    wanted = {f"sen12ms-{season}-{kind}" for season in SCENES for kind in ("lc", "s1", "s2")}
    wanted |= {f"dfc2020-{part}-{kind}" for part in PARTS for kind in KINDS} | {"sample-world", *LISTS}
    book["items"] = [entry for entry in book["items"] if entry["id"] in wanted]
    colab, full = [], []
    s2_names = sorted(path.name for path in (top / "sen12ms").rglob("*_s2_*.tif"))
    for kind in ("lc", "s1", "s2"):
        some = next((top / "sen12ms").rglob(f"*_{kind}_*.tif"))
        book["datasets"]["sen12ms"]["kinds"][kind]["bytes"] = some.stat().st_size
    for entry in book["items"]:
        file, choice = entry["file"], {"item": entry["id"]}
        if entry["id"] in LISTS:
            names = [name for name in s2_names if ("_s2_4_" in name) == (entry["id"] == LISTS[0])]
            content = "".join(f"{name}\n" for name in names).encode()
            http.script.serve(f"/{file}", content)
            entry |= {"about": len(content), "checksums": md5(content), "sources": [http.source(file)]}
        elif entry["dataset"] == "sen12ms":
            content = _season(top, entry["unpack"]["place"].split("/")[0], entry["kind"])
            ftp.script.serve(f"/{file}", content, ["cut", "busy"] * faults)
            entry |= {"checksums": md5(content), "sources": [ftp.source(file)]}
            scene = SCENES[entry["id"].split("-")[1]]
            colab.append(choice | {"scenes": {scene: 4}, "stream": True})
        elif file:
            content = _phase(top / "dfc2020" / entry["unpack"]["place"], entry["kind"])
            http.script.serve(f"/{file}", content, ["html", "cut"] * faults)
            http.script.serve(f"/copy-{file}", content, ["cut"] * faults)
            entry["sources"] = [http.source(name) for name in (f"gone-{file}", file, f"copy-{file}")]
            entry["unpack"]["files"] = len(list((top / "dfc2020" / entry["unpack"]["place"]).glob("*.tif")))
            colab.append(dict(choice))
        if file:
            full.append(dict(choice))
    names = {"colab": (colab, "one scene per season, and DFC2020"), "full": (full, "all of it")}
    book["subsets"] = {name: {"what": what, "items": items} for name, (items, what) in names.items()}
    return book
