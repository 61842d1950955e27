"""Cells read off a label alone: held against the cells that the georeference gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import SEMIREAL, needs_semireal
from sklearn.metrics import adjusted_rand_score
from test_cells import TIMES, latitudes, longitudes, utm, whole_cells

from lcfuse_core.data import patches
from lcfuse_core.data.cells import cell_ids, recover


def labelled(latitude, longitude, n_classes, seed=0, size=256):
    """Cells of a place, and a label that holds one random class in each."""
    crs, transform = utm(latitude, longitude)
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


@settings(max_examples=4 * TIMES)
@given(st.floats(-60, 70), longitudes, st.integers(0, 99))
def test_shear_and_tilt_are_those_of_the_sinusoidal_grid(latitude, longitude, seed):
    """By x = R lon cos(lat) a column leans lon sin(lat); the UTM grid is turned by (lon - lon0) sin(lat)."""
    _, labels = labelled(latitude, longitude, 8, seed)
    found = recover(labels)
    sine, central = np.sin(np.radians(latitude)), int((longitude + 180) // 6) * 6 - 177
    turned = np.radians(longitude - central) * sine
    lean = np.arctan(np.radians(longitude) * sine)  # of the columns, seen from the local meridian
    assert found.shear == pytest.approx(-np.tan(lean - turned), abs=0.03)
    assert found.tilt == pytest.approx(-turned, abs=0.01)


def test_areas_and_counts_are_those_of_cells():
    """Whole cells of about 2147 pixels, numbered without gaps from north to south and west to east."""
    ids, labels = labelled(48.3, 11.9, 6)
    found = recover(labels).ids
    areas = np.bincount(found.ravel())
    assert areas[whole_cells(found)] == pytest.approx(2147, rel=0.05)
    assert abs(len(areas) - len(np.unique(ids))) <= 6  # slivers at the border
    assert (found.dtype, found.shape, found.min()) == (np.int32, ids.shape, 0)
    assert found[0, 0] < found[0, -1] < found[-1, 0] < found[-1, -1]


@settings(max_examples=4 * TIMES)
@given(st.floats(-55, 65), longitudes, st.integers(8, 60), st.integers(8, 60))
def test_neighbours_agree_on_their_overlap(latitude, longitude, down, right):
    """Each reads its own label; where they share pixels they part them alike."""
    crs, transform = utm(latitude, longitude)
    ids, keys = cell_ids(transform, crs, (256 + down, 256 + right))
    labels = np.random.default_rng(1).integers(1, 7, len(keys))[ids]
    first, second = recover(labels[:256, :256]), recover(labels[down:, right:])
    overlap = first.ids[down:, right:], second.ids[: 256 - down, : 256 - right]
    assert adjusted_rand_score(overlap[0].ravel(), overlap[1].ravel()) > 0.95


def test_poor_labels_are_recovered_less_well_and_say_so():
    """Two classes with one rare: still most pixels right on average, over places and seeds."""
    places = [(48.3, 11.9), (9.9, 106.5), (-33.9, 18.6), (62.5, 26.2), (19.4, -99.1), (48.5, 135.1)]
    scores = []
    for seed, place in enumerate(places * TIMES):
        crs, transform = utm(*place)
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
    assert np.bincount(found.ids.ravel())[whole_cells(found.ids)] == pytest.approx(2147, rel=0.05)


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


def test_the_same_label_gives_the_same_cells():
    """Nothing is drawn by chance; a copy with other codes has the same edges."""
    _, labels = labelled(10, 100, 5)
    first, second = recover(labels), recover(200 - labels.astype(np.int64))
    assert (first.ids == second.ids).all()
    assert (first.tilt, first.shear) == (second.tilt, second.shear)


@needs_semireal
@pytest.mark.parametrize("place", ["Denmark", "Tanzania", "BrazilCoast"])
def test_cells_of_real_places_are_recovered(place):
    """Labels made by others on the real grid: the georeference, unused, agrees with what is read off them."""
    table = patches.index(SEMIREAL)
    patch = patches.read_patch(table[table["scene_id"] == place].iloc[0])
    ids, _ = cell_ids(patch.transform, patch.crs, patch.lc.shape[1:])
    found = recover(patch.lc[0])
    assert agreement(ids, found) > 0.98
    assert found.explained > 0.98
