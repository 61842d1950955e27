"""The way of profile `colab` from servers to scores, on a small world packed as the real archives are."""

import json
import logging
from functools import partial

import numpy as np
import pytest
import yaml
from servers import FTPServer, HTTPServer
from worlds import make_zip, md5, tar_gz

from lcfuse_core import __main__ as shell
from lcfuse_core.data import commands, manifest, patches, source
from lcfuse_core.data import packed as packs
from lcfuse_core.data.download import Fetcher
from lcfuse_core.data.sample import world
from lcfuse_core.data.transfer import Retry
from lcfuse_core.scoring import protocol
from lcfuse_core.training import loop
from lcfuse_core.training.plan import TrainPlan

logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)
SCENES = {"spring": "1", "summer": "2"}
WRAPS = {"s1": "", "s2": "s2_validation/", "lc": "ROIs0000_validation/lc_validation/", "dfc": ""}
"""Some of the real zips are flat, some wrapped."""


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Four training scenes, one a season, and one for validation."""
    plan = world.WorldPlan(0, n_train=4, n_validation=1, n_test=1)
    return world.make_world(tmp_path_factory.mktemp("worlds") / "small", plan, workers=1)


@pytest.fixture(scope="module")
def servers():
    with FTPServer() as ftp, HTTPServer() as http:
        yield ftp, http


def packed(folder, wrap=""):
    """Path -> content of the files of a folder, as an archive holds them."""
    files = sorted(path for path in folder.rglob("*.tif"))
    return {f"{wrap}{path.relative_to(folder.parent)}": path.read_bytes() for path in files}


def season(top, folder, kind):
    """The archive of one season and kind; with a scene that nobody asks for."""
    files = {}
    for scene in sorted((top / "sen12ms" / folder).glob(f"{kind}_*")):
        files |= {f"{folder}/{name}": content for name, content in packed(scene).items()}
    return tar_gz(files | {f"{folder}/{kind}_99/{folder}_{kind}_99_p1.tif": b"another scene"})


def phase(top, kind):
    """The archive of one kind of the validation phase, without folders or with."""
    files = packed(top / "dfc2020" / f"{kind}_validation")
    return make_zip({f"{WRAPS[kind]}{name.rsplit('/', 1)[1]}": content for name, content in files.items()})


def local_manifest(top, ftp, http):
    """The shipped manifest, with the servers of this test as its sources and what they serve as its checksums."""
    book = yaml.safe_load((manifest.resources.files("lcfuse_core") / manifest.SHIPPED).read_text())
    wanted = {f"sen12ms-{name}-{kind}" for name in SCENES for kind in ("lc", "s1", "s2")}
    wanted |= {f"dfc2020-validation-{kind}" for kind in WRAPS} | {"sample-world"}
    book["items"] = [entry for entry in book["items"] if entry["id"] in wanted]
    choices = [{"item": f"dfc2020-validation-{kind}"} for kind in WRAPS]
    for entry in book["items"]:
        file = entry["file"]
        if entry["dataset"] == "sen12ms":
            content = season(top, entry["unpack"]["place"].split("/")[0], entry["kind"])
            ftp.script.serve(f"/{file}", content, ["cut", "busy"])
            entry |= {"checksums": md5(content), "sources": [ftp.source(file)]}
            scene = SCENES[entry["id"].split("-")[1]]
            choices.append({"item": entry["id"], "scenes": {scene: 4}, "stream": True})
        elif file:
            http.script.serve(f"/{file}", phase(top, entry["kind"]), ["html", "cut"])
            http.script.serve(f"/copy-{file}", http.script.content[f"/{file}"], ["cut"])
            entry["sources"] = [http.source(f"gone-{file}"), http.source(file), http.source(f"copy-{file}")]
    book["subsets"] = {"colab": {"what": "a small world", "items": choices}}
    return book


def data(*arguments):
    return shell.main(["data", *map(str, arguments)])


@pytest.mark.slow
def test_the_whole_colab_path(small_world, servers, tmp_path, monkeypatch, capsys):
    """Fetch over cuts and refusals, verify, unpack, index, train a step, evaluate: the pixels are those packed."""
    retry = Retry(stall_s=10, pause_s=0)
    monkeypatch.setattr(commands, "Fetcher", partial(Fetcher, retry=retry))
    root, file = tmp_path / "data", tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump(local_manifest(small_world, *servers), sort_keys=False, allow_unicode=True))
    options = ["--profile", "colab", "--root", root, "--manifest", file]

    assert data("status", *options) == 1
    assert data("fetch", *options, "--drop-archives", "--json") == 0
    capsys.readouterr()
    assert data("fetch", *options, "--json") == 0
    assert {outcome["state"] for outcome in json.loads(capsys.readouterr().out)} == {"here"}
    assert data("verify", *options) == 0
    assert data("status", *options, "--json") == 0
    said = json.loads(capsys.readouterr().out.split("whole\n")[-1])
    assert {name: folder["complete"] for name, folder in said["folders"].items()} == {"sen12ms": 8, "dfc2020": 4}
    assert not list((root / "downloads").glob("*"))

    train, test = patches.index(root / "sen12ms"), protocol.evaluation_patches(root / "dfc2020")
    assert set(train["scene_id"]) == {"ROIs1158_spring_1", "ROIs1868_summer_2"}
    assert same_pixels(root, small_world) == 8 * 3 + 4 * 4

    assert data("pack", "--root", root, "--json") == 0
    learn, held_out = protocol.split_scenes(train)
    stack = packs.PackedScenes(root / "packs", only=set(learn["scene_id"]))
    assert len(stack) == 4
    plan = TrainPlan(steps=1, crop=32, batch=2, width=8, report_every=1, device="cpu")
    run = loop.train(stack, plan, validation=source.read_stack(held_out, "modis")[0])
    results, report = protocol.evaluate_methods({"one step": partial(loop.classify, run)}, test)
    assert (report.n_read, report.skipped) == (4, [])
    assert 0 <= results["one step"].scores.aa <= 1
    assert np.isfinite(run.history[-1]["loss"])


def same_pixels(root, top):
    """How many of the unpacked files there are; each is that of the world, to the byte."""
    files = [path.relative_to(root) for name in ("sen12ms", "dfc2020") for path in (root / name).rglob("*.tif")]
    for file in files:
        assert (root / file).read_bytes() == (top / file).read_bytes()
    return len(files)
