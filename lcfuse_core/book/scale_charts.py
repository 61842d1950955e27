"""
Pictures of scenes put together and of coarse cells: what patches share, and what a label betrays.

Like `figures`: every function returns the figure and never shows it.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lcfuse_core.book import images
from lcfuse_core.book.style import WIDTH_IN, add_legend, legend_handles
from lcfuse_core.data.legends import igbp_to_dfc
from lcfuse_core.data.packed import PackedScene
from lcfuse_core.data.patches import Patch


def files_per_pixel(scene: PackedScene) -> NDArray[np.int64]:
    """How many patches of a packed scene hold each of its pixels, int (rows, cols)."""
    files = np.zeros(scene.shape, np.int64)
    for name in scene.names:
        row, col, rows, cols = scene.window_of(name)
        files[row : row + rows, col : col + cols] += 1
    return files


def show_overlap(scene: PackedScene) -> Figure:
    """A packed scene, and beside it how many patches hold each tile; of a scene with gaps its first patch alone."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_IN, WIDTH_IN / 2 + 0.2))
    whole = scene.read(0, 0, *scene.shape) if scene.covered.all() else scene.patch(scene.names[0])
    images.show_image(left, images.rgb(whole), "put together")
    files = files_per_pixel(scene)
    images.show_image(right, plt.get_cmap("Blues")(files / 5), "files that hold a pixel")
    for row, col in np.argwhere(scene.covered) * scene.tile + scene.tile // 2:
        ink = "white" if files[row, col] > 2 else "black"
        right.text(col, row, str(files[row, col]), ha="center", va="center", color=ink)
    return fig


def show_cells(patch: Patch, cells: Mapping[str, NDArray[np.int32]]) -> Figure:
    """The MODIS label of a patch as DFC2020 classes, once for each of *cells* (by title), with their borders."""
    assert patch.lc is not None
    fig, axes = plt.subplots(1, len(cells), figsize=(WIDTH_IN, WIDTH_IN / 2 + 0.2), squeeze=False)
    for ax, (title, ids) in zip(axes[0], cells.items(), strict=True):
        images.show_labels(ax, igbp_to_dfc(patch.lc[0]), title=title)
        images.show_cells(ax, ids)
    add_legend(fig, legend_handles([igbp_to_dfc(patch.lc[0])]), loc="outside lower left", ncols=3)
    return fig
