"""
Pictures of what is uncertain: intervals beside the truth, how often they hold it, and scores with their intervals.

Like `charts`: every function takes a table, returns the figure and never shows it.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lcfuse_core.style import COLOURS, MARKERS, WIDTH_IN

MISSED, HELD = COLOURS[1], COLOURS[0]


def show_examples(table: pd.DataFrame) -> Figure:
    """One panel a kind of interval, one bar a data set, the truth as a line: a table of `coverage.examples`."""
    truth, kinds = table.attrs["truth"], list(dict.fromkeys(table["interval"]))
    fig, panels = plt.subplots(
        len(kinds), 1, figsize=(WIDTH_IN, 0.6 + 1.7 * len(kinds)), sharex=True, sharey=True, layout="constrained"
    )
    for ax, kind in zip(np.atleast_1d(panels), kinds, strict=True):
        rows = table[table["interval"] == kind]
        held = (rows["low"] <= truth) & (truth <= rows["high"])
        for name, part, colour, marker in (("holds it", held, HELD, "o"), ("misses it", ~held, MISSED, "x")):
            one = rows[part]
            ax.vlines(one["data_set"], one["low"], one["high"], color=colour, lw=2.2)
            ax.plot(one["data_set"], one["value"], marker, color=colour, ms=5, label=name)
        ax.axhline(truth, color="0.3", lw=1.2, ls="--", label="true AA")
        ax.set(title=f"over {kind}", ylabel="AA, per cent")
        ax.grid(axis="y")
    np.atleast_1d(panels)[-1].set(xlabel="data set", xticks=[])
    handles = {text: handle for ax in fig.axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3)
    return fig


def show_coverage(table: pd.DataFrame) -> Figure:
    """How often each kind of interval holds the truth, by number of scenes: a table of `coverage.coverage`."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.4), layout="constrained")
    ax.axhspan(92, 98, color="0.9", lw=0)
    ax.axhline(95, color="0.3", lw=1.2, ls="--")
    numbers = sorted(set(table["scenes"]))
    for number, (kind, rows) in enumerate(table.groupby("interval", sort=False)):
        places = [numbers.index(n) + 0.04 * number for n in rows["scenes"]]  # so that none hides another
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        ax.plot(places, rows["covered"], label=str(kind), ms=7, mec="white", **look)
    ax.set_xticks(range(len(numbers)), [str(n) for n in numbers])
    ax.set(xlabel="scenes in a data set", ylabel="truth held, per cent", ylim=(0, 100))
    ax.margins(x=0.08)
    fig.legend(loc="outside upper left", ncols=2)
    return fig


def show_intervals(table: pd.DataFrame, *, label: str = "per cent", zero: bool = False) -> Figure:
    """
    A dot and a bar a row: columns value, low and high, as of `intervals.interval_table`; NaN bars are left out.

    zero : draw a line at 0, for differences
    """
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 0.8 + 0.34 * len(table)), layout="constrained")
    rows = np.arange(len(table))
    ax.hlines(rows, table["low"], table["high"], color=HELD, lw=2.2)
    ax.plot(table["value"], rows, "o", color=HELD, ms=7, mec="white")
    if zero:
        ax.axvline(0, color="0.3", lw=1.2, ls="--")
    ax.set_yticks(rows, [str(name) for name in table.index])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(label)
    return fig
