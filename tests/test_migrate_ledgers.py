"""Renaming methods in ledgers changes nothing but the names."""

import hashlib
import json
import re

import pytest

import migrate_ledgers
from lcfuse_core.methods.registry import BOUNDS, METHODS

BEFORE = {
    "methods.jsonl": "c24700b4fe75977c8c299972e486bd7bd46317e612a3227e912f4cec60410c05",
    "seeds.jsonl": "311893db73d9990299dfe3f0ab147aeed7211d68d208d29512c7c0815957b547",
}
"""SHA-256 of the committed ledgers before the migration, with the name of every method left out."""


def without_names(content):
    return re.sub(rb'"method": "(?:[^"\\]|\\.)*"', b'"method": ""', content)


@pytest.mark.parametrize("path", migrate_ledgers.LEDGERS, ids=lambda path: path.name)
def test_all_other_bytes_of_the_committed_ledgers_are_unchanged(path):
    content = path.read_bytes()
    assert hashlib.sha256(without_names(content)).hexdigest() == BEFORE[path.name]
    names = {json.loads(line)["parameters"]["method"] for line in content.splitlines()}
    assert names <= set(METHODS) | set(BOUNDS)
    assert not names & set(migrate_ledgers.RENAMED)


def test_new_names_are_unique_and_in_the_registry():
    new = list(migrate_ledgers.RENAMED.values())
    assert len(set(new)) == len(new)
    assert set(new) <= set(METHODS) | set(BOUNDS)


def test_a_second_migration_changes_nothing(tmp_path, monkeypatch, capsys):
    lines = [
        {"parameters": {"method": name, "seed": 1}, "scores": {"aa": 0.1}}
        for name in (next(iter(migrate_ledgers.RENAMED)), "other")
    ]
    file = tmp_path / "ledger.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = file.read_bytes()
    monkeypatch.setattr("sys.argv", ["migrate_ledgers.py", str(file)])
    migrate_ledgers.main()
    once = file.read_bytes()
    migrate_ledgers.main()
    assert file.read_bytes() == once != before
    assert without_names(once) == without_names(before)
    assert next(iter(migrate_ledgers.RENAMED.values())).encode() in once
    assert [line.rsplit(": ", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        "1 lines renamed",
        "0 lines renamed",
    ]
