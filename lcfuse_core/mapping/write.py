"""
What a finished map is handed over as: Cloud-Optimised GeoTIFFs, a STAC item beside them, a style for QGIS.

Each file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.warp import transform_geom

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DiskError
from lcfuse_core.mapping.scene import Grid, place_of

NAME = "landcover"
"""Of the class map; QGIS looks for a style of the same name."""

STAC_VERSION = "1.0.0"

EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)


@dataclass(frozen=True)
class Layer:
    """
    One raster of a map: raw uint8 (bands, H, W) in *source*, and how it is to be understood.

    scale : what a step is worth; 1 for codes
    resampling : of the overviews
    """

    name: str
    source: Path
    bands: Sequence[str]
    nodata: int
    scale: float = 1.0
    resampling: str = "AVERAGE"
    palette: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


def write_cog(layer: Layer, grid: Grid, folder: Path) -> Path:
    """
    Write a layer as a Cloud-Optimised GeoTIFF (512 px tiles, deflated, overviews) and return its path.

    Legend: colour table and `CLASS_1=Forest` tags in the file; names for GDAL and QGIS in `<name>.tif.aux.xml`.
    Raises DiskError when it cannot be written.
    """
    path = folder / f"{layer.name}.tif"
    part = folder / f".{layer.name}.{uuid.uuid4().hex[:8]}.part.tif"
    described = part.with_suffix(".vrt")
    options = {
        "COMPRESS": "DEFLATE",
        "LEVEL": "6" if layer.palette else "1",  # probabilities are noise: more effort gains nothing
        "BLOCKSIZE": "512",
        "OVERVIEW_RESAMPLING": layer.resampling,
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "2",
    }
    try:
        described.write_text(_vrt(layer, grid))
        # A raw file has a header of its own kind; GDAL looks for it beside the file.
        layer.source.with_suffix(".hdr").write_text(_envi(layer, grid))
        with rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_DISABLE_READDIR_ON_OPEN="FALSE"):
            rasterio.shutil.copy(str(described), str(part), driver="COG", **options)
        if layer.palette:
            write_whole(Path(f"{path}.aux.xml"), category_names())
        os.replace(part, path)
    except (RasterioError, OSError) as error:
        do = "Free space and run the same command again: the map is kept."
        raise DiskError(path, found=str(error), expected="to write the map", do=do) from None
    finally:
        part.unlink(missing_ok=True)
        described.unlink(missing_ok=True)
    return path


def _envi(layer: Layer, grid: Grid) -> str:
    rows, cols = grid.shape
    return (
        f"ENVI\nsamples = {cols}\nlines = {rows}\nbands = {len(layer.bands)}\nheader offset = 0\n"
        "file type = ENVI Standard\ndata type = 1\ninterleave = bsq\nbyte order = 0\n"
    )


def _vrt(layer: Layer, grid: Grid) -> str:
    """A raw file with its georeference, tags, colours and nodata, in GDAL's own language."""
    rows, cols = grid.shape
    place = ""
    if grid.crs is not None:
        t = grid.place
        place = f"<SRS>{escape(grid.crs.to_wkt())}</SRS>"
        place += f"<GeoTransform>{t.c!r}, {t.a!r}, {t.b!r}, {t.f!r}, {t.d!r}, {t.e!r}</GeoTransform>"
    tags = "".join(f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>" for key, value in layer.tags.items())
    colours = ""
    if layer.palette:
        entries = "".join('<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*DFC2020.rgba(code)) for code in range(256))
        colours = f"<ColorTable>{entries}</ColorTable>"
    bands = ""
    for number, name in enumerate(layer.bands, start=1):
        scale = "" if layer.scale == 1 else f"<Scale>{layer.scale}</Scale>"
        kind = ColorInterp.palette if layer.palette else ColorInterp.gray
        bands += (
            f'<VRTRasterBand dataType="Byte" band="{number}"><Description>{escape(name)}</Description>'
            f"<NoDataValue>{layer.nodata}</NoDataValue>{scale}"
            f"<ColorInterp>{kind.name.title()}</ColorInterp>{colours}"
            f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(layer.source.absolute()))}</SourceFilename>'
            f"<SourceBand>{number}</SourceBand></SimpleSource></VRTRasterBand>"
        )
    head = f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">'
    return f"{head}{place}<Metadata>{tags}</Metadata>{bands}</VRTDataset>"


