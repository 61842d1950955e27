"""
Peak memory of the commands for thousands of patches that do not fit the memory budget.

    python benchmarks/memory.py [--sizes 12480 25000] [--only "train, files" ...] [--out memory.json]
    python benchmarks/memory.py --sizes --test-sizes 100 400 5128 [--out memory.json]

Each size is two folders of symbolic links to the training patches of the sample: GeoTIFFs in the layout of SEN12MS, and
packed scenes whose descriptions name 717 patches each. Every command runs a few short steps on them, in processes of
its own. Each test size is one region of links to the test patches of the sample, in the layout of the phase archives of
DFC2020; the default fusion learns from it and is evaluated on it. Memory is RssAnon, the private memory without mapped
files (Linux), of the command and all processes that it starts, sampled every 50 ms. Processor time is theirs, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PATCHES_PER_SCENE = 717
"""As in SEN12MS on average."""

STEPS = {"steps": "4", "batch": "4", "crop": "64"}


def commands(folder: Path, size: int) -> dict[str, list[str]]:
    """Return the arguments of `python -m lcfuse_core` by name; those of `evaluate` need the run of the first."""
    from lcfuse_core.sample import world

    files, packs, data = str(folder / f"files-{size}"), str(folder / f"packs-{size}"), world.sample_folder(0)
    target, run = str(data / "dfc2020"), str(folder / f"run-{size}")
    plan = [word for name, value in STEPS.items() for word in ("-p", name, value)]
    sizes = [word for name, value in STEPS.items() for word in (f"--{name}", value)]
    compare = ["compare", "--data-root", target, "--seeds", "0", *sizes, "--only", "Random forest*", "FCN*"]
    return {
        "train, files": ["train", files, "--out", run, *plan],
        "train, packed scenes": ["train", packs, "--out", f"{run}-packs", *plan],
        "run training, files": ["run", "training", "-p", "train_root", files, *plan, "--out", f"{run}-chapter"],
        "evaluate": ["evaluate", "--checkpoint", run, "--train-root", files, "--data", target, "--ledger", f"{run}.a"],
        "compare, packed scenes": [*compare, "--train-root", packs, "--out", f"{run}.b"],
    }


def main() -> None:
    """Measure the commands at each size, print the figures, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[12480, 25000], help="numbers of training patches")
    parser.add_argument("--test-sizes", type=int, nargs="*", default=[], help="numbers of test patches")
    parser.add_argument("--only", nargs="*", help="names of commands on training patches (default: all)")
    parser.add_argument("--folder", type=Path, help="where to write the links (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the result; other commands in it are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for size in options.sizes:
            link_files(folder / f"files-{size}", size)
            link_packs(folder / "packed", folder / f"packs-{size}", size)
            link_sample(folder / f"data-{size}")
            for command, words in commands(folder, size).items():
                if options.only is None or command in options.only:
                    record(command, size, measure(words, folder / f"data-{size}"), options.out)
        for size in options.test_sizes:
            link_test_set(folder / f"test-{size}", size)
            link_sample(folder / f"data-test-{size}")
            words = ["compare", "--data-root", str(folder / f"test-{size}"), "--seeds", "0"]
            words += ["--only", "Fusion, target regions", "--out", str(folder / f"test-{size}.jsonl")]
            words += [word for name, value in STEPS.items() for word in (f"--{name}", value)]
            figures = measure(words, folder / f"data-test-{size}")
            record("compare, default fusion on a test set", size, figures, options.out)


def record(command: str, size: int, figures: dict[str, float], path: Path | None) -> None:
    """Print the figures of a command at one size, and add them to the JSON file."""
    print(size, command, figures, flush=True)
    if path is None:
        return
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    own = result.setdefault(command, {})
    own[f"{size} patches"] = figures
    peaks = [each["peak RssAnon, MB"] for key, each in own.items() if "patches" in key]
    own["largest / smallest peak"] = round(max(peaks) / min(peaks), 3)
    path.write_text(json.dumps(result, indent=1) + "\n")


def link_sample(data: Path) -> None:
    """Let a new data folder share the sample world."""
    from lcfuse_core.sample import world

    data.mkdir()
    (data / "world-0").symlink_to(world.sample_folder(0).absolute())


def link_files(folder: Path, n: int) -> None:
    """Make *n* triplets of links, each to a patch of the sample."""
    from lcfuse_core.data import patches
    from lcfuse_core.sample import world

    rows = list(patches.index(world.sample_folder(0).absolute() / "sen12ms").itertuples())
    for number in range(n):
        row, scene = rows[number % len(rows)], number // PATCHES_PER_SCENE + 1
        for kind in ("s1", "s2", "lc"):
            path = folder / f"ROIs1158_spring/{kind}_{scene}/ROIs1158_spring_{kind}_{scene}_p{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(getattr(row, kind))


def link_test_set(folder: Path, n: int) -> None:
    """Make *n* test patches of four links each, to those of the sample, in the layout of the phase archives."""
    from lcfuse_core.data import patches
    from lcfuse_core.sample import world

    table = patches.index(world.sample_folder(0).absolute() / "dfc2020")
    rows = list(table[table["split"] == "test"].itertuples())
    for kind in ("s1", "s2", "lc", "dfc"):
        (folder / f"{kind}_0").mkdir(parents=True)
        for number in range(n):
            path = folder / f"{kind}_0" / f"ROIs0000_test_{kind}_0_p{number}.tif"
            path.symlink_to(getattr(rows[number % len(rows)], kind))


def link_packs(packed: Path, folder: Path, n: int) -> None:
    """Pack the sample once, and describe *n* patches in scenes whose pixels are links to those of the sample."""
    from lcfuse_core.data import packing, patches
    from lcfuse_core.data.packed import digest_of, packed_paths
    from lcfuse_core.sample import world

    if not packed.exists():
        packing.pack(patches.index(world.sample_folder(0).absolute() / "sen12ms"), packed)
    folder.mkdir()
    originals = packed_paths(packed)
    for scene in range(-(-n // PATCHES_PER_SCENE)):
        original = originals[scene % len(originals)]
        content = json.loads(original.read_text())
        known, name = content["scene"]["patches"], f"ROIs1158_spring_{scene + 1}"
        numbers = range(scene * PATCHES_PER_SCENE, min(n, (scene + 1) * PATCHES_PER_SCENE))
        content["scene"] |= {
            "scene_id": name,
            "patches": [known[number % len(known)] | {"name": f"{name}_p{number}"} for number in numbers],
        }
        content["sha256"] = digest_of(content["scene"])
        (folder / f"{name}.json").write_text(json.dumps(content))
        (folder / f"{name}.npy").symlink_to(original.with_suffix(".npy"))


def measure(words: list[str], data: Path) -> dict[str, float]:
    """Run a command; return its peak memory, its duration and processor time. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "lcfuse_core", *words]
    began, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0.0
    with tempfile.TemporaryFile("w+") as said:
        environment = os.environ | {"LCFUSE_DATA": str(data)}
        with subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT) as process:
            while process.poll() is None:
                peak = max(peak, rss_anon(tree(process.pid)))
                time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command}\n{said.read()[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took = round(time.perf_counter() - began)
    return {"peak RssAnon, MB": round(peak), "seconds": took, "processor seconds": round(busy)}


def tree(process: int) -> list[int]:
    """Return a process and all that it started, and those that they started."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended
    return [process, *(found for child in children for found in tree(child))]


def rss_anon(processes: list[int]) -> float:
    """
    Return the RssAnon of some processes in MB; those that have ended have none.

    Until a new process has its own program, it shares the memory of the one that started it, which is counted once:
    both state the same sizes then.
    """
    found: dict[tuple[str, ...], float] = {}
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
            )
            sizes = tuple(status.get(name, "") for name in ("VmPeak", "VmSize", "VmData", "VmStk"))
            found[sizes] = max(found.get(sizes, 0.0), int(status.get("RssAnon", "0").split()[0]) / 1024)
    return sum(found.values())


if __name__ == "__main__":
    main()
