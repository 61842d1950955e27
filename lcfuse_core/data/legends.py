"""
Class schemes: the MODIS layers of SEN12MS, the DFC2020 reference, and the mapping from one to the other.

Labels keep the codes of the files (`uint8`). Only networks count differently: they have the eight scored DFC2020
classes, from zero (`dfc_to_index`), and the ignore value 255.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcfuse_core import _runtime
from lcfuse_core._yaml import load_yaml
from lcfuse_core.errors import DataError, LegendError

IGNORE = 255
"""Label value that losses and scores leave out."""


@dataclass(frozen=True)
class Legend:
    """
    A class scheme: codes, names and colours (hex, without `#`), in the order of the legend.

    `unknown` is the code for "no class here"; it is not one of `codes`.
    """

    name: str
    codes: tuple[int, ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    unknown: int

    def name_of(self, code: int) -> str:
        """
        Return the name of a class code.

        >>> DFC2020.name_of(5)
        'Wetlands'
        """
        self.check(np.asarray(code))
        return "none" if code == self.unknown else self.names[self.codes.index(code)]

    def rgba(self, code: int) -> tuple[int, int, int, int]:
        """Return the colour of a class code, 0-255 each; transparent black for a code outside the legend."""
        if code not in self.codes:
            return (0, 0, 0, 0)
        red, green, blue = bytes.fromhex(self.colours[self.codes.index(code)])
        return (red, green, blue, 255)

    def check(self, labels: NDArray[np.integer], where: str = "labels") -> None:
        """Raise LegendError if *labels* hold a code that is neither in the legend nor `unknown`."""
        expected = f"{self.name} codes {', '.join(map(str, self.codes))} (or {self.unknown}, none)"
        do = "Check that the file is the expected layer, or recode it first."
        _check_codes(where, labels, (*self.codes, self.unknown), expected, do)


def _check_codes(where: str, labels: NDArray[np.integer], known: Iterable[int], expected: str, do: str) -> None:
    unknown = sorted(set(np.unique(labels).tolist()) - set(known))
    if unknown:
        raise LegendError(where, found=f"class code {', '.join(map(str, unknown))}", expected=expected, do=do)


# Codes and names: MCD12Q1 Collection 6 User Guide (Sulla-Menashe & Friedl 2018), tables 3, 8, 9 and 10.
# Colours are ours where the DFC2020 palette has none.
IGBP = Legend(
    "IGBP",
    tuple(range(1, 18)),
    (
        "Evergreen needleleaf forest", "Evergreen broadleaf forest", "Deciduous needleleaf forest",
        "Deciduous broadleaf forest", "Mixed forest", "Closed shrubland", "Open shrubland", "Woody savanna", "Savanna",
        "Grassland", "Permanent wetland", "Cropland", "Urban and built-up", "Cropland/natural mosaic", "Snow and ice",
        "Barren", "Water",
    ),
    (
        "05450a", "086a10", "54a708", "78d203", "009900", "c6b044", "dcd159", "dade48", "fbff13", "b6ff05",
        "27ff87", "c24f44", "a5a5a5", "ff6d4c", "69fff8", "f9ffa4", "1c0dff",
    ),
    unknown=255,
)  # fmt: skip

LCCS_LAND_COVER = Legend(
    "LCCS land cover",
    (1, 2, 3, 11, 12, 13, 14, 15, 16, 21, 22, 31, 32, 41, 42, 43),
    (
        "Barren", "Permanent snow and ice", "Water bodies", "Evergreen needleleaf forest", "Evergreen broadleaf forest",
        "Deciduous needleleaf forest", "Deciduous broadleaf forest", "Mixed broadleaf/needleleaf forest",
        "Mixed broadleaf evergreen/deciduous forest", "Open forest", "Sparse forest", "Dense herbaceous",
        "Sparse herbaceous", "Dense shrubland", "Shrubland/grassland mosaic", "Sparse shrubland",
    ),
    (
        "f9ffa4", "69fff8", "1c0dff", "05450a", "086a10", "54a708", "78d203", "005a00", "009900", "52b352",
        "a3d6a3", "b6ff05", "e3ffa3", "c6b044", "dcd159", "e8e0a0",
    ),
    unknown=255,
)  # fmt: skip

LCCS_LAND_USE = Legend(
    "LCCS land use",
    (1, 2, 3, 9, 10, 20, 25, 30, 35, 36, 40),
    (
        "Barren", "Permanent snow and ice", "Water bodies", "Urban and built-up", "Dense forest", "Open forest",
        "Forest/cropland mosaic", "Natural herbaceous", "Natural herbaceous/cropland mosaic", "Herbaceous cropland",
        "Shrubland",
    ),
    (
        "f9ffa4", "69fff8", "1c0dff", "a5a5a5", "003f00", "006c00", "db9e5b", "b6ff05", "ff6d4c", "c24f44", "c6b044",
    ),
    unknown=255,
)  # fmt: skip

LCCS_HYDROLOGY = Legend(
    "LCCS surface hydrology",
    (1, 2, 3, 10, 20, 27, 30, 40, 50, 51),
    (
        "Barren", "Permanent snow and ice", "Water bodies", "Dense forest", "Open forest", "Woody wetland",
        "Grassland", "Shrubland", "Herbaceous wetland", "Tundra",
    ),
    ("f9ffa4", "69fff8", "1c0dff", "003f00", "006c00", "1f8a70", "b6ff05", "c6b044", "27ff87", "a3c9a8"),
    unknown=255,
)  # fmt: skip

DFC2020 = Legend(
    "DFC2020",
    tuple(range(1, 11)),
    (
        "Forest", "Shrubland", "Savanna", "Grassland", "Wetlands", "Croplands", "Urban/Built-up", "Snow/Ice", "Barren",
        "Water",
    ),
    ("009900", "c6b044", "fbff13", "b6ff05", "27ff87", "c24f44", "a5a5a5", "69fff8", "f9ffa4", "1c0dff"),
    unknown=0,
)  # fmt: skip
"""Classes and colours of the IEEE GRSS 2020 Data Fusion Contest (Yokoya et al. 2020)."""

SAVANNA, SNOW = 3, 8
"""DFC2020 codes without a single reference pixel: never scored as reference classes."""

SCORED = (1, 2, 4, 5, 6, 7, 9, 10)
"""The eight DFC2020 codes of the reference, in the order of the network classes."""

SAVANNA_INDEX = len(SCORED)
"""Savanna, where labels keep it: a ninth *coarse* class after the eight of the network, which predicts none."""

N_COARSE = SAVANNA_INDEX + 1
"""Number of coarse classes: the eight of the network, and Savanna."""

# IGBP code 0..17 -> DFC2020 code (Schmitt et al. 2020); anything else, 255 included, is "none".
_IGBP_TO_DFC = np.zeros(256, np.uint8)
_IGBP_TO_DFC[:18] = (0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10)

_DFC_TO_INDEX = np.full(256, IGNORE, np.uint8)
_DFC_TO_INDEX[list(SCORED)] = range(len(SCORED))

_INDEX_TO_DFC = np.zeros(256, np.uint8)
_INDEX_TO_DFC[: len(SCORED)] = SCORED


def igbp_to_dfc(igbp: NDArray[np.integer]) -> NDArray[np.uint8]:
    """
    Convert IGBP codes to DFC2020 codes (0 = none, 1..10); 0 and 255 become 0.

    Raises LegendError on any other code outside 1..17.

    >>> igbp_to_dfc(np.array([1, 9, 14, 17, 255]))
    array([ 1,  3,  6, 10,  0], dtype=uint8)
    """
    igbp = np.asarray(igbp)
    IGBP.check(igbp[igbp != 0], "IGBP labels")
    return _IGBP_TO_DFC[igbp]


def dfc_to_index(dfc: NDArray[np.integer]) -> NDArray[np.uint8]:
    """
    Convert DFC2020 codes to network classes (0..7, or 255 = ignore); Savanna, Snow/Ice and 0 are ignored.

    >>> dfc_to_index(np.array([0, 1, 3, 10]))
    array([255,   0, 255,   7], dtype=uint8)
    """
    dfc = np.asarray(dfc)
    DFC2020.check(dfc, "DFC2020 labels")
    return _DFC_TO_INDEX[dfc]


def index_to_dfc(index: NDArray[np.integer]) -> NDArray[np.uint8]:
    """
    Convert network classes 0..7 to DFC2020 codes; the ignore value becomes 0.

    >>> index_to_dfc(np.array([0, 7, 255]))
    array([ 1, 10,  0], dtype=uint8)
    """
    index, n = np.asarray(index), len(SCORED)
    expected = f"network classes 0..{n - 1} (or {IGNORE}, ignored)"
    _check_codes("network classes", index, (*range(n), IGNORE), expected, "Pass network classes, not DFC2020 codes.")
    return _INDEX_TO_DFC[index]


def read_legend(path: Path) -> dict[int, int]:
    """
    Return the pairs of a legend file, YAML or JSON `{code: DFC2020 code or name}`; 0 or "none" for classes not used.

    Codes are decimal numbers and nothing else: YAML would read `yes` as 1 and `012` as 10. Raises LegendError that
    names the line, also for a code that occurs twice.
    """
    if not os.path.isfile(path):
        do = "Give igbp, dfc2020 or a file."
        raise LegendError("legend", found=f"'{path}'", expected="igbp, dfc2020 or an existing file", do=do)
    form = f"{{code: class}} with codes 0..254 and DFC2020 codes 0..10 or {', '.join(DFC2020.names)}, none"
    try:  # JSON of this form is YAML, but for its tabs
        pairs = load_yaml(_runtime.read_document(path, "a legend").expandtabs(), str(path))
    except DataError as error:
        raise LegendError(error.where, found=error.found, expected=form, do="Correct the file.") from None
    if not isinstance(pairs, dict) or not pairs:
        raise LegendError(path, found=f"no class: {pairs!r}"[:80], expected=form, do="Correct the file.")
    classes = {name.lower(): code for name, code in zip(DFC2020.names, DFC2020.codes, strict=True)} | {"none": 0}
    classes |= {str(code): code for code in (0, *DFC2020.codes)}
    legend: dict[int, int] = {}
    for code, target in pairs.items():
        name = "" if target is None else str(target).strip().lower()
        is_code = re.fullmatch(r"0|[1-9]\d{0,2}", str(code)) and int(code) < IGNORE
        if not is_code or name not in classes or int(code) in legend:
            raise LegendError(path, found=f"{code}: {target}"[:80], expected=form, do="Correct that line.")
        legend[int(code)] = classes[name]
    return legend
