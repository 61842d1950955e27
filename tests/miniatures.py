"""
Small patches in the exact names, folders, dtypes and georeferences of the real data, for tests only.

They are 32 x 48 pixels, and every value tells its own band, row and column: no flip, shift, or swap of axes
or bands goes unseen.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from lcfuse_core.data import legends, packed, packing, patches

ROWS, COLS = 32, 48
KINDS = ("s1", "s2", "lc", "dfc")
UTM = "EPSG:32632"
PLACE = Affine(10, 0, 500003.7, 0, -10, 5400007.2)
"""Like real origins no multiple of 10 m."""

SEMIREAL = Path(__file__).parents[2] / "shared" / "data" / "semireal"
"""Three real places, beside the repository of whoever has them; see the README of that folder's parent."""

needs_semireal = pytest.mark.skipif(not SEMIREAL.is_dir(), reason="the folder shared/data/semireal is not here")

FILES = {
    "sen12ms": "ROIs1158_spring/{kind}_{scene}/ROIs1158_spring_{kind}_{scene}_p{patch}.tif",
    "truth": "ROIs1158_spring/{kind}_{scene}/ROIs1158_spring_{kind}_{scene}_p{patch}.tif",
    "validation": "{kind}_validation/ROIs0000_validation_{kind}_0_p{patch}.tif",
    "test": "{kind}_0/ROIs0000_test_{kind}_0_p{patch}.tif",
    "bundle": "ROIs0000_autumn/{kind}_{scene}/ROIs0000_autumn_{kind}_{scene}_p{patch}.tif",
}
SCENES = {"bundle": "CapeTown"}
S1_DTYPES = {"validation": "float64", "test": "float64", "bundle": "float64"}


def coordinates():
    """Row and column of every pixel."""
    return np.mgrid[:ROWS, :COLS]


def s1_array(dtype="float32", number=0):
    """VV from -1 to -32 dB, VH 40 dB below; the digits after the point are the column and the number."""
    row, col = coordinates()
    vv = -1.0 - row - col / 100 - number / 10000
    return np.stack([vv, vv - 40]).astype(dtype)


def s2_array(dtype="uint16"):
    """700 x row + 48 x band + column: at most 22,323; B10 is dark, as it is: 48 x row + column."""
    row, col = coordinates()
    return np.stack(
        [(COLS if band == 10 else 700) * row + COLS * band * (band != 10) + col for band in range(13)]
    ).astype(dtype)


def lc_array():
    """All classes of each MODIS layer, in diagonals of different steepness."""
    row, col = coordinates()
    layers = (legends.IGBP, legends.LCCS_LAND_COVER, legends.LCCS_LAND_USE, legends.LCCS_HYDROLOGY)
    return np.stack([_cycle(legend.codes, row * (band + 1) + col) for band, legend in enumerate(layers)])


def dfc_array():
    """All classes of DFC2020, "none" included, in diagonals."""
    row, col = coordinates()
    return _cycle((0, *legends.DFC2020.codes), 3 * row + col)[None]


def _cycle(codes, number):
    return np.array(codes, np.uint8)[number % len(codes)]


def file_of(root, layout, kind, patch=1, scene=None):
    """Where the file of that kind lies."""
    scene = scene or SCENES.get(layout, "1")
    return Path(root) / FILES[layout].format(kind=kind, scene=scene, patch=patch)


def write_tif(path, array, crs=UTM, transform=PLACE, **more):
    """A GeoTIFF like those of SEN12MS: pixel-interleaved, uncompressed, no nodata tag; or with *more* properties."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, rows, cols = array.shape
    profile = {"count": bands, "height": rows, "width": cols, "dtype": array.dtype, "interleave": "pixel"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the phase archives have none
        with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **profile | more) as file:
            file.write(array)
    return path


def write_patch(root, layout="sen12ms", patch=1, scene=None, kinds=None, **arrays):
    """Write the files of one patch; arrays by kind take the place of the usual ones. Returns their paths."""
    usual = {
        "s1": s1_array(S1_DTYPES.get(layout, "float32"), patch),
        "s2": s2_array(),
        "lc": lc_array(),
        "dfc": dfc_array(),
    }
    kinds = kinds or {"sen12ms": ("s1", "s2", "lc"), "truth": ("dfc",)}.get(layout, KINDS)
    place = {"crs": None, "transform": None} if layout in ("validation", "test") else {}
    return {
        kind: write_tif(file_of(root, layout, kind, patch, scene), (usual | arrays)[kind], **place) for kind in kinds
    }


# Scenes of overlapping patches ---------------------------------------------------------------------

SIDE = 32
CORNER = PLACE
WHOLE = [(row, col) for row in (0, 16, 32, 48) for col in (0, 16, 32)]
"""Corners of patches of 32 x 32 with half overlap that cover 80 x 64 pixels."""


def scene_arrays(rows=80, cols=64, seed=0):
    """Every pixel its own: random S1, S2 and class codes, and a reference, as one scene."""
    rng = np.random.default_rng(seed)
    all_legends = (legends.IGBP, legends.LCCS_LAND_COVER, legends.LCCS_LAND_USE, legends.LCCS_HYDROLOGY)
    s2 = rng.integers(300, 9000, (13, rows, cols)).astype(np.uint16)
    s2[10] //= 100
    return {
        "s1": (rng.uniform(-30, -1, (2, rows, cols)) - [[[0]], [[6]]]).astype(np.float32),
        "s2": s2,
        "lc": np.stack([rng.choice(np.array(legend.codes, np.uint8), (rows, cols)) for legend in all_legends]),
        "dfc": rng.integers(0, 11, (1, rows, cols)).astype(np.uint8),
    }


def write_scene(root, corners=WHOLE, scene="7", side=SIDE, kinds=("s1", "s2", "lc"), **arrays):
    """Patches at these corners, each with its own transform, as SEN12MS cuts them."""
    arrays = scene_arrays() | arrays
    for number, (row, col) in enumerate(corners, start=30):
        corner = CORNER @ Affine.translation(col, row)
        for kind in kinds:
            piece = arrays[kind][:, row : row + side, col : col + side]
            write_tif(file_of(root, "sen12ms", kind, number, scene), piece, UTM, corner)
    return patches.complete(patches.index(root), kinds)


def pack_one(root, table):
    """The one scene of a table, packed under *root*."""
    report = packing.pack(table, root)
    assert report.refused == []
    (path,) = packed.packed_paths(root)
    return packed.PackedScene(path)
