"""
Extract files from .zip and .tar.gz archives of unknown origin.

Names, types and sizes are checked before a byte is written. A member that leads out of the folder, a link, a device
or a file larger than its kind refuses the whole archive: the published ones hold none.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

from lcfuse_core.errors import DataError, FetchError

_BLOCK = 1 << 18
_SLACK = 1 << 20
"""Bytes that headers and small files may take beyond the limits."""

_HEADER_BYTES = 8192
"""Most bytes of an extended header of a .tar: the published archives have none, and large ones take long to decode."""

_RESERVED = re.compile(r'.*[:<>"|?*]|.*[ .]$|(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE | re.DOTALL).match
"""Names of devices, streams and wildcards of Windows."""

_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE)
_JOURNAL = ".members.jsonl"
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError, LookupError,
    NotImplementedError, RuntimeError, OverflowError, MemoryError, OSError,
)  # fmt: skip
"""What the libraries raise on a damaged, encrypted or unknown archive."""


class Limits(NamedTuple):
    """Most members, most bytes of a member, and the largest ratio of unpacked to packed bytes."""

    members: int
    member_bytes: int
    ratio: int


class Member(NamedTuple):
    """A file that was extracted: path under its folder, size in bytes, SHA-256 of the content, modification time."""

    path: str
    size: int
    sha256: str
    mtime_ns: int


def extract(
    file: IO[bytes], form: str, where: str, folder: Path, place: Callable[[str], str | None], limits: Limits
) -> list[Member]:
    """
    Write the wanted members of an archive into a folder, read all others to the end, and return the former by path.

    Parameters
    ----------
    file, form : binary file, str
        The archive, a "zip" or a "tar.gz"; the latter is read once from front to back, so that a stream suffices.
    where : str
        Name of the archive in errors.
    folder : Path
        Is made, or holds what an interrupted call has extracted: these files are compared with the archive. It is
        removed if the archive is refused.
    place : callable
        Returns where the member of a name goes, None if it is not wanted.
    limits : Limits
        What a published archive does not exceed.

    Raises
    ------
    DataError
        If the archive is damaged or hostile, or holds none of the wanted files.
    FetchError
        If the disk is full or cannot be written. *folder* then keeps the members extracted so far.
    """
    kept, members, files, folders = extracted(folder), [], set[str](), {""}
    try:
        for name, chunks in _contents(file, form, where, limits):
            path = place(name)
            if path is None:
                for _ in chunks:
                    pass
                continue
            folded = unicodedata.normalize("NFC", path).casefold()  # some file systems take these for one name
            parents = {folded[: slash.start()] for slash in re.finditer("/", folded)}
            if folded in files or folded in folders or files & parents:
                raise _hostile(where, f"two members for {path}", "each file once, and none as a folder")
            files.add(folded)
            folders |= parents
            members.append(_write(folder, path, chunks, kept.get(path), where))
        if not members:
            raise DataError(where, found="none of the files wanted", expected="at least one", do="Check what it is.")
    except DataError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return sorted(members)


def extracted(folder: Path) -> dict[str, Member]:
    """Return the members, by path, that an interrupted `extract` has left whole in a folder."""
    try:
        lines = (folder / _JOURNAL).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        with suppress(OSError, ValueError, TypeError, RecursionError):  # the last line may be cut
            member = Member(*json.loads(line))
            if sha256_of(folder / member.path) == member.sha256:
                found[member.path] = member
    return found


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, path: str, chunks: Iterator[bytes], kept: Member | None, where: str) -> Member:
    """Write a member and note it in the journal, or compare it with the file that is *kept*."""
    target, digest = folder / path, hashlib.sha256()
    if kept is not None:
        for chunk in chunks:
            digest.update(chunk)
        if digest.hexdigest() != kept.sha256:
            raise _hostile(where, f"another {path} than before", "the archive of which a part was extracted")
        return kept
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as out:
            for chunk in chunks:
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            facts = os.fstat(out.fileno())
        member = Member(path, facts.st_size, digest.hexdigest(), facts.st_mtime_ns)
        with open(folder / _JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(member) + "\n")
    except FetchError:
        raise  # a stop of the transfer
    except OSError as error:
        raise no_room(target, error) from None
    return member


def no_room(path: Path, error: OSError | str, expected: str = "to write it") -> FetchError:
    """Return the error for a disk that is too small or cannot be written."""
    found = error if isinstance(error, str) else str(error.strerror)
    do = "Free space, or choose another folder with --root, and run this again: what is here stays."
    return FetchError(path, found=found, expected=expected, do=do)


def _safe_name(name: str, where: str) -> str | None:
    """
    Return a member's name as a relative path; None for folders and the extra files that some systems add.

    Raises DataError if it leads out of the folder on any system, or cannot be printed.

    >>> _safe_name("./wrapped/s1_0/a.tif", "x.zip"), _safe_name("__MACOSX/._a.tif", "x.zip")
    ('wrapped/s1_0/a.tif', None)
    """
    plain = unicodedata.normalize("NFKC", name)  # a wide dot or slash is one to some file systems
    parts = [part for part in name.split("/") if part not in ("", ".")]
    leads_out = plain.startswith("/") or "\\" in plain or re.match(r"[A-Za-z]:", plain)
    if leads_out or ".." in plain.split("/") or any(part.strip(" ") == ".." for part in parts):
        raise _hostile(where, f"a member named {name[:80]!r}", "names inside the archive's own folder")
    lengths = [len(part.encode(errors="replace")) for part in parts]
    if not plain.isprintable() or max(lengths, default=0) > 255 or sum(lengths) > 1000 or any(map(_RESERVED, parts)):
        raise _hostile(where, f"a member named {name[:80]!r}", "names of plain letters")
    is_extra = not parts or name.endswith("/") or "__MACOSX" in parts or parts[-1].startswith(".")
    return None if is_extra else "/".join(parts)


def _hostile(where: str, found: str, expected: str) -> DataError:
    return DataError(where, found=found, expected=expected, do="Do not use the file; fetch it from another source.")


def _contents(file: IO[bytes], form: str, where: str, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Safe name and content of each file, in the order of the archive; each content is read before the next."""
    walk = {"zip": _zip_contents, "tar.gz": _tar_contents}[form](file, where, limits)
    for n, (name, chunks) in enumerate(_guarded(walk, where), start=1):
        if n > limits.members:
            raise _hostile(where, f"more than {limits.members} members", "fewer")
        safe = _safe_name(name, where)
        if safe is not None:
            yield safe, _guarded(chunks, where)


