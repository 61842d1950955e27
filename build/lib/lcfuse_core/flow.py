"""
The bytes of one file from one source, over as many connections as it takes.

A connection that is cut, stalls or is put off is made anew at the byte where it ended; where the source cannot begin
there, what comes a second time is dropped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lcfuse_core.manifest import Item, Remote
from lcfuse_core.transfer import LEAST, Body, Changed, Interrupted, Refused, connect

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
