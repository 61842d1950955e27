"""The whole way on a miniature: fetch over faulty servers, verify, pack, train with two kills, evaluate, verdict."""

import json
import re
from functools import partial

import mirror
import nbformat
import pytest

import walk
from lcfuse_core import __main__ as shell
from lcfuse_core.data import commands
from lcfuse_core.download import records
from lcfuse_core.download.fetch import Fetcher
from lcfuse_core.download.transfer import Retry
from lcfuse_core.sample import world
from lcfuse_core.scoring import claims
from lcfuse_core.training.checkpoint import LAST, load_checkpoint


def check_data(folder, served, monkeypatch, capsys):
    """All is there although archives were cut and refused: fetched once, complete, the bytes those of the world."""
    monkeypatch.chdir(folder)
    options = ["--profile", "colab", "--manifest", str(served.manifest)]
    assert shell.main(["data", "fetch", *options]) == 0
    assert set(re.findall(r"^[\w-]+: (\w+);", capsys.readouterr().out, re.MULTILINE)) == {"here"}
    assert shell.main(["data", "status", *options]) == 0
    said = capsys.readouterr().out
    for name, n_patches, n_files in (("sen12ms", 16, 48), ("dfc2020", 8, 32)):
        # The miniature is not the published data, whatever its own manifest verifies.
        assert f"{name}/ ({records.UNVERIFIED}): {n_patches} of {n_patches} patches complete" in said
        files = list((folder / "data" / name).rglob("*.tif"))
        assert len(files) == n_files
        for file in files:
            assert file.read_bytes() == (served.world / file.relative_to(folder / "data")).read_bytes()
    assert not list((folder / "data" / "downloads").glob("*"))


@pytest.mark.slow
def test_the_walk_ends_with_a_line_that_decides_no_claim(tmp_path, monkeypatch, capsys):
    """Each command succeeds; a killed training ends with all its steps; a miniature has the protocol of no claim."""
    shown = []
    (tmp_path / "_data").mkdir()
    (tmp_path / "_data" / "world-0").symlink_to(world.sample_folder(0))  # else the last chapter makes another
    monkeypatch.setattr(commands, "Fetcher", partial(Fetcher, retry=Retry(stall_s=10, pause_s=0)))
    with mirror.serve(tmp_path / "mirror") as served:
        walk.walk(tmp_path, served.manifest, shown.append)
        check_data(tmp_path, served, monkeypatch, capsys)
    assert [text.splitlines()[0].split()[4] for text in shown] == ["data"] * 3 + ["train"] * 3 + ["evaluate", "run"]
    killed = [int(step) for text in shown for step in re.findall(r"killed; the last checkpoint is of step (\d+)", text)]
    assert killed == sorted(killed)
    assert [step >= least for step, least in zip(killed, walk.KILLED_AT, strict=True)] == [True, True]
    run = load_checkpoint(tmp_path / "runs" / "fcn" / LAST)
    assert run.history[-1]["step"] == walk.STEPS
    assert run.history[-1]["aa"] == run.history[-1]["aa_held_out"]

    ledger = tmp_path / "runs" / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {line["parameters"]["method"] for line in lines} == {"FCN, plain", "MODIS label"}
    assert {(line["split"], line["scores"]["n_patches"]) for line in lines} == {("test", 4)}
    assert {line["data_kind"] for line in lines} == {"unverified"}  # the files are not the published ones
    evidence = [line | {"data_kind": "real"} for line in claims.evidence(ledger)]
    verdicts = {claim.id: claims.verdict(claim, claims.examine(claim, evidence)) for claim in claims.read_claims()}
    assert verdicts["better-than-modis"] == "under another protocol"
    assert not set(verdicts.values()) & {"reproduced", "inconclusive", "not reproduced"}

    chapter = nbformat.read(tmp_path / "runs" / "reproduction.ipynb", as_version=4)
    shown = [out.get("data", {}).get("text/html", "") for cell in chapter.cells for out in cell.get("outputs", [])]
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for text in shown for row in text.split("<tr")]
    own = [row for row in rows if row[:1] == ["better-than-modis"] and claims.MARKS["unverified"] in row]
    assert own
    assert all("no verdict: other data" in row for row in own)
