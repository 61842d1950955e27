"""
A local server that behaves as the services behind `place` do: a STAC API with pages, rasters by range requests, signed
addresses. Its content is the georeferenced scene of the sample, or a real place, as one cloud-optimised GeoTIFF per
band.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import rasterio
import yaml
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.warp import calculate_default_transform, reproject

from lcfuse_core.data import cells
from lcfuse_core.data.bands import S2_BANDS
from lcfuse_core.mapping.coarse import open_coarse
from lcfuse_core.mapping.places import SERVICES
from lcfuse_core.mapping.scene import Grid
from lcfuse_core.sample import world

ASSETS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", None, "B11", "B12")
DEGREES = 1 / 240  # of a pixel of the global MODIS copy
_SHIPPED = yaml.safe_load(SERVICES.read_text(encoding="utf-8"))
_TO_WORLDCOVER = {1: 10, 2: 20, 4: 30, 5: 90, 6: 40, 7: 50, 9: 60, 10: 80}


@dataclass
class Server:
    """A running server: its folder of files, items, faults, and what was asked of it."""

    folder: Path
    shared: Path | None = None  # products of equal content are made once, in this folder
    links: dict[str, Path] = field(default_factory=dict)  # where the files of a product are
    url: str = ""
    items: list[dict[str, Any]] = field(default_factory=list)
    page_size: int = 2
    page: Any = None  # what a search answers, instead of its result
    endless: bool = False  # whether each page has a next one, which begins anew
    token: str | None = None  # a query that every Sentinel-2 raster needs
    tokens: Callable[[], str] = lambda: ""
    refused: dict[str, int] = field(default_factory=dict)  # status by path of a file, for any request
    sent: Counter[str] = field(default_factory=Counter)  # bytes by path
    requests: list[str] = field(default_factory=list)
    fault: Callable[[str, int], Any] | None = None  # (path, how often it was asked for) -> status, or bytes to cut at

    def path(self, address: str) -> Path:
        """Return the file behind a path of the server."""
        name, _, rest = address.removeprefix("/files/").partition("/")
        return self.links.get(name, self.folder / name) / rest

    def status(self, address: str) -> int:
        """Return the status of a request for a file, given by its path and query; labels need no token."""
        path, _, query = address.partition("?")
        is_signed = self.token in (None, query) or path.removeprefix("/files/").partition("/")[0] not in self.links
        return self.refused.get(path, 403 if not is_signed else 200 if self.path(path).is_file() else 404)

    def services(self, path: Path, *, signed: bool = False, sentinel1: bool = True, l1c: bool = False) -> Path:
        """Write the file of services that points here; those of L1C have B10 and no scene classification."""
        known = copy.deepcopy(_SHIPPED)
        catalogue: dict[str, Any] = {"url": f"{self.url}/v1", "sentinel2": "s2", "bands": list(ASSETS), "scenes": "SCL"}
        if l1c:
            catalogue["bands"] = [asset or "B10" for asset in ASSETS]
            del catalogue["scenes"]
        catalogue |= {"sentinel1": "s1"} if sentinel1 else {}
        catalogue |= {"token": f"{self.url}/token/{{collection}}"} if signed else {}
        known["catalogues"] = {"earth-search": catalogue}
        known["modis"]["url"] = f"{self.url}/files/modis_{{year}}.tif"
        known["references"]["worldcover"]["url"] = f"{self.url}/files/reference_{{tile}}.tif"
        path.write_text(yaml.safe_dump(known, allow_unicode=True), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Content:
    """The scene that the server has: its arrays, grid, and centre in degrees."""

    s2: NDArray[np.uint16]
    s1: NDArray[np.float32]
    truth: NDArray[np.uint8]
    igbp: NDArray[np.uint8]  # of the cell of each pixel
    crs: str
    transform: Affine
    lon: float
    lat: float


def content(folder: Path, side: int = 320) -> Content:
    """Return the sample scene without clouds, *side* pixels wide."""
    files = world.make_sample_scene(folder / "scene", seed=0, side=side, region=3, weather=False)
    with rasterio.open(files.s2) as s2, rasterio.open(files.s1) as s1, rasterio.open(files.truth) as truth:
        arrays, crs, transform = (s2.read(), s1.read(), truth.read(1)), s2.crs.to_string(), s2.transform
    with open_coarse(files.coarse, Grid(CRS.from_string(crs), transform, (side, side))) as coarse:
        igbp = coarse.codes_at(slice(0, side), slice(0, side))
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*(transform @ (side / 2, side / 2)))
    return Content(*arrays, igbp, crs, transform, lon, lat)


def real_places(folder: Path) -> dict[str, Content]:
    """Return the places of a folder in the layout of DFC2020, with their values as stored, by name."""
    places = {}
    for path in sorted(folder.glob("*/s2_*/*.tif")):
        season, name = path.parent.parent, path.parent.name.removeprefix("s2_")
        arrays = {}
        for kind in ("s2", "s1", "dfc", "lc"):
            file_name = path.name.replace("_s2_", f"_{kind}_")
            with rasterio.open(season / f"{kind}_{name}" / file_name) as file:
                arrays[kind], crs, transform = file.read(), file.crs.to_string(), file.transform
        rows, cols = arrays["dfc"].shape[1:]
        to_lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(*(transform @ (cols / 2, rows / 2)))
        s2, s1 = arrays["s2"].astype(np.uint16), arrays["s1"].astype(np.float32)
        places[name] = Content(s2, s1, arrays["dfc"][0], arrays["lc"][0], crs, transform, lon, lat)
    return places


def labelled_scene(folder: Path) -> Content:
    """Return the scene, and write its labels into the subfolder `labels`."""
    found = content(folder)
    with serving(folder / "labels") as server:
        add_labels(server, found)
    return found


def write_cog(path: Path, array: NDArray[Any], crs: str, transform: Affine, nodata: float | None = 0) -> None:
    """Write one band as a cloud-optimised GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, cols = array.shape
    profile = {"driver": "COG", "dtype": array.dtype, "count": 1, "height": rows, "width": cols, "nodata": nodata}
    with rasterio.open(path, "w", crs=crs, transform=transform, blocksize=128, compress="deflate", **profile) as file:
        file.write(array, 1)


