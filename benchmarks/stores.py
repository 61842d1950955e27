"""
The stores that were candidates for packed scenes, each as one function.

It writes the layers of a scene (kind -> array (bands, H, W)) into a folder and returns what opens them again; that
gives what reads a square: `read(kind, row, col, size)` -> array (bands, size, size).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from numpy.typing import NDArray
from rasterio.windows import Window

from lcfuse_core.data.packed import PackedScene, tile_type

TILE = 128
Layers = dict[str, NDArray[Any]]
Read = Callable[[str, int, int, int], NDArray[Any]]
Open = Callable[[], Read]


def ours(folder: Path, layers: Layers) -> Open:
    """`lcfuse_core.data.packed`: one record per tile in a memory-mapped .npy file, read as `PackedScene.fill` reads."""
    dtype = tile_type(layers, TILE)
    rows, cols = _size(layers)
    records = np.lib.format.open_memmap(folder / "tiles.npy", "w+", dtype, (rows * cols,))
    for i, j in _grid(layers):
        for kind, layer in layers.items():
            records[kind][i * cols + j] = _tile(layer, i, j)
    records.flush()

    def reopen() -> Read:
        scene = PackedScene.__new__(PackedScene)
        mapped = np.asarray(np.load(folder / "tiles.npy", mmap_mode="r"))
        scene.tile, scene.layers = TILE, {kind: mapped[kind] for kind in layers}
        scene._number = {(i, j): i * cols + j for i, j in itertools.product(range(rows), range(cols))}

        def read(kind: str, row: int, col: int, size: int) -> NDArray[Any]:
            out = np.empty((layers[kind].shape[0], size, size), layers[kind].dtype)
            scene.fill({kind: out}, row, col, size, size)
            return out

        return read

    return reopen


def planes(folder: Path, layers: Layers) -> Open:
    """One .npy file a layer, bands one after the other, memory-mapped."""
    for kind, layer in layers.items():
        np.save(folder / f"{kind}.npy", layer)

    def reopen() -> Read:
        mapped = {kind: np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in layers}
        return lambda kind, row, col, size: np.array(mapped[kind][:, row : row + size, col : col + size])

    return reopen


def geotiff(folder: Path, layers: Layers, **options: Any) -> Open:
    """One tiled GeoTIFF a layer, kept open."""
    for kind, layer in layers.items():
        predictor = {"predictor": 3 if layer.dtype.kind == "f" else 2} if options else {}
        profile = {"count": len(layer), "height": layer.shape[1], "width": layer.shape[2], "dtype": layer.dtype}
        profile |= {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "interleave": "pixel"}
        with rasterio.open(folder / f"{kind}.tif", "w", driver="GTiff", **profile, **options, **predictor) as file:
            file.write(layer)

    def reopen() -> Read:
        files = {kind: rasterio.open(folder / f"{kind}.tif") for kind in layers}
        return lambda kind, row, col, size: files[kind].read(window=Window(col, row, size, size))

    return reopen


def zarr_blosc(folder: Path, layers: Layers, *, codec: str) -> Open:
    """Zarr 3 with Blosc (byte shuffle) in chunks of one tile."""
    for kind, layer in layers.items():
        blosc = zarr.codecs.BloscCodec(cname=codec, clevel=5, shuffle="shuffle", typesize=layer.itemsize)
        array = zarr.create_array(
            str(folder / kind), shape=layer.shape, dtype=layer.dtype, chunks=(len(layer), TILE, TILE), compressors=blosc
        )
        array[:] = layer

    def reopen() -> Read:
        arrays = {kind: zarr.open_array(str(folder / kind), mode="r") for kind in layers}
        return lambda kind, row, col, size: arrays[kind][:, row : row + size, col : col + size]

    return reopen


def _size(layers: Layers) -> tuple[int, int]:
    rows, cols = next(iter(layers.values())).shape[1:]
    return rows // TILE, cols // TILE


def _grid(layers: Layers) -> itertools.product[tuple[int, int]]:
    return itertools.product(*map(range, _size(layers)))


def _tile(layer: NDArray[Any], i: int, j: int) -> NDArray[Any]:
    return layer[:, i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE]


STORES: dict[str, Callable[[Path, Layers], Open]] = {
    "tiles (chosen)": ours,
    "npy planes": planes,
    "GeoTIFF": geotiff,
    "GeoTIFF, deflate": partial(geotiff, compress="deflate"),
    "GeoTIFF, lzw": partial(geotiff, compress="lzw"),
    "GeoTIFF, zstd": partial(geotiff, compress="zstd"),
    "zarr, blosc lz4": partial(zarr_blosc, codec="lz4"),
    "zarr, blosc zstd": partial(zarr_blosc, codec="zstd"),
}
