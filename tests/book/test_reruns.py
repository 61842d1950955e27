"""Reruns: grids are made in parallel and on a cluster, found again, and their failures told together."""

import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_client import connect

from lcfuse_core import __main__ as shell
from lcfuse_core.book import grids, reruns
from lcfuse_core.errors import LcfuseError, MissingDataError
from lcfuse_core.scoring import ledger

PARAMETERS = 'profile = "smoke"\nseed = 0\ndata_root = ""\nplace = 0'
SOURCE = """\
import os
from lcfuse_core.scoring import ledger
ledger.append(os.environ["LCFUSE_LEDGER"], {"seed": seed, "root": data_root, "scores": {"aa": 1 / (2 - seed)}})"""


@pytest.fixture
def book(tmp_path):
    """A book whose only chapter records one score, and fails with seed 2."""
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(SOURCE)])
    (tmp_path / "book").mkdir()
    nbformat.write(notebook, tmp_path / "book" / "coarse_labels.ipynb")
    return tmp_path / "book"


def make(book, out, *arguments):
    return shell.main(["run", "coarse_labels", "--book", str(book), "--out", str(out), *arguments])


@pytest.mark.slow
def test_a_grid_runs_in_parallel_tells_its_failures_together_and_goes_on_where_it_stopped(book, tmp_path, capsys):
    """Three runs, one fails; then only that one is made again. A path with a comma arrives whole."""
    out, root = tmp_path / "out", str(tmp_path / "a, b")
    assert make(book, out, "-p", "seed", "0..2", "-p", "data_root", root, "--jobs", "2") == 1
    said = capsys.readouterr().out
    assert "3 runs: 2 done, 0 found, 1 failed" in said
    assert "failed: seed=2: coarse_labels, cell 3: ZeroDivisionError: division by zero" in said
    assert f"open: {out / 'seed=2' / 'coarse_labels.ipynb'}" in said
    assert (out / "seed=2" / "coarse_labels.ipynb").exists()

    for seed in (0, 1):
        folder = out / f"seed={seed}"
        outputs = nbformat.read(folder / "coarse_labels.ipynb", as_version=4).cells
        assert any(f"seed = {seed}" in cell.source for cell in outputs)
        asked = yaml.safe_load((folder / "parameters.yaml").read_text())
        assert asked == {"profile": "smoke", "seed": seed, "data_root": root, "place": 0}
        assert ledger.read(folder / "ledger.jsonl")["root"].tolist() == [root]
    table = reruns.gather(out)
    assert table[["run", "scores.aa"]].to_numpy().tolist() == [["seed=0", 0.5], ["seed=1", 1.0]]

    record = json.loads((out / "seed=1" / "coarse_labels.run.json").read_text())
    assert record["parameters"]["seed"] == 1
    assert make(book, out, "-p", "seed", "0..2", "-p", "data_root", root) == 1
    assert "3 runs: 0 done, 2 found, 1 failed" in capsys.readouterr().out
    assert len(reruns.gather(out)) == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no sockets in files")
def test_a_kernel_takes_no_port_that_another_could_have_chosen(book, tmp_path, monkeypatch):
    """Of many runs that start at once, two would choose the same one now and then, and one of them wait for ever."""

    def taken(cache, ip):
        raise AssertionError("a port was chosen")

    monkeypatch.setattr(connect.LocalPortCache, "find_available_port", taken)
    run = grids.Run("coarse_labels", {"seed": 1}, tmp_path / "out", book)
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "ledger.jsonl"))
    assert reruns.execute(run).state == "done"
    assert len(ledger.read(tmp_path / "ledger.jsonl")) == 1
    with reruns.kernel_config() as config:
        folder = Path(config.KernelManager.ip).parent
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.slow
def test_a_grid_runs_on_a_dask_cluster(book, tmp_path, capsys):
    """Two workers, each a process: the same folders and lines as on this machine, and found again without it."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=str(tmp_path)
    ) as cluster:
        assert make(book, tmp_path / "out", "-p", "seed", "0,1", "--cluster", cluster.scheduler_address) == 0
    assert "2 runs: 2 done" in capsys.readouterr().out
    assert reruns.gather(tmp_path / "out")["seed"].tolist() == [0, 1]
    assert make(book, tmp_path / "out", "-p", "seed", "0,1") == 0
    assert "2 found" in capsys.readouterr().out


def test_a_run_that_was_killed_is_not_finished(book, tmp_path):
    """Only a record with this key, beside a notebook, counts; half a record does not."""
    run = grids.Run("coarse_labels", {"seed": 1}, tmp_path / "seed=1", book)
    assert not reruns.is_finished(run)
    run.folder.mkdir()
    shutil.copy(book / "coarse_labels.ipynb", run.notebook)
    for text in ("", '{"key": "ab', "[]", '{"key": "other"}', "{}"):
        run.record.write_text(text)
        assert not reruns.is_finished(run), text
    run.record.write_text(json.dumps({"key": grids.key(run)}))
    assert reruns.is_finished(run)
    run.notebook.unlink()
    assert not reruns.is_finished(run)


def test_what_a_failed_attempt_recorded_is_set_aside_and_kept(tmp_path):
    """The ledger of a run has the lines of the attempt that finished; earlier ones are not lost."""
    file = tmp_path / "ledger.jsonl"
    for text in ("first\n", "second\n"):
        file.write_text(text)
        reruns._set_aside(file)
        assert not file.exists()
    assert (tmp_path / "earlier-ledger.jsonl").read_text() == "first\nsecond\n"
    reruns._set_aside(file)


def test_a_process_that_dies_is_reported_with_how(book, tmp_path, monkeypatch):
    """Killed for memory, say: no `error:` line is there to quote."""
    monkeypatch.setattr(reruns.sys, "executable", shutil.which("false"))
    outcome = reruns.execute_apart(grids.Run("coarse_labels", {"seed": 1}, tmp_path / "out", book), str(tmp_path))
    assert (outcome.state, outcome.message) == ("failed", "ended with code 1")
    assert f"{tmp_path / 'out'} (no notebook)" in reruns.report([outcome])


def test_a_cluster_that_does_not_answer_is_one_clear_error(book, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def no_answer(address, **options):
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", no_answer)
    runs = grids.grid("coarse_labels", [("seed", "0,1")], out=tmp_path, book=book)
    with pytest.raises(LcfuseError, match=r"tcp://nowhere:1: found no answer \(Timed out\).*dask scheduler"):
        reruns.execute_all(runs, cluster="tcp://nowhere:1")


def test_nothing_to_gather_is_said(tmp_path):
    with pytest.raises(MissingDataError, match="no finished run"):
        reruns.gather(tmp_path)
