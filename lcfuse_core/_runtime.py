"""
Facts about the code and the machine, atomic writing of files, locks, ignored warnings, and work in parallel.

What is recorded of a machine names no person, host or folder.
"""

from __future__ import annotations

import ast
import atexit
import errno
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lcfuse_core._yaml import load_yaml
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError

try:
    import fcntl
except ModuleNotFoundError:  # Windows: no lock, so one process at a time
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).parent
SHIPPED = PACKAGE / "shipped"
"""Files that come with the package: profiles, claims, published scores, trained networks, recorded results."""

PROFILES = ("smoke", "colab", "full")
"""Sets of parameters, by the amount of data and time; see `shipped/profiles`."""

TRAINING_CODE = ("training.loop", "methods.adapt")
"""What trains networks: a stored network counts only while these modules, and all that they import, are unchanged."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LARGEST_DOCUMENT = 2**26
_STARTED = time.monotonic()

# Else Python searches the objects of torch for cycles when it ends, which takes a second.
atexit.register(gc.freeze)


def data_folder() -> Path:
    """Return the folder of samples, downloads and trained networks: LCFUSE_DATA, or `_data` in the current folder."""
    return Path(os.environ.get("LCFUSE_DATA") or "_data").absolute()


def read_document(path: str | os.PathLike[str], expected: str) -> bytes:
    """
    Return the content of a list, legend or manifest; *expected* names it in errors.

    Raises MissingDataError unless it is a file (devices and pipes may be endless), DataError if it is too large or
    cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_file():
            found = "a folder, device or pipe" if path.exists() else "no such file"
            raise MissingDataError(path, found=found, expected=expected, do="Check the path.")
        if path.stat().st_size > _LARGEST_DOCUMENT:
            found, do = f"{path.stat().st_size:,} bytes", "Check that it is the right file."
            raise DataError(path, found=found, expected=f"{expected} of at most {_LARGEST_DOCUMENT:,} bytes", do=do)
        return path.read_bytes()
    except LcfuseError:
        raise
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror})"
        raise DataError(path, found=found, expected=expected, do="Check its permissions.") from None


def read_profile(name: str) -> dict[str, Any]:
    """Return the parameters of a profile. Raises ParameterError if there is no such profile."""
    if name not in PROFILES:
        known = ", ".join(PROFILES)
        raise ParameterError("profile", found=repr(name), expected=f"one of {known}", do="Choose one of them.")
    values: dict[str, Any] = load_yaml((SHIPPED / "profiles" / f"{name}.yaml").read_bytes(), f"{name}.yaml")
    return values


@cache
def commit() -> str | None:
    """Return the commit of this code, by git or pip, with `+changes` if files differed at the first call, or None."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:  # not tracked by the repository around it
        return _installed_commit()
    head = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}+changes" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git, or None if there is no git or it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _installed_commit() -> str | None:
    """Return the commit that pip recorded (PEP 610) when it installed from a git address."""
    try:
        noted = importlib.metadata.distribution("lcfuse-core").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return str(found) if found else None


@cache
def code_digest(*modules: str) -> str:
    """
    Return a SHA-256 of the given modules, such as "training.loop", and of all that they import; without any, of all.

    Docstrings and blank lines do not count. Raises ValueError if there is no such module.
    """
    total = hashlib.sha256()
    for file in _source_files(*modules):
        code = code_of(file.read_text(encoding="utf-8"))
        total.update(f"\n{file.relative_to(PACKAGE).as_posix()}\n{code}".encode())
    return total.hexdigest()


def _source_files(*modules: str, package: Path = PACKAGE) -> list[Path]:
    """
    Return the files of the given modules and of all modules of the package that they import, directly or not.

    Imports inside functions count. Without *modules*, returns every `.py` file of the package.
    """
    files = {".".join(file.relative_to(package).with_suffix("").parts): file for file in package.rglob("*.py")}
    files = {f"{package.name}.{name.removesuffix('.__init__')}": file for name, file in files.items()}
    waiting, found = [f"{package.name}.{name}" for name in modules], set[Path]()
    if unknown := [name for name in modules if f"{package.name}.{name}" not in files]:
        raise ValueError(f"no such module in {package.name}: {unknown[0]}")
    while waiting:
        file = files.get(waiting.pop())
        if file is None or file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                # `from a.b import c` may mean a/b.py or a/b/c.py.
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(found if modules else files.values())


@lru_cache(maxsize=256)
def code_of(text: str) -> str:
    """Return the lines of a Python source text that are neither blank nor part of a docstring."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        is_scope = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_scope and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            left_out.update(range(body[0].lineno, (body[0].end_lineno or body[0].lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return "\n".join(line for number, line in lines if line.strip() and number not in left_out)


