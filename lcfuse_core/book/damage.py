"""
Harm done on purpose, to copies: what a bad disk, a broken line or a wrong hand does to files.

For chapters and tests that show which damage is noticed, and by whom. Nothing here touches an original.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd

from lcfuse_core.data import patches
from lcfuse_core.data.files import KINDS
from lcfuse_core.data.patches import Patch


def copy_patches(rows: pd.DataFrame, folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Copy the files of these rows of an index into the new *folder*, and return its index."""
    Path(folder).mkdir(parents=True)
    for kind in KINDS:
        for file in rows[kind].dropna():
            shutil.copy(file, folder)
    return patches.index(folder)


def cut_short(file: str | os.PathLike[str], n_bytes: int) -> None:
    """Leave the first *n_bytes* of a file, as a line that broke does."""
    os.truncate(file, n_bytes)


def flip_bit(file: str | os.PathLike[str], bit: int = 2, at: float = 0.5) -> None:
    """Turn over one bit (0..7) of the byte at this share of a file; a second time puts it right again."""
    content = bytearray(Path(file).read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    Path(file).write_bytes(content)


def is_same(one: Patch, other: Patch) -> bool:
    """Whether two patches are equal to the last bit: the pixels of every layer, the CRS, and the origin."""
    layers = [(getattr(one, kind), getattr(other, kind)) for kind in KINDS]
    if (one.crs, one.transform) != (other.crs, other.transform):
        return False
    return all(
        (a is None and b is None)
        or (a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes())
        for a, b in layers
    )
