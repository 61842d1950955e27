"""The coarse cell: against the definition of the MODIS grid, and against real labels."""

import os

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import SEMIREAL, needs_semireal
from pyproj import Transformer
from sklearn.metrics import adjusted_rand_score

from lcfuse_core.data import patches, rasters
from lcfuse_core.data.cells import (
    CELL_M,
    GRID_COLS,
    GRID_ROWS,
    SINUSOIDAL,
    cell_ids,
    lonlat_to_modis,
    majority_share,
    modis_cells,
    modis_to_lonlat,
    recover,
)

TIMES = int(os.environ.get("LCFUSE_PLACES", "1"))
"""How many times as many random places as the suite has time for."""


def placed(latitude, longitude):
    """CRS of the UTM zone of a place, and a 10 m raster whose upper left corner lies there."""
    crs = rasters.utm(longitude, latitude)
    easting, northing = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    return crs, Affine(10, 0, easting, 0, -10, northing)


latitudes = st.floats(-65, 75)
longitudes = st.floats(-179, 179).filter(lambda degrees: 0.3 < degrees % 6 < 5.7)


@pytest.mark.parametrize(
    ("latitude", "longitude", "row", "col"),
    [(50, 0, 9600, 43200), (0, 0, 21600, 43200), (-30, 0, 28800, 43200)],
)
def test_corners_of_tiles_lie_where_the_grid_defines_them(latitude, longitude, row, col):
    """A tile has 10 degrees of latitude and 2400 cells; tiles meet at the equator and at Greenwich."""
    step = 1e-4  # a pixel of some 10 m; the raster's corner is 2 pixels north-west of the tile's
    transform = Affine(step, 0, longitude - 2 * step, 0, -step, latitude + 2 * step)
    rows, cols = modis_cells(transform, "EPSG:4326", (4, 4))
    assert rows[:, 0].tolist() == [row - 1, row - 1, row, row]
    assert cols[0].tolist() == [col - 1, col - 1, col, col]


