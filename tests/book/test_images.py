"""Images, label maps and their figures: what is drawn is what the arrays hold."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import LineCollection
from matplotlib.text import Text

from lcfuse_core.book import images
from lcfuse_core.data.legends import DFC2020, IGBP
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError, LegendError, ParameterError

pytestmark = [
    pytest.mark.usefixtures("book_style"),
    pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning"),
]


def make_patch(height=60, width=80):
    """Water in the west, forest in the east; MODIS calls a corner Savanna; no two pixels alike in B2."""
    rng = np.random.default_rng(0)
    s2 = rng.integers(100, 3000, (13, height, width)).astype(np.uint16)
    s2[1] = np.arange(height * width).reshape(height, width)
    s1 = rng.uniform(-25, 0, (2, height, width)).astype(np.float32)
    dfc = np.full((height, width), 1, np.uint8)
    dfc[:, : width // 2] = 10
    lc = np.full((4, height, width), 255, np.uint8)
    lc[0] = np.where(dfc == 10, 17, 5)
    lc[0, -20:, -20:] = 8
    place = Affine(10, 0, 549892.697, 0, -10, 6344077.614)
    return Patch("made", s1, s2, lc, dfc, "EPSG:32632", place)


def titles(fig):
    """Titles of the panels that are drawn, in order."""
    return [ax.get_title(loc="left") for ax in fig.axes if ax.axison]


def scale_bar(ax):
    """The scale bar that belongs to a panel."""
    (found,) = ax.artists
    return found


def legend_names(fig):
    """Names in the one legend of a figure."""
    (legend,) = [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]
    return [text.get_text() for text in legend.get_texts()]


def test_bands_by_name():
    """Reflectance for Sentinel-2, dB for Sentinel-1, by their place in the file."""
    patch = make_patch()
    np.testing.assert_allclose(images.band(patch, "B8A"), patch.s2[8] / 10_000, rtol=1e-6)
    np.testing.assert_array_equal(images.band(patch, "VH"), patch.s1[1])
    with pytest.raises(ParameterError, match="'B13'"):
        images.band(patch, "B13")


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3000), min_size=3, max_size=3))
def test_haze_does_not_change_the_picture(seed, haze):
    """A constant added to each band is what the stretch takes off; the image stays in 0..1."""
    clear = np.random.default_rng(seed).integers(0, 5000, (13, 20, 30)).astype(np.uint16)
    hazy = clear.copy()
    hazy[[3, 2, 1]] += np.array(haze, np.uint16)[:, None, None]
    s1 = np.zeros((2, 20, 30), np.float32)
    image = images.rgb(Patch("clear", s1, clear))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.float32
    assert image.min() == 0
    assert image.max() == 1
    np.testing.assert_allclose(images.rgb(Patch("hazy", s1, hazy)), image, atol=2e-3)


def test_each_band_has_its_colour():
    """A field bright in one band only is red, green or blue; a uniform patch is black and not NaN."""
    s1 = np.zeros((2, 20, 20), np.float32)
    for name, colour in (("B4", 0), ("B3", 1), ("B2", 2)):
        s2 = np.full((13, 20, 20), 500, np.uint16)
        s2[images.S2_BANDS.index(name), 5:10] = 4000
        image = images.rgb(Patch(name, s1, s2))
        assert image[7, 7].tolist() == [float(k == colour) for k in range(3)]
        assert (image[0] == 0).all()
    assert (images.rgb(Patch("uniform", s1, np.full((13, 20, 20), 500, np.uint16))) == 0).all()


def test_radar_colours():
    """VV, VH and their difference are red, green and blue, clipped to 0..1."""
    s1 = np.stack([np.array([[0, -22, -11, 30]]), np.array([[-28, -22, -17, -40]])]).astype(np.float32)
    image = images.radar_rgb(Patch("made", s1, np.zeros((13, 1, 4), np.uint16)))
    expected = [[1, 0, 1], [0, 6 / 22, 0], [0.5, 0.5, 0.3], [1, 0, 1]]
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


@given(arrays(np.uint8, (5, 7), elements=st.integers(0, 10)))
def test_label_colours_are_the_legend(codes):
    """Each pixel has the colour of its class; no class is transparent."""
    image = images._label_image(codes)
    for (row, col), code in np.ndenumerate(codes):
        assert tuple(image[row, col]) == DFC2020.rgba(int(code))
    assert (image[codes == 0] == 0).all()


def test_a_code_outside_the_legend_is_refused():
    """IGBP codes are not drawn in DFC2020 colours by mistake."""
    codes = np.full((4, 4), 17, np.uint8)
    with pytest.raises(LegendError, match="17"):
        images._label_image(codes)
    assert tuple(images._label_image(codes, IGBP)[0, 0]) == IGBP.rgba(17)


@given(arrays(np.uint8, (12, 9), elements=st.sampled_from([0, 1, 4, 10])))
def test_numbers_stand_on_their_class(codes):
    """Each class in the map has its number once, on a pixel of it; no class has none."""
    fig, ax = plt.subplots()
    images.show_labels(ax, codes)
    where = {int(text.get_text()): text.get_position() for text in ax.texts}
    assert set(where) == set(codes.flat) - {0}
    assert len(ax.texts) == len(where)
    assert all(codes[row, col] == code for code, (col, row) in where.items())
    plt.close(fig)


@given(arrays(np.int32, (6, 8), elements=st.integers(0, 3)))
def test_cell_borders_lie_between_different_cells(ids):
    """One unit line between each pair of neighbours of different cells, and no other."""
    fig, ax = plt.subplots()
    images.show_cell_borders(ax, ids)
    (lines,) = (one for one in ax.collections if isinstance(one, LineCollection))
    drawn = {tuple(map(tuple, np.sort(line, axis=0).tolist())) for line in lines.get_segments()}
    expected = set()
    for (row, col), one in np.ndenumerate(ids):
        if col + 1 < 8 and ids[row, col + 1] != one:
            expected.add(((col + 0.5, row - 0.5), (col + 0.5, row + 0.5)))
        if row + 1 < 6 and ids[row + 1, col] != one:
            expected.add(((col - 0.5, row + 0.5), (col + 0.5, row + 0.5)))
    assert drawn == expected
    plt.close(fig)


@pytest.mark.parametrize(
    ("width_px", "length_m", "text"), [(224, 500, "500 m"), (256, 500, "500 m"), (600, 2000, "2 km")]
)
def test_the_scale_bar_is_as_long_as_it_says(width_px, length_m, text):
    """Pixels times ten metres is the length written above; at most a third of the image."""
    fig = images.show_panels({"": np.zeros((100, width_px, 3))})
    fig.canvas.draw()
    line = scale_bar(fig.axes[0]).size_bar.get_children()[0]
    image, drawn = fig.axes[0].get_window_extent(), line.get_window_extent()
    assert 10 * width_px * drawn.width / image.width == pytest.approx(length_m, rel=0.02)
    assert [one.get_text() for one in scale_bar(fig.axes[0]).findobj(Text)] == [text]
    assert drawn.width <= image.width / 3


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (3, 3), (4, 2), (5, 3), (7, 4)])
def test_the_scale_bar_covers_no_panel_no_title_and_no_legend(n, columns):
    """It stands below the first panel of the last row."""
    fig = images.show_panels({f"Map {number}": np.full((90, 90), 4, np.uint8) for number in range(n)}, columns=columns)
    fig.canvas.draw()
    (bar,) = (scale_bar(ax) for ax in fig.axes if ax.artists)
    box = bar.get_window_extent()
    others = [one.get_window_extent() for one in (*fig.axes, *fig.legends, *(ax._left_title for ax in fig.axes))]
    assert not any(box.overlaps(other) for other in others)
    assert all_inside(fig)


def test_a_patch_shows_all_it_has():
    """Five panels, one legend of the classes in either map, the MODIS label in DFC2020 colours."""
    patch = make_patch()
    fig = images.show_patch(patch)
    fig.canvas.draw()
    assert titles(fig) == ["Natural colour", "Near infrared", "Radar", "MODIS, 500 m", "Reference, 10 m"]
    assert legend_names(fig) == ["1  Forest", "3  Savanna", "10  Water"]
    drawn = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    np.testing.assert_array_equal(drawn[0], images.rgb(patch))
    np.testing.assert_array_equal(drawn[4], images._label_image(patch.dfc))
    assert tuple(drawn[3][-1, -1]) == DFC2020.rgba(3)
    assert fig.get_facecolor() == (1, 1, 1, 1)


def test_a_patch_without_labels_shows_the_images():
    """What is not there is left out, legend and all."""
    fig = images.show_patch(replace(make_patch(), lc=None, dfc=None))
    assert titles(fig) == ["Natural colour", "Near infrared", "Radar"]
    assert not fig.legends
    assert not any(ax.get_legend() for ax in fig.axes)
    assert titles(images.show_patch(replace(make_patch(), lc=None)))[3:] == ["Reference, 10 m"]


def all_inside(fig):
    """Whether nothing reaches beyond the figure."""
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    return min(box.x0, box.y0) > -0.05 and box.x1 < width + 0.05 and box.y1 < height + 0.05


@pytest.mark.parametrize(("n_maps", "columns"), [(0, 3), (2, 4), (5, 4)])
def test_maps_stand_between_label_and_reference(n_maps, columns):
    """In their order, with one legend of all classes, everything inside the figure and nothing changed."""
    patch, before, codes = make_patch(), make_patch(), (2, 4, 5, 6, 7)[:n_maps]
    maps = {f"map {code}": np.full_like(patch.dfc, code) for code in codes}
    small, large = images.show_example_patch(maps, patch), images.show_maps_side_by_side(maps, patch)
    assert titles(small) == ["MODIS, 500 m", *maps, "Reference, 10 m"]
    assert titles(large) == ["Sentinel-2", *titles(small)]
    for fig in (small, large):
        assert legend_names(fig) == [f"{code}  {DFC2020.name_of(code)}" for code in sorted({1, 3, 10, *codes})]
        assert all_inside(fig)
    assert small.axes[0].get_gridspec().ncols == columns
    for name in ("s1", "s2", "lc", "dfc"):
        np.testing.assert_array_equal(getattr(patch, name), getattr(before, name))


def test_the_example_patch_shows_images_and_cell_borders():
    """An image is drawn as it is; the reference is left out on request; borders are light on images, dark on maps."""
    patch = make_patch()
    ids = np.indices(patch.dfc.shape)[1] // 46
    fig = images.show_example_patch({"Sentinel-2": images.rgb(patch)}, patch, reference=False, cells=ids)
    assert titles(fig) == ["MODIS, 500 m", "Sentinel-2"]
    np.testing.assert_array_equal(fig.axes[1].images[0].get_array(), images.rgb(patch))
    borders = [ax.collections[0] for ax in fig.axes if ax.axison]
    assert [len(one.get_segments()) for one in borders] == [60, 60]
    assert [tuple(one.get_colors()[0][:3]) for one in borders] == [(0, 0, 0), (1, 1, 1)]
    bare = replace(patch, lc=None, dfc=None)
    assert titles(images.show_example_patch({"FCN": patch.dfc}, bare)) == ["FCN"]


def test_a_map_of_another_size_is_refused():
    with pytest.raises(GridError, match=r"FCN: found shape \(10, 10\), expected \(60, 80\)"):
        images.show_example_patch({"FCN": np.ones((10, 10), np.uint8)}, make_patch())


def test_squares_with_most_classes_come_first_and_are_enlarged():
    """A square without a class comes last; each row of insets is the marked part of image and maps."""
    codes = np.ones((60, 90), np.uint8)
    codes[:30, :30] = 0
    codes[30:, 30:60] = np.indices((30, 30)).sum(axis=0) % 4 + 4
    codes[10:20, 70:80] = 10
    corners = images.varied_squares(codes, 30, 2)
    assert corners == [(30, 30), (0, 60)]
    image = np.random.default_rng(0).random((60, 90, 3))
    fig = images.show_insets(image, {"Map": codes}, corners, size=30)
    squares = [(patch.get_x(), patch.get_y(), patch.get_width()) for patch in fig.axes[0].patches]
    assert squares == [(30, 30, 30), (60, 0, 30)]
    np.testing.assert_array_equal(fig.axes[1].images[0].get_array(), image[30:, 30:60])
    np.testing.assert_array_equal(fig.axes[4].images[0].get_array(), images._label_image(codes[:30, 60:]))


def test_invalid_pixels_of_a_scene_are_white_and_do_not_change_the_others():
    s2 = np.random.default_rng(0).integers(100, 3000, (13, 40, 50)).astype(np.uint16)
    valid = np.ones((40, 50), bool)
    valid[:5] = False
    dark, bright = s2.copy(), s2.copy()
    dark[:, :5], bright[:, :5] = 0, 65535
    one, other = images.scene_rgb(dark, valid), images.scene_rgb(bright, valid)
    np.testing.assert_array_equal(one, other)
    assert (one[:5] == 1).all()


# Style -------------------------------------------------------------------------------------------


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
    """At least 3:1, the requirement of WCAG for large text."""
    inks = {"black": (0, 0, 0), "white": (255, 255, 255)}
    for code in legend.codes:
        assert contrast(legend.rgba(code), inks[images.ink_on(legend.rgba(code))]) >= 3
    assert images.ink_on(legend.rgba(legend.unknown)) == "black"  # transparent: on white


def test_the_legend_holds_the_classes_present_in_order():
    """Of several maps together: colour, number and name in the order of the legend, pixels without a class last."""
    _, ax = plt.subplots()
    images.add_legend(ax, [np.array([[10, 4]]), np.array([0, 1, 4])])
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["1  Forest", "4  Grassland", "10  Water", "none"]
    colours = [tuple(round(255 * value) for value in box.get_facecolor()) for box in legend.get_patches()]
    assert colours == [DFC2020.rgba(code) for code in (1, 4, 10, 0)]


def test_every_figure_carries_the_origin_of_its_data():
    """Below the figure, so that nothing moves; also on figures that a page makes with pyplot; not without an origin."""
    plain = images.show_patch(make_patch())
    images.use_book_style("synthetic sample")
    for fig in (images.show_patch(make_patch()), plt.subplots()[0]):
        assert [text.get_text() for text in fig.texts] == ["synthetic sample"]
    marked = images.show_patch(make_patch())
    for fig in (plain, marked):
        fig.canvas.draw()
    assert not plain.texts
    assert [ax.get_position().bounds for ax in plain.axes] == [ax.get_position().bounds for ax in marked.axes]
    assert marked.get_tightbbox().y0 < 0
    images.use_book_style("Contains modified Copernicus Sentinel data 2021; " * 4)
    long = images.show_patch(make_patch())
    long.canvas.draw()
    (text,) = long.texts
    assert text.get_window_extent().x0 > 0, text.get_text()
    images.use_book_style()


def test_book_style_is_white_and_readable():
    """A white ground (dark pages would shine through), and letters that can be read on a phone."""
    assert plt.figure().get_facecolor() == (1, 1, 1, 1)
    # 375 pixels for 6.4 inches: 58.6 per inch, 72 points per inch.
    smallest = min(plt.rcParams["xtick.labelsize"], plt.rcParams["legend.fontsize"])
    assert smallest * 375 / images.WIDTH_IN / 72 >= 8
