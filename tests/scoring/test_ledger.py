"""The ledger: what is written comes back, whoever writes, whatever crashes."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcfuse_core import __main__ as shell
from lcfuse_core import __version__
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError
from lcfuse_core.scoring import ledger
from lcfuse_core.scoring.scores import confusion, summarise

MIDDLE_OF_WORK = -1
LINES = int(os.environ.get("LCFUSE_LEDGER_LINES", "400"))
"""Written by eight processes together; 10,000 for the full size."""


@dataclass(frozen=True)
class Plan:
    """A stand-in for the plan of a run."""

    network: str = "fcn"
    steps: int = 800
    inputs: tuple[str, ...] = ("s2", "s1")


def entry(**changes):
    """A line of a run on the sample world."""
    arguments = {
        "kind": "evaluation", "parameters": Plan(), "label_regime": "coarse only", "profile": "smoke",
        "scores": summarise(confusion(np.array([1, 1, 10]), np.array([1, 10, 10]))),
        "seeds": {"world": 3, "training": 0}, "synthetic": True, "cost": {"train_s": 71.5},
    }  # fmt: skip
    return ledger.new_entry(**(arguments | changes))


def test_an_entry_comes_back_as_a_row(tmp_path):
    """Scores, plan and seeds are columns; an absent class is empty, not a number."""
    path = tmp_path / "new" / "ledger.jsonl"
    ledger.append(path, entry())
    ledger.append(path, entry(profile="full", synthetic=False))
    table = ledger.read(path)
    row = table.iloc[0]
    assert row["scores.aa"] == 0.75
    assert row["scores.n_pixels"] == 3
    assert row["scores.recall.Forest"] == 0.5
    assert table["scores.recall.Water"].tolist() == [1, 1]
    assert table["scores.recall.Barren"].isna().all()
    assert row[["parameters.network", "parameters.inputs", "seeds.world"]].tolist() == ["fcn", ["s2", "s1"], 3]
    assert table["synthetic"].tolist() == [True, False]
    assert table["profile"].tolist() == ["smoke", "full"]


def test_a_line_is_plain_json(tmp_path):
    """Any JSON reader can read it: one line, no NaN, UTF-8."""
    ledger.append(tmp_path / "l", {"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": "\n\u00e4\u2028"})
    text = (tmp_path / "l").read_bytes()
    assert text.count(b"\n") == 1
    assert json.loads(text) == {"a": None, "b": 0.5, "c": [0, 1], "d": "\n\u00e4\u2028"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=4))
def test_nothing_that_json_can_hold_is_changed(tmp_path_factory, entries):
    """Line by line the same values, in order."""
    path = tmp_path_factory.mktemp("ledger") / "l"
    for one in entries:
        ledger.append(path, one)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == entries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_regime": "coarse"}, "label_regime: found 'coarse', expected coarse only, "),
        ({"profile": "quick"}, "'quick'"),
        ({"regime": "both"}, "regime: found 'both', expected inductive, transductive"),
        ({"parameters": {"f": print}}, r"entry\.parameters\.f: found a value of type builtin_function"),
        ({"data_kind": "real"}, "data_kind: found 'real', expected synthetic"),
        ({"data_kind": "semi-real"}, "data_kind"),
        ({"synthetic": False, "data_kind": "synthetic"}, "data_kind"),
        ({"synthetic": False, "data_kind": "fake"}, "data_kind"),
    ],
)
def test_what_is_unknown_is_refused_and_what_is_synthetic_cannot_be_called_real(changes, message):
    """Before anything is written."""
    with pytest.raises(ParameterError, match=message):
        entry(**changes)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_reported_and_harms_no_other(tmp_path, cut):
    """A crash while writing costs that line, not the one before nor the one after."""
    path = tmp_path / "l"
    for number in range(3):
        ledger.append(path, {"number": number, "note": "ä" * 20})
    path.write_bytes(path.read_bytes()[: -1 - cut])
    with pytest.warns(UserWarning, match="l line 3"):
        table = ledger.read(path)
    assert table["number"].tolist() == [0, 1]
    ledger.append(path, {"number": 3})
    with pytest.warns(UserWarning, match="l line 3"):
        assert ledger.read(path)["number"].tolist() == [0, 1, 3]


def test_a_system_that_takes_a_few_bytes_at_a_time_gets_the_whole_line(tmp_path, monkeypatch):
    """Short writes are gone on with, so that a line is never half of what was reported."""
    write = os.write
    monkeypatch.setattr(ledger.os, "write", lambda file, data: write(file, data[:7]))
    for number in range(3):
        ledger.append(tmp_path / "l", {"number": number, "note": "ä" * 30})
    assert [json.loads(line)["number"] for line in (tmp_path / "l").read_bytes().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "message"),
    [("{}", "Choose"), ("/dev/null", "Choose"), ("/dev/full", r"/dev/full: found No space left.*Free.*record the run")],
)
def test_what_to_do_depends_on_why_a_line_cannot_be_written(path, message, tmp_path):
    with pytest.raises(LcfuseError, match=message):
        ledger.append(path.format(tmp_path), {"number": 1})


def _write_some(path, reported, writer, numbers, dies_at):
    """Append lines, reporting each when it is written; die in the middle of one, lock in hand."""
    whole_write = os.write

    def write_half_and_die(file, data):
        whole_write(file, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    with open(reported, "ab", buffering=0) as report:
        for number in numbers:
            if number == dies_at:
                ledger.os.write = write_half_and_die
            ledger.append(path, {"writer": writer, "number": number, "padding": "ä" * (50 + 13 * number % 400)})
            report.write(b"%d\n" % number)
            if dies_at == MIDDLE_OF_WORK:  # slow enough to be killed before its last line
                time.sleep(0.02)


@pytest.mark.slow
def test_eight_writers_some_killed_lose_no_line_that_was_reported(tmp_path):
    """Three die in the middle of a line and one at any moment; each goes on in a new process, as a rerun would."""
    context, each, path = multiprocessing.get_context("fork"), LINES // 8, tmp_path / "l"
    reported = [tmp_path / f"reported-{writer}" for writer in range(8)]
    dies_at = {writer: (writer + 2) * each // 6 for writer in (1, 2, 3)} | {6: MIDDLE_OF_WORK}

    def start(writer, first, dies=None):
        process = context.Process(target=_write_some, args=(path, reported[writer], writer, range(first, each), dies))
        process.start()
        return process

    running = [start(writer, 0, dies_at.get(writer)) for writer in range(8)]
    while not reported[6].exists() or reported[6].stat().st_size < 40:
        time.sleep(0.001)
    running[6].kill()
    for process in running:
        process.join()
    killed = [writer for writer, process in enumerate(running) if process.exitcode == -signal.SIGKILL]
    assert killed == [1, 2, 3, 6]
    again = [start(writer, len(reported[writer].read_bytes().split())) for writer in killed]
    for process in again:
        process.join()
        assert process.exitcode == 0

    with pytest.warns(UserWarning, match="left out") as warned:
        table = ledger.read(path)
    # The process that was killed at any moment may have been between two lines.
    assert 3 <= str(warned[0].message).count("l line ") <= 4
    for writer in range(8):
        said = [int(number) for number in reported[writer].read_bytes().split()]
        found = table.loc[table["writer"] == writer]
        assert said == list(range(each))
        # One line may be there twice: written, and its writer killed before it could say so.
        assert found["number"].drop_duplicates().tolist() == said
        assert len(found) - each <= (writer == 6)
        assert (found["padding"].str.len() == 50 + 13 * found["number"] % 400).all()


def test_a_line_has_the_fields_of_the_schema_and_says_where_it_comes_from():
    """Code, versions, processor and costs, and nothing that names the machine or its folders."""
    made = entry(data={"evaluation": "DFC2020 test"}, hashes={"checkpoint": "ab" * 32})
    assert list(made) == [
        "schema", "time", "kind", "profile", "label_regime", "regime", "synthetic", "data_kind", "split", "data",
        "seeds", "parameters", "scores", "hashes", "cost", "code", "machine",
    ]  # fmt: skip
    assert (made["schema"], made["data_kind"], made["cost"]["train_s"]) == (2, "synthetic", 71.5)
    assert entry(synthetic=False)["data_kind"] == "real"
    assert made["cost"]["wall_s"] >= 0
    assert made["cost"]["gpu_hours"] == 0
    assert made["cost"]["peak_memory_mb"] > 10
    assert len(made["code"]["digest"]) == len(made["code"]["lock"]) == 64
    assert entry(cost={"wall_s": 9.0})["cost"]["wall_s"] == 9.0
    assert made["code"]["version"] == __version__
    assert made["machine"]["torch"]
    assert made["machine"]["processor"]
    assert made["machine"]["cores"] >= 1
    text = json.dumps(made)
    assert not any(own in text for own in (os.path.expanduser("~"), os.getcwd(), os.uname().nodename))


def test_missing_empty_older_and_newer_ledgers(tmp_path):
    """No file or a folder is an error, an empty one an empty table, a newer schema an error that names the line."""
    path = tmp_path / "l"
    with pytest.raises(DataError, match="found Is a directory, expected a readable ledger"):
        ledger.read(tmp_path)
    with pytest.raises(MissingDataError, match="no such file"):
        ledger.read(path)
    path.touch()
    assert len(ledger.read(path)) == 0
    ledger.append(path, {"schema": 1, "scores": {"aa": 0.5}})
    ledger.append(path, entry())
    assert ledger.read(path)["scores.aa"].tolist() == [0.5, 0.75]
    ledger.append(path, {"schema": 3})
    with pytest.raises(DataError, match="l line 3: found schema 3"):
        ledger.read(path)


GOOD = b'{"schema": 2, "scores": {"aa": 0.5}}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1, 2]", "no JSON object"),
        (b"5", "no JSON object"),
        (b'{"a": 1} {"b": 2}', "no JSON object"),
        (GOOD.replace(b"2", b"\xe4"), "no JSON object|not UTF-8"),
        (b'{"kind": "\xe4"}', "not UTF-8"),
        (b'{"kind": 1}'.decode().encode("utf-16-le"), "no JSON object|not UTF-8"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON object"),
        (b'{"scores": [1]}', r"scores: '\[1\]'"),
        (b'{"scores": {"aa": "0.5"}}', r"scores\.aa: '0\.5'"),
        (b'{"scores": {"counts": {"a": [[1, 2], [3]]}}}', r"scores\.counts\.a: "),
        (b'{"seeds": {"world": "x"}}', r"seeds\.world: 'x'"),
        (b'{"parameters": "fcn"}', "parameters: 'fcn'"),
        *(
            (b'{"scores": {"aa": %s}}' % value, r"scores\.aa: ")
            for value in (b"NaN", b"-Infinity", b"1e999", b"true", b"1" + b"0" * 400)
        ),
        *(
            (b'{"scores": {"counts": {"a": %s}}}' % json.dumps([[value] * 11] * 11).encode(), r"scores\.counts\.a: ")
            for value in (-1, float("inf"), 10**400)
        ),
        (b'{"seeds": {"world": 1%s}}' % (b"0" * 400), r"seeds\.world: "),
        (b'{"scores": {"aa": 0.1}, "scores": {"aa": 0.9}}', "'scores' twice"),
        *((b'{"schema": %s}' % value, "schema: ") for value in (b"null", b"true", b"1.0", b"[2]")),
    ],
)
def test_a_line_of_another_form_is_named_with_the_reason_and_harms_no_other(tmp_path, line, reason):
    path = tmp_path / "l"
    path.write_bytes(GOOD + b"\n" + line + b"\n\0\0\0" + GOOD + b"\r\n\n")
    with pytest.warns(UserWarning, match=rf"left out, not readable: l line 2 \(({reason})"):
        assert list(ledger.read_entries(path)) == [1, 3]


def test_a_line_that_is_too_long_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "_LONGEST_LINE", 64)
    (tmp_path / "l").write_bytes(GOOD + b"\n" + b'{"a": "' + b"x" * 1000 + b'"}\n' + GOOD + b"\n")
    with pytest.warns(UserWarning, match="l line 2"):
        assert list(ledger.read_entries(tmp_path / "l")) == [1, 3]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"LCFUSE_DATA": "data"}, "data/ledger.jsonl"), ({"LCFUSE_DATA": "data", "LCFUSE_LEDGER": "l"}, "l"),
     ({"LCFUSE_LEDGER": ""}, "_data/ledger.jsonl")],
)  # fmt: skip
def test_commands_read_the_ledger_that_chapters_write(tmp_path, monkeypatch, capsys, variables, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("LCFUSE_DATA", "LCFUSE_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ledger.append(expected, entry(parameters={"method": "mine"}))
    assert run("list") == 0
    assert "mine" in capsys.readouterr().out


@pytest.fixture
def file(tmp_path):
    """A ledger with two lines that differ in one parameter and one score, and a torn line between them."""
    path = tmp_path / "ledger.jsonl"
    for seed in (0, 1):
        parameters, scores = {"method": "guess", "seed": seed}, {"aa": 0.25 + seed / 8, "regions": {}}
        ledger.append(path, entry(parameters=parameters, scores=scores, cost={"train_s": seed}))
        if seed == 0:
            with path.open("ab") as open_file:
                open_file.write(b'{"schema": 2, "kin')
    return str(path)


def run(*arguments):
    return shell.main(["ledger", *arguments])


@pytest.mark.filterwarnings("ignore:left out")
def test_list_numbers_the_lines_as_show_takes_them(file, capsys):
    assert run("list", "--file", file) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["line", "1", "3"]
    assert run("show", "3", "--file", file) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == {"method": "guess", "seed": 1}
    assert run("show", "-1", "--file", file) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["seed"] == 1


@pytest.mark.filterwarnings("ignore:left out")
def test_diff_names_what_differs_and_nothing_else(file, capsys):
    assert run("diff", "1", "3", "--file", file) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said == [["parameters.seed", "0", "->", "1"], ["scores.aa", "0.25", "->", "0.375"]]
    assert run("diff", "1", "3", "--all", "--file", file) == 0
    assert "cost.train_s" in capsys.readouterr().out
    assert run("diff", "1", "1", "--file", file) == 0
    assert capsys.readouterr().out.startswith("no difference")


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("number", ["0", "2", "4", "-3"])
def test_a_missing_line_is_named_with_those_that_exist(file, capsys, number):
    """Line 2 is torn: it is no line."""
    assert run("show", number, "--file", file) == 2
    assert f"found no line {number}, expected one of 1, 3" in capsys.readouterr().err


def test_a_line_that_is_not_taken_whole_leaves_nothing_behind(tmp_path, monkeypatch):
    """Part of it was taken, then no more: an error, the file as before, and the next line is whole."""
    path, write, taken = tmp_path / "l", os.write, iter((10, 0))
    ledger.append(path, {"number": 0})
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(ledger.os, "write", lambda file, data: write(file, data[: next(taken)]))
        with pytest.raises(LcfuseError, match=r"l: found .*, expected to append \d+ bytes"):
            ledger.append(path, {"number": 1})
    assert path.read_bytes() == before
    ledger.append(path, {"number": 2})
    assert ledger.read(path)["number"].tolist() == [0, 2]


def test_no_part_of_a_line_passes_for_a_line():
    """Wherever a line is cut, what is left is no JSON object: a torn line is always recognised."""
    line = json.dumps(entry(), ensure_ascii=False).encode()
    assert isinstance(ledger._parse(line), dict)
    assert [cut for cut in range(len(line)) if isinstance(ledger._parse(line[:cut]), dict)] == []
