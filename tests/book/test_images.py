"""Pictures of patches and maps: what is drawn is what is there."""

import io
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from lcfuse_core.book import images as figures
from lcfuse_core.book import style
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import DFC2020, IGBP
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError, LegendError, ParameterError

pytestmark = pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning")


@pytest.fixture(autouse=True)
def _book_style():
    """Every test draws as the book does and leaves nothing open."""
    with plt.rc_context():
        plt.switch_backend("agg")
        style.use_book_style()
        yield
        plt.close("all")


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


def legend_names(fig):
    """Names in the one legend of a figure."""
    (legend,) = [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]
    return [text.get_text() for text in legend.get_texts()]


def test_bands_by_name():
    """Reflectance for Sentinel-2, dB for Sentinel-1, by their place in the file."""
    patch = make_patch()
    np.testing.assert_allclose(figures.band(patch, "B8A"), patch.s2[8] / 10_000, rtol=1e-6)
    np.testing.assert_array_equal(figures.band(patch, "VH"), patch.s1[1])
    with pytest.raises(ParameterError, match="'B13'"):
        figures.band(patch, "B13")


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3000), min_size=3, max_size=3))
def test_haze_does_not_change_the_picture(seed, haze):
    """A constant added to each band is what the stretch takes off; the image stays in 0..1."""
    clear = np.random.default_rng(seed).integers(0, 5000, (13, 20, 30)).astype(np.uint16)
    hazy = clear.copy()
    hazy[[3, 2, 1]] += np.array(haze, np.uint16)[:, None, None]
    s1 = np.zeros((2, 20, 30), np.float32)
    image = figures.rgb(Patch("clear", s1, clear))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.float32
    assert image.min() == 0
    assert image.max() == 1
    np.testing.assert_allclose(figures.rgb(Patch("hazy", s1, hazy)), image, atol=2e-3)


def test_each_band_has_its_colour():
    """A field bright in one band only is red, green or blue; a uniform patch is black and not NaN."""
    s1 = np.zeros((2, 20, 20), np.float32)
    for name, colour in (("B4", 0), ("B3", 1), ("B2", 2)):
        s2 = np.full((13, 20, 20), 500, np.uint16)
        s2[figures.S2_BANDS.index(name), 5:10] = 4000
        image = figures.rgb(Patch(name, s1, s2))
        assert image[7, 7].tolist() == [float(k == colour) for k in range(3)]
        assert (image[0] == 0).all()
    assert (figures.rgb(Patch("uniform", s1, np.full((13, 20, 20), 500, np.uint16))) == 0).all()


def test_radar_colours():
    """VV, VH and their difference are red, green and blue, clipped to 0..1."""
    s1 = np.stack([np.array([[0, -22, -11, 30]]), np.array([[-28, -22, -17, -40]])]).astype(np.float32)
    image = figures.radar_rgb(Patch("made", s1, np.zeros((13, 1, 4), np.uint16)))
    expected = [[1, 0, 1], [0, 6 / 22, 0], [0.5, 0.5, 0.3], [1, 0, 1]]
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


@given(arrays(np.uint8, (5, 7), elements=st.integers(0, 10)))
def test_label_colours_are_the_legend(codes):
    """Each pixel has the colour of its class; no class is transparent."""
    image = figures.label_image(codes)
    for (row, col), code in np.ndenumerate(codes):
        assert tuple(image[row, col]) == DFC2020.rgba(int(code))
    assert (image[codes == 0] == 0).all()


def test_a_code_outside_the_legend_is_refused():
    """IGBP codes are not drawn in DFC2020 colours by mistake."""
    codes = np.full((4, 4), 17, np.uint8)
    with pytest.raises(LegendError, match="17"):
        figures.label_image(codes)
    assert tuple(figures.label_image(codes, IGBP)[0, 0]) == IGBP.rgba(17)


@given(arrays(np.uint8, (12, 9), elements=st.sampled_from([0, 1, 4, 10])))
def test_numbers_stand_on_their_class(codes):
    """Each class in the map has its number once, on a pixel of it; no class has none."""
    fig, ax = plt.subplots()
    figures.show_labels(ax, codes)
    where = {int(text.get_text()): text.get_position() for text in ax.texts}
    assert set(where) == set(codes.flat) - {0}
    assert len(ax.texts) == len(where)
    assert all(codes[row, col] == code for code, (col, row) in where.items())
    plt.close(fig)


