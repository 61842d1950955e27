"""The command line: a chapter runs with checked parameters, and every error is one line."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from miniatures import write_patch
from places import network, scene_arrays, write

from lcfuse_core import __main__ as shell
from lcfuse_core.scoring import ledger

SOURCE = """\
from lcfuse_core.book import chapter
here = chapter.begin("coarse_labels", globals())
print(seed, repr(data_root))"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book whose only chapter prints its parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))

    def write(source=SOURCE):
        notebook = nbformat.v4.new_notebook()
        parameters = nbformat.v4.new_code_cell('profile = "smoke"\nseed = 0\ndata_root = ""\nplace = 0')
        parameters.metadata["tags"] = ["parameters"]
        notebook.cells = [parameters, nbformat.v4.new_code_cell(source)]
        (tmp_path / "book").mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / "book" / "coarse_labels.ipynb")
        return tmp_path

    return write


def run(*arguments, out="made/of/{folders}"):
    return shell.main(["run", "coarse_labels", "--book", "book", "--out", out, *arguments])


def error_of(capsys):
    """The one line on the error stream, which no traceback may follow."""
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1
    return captured


@pytest.mark.slow
def test_chapter_runs_with_the_given_parameters_into_a_folder_of_any_name(book, capsys):
    """Values get their types, relative paths are made absolute, and braces in a path are kept."""
    top = book()
    assert run("-p", "seed", "12", "-p", "data_root", "my data") == 0
    notebook = nbformat.read(top / "made/of/{folders}/coarse_labels.ipynb", as_version=4)
    assert notebook.cells[-1].outputs[0].text.splitlines()[-1] == f"12 '{top / 'my data'}'"
    assert "coarse_labels.ipynb" in capsys.readouterr().out


@pytest.mark.slow
def test_failed_chapter_is_reported_by_cell_and_its_notebook_is_kept(book, capsys):
    top = book("1 / 0")
    assert run(out="out") == 1
    assert "coarse_labels, cell 3: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert (top / "out/coarse_labels.ipynb").exists()


def test_sample_command_prints_the_folder_of_the_sample(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    monkeypatch.setattr("lcfuse_core.sample.world.make_world", lambda root, plan: root)
    assert shell.main(["sample", "--seed", "6"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "world-6")


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
@pytest.mark.parametrize("command", ["map", "train", "run"])
def test_output_to_an_address_is_refused(command, out, inputs, tmp_path, monkeypatch, capsys):
    """It would be a folder of that name, or a file that GDAL alone can see."""
    monkeypatch.chdir(tmp_path)
    assert shell.main([*(word.format_map(inputs) for word in COMMANDS[command]), out]) == 2
    assert "expected a folder of this machine" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_can_show_what_is_printed(encoding, inputs, tmp_path, monkeypatch):
    words = [word.format_map(inputs) for word in COMMANDS["map"]]
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert shell.main([*words, str(tmp_path / "Łódź")]) == 0
    terminal.flush()
    assert b"landcover.tif: 100.0 %" in terminal.buffer.getvalue()


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


def test_pipe_that_closes_early_is_no_traceback(tmp_path):
    """As in `... | head -1`."""
    ledger.append(tmp_path / "l.jsonl", {"chapter": "c", "time": "2026", "parameters": {}, "scores": {}})
    (tmp_path / "l.jsonl").write_bytes(2000 * (tmp_path / "l.jsonl").read_bytes())
    command = f"{sys.executable} -m lcfuse_core ledger list --file {tmp_path / 'l.jsonl'} | head -1"
    done = subprocess.run([shutil.which("sh"), "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "redirections", "code", "errors"),
    [("ledger list --file l", "> /dev/full", 2, "output: found 'No space left"), ("--help", "> /dev/full", 2, ""),
     ("ledger list --file none", "2> /dev/full", 2, ""), ("ledger list --file l", "<&- >&- 2>&-", 0, ""),
     ("ledger list --file l", "| true; exit ${PIPESTATUS[0]}", 1, "")],
)  # fmt: skip
def test_output_that_cannot_be_written_is_one_line_at_most(words, redirections, code, errors, tmp_path):
    """Also where Python would print a traceback when it ends, or a file would get the number of a closed output."""
    ledger.append(tmp_path / "l", {"parameters": {"method": "m"}, "scores": {"aa": 0.5}})
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
