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
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
