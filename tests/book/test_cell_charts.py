"""Pictures of one cell: they show that cell, its shares and its pulls."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_one_cell import patch_of

from lcfuse_core.book import cell_charts, one_cell
from lcfuse_core.book.images import rgb
from lcfuse_core.data.legends import igbp_to_dfc


@pytest.fixture(scope="module")
def cell():
    return one_cell.varied_cell(patch_of(lambda cells: np.full(cells.shape, 4))[0])


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_the_surroundings_hold_the_cell_and_a_margin(cell):
    """And end at the patch's edge."""
    rows, cols = cell_charts.surroundings(cell)
    assert cell.inside[rows, cols].sum() == cell.n_pixels
    first = np.nonzero(cell.inside)[0].min()
    assert rows.start == max(first - cell_charts.MARGIN_PX, 0)
    assert rows.stop <= 150
    assert cols.stop <= 160


def test_pictures_carry_the_border_of_the_cell(cell):
    """Image and map, one legend; axes left over are off."""
    pictures = {"Image": rgb(cell.patch), "Label": igbp_to_dfc(cell.patch.lc[0])}
    fig = cell_charts.show_surroundings(cell, pictures, columns=3)
    shown, empty = fig.axes[:2], fig.axes[2]
    assert [ax.get_title(loc="left") or ax.get_title() for ax in shown] == list(pictures)
    assert all(len(ax.collections) == 1 for ax in shown)
    assert not empty.axison
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["Croplands"]


def test_pulls_share_one_scale(cell):
    """The limits are those of the hardest pull; the mean stands in the title; a push has the other colour."""
    pulls = {"weak": np.where(cell.inside, 0.1, np.nan), "strong": np.where(cell.inside, 0.8, np.nan)}
    fig = cell_charts.show_pulls(cell, pulls, columns=2)
    images = [ax.images[0] for ax in fig.axes[:2]]
    assert [image.get_clim() for image in images] == [(0, 0.8)] * 2
    assert "0.10" in (fig.axes[0].get_title(loc="left") or fig.axes[0].get_title())
    pushed = cell_charts.show_pulls(cell, {"away": -pulls["strong"], "strong": pulls["strong"]}, columns=2)
    assert pushed.axes[0].images[0].get_clim() == (-0.8, 0.8)


def test_shares_are_bars_that_fill_the_line():
    """Each bar adds up to 100; small parts have no number; absent classes are not in the legend."""
    rows = {"label": np.eye(8)[4], "opinion": np.array([0.5, 0, 0, 0, 0.46, 0, 0, 0.04])}
    fig = cell_charts.show_shares(rows)
    ax = fig.axes[0]
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(2, 8)
    np.testing.assert_allclose(widths.sum(axis=1), 100)
    assert [text.get_text() for text in ax.texts] == ["6", "1", "6"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["Forest", "Croplands", "Water"]


def test_curves_differ_in_more_than_colour():
    """A line a column; dashes differ."""
    table = pd.DataFrame({name: [1.0, 2.0] for name in "abcdef"}, index=[0, 1])
    ax = cell_charts.show_curves(table, xlabel="x", ylabel="y", top=3).axes[0]
    assert [line.get_label() for line in ax.lines] == list("abcdef")
    assert len({(line._dash_pattern[0], str(line._dash_pattern[1])) for line in ax.lines}) == 6
    assert ax.get_ylim()[1] == 3


def test_matrices_have_savanna_last():
    """Eight rows from the top, nine columns by number."""
    fig = cell_charts.show_matrices({"one": np.eye(8, 9), "two": np.full((8, 9), 1 / 9)})
    first = fig.axes[0]
    assert [text.get_text() for text in first.get_xticklabels()] == ["1", "2", "4", "5", "6", "7", "9", "10", "3"]
    assert first.yaxis_inverted()
    np.testing.assert_array_equal(first.collections[0].get_array().reshape(8, 9), np.eye(8, 9))
