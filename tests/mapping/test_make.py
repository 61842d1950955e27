"""A map from files to files: the same whatever the windows, panels and interruptions; masked; handed over whole."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext

import numpy as np
import pytest
import rasterio
from miniatures import SEMIREAL, needs_semireal
from places import AT, UTM, member, network, scene_arrays, write

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.sample import world
from lcfuse_core.errors import DataError, DiskError, ParameterError
from lcfuse_core.mapping import make, members, worklog
from lcfuse_core.mapping.make import Inputs, MapOptions, make_map
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.training.loop import predict

SMALL = MapOptions(window=64, overlap=24, margin=6, probabilities=True)
NAMES = ("landcover.tif", "confidence.tif", "probabilities.tif")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files of one scene with a corner of no data, its arrays, and a network for both sensors and for one."""
    folder = tmp_path_factory.mktemp("place")
    s2, s1 = scene_arrays()
    s2[:, :30, :50] = 0
    igbp = np.full((1, 150, 200), 10, np.uint8)
    igbp[0, :, 100:] = 12
    return {
        "files": Inputs((write(folder / "s2.tif", s2),), (write(folder / "s1.tif", s1),)),
        "coarse": write(folder / "igbp.tif", igbp),
        "s2": s2, "s1": s1, "igbp": igbp,
        "both": member(folder / "both.safetensors"),
        "alone": member(folder / "alone.safetensors", inputs=("s2",), seed=1),
    }  # fmt: skip


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def contents(folder):
    return [(folder / name).read_bytes() for name in NAMES]


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The map of that scene, made in one go."""
    return make_map(place["files"], [place["both"]], tmp_path_factory.mktemp("whole"), SMALL)


def test_a_map_is_what_the_fusion_says_of_the_whole(place, whole):
    """A network that sees 11 pixels, margins of 6: windows change nothing but the last digit."""
    patch = Patch("whole", place["s1"], place["s2"])
    expected = predict(place["both"].run, patch)
    got = read(whole.probabilities) * 0.004
    inner = np.s_[:, 37:, 57:]  # away from what was not seen, which the fusion does not know
    np.testing.assert_allclose(got[inner], expected[inner], atol=0.0025)
    classes, sure = read(whole.classes)[0], read(whole.confidence)[0]
    clear = np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2] > 0.001
    np.testing.assert_array_equal(
        classes[37:, 57:][clear[37:, 57:]], np.array(SCORED)[expected.argmax(0)][37:, 57:][clear[37:, 57:]]
    )
    np.testing.assert_allclose(sure[37:, 57:] * 0.004, expected.max(0)[37:, 57:], atol=0.0025)


def test_what_was_not_seen_has_no_class(place, whole):
    """Zeros of S2 are 0, 255 and 255, nothing else is; the share that was seen is told."""
    hidden = np.zeros((150, 200), bool)
    hidden[:30, :50] = True
    np.testing.assert_array_equal(read(whole.classes)[0] == 0, hidden)
    np.testing.assert_array_equal(read(whole.confidence)[0] == 255, hidden)
    assert (read(whole.probabilities)[:, hidden] == 255).all()
    assert whole.seen == pytest.approx(1 - 1500 / 30000)
    assert sum(whole.areas.values()) == 28500


def test_prior_and_symmetries_are_those_of_the_fusion(place, tmp_path):
    """Two members, four flips, the coarse label of each pixel to the power of 0.3."""
    plan = FusionPlan(symmetries=4, prior_power=0.3)
    both = [place["both"], member(tmp_path / "other.safetensors", seed=5)]
    files = Inputs(place["files"].s2, place["files"].s1, place["coarse"], legend=_own_legend(tmp_path))
    made = make_map(files, both, tmp_path / "map", MapOptions(plan, window=256, probabilities=True))
    from lcfuse_core.mapping.coarse import open_coarse
    from lcfuse_core.mapping.scene import Grid

    grid = Grid(rasterio.CRS.from_string(UTM), AT, (150, 200))
    with open_coarse(files.coarse, grid, files.legend) as coarse:
        posterior = coarse.posterior(grid)
    asked = {m.name: lambda patch, run=m.run: predict(run, patch) for m in both}
    lc = np.repeat(place["igbp"], 4, axis=0)
    fused = Fusion(asked, plan, posterior).predict(Patch("whole", place["s1"], place["s2"], lc))
    got = read(made.probabilities) * 0.004
    np.testing.assert_allclose(got[:, 37:, 57:], fused[:, 37:, 57:], atol=0.0025)


def _own_legend(folder):
    """IGBP codes of the fixture on the raster's own pixels, not on cells of MODIS."""
    path = folder / "legend.yaml"
    path.write_text("10: Grassland\n12: Croplands\n")
    return str(path)


