"""Harm on purpose: done to copies alone, as much as was asked for, and what is the same is the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from miniatures import write_patch

from lcfuse_core.book import damage
from lcfuse_core.data import patches
from lcfuse_core.data.files import KINDS, part_transform


@pytest.fixture
def rows(tmp_path):
    for number in (1, 2):
        write_patch(tmp_path / "whole", "sen12ms", number)
    return patches.index(tmp_path / "whole")


def test_copies_are_whole_and_elsewhere(rows, tmp_path):
    copies = damage.copy_patches(rows, tmp_path / "copies")
    assert copies["patch"].tolist() == rows["patch"].tolist()
    for kind in ("s1", "s2", "lc"):
        for one, other in zip(rows[kind], copies[kind], strict=True):
            assert Path(one) != Path(other)
            assert Path(one).read_bytes() == Path(other).read_bytes()


def test_cutting_leaves_the_beginning(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"0123456789")
    damage.cut_short(file, 4)
    assert file.read_bytes() == b"0123"


@pytest.mark.parametrize("at", [0, 0.5, 0.999])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_bit_is_flipped_and_flipped_back(tmp_path, at, bit):
    file, before = tmp_path / "a", bytes(range(100))
    file.write_bytes(before)
    damage.flip_bit(file, bit, at)
    one, other = (np.unpackbits(np.frombuffer(content, np.uint8)) for content in (before, file.read_bytes()))
    assert (one != other).sum() == 1
    damage.flip_bit(file, bit, at)
    assert file.read_bytes() == before


def test_the_same_patch_is_the_same_and_any_change_makes_it_another(rows):
    patch, again = (patches.read_patch(rows.iloc[0]) for _ in range(2))
    assert damage.is_same(patch, again)
    for kind in (kind for kind in KINDS if getattr(patch, kind) is not None):
        changed = getattr(patch, kind).copy()
        changed.flat[-1] += 1
        assert not damage.is_same(patch, replace(again, **{kind: changed}))
        assert not damage.is_same(patch, replace(again, **{kind: None}))
    moved = replace(again, transform=part_transform(patch.transform, 1, 0))
    assert not damage.is_same(patch, moved)
    assert not damage.is_same(patch, replace(again, crs=None))
    negative = replace(again, s1=np.where(patch.s1 == patch.s1.flat[0], np.float32(-0.0), patch.s1))
    zero = replace(again, s1=np.where(patch.s1 == patch.s1.flat[0], np.float32(0.0), patch.s1))
    assert not damage.is_same(negative, zero), "0 and -0 are other bits"
