"""Patches for torch: labels, crops that can be traced back to their pixels, and normalisation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import (
    COLS,
    PLACE,
    ROWS,
    UTM,
    dfc_array,
    lc_array,
    s1_array,
    s2_array,
)
from toys import toy_stack

from lcfuse_core.data import source
from lcfuse_core.data.cells import cell_ids, recover
from lcfuse_core.data.legends import IGNORE, N_COARSE, SAVANNA_INDEX
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import (
    Crops,
    PatchStack,
    Statistics,
    channel_statistics,
    class_counts,
    normalise,
    patch_cells,
    turn,
    turn_each,
)
from lcfuse_core.errors import DataError, GridError, MissingDataError, ParameterError

FLAT = Statistics((0.0,) * 15, (1.0,) * 15)
"""Leaves clipped channels as they are."""


def patch(number=0, **changes):
    """A patch in memory whose values tell their band, row and column; S1 tells its number too."""
    whole = Patch(f"p{number}", s1_array(number=number), s2_array(), lc_array(), dfc_array()[0])
    return replace(whole, **changes)


def number_of(s1):
    """Numbers of the patches that crops came from: the last digits of VV."""
    return (-s1[:, 0, 0, 0].double() * 10000).round().long() % 100


def test_labels_are_network_classes():
    """IGBP -> DFC2020 -> 0..7, Savanna (8, 9) apart; snow (15) and no label (0, 255) are ignored."""
    codes = [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 255, 0]
    expected = [0, 0, 1, 1, IGNORE, IGNORE, 2, 3, 4, 5, 4, IGNORE, 6, 7, IGNORE, IGNORE]
    lc = np.zeros((4, 1, len(codes)), np.uint8)
    lc[0] = codes
    assert source.label_index(patch(lc=lc), "modis").tolist() == [expected]
    expected[4:6] = [SAVANNA_INDEX] * 2
    with_savanna = source.label_index(patch(lc=lc), "modis+savanna")
    assert with_savanna.tolist() == [expected]
    assert class_counts(with_savanna, N_COARSE)[SAVANNA_INDEX] == 2
    dfc = np.arange(11, dtype=np.uint8)[None]
    assert source.label_index(patch(dfc=dfc), "fine").tolist() == [[IGNORE, 0, 1, IGNORE, 2, 3, 4, 5, IGNORE, 6, 7]]
    with pytest.raises(ParameterError, match=r"'coarse', expected modis or modis\+savanna or fine"):
        PatchStack([patch()], "coarse")


@pytest.mark.parametrize("labels", ["modis", "fine"])
def test_stack_holds_the_patches_as_they_are(labels):
    """Values, dtypes and order; from a list and from a generator that promises too many."""
    three = [patch(number) for number in range(3)]
    for stack in (PatchStack(three, labels), PatchStack(iter(three), labels, at_most=5)):
        assert (len(stack), stack.names) == (3, ["p0", "p1", "p2"])
        assert (stack.s2.dtype, stack.s1.dtype) == (torch.uint16, torch.float32)
        for number, one in enumerate(three):
            np.testing.assert_array_equal(stack.s2[number].numpy(), one.s2)
            np.testing.assert_array_equal(stack.s1[number].numpy(), one.s1)
            np.testing.assert_array_equal(stack.labels[number].numpy(), source.label_index(one, labels))
        part = stack.part([2, 0])
        assert part.names == ["p2", "p0"]
        for name in Crops._fields:
            assert torch.equal(getattr(part, name), getattr(stack, name)[[2, 0]])


def test_patches_that_do_not_fit_are_refused():
    """The message names both sizes, or the layer that lacks and the call that leaves such patches out."""
    small = patch(1, s2=s2_array()[:, :32, :40], s1=s1_array()[:, :32, :40])
    with pytest.raises(GridError, match=r"p1: found \(32, 40\) pixels, expected \(32, 48\) as in p0"):
        PatchStack([patch(0), small])
    for labels, layer in (("modis", "lc"), ("fine", "dfc")):
        with pytest.raises(MissingDataError, match=rf"p3: found no {layer} layer.*patches\.complete\(index"):
            PatchStack([patch(3, **{layer: None})], labels)


@settings(max_examples=25)
@given(size=st.integers(1, ROWS), seed=st.integers(0, 2**40))
def test_every_crop_is_a_turned_piece_of_one_patch(size, seed):
    """
    Each pixel of a crop tells where it came from; S2, S1, label and cell of it came from the same place.

    The places form a square without gaps: rows and columns advance by one pixel along either axis.
    """
    stack = PatchStack([patch(number) for number in range(3)], "fine")
    s2, s1, labels, cells = stack.crops(4, size, torch.Generator().manual_seed(seed))
    assert (s2.dtype, s1.dtype, labels.dtype, cells.dtype) == (torch.uint16, torch.float32, torch.uint8, torch.int32)
    assert (s2.shape, s1.shape, labels.shape) == ((4, 13, size, size), (4, 2, size, size), (4, size, size))
    row, col = s2[:, 0].int() // 700, s2[:, 0].int() % 700
    number = number_of(s1)
    for crop in range(4):
        source = number[crop]
        assert (s2[crop].int() == stack.s2[source].int()[:, row[crop], col[crop]]).all()
        assert (s1[crop] == stack.s1[source][:, row[crop], col[crop]]).all()
        assert (labels[crop] == stack.labels[source][row[crop], col[crop]]).all()
        assert (cells[crop] == stack.cells[source][row[crop], col[crop]]).all()
        steps = [[grid.diff(dim=axis).abs().unique().tolist() for axis in (0, 1)] for grid in (row[crop], col[crop])]
        assert size == 1 or steps in ([[[1], [0]], [[0], [1]]], [[[0], [1]], [[1], [0]]])


def test_cells_are_those_of_the_georeference():
    """Where there is one; else those that the label betrays; without that, one cell."""
    placed = patch(crs=UTM, transform=PLACE)
    np.testing.assert_array_equal(patch_cells(placed), cell_ids(PLACE, UTM, (ROWS, COLS))[0])
    lc = np.zeros((4, ROWS, COLS), np.uint8)
    lc[0] = 12
    lc[0, :, 23:] = 1  # an edge of cells
    cells = patch_cells(patch(lc=lc))
    np.testing.assert_array_equal(cells, recover(lc).ids)
    assert set(cells[:, :23].ravel()).isdisjoint(cells[:, 23:].ravel())
    assert (patch_cells(patch(lc=None)) == 0).all()


def test_crops_come_from_everywhere_in_every_symmetry():
    """All patches, all positions up to both borders, and all eight flips and rotations, about equally."""
    stack = PatchStack([patch(number) for number in range(2)])
    size, n = 30, 4000
    s2, s1, _, _ = stack.crops(n, size, torch.Generator().manual_seed(20))
    corners = s2[:, 0, [0, 0, -1], [0, -1, 0]].int()
    row, col = corners // 700, corners % 700
    top, left = (s2[:, 0].int() // 700).amin((1, 2)), (s2[:, 0].int() % 700).amin((1, 2))
    assert torch.bincount(top).tolist() == pytest.approx([n / 3] * 3, rel=0.15)
    assert torch.bincount(left).tolist() == pytest.approx([n / 19] * 19, rel=0.3)
    down, right = corners[:, 2] - corners[:, 0], corners[:, 1] - corners[:, 0]
    _, counts = torch.unique(torch.stack([down, right], 1), dim=0, return_counts=True)
    assert counts.tolist() == pytest.approx([n / 8] * 8, rel=0.2)
    number = number_of(s1)
    assert torch.bincount(number).tolist() == pytest.approx([n / 2] * 2, rel=0.1)
    assert (row.max(), col.max()) == (ROWS - 1, COLS - 1)


def test_nothing_makes_no_stack_and_no_statistics():
    """Neither from a list nor from a generator."""
    for make in (PatchStack, lambda none: PatchStack(iter(none), at_most=3), channel_statistics):
        with pytest.raises(DataError, match="found none, expected at least one"):
            make([])


def test_crops_that_do_not_fit_are_refused():
    """The message says how large they may be."""
    for size in (0, -3, ROWS + 1):
        with pytest.raises(ParameterError, match=rf"crop size: found {size}, expected 1\.\.32.* 32 x 48"):
            PatchStack([patch()]).crops(1, size, torch.Generator())


def test_the_eight_symmetries_are_those_of_the_square():
    """The four rotations, and the four of the mirror image; number 0 leaves all as it is."""
    square = torch.arange(9).view(3, 3)
    turned = [source.turn(square, symmetry).flatten().tolist() for symmetry in range(8)]
    expected = [torch.rot90(face, k).flatten().tolist() for face in (square, square.T) for k in range(4)]
    assert sorted(turned) == sorted(expected)
    assert turned[0] == list(range(9))


def test_statistics_are_those_of_numpy():
    """Over all pixels of all patches; from a list, a generator or a stack."""
    three = [patch(number) for number in range(3)]
    s2 = np.stack([np.clip(one.s2 / 10000, 0, 1) for one in three])
    s1 = np.stack([np.clip(one.s1.astype(float), -30, 5) for one in three])
    channels = np.concatenate([s2, s1], axis=1)
    assert channel_statistics(three) == channel_statistics(iter(three)) == PatchStack(three).statistics()
    statistics = channel_statistics(three)
    assert statistics.mean == pytest.approx(channels.mean((0, 2, 3)), rel=1e-5)
    # VH is below -41 dB all over: clipped to one value, so it is left unscaled.
    assert statistics.std[:14] == pytest.approx(channels.std((0, 2, 3))[:14], rel=1e-4)
    assert (statistics.mean[14], statistics.std[14]) == (-30, 1)


def test_normalise_by_hand():
    """(reflectance - mean) / deviation and (dB - mean) / deviation; both are clipped first, not in place."""
    s2, s1 = np.full((13, 1, 3), 2500, np.uint16), np.full((2, 1, 3), -12, np.float32)
    s2[3, 0] = 0, 5000, 12000
    s1[1, 0] = -50, -12, 30
    statistics = Statistics((0.25,) * 13 + (-10.0, -20.0), (0.5,) * 13 + (4.0, 5.0))
    channels = normalise(s2, s1, statistics)
    assert channels[0, 0].tolist() == [0, 0, 0]
    assert channels[3, 0].tolist() == [-0.5, 0.5, 1.5]
    assert channels[13, 0].tolist() == [-0.5, -0.5, -0.5]
    assert channels[14, 0].tolist() == pytest.approx([-2, 1.6, 5])
    assert (s2[3, 0].tolist(), s1[1, 0].tolist()) == ([0, 5000, 12000], [-50, -12, 30])


def test_one_sensor_is_a_part_of_both():
    """S2 first, whatever the order asked for; one patch is a batch of one."""
    stack = PatchStack([patch(number) for number in range(2)])
    statistics = stack.statistics()
    both = normalise(stack.s2, stack.s1, statistics)
    assert torch.equal(normalise(stack.s2, stack.s1, statistics, ("s1", "s2")), both)
    assert torch.equal(normalise(stack.s2, stack.s1, statistics, ("s2",)), both[:, :13])
    assert torch.equal(normalise(stack.s2, stack.s1, statistics, ("s1",)), both[:, 13:])
    assert torch.equal(normalise(stack.s2[1], stack.s1[1], statistics), both[1])
    for inputs in ((), ("s3",), ("s2", "dem")):
        with pytest.raises(ParameterError, match="expected s2, s1 or both"):
            normalise(stack.s2, stack.s1, statistics, inputs)


@pytest.mark.parametrize(
    ("s2", "s1"),
    [
        (s2_array()[:12], s1_array()),
        (s2_array(), s1_array()[:, :, 1:]),
        (s2_array()[None], s1_array()),
        (s1_array(), s2_array()),
    ],
)
def test_channels_that_do_not_fit_are_refused(s2, s1):
    """A missing band, another size, a batch with a single patch, sensors swapped."""
    with pytest.raises(GridError, match=r"expected \(13, H, W\) with \(2, H, W\)"):
        normalise(s2, s1, FLAT)


def test_class_counts_by_hand():
    """Ignored pixels do not count, absent classes count 0; arrays and tensors alike."""
    labels = np.array([[[0, 0, 7], [IGNORE, 3, 0]]], np.uint8)
    for form in (labels, torch.from_numpy(labels)):
        counts = class_counts(form)
        assert counts.dtype == torch.int64
        assert counts.tolist() == [3, 0, 0, 1, 0, 0, 0, 1]
    assert class_counts(np.zeros(0, np.uint8)).tolist() == [0] * 8


def test_a_digest_changes_with_every_pixel():
    first, same = toy_stack(4), toy_stack(4)
    assert same.digest() == first.digest()
    same.s1[3, 1, 63, 63] += 1
    assert same.digest() != first.digest()


def test_a_batch_is_turned_as_its_crops_are():
    """Cut upright and turned together, as for a GPU, or turned one by one while they are cut."""
    stack = toy_stack(4)
    places = [(number % 4, 3, 5, number) for number in range(8)]
    upright = stack.cut([(*place[:3], 0) for place in places], 16)
    for ours, theirs in zip(turn_each(upright, range(8)), stack.cut(places, 16), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    square = torch.arange(9).view(3, 3)
    assert torch.equal(turn_each(Crops(*[square[None]] * 4), [5]).cells[0], turn(square, 5))
