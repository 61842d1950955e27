"""Fetching: whatever a server does, what ends under a file's name is the file."""

import hashlib
import io
import logging
import os
import random
import shutil
import socket
import threading
import time
import tracemalloc
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import faults
import pytest
from servers import FAULTS, FTP_FAULTS, FTPServer, HTTPServer
from worlds import UNPACK, item, make_zip, manifest, md5, pack, toy_files

from lcfuse_core import _runtime
from lcfuse_core.data import archives, download, fetched, transfer
from lcfuse_core.data.fetched import Sums
from lcfuse_core.data.manifest import Choice
from lcfuse_core.errors import FetchError

QUICK = transfer.Retry(stall_s=0.25, tries=4, pause_s=0)
N_SCHEDULES = 200
logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)


@pytest.fixture(scope="module")
def http():
    with HTTPServer() as server:
        yield server


@pytest.fixture(scope="module")
def ftp():
    with FTPServer() as server:
        yield server


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def fetcher(book, root, **more):
    return download.Fetcher(book, fetched.Store(root), **{"retry": QUICK, "progress": False, **more})


def run(book, root, **more):
    """Fetch `colab` and return the outcomes."""
    return fetcher(book, root, **more).fetch(book.subset("colab").items)


def unpacked(root):
    """Path -> content of all that was unpacked."""
    top = root / "toys"
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()}


# Schedules ---------------------------------------------------------------------------------------


def schedule(seed, http, ftp, root):
    """Serve one archive as badly as chance has it, fetch it twice, and say what went wrong with us, if anything."""
    rng = random.Random(seed)
    form, files = rng.choice(["zip", "tar.gz"]), toy_files(seed)
    content = pack(files, form)
    sources, scripts = [], []
    for n in range(rng.choice([1, 2, 3])):
        server, kinds = (http, FAULTS) if rng.random() < 0.6 else (ftp, FTP_FAULTS)
        name = f"{seed}-{n}.{form}"
        faults = rng.choices(kinds, k=rng.randrange(6))
        server.script.serve(f"/{name}", content, faults, then=rng.choice([None, None, *kinds]))
        sources.append(server.source(name))
        scripts.append((server.script, f"/{name}"))
    sums = md5(content) if rng.random() < 0.6 else "unknown"
    size = len(content) if rng.random() < 0.3 else "unknown"
    stream = form == "tar.gz" and rng.random() < 0.5
    book = manifest(item(form, sources, sums, size=size), choices=[{"item": "toys", "stream": stream}])
    outcomes = [run(book, root)[0] for _ in range(2)]
    asked = sum(script.requests[path] for script, path in scripts)
    return "; ".join(_faults_of_ours(outcomes, root, form, content, files, sums, asked))


def _faults_of_ours(outcomes, root, form, content, files, sums, asked):
    final = root / "downloads" / f"toys.{form}"
    first, second = outcomes
    if first.is_good:
        if unpacked(root) != files:
            yield "unpacked something else"
        if second.state != "here":
            yield f"did something again: {second}"
    else:
        if first.state != "failed" or "127.0.0.1" not in first.said:
            yield f"unclear: {first}"
        if not second.is_good and ((root / "toys").exists() or final.exists()):
            yield "left something under a final name"
    if final.exists() and sums != "unknown" and final.read_bytes() != content:
        yield "a wrong file under its name"
    if first.is_good and list(root.glob(".unpacking*")):
        yield "left its staging folder"
    if asked > 150:
        yield f"asked {asked} times"


def test_no_schedule_of_failures_ends_in_a_wrong_file(http, ftp, root):
    """Cuts, stalls, short, wrong, flipped and HTML bodies, ignored ranges, 404, 450, 503: right, or a clear error."""
    with ThreadPoolExecutor(16) as pool:  # most of the time they wait
        found = list(pool.map(lambda n: schedule(n, http, ftp, root / str(n)), range(N_SCHEDULES)))
    assert {n: said for n, said in enumerate(found) if said} == {}
    good = sum((root / str(n) / "toys").is_dir() for n in range(N_SCHEDULES))
    assert N_SCHEDULES / 2 < good < N_SCHEDULES, "it proves little if all of them fail, or none"


