"""Ways of drawing crops: each does what its name says, from the generator alone, and never off the map."""

from collections import Counter

import numpy as np
import pytest
import torch
from test_packs import pack_one, write_scene
from toys import toy_patch, toy_stack

from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.packs import PackedScenes
from lcfuse_core.patches import Crops, PatchStack, turn, turn_each
from lcfuse_core.sampling import SAMPLING, Sampler

CORNERS = [(0, 0), (0, 16), (0, 32), (48, 32)]
"""Of patches that leave a hole in their scene of 80 x 64 pixels."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Two packed scenes, one whole and one with a hole."""
    root = tmp_path_factory.mktemp("packs")
    pack_one(root / "a", write_scene(root / "data"))
    pack_one(root / "b", write_scene(root / "more", corners=CORNERS, scene="8"))
    return PackedScenes([*(root / "a").glob("*.json"), *(root / "b").glob("*.json")])


@pytest.fixture(scope="module")
def uneven():
    """Three patches of one scene, one of another; a rare class is in one block of a single patch."""
    stack = toy_stack(4)
    stack.names = ["s_1_p1", "s_1_p2", "s_1_p3", "s_2_p1"]
    stack.labels[2, 8:16, 8:16] = 7
    return stack


@pytest.mark.parametrize("kind", SAMPLING)
def test_the_same_state_gives_the_same_places_all_on_the_map(kind, packed, uneven):
    for stack in (packed, uneven):
        sampler = Sampler(stack, kind)
        first, again = (sampler.places(60, 20, torch.Generator().manual_seed(3)) for _ in range(2))
        assert first == again != sampler.places(60, 20, torch.Generator().manual_seed(4))
        for number, row, col, symmetry in first:
            rows, cols = stack.extent(number)
            assert 0 <= row <= rows - 20
            assert 0 <= col <= cols - 20
            assert 0 <= symmetry < 8
            assert stack.is_whole(number, row, col, 20)
        assert stack.cut(first, 20).labels.shape == (60, 20, 20)


def test_area_is_what_crops_has_always_been(packed, uneven):
    for stack in (packed, uneven):
        places = Sampler(stack).places(5, 16, torch.Generator().manual_seed(1))
        for ours, theirs in zip(
            stack.cut(places, 16), stack.crops(5, 16, torch.Generator().manual_seed(1)), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_scenes_are_drawn_alike_whatever_their_size(uneven):
    """The scene of one patch gets half of the crops, a quarter by area."""
    shares = {}
    for kind in ("scene", "area"):
        places = Sampler(uneven, kind).places(2000, 32, torch.Generator().manual_seed(0))
        shares[kind] = sum(number == 3 for number, *_ in places) / 2000
    assert shares["scene"] == pytest.approx(0.5, abs=0.04)
    assert shares["area"] == pytest.approx(0.25, abs=0.04)


def test_classes_are_drawn_alike_however_rare(uneven):
    """Five classes are there; the rare one is in a fifth of the crops at least, in few of those by area."""
    shares = {}
    for kind in ("class", "area"):
        places = Sampler(uneven, kind).places(1000, 8, torch.Generator().manual_seed(0))
        labels = uneven.cut(places, 8).labels
        shares[kind] = float((labels == 7).flatten(1).any(dim=1).double().mean())
    assert shares["class"] >= 0.18
    assert shares["area"] < 0.05
    seen = Counter(np.unique(uneven.labels.numpy()).tolist())
    assert set(seen) == {0, 1, 2, 3, 7}


def test_a_crop_of_a_class_holds_it_at_every_place(packed):
    """Also at borders, where it cannot be centred; the pixel is anywhere in the crop."""
    sampler = Sampler(packed, "class")
    sampler._present = [4]
    places = sampler.places(200, 16, torch.Generator().manual_seed(0))
    labels = packed.cut(places, 16).labels
    assert bool((labels == 4).flatten(1).any(dim=1).all())


def test_blocks_cover_every_labelled_pixel_once(packed, uneven):
    for stack in (packed, uneven):
        counts = sum(np.bincount(stack.block_labels(block).ravel(), minlength=8)[:8] for block in stack.blocks())
        assert counts.tolist() == stack.class_counts().tolist()


def test_what_cannot_be_drawn_is_refused(packed):
    empty = PatchStack([toy_patch(0)])
    empty.labels[:] = 255
    with pytest.raises(DataError, match="no labelled pixel"):
        Sampler(empty, "class")
    for kind in SAMPLING:
        with pytest.raises(ParameterError, match="crop size"):
            Sampler(packed, kind).places(1, 4096, torch.Generator())


def test_a_digest_tells_one_data_from_another(packed, uneven):
    """Of a stack by every pixel, of packed scenes by their records and their labels."""
    same = toy_stack(4)
    same.names, same.labels = uneven.names, uneven.labels.clone()
    assert same.digest() == uneven.digest()
    same.s1[3, 1, 63, 63] += 1
    assert same.digest() != uneven.digest()
    assert packed.digest() == PackedScenes([scene.path for scene in packed.scenes]).digest()
    assert packed.digest() != PackedScenes([packed.scenes[0].path]).digest()


def test_a_batch_is_turned_as_its_crops_are(uneven):
    """Cut upright and turned together, as for a GPU, or turned one by one while they are cut."""
    places = [(number % 4, 3, 5, number) for number in range(8)]
    upright = uneven.cut([(*place[:3], 0) for place in places], 16)
    for ours, theirs in zip(turn_each(upright, range(8)), uneven.cut(places, 16), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    square = torch.arange(9).view(3, 3)
    assert torch.equal(turn_each(Crops(*[square[None]] * 4), [5]).cells[0], turn(square, 5))
