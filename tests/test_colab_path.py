"""The way of profile `colab` from servers to scores, on a small world packed as the real archives are."""

import json
from functools import partial

import mirror
import numpy as np
import pytest

from lcfuse_core import __main__ as shell
from lcfuse_core.data import commands, patches, source
from lcfuse_core.data.download import Fetcher
from lcfuse_core.data.streamed import open_source
from lcfuse_core.data.transfer import Retry
from lcfuse_core.scoring import protocol
from lcfuse_core.training import loop
from lcfuse_core.training.plan import TrainPlan


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with mirror.serve(tmp_path_factory.mktemp("mirror")) as served:
        yield served


def data(*arguments):
    return shell.main(["data", *map(str, arguments)])


@pytest.mark.slow
def test_the_whole_colab_path(served, tmp_path, monkeypatch, capsys):
    """Fetch over cuts and refusals, verify, unpack, index, train a step, evaluate: the pixels are those packed."""
    retry = Retry(stall_s=10, pause_s=0)
    monkeypatch.setattr(commands, "Fetcher", partial(Fetcher, retry=retry))
    root = tmp_path / "data"
    options = ["--profile", "colab", "--root", root, "--manifest", served.manifest]

    assert data("status", *options) == 1
    assert data("fetch", *options, "--drop-archives", "--json") == 0
    capsys.readouterr()
    assert data("fetch", *options, "--json") == 0
    assert {outcome["state"] for outcome in json.loads(capsys.readouterr().out)} == {"here"}
    assert data("verify", *options) == 0
    assert data("status", *options, "--json") == 0
    said = json.loads(capsys.readouterr().out.split("whole\n")[-1])
    assert {name: folder["complete"] for name, folder in said["folders"].items()} == {"sen12ms": 16, "dfc2020": 8}
    assert not list((root / "downloads").glob("*"))

    train, test = patches.index(root / "sen12ms"), protocol.evaluation_patches(root / "dfc2020")
    assert train["scene_id"].nunique() == len(mirror.SCENES)
    assert same_pixels(root, served.world) == 16 * 3 + 8 * 4

    assert data("pack", "--root", root, "--json") == 0
    learn, held_out = protocol.split_scenes(train)
    packs = patches.index(root / "packs")
    stack = open_source(packs[packs["scene_id"].isin(set(learn["scene_id"]))], memory_gb=0)
    assert len(stack) == len(learn)
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
