"""The commands `train`, `evaluate` and `compare`: train a network, evaluate one, compare many methods over seeds."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfuse_core import _runtime
from lcfuse_core.errors import LcfuseError, ParameterError

if TYPE_CHECKING:  # torch takes seconds to import: other commands do without
    from lcfuse_core.data.source import PatchSource
    from lcfuse_core.methods.experiment import Experiment
    from lcfuse_core.methods.registry import Method

_TRAIN = """
Train a network:

    train DATA --out RUN [--profile colab] [-p NAME VALUE] ...
    torchrun --nproc-per-node 4 -m lcfuse_core train DATA --out RUN [-p NAME VALUE] ...

DATA is a folder of patches in the layout of SEN12MS, or of packed scenes (`data pack`); one scene in eight is held out,
as in the chapters. RUN is the folder of the run: the same command continues an interrupted run. -p sets a value of the
plan: network, loss, steps, batch, learning_rate ... `evaluate --checkpoint RUN` scores the result.
"""

_EVALUATE = """
Evaluate one trained network or method, and print the claims that its ledger line concerns:

    evaluate --checkpoint RUN --train-root DIR --data DIR     what `train` wrote to the folder RUN
    evaluate --method "Fusion, target regions" --profile full --ledger FILE
"""

_COMPARE = """
Compare methods over several seeds:

    compare --out FILE                                        all methods, seeds 0 to 4, on the synthetic sample
    compare --only "FCN*" --seeds 0 1 --jobs 2 --out FILE
    compare --worlds 0 1 2 --seeds 0 1 2 --out FILE           each training on each sample world
    compare --profile full --train-root DIR --data-root DIR [--cluster ADDRESS] --out FILE
    compare --list

