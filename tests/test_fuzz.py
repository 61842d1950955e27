"""
Files of the doors that are not rasters, mutated or foreign: each is read, or refused by the name of its file.

LCFUSE_FUZZ=50 tries fifty mutations of each kind instead of a few, all under a limit of 4 GB more memory.
"""

import gzip
import json
import os
import resource
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from miniatures import write_scene
from places import network

from lcfuse_core import _runtime
from lcfuse_core.data import legends, packed, packing
from lcfuse_core.download import manifest
from lcfuse_core.errors import LcfuseError
from lcfuse_core.mapping import commands, make, places
from lcfuse_core.scoring import claims, ledger
from lcfuse_core.training.checkpoint import load_checkpoint

N = int(os.environ.get("LCFUSE_FUZZ", "5"))
LIMIT_BYTES, LIMIT_S = 4 * 2**30, 20


def packed_scene(folder):
    """The description of a packed scene, beside its pixels."""
    assert packing.pack(write_scene(folder / "patches"), folder / "packs").refused == []
    return next((folder / "packs").glob("*.json"))


def ledger_file(folder):
    entry = ledger.new_entry(
        "evaluation", {"method": "guess"}, {"aa": 0.25, "regions": {"a": {"aa": 0.2}}},
        label_regime="coarse only", profile="smoke", seeds={"world": 2}, synthetic=True,
    )  # fmt: skip
    for _ in range(3):
        ledger.append(folder / "l.jsonl", entry)
    return folder / "l.jsonl"


def written(name, content):
    """Return a function that writes a valid file into a folder."""

    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def read_record(path):
    """A damaged record of a map is no error: the map is made again."""
    assert make._found(path.parent, "key", []) is None


def read_claims(path):
    """The claims come with the package, so they are read from text."""
    claims.read_claims(path.read_text(encoding="utf-8", errors="replace"))


CLAIMS = b"""\
version: 1
fixed: 2026-11-28
claims:
  - {id: a, source: yu2020, at: abstract, sentence: It works., means: Nothing to test., relation: untestable}
"""
LIST = b'name,s2,s1\na,.,\n"b, c",.,.\n'
PLACES = b"- {lon: 11.5, lat: 48.3, name: a, reason: b}\n- lon: 1\n  lat: 2\n"
RECORD = json.dumps({"key": "another", "inputs": [], "files": {}, "sha256": ""}).encode()
DOORS = {
    "checkpoint": (lambda folder: network(folder / "n.safetensors"), load_checkpoint),
    "manifest": (written("m.yaml", (_runtime.SHIPPED / "data_manifest.yaml").read_bytes()), manifest.read),
    "claims": (written("c.yaml", CLAIMS), read_claims),
    "ledger": (ledger_file, ledger.read),
    "packed scene": (packed_scene, packed.PackedScene),
    "legend": (written("legend.yaml", b"10: Forest\n20: 2\n30: none\n"), legends.read_legend),
    "list of scenes": (written("l.csv", LIST), commands._read_list),
    "list of places": (written("p.yaml", PLACES), places.read_places),
    "record of a map": (written("landcover.json", RECORD), read_record),
}

FOREIGN = {
    "empty": b"",
    "byte order mark": b"\xef\xbb\xbf",
    "UTF-16": "name,s2\na,b\n".encode("utf-16"),
    "Latin-1": b"name: M\xfcnchen\n",
    "zeros": bytes(1000),
    "gzip": gzip.compress(b"a: b"),
    "deep list": 100_000 * b"[",
    "deep mapping": b'{"a":' * 50_000,
    "nested flow": b"[" * 500 + b"]" * 500,
    "list as a key": b"? [a, b]\n: c\n",
    "scalar": b"12",
    "null": b"null",
    "list": b"[1, 2]\n",
    "alias bomb": b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 120)),
    "tag": b"!!python/object/apply:os.system ['true']\n",
    "large number": b"a: " + 5000 * b"9" + b"\n",
    "large header": (2**62).to_bytes(8, "little") + b"{}",
    "yes and 012": b"yes: 012\n",
    "one long line": 200_000 * b"x",
    "control characters": bytes(range(32)),
}


def mutations(content, rng):
    """Yield damaged copies: cut, bits flipped, bytes inserted, a part doubled, a number or a word changed."""
    n = len(content)
    for _ in range(N):
        at, end = sorted(rng.integers(0, n, 2).tolist())
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :]
        yield content[:at] + rng.bytes(4) + content[at:]
        yield content[:end] + content[at:]
        yield content[:at] + content[end:]
    for old, new in ((b":", b""), (b"{", b"["), (b'"', b"'"), (b"0", b"-1e999"), (b",", b",,"), (b"a", b"\xff")):
        yield content.replace(old, new, 1)
        yield content.replace(old, new)


@contextmanager
def limits():
    """Raise MemoryError beyond 4 GB more than now, TimeoutError after some seconds."""

    def late(*_):
        raise TimeoutError(f"{LIMIT_S} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit of memory needs /proc")
@pytest.mark.parametrize("door", DOORS)
def test_damaged_and_foreign_files_are_read_or_refused_by_name(door, tmp_path):
    make_valid, read = DOORS[door]
    path = make_valid(tmp_path)
    read(path)
    content = path.read_bytes()
    damages = enumerate(mutations(content, np.random.default_rng(0)))
    cases = FOREIGN | {f"mutation {number}": damaged for number, damaged in damages}
    name_of = {"claims": "claims.yaml", "packed scene": path.stem}.get(door, path.name)
    faults, refused = [], 0
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the ledger warns of a last line that was cut
        for name, damaged in cases.items():
            path.write_bytes(damaged)
            signal.alarm(LIMIT_S)
            try:
                read(path)
            except LcfuseError as error:
                refused += 1
                if name_of not in str(error).split(": found")[0]:
                    faults.append(f"{name}: not named: {error}")
            except Exception as error:
                faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    assert not faults, "\n".join(faults)
    assert refused or door in ("record of a map", "ledger")  # which warns of damaged lines and reads the others


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("claims", "record of a map")])
def test_pipe_device_or_huge_file_is_refused_and_not_read(door, tmp_path):
    """Each may be endless; a huge file of zeros takes no room on the disk."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with open(tmp_path / "huge.yaml", "wb") as file:
        file.truncate(2**40)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path / "huge.yaml"):
        signal.alarm(LIMIT_S)
        if door == "ledger" and path.name == "huge.yaml":
            continue  # it is read line by line, and a line has a limit
        with limits(), pytest.raises(LcfuseError, match=path.name):
            DOORS[door][1](path)
    signal.alarm(0)
