"""Downloading: whatever a server sends, a file under a final name is the published file."""

import hashlib
import io
import itertools
import math
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
from tqdm import tqdm
from worlds import UNPACK, item, make_zip, manifest, md5, pack, toy_files

from lcfuse_core import _runtime
from lcfuse_core.download import archives, fetch, records, transfer
from lcfuse_core.download import manifest as manifest_file
from lcfuse_core.download.manifest import Choice
from lcfuse_core.download.records import Sums
from lcfuse_core.errors import FetchError

QUICK = transfer.Retry(stall_s=0.25, tries=4, pause_s=0)
N_SCHEDULES = 200
NUMBERS = itertools.count()
BY_HAND = {"kind": "by_hand", "page": "https://example.org/page", "log_in": True, "do": "Log in and take {file}."}


@pytest.fixture(scope="module")
def http():
    with HTTPServer() as server:
        yield server


@pytest.fixture(scope="module")
def ftp():
    with FTPServer() as server:
        yield server


@pytest.fixture(autouse=True)
def published():
    """The toys are taken for published data: a patch of its own, because tests undo theirs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(records, "_is_published", lambda *_: True)
        yield patched


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "downloads").mkdir(parents=True)
    return tmp_path / "data"


def serve(server, content, *faults, then=None):
    """Serve a file under a new name; return its source, and its path for the script of the server."""
    name = f"{next(NUMBERS)}.bin"
    server.script.serve(f"/{name}", content, faults, then=then)
    return server.source(name), f"/{name}"


def run(book, root, **more):
    """Fetch `colab` and return the outcomes."""
    fetcher = fetch.Fetcher(book, records.Store(root), **{"retry": QUICK, "progress": False, **more})
    return fetcher.fetch(book.subset("colab").items)


def unpacked(root):
    """Path -> content of all that was unpacked."""
    top = root / "toys"
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def streamed(form, sources, sums, stream, **more):
    """A manifest of one archive that may be unpacked while it is received."""
    return manifest(item(form, sources, sums, **more), choices=[{"item": "toys", "stream": stream}])


ZIP, TAR = pack(toy_files(), "zip"), pack(toy_files(), "tar.gz")


# Schedules ---------------------------------------------------------------------------------------


def schedule(seed, http, ftp, root):
    """Serve one archive with random faults, fetch it twice, and return what went wrong."""
    rng = random.Random(seed)
    form, files = rng.choice(["zip", "tar.gz"]), toy_files(seed)
    content = pack(files, form)
    sources, scripts = [], []
    for _ in range(rng.choice([1, 2, 3])):
        server, kinds = (http, FAULTS) if rng.random() < 0.6 else (ftp, FTP_FAULTS)
        faults = rng.choices(kinds, k=rng.randrange(6))
        source, path = serve(server, content, *faults, then=rng.choice([None, None, *kinds]))
        sources.append(source)
        scripts.append((server.script, path))
    sums = md5(content) if rng.random() < 0.6 else "unknown"
    size = len(content) if rng.random() < 0.3 else "unknown"
    book = streamed(form, sources, sums, form == "tar.gz" and rng.random() < 0.5, size=size)
    first, second = [run(book, root)[0] for _ in range(2)]
    final, asked = root / "downloads" / f"toys.{form}", sum(script.requests[path] for script, path in scripts)
    wrong = {
        "unpacked something else": first.is_good and unpacked(root) != files,
        f"did something again: {second}": first.is_good and second.state != "here",
        "left its staging folder": first.is_good and list(root.glob(".unpacking*")),
        f"unclear: {first}": not first.is_good and (first.state != "failed" or "127.0.0.1" not in first.message),
        "left something under a final name": not second.is_good and ((root / "toys").exists() or final.exists()),
        "a wrong file under its name": final.exists() and sums != "unknown" and final.read_bytes() != content,
        f"{asked} requests": asked > 150,
    }
    return [what for what, is_so in wrong.items() if is_so]


def test_no_schedule_of_failures_ends_in_a_wrong_file(http, ftp, root):
    """Cuts, stalls, short, wrong, flipped and HTML bodies, ignored ranges, 404, 450, 503: right, or a clear error."""
    with ThreadPoolExecutor(16) as pool:  # most of the time they wait
        found = list(pool.map(lambda n: schedule(n, http, ftp, root / str(n)), range(N_SCHEDULES)))
    assert {n: errors for n, errors in enumerate(found) if errors} == {}
    good = sum((root / str(n) / "toys").is_dir() for n in range(N_SCHEDULES))
    assert N_SCHEDULES / 2 < good < N_SCHEDULES, "it proves little if all of them fail, or none"


# Continuing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "ftp"])
def test_cut_download_continues_at_the_byte(kind, request, root):
    """Each later request begins where the last one ended, and no byte is received twice."""
    server = request.getfixturevalue(kind)
    source, path = serve(server, ZIP, "cut", "stall", "cut")
    assert run(manifest(item("zip", [source], md5(ZIP))), root)[0].state == "unpacked"
    asked = server.script.asked[path]
    assert asked == sorted(asked)
    assert len(set(asked)) >= 3
    assert unpacked(root) == toy_files()


@pytest.mark.parametrize("stream", [True, False])
def test_server_that_cannot_begin_in_the_middle_costs_time_alone(stream, http, root):
    source, path = serve(http, TAR, "cut", "ignore_range")
    assert run(streamed("tar.gz", [source], md5(TAR), stream), root)[0].state == "unpacked"
    assert http.script.requests[path] == 2
    assert unpacked(root) == toy_files()


@pytest.mark.parametrize(
    ("part", "asked"),
    [
        (ZIP[:20_000], [20_000]),
        (ZIP, [len(ZIP)]),  # the program was ended before the renaming: the server states that nothing follows
        (b"PK" + bytes(9998), [10_000, 0]),  # wrong bytes of another source: the same source is used again
    ],
    ids=["a part", "all", "wrong bytes"],
)
def test_part_of_an_earlier_run_is_continued_or_begun_again(part, asked, http, root, monkeypatch):
    """The progress bar begins where the part ends."""
    bars = []

    def bar(**options):
        bars.append(tqdm(**options | {"disable": False, "file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setattr(fetch, "tqdm", bar)
    source, path = serve(http, ZIP)
    (root / "downloads/toys.zip.part").write_bytes(part)
    assert run(manifest(item("zip", [source], md5(ZIP))), root, progress=True)[0].state == "unpacked"
    assert http.script.asked[path] == asked
    assert (bars[-1].initial, bars[-1].n, bars[-1].total) == (asked[-1], len(ZIP), len(ZIP))


def test_part_of_another_version_is_begun_again(http, root):
    """The file at the source was replaced in between, and there is no checksum."""
    source, path = serve(http, pack(toy_files(1), "zip"), "cut", then="gone")
    book = manifest(item("zip", [source]))
    assert run(book, root)[0].state == "failed"
    http.script.serve(path, pack(toy_files(2), "zip"))
    assert run(book, root)[0].state == "unpacked"
    assert http.script.asked[path][0] > 0
    assert http.script.asked[path][-1] == 0
    assert unpacked(root) == toy_files(2)


def test_without_a_checksum_no_part_of_another_source_is_continued(http, root):
    (one, _), (other, path) = serve(http, ZIP, "cut", then="gone"), serve(http, ZIP)
    assert run(manifest(item("zip", [one, other])), root)[0].state == "unpacked"
    assert http.script.asked[path] == [0]


@pytest.mark.parametrize("stream", [True, False])
def test_stop_leaves_what_can_be_continued(http, root, stream):
    """As Ctrl-C does: the threads end at the next byte, and nothing has a final name."""
    book = streamed("tar.gz", [serve(http, TAR)[0]], md5(TAR), stream)
    stopped = fetch.Fetcher(book, records.Store(root), retry=QUICK, progress=False)
    stopped.stop.set()
    outcome = stopped.fetch(book.subset("colab").items)[0]
    assert (outcome.state, "found a stop" in outcome.message) == ("failed", True)
    assert not (root / "toys").exists()
    assert run(book, root)[0].state == "unpacked"


# Sources -----------------------------------------------------------------------------------------


def test_next_source_is_used_when_the_first_fails(http, ftp, root):
    """404, then wrong bytes: the third source gives the file, and the record names it."""
    sources = [serve(http, TAR, then="gone")[0], serve(http, TAR, then="wrong")[0], serve(ftp, TAR)[0]]
    book = manifest(item("tar.gz", sources, md5(TAR)))
    assert run(book, root)[0].state == "unpacked"
    record = records.Store(root).record(book.item("toys"))
    assert (record.source, record.mark, record.how) == (sources[-1]["url"], "verified", "md5 of the manifest")
    assert record.checksums["md5"] == md5(TAR)["md5"]


def test_when_all_sources_fail_each_is_named_with_its_reason(http, root):
    """With the way by hand, and the place where the file belongs."""
    (one, x), (other, y) = serve(http, ZIP, then="gone"), serve(http, ZIP, then="html")
    outcome = run(manifest(item("zip", [one, other, BY_HAND], md5(ZIP))), root)[0]
    assert outcome.state == "failed"
    for part in (f"{x}: HTTP 404", f"{y}: a web page instead", "Log in and take toys.zip.", "(log-in)",
                 f"Put the file at {root / 'downloads' / 'toys.zip'}"):  # fmt: skip
        assert part in outcome.message
    assert not (root / "downloads/toys.zip").exists()


def test_busy_server_is_asked_again_after_a_growing_pause(http):
    """The pauses double; what the server asks for counts, up to a limit."""
    pauses = []
    [source] = manifest(item("zip", [serve(http, ZIP, *["busy"] * 4)[0]])).items[0].sources
    retry = transfer.Retry(stall_s=0.3, tries=6, pause_s=0.25, longest_s=1.5)
    stop = SimpleNamespace(wait=pauses.append, is_set=lambda: False)
    assert b"".join(transfer.get(source, retry=retry, stop=stop)) == ZIP
    assert len(pauses) == 4
    assert all(pause >= least for pause, least in zip(pauses, [0.25, 0.5, 1.0, 1.5], strict=True))
    assert max(pauses) <= 1.5


@pytest.mark.parametrize("keep", [True, False])
def test_second_run_requests_nothing_and_a_lost_file_is_restored(http, root, keep):
    """From the archive if it was kept, else by fetching it again."""
    source, path = serve(http, ZIP)
    book = manifest(item("zip", [source], md5(ZIP)))
    run(book, root, keep=keep)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != ".fetching"}
    assert run(book, root, keep=keep)[0].state == "here"
    assert http.script.requests[path] == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (root / "toys" / next(iter(toy_files()))).unlink()
    assert run(book, root, keep=keep)[0].state == "unpacked"
    assert unpacked(root) == toy_files()
    assert http.script.requests[path] == (1 if keep else 2)


def test_stream_keeps_only_the_named_scenes_and_never_the_archive(http, root):
    """After a cut it continues at the byte; another scene later is added to the first."""
    content = pack(toy_files(scenes=(1, 2, 3)), "tar.gz")
    entry = item("tar.gz", [serve(http, content, "cut", "cut")[0]], md5(content))
    for scene, kept in (("2", {"2"}), ("3", {"2", "3"})):
        book = manifest(entry, choices=[{"item": "toys", "scenes": {scene: 3}, "stream": True}])
        assert run(book, root)[0].state == "unpacked"
        assert {path.split("/")[1] for path in unpacked(root)} == {f"s1_{one}" for one in kept}
        assert list((root / "downloads").glob("*")) == []
    assert records.Store(root).record(book.item("toys")).scenes == ["2", "3"]


def test_stream_of_wrong_bytes_leaves_nothing(http, root):
    """Also none of the scenes before the wrong byte: the checksum is compared at the end."""
    outcome = run(streamed("tar.gz", [serve(http, pack(toy_files(9), "tar.gz"))[0]], md5(TAR), True), root)[0]
    assert outcome.state == "failed"
    assert md5(TAR)["md5"] in outcome.message
    assert not (root / "toys").exists()
    assert not list(root.glob(".unpacking*"))


def test_file_put_there_by_hand_is_verified(root):
    """A wrong one is set aside, not deleted: it is the user's."""
    book = manifest(item("zip", [BY_HAND], md5(ZIP)))
    path = root / "downloads/toys.zip"
    assert run(book, root)[0].state == "by hand"
    path.write_bytes(b"not the file")
    assert "it is now toys.zip.wrong" in run(book, root)[0].message
    assert not path.exists()
    assert path.with_name("toys.zip.wrong").read_bytes() == b"not the file"
    path.write_bytes(ZIP)
    assert run(book, root)[0].state == "unpacked"
    assert "by hand" in records.Store(root).record(book.item("toys")).source


