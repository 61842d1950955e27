"""Find the pixels near class borders and near small objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lcfuse_core.data.cells import CELL_M
from lcfuse_core.errors import GridError
from lcfuse_core.scoring.scores import N_CODES

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
