"""
Do the sources of the manifest still answer, and with files of the size and checksum that it names?

    python scripts/canary.py [--at-most BYTES]

Every address is asked for the size of its file. A file of at most BYTES (5 MB) is also fetched, and its checksum
compared where the manifest has one; for larger ones a size that differs from the manifest's is the sign. Nothing is
kept. Ends with 1, and a line for each source that has changed or does not answer.
"""

from __future__ import annotations

import argparse
import ftplib
import hashlib
import sys
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from lcfuse_core.data import manifest
from lcfuse_core.data.manifest import Ftp, Https, Item, Manifest

TIMEOUT_S = 60
AT_MOST = 5_000_000


def sources(book: Manifest) -> Iterator[tuple[Item, Ftp | Https]]:
    """Item and source of every file that a program can fetch."""
    for item in book.items:
        for source in book.sources(item) if item.file else []:
            if isinstance(source, (Ftp, Https)):
                yield item, source


def ask(source: Ftp | Https, at_most: int) -> tuple[int | None, bytes | None]:
    """Size of a file as its server tells it, and its content if it is small. Raises OSError when it is not there."""
    if isinstance(source, Ftp):
        return _ask_ftp(source, at_most)
    with urllib.request.urlopen(source.url, timeout=TIMEOUT_S) as answer:
        told = answer.headers.get("Content-Length")
        size = int(told) if told else None
        small = size is not None and size <= at_most
        return size, answer.read() if small else None  # what is not read is not sent: the connection is closed


def _ask_ftp(source: Ftp, at_most: int) -> tuple[int | None, bytes | None]:
    place, content = urlsplit(source.url), bytearray()
    with ftplib.FTP(timeout=TIMEOUT_S) as server:
        server.connect(place.hostname or "", place.port or 21)
        server.login(source.user, source.password)
        server.voidcmd("TYPE I")
        size = server.size(place.path)
        if size is not None and size <= at_most:
            server.retrbinary(f"RETR {place.path}", content.extend)
    return size, bytes(content) if content else None


def complaint(item: Item, source: Ftp | Https, at_most: int = AT_MOST) -> str | None:
    """What is wrong with one source, in a line; None when nothing is."""
    try:
        size, content = ask(source, at_most)
    except ftplib.all_errors as error:
        return f"{item.id}: {source.url} does not answer: {error}"
    if isinstance(item.size, int) and size is not None and size != item.size:
        return f"{item.id}: {source.url} has {size} bytes, the manifest says {item.size}"
    if content is not None and isinstance(item.checksums, dict):
        for algorithm, expected in item.checksums.items():
            found = hashlib.new(algorithm, content).hexdigest()
            if found != expected:
                return f"{item.id}: {source.url} has {algorithm} {found}, the manifest says {expected}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """0 when all sources are as the manifest says, 1 when one is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-most", type=int, default=AT_MOST, metavar="BYTES")
    at_most = parser.parse_args(arguments).at_most
    asked = list(sources(manifest.read()))
    wrong = [said for one in asked if (said := complaint(*one, at_most))]
    print(f"{len(asked)} sources asked, {len(wrong)} changed or silent")
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
