"""How much a subset of the manifest takes: over the line, and on the disk; and what of that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lcfuse_core.manifest import Choice, Item, Manifest


def in_words(size: int) -> str:
    """
    A number of bytes for people.

    >>> in_words(948_000_000), in_words(6000)
    ('0.95 GB', '6,000 bytes')
    """
    return f"{size / 1e9:.2f} GB" if size >= 5e6 else f"{size:,} bytes"


@dataclass(frozen=True)
class Sizes:
    """exact : bytes known to the byte; about : rounded or inferred ones; unknown : ids of items without any."""

    exact: int = 0
    about: int = 0
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [in_words(self.exact)] if self.exact else []
        parts += [f"about {in_words(self.about)}"] if self.about else []
        parts += [f"unknown: {', '.join(self.unknown)}"] if self.unknown else []
        return "; ".join(parts) or "nothing"


def download_size(manifest: Manifest, choices: Iterable[Choice]) -> Sizes:
    """Bytes that come over the line. A streamed archive counts whole, however little of it is kept."""
    return _sum((item.id, item.size, item.about) for item in map(manifest.item, _ids(choices)) if item.file)


def disk_size(manifest: Manifest, choices: Iterable[Choice]) -> Sizes:
    """Bytes of the files that are unpacked or kept, without the archives."""
    chosen = list(choices)
    whole = {choice.item for choice in chosen if not choice.scenes}
    parts = [_unpacked(manifest, manifest.item(choice.item), choice) for choice in chosen]
    for dataset in manifest.datasets.values():  # all archives of a set: as many files as it has patches
        items = [item for item in manifest.items if manifest.dataset(item) is dataset and item.unpack and item.kind]
        kinds = [dataset.kinds[kind].bytes for kind in {str(item.kind) for item in items}]
        if items and dataset.patches != "unknown" and {item.id for item in items} <= whole and "unknown" not in kinds:
            parts = [part for part in parts if part[0] not in {item.id for item in items}]
            parts.append((dataset.title, dataset.patches * sum(map(int, kinds)), None))
    return _sum(parts)


def _ids(choices: Iterable[Choice]) -> list[str]:
    return [choice.item for choice in choices]


def _unpacked(manifest: Manifest, item: Item, choice: Choice) -> tuple[str, int | str, int | None]:
    if item.unpack is None or item.kind is None:
        return item.id, item.size if item.file else 0, item.about
    files = sum(choice.scenes.values()) if choice.scenes else item.unpack.files
    kind = manifest.dataset(item).kinds[item.kind]
    if files == "unknown" or (kind.bytes == "unknown" and kind.about is None):
        return item.id, "unknown", None
    return (item.id, "unknown", files * (kind.about or 0)) if kind.bytes == "unknown" else (
        item.id, files * kind.bytes, None
    )  # fmt: skip


def _sum(parts: Iterable[tuple[str, int | str, int | None]]) -> Sizes:
    exact, about, unknown = 0, 0, []
    for name, size, rounded in parts:
        if isinstance(size, int):
            exact += size
        elif rounded is not None:
            about += rounded
        else:
            unknown.append(name)
    return Sizes(exact, about, tuple(unknown))
