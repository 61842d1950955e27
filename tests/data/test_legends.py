"""Legends against the published tables, and legends from files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lcfuse_core.data import legends
from lcfuse_core.data.legends import (
    DFC2020,
    IGBP,
    IGNORE,
    SCORED,
    dfc_to_index,
    igbp_to_dfc,
    index_to_dfc,
    read_legend,
)
from lcfuse_core.errors import LegendError

ALL = (IGBP, legends.LCCS_LAND_COVER, legends.LCCS_LAND_USE, legends.LCCS_HYDROLOGY, DFC2020)

# Contest page of the IEEE GRSS 2020 Data Fusion Contest (Yokoya et al. 2020).
DFC_TABLE = {
    1: ("Forest", "009900"), 2: ("Shrubland", "c6b044"), 3: ("Savanna", "fbff13"), 4: ("Grassland", "b6ff05"),
    5: ("Wetlands", "27ff87"), 6: ("Croplands", "c24f44"), 7: ("Urban/Built-up", "a5a5a5"), 8: ("Snow/Ice", "69fff8"),
    9: ("Barren", "f9ffa4"), 10: ("Water", "1c0dff"),
}  # fmt: skip

# MCD12Q1 Collection 6 User Guide (Sulla-Menashe & Friedl 2018), tables 3, 8, 9 and 10, and a word of some names.
TABLES = [
    (IGBP, range(1, 18), {1: "Evergreen needleleaf", 4: "Deciduous broadleaf", 8: "Woody savanna", 11: "wetland",
                          12: "Cropland", 13: "Urban", 14: "mosaic", 15: "Snow", 16: "Barren", 17: "Water"}),
    (legends.LCCS_LAND_COVER, (1, 2, 3, 11, 12, 13, 14, 15, 16, 21, 22, 31, 32, 41, 42, 43),
     {2: "snow", 11: "Evergreen needleleaf", 14: "Deciduous broadleaf", 21: "Open", 22: "Sparse forest",
      32: "Sparse herb", 42: "mosaic", 43: "Sparse shrub"}),
    (legends.LCCS_LAND_USE, (1, 2, 3, 9, 10, 20, 25, 30, 35, 36, 40),
     {9: "Urban", 10: "Dense", 25: "Forest/cropland", 35: "mosaic", 36: "cropland"}),
    (legends.LCCS_HYDROLOGY, (1, 2, 3, 10, 20, 27, 30, 40, 50, 51),
     {27: "Woody wetland", 30: "Grass", 50: "Herbaceous wetland", 51: "Tundra"}),
]  # fmt: skip

# IGBP code -> DFC2020 code, 0..17 (Schmitt et al. 2020).
IGBP_TO_DFC = (0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10)


def test_dfc2020_codes_names_and_colours():
    """As the contest published them; all but Savanna and Snow/Ice, without reference pixels, are scored."""
    assert dict(zip(DFC2020.codes, zip(DFC2020.names, DFC2020.colours, strict=True), strict=True)) == DFC_TABLE
    assert SCORED == (1, 2, 4, 5, 6, 7, 9, 10)
    assert set(DFC2020.codes) - set(SCORED) == {legends.SAVANNA, legends.SNOW}
    assert (DFC2020.name_of(legends.SAVANNA), DFC2020.name_of(legends.SNOW)) == ("Savanna", "Snow/Ice")
    assert DFC2020.rgba(6) == (0xC2, 0x4F, 0x44, 255)
    assert DFC2020.rgba(0) == (0, 0, 0, 0)


@pytest.mark.parametrize(("legend", "codes", "words"), TABLES, ids=[legend.name for legend, _, _ in TABLES])
def test_modis_layers_are_those_of_the_user_guide(legend, codes, words):
    """Codes with their gaps; a list of names that slipped by one would show."""
    assert legend.codes == tuple(codes)
    assert legend.unknown == 255
    for code, word in words.items():
        assert word in legend.name_of(code)


def test_igbp_maps_to_dfc2020_as_published():
    """Index 0..17; classes of one meaning have one colour; other codes are refused."""
    assert igbp_to_dfc(np.arange(18)).tolist() == list(IGBP_TO_DFC)
    assert igbp_to_dfc(np.array([255])).tolist() == [0]
    for igbp, dfc in ((5, 1), (6, 2), (9, 3), (10, 4), (11, 5), (12, 6), (13, 7), (15, 8), (16, 9), (17, 10)):
        assert IGBP.rgba(igbp) == DFC2020.rgba(dfc)
    for code in (18, 254, 100):
        with pytest.raises(LegendError, match=f"class code {code}"):
            igbp_to_dfc(np.array([1, code]))


@pytest.mark.parametrize("legend", ALL, ids=lambda legend: legend.name)
def test_every_legend_is_whole(legend):
    """Codes, names and colours are unique, fit uint8, and "unknown" is none of them."""
    for column in (legend.codes, legend.names, legend.colours):
        assert len(set(column)) == len(legend.codes)
    assert all(0 < code < 255 for code in legend.codes)
    assert legend.unknown not in legend.codes
    assert all(len(bytes.fromhex(colour)) == 3 for colour in legend.colours)


def test_codes_outside_the_legend_are_named():
    """With the file, and every one of them; "unknown" passes and has the name none."""
    DFC2020.check(np.array([0, 1, 10]))
    assert DFC2020.name_of(0) == "none"
    with pytest.raises(LegendError, match=r"class code 11.*expected DFC2020 codes 1, 2"):
        DFC2020.name_of(11)
    with pytest.raises(LegendError, match=r"p7\.tif: found class code 11, 200"):
        DFC2020.check(np.array([[1, 200], [11, 0]]), "p7.tif")


@given(arrays(np.uint8, (3, 5), elements=st.integers(0, 7)))
def test_network_classes_survive_the_conversion_to_dfc2020_and_back(index):
    """And scored codes the other way."""
    assert (dfc_to_index(index_to_dfc(index)) == index).all()
    codes = np.array((0, *SCORED), np.uint8)[index]
    assert (index_to_dfc(dfc_to_index(codes)) == codes).all()


def test_what_is_not_scored_is_ignored():
    """Savanna, Snow/Ice and "none" all become 255; scored classes count 0..7 in order; other numbers are refused."""
    assert dfc_to_index(np.array([0, legends.SAVANNA, legends.SNOW])).tolist() == [IGNORE] * 3
    assert dfc_to_index(np.array(SCORED)).tolist() == list(range(8))
    assert dfc_to_index(np.array([1])).dtype == np.uint8
    with pytest.raises(LegendError, match=r"class code 9, 10.*expected network classes 0\.\.7"):
        index_to_dfc(np.array([1, 9, 10]))


# Legends from files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", b"10: Forest\n20: 2\n40: ' croplands '\n80: none\n0: 0\n"),
        ("a.yaml", b"\xef\xbb\xbf# classes\r\n10: forest\r\n20: SHRUBLAND\r\n40: 6\r\n80: 0\r\n0: None\r\n"),
        ("a.yml", b"{10: Forest, '20': Shrubland, 40: '6', 80: none, 0: none}"),
        ("a.json", b'{\n\t"10": "Forest",\n\t"20": 2, "40": "Croplands", "80": "none", "0": 0\n}\n'),
    ],
)
def test_a_legend_is_read_as_it_is_written(tmp_path, name, content):
    """YAML and JSON, names in any case, codes with or without quotes, a byte-order mark."""
    (tmp_path / name).write_bytes(content)
    assert read_legend(tmp_path / name) == {10: 1, 20: 2, 40: 6, 80: 0, 0: 0}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{10: yes}", "'yes' without quotes"),
        ("{10: true}", "10: True"),
        ("{yes: Forest}", "'yes' without quotes"),
        ("{012: Forest}", "'012' without quotes"),
        ("{10: 0x1}", "'0x1' without quotes"),
        ("{10: 1.0}", "10: 1.0"),
        ("{10: 1, 11: 2, 10: 3}", "10 a second time"),
        ('{"10": 1, "11": 2, "10": 3}', "'10' a second time"),
        ('{"10": 1, 10: 3}', "10: 3"),
        ("{10: Trees}", "10: Trees"),
        ("{255: Forest}", "255: Forest"),
        ("{-1: Forest}", "-1: Forest"),
        ("{1e1: Forest}", "1e1: Forest"),
        ("{10: 11}", "10: 11"),
        ("{10: }", "10: None"),
        ("{10: [Forest]}", "10: "),
        ("{[10, 20]: Forest}", "unhashable"),
        ("[10, Forest]", "no class"),
        ('[["10", "Forest"]]', "no class"),
        ("", "no class"),
        ("{}", "no class"),
        ("a: {", "expected"),
        ("[" * 3_000, "nested too deeply"),
        ("{10: \xc9\xe9}", "not UTF-8"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_what_is_not_a_pair_of_codes_is_refused(tmp_path, content, found):
    """Nothing is converted: not `yes` to 1, not `012` to 10; a code that occurs twice does not replace the first."""
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(LegendError, match=rf"a\.json.*: found .*{found}"):
        read_legend(path)
    with pytest.raises(LegendError, match="expected igbp, dfc2020 or an existing file"):
        read_legend(tmp_path / "none.yaml")
