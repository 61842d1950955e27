"""
Pictures of one coarse cell: maps of its surroundings, the pull of losses at its pixels, its class shares, matrices.

Like `charts`: every function returns the figure and never shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lcfuse_core.book.images import show_cells, show_image, show_labels
from lcfuse_core.book.one_cell import OneCell
from lcfuse_core.book.style import COLOURS, LINES, WIDTH_IN, Swatch, add_legend, ink_on, legend_handles
from lcfuse_core.data.legends import DFC2020, SAVANNA, SCORED

MARGIN_PX = 8
"""Of the surroundings of a cell that a picture shows."""


def show_surroundings(cell: OneCell, pictures: Mapping[str, NDArray[Any]], columns: int = 3) -> Figure:
    """Images (H, W, 3) and maps of DFC2020 codes (H, W) of the patch, by name, cut to the cell, its border on each."""
    maps = [picture for picture in pictures.values() if picture.ndim == 2]
    fig, axes, window = _panels(cell, len(pictures), columns, 0.3 * -(-len(SCORED) // 3) if maps else 0.1)
    for ax, (name, picture) in zip(axes, pictures.items(), strict=False):
        show = show_image if picture.ndim == 3 else show_labels
        show(ax, picture[window], title=name)
        show_cells(ax, cell.inside[window])
    if maps:
        handles = legend_handles([one[window] for one in maps])
        add_legend(fig, handles, loc="outside lower left", ncols=3)
    return fig


def show_pulls(cell: OneCell, pulls: Mapping[str, NDArray[np.floating]], columns: int = 3) -> Figure:
    """
    How hard losses, by name, pull at each pixel of the cell towards its label: fields (H, W) of `OneCell.on_patch`.

    A title has the mean over the cell. One scale for all: dark is pulled hard, white is left in peace; red, where
    there is such a pixel, is pushed away.
    """
    fig, axes, window = _panels(cell, len(pulls), columns, 0.6)
    top = max(float(np.nanpercentile(np.abs(field), 99)) for field in pulls.values())
    pushed = min(float(np.nanmin(field)) for field in pulls.values()) < -0.05 * top
    scale: dict[str, Any] = {"cmap": "RdBu", "vmin": -top} if pushed else {"cmap": "Blues", "vmin": 0.0}
    for ax, (name, field) in zip(axes, pulls.items(), strict=False):
        mesh = ax.imshow(field[window], **scale, vmax=top, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{name}: {np.nanmean(field):.2f}")
        ax.spines[:].set_visible(False)
        show_cells(ax, cell.inside[window])
    fig.colorbar(mesh, ax=list(axes), location="bottom", shrink=0.5, label="pull towards the label", aspect=30)
    return fig


def _panels(cell: OneCell, n: int, columns: int, below_in: float) -> tuple[Figure, list[Axes], tuple[slice, slice]]:
    rows = -(-n // columns)
    window = surroundings(cell)
    height_px, width_px = (part.stop - part.start for part in window)
    height_in = rows * (WIDTH_IN / columns * height_px / width_px + 0.3) + below_in
    fig, grid = plt.subplots(rows, columns, figsize=(WIDTH_IN, height_in), squeeze=False, layout="constrained")
    for ax in grid.flat[n:]:
        ax.set_axis_off()
    return fig, list(grid.flat), window


def surroundings(cell: OneCell) -> tuple[slice, slice]:
    """Rows and columns of the cell, and some pixels more where the patch has them."""
    places = np.nonzero(cell.inside)
    first = [max(int(one.min()) - MARGIN_PX, 0) for one in places]
    last = [min(int(one.max()) + MARGIN_PX + 1, size) for one, size in zip(places, cell.inside.shape, strict=True)]
    return slice(first[0], last[0]), slice(first[1], last[1])


def show_shares(rows: Mapping[str, NDArray[np.floating]]) -> Figure:
    """Class shares (8,), a bar each by name, in the classes' colours; parts of 6 per cent or more have their number."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 1.3 + 0.34 * len(rows)), layout="constrained")
    for place, values in enumerate(rows.values()):
        left = 0.0
        for code, share in zip(SCORED, 100 * np.asarray(values), strict=True):
            rgba = DFC2020.rgba(code)
            ax.barh(place, share, left=left, color=np.array(rgba) / 255, edgecolor="white", linewidth=0.7)
            if share >= 6:
                ax.text(left + share / 2, place, str(code), color=ink_on(rgba), ha="center", va="center", fontsize=9)
            left += share
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(0, 100), xlabel="per cent of the cell")
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    present = np.stack(list(rows.values())).max(axis=0) >= 0.01
    handles = [Swatch(code) for code, there in zip(SCORED, present, strict=True) if there]
    add_legend(fig, handles, loc="outside upper left", ncols=3)
    return fig


def show_curves(table: pd.DataFrame, *, xlabel: str, ylabel: str, top: float | None = None) -> Figure:
    """A line a column over the table's index; the lines differ in colour and in dashes."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.2), layout="constrained")
    dashes = [*LINES, (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3))]
    for number, name in enumerate(table.columns):
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "ls": dashes[number % len(dashes)]}
        ax.plot(table.index, table[name], label=name, **look)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if top is not None:
        least = float(table.to_numpy().min())
        ax.set_ylim(least - 0.05 * (top - least), top)
    ax.grid(True)
    fig.legend(loc="outside upper left", ncols=3)
    return fig


def show_matrices(matrices: Mapping[str, NDArray[np.floating]]) -> Figure:
    """p(coarse | fine), (8, 9) each, by name: rows fine classes, columns labels by number, Savanna last; dark is 1."""
    n = len(matrices)
    size = (WIDTH_IN, 0.9 + WIDTH_IN / n * 0.85)
    fig, grid = plt.subplots(1, n, figsize=size, sharey=True, squeeze=False, layout="constrained")
    labels = [*map(str, SCORED), str(SAVANNA)]
    for ax, (name, matrix) in zip(grid.flat, matrices.items(), strict=True):
        ax.pcolormesh(matrix, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.7)
        ax.set_xticks(np.arange(len(labels)) + 0.5, labels)
        ax.set(title=name, xlabel="MODIS says", aspect="equal")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    first = grid.flat[0]
    first.set_yticks(np.arange(len(SCORED)) + 0.5, labels[: len(SCORED)])
    first.set_ylabel("fine class")
    first.invert_yaxis()
    return fig
