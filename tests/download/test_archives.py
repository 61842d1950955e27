"""Archives that nobody vouches for: what is asked for comes out, whole; nothing else does, anywhere."""

import gzip
import hashlib
import io
import os
import random
import stat
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import UNPACK, make_zip, pack, tar_gz, toy_files

from lcfuse_core.download import archives
from lcfuse_core.download.manifest import Unpack
from lcfuse_core.errors import DataError, FetchError

FILES = toy_files()
LIMITS = archives.Limits(members=50, member_bytes=7000, ratio=100)
FORMS = ("zip", "tar.gz")
NAME = "ROIs1_s1_1_p9.tif"


def place(name):
    return Unpack(**UNPACK).destination(name)


def unpack(content, form, top, place=place, limits=LIMITS):
    """Unpack under `top/staging` and return path -> content of what came out."""
    members = archives.extract(io.BytesIO(content), form, "an archive", top / "staging", place, limits)
    found = {member.path: (top / "staging" / member.path).read_bytes() for member in members}
    assert [member[:3] for member in members] == [
        (path, len(content), hashlib.sha256(content).hexdigest()) for path, content in sorted(found.items())
    ]
    return found


def everything(top):
    """All that lies under *top*, links not followed."""
    return {path.relative_to(top).as_posix() for path in top.rglob("*")}


# The real kinds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrap", ["", "./", "some/folder/", None])
def test_flat_and_wrapped_archives_come_out_alike(form, wrap, tmp_path):
    """Litter of a Mac and folders are passed over; some of the phase archives have no folders (None)."""
    files = FILES if wrap is not None else {path.rsplit("/", 1)[1]: content for path, content in FILES.items()}
    content = {"zip": make_zip, "tar.gz": tar_gz}[form](files, wrap or "")
    assert unpack(content, form, tmp_path) == FILES
    assert not any("MACOSX" in path for path in everything(tmp_path))


def test_without_a_pattern_all_data_files_keep_their_paths(tmp_path):
    """For an archive whose names inside are not known to us."""
    files = {"a/x.tif": b"1", "b/list.csv": b"2", "b/run.exe": b"3"}
    found = unpack(make_zip(files), "zip", tmp_path, Unpack(into="other").destination)
    assert found == {"a/x.tif": b"1", "b/list.csv": b"2"}


def test_a_full_disk_is_an_error_and_the_next_call_continues(tmp_path, monkeypatch):
    """Finished members are compared with the archive, not written again; a changed one is written again."""
    replies = [os.fstat] * 3
    monkeypatch.setattr(archives.os, "fstat", lambda number: replies.pop()(number) if replies else os.stat("/none"))
    with pytest.raises(FetchError, match="No such file"):
        archives.extract(io.BytesIO(tar_gz(FILES)), "tar.gz", "x", tmp_path / "staging", place, LIMITS)
    monkeypatch.undo()
    first, second, third = archives.extracted(tmp_path / "staging")
    (tmp_path / "staging" / second).write_bytes(b"cut")
    times = [(tmp_path / "staging" / path).stat().st_mtime_ns for path in (first, second, third)]
    assert unpack(tar_gz(FILES), "tar.gz", tmp_path) == FILES
    after = [(tmp_path / "staging" / path).stat().st_mtime_ns for path in (first, second, third)]
    assert [before == now for before, now in zip(times, after, strict=True)] == [True, False, True]


def test_a_member_that_differs_from_the_one_extracted_before_refuses_the_archive(tmp_path):
    unpack(tar_gz(FILES), "tar.gz", tmp_path)
    with pytest.raises(DataError, match="than before"):
        unpack(tar_gz(toy_files(seed=1)), "tar.gz", tmp_path)
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_extended_headers_are_read(form, tmp_path):
    """Fractions of a second in a header of POSIX, names of more than 100 letters."""
    buffer, wrap = io.BytesIO(), f"{'long' * 30}/"
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for path, content in FILES.items():
            info, _ = entry(wrap + path, content, mtime=1.5)
            tar.addfile(info, io.BytesIO(content))
    assert unpack(gzip.compress(buffer.getvalue()), "tar.gz", tmp_path) == FILES


