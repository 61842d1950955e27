"""
Run chapters again: one, or a grid over parameters, on this machine or on a Dask cluster.

`-p seed 0..4 -p loss cross_entropy,bag` is five times two runs:

    0..4        whole numbers, both ends included
    a,b         a list
    (a path)    is never split. Give `-p data_root A -p data_root B` for two

Everything is checked before anything runs. Each run of a grid is a process of its own and has a folder named by what
was varied, with the executed notebook, `parameters.yaml`, `ledger.jsonl`, and `CHAPTER.run.json` when it has finished.
A finished run with the same parameters, notebook and code is not repeated. On a cluster the workers need the same
folders (a shared file system) and this package.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import yaml

from lcfuse_core import _runtime
from lcfuse_core.book import settings
from lcfuse_core.errors import MissingDataError, ParameterError
from lcfuse_core.scoring import ledger

if TYPE_CHECKING:
    from traitlets.config import Config

BOOK = _runtime.PACKAGE.resolve().parent / "book"

_LARGEST_GRID = 10_000
"""Most values of a parameter, and most runs; more are a typing error."""

_START_TIMEOUT_S = 600
"""For a kernel to start; papermill's minute is too short when many runs start at once on a busy machine."""


@dataclass(frozen=True)
class Run:
    """One run of a chapter: the parameters that were given (paths absolute), and the folder of its results."""

    chapter: str
    parameters: dict[str, Any]
    folder: Path
    book: Path

    @property
    def all_parameters(self) -> dict[str, Any]:
        """The given parameters, and the profile's for the rest: what the notebook will compute with."""
        profile = _runtime.read_profile(self.parameters.get("profile", "smoke"))
        return {name: profile[name] for name in settings.names_of(self.chapter)} | self.parameters

    @property
    def name(self) -> str:
        """The name of its folder: what was varied."""
        return self.folder.name

    @property
    def notebook(self) -> Path:
        """The executed notebook, whole or up to where it failed."""
        return self.folder / f"{self.chapter}.ipynb"

    @property
    def record(self) -> Path:
        """The file that is written when the run has finished."""
        return self.folder / f"{self.chapter}.run.json"

    @property
    def is_finished(self) -> bool:
        """Whether this run has been made before."""
        try:
            return bool(json.loads(self.record.read_text())["key"] == key(self)) and self.notebook.exists()
        except (OSError, ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True)
class Outcome:
    """The result of a run: made now, found finished, or failed for the reason in *message*."""

    run: Run
    state: Literal["done", "found", "failed"]
    seconds: float = 0.0
    message: str = ""


def grid(
    chapter: str, given: Sequence[Sequence[str]], *, profile: str = "smoke", out: Path, book: Path = BOOK
) -> list[Run]:
    """
    Return the runs that a command line describes; a single one has *out* itself as its folder.

    Parameters
    ----------
    chapter, given, profile : str, sequence of (name, text), str
        Names of chapter and profile, and each pair after `-p`. Relative paths of the profile start at the current
        folder, not at *out*.
    out, book : Path
        Folders of the results and of the chapters.

    Raises
    ------
    ParameterError, MissingDataError
        Lists the known chapters, names, values or profiles; names the notebook that the book lacks.
    """
    values = parse(chapter, given, profile)
    where = book / f"{chapter}.ipynb"
    if not where.exists():
        do = "Run this from a checkout of the book, or name the folder of the chapters with --book."
        raise MissingDataError(where, found="no such file", expected="the chapter's notebook", do=do)
    varied = [name for name, several in values.items() if len(several) > 1]
    n_runs = math.prod(map(len, values.values()))
    if n_runs > _LARGEST_GRID:
        found = f"{n_runs:,} runs ({' x '.join(f'{len(values[name]):,} of {name}' for name in varied)})"
        raise ParameterError("grid", found=found, expected=f"at most {_LARGEST_GRID:,}", do="Vary fewer values.")
    out, book, runs = out.absolute(), book.absolute(), []
    for combination in itertools.product(*values.values()):
        point = dict(zip(values, combination, strict=True))
        folder = out / _folder_name(point, varied) if varied else out
        of_profile = _runtime.read_profile(point["profile"])
        names = (name for name in settings.names_of(chapter) if name in settings.PATHS and name not in point)
        paths = {name: str(Path(of_profile[name]).absolute()) for name in names if of_profile[name]}
        runs.append(Run(chapter, point | paths, folder, book))
    return runs


