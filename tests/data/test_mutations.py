"""
Randomly mutated triplets: each is read right, or refused by the name of its file.

`test_faults.py` has the faults that can be listed one by one; here are those that have too many forms.

What a reader of one patch cannot see are changes that leave plausible values: a flipped bit in a pixel, a swap of two
bands that both could be (not VV with VH, nor one that leaves the cirrus band bright), a mirrored image. It must then
give back what stands in the file, unchanged; and packing, which sees the same pixels in the neighbours, must refuse
the scene. Beyond that only the checksum of the archive tells: in a patch's part that no neighbour shares.

LCFUSE_FUZZ=100 runs 900 mutations instead of 54.
"""

import os
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from miniatures import CORNER, UTM, file_of, scene_arrays, write_scene, write_tif

from lcfuse_core.data import packing, patches
from lcfuse_core.errors import LcfuseError

N = int(os.environ.get("LCFUSE_FUZZ", "6"))
KINDS = ("s1", "s2", "lc")
MIDDLE, ROW, COL, SIDE = 34, 16, 16, 32
"""The patch that is mutated: all of its pixels are in a neighbour too."""


class Case:
    """The middle patch of a small scene, and a random stream."""

    def __init__(self, root, table, rng):
        self.root, self.table, self.rng = root, table, rng
        self.row = table.iloc[MIDDLE - 30]
        self.kind = str(rng.choice(KINDS))

    def path(self, kind=None):
        """Its file of a kind."""
        return file_of(self.root, "sen12ms", kind or self.kind, MIDDLE, "7")

    def array(self, kind=None):
        """What stands in that file."""
        return scene_arrays()[kind or self.kind][:, ROW : ROW + SIDE, COL : COL + SIDE].copy()

    def write(self, array, crs=UTM, transform=None, **profile):
        """Write it anew."""
        place = transform or CORNER @ Affine.translation(COL, ROW)
        if not profile:
            return write_tif(self.path(), array, crs, place)
        bands, rows, cols = array.shape
        size = {"count": bands, "height": rows, "width": cols, "dtype": array.dtype}
        with rasterio.open(self.path(), "w", driver="GTiff", crs=crs, transform=place, **size, **profile) as file:
            file.write(array)
        return self.path()


def flip_bits(case):
    """One to eight bits, anywhere in the file."""
    content = bytearray(case.path().read_bytes())
    for _ in range(case.rng.integers(1, 9)):
        content[case.rng.integers(len(content))] ^= 1 << case.rng.integers(8)
    case.path().write_bytes(content)


def flip_header(case):
    """One to four bits among the tags, where they do most."""
    content = bytearray(case.path().read_bytes())
    for _ in range(case.rng.integers(1, 5)):
        content[case.rng.integers(512)] ^= 1 << case.rng.integers(8)
    case.path().write_bytes(content)


def truncate(case):
    """Any number of bytes missing at the end."""
    content = case.path().read_bytes()
    case.path().write_bytes(content[: case.rng.integers(len(content))])


def append(case):
    """Bytes after the end, which mean nothing."""
    case.path().write_bytes(case.path().read_bytes() + case.rng.bytes(int(case.rng.integers(1, 999))))


def zero_block(case):
    """A sector of a disk that was never written."""
    content = bytearray(case.path().read_bytes())
    start = int(case.rng.integers(len(content)))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    case.path().write_bytes(content)


def swap_bands(case):
    """Two bands of one file change places."""
    array = case.array()
    one, other = case.rng.choice(len(array), 2, replace=False)
    array[[one, other]] = array[[other, one]]
    case.write(array)


def equal_dtype(case):
    """A type that holds the same numbers."""
    case.kind = str(case.rng.choice(["s1", "s2"]))
    case.write(case.array().astype({"s1": "float64", "s2": "int16"}[case.kind]))