# One thing at a time -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "ftp"])
def test_a_cut_download_goes_on_at_the_byte(kind, request, root):
    """Each later request begins where the last one ended, and no byte comes twice."""
    server, content = request.getfixturevalue(kind), pack(toy_files(), "zip")
    server.script.serve("/cut.zip", content, ["cut", "stall", "cut"])
    assert run(manifest(item("zip", [server.source("cut.zip")], md5(content))), root)[0].state == "unpacked"
    asked = server.script.asked["/cut.zip"]
    assert asked == sorted(asked)
    assert len(set(asked)) >= 3
    assert unpacked(root) == toy_files()


@pytest.mark.parametrize("stream", [True, False])
def test_a_server_that_cannot_begin_in_the_middle_costs_time_alone(stream, http, root):
    """What comes a second time is dropped; nothing is begun again."""
    content = pack(toy_files(), "tar.gz")
    http.script.serve("/ranges.tar.gz", content, ["cut", "ignore_range"])
    entry = item("tar.gz", [http.source("ranges.tar.gz")], md5(content))
    book = manifest(entry, choices=[{"item": "toys", "stream": stream}])
    assert run(book, root)[0].state == "unpacked"
    assert http.script.requests["/ranges.tar.gz"] == 2
    assert unpacked(root) == toy_files()


def test_another_run_goes_on_where_the_first_was_ended(http, root):
    """A part of an ended program is continued, not begun again."""
    content = pack(toy_files(), "zip")
    http.script.serve("/twice.zip", content)
    book = manifest(item("zip", [http.source("twice.zip")], md5(content)))
    (root / "downloads").mkdir(parents=True)
    (root / "downloads/toys.zip.part").write_bytes(content[:20_000])
    assert run(book, root)[0].state == "unpacked"
    assert http.script.asked["/twice.zip"] == [20_000]


def test_a_part_that_is_complete_needs_no_byte_more(http, root):
    """The program was ended between the last byte and the name: the server says that nothing lies behind."""
    content = pack(toy_files(), "zip")
    http.script.serve("/whole.zip", content)
    (root / "downloads").mkdir(parents=True)
    (root / "downloads/toys.zip.part").write_bytes(content)
    assert run(manifest(item("zip", [http.source("whole.zip")], md5(content))), root)[0].state == "unpacked"
    assert http.script.asked["/whole.zip"] == [len(content)]


def test_a_part_of_another_version_is_begun_again(http, root):
    """The file at the source was replaced in between, and no checksum would tell."""
    old, new = pack(toy_files(1), "zip"), pack(toy_files(2), "zip")
    book = manifest(item("zip", [http.source("moving.zip")]))
    http.script.serve("/moving.zip", old, ["cut"], then="gone")
    assert run(book, root)[0].state == "failed"
    http.script.serve("/moving.zip", new)
    assert run(book, root)[0].state == "unpacked"
    assert http.script.asked["/moving.zip"][0] > 0
    assert http.script.asked["/moving.zip"][-1] == 0
    assert unpacked(root) == toy_files(2)


def test_a_bar_tells_how_much_of_how_much(http, root, monkeypatch):
    """It begins where the part ends; rate and time left follow from that."""
    bars = []

    class Bar(download.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False, "file": io.StringIO()})

        def close(self):
            bars.append((self.initial, self.n, self.total))
            super().close()

    monkeypatch.setattr(download, "tqdm", Bar)
    content = pack(toy_files(), "zip")
    http.script.serve("/bar.zip", content)
    (root / "downloads").mkdir(parents=True)
    (root / "downloads/toys.zip.part").write_bytes(content[:5000])
    book = manifest(item("zip", [http.source("bar.zip")], md5(content)))
    download.Fetcher(book, fetched.Store(root), retry=QUICK).fetch(book.subset("colab").items)
    assert set(bars) == {(5000, len(content), len(content))}


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_leaves_what_can_be_continued(http, root, stream):
    """As Ctrl-C does: the threads end at the next byte, and nothing has a final name."""
    content = pack(toy_files(), "tar.gz")
    http.script.serve("/stopped.tar.gz", content)
    book = manifest(
        item("tar.gz", [http.source("stopped.tar.gz")], md5(content)), choices=[{"item": "toys", "stream": stream}]
    )
    stopped = fetcher(book, root)
    stopped.stop.set()
    outcome = stopped.fetch(book.subset("colab").items)[0]
    assert (outcome.state, "found a stop" in outcome.said) == ("failed", True)
    assert not (root / "toys").exists()
    assert run(book, root)[0].state == "unpacked"