@cache
def lock_digest() -> str | None:
    """Return the SHA-256 of `requirements.lock` beside the package in a checkout; None if the package is installed."""
    lock = PACKAGE.parent / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None


def machine() -> dict[str, Any]:
    """Return versions and processors, without any name or path of a machine or person."""
    cuda = _cuda()
    return {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": cuda.get_device_name(0) if cuda else None,
    }


@cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cuda() -> Any:
    """Return `torch.cuda` if there is a GPU and this process has imported torch, which takes seconds."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def cost_so_far() -> dict[str, float]:
    """
    Return what this process has cost since the module was imported: `wall_s`, `gpu_hours`, `peak_memory_mb`.

    GPU-hours are those during which this process held GPUs, busy or not.
    """
    wall_s, cuda = time.monotonic() - _STARTED, _cuda()
    n_gpus = sum(cuda.max_memory_allocated(number) > 0 for number in range(cuda.device_count())) if cuda else 0
    gpu_hours = round(wall_s * n_gpus / 3600, 4)
    return {"wall_s": round(wall_s, 1), "gpu_hours": gpu_hours, "peak_memory_mb": round(peak_memory_mb(), 1)}


def peak_memory_mb() -> float:
    """Return the largest memory of this process so far, in MB (2**20 bytes); NaN on Windows."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[tuple[int, ...]]:
    """
    Hold an exclusive lock on a file, which is made if it is missing, until the block is left.

    Yields the file descriptors to hand to a child process as `pass_fds` if the child must keep the lock in case this
    process is killed; empty if the system has no `flock`, where nothing is locked. Raises BlockingIOError if another
    process holds the lock and *wait* is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        held: tuple[int, ...] = ()
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                held = (file.fileno(),)
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        yield held


class IgnoredWarning:
    """
    Suppresses a category of warnings in `with` blocks of any number of threads.

    All threads of a process share the filters of warnings: what two change at a time, the one that ends last would
    leave changed. So the first thread changes them for all, and the last one restores them.
    """

    def __init__(self, category: type[Warning]) -> None:
        self.category = category
        self._lock, self._users, self._filters = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore", self.category)
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._filters.__exit__(None, None, None)


def check_output(path: str | os.PathLike[str]) -> None:
    """Raise ParameterError if a path to write to is an address, or in a virtual file system of GDAL."""
    if re.match(r"\w{2,}:[/\\]|/vsi\w+/", os.fspath(path)):  # not C:/
        do = "Write to a folder, and copy it there."
        raise ParameterError("output", found=f"'{path}'", expected="a folder of this machine", do=do)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield the path of a temporary file that takes the place of *path* when the block ends without an error.

    Readers see the old file or the new one, never a part. Content and folder are synchronised to the disk before
    the block is left; after an error the temporary file is removed and *path* is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a whole file by `atomic_path`; text is encoded as UTF-8. Raises OSError, and then *path* is as it was."""
    with atomic_path(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def map_parallel(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, jobs: int = 1, cluster: str = ""
) -> Iterator[tuple[_Item, _Result | BaseException]]:
    """
    Apply a function to all items, several at a time, and yield each item with its result as soon as it is there.

    Parameters
    ----------
    function : callable
        Runs in a thread of this process, or on a worker of the cluster; then it and the items must be picklable.
    items : sequence
        Arguments of *function*. An item that fails yields its exception and does not stop the others.
    jobs : int
        Items at a time on this machine.
    cluster : str
        Address of a Dask scheduler, such as `tcp://host:8786`; empty for this machine.

    Raises
    ------
    MissingDataError, LcfuseError
        If Dask is not installed, or no scheduler answers at that address.
    """
    if cluster:
        yield from _map_on_cluster(function, items, cluster)
        return
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()
    finally:  # after Ctrl-C no other item is begun
        pool.shutdown(cancel_futures=True)


def _map_on_cluster(
    function: Callable[[_Item], _Result], items: Sequence[_Item], address: str
) -> Iterator[tuple[_Item, _Result | BaseException]]:
    try:
        import distributed
    except ModuleNotFoundError:
        do = "Install it: pip install 'lcfuse-core[cluster]'."
        raise MissingDataError("--cluster", found="no package distributed", expected="Dask", do=do) from None
    try:
        client = distributed.Client(address, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        do = "Start one with `dask scheduler` and `dask worker ADDRESS`, or use --jobs."
        raise LcfuseError(address, found=f"no answer ({error})", expected="a Dask scheduler", do=do) from None
    with client:
        futures = {client.submit(function, item, pure=False): item for item in items}
        for future in distributed.as_completed(futures, raise_errors=False):
            yield futures[future], future.exception() or future.result()