def test_a_gzip_of_several_members_is_one_file(tmp_path):
    """As `pigz` and `cat` make them."""
    plain = gzip.decompress(tar_gz(FILES))
    parts = [gzip.compress(plain[start : start + 10_000]) for start in range(0, len(plain), 10_000)]
    assert unpack(b"".join(parts), "tar.gz", tmp_path) == FILES


# Hostile ones ------------------------------------------------------------------------------------


BAD_NAMES = (
    f"../{NAME}", f"../../../../{NAME}", f"a/../../{NAME}", f"/{NAME}", f"/etc/{NAME}", f"//host/share/{NAME}",
    f"C:\\{NAME}", f"C:/{NAME}", f"..\\{NAME}", f"a\\..\\..\\{NAME}", f"\\\\host\\{NAME}", f"./../{NAME}",
    f"．．/{NAME}", f"..／{NAME}", f"．．／{NAME}", f"／{NAME}", f"‥/{NAME}", f"a/.. /{NAME}",
    f"{NAME}:stream.tif", "con.tif", f"Aux/{NAME}", f"{NAME}.", f"folder /{NAME}", f"{'d' * 200}/" * 6 + NAME,
    f"a\u202e/{NAME}", f"a\n/{NAME}", f"a\x1b[2J/{NAME}", f"{'n' * 300}/{NAME}", f"a\x7f/{NAME}", f"\u200b../{NAME}",
)  # fmt: skip


