"""The look: colours that can be told apart from the page, numbers that can be read."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lcfuse_core.book import style
from lcfuse_core.data.legends import DFC2020, IGBP


@pytest.fixture(autouse=True)
def _clean():
    with plt.rc_context():
        plt.switch_backend("agg")
        yield
        plt.close("all")


def contrast(one, other):
    """Contrast ratio of two colours of 0..255 (WCAG 2.1)."""

    def light(rgba):
        value = np.asarray(rgba[:3]) / 255
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("legend", [DFC2020, IGBP], ids=lambda legend: legend.name)
def test_numbers_can_be_read_on_their_colour(legend):
    """At least 3:1, what WCAG asks of large text."""
    inks = {"black": (0, 0, 0), "white": (255, 255, 255)}
    for code in legend.codes:
        colour = legend.rgba(code)
        assert contrast(colour, inks[style.ink_on(colour)]) >= 3
    assert style.ink_on(legend.rgba(legend.unknown)) == "black"  # transparent: on white


def test_lines_can_be_seen_on_white():
    """Even Barren and Snow, nearly white on a map; a dark colour is left as it is."""
    for code in DFC2020.codes:
        colour = [255 * value for value in style.line_colour(code)]
        assert contrast(colour, (255, 255, 255)) >= 2.4
    water = [round(255 * value) for value in style.line_colour(10)]
    assert water == list(DFC2020.rgba(10)[:3])


def test_legend_holds_the_classes_present_in_order():
    """Of several maps together, in the order of the legend, without a class last."""
    handles = style.legend_handles([np.array([[10, 4]]), np.array([0, 1, 4])])
    assert [one.code for one in handles] == [1, 4, 10, 0]
    assert [one.get_label() for one in handles] == ["Forest", "Grassland", "Water", "none"]


def test_swatches_carry_colour_and_number():
    """What is drawn before a name: the class colour, and its code in it."""
    fig, ax = plt.subplots()
    legend = style.add_legend(ax, style.legend_handles([np.array([4, 10])]))
    fig.canvas.draw()
    boxes = legend.findobj(plt.Rectangle)
    colours = [tuple(round(255 * value) for value in box.get_facecolor()) for box in boxes]
    assert DFC2020.rgba(4) in colours
    assert DFC2020.rgba(10) in colours
    written = [text.get_text() for text in legend.findobj(plt.Text)]
    assert {"4", "10", "Grassland", "Water"} <= set(written)


def test_book_style_is_white_and_readable():
    """A white ground (dark pages would shine through), and letters that survive a phone."""
    style.use_book_style()
    fig, ax = plt.subplots()
    ax.set_title("a")
    assert fig.get_facecolor() == (1, 1, 1, 1)
    # 375 pixels for 6.4 inches: 58.6 a inch, 72 points an inch.
    smallest = min(plt.rcParams["xtick.labelsize"], plt.rcParams["legend.fontsize"])
    assert smallest * 375 / style.WIDTH_IN / 72 >= 8
