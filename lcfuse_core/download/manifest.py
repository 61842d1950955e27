"""
`data_manifest.yaml`: what there is to fetch, where from, how large, under which licence, and how it is checked.

A data set holds what its files share (licence, citation, sources, defects); an item is one file to fetch; a subset
names the items of a profile. What nobody has published is `unknown` in the file and stays so: a first verified fetch
writes what it saw into a record beside the data (see `records`), never here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lcfuse_core import _runtime
from lcfuse_core._yaml import load_yaml
from lcfuse_core.errors import DataError, ParameterError

_SHIPPED = _runtime.SHIPPED / "data_manifest.yaml"
"""A link to `data_manifest.yaml` at the top of the repository; a built package holds a copy."""

_DIGITS = {"md5": 32, "sha256": 64}
"""Checksum algorithms, and how many hexadecimal digits each has."""

_HOLE = re.compile(r"\{(\w+)\}")
_LOCAL = re.compile(r"(http|ftp)://(127\.0\.0\.1|localhost)[:/]")


def _inside(path: str) -> str:
    """A path that stays where it is put."""
    if not re.fullmatch(r"[\w{}][\w{}.-]*(/[\w{}][\w{}.-]*)*", path, re.ASCII):
        raise ValueError("a plain relative path")
    return path


def _hexadecimal(checksums: dict[str, str]) -> dict[str, str]:
    for algorithm, value in checksums.items():
        if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[algorithm]}}}", value):
            raise ValueError(f"{algorithm} of {_DIGITS[algorithm]} digits 0-9 a-f")
    return checksums


def _secure(url: str) -> str:
    if not re.match(r"(https|ftp)://[\w.-]+/", url) and not _LOCAL.match(url):
        raise ValueError("an address that begins with https:// or ftp://")
    return url


_Value = TypeVar("_Value")
_Unknown = Literal["unknown"]
_Count = Annotated[int, Field(ge=0)] | _Unknown
_RelativePath = Annotated[str, AfterValidator(_inside)]
_Address = Annotated[str, AfterValidator(_secure)]
_Sums = Annotated[dict[Literal["md5", "sha256"], str], Field(min_length=1), AfterValidator(_hexadecimal)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Licence(_Strict):
    """Terms, where they were read, and when; the page itself has the last word."""

    name: str
    where: str
    read_on: date
    note: str = ""


class _Server(_Strict):
    url: _Address  # `{file}` stands for the file of the item
    connections: int = Field(1, ge=1, le=16)  # open to this host at a time
    note: str = ""


class Ftp(_Server):
    """A server with a public user and password."""

    kind: Literal["ftp"]
    user: str = "anonymous"
    password: str = ""


class Https(_Server):
    """A web address that answers with the file itself."""

    kind: Literal["https"]
    connections: int = Field(2, ge=1, le=16)


class ByHand(_Strict):
    """A page where a person gets the file, after a log-in or not."""

    kind: Literal["by_hand"]
    page: _Address
    log_in: bool = False
    do: str


class Made(_Strict):
    """Nothing to fetch: a command makes it."""

    kind: Literal["made"]
    command: str


Remote = Ftp | Https
_Source = Annotated[Remote | ByHand | Made, Field(discriminator="kind")]


class _Kind(_Strict):
    """The files in an archive: larger or more compressed ones are refused, since they could fill memory or disk."""

    bytes: _Count  # of each file
    about: int | None = None  # the same, rounded, where `bytes` is unknown
    at_most: int = Field(ge=1)  # bytes of a file
    ratio: int = Field(ge=2)  # of unpacked to packed bytes


class _Dataset(_Strict):
    """What the items of a data set share."""

    title: str
    doi: str | _Unknown
    page: _Address | _Unknown
    citation: str
    licence: _Licence
    chapters: list[str]
    about_bytes: list[int] = []  # published size of all of it, from and to
    about_source: str = ""
    patches: _Count = "unknown"
    kinds: dict[str, _Kind] = {}
    sources: list[_Source] = []
    defects: list[str] = []


class Unpack(_Strict):
    """What to take out of an archive, and where it goes."""

    into: _RelativePath  # folder under the data root
    members: str | None = None  # file names with holes, `ROIs1158_spring_lc_{scene}_p{patch}.tif`; None: all `.tif`
    place: _RelativePath | None = None  # folder in `into`, of the same holes; None: the member's own path
    files: _Count = "unknown"  # in the whole archive
    members_at_most: int = Field(200_000, ge=1)

    def destination(self, name: str, scenes: frozenset[str] = frozenset()) -> str | None:
        """
        Return where a member goes, under `into`; None if it is not wanted. Without *scenes* all are.

        >>> Unpack(into="sen12ms", members="ROIs1_lc_{scene}_p{patch}.tif", place="lc_{scene}").destination(
        ...     "some/folder/ROIs1_lc_12_p3.tif", frozenset({"12"}))
        'lc_12/ROIs1_lc_12_p3.tif'
        """
        if self.members is None or self.place is None:
            return name if name.lower().endswith((".tif", ".csv", ".txt")) else None
        base = name.rsplit("/", 1)[-1]
        match = re.fullmatch(_HOLE.sub(r"(?P<\1>[0-9A-Za-z]+)", self.members.replace(".", r"\.")), base)
        if match is None or (scenes and match["scene"] not in scenes):
            return None
        return f"{self.place.format(**match.groupdict())}/{base}"


class Item(_Strict):
    """One file to fetch (or something to make, without a file)."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    dataset: str
    what: str
    file: _RelativePath | None
    kind: str | None = None
    size: _Count
    about: int | None = None  # a rounded size in bytes, where `size` is unknown
    checksums: _Sums | _Unknown
    unpack: Unpack | None = None
    sources: list[_Source] | None = None  # instead of those of the data set
    defects: list[str] = []

    @property
    def form(self) -> str:
        """`zip`, `tar.gz`, or `plain`."""
        return next((form for form in ("zip", "tar.gz") if str(self.file).endswith(f".{form}")), "plain")


