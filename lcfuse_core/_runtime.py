"""
Facts about the code and the machine, atomic writing of files, locks, and work in parallel.

What is recorded of a machine names no person, host or folder.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lcfuse_core._yaml import load_yaml
from lcfuse_core.errors import LcfuseError, MissingDataError, ParameterError

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

Item = TypeVar("Item")
Result = TypeVar("Result")

_STARTED = time.monotonic()


def data_folder() -> Path:
    """Return the folder of samples, downloads and trained networks: LCFUSE_DATA, or `_data` in the current folder."""
    return Path(os.environ.get("LCFUSE_DATA", "_data")).absolute()


def read_profile(name: str) -> dict[str, Any]:
    """Return the parameters of a profile. Raises ParameterError if there is no such profile."""
    if name not in PROFILES:
        known = ", ".join(PROFILES)
        raise ParameterError("profile", found=repr(name), expected=f"one of {known}", do="Choose one of them.")
    values: dict[str, Any] = load_yaml((SHIPPED / "profiles" / f"{name}.yaml").read_bytes(), f"{name}.yaml")
    return values


def commit() -> str | None:
    """
    The commit of the code that runs, with `+changes` where files differ from it; None where nobody knows.

    Asked of git in a checkout, and of pip where the package was installed from a git address.
    """
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:  # a checkout, but not ours
        return _installed_commit()
    head = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}+changes" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None where there is no git or it says no."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _installed_commit() -> str | None:
    """The commit that pip noted (PEP 610) on installing from a git address."""
    try:
        noted = importlib.metadata.distribution("lcfuse-core").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return str(found) if found else None


@cache
def code_digest(*modules: str) -> str:
    """
    Return a SHA-256 of the package's source code, or of the given modules and all that they import.

    Parameters
    ----------
    *modules : str
        Dotted names below `lcfuse_core`, such as `"training.loop"`. Without any, every file of the package counts.

    Returns
    -------
    str
        The same for the same code, wherever it is installed. Docstrings and blank lines do not count.

    Raises
    ------
    ValueError
        If there is no such module.
    """
    total = hashlib.sha256()
    for file in source_files(*modules):
        code = code_of(file.read_text(encoding="utf-8"))
        total.update(f"\n{file.relative_to(PACKAGE).as_posix()}\n{code}".encode())
    return total.hexdigest()


def source_files(*modules: str, package: Path = PACKAGE) -> list[Path]:
    """
    Return the files of the given modules and of all modules of the package that they import, directly or not.

    Imports inside functions count. Without *modules*, returns every `.py` file of the package.
    """
    if not modules:
        return sorted(package.rglob("*.py"))
    found: set[Path] = set()
    waiting = [_module_file(package, name.split(".")) for name in modules]
    if None in waiting:
        raise ValueError(f"no such module in {package.name}: {modules[waiting.index(None)]}")
    while waiting:
        file = waiting.pop()
        if file is not None and file not in found:
            found.add(file)
            waiting += _imported_files(package, file)
    return sorted(found)


def _module_file(package: Path, parts: Sequence[str]) -> Path | None:
    path = package.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported_files(package: Path, file: Path) -> list[Path | None]:
    """The files of the package that the imports of *file* name: `from a.b import c` may mean a/b.py or a/b/c.py."""
    found: list[Path | None] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        parts = [name.split(".") for name in names]
        found += [_module_file(package, rest) for first, *rest in parts if first == package.name and rest]
    return found


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
    """SHA-256 of `requirements.lock` beside the package, in a checkout; None where the package was installed."""
    lock = PACKAGE.parent / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None


def machine() -> dict[str, Any]:
    """Versions and processors; no name or path by which a machine or person could be known."""
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": np.__version__,
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": _gpu(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Name of the first GPU, when this process uses torch at all: importing it only to ask takes seconds."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None


def _gpus_in_use() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return sum(torch.cuda.max_memory_allocated(number) > 0 for number in range(torch.cuda.device_count()))


def cost_so_far() -> dict[str, float]:
    """
    What this process has cost since the module was imported: `wall_s`, `gpu_hours`, `peak_memory_mb`.

    GPU-hours are those during which GPUs were held by this process, busy or not; NaN where memory is not told.
    """
    wall_s = time.monotonic() - _STARTED
    gpu_hours = round(wall_s * _gpus_in_use() / 3600, 4)
    return {"wall_s": round(wall_s, 1), "gpu_hours": gpu_hours, "peak_memory_mb": round(peak_memory_mb(), 1)}


def peak_memory_mb() -> float:
    """The most memory that this process has had, in MB (2**20 bytes); NaN on Windows."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[tuple[int, ...]]:
    """
    Hold an exclusive lock on a file beside the work that it protects.

    Parameters
    ----------
    path : Path
        The lock file; it and its folder are made if they are missing.
    wait : bool
        Whether to wait for another process that holds the lock.

    Yields
    ------
    tuple of int
        File descriptors to hand to a child process as `pass_fds`, if the child must keep the lock in case this
        process is killed. Empty where the system has no `flock`: there nothing is locked.

    Raises
    ------
    BlockingIOError
        If another process holds the lock and *wait* is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield (file.fileno(),) if flock(file.fileno(), wait) else ()


def flock(file: int, wait: bool = True) -> bool:
    """Lock an open file (a descriptor) until it is closed; False where the system or the file system cannot."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
    return False


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
    function: Callable[[Item], Result], items: Sequence[Item], *, jobs: int = 1, cluster: str = ""
) -> Iterator[tuple[Item, Result | BaseException]]:
    """
    Apply a function to all items, several at a time, and yield each result as soon as it is there.

    Parameters
    ----------
    function : callable
        Starts a process for each item, as a rule: it runs in a thread of this process, or on a worker of the cluster
        (then it and the items must be picklable).
    items : sequence
        What *function* is applied to.
    jobs : int
        Items at a time on this machine.
    cluster : str
        Address of a Dask scheduler, such as `tcp://host:8786`; empty for this machine.

    Yields
    ------
    tuple
        An item, and its result or the exception that it ended with; no failure stops the others.

    Raises
    ------
    MissingDataError
        If *cluster* is given and Dask is not installed.
    LcfuseError
        If no scheduler answers at that address.
    """
    if cluster:
        yield from _map_on_cluster(function, items, cluster)
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()


def _map_on_cluster(
    function: Callable[[Item], Result], items: Sequence[Item], address: str
) -> Iterator[tuple[Item, Result | BaseException]]:
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