Without --worlds, a seed is a world and trainings of its own on the sample, and trainings alone on other data. All
methods of a seed are evaluated in one pass over the patches, then appended to the ledger FILE. Trained networks are
stored, so the same command continues, and only methods without a line are run. A name may end in `*`.
"""

_PATHS, _SIZES = ("train_root", "data_root", "checkpoint"), ("steps", "crop", "batch")


def add_parser(commands: Any) -> None:
    """Add `train`, `evaluate` and `compare` to the commands of `__main__`."""
    raw = argparse.RawTextHelpFormatter
    train = commands.add_parser(
        "train", help="train a network; again to continue", description=_TRAIN, formatter_class=raw
    )
    evaluate = commands.add_parser(
        "evaluate", help="score one network or method", description=_EVALUATE, formatter_class=raw
    )
    compare = commands.add_parser(
        "compare", help="score methods over several seeds", description=_COMPARE, formatter_class=raw
    )
    train.add_argument("data", type=Path, nargs="?", help="folder of patches or packed scenes (default: the profile's)")
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("--profile", help=f"take the plan from {', '.join(_runtime.PROFILES)}")
    train.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="values")
    train.add_argument("--validation", type=Path, help="folder of DFC2020: evaluate on its validation split, too")
    train.add_argument("--fine", action="store_true", help="there against the 10 m reference, too (track 2)")
    train.add_argument("--interval", type=float, default=60.0, help="maximum seconds between checkpoints (default: 60)")
    train.set_defaults(command=_run_train)
    for parser, data, ledger in ((evaluate, "--data", "--ledger"), (compare, "--data-root", "--out")):
        parser.add_argument(ledger, dest="out", type=Path, metavar="FILE", help="ledger that the lines are appended to")
        parser.add_argument("--profile", default="smoke", help=", ".join(_runtime.PROFILES))
        parser.add_argument("--train-root", help="folder of the training patches or packed scenes; empty: the sample")
        parser.add_argument(data, dest="data_root", help="folder of the patches to evaluate on; empty: the sample")
        for name in _SIZES:
            parser.add_argument(f"--{name}", type=int, help="of each training (default: the profile's)")
        parser.add_argument("--checkpoint", help="file or folder of a trained network, used for all of its kind")
    evaluate.add_argument("--method", metavar="NAME", help="a name of `compare --list`, instead of a checkpoint")
    evaluate.add_argument("--seed", type=int, default=0, help="of the trainings (default: 0)")
    evaluate.set_defaults(command=_run_evaluate)
    compare.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    compare.add_argument("--worlds", type=int, nargs="+", help="sample worlds, each with each seed")
    compare.add_argument("--only", nargs="+", metavar="NAME", help="methods (default: all but the bounds)")
    compare.add_argument("--jobs", type=int, default=1, help="seeds at a time, on this machine")
    compare.add_argument("--cluster", default="", metavar="ADDRESS", help="of a Dask scheduler")
    compare.add_argument("--small", action="store_true", help="on a sample world of a few scenes, to try a method")
    compare.add_argument("--list", action="store_true", help="print the names of the methods")
    compare.set_defaults(command=_run_compare)


def _run_train(options: argparse.Namespace) -> int:
    """Train, and print where the network is."""
    from lcfuse_core.sample import world
    from lcfuse_core.training import loop
    from lcfuse_core.training.checkpoint import LAST
    from lcfuse_core.training.plan import TrainPlan

    values, profile = _plan_values(options.values), {}
    if options.profile is not None:
        profile = _runtime.read_profile(options.profile)
    elif options.data is None:
        raise ParameterError("train", found="no DATA", expected="a folder or --profile", do="Give one of them.")
    plan = TrainPlan(**{name: profile[name] for name in profile if name in TrainPlan.__dataclass_fields__} | values)
    if profile and "report_every" not in values:
        plan = replace(plan, report_every=max(1, plan.steps // 8))
    folder = options.data or profile["train_root"] or world.sample_folder(plan.seed) / "sen12ms"
    source, validation = _sources(Path(folder), options.validation, plan.labels, options.fine)
    run = loop.train(source, plan, options.out, validation=validation, interval_s=options.interval)
    print(f"{run.history[-1]['step']} steps, loss {run.history[-1]['loss']:.4f}: {options.out / LAST}")
    return 0


def _plan_values(pairs: list[list[str]]) -> dict[str, Any]:
    """
    Return values of a plan from a shell: numbers, lists and true or false in JSON, all else as text.

    >>> _plan_values([["steps", "50"], ["learning_rate", "1e-3"], ["network", "unet"], ["inputs", '["s2"]']])
    {'steps': 50, 'learning_rate': 0.001, 'network': 'unet', 'inputs': ['s2']}
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _sources(
    folder: Path, validation: Path | None, labels: str, fine: bool
) -> tuple[PatchSource, dict[str, PatchSource]]:
    """Return the patches to learn from, and by name those to evaluate on: held-out scenes, validation split."""
    from lcfuse_core.data.streamed import labelled, open_source
    from lcfuse_core.scoring import protocol

    table, sources = labelled(folder, labels), {}
    if table["scene_id"].nunique() > 1:
        table, held_out = protocol.split_scenes(table)
        sources["held_out"] = open_source(held_out, labels)
        scenes = ", ".join(sorted(held_out["scene_id"].unique()))
        print(f"learn from {len(table)} patches; held out: {len(held_out)} patches of {scenes}")
    if validation is not None:
        rows = protocol.evaluation_patches(validation, "validation")
        sources |= {name: open_source(rows, name) for name in ("modis", *(["fine"] if fine else []))}
    return open_source(table, labels), sources


def _run_evaluate(options: argparse.Namespace) -> int:
    """Score one method beside the MODIS label, and print the claims that its line concerns."""
    from lcfuse_core.methods.experiment import Experiment
    from lcfuse_core.methods.registry import METHODS, given_network, name_of
    from lcfuse_core.scoring import claims, ledger
    from lcfuse_core.training.checkpoint import load_checkpoint

    _check_alone("evaluate")
    if (options.checkpoint is None) == (options.method is None):
        do = "Give --checkpoint FILE, or --method NAME out of `compare --list`."
        raise ParameterError("evaluate", found="not one of the two", expected="a checkpoint or a method", do=do)
    _absolute(options)
    changes = {name: getattr(options, name) for name in (*_PATHS, *_SIZES)}
    if options.method is not None:
        methods = _chosen([options.method])
        experiment = Experiment.from_profile("evaluation", options.profile, options.seed, **changes)
    else:
        if options.train_root is None:
            do = 'Give --train-root, "" for the sample: the line names the data that the network was trained on.'
            raise ParameterError("evaluate", found="no --train-root", expected="the training data", do=do)
        plan = load_checkpoint(options.checkpoint).plan
        label_regime = "fine" if plan.labels == "fine" else "coarse only"
        changes |= {size: getattr(plan, size) for size in _SIZES}
        experiment = Experiment.from_profile("evaluation", options.profile, plan.seed, **changes)
        methods = {name_of(plan): replace(given_network(), label_regime=label_regime)}
    out = options.out or ledger.default_path()
    failed = _score(experiment, {"MODIS label": METHODS["MODIS label"]} | methods, out)
    concerned = [claim for claim in claims.read_claims() if claim.where.get("parameters.method") in methods]
    if concerned and not failed:
        print(claims.table(concerned, claims.evidence(out)).to_string(index=False))
    return int(failed)