def test_a_part_of_wrong_bytes_is_begun_again_from_the_same_source(http, root):
    """A good source does not suffer for the bad one that began."""
    content = pack(toy_files(), "zip")
    http.script.serve("/mixed.zip", content)
    (root / "downloads").mkdir(parents=True)
    (root / "downloads/toys.zip.part").write_bytes(b"PK" + bytes(9998))
    assert run(manifest(item("zip", [http.source("mixed.zip")], md5(content))), root)[0].state == "unpacked"
    assert http.script.asked["/mixed.zip"] == [10_000, 0]


def test_without_a_checksum_no_part_of_another_source_is_continued(http, root):
    """Nothing would tell whether the two halves belong together."""
    content = pack(toy_files(), "zip")
    http.script.serve("/a.zip", content, then="cut")
    http.script.serve("/b.zip", content)
    book = manifest(item("zip", [http.source("a.zip"), http.source("b.zip")]))
    assert run(book, root)[0].state == "unpacked"
    assert http.script.asked["/b.zip"] == [0]


def test_the_next_source_serves_what_the_first_does_not(http, ftp, root):
    """404, a web page, wrong bytes: the third source gives the file, and the record names it."""
    content = pack(toy_files(), "tar.gz")
    http.script.serve("/gone.tar.gz", content, then="gone")
    http.script.serve("/wrong.tar.gz", content, then="wrong")
    ftp.script.serve("/good.tar.gz", content)
    good = ftp.source("good.tar.gz")
    sources = [http.source("gone.tar.gz"), http.source("wrong.tar.gz"), good]
    book = manifest(item("tar.gz", sources, md5(content)))
    assert run(book, root)[0].state == "unpacked"
    record = fetched.Store(root).record(book.item("toys"))
    assert record.source == good["url"]
    assert (record.mark, record.how) == ("verified", "md5 of the manifest")
    assert record.checksums["md5"] == md5(content)["md5"]


def test_when_all_sources_fail_each_is_named_with_its_reason(http, root):
    """And the way by hand, with the place where the file belongs."""
    content = pack(toy_files(), "zip")
    http.script.serve("/x.zip", content, then="gone")
    http.script.serve("/y.zip", content, then="html")
    hand = {"kind": "by_hand", "page": "https://example.org/page", "log_in": True, "do": "Log in and take {file}."}
    book = manifest(item("zip", [http.source("x.zip"), http.source("y.zip"), hand], md5(content)))
    outcome = run(book, root)[0]
    assert outcome.state == "failed"
    for part in ("x.zip: HTTP 404", "y.zip: a web page instead", "Log in and take toys.zip.", "(log-in)",
                 f"Put the file at {root / 'downloads' / 'toys.zip'}"):  # fmt: skip
        assert part in outcome.said
    assert not (root / "downloads/toys.zip").exists()


def test_a_busy_server_is_asked_again_after_a_growing_pause(http, root):
    """The pauses double; what the server asks for counts, up to a limit."""
    content, pauses = pack(toy_files(), "zip"), []
    http.script.serve("/busy.zip", content, ["busy"] * 4)
    retry = transfer.Retry(stall_s=0.3, tries=6, pause_s=0.25, longest_s=1.5)
    [source] = manifest(item("zip", [http.source("busy.zip")])).items[0].sources
    stop = SimpleNamespace(wait=pauses.append, is_set=lambda: False)
    assert b"".join(transfer.get(source, retry=retry, stop=stop)) == content
    assert len(pauses) == 4
    assert all(pause >= least for pause, least in zip(pauses, [0.25, 0.5, 1.0, 1.5], strict=True))
    assert max(pauses) <= 1.5


