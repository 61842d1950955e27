"""
Peak memory of a source on disk for thousands of patches, and the seconds to open it.

    python benchmarks/memory.py [--sizes 12480 25000] [--out memory.json]

Each size is a folder of symbolic links to the training patches of the sample, in the layout of SEN12MS. A new process
lists it, opens it (which reads every patch once), cuts 64 batches and trains a few steps. Memory is RssAnon, the
private memory of a process without files that are mapped (Linux), of the process and its children, sampled every 50 ms.
With --checked the process finds what the reading of every patch yields in the data folder, as a second start does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PATCHES_PER_SCENE = 717
"""As in SEN12MS on average."""


def main() -> None:
    """Measure each size in a process of its own, print the figures, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[12480, 25000], help="numbers of patches")
    parser.add_argument("--folder", type=Path, help="where to write the links (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--checked", action="store_true", help="as a second start")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # folder to measure in this process
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in options.sizes:
            link(Path(folder) / str(size), size)
            environment = os.environ | {"LCFUSE_DATA": f"{folder}/data-{size}"}
            if options.checked:
                write_checks(Path(folder) / str(size), Path(folder) / f"data-{size}")
            command = [sys.executable, __file__, "--one", f"{folder}/{size}"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            result[f"{size} patches"] = json.loads(done.stdout.splitlines()[-1])
            print(size, done.stdout.splitlines()[-1], flush=True)
    peaks = [figures["peak RssAnon, MB"] for figures in result.values()]
    result["largest / smallest peak"] = round(max(peaks) / min(peaks), 3)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def link(folder: Path, n: int) -> None:
    """Make *n* triplets of links, each to a patch of the sample."""
    from lcfuse_core.data import patches
    from lcfuse_core.data.sample import world

    rows = list(patches.index(world.sample_folder(0) / "sen12ms").itertuples())
    for number in range(n):
        row, scene = rows[number % len(rows)], number // PATCHES_PER_SCENE + 1
        for kind in ("s1", "s2", "lc"):
            path = folder / f"ROIs1158_spring/{kind}_{scene}/ROIs1158_spring_{kind}_{scene}_p{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(getattr(row, kind))


def write_checks(folder: Path, data: Path) -> None:
    """Write what `streamed` keeps of each scene, from the few patches that the links lead to."""
    import numpy as np

    from lcfuse_core.data import patches, streamed

    (data / "checked").mkdir(parents=True)
    table = patches.index(folder)
    real = [os.path.realpath(path) for path in table["s2"]]
    first = {path: number for number, path in reversed(list(enumerate(real)))}
    facts = {path: streamed._check_patch(table.iloc[[number]], "modis")[0] for path, number in first.items()}
    for numbers in table.groupby("scene_id", sort=False).indices.values():
        report = json.dumps({"n_read": len(numbers), "repaired": [], "skipped": []})
        own = np.stack([facts[real[number]] for number in numbers])
        path = data / "checked" / f"{streamed._version(table.iloc[numbers], 'modis')}.npz"
        np.savez(path, facts=own, report=np.array(report))


def measure(folder: Path) -> dict[str, float]:
    """Return peak memory and durations of opening a folder and training from it."""
    import torch

    from lcfuse_core.data.streamed import open_source
    from lcfuse_core.training import loop
    from lcfuse_core.training.plan import TrainPlan

    peaks, done = [0.0], threading.Event()
    watch = threading.Thread(target=lambda: [peaks.append(rss_anon()) for _ in iter(lambda: done.wait(0.05), True)])
    watch.start()
    began = time.perf_counter()
    source = open_source(folder)
    opened = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    for _ in range(64):
        source.crops(16, 64, generator)
    cut = time.perf_counter()
    loop.train(source, TrainPlan(steps=4, crop=64, batch=16, report_every=4, device="cpu"), progress=False)
    done.set()
    watch.join()
    return {
        "patches": len(source),
        "peak RssAnon, MB": round(max(peaks)),
        "seconds to open": round(opened - began, 1),
        "crops of 64 px per second": round(64 * 16 / (cut - opened), 1),
    }


def rss_anon() -> float:
    """Return the RssAnon of this process and its children in MB."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    total = 0
    for process in (str(own), *children):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except FileNotFoundError:
            continue  # it has ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return total / 1024


if __name__ == "__main__":
    main()
