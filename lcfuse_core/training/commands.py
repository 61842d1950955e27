"""
Train a network from a shell, on one processor or several:

    python -m lcfuse_core train DATA --out RUN [--profile colab] [-p NAME VALUE] ...
    torchrun --nproc-per-node 4 -m lcfuse_core train DATA --out RUN [-p NAME VALUE] ...

DATA is a folder of patches in the layout of SEN12MS, or of packed scenes (`data pack`); one scene in eight is held out,
as in the chapters. RUN is the folder of the run: the same command continues an interrupted run. -p sets a value of the
plan: network, loss, steps, batch, learning_rate ... `evaluate --checkpoint RUN/last.safetensors` scores the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfuse_core import _runtime
from lcfuse_core.errors import ParameterError

if TYPE_CHECKING:  # torch takes seconds to import: other commands do without
    from lcfuse_core.data.source import PatchSource


def add_parser(commands: Any) -> None:
    """Add `train` to the commands of `__main__`."""
    train = commands.add_parser(
        "train", help="train a network; again to continue", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    train.add_argument("data", type=Path, nargs="?", help="folder of patches or packed scenes (default: the profile's)")
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("--profile", help=f"take the plan from {', '.join(_runtime.PROFILES)}")
    train.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="values")
    train.add_argument("--validation", type=Path, help="folder of DFC2020: evaluate on its validation split, too")
    train.add_argument("--fine", action="store_true", help="there against the 10 m reference, too (track 2)")
    train.add_argument("--interval", type=float, default=60.0, help="maximum seconds between checkpoints (default: 60)")
    train.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> int:
    """Train, and print where the network is."""
    from dataclasses import replace

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
