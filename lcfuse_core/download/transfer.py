"""Resumable transfer of one file over HTTP, HTTPS or FTP, with bounds on time and size: `get`."""

from __future__ import annotations

import ftplib
import http.client
import math
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from lcfuse_core import __version__
from lcfuse_core.download.manifest import Ftp, Remote
from lcfuse_core.errors import FetchError

_BLOCK = 1 << 18
_LEAST = 1024
"""A connection that brings fewer bytes than this within the time of a stall is given up."""

_MOST_LINES = 500
"""Lines of all replies of an FTP server in one connection."""

_LONGEST_SIZE = 4096
"""Bytes of the line that states the size of a chunk."""

_BUSY = {202, 408, 425, 429, 500, 502, 503, 504}
"""Of these, 202 means that the file is being prepared."""

_ERRORS = (OSError, HTTPException, ValueError, EOFError, ftplib.Error)


class _Interrupted(Exception):
    """Another attempt at the same source may succeed, after *wait_s* seconds if the server named a time."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Refused(Exception):
    """The source does not have the file; another one may."""


class Changed(Exception):
    """The bytes are not those of the file that was begun; an attempt from byte 0 may succeed."""


@dataclass(frozen=True)
class Retry:
    """When to give up a source."""

    stall_s: float = 30.0  # seconds to open a connection, and seconds almost without bytes
    tries: int = 6  # connections in a row that bring nothing
    pause_s: float = 1.0  # before the next connection; doubles each time
    longest_s: float = 60.0  # the longest pause
    grace_s: float = 1800.0  # the whole transfer may take this, and one second more per `rate` bytes
    rate: float = 20_000.0


class _Body(NamedTuple):
    start: int  # the first byte
    total: int | None  # bytes of the whole file, if stated
    tag: str = ""  # of this version of the file
    chunks: Iterator[bytes] = iter(())


OnOpen = Callable[[int | None, str], object]
"""Receives the total size (or None) and the version tag of a connection."""


def get(
    source: Remote,
    start: int = 0,
    size: int | None = None,
    *,
    most: int | None = None,
    retry: Retry | None = None,
    stop: threading.Event | None = None,
    on_open: OnOpen = lambda total, tag: None,
) -> Iterator[bytes]:
    """
    Yield the bytes of a file from *start* on, over as many connections as necessary.

    HTTP is continued by `Range` requests, FTP by `REST`. *size* is that of the whole file, if it is known; *most* the
    limit where nobody states a size. *stop* ends the transfer at once. *on_open* receives the total size (or None) and
    the version tag of each connection, and may raise.

    Raises Refused if the source does not send the file within the limits, Changed if the bytes are not those of the
    file that was begun, FetchError after *stop*.
    """
    retry, stop = retry or Retry(), stop or threading.Event()
    best, fails, at, total, tag = start, 0, start, size, ""
    began = time.monotonic()
    while not stop.is_set():
        try:
            with _connection(source, at, retry, stop) as body:
                if size is not None and body.total not in (None, size):
                    raise Refused(f"{body.total} bytes instead of {size}")
                if body.total is not None and at > body.total:
                    raise Changed(f"the file ends at {body.total}, before byte {at}")
                if (total is not None and body.total not in (None, total)) or (tag and body.tag not in ("", tag)):
                    raise Changed("another version of the file than a moment ago")
                total, tag = (total if body.total is None else body.total), tag or body.tag
                on_open(body.total, body.tag)
                skip, limit = at - body.start, most if total is None else total  # skip: it began before byte `at`
                for chunk in body.chunks:
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    at += len(fresh)
                    if limit is not None and at > limit:
                        raise Changed(f"more bytes than the {limit} of the file")
                    if time.monotonic() - began > retry.grace_s + (at - start) / retry.rate:
                        raise Refused(f"{at - start} bytes in {time.monotonic() - began:.0f} s, which is too slow")
                    if stop.is_set():
                        break
                    if fresh:
                        yield fresh
            # An answer that was cut within its headers states no size, and has no body.
            if (at == total or (total is None and at)) and not stop.is_set():
                return
            raise _Interrupted(f"ended at byte {at}" + (f" of {total}" if total is not None else ""))
        except _Interrupted as error:
            fails = 0 if at >= best + _LEAST else fails + 1
            best = max(best, at)
            if fails >= retry.tries or time.monotonic() - began > retry.grace_s + (at - start) / retry.rate:
                raise Refused(f"{error}; {fails} times in a row") from None
            stop.wait(min(max(retry.pause_s * 2 ** max(fails - 1, 0), error.wait_s), retry.longest_s))
    raise FetchError(source.url, found="a stop", expected="the rest of the file", do="Run it again to go on.")


class _Watch(ExitStack):
    """
    Shuts the sockets of a connection down on a stop, or when too few bytes of the file arrive for too long.

    At its end it closes what belongs to the connection.

    A timeout of the socket alone does not bound the time: every byte of a header, a reply or a trailer restarts it.
    """

    def __init__(self, stall_s: float, stop: threading.Event) -> None:
        super().__init__()
        self.stall_s, self.stop = stall_s, stop
        self.deadline = time.monotonic() + stall_s
        self.done, self.is_late = threading.Event(), False
        self.sockets: list[socket.socket] = []
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self.thread.start()
        self.callback(self._close)  # last: the thread shuts sockets, and the number of a closed one may be another's
        self.callback(self.thread.join)
        self.callback(self.done.set)
        return self

    def add(self, made: socket.socket) -> socket.socket:
        """Watch a socket. A duplicate is kept, because TLS moves the original into another object."""
        self.sockets.append(made.dup())
        return made

    def _close(self) -> None:
        for each in self.sockets:
            each.close()

    def _run(self) -> None:
        while not self.done.wait(min(0.2, self.stall_s / 4)):
            if self.stop.is_set() or time.monotonic() > self.deadline:
                self.is_late = True
                for each in self.sockets:
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def steady(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the same chunks; _Interrupted if hardly any bytes arrive. The time of the receiver does not count."""
        left, got = self.stall_s, 0
        while True:
            self.deadline = time.monotonic() + left
            try:
                chunk = next(chunks, b"")
            except _ERRORS as error:
                raise _Interrupted(self.describe("connection lost", error)) from None
            left, self.deadline, got = self.deadline - time.monotonic(), math.inf, got + len(chunk)
            if self.is_late:  # a socket that was shut down looks like the end of the file
                raise _Interrupted(self.describe("connection lost", EOFError()))
            if not chunk:
                return
            if got >= _LEAST:
                left, got = self.stall_s, 0
            yield chunk

    def describe(self, what: str, error: BaseException) -> str:
        """Return what happened in one printable line."""
        if self.is_late:
            return f"{what} (fewer than {_LEAST} bytes in {self.stall_s:g} s)"
        return f"{what} ({_printable(error)})"


