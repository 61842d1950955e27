"""
Pictures of numbers: confusion, scores, spectra, histograms, learning curves.

Every function takes a table or arrays, returns the figure and never shows it. Pictures of patches and maps
are in `figures`, the look of both in `style`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from lcfuse_core.book.images import S1_BANDS, S2_BANDS, band
from lcfuse_core.book.style import COLOURS, LINES, MARKERS, WIDTH_IN, Swatch, add_legend, line_colour
from lcfuse_core.data.legends import DFC2020
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.scoring.scores import N_CODES

S2_WAVELENGTHS_NM = (443, 492, 560, 665, 704, 741, 783, 833, 865, 945, 1374, 1614, 2202)
"""Band centres of Sentinel-2A in file order (ESA, Sentinel-2 Spectral Response Functions, rounded)."""


def show_confusion(counts: NDArray[np.integer], ax: Axes | None = None, *, title: str = "") -> Figure:
    """
    A confusion matrix, int (11, 11) of DFC2020 codes, as shares of each reference class in per cent.

    Rows: reference classes present; columns: classes predicted (by code). The diagonal is the recall.
    Raises DataError when the counts are all zero.
    """
    rows = [code for code in range(1, N_CODES) if counts[code].any()]
    if not rows:
        raise DataError("counts", found="no pixel", expected="at least one", do="Count a patch with a reference.")
    columns = sorted({*rows, *(code for code in range(N_CODES) if counts[:, code].any())})
    share = 100 * counts[np.ix_(rows, columns)] / counts[rows].sum(1, keepdims=True)
    if ax is None:
        size = (WIDTH_IN, 1.1 + 0.42 * len(rows))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.pcolormesh(share, cmap="Blues", vmin=0, vmax=110, edgecolors="white", linewidth=1.5)
    for (row, col), value in np.ndenumerate(share):
        ink = "white" if value > 78 else "black"
        weight = "bold" if rows[row] == columns[col] else "normal"
        text = f"{value:.0f}" if value >= 0.5 else "·"
        ax.text(col + 0.5, row + 0.5, text, ha="center", va="center", color=ink, weight=weight, fontsize=10)
    ax.set_yticks(np.arange(len(rows)) + 0.5, [f"{DFC2020.name_of(code)}  {code}" for code in rows])
    ax.set_xticks(np.arange(len(columns)) + 0.5, [str(code) if code else "none" for code in columns])
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="predicted class (by number)", ylabel="reference class", title=title)
    return cast(Figure, ax.figure)


def show_scores(table: pd.DataFrame) -> Figure:
    """
    Overall scores by method, a dot each: a table of `score_table`, or several (of seeds) one under the other.

    Draws the columns that end in `%`; rows of one name share a line.
    """
    columns = [name for name in table.columns if str(name).endswith("%")]
    return _dots(table[columns], [str(name) for name in table.index])


def show_recall(table: pd.DataFrame) -> Figure:
    """Recall (or precision, IoU) by class, a dot each method: a table of `class_table`; NaN is left out."""
    code = {DFC2020.name_of(code): code for code in DFC2020.codes}
    return _dots(table, [f"{name}  {code[name]}" if name in code else str(name) for name in table.index])


def _dots(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """One line for each different name, from the top, one kind of dot for each column; per cent."""
    lines = list(dict.fromkeys(names))
    ncols = 4 if max(len(str(name)) for name in table.columns) <= 12 else 3  # long names need the room
    height_in = 0.9 + 0.34 * len(lines) + 0.25 * -(-table.shape[1] // ncols)
    fig, ax = plt.subplots(figsize=(WIDTH_IN, height_in), layout="constrained")
    rows = np.array([lines.index(name) for name in names])
    for number, column in enumerate(table.columns):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        # A little above each other, so that equal values do not hide.
        shift = 0.09 * (number - (table.shape[1] - 1) / 2)
        ax.plot(
            table[column], rows + shift, marker, color=colour, ms=7, mec="white", mew=0.7, label=column, clip_on=False
        )
    ax.set_yticks(range(len(lines)), lines)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xlim(min(0.0, float(np.nanmin(table.to_numpy()))), 100)
    ax.grid(True)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("per cent")
    fig.legend(loc="outside upper left", ncols=ncols, handletextpad=0.1, columnspacing=1.2)
    return fig


def class_spectra(patches: Iterable[Patch]) -> pd.DataFrame:
    """
    Mean reflectance by class of the 10 m reference: one row a DFC2020 code, one column a Sentinel-2 band.

    Patches without a reference are left out; raises DataError when none has one.
    """
    sums = np.zeros((N_CODES, len(S2_BANDS)))
    n_pixels = np.zeros(N_CODES, np.int64)
    for patch in patches:
        if patch.dfc is None:
            continue
        codes = patch.dfc.reshape(-1)
        n_pixels += np.bincount(codes, minlength=N_CODES)
        for number, name in enumerate(S2_BANDS):
            sums[:, number] += np.bincount(codes, band(patch, name).reshape(-1), N_CODES)
    present = [code for code in range(1, N_CODES) if n_pixels[code]]
    if not present:
        raise DataError("class_spectra", found="no reference", expected="DFC2020 labels", do="Use other patches.")
    means = sums[present] / n_pixels[present, None]
    return pd.DataFrame(means, index=pd.Index(present, name="class"), columns=list(S2_BANDS))


def show_spectra(spectra: pd.DataFrame) -> Figure:
    """Mean reflectance over the 13 bands, a curve a class with its code on it; a table of `class_spectra`."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 4.6), layout="constrained")
    places = np.arange(len(S2_BANDS))
    codes = [int(code) for code in spectra.index]
    for number, (code, values) in enumerate(zip(codes, spectra.to_numpy(), strict=True)):
        colour = line_colour(code)
        ax.plot(places, values, color=colour)
        for place in places[number % 3 :: 3]:  # by turns, so that close curves do not cover each other's numbers
            text = ax.text(place, values[place], str(code), color=colour, fontsize=10, weight="bold")
            text.set(ha="center", va="center", path_effects=[withStroke(linewidth=3, foreground="white")])
    names = [f"{name}\n{nm}" for name, nm in zip(S2_BANDS, S2_WAVELENGTHS_NM, strict=True)]
    ax.set_xticks(places, names, fontsize=9.5)
    ax.set_ylim(0, None)
    ax.grid(axis="y")
    ax.set(ylabel="reflectance", xlabel="band, centre in nm")
    add_legend(fig, [Swatch(code) for code in codes], loc="outside upper left", ncols=3)
    return fig


