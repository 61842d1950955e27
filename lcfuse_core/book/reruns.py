"""
Run chapters again: one, or a grid of them over parameters (`grids`), on this machine or on a Dask cluster.

Each run of a grid has a folder of its own, named for what was varied, with the executed notebook, `parameters.yaml`,
its `ledger.jsonl`, and `CHAPTER.run.json` when it has finished. A run that has finished with the same parameters, the
same notebook and the same code is found and not made again; one that was killed or failed is. Every run is a process
of its own, started as a person would start it, so that none can spoil another. On a cluster the workers must see the
same folders as the machine that asks (a shared file system), and have this package installed.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
import yaml

from lcfuse_core import _runtime
from lcfuse_core.book.grids import Run, key
from lcfuse_core.errors import MissingDataError
from lcfuse_core.scoring import ledger

if TYPE_CHECKING:
    from traitlets.config import Config

START_TIMEOUT_S = 600
"""For a kernel to begin; papermill's own minute is too short when many runs start on a busy machine at once."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run: made now, found finished, or failed; *message* says why it failed."""

    run: Run
    state: Literal["done", "found", "failed"]
    seconds: float = 0.0
    message: str = ""


def is_finished(run: Run) -> bool:
    """Whether this very run has been made before."""
    try:
        return bool(json.loads(run.record.read_text())["key"] == key(run)) and run.notebook.exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def execute(run: Run) -> Outcome:
    """
    Execute a chapter through papermill into its folder, in this process; see `Outcome`.

    Sets LCFUSE_DATA and LCFUSE_LEDGER where they are not set.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    began = time.monotonic()
    run.folder.mkdir(parents=True, exist_ok=True)
    run.record.unlink(missing_ok=True)
    os.environ.setdefault("LCFUSE_DATA", _data_folder())
    os.environ.setdefault("LCFUSE_LEDGER", str(run.folder / "ledger.jsonl"))
    try:
        with kernel_config() as config:
            papermill.execute_notebook(
                str(run.book / f"{run.chapter}.ipynb"),
                str(run.notebook),
                run.parameters,
                kernel_name="python3",
                language="python",
                cwd=str(run.folder),
                start_timeout=START_TIMEOUT_S,
                progress_bar=sys.stderr.isatty(),
                config=config,
            )
    except PapermillExecutionError as error:
        message = f"{run.chapter}, cell {error.exec_count}: {error.ename}: {error.evalue}"
        return Outcome(run, "failed", time.monotonic() - began, message)
    seconds = time.monotonic() - began
    _runtime.write_atomic(
        run.record, json.dumps({"key": key(run), "seconds": round(seconds, 1), "parameters": run.parameters})
    )
    return Outcome(run, "done", seconds)


@contextmanager
def kernel_config() -> Iterator[Config]:
    """
    Options of Jupyter by which a kernel is spoken to through files in a folder of its own.

    Its usual way are ports of the network, chosen a second before the kernel takes them. Of many kernels that start at
    once two then choose the same port now and then: one dies, and who started it may wait for ever (jupyter_client
    8.10). Windows knows no such files; there it stays with ports.
    """
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        files = {} if os.name == "nt" else {"transport": "ipc", "ip": str(Path(folder) / "kernel")}
        yield Config({"KernelManager": files})


def _data_folder() -> str:
    return os.environ.get("LCFUSE_DATA", str(Path("_data").absolute()))


def execute_apart(run: Run, data: str, threads: int = 1) -> Outcome:
    """
    Execute a run of a grid in a process of its own; one that has finished before is found.

    data : folder of samples and downloads, where the environment does not name one
    threads : of its numerical libraries, likewise

    Its parameters are written beside it, and what an earlier attempt recorded is kept as `earlier-ledger.jsonl`. The
    process goes on when the one that started it is killed, such as a worker of a cluster; whoever asks for the same
    run meanwhile waits for it.
    """
    with _runtime.lock(run.folder / ".run.lock") as held:
        return Outcome(run, "found") if is_finished(run) else _execute_alone(run, data, threads, held)


def _execute_alone(run: Run, data: str, threads: int, held: tuple[int, ...]) -> Outcome:
    began = time.monotonic()
    (run.folder / "parameters.yaml").write_text(yaml.safe_dump(run.all_parameters))
    _set_aside(run.folder / "ledger.jsonl")
    command = [sys.executable, "-m", "lcfuse_core", "run", run.chapter, "--out", str(run.folder)]
    command += ["--book", str(run.book)]
    for name, value in run.parameters.items():
        command += ["-p", name, str(value)]
    environment = {"OMP_NUM_THREADS": str(threads), "LCFUSE_DATA": data, **os.environ}
    environment["LCFUSE_LEDGER"] = str(run.folder / "ledger.jsonl")
    done = subprocess.run(
        command, env=environment, pass_fds=held, capture_output=True, text=True, errors="replace", check=False
    )
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return Outcome(run, "done", seconds)
    said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
    ended = f"ended with code {done.returncode}" if done.returncode > 0 else f"killed by signal {-done.returncode}"
    return Outcome(run, "failed", seconds, "; ".join(said) or "; ".join([ended, *done.stderr.splitlines()[-1:]]))


def _set_aside(path: Path) -> None:
    if path.exists():
        with path.with_name(f"earlier-{path.name}").open("ab") as earlier:
            earlier.write(path.read_bytes())
        path.unlink()


def execute_all(
    runs: Sequence[Run], *, jobs: int = 1, cluster: str = "", tell: Callable[[str], None] = print
) -> list[Outcome]:
    """
    Make all runs of a grid, as many at a time as there are *jobs* or workers, and report on each as it ends.

    cluster : address of a Dask scheduler, such as tcp://host:8786; empty for this machine

    No failure stops the others. Returns the outcomes in the order of *runs*.
    """
    outcomes: dict[str, Outcome] = {}
    threads = 1 if cluster else max(1, (os.cpu_count() or 1) // jobs)
    execute = partial(execute_apart, data=_data_folder(), threads=threads)
    for run, result in _runtime.map_parallel(execute, runs, jobs=jobs, cluster=cluster):
        # An exception: such as a worker that was killed.
        outcome = Outcome(run, "failed", 0.0, repr(result)) if isinstance(result, BaseException) else result
        outcomes[run.name] = outcome
        took = f" in {outcome.seconds:.0f} s" if outcome.seconds else ""
        tell(f"{len(outcomes)} of {len(runs)}: {outcome.run.name}: {outcome.state}{took}")
    return [outcomes[run.name] for run in runs]


@contextmanager
def local_cluster(threads: int = 2) -> Iterator[str]:
    """Address of a Dask scheduler with one worker of so many *threads*, both in this process: to try a grid on."""
    import distributed

    options = {"n_workers": 1, "threads_per_worker": threads, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options, protocol="tcp", silence_logs=logging.ERROR) as cluster:
        yield cluster.scheduler_address


def report(outcomes: Sequence[Outcome]) -> str:
    """What became of a grid, failures last, each with the notebook to open."""
    states = [outcome.state for outcome in outcomes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "found", "failed"))
    lines = [f"{len(outcomes)} runs: {counts}"]
    for outcome in outcomes:
        if outcome.state == "failed":
            opened = outcome.run.notebook if outcome.run.notebook.exists() else f"{outcome.run.folder} (no notebook)"
            lines += [f"failed: {outcome.run.name}: {outcome.message}", f"  open: {opened}"]
    return "\n".join(lines)


def gather(out: str | os.PathLike[str]) -> pd.DataFrame:
    """
    The ledger lines of all finished runs under *out* as one table; column `run` has the name of each run's folder.

    Lines of runs that failed or are still going are left out. Raises MissingDataError when there is none.
    """
    found = []
    for record in sorted(Path(out).rglob("*.run.json")):
        file = record.parent / "ledger.jsonl"
        if file.exists():
            found.append(ledger.read(file).assign(run=record.parent.name))
    if not found:
        do = "Run a chapter that records, such as evaluation, over a grid."
        raise MissingDataError(out, found="no finished run with a ledger", expected="at least one", do=do)
    return pd.concat(found, ignore_index=True)