def test_fetching_twice_asks_nobody_the_second_time(http, root):
    """Neither the server nor the disk beyond names and sizes."""
    content = pack(toy_files(), "zip")
    http.script.serve("/once.zip", content)
    book = manifest(item("zip", [http.source("once.zip")], md5(content)))
    run(book, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != ".fetching"}
    assert run(book, root)[0].state == "here"
    assert http.script.requests["/once.zip"] == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("keep", [True, False])
def test_a_lost_file_is_put_back(http, root, keep):
    """From the archive where it was kept, else by fetching it again."""
    content = pack(toy_files(), "zip")
    http.script.serve("/again.zip", content)
    book = manifest(item("zip", [http.source("again.zip")], md5(content)))
    run(book, root, keep=keep)
    lost = root / "toys" / next(iter(toy_files()))
    lost.unlink()
    assert run(book, root, keep=keep)[0].state == "unpacked"
    assert unpacked(root) == toy_files()
    assert http.script.requests["/again.zip"] == (1 if keep else 2)


def test_a_stream_keeps_the_named_scenes_alone_and_never_the_archive(http, root):
    """Cut on the way, it goes on at the byte; another scene later is added to the first."""
    content = pack(toy_files(scenes=(1, 2, 3)), "tar.gz")
    http.script.serve("/season.tar.gz", content, ["cut", "cut"])
    entry = item("tar.gz", [http.source("season.tar.gz")], md5(content))
    for scene, kept in (("2", {"2"}), ("3", {"2", "3"})):
        book = manifest(entry, choices=[{"item": "toys", "scenes": {scene: 3}, "stream": True}])
        assert run(book, root)[0].state == "unpacked"
        assert {path.split("/")[1] for path in unpacked(root)} == {f"s1_{one}" for one in kept}
        assert list((root / "downloads").glob("*")) == [] if (root / "downloads").exists() else True
    assert fetched.Store(root).record(book.item("toys")).scenes == ["2", "3"]


def test_a_stream_of_wrong_bytes_leaves_nothing(http, root):
    """Not even the scenes that came before the wrong byte: the checksum speaks at the end."""
    files = toy_files()
    content, other = pack(files, "tar.gz"), pack(toy_files(seed=9), "tar.gz")
    http.script.serve("/other.tar.gz", other)
    book = manifest(
        item("tar.gz", [http.source("other.tar.gz")], md5(content)), choices=[{"item": "toys", "stream": True}]
    )
    outcome = run(book, root)[0]
    assert outcome.state == "failed"
    assert md5(content)["md5"] in outcome.said
    assert not (root / "toys").exists()
    assert not list(root.glob(".unpacking*"))


def test_a_file_put_there_by_hand_is_verified_and_unpacked(root):
    """Log-in data: first it is said what to get, then what was got is checked."""
    content = pack(toy_files(), "zip")
    hand = {"kind": "by_hand", "page": "https://example.org/p", "do": "Take {file}."}
    book = manifest(item("zip", [hand], md5(content)))
    assert run(book, root)[0].state == "by hand"
    path = root / "downloads/toys.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert run(book, root)[0].state == "unpacked"
    assert "by hand" in fetched.Store(root).record(book.item("toys")).source


def test_a_wrong_file_put_there_by_hand_loses_its_name(root):
    """It is set aside, not deleted: it is the user's."""
    hand = {"kind": "by_hand", "page": "https://example.org/p", "do": "Take {file}."}
    book = manifest(item("zip", [hand], md5(pack(toy_files(), "zip"))))
    path = root / "downloads/toys.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not the file")
    outcome = run(book, root)[0]
    assert "it is now toys.zip.wrong" in outcome.said
    assert not path.exists()
    assert path.with_name("toys.zip.wrong").read_bytes() == b"not the file"