def parse(chapter: str, given: Sequence[Sequence[str]], profile: str) -> dict[str, list[Any]]:
    """Return the values of each given parameter, in its type, without doubles; paths are made absolute."""
    settings.refuse_unknown((name for name, _ in given), chapter)
    values: dict[str, list[Any]] = {}
    for name, text in given:
        values.setdefault(name, []).extend(_values(name, text))
    if values.setdefault("profile", [profile]) != [profile] and profile != "smoke":
        found = f"--profile {profile} and -p profile {','.join(values['profile'])}"
        raise ParameterError("profile", found=found, expected="one of the two", do="Drop one.")
    for name in values["profile"]:
        _runtime.read_profile(name)
    return {name: list(dict.fromkeys(several)) for name, several in values.items()}


def _values(name: str, text: str) -> Iterable[Any]:
    if name in settings.PATHS:
        return [str(Path(text).absolute()) if text else ""]
    return itertools.chain.from_iterable(_range(name, part) for part in text.split(","))


def _range(name: str, text: str) -> Iterable[Any]:
    ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
    if ends is None or settings.Settings.model_fields[name].annotation is not int:
        return [settings.from_text(name, text)]
    first, last = (settings.from_text(name, end) for end in ends.groups())
    found, expected, do = repr(text), "the smaller end first", f"Write {last}..{first}."
    if first <= last:
        found, expected, do = f"{last - first + 1} values", f"at most {_LARGEST_GRID}", "Ask for fewer."
    if not 0 <= last - first < _LARGEST_GRID:
        raise ParameterError(f"parameter {name}", found=found, expected=expected, do=do)
    return range(first, last + 1)


def _folder_name(point: Mapping[str, Any], varied: Iterable[str]) -> str:
    """Return a name that distinguishes the runs of a grid and that every file system takes."""
    parts = []
    for name in varied:
        text = str(point[name])
        plain = re.sub(r"[^\w.-]+", "-", Path(text).name if name in settings.PATHS else text)[-40:]
        digest = f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}" if plain != text else ""
        parts.append(f"{name}={plain}{digest}")
    return ",".join(parts)