def test_disk_is_checked_before_the_download(http, root, monkeypatch):
    """By the size in the manifest, else by that of the server, before a byte is written."""
    source, path = serve(http, ZIP)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(30_000))
    with pytest.raises(FetchError, match=f"30,000 bytes free, expected at least {len(ZIP):,} bytes"):
        run(manifest(item("zip", [source], size=len(ZIP))), root)
    assert http.script.requests[path] == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    outcome = run(manifest(item("zip", [source])), root)[0]
    assert (outcome.state, "1,000 bytes free" in outcome.message) == ("failed", True)
    assert not (root / "downloads/toys.zip.part").stat().st_size


def test_full_disk_is_an_error_and_not_a_cut_connection(http, root, monkeypatch):
    """No source is given up, and nothing fetched again, because of the local disk."""
    source, path = serve(http, ZIP)
    monkeypatch.setattr(fetch.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    outcome = run(manifest(item("zip", [source], md5(ZIP))), root)[0]
    assert outcome.state == "failed"
    assert "No space left on device" in outcome.message
    assert http.script.requests[path] == 1


def test_two_runs_do_not_fetch_into_one_folder(root):
    with _runtime.lock(root / ".fetching"), pytest.raises(FetchError, match="another run"):
        run(manifest(item()), root)


def test_host_gets_no_more_connections_than_it_allows(root, monkeypatch):
    at_once, most = [], []

    def one(self, choice, item, source):
        at_once.append(item)
        most.append(len(at_once))
        time.sleep(0.02)  # let others in
        at_once.pop()
        raise transfer.Refused("never")

    monkeypatch.setattr(fetch.Fetcher, "_download", one)
    source = {"kind": "https", "url": "https://example.org/x.zip", "connections": 2}
    run(manifest(*(item("zip", [source], name=f"n{n}") for n in range(12))), root)
    assert len(most) == 12
    assert max(most) == 2


def test_no_redirect_leads_from_https_to_http():
    request = transfer.urllib.request.Request("https://example.org/a")
    with pytest.raises(transfer.Refused, match="not https"):
        transfer._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/a")


# Hostile servers ---------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
IN = b"220 ready\r\n331 go on\r\n230 in\r\n200 I\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "nothing at all": (b"", b""),
    "dripped headers": (HEAD, b"X: y\r\n"),
    "a header without an end": (HEAD + b"X: ", b"y"),
    "endless 100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "dripped body": (HEAD + b"Content-Length: 100000\r\n\r\n", b"P"),
    "dripped length of a chunk": (CHUNKED, b"0"),
    "endless trailers": (CHUNKED + b"1\r\nP\r\n0\r\n", b"X: y\r\n"),
    "FTP banner of endless lines": (b"", b"220-welcome\r\n"),
    "FTP banner without an end": (b"220 welcome", b"."),
    "FTP replies of many lines": (b"220 ready\r\n331 go on\r\n230-in\r\n", b"230-in\r\n"),
    "a flood of FTP lines": (b"", (b"220-" + b"x" * 60 + b"\r\n") * 1000),
    "a flood of 100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "an endless redirect": (b"HTTP/1.1 302 Found\r\nLocation: /y.zip\r\n\r\n", b"x" * 60_000),
}
"""What is sent once, and then again and again."""

