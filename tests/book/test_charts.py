"""Charts: each dot, bar and number is the value it stands for."""

import math

import numpy as np
import pandas as pd
import pytest

from lcfuse_core.book import charts, images
from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import DataError
from lcfuse_core.scoring.scores import class_table, confusion, summarise

pytestmark = [pytest.mark.usefixtures("book_style"), pytest.mark.filterwarnings("error")]


REFERENCE = np.array([1] * 8 + [6] * 4 + [10] * 4 + [0] * 3)
PREDICTED = np.array([1] * 6 + [3] * 2 + [6] * 4 + [10] * 3 + [0] + [1] * 3)


def dots(ax):
    """Place of every dot by the label of its kind: {label: [(x, line), ...]}, lines counted from the top."""
    return {
        line.get_label(): [(float(x), round(float(y))) for x, y in zip(*line.get_data(), strict=True)]
        for line in ax.lines
    }


def test_confusion_shows_shares_of_the_reference():
    """Rows sum to 100; the diagonal, in bold, is the recall; what is left out is what is nowhere."""
    counts = confusion(REFERENCE, PREDICTED)
    fig = charts.show_confusion(counts, title="made")
    ax = fig.axes[0]
    cells = {tuple(text.get_position()): text for text in ax.texts}
    rows = [[cells[col + 0.5, row + 0.5].get_text() for col in range(5)] for row in range(3)]
    assert rows == [  # none, 1, 3, 6, 10
        ["·", "75", "25", "·", "·"],
        ["·", "·", "·", "100", "·"],
        ["25", "·", "·", "·", "75"],
    ]
    bold = [text.get_text() for text in ax.texts if text.get_weight() == "bold"]
    assert bold == ["75", "100", "75"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["none", "Forest", "Savanna", "Croplands", "Water"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["Forest", "Croplands", "Water"]
    assert ax.yaxis_inverted()
    with pytest.raises(DataError, match="no pixel"):
        charts.show_confusion(np.zeros((11, 11), int))


def test_recall_by_class_names_every_class():
    """Eight lines with code numbers, a kind of dot a method; a class that is absent has none."""
    scores = {
        "MODIS": summarise(confusion(REFERENCE, PREDICTED)),
        "all right": summarise(np.diag([0] + [9] * 10)),
    }
    ax = charts.show_scores(class_table(scores)).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()][4:6] == ["Croplands  6", "Urban/Built-up  7"]
    drawn = dots(ax)
    assert [x for x, _ in drawn["all right"]] == [100] * len(SCORED)
    assert [x for x, _ in drawn["MODIS"] if not math.isnan(x)] == [75, 100, 75]
    assert [row for _, row in drawn["MODIS"]] == list(range(len(SCORED)))
    assert ax.yaxis_inverted()
    markers = [line.get_marker() for line in ax.lines]
    assert len(set(markers)) == 2  # a second cue beside colour


def test_learning_curves():
    """Loss of every run; AA where it was taken, in per cent; one panel where it never was."""
    fcn = [{"step": 50, "loss": 2.0, "aa": None}, {"step": 100, "loss": 1.5, "aa": 0.4}]
    unet = [{"step": 50, "loss": 1.0, "aa": None}]
    fig = charts.show_history({"FCN": fcn, "U-Net": unet})
    loss, agreement = fig.axes
    assert dots(loss) == {"FCN": [(50, 2), (100, 2)], "U-Net": [(50, 1)]}
    assert loss.lines[0].get_ydata().tolist() == [2, 1.5]
    assert [line.get_xydata().tolist() for line in agreement.lines] == [[[100, 40]], []]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["FCN", "U-Net"]
    alone = charts.show_history({"U-Net": unet})
    assert len(alone.axes) == 1
    assert not alone.legends


def names(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def test_recalls_are_written_into_their_squares():
    """Columns are named by class; an unknown value is a dash."""
    table = pd.DataFrame({"Forest": [81.0, np.nan], "Water": [7.0, 100.0]}, index=["a", "b"])
    ax = charts.show_recalls(table).axes[0]
    assert [text.get_text() for text in ax.texts] == ["81", "7", "–", "100"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["Forest", "Water"]
    assert names(ax) == ["a", "b"]


def test_gradients_share_one_scale():
    """The limits are those of the strongest; the mean stands in the title; a negative gradient has the other colour."""
    inside = np.zeros((20, 30), bool)
    inside[5:15, 8:20] = True
    fields = {"weak": np.where(inside, 0.1, np.nan), "strong": np.where(inside, 0.8, np.nan)}
    fig = charts.show_gradients(fields, inside)
    assert [ax.images[0].get_clim() for ax in fig.axes[:2]] == [(0, 0.8)] * 2
    assert fig.axes[0].get_title(loc="left") == "weak: 0.10"
    assert not fig.axes[2].axison
    away = charts.show_gradients({"away": -fields["strong"], "strong": fields["strong"]}, inside)
    assert away.axes[0].images[0].get_clim() == (-0.8, 0.8)


def test_fractions_are_bars_that_fill_the_line():
    """Each bar adds up to 100; small parts have no number; absent classes are not in the legend."""
    fig = charts.show_fractions({"label": np.eye(8)[4], "prediction": [0.5, 0, 0, 0, 0.46, 0, 0, 0.04]})
    ax = fig.axes[0]
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(2, 8)
    np.testing.assert_allclose(widths.sum(axis=1), 100)
    assert [text.get_text() for text in ax.texts] == ["6", "1", "6"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["1  Forest", "6  Croplands", "10  Water"]


def test_curves_differ_in_more_than_colour_and_carry_no_origin():
    """A formula is not data."""
    images.use_book_style("synthetic sample")
    table = pd.DataFrame({name: [1.0, 2.0] for name in "abcdef"}, index=[0, 1])
    fig = charts.show_curves(table, xlabel="x", ylabel="y", top=3)
    images.use_book_style()
    ax = fig.axes[0]
    assert [line.get_label() for line in ax.lines] == list("abcdef")
    assert len({(line._dash_pattern[0], str(line._dash_pattern[1])) for line in ax.lines}) == 6
    assert ax.get_ylim()[1] == 3
    assert not fig.texts