def test_panels_change_nothing(place, whole, tmp_path):
    """Narrow panels bound the memory of a wide scene: byte for byte the same map."""
    from dataclasses import replace

    made = make_map(place["files"], [place["both"]], tmp_path, replace(SMALL, panel=70))
    assert contents(made.folder) == contents(whole.folder)


def test_a_map_that_is_there_is_found_and_one_of_other_inputs_is_not(place, whole, tmp_path):
    """The same call twice; another network; a file that was touched; a damaged map."""
    folder = shutil.copytree(whole.folder, tmp_path / "map")
    assert make_map(place["files"], [place["both"]], folder, SMALL).found
    os.truncate(folder / "confidence.tif", 100)
    again = make_map(place["files"], [place["both"]], folder, SMALL)
    assert not again.found
    assert contents(folder) == contents(whole.folder)
    other = make_map(place["files"], [place["alone"]], folder, SMALL)
    assert not other.found
    assert contents(folder) != contents(whole.folder)


def test_a_stop_at_any_part_goes_on_to_the_same_map(place, whole, tmp_path, monkeypatch):
    """The disk is full at each part in turn; what is finished is kept, and the end is the same, byte for byte."""
    plain, calls = worklog.Worklog.write, []

    def fails_every_second_time(self, unit, layers):
        calls.append(unit.number)
        if len(calls) % 2 == 0:
            monkeypatch.setattr(worklog.os, "pwrite", full)
        plain(self, unit, layers)

    real = os.pwrite

    def full(*_):
        monkeypatch.setattr(worklog.os, "pwrite", real)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worklog.Worklog, "write", fails_every_second_time)
    told = []
    for failures in range(4):  # of four parts, the second try of each comes through
        with pytest.raises(DiskError, match="finished parts are kept") if failures < 3 else nullcontext() as _held:
            made = make_map(place["files"], [place["both"]], tmp_path, SMALL, tell=told.append)
        assert not readers()
    assert told == [f"going on: {n} of 4 parts were there" for n in range(1, failures + 1)]
    assert contents(made.folder) == contents(whole.folder)
    assert not (tmp_path / ".work").exists()


def test_a_part_whose_bytes_have_changed_is_made_again(place, whole, tmp_path, monkeypatch):
    """A checksum in the journal finds it; a line that was cut ends the journal."""
    monkeypatch.setattr(make, "write_cog", _stop)
    with pytest.raises(KeyboardInterrupt):
        make_map(place["files"], [place["both"]], tmp_path, SMALL)
    monkeypatch.undo()
    raw = tmp_path / ".work" / "landcover.raw"
    damaged = bytearray(raw.read_bytes())
    damaged[60 * 200] ^= 3
    raw.write_bytes(damaged)
    journal = tmp_path / ".work" / "journal.jsonl"
    journal.write_text(journal.read_text()[:-10])
    told = []
    made = make_map(place["files"], [place["both"]], tmp_path, SMALL, tell=told.append)
    assert told == ["going on: 2 of 4 parts were there"]
    assert contents(made.folder) == contents(whole.folder)


def _stop(*_):
    raise KeyboardInterrupt