def test_the_number_stands_away_from_the_edge():
    """The widest place counts the border of the map as the end of the class."""
    _, ax = plt.subplots()
    figures.show_labels(ax, np.full((9, 21), 4, np.uint8))
    col, row = ax.texts[0].get_position()
    assert row == 4
    assert 4 <= col <= 16


def test_small_specks_have_no_number():
    """A class of one pixel in a large map is in the legend, but carries no number."""
    codes = np.full((200, 200), 1, np.uint8)
    codes[50, 50] = 7
    _, ax = plt.subplots()
    figures.show_labels(ax, codes)
    assert [text.get_text() for text in ax.texts] == ["1"]


@given(arrays(np.int32, (6, 8), elements=st.integers(0, 3)))
def test_cell_borders_lie_between_different_cells(ids):
    """One unit line between each pair of neighbours of different cells, and no other."""
    fig, ax = plt.subplots()
    figures.show_cells(ax, ids)
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
    ("width_px", "pixel_m", "length_m", "text"),
    [(224, 10, 500, "500 m"), (256, 10, 500, "500 m"), (600, 10, 2000, "2 km"), (64, 463.3, 5000, "5 km")],
)
def test_the_scale_bar_is_as_long_as_it_says(width_px, pixel_m, length_m, text):
    """Pixels times metres is the length written above; at most a third of the image."""
    _, ax = plt.subplots()
    figures.show_image(ax, np.zeros((100, width_px, 3)))
    figures.scale_bar(ax, pixel_m)
    xs = ax.lines[0].get_xdata()
    assert (xs[1] - xs[0]) * pixel_m == pytest.approx(length_m)
    assert [one.get_text() for one in ax.texts] == [text]
    assert xs[1] - xs[0] <= width_px / 3


def test_a_patch_shows_all_it_has():
    """Five panels, one legend of the classes in either map, the MODIS label in DFC2020 colours."""
    patch = make_patch()
    fig = figures.show_patch(patch)
    fig.canvas.draw()
    assert titles(fig) == ["Natural colour", "Near infrared", "Radar", "MODIS, 500 m", "Reference, 10 m"]
    assert legend_names(fig) == ["Forest", "Savanna", "Water"]
    images = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    np.testing.assert_array_equal(images[0], figures.rgb(patch))
    np.testing.assert_array_equal(images[4], figures.label_image(patch.dfc))
    assert tuple(images[3][-1, -1]) == DFC2020.rgba(3)
    assert fig.get_facecolor() == (1, 1, 1, 1)


def test_a_patch_without_labels_shows_the_images():
    """What is not there is left out, legend and all."""
    fig = figures.show_patch(replace(make_patch(), lc=None, dfc=None))
    assert titles(fig) == ["Natural colour", "Near infrared", "Radar"]
    assert not fig.legends
    assert not any(ax.get_legend() for ax in fig.axes)
    assert titles(figures.show_patch(replace(make_patch(), lc=None)))[3:] == ["Reference, 10 m"]


@pytest.mark.parametrize("n_maps", [1, 2, 3, 5])
def test_maps_side_by_side(n_maps):
    """Image, MODIS, the maps in their order, reference; one legend of all classes; all inside the figure."""
    patch = make_patch()
    maps = {f"map {k}": np.full_like(patch.dfc, (2, 4, 5, 6, 7)[k]) for k in range(n_maps)}
    fig = figures.show_maps_side_by_side(maps, patch)
    assert titles(fig) == ["Sentinel-2", "MODIS, 500 m", *maps, "Reference, 10 m"]
    expected = {"Forest", "Savanna", "Water"} | {DFC2020.name_of((2, 4, 5, 6, 7)[k]) for k in range(n_maps)}
    assert legend_names(fig) == [name for name in DFC2020.names if name in expected]
    box = fig.get_tightbbox()
    width, height = fig.get_size_inches()
    assert box.x0 > -0.05
    assert box.y0 > -0.05
    assert box.x1 < width + 0.05
    assert box.y1 < height + 0.05


def test_a_map_of_another_size_is_refused():
    """A map is drawn with the patch it was made from."""
    with pytest.raises(GridError, match=r"FCN: found shape \(10, 10\), expected \(60, 80\)"):
        figures.show_maps_side_by_side({"FCN": np.ones((10, 10), np.uint8)}, make_patch())


