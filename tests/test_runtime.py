"""What is said of a machine, and one process at a time."""

import os
import subprocess
import sys
import time

import pytest

from lcfuse_core import _runtime
from lcfuse_core.errors import LcfuseError


@pytest.mark.skipif(os.name != "posix", reason="locks are of POSIX")
def test_a_child_keeps_others_out_when_its_parent_was_killed(tmp_path):
    """As a run goes on when the worker that began it dies: nobody may begin it a second time meanwhile."""
    import fcntl

    lock = tmp_path / "deep" / ".lock"
    parent = (
        "import os, subprocess, sys\nfrom pathlib import Path\nfrom lcfuse_core import _runtime\n"
        "with _runtime.lock(Path(sys.argv[1])) as held:\n"
        "    subprocess.Popen(['cat'], pass_fds=held)\n"
        "    os._exit(0)"
    )
    began = subprocess.Popen([sys.executable, "-c", parent, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    began.wait()
    with lock.open("a") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        began.stdin.close()  # what the child waits for: it ends
        assert began.stdout.read() == b""
        with _runtime.lock(lock):
            pass


def package(folder, **files):
    """A package of these files (`a__b` is a/b.py), named as ours."""
    root = folder / "lcfuse_core"
    for name, code in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return root


def test_source_files_follow_imports_into_every_room(tmp_path):
    """Direct, nested in a function, of a module or of a name in it; what nothing imports is left out."""
    root = package(
        tmp_path,
        training__loop="from lcfuse_core.data import source\nfrom lcfuse_core.models.losses import LOSSES\n",
        data__source="def f():\n    import lcfuse_core.data.cells\n",
        data__cells="", models__losses="LOSSES = {}", models__forest="",
        book__charts="from lcfuse_core.data import cells",
    )  # fmt: skip
    found = [file.relative_to(root).as_posix() for file in _runtime._source_files("training.loop", package=root)]
    assert found == ["data/cells.py", "data/source.py", "models/losses.py", "training/loop.py"]
    assert len(_runtime._source_files(package=root)) == 6
    with pytest.raises(ValueError, match=r"no such module in lcfuse_core: training\.nothing"):
        _runtime._source_files("training.nothing", package=root)


def test_the_code_digest_of_training_covers_what_adapts_networks_and_not_the_figures():
    names = {file.relative_to(_runtime.PACKAGE).as_posix() for file in _runtime._source_files(*_runtime.TRAINING_CODE)}
    assert {"methods/adapt.py", "training/loop.py", "models/losses.py", "data/source.py"} <= names
    assert not any(name.startswith(("book/", "mapping/")) for name in names)


def test_a_code_digest_sees_code_but_no_docstring():
    one = '"""First."""\n\n\ndef f():\n    """Return 1."""\n    return 1\n'
    two = '"""Other words\n\nin a module."""\ndef f():\n    """Return one."""\n    return 1\n'
    three = '"""First."""\n\n\ndef f():\n    """Return 1."""\n    return 2\n'
    assert _runtime.code_of(one) == _runtime.code_of(two) != _runtime.code_of(three)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "folder" / "file.txt"
    assert _runtime.write_atomic(file, "old") == file

    def fail():
        with _runtime.atomic_path(file) as part:
            part.write_text("new, but not")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]
    _runtime.write_atomic(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_lock_that_is_held_is_not_waited_for_unless_asked(tmp_path):
    with _runtime.lock(tmp_path / "lock") as held:
        assert len(held) == 1
        with pytest.raises(BlockingIOError), _runtime.lock(tmp_path / "lock", wait=False):
            pass
    with _runtime.lock(tmp_path / "lock", wait=False):
        pass


def half(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def test_parallel_results_come_with_their_items_and_errors_stop_nothing():
    results = {item: repr(result) for item, result in _runtime.map_parallel(half, [0, 1, 2, 4], jobs=2)}
    assert results == {0: "0", 1: "ValueError('1 is odd')", 2: "1", 4: "2"}


def test_no_further_item_is_begun_after_ctrl_c():
    """Those that run end; those that wait are not begun."""
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.05)

    results = _runtime.map_parallel(work, range(50))
    assert next(results) == (0, None)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert 1 <= len(begun) <= 3


@pytest.mark.parametrize(("value", "expected"), [(None, "_data"), ("", "_data"), ("here", "here"), ("/x/y", "/x/y")])
def test_data_folder_is_absolute_and_an_empty_variable_counts_as_unset(value, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCFUSE_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("LCFUSE_DATA", value)
    assert _runtime.data_folder() == tmp_path / expected


def test_the_commit_is_that_of_the_checkout_only_if_it_is_ours(tmp_path, monkeypatch):
    """A module tracked by git has its commit, marked when changed; in a foreign checkout it has none."""
    names = dict.fromkeys(["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"], "a@b")

    def git(*arguments):
        command, env = ["git", "-C", tmp_path, *arguments], os.environ | names
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "_runtime.py"
    module.write_text("1")
    git("init", "-q")
    monkeypatch.setattr(_runtime, "__file__", str(module))
    monkeypatch.setattr(_runtime, "_installed_commit", lambda: None)
    git("-c", "commit.gpgsign=false", "commit", "-q", "--allow-empty", "--no-verify", "-m", "foreign")
    assert _runtime.commit.__wrapped__() is None
    git("add", "_runtime.py")
    git("-c", "commit.gpgsign=false", "commit", "-q", "--no-verify", "-m", "ours")
    assert _runtime.commit.__wrapped__() == git("rev-parse", "HEAD")
    module.write_text("2")
    assert _runtime.commit.__wrapped__() == git("rev-parse", "HEAD") + "+changes"
    monkeypatch.setenv("PATH", "")  # without git
    assert _runtime.commit.__wrapped__() is None


def test_document_is_a_file_of_bounded_size(tmp_path, monkeypatch):
    path = tmp_path / "list.csv"
    path.write_text("name")
    assert _runtime.read_document(path, "a list") == b"name"
    monkeypatch.setattr(_runtime, "_LARGEST_DOCUMENT", 3)
    for where, match in ((path, "found 4 bytes, expected a list of at most 3"), (tmp_path, "found a folder"),
                         (tmp_path / "none", "found no such file"), (path / "x", "found no such file")):  # fmt: skip
        with pytest.raises(LcfuseError, match=match):
            _runtime.read_document(where, "a list")


def test_a_process_ends_without_a_search_for_cycles():
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); import lcfuse_core._runtime"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
