"""
Download the items of a subset, verify them, and unpack them.

A file is written to `<name>.part`, continues at the byte after a cut, also in another run, is verified, and only then
gets its name. A source that fails, stalls or sends wrong bytes is replaced by the next. An item that cannot be fetched
is reported with what a person can do by hand, and does not stop the others.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast
from urllib.parse import urlsplit

from pydantic import TypeAdapter
from tqdm import tqdm

from lcfuse_core._runtime import lock
from lcfuse_core.download import archives
from lcfuse_core.download.archives import Member, no_room
from lcfuse_core.download.manifest import ByHand, Choice, Item, Made, Manifest, Remote, disk_size, in_words, packed_size
from lcfuse_core.download.records import ADOPTED, VERIFIED, Record, Store, Sums
from lcfuse_core.download.transfer import Changed, OnOpen, Refused, Retry, get
from lcfuse_core.errors import DataError, FetchError, LcfuseError

_RESERVE = 10**9
"""Bytes of the disk that a file of unknown size leaves free, and by which it may exceed twice its estimate."""

_NOTE = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class _Outcome:
    """What became of an item: "here" (nothing to do), "fetched", "unpacked", "made", "by hand" or "failed", and why."""

    item: str
    state: str
    message: str

    @property
    def is_good(self) -> bool:
        """Whether the item is here, or need not be fetched."""
        return self.state in ("here", "fetched", "unpacked", "made")


class Fetcher:
    """
    Fetch items of a manifest into a store.

    Parameters
    ----------
    manifest, store : Manifest, Store
        The items, and where they go.
    retry : Retry
        When to give up a source.
    keep, progress : bool
        Whether archives stay after they are unpacked, and whether progress bars are shown.
    """

    def __init__(
        self, manifest: Manifest, store: Store, *, retry: Retry | None = None, keep: bool = True, progress: bool = True
    ) -> None:
        self.manifest, self.store, self.retry = manifest, store, retry
        self.keep, self.progress = keep, progress
        self.stop = threading.Event()
        self._streamed: set[str] = set()
        # No more connections to a host than its page allows.
        servers = [source for item in manifest.items for source in manifest.sources(item) if isinstance(source, Remote)]
        most = {urlsplit(server.url).netloc: server.connections for server in servers}
        most |= {host: min(s.connections for s in servers if urlsplit(s.url).netloc == host) for host in most}
        self._hosts = {host: threading.BoundedSemaphore(n) for host, n in most.items()}

    def fetch(self, choices: Iterable[Choice]) -> list[_Outcome]:
        """
        Fetch all of them; one that fails does not stop the others.

        Raises FetchError if the disk is too small or cannot be written, or another process fetches into the folder.
        """
        chosen, root = list(choices), self.store.root
        try:
            with lock(root / ".fetching", wait=False), ThreadPoolExecutor(4) as pool:
                self._plan(chosen)
                jobs = [pool.submit(self._one, choice) for choice in chosen]
                try:
                    wait(jobs)
                except BaseException:  # Ctrl-C: the threads end soon
                    self.stop.set()
                    pool.shutdown(cancel_futures=True)
                    raise
                return [job.result() for job in jobs]
        except BlockingIOError:
            raise no_room(root, "another run that fetches into it", "one at a time") from None
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise no_room(root, error, "a folder for the data") from None

    def _plan(self, chosen: list[Choice]) -> None:
        """Check that the disk has room, and stream only archives that do not fit: a stream cannot be continued."""
        items = {choice.item: self.manifest.item(choice.item) for choice in chosen}
        todo = [choice for choice in chosen if not self.store.is_done(choice, items[choice.item])]
        sizes = {choice.item: packed_size(self.manifest, items[choice.item]) for choice in todo}
        disk = disk_size(self.manifest, todo)
        kept = {choice.item for choice in todo if not (choice.stream and items[choice.item].unpack)}
        counted = {name: sizes[name].exact + sizes[name].about for name in kept}
        need = disk.exact + disk.about + sum(counted[name] for name in kept if items[name].unpack)
        here = {name: self.store.bytes_here(items[name]) for name in sizes}  # of an earlier run, or put there by hand
        if error := self._lack_of_room(self.store.root, need - sum(min(here[name], counted[name]) for name in kept)):
            raise error
        left = shutil.disk_usage(self.store.root).free + sum(here.values()) - need - disk.estimate
        for choice in sorted(todo, key=lambda choice: sizes[choice.item].total):
            if choice.stream and items[choice.item].form == "tar.gz":
                left -= 2 * sizes[choice.item].total  # an estimate
                if left < 0 or not sizes[choice.item].total:
                    self._streamed.add(choice.item)

    def _one(self, choice: Choice) -> _Outcome:
        item, why = self.manifest.item(choice.item), list[str]()
        for source in self.manifest.sources(item):
            if isinstance(source, Made):
                return _Outcome(item.id, "made", f"nothing to fetch: `{source.command}` makes it")
        if self.store.is_done(choice, item):
            return _Outcome(item.id, "here", self.store.state(item))
        try:
            return self._from_disk(choice, item, why) or self._from_sources(choice, item, why)
        except (LcfuseError, OSError) as error:
            return _Outcome(item.id, "failed", str(error))

    def _from_disk(self, choice: Choice, item: Item, why: list[str]) -> _Outcome | None:
        """Use what an earlier run or a person has put there; of a wrong file *why* gets a note."""
        path, old = self.store.file(item), self.store.record(item)
        if path.is_file():
            try:
                return self._accept(choice, item, path, old.source if old else "a file put there by hand")
            except DataError as error:
                wrong = path.with_name(f"{path.name}.wrong")  # not deleted: it may be the user's
                os.replace(path, wrong)
                why.append(f"the file at {path} was {error.found}: it is now {wrong.name}")
        return self._finish_scenes(choice, item) if item.id in self._streamed else None

    def _from_sources(self, choice: Choice, item: Item, why: list[str]) -> _Outcome:
        """Use the first source that has the item, or report why none has, and what a person can do."""
        take = self._stream if item.id in self._streamed else self._download
        sources = self.manifest.sources(item)
        for source in sources:
            if isinstance(source, Remote):
                try:
                    with self._hosts[urlsplit(source.url).netloc]:
                        return take(choice, item, source)
                except (Refused, Changed) as error:
                    why.append(f"{source.url}: {error}")
        ways = [source for source in sources if isinstance(source, ByHand)]
        lines = [*why, *(f"{way.do} The page: {way.page}" + " (log-in)" * way.log_in for way in ways)]
        if ways:
            path = self.store.file(item)
            lines.append(f"Put the file at {path} and run this again: it is then verified and unpacked.")
        return _Outcome(item.id, "failed" if why else "by hand", "\n  ".join(lines))

    def _download(self, choice: Choice, item: Item, source: Remote) -> _Outcome:
        """Fetch the whole file and use it; a second attempt begins at byte 0. Raises Refused."""
        part, why = self.store.part(item), ""
        for _ in range(2):
            if self._note(item).get("url") != source.url and item.checksums == "unknown":
                part.unlink(missing_ok=True)  # nothing could show whether two parts belong together
            began_at = part.stat().st_size if part.exists() else 0
            has_size = False
            try:
                has_size = self._write_part(item, source, began_at)
                return self._accept(choice, item, part, source.url)
            except (Changed, DataError) as error:
                why = error.found if isinstance(error, DataError) else str(error)
            part.unlink(missing_ok=True)
            if has_size and not began_at:  # all of it came from here, and nothing was lost on the way
                break
        raise Refused(why)

    def _write_part(self, item: Item, source: Remote, at: int) -> bool:
        """Fetch into the part; return whether the source stated the size."""
        part, old, has_size = self.store.part(item), self._note(item), False

        def on_open(total: int | None, tag: str) -> None:
            nonlocal has_size
            has_size = total is not None
            if at and tag and old.get("url") == source.url and old.get("tag") not in ("", tag):
                raise Changed("another version of the file than was begun")
            if error := self._lack_of_room(part, (total or 0) - at):  # another source may state less
                raise Refused(str(error))
            self.store.note(item).write_text(json.dumps({"url": source.url, "tag": tag}))

        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "ab") as out:
                for chunk in self._chunks(item, source, at, on_open):
                    if out.tell() == 0 and chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                        raise Refused("a web page instead of the file")
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
        except FetchError:
            raise
        except OSError as error:
            raise no_room(part, error) from None
        return has_size

    def _note(self, item: Item) -> dict[str, str]:
        """From where a part is, and of which version."""
        try:
            return _NOTE.validate_json(self.store.note(item).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}

    def _accept(self, choice: Choice, item: Item, path: Path, source: str) -> _Outcome:
        """Verify a file, unpack it, give it its name and record it. Raises DataError if it is not the item."""
        sums, members = Sums.of(path), None
        if wrong := sums.difference(item):
            do = "Fetch it from another source."
            raise DataError(path.name, found=wrong, expected="the file of the manifest", do=do)
        if item.unpack is not None:
            with open(path, "rb") as file:
                members = self._extract(choice, item, file)
        final = self.store.file(item)
        os.replace(path, final)
        self.store.note(item).unlink(missing_ok=True)
        outcome = self._settle(choice, item, members, source, sums)
        if members is not None and (choice.stream or not self.keep):
            final.unlink()
        return outcome

    def _stream(self, choice: Choice, item: Item, source: Remote) -> _Outcome:
        """Unpack while the archive is received; no file gets its name before the last byte is verified."""
        staging, why = self.store.staging(item), ""
        # A second attempt is without what an earlier run has left, perhaps of a source that has another version.
        for _ in range(1 + staging.exists()):
            received = _Received(self._chunks(item, source))
            try:
                members = self._extract(choice, item, cast(IO[bytes], received))
                why = received.sums.difference(item)
            except DataError as error:
                why = error.found
            if not why:
                return self._settle(choice, item, members, source.url, received.sums)
            shutil.rmtree(staging, ignore_errors=True)
        raise Refused(why)

    def _finish_scenes(self, choice: Choice, item: Item) -> _Outcome | None:
        """Use the files of a stream that was ended after the last wanted scene but before the end of the archive."""
        assert item.unpack is not None
        members = list(archives.extracted(self.store.staging(item)).values())
        for scene, n in choice.scenes.items():
            if sum(item.unpack.destination(m.path, frozenset({scene})) is not None for m in members) != n:
                return None
        return self._settle(choice, item, members, "an interrupted stream", None) if choice.scenes else None

    def _extract(self, choice: Choice, item: Item, file: IO[bytes]) -> list[Member]:
        """Extract the wanted files to a folder beside their place."""
        assert item.unpack is not None
        kind = self.manifest.kind(item)
        place = partial(item.unpack.destination, scenes=frozenset(choice.scenes))
        limits = archives.Limits(item.unpack.members_at_most, kind.at_most, kind.ratio)
        return archives.extract(file, item.form, str(item.file), self.store.staging(item), place, limits)

    def _settle(
        self, choice: Choice, item: Item, members: list[Member] | None, source: str, sums: Sums | None
    ) -> _Outcome:
        """Move extracted files to their places, each whole or not at all, and record what is known of them."""
        record = Record(VERIFIED if sums else ADOPTED, _how(item, is_whole=sums is not None), source)
        if sums is not None:
            record.size, record.checksums = sums.size, sums.checksums
        if members is None:
            record.mtime_ns = self.store.file(item).stat().st_mtime_ns
        else:
            staging, into = self.store.staging(item), self.store.into(item)
            if hasattr(os, "sync"):
                os.sync()  # before a file gets its name, its content is on the disk
            for member in members:
                target = into / member.path
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(staging / member.path, target)
                except OSError as error:
                    raise no_room(target, error, "to put it there") from None
            old = self.store.record(item) or Record("", "", "")
            if {old.mark, record.mark} == {VERIFIED, ADOPTED}:
                record.mark = ADOPTED
            is_whole = not choice.scenes or (old.members is not None and not old.scenes)
            record.into, record.scenes = into.name, [] if is_whole else sorted({*old.scenes, *choice.scenes})
            together = {member.path: member for member in [*(old.members or []), *members]}
            record.members = sorted(together.values())
        self.store.save(item, record)
        shutil.rmtree(self.store.staging(item), ignore_errors=True)
        state = "fetched" if members is None else "unpacked"
        return _Outcome(item.id, state, f"{self.store.state(item)}; from {source}, verified by {record.how}")

    def _chunks(
        self, item: Item, source: Remote, at: int = 0, on_open: OnOpen = lambda total, tag: None
    ) -> Iterator[bytes]:
        """Yield the bytes from *at* on, as many as can be right and leave room on the disk, behind a progress bar."""
        size, expected = None if item.size == "unknown" else item.size, packed_size(self.manifest, item).total
        free = at + shutil.disk_usage(self.store.root).free - _RESERVE
        bound = 2 * expected + _RESERVE if expected else math.inf
        most = int(max(0, min(free, bound)))

        def check(total: int | None, tag: str) -> None:
            if (total or 0) > bound:
                raise Refused(f"{total:,} bytes, where about {expected:,} are expected")
            on_open(total, tag)
            bar.total = total

        disable = None if self.progress else True
        with tqdm(initial=at, desc=item.file, unit="B", unit_scale=True, unit_divisor=1000, disable=disable) as bar:
            for chunk in get(source, at, size, most=most, retry=self.retry, stop=self.stop, on_open=check):
                yield chunk
                bar.update(len(chunk))

    def _lack_of_room(self, path: Path, need: int) -> FetchError | None:
        free = shutil.disk_usage(self.store.root).free
        return no_room(path, f"{in_words(free)} free", f"at least {in_words(need)}") if need > free else None


class _Received:
    """Chunks as a file that is read from front to back, with the sums of what was read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.sums, self.left = chunks, Sums(), b""

    def read(self, size: int) -> bytes:
        if not self.left:
            self.left = next(self.chunks, b"")
            self.sums.update(self.left)
        taken, self.left = self.left[:size], self.left[size:]
        return taken


def _how(item: Item, is_whole: bool) -> str:
    if not is_whole:
        return "number of files per scene; the stream was ended before the checksum of the archive"
    if item.checksums != "unknown":
        return " and ".join(item.checksums) + " of the manifest"
    if item.unpack is not None:
        return "the checksums inside the archive; none is published"
    return "size of the manifest" if item.size != "unknown" else "nothing: no size or checksum is published"
