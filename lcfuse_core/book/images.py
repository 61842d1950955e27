"""
Pictures of patches and maps, as they stand in the book: quiet, on white, readable on a phone.

`show_...` functions that make a figure return it and never show it; those that take axes draw on them.
Pictures of numbers (scores, spectra, learning curves) are in `charts`, the look of both in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from lcfuse_core.book.style import WIDTH_IN, Swatch, add_legend, ink_on, legend_handles
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import DFC2020, Legend, igbp_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError, ParameterError

S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""Order of the bands in SEN12MS and DFC2020 files."""

S1_BANDS = ("VV", "VH")
PIXEL_M = 10.0
MODIS, REFERENCE = "MODIS, 500 m", "Reference, 10 m"

HALO = [withStroke(linewidth=2.5, foreground="black")]
FIELD_COLOURS = ("#ff4f9a", "#ffb000", "#4ee0ff", "#b9a2ff")
"""Of receptive fields, on an image."""


def band(patch: Patch, name: str) -> NDArray[np.float32]:
    """
    One band by name, float32 (H, W): Sentinel-2 (`B1`..`B12`) as reflectance, Sentinel-1 (`VV`, `VH`) in dB.

    Raises ParameterError on another name.
    """
    if name in S2_BANDS:
        return patch.s2[S2_BANDS.index(name)].astype(np.float32) / 10_000
    if name in S1_BANDS:
        return patch.s1[S1_BANDS.index(name)].astype(np.float32)
    known = ", ".join((*S2_BANDS, *S1_BANDS))
    raise ParameterError("band", found=repr(name), expected=known, do="Choose one of them.")


def rgb(patch: Patch, bands: Sequence[str] = ("B4", "B3", "B2"), percent: float = 2.0) -> NDArray[np.float32]:
    """
    A colour image of three Sentinel-2 bands, float32 (H, W, 3) in 0..1, for imshow.

    From each band its dark value (the *percent* percentile: mostly haze, in blue the most) is taken off; then
    one scale for all three maps the brightest percents to 1, so that hues stay what they are, and a gamma of
    0.65 lifts the shadows.
    """
    image = np.stack([band(patch, name) for name in bands])
    image -= np.percentile(image, percent, axis=(1, 2), keepdims=True)
    top = np.percentile(image.max(0), 100 - percent)
    image = np.clip(image / max(float(top), 1e-4), 0, 1) ** 0.65
    return np.moveaxis(image, 0, -1).astype(np.float32)


def radar_rgb(patch: Patch) -> NDArray[np.float32]:
    """
    Sentinel-1 in colour, float32 (H, W, 3) in 0..1.

    VV is red (-22..0 dB), VH green (-28..-6 dB), their difference blue (0..20 dB).
    """
    vv, vh = band(patch, "VV"), band(patch, "VH")
    channels = ((vv + 22) / 22, (vh + 28) / 22, (vv - vh) / 20)
    return np.clip(np.stack(channels, axis=-1), 0, 1).astype(np.float32)


def label_image(codes: NDArray[np.integer], legend: Legend = DFC2020) -> NDArray[np.uint8]:
    """Colours, uint8 RGBA (H, W, 4), of class codes (H, W); pixels without a class are transparent."""
    legend.check(codes, "label_image")
    palette = np.array([legend.rgba(code) for code in range(256)], np.uint8)
    return np.take(palette, codes, axis=0)


def show_image(ax: Axes, image: NDArray[Any], title: str = "") -> None:
    """Draw an image, (H, W, 3) or (H, W, 4), without ticks."""
    ax.imshow(image, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title)
    ax.spines[:].set_visible(True)
    ax.spines[:].set(linewidth=0.6, color="0.6")


def show_labels(
    ax: Axes, codes: NDArray[np.integer], legend: Legend = DFC2020, *, title: str = "", numbers: bool = True
) -> None:
    """
    Draw a map of class codes (H, W) in the colours of *legend*; *numbers* puts each code where it is widest.

    Raises LegendError on a code that is not in the legend.
    """
    show_image(ax, label_image(codes, legend), title)
    panel_in = ax.get_window_extent().width / cast(Figure, ax.figure).dpi
    for code in np.unique(codes) if numbers else ():
        row, col, radius_px = _widest(codes == code)
        if code != legend.unknown and radius_px > max(0.02, NUMBER_IN / panel_in) * max(codes.shape):
            ink = ink_on(legend.rgba(int(code)))
            ax.text(col, row, str(code), color=ink, ha="center", va="center", fontsize=9)