def show_histograms(
    groups: Mapping[str, Sequence[Patch]], bands: Sequence[str] = ("B4", "B8", "VV", "VH"), *, bins: int = 80
) -> Figure:
    """
    How the values of some bands are spread in each of several groups of patches (by name).

    bands : of S2_BANDS (reflectance) and S1_BANDS (dB); the axis spans what 99.8 % of all pixels hold
    """
    if not groups or not all(groups.values()):
        raise ParameterError("groups", found="an empty group", expected="patches in each", do="Leave it out.")
    columns = min(2, len(bands))
    rows = -(-len(bands) // columns)
    fig, grid = plt.subplots(rows, columns, figsize=(WIDTH_IN, 0.5 + 1.9 * rows), squeeze=False, layout="constrained")
    for ax in grid.flat[len(bands) :]:
        ax.set_axis_off()
    for ax, name in zip(grid.flat, bands, strict=False):
        values = {group: _values(patches, name) for group, patches in groups.items()}
        span = np.percentile(np.concatenate(list(values.values())), (0.1, 99.9))
        for number, (group, one) in enumerate(values.items()):
            n_pixels, edges = np.histogram(one, bins, span)
            colour = COLOURS[number % len(COLOURS)]
            ax.stairs(n_pixels / one.size, edges, label=group, color=colour, ls=LINES[number % len(LINES)])
            ax.stairs(n_pixels / one.size, edges, fill=True, color=colour, alpha=0.12)
        ax.set(title=name, xlabel="dB" if name in S1_BANDS else "reflectance", yticks=[])
        ax.spines["left"].set_visible(False)
    if len(groups) > 1:
        fig.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return fig


def _values(patches: Iterable[Patch], name: str) -> NDArray[np.float32]:
    return np.concatenate([band(patch, name).reshape(-1) for patch in patches])


def show_reliability(curves: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Figure:
    """
    Share of pixels that are right against how sure a map was of them, a curve a map by name; the diagonal is honest.

    curves : of each, `calibration.reliability`; bins under a thousandth of its pixels are left out
    """
    fig, ax = plt.subplots(figsize=(0.72 * WIDTH_IN, 0.72 * WIDTH_IN), layout="constrained")
    ax.plot([0, 100], [0, 100], ls="--", color="0.4", lw=1.2, label="as sure as right")
    for number, (name, curve) in enumerate(curves.items()):
        filled = curve["count"] > curve["count"].sum() / 1000
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "ms": 6,
        }
        ax.plot(100 * curve["confidence"][filled], 100 * curve["accuracy"][filled], label=name, **look)
    ax.set(xlim=(0, 100), ylim=(0, 100), xlabel="probability given, per cent", ylabel="right, per cent", aspect="equal")
    ax.grid(True)
    fig.legend(loc="outside upper left", ncols=2)
    return fig


def show_history(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """
    Learning curves of one or more runs (by name): the loss and, where it was taken, AA with the labels.

    histories : of each run the lines with `step`, `loss` and `aa` (0..1, or None) that training reports
    """
    tables = {name: pd.DataFrame(list(history)) for name, history in histories.items()}
    scored = {name: table.dropna(subset="aa") for name, table in tables.items() if "aa" in table}
    panels = 2 if any(len(table) for table in scored.values()) else 1
    fig, grid = plt.subplots(
        panels, 1, figsize=(WIDTH_IN, 0.4 + 2.1 * panels), squeeze=False, sharex=True, layout="constrained"
    )
    for number, (name, table) in enumerate(tables.items()):
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "ms": 5,
        }
        grid[0, 0].plot(table["step"], table["loss"], label=name, **look)
        if panels == 2 and name in scored:
            grid[1, 0].plot(scored[name]["step"], 100 * scored[name]["aa"].astype(float), **look)
    grid[0, 0].set_ylabel("loss")
    grid[-1, 0].set_xlabel("step")
    if panels == 2:
        grid[1, 0].set_ylabel("AA, per cent")
    for ax in grid.flat:
        ax.grid(axis="y")
    if len(tables) > 1:
        fig.legend(loc="outside upper left", ncols=3)
    return fig


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


ROW_IN = 0.34


def show_overview(table: pd.DataFrame, seeds: pd.DataFrame) -> Figure:
    """
    AA of each method: its mean, a tick for each seed, and a pale bar for the interval over regions.

    table : rows of `compare.overview`; a kind of mark and a colour for each label regime
    seeds : `compare.by_seed`; methods that *table* has not are left out
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
    """What each step adds to AA: a table of `compare.gains`; a tick a seed, the mean, the interval over regions."""
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
    """Recall in per cent, rows methods, columns classes by name: a table of `compare.recalls`; dark is high."""
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
