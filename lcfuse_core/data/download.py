"""
Download the items of a subset, verify them, and unpack them.

A file is written to `<name>.part`, continues at the byte after a cut, also in another run, is verified, and only then
gets its name. A source that fails, stalls or sends wrong bytes is replaced by the next. An item that cannot be fetched
is reported with what a person can do by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tqdm import tqdm

from lcfuse_core._runtime import lock
from lcfuse_core.data import archives
from lcfuse_core.data.archives import Member
from lcfuse_core.data.fetched import Record, Store, Sums
from lcfuse_core.data.manifest import ByHand, Choice, Item, Made, Manifest, Remote, disk_size, in_words
from lcfuse_core.data.transfer import PATIENT, Changed, OnOpen, Refused, Retry, get
from lcfuse_core.errors import DataError, FetchError

_FIRST_BYTES = {"zip": b"PK", "tar.gz": b"\x1f\x8b"}


@dataclass(frozen=True)
class Outcome:
    """What became of an item: "here" (nothing to do), "fetched", "unpacked", "made", "by hand" or "failed", and why."""

    item: str
    state: str
    said: str

    @property
    def is_good(self) -> bool:
        """Whether the item is here, or need not be fetched."""
        return self.state in ("here", "fetched", "unpacked", "made")


class Fetcher:
    """
    Fetch items of a manifest into a store.

    Parameters
    ----------
    manifest, store
        What there is, and where it goes.
    retry : Retry
        When to give up a source.
    keep : bool
        Whether archives stay after they are unpacked.
    progress : bool
        Whether progress bars are shown.
    """

    def __init__(
        self, manifest: Manifest, store: Store, *, retry: Retry = PATIENT, keep: bool = True, progress: bool = True
    ) -> None:
        self.manifest, self.store, self.retry = manifest, store, retry
        self.keep, self.progress = keep, progress
        self.stop = threading.Event()
        self._hosts: dict[str, threading.BoundedSemaphore] = {}
        self._lock = threading.Lock()

    def fetch(self, choices: Iterable[Choice], *, workers: int = 4) -> list[Outcome]:
        """
        Fetch all of them; one that fails does not stop the others.

        Raises FetchError if the disk is too small, or another process fetches into the same folder.
        """
        chosen = list(choices)
        try:
            with lock(self.store.root / ".fetching", wait=False), ThreadPoolExecutor(workers) as pool:
                self._check_disk(chosen)
                jobs = [pool.submit(self._one, choice) for choice in chosen]
                try:
                    return [job.result() for job in jobs]
                except BaseException:  # Ctrl-C, or an error of our own: end the threads soon
                    self.stop.set()
                    pool.shutdown(cancel_futures=True)
                    raise
        except BlockingIOError:
            do = "Wait for it to end, or choose another folder with --root."
            found = "another run that fetches into it"
            raise FetchError(self.store.root, found=found, expected="one at a time", do=do) from None

    def _one(self, choice: Choice) -> Outcome:
        item, store = self.manifest.item(choice.item), self.store
        sources = self.manifest.sources(item)
        made = [source for source in sources if isinstance(source, Made)]
        if made:
            return Outcome(item.id, "made", f"nothing to fetch: `{made[0].command}` makes it")
        if store.is_done(choice, item):
            return Outcome(item.id, "here", store.state(item))
        try:
            notes = self._verify_file_put_by_hand(item)
            if not store.is_verified(item):
                take = self._stream if choice.stream and item.form == "tar.gz" else self._download
                why = self._try_sources(choice, item, take)
                if why is not None:
                    return self._by_hand(item, [*notes, *why])
                if take == self._stream:
                    return Outcome(item.id, "unpacked", store.state(item))
            record = store.record(item) or Record()
            origin = f"from {record.source}, verified by {record.verified}"
            if item.unpack is None:
                return Outcome(item.id, "fetched", origin)
            self._unpack(choice, item, record)
            return Outcome(item.id, "unpacked", f"{store.state(item)}; {origin}")
        except (FetchError, DataError) as error:
            return Outcome(item.id, "failed", str(error))

    def _try_sources(
        self, choice: Choice, item: Item, take: Callable[[Choice, Item, Remote], None]
    ) -> list[str] | None:
        """Take it from the first source that has it, and return None; or the reasons why none has."""
        why = []
        for source in self.manifest.sources(item):
            if not isinstance(source, Remote):
                continue
            with self._lock:  # no more connections to a host than its page allows
                free = self._hosts.setdefault(
                    urlsplit(source.url).netloc, threading.BoundedSemaphore(source.connections)
                )
            try:
                with free:
                    take(choice, item, source)
                return None
            except (Refused, Changed) as error:
                why.append(f"{source.url}: {error}")
        return why

    def _by_hand(self, item: Item, why: list[str]) -> Outcome:
        ways = [source for source in self.manifest.sources(item) if isinstance(source, ByHand)]
        lines = [*why, *(f"{way.do} The page: {way.page}" + " (log-in)" * way.log_in for way in ways)]
        if ways:
            path = self.store.file(item)
            lines.append(f"Put the file at {path} and run this again: it is then verified and unpacked.")
        return Outcome(item.id, "failed" if why else "by hand", "\n  ".join(lines))

    def _verify_file_put_by_hand(self, item: Item) -> list[str]:
        """Verify a file that a person put there; a wrong one is renamed, not deleted."""
        path = self.store.file(item)
        if not path.is_file() or self.store.is_verified(item):
            return []
        old = self.store.record(item)
        try:
            self._name(item, path, old.source if old and old.source else "a file put there by hand")
        except DataError as error:
            wrong = path.with_name(f"{path.name}.wrong")
            os.replace(path, wrong)
            return [f"the file at {path} was {error.found}: it is now {wrong.name}"]
        return []

    def _download(self, choice: Choice, item: Item, source: Remote) -> None:
        """Fetch the whole file and give it its name; a second attempt begins at byte 0. Raises Refused."""
        part, why = self.store.part(item), ""
        for _ in range(2):
            began_at = self._resumable(item, source)
            try:
                has_size = self._write_part(item, source, began_at)
                return self._name(item, part, source.url)
            except Changed as error:
                why = str(error)
            except DataError as error:
                why = error.found
                if not began_at and has_size:  # all of it came from here, and nothing was lost on the way
                    break
            part.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        raise Refused(why)

    def _resumable(self, item: Item, source: Remote) -> int:
        """Bytes of an earlier part; of another source only where a checksum can show whether the two fit."""
        part = self.store.part(item)
        if self._note(item).get("url") != source.url and item.checksums == "unknown":
            part.unlink(missing_ok=True)
        return part.stat().st_size if part.exists() else 0

    def _write_part(self, item: Item, source: Remote, at: int) -> bool:
        """Fetch into the part; return whether the source stated the size."""
        part, old, has_size = self.store.part(item), self._note(item), False
        part.parent.mkdir(parents=True, exist_ok=True)

        def on_open(total: int | None, tag: str) -> None:
            if at and tag and old.get("url") == source.url and old.get("tag") not in ("", tag):
                raise Changed("another version of the file than was begun")
            nonlocal has_size
            has_size = total is not None
            self._check_room(part, (total or 0) - at)
            part.with_suffix(".part-from").write_text(json.dumps({"url": source.url, "tag": tag}))
            bar.total = total

        try:
            with self._bar(item, at) as bar, open(part, "ab") as out:
                for chunk in self._get(source, at, item, on_open):
                    if out.tell() == 0:
                        _check_first_bytes(item, chunk)
                    out.write(chunk)
                    bar.update(len(chunk))
                out.flush()
                os.fsync(out.fileno())
        except FetchError:
            raise
        except OSError as error:
            raise _no_room(part, str(error.strerror)) from None
        return has_size

    def _note(self, item: Item) -> dict[str, str]:
        """From where a part is, and of which version."""
        try:
            return cast(dict[str, str], json.loads(self.store.part(item).with_suffix(".part-from").read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def _name(self, item: Item, path: Path, source: str) -> None:
        """Verify a file, give it its name and record it. Raises DataError if it is not the item."""
        sums = Sums.of(path)
        wrong, how = sums.disagreement(item), _how_verified(item)
        if wrong:
            do = "Fetch it from another source."
            raise DataError(path.name, found=wrong, expected="the file of the manifest", do=do)
        if item.checksums == "unknown" and item.unpack is not None:
            with open(path, "rb") as file:
                count = archives.check(file, item.form, path.name, self._limits(item))
            how = f"whole archive of {count} files; no published checksum"
        final = self.store.file(item)
        os.replace(path, final)
        self.store.part(item).with_suffix(".part-from").unlink(missing_ok=True)
        old, stat, seen = self.store.record(item) or Record(), final.stat(), sums.checksums
        kept = (old.scenes, old.members) if old.checksums == seen else ([], None)
        self.store.save(item, Record(stat.st_size, stat.st_mtime_ns, seen, how, source, _now(), *kept))

    def _limits(self, item: Item) -> archives.Limits:
        assert item.unpack is not None
        kind = self.manifest.dataset(item).kinds[str(item.kind)]
        return archives.Limits(item.unpack.members_at_most, kind.at_most, kind.ratio)

    def _extract(self, choice: Choice, item: Item, file: Any) -> list[Member]:
        """Extract the wanted files to a folder beside their place."""
        assert item.unpack is not None
        unpack, scenes, folder = item.unpack, frozenset(choice.scenes), self.store.staging(item)
        shutil.rmtree(folder, ignore_errors=True)
        place = partial(unpack.destination, scenes=scenes)
        return archives.unpack(file, item.form, str(item.file), folder, place, self._limits(item))

    def _unpack(self, choice: Choice, item: Item, record: Record) -> None:
        path = self.store.file(item)
        with open(path, "rb") as file:
            members = self._extract(choice, item, file)
        self._settle(choice, item, members, record)
        if not self.keep:
            path.unlink()

    def _stream(self, choice: Choice, item: Item, source: Remote) -> None:
        """Unpack while the archive is received; nothing gets its name before the last byte is verified."""
        sums, wrong = Sums(), ""
        members: list[Member] = []

        def on_open(total: int | None, tag: str) -> None:
            bar.total = total

        def see(chunk: bytes) -> None:
            sums.update(chunk)
            bar.update(len(chunk))

        with self._bar(item, 0) as bar:
            reader = _Reader(self._get(source, 0, item, on_open), see)
            try:
                members = self._extract(choice, item, reader)
                while reader.read(1 << 18):
                    pass
                wrong = sums.disagreement(item)
            except DataError as error:
                wrong = error.found
        if wrong:
            shutil.rmtree(self.store.staging(item), ignore_errors=True)
            raise Refused(wrong)
        how = "its own checksums" if item.checksums == "unknown" else _how_verified(item)
        old = self.store.record(item) or Record()
        record = Record(sums.size, 0, sums.checksums, how, source.url, _now(), old.scenes, old.members)
        self._settle(choice, item, members, record)

    def _settle(self, choice: Choice, item: Item, members: list[Member], record: Record) -> None:
        """Move extracted files to their places, each whole or not at all, and record them."""
        folder, into = self.store.staging(item), self.store.into(item)
        for member in members:
            target = into / member.path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / member.path, target)
            except OSError as error:
                raise _no_room(target, str(error.strerror), "to put it there") from None
        shutil.rmtree(folder, ignore_errors=True)
        was_whole = record.members is not None and not record.scenes
        record.scenes = [] if was_whole or not choice.scenes else sorted({*record.scenes, *choice.scenes})
        together = {member.path: member for member in [*(record.members or []), *members]}
        record.members = sorted(together.values())
        self.store.save(item, record)

    def _get(self, source: Remote, at: int, item: Item, on_open: OnOpen) -> Iterator[bytes]:
        size = None if item.size == "unknown" else item.size
        for chunk in get(source, at, size, retry=self.retry, sleep=self.stop.wait, on_open=on_open):
            if self.stop.is_set():
                raise FetchError(self.store.root, found="a stop", expected="to go on", do="Run it again to go on.")
            yield chunk

    def _bar(self, item: Item, at: int) -> Any:
        options: dict[str, Any] = {
            "unit": "B",
            "unit_scale": True,
            "unit_divisor": 1000,
            "disable": None if self.progress else True,
        }
        return tqdm(initial=at, desc=item.file, **options)

    def _check_disk(self, chosen: list[Choice]) -> None:
        """Check before anything is fetched whether what is known to be needed fits."""
        todo = [choice for choice in chosen if not self.store.is_done(choice, self.manifest.item(choice.item))]
        need = disk_size(self.manifest, todo)
        items = [self.manifest.item(choice.item) for choice in todo if not choice.stream]
        files = sum(item.size if isinstance(item.size, int) else item.about or 0 for item in items if item.unpack)
        self._check_room(self.store.root, need.exact + need.about + files)

    def _check_room(self, path: Path, need: int) -> None:
        free = shutil.disk_usage(self.store.root).free
        if need > free:
            raise _no_room(path, f"{in_words(free)} free", f"at least {in_words(need)}")


class _Reader:
    """Chunks as a file that is read from front to back; *see* is called with each chunk."""

    def __init__(self, chunks: Iterator[bytes], see: Callable[[bytes], object]) -> None:
        self.chunks, self.see, self.left = chunks, see, b""

    def read(self, size: int) -> bytes:
        if not self.left:
            self.left = next(self.chunks, b"")
            self.see(self.left)
        taken, self.left = self.left[:size], self.left[size:]
        return taken


def _check_first_bytes(item: Item, chunk: bytes) -> None:
    """Raise Refused if the first bytes cannot be those of the item."""
    if chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise Refused("a web page instead of the file")
    if item.form in _FIRST_BYTES and len(chunk) > 1 and not chunk.startswith(_FIRST_BYTES[item.form]):
        raise Refused(f"bytes that begin with {chunk[:8]!r}, which is not a {item.form}")


def _how_verified(item: Item) -> str:
    if item.checksums != "unknown":
        return " and ".join(item.checksums) + " of the manifest"
    return "size of the manifest" if item.size != "unknown" else "nothing published to compare with"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _no_room(path: Path, found: str, expected: str = "to write it") -> FetchError:
    do = "Free space, or choose another folder with --root, and run this again: what is here stays."
    return FetchError(path, found=found, expected=expected, do=do)
