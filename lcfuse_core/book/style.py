"""
The look of the book's figures: fonts, lines, and classes in their legend's colours with their code numbers.

Colour alone tells some readers nothing: each class carries its code number as a second cue, in the legend, in
the maps and on the curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend as MplLegend
from matplotlib.legend_handler import HandlerBase
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from lcfuse_core.data.legends import DFC2020, Legend

WIDTH_IN = 6.4
"""Width of a figure: with letters of 12 points it stays readable on a screen of 375 pixels."""

COLOURS = ("#33658a", "#d1495b", "#b7791f", "#4f9d69", "#7b6d8d", "#5c5c5c")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
"""For methods, scores and groups: each colour goes with one marker or line."""

STYLE = {
    "figure.facecolor": "white",  # set, not left transparent: the pages have a dark mode
    "savefig.facecolor": "white",
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "figure.figsize": (WIDTH_IN, 4.0),
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.45",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    "lines.linewidth": 1.6,
    "svg.hashsalt": "lcfuse",  # the same figure gives the same file
    "svg.fonttype": "path",
}


def use_book_style() -> None:
    """Give every figure from now on the look of the book (matplotlib's rcParams)."""
    plt.style.use(STYLE)


def luminance(rgba: Sequence[float]) -> float:
    """How bright a colour of 0..255 looks, 0..1 (weights of ITU-R BT.709); a transparent one is white."""
    return (0.2126 * rgba[0] + 0.7152 * rgba[1] + 0.0722 * rgba[2]) / 255 if rgba[3] else 1.0


def ink_on(rgba: Sequence[float]) -> str:
    """Black or white, whichever reads better on a colour of 0..255."""
    return "black" if luminance(rgba) > 0.43 else "white"


def line_colour(code: int, legend: Legend = DFC2020) -> tuple[float, float, float]:
    """Red, green, blue 0..1 of a class, darkened where a thin line of it would be lost on white."""
    rgba = legend.rgba(code)
    factor = min(1.0, 0.55 / max(luminance(rgba), 1e-9)) / 255
    return (rgba[0] * factor, rgba[1] * factor, rgba[2] * factor)


class Swatch:
    """What stands before a name in a legend of classes: the colour with the code number in it."""

    def __init__(self, code: int, legend: Legend = DFC2020) -> None:
        self.code, self.rgba, self.name = code, legend.rgba(code), legend.name_of(code)

    def get_label(self) -> str:
        """Name of the class (matplotlib asks for it)."""
        return self.name


class _SwatchHandler(HandlerBase):
    def create_artists(
        self,
        legend: Any,
        orig_handle: Any,
        xdescent: float,
        ydescent: float,
        width: float,
        height: float,
        fontsize: float,
        trans: Any,
    ) -> list[Artist]:
        face = [value / 255 for value in orig_handle.rgba]
        low = (-xdescent, -ydescent - 0.15 * height)
        box = Rectangle(low, width, 1.3 * height, facecolor=face, edgecolor="0.5", linewidth=0.5)
        middle = (width / 2 - xdescent, height / 2 - ydescent)
        number = Text(*middle, str(orig_handle.code), fontsize=0.8 * fontsize, color=ink_on(orig_handle.rgba))
        number.set(ha="center", va="center_baseline")
        for artist in (box, number):
            artist.set_transform(trans)
        return [box, number]


def legend_handles(maps: Iterable[NDArray[np.integer]], legend: Legend = DFC2020) -> list[Swatch]:
    """Legend entries of the classes present in any of several maps, in the order of the legend."""
    present = {code for codes in maps for code in np.unique(codes).tolist()}
    return [Swatch(code, legend) for code in (*legend.codes, legend.unknown) if code in present]


def add_legend(where: Axes | Figure, handles: list[Swatch], **options: Any) -> MplLegend:
    """Draw a legend of classes on axes or, with `loc="outside lower left"`, on a figure."""
    look = {"handlelength": 1.6, "handleheight": 1.0, "labelspacing": 0.55, "borderaxespad": 0.0}
    return where.legend(handles=handles, handler_map={Swatch: _SwatchHandler()}, **(look | options))
