"""
Bring the items of a subset here, verified; and be boring about it.

A file is fetched into `<name>.part`, goes on at the byte after a cut, also in another run, is verified, and only then
gets its name. A source that fails, stalls, or serves wrong bytes is left for the next. What cannot be had is said in
one line, with what a person can do by hand.

The standard library does the talking (see `transfer`): pooch, the usual choice, begins a cut download from zero and
knows one address a file, huggingface_hub knows one host, and neither takes three scenes out of an archive that is
larger than the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tqdm import tqdm

from lcfuse_core.data import archives
from lcfuse_core.data.fetched import Record, Store, disagreement, judge, limits, now
from lcfuse_core.data.manifest import ByHand, Choice, Item, Made, Manifest, Remote, disk_size, in_words
from lcfuse_core.data.transfer import Body, Changed, Patience, Reader, Refused, check_head, flow
from lcfuse_core.errors import DataError, FetchError


@dataclass(frozen=True)
class Outcome:
    """state : "here" (nothing to do), "fetched", "unpacked", "made", "by hand" or "failed"; said : in a sentence."""

    item: str
    state: str
    said: str

    @property
    def is_good(self) -> bool:
        """Whether the item is here, or need not be fetched."""
        return self.state in ("here", "fetched", "unpacked", "made")


@dataclass
class Fetcher:
    """
    Fetches items of a manifest into a store.

    keep : whether archives stay after they are unpacked; progress : whether bars are drawn
    """

    manifest: Manifest
    store: Store
    patience: Patience = field(default_factory=Patience)
    keep: bool = True
    progress: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
    _hosts: dict[str, threading.BoundedSemaphore] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.patience.sleep is time.sleep:  # so that Ctrl-C does not wait for a pause to end
            self.patience = replace(self.patience, sleep=self.stop.wait)

    def fetch(self, choices: Iterable[Choice], *, workers: int = 4) -> list[Outcome]:
        """
        Bring all of them here; what cannot be had does not keep the others from coming.

        Raises FetchError when the disk is too small, or another run fetches into the same folder.
        """
        chosen = list(choices)
        with only_one(self.store.root):
            self._check_disk(chosen)
            with ThreadPoolExecutor(workers) as pool:
                jobs = [pool.submit(self.one, choice) for choice in chosen]
                try:
                    return [job.result() for job in jobs]
                except BaseException:  # Ctrl-C, or a fault of our own: end the threads soon
                    self.stop.set()
                    pool.shutdown(cancel_futures=True)
                    raise

    def one(self, choice: Choice) -> Outcome:
        """Bring one item here."""
        item = self.manifest.item(choice.item)
        made = [source for source in self.manifest.sources(item) if isinstance(source, Made)]
        if made:
            return Outcome(item.id, "made", f"nothing to fetch: `{made[0].command}` makes it")
        if self.store.is_done(choice, item):
            return Outcome(item.id, "here", self.store.state(item))
        try:
            return self._bring(choice, item)
        except (FetchError, DataError) as error:
            return Outcome(item.id, "failed", str(error))

    def _bring(self, choice: Choice, item: Item) -> Outcome:
        notes = self._look_at_hand_made(item)
        if not self.store.is_verified(item):
            streamed = choice.stream and item.form == "tar.gz"
            take = partial(self._stream, choice) if streamed else self._download
            why = self._try_sources(item, take)
            if why is not None:
                return self._by_hand(item, [*notes, *why])
            if streamed:
                return Outcome(item.id, "unpacked", self.store.state(item))
        if item.unpack is None:
            return Outcome(item.id, "fetched", self._from(item))
        self._unpack(choice, item)
        return Outcome(item.id, "unpacked", f"{self.store.state(item)}; {self._from(item)}")

    def _from(self, item: Item) -> str:
        record = self.store.record(item) or Record()
        return f"from {record.source}, verified by {record.verified}"

    def _try_sources(self, item: Item, take: Callable[[Item, Remote], None]) -> list[str] | None:
        """Take it from the first source that gives it: None; or from each the reason why not."""
        why = []
        for source in self.manifest.sources(item):
            if not isinstance(source, Remote):
                continue
            try:
                with self._turn(source):
                    take(item, source)
                return None
            except (Refused, Changed) as error:
                why.append(f"{source.url}: {error}")
        return why

    def _by_hand(self, item: Item, why: list[str]) -> Outcome:
        ways = [source for source in self.manifest.sources(item) if isinstance(source, ByHand)]
        said = [*why, *(f"{way.do} The page: {way.page}" + " (log-in)" * way.log_in for way in ways)]
        if ways:
            said.append(
                f"Put the file at {self.store.file(item)} and run this again: it is then verified and unpacked."
            )
        return Outcome(item.id, "failed" if why else "by hand", "\n  ".join(said))

    @contextmanager
    def _turn(self, source: Remote) -> Iterator[None]:
        """Wait until the host may be asked: no more connections than its page allows."""
        host = urlsplit(source.url).netloc
        with self._lock:
            free = self._hosts.setdefault(host, threading.BoundedSemaphore(source.connections))
        with free:
            yield

    # One file, kept ---------------------------------------------------------------------------------

    def _look_at_hand_made(self, item: Item) -> list[str]:
        """Verify a file that a person put there; a wrong one loses its name."""
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

    def _download(self, item: Item, source: Remote) -> None:
        """Fetch the whole file and give it its name. Raises Refused."""
        part = self.store.part(item)
        for last in (False, True):
            began_at = self._reuse(item, source)
            try:
                told = self._write_part(item, source, began_at)
                return self._name(item, part, source.url)
            except Changed as error:
                why = str(error)
            except DataError as error:
                why = error.found
                if not began_at and told:  # all of it is from here, and nothing was lost on the way
                    last = True
            part.unlink(missing_ok=True)
            if last:
                break
        raise Refused(why)

    def _reuse(self, item: Item, source: Remote) -> int:
        """
        Bytes of an earlier, cut download that may be continued from this source.

        From another source only where a checksum will tell whether the two fit together.
        """
        part, note = self.store.part(item), self._note(item)
        if not part.exists():
            return 0
        if note.get("url") != source.url and item.checksums == "unknown":
            part.unlink()
            return 0
        return part.stat().st_size

    def _write_part(self, item: Item, source: Remote, at: int) -> bool:
        """Fetch into the part; whether the source told the size."""
        part, old, seen = self.store.part(item), self._note(item), Body(0, None)
        size = None if item.size == "unknown" else item.size

        def look(body: Body) -> None:
            nonlocal seen
            if at and body.tag and old.get("url") == source.url and old.get("tag") not in ("", body.tag):
                raise Changed("another version of the file than was begun")
            seen = body
            self._check_room(part, (body.total or 0) - at)
            self._note(item, url=source.url, tag=body.tag)
            bar.total = body.total

        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._bar(item, at) as bar, open(part, "ab") as out:
                for chunk in self._watched(flow(source, at, size, self.patience, look)):
                    if out.tell() == 0:
                        check_head(item, chunk)
                    out.write(chunk)
                    bar.update(len(chunk))
                out.flush()
                os.fsync(out.fileno())
        except FetchError:
            raise
        except OSError as error:
            raise no_room(part, str(error.strerror)) from None
        return seen.total is not None

    def _note(self, item: Item, **fresh: str) -> dict[str, str]:
        """Where a part is from; *fresh* replaces it."""
        path = self.store.part(item).with_suffix(".part-from")
        if fresh:
            path.write_text(json.dumps(fresh))
            return fresh
        try:
            return cast(dict[str, str], json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def _name(self, item: Item, path: Path, source: str) -> None:
        """Verify a file, give it its name and record it. Raises DataError when it is not the item."""
        seen, how = judge(self.manifest, item, path)
        final = self.store.file(item)
        os.replace(path, final)
        self.store.part(item).with_suffix(".part-from").unlink(missing_ok=True)
        stat, old = final.stat(), self.store.record(item) or Record()
        unpacked = old.unpacked and old.checksums == seen
        scenes = old.scenes if unpacked else []
        record = Record(stat.st_size, stat.st_mtime_ns, seen, how, source, now(), unpacked, scenes)
        self.store.save(item, record)

    # Archives ---------------------------------------------------------------------------------------

    def _place(self, choice: Choice, item: Item) -> archives.Place:
        assert item.unpack is not None
        unpack, scenes = item.unpack, frozenset(choice.scenes)
        return lambda name: unpack.destination(name, scenes)

    def _unpack(self, choice: Choice, item: Item) -> None:
        """Take the wanted files out of a verified archive."""
        path, staging = self.store.file(item), self.store.staging(item)
        shutil.rmtree(staging, ignore_errors=True)
        with open(path, "rb") as file:
            members = archives.unpack(
                file, item.form, path.name, staging, self._place(choice, item), limits(self.manifest, item)
            )
        record = self.store.record(item) or Record()
        self._settle(choice, item, members, record)
        if not self.keep:
            path.unlink()

    def _settle(self, choice: Choice, item: Item, members: list[archives.Member], record: Record) -> None:
        archives.settle(self.store.staging(item), self.store.into(item), members)
        before = self.store.members(item) if record.unpacked else []
        together = {member.path: member for member in [*before, *members]}
        was_whole = record.unpacked and not record.scenes
        record.scenes = [] if was_whole or not choice.scenes else sorted({*record.scenes, *choice.scenes})
        self.store.save(item, record, sorted(together.values(), key=lambda member: member.path))

    def _stream(self, choice: Choice, item: Item, source: Remote) -> None:
        """Unpack while it comes in. Nothing gets its name before the last byte is verified. Raises Refused."""
        staging = self.store.staging(item)
        shutil.rmtree(staging, ignore_errors=True)
        size = None if item.size == "unknown" else item.size
        with self._bar(item, 0) as bar:

            def look(body: Body) -> None:
                bar.total = body.total

            reader = Reader(self._watched(flow(source, 0, size, self.patience, look)), lambda b: bar.update(len(b)))
            try:
                members = archives.unpack(
                    cast(Any, reader), item.form, str(item.file), staging, self._place(choice, item),
                    limits(self.manifest, item),
                )  # fmt: skip
                seen = reader.checksums()
                wrong = disagreement(item, reader.size, seen)
            except DataError as error:
                wrong = error.found
        if wrong:
            shutil.rmtree(staging, ignore_errors=True)
            raise Refused(wrong)
        how = "its own check sums" if item.checksums == "unknown" else " and ".join(item.checksums) + " of the manifest"
        old = self.store.record(item) or Record()
        record = Record(reader.size, 0, seen, how, source.url, now(), old.unpacked, old.scenes)
        self._settle(choice, item, members, record)

    # Bars and disks ---------------------------------------------------------------------------------

    def _watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self.stop.is_set():
                raise FetchError(self.store.root, found="a stop", expected="to go on", do="Run it again to go on.")
            yield chunk

    def _bar(self, item: Item, at: int) -> Any:
        return tqdm(
            initial=at, desc=item.file, unit="B", unit_scale=True, unit_divisor=1000,
            disable=None if self.progress else True,
        )  # fmt: skip

    def _check_disk(self, chosen: list[Choice]) -> None:
        """Before anything is fetched: whether what is known to be needed fits."""
        todo = [c for c in chosen if not self.store.is_done(c, self.manifest.item(c.item))]
        need = disk_size(self.manifest, todo)
        items = [self.manifest.item(c.item) for c in todo if not c.stream]
        files = sum(item.size if isinstance(item.size, int) else item.about or 0 for item in items if item.unpack)
        self._check_room(self.store.root, need.exact + need.about + files)

    def _check_room(self, path: Path, need: int) -> None:
        self.store.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.store.root).free
        if need > free:
            raise no_room(path, f"{in_words(free)} free", f"at least {in_words(need)}")


def no_room(path: Path, found: str, expected: str = "to write it") -> FetchError:
    """A disk that will not take more."""
    do = "Free space, or choose another folder with --root, and run this again: what is here stays."
    return FetchError(path, found=found, expected=expected, do=do)


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Keep a second run out of the same folder: both would write the same parts. Raises FetchError."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: not guarded
        yield
        return
    with open(root / ".fetching", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            do = "Wait for it to end, or choose another folder with --root."
            raise FetchError(root, found="another run that fetches into it", expected="one at a time", do=do) from None
        yield