ANSWERS = {
    "a chunk of 0x5 bytes": (CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", "a chunk of size b'0x5"),
    "a chunk of -0 bytes": (CHUNKED + b"5\r\nhello\r\n-0\r\n\r\n", "a chunk of size b'-0"),
    "a size of a chunk that is cut after 0": (CHUNKED + b"5\r\nhello\r\n0", "a chunk of size b'0'"),
    "two encodings of the transfer": (
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding gzip, chunked"),
    "two headers of an encoding": (
        HEAD + b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n\r\nhello", "Content-Encoding identity, gzip"),
    "202, not yet ready": (b"HTTP/1.1 202 Accepted\r\nContent-Length: 7\r\n\r\npending", "HTTP 202 Accepted; 2 times"),
    "226, a difference": (b"HTTP/1.1 226 IM Used\r\nContent-Length: 5\r\n\r\ndelta", "HTTP 226 IM Used"),
    "an endless redirect to itself": (b"HTTP/1.1 302 Found\r\nLocation: /x.zip\r\n\r\n", "infinite loop"),
    "headers that are cut": (HEAD + b"Content-Le", "ended at byte 0; 2 times"),
    "a part without its place": (b"HTTP/1.1 206 OK\r\n\r\nhello", "a part without its place (Content-Range '')"),
    "no status": (b"\r\n\r\n", "(BadStatusLine)"),
    "an empty file": (HEAD + b"Content-Length: 0\r\n\r\n", "0 bytes instead of a file"),
    "FTP, strange letters": (b"220 r\xe9ady\r\n331 \xff\r\n230 in\r\n200 I\r\n213 \xb2\r\n", ""),
    "FTP, a size in words": (IN + b"213 ten\r\n", ""),
    "FTP, no address": (IN + b"213 10\r\n227 nowhere\r\n229 nowhere\r\n", ""),
    "FTP, control characters": (b"220 ready\r\n530 \x1b[2Jnot\x07 allowed\r\n", ""),
    "FTP, zeros": (b"\x00\xff\r\n", ""),
    "FTP, no number": (b"hello\r\n", ""),
}  # fmt: skip
"""What is sent once, and the reason that must be given."""

LIE = HEAD + b"Content-Length: 1%s\r\n\r\nPK" % (b"0" * 18)


def local(port, ftp=False):
    """A server on this machine, as the manifest writes it."""
    if ftp:
        return {"kind": "ftp", "url": f"ftp://127.0.0.1:{port}/x.zip", "user": "m", "password": "word"}
    return {"kind": "https", "url": f"http://127.0.0.1:{port}/x.zip"}


@contextmanager
def raw_server(once, forever=b"", pause_s=0.02, ftp=False):
    """Answer each connection with *once*, then with *forever* again and again; yields this server as a source."""
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
        yield local(server.getsockname()[1], ftp)
        closing.set()
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("what", [*ENDLESS, *ANSWERS])
def test_answer_that_is_not_the_file_is_refused_even_where_nothing_is_published(what, root):
    """
    Without size and checksum only the protocol shows that the bytes are not the whole file.

    A byte now and then is no progress, a flood is counted and not collected, and the reason is one printable line.
    """
    once, forever = ENDLESS.get(what) or (ANSWERS[what][0], b"")
    reason = "" if what in ENDLESS else ANSWERS[what][1]
    retry = transfer.Retry(stall_s=0.3 if what in ENDLESS else 5, tries=2, pause_s=0)
    with raw_server(once, forever, pause_s=0 if len(forever) > 1000 else 0.02, ftp="FTP" in what) as source:
        tracemalloc.start()
        begun = time.monotonic()
        [outcome] = run(manifest(item("bin", [source], unpack=None)), root, retry=retry)
        assert time.monotonic() - begun < 10
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
    assert (outcome.state, outcome.message.replace("\n", "").isprintable()) == ("failed", True)
    assert outcome.message.startswith(f"{source['url']}: ")
    assert reason in outcome.message
    assert not (root / "downloads/toys.bin").exists()


@pytest.mark.parametrize("more", [{}, {"about": 500_000}], ids=["unknown size", "published about"])
def test_source_that_states_an_absurd_size_does_not_keep_the_next_from_being_used(more, http, root):
    with raw_server(LIE) as lying:
        [outcome] = run(manifest(item("zip", [lying, serve(http, ZIP)[0]], **more)), root)
        assert outcome.state == "unpacked"
        [outcome] = run(manifest(item("zip", [lying], name="other", **more)), root)
    assert ("about 500,000 are expected" if more else "expected at least 1000000000.00 GB") in outcome.message


def test_stream_of_another_version_that_is_cut_does_not_spoil_the_next_source(root, http):
    """What it left is compared with the archive of the next source, and then thrown away."""
    content, other = (pack(toy_files(seed, patches=60), "tar.gz") for seed in (0, 7))
    with raw_server(HEAD + b"Content-Length: %d\r\n\r\n" % len(other) + other[:-70_000]) as cut:
        [outcome] = run(streamed("tar.gz", [cut, serve(http, content)[0]], "unknown", True), root)
    assert (outcome.state, unpacked(root)) == ("unpacked", toy_files(patches=60))


@pytest.mark.parametrize(("kind", "known"), [("http", True), ("http", False), ("ftp", True)])
def test_part_that_is_longer_than_the_file_is_begun_again(kind, known, request, root):
    """Also if the server answers a request for a part with the whole file; over FTP its size is known before."""
    server = request.getfixturevalue(kind)
    source, path = serve(server, ZIP, *["ignore_range"] * (kind == "http"))
    (root / "downloads/toys.zip.part").write_bytes(ZIP + b"more")
    (root / "downloads/toys.zip.part-from").write_text(f'{{"url": "{source["url"]}"}}')
    assert run(manifest(item("zip", [source], md5(ZIP) if known else "unknown")), root)[0].state == "unpacked"
    assert server.script.asked[path] == ([len(ZIP) + 4, 0] if kind == "http" else [0])


@pytest.mark.parametrize("text", ["[]", "null", '{"url": 5}', "[" * 10_000, "\udcff"])
def test_note_of_a_part_that_is_damaged_is_not_used(text, http, root):
    (root / "downloads/toys.zip.part").write_bytes(ZIP[:500])
    (root / "downloads/toys.zip.part-from").write_text(text, errors="surrogateescape")
    assert run(manifest(item("zip", [serve(http, ZIP)[0]])), root)[0].state == "unpacked"


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("7", 7, 7), ("-5", 0, 0), ("inf", 0, 0), ("9" * 400, 10**9, math.inf), ("\xb2", 0, 0), ("", 0, 0),
     ("Fri, 01 Jan 2100 00:00:00 GMT", 10**9, 10**11), ("Wed, 21 Oct 2015 07:28:00 GMT", -1e10, 0), ("soon", 0, 0)],
)  # fmt: skip
def test_time_after_which_to_ask_again_is_a_number_or_a_date(text, least, most):
    assert least <= transfer._wait_s(text) <= most


def test_proxy_is_named_when_no_connection_comes_about(monkeypatch, root):
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    outcome = run(manifest(item("zip", [local(80)])), root)[0]
    assert "no connection through the proxy in http_proxy (" in outcome.message
    assert "secret" not in outcome.message


def test_endless_body_does_not_fill_the_disk(root, monkeypatch):
    """Without a length the disk keeps its reserve, and a file may not exceed twice its estimate."""
    monkeypatch.setattr(fetch, "_RESERVE", 0)
    chunk = b"10000\r\nPK" + bytes(65_534) + b"\r\n"
    with raw_server(CHUNKED, chunk, pause_s=0) as source:
        outcome = run(manifest(item("zip", [source], about=500_000)), root)[0]
    assert "more bytes than the 1000000 of the file" in outcome.message
    assert list((root / "downloads").glob("*.zip*")) == [root / "downloads/toys.zip.part-from"]


def test_source_that_is_too_slow_as_a_whole_is_given_up(http):
    [source] = manifest(item("zip", [serve(http, ZIP)[0]])).items[0].sources
    retry = transfer.Retry(stall_s=0.3, tries=10**6, pause_s=0, grace_s=0, rate=1e12)
    with pytest.raises(transfer.Refused, match="too slow"):
        list(transfer.get(source, retry=retry))


# Restarts and damage -----------------------------------------------------------------------------


def season_of(http, *faults, room):
    """Serve a season of three scenes; the manifest takes two. *room* decides whether the archive is streamed."""
    content = pack(toy_files(scenes=(1, 2, 3)), "tar.gz")
    source, path = serve(http, content, *faults)
    entry = item("tar.gz", [source], md5(content), **({"about": len(content)} if room else {}))
    return manifest(entry, choices=[{"item": "toys", "scenes": {"1": 3, "2": 3}, "stream": True}]), content, path


def test_archive_that_fits_on_the_disk_continues_after_a_restart(http, root, monkeypatch):
    """Also if the disk is just large enough; the archive itself does not stay, and it is verified as a whole."""
    book, content, path = season_of(http, "cut", "gone", room=True)
    size = 2 * len(content) + manifest_file.disk_size(book, book.subset("colab").items).total

    def disk_usage(_):
        return SimpleNamespace(free=size - sum(part.stat().st_size for part in (root / "downloads").glob("*.part")))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert run(book, root)[0].state == "failed"
    part = (root / "downloads/toys.tar.gz.part").stat().st_size
    assert 0 < part < len(content)
    needed = manifest_file.disk_size(book, book.subset("colab").items)
    assert needed.exact + needed.about > 0
    with monkeypatch.context() as patch:  # too little for the unpacked files: the part does not count for them
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed.exact + needed.about - 1))
        with pytest.raises(FetchError, match="free, expected at least"):
            run(book, root)
    assert run(book, root)[0].state == "unpacked"
    assert http.script.asked[path][-1] == part
    assert set(unpacked(root)) == set(toy_files())
    assert list((root / "downloads").glob("*")) == []
    assert records.provenance(root / "toys") == records.VERIFIED


