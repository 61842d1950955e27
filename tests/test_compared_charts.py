"""Pictures of methods side by side: what is drawn is what the tables hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_compared import made, table_of

from lcfuse_core import compared, compared_charts
from lcfuse_core.compared import Step


@pytest.fixture
def lines():
    """Two methods of two regimes, three seeds."""
    coarse = made({"a": (0.4, 0.5, 0.6)})
    return table_of(coarse + made({"b": (0.5, 0.6, 0.7)}, regime="fine"))


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def names(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def test_the_overview_shows_mean_seeds_and_interval(lines):
    """Ticks at the seeds, a mark for each regime at its mean, bars over the intervals."""
    table = compared.overview(lines)
    fig = compared_charts.show_overview(table, compared.by_seed(lines))
    ax = fig.axes[0]
    assert names(ax) == ["b", "a"]
    ticks = [line for line in ax.lines if line.get_marker() == "|" and len(line.get_xdata())]
    np.testing.assert_allclose(ticks[0].get_xdata(), compared.by_seed(lines).loc["b"])
    marks = {line.get_label(): line for line in ax.lines if line.get_label().startswith("mean")}
    assert marks["mean, fine"].get_xdata()[0] == table.loc["b", "AA"]
    assert len({mark.get_marker() for mark in marks.values()}) == 2  # a second cue beside colour
    assert ax.collections[0].get_segments()[0][:, 0].tolist() == table.loc["b", ["low", "high"]].tolist()


def test_gains_are_marked_by_whether_they_earn_their_place(lines):
    """One step that does and one that does not."""
    table = compared.gains(lines, [Step("up", "b", "a"), Step("down", "a", "b")])
    ax = compared_charts.show_gains(table).axes[0]
    by_label = {line.get_label(): line for line in ax.lines}
    assert by_label["earns its place"].get_ydata().tolist() == [0]
    assert by_label["does not"].get_xdata().tolist() == [table.loc["down", "mean"]]
    assert names(ax) == ["up", "down"]


def test_recalls_are_written_into_their_squares():
    """Columns by the classes' numbers; what is not known is a dash."""
    table = pd.DataFrame({"Forest": [81.0, np.nan], "Water": [7.0, 100.0]}, index=["a", "b"])
    ax = compared_charts.show_recalls(table).axes[0]
    assert [text.get_text() for text in ax.texts] == ["81", "7", "–", "100"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "10"]
    assert names(ax) == ["a", "b"]
