"""Find the pixels near class borders and near small objects, and compare maps with coarse labels cell by cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lcfuse_core.data.cells import CELL_M
from lcfuse_core.errors import GridError
from lcfuse_core.scoring.scores import N_CODES, check_grids, confusion

CELL_PX = CELL_M**2 / 100
"""Pixels of 10 m in a coarse cell; the count of a whole cell differs by a few."""


def near_borders(reference: NDArray[np.integer], radius_px: int = 3) -> NDArray[np.bool_]:
    """
    Return where another known class lies within *radius_px*: the *trimap* of Kohli et al. (2009), IJCV 82.

    Maps from coarse labels are wrong first near borders.

    Parameters
    ----------
    reference : ndarray of int, shape (H, W)
        DFC2020 codes. A pixel that is 0 (unknown) is never near a border and makes none.
    radius_px : int
        In rows or columns, whichever is more. Three pixels of 10 m are half a field road, and more than the shift
        between the two satellites.

    Raises
    ------
    GridError
        If the reference is not two-dimensional.
    """
    if np.ndim(reference) != 2:
        do = "Take one patch at a time: borders depend on the neighbouring pixels."
        raise GridError("borders", found=f"shape {np.shape(reference)}", expected="(H, W)", do=do)
    size, known = 2 * radius_px + 1, reference > 0
    # Unknown pixels get a value that is never the least, or never the greatest, of a window.
    least = ndimage.minimum_filter(np.where(known, reference, N_CODES), size, mode="nearest")
    greatest = ndimage.maximum_filter(np.where(known, reference, 0), size, mode="nearest")
    return known & (least != greatest)


def near_small_objects(reference: NDArray[np.integer], radius_px: int = 3) -> NDArray[np.bool_]:
    """
    Return the pixels near borders whose window of *radius_px* contains a part of an object smaller than a coarse cell.

    An object is a set of pixels of one class, connected by their sides. Those at the edge of the patch are left out,
    because their size is unknown. Parameters and errors are those of `near_borders`.
    """
    near, small = near_borders(reference, radius_px), np.zeros(np.shape(reference), bool)
    for code in np.unique(reference[reference > 0]):
        objects, _ = ndimage.label(reference == code)
        is_small = np.bincount(objects.reshape(-1)) < CELL_PX
        is_small[[0, *objects[[0, -1]].reshape(-1), *objects[:, [0, -1]].reshape(-1)]] = False  # 0: of another class
        small |= is_small[objects]
    return near & ndimage.maximum_filter(small, 2 * radius_px + 1, mode="nearest")


def cell_confusion(
    coarse: NDArray[np.integer], predicted: NDArray[np.integer], ids: NDArray[np.int32]
) -> NDArray[np.int64]:
    """
    Count coarse cells by (MODIS class, majority class of the map): does the map agree with MODIS at 500 m?

    Parameters
    ----------
    coarse, predicted : ndarray of int, shape (H, W)
        MODIS label and map, DFC2020 codes. The class of a cell is that of most of its pixels, also in the label, which
        can be off by one pixel at the rim of a cell; of equally frequent classes the lower code counts.
    ids : ndarray of int32, shape (H, W)
        Cell of each pixel, as `cells.cell_ids` returns it. Only cells that lie whole in the patch are counted.

    Returns
    -------
    ndarray of int64, shape (11, 11)
        For `scores.summarise`: OA is the fraction of cells that agree, among those whose MODIS class is scored.
    """
    check_grids("cell_confusion", label=coarse, predicted=predicted, cells=ids, do="Use the cells of this patch.")
    n_cells = int(ids.max()) + 1 if ids.size else 0

    def count(labels: NDArray[np.integer]) -> NDArray[np.int64]:
        pairs = ids.reshape(-1) * np.int64(N_CODES) + labels.reshape(-1)
        return np.bincount(pairs, minlength=n_cells * N_CODES).reshape(n_cells, N_CODES)

    in_label, in_map = count(coarse), count(predicted)
    whole = in_map.sum(1) > 0.98 * CELL_PX
    return confusion(in_label.argmax(1)[whole], in_map.argmax(1)[whole])
