"""
Score every method over several seeds: `make seeds`, or

    python scripts/seeds.py [--seeds 0 1 2 3 4] [--jobs 2] [--steps N] [--small] [--profile full] [--out FILE]

A seed gives a sample world and trainings of its own, by the functions that the chapter *evaluation* uses; the chapter
shows the lines that are written here and runs one seed of them again. The file is replaced when all seeds are done,
not before. Networks that a chapter or an earlier call has trained are found again. With another profile than `smoke`
the data are those in its folders, and a seed is one of trainings alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from lcfuse_core import _runtime
from lcfuse_core.book import chapter, settings
from lcfuse_core.data import source
from lcfuse_core.data.sample import world
from lcfuse_core.scoring import ledger, protocol
from lcfuse_core.training import loop

SHIPPED = _runtime.SHIPPED / "seeds.jsonl"
LEARNERS = tuple(product(protocol.NAMES, (protocol.PLAIN, protocol.WEIGHTED)))
PARAMETERS = ("profile", "steps", "crop", "batch")


def begin(seed: int, steps: int | None, small: bool, profile: str = "smoke") -> chapter.Chapter:
    """What a chapter begins with: the parameters of a profile, and its data; for `smoke` the sample of this seed."""
    values = settings.read_profile(profile)
    parameters = {name: values[name] for name in PARAMETERS} | {"seed": seed}
    parameters |= {name: values[name] for name in ("train_root", "data_root") if values[name]}
    if steps is not None:
        parameters["steps"] = steps
    if small:
        plan = world.WorldPlan(seed, n_train=4, n_validation=1, n_test=2)
        root = world.make_world(chapter.data_folder() / "small" / f"world-{seed}", plan)
        parameters |= {"train_root": str(root / "sen12ms"), "data_root": str(root / "dfc2020")}
    return chapter.Chapter("seeds", parameters)


def score_seed(seed: int, *, steps: int | None, small: bool, folder: Path, profile: str = "smoke") -> bytes:
    """Learn and judge every method with one seed; its lines for the ledger."""
    path = folder / f"{seed}.jsonl"
    os.environ["LCFUSE_LEDGER"] = str(path)
    here = begin(seed, steps, small, profile)
    methods: dict[str, protocol.Classify] = {"MODIS label": protocol.modis_label_map}
    train_s = {"MODIS label": 0.0}
    for learner, power in LEARNERS:
        name = protocol.method_name(learner, power)
        methods[name], train_s[name] = here.learned(learner, power)
        print(f"seed {seed}: {name}, learnt in {train_s[name]:.0f} s", flush=True)

    def record(name: str, result: protocol.Result, seconds: float, regime: str = "coarse only") -> None:
        cost, regions, counts = {"train_s": seconds}, result.regions, result.by_region
        here.record(name, result.scores, regions=regions, counts=counts, cost=cost, label_regime=regime)

    results, _ = protocol.evaluate_methods(methods, protocol.evaluation_patches(here.data_root))
    for name, result in results.items():
        record(name, result, train_s[name])
    for name, (result, seconds) in bounds(here).items():
        print(f"seed {seed}: {name}, learnt in {seconds:.0f} s", flush=True)
        record(name, result, seconds, "fine")
    return path.read_bytes()


def bounds(here: chapter.Chapter) -> dict[str, tuple[protocol.Result, float]]:
    """
    What the official network reaches with *fine* labels: not methods of the book, but measures of its sample.

    One network learns from the truth of the training scenes. The other is the published experiment: it learns from
    three of four validation patches, and is judged on the fourth (the same regions) and on the test split (others).
    """
    plan = replace(here.plan("deeplabv3plus", protocol.PLAIN), labels="fine")
    test, validation = (protocol.evaluation_patches(here.data_root, split) for split in ("test", "validation"))
    fourth = validation.index % 4 == 3
    stack, _ = source.read_stack(validation[~fourth], "fine")
    of_validation = loop.train(stack, plan, progress=False)
    found = {}
    for name, run, rows in (
        ("the training scenes", here.trained(plan), test),
        ("other regions", of_validation, test),
        ("the same regions", of_validation, validation[fourth]),
    ):
        method = f"DeepLabv3+, fine labels of {name}"
        results, _ = protocol.evaluate_methods({method: partial(loop.classify, run)}, rows)
        found[method] = (results[method], float(run.history[-1]["seconds"] or 0))
    return found


def write_whole(path: Path, content: bytes) -> None:
    """Write beside *path*, then put in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="seeds at a time")
    parser.add_argument("--steps", type=int, help="of each training; else those of the profile smoke")
    parser.add_argument("--small", action="store_true", help="small worlds, to try this program")
    parser.add_argument("--profile", choices=settings.PROFILES, default="smoke", help="of data and settings")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    given = parser.parse_args()
    if (given.small or given.steps is not None or given.profile != "smoke") and given.out == SHIPPED:
        parser.error("what comes with the package is of the whole smoke profile: name another file with --out")
    # Fresh processes: a forked one may hang in the threads of torch.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(given.jobs, context) as pool:
        score = partial(score_seed, steps=given.steps, small=given.small, folder=Path(folder), profile=given.profile)
        write_whole(given.out, b"".join(pool.map(score, sorted(set(given.seeds)))))
    print(protocol.over_seeds(ledger.read(given.out)).to_string())
    print(f"AA in per cent; written: {given.out}")


if __name__ == "__main__":
    main()