def mirror(case):
    """The image upside down or left to right, the georeference as it was."""
    array = case.array()
    choices = [array[:, ::-1], array[:, :, ::-1], array.swapaxes(1, 2)]
    case.write(np.ascontiguousarray(choices[case.rng.integers(3)]))


def other_layout(case):
    """The same pixels in another dress: byte order, planes, compression, tiles, a no-data tag."""
    choices = [{"interleave": "band"}, {"compress": "deflate"}, {"compress": "lzw", "predictor": 2},
               {"ENDIANNESS": "BIG"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"nodata": 0},
               {"BIGTIFF": "YES"}]  # fmt: skip
    chosen = choices[case.rng.integers(len(choices))]
    if case.kind == "s1" and "predictor" in chosen:
        chosen = {"compress": "zstd", "predictor": 3}
    case.write(case.array(), **chosen)


SAME, REFUSED, PLAUSIBLE = "same", "refused", "plausible"

MUTATIONS = {
    flip_bits: {SAME, REFUSED, PLAUSIBLE},
    flip_header: {SAME, REFUSED, PLAUSIBLE},
    truncate: {REFUSED},
    append: {SAME},
    zero_block: {SAME, REFUSED, PLAUSIBLE},
    swap_bands: {REFUSED, PLAUSIBLE},
    equal_dtype: {SAME},
    mirror: {PLAUSIBLE},
    other_layout: {SAME},
}
"""What may become of each; PLAUSIBLE is what only the neighbours can tell."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Nine patches of 32 pixels with half overlap, whole, and their index."""
    root = tmp_path_factory.mktemp("scene")
    corners = [(row, col) for row in (0, 16, 32) for col in (0, 16, 32)]
    return root, write_scene(root, corners)


@pytest.fixture
def restored(scene):
    """The middle patch is as it was when the test is over."""
    root, _ = scene
    paths = [file_of(root, "sen12ms", kind, MIDDLE, "7") for kind in KINDS]
    before = [path.read_bytes() for path in paths]
    yield scene
    for path, content in zip(paths, before, strict=True):
        path.write_bytes(content)


@pytest.mark.parametrize("number", range(N))
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_mutated_triplet_is_read_right_or_refused(restored, tmp_path, mutate, number):
    """No crash, no strange error, no warning, and no change that goes unseen when the scene is packed."""
    root, table = restored
    names = sorted(mutation.__name__ for mutation in MUTATIONS)
    case = Case(root, table, np.random.default_rng((names.index(mutate.__name__), number)))
    original = patches.read_patch(case.row)
    mutate(case)
    outcome, patch = read(case, original)
    assert outcome in MUTATIONS[mutate], patch
    if outcome == PLAUSIBLE:
        assert_is_what_stands_in_the_file(case, patch)
        report = packing.pack(table, tmp_path)
        told = [reason for _, reason in report.refused] or [name for name, _ in report.skipped]
        assert original.name in told[0]


def read(case, original):
    """What becomes of the mutated patch, and the patch or the message."""
    refused = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            patch = patches.read_patch(case.row)
        except LcfuseError as error:
            refused = error
    if refused is not None:
        assert any(case.path(kind).name in str(refused) for kind in KINDS), refused
        assert refused.found
        assert refused.do
        return REFUSED, str(refused)
    is_same = all((getattr(patch, kind) == getattr(original, kind)).all() for kind in KINDS)
    assert patch.repairs == ()
    near = np.abs(np.subtract(patch.transform[:6], original.transform[:6])).max() <= 1  # a tenth of a pixel
    assert near, "the place has changed without a word"
    assert patch.crs == original.crs
    return (SAME if is_same else PLAUSIBLE), patch


def assert_is_what_stands_in_the_file(case, patch):
    """Nothing is made of it: the reader gives what rasterio reads."""
    for kind in KINDS:
        with rasterio.open(case.path(kind)) as file:
            np.testing.assert_array_equal(getattr(patch, kind), file.read())
