"""
How long it takes to index, check and split all of SEN12MS, and how much memory.

    python benchmarks/indexing.py [--triplets 180662] [--folder F] [--out indexing.json]

The files are empty and only their names count: 252 scenes, among them the official hold-out scenes with their
published numbers of patches. Each step runs in a process of its own, whose peak of memory is that of the step and of
the libraries that it loads ("import" is these alone).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from lcfuse_core.download.official import sen12ms

STEPS = {
    "import": "",
    "index": "patches.index(root)",
    "index and status": "table = patches.index(root); patches.scene_status(patches.usable(table)[0])",
    "the same, against the official lists": (
        "table = patches.index(root); lists = official.read_official_lists(root.parent / 'lists');"
        "patches.scene_status(table, lists=lists); patches.official_differences(table, lists)"
    ),
}

RUN = """
import json, sys, time
from pathlib import Path
from lcfuse_core.download import official
from lcfuse_core.data import patches
root = Path(sys.argv[1])
began = time.perf_counter()
{step}
seconds = time.perf_counter() - began
# Of this program alone: ru_maxrss would hold that of the process that forked it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({{"seconds": round(seconds, 2), "MB": peak // 1024}}))
"""


def main() -> None:
    """Make the names, run the steps, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--triplets", type=int, default=180_662)
    parser.add_argument("--folder", type=Path, help="where to make the empty files (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options.triplets)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(folder: Path, n_triplets: int, chosen: Iterable[str] = tuple(STEPS)) -> dict[str, Any]:
    """All figures, or those of the *chosen* steps."""
    names = make_names(n_triplets)
    began = time.perf_counter()
    make_files(folder / "data", names)
    made_in = time.perf_counter() - began
    if n_triplets == sen12ms().n_triplets:
        make_lists(folder / "lists", names)
    steps = {
        name: step
        for name, step in STEPS.items()
        if name in chosen and ("lists" not in name or (folder / "lists").exists())
    }
    figures = {name: run(step, folder) for name, step in steps.items()}
    return {
        "triplets": n_triplets,
        "files": 3 * n_triplets,
        "empty files made in seconds": round(made_in, 1),
        "steps": figures,
        "made on": {"python": platform.python_version(), "pandas": pd.__version__, "cores": os.cpu_count()},
    }


def make_names(n_triplets: int) -> pd.DataFrame:
    """Scene ids and patch numbers: the hold-out scenes as published, the rest shared out among the other 226."""
    facts = sen12ms()
    patches = dict(facts.hold_out)
    seasons = sorted({scene.rsplit("_", 1)[0] for scene in patches})
    candidates = (f"{season}_{number}" for number in range(1, 200) for season in seasons)
    others = [scene for scene in candidates if scene not in patches][: facts.n_scenes - len(patches) - 1]
    others.append("ROIs1868_summer_146")
    left = n_triplets - sum(patches.values())
    patches |= {scene: left // len(others) + (k < left % len(others)) for k, scene in enumerate(others)}
    rows = [(scene, number) for scene, n in patches.items() for number in range(30, 30 + n)]
    return pd.DataFrame(rows, columns=["scene_id", "patch"])


def make_files(root: Path, names: pd.DataFrame) -> None:
    """Empty files in the folders of SEN12MS."""
    for scene_id, rows in names.groupby("scene_id"):
        season, scene = str(scene_id).rsplit("_", 1)
        for kind in ("s1", "s2", "lc"):
            folder = root / season / f"{kind}_{scene}"
            folder.mkdir(parents=True)
            for patch in rows["patch"]:
                os.close(os.open(folder / f"{season}_{kind}_{scene}_p{patch}.tif", os.O_CREAT))


def make_lists(folder: Path, names: pd.DataFrame) -> None:
    """Lists as the official ones: all but the patch that is published damaged."""
    folder.mkdir()
    whole = names["scene_id"] + "_p" + names["patch"].astype(str)
    for (file, n), held in zip(sen12ms().lists.values(), (False, True), strict=True):
        chosen = names["scene_id"].isin(sen12ms().hold_out) == held
        listed = whole[chosen & ~whole.isin(sen12ms().defects)]
        assert len(listed) == n, f"{len(listed)} names for {file}"
        (folder / file).write_text("\n".join(f"{name}.tif" for name in listed) + "\n")


def run(step: str, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one step, in a new process."""
    command = [sys.executable, "-c", RUN.format(step=step), str(folder / "data")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