def _run_compare(options: argparse.Namespace) -> int:
    """Score the methods and print a table for each label regime."""
    from lcfuse_core.methods.registry import BOUNDS, METHODS
    from lcfuse_core.scoring import ledger, protocol

    if options.list:
        print("\n".join([*METHODS, *BOUNDS]))
        return 0
    _check_alone("compare")
    if options.out is None:
        raise ParameterError("compare", found="no --out", expected="a ledger", do="Give --out FILE.")
    if options.jobs < 1:
        raise ParameterError("--jobs", found=str(options.jobs), expected="1 or more", do="Correct the number.")
    _absolute(options)
    if options.worlds and (options.small or options.train_root or options.data_root):
        do = "Drop --worlds: the other data are the same for all seeds."
        raise ParameterError("--worlds", found="other data", expected="the synthetic sample", do=do)
    methods, worlds = _chosen(options.only), sorted(set(options.worlds or [])) or [None]
    seeds: list[tuple[int | None, int]] = [(world, seed) for world in worlds for seed in sorted(set(options.seeds))]
    failed = False
    if len(seeds) == 1:
        experiment = _experiment_of(options, *seeds[0])
        done = _scored(experiment, options.out)
        failed = _score(experiment, {name: methods[name] for name in methods if name not in done}, options.out)
    else:
        apart = partial(_score_apart, _command(options, list(methods)))
        for (world, seed), result in _runtime.map_parallel(apart, seeds, jobs=options.jobs, cluster=options.cluster):
            has_failed = isinstance(result, BaseException)
            failed |= has_failed
            of_world = "" if world is None else f"world {world}, "
            print(f"{of_world}seed {seed}: {result}", file=sys.stderr if has_failed else sys.stdout)
    if options.out.exists():
        for regime, own in ledger.read(options.out).groupby("label_regime", sort=False):
            print(f"\nAA in per cent, {regime}, profile {options.profile}\n{protocol.over_seeds(own).to_string()}")
    return int(failed)


def _check_alone(command: str) -> None:
    """Raise ParameterError under torchrun: each of its processes would append the same lines to the ledger."""
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n > 1:
        do = "Start it without torchrun; only `train` uses several processes."
        raise ParameterError(command, found=f"{n} processes of torchrun", expected="one", do=do)


def _absolute(options: argparse.Namespace) -> None:
    """Make the given paths and those of the profile absolute, as a worker of a cluster may run in another folder."""
    profile = _runtime.read_profile(options.profile)
    for name in _PATHS:
        given = getattr(options, name)
        path = profile.get(name) if given is None else given
        setattr(options, name, str(Path(path).absolute()) if path else given)
    if options.checkpoint and Path(options.checkpoint).is_dir():
        options.checkpoint = str(Path(options.checkpoint) / "last.safetensors")


def _chosen(only: Sequence[str] | None) -> dict[str, Method]:
    """Return the methods and bounds whose names fit, in the order of the registry; by default all methods."""
    from lcfuse_core.methods.registry import BOUNDS, METHODS

    known = METHODS | BOUNDS
    for name in only or ():
        if not any(fnmatchcase(method, name) for method in known):
            raise ParameterError("method", found=repr(name), expected="one of `compare --list`", do="Correct the name.")
    fitting = METHODS if only is None else [method for method in known if any(fnmatchcase(method, n) for n in only)]
    return {name: known[name] for name in fitting}


