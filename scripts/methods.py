"""
Score the methods of the ladder over several seeds:

    python scripts/methods.py [--seeds 0 1 2 3 4] [--jobs 2] [--only NAME ...] [--steps N] [--small]
                               [--profile full] [--data-root FOLDER] --out FILE
    python scripts/methods.py --list

A seed gives a sample world and trainings of its own. Each method is a line of the ledger FILE, written as soon as it is
judged: a call that was stopped goes on where it was, and a method that is new in `ladder.METHODS` is all that is run.
A name may end in `*`: every method that begins so. With another profile than `smoke` the data are those in its folders;
--data-root judges on other patches, and tells the regions apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from lcfuse_core.book import settings
from lcfuse_core.methods.bench import Bench
from lcfuse_core.methods.registry import METHODS
from lcfuse_core.scoring import ledger, protocol
from seeds import begin


def chosen(only: list[str] | None) -> list[str]:
    """The names of METHODS that *only* asks for, in the order of the ladder; all without it."""
    if only is None:
        return list(METHODS)
    for name in only:
        if not any(fnmatchcase(method, name) for method in METHODS):
            raise SystemExit(f"no method {name!r}; --list shows them")
    return [method for method in METHODS if any(fnmatchcase(method, name) for name in only)]


def scored(out: Path, seed: int, steps: int) -> set[str]:
    """The methods that *out* has a line of, for this seed and number of steps."""
    if not out.exists() or not out.read_bytes().strip():
        return set()
    lines = ledger.read(out)
    same = (lines["seeds.world"] == seed) & (lines["parameters.steps"] == steps)
    return set(lines.loc[same, "parameters.method"])


def score_seed(
    seed: int,
    *,
    names: list[str],
    steps: int | None,
    small: bool,
    out: Path,
    profile: str = "smoke",
    data_root: Path | None = None,
) -> None:
    """Learn and judge, with one seed, what *out* does not have yet; one line each, at once."""
    os.environ["LCFUSE_LEDGER"] = str(out)
    here = begin(seed, steps, small, profile)
    if data_root is not None:
        here.parameters["data_root"] = str(data_root.absolute())
    bench, there = Bench(here), scored(out, seed, here.parameters["steps"])
    for name in (name for name in names if name not in there):
        learned = METHODS[name](bench)
        began = time.perf_counter()
        results, report = protocol.evaluate_methods({name: learned.classify}, bench.rows)
        judge_s = time.perf_counter() - began
        scores, regions, counts = results[name].scores, results[name].regions, results[name].by_region
        cost = {"train_s": round(learned.train_s, 1), "judge_s": round(judge_s, 1)}
        regime, more = learned.label_regime, {"n_patches": report.n_read}
        here.record(name, scores, label_regime=regime, cost=cost, regions=regions, counts=counts, more=more)
        print(f"seed {seed}: AA {100 * scores.aa:.1f}  {name}, learnt in {learned.train_s:.0f} s", flush=True)
        if data_root is not None:
            each = ", ".join(f"{region} {100 * one.miou_8:.1f}" for region, one in regions.items())
            print(f"    mIoU of the classes present {100 * scores.miou_8:.1f}: {each}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="seeds at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="methods; else all")
    parser.add_argument("--steps", type=int, help="of each training; else those of the profile smoke")
    parser.add_argument("--small", action="store_true", help="small worlds, to try this program")
    parser.add_argument("--profile", choices=settings.PROFILES, default="smoke", help="its data and length of training")
    parser.add_argument("--data-root", type=Path, help="judge on the patches in this folder")
    parser.add_argument("--list", action="store_true", help="name the methods and end")
    parser.add_argument("--out", type=Path, help="ledger that the lines are added to")
    given = parser.parse_args()
    if given.list:
        print("\n".join(METHODS))
        return
    if given.out is None:
        parser.error("--out FILE is needed")
    run = {"names": chosen(given.only), "steps": given.steps, "small": given.small, "profile": given.profile}
    run["data_root"] = given.data_root
    score = partial(score_seed, **run, out=given.out.absolute())
    # Fresh processes: a forked one may hang in the threads of torch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, context) as pool:
        list(pool.map(score, sorted(set(given.seeds))))
    lines = ledger.read(given.out)
    for regime, own in lines.groupby("label_regime", sort=False):
        print(f"\nAA in per cent, {regime}, profile {given.profile}\n{protocol.over_seeds(own).to_string()}")


if __name__ == "__main__":
    main()