def tar_of(*entries):
    """A .tar.gz of (TarInfo, content) pairs, exactly as given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1)


def entry(name=NAME, content=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def zip_of(*entries, **kind):
    """A .zip of (name or ZipInfo, content) pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **kind) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_entry(name=NAME, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def raw_tar(*blocks):
    return gzip.compress(b"".join(blocks) + bytes(1024), 1)


def header(name=NAME, size=0, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sharing_zip():
    """Two entries of the directory that point at one member: how a bomb of 46 MB makes 4.5 PB."""
    content = bytearray(zip_of((NAME, b"a" * 100), ("ROIs1_s1_1_p8.tif", b"b" * 100)))
    second = content.rfind(b"PK\x01\x02")
    struct.pack_into("<I", content, second + 42, 0)
    return bytes(content)


def encrypted_zip():
    content = bytearray(zip_of((NAME, b"secret")))
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(sign) + offset] |= 1
    return bytes(content)


def lying_zip(size):
    """The directory says that the member has *size* bytes."""
    content = bytearray(zip_of((NAME, bytes(6000)), compression=zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", content, content.find(b"PK\x01\x02") + 24, size)
    return bytes(content)


LINKS = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "character device": tarfile.CHRTYPE,
         "block device": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE, "sparse file": tarfile.GNUTYPE_SPARSE,
         "nameless type": b"Z"}  # fmt: skip
GOOD = entry()


def hand_made():
    """(what, form, bytes) of hostile archives, each of which must be refused as a whole."""
    for name in BAD_NAMES:
        yield f"zip member {name[:40]!r}", "zip", zip_of((zip_entry(name), b"x"), ("ROIs1_s1_1_p1.tif", b"y"))
        yield f"tar member {name[:40]!r}", "tar.gz", tar_of(GOOD, entry(name))
    for what, kind in LINKS.items():
        for target in ("/etc/passwd", "../../outside"):
            bad = entry("ROIs1_s1_1_p1.tif", b"", type=kind, linkname=target)
            yield f"tar {what} to {target}", "tar.gz", tar_of(GOOD, bad)
    for what, mode in (("link", stat.S_IFLNK), ("device", stat.S_IFCHR), ("socket", stat.S_IFSOCK)):
        yield f"zip {what}", "zip", zip_of((zip_entry(mode=mode | 0o777), b"/etc/passwd"))
    link = entry("ROIs1", b"", type=tarfile.SYMTYPE, linkname="/")
    yield "tar link as a folder, then a file through it", "tar.gz", tar_of(link, entry(f"ROIs1/{NAME}"))
    yield "zip bomb", "zip", zip_of((NAME, bytes(50_000_000)), compression=zipfile.ZIP_DEFLATED)
    yield "tar bomb", "tar.gz", tar_of(entry(content=bytes(50_000_000)))
    many = [entry(f"ROIs1_s1_1_p{n}.tif", bytes(7000)) for n in range(49)]
    yield "tar of zeros, packed too tightly", "tar.gz", gzip.compress(gzip.decompress(tar_of(*many)) + bytes(10**8), 9)
    yield "zip of too many", "zip", zip_of(*((f"{n}.txt", b"") for n in range(51)))
    yield "tar of too many", "tar.gz", tar_of(*(entry(f"{n}.txt") for n in range(51)))
    yield "zip of members that share bytes", "zip", sharing_zip()
    yield "zip of an encrypted member", "zip", encrypted_zip()
    yield "zip that says too little", "zip", lying_zip(10)
    yield "zip that says too much", "zip", lying_zip(6999)
    yield "zip that says 4 GB", "zip", lying_zip(2**32 - 2)
    yield "zip in bzip2 bomb", "zip", zip_of((NAME, bytes(50_000_000)), compression=zipfile.ZIP_BZIP2)
    yield "zip twice the same", "zip", zip_of((zip_entry(), b"x"), (zip_entry(), b"y"))
    yield "tar twice the same", "tar.gz", tar_of(GOOD, GOOD)
    nfc, nfd = (zip_of((f"\u00e9/{NAME}", b"x"), (f"{folder}/{NAME}", b"y")) for folder in ("\u00c9", "e\u0301"))
    yield "zip of names that differ in case alone", "zip", nfc
    yield "zip of names that some file systems take for one", "zip", nfd
    yield "gzip header without an end", "tar.gz", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (1 << 21)
    yield "gzip of empty members", "tar.gz", gzip.compress(b"") * 60_000 + tar_of(GOOD)
    yield "tar of two for one place", "tar.gz", tar_of(entry(f"a/{NAME}"), entry(f"b/{NAME}"))
    pax = header("pax", 10**9, tarfile.XHDTYPE)
    yield "tar header of a gigabyte", "tar.gz", gzip.compress(pax + bytes(3 * 10**7), 9)
    long_name = header("././@LongLink", 10**9, tarfile.GNUTYPE_LONGNAME)
    yield "tar name of a gigabyte", "tar.gz", gzip.compress(long_name + b"n" * 3 * 10**7, 9)
    digits = raw_tar(header("pax", 190_000, tarfile.XHDTYPE), b"1" * 190_000)
    yield "tar header of many digits", "tar.gz", digits  # `tarfile` of Python 3.11.7 takes more than 90 s for them
    yield "tar that says too much", "tar.gz", raw_tar(header(size=5000), bytes(512))
    yield "tar with a damaged header", "tar.gz", raw_tar(header(), b"\xff" * 512, header("ROIs1_s1_1_p2.tif"))
    yield "tar without an end", "tar.gz", gzip.compress(header(), 1)
    yield "tar with something after its end", "tar.gz", gzip.compress(header() + bytes(1024) + b"more" * 1000, 1)
    yield "garbage after the gzip", "tar.gz", tar_of(GOOD) + b"garbage"
    yield "a zip called tar.gz", "tar.gz", make_zip(FILES)
    yield "a tar.gz called zip", "zip", tar_gz(FILES)
    yield "nothing as zip", "zip", b""
    yield "nothing as tar.gz", "tar.gz", b""
    yield "text as zip", "zip", b"<html>" * 100
    for form in FORMS:
        yield f"{form.partition('.')[0]} of something else", form, pack({"readme.txt": b"hello"}, form)
    yield "text as tar.gz", "tar.gz", b"<html>" * 100


HOSTILE = list(hand_made())


FOUND = {
    "zip of members that share bytes": "members that share bytes",
    "zip of something else": "none of the files wanted",
    "tar of something else": "none of the files wanted",
    "tar header of many digits": ".*a header of 190000 bytes",
}
"""What the error must state, where another one would hide that a check is lost."""


@pytest.mark.parametrize(("what", "form", "content"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_a_hostile_archive_is_refused_and_leaves_no_trace(what, form, content, tmp_path):
    """Not inside its folder and not outside; and in one error that names the archive."""
    box = tmp_path / "a" / "b"
    box.mkdir(parents=True)
    with pytest.raises(DataError, match=f"^an archive: found {FOUND.get(what, '')}"):
        unpack(content, form, box)
    assert everything(tmp_path) == {"a", "a/b"}


@pytest.mark.parametrize("names", [("a.tif", "a.tif/b.tif"), ("a.tif/b.tif", "A.tif")])
def test_a_file_that_is_also_a_folder_refuses_the_archive(names, tmp_path):
    """It is the archive that is wrong, not the disk."""
    with pytest.raises(DataError, match="each file once, and none as a folder"):
        unpack(tar_of(*map(entry, names)), "tar.gz", tmp_path, Unpack(into="other").destination)
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("what", ["tar header of a gigabyte", "tar name of a gigabyte"])
def test_a_header_fills_no_memory_whatever_ratio_is_allowed(what, tmp_path):
    """Labels shrink a hundredfold and more, so that the ratio alone cannot protect."""
    (content,) = [content for name, _, content in HOSTILE if name == what]
    loose = archives.Limits(members=50, member_bytes=7000, ratio=10**6)
    tracemalloc.start()
    with pytest.raises(DataError, match="a header of 1000000000 bytes"):
        unpack(content, "tar.gz", tmp_path, limits=loose)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * archives._SLACK


DAMAGED = {
    "tar.gz": pack(FILES, "tar.gz"),
    "zip": pack(FILES, "zip"),
    "zip, stored": zip_of(*FILES.items()),
    "zip, bzip2": zip_of(*FILES.items(), compression=zipfile.ZIP_BZIP2),
    "zip, lzma": zip_of(*FILES.items(), compression=zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_archive_gives_the_right_files_or_an_error(what, tmp_path):
    """Fifty mutations (cut, flipped, doubled and overwritten bytes), and a flipped bit in each byte of its end."""
    content, rng = DAMAGED[what], random.Random(what)
    damaged = [mutated(content, rng) for _ in range(50)] + [flipped(content, at, rng) for at in range(-110, 0)]
    n_refused = 0
    for number, bad in enumerate(damaged):
        box = tmp_path / str(number)
        try:
            found = unpack(bad, what.partition(",")[0], box)
        except DataError:
            n_refused += 1
            assert not box.exists() or everything(box) == set()
        else:  # a bit of a date, say
            assert found == FILES
    assert n_refused > 30


def flipped(content, at, rng):
    """One bit of the byte *at* is another."""
    at %= len(content)
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def mutated(content, rng):
    """Something was done to it."""
    kind, at, to = rng.randrange(5), *sorted(rng.sample(range(len(content)), 2))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return flipped(content, at, rng)
    if kind == 2:
        return content[:to] + content[at:]
    if kind == 3:
        return content[:at] + content[to:]
    head = rng.choice([0, max(0, len(content) - 2000), at])
    return content[:head] + rng.randbytes(8) + content[head + 8 :]


@given(st.text(max_size=40))
def test_a_safe_name_stays_inside(name):
    """Whatever the letters: refused, passed over, or a plain path downwards."""
    try:
        safe = archives._safe_name(name, "x")
    except DataError:
        return
    if safe is not None:
        assert not safe.startswith(("/", "\\"))
        assert not {"", ".", ".."} & set(safe.split("/"))
        assert "\\" not in safe