@pytest.mark.parametrize("n", [3, 6])
def test_finished_scenes_of_a_stream_survive_a_restart(n, http, root, monkeypatch):
    """All wanted scenes: nothing is received again. One of two: its files are compared, and the rest is received."""
    book, _, path = season_of(http, room=False)
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
    assert run(book, root)[0].state == "unpacked"
    assert http.script.requests[path] == (1 if n == 6 else 2)
    assert records.provenance(root / "toys") == (records.ADOPTED if n == 6 else records.VERIFIED)
    assert set(unpacked(root)) == set(toy_files())
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in (root / "toys").rglob("*.tif")}.items()


@pytest.mark.parametrize("known", [True, False])
def test_flipped_bit_in_one_archive_stops_no_other_and_is_repaired(known, http, root):
    """Served, or in the archive that was kept: an error for this item, and the next run fetches it again."""
    content = make_zip(toy_files())
    at = content.find(b"ROIs1_s1_1_p1") + 1000
    bad = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    source, path = serve(http, bad)
    first = item("zip", [source], md5(content) if known else "unknown", name="first", unpack=UNPACK | {"into": "first"})
    book = manifest(first, item("zip", [serve(http, content)[0]]))
    assert [outcome.state for outcome in run(book, root)] == ["failed", "unpacked"]
    http.script.serve(path, content)
    assert [outcome.state for outcome in run(book, root)] == ["unpacked", "here"]
    (root / "downloads/first.zip").write_bytes(bad)
    shutil.rmtree(root / "first")
    assert [outcome.state for outcome in run(book, root)] == ["unpacked", "here"]
    assert records.provenance(root / "first") == records.VERIFIED


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
    book = manifest(item(form, [serve(http, content)[0]], md5(content)))

    def fetch_into(folder):
        [outcome] = run(book, folder / "data")
        if not outcome.is_good:
            raise FetchError(folder, found=outcome.message, expected="all of it", do="")

    failures = faults.check(FetchJob(fetch_into), tmp_path)
    assert min(failures["fsync"], failures["rename"], failures["file limit"]) > 0


