"""What all tests share: one thread, no display, one place for the sample world, the same random examples."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before numpy, torch and matplotlib are imported, and for the kernels and programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("LCFUSE_DATA", str(ROOT / "_data"))

from hypothesis import settings  # noqa: E402

# The same examples at each run, and no limit on time: the machine may be busy with something else.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True, max_examples=50)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

LONGEST = (
    "test_book", "test_real_places", "test_walk", "test_printed_commands", "test_commands", "test_reruns",
    "test_registry", "test_contributing", "test_chapters", "test_distributed", "test_world", "test_chapter",
)  # fmt: skip
"""Begun first, so that no process is left alone with one of them; a file is a process's from end to end."""


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
