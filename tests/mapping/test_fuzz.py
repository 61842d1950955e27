"""
Doors for files under random input: each reads it, or refuses it with an error of this package.

A process of its own with 4 GB of address space, ten seconds per file and no network reads damaged files, foreign
formats and valid rasters with odd properties. LCFUSE_FUZZ=50 tries 50 files per door instead of 4.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import traceback
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from places import AT, UTM, scene_arrays, write
from rasterio.crs import CRS

N = int(os.environ.get("LCFUSE_FUZZ", "4"))
DOORS = ("s2", "s1", "coarse", "clouds", "scl", "patch")
LIMIT_BYTES, LIMIT_S = 4 * 2**30, 10
FOREIGN = (
    b"", b"\0" * 999, b"II*\0\x08\0\0\0", b"MM\0*\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + b"\xff" * 64,
    b"\x89PNG\r\n\x1a\n", b"\0\0\0\x0cjP  \r\n\x87\n" + b"\xff" * 99, b"\xff\x4f\xff\x51" + b"\xff" * 99,
    b"<VRTDataset/>", b"\x0e\x03\x13\x01", b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"{" * 5000, b"\xff\xfe1\0",
)  # fmt: skip
CRSS = (
    None, UTM, "EPSG:4326", "EPSG:3857", "EPSG:4978", "EPSG:3413", "ESRI:54008", "EPSG:2263", "EPSG:32601",
    'LOCAL_CS["site",UNIT["metre",1]]', "+proj=longlat +R=3396190",
    "+proj=ortho +lat_0=57 +lon_0=10", "+proj=geos +h=35785831",
)  # fmt: skip
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64")


def damaged(content, rng):
    """Flipped bits, often in the head; a missing end; a block of zeros; a repeated part."""
    content = bytearray(content)
    how = rng.integers(4)
    for _ in range(rng.integers(1, 9)):
        where = int(rng.integers(len(content) if rng.random() < 0.3 else min(len(content), 600)))
        if how == 0:
            content[where] ^= 1 << rng.integers(8)
        elif how == 1:
            content[where : where + 4] = rng.bytes(4)
        elif how == 2:
            return content[: rng.integers(len(content))]
        else:
            content[where : where + 64] = bytes(64)
    return content


def odd(path, array, rng):
    """A valid GeoTIFF of the array, or of another shape and type, with odd properties."""

    def choose(*values):
        return values[rng.integers(len(values))]

    t = [10, 0, AT.c, 0, -10, AT.f]
    for _ in range(rng.integers(3)):
        t[rng.integers(6)] = choose(np.nan, np.inf, 0, 1e-9, 1e9, -10, 10, 60, 500, 1e300, 179.999, -1e-4)
    crs, transform = choose(*CRSS, *[UTM] * 12), Affine(*t)
    if crs == "EPSG:4326" and rng.random() < 0.7:
        transform = Affine(1e-4, 0, choose(9.8, 179.995, 359.9, -180.001), 0, -1e-4, choose(57.2, 89.999, -90, 100))
    if rng.random() < 0.4:
        bands, side = choose(0, 1, 2, 4, 12, 13, 14), choose(1, 31, 64, 200)
        array = rng.integers(0, choose(2, 18, 256), (max(1, bands), side, choose(1, 64, 200)))
    array = array.astype(choose(*DTYPES) if rng.random() < 0.3 else array.dtype)
    more = {"crs": crs and CRS.from_string(crs), "transform": transform, "nodata": choose(None, None, 0, 1, 7)}
    size = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype.name}
    sparse = rng.random() < 0.2
    if sparse:
        side = choose(3000, 20_000, 200_000)
        size |= {"height": side, "width": choose(64, side), "SPARSE_OK": True, "tiled": True, "bigtiff": "YES"}
        block = choose(256, 4096, 32768)
        size |= {"blockxsize": block, "blockysize": block, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", **size, **more) as file:
        if not sparse:
            file.write(array)
        if rng.random() < 0.2:
            file.scales, file.offsets = [choose(0.1, np.nan, 0, 1e-4)] * len(array), [choose(0, 5, np.inf)] * len(array)
        if rng.random() < 0.2:
            names = choose(["VV", "VH"], ["B1", "B2"], ["LC_Type1"], ["2001", "2001"], ["\x01", "%s"])
            file.descriptions = [names[number % len(names)] for number in range(len(array))]


def knock(door, path, folder):
    """Give a file to a door and use what it returns."""
    from lcfuse_core.data import files
    from lcfuse_core.mapping import coarse, scene

    part = slice(0, 64), slice(0, 64)
    if door in ("s2", "s1", "clouds", "scl"):
        given = {"s2": folder / "s2.tif"} | {door: path}
        with scene.open_scene(**given) as opened:
            opened.read(*part)
    elif door == "coarse":
        grid = scene.Grid(UTM, AT, (64, 64))
        for legend in (None, "igbp", "dfc2020"):
            with coarse.open_coarse(path, grid, legend) as opened:
                opened.labels(*part)
                opened.posterior()
    else:
        for kind in files.KINDS:
            try:
                files.read_layer(path, kind)
            except files.DataError as error:
                last = error
        raise last


def main(folder):
    """Run all doors; print what ended otherwise than by an error of this package, and how many files were refused."""
    from lcfuse_core.errors import LcfuseError

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    warnings.simplefilter("ignore")
    s2, s1 = scene_arrays(64, 64)
    codes = np.random.default_rng(0).integers(1, 11, (1, 64, 64)).astype(np.uint8)
    arrays = {"s2": s2, "s1": s1, "patch": s2}
    write(folder / "s2.tif", s2)
    write(folder / "s1.tif", s1)
    n_failed = n_refused = 0

    def out_of_time(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, out_of_time)
    for (place, door), number in product(enumerate(DOORS), range(N)):
        rng = np.random.default_rng((place, number))
        array, kind = arrays.get(door, codes), rng.integers(5)
        path = folder / f"a.{('tif', 'jp2', 'img')[rng.integers(3)]}"
        if kind == 0:
            path.write_bytes(FOREIGN[rng.integers(len(FOREIGN))])
        elif kind == 1:
            write(path, array, compress="deflate")
            path.write_bytes(damaged(path.read_bytes(), rng))
        else:
            odd(path, array, rng)
        signal.alarm(LIMIT_S)
        try:
            knock(door, path, folder)
        except LcfuseError:
            n_refused += 1
        except BaseException:
            n_failed += 1
            print(f"{door} {number}\n{traceback.format_exc()[-1500:]}")
        signal.alarm(0)
        path.unlink()
    print(f"{n_failed} failed, {n_refused} refused")


def test_every_door_reads_or_refuses(tmp_path):
    """Without a traceback, a hang, or more than 4 GB."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")))
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=os.environ | nowhere | {"PYTHONPATH": paths}, check=False,
        timeout=120 + len(DOORS) * N * LIMIT_S, capture_output=True, text=True,
    )  # fmt: skip
    counts = re.search(r"(\d+) failed, (\d+) refused$", done.stdout.strip())
    assert counts, done.stdout + done.stderr[-2000:]
    assert int(counts[1]) == 0, done.stdout
    assert int(counts[2]) > 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
