"""
Rename methods in ledgers to the names of today:

    python scripts/migrate_ledgers.py [FILE ...]

Without a FILE: the ledgers that come with the package. Only the names change; every other byte of a line stays, which
`tests/test_migrate_ledgers.py` proves. A second call changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lcfuse_core import _runtime

LEDGERS = tuple(_runtime.SHIPPED / name for name in ("methods.jsonl", "seeds.jsonl"))

RENAMED = {
    "FCN, weighted, everywhere": "FCN, weighted, source and target regions",
    "Clusters, at home": "Clusters, target regions",
    "Clusters and FCN, at home": "Clusters and FCN, target regions",
    "FCN, cross_entropy, at home": "FCN, cross_entropy, target regions",
    "FCN, cell_mean, at home": "FCN, cell_mean, target regions",
    "FCN, cell_mean, at home by region": "FCN, cell_mean, each target region",
    "FCN, cell_mean, fresh at home": "FCN, cell_mean, target regions only",
    "DeepLabv3+, plain, fresh at home": "DeepLabv3+, plain, target regions only",
    "U-Net, cell_mean, at home": "U-Net, cell_mean, target regions",
    "Full resolution, cell_mean, at home": "Full resolution, cell_mean, target regions",
    "Random forest, weighted, at home": "Random forest, weighted, target regions",
    "Fusion, at home": "Fusion, target regions",
    "Fusion and FCN by region, at home": "Fusion and FCN per region, target regions",
    "Fusion and FCN elsewhere, at home": "Fusion and source FCN, target regions",
    "Fusion and Full resolution, at home": "Fusion and Full resolution, target regions",
    "Fusion by product, at home": "Fusion by product, target regions",
    "Fusion turned eight ways, at home": "Fusion with TTA, target regions",
    "Fusion calibrated, at home": "Fusion calibrated, target regions",
    "Fusion weighted, at home": "Fusion weighted, target regions",
    "Fusion with coarse prior, at home": "Fusion with coarse prior, target regions",
    "Student of the fusion, at home": "Student of the fusion, target regions",
    "DeepLabv3+, fine labels of the training scenes": "DeepLabv3+, supervised, training scenes",
    "DeepLabv3+, fine labels of other regions": "DeepLabv3+, supervised, source regions",
    "DeepLabv3+, fine labels of the same regions": "DeepLabv3+, supervised, target regions",
}
"""Old name: new name."""


def migrated(line: bytes) -> bytes:
    """Return a ledger line with the name of today; lines of other methods stay as they are."""
    if not line.strip():
        return line
    old = json.loads(line).get("parameters", {}).get("method")
    if old not in RENAMED:
        return line
    before, after = (f'"method": {json.dumps(name, ensure_ascii=False)}'.encode() for name in (old, RENAMED[old]))
    if line.count(before) != 1:
        raise SystemExit(f"found {line.count(before)} times {before.decode()} in a line; expected once")
    return line.replace(before, after)


def main() -> None:
    for path in list(map(Path, sys.argv[1:])) or LEDGERS:
        lines = path.read_bytes().split(b"\n")
        new = [migrated(line) for line in lines]
        changed = sum(before != after for before, after in zip(lines, new, strict=True))
        if changed:
            _runtime.write_atomic(path, b"\n".join(new))
        print(f"{path}: {changed} lines renamed")


if __name__ == "__main__":
    main()