@pytest.mark.parametrize(("n_maps", "columns"), [(0, 3), (1, 3), (2, 4), (3, 3), (5, 4)])
def test_a_place_so_far_goes_from_label_to_reference(n_maps, columns):
    """Label, pictures in their order, reference; one legend of all classes; nothing spills out of the figure."""
    patch = make_patch()
    maps = {f"map {k}": np.full_like(patch.dfc, (2, 4, 5, 6, 7)[k]) for k in range(n_maps)}
    fig = figures.show_so_far(maps, patch)
    assert titles(fig) == [figures.MODIS, *maps, figures.REFERENCE]
    expected = {"Forest", "Savanna", "Water"} | {DFC2020.name_of((2, 4, 5, 6, 7)[k]) for k in range(n_maps)}
    assert legend_names(fig) == [name for name in DFC2020.names if name in expected]
    assert fig.axes[0].get_gridspec().ncols == columns
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert min(box.x0, box.y0) > -0.05
    assert box.x1 < width + 0.05
    assert box.y1 < height + 0.05


def test_a_place_so_far_draws_images_as_they_are():
    """An image is no map of codes, and the reference stays closed when it is not asked for."""
    patch = make_patch()
    fig = figures.show_so_far({"Sentinel-2": figures.rgb(patch)}, patch, reference=False)
    assert titles(fig) == [figures.MODIS, "Sentinel-2"]
    np.testing.assert_array_equal(fig.axes[1].images[0].get_array(), figures.rgb(patch))
    bare = replace(patch, lc=None, dfc=None)
    assert titles(figures.show_so_far({"FCN": patch.dfc}, bare)) == ["FCN"]


def test_a_place_so_far_outlines_its_cells_on_every_picture():
    patch = make_patch()
    ids = np.indices(patch.dfc.shape)[1] // 46
    fig = figures.show_so_far({"Sentinel-2": figures.rgb(patch)}, patch, cells=ids)
    outlines = [ax.collections[0] for ax in fig.axes if ax.axison]
    assert [len(one.get_segments()) for one in outlines] == [60, 60, 60]
    assert [tuple(one.get_colors()[0][:3]) for one in outlines] == [(0, 0, 0), (1, 1, 1), (0, 0, 0)]


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(GridError, match=r"crop: found shape \(10, 10, 3\), expected \(60, 80\)"):
        figures.show_so_far({"crop": np.ones((10, 10, 3))}, make_patch())


def test_receptive_fields_are_drawn_to_scale():
    """Squares around the middle pixel, the smallest first, named in metres; cells where there is a place."""
    patch = make_patch()
    fig = figures.show_receptive_field({"U-Net": 48, "FCN": 11}, patch)
    ax = fig.axes[0]
    squares = [one for one in ax.patches if isinstance(one, Rectangle)]
    assert [square.get_width() for square in squares] == [11, 48] == [one.get_height() for one in squares]
    assert [tuple(square.get_center()) for square in squares] == [(40, 30)] * 2
    assert legend_names(fig) == ["FCN: 11 px = 110 m", "U-Net: 48 px = 480 m"]
    ids, _ = cell_ids(patch.transform, patch.crs, (60, 80))
    n_borders = (ids[1:] != ids[:-1]).sum() + (ids[:, 1:] != ids[:, :-1]).sum()
    assert len(ax.collections[0].get_segments()) == n_borders > 0
    nowhere = figures.show_receptive_field({"FCN": 11}, replace(patch, crs=None, transform=None))
    assert not nowhere.axes[0].collections


def test_the_same_patch_gives_the_same_file():
    """SVG bytes do not change from run to run, so that committed outputs can be compared."""
    files = []
    for _ in range(2):
        buffer = io.BytesIO()
        figures.show_patch(make_patch()).savefig(buffer, format="svg", metadata={"Date": None})
        files.append(buffer.getvalue())
    assert files[0] == files[1]


def test_nothing_is_changed():
    """Drawing leaves the patch as it was."""
    patch, before = make_patch(), make_patch()
    figures.show_maps_side_by_side({"FCN": patch.dfc}, patch)
    figures.show_so_far({"FCN": patch.dfc}, patch)
    for name in ("s1", "s2", "lc", "dfc"):
        np.testing.assert_array_equal(getattr(patch, name), getattr(before, name))