def _printable(value: object) -> str:
    text = " ".join(str(value).split())[:200]
    name = type(value).__name__
    if isinstance(value, HTTPException) and not text.startswith(name):  # the text alone is what the server sent
        text = f"{name}: {text}".removesuffix(": ")
    text = text or name * isinstance(value, BaseException)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@contextmanager
def _connection(source: Remote, at: int, retry: Retry, stop: threading.Event) -> Iterator[_Body]:
    with _Watch(retry.stall_s, stop) as watch:
        try:
            body = _ftp(watch, source, at) if isinstance(source, Ftp) else _http(watch, source.url, at)
        except ftplib.error_perm as error:
            raise Refused(f"FTP {_printable(error)}") from None
        except _ERRORS as error:
            raise _Interrupted(watch.describe(f"no connection{_by_proxy(source.url)}", error)) from None
        yield body._replace(chunks=watch.steady(body.chunks))


def _by_proxy(url: str) -> str:
    """Return, in words, that requests for an address go through a proxy; empty if they do not."""
    place, proxies = urlsplit(url), urllib.request.getproxies()
    has_proxy = place.scheme in proxies and not urllib.request.proxy_bypass(place.hostname or "")
    return f" through the proxy in {place.scheme}_proxy" if has_proxy and place.scheme != "ftp" else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects of the same scheme only: not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        fp.close()  # else its body would be read to the end
        if urlsplit(req.full_url).scheme != urlsplit(newurl).scheme:
            raise Refused(f"sent on to {_printable(newurl)}, which is not {urlsplit(req.full_url).scheme}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Response(http.client.HTTPResponse):
    """A response whose chunks have plain sizes. The library takes `0x5` and `-0`, and a size that was cut, for one."""

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(_LONGEST_SIZE)
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}[ \t]*(;[^\n]*)?\n", line.replace(b"\r\n", b"\n")):
            raise HTTPException(f"a chunk of size {line[:20]!r}")
        return int(line.partition(b";")[0], 16)