def key(run: Run) -> str:
    """Return the SHA-256 of what a run depends on besides data: parameters, the notebook's code cells, the module."""
    # Only here: its checks of formats take two seconds to import.
    import nbformat

    notebook = nbformat.read(run.book / f"{run.chapter}.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    inputs = [run.chapter, run.all_parameters, cells, _runtime.code_digest()]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def execute(run: Run) -> Outcome:
    """Execute a chapter through papermill into its folder; its ledger lies there if LCFUSE_LEDGER is not set."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    began = time.monotonic()
    # papermill fills in `{name}` in paths.
    source, target = (
        str(path).replace("{", "{{").replace("}", "}}") for path in (run.book / f"{run.chapter}.ipynb", run.notebook)
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    run.record.unlink(missing_ok=True)
    # Absolute, because the kernel runs in the folder of the run.
    os.environ["LCFUSE_DATA"] = str(_runtime.data_folder())
    os.environ["LCFUSE_LEDGER"] = os.path.abspath(os.environ.get("LCFUSE_LEDGER") or run.folder / "ledger.jsonl")
    try:
        with kernel_config() as config:
            papermill.execute_notebook(
                source, target, run.parameters, kernel_name="python3", language="python", cwd=str(run.folder),
                start_timeout=_START_TIMEOUT_S, progress_bar=sys.stderr.isatty(), config=config,
            )  # fmt: skip
    except PapermillExecutionError as error:
        message = f"{run.chapter}, cell {error.exec_count}: {error.ename}: {error.evalue}"
        return Outcome(run, "failed", time.monotonic() - began, message)
    seconds = time.monotonic() - began
    record = {"key": key(run), "seconds": round(seconds, 1), "parameters": run.parameters}
    _runtime.write_atomic(run.record, json.dumps(record))
    return Outcome(run, "done", seconds)


@contextmanager
def kernel_config() -> Iterator[Config]:
    """
    Yield the options of Jupyter by which a kernel is reached through files in a temporary folder.

    With network ports, of many kernels that start at once two sometimes choose the same one: one dies, and its caller
    may wait for ever (jupyter_client 8.10). Windows has no such files; it keeps the ports.
    """
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        files = {} if os.name == "nt" else {"transport": "ipc", "ip": str(Path(folder) / "kernel")}
        yield Config({"KernelManager": files})


def _execute_apart(run: Run, data: str, threads: int) -> Outcome:
    """
    Execute a run of a grid in a process of its own, unless it has finished before.

    The process continues when its parent is killed, such as a worker of a cluster; another call for the same run
    waits for it. The ledger of an earlier attempt is kept as `earlier-ledger.jsonl`. *data* and *threads* are the data
    folder and the number of threads, unless the environment sets them.
    """
    with _runtime.lock(run.folder / ".run.lock") as held:
        if run.is_finished:
            return Outcome(run, "found")
        began, own_ledger = time.monotonic(), run.folder / "ledger.jsonl"
        (run.folder / "parameters.yaml").write_text(yaml.safe_dump(run.all_parameters))
        if own_ledger.exists():
            with own_ledger.with_name("earlier-ledger.jsonl").open("ab") as earlier:
                earlier.write(own_ledger.read_bytes())
            own_ledger.unlink()
        command = [sys.executable, "-m", "lcfuse_core", "run", run.chapter, "--out", str(run.folder)]
        command += ["--book", str(run.book)]
        for name, value in run.parameters.items():
            command += ["-p", name, str(value)]
        environment = {"OMP_NUM_THREADS": str(threads), "LCFUSE_DATA": data, **os.environ}
        environment["LCFUSE_LEDGER"] = str(own_ledger)
        done = subprocess.run(
            command, env=environment, pass_fds=held, capture_output=True, text=True, errors="replace", check=False
        )
    seconds, lines = time.monotonic() - began, done.stderr.splitlines()
    if done.returncode == 0:
        return Outcome(run, "done", seconds)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ended = f"ended with code {done.returncode}" if done.returncode > 0 else f"killed by signal {-done.returncode}"
    return Outcome(run, "failed", seconds, "; ".join(errors or [ended, *lines[-1:]]))


def execute_all(
    runs: Sequence[Run], *, jobs: int = 1, cluster: str = "", tell: Callable[[str], None] = print
) -> list[Outcome]:
    """
    Execute all runs of a grid, and return their outcomes in the same order; a failure does not stop the others.

    Parameters
    ----------
    runs : sequence of Run
        As `grid` returns them.
    jobs, cluster : int, str
        Runs at a time on this machine, or the address of a Dask scheduler, such as tcp://host:8786.
    tell : callable
        Is called with a line as each run ends.
    """
    outcomes: dict[str, Outcome] = {}
    threads = 1 if cluster else max(1, (os.cpu_count() or 1) // jobs)
    execute = partial(_execute_apart, data=str(_runtime.data_folder()), threads=threads)
    for run, result in _runtime.map_parallel(execute, runs, jobs=jobs, cluster=cluster):
        # An exception: such as a worker that was killed.
        outcome = Outcome(run, "failed", 0.0, repr(result)) if isinstance(result, BaseException) else result
        outcomes[run.name] = outcome
        took = f" in {outcome.seconds:.0f} s" if outcome.seconds else ""
        tell(f"{len(outcomes)} of {len(runs)}: {run.name}: {outcome.state}{took}")
    return [outcomes[run.name] for run in runs]


def report(outcomes: Sequence[Outcome]) -> str:
    """Return a summary of a grid: the counts, then each failure with the notebook to open."""
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
    Return the ledger lines of all finished runs under a folder; column `run` has the name of each run's folder.

    Raises MissingDataError if there is none.
    """
    files = [record.parent / "ledger.jsonl" for record in sorted(Path(out).rglob("*.run.json"))]
    found = [ledger.read(file).assign(run=file.parent.name) for file in files if file.exists()]
    if not found:
        do = "Run a chapter that records, such as evaluation, over a grid."
        raise MissingDataError(out, found="no finished run with a ledger", expected="at least one", do=do)
    return pd.concat(found, ignore_index=True)
