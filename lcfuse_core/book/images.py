"""
Images of patches and scenes, label maps and figures of both, in the style of the book.

`show_...` functions that make a figure return it and never show it; those that take axes draw on them.
Colour alone does not separate classes for every reader: each class also carries its code number, in the legend and
on the maps. Charts of scores and curves are in `charts`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from lcfuse_core.data.bands import CHANNELS
from lcfuse_core.data.bands import S2_BANDS as S2_BANDS  # chapters take the names from here
from lcfuse_core.data.legends import DFC2020, Legend, igbp_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError, ParameterError

# Style -------------------------------------------------------------------------------------------

WIDTH_IN = 6.4
"""Width of a figure: with letters of 12 points it stays readable on a screen of 375 pixels."""

COLOURS = ("#33658a", "#d1495b", "#b7791f", "#4f9d69", "#7b6d8d", "#5c5c5c")
MARKERS = ("o", "s", "^", "D", "v", "P")
"""For methods, scores and groups: each colour goes with one marker."""

_STYLE = {
    # White is set, not left transparent: the pages have a dark mode.
    "figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 120, "savefig.dpi": 120,
    "figure.figsize": (WIDTH_IN, 4.0), "figure.constrained_layout.use": True,
    "font.size": 12, "axes.titlesize": 12, "axes.titlelocation": "left", "axes.labelsize": 12,
    "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11.5, "legend.frameon": False,
    "axes.prop_cycle": cycler(color=COLOURS), "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "0.45", "axes.axisbelow": True, "grid.color": "0.9", "xtick.color": "0.3", "ytick.color": "0.3",
    "lines.linewidth": 1.6, "svg.hashsalt": "lcfuse", "svg.fonttype": "path",  # the same figure gives the same file
    "figure.hooks": [f"{__name__}:_label_origin"],
}  # fmt: skip

_origin = {"text": ""}


def use_book_style(origin: str = "") -> None:
    """
    Give every figure from now on the style of the book (matplotlib's rcParams).

    *origin*, such as "synthetic sample" or the attribution of images, is written below every figure, so that a copied
    picture still carries it.
    """
    _origin["text"] = origin
    plt.style.use(_STYLE)


def origin() -> str:
    """Return the text that `use_book_style` was given for figures."""
    return _origin["text"]


def _label_origin(fig: Figure) -> None:
    """Write the origin of the data below a new figure; matplotlib calls this through its setting `figure.hooks`."""
    if origin():
        # Below the figure's edge: it takes no room from the layout, and notebooks save the tight box around all.
        lines = textwrap.fill(origin(), round(15 * fig.get_figwidth()))  # an attribution may be longer than the figure
        fig.text(1.0, 0.0, lines, ha="right", va="top", fontsize=9, color="0.4")


def ink_on(rgba: Sequence[float]) -> str:
    """Return black or white, whichever reads better on a colour of 0..255; on a transparent one black."""
    luminance = (0.2126 * rgba[0] + 0.7152 * rgba[1] + 0.0722 * rgba[2]) / 255  # weights of ITU-R BT.709
    return "black" if luminance > 0.43 or not rgba[3] else "white"


_LEGEND_COLUMNS, _LEGEND_ROW_IN = 3, 0.25


def _present(maps: Iterable[ArrayLike]) -> list[int]:
    """Return the codes that occur in any of the *maps*, in the order of the legend, no class last."""
    found = {int(code) for codes in maps for code in np.unique(codes)}
    return [code for code in (*DFC2020.codes, DFC2020.unknown) if code in found]


def add_legend(where: Axes | Figure, maps: Iterable[ArrayLike], **options: Any) -> None:
    """
    Draw a legend of the classes in several maps of DFC2020 codes: colour, code number and name.

    On a figure it stands below all axes in three columns; *options* are those of matplotlib's `legend`.
    """
    look: dict[str, Any] = {"handlelength": 1.4, "handleheight": 1.1, "labelspacing": 0.55, "borderaxespad": 0.0}
    if isinstance(where, Figure):
        look |= {"loc": "outside lower left", "ncols": _LEGEND_COLUMNS}
    handles = []
    for code in _present(maps):
        name = f"{code}  {DFC2020.name_of(code)}" if code != DFC2020.unknown else DFC2020.name_of(code)
        handles.append(Rectangle((0, 0), 1, 1, fc=np.array(DFC2020.rgba(code)) / 255, ec="0.5", lw=0.5, label=name))
    where.legend(handles=handles, **(look | options))


# Pixels ------------------------------------------------------------------------------------------


def band(patch: Patch, name: str) -> NDArray[np.float32]:
    """Return a band by its name, else ParameterError: float32 (H, W), reflectance 0-1 or, for VV and VH, dB."""
    if name not in CHANNELS:
        raise ParameterError("band", found=repr(name), expected=", ".join(CHANNELS), do="Choose one of them.")
    if name in S2_BANDS:
        return patch.s2[S2_BANDS.index(name)].astype(np.float32) / 10_000
    return patch.s1[CHANNELS.index(name) - len(S2_BANDS)].astype(np.float32)


def rgb(patch: Patch, bands: Sequence[str] = ("B4", "B3", "B2")) -> NDArray[np.float32]:
    """
    Return a colour image of three Sentinel-2 bands for `imshow`, float32 (H, W, 3) in 0..1.

    The second percentile of each band (mostly haze) is subtracted. Then one scale for all three maps the brightest
    two percent to 1, so that hues are kept, and a gamma of 0.65 brightens the shadows.
    """
    image = np.stack([band(patch, name) for name in bands])
    image -= np.percentile(image, 2, axis=(1, 2), keepdims=True)
    top = np.percentile(image.max(0), 98)
    image = np.clip(image / max(float(top), 1e-4), 0, 1) ** 0.65
    return np.moveaxis(image, 0, -1).astype(np.float32)


def radar_rgb(patch: Patch) -> NDArray[np.float32]:
    """Return Sentinel-1 in colour, (H, W, 3) in 0..1: VV red (-22..0 dB), VH green (-28..-6), VV - VH blue (0..20)."""
    vv, vh = band(patch, "VV"), band(patch, "VH")
    channels = ((vv + 22) / 22, (vh + 28) / 22, (vv - vh) / 20)
    return np.clip(np.stack(channels, axis=-1), 0, 1).astype(np.float32)


def scene_rgb(s2: NDArray[np.uint16], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a natural-colour image (H, W, 3) in 0..1 of a scene (13, H, W); pixels that are not *valid* are white."""
    filler = np.median(s2.reshape(13, -1)[:, valid.ravel()], axis=1).astype(np.uint16)
    filled = np.where(valid, s2, filler[:, None, None])  # invalid pixels must not change the stretch
    image = rgb(Patch("scene", np.zeros((2, *valid.shape), np.float32), filled))
    image[~valid] = 1
    return image


def _label_image(codes: NDArray[np.integer], legend: Legend = DFC2020) -> NDArray[np.uint8]:
    """Return the colours, uint8 RGBA (H, W, 4), of class codes (H, W); pixels without a class are transparent."""
    legend.check(codes, "map")
    palette = np.array([legend.rgba(code) for code in range(256)], np.uint8)
    return np.take(palette, codes, axis=0)


# Drawing on axes ---------------------------------------------------------------------------------

_NUMBERS = {9: 0.07, 7: 0.045}
"""Sizes of a class number on a map in points, and half of the room each needs in inches."""


def show_image(ax: Axes, image: NDArray[Any], title: str = "") -> None:
    """Draw an image, (H, W, 3) or (H, W, 4), without ticks."""
    ax.imshow(image, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title)
    ax.spines[:].set_visible(True)
    ax.spines[:].set(linewidth=0.6, color="0.6")


def show_labels(ax: Axes, codes: NDArray[np.integer], legend: Legend = DFC2020, *, title: str = "") -> None:
    """Draw a map of codes (H, W) of a legend (else LegendError) in its colours, each code where its class is widest."""
    show_image(ax, _label_image(codes, legend), title)
    panel_in = ax.get_window_extent().width / cast(Figure, ax.figure).dpi
    least_px = {size: max(0.02, room / panel_in) * max(codes.shape) for size, room in _NUMBERS.items()}
    for code in np.unique(codes[codes != legend.unknown]):
        # The largest circle inside the class; the rim of the map ends it, too.
        distance = ndimage.distance_transform_edt(np.pad(codes == code, 1))[1:-1, 1:-1]
        row, col = np.unravel_index(int(distance.argmax()), codes.shape)
        size = next((size for size, least in least_px.items() if distance.max() > least), None)
        if size:
            ink = ink_on(legend.rgba(int(code)))
            ax.text(int(col), int(row), str(code), color=ink, ha="center", va="center", fontsize=size)


def show_cell_borders(ax: Axes, ids: NDArray[Any], *, color: str = "black", linewidth: float = 0.8) -> None:
    """Draw the borders of coarse cells: a line between neighbouring pixels of different *ids*, int or bool (H, W)."""
    row, col = np.nonzero(ids[:, 1:] != ids[:, :-1])
    upright = np.stack([np.stack([col + 0.5, row - 0.5], 1), np.stack([col + 0.5, row + 0.5], 1)], 1)
    row, col = np.nonzero(ids[1:] != ids[:-1])
    level = np.stack([np.stack([col - 0.5, row + 0.5], 1), np.stack([col + 0.5, row + 0.5], 1)], 1)
    ax.add_collection(LineCollection([*upright, *level], colors=color, linewidths=linewidth), autolim=False)


def _scale_bar(ax: Axes) -> None:
    """Draw a bar of a round length, at most a third of the image wide, below the image: it covers no pixel."""
    longest = 10 * abs(np.subtract(*ax.get_xlim())) / 3  # pixels have 10 m
    length_m = max((m for m in (50, 100, 200, 500, 1000, 2000, 5000, 10_000) if m <= longest), default=20)
    name = f"{length_m} m" if length_m < 1000 else f"{length_m // 1000} km"
    below = {"bbox_to_anchor": (0, 0), "bbox_transform": ax.transAxes, "frameon": False}
    bar = AnchoredSizeBar(
        ax.transData, length_m / 10, name, "upper left", pad=0, borderpad=0.3, sep=3, label_top=False,
        fontproperties=FontProperties(size=9), **below,
    )  # fmt: skip
    bar.size_bar.get_children()[0].set(lw=2.5, edgecolor="0.2")
    ax.add_artist(bar)


# Figures -----------------------------------------------------------------------------------------


def show_panels(pictures: Mapping[str, NDArray[Any]], *, columns: int = 0, cells: NDArray[Any] | None = None) -> Figure:
    """
    Draw pictures of one region in panels, with a scale bar below the last row and one legend of all classes.

    Parameters
    ----------
    pictures : mapping of str to ndarray
        By title: images (H, W, 3) or (H, W, 4), and maps of DFC2020 codes (H, W), with pixels of 10 m. Raises GridError
        if they differ in size.
    columns : int
        0: up to three, and two for four pictures.
    cells : ndarray of int or bool, shape (H, W)
        Coarse cell of each pixel; the borders are drawn on every picture.
    """
    n, (first, *_), shape = len(pictures), pictures, next(iter(pictures.values())).shape[:2]
    for title, picture in pictures.items():
        if picture.shape[:2] != shape:
            found, expected = f"shape {picture.shape}", f"{shape}, that of {first}"
            raise GridError(title, found=found, expected=expected, do="Draw a map with the patch it was made from.")
    columns = columns or (n if n < 3 else 2 if n == 4 else 3)
    rows = -(-n // columns)
    panel_in = WIDTH_IN / columns * shape[0] / shape[1] + 0.27
    fig, grid = plt.subplots(rows, columns, figsize=(WIDTH_IN, rows * panel_in), squeeze=False, layout="constrained")
    for ax in grid.flat[n:]:
        ax.set_axis_off()
    for ax, (title, picture) in zip(grid.flat, pictures.items(), strict=False):
        is_image = picture.ndim == 3
        (show_image if is_image else show_labels)(ax, picture, title=title)
        if cells is not None:
            show_cell_borders(ax, cells, color="white" if is_image else "black", linewidth=0.6)
    _scale_bar(grid[-1, 0])
    present = _present(picture for picture in pictures.values() if picture.ndim == 2)
    if grid.size > n and len(present) * _LEGEND_ROW_IN <= panel_in:  # it has room in a panel that is left over
        ax = grid.flat[n]
        add_legend(ax, present, loc="lower left")
        ax.get_legend().set_in_layout(False)
    elif present:
        fig.set_figheight(fig.get_figheight() + _LEGEND_ROW_IN * -(-len(present) // _LEGEND_COLUMNS) + 0.1)
        add_legend(fig, present)
    return fig


def _own_maps(patch: Patch) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the MODIS label and the reference of a patch, in DFC2020 codes by title; empty where it has none."""
    modis = {} if patch.lc is None else {"MODIS, 500 m": igbp_to_dfc(patch.lc[0])}
    return modis, {} if patch.dfc is None else {"Reference, 10 m": patch.dfc}


def show_patch(patch: Patch) -> Figure:
    """Draw all layers of a patch: Sentinel-2 twice, Sentinel-1, MODIS label and reference, as far as it has them."""
    modis, reference = _own_maps(patch)
    images = {"Natural colour": rgb(patch), "Near infrared": rgb(patch, ("B8", "B4", "B3")), "Radar": radar_rgb(patch)}
    return show_panels(images | modis | reference)


def show_maps_side_by_side(maps: Mapping[str, NDArray[np.integer]], patch: Patch) -> Figure:
    """Draw the image, the MODIS label, the *maps* (by title: DFC2020 codes (H, W) of its size) and the reference."""
    modis, reference = _own_maps(patch)
    return show_panels({"Sentinel-2": rgb(patch), **modis, **maps, **reference})


def show_example_patch(
    pictures: Mapping[str, NDArray[Any]], patch: Patch, *, reference: bool = True, cells: NDArray[Any] | None = None
) -> Figure:
    """
    Draw *pictures* of the example patch, as for `show_panels`, between its MODIS label and its reference.

    The reference is left out when *reference* is false, or when the patch has none.
    """
    modis, last = _own_maps(patch)
    row: dict[str, NDArray[Any]] = {**modis, **pictures, **(last if reference else {})}
    columns = 2 if len(row) == 1 else 4 if len(row) == 4 or len(row) > 6 else 3
    return show_panels(row, columns=columns, cells=cells)


# Scenes ------------------------------------------------------------------------------------------


def varied_squares(codes: NDArray[np.integer], size: int, n: int) -> list[tuple[int, int]]:
    """Return the corners (row, col) of *n* separate squares of a map: most classes first, then most class borders."""
    found = []
    for row in range(0, codes.shape[0] - size + 1, size):
        for col in range(0, codes.shape[1] - size + 1, size):
            part = codes[row : row + size, col : col + size]
            borders = (part[1:] != part[:-1]).mean() + (part[:, 1:] != part[:, :-1]).mean()
            found.append(((part == 0).mean(), -len(np.unique(part)), -borders, row, col))
    return [(row, col) for *_, row, col in sorted(found)[:n]]


def show_insets(
    image: NDArray[Any], maps: Mapping[str, NDArray[np.integer]], corners: Sequence[tuple[int, int]], size: int = 120
) -> Figure:
    """Enlarge squares of *size* pixels of an image and its maps, a row per corner (row, col), below an overview."""
    columns = 1 + len(maps)
    fig = plt.figure(figsize=(WIDTH_IN, WIDTH_IN / columns * len(corners) + WIDTH_IN / 2.6 + 1.0))
    grid = fig.add_gridspec(1 + len(corners), columns, height_ratios=[columns / 2.6, *[1.0] * len(corners)])
    whole = fig.add_subplot(grid[0, :])
    show_image(whole, image, "Where")
    for number, (row, col) in enumerate(corners):
        colour, letter = ("#ff6b81", "#ffffff", "#ffd166")[number % 3], chr(ord("a") + number)
        whole.add_patch(Rectangle((col, row), size, size, fill=False, ec=colour, lw=2))
        halo = [withStroke(linewidth=2.5, foreground="black")]
        whole.text(col + size + 6, row, letter, color=colour, va="top", fontweight="bold", path_effects=halo)
        part = np.s_[row : row + size, col : col + size]
        show_image(fig.add_subplot(grid[1 + number, 0]), image[part], letter + "  Sentinel-2" * (number == 0))
        for place, (title, codes) in enumerate(maps.items(), start=1):
            show_labels(fig.add_subplot(grid[1 + number, place]), codes[part], title=title * (number == 0))
    _scale_bar(whole)
    add_legend(fig, maps.values())
    return fig
