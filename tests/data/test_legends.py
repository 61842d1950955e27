"""Legends against the published tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lcfuse_core.data import legends
from lcfuse_core.data.legends import DFC2020, IGBP, IGNORE, SCORED, Legend, dfc_to_index, igbp_to_dfc, index_to_dfc
from lcfuse_core.errors import LegendError

ALL = (IGBP, legends.LCCS_LAND_COVER, legends.LCCS_LAND_USE, legends.LCCS_HYDROLOGY, DFC2020)

# Contest page of the IEEE GRSS 2020 Data Fusion Contest (Yokoya et al. 2020).
DFC_TABLE = {
    1: ("Forest", "009900"),
    2: ("Shrubland", "c6b044"),
    3: ("Savanna", "fbff13"),
    4: ("Grassland", "b6ff05"),
    5: ("Wetlands", "27ff87"),
    6: ("Croplands", "c24f44"),
    7: ("Urban/Built-up", "a5a5a5"),
    8: ("Snow/Ice", "69fff8"),
    9: ("Barren", "f9ffa4"),
    10: ("Water", "1c0dff"),
}

# MCD12Q1 Collection 6 User Guide (Sulla-Menashe & Friedl 2018), tables 8, 9 and 10, and a word of some names.
LCCS_CODES = {
    "LCCS land cover": (1, 2, 3, 11, 12, 13, 14, 15, 16, 21, 22, 31, 32, 41, 42, 43),
    "LCCS land use": (1, 2, 3, 9, 10, 20, 25, 30, 35, 36, 40),
    "LCCS surface hydrology": (1, 2, 3, 10, 20, 27, 30, 40, 50, 51),
}
LCCS_WORDS = [
    (legends.LCCS_LAND_COVER, {2: "snow", 11: "Evergreen needleleaf", 14: "Deciduous broadleaf", 21: "Open"}),
    (legends.LCCS_LAND_COVER, {22: "Sparse forest", 32: "Sparse herb", 42: "mosaic", 43: "Sparse shrub"}),
    (legends.LCCS_LAND_USE, {9: "Urban", 10: "Dense", 25: "Forest/cropland", 35: "mosaic", 36: "cropland"}),
    (legends.LCCS_HYDROLOGY, {27: "Woody wetland", 30: "Grass", 50: "Herbaceous wetland", 51: "Tundra"}),
]

# IGBP code -> DFC2020 code, 0..17 (Schmitt et al. 2020).
IGBP_TO_DFC = (0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10)


def test_dfc2020_codes_names_and_colours():
    """As the contest published them."""
    assert dict(zip(DFC2020.codes, zip(DFC2020.names, DFC2020.colours, strict=True), strict=True)) == DFC_TABLE
    assert DFC2020.unknown == 0


@pytest.mark.parametrize("legend", ALL[1:4], ids=lambda legend: legend.name)
def test_lccs_codes_are_those_of_the_user_guide(legend):
    """The three LCCS layers have gaps between their codes."""
    assert legend.codes == LCCS_CODES[legend.name]
    assert legend.unknown == 255


@pytest.mark.parametrize(("legend", "words"), LCCS_WORDS)
def test_lccs_names_stand_beside_their_codes(legend, words):
    """A list of names that slipped by one would show."""
    for code, word in words.items():
        assert word in legend.name_of(code)


def test_igbp_codes_run_from_1_to_17_with_water_last():
    """Collection 6; in Collection 5.1 water was 0."""
    assert IGBP.codes == tuple(range(1, 18))
    assert IGBP.unknown == 255
    expected = {1: "Evergreen needleleaf", 4: "Deciduous broadleaf", 8: "Woody savanna", 11: "wetland"}
    expected |= {12: "Cropland", 13: "Urban", 14: "mosaic", 15: "Snow", 16: "Barren", 17: "Water"}
    for code, word in expected.items():
        assert word in IGBP.name_of(code)


def test_igbp_maps_to_dfc2020_as_published():
    """Index 0..17."""
    assert igbp_to_dfc(np.arange(18)).tolist() == list(IGBP_TO_DFC)
    assert igbp_to_dfc(np.array([255])).tolist() == [0]


def test_classes_that_share_a_meaning_share_a_colour():
    """Forest to water look the same in both legends, where one IGBP class carries the DFC2020 colour."""
    for igbp, dfc in ((5, 1), (6, 2), (9, 3), (10, 4), (11, 5), (12, 6), (13, 7), (15, 8), (16, 9), (17, 10)):
        assert IGBP.rgba(igbp) == DFC2020.rgba(dfc)


def test_eight_classes_are_scored():
    """All but Savanna and Snow/Ice, which have no reference pixel."""
    assert SCORED == (1, 2, 4, 5, 6, 7, 9, 10)
    assert set(DFC2020.codes) - set(SCORED) == {legends.SAVANNA, legends.SNOW}
    assert DFC2020.name_of(legends.SAVANNA) == "Savanna"
    assert DFC2020.name_of(legends.SNOW) == "Snow/Ice"


@pytest.mark.parametrize("legend", ALL, ids=lambda legend: legend.name)
def test_every_legend_is_whole(legend):
    """Codes, names and colours are unique, fit uint8, and "unknown" is none of them."""
    for column in (legend.codes, legend.names, legend.colours):
        assert len(set(column)) == len(legend.codes)
    assert all(0 < code < 255 for code in legend.codes)
    assert legend.unknown not in legend.codes
    assert all(len(bytes.fromhex(colour)) == 3 for colour in legend.colours)


def test_colour_of_a_code():
    """Red, green and blue in this order, opaque; transparent where there is no class."""
    assert DFC2020.rgba(6) == (0xC2, 0x4F, 0x44, 255)
    assert DFC2020.rgba(0) == (0, 0, 0, 0)


def test_unknown_code_has_the_name_none():
    """And a code outside the legend has no name at all."""
    assert DFC2020.name_of(0) == "none"
    with pytest.raises(LegendError, match=r"class code 11.*expected DFC2020 codes 1, 2"):
        DFC2020.name_of(11)


def test_check_names_the_file_and_every_strange_code():
    """Codes of the legend and "unknown" pass."""
    DFC2020.check(np.array([0, 1, 10]))
    with pytest.raises(LegendError, match=r"p7\.tif: found class code 11, 200"):
        DFC2020.check(np.array([[1, 200], [11, 0]]), "p7.tif")


def test_a_legend_with_a_name_too_few_is_refused():
    """The lists belong together, one by one."""
    with pytest.raises(LegendError, match="2 codes, 1 names, 2 colours"):
        Legend("two", (1, 2), ("one",), ("000000", "ffffff"), unknown=0)


@given(arrays(np.uint8, (3, 5), elements=st.integers(0, 7)))
def test_network_classes_survive_the_way_to_dfc2020_and_back(index):
    """Nothing is lost between what networks count and what files hold."""
    assert (dfc_to_index(index_to_dfc(index)) == index).all()


@given(arrays(np.uint8, (3, 5), elements=st.sampled_from((0, *SCORED))))
def test_scored_codes_survive_the_way_to_networks_and_back(dfc):
    """Neither do scored classes get lost, nor pixels without a class."""
    assert (index_to_dfc(dfc_to_index(dfc)) == dfc).all()


def test_what_is_not_scored_is_ignored():
    """Savanna, Snow/Ice and "none" all become 255; scored classes count 0..7 in order."""
    assert dfc_to_index(np.array([0, legends.SAVANNA, legends.SNOW])).tolist() == [IGNORE] * 3
    assert dfc_to_index(np.array(SCORED)).tolist() == list(range(8))
    assert dfc_to_index(np.array([1])).dtype == np.uint8


@pytest.mark.parametrize("code", [18, 254, 100])
def test_igbp_codes_that_do_not_exist_are_refused(code):
    """Of the mapping, too."""
    with pytest.raises(LegendError, match=f"class code {code}"):
        igbp_to_dfc(np.array([1, code]))


def test_network_classes_that_do_not_exist_are_refused():
    """DFC2020 codes handed over as network classes, for instance."""
    with pytest.raises(LegendError, match=r"class code 9, 10.*expected network classes 0\.\.7"):
        index_to_dfc(np.array([1, 9, 10]))
