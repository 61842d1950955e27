"""
Train the small networks that come with the package, or rename them: `make checkpoints`, or

    python scripts/checkpoints.py            train them (minutes)
    python scripts/checkpoints.py --rename   after a change of code that leaves the weights as they are (seconds)

They are the networks that most chapters need, in the profile `smoke` on the sample world of seed 0; one of them is
fine-tuned on the target regions. A file name is a digest of plan, data and training code (`Experiment.trained`).
`weights.json` beside the files has the digest of the weights of each network, by which `--rename` recognises the files
and the tests hold them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from lcfuse_core import _runtime
from lcfuse_core.methods import adapt
from lcfuse_core.methods.experiment import SHIPPED, Experiment, path_of
from lcfuse_core.scoring.protocol import PLAIN, WEIGHTED
from lcfuse_core.training.checkpoint import load_checkpoint, network_digest
from lcfuse_core.training.plan import TrainPlan

WEIGHTS = SHIPPED / "weights.json"
LIMIT_BYTES = 8_000_000
"""Of all files together."""

LARGE = {"U-Net, plain": "unet", "DeepLabv3+, plain": "deeplabv3plus"}
"""Networks in a folder of their own, which `map` does not use by default."""


def plans(experiment: Experiment) -> dict[str, TrainPlan]:
    """
    Return the plans of the shipped networks that are trained on the training scenes, by name.

    U-Net and DeepLabv3+ take three minutes each on a core without bfloat16.
    """
    weighted = experiment.plan("fcn", WEIGHTED)
    s2_alone = replace(weighted, inputs=("s2",))  # for scenes without Sentinel-1
    small = {"plain": experiment.plan("fcn", PLAIN), "weighted": weighted, "weighted, S2 alone": s2_alone}
    return small | {name: experiment.plan(kind, PLAIN) for name, kind in LARGE.items()}


def paths(experiment: Experiment) -> dict[str, Path]:
    """Return the file of each shipped network, by name, as the code of today names it."""
    chosen = plans(experiment)
    folders = {name: SHIPPED / "large" if name in LARGE else SHIPPED for name in chosen}
    files = {name: folders[name] / experiment.checkpoint_name(plan) for name, plan in chosen.items()}
    plan = chosen["weighted"]
    return files | {"adapted": SHIPPED / "adapted" / experiment.adapted_name(plan, adapt.adaptation_plan(plan))}


def train(experiment: Experiment) -> None:
    """Train all networks, and write them and their digests."""
    runs = {name: experiment.trained(plan) for name, plan in plans(experiment).items()}
    experiment.adapted_network(runs["weighted"])
    files = paths(experiment)
    made = {name: path_of(path.name).read_bytes() for name, path in files.items()}
    shutil.rmtree(SHIPPED)
    for name, path in files.items():
        _runtime.write_atomic(path, made[name])
    digests = {name: network_digest(load_checkpoint(path).network) for name, path in files.items()}
    _runtime.write_atomic(WEIGHTS, json.dumps(digests, indent=1) + "\n")


def rename(experiment: Experiment) -> None:
    """Give the files the names of today; stop if the weights of one are not those of the table."""
    there = {network_digest(load_checkpoint(path).network): path for path in SHIPPED.rglob("*.safetensors")}
    digests, files = json.loads(WEIGHTS.read_text()), paths(experiment)
    if set(digests.values()) != set(there) or set(digests) != set(files):
        raise SystemExit(f"the files in {SHIPPED} have other weights than {WEIGHTS.name}: run this without --rename")
    contents = {name: there[digest].read_bytes() for name, digest in digests.items()}
    for path in there.values():
        path.unlink()
    for name, path in files.items():
        _runtime.write_atomic(path, contents[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rename", action="store_true", help="give the files the names of today, without training")
    given, experiment = parser.parse_args(), Experiment.from_profile("checkpoints")
    (rename if given.rename else train)(experiment)
    for name, path in paths(experiment).items():
        print(f"{path.relative_to(SHIPPED)}: {name}")


if __name__ == "__main__":
    main()
