"""Pictures of a map of a scene: whole, zoomed into, and where it is unsure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lcfuse_core.book.images import HALO, LEGEND_ROW_IN, label_image, rgb, scale_bar, show_image, show_labels
from lcfuse_core.book.style import WIDTH_IN, add_legend, legend_handles
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError, MissingDataError
from lcfuse_core.mapping.coarse import open_coarse
from lcfuse_core.mapping.make import Inputs
from lcfuse_core.mapping.scene import Grid, Seen

INSET_COLOURS = ("#ff6b81", "#ffffff", "#ffd166")


def scene_image(seen: Seen) -> NDArray[np.float32]:
    """A natural-colour picture, float32 (H, W, 3) in 0..1; white where nothing was seen."""
    nothing = np.zeros((2, *seen.valid.shape), np.float32)
    flat = seen.s2.reshape(13, -1)
    filler = np.median(flat[:, seen.valid.ravel()], axis=1).astype(np.uint16)
    filled = np.where(seen.valid, seen.s2, filler[:, None, None])  # what is not seen must not set the stretch
    image = rgb(Patch("scene", nothing, filled))
    image[~seen.valid] = 1
    return image


def picture(codes: NDArray) -> NDArray[np.uint8]:
    """A class map (H, W) in its colours, or an image (H, W, 3) of 0..1, as uint8 (H, W, 3); no class: white."""
    if codes.ndim == 3:
        return np.rint(255 * codes).astype(np.uint8)
    colours = label_image(codes)
    return np.where(colours[..., 3:] > 0, colours[..., :3], 255).astype(np.uint8)


def coarse_codes(inputs: Inputs, grid: Grid) -> NDArray[np.uint8]:
    """The coarse map of a scene in DFC2020 codes, uint8 (H, W), each pixel with the label of its cell."""
    if inputs.coarse is None:
        do = "Give one in the inputs."
        raise MissingDataError("inputs", found="no coarse map", expected="one", do=do)
    rows, cols = (slice(0, size) for size in grid.shape)
    with open_coarse(inputs.coarse, grid, inputs.legend) as coarse:
        return coarse.dfc2020(grid, rows, cols)


def read_confidence(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The confidence of a map, float32 (H, W) in 0..1, NaN where there is no class."""
    with rasterio.open(path) as file:
        steps, scale, nothing = file.read(1), file.scales[0], file.nodata
    return np.where(steps == nothing, np.nan, steps * np.float32(scale)).astype(np.float32)


def show_panels(image: NDArray[np.floating], maps: Mapping[str, NDArray[np.integer]]) -> Figure:
    """The picture of a scene and *maps* of it (DFC2020 codes) side by side, with one legend."""
    _check(image.shape[:2], maps)
    handles = legend_handles(maps.values())
    below_in = LEGEND_ROW_IN * -(-len(handles) // 3) + 0.4  # the legend, and the titles
    fig, axes = plt.subplots(1, 1 + len(maps), figsize=(WIDTH_IN, WIDTH_IN / (1 + len(maps)) + below_in))
    show_image(axes[0], image, "Sentinel-2")
    for ax, (title, codes) in zip(axes[1:], maps.items(), strict=True):
        show_labels(ax, codes, title=title)
    scale_bar(axes[0])
    add_legend(fig, handles, loc="outside lower left", ncols=3)
    return fig


def show_insets(
    image: NDArray[np.floating],
    maps: Mapping[str, NDArray[np.integer]],
    corners: Sequence[tuple[int, int]],
    size: int = 120,
) -> Figure:
    """Squares of *size* pixels enlarged: a row for each corner (row, col), the image first; above, where they lie."""
    _check(image.shape[:2], maps)
    columns = 1 + len(maps)
    height = WIDTH_IN / columns * (len(corners)) + WIDTH_IN / 2.6 + 1.0
    fig = plt.figure(figsize=(WIDTH_IN, height))
    grid = fig.add_gridspec(1 + len(corners), columns, height_ratios=[columns / 2.6, *[1.0] * len(corners)])
    whole = fig.add_subplot(grid[0, :])
    show_image(whole, image, "Where")
    scale_bar(whole)
    for number, (row, col) in enumerate(corners):
        colour = INSET_COLOURS[number % len(INSET_COLOURS)]
        whole.add_patch(Rectangle((col, row), size, size, fill=False, ec=colour, lw=2))
        label = chr(ord("a") + number)
        whole.text(col + size + 6, row, label, color=colour, va="top", fontweight="bold", path_effects=HALO)
        part = np.s_[row : row + size, col : col + size]
        ax = fig.add_subplot(grid[1 + number, 0])
        show_image(ax, image[part], f"{label}  Sentinel-2" if number == 0 else label)
        for place, (title, codes) in enumerate(maps.items(), start=1):
            ax = fig.add_subplot(grid[1 + number, place])
            show_labels(ax, codes[part], title=title if number == 0 else "")
    add_legend(fig, legend_handles(maps.values()), loc="outside lower left", ncols=3)
    return fig


def show_confidence(confidence: NDArray[np.floating], right: NDArray[np.bool_] | None = None) -> Figure:
    """
    The highest probability at each pixel, NaN where there is no class, and, with *right*, how often it was right.

    right : bool (H, W), whether the map is right at a pixel
    """
    n = 1 if right is None else 2
    fig, axes = plt.subplots(1, n, figsize=(WIDTH_IN, WIDTH_IN / 2), squeeze=False)
    drawn = axes[0, 0].imshow(confidence, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes[0, 0].set(xticks=[], yticks=[], title="Confidence")
    fig.colorbar(drawn, ax=axes[0, 0], shrink=0.8)
    if right is not None:
        known = np.isfinite(confidence)
        bins = np.clip((confidence[known] * 10).astype(int), 0, 9)
        size = np.bincount(bins, minlength=10)
        share = np.bincount(bins, right[known], minlength=10) / np.maximum(size, 1)
        enough = size >= 0.002 * size.sum()
        middle = (np.arange(10) + 0.5) / 10
        axes[0, 1].plot([0, 1], [0, 1], color="0.6", ls=":")
        axes[0, 1].plot(middle[enough], share[enough], marker="o", clip_on=False)
        axes[0, 1].set(
            xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), title="Is it right?"
        )
    return fig


def busiest(codes: NDArray[np.integer], size: int, n: int) -> list[tuple[int, int]]:
    """Corners (row, col) of the *n* squares of a map with the most classes, then the most borders; they do not meet."""
    found = []
    for row in range(0, codes.shape[0] - size + 1, size):
        for col in range(0, codes.shape[1] - size + 1, size):
            part = codes[row : row + size, col : col + size]
            borders = (part[1:] != part[:-1]).mean() + (part[:, 1:] != part[:, :-1]).mean()
            found.append(((part == 0).mean(), -len(np.unique(part)), -borders, row, col))
    return [(row, col) for *_, row, col in sorted(found)[:n]]


def _check(shape: tuple[int, int], maps: Mapping[str, NDArray[np.integer]]) -> None:
    for name, codes in maps.items():
        if codes.shape != shape:
            found = f"shape {codes.shape}"
            raise GridError(name, found=found, expected=f"{shape}, that of the image", do="Cut the same part.")
