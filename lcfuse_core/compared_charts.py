"""
Pictures of methods side by side: scores with their seeds and intervals, recalls by class, what each step adds.

Like `charts`: every function takes tables, as `compared` makes them, returns the figure and never shows it.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lcfuse_core.legends import DFC2020
from lcfuse_core.style import COLOURS, MARKERS, WIDTH_IN

ROW_IN = 0.34


def show_overview(table: pd.DataFrame, seeds: pd.DataFrame) -> Figure:
    """
    AA of each method: its mean, a tick for each seed, and a pale bar for the interval over regions.

    table : rows of `compared.overview`; a kind of mark and a colour for each label regime
    seeds : `compared.by_seed`; methods that *table* has not are left out
    """
    fig, ax = _lines(len(table), [str(name) for name in table.index])
    ax.hlines(range(len(table)), table["low"], table["high"], color="0.85", lw=7, label="95 % over regions")
    for row, method in enumerate(table.index):
        values = seeds.loc[method].dropna()
        ax.plot(values, np.full(len(values), row), "|", color="0.25", ms=11, mew=1.3)
    for number, regime in enumerate(dict.fromkeys(table["labels"])):
        rows = np.flatnonzero(table["labels"] == regime)
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        ax.plot(table["AA"].iloc[rows], rows, ls="", ms=8, mec="white", label=f"mean, {regime}", **look)
    ax.plot([], [], "|", color="0.25", ms=11, mew=1.3, label="a seed")
    ax.set_xlim(0, None)
    ax.set_xlabel("AA, per cent")
    fig.legend(loc="outside upper left", ncols=2)
    return fig


def show_gains(table: pd.DataFrame) -> Figure:
    """What each step adds to AA: a table of `compared.gains`; a tick a seed, the mean, the interval over regions."""
    fig, ax = _lines(len(table), [str(name) for name in table.index])
    ax.axvline(0, color="0.3", lw=1.2, ls="--")
    ax.hlines(range(len(table)), table["low"], table["high"], color="0.85", lw=7, label="95 % over regions, first seed")
    seeds = table.filter(like="seed ")
    for row in range(len(table)):
        values = seeds.iloc[row].dropna()
        ax.plot(values, np.full(len(values), row), "|", color="0.25", ms=11, mew=1.3)
    for earns, colour, marker, text in (
        (True, COLOURS[0], "o", "earns its place"),
        (False, COLOURS[1], "X", "does not"),
    ):
        rows = np.flatnonzero(table["earns"].astype(bool) == earns)
        ax.plot(table["mean"].iloc[rows], rows, ls="", marker=marker, color=colour, ms=8, mec="white", label=text)
    ax.plot([], [], "|", color="0.25", ms=11, mew=1.3, label="a seed")
    ax.set_xlabel("AA, points gained")
    fig.legend(loc="outside upper left", ncols=2)
    return fig


def show_recalls(table: pd.DataFrame) -> Figure:
    """Recall in per cent, rows methods, columns classes by name: a table of `compared.recalls`; dark is high."""
    fig, ax = _lines(len(table), [str(name) for name in table.index])
    ax.grid(False)
    values = table.to_numpy(float)
    edges = np.arange(values.shape[0] + 1) - 0.5
    ax.pcolormesh(np.arange(values.shape[1] + 1), edges, values, cmap="Blues", vmin=0, vmax=110, edgecolors="white")
    for (row, col), value in np.ndenumerate(values):
        text, ink = ("–", "black") if np.isnan(value) else (f"{value:.0f}", "white" if value > 78 else "black")
        ax.text(col + 0.5, row, text, ha="center", va="center", color=ink, fontsize=9.5)
    code = {DFC2020.name_of(code): str(code) for code in DFC2020.codes}
    ax.set_xticks(np.arange(values.shape[1]) + 0.5, [code.get(str(name), str(name)) for name in table.columns])
    ax.xaxis.tick_top()
    ax.set_xlabel("recall of class, per cent")
    return fig


def _lines(n: int, names: list[str]) -> tuple[Figure, Axes]:
    """Axes with a line for each name, from the top."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 1.3 + ROW_IN * n), layout="constrained")
    ax.set_yticks(range(n), names)
    ax.set_ylim(n - 0.5, -0.5)
    ax.grid(axis="x")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig, ax