def add_item(
    server: Server,
    found: Content,
    name: str,
    date: str,
    *,
    clouds: NDArray[np.bool_] | None = None,
    stored: int = 0,
    properties: dict[str, Any] | None = None,
    lacks: str = "",
    columns: slice = slice(None),
    crs: str | None = None,
    surface: bool = False,
) -> None:
    """
    Add a Sentinel-2 product: *stored* is added to its values; outside its *columns* it has no data.

    *surface* takes the light of the air off each band, as L2A products are: B1 becomes dark.
    """
    hidden = np.zeros(found.truth.shape, bool) if clouds is None else clouds
    covered = np.zeros(found.truth.shape, bool)
    covered[:, columns] = True
    key = hashlib.sha256(repr((stored, hidden.tobytes(), covered.tobytes(), crs, surface)).encode()).hexdigest()[:12]
    product = (server.shared or server.folder) / key
    server.links[name] = product
    bands_of = {asset: found.s2[band] for band, asset in enumerate(ASSETS) if asset is not None}
    if not product.exists():
        for asset, values in bands_of.items():
            ground = values - values.min() + 60 if surface else values
            seen = np.where(covered, np.where(hidden, 9000, ground) + stored, 0)
            _store(product / f"{asset}.tif", seen.astype(np.uint16), found, crs)
        _store(product / "SCL.tif", np.where(covered, np.where(hidden, 9, 4), 0).astype(np.uint8), found, crs)
    there = [asset for asset in (*bands_of, "SCL") if asset != lacks]
    assets = {asset: {"href": f"{server.url}/files/{name}/{asset}.tif"} for asset in there}
    cover = round(100 * float(hidden.mean()), 1)
    own = {"datetime": f"{date}T10:00:00Z", "eo:cloud_cover": cover, **(properties or {})}
    server.items.append({"type": "Feature", "id": name, "collection": "s2", "assets": assets, "properties": own})


def add_radar(server: Server, found: Content, name: str, date: str) -> None:
    """Add a Sentinel-1 product: linear power, as terrain-corrected products are published."""
    assets = {}
    for band, asset in enumerate(("vv", "vh")):
        power = (10 ** (found.s1[band] / 10)).astype(np.float32)
        write_cog(server.folder / name / f"{asset}.tif", power, found.crs, found.transform, -32768)
        assets[asset] = {"href": f"{server.url}/files/{name}/{asset}.tif"}
    own = {"datetime": f"{date}T05:00:00Z"}
    server.items.append({"type": "Feature", "id": name, "collection": "s1", "assets": assets, "properties": own})


def add_labels(server: Server, found: Content, year: int = 2021) -> None:
    """Add the MODIS copy in degrees around the scene, and the 10 m reference."""
    west, north = np.floor(found.lon) - 0.5, np.ceil(found.lat) + 0.5
    side = round(2 / DEGREES)
    rows, cols = np.mgrid[:side, :side] + 0.5
    lon, lat = west + cols * DEGREES, north - rows * DEGREES
    x, y = cells.lonlat_to_modis(lon, lat)
    row, col = cells.modis_cells(found.transform, found.crs, found.truth.shape)
    top, left = row.min(), col.min()
    codes = np.full((row.max() - top + 1, col.max() - left + 1), 17, np.uint8)
    codes[row.ravel()[::7] - top, col.ravel()[::7] - left] = found.igbp.ravel()[::7]
    row = cells.GRID_ROWS // 2 - 1 - np.floor(y / cells.CELL_M).astype(int) - top
    col = cells.GRID_COLS // 2 + np.floor(x / cells.CELL_M).astype(int) - left
    inside = (row >= 0) & (row < codes.shape[0]) & (col >= 0) & (col < codes.shape[1])
    copied = np.full((side, side), 17, np.uint8)
    copied[inside] = codes[row[inside], col[inside]]
    write_cog(
        server.folder / f"modis_{year}.tif", copied, "EPSG:4326", Affine(DEGREES, 0, west, 0, -DEGREES, north), 255
    )
    table = np.zeros(256, np.uint8)
    table[[*_TO_WORLDCOVER]] = [*_TO_WORLDCOVER.values()]
    south, left = int(np.floor(found.lat / 3) * 3), int(np.floor(found.lon / 3) * 3)
    tile = f"{'NS'[south < 0]}{abs(south):02}{'EW'[left < 0]}{abs(left):03}"
    write_cog(server.folder / f"reference_{tile}.tif", table[found.truth], found.crs, found.transform)