class _Watched(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Open the sockets of HTTP and HTTPS through a watch."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        def connection(*args: Any, **more: Any) -> Any:
            made = http_class(*args, **more)
            made.response_class = _Response
            made._create_connection = lambda *where, **how: self.watch.add(socket.create_connection(*where, **how))
            return made

        return super().do_open(connection, req, **options)


def _http(watch: _Watch, url: str, at: int) -> _Body:
    headers = {"User-Agent": f"lcfuse-core/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={at}-"} if at else {}))
    try:
        response = urllib.request.build_opener(_Redirects, _Watched(watch)).open(request, timeout=watch.stall_s)
    except HTTPError as error:
        watch.callback(error.close)  # not `with error`: that of an endless redirect is closed
        return _http_refusal(error, at)
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(f"its certificate is not trusted ({_printable(error.reason)})") from None
        raise
    watch.callback(response.close)
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise Refused(f"a web page instead of the file ({kind})")
    if response.status not in (200, 203, 206):
        return _http_refusal(response, at)
    for name, plain in (("Content-Encoding", ("", "identity")), ("Transfer-Encoding", ("", "identity", "chunked"))):
        coding = ", ".join(response.headers.get_all(name, []))
        if coding.strip().lower() not in plain:
            raise Refused(f"a compressed answer ({name} {_printable(coding)}), not requested")
    start, total = 0, response.length
    if response.status == 206:
        text = response.headers.get("Content-Range", "")
        try:
            span, size = text.removeprefix("bytes").strip().split("/")
            start, total = int(span.split("-")[0]), None if size == "*" else int(size)
        except ValueError:
            raise Changed(f"a part without its place (Content-Range {_printable(text)!r})") from None
        if start > at:
            raise Changed(f"bytes from {start} on instead of {at}")
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return _Body(start, total, tag, iter(lambda: response.read1(_BLOCK), b""))


def _http_refusal(error: Any, at: int) -> _Body:
    text = _printable(f"HTTP {error.code} {error.reason}")
    if error.code == 416:  # there is nothing behind byte `at`
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(at):
            return _Body(at, at)
        raise Changed(f"{text}: the file ends before byte {at}")
    if error.code in _BUSY:
        raise _Interrupted(text, _wait_s(error.headers.get("Retry-After", "")))
    raise Refused(text)


def _wait_s(text: str) -> float:
    """Return the seconds that a Retry-After header names, as their number or as a date; 0 if neither."""
    with suppress(ValueError, OverflowError):
        return float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    return 0.0


class _FtpClient(ftplib.FTP):
    """An FTP client that bounds the replies of the server; Latin-1 decodes any of them."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__(timeout=watch.stall_s, encoding="latin-1")
        self.watch, self.n_lines = watch, 0

    def getline(self) -> str:
        if not self.n_lines and self.sock is not None:
            self.watch.add(self.sock)
        self.n_lines += 1
        if self.n_lines > _MOST_LINES:
            raise Refused(f"more than {_MOST_LINES} lines of FTP replies")
        return super().getline()


def _ftp(watch: _Watch, source: Ftp, at: int) -> _Body:
    ftp, place = _FtpClient(watch), urlsplit(source.url)
    watch.callback(ftp.close)
    ftp.connect(place.hostname or "", place.port or ftplib.FTP_PORT)
    ftp.login(source.user, source.password)
    ftp.voidcmd("TYPE I")
    path, start = unquote(place.path), at
    try:
        total = ftp.size(path)
    except ftplib.error_perm:
        total = None  # not every server supports SIZE; RETR fails if there is no such file
    if at and total is not None and at >= total:
        return _Body(at, total)
    try:
        data = ftp.transfercmd(f"RETR {path}", at or None)
    except ftplib.error_perm as error:
        if not at or not str(error).startswith("50"):
            raise
        start, data = 0, ftp.transfercmd(f"RETR {path}")  # 501, 502: this server does not support REST
    watch.callback(watch.add(data).close)

    def chunks() -> Iterator[bytes]:
        yield from iter(lambda: data.recv(_BLOCK), b"")
        data.close()
        if total is None:
            ftp.voidresp()  # without a size only this reply shows that the file is complete

    return _Body(start, total, "", chunks())