def test_grid_begins_in_the_north_and_ends_in_the_south():
    """Row 0 touches the North Pole, the last row the South Pole; half the columns lie west of Greenwich."""
    north, south = Affine(1e-4, 0, 0, 0, -1e-4, 90), Affine(1e-4, 0, -4e-4, 0, -1e-4, -90 + 4e-4)
    assert (modis_cells(north, "EPSG:4326", (4, 4))[0] == 0).all()
    assert (modis_cells(south, "EPSG:4326", (4, 4))[0] == GRID_ROWS - 1).all()
    assert (modis_cells(south, "EPSG:4326", (4, 4))[1] == GRID_COLS // 2 - 1).all()
    assert (GRID_ROWS, GRID_COLS) == (43200, 86400)


@needs_semireal
@pytest.mark.parametrize("place", ["Denmark", "Tanzania", "BrazilCoast"])
def test_real_coarse_labels_are_pure_in_our_cells_and_show_them(place):
    """Labels made on the grid by others hold one class in every cell of ours; blocks of 50 px do not."""
    table = patches.index(SEMIREAL)
    patch = patches.read_patch(table[table["scene_id"] == place].iloc[0])
    igbp, transform, crs = patch.lc[0], patch.transform, patch.crs
    ids, keys = cell_ids(transform, crs, igbp.shape)
    assert n_impure(ids, igbp) == 0
    assert 20 <= len(keys) <= 45
    rows, cols = np.mgrid[: igbp.shape[0], : igbp.shape[1]]
    assert n_impure(rows // 50 * 10 + cols // 50, igbp) > 0
    aside = Affine(10, 0, transform.c + 30, 0, -10, transform.f - 30)
    assert n_impure(cell_ids(aside, crs, igbp.shape)[0], igbp) > 0
    found = recover(igbp)
    assert agreement(ids, found) > 0.98
    assert found.explained > 0.98


def n_impure(ids, labels):
    """How many cells hold more than one label."""
    return sum(len(np.unique(labels[ids == number])) > 1 for number in np.unique(ids))


def test_purity_of_cells_equals_a_count_by_hand():
    """Each whole cell by a plain loop; a map of one class is pure, a chequerboard is half and half."""
    ids, keys = cell_ids(Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632", (200, 230))
    labels = np.random.default_rng(3).integers(1, 4, ids.shape)
    whole = [k for k in range(len(keys)) if (ids == k).sum() > 0.98 * 463.3127**2 / 100]
    expected = [max((labels[ids == k] == c).mean() for c in (1, 2, 3)) for k in whole]
    assert len(whole) >= 6
    np.testing.assert_allclose(majority_share(labels, ids), expected)
    chequers = np.indices(ids.shape).sum(axis=0) % 2
    np.testing.assert_allclose(majority_share(chequers, ids), 0.5, atol=0.02)


@settings(max_examples=20)
@given(st.floats(-89, 89), st.floats(-180, 180))
def test_the_projection_is_the_sinusoidal_one_of_proj_and_can_be_inverted(latitude, longitude):
    """MODIS puts geodetic latitude on its sphere, and so does PROJ if source and target share that sphere."""
    sphere = "+proj=longlat +R=6371007.181 +no_defs"
    expected = Transformer.from_crs(sphere, SINUSOIDAL, always_xy=True).transform(longitude, latitude)
    x_m, y_m = lonlat_to_modis(longitude, latitude)
    assert (x_m, y_m) == pytest.approx(expected, abs=1e-3)
    assert modis_to_lonlat(x_m, y_m) == pytest.approx((longitude, latitude), abs=1e-9)


# Cells recovered from the label alone, compared with those of the georeference -----------------------------------


def labelled(latitude, longitude, n_classes, seed=0, size=256):
    """Cells of a place, and a label that holds one random class in each."""
    crs, transform = placed(latitude, longitude)
    ids, keys = cell_ids(transform, crs, (size, size))
    return ids, np.random.default_rng(seed).integers(1, n_classes + 1, len(keys)).astype(np.uint8)[ids]


def agreement(ids, recovered):
    """Adjusted Rand index of two partitions of the pixels: 1 when they are the same, 0 by chance."""
    return adjusted_rand_score(ids.ravel(), recovered.ids.ravel())


@settings(max_examples=6 * TIMES)
@given(latitudes, longitudes, st.integers(0, 99))
def test_cells_of_varied_labels_are_recovered_anywhere_on_earth(latitude, longitude, seed):
    """However steep the shear: all pairs of pixels but one or two in a hundred are joined or parted rightly."""
    ids, labels = labelled(latitude, longitude, 8, seed)
    found = recover(labels)
    assert agreement(ids, found) > 0.97
    assert found.explained > 0.97
    assert found.n_row_lines >= 4
    assert found.n_col_lines >= 3


def test_poor_labels_are_recovered_less_well_and_say_so():
    """Two classes with one rare: still most pixels right on average, over places and seeds."""
    places = [(48.3, 11.9), (9.9, 106.5), (-33.9, 18.6), (62.5, 26.2), (19.4, -99.1), (48.5, 135.1)]
    scores = []
    for seed, place in enumerate(places * TIMES):
        crs, transform = placed(*place)
        ids, keys = cell_ids(transform, crs, (256, 256))
        labels = (np.random.default_rng(seed).random(len(keys)) < 0.15)[ids]
        found = recover(labels)
        scores.append(agreement(ids, found))
    assert np.median(scores) > 0.9
    assert np.mean(scores) > 0.8


def test_a_label_of_one_class_tells_nothing_and_says_so():
    """Cells of the right size, where chance has put them."""
    found = recover(np.full((256, 256), 17, np.uint8))
    assert np.isnan(found.explained)
    assert (found.n_row_lines, found.n_col_lines) == (0, 0)
    border = np.concatenate([found.ids[0], found.ids[-1], found.ids[:, 0], found.ids[:, -1]])
    whole = np.setdiff1d(found.ids, border)
    assert np.bincount(found.ids.ravel())[whole] == pytest.approx(2147, rel=0.05)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_single_edge_fixes_one_family_of_lines(axis):
    """The other one is a guess, and is called so."""
    labels = np.zeros((256, 256), np.uint8)
    labels[(slice(100, None), slice(None))[:: 1 - 2 * axis]] = 1
    found = recover(labels)
    assert (found.n_row_lines, found.n_col_lines) == ((1, 0), (0, 1))[axis]
    assert found.explained > 0.99
    joined = np.isin(found.ids[:99], found.ids[101:]) if axis == 0 else np.isin(found.ids[:, :99], found.ids[:, 101:])
    assert not joined.any()


def test_labels_that_are_no_cells_are_not_explained():
    """Noise, or a map of 10 m: its edges lie everywhere."""
    noise = np.random.default_rng(0).integers(0, 5, (256, 256))
    assert recover(noise).explained < 0.3
    rows, cols = np.mgrid[:256, :256]
    discs = (np.hypot(rows % 61 - 30, cols % 71 - 35) < 20).astype(int)
    assert recover(discs).explained < 0.7


def test_further_layers_add_their_edges():
    """Two layers that each show half of the edges show all of them together."""
    ids, labels = labelled(48.3, 11.9, 8)
    row, col = labels.copy(), labels.copy()
    row[:, 128:], col[:, :128] = 0, 0
    assert agreement(ids, recover(np.stack([row, col]))) > 0.97


@settings(max_examples=60)
@given(st.data())
def test_cells_are_those_of_every_pixel_centre(data):
    """However the projection is interpolated: UTM, a polar CRS and degrees, also across the date line and the pole."""
    crs = data.draw(st.sampled_from(["EPSG:32601", "EPSG:32733", "EPSG:3413", "EPSG:4326"]))
    shape = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    size = data.draw(st.sampled_from([10.0, 60.0, 500.0]) if crs != "EPSG:4326" else st.sampled_from([1e-4, 0.01, 3.0]))
    reach = {"EPSG:4326": (180, 90), "EPSG:3413": (3e6, 3e6)}.get(crs, (9e5, 9.9e6))
    x, y = (data.draw(st.floats(-limit if crs[5] != "3" or limit == 3e6 else 0, limit)) for limit in reach)
    transform = Affine(size, data.draw(st.sampled_from([0, size / 9])), x, 0, -size, y)
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    easting = transform.a * cols + transform.b * rows + transform.c
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
        easting, transform.e * rows + transform.f
    )
    x_m, y_m = lonlat_to_modis(lon, lat)
    expected = GRID_ROWS // 2 - 1 - np.floor(y_m / CELL_M), np.floor(x_m / CELL_M) + GRID_COLS // 2
    row, col = modis_cells(transform, crs, shape)
    np.testing.assert_array_equal(row, expected[0].astype(np.int32))
    np.testing.assert_array_equal(col, expected[1].astype(np.int32))
    ids, keys = cell_ids(transform, crs, shape)
    unique, inverse = np.unique(row.astype(np.int64) * GRID_COLS + col, return_inverse=True)
    np.testing.assert_array_equal(keys, unique)
    np.testing.assert_array_equal(ids, inverse.reshape(shape))
    assert (ids.dtype, keys.dtype, row.dtype, col.dtype) == (np.int32, np.int64, np.int32, np.int32)