# Records -----------------------------------------------------------------------------------------


@pytest.fixture
def fetched_toys(http, root):
    """An unpacked item and its store."""
    book = manifest(item("zip", [serve(http, ZIP)[0]], md5(ZIP)))
    run(book, root)
    return book.item("toys"), records.Store(root)


def test_damage_of_fetched_files_is_found_by_name(fetched_toys):
    """A lost and a cut file are counted by their sizes, another archive is found by its checksum."""
    toys, store = fetched_toys
    assert store.faults(toys) == []
    lost, cut = [store.into(toys) / name for name in list(toy_files())[:2]]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    assert store.state(toys) == "unpacked, 6 files, verified, 2 of them missing or cut"
    store.file(toys).write_bytes(b"PK other")
    expected = [(store.file(toys), "other content than when it was verified")]
    assert store.faults(toys) == [*expected, (lost, "missing"), (cut, "5999 bytes instead of 6000")]


HEADER = '"mark": "verified", "how": "", "source": "", "at": ""'
RECORDS = ("{not json", "[]", "{}", "[" * 10_000, f"{{{HEADER}}}", f'{{{HEADER}, "members": [[1, 2, 3, 4]]}}',
           f'{{{HEADER}, "scenes": 5, "members": [["a.tif", 1, "x", 0]]}}')  # fmt: skip


