"""
Walk the whole way on a miniature, from archives on a server to the verdict on a claim, and print each command.

    python scripts/walk.py --out FOLDER

A local server offers a small synthetic world in the archives and names of SEN12MS and DFC2020. The same commands, with
the profile `full` and without --manifest, are those for the real data. The training is killed twice and continued. The
result decides no claim: the files are not the published ones, so that its lines are `unverified`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
STEPS, KILLED_AT = 60, (5, 20)
ENVIRONMENT = {"LCFUSE_DATA": "_data", "LCFUSE_LEDGER": "runs/ledger.jsonl"}
"""Of each command; the paths start at the folder."""


def main() -> None:
    """Serve the miniature and walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="empty folder for data, networks and results")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))  # the server is that of the tests
    mirror = importlib.import_module("mirror")
    with mirror.serve(options.out / "mirror", faults=False) as served:
        walk(options.out.absolute(), served.manifest.absolute())


def walk(folder: Path, manifest: Path, show: Callable[[str], object] = print) -> None:
    """Run all commands in *folder*; raises an error if one fails, or the training ends before it is killed."""
    data = ["--profile", "colab", "--manifest", str(manifest)]
    _run(folder, show, "data", "fetch", *data, "--drop-archives")
    _run(folder, show, "data", "verify", *data)
    _run(folder, show, "data", "pack")
    plan = {"steps": STEPS, "crop": 32, "batch": 4, "class_weight_power": 0}
    train = ["train", "data/packs", "--out", "runs/fcn", "--profile", "colab", "--validation", "data/dfc2020"]
    train += ["--interval", "0", *(word for name, value in plan.items() for word in ("-p", name, str(value)))]
    for step in KILLED_AT:
        show(f"{_shown(train)}\n  killed; the last checkpoint is of step {_kill(folder, train, step)} of {STEPS}")
    _run(folder, show, *train)
    evaluate = ["--checkpoint", "runs/fcn", "--train-root", "data/packs", "--data", "data/dfc2020"]
    _run(folder, show, "evaluate", *evaluate, "--profile", "colab")
    _run(folder, show, "run", "reproduction", "--profile", "colab", "--out", "runs")


def _run(folder: Path, show: Callable[[str], object], *words: str) -> None:
    """Run a command in this process: a process for each would spend its time on importing the same libraries."""
    from lcfuse_core import __main__ as shell

    out, errors = io.StringIO(), io.StringIO()
    with chdir(folder), mock.patch.dict(os.environ, ENVIRONMENT), redirect_stdout(out), redirect_stderr(errors):
        code = shell.main(list(words))
    if code:
        raise RuntimeError(f"{_shown(words)}\n{out.getvalue()}{errors.getvalue()}")
    show("\n  ".join([_shown(words), *(line.rstrip() for line in out.getvalue().splitlines()[-12:])]))


def _kill(folder: Path, words: list[str], step: int) -> int:
    """Kill a training after it has written a checkpoint of that step or a later one; return the step that is kept."""
    from lcfuse_core.errors import LcfuseError
    from lcfuse_core.training.checkpoint import LAST, PREVIOUS, read_checkpoint

    def kept() -> int:
        for name in (LAST, PREVIOUS):  # between two renames only the previous one exists
            try:
                return int((read_checkpoint(folder / "runs" / "fcn" / name)[1] or {})["step"])
            except LcfuseError:  # not yet there
                continue
        return 0

    command, quiet = [sys.executable, "-m", "lcfuse_core", *words], subprocess.DEVNULL
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": paths}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet) as training:
        while training.poll() is None and kept() < step:
            time.sleep(0.02)
        training.kill()
    if training.returncode == 0:
        raise RuntimeError("the training ended before it was killed")
    return kept()


def _shown(words: Sequence[str]) -> str:
    """The command as a reader types it; the manifest of the miniature is left out."""
    typed = [word for n, word in enumerate(words) if "--manifest" not in words[max(0, n - 1) : n + 1]]
    return f"$ python -m lcfuse_core {shlex.join(typed)}"


if __name__ == "__main__":
    main()
