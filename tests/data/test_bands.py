"""Units and order of bands: what is accepted, and what is refused with the advice that fits."""

import numpy as np
import pytest

from lcfuse_core.data.bands import S2_BANDS, band_name, band_order, check_s1, check_s2
from lcfuse_core.errors import DataError

LAND = [1430, 1130, 970, 790, 1190, 1960, 2280, 2240, 2580, 650, 13, 1820, 990]
CONIFERS = [1400, 1010, 710, 490, 600, 850, 940, 890, 1000, 320, 47, 520, 280]
WATER = [1250, 900, 600, 380, 330, 290, 280, 260, 240, 120, 12, 60, 40]
SAND = [2300, 2400, 2900, 3700, 4000, 4200, 4400, 4300, 4700, 1600, 40, 5800, 5200]
SNOW = [9800, 9700, 9500, 9800, 9700, 9500, 9400, 9100, 9300, 5200, 60, 900, 700]
CLOUD = [7200, 7000, 6800, 6900, 7000, 7100, 7200, 7000, 7100, 4000, 2200, 5200, 4400]


def image(mean, side=96, seed=0):
    """An image (13, side, side) with smooth fields and noise around these means."""
    rng = np.random.default_rng(seed)
    field = rng.normal(0, 1, (side // 8, side // 8)).repeat(8, 0).repeat(8, 1)
    bands = [value * (1 + 0.1 * field) + rng.normal(0, 3, (side, side)) for value in mean]
    return np.clip(np.stack(bands), 2, 60000).astype(np.uint16)


def radar(vv=-10.0, vh=-17.0, side=96, seed=1):
    """Backscatter (2, side, side) in dB."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(level, 2, (side, side)) for level in (vv, vh)]).astype(np.float32)


@pytest.mark.parametrize("mean", [LAND, CONIFERS, WATER, SAND, SNOW, [2 * value for value in WATER]])
@pytest.mark.parametrize("offset", [0, 1000])
def test_images_of_every_surface_are_accepted(mean, offset):
    """And the offset is found in all of them."""
    assert check_s2("a.tif", image(mean) + np.uint16(offset)) == offset
    assert check_s2("a.tif", image(mean) + np.uint16(offset), noisy=True) == offset


@pytest.mark.parametrize("mean", [LAND, CONIFERS, WATER, SAND, SNOW])
def test_surface_reflectance_may_be_dark_in_blue_light(mean):
    """L2A has no B10, which is 0 in files of 13 bands, and no light of the air in B1."""
    s2 = image(mean)
    s2[:3] = np.maximum(s2[:3], 900) - 800
    s2[10] = 0
    assert check_s2("a.tif", s2) == 0
    assert check_s2("a.tif", s2, noisy=True) == 0


SORTED = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 8]
HALF = np.zeros((1, 96, 96), np.uint16)
HALF[:, :, :40] = 1000


@pytest.mark.parametrize("mean", [LAND, CONIFERS, SAND])
@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda s2: s2 // 10, "the median of B1 above 350|not all below 256"),
        (lambda s2: np.clip(s2 * 6.5535, 0, 32000), "values from|medians"),
        (lambda s2: np.clip(s2 * 10.0, 0, 32000), "no median above"),
        (lambda s2: s2 // 40, "not all below 256"),
        (lambda s2: s2[SORTED], "band 11 brighter than band 1"),
        (lambda s2: s2[::-1], "band 11 brighter"),
        (lambda s2: s2 + HALF, r"an offset of \+1000 in a part"),
        (lambda s2: s2 + HALF.swapaxes(1, 2), r"an offset of \+1000 in a part"),
        (lambda s2: np.concatenate([s2, s2 + np.uint16(1000)], 2)[:, ::1, 30:], r"an offset of \+1000 in a part"),
        (lambda s2: s2.astype("int16") - np.int16(600), "values from -"),
    ],
)
def test_other_units_orders_and_mosaics_are_refused(mean, spoil, found):
    """Reflectance x 1000, x 65535, x 100000, sorted and reverse bands, an offset in half of the image."""
    with pytest.raises(DataError, match=found):
        check_s2("a.tif", spoil(image(mean)).astype(np.int32))


def test_clouds_everywhere_are_not_taken_for_another_order():
    """The advice is another image; clouds over a part are accepted, and so are bright cirrus and clear parts."""
    for thick in (CLOUD, [*CLOUD[:9], 2100, *CLOUD[10:]], [value + 1000 for value in CLOUD]):
        with pytest.raises(DataError, match=r"clouds everywhere.*Choose a clear image"):
            check_s2("a.tif", image(thick))
    s2 = image(LAND)
    s2[:, :40] = image(CLOUD)[:, :40]
    assert check_s2("a.tif", s2) == 0
    assert check_s2("a.tif", s2 + np.uint16(1000)) == 1000


@pytest.mark.parametrize("levels", [(-10, -17), (-2, -9), (-24, -27), (-24, -24.5), (0.5, -6)])
def test_backscatter_of_every_surface_is_accepted(levels):
    """Land, a city, calm water at the noise floor."""
    check_s1("a.tif", radar(*levels))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda s1: 10 ** (s1 / 10), "VV from.*median"),
        (lambda s1: 10 ** (s1 / 20), "VV from"),
        (lambda s1: 10 ** (s1 / 10) - 0.01, "VV from|VH from"),  # noise-corrected power can be below zero
        (lambda s1: s1 * 10, "VV from -"),
        (lambda s1: 10 * np.log10(np.abs(s1)), "VH .* above VV|VV from"),
        (lambda s1: 10 * np.log10(np.abs(s1)) - 20, "VH .* above VV"),
        (lambda s1: s1[::-1], "VH .* above VV.*order VV, VH"),
        (lambda s1: s1 - 9999, "VV from -"),
        (lambda s1: np.where(np.arange(96) < 40, 10 ** (s1 / 10), s1), "no value below 0 in"),
        (lambda s1: np.where(np.arange(96)[:, None] > 50, 10 ** (s1 / 10), s1), "no value below 0 in"),
        (lambda s1: np.where(np.arange(96) == 3, np.nan, s1), "192 values that are NaN"),
    ],
)
def test_other_units_of_backscatter_are_refused(spoil, found):
    """Power, amplitude, dB x 10, dB of dB, swapped bands, power in half of the image."""
    with pytest.raises(DataError, match=rf"a\.tif: found .*{found}"):
        check_s1("a.tif", spoil(radar()).astype(np.float32))


def test_one_extreme_pixel_decides_nothing():
    """A bright ship and a dark pixel in dB; a single 0 in B1."""
    s1, s2 = radar(), image(LAND)
    s1[:, 5, 5], s1[:, 6, 6], s2[0, 5, 5], s2[:, 6, 6] = 30, -70, 0, 30000
    check_s1("a.tif", s1)
    assert check_s2("a.tif", s2) == 0


@pytest.mark.parametrize(
    ("kind", "text", "name"),
    [
        ("s2", "B8A", "B8A"), ("s2", "b01", "B1"), ("s2", "S2_B12 (SWIR)", "B12"), ("s2", "nir08", "B8A"),
        ("s2", "Band 1", None), ("s2", "B13", None), ("s2", "B8/B4", None), ("s2", "QA60", None), ("s2", "AB1", None),
        ("s1", "Gamma0_VH", "VH"), ("s1", "s1a-iw-grd-vv-2018", "VV"), ("s1", "WAVE", None), ("s1", "VV/VH", None),
        ("lc", "MCD12Q1_LC_Prop2", "LC_PROP2"), ("dfc", "B1", None),
    ],
)  # fmt: skip
def test_names_are_recognised_as_whole_words(kind, text, name):
    assert band_name(kind, text) == name


def test_bands_without_names_are_in_file_order():
    """Some names in their place are accepted; the rest are contradictions."""
    assert band_order("a.tif", "s2", [None] * 13) == tuple(range(13))
    assert band_order("a.tif", "s2", ["B1", *["-"] * 12]) == tuple(range(13))
    assert band_order("a.tif", "s2", list(reversed(S2_BANDS))) == tuple(range(12, -1, -1))
    with pytest.raises(DataError, match="13 bands named B2, -"):
        band_order("a.tif", "s2", ["B2", *[None] * 12])