@pytest.mark.parametrize("text", RECORDS)
def test_damaged_or_empty_record_means_verifying_again(text, fetched_toys, root):
    """A record without members verifies nothing, and the next run makes it anew from the archive."""
    toys, store = fetched_toys
    (store.root / "fetched" / "toys.json").write_text(text)
    assert not store.is_done(Choice(item="toys"), toys)
    assert records.provenance(store.into(toys)) == records.UNVERIFIED
    assert store.faults(toys) == [(store.file(toys), "no record of what was unpacked")]
    assert run(manifest(toys.model_dump(mode="json")), root)[0].state == "unpacked"
    assert store.faults(toys) == []


def test_only_files_of_the_own_manifest_are_verified(fetched_toys, published):
    """What `data fetch --manifest` verified by another manifest is not: other checksums, fewer files, another id."""
    toys, store = fetched_toys
    assert records.provenance(store.into(toys)) == records.VERIFIED
    published.undo()
    assert records.provenance(store.into(toys)) == records.UNVERIFIED
    (fall,) = (one.checksums for one in manifest_file.read().items if one.id == "sen12ms-fall-s1")
    for name, sums, n, expected in (
        ("sen12ms-fall-s1", fall, 7, True),
        ("sen12ms-fall-s1", {"md5": "0" * 32}, 7, False),
        ("sen12ms-fall-s1", {}, 7, True),  # a stream that was ended before its checksum; its mark is another
        ("dfc2020-test-s1", {"md5": "0" * 32}, 5128, True),
        ("dfc2020-test-s1", {}, 4, False),
        ("toys", {}, 6, False),
    ):
        members = [archives.Member(f"{number}.tif", 1, "", 1) for number in range(n)]
        one = records.Record(records.VERIFIED, "", "", "", checksums=sums, members=members)
        assert records._is_published(name, one) is expected, (name, sums, n)


def test_folder_is_verified_only_if_all_of_its_files_are(fetched_toys, root):
    """A file that was added or changed, or a folder of the same name elsewhere, has no record."""
    toys, store = fetched_toys
    folder, name = store.into(toys), next(iter(toy_files()))
    first = folder / name
    assert records.provenance(folder) == records.VERIFIED
    content, times = first.read_bytes(), first.stat()
    recorded = (len(content), times.st_mtime_ns, hashlib.sha256(content).hexdigest())
    assert records.recorded_hashes(folder)[name] == recorded
    first.write_bytes(content[::-1])
    assert records.provenance(folder) == records.UNVERIFIED
    first.write_bytes(content)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert records.provenance(folder) == records.VERIFIED
    (folder / "more.tif").write_bytes(b"more")
    assert records.provenance(folder) == records.UNVERIFIED
    assert records.provenance(shutil.copytree(folder, root / "other" / "toys")) == records.UNVERIFIED
    assert records.provenance(root / "none") == records.UNVERIFIED