NUMBER_IN = 0.07
"""Half the size of a class's number on a map: where it has less room, it is left out."""


def _widest(mask: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Row, column and radius of the largest circle inside *mask*."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(row), int(col), float(distance.max())


def scale_bar(ax: Axes, pixel_m: float = PIXEL_M) -> None:
    """Draw a bar of a round length, at most a third of the image wide, in its lower left corner."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    width_m, height_px = (right - left) * pixel_m, abs(top - bottom)
    length_m = max((m for m in (50, 100, 200, 500, 1000, 2000, 5000, 10_000) if m <= width_m / 3), default=20)
    start, row = left + 0.05 * (right - left), bottom - 0.06 * height_px
    line = ax.plot([start, start + length_m / pixel_m], [row, row], color="white", lw=2.5, solid_capstyle="butt")
    line[0].set_path_effects([withStroke(linewidth=4.5, foreground="black")])
    text = f"{length_m} m" if length_m < 1000 else f"{length_m // 1000} km"
    middle = start + length_m / pixel_m / 2
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    ax.text(middle, row - 0.04 * height_px, text, color="black", ha="center", fontsize=9, bbox=box)


def show_cells(
    ax: Axes, ids: NDArray[np.integer] | NDArray[np.bool_], *, color: str = "black", linewidth: float = 0.8
) -> None:
    """Draw the borders of coarse cells: a line between neighbouring pixels of different *ids*, int (H, W)."""
    row, col = np.nonzero(ids[:, 1:] != ids[:, :-1])
    upright = np.stack([np.stack([col + 0.5, row - 0.5], 1), np.stack([col + 0.5, row + 0.5], 1)], 1)
    row, col = np.nonzero(ids[1:] != ids[:-1])
    level = np.stack([np.stack([col - 0.5, row + 0.5], 1), np.stack([col + 0.5, row + 0.5], 1)], 1)
    ax.add_collection(LineCollection([*upright, *level], colors=color, linewidths=linewidth), autolim=False)


def _panels(n: int, shape: tuple[int, int], columns: int = 0) -> tuple[Figure, list[Axes]]:
    """A grid of *n* panels for images of one shape; the axes left over are switched off and come last."""
    columns = columns or (n if n < 3 else 2 if n == 4 else 3)
    rows = -(-n // columns)
    height_in = rows * (WIDTH_IN / columns * shape[0] / shape[1] + 0.27)
    fig, grid = plt.subplots(rows, columns, figsize=(WIDTH_IN, height_in), squeeze=False, layout="constrained")
    for ax in grid.flat[n:]:
        ax.set_axis_off()
    return fig, list(grid.flat)


LEGEND_ROW_IN = 0.25


def _finish(fig: Figure, axes: list[Axes], n: int, handles: list[Swatch]) -> Figure:
    """Scale bar in the first panel; legend in a cell left over where it has room, else below the panels."""
    scale_bar(axes[0])
    grid = axes[0].get_gridspec()
    panel_in = fig.get_figheight() / (grid.nrows if grid else 1)
    if len(axes) > n and len(handles) * LEGEND_ROW_IN <= panel_in:
        add_legend(axes[n], handles, loc="center left").set_in_layout(False)
    elif handles:
        fig.set_figheight(fig.get_figheight() + LEGEND_ROW_IN * -(-len(handles) // 3) + 0.1)
        add_legend(fig, handles, loc="outside lower left", ncols=3)
    return fig


def show_patch(patch: Patch) -> Figure:
    """
    All that a patch holds: two views of Sentinel-2, Sentinel-1, the MODIS label and the 10 m reference.

    Both label maps are in DFC2020 classes and share one legend; what the patch has not is left out.
    """
    images: dict[str, NDArray[Any]] = {
        "Natural colour": rgb(patch),
        "Near infrared": rgb(patch, ("B8", "B4", "B3")),
        "Radar": radar_rgb(patch),
    }
    return _show_all(images, _own_maps(patch))


def show_maps_side_by_side(maps: Mapping[str, NDArray[np.integer]], patch: Patch) -> Figure:
    """
    The image, the MODIS label, the *maps* (by name: DFC2020 codes (H, W)) and the reference, with one legend.

    Raises GridError when a map has not the size of the patch.
    """
    _check_shapes(maps, patch)
    own = _own_maps(patch)
    reference = {name: own.pop(name) for name in list(own) if name == REFERENCE}
    return _show_all({"Sentinel-2": rgb(patch)}, own | dict(maps) | reference)


def show_so_far(
    pictures: Mapping[str, NDArray[Any]],
    patch: Patch,
    *,
    reference: bool = True,
    cells: NDArray[np.integer] | None = None,
) -> Figure:
    """
    A place as far as a chapter has come: small pictures in a row, from its MODIS label to its reference.

    pictures : what the chapter adds, by name: images (H, W, 3) in 0..1 or maps of DFC2020 codes (H, W)
    reference : whether the row ends in it, where the patch has one
    cells : number of the coarse cell of each pixel, int (H, W), to be outlined on all of them

    Raises GridError when a picture has not the size of the patch.
    """
    _check_shapes(pictures, patch)
    own = _own_maps(patch)
    last = {name: own.pop(name) for name in list(own) if name == REFERENCE}
    row: dict[str, NDArray[Any]] = own | dict(pictures) | (last if reference else {})
    n = len(row)
    fig, axes = _panels(n, patch.s2.shape[1:], columns=4 if n == 4 or n > 6 else 3)
    for ax, (title, picture) in zip(axes, row.items(), strict=False):
        is_image = picture.ndim == 3
        (show_image if is_image else show_labels)(ax, picture, title=title)
        if cells is not None:
            show_cells(ax, cells, color="white" if is_image else "black", linewidth=0.6)
    return _finish(fig, axes, n, legend_handles(picture for picture in row.values() if picture.ndim == 2))


def _check_shapes(pictures: Mapping[str, NDArray[Any]], patch: Patch) -> None:
    for name, picture in pictures.items():
        if picture.shape[:2] != patch.s2.shape[1:]:
            found, expected = f"shape {picture.shape}", f"{patch.s2.shape[1:]}, that of the patch"
            raise GridError(name, found=found, expected=expected, do="Draw a map with the patch it was made from.")


def _own_maps(patch: Patch) -> dict[str, NDArray[np.integer]]:
    maps: dict[str, NDArray[np.integer]] = {}
    if patch.lc is not None:
        maps[MODIS] = igbp_to_dfc(patch.lc[0])
    if patch.dfc is not None:
        maps[REFERENCE] = patch.dfc
    return maps


def _show_all(images: Mapping[str, NDArray[Any]], maps: Mapping[str, NDArray[np.integer]]) -> Figure:
    n = len(images) + len(maps)
    shape = next(iter(images.values())).shape[:2]
    fig, axes = _panels(n, shape)
    for ax, (title, image) in zip(axes, images.items(), strict=False):
        show_image(ax, image, title)
    for ax, (title, codes) in zip(axes[len(images) :], maps.items(), strict=False):
        show_labels(ax, codes, title=title)
    return _finish(fig, axes, n, legend_handles(maps.values()))


def show_receptive_field(fields_px: Mapping[str, int], patch: Patch) -> Figure:
    """
    What each network sees around one pixel: squares of *fields_px* pixels on image and coarse cells.

    The cells are drawn where the patch is georeferenced. A field larger than the patch is only named.
    """
    height, width = patch.s2.shape[1:]
    size_in = 5.0
    fig, ax = plt.subplots(figsize=(size_in, size_in * height / width + 0.25 * len(fields_px) + 0.1))
    show_image(ax, rgb(patch))
    if patch.crs is not None and patch.transform is not None:
        show_cells(ax, cell_ids(patch.transform, patch.crs, (height, width))[0], color="white", linewidth=0.7)
    for number, (name, size) in enumerate(sorted(fields_px.items(), key=lambda item: item[1])):
        corner = (width // 2 - size / 2, height // 2 - size / 2)
        square = Rectangle(corner, size, size, fill=False, ec=FIELD_COLOURS[number % 4], lw=2.2)
        square.set_label(f"{name}: {size} px = {PIXEL_M * size:.0f} m")
        ax.add_patch(square)
    scale_bar(ax)
    fig.legend(loc="outside lower left")
    return fig
