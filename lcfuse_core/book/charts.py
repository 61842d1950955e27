"""
Charts of numbers: scores, confusion, learning curves, gradients and class fractions.

Every function takes a table or arrays, returns the figure and never shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lcfuse_core.book.images import COLOURS, MARKERS, WIDTH_IN, add_legend, ink_on, show_cell_borders
from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DataError
from lcfuse_core.scoring.scores import N_CODES

S2_WAVELENGTHS_NM = (443, 492, 560, 665, 704, 741, 783, 833, 865, 945, 1374, 1614, 2202)
"""Band centres of Sentinel-2A in file order (ESA, Sentinel-2 Spectral Response Functions, rounded)."""

_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
_ROW_IN = 0.34


def _look(number: int) -> dict[str, Any]:
    """Return colour and marker of the series with that number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _remove_lines(ax: Axes) -> None:
    """Remove the frame and the ticks of axes; their labels stay."""
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _heat(ax: Axes, values: NDArray[Any], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw a matrix of per cent in blue, white 0, with its rows from the top and its numbers; a dash is NaN."""
    ax.pcolormesh(values, cmap="Blues", vmin=0, vmax=110, edgecolors="white", linewidth=1.5)
    for (row, col), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.0f}" if value >= 0.5 else "·"
        look: dict[str, Any] = {"weight": "bold" if rows[row] == columns[col] else "normal"}
        look["color"] = "white" if value > 78 else "black"
        ax.text(col + 0.5, row + 0.5, text, ha="center", va="center", fontsize=10, **look)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
    ax.set_ylim(len(rows), 0)
    _remove_lines(ax)


# Scores ------------------------------------------------------------------------------------------


def show_confusion(counts: NDArray[np.integer], *, title: str = "") -> Figure:
    """
    Draw a confusion matrix as per cent of each reference class; the diagonal is the producer's accuracy (recall).

    *counts*, int (11, 11), are pixels by reference (row) and predicted (column) DFC2020 code; classes that do not
    occur are left out. Raises DataError when all counts are zero.
    """
    rows = [code for code in range(1, N_CODES) if counts[code].any()]
    if not rows:
        raise DataError("counts", found="no pixel", expected="at least one", do="Count a patch with a reference.")
    columns = sorted({*rows, *(code for code in range(N_CODES) if counts[:, code].any())})
    percent = 100 * counts[np.ix_(rows, columns)] / counts[rows].sum(1, keepdims=True)
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 1.9 + 0.42 * len(rows)), layout="constrained")
    name = {code: DFC2020.name_of(code) if code else "none" for code in columns}
    _heat(ax, percent, [name[code] for code in rows], list(name.values()))
    ax.set(xlabel="predicted class", ylabel="reference class", title=title)
    return fig


def show_scores(table: pd.DataFrame) -> Figure:
    """
    Draw numbers in per cent, one row per name and one kind of dot per column; NaN is left out.

    The names of classes, as in a `class_table`, get their code numbers.
    """
    ncols = 4 if max(len(str(name)) for name in table.columns) <= 12 else 3  # long names need the room
    code = {DFC2020.name_of(code): code for code in DFC2020.codes}
    labels = [f"{name}  {code[name]}" if name in code else str(name) for name in table.index]
    height = 0.9 + 0.25 * -(-table.shape[1] // ncols) + _ROW_IN * len(labels)
    fig, ax = plt.subplots(figsize=(WIDTH_IN, height), layout="constrained")
    rows = np.arange(len(labels))
    ax.set_yticks(rows, labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="both")
    _remove_lines(ax)
    for number, column in enumerate(table.columns):
        shift = 0.09 * (number - (table.shape[1] - 1) / 2)  # so that equal values do not hide each other
        look = _look(number) | {"ls": "", "ms": 7, "mec": "white", "mew": 0.7, "clip_on": False}
        ax.plot(table[column], rows + shift, label=column, **look)
    ax.set_xlim(0, 100)
    ax.set_xlabel("per cent")
    fig.legend(loc="outside upper left", ncols=ncols, handletextpad=0.1, columnspacing=1.2)
    return fig


def show_recalls(table: pd.DataFrame) -> Figure:
    """Draw the recall in per cent of each class (columns, by name) and method (rows); dark is high, a dash is NaN."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 2.1 + _ROW_IN * len(table)), layout="constrained")
    _heat(ax, table.to_numpy(float), list(map(str, table.index)), list(map(str, table.columns)))
    ax.xaxis.tick_top()
    ax.set_xlabel("recall of class, per cent")
    return fig


# Training ----------------------------------------------------------------------------------------


def show_history(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """
    Draw learning curves of runs by name: the loss and, where it was computed, the AA.

    A history is the sequence of lines with `step`, `loss` and `aa` (0..1 or None) that training reports.
    """
    tables = {name: pd.DataFrame(list(history)) for name, history in histories.items()}
    scored = {name: table.dropna(subset="aa") for name, table in tables.items() if "aa" in table}
    panels = 2 if any(len(table) for table in scored.values()) else 1
    size = (WIDTH_IN, 0.4 + 2.1 * panels)
    fig, grid = plt.subplots(panels, 1, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for number, (name, table) in enumerate(tables.items()):
        grid[0, 0].plot(table["step"], table["loss"], label=name, ms=5, **_look(number))
        if panels == 2 and name in scored:
            grid[1, 0].plot(scored[name]["step"], 100 * scored[name]["aa"].astype(float), ms=5, **_look(number))
    for ax, label in zip(grid.flat, ("loss", "AA, per cent"), strict=False):
        ax.set_ylabel(label)
        ax.grid(axis="y")
    grid[-1, 0].set_xlabel("step")
    if len(tables) > 1:
        fig.legend(loc="outside upper left", ncols=3)
    return fig


# Losses on one coarse cell -----------------------------------------------------------------------


def show_curves(table: pd.DataFrame, *, xlabel: str, ylabel: str, top: float | None = None) -> Figure:
    """Draw a formula, such as a loss: a line per column over the table's index, up to *top*; it rests on no data."""
    with plt.rc_context({"figure.hooks": []}):  # so the figure carries no origin
        fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.2), layout="constrained")
    for number, name in enumerate(table.columns):
        look = {"color": COLOURS[number % len(COLOURS)], "ls": _DASHES[number % len(_DASHES)]}
        ax.plot(table.index, table[name], label=name, **look)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if top is not None:
        least = float(table.to_numpy().min())
        ax.set_ylim(least - 0.05 * (top - least), top)
    ax.grid(True)
    if len(table.columns) > 1:
        fig.legend(loc="outside upper left", ncols=3)
    return fig


def show_gradients(
    gradients: Mapping[str, NDArray[np.floating]], inside: NDArray[np.bool_], top: float | None = None
) -> Figure:
    """
    Draw the gradients of several losses towards the label of one coarse cell, float (H, W) by name, on one scale.

    Dark is a strong gradient; red, where there is one, points away from the label; NaN is outside the cell. The title
    has the mean. *inside*, bool (H, W), is the cell, whose border is drawn. The scale ends at *top*, by default near
    the largest gradient.
    """
    rows, columns = -(-len(gradients) // 3), 3
    size = (WIDTH_IN, rows * (WIDTH_IN / columns * inside.shape[0] / inside.shape[1] + 0.3) + 0.6)
    fig, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in grid.flat[len(gradients) :]:
        ax.set_axis_off()
    top = top or max(float(np.nanpercentile(np.abs(field), 99)) for field in gradients.values())
    away = min(float(np.nanmin(field)) for field in gradients.values()) < -0.05 * top
    scale: dict[str, Any] = {"cmap": "RdBu", "vmin": -top} if away else {"cmap": "Blues", "vmin": 0.0}
    for ax, (name, field) in zip(grid.flat, gradients.items(), strict=False):
        mesh = ax.imshow(field, **scale, vmax=top, interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=f"{name}: {np.nanmean(field):.2f}")
        ax.spines[:].set_visible(False)
        show_cell_borders(ax, inside)
    fig.colorbar(mesh, ax=list(grid.flat), location="bottom", shrink=0.5, label="gradient towards the label", aspect=30)
    return fig


def show_fractions(rows: Mapping[str, ArrayLike]) -> Figure:
    """Draw class fractions (8,), a bar per name in the classes' colours; parts of 6 per cent or more have a number."""
    values = 100 * np.stack([np.asarray(row) for row in rows.values()])
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 1.3 + _ROW_IN * len(rows)), layout="constrained")
    for (place, k), part in np.ndenumerate(values):
        rgba, left = DFC2020.rgba(SCORED[k]), values[place, :k].sum()
        ax.barh(place, part, left=left, color=np.array(rgba) / 255, edgecolor="white", linewidth=0.7)
        if part >= 6:
            text = ax.text(left + part / 2, place, str(SCORED[k]), color=ink_on(rgba), fontsize=9)
            text.set(ha="center", va="center")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(0, 100), xlabel="per cent of the cell")
    ax.invert_yaxis()
    _remove_lines(ax)
    add_legend(fig, np.array(SCORED)[values.max(axis=0) >= 1], loc="outside upper left")
    return fig