def _guarded(values: Iterator[Any], where: str) -> Iterator[Any]:
    """The same values; what the libraries raise on a damaged archive becomes a DataError."""
    try:
        yield from values
    except (DataError, FetchError):
        raise
    except _BROKEN as error:
        found = f"a damaged archive ({' '.join(str(error).split())[:200] or type(error).__name__})"
        raise _hostile(where, found, "a whole one") from None


def _check_size(size: int, where: str, limits: Limits) -> None:
    if size > limits.member_bytes:
        raise _hostile(where, f"{size} bytes in one member", f"at most {limits.member_bytes}")


def _check_ratio(plain: int, packed: int, where: str, limits: Limits) -> None:
    if plain > limits.ratio * packed + _SLACK:
        raise _hostile(where, f"{plain} bytes packed into {packed}", f"at most {limits.ratio} : 1")


def _zip_contents(file: IO[bytes], where: str, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    _check_ratio(sum(entry.file_size for entry in entries), file.seek(0, os.SEEK_END), where, limits)
    spans = sorted((entry.header_offset, entry.compress_size) for entry in entries)
    if any(start + size > after for (start, size), (after, _) in pairwise(spans)):
        raise _hostile(where, "members that share bytes", "each with its own")
    for entry in entries:
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _hostile(where, f"{entry.orig_filename[:80]!r}, a link or device", "plain files")
        _check_size(entry.file_size, where, limits)
        member = archive.open(entry)
        if not entry.file_size:
            member.read(1)  # compares the CRC-32, which else happens at the last byte
        yield entry.orig_filename, _exactly(member.read, entry.file_size)


def _exactly(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """Yield *size* bytes in blocks, or raise EOFError. At the last one zipfile compares the CRC-32."""
    while size:
        chunk = read(min(_BLOCK, size))
        if not chunk:
            raise EOFError(f"a member that lacks {size} bytes")
        size -= len(chunk)
        yield chunk


class _Counted:
    """A file that is read from front to back; *check* gets the number of bytes so far."""

    def __init__(self, file: Any, check: Callable[[int], None]) -> None:
        self.file, self.check, self.total = file, check, 0

    def read(self, size: int = -1) -> bytes:
        """Return at most *size* bytes, fewer only at the end."""
        data: bytes = self.file.read(size)
        self.total += len(data)
        self.check(self.total)
        return data


class _Entry(tarfile.TarInfo):
    """A header of a .tar. `tarfile` takes a damaged one for the end, and extended ones of any size."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Entry:
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise EOFError(str(error)) from None
        is_plain = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
        if not is_plain and entry.type not in _EXTENDED:
            raise ValueError(f"{entry.name[:80]!r}, a link, device or sparse file")
        if not 0 <= entry.size <= (entry.size if is_plain else _HEADER_BYTES):
            raise ValueError(f"a header of {entry.size} bytes")
        return entry


def _tar_contents(file: IO[bytes], where: str, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:

    def check_packed(total: int) -> None:  # a header without an end holds nothing, and is read byte by byte
        if total > 2 * plain.total + _SLACK:
            raise _hostile(where, f"{total} packed bytes that hold {plain.total}", "an archive of files")

    packed = _Counted(file, check_packed)
    plain = _Counted(
        gzip.GzipFile(fileobj=packed),  # type: ignore[call-overload]
        lambda total: _check_ratio(total, packed.total, where, limits),
    )
    with tarfile.open(fileobj=plain, mode="r|", bufsize=_BLOCK, tarinfo=_Entry) as archive:  # type: ignore[call-overload]
        for entry in archive:
            if entry.sparse is not None:
                raise _hostile(where, f"{entry.name[:80]!r}, a sparse file", "plain files")
            _check_size(entry.size, where, limits)
            content = archive.extractfile(entry)
            yield entry.name + "/" * entry.isdir(), _exactly(content.read, entry.size) if content else iter(())
            archive.members.clear()  # else they fill the memory
        while block := archive.fileobj.read(_BLOCK):  # a damaged header of zeros would look like the end
            if block.strip(b"\0"):
                raise _hostile(where, "a damaged archive (content after its end)", "a whole one")
