"""
Train a network from a shell, on one processor or several:

    python -m lcfuse_core train DATA --out RUN [-p NAME VALUE] ...
    torchrun --nproc-per-node 4 -m lcfuse_core train DATA --out RUN [-p NAME VALUE] ...

DATA is a folder of packed scenes (`data pack`), or of patches in the layout of SEN12MS, of which every eighth scene is
held out. RUN is the folder of the run: the same command continues an interrupted run. -p sets a value of the plan:
network, loss, steps, batch, learning_rate ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np


def add_parser(commands: Any) -> None:
    """Add `train` to the commands of `__main__`."""
    train = commands.add_parser(
        "train", help="train a network; again to continue", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    train.add_argument("data", type=Path, help="folder of packed scenes or of patches")
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="values")
    train.add_argument("--only", nargs="*", metavar="SCENE", help="packed scenes to use (default: all)")
    train.add_argument("--validation", type=Path, help="folder of patches to evaluate on at each report")
    train.add_argument("--patches", type=int, default=64, help="how many of these, evenly spread (default: 64)")
    train.add_argument("--fine", action="store_true", help="evaluate against their 10 m reference, too (track 2)")
    train.add_argument("--interval", type=float, default=60.0, help="maximum seconds between checkpoints (default: 60)")
    train.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> int:
    """Train, and print where the network is."""
    from lcfuse_core.training import loop  # torch takes seconds to import: other commands do without
    from lcfuse_core.training.checkpoint import LAST
    from lcfuse_core.training.plan import TrainPlan

    plan = TrainPlan(**plan_values(options.values))
    stack, validation = _data(options, plan.labels)
    run = loop.train(stack, plan, options.out, validation=validation, interval_s=options.interval)
    print(f"{run.history[-1]['step']} steps, loss {run.history[-1]['loss']:.4f}: {options.out / LAST}")
    return 0


def plan_values(pairs: list[list[str]]) -> dict[str, Any]:
    """
    Return values of a plan from a shell: numbers, lists and true or false in JSON, all else as text.

    >>> plan_values([["steps", "50"], ["learning_rate", "1e-3"], ["network", "unet"], ["inputs", '["s2"]']])
    {'steps': 50, 'learning_rate': 0.001, 'network': 'unet', 'inputs': ['s2']}
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _data(options: argparse.Namespace, labels: str) -> tuple[Any, Any]:
    """Return the training data, and the stacks to evaluate on by name, if any."""
    from lcfuse_core.data import packed, patches, source
    from lcfuse_core.data.streamed import open_source
    from lcfuse_core.scoring import protocol

    if packed.packed_paths(options.data):
        table = patches.index(options.data)
        stack: Any = open_source(table[table["scene_id"].isin(options.only)] if options.only else table, labels)
        rows: Any = None
    else:
        table = patches.complete(patches.index(options.data), source.LABEL_KINDS[labels])
        learn, rows = protocol.split_scenes(table)
        stack = open_source(learn, labels)
    if options.validation is not None:
        need = (*source.LABEL_KINDS["modis"], *(["dfc"] if options.fine else []))
        rows = patches.complete(patches.index(options.validation), need)
    if rows is None or rows.empty:
        return stack, None
    chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, options.patches).astype(int))]
    kinds = ["modis", "fine"] if options.fine else ["modis"]
    return stack, {kind: source.read_stack(chosen, kind)[0] for kind in kinds}
