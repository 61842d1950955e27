"""
Baselines: maps of 10 m from the MODIS label alone, without images and without training.

The label itself is `protocol.modis_label_map`. Further baselines fill cells whose label cannot be right, interpolate
between neighbouring cells, or place the classes of a cell near pixels of the same class in neighbouring cells
(sub-pixel mapping). The last two invent detail. STARFM and similar methods solve another task: they need a pair of
dates, where SEN12MS has one date and the label of a year.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lcfuse_core.data.legends import SCORED, igbp_to_dfc, index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import label_index, patch_cells

_N = len(SCORED)
_HALF_CELL_PX = 23.0
"""Half the side of a 463 m cell, in pixels of 10 m."""

_TRUNCATE = 6
REACH_PX = int(_TRUNCATE * _HALF_CELL_PX + 0.5)
"""Distance over which a label influences `interpolated`: the radius of the kernel of the Gaussian."""


def filled_map(patch: Patch) -> NDArray[np.uint8]:
    """
    Return the MODIS label, with the nearest scored class in place of Savanna, Snow/Ice and unknown labels.

    uint8 (H, W), DFC2020 codes. The reference never uses the replaced classes, so they would count as errors whatever
    the pixel shows. A patch without a scored label is returned as it is.
    """
    assert patch.lc is not None
    classes = igbp_to_dfc(patch.lc[0])
    bad = ~np.isin(classes, SCORED)
    if bad.all():
        return classes
    nearest = ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
    return classes[tuple(nearest)]


def soft_label(patch: Patch) -> NDArray[np.float32]:
    """
    Return class proportions at each pixel, float32 (8, H, W): the MODIS labels weighted by a Gaussian of half a cell.

    Savanna, Snow/Ice and unknown labels have no weight, so their cells are filled from the neighbouring cells. A patch
    without a label has equal proportions.
    """
    return interpolated(label_index(patch, "modis"))


def interpolated(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what `soft_label` does of coarse labels 0..7, uint8 (H, W); others have no weight."""
    one_hot = _one_hot(labels)
    blurred = np.stack(
        [ndimage.gaussian_filter(plane, _HALF_CELL_PX, mode="nearest", truncate=_TRUNCATE) for plane in one_hot]
    )
    total = blurred.sum(axis=0)
    shares = np.divide(blurred, total, out=np.full_like(blurred, 1 / _N), where=total > 1e-12)
    return shares.astype(np.float32)


def soft_map(patch: Patch) -> NDArray[np.uint8]:
    """Return the class of the largest proportion of `soft_label` at each pixel, uint8 (H, W), DFC2020 codes."""
    return index_to_dfc(soft_label(patch).argmax(axis=0))


def swapped_map(patch: Patch) -> NDArray[np.uint8]:
    """
    Map by pixel swapping, uint8 (H, W), DFC2020 codes; the same patch always gets the same map.

    MODIS gives a cell one class. Its proportions are taken to be the mean of `soft_label` over the cell, so that a cell
    among others of its class stays pure and one at a border is mixed. They are laid out at random, then swapped.
    """
    cells = patch_cells(patch)
    n_cells = int(cells.max()) + 1
    sums = [np.bincount(cells.ravel(), plane.ravel(), n_cells) for plane in soft_label(patch)]
    share = np.stack(sums, axis=1) / np.bincount(cells.ravel(), minlength=n_cells)[:, None]
    return index_to_dfc(swap(_laid_out(share, cells, np.random.default_rng(0)), cells))


def _laid_out(share: NDArray[np.floating], cells: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """
    Return a class 0..7 for each pixel, at random within its cell, with the proportions *share* (n_cells, 8) of it.

    Counts are rounded so that they add up: of a cell of 10 pixels with proportions 0.55 and 0.45, five or six.
    """
    flat = cells.ravel()
    order = np.argsort(flat + rng.random(flat.size))  # cell by cell, at random within each
    size = np.bincount(flat, minlength=len(share))
    rank = np.arange(flat.size) - np.repeat(np.cumsum(size) - size, size)
    # Pixel number r of n takes the class in whose part of 0..1 its middle, (r + 1/2) / n, lies.
    middle = (rank + 0.5) / np.repeat(size, size)
    limits = np.cumsum(share, axis=1)[flat[order]]
    classes = np.empty(flat.size, np.uint8)
    classes[order] = np.minimum((middle[:, None] >= limits).sum(axis=1), _N - 1)
    return classes.reshape(cells.shape)


def swap(classes: NDArray[np.uint8], cells: NDArray[np.int32]) -> NDArray[np.uint8]:
    """
    Exchange pixels within cells so that pixels of one class become neighbours; the counts of each cell stay.

    After Atkinson 2005 (Photogramm. Eng. Remote Sens. 71, 839): a pixel is attracted to a class by the pixels of that
    class within five pixels, with weights exp(-distance / 2.5). The least attracted pixel of a class is exchanged with
    the pixel of another class that is most attracted to it, if the sum of attractions rises.
    The original has two classes and one pair at a time; here each class in turn swaps up to a fifth of its pairs.
    """
    classes, flat = classes.copy(), cells.ravel()
    rows, cols = np.mgrid[-5:6, -5:6]
    distance = np.hypot(rows, cols)
    kernel = np.exp(-distance / 2.5) * (distance > 0) * (distance <= 5)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for _ in range(12):
        for k in np.unique(classes):
            attraction = np.stack([ndimage.correlate(plane, kernel, mode="nearest") for plane in _one_hot(classes)])
            _swap_class(classes.reshape(-1), int(k), flat, attraction.reshape(_N, -1))
    return classes


def _swap_class(classes: NDArray[np.uint8], k: int, cells: NDArray[np.int32], attraction: NDArray[np.float32]) -> None:
    """Swap, in place, the least attracted pixels of class *k* with the pixels of others most attracted to it."""
    inside, outside = np.flatnonzero(classes == k), np.flatnonzero(classes != k)
    # Sorted within each cell by what an exchange would gain.
    inside = inside[np.lexsort((attraction[k, inside], cells[inside]))]
    outside = outside[np.lexsort((attraction[classes[outside], outside] - attraction[k, outside], cells[outside]))]
    first, second = _pairs(cells[inside], cells[outside])
    i, j = inside[first], outside[second]
    other = classes[j]
    gain = attraction[k, j] + attraction[other, i] - attraction[k, i] - attraction[other, j]
    i, j, other = i[gain > 1e-6], j[gain > 1e-6], other[gain > 1e-6]
    classes[i], classes[j] = other, k


def _pairs(first: NDArray[np.int32], second: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices of equal rank in equal cells of two sorted lists: the first fifth, at least one, of all pairs."""
    n_cells = int(max(first.max(initial=0), second.max(initial=0))) + 1
    sizes = np.stack([np.bincount(cells, minlength=n_cells) for cells in (first, second)])
    starts = np.cumsum(sizes, axis=1) - sizes
    both = sizes.min(axis=0)
    n_pairs = np.where(both > 0, np.maximum(both // 5, 1), 0)
    cell = np.repeat(np.arange(n_cells), n_pairs)
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(n_pairs) - n_pairs, n_pairs)
    return starts[0, cell] + rank, starts[1, cell] + rank


def _one_hot(index: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a plane of 0 and 1 for each class, float32 (8, H, W); all 0 where the label is unknown (255)."""
    return (index[None] == np.arange(_N, dtype=np.uint8)[:, None, None]).astype(np.float32)
