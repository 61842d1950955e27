"""Resumable transfer of one file over HTTP or FTP, with the standard library: `get`."""

from __future__ import annotations

import ftplib
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from lcfuse_core import __version__
from lcfuse_core.data.manifest import Ftp, Remote

_BLOCK = 1 << 18
_LEAST = 1024
"""A source that sends fewer bytes than this within the time of a stall counts as stalled."""

_BUSY = {408, 425, 429, 500, 502, 503, 504}
_OPENING_ERRORS = (OSError, HTTPException, ValueError, EOFError, ftplib.Error)


class _Interrupted(Exception):
    """Another attempt at the same source may succeed, after *wait_s* seconds if the server named a time."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Refused(Exception):
    """The source does not have the file; another one may."""


class Changed(Exception):
    """The bytes do not continue those received before; an attempt from byte 0 may succeed."""


@dataclass(frozen=True)
class Retry:
    """Seconds without a byte after which a connection counts as lost, attempts in a row, and pauses between them."""

    stall_s: float = 30.0
    tries: int = 6
    pause_s: float = 1.0
    longest_s: float = 60.0


PATIENT = Retry()

OnOpen = Callable[[int | None, str], object]
"""Receives the total size (or None) and the version tag of a connection."""


class _Body(NamedTuple):
    start: int  # the first byte
    total: int | None  # bytes of the whole file, if stated
    tag: str = ""  # of this version of the file
    chunks: Iterator[bytes] = iter(())


def get(
    source: Remote,
    start: int = 0,
    size: int | None = None,
    *,
    retry: Retry = PATIENT,
    sleep: Callable[[float], object] = time.sleep,
    on_open: OnOpen = lambda total, tag: None,
) -> Iterator[bytes]:
    """
    Yield the bytes of a file from *start* on, over as many connections as necessary.

    Parameters
    ----------
    source : Ftp or Https
        Address; HTTP by `Range` requests, FTP by `REST`.
    start : int
        First byte.
    size : int, optional
        Bytes of the whole file, if known.
    retry, sleep
        When to give up, and how to pause.
    on_open : callable
        Receives the total size (or None) and the version tag of each connection; may raise.

    Raises
    ------
    Refused
        If the source does not or cannot send the file.
    """
    best, fails, at, total, tag = start, 0, start, size, ""
    while True:
        try:
            with _connection(source, at, retry.stall_s) as body:
                if size is not None and body.total not in (None, size):
                    raise Refused(f"{body.total} bytes instead of {size}")
                if (total is not None and body.total not in (None, total)) or (tag and body.tag not in ("", tag)):
                    raise Changed("another version of the file than a moment ago")
                total, tag = (total if body.total is None else body.total), tag or body.tag
                on_open(body.total, body.tag)
                skip = at - body.start  # a server that cannot begin in the middle
                for chunk in _steady(body.chunks, retry.stall_s):
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    at += len(fresh)
                    if total is not None and at > total:
                        raise Refused(f"more bytes than the {total} of the file")
                    if fresh:
                        yield fresh
            if total is None or at == total:
                return
            raise _Interrupted(f"ended at byte {at} of {total}")
        except _Interrupted as error:
            fails = 0 if at >= best + _LEAST else fails + 1
            best = max(best, at)
            if fails >= retry.tries:
                raise Refused(f"{error}; {fails} times in a row") from None
            sleep(min(max(retry.pause_s * 2 ** max(fails - 1, 0), error.wait_s), retry.longest_s))


def _steady(chunks: Iterator[bytes], stall_s: float) -> Iterator[bytes]:
    """The same chunks, unless hardly any bytes arrive."""
    began, got = time.monotonic(), 0
    for chunk in chunks:
        got += len(chunk)
        yield chunk
        now = time.monotonic()
        if now - began > stall_s:
            if got < _LEAST:
                raise _Interrupted(f"only {got} bytes in {now - began:.0f} s")
            began, got = now, 0


@contextmanager
def _connection(source: Remote, at: int, stall_s: float) -> Iterator[_Body]:
    with ExitStack() as stack:
        try:
            body = (
                _ftp(stack, source, at, stall_s) if isinstance(source, Ftp) else _http(stack, source.url, at, stall_s)
            )
        except ftplib.error_perm as error:
            raise Refused(f"FTP {error}") from None
        except _OPENING_ERRORS as error:
            raise _Interrupted(f"no connection ({error or type(error).__name__})") from None
        yield body._replace(chunks=_whole_or_interrupted(body.chunks))


def _whole_or_interrupted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    except _OPENING_ERRORS as error:
        raise _Interrupted(f"connection lost ({error or type(error).__name__})") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects of the same scheme only: not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(req.full_url).scheme != urlsplit(newurl).scheme:
            raise Refused(f"sent on to {newurl}, which is not {urlsplit(req.full_url).scheme}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _http(stack: ExitStack, url: str, at: int, stall_s: float) -> _Body:
    headers = {"User-Agent": f"lcfuse-core/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={at}-"} if at else {}))
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=stall_s)
    except HTTPError as error:
        with error:
            return _http_refusal(error, at)
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(f"its certificate is not trusted ({error.reason})") from None
        raise _Interrupted(f"no connection ({error.reason})") from None
    stack.callback(response.close)
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise Refused(f"a web page instead of the file ({kind})")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(f"a compressed answer ({response.headers['Content-Encoding']}) that was not requested")
    start, total = 0, response.length
    if response.status == 206:
        text = response.headers.get("Content-Range", "")
        try:
            span, size = text.removeprefix("bytes").strip().split("/")
            start, total = int(span.split("-")[0]), None if size == "*" else int(size)
        except ValueError:
            raise Changed(f"a part without its place (Content-Range {text!r})") from None
        if start > at:
            raise Changed(f"bytes from {start} on instead of {at}")
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return _Body(start, total, tag, iter(lambda: response.read1(_BLOCK), b""))


def _http_refusal(error: HTTPError, at: int) -> _Body:
    text = f"HTTP {error.code} {error.reason}"
    if error.code == 416:  # there is nothing behind byte `at`
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(at):
            return _Body(at, at)
        raise Changed(f"{text}: the file ends before byte {at}")
    if error.code in _BUSY:
        wait = error.headers.get("Retry-After", "")
        raise _Interrupted(text, float(wait) if wait.isdecimal() else 0.0)
    raise Refused(text)


def _ftp(stack: ExitStack, source: Ftp, at: int, stall_s: float) -> _Body:
    ftp, place = ftplib.FTP(timeout=stall_s), urlsplit(source.url)
    stack.callback(ftp.close)
    ftp.connect(place.hostname or "", place.port or ftplib.FTP_PORT)
    ftp.login(source.user, source.password)
    ftp.voidcmd("TYPE I")
    path, start = unquote(place.path), at
    try:
        total = ftp.size(path)
    except ftplib.error_perm:
        total = None  # not every server supports SIZE; RETR fails if there is no such file
    if total is not None and at > total:
        raise Changed(f"the file ends at {total}, before byte {at}")
    if at and at == total:
        return _Body(at, total)
    try:
        data = ftp.transfercmd(f"RETR {path}", at or None)
    except ftplib.error_perm as error:
        if not at or not str(error).startswith("50"):
            raise
        start, data = 0, ftp.transfercmd(f"RETR {path}")  # 501, 502: this server does not support REST
    stack.callback(data.close)

    def chunks() -> Iterator[bytes]:
        yield from iter(lambda: data.recv(_BLOCK), b"")
        data.close()
        if total is None:
            ftp.voidresp()  # without a size only this reply shows that the file is complete

    return _Body(start, total, "", chunks())