class Choice(_Strict):
    """An item of a subset."""

    item: str
    scenes: dict[str, int] = {}  # only these, with their number of patches; empty: the whole item
    stream: bool = False  # keep only the scenes; unpack while the archive arrives if the disk cannot hold it


class _Subset(_Strict):
    """What a profile needs."""

    what: str
    items: list[Choice] = Field(min_length=1)
    notes: list[str] = []


class Manifest(_Strict):
    """The whole file."""

    schema_version: Literal[1] = Field(alias="schema")
    datasets: dict[str, _Dataset]
    items: list[Item]
    subsets: dict[Literal["smoke", "colab", "full"], _Subset]

    def item(self, name: str) -> Item:
        """Return the item of that id. Raises ParameterError that lists all ids."""
        return _named("item", name, {item.id: item for item in self.items})

    def subset(self, profile: str) -> _Subset:
        """Return the subset of a profile. Raises ParameterError that lists the profiles."""
        return _named("profile", profile, {str(key): subset for key, subset in self.subsets.items()})

    def dataset(self, item: Item) -> _Dataset:
        """Return the data set of an item."""
        return self.datasets[item.dataset]

    def kind(self, item: Item) -> _Kind:
        """Return the kind of the files in an archive."""
        return self.dataset(item).kinds[str(item.kind)]

    def sources(self, item: Item) -> list[_Source]:
        """Return where to get an item, best first, with its file name filled in."""
        listed = self.dataset(item).sources if item.sources is None else item.sources
        return [_filled(source, item.file or "") for source in listed]


def _named(what: str, name: str, known: dict[str, _Value]) -> _Value:
    if name not in known:
        raise ParameterError(what, found=repr(name), expected=f"one of {', '.join(known)}", do="Choose one of them.")
    return known[name]


def _filled(source: _Source, file: str) -> _Source:
    """The source with the name of the file in its address."""
    name = "url" if isinstance(source, Remote) else "do" if isinstance(source, ByHand) else "command"
    return source.model_copy(update={name: getattr(source, name).replace("{file}", file)})


def read(path: Path | None = None) -> Manifest:
    """
    Return the manifest: the package's own, or that of *path*.

    Raises MissingDataError without a file, DataError that names the field of the first mistake, or the line of what is
    not YAML.
    """
    path = path or _SHIPPED
    values = load_yaml(_runtime.read_document(path, "a data manifest"), path.name)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        found = "nothing" if first["type"] == "missing" else repr(first["input"])[:120]
        expected = re.sub("^(Value error, |Input should be )", "", first["msg"])
        raise _mistake(path.name, values, first["loc"], found, expected) from None
    for loc, found, expected in _contradictions(manifest):
        raise _mistake(path.name, values, loc, found, expected)
    return manifest


_Location = tuple[str | int, ...]
"""The way to a field: ("items", 3, "checksums")."""


def _mistake(where: str, values: Any, loc: _Location, found: str, expected: str) -> DataError:
    """An error that names the field as a person would write it, and the id of its item."""
    path: list[str] = []
    at: Any = values
    name = ""
    for part in loc:  # pydantic puts names of types in between
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and isinstance(part, int)):
            path.append(str(part))
            at = at[part]  # type: ignore[index]
            name = f" (item {at['id']})" if isinstance(at, dict) and isinstance(at.get("id"), str) else name
        elif part == loc[-1] and isinstance(at, dict) and str(part).isidentifier():
            path.append(str(part))  # a field that is missing
    field, expected = (".".join(path) or "the file") + name, expected[:1].lower() + expected[1:]
    return DataError(f"{where}: {field}", found=found, expected=expected, do="Correct the field.")


