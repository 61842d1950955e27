"""
Check that the sources of the manifest answer with files of the size and checksum that it names:

    python scripts/canary.py [--at-most BYTES]

The size of every file is compared, and of a file of at most BYTES (5 MB) the checksum, where the manifest has them.
Nothing is kept. Ends with 1, and a line for each source that has changed or does not answer.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator

from lcfuse_core.download import manifest
from lcfuse_core.download.manifest import Ftp, Https, Item, Manifest
from lcfuse_core.download.transfer import Changed, Refused, Retry, get

AT_MOST = 5_000_000


def sources(book: Manifest) -> Iterator[tuple[Item, Ftp | Https]]:
    """Yield item and source of every file that a program can fetch."""
    for item in book.items:
        for source in book.sources(item) if item.file else []:
            if isinstance(source, (Ftp, Https)):
                yield item, source


def ask(source: Ftp | Https, at_most: int) -> tuple[int | None, bytes | None]:
    """Return the size of a file as its server states it, and its content if it is small. Raises Refused or Changed."""
    sizes: list[int | None] = []
    chunks = get(source, retry=Retry(tries=2), on_open=lambda total, tag: sizes.append(total))
    content = next(chunks, b"")
    if sizes[0] is None or sizes[0] > at_most:
        return sizes[0], None  # the connection is closed, and the rest is not received
    return sizes[0], content + b"".join(chunks)


def complaint(item: Item, source: Ftp | Https, at_most: int = AT_MOST) -> str | None:
    """Return what is wrong with one source, in a line; None if nothing is."""
    try:
        size, content = ask(source, at_most)
    except (Refused, Changed) as error:
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
    """Return 0 if all sources are as the manifest states, 1 if one is not."""
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
