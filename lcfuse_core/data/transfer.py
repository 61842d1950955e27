"""
One connection to one source: the bytes of a file from a given place on, or a reason why not.

Over HTTPS by a `Range` request, over FTP by `REST`. What is done about a failure (again, from where, the next source)
is decided in `fetch`; here it is only told apart: worth another try, or not.
"""

from __future__ import annotations

import ftplib
import hashlib
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from lcfuse_core import __version__
from lcfuse_core.data.manifest import Ftp, Item, Remote

BLOCK = 1 << 18
"""Bytes asked for at a time."""

LEAST = 1024
"""A source that sends fewer bytes in the time of a stall is as good as dead."""

BUSY = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which a server may do better."""


class TransferError(Exception):
    """The bytes do not come; `str` says why."""


class Interrupted(TransferError):
    """Worth another try at the same source. wait_s : what the server asked for, if it did."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Refused(TransferError):
    """Not from this source: the next may have it."""


class Changed(TransferError):
    """What comes does not fit what came before: worth another try from byte 0."""


@dataclass
class Body:
    """start : where the bytes begin; total : of the whole file, None if not told; tag : of this version of it."""

    start: int
    total: int | None
    tag: str = ""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    close: Callable[[], object] = lambda: None


@contextmanager
def connect(source: Remote, at: int, *, stall_s: float) -> Iterator[Body]:
    """
    Ask *source* for its file from byte *at* on; it may begin earlier where the server cannot do better.

    Raises Interrupted, Refused or Changed, here or while the chunks are read; never hangs for longer than *stall_s*
    without a byte.
    """
    body = _ask_ftp(source, at, stall_s) if isinstance(source, Ftp) else _ask_http(source.url, at, stall_s)
    try:
        body.chunks = _steady(body.chunks, stall_s)
        yield body
    finally:
        body.close()


def _steady(chunks: Iterator[bytes], stall_s: float) -> Iterator[bytes]:
    """The same chunks, until they come by the drop."""
    began, got = time.monotonic(), 0
    for chunk in chunks:
        got += len(chunk)
        yield chunk
        now = time.monotonic()
        if now - began > stall_s:
            if got < LEAST:
                raise Interrupted(f"only {got} bytes in {now - began:.0f} s")
            began, got = now, 0


