"""
Faults of a disk, for tests: every n-th write, fsync and rename of a job fails in turn.

Writes fail in the kernel, so that GDAL, numpy and torch meet them as well: by a limit on the size of a file
(`RLIMIT_FSIZE`), or on a small file system that fills up (`tmpfs`, for root). The calls fsync and rename come from
Python alone in this package, and fail there.
"""

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from lcfuse_core.errors import LcfuseError

CALLS = {"fsync": ("fsync",), "rename": ("replace", "rename"), "write": ("write",)}


@contextmanager
def failing_call(kind: str, number: int) -> Iterator[list[str]]:
    """Let the *number*-th call of a kind fail as on a full disk (0: none); yields the calls that were made."""
    made: list[str] = []

    def wrap(plain: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            made.append(str(arguments[0]))
            if len(made) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return plain(*arguments, **options)

        return call

    with mock.patch.multiple(os, **{name: wrap(getattr(os, name)) for name in CALLS[kind]}):
        yield made


@contextmanager
def file_limit(n_bytes: int) -> Iterator[None]:
    """Let writes beyond *n_bytes* of any file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[bool]:
    """Mount a file system of *n_bytes* at *folder* that may be enlarged; yields whether that was possible."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    """Give a file system of `small_disk` room enough."""
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)


@dataclass
class Job:
    """
    What may be interrupted.

    run : writes its results into a folder; called again, it continues or finds them
    read : returns what must be the same in every complete file, such as its bytes without a date
    """

    run: Callable[[Path], object]
    read: Callable[[Path], object] = Path.read_bytes

    def results(self, folder: Path) -> dict[str, object]:
        """Return what is under final names: neither hidden, as unfinished files are, nor a lock."""
        found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
        final = {
            str(name): path
            for name, path in found.items()
            if not any(part.startswith(".") for part in name.parts) and not name.name.endswith("lock")
        }
        return {name: self.read(path) for name, path in final.items()}


def _fail_and_repeat(job: Job, folder: Path, whole: Mapping[str, object], what: str, fault: object) -> bool:
    """Run under a fault: whatever then has a final name is right. Returns whether the run failed."""
    failed = False
    try:
        with fault:
            job.run(folder)
    except (LcfuseError, OSError):
        failed = True
    for name, content in job.results(folder).items():
        assert name in whole, f"{what}: {name} is left"
        assert content == whole[name], f"{what}: {name} is wrong"
    return failed


def check(job: Job, folder: Path, at_most: int = 8) -> dict[str, int]:
    """
    Fail up to *at_most* calls or sizes of each kind, evenly spread, each on an empty folder, and repeat without faults.

    Returns how many runs failed, by kind: a test must see that faults arrive.
    """
    failures = dict.fromkeys([*CALLS, "file limit", "full disk"], 0)
    counts = {}
    for kind in CALLS:
        with failing_call(kind, 0) as made:
            job.run(folder / f"whole-{kind}")
        counts[kind] = len(made)
    whole = job.results(folder / "whole-write")
    assert whole
    assert job.results(folder / "whole-fsync") == whole

    def finish(where: Path, what: str) -> None:
        job.run(where)
        assert job.results(where) == whole, f"{what}: the next run did not finish"

    def spread(numbers: list[int]) -> list[int]:
        chosen = np.unique(np.linspace(0, len(numbers) - 1, min(at_most, len(numbers))).astype(int))
        return [numbers[place] for place in chosen]

    for kind, n in counts.items():
        for number in spread(list(range(1, n + 1))):
            where, what = folder / f"{kind}-{number}", f"{kind} {number} of {n}"
            failures[kind] += _fail_and_repeat(job, where, whole, what, failing_call(kind, number))
            finish(where, what)
    sizes = sorted({path.stat().st_size for path in (folder / "whole-write").rglob("*") if path.is_file()} - {0})
    for n_bytes in spread(sorted({0, *(size // 2 for size in sizes), *(size - 1 for size in sizes)})):
        where, what = folder / f"limit-{n_bytes}", f"files of at most {n_bytes} bytes"
        failures["file limit"] += _fail_and_repeat(job, where, whole, what, file_limit(n_bytes))
        finish(where, what)
    for n_bytes in spread([4096 * (1 + step * (2 * sum(sizes) // 4096 + 8) // 64) for step in range(64)]):
        where, what = folder / f"disk-{n_bytes}", f"a disk of {n_bytes} bytes"
        with small_disk(where, n_bytes) as mounted:
            if mounted:
                failures["full disk"] += _fail_and_repeat(job, where / "out", whole, what, mock.MagicMock())
                enlarge(where)
                finish(where / "out", what)
    return failures