def test_the_disk_is_looked_at_before_anything_is_asked_for(http, root, monkeypatch):
    """From the manifest where it tells, else from what the server says, before a byte is written."""
    content = pack(toy_files(), "zip")
    http.script.serve("/big.zip", content)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(30_000))
    known = manifest(item("zip", [http.source("big.zip")], size=len(content)))
    with pytest.raises(FetchError, match=f"30,000 bytes free, expected at least {len(content):,} bytes"):
        run(known, root)
    assert http.script.requests["/big.zip"] == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    unknown = manifest(item("zip", [http.source("big.zip")]))
    outcome = run(unknown, root)[0]
    assert outcome.state == "failed"
    assert "1,000 bytes free" in outcome.said
    assert not (root / "downloads/toys.zip.part").stat().st_size


def test_a_full_disk_is_an_error_and_not_a_cut_connection(http, root, monkeypatch):
    """No source is left, and nothing fetched again, because of our own disk."""
    content = pack(toy_files(), "zip")
    http.script.serve("/full.zip", content)
    monkeypatch.setattr(download.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    outcome = run(manifest(item("zip", [http.source("full.zip")], md5(content))), root)[0]
    assert outcome.state == "failed"
    assert "No space left on device" in outcome.said
    assert http.script.requests["/full.zip"] == 1


def test_two_runs_do_not_fetch_into_one_folder(root):
    with _runtime.lock(root / ".fetching"), pytest.raises(FetchError, match="another run"):
        run(manifest(item()), root)


def test_what_fails_keeps_nothing_else_from_coming(http, root):
    """One item fails, the others are here."""
    content = pack(toy_files(), "zip")
    http.script.serve("/good.zip", content)
    bad = item("zip", [http.source("nowhere.zip")], name="bad")
    good = item("zip", [http.source("good.zip")], name="good")
    assert [outcome.state for outcome in run(manifest(bad, good), root)] == ["failed", "unpacked"]


def test_no_host_is_asked_by_more_connections_than_it_allows(root, monkeypatch):
    """Whatever the number of items."""
    at_once, most = [], []

    def one(self, choice, item, source):
        at_once.append(item)
        most.append(len(at_once))
        time.sleep(0.02)  # let others in
        at_once.pop()
        raise transfer.Refused("never")

    monkeypatch.setattr(download.Fetcher, "_download", one)
    source = {"kind": "https", "url": "https://example.org/x.zip", "connections": 2}
    run(manifest(*(item("zip", [source], name=f"n{n}") for n in range(12))), root)
    assert len(most) == 12
    assert max(most) == 2


def test_no_redirect_leads_from_a_safe_place_to_an_unsafe_one():
    handler = transfer._Redirects()
    request = transfer.urllib.request.Request("https://example.org/a")
    with pytest.raises(transfer.Refused, match="not https"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/a")


# Hostile servers ---------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
HANGING = {
    "nothing at all": (b"", b""),
    "dripped headers": (HEAD, b"X: y\r\n"),
    "a header without an end": (HEAD + b"X: ", b"y"),
    "endless 100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "dripped body": (HEAD + b"Content-Length: 100000\r\n\r\n", b"P"),
    "dripped length of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "endless trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nP\r\n0\r\n", b"X: y\r\n"),
    "FTP banner of endless lines": (b"", b"220-welcome\r\n"),
    "FTP banner without an end": (b"220 welcome", b"."),
    "FTP replies of many lines": (b"220 ready\r\n331 go on\r\n230-in\r\n", b"230-in\r\n"),
}


@contextmanager
def raw_server(once, forever=b"", pause_s=0.02):
    """Answer each connection with *once*, then with *forever* again and again, whatever the request."""
    closing = threading.Event()

    def answer(connection):
        with connection, suppress(OSError):
            connection.sendall(once)
            while forever and not closing.is_set():
                connection.sendall(forever)
                time.sleep(pause_s)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)

    def listen():
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1]
        closing.set()
        server.shutdown(socket.SHUT_RDWR)