def _contradictions(manifest: Manifest) -> Iterator[tuple[_Location, str, str]]:
    """What types cannot show: names that lead nowhere, ids and files given twice."""
    ids, files = [item.id for item in manifest.items], [item.file for item in manifest.items]
    for n, item in enumerate(manifest.items):
        if item.dataset not in manifest.datasets:
            yield ("items", n, "dataset"), repr(item.dataset), f"one of {', '.join(manifest.datasets)}"
            continue
        kinds = manifest.dataset(item).kinds
        for is_wrong, field, found, expected in (
            (item.id in ids[:n], "id", repr(item.id), "an id of its own"),
            (item.kind not in (None, *kinds), "kind", repr(item.kind), f"one of {', '.join(kinds)}"),
            (item.unpack and item.form == "plain", "unpack", repr(item.file), "an archive: .zip or .tar.gz"),
            (item.unpack and item.kind is None, "unpack", "no kind", "a kind, which limits what is unpacked"),
            (not manifest.sources(item), "sources", "none", "at least one, here or in the data set"),
            (item.file and item.file in files[:n], "file", repr(item.file), "a file name of its own"),
        ):
            if is_wrong:
                yield ("items", n, field), found, expected
    for name, subset in manifest.subsets.items():
        for n, choice in enumerate(subset.items):
            if choice.item not in ids:
                yield ("subsets", name, "items", n, "item"), repr(choice.item), "the id of an item"


def in_words(size: int) -> str:
    """
    A number of bytes for people.

    >>> in_words(948_000_000), in_words(6000)
    ('0.95 GB', '6,000 bytes')
    """
    return f"{size / 1e9:.2f} GB" if size >= 5e6 else f"{size:,} bytes"


@dataclass(frozen=True)
class Sizes:
    """Bytes: *exact* ones as published, *about*: published rounded, *estimate*: inferred; ids of items without any."""

    exact: int = 0
    about: int = 0
    estimate: int = 0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> int:
        """The best figure for all of it, 0 if there is none."""
        return self.exact + self.about + self.estimate

    def __str__(self) -> str:
        parts = [in_words(self.exact)] if self.exact else []
        parts += [f"about {in_words(self.about)}"] if self.about else []
        parts += [f"an estimated {in_words(self.estimate)} of unpublished sizes"] if self.estimate else []
        parts += [f"unknown: {', '.join(self.unknown)}"] if self.unknown else []
        return " + ".join(parts) or "nothing"


def packed_size(manifest: Manifest, item: Item) -> Sizes:
    """Bytes of the file of an item; of an archive without a published size, those of its files uncompressed."""
    if item.file is None or item.size != "unknown":
        return Sizes(exact=item.size if isinstance(item.size, int) else 0)
    if item.about is not None:
        return Sizes(about=item.about)
    files = _unpacked(manifest, item, Choice(item=item.id)) if item.unpack else Sizes(unknown=(item.id,))
    return Sizes(estimate=files.total, unknown=files.unknown)


def download_size(manifest: Manifest, choices: Iterable[Choice]) -> Sizes:
    """Bytes that come over the line. A streamed archive counts whole, however little of it is kept."""
    return sum((packed_size(manifest, manifest.item(choice.item)) for choice in choices), Sizes())


def disk_size(manifest: Manifest, choices: Iterable[Choice]) -> Sizes:
    """Bytes of the files that are unpacked or kept, without the archives."""
    chosen, total = list(choices), Sizes()
    whole = {choice.item for choice in chosen if not choice.scenes}
    for choice in chosen:
        item = manifest.item(choice.item)
        size = _unpacked(manifest, item, choice) if item.unpack else packed_size(manifest, item)
        if size.estimate and {other.id for other in _alike(manifest, item)} <= whole:  # the number of all is published
            size = Sizes(exact=size.estimate)
        total += size
    return total


def _alike(manifest: Manifest, item: Item) -> list[Item]:
    """The archives among which the files of one kind of a data set are divided."""
    return [other for other in manifest.items if (other.dataset, other.kind) == (item.dataset, item.kind)]


def _unpacked(manifest: Manifest, item: Item, choice: Choice) -> Sizes:
    """Bytes of the files of an archive; where their number is not published, an equal fraction of all patches."""
    assert item.unpack is not None
    dataset, kind = manifest.dataset(item), manifest.kind(item)
    files = sum(choice.scenes.values()) if choice.scenes else item.unpack.files
    each = kind.about if kind.bytes == "unknown" else kind.bytes
    if each is None or (files == "unknown" and dataset.patches == "unknown"):
        return Sizes(unknown=(item.id,))
    if files == "unknown":
        return Sizes(estimate=round(int(dataset.patches) * each / len(_alike(manifest, item))))
    return Sizes(about=files * each) if kind.bytes == "unknown" else Sizes(exact=files * each)