def _experiment_of(options: argparse.Namespace, world_seed: int | None, seed: int) -> Experiment:
    """Return the experiment that the options of `compare` describe, for one world and training."""
    from lcfuse_core.methods.experiment import Experiment
    from lcfuse_core.sample import world

    changes = {name: getattr(options, name) for name in (*_PATHS, *_SIZES)} | {"world": world_seed}
    if options.small:
        plan = world.WorldPlan(seed, n_train=4, n_validation=1, n_test=2)
        small = world.make_world(_runtime.data_folder() / "small" / f"world-{seed}", plan)
        changes |= {"train_root": str(small / "sen12ms"), "data_root": str(small / "dfc2020")}
    return Experiment.from_profile("compare", options.profile, seed, **changes)


def _score(experiment: Experiment, methods: Mapping[str, Method], out: Path) -> bool:
    """Train methods, evaluate them in one pass, and append a line for each to a ledger; return whether one failed."""
    from lcfuse_core.scoring import protocol

    experiment.ledger_path, learned = out.absolute(), {}
    for name, method in methods.items():
        try:
            learned[name] = method.learn(experiment)
        except LcfuseError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
    passes = defaultdict(list)  # a bound has patches of its own
    for name, one in learned.items():
        passes[id(one.rows)].append(name)
    for names in passes.values():
        own, began = learned[names[0]].rows, time.perf_counter()
        classify = {name: learned[name].classify for name in names}
        results, report = protocol.evaluate_methods(classify, experiment.rows if own is None else own)
        per_patch = (time.perf_counter() - began) / max(1, report.n_read)
        for name in names:
            method, one, result = methods[name], learned[name], results[name]
            cost = {"train_s": round(one.train_s, 1)}
            regimes = {"label_regime": method.label_regime, "regime": method.regime}
            experiment.record(name, result, **regimes, parameters=one.parameters, cost=cost, hashes=one.hashes)
            scores = f"AA {100 * result.scores.aa:.1f}, mIoU {100 * result.scores.miou_8:.1f}"
            print(f"seed {experiment.seeds['training']}: {scores}  {name}, trained in {one.train_s:.0f} s", flush=True)
        used = f"{per_patch:.2f} s per patch, at most {_runtime.peak_memory_mb():.0f} MB"
        print(f"{report}\n{len(names)} methods in one pass: {used}", flush=True)
    return len(learned) < len(methods)


def _scored(experiment: Experiment, out: Path) -> set[str]:
    """Return the methods that a ledger has a line of with the parameters and data of an experiment."""
    from lcfuse_core.scoring import ledger

    if not out.exists() or not out.read_bytes().strip():
        return set()
    lines = ledger.read(out)
    wanted = {f"parameters.{name}": experiment.parameters.get(name) for name in ("profile", *_SIZES, "checkpoint")}
    wanted |= {f"seeds.{name}": seed for name, seed in experiment.seeds.items()}
    wanted |= {f"hashes.{role}": experiment.data_digest(root) for role, root in experiment.roots.items()}
    columns = lines.reindex(columns=["parameters.method", *wanted])
    for name, value in wanted.items():
        columns = columns[columns[name].isna() if value is None else columns[name] == value]
    return set(columns["parameters.method"])


def _command(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Return the command without the seeds; all paths are absolute."""
    words = [sys.executable, "-m", "lcfuse_core", "compare", "--out", str(options.out.absolute())]
    words += ["--profile", options.profile, *(["--small"] if options.small else []), "--only", *names]
    for name in (*_PATHS, *_SIZES):
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return words


def _score_apart(command: Sequence[str], seeds: tuple[int | None, int]) -> str:
    """Score one world (None: that of the seed) and seed in a process of its own; return "done"."""
    world, seed = seeds
    words = [*command, "--seeds", str(seed), *([] if world is None else ["--worlds", str(world)])]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        do = "Correct it and give the same command again; finished lines are kept."
        found = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        raise LcfuseError(f"seed {seed}", found=found, expected="scores", do=do)
    return "done"