def hostile_source(port, is_ftp):
    if is_ftp:
        return {"kind": "ftp", "url": f"ftp://127.0.0.1:{port}/x.zip", "user": "m", "password": "word"}
    return {"kind": "https", "url": f"http://127.0.0.1:{port}/x.zip"}


@pytest.mark.parametrize("what", HANGING)
def test_no_server_holds_a_fetch_longer_than_the_limits(what, root):
    """A byte now and then, in whatever place of the protocol, does not count as progress."""
    retry = transfer.Retry(stall_s=0.3, tries=2, pause_s=0)
    with raw_server(*HANGING[what]) as port:
        book = manifest(item("zip", [hostile_source(port, "FTP" in what)]))
        begun = time.monotonic()
        [outcome] = run(book, root, retry=retry)
        assert time.monotonic() - begun < 10
    assert outcome.state == "failed"
    assert "x.zip: " in outcome.said


@pytest.mark.parametrize("what", ["a flood of FTP lines", "a flood of 100 Continue", "an endless redirect"])
def test_a_flood_fills_no_memory(what, root):
    """Replies and bodies that nobody needs are counted or dropped, not collected."""
    once, forever = {
        "a flood of FTP lines": (b"", b"220-" + b"x" * 60 + b"\r\n"),
        "a flood of 100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "an endless redirect": (b"HTTP/1.1 302 Found\r\nLocation: /y.zip\r\n\r\n", b"x" * 60),
    }[what]
    retry = transfer.Retry(stall_s=0.5, tries=1, pause_s=0)
    with raw_server(once, forever * 1000, pause_s=0) as port:
        book = manifest(item("zip", [hostile_source(port, "FTP" in what)]))
        tracemalloc.start()
        [outcome] = run(book, root, retry=retry)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert outcome.state == "failed"
    assert peak < 20e6


def test_an_endless_body_does_not_fill_the_disk(root, monkeypatch):
    """Without a length the disk keeps its reserve, and a file may not exceed twice its estimate."""
    monkeypatch.setattr(download, "_RESERVE", 0)
    chunk = b"10000\r\nPK" + bytes(65_534) + b"\r\n"
    with raw_server(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, pause_s=0) as port:
        book = manifest(item("zip", [hostile_source(port, False)], about=500_000))
        outcome = run(book, root)[0]
    assert "more bytes than the 1000000 of the file" in outcome.said
    assert list((root / "downloads").glob("*.zip*")) == [root / "downloads/toys.zip.part-from"]


def test_a_source_that_is_too_slow_as_a_whole_is_given_up(http):
    http.script.serve("/slow.zip", pack(toy_files(), "zip"))
    [source] = manifest(item("zip", [http.source("slow.zip")])).items[0].sources
    retry = transfer.Retry(stall_s=0.3, tries=10**6, pause_s=0, grace_s=0, rate=1e12)
    with pytest.raises(transfer.Refused, match="too slow"):
        list(transfer.get(source, retry=retry))


@pytest.mark.parametrize(
    "replies",
    [
        b"220 r\xe9ady\r\n331 \xff\r\n230 in\r\n200 I\r\n213 \xb2\r\n",
        b"220 ready\r\n331 go on\r\n230 in\r\n200 I\r\n213 ten\r\n",
        b"220 ready\r\n331 go on\r\n230 in\r\n200 I\r\n213 10\r\n227 nowhere\r\n229 nowhere\r\n",
        b"220 ready\r\n530 \x1b[2Jnot\x07 allowed\r\n",
        b"\x00\xff\r\n",
        b"hello\r\n",
    ],
)
def test_replies_that_are_no_ftp_are_one_printable_reason(replies, root):
    with raw_server(replies) as port:
        outcome = run(manifest(item("zip", [hostile_source(port, True)])), root)[0]
    assert (outcome.state, outcome.said.replace("\n", "").isprintable()) == ("failed", True)
    assert "x.zip: " in outcome.said