def _store(path: Path, values: NDArray[Any], found: Content, crs: str | None) -> None:
    transform, own = found.transform, found.crs
    if crs is not None:  # the neighbouring UTM zone, as at the border of two zones
        rows, cols = values.shape
        bounds = rasterio.transform.array_bounds(rows, cols, transform)
        transform, width, height = calculate_default_transform(own, crs, cols, rows, *bounds, resolution=10)
        warped = np.zeros((height, width), values.dtype)
        places = {"src_transform": found.transform, "src_crs": own, "dst_transform": transform, "dst_crs": crs}
        reproject(values, warped, **places)  # nearest neighbour
        values, own = warped, crs
    write_cog(path, values, own, transform)


_NUMBERS = itertools.count()


class _HTTPServer(ThreadingHTTPServer):
    request_queue_size = 128  # with the usual 5, a reader of several images at once waits a second to be let in


@contextmanager
def serving(folder: Path, shared: Path | None = None) -> Iterator[Server]:
    """Run a server on a free port of this machine."""
    server = Server(folder, shared)
    http = _HTTPServer(("127.0.0.1", 0), _handler(server))
    # GDAL keeps what it has read of an address, and the next server may get the same port.
    server.url = f"http://127.0.0.1:{http.server_address[1]}/{next(_NUMBERS)}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def _page(server: Server, body: dict[str, Any]) -> Any:
    """Return a page of the answer to a search."""
    if server.page is not None:
        return server.page
    first, last = (part[:10] for part in body["datetime"].split("/"))
    found = [
        item
        for item in server.items
        if item["collection"] in body["collections"] and first <= item["properties"]["datetime"][:10] <= last
    ]
    start, stop = int(body.get("token", 0)), int(body.get("token", 0)) + server.page_size
    page: dict[str, Any] = {"type": "FeatureCollection", "features": found[start:stop]}
    if stop < len(found) or server.endless:
        link = {"rel": "next", "href": f"{server.url}/v1/search", "method": "POST", "merge": True}
        page["links"] = [link | {"body": {"token": stop % max(1, len(found))}}]
    return page


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or the body of an answer waits 40 ms until its head is acknowledged

        def parse_request(self) -> bool:
            """Leave out the number of the server."""
            is_good = super().parse_request()
            self.path = re.sub(r"^/\d+(?=/)", "", self.path) if is_good else ""
            return is_good

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

        def do_GET(self) -> None:
            self._answer({})

        def do_HEAD(self) -> None:
            path, status = server.path(urlsplit(self.path).path), server.status(self.path)
            size = path.stat().st_size if status == 200 else 0
            self._send(status, b"", {"Content-Length": str(size), "Accept-Ranges": "bytes"})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._answer(json.loads(self.rfile.read(length) or b"{}"))

        def _answer(self, body: dict[str, Any]) -> None:
            parts = urlsplit(self.path)
            server.requests.append(parts.path)
            cut = None
            if server.fault is not None:
                found = server.fault(parts.path, server.requests.count(parts.path))
                if isinstance(found, tuple):
                    return self._send(found[0], b"", found[1])
                cut = found
            if parts.path.startswith("/token/"):
                return self._json({"token": server.tokens()})
            if parts.path == "/v1/search":
                return self._json(_page(server, body))
            status, headers = server.status(self.path), {"Accept-Ranges": "bytes"}
            if status != 200:
                return self._send(status, b"")
            data = server.path(parts.path).read_bytes()
            wanted = self.headers.get("Range")
            if wanted:
                first, last = wanted.removeprefix("bytes=").split("-")
                size, start = len(data), int(first)
                data = data[start : int(last) + 1 if last else None]
                status, headers["Content-Range"] = 206, f"bytes {start}-{start + len(data) - 1}/{size}"
            server.sent[parts.path] += len(data)
            return self._send(status, data, headers, cut)

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(data if cut is None else data[:cut])
            except ConnectionError:  # the reader had enough
                return
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


assert len(ASSETS) == len(S2_BANDS)
