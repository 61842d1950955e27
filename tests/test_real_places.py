"""
Chapters on files that no generator of ours wrote: three real places, in the layout of the public bundle.

They lie outside the repository (`../shared/data/semireal`); where they are not, these tests are skipped. The chapters
run on one of them; LCFUSE_REAL=all runs them on all three, and `evaluation` too (ten minutes of processor time).
"""

import json
import os
import resource

import nbformat
import numpy as np
import pytest
import rasterio
import stac_server
from miniatures import SEMIREAL, needs_semireal
from rasterio.warp import transform_bounds
from rasterio.windows import from_bounds

from lcfuse_core import __main__ as shell
from lcfuse_core.data import patches
from lcfuse_core.data.bands import B10, CHANNELS, channels_of
from lcfuse_core.mapping import places
from lcfuse_core.scoring import claims, ledger

pytestmark = needs_semireal
ON_ALL = os.environ.get("LCFUSE_REAL", "") == "all"


def test_the_offset_of_one_place_is_found_removed_and_reported():
    """BrazilCoast was processed by the newer baseline; its darkest cirrus value tells."""
    read, report = patches.read_many(patches.index(SEMIREAL))
    assert {patch.s2.shape[1:] for patch in read} == {(224, 224)}
    [(name, repair)] = [(patch.name, patch.repairs) for patch in read if patch.repairs]
    assert "BrazilCoast" in name
    assert "1000" in repair[0]
    assert "BrazilCoast" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"), [("metrics", []), *([("evaluation", ["-p", "steps", "4"])] if ON_ALL else [])]
)
def test_a_chapter_runs_on_them_without_a_change(name, given, tmp_path, monkeypatch):
    """Another size, float64 radar, int16 reflectance, another layout; the repair is told, the scores are right."""
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "ledger.jsonl"))
    assert shell.main(["run", name, "-p", "data_root", str(SEMIREAL), *given, "--out", str(tmp_path)]) == 0
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    printed = "".join(
        out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "stream"
    )
    assert "BrazilCoast" in printed
    assert "1000" in printed
    lines = ledger.read(tmp_path / "ledger.jsonl")
    floor = lines[lines["parameters.method"] == "MODIS label"].iloc[0]
    # Two thirds of the pixels, as counted from the files when they were made: 0.754, 0.573 and 0.669.
    assert floor["scores.oa"] == pytest.approx((0.754 + 0.573 + 0.669) / 3, abs=0.002)
    assert floor["scores.n_pixels"] == 3 * 224 * 224


# The same places through a catalogue ----------------------------------------------------

NAMES = ("BrazilCoast", "Denmark", "Tanzania")


def needed_bytes(server, grid):
    """The bytes of the blocks that a place touches, in all files of the server."""
    total = 0
    for path in server.folder.rglob("*.tif"):
        with rasterio.open(path) as file:
            extent = grid["transform"][2], grid["transform"][5] - 10 * grid["side"]
            bounds = (*extent, extent[0] + 10 * grid["side"], grid["transform"][5])
            window = from_bounds(*transform_bounds(grid["crs"], file.crs, *bounds), file.transform)
            for (i, j), block in file.block_windows(1):
                row, col = block.row_off - window.row_off, block.col_off - window.col_off
                if -block.height < row < window.height and -block.width < col < window.width:
                    total += file.block_size(1, i, j)
    return total


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Each place as `place` writes it, from a server with Sentinel-2 without B10, Sentinel-1, MODIS and a reference."""
    top, found = tmp_path_factory.mktemp("semireal"), {}
    for name, content in stac_server.real_places(SEMIREAL).items():
        with stac_server.serving(top / name) as server:
            baseline = "05.09" if content.s2[B10].min() >= 1000 else "02.14"
            stac_server.add_labels(server, content)
            properties = {"s2:processing_baseline": baseline}
            stac_server.add_item(server, content, "a", "2021-06-05", properties=properties)
            stac_server.add_radar(server, content, "r", "2021-06-07")
            services = server.services(top / f"{name}.yaml")
            request = places.Request(content.lon, content.lat, 2.08, name=name, months=(1, 12))
            with pytest.MonkeyPatch.context() as patch:  # the images and labels are real: this server counts as public
                patch.setattr(places, "SERVICES", services)
                folder = places.fetch_place(request, top / "places", services=services)
            record = json.loads((folder / places.PLACE_RECORD).read_text())
            ratio = sum(server.sent.values()) / needed_bytes(server, record["grid"])
        found[name] = folder, content, record, ratio
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_real_place_is_fetched_as_it_is(fetched, name):
    """Offset removed, no B10, the cells and the reference of the files, and few bytes beside those that are needed."""
    folder, content, record, ratio = fetched[name]
    (patch,), report = patches.read_many(patches.index(folder))
    assert report.repaired == report.skipped == []
    assert channels_of(patch.s2, patch.s1) == tuple(band for band in CHANNELS if band != "B10")
    offset = 1000 if name == "BrazilCoast" else 0
    assert record["sentinel2"]["items"][0]["offset"] == -offset
    col, row = (round(part) for part in ~content.transform @ (patch.transform.c, patch.transform.f))
    near = np.s_[row : row + 208, col : col + 208]
    for band in (1, 7, 12):
        assert abs(patch.s2[band].mean() - (content.s2[band][near].astype(float) - offset).mean()) < 20
    assert (patch.dfc == content.truth[near]).mean() > 0.95
    assert (patch.lc[0] == content.igbp[near]).mean() > 0.97
    assert ratio <= 1.3


@pytest.mark.slow
def test_the_chapter_runs_on_real_places(fetched, tmp_path, monkeypatch):
    """Within five minutes of processor time and 3 GB each; the lines have a kind of their own, and are pooled."""
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "ledger.jsonl"))
    names = NAMES if ON_ALL else NAMES[:1]
    for name in names:
        folder = fetched[name][0]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shell.main(["run", "your_place", "-p", "data_root", str(folder), "--out", str(tmp_path / name)]) == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2 * 300
        assert after.ru_maxrss < 3e6  # kB
    lines = ledger.read(tmp_path / "ledger.jsonl")
    assert set(lines["data_kind"]) == {"place"}
    table = lines.assign(place=lines["data.evaluation"]).pivot_table("scores.miou_8", "place", "parameters.method")
    print((100 * table).round(1).to_string())
    assert len(table) == len(names)
    [fusion] = [
        line
        for line in claims.evidence(tmp_path / "ledger.jsonl")
        if line["data_kind"] == "place" and line["parameters.method"] == "Fusion, target regions"
    ]
    assert fusion["scores.n_places"] == len(names)