def readers():
    """
    Threads that may still read from a scene: with one left, closing its files can end the process.

    To be asked while the error is held, as it keeps alive what it came through.
    """
    return [thread for thread in threading.enumerate() if thread.name == "lcfuse ahead"]


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bytes(place, tmp_path):
    """SIGKILL when a first part is noted; how it goes at 20 random moments is measured in benchmarks/mapping.py."""
    checkpoint = network(tmp_path / "net.safetensors")
    shell = [sys.executable, "-m", "lcfuse_core", "map", "--s2", str(place["files"].s2[0])]
    shell += ["--s1", str(place["files"].s1[0]), "--model", str(checkpoint), "--quiet", "--probabilities"]
    shell += ["--window", "64", "--overlap", "24", "--out"]
    journal = tmp_path / "killed" / ".work" / "journal.jsonl"
    running = subprocess.Popen([*shell, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    while running.poll() is None and not (journal.exists() and journal.read_text().count("\n") > 1):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    subprocess.run([*shell, str(tmp_path / "killed")], check=True, capture_output=True)
    networks = [members.load_member(checkpoint)]
    options = MapOptions(members.plan_for(False), 64, 24, 6, probabilities=True)
    straight = make_map(place["files"], networks, tmp_path / "straight", options)
    assert contents(tmp_path / "killed") == contents(straight.folder)


def test_members_are_chosen_by_the_sensors_that_are_there(place, tmp_path):
    """With radar those that look at it; without, those that do not; an error where none is left."""
    two = [place["both"], place["alone"]]
    assert members.choose(two, has_s1=True) == [place["both"]]
    assert members.choose(two[1:], has_s1=True) == [place["alone"]]
    without = Inputs(place["files"].s2)
    made = make_map(without, two, tmp_path / "a", SMALL)
    assert [m["name"] for m in made.item["properties"]["lcfuse:members"]] == ["alone"]
    with pytest.raises(DataError, match=r"found no Sentinel-1, which both looks at.*--s1"):
        make_map(without, [place["both"]], tmp_path / "b", SMALL)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ParameterError, match="a prior power without a coarse map"):
        make_map(without, two, tmp_path / "c", MapOptions(FusionPlan(prior_power=0.3)))


def test_a_file_that_breaks_off_in_the_middle_is_named(place, tmp_path, monkeypatch):
    """An error of the reading thread arrives as what it is, and the threads end."""
    from lcfuse_core.mapping import scene

    plain, calls = scene._Source.read, []

    def breaks(self, rows, cols):
        calls.append(1)
        if rows.stop > 100 and len(calls) > 80:
            raise DataError(self.path, found="a file that cannot be read", expected="a whole raster", do="Again.")
        return plain(self, rows, cols)

    monkeypatch.setattr(scene._Source, "read", breaks)
    with pytest.raises(DataError, match=r"s[12]\.tif: found a file that cannot be read") as _held:
        make_map(place["files"], [place["both"]], tmp_path, SMALL)
    assert not readers()


# What is handed over ------------------------------------------------------------------------------


def directories(path):
    """Offset, width, tile size, and the offset of the first tile of every image in a TIFF, in the order of the file."""
    content = path.read_bytes()
    assert content[:4] == b"II*\0"
    [at] = struct.unpack_from("<I", content, 4)
    found = []
    while at:
        [n] = struct.unpack_from("<H", content, at)
        tags = {}
        for k in range(n):
            tag, kind, count, value = struct.unpack_from("<HHII", content, at + 2 + 12 * k)
            size = {3: 2, 4: 4}.get(kind, 1)
            place = value if count * size > 4 else at + 2 + 12 * k + 8
            tags[tag] = struct.unpack_from({3: "<H", 4: "<I"}.get(kind, "<B"), content, place)[0]
        found.append((at, tags[256], tags.get(322), tags.get(324)))
        [at] = struct.unpack_from("<I", content, at + 2 + 12 * n)
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A map of more than one tile, with overviews."""
    folder = tmp_path_factory.mktemp("wide")
    s2, s1 = scene_arrays(700, 1100)
    files = Inputs((write(folder / "s2.tif", s2),), (write(folder / "s1.tif", s1),))
    network_of = member(folder / "n.safetensors", width=1)
    return make_map(files, [network_of], folder / "map", MapOptions(window=700, probabilities=True))


def test_all_rasters_are_cloud_optimised(wide):
    """
    The rules of the COG format: tiles; directories at the head, largest image first, each half of the one before, down
    to one tile; the pixels of overviews before those of the image. And GDAL's own mark.
    """
    for name in NAMES:
        images = directories(wide.folder / name)
        widths = [width for _, width, _, _ in images]
        assert widths[:2] == [1100, 550]
        assert widths[-1] <= 512
        assert all(tile == 512 for _, _, tile, _ in images)
        heads, tiles = [image[0] for image in images], [image[3] for image in images]
        assert heads == sorted(heads)
        assert max(heads) < min(tiles)
        assert tiles == sorted(tiles, reverse=True)
        with rasterio.open(wide.folder / name) as file:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.profile["compress"] == "deflate"


def test_legend_nodata_and_scale_stand_in_the_files(wide):
    """Colours and names as GDAL tells them; steps of 0.004."""
    with rasterio.open(wide.classes) as file:
        assert (file.crs, file.transform, file.nodata) == (UTM, AT, 0)
        assert file.colorinterp[0].name == "palette"
        assert all(file.colormap(1)[code] == DFC2020.rgba(code) for code in DFC2020.codes)
        assert file.tags()["CLASS_7"] == "Urban/Built-up"
    with rasterio.open(wide.probabilities) as file:
        assert file.descriptions == tuple(DFC2020.name_of(code) for code in SCORED)
        assert (file.nodata, set(file.scales)) == (255, {0.004})
        total = file.read().astype(int).sum(axis=0)
    assert abs(total - 250).max() <= 4
    names = ElementTree.parse(f"{wide.classes}.aux.xml").findall(".//Category")
    assert [name.text for name in names] == [DFC2020.name_of(code) for code in range(11)]


def test_the_style_for_qgis_has_the_colours_and_names(wide):
    """The element that QGIS reads for a paletted raster, one entry a class that can be mapped."""
    root = ElementTree.parse(wide.folder / "landcover.qml").getroot()
    renderer = root.find("./pipe/rasterrenderer")
    assert (root.tag, renderer.get("type"), renderer.get("band")) == ("qgis", "paletted", "1")
    entries = [(int(e.get("value")), e.get("label"), e.get("color")) for e in renderer.iter("paletteEntry")]
    assert entries == [(c, DFC2020.name_of(c), f"#{DFC2020.colours[DFC2020.codes.index(c)]}") for c in SCORED]


def test_the_item_beside_the_map_says_what_it_was_made_from(place, whole):
    """STAC: footprint, files with their digests; inputs and networks by name and SHA-256, and no folder of anybody."""
    item = json.loads((whole.folder / "landcover.json").read_text())
    assert (item["type"], item["stac_version"], item["links"]) == ("Feature", "1.0.0", [])
    west, south, east, north = item["bbox"]
    assert 9.8 < west < east < 9.9
    assert 57.2 < south < north < 57.3
    assert item["geometry"]["coordinates"][0][0] == item["geometry"]["coordinates"][0][-1]
    said = item["properties"]
    assert said["proj:epsg"] == 32632
    assert said["lcfuse:inputs"]["s2.tif"] == make.sha256_of(place["files"].s2[0])
    assert said["lcfuse:members"][0]["sha256"] == place["both"].sha256
    assert {"datetime", "created", "lcfuse:version", "lcfuse:commit", "lcfuse:fusion"} <= set(said)
    for key, asset in item["assets"].items():
        path = whole.folder / asset["href"]
        assert asset["file:checksum"] == f"1220{make.sha256_of(path)}", key
    assert str(whole.folder.parent) not in json.dumps(item)
    assert [one["value"] for one in item["assets"]["landcover"]["classification:classes"]] == list(SCORED)


# Places -------------------------------------------------------------------------------------------


@needs_semireal
def test_real_places_are_mapped_where_they_lie(place, tmp_path):
    """Three real places, one with the newer offset: the georeference of the input, every pixel mapped."""
    for number, name in enumerate(("Denmark", "Tanzania", "BrazilCoast")):
        s2, s1, lc = (
            SEMIREAL / f"ROIs0000_autumn/{kind}_{name}/ROIs0000_autumn_{kind}_{name}_p0.tif"
            for kind in ("s2", "s1", "lc")
        )
        igbp = write_band(tmp_path / f"{name}.tif", lc)
        told = []
        made = make_map(Inputs((s2,), (s1,), igbp), [place["both"]], tmp_path / name, tell=told.append)
        with rasterio.open(s2) as given, rasterio.open(made.classes) as file:
            assert (file.crs, file.transform, file.shape) == (given.crs, given.transform, given.shape)
        assert made.seen > 0.99
        assert told == (["s2: offset of +1000 taken off all bands"] if number == 2 else [])


def write_band(path, lc):
    """The IGBP band of a label file, as a file."""
    with rasterio.open(lc) as file:
        return write(path, file.read(1)[None], crs=file.crs, transform=file.transform)


def test_the_sample_scene_is_of_a_region_of_the_sample_world(tmp_path):
    """Signatures from the same seed; the same files again; weather hides a corner and a hole."""
    made = world.make_sample_scene(tmp_path / "p", 0, side=96)
    times = [path.stat().st_mtime_ns for path in (made.s2, made.coarse)]
    assert world.make_sample_scene(tmp_path / "p", 0, side=96) == made
    assert [path.stat().st_mtime_ns for path in (made.s2, made.coarse)] == times
    s2, clouds, truth = read(made.s2), read(made.clouds)[0], read(made.truth)[0]
    assert 0.01 < (s2 == 0).all(axis=0).mean() < 0.3
    assert 0.005 < clouds.mean() < 0.2
    assert set(np.unique(truth)) <= set(SCORED)
    assert read(made.coarse).max() <= 255