# HTTP --------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow only to places as safe as the one asked."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(req.full_url).scheme != urlsplit(newurl).scheme:
            raise Refused(f"sent on to {newurl}, which is not {urlsplit(req.full_url).scheme}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _ask_http(url: str, at: int, stall_s: float) -> Body:
    headers = {"User-Agent": f"lcfuse-core/{__version__}", "Accept-Encoding": "identity"}
    if at:
        headers["Range"] = f"bytes={at}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=stall_s)
    except HTTPError as error:
        with error:
            return _http_refusal(error, at)
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(f"its certificate is not trusted ({error.reason})") from None
        raise Interrupted(f"no connection ({error.reason})") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a length that is no number
        raise Interrupted(f"no answer ({error or type(error).__name__})") from None
    try:
        return _http_body(response, at)
    except TransferError:
        response.close()
        raise


def _http_body(response: HTTPResponse, at: int) -> Body:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise Refused(f"a web page instead of the file ({kind})")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(f"a packed answer ({response.headers['Content-Encoding']}) that was not asked for")
    start, total = 0, response.length
    if response.status == 206:
        start, total = _content_range(response.headers.get("Content-Range", ""))
        if start > at:
            raise Changed(f"bytes from {start} on instead of {at}")
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return Body(start, total, tag, _http_chunks(response), response.close)


def _content_range(text: str) -> tuple[int, int | None]:
    """
    First byte and total of a `Content-Range`.

    >>> _content_range("bytes 10-19/100"), _content_range("bytes 10-19/*")
    ((10, 100), (10, None))
    """
    try:
        span, total = text.removeprefix("bytes").strip().split("/")
        return int(span.split("-")[0]), None if total == "*" else int(total)
    except ValueError:
        raise Changed(f"a part without its place (Content-Range {text!r})") from None


def _http_refusal(error: HTTPError, at: int) -> Body:
    said = f"HTTP {error.code} {error.reason}"
    if error.code == 416:  # nothing lies behind byte `at`
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(at):
            return Body(at, at)
        raise Changed(f"{said}: the file ends before byte {at}")
    if error.code in BUSY:
        wait = error.headers.get("Retry-After", "")
        raise Interrupted(said, float(wait) if wait.isdecimal() else 0.0)
    raise Refused(said)


def _http_chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(BLOCK):
            yield chunk
    except (OSError, HTTPException, ValueError) as error:
        raise Interrupted(f"connection lost ({error or type(error).__name__})") from None


# FTP ---------------------------------------------------------------------------------------------


def _ask_ftp(source: Ftp, at: int, stall_s: float) -> Body:
    ftp = ftplib.FTP(timeout=stall_s)
    try:
        return _ftp_body(ftp, source, at)
    except ftplib.error_perm as error:
        why: TransferError = Refused(f"FTP {error}")
    except (ftplib.Error, EOFError, OSError) as error:
        why = Interrupted(f"FTP connection lost ({error or type(error).__name__})")
    except TransferError as error:
        why = error
    ftp.close()
    raise why


def _ftp_body(ftp: ftplib.FTP, source: Ftp, at: int) -> Body:
    place = urlsplit(source.url)
    path = unquote(place.path)
    ftp.connect(place.hostname or "", place.port or ftplib.FTP_PORT)
    ftp.login(source.user, source.password)
    ftp.voidcmd("TYPE I")
    total = _ftp_size(ftp, path)
    if total is not None and at > total:
        raise Changed(f"the file ends at {total}, before byte {at}")
    if at and at == total:
        return Body(at, total, close=ftp.close)
    start, data = _ftp_retrieve(ftp, path, at)
    both = ExitStack()
    both.callback(ftp.close)
    both.callback(data.close)
    return Body(start, total, "", _ftp_chunks(ftp, data, total is None), both.close)


def _ftp_size(ftp: ftplib.FTP, path: str) -> int | None:
    try:
        return ftp.size(path)
    except ftplib.error_perm:
        return None  # not every server knows SIZE; whether the file is there, RETR will tell


def _ftp_retrieve(ftp: ftplib.FTP, path: str, at: int) -> tuple[int, Any]:
    try:
        return at, ftp.transfercmd(f"RETR {path}", at or None)
    except ftplib.error_perm as error:
        if not at or not str(error).startswith("50"):
            raise
        return 0, ftp.transfercmd(f"RETR {path}")  # 501, 502: this server knows no REST


def _ftp_chunks(ftp: ftplib.FTP, data: Any, ask: bool) -> Iterator[bytes]:
    try:
        while chunk := data.recv(BLOCK):
            yield chunk
        data.close()
        if ask:
            ftp.voidresp()  # where no size was told, only the server's last word says that this was all
    except (ftplib.Error, EOFError, OSError) as error:
        raise Interrupted(f"FTP connection lost ({error or type(error).__name__})") from None


HEADS = {"zip": (b"PK",), "tar.gz": (b"\x1f\x8b",)}
"""How the bytes of an archive begin."""


@dataclass(frozen=True)
class Patience:
    """
    How long to bear with a source.

    stall_s : without a byte, the connection counts as lost
    tries : so many losses in a row without progress, and the source is left
    pause_s : before the second try; it doubles up to longest_s
    """

    stall_s: float = 30.0
    tries: int = 6
    pause_s: float = 1.0
    longest_s: float = 60.0
    sleep: Callable[[float], object] = time.sleep

    def wait(self, fails: int, asked_s: float = 0.0) -> None:
        """Pause after that many losses in a row, or as long as the server asked, within reason."""
        self.sleep(min(max(self.pause_s * 2 ** max(fails - 1, 0), asked_s), self.longest_s))


def flow(
    source: Remote, at: int, size: int | None, patience: Patience, on_open: Callable[[Body], object]
) -> Iterator[bytes]:
    """
    The bytes of a file from *at* on, over as many connections as it takes.

    size : of the whole file, if known; on_open : is shown each connection, and may raise

    Raises Refused when the source will not or cannot, Changed when its file is not the one that was begun.
    """
    best, fails, total, tag = at, 0, size, ""
    while True:
        try:
            with connect(source, at, stall_s=patience.stall_s) as body:
                total, tag = _same_file(body, total, tag, size)
                on_open(body)
                for chunk in _skip(body.chunks, at - body.start):
                    at += len(chunk)
                    if total is not None and at > total:
                        raise Refused(f"more bytes than the {total} of the file")
                    yield chunk
            if total is None or at == total:
                return
            raise Interrupted(f"ended at byte {at} of {total}")
        except Interrupted as error:
            fails = 0 if at >= best + LEAST else fails + 1
            best = max(best, at)
            if fails >= patience.tries:
                raise Refused(f"{error}; {fails} times in a row") from None
            patience.wait(fails, error.wait_s)


def _same_file(body: Body, total: int | None, tag: str, size: int | None) -> tuple[int | None, str]:
    if size is not None and body.total not in (None, size):
        raise Refused(f"{body.total} bytes instead of {size}")
    if total is not None and body.total not in (None, total):
        raise Changed(f"{body.total} bytes instead of {total}")
    if tag and body.tag and body.tag != tag:
        raise Changed("another version of the file than a moment ago")
    return (total if body.total is None else body.total), tag or body.tag


def _skip(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Without the first bytes: where a server begins earlier than it was asked to."""
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:]
        count = max(0, count - len(chunk))


class Reader:
    """A flow as a file that is read from front to back; hashes what goes by."""

    def __init__(self, chunks: Iterator[bytes], see: Callable[[bytes], object]) -> None:
        self.chunks, self.see, self.left, self.size = chunks, see, b"", 0
        self.sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}

    def read(self, size: int) -> bytes:
        """At most *size* bytes, none at the end."""
        if not self.left:
            self.left = next(self.chunks, b"")
            self.size += len(self.left)
            self.see(self.left)
            for total in self.sums.values():
                total.update(self.left)
        taken, self.left = self.left[:size], self.left[size:]
        return taken

    def checksums(self) -> dict[str, str]:
        """Of all bytes, once the rest has been read."""
        while self.read(1 << 18):
            pass
        return {name: total.hexdigest() for name, total in self.sums.items()}


def check_head(item: Item, chunk: bytes) -> None:
    """Raise Refused when the first bytes cannot be those of the item: better now than after an hour."""
    begins = chunk.lstrip()[:14].lower()
    if begins.startswith((b"<!doctype html", b"<html")):
        raise Refused("a web page instead of the file")
    if item.form in HEADS and len(chunk) > 1 and not chunk.startswith(HEADS[item.form]):
        raise Refused(f"bytes that begin with {chunk[:8]!r}, which is no {item.form}")
