"""The command line: every error is one line, and output that cannot be written is no traceback."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from miniatures import write_patch
from places import network, scene_arrays, write

from lcfuse_core import __main__ as shell
from lcfuse_core.scoring import ledger


def error_of(capsys):
    """The one line on the error stream, which no traceback may follow."""
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1
    return captured


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_sample_command_prints_the_folder_of_the_sample_on_any_terminal(encoding, tmp_path, monkeypatch):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "Łódź"))
    monkeypatch.setattr("lcfuse_core.sample.world.make_world", lambda root, plan: root)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert shell.main(["sample", "--seed", "6"]) == 0
    printed = f"{tmp_path / 'Łódź' / 'world-6'}\n"
    assert terminal.buffer.getvalue() == printed.encode(encoding, "backslashreplace")


COMMANDS = {
    "run": ["run", "reruns", "--out"],
    "train": ["train", "{patches}", "-p", "steps", "1", "-p", "crop", "32", "-p", "batch", "1", "--out"],
    "map": ["map", "--s2", "{s2}", "--model", "{model}", "--quiet", "--out"],
    "compare": [
        *("compare", "--data-root", "{test}", "--train-root", "{patches}", "--only", "MODIS label", "--seeds", "0"),
        "--out",
    ],
    "sample": ["sample"],  # into the folder of the data
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A scene, a network, two training patches and a test patch."""
    folder = tmp_path_factory.mktemp("inputs")
    for scene in ("1", "2"):
        write_patch(folder / "patches", scene=scene)
    write_patch(folder / "test", "test")
    write(folder / "s2", scene_arrays(64, 64)[0])
    network(folder / "model", inputs=("s2",))
    return {name: folder / name for name in ("s2", "model", "patches", "test")}


@pytest.mark.parametrize("kind", ["inside a file", "not writable"])
@pytest.mark.parametrize("command", COMMANDS)
def test_folder_that_cannot_be_written_is_an_error_in_one_line(command, kind, inputs, tmp_path, monkeypatch, capsys):
    """The place of the output lies inside a file, or in a folder of the system in which nobody may make another."""
    (tmp_path / "file").write_text("not a folder")
    out = {"inside a file": tmp_path / "file/out", "not writable": Path("/proc/out")}[kind]
    words = [word.format_map(inputs) for word in COMMANDS[command]]
    monkeypatch.setenv("LCFUSE_DATA", str(out if command == "sample" else tmp_path))
    assert shell.main([*words, str(out)] if words[-1] == "--out" else words) == 2
    assert str(out.parent) in error_of(capsys)
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("out", ["s3://bucket/run", "https://host/map", "/vsimem/map", "/vsizip/a.zip"])
def test_output_to_an_address_is_refused(out, tmp_path, monkeypatch, capsys):
    """It would be a folder of that name, or a file that GDAL alone can see; all commands are checked in one place."""
    monkeypatch.chdir(tmp_path)
    assert shell.main([*COMMANDS["run"], out]) == 2
    assert "expected a folder of this machine" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["option", "current folder"])
def test_path_that_is_not_utf8_is_refused_by_name(kind, tmp_path, monkeypatch, capsys):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnchen")
    os.mkdir(folder)
    if kind == "current folder":
        monkeypatch.chdir(folder)
    assert shell.main(["ledger", "list", "--file", folder if kind == "option" else "l.jsonl"]) == 2
    assert "nchen', which is not UTF-8" in error_of(capsys)


def fails_with(error, monkeypatch):
    """Let the command `sample` end with an error."""

    def fail(root, plan):
        raise error

    monkeypatch.setattr("lcfuse_core.sample.world.make_world", fail)
    return shell.main(["sample", "--seed", "77"])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "/somewhere"), 2, "/somewhere: found 'Permission denied'"),
        (MemoryError("9 GiB"), 2, "memory: found too little (9 GiB)"),
        (ModuleNotFoundError("", name="papermill"), 2, "pip install 'lcfuse-core[book]'"),
        (ModuleNotFoundError("no x", name="x"), 70, "ModuleNotFoundError: no x"),
        (RuntimeError("two\nlines"), 70, "unexpected error (RuntimeError: two lines)"),
    ],
)
def test_any_error_ends_in_one_line(error, code, message, monkeypatch, capsys):
    """The last guard; with LCFUSE_TRACEBACK an unexpected error is raised as it is."""
    assert fails_with(error, monkeypatch) == code
    assert message in error_of(capsys)
    if code == 70:
        monkeypatch.setenv("LCFUSE_TRACEBACK", "1")
        with pytest.raises(type(error)):
            fails_with(error, monkeypatch)


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capsys):
    assert fails_with(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_second_signal_ends_at_once(name):
    """The first one, such as Ctrl-C, starts an end that takes a minute here; the second one does not wait for it."""
    number = signal.Signals[name]
    script = """\
import runpy, signal, sys, time
from lcfuse_core.sample import world
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell may start the tests with them ignored
    signal.signal(each, signal.SIG_DFL)
def slow(seed):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)
world.sample_folder = slow
sys.argv[1:] = ["sample"]
runpy.run_module("lcfuse_core", run_name="__main__")"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in ("begun\n", "ending\n"):
        assert process.stdout.readline() == line
        process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert process.returncode == 128 + number
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "redirections", "code", "errors"),
    [("ledger list --file l", "> /dev/full", 2, "output: found 'No space left"), ("--help", "> /dev/full", 2, ""),
     ("ledger list --file none", "2> /dev/full", 2, ""), ("ledger list --file l", "<&- >&- 2>&-", 0, ""),
     ("ledger list --file l", "| head -1; exit ${PIPESTATUS[0]}", 1, "")],
)  # fmt: skip
def test_output_that_cannot_be_written_is_one_line_at_most(words, redirections, code, errors, tmp_path):
    """Also where Python would print a traceback when it ends, or a file would get the number of a closed output."""
    ledger.append(tmp_path / "l", {"parameters": {"method": "m"}, "scores": {"aa": 0.5}})
    (tmp_path / "l").write_bytes((2000 if "head" in redirections else 1) * (tmp_path / "l").read_bytes())
    command = [shutil.which("bash"), "-c", f"{sys.executable} -m lcfuse_core {words} {redirections}"]
    path = {"PYTHONPATH": str(Path(shell.__file__).parents[1])}  # of this checkout, from another folder
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | path
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == code, done
    assert errors in done.stderr
    assert done.stderr.count("\n") == bool(errors)


@pytest.mark.parametrize(
    "words",
    [["map", "--s2", "a", "--out", ""], ["run", "c", "--out= "], ["train", "", "--out", "x"],
     ["data", "list", "--root="], ["ledger", "list", "--file", "\u00a0"], ["compare", "--out", ""],
     ["place", "--lon", "1", "--lat", "1", "--out", ""]],
)  # fmt: skip
def test_empty_path_is_not_the_current_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert shell.main(words) == 2
    assert "found an empty text" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


def test_empty_value_of_a_parameter_is_passed_on(tmp_path, capsys):
    assert shell.main(["run", "your_place", "-p", "data_root", "", "-p", "no_such", "1", "--out", str(tmp_path)]) == 2
    assert "no_such" in error_of(capsys)


def test_shell_starts_without_the_libraries_that_take_seconds():
    """A command imports what it needs: `--help` and `data status` need none of these."""
    code = "import sys, lcfuse_core.__main__; print(*{'torch', 'sklearn', 'nbformat', 'papermill'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
