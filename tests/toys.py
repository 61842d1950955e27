"""Tiny made-up patches, whose labels can be read off their pixels, for the tests of what learns."""

from copy import copy

import numpy as np
import torch

from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import PatchStack

IGBP_OF_CLASS = np.array([1, 6, 10, 11, 12, 13, 16, 17], np.uint8)
"""One IGBP code for each of the eight network classes."""


def toy_patch(seed: int, size: int = 64) -> Patch:
    """A mosaic of 8 px blocks of the first four classes, each with its own values in every channel."""
    rng = np.random.default_rng(seed)
    index = np.kron(rng.integers(0, 4, (size // 8, size // 8)), np.ones((8, 8), int))
    signature = np.random.default_rng(99).uniform(0, 1, (15, 8))[:, index]  # the same for every patch
    noisy = signature + rng.normal(0, 0.05, signature.shape)
    s2 = np.clip(500 + 4000 * noisy[:13], 0, 10000).astype(np.uint16)
    s1 = (-25 + 20 * noisy[13:]).astype(np.float32)
    lc = np.zeros((4, size, size), np.uint8)
    lc[0] = IGBP_OF_CLASS[index]
    return Patch(name=f"toy {seed}", s1=s1, s2=s2, lc=lc)


def toy_stack(n: int = 4, **size: int) -> PatchStack:
    """A stack of *n* toy patches with MODIS labels."""
    return PatchStack([toy_patch(seed, **size) for seed in range(n)], "modis")


def relabelled(stack: PatchStack, labels) -> PatchStack:
    """The same images and cells with other labels, uint8 (N, H, W)."""
    other = copy(stack)
    other.labels = torch.as_tensor(labels)
    assert (other.labels.shape, other.labels.dtype) == (stack.labels.shape, torch.uint8)
    return other
