"""
Compare methods over several seeds from a shell: `python -m lcfuse_core compare ...`.

    compare --out FILE                                    all methods, seeds 0 to 4, on the synthetic sample
    compare --only "FCN*" --seeds 0 1 --jobs 2 --out FILE
    compare --profile full --train-root DIR --data-root DIR [--cluster ADDRESS] --out FILE
    compare --list

On the sample, a seed is a world and trainings of its own; on other data, trainings alone. Each method is a line of the
ledger FILE, written as soon as it is evaluated: the same command again continues, and a new method is all that runs.
A name may end in `*`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfuse_core import _runtime
from lcfuse_core.errors import LcfuseError, ParameterError

if TYPE_CHECKING:
    from lcfuse_core.methods.experiment import Experiment


ROOTS = ("train_root", "data_root")


def add_parser(commands: Any) -> None:
    """Add `compare` to the commands of `__main__`."""
    compare = commands.add_parser(
        "compare", help="score methods over several seeds", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    compare.add_argument("--out", type=Path, help="ledger that the lines are appended to")
    compare.add_argument("--profile", default="smoke", help=", ".join(_runtime.PROFILES))
    compare.add_argument("--train-root", help="folder of the training patches; empty: the sample")
    compare.add_argument("--data-root", help="folder of the patches to evaluate on; empty: the sample")
    for name in ("steps", "crop", "batch"):
        compare.add_argument(f"--{name}", type=int, help="of each training (default: the profile's)")
    compare.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    compare.add_argument("--only", nargs="+", metavar="NAME", help="methods (default: all but the bounds)")
    compare.add_argument("--jobs", type=int, default=1, help="seeds at a time, on this machine")
    compare.add_argument("--cluster", default="", metavar="ADDRESS", help="of a Dask scheduler")
    compare.add_argument("--small", action="store_true", help="on a sample world of a few scenes, to try a method")
    compare.add_argument("--list", action="store_true", help="print the names of the methods")
    compare.set_defaults(command=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Score the methods and print a table for each label regime."""
    from lcfuse_core.methods.registry import BOUNDS, METHODS
    from lcfuse_core.scoring import ledger, protocol

    if options.list:
        print("\n".join([*METHODS, *BOUNDS]))
        return 0
    if options.out is None:
        raise ParameterError("compare", found="no --out", expected="a ledger", do="Give --out FILE.")
    if options.jobs < 1:
        raise ParameterError("--jobs", found=str(options.jobs), expected="1 or more", do="Correct the number.")
    profile = _runtime.read_profile(options.profile)
    for root in ROOTS:  # absolute, as a worker of a cluster may run in another folder
        given = getattr(options, root)
        path = profile[root] if given is None else given
        setattr(options, root, str(Path(path).absolute()) if path else given)
    names, seeds, failed = chosen(options.only), sorted(set(options.seeds)), False
    if len(seeds) == 1:
        score_seed(experiment_of(options, seeds[0]), names, options.out)
    else:
        score = partial(_score_apart, _command(options, names))
        for seed, result in _runtime.map_parallel(score, seeds, jobs=options.jobs, cluster=options.cluster):
            failed |= isinstance(result, BaseException)
            print(f"seed {seed}: {result}", file=sys.stderr if failed else sys.stdout)
    if options.out.exists():
        lines = ledger.read(options.out)
        for regime, own in lines.groupby("label_regime", sort=False):
            print(f"\nAA in per cent, {regime}, profile {options.profile}\n{protocol.over_seeds(own).to_string()}")
    return int(failed)


def chosen(only: Sequence[str] | None) -> list[str]:
    """Return the names of methods and bounds that fit, in the order of the registry; by default all methods."""
    from lcfuse_core.methods.registry import BOUNDS, METHODS

    if only is None:
        return list(METHODS)
    known = [*METHODS, *BOUNDS]
    for name in only:
        if not any(fnmatchcase(method, name) for method in known):
            raise ParameterError("--only", found=repr(name), expected="a method of --list", do="Correct the name.")
    return [method for method in known if any(fnmatchcase(method, name) for name in only)]


def experiment_of(options: argparse.Namespace, seed: int) -> Experiment:
    """Return the experiment that the options describe, for one seed."""
    from lcfuse_core.data.sample import world
    from lcfuse_core.methods.experiment import Experiment

    changes = {name: getattr(options, name) for name in (*ROOTS, "steps", "crop", "batch")}
    if options.small:
        plan = world.WorldPlan(seed, n_train=4, n_validation=1, n_test=2)
        small = world.make_world(_runtime.data_folder() / "small" / f"world-{seed}", plan)
        changes |= {"train_root": str(small / "sen12ms"), "data_root": str(small / "dfc2020")}
    return Experiment.from_profile("compare", options.profile, seed, **changes)


def score_seed(experiment: Experiment, names: Sequence[str], out: Path) -> None:
    """Train and evaluate the methods that a ledger has no line of with these parameters; append a line for each."""
    from lcfuse_core.methods.registry import BOUNDS, METHODS
    from lcfuse_core.scoring import protocol

    experiment.ledger_path = out.absolute()
    done = _scored(experiment, out)
    for name in [name for name in names if name not in done]:
        method = (METHODS | BOUNDS)[name]
        learned = method.learn(experiment)
        rows, began = experiment.rows if learned.rows is None else learned.rows, time.perf_counter()
        results, _ = protocol.evaluate_methods({name: learned.classify}, rows)
        cost = {"train_s": round(learned.train_s, 1), "evaluate_s": round(time.perf_counter() - began, 1)}
        result = results[name]
        experiment.record(name, result, label_regime=method.label_regime, regime=method.regime, cost=cost)
        scores = f"AA {100 * result.scores.aa:.1f}, mIoU {100 * result.scores.miou_8:.1f}"
        print(f"seed {experiment.parameters['seed']}: {scores}  {name}, trained in {learned.train_s:.0f} s", flush=True)


def _scored(experiment: Experiment, out: Path) -> set[str]:
    """Return the methods that a ledger has a line of with the parameters and data of an experiment."""
    from lcfuse_core.data.identity import data_digest
    from lcfuse_core.scoring import ledger

    if not out.exists() or not out.read_bytes().strip():
        return set()
    lines, parameters = ledger.read(out), experiment.parameters
    wanted = {f"parameters.{name}": parameters[name] for name in ("profile", "seed", "steps", "crop", "batch")}
    wanted |= {f"hashes.{role}": data_digest(root) for role, root in experiment.roots.items()}
    for name, value in wanted.items():
        lines = lines[lines[name] == value] if name in lines else lines[:0]
    return set(lines["parameters.method"])


def _command(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Return the command for one seed, which is added at its end; all paths are absolute."""
    words = [sys.executable, "-m", "lcfuse_core", "compare", "--out", str(options.out.absolute())]
    words += ["--profile", options.profile, *(["--small"] if options.small else []), "--only", *names]
    for name in (*ROOTS, "steps", "crop", "batch"):
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return [*words, "--seeds"]


def _score_apart(command: Sequence[str], seed: int) -> str:
    """Score one seed in a process of its own, as a thread or on a worker; return "done"."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run([*command, str(seed)], env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        do = "Correct it and give the same command again; finished lines are kept."
        found = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        raise LcfuseError(f"seed {seed}", found=found, expected="scores", do=do)
    return "done"