# Restarts and damage -----------------------------------------------------------------------------


def season_of(http, root, *, room, **script):
    """Serve a season of three scenes; the manifest takes two. *room* decides whether the archive is streamed."""
    content = pack(toy_files(scenes=(1, 2, 3)), "tar.gz")
    http.script.serve("/restart.tar.gz", content, **script)
    entry = item("tar.gz", [http.source("restart.tar.gz")], md5(content), **({"about": len(content)} if room else {}))
    return manifest(entry, choices=[{"item": "toys", "scenes": {"1": 3, "2": 3}, "stream": True}]), content


def test_an_archive_that_fits_on_the_disk_continues_after_a_restart(http, root):
    """The archive itself does not stay, and it is verified as a whole."""
    book, content = season_of(http, root, room=True, faults=["cut", "gone"])
    assert run(book, root)[0].state == "failed"
    part = (root / "downloads/toys.tar.gz.part").stat().st_size
    assert 0 < part < len(content)
    assert run(book, root)[0].state == "unpacked"
    assert http.script.asked["/restart.tar.gz"][-1] == part
    assert set(unpacked(root)) == set(toy_files())
    assert list((root / "downloads").glob("*")) == []
    assert fetched.provenance(root / "toys") == fetched.VERIFIED


@pytest.mark.parametrize("n", [3, 6])
def test_finished_scenes_of_a_stream_survive_a_restart(n, http, root, monkeypatch):
    """All wanted scenes: nothing is received again. One of two: its files are compared, and the rest is received."""
    book, _ = season_of(http, root, room=False)
    write, left = archives._write, [n]

    def killed(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(*arguments)

    monkeypatch.setattr(archives, "_write", killed)
    if n == 6:
        monkeypatch.setattr(Sums, "difference", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(book, root)
    monkeypatch.undo()
    assert not (root / "toys").exists()
    times = {path.name: path.stat().st_mtime_ns for path in (root / ".unpacking-toys").rglob("*.tif")}
    assert len(times) == n
    outcome = run(book, root)[0]
    assert outcome.state == "unpacked"
    assert http.script.requests["/restart.tar.gz"] == (1 if n == 6 else 2)
    assert fetched.provenance(root / "toys") == (fetched.ADOPTED if n == 6 else fetched.VERIFIED)
    assert set(unpacked(root)) == set(toy_files())
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in (root / "toys").rglob("*.tif")}.items()


@pytest.mark.parametrize("known", [True, False])
def test_a_flipped_bit_in_one_archive_stops_no_other_and_is_repaired(known, http, root):
    """Served, or in the archive that was kept: an error for this item, and the next run fetches it again."""
    content = make_zip(toy_files())
    at = content.find(b"ROIs1_s1_1_p1") + 1000
    bad = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    http.script.serve("/flipped.zip", bad)
    http.script.serve("/other.zip", content)
    sums = md5(content) if known else "unknown"
    first = item("zip", [http.source("flipped.zip")], sums, name="first", unpack=UNPACK | {"into": "first"})
    book = manifest(first, item("zip", [http.source("other.zip")]))
    assert [outcome.state for outcome in run(book, root)] == ["failed", "unpacked"]
    http.script.serve("/flipped.zip", content)
    assert [outcome.state for outcome in run(book, root)] == ["unpacked", "here"]
    (root / "downloads/first.zip").write_bytes(bad)
    shutil.rmtree(root / "first")
    assert [outcome.state for outcome in run(book, root)] == ["unpacked", "here"]
    assert fetched.provenance(root / "first") == fetched.VERIFIED


class FetchJob(faults.Job):
    """Fetch one archive; the final names are those of the archive and of its files."""

    def results(self, folder):
        """Path -> content."""
        whole = [path for path in folder.glob("data/downloads/toys.*") if "part" not in path.name]
        return unpacked(folder / "data") | {path.name: path.read_bytes() for path in whole}


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_every_nth_write_fsync_or_rename_may_fail(form, http, tmp_path):
    """Whichever it is, no wrong file has a final name, and the next run finishes."""
    content = pack(toy_files(patches=2, size=6000), form)
    http.script.serve(f"/n.{form}", content)
    book = manifest(item(form, [http.source(f"n.{form}")], md5(content)))

    def fetch(folder):
        [outcome] = run(book, folder / "data")
        if not outcome.is_good:
            raise FetchError(folder, found=outcome.said, expected="all of it", do="")

    failures = faults.check(FetchJob(fetch), tmp_path)
    assert min(failures["fsync"], failures["rename"], failures["file limit"]) > 0


# What is here ------------------------------------------------------------------------------------


@pytest.fixture
def fetched_toys(http, root):
    """A root with unpacked toys, its manifest and its store."""
    content = pack(toy_files(), "zip")
    http.script.serve("/here.zip", content)
    book = manifest(item("zip", [http.source("here.zip")], md5(content)))
    run(book, root)
    return book.item("toys"), fetched.Store(root)


def damaged(store, toys):
    return [f"{path}: {why}" for path, why in store.faults(toys)]


def test_what_was_fetched_is_whole(fetched_toys):
    toys, store = fetched_toys
    assert damaged(store, toys) == []
    assert store.state(toys) == "unpacked, 6 files, verified"


def test_a_flipped_bit_a_lost_and_a_cut_file_are_found_by_name(fetched_toys):
    """The first by reading, the others at a glance."""
    toys, store = fetched_toys
    flipped, lost, cut = [store.into(toys) / name for name in list(toy_files())[:3]]
    flipped.write_bytes(bytes([flipped.read_bytes()[0] ^ 1]) + flipped.read_bytes()[1:])
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    found = damaged(store, toys)
    assert [line.split(": ")[1] for line in found] == ["damaged", "missing", "5999 bytes instead of 6000"]
    assert str(flipped) in found[0]
    assert store.state(toys) == "unpacked, 6 files, verified, 2 of them missing or cut"


def test_a_changed_archive_is_found(fetched_toys):
    toys, store = fetched_toys
    store.file(toys).write_bytes(b"PK other")
    assert "other content" in damaged(store, toys)[0]


@pytest.mark.parametrize("text", ["{not json", "[]", "{}", '{"mark": "verified", "how": "", "source": "", "at": ""}'])
def test_a_damaged_or_empty_record_means_verifying_again(text, fetched_toys, root):
    """A record without members vouches for nothing, and the next run makes it anew from the archive."""
    toys, store = fetched_toys
    (store.root / "fetched" / "toys.json").write_text(text)
    assert not store.is_done(Choice(item="toys"), toys)
    assert fetched.provenance(store.into(toys)) == fetched.UNVERIFIED
    assert damaged(store, toys) == [f"{store.file(toys)}: no record of what was unpacked"]
    assert run(manifest(toys.model_dump(mode="json")), root)[0].state == "unpacked"
    assert damaged(store, toys) == []


def test_a_folder_is_verified_only_if_all_of_its_files_are(fetched_toys, root):
    """A file that was added or changed, or a folder of the same name elsewhere, has no record."""
    toys, store = fetched_toys
    folder = store.into(toys)
    first = folder / next(iter(toy_files()))
    assert fetched.provenance(folder) == fetched.VERIFIED
    content, times = first.read_bytes(), first.stat()
    assert fetched.recorded_hashes(folder)[next(iter(toy_files()))] == (
        len(content),
        times.st_mtime_ns,
        hashlib.sha256(content).hexdigest(),
    )
    first.write_bytes(content[::-1])
    assert fetched.provenance(folder) == fetched.UNVERIFIED
    first.write_bytes(content)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fetched.provenance(folder) == fetched.VERIFIED
    (folder / "more.tif").write_bytes(b"more")
    assert fetched.provenance(folder) == fetched.UNVERIFIED
    assert fetched.provenance(shutil.copytree(folder, root / "other" / "toys")) == fetched.UNVERIFIED
    assert fetched.provenance(root / "none") == fetched.UNVERIFIED
