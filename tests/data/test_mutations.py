"""
Files of a patch with damaged bytes: each is read right, or refused by the name of its file.

`test_files.py` has the faults that can be listed one by one; here are those that have too many forms. A flipped bit
may leave a plausible value, which a reader of one patch cannot see. It must then give back what stands in the file, and
packing, which sees the same pixels in the neighbours, must refuse the scene.

LCFUSE_FUZZ=100 runs 500 mutations instead of 30.
"""

import os
import warnings

import numpy as np
import pytest
import rasterio
from miniatures import file_of, write_scene

from lcfuse_core.data import packing, patches
from lcfuse_core.errors import LcfuseError

N = int(os.environ.get("LCFUSE_FUZZ", "6"))
KINDS = ("s1", "s2", "lc")
CORNERS = [(row, col) for row in (0, 16, 32) for col in (0, 16, 32)]
MIDDLE = 4
"""The patch that is damaged: all of its pixels are in a neighbour too."""


def flip_bits(content, rng):
    """One to eight bits, anywhere in the file."""
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)


def flip_header(content, rng):
    """One to four bits among the tags, where they do most."""
    for _ in range(rng.integers(1, 5)):
        content[rng.integers(512)] ^= 1 << rng.integers(8)


def truncate(content, rng):
    """Any number of bytes missing at the end."""
    del content[rng.integers(len(content)) :]


def append(content, rng):
    """Bytes after the end, which mean nothing."""
    content += rng.bytes(int(rng.integers(1, 999)))


def zero_block(content, rng):
    """A sector of a disk that was never written."""
    start = int(rng.integers(len(content)))
    content[start : start + 512] = bytes(len(content[start : start + 512]))


SAME, REFUSED, PLAUSIBLE = "same", "refused", "plausible"

MUTATIONS = {
    flip_bits: {SAME, REFUSED, PLAUSIBLE},
    flip_header: {SAME, REFUSED, PLAUSIBLE},
    truncate: {REFUSED},
    append: {SAME},
    zero_block: {SAME, REFUSED, PLAUSIBLE},
}
"""What may become of each; PLAUSIBLE is what only the neighbours can tell."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Folder and index of nine patches of 32 pixels with half overlap."""
    root = tmp_path_factory.mktemp("scene")
    return root, write_scene(root, CORNERS)


@pytest.mark.parametrize("number", range(N))
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_damaged_file_is_read_right_or_refused(scene, tmp_path, mutate, number):
    """No crash, no strange error, no warning, and no change that goes unseen when the scene is packed."""
    root, table = scene
    rng = np.random.default_rng((list(MUTATIONS).index(mutate), number))
    path = file_of(root, "sen12ms", rng.choice(KINDS), MIDDLE + 30, "7")
    whole, original = path.read_bytes(), patches.read_patch(table.iloc[MIDDLE])
    damaged = bytearray(whole)
    mutate(damaged, rng)
    path.write_bytes(damaged)
    try:
        found = outcome(table.iloc[MIDDLE], original)
        assert found in MUTATIONS[mutate]
        if found == PLAUSIBLE:
            report = packing.pack(table, tmp_path)
            told = [reason for _, reason in report.refused] or [name for name, _ in report.skipped]
            assert original.name in told[0]
    finally:
        path.write_bytes(whole)


def outcome(row, original):
    """What becomes of the patch; plausible values are those that rasterio reads."""
    refused = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            patch = patches.read_patch(row)
        except LcfuseError as error:
            refused = error
    if refused is not None:
        assert any(row[kind] in str(refused) for kind in KINDS), refused
        return REFUSED
    near = np.abs(np.subtract(patch.transform[:6], original.transform[:6])).max() <= 1  # a tenth of a pixel
    assert near, "the place has changed without a word"
    assert (patch.crs, patch.repairs) == (original.crs, ())
    if all((getattr(patch, kind) == getattr(original, kind)).all() for kind in KINDS):
        return SAME
    for kind in KINDS:
        with rasterio.open(row[kind]) as file:
            np.testing.assert_array_equal(getattr(patch, kind), file.read())
    return PLAUSIBLE
