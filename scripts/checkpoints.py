"""
Train the small networks that come with the package: `make checkpoints`, or

    python scripts/checkpoints.py

They are those of the ladder that most chapters ask for, in the profile `smoke` on the sample world of seed 0. A chapter
takes them only while plan, sample and training code are those that they were made with (`Chapter.trained`), so after a
change of the training code they are trained anew; `tests/test_checkpoints.py` says when.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

from lcfuse_core import chapter, runs
from lcfuse_core.protocol import PLAIN, WEIGHTED
from seeds import begin

LIMIT_BYTES = 2_000_000
"""Of all together: a repository is no store for weights."""


def plans(here: chapter.Chapter) -> list[runs.TrainPlan]:
    """What is shipped: the small networks. U-Net and DeepLabv3+ have ten times the weights and are trained."""
    weighted = here.plan("fcn", WEIGHTED)
    s2_alone = replace(weighted, inputs=("s2",))  # for scenes that Sentinel-1 did not see
    return [here.plan("fcn", PLAIN), weighted, s2_alone]


def main() -> None:
    here = begin(0, None, small=False)
    shutil.rmtree(chapter.SHIPPED, ignore_errors=True)
    chapter.SHIPPED.mkdir(parents=True)
    for plan in plans(here):
        run, name = here.trained(plan), here.checkpoint_name(plan)
        shutil.copy(chapter.data_folder() / "runs" / name, chapter.SHIPPED / name)
        print(f"{name}: {plan.network}, {'+'.join(plan.inputs)}, {run.history[-1]['seconds']} s")


if __name__ == "__main__":
    main()