def category_names() -> bytes:
    """GDAL's side file (PAM) with one name a code from 0: a GeoTIFF has no place for them."""
    names = [DFC2020.name_of(code) for code in range(max(DFC2020.codes) + 1)]
    rows = "".join(f"      <Category>{escape(name)}</Category>\n" for name in names)
    band = f'  <PAMRasterBand band="1">\n    <CategoryNames>\n{rows}    </CategoryNames>\n  </PAMRasterBand>\n'
    return f"<PAMDataset>\n{band}</PAMDataset>\n".encode()


def legend_tags() -> dict[str, str]:
    """The legend as tags of a file: `LEGEND=DFC2020`, `CLASS_1=Forest` ..."""
    return {"LEGEND": DFC2020.name} | {f"CLASS_{code}": DFC2020.name_of(code) for code in DFC2020.codes}


def qml(codes: Sequence[int] = SCORED) -> str:
    """A style for QGIS 3: *codes* of DFC2020 with their colours and names."""
    entries = "".join(
        f'        <paletteEntry value="{code}" color="#{DFC2020.colours[DFC2020.codes.index(code)]}" alpha="255" '
        f"label={quoteattr(DFC2020.name_of(code))}/>\n"
        for code in codes
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.28" styleCategories="AllStyleCategories">\n  <pipe>\n'
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">\n'
        f"      <rasterTransparency/>\n      <colorPalette>\n{entries}      </colorPalette>\n"
        "    </rasterrenderer>\n  </pipe>\n  <blendMode>0</blendMode>\n</qgis>\n"
    )


def stac_item(
    name: str, grid: Grid, assets: Mapping[str, Path], properties: Mapping[str, Any], digests: Mapping[str, str]
) -> dict[str, Any]:
    """
    A STAC item of a map: footprint in degrees (null without georeference), *properties*, its files.

    digests : SHA-256 of each asset, by its name in *assets*
    """
    geometry, bbox = _footprint(grid)
    classes = [
        {"value": code, "name": DFC2020.name_of(code).lower(), "color_hint": DFC2020.colours[k].upper()}
        for k, code in enumerate(DFC2020.codes)
        if code in SCORED
    ]
    place: dict[str, Any] = {"proj:shape": list(grid.shape)}
    if grid.crs is not None:
        place |= {"proj:epsg": grid.crs.to_epsg(), "proj:transform": list(grid.place)[:6]}
        if grid.crs.to_epsg() is None:
            place["proj:wkt2"] = grid.crs.to_wkt()
    described: dict[str, dict[str, Any]] = {}
    for key, path in assets.items():
        tif = path.suffix == ".tif"
        described[key] = {
            "href": f"./{path.name}",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized" if tif else "application/xml",
            "roles": ["data"] if tif else ["metadata"],
            "file:size": path.stat().st_size,
            "file:checksum": f"1220{digests[key]}",  # a multihash: 12 says SHA-256, 20 its length
        }
    described[NAME] |= {"classification:classes": classes}
    item = {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": name,
        "geometry": geometry,
        "properties": place | dict(properties),
        "links": [],
        "assets": described,
    }
    return item if bbox is None else item | {"bbox": bbox}


def _footprint(grid: Grid) -> tuple[dict[str, Any] | None, list[float] | None]:
    """Outline and box of the grid in longitude and latitude, or None and None."""
    if grid.crs is None:
        return None, None
    rows, cols = grid.shape
    corners = [(0, 0), (0, rows), (cols, rows), (cols, 0), (0, 0)]
    outline = {"type": "Polygon", "coordinates": [[place_of(grid.place, *corner) for corner in corners]]}
    geometry = transform_geom(grid.crs, "EPSG:4326", outline, precision=7)
    longitude, latitude = zip(*geometry["coordinates"][0], strict=True)
    return geometry, [min(longitude), min(latitude), max(longitude), max(latitude)]


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write beside *path*, then take its place. Raises DiskError; what stood there before then still does."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        do = "Free space or choose another folder; a map that stood there before is untouched."
        raise DiskError(path, found=f"{error.strerror}", expected="to write it", do=do) from error
    return path


def as_json(item: Mapping[str, Any]) -> str:
    """Text of a STAC item."""
    return json.dumps(item, indent=1) + "\n"
