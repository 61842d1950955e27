"""
Train the small networks that come with the package: `make checkpoints`, or

    python scripts/checkpoints.py

They are those of the ladder that most chapters ask for, in the profile `smoke` on the sample world of seed 0. One of
them has also gone on learning at home, in the places that are mapped. A chapter takes them only while plan, sample and
training code are those that they were made with (`Chapter.trained`), so after a change of the training code they are
trained anew; `tests/test_checkpoints.py` says when.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

from lcfuse_core.book import chapter
from lcfuse_core.methods import adapt, bench
from lcfuse_core.scoring.protocol import PLAIN, WEIGHTED
from lcfuse_core.training import checkpoint
from seeds import begin

LIMIT_BYTES = 2_000_000
"""Of all together: a repository is no store for weights."""


def plans(here: chapter.Chapter) -> list[checkpoint.TrainPlan]:
    """What is shipped: the small networks. U-Net and DeepLabv3+ have ten times the weights and are trained."""
    weighted = here.plan("fcn", WEIGHTED)
    s2_alone = replace(weighted, inputs=("s2",))  # for scenes that Sentinel-1 did not see
    return [here.plan("fcn", PLAIN), weighted, s2_alone]


def at_home(here: chapter.Chapter) -> str:
    """File name of the weighted FCN that has learnt on in the places that are mapped; trained if it is not there."""
    work = bench.Bench(here)
    run = work.network()
    work.network_at_home(run)
    return work.name_at_home(run, adapt.at_home_plan(run.plan))


def main() -> None:
    here = begin(0, None, small=False)
    shutil.rmtree(chapter.SHIPPED, ignore_errors=True)
    (chapter.SHIPPED / "at_home").mkdir(parents=True)
    made = chapter.data_folder() / "runs"
    for plan in plans(here):
        run, name = here.trained(plan), here.checkpoint_name(plan)
        shutil.copy(made / name, chapter.SHIPPED / name)
        print(f"{name}: {plan.network}, {'+'.join(plan.inputs)}, {run.history[-1]['seconds']} s")
    name = at_home(here)
    shutil.copy(made / name, chapter.SHIPPED / "at_home" / name)
    print(f"{name}: at home")


if __name__ == "__main__":
    main()
