"""Maps from files to a folder: complete, found by their key, adapted to the scene, Cloud-Optimised."""

import json
import os
import shutil
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from miniatures import SEMIREAL, needs_semireal
from places import AT, UTM, first_band, member, scene_arrays, write
from rasterio.errors import NotGeoreferencedWarning

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.data.rasters import open_raster
from lcfuse_core.download.archives import sha256_of
from lcfuse_core.errors import DataError, DiskError, ParameterError
from lcfuse_core.mapping import make, scene
from lcfuse_core.mapping.make import Inputs, MapOptions, make_map
from lcfuse_core.sample import world

SMALL = MapOptions(window=64, probabilities=True)
NAMES = ("landcover.tif", "confidence.tif", "probabilities.tif")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files of one scene with a corner of no data, and a network for both sensors and for one."""
    folder = tmp_path_factory.mktemp("place")
    s2, s1 = scene_arrays()
    s2[:, :30, :50] = 0
    return {
        "files": Inputs((write(folder / "s2.tif", s2),), (write(folder / "s1.tif", s1),)),
        "both": member(folder / "both.safetensors"),
        "alone": member(folder / "alone.safetensors", inputs=("s2",), seed=1),
    }


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    return make_map(place["files"], [place["both"]], tmp_path_factory.mktemp("whole"), SMALL)


def contents(folder):
    return [(folder / name).read_bytes() for name in NAMES]


def readers():
    """Threads that may still read from a scene; to be counted while the error is held, which keeps them alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("lcfuse prefetch")]


def test_record_lists_inputs_networks_plan_and_areas(place, whole):
    """Inputs, products and networks by name and SHA-256, without folders; the areas are those of the map."""
    record = json.loads((whole.folder / "landcover.json").read_text())
    assert record == whole.record
    assert record["inputs"][0] == {"name": "s2.tif", "sha256": sha256_of(place["files"].s2[0])}
    assert record["members"][0]["sha256"] == place["both"].digest
    assert (record["crs"], record["shape"], record["fusion"]["rule"]) == ("EPSG:32632", [150, 200], "mean")
    assert {"created", "version", "commit", "repairs", "windows", "legend"} <= set(record)
    assert record["files"] == {name: sha256_of(whole.folder / name) for name in NAMES}
    assert str(whole.folder.parent) not in json.dumps(record)
    assert record["valid_fraction"] == pytest.approx(1 - 1500 / 30000)
    codes = first_band(whole.path())
    assert record["pixels"] == {DFC2020.name_of(code): (codes == code).sum() for code in SCORED}


def test_a_network_of_another_level_is_refused(place, tmp_path):
    """A network that was trained with B10 (L1C) does not map surface reflectance (L2A), whose B10 is 0."""
    s2, s1 = scene_arrays()
    s2[10] = 0
    files = Inputs((write(tmp_path / "l2a.tif", s2),), (write(tmp_path / "s1.tif", s1),))
    for name in ("both", "alone"):
        given = files if name == "both" else Inputs(files.s2)
        with pytest.raises(DataError, match=r"l2a\.tif: found Sentinel-2 L2A .*expected L1C"):
            make_map(given, [place[name]], tmp_path / "map", SMALL)
        with pytest.raises(DataError, match="scene: found Sentinel-2 L2A"):
            place[name].predict(s2, s1)
    assert not (tmp_path / "map").exists()


def test_finished_map_is_found_by_content_and_others_are_made_again(place, whole, tmp_path):
    """The same call twice, also with inputs in another folder; another network, which leaves no old layer behind."""
    folder = shutil.copytree(whole.folder, tmp_path / "map")
    moved = Inputs(*((shutil.copy(file, tmp_path),) for (file,) in (place["files"].s2, place["files"].s1)))
    assert make_map(moved, [place["both"]], folder, SMALL).found
    other = make_map(place["files"], [place["alone"]], folder, replace(SMALL, probabilities=False))
    assert not other.found
    assert not (folder / "probabilities.tif").exists()
    assert (folder / "landcover.tif").read_bytes() != (whole.folder / "landcover.tif").read_bytes()


@pytest.mark.parametrize("name", [*NAMES, "landcover.json", "s2.tif"])
def test_flipped_bits_of_products_record_and_inputs_are_found(place, whole, tmp_path, name):
    """Size and time stay the same. Only one file is changed, so the map made again has its earlier content."""
    folder = shutil.copytree(whole.folder, tmp_path / "map")
    files = Inputs((shutil.copy(place["files"].s2[0], tmp_path / "s2.tif"),), place["files"].s1)
    path = tmp_path / name if name == "s2.tif" else folder / name
    times, content = path.stat().st_mtime_ns, path.read_bytes()
    for at in np.random.default_rng(0).integers(len(content) // 2, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        os.utime(path, ns=(times, times))
        assert not make_map(files, [place["both"]], folder, SMALL).found
        assert name == "s2.tif" or contents(folder) == contents(whole.folder)


def test_interrupted_job_leaves_the_earlier_map_and_starts_again(place, whole, tmp_path, monkeypatch):
    """The disk is full at the second layer; a killed process left its temporary files."""
    make_map(place["files"], [place["alone"]], tmp_path, SMALL)
    earlier, plain, calls = contents(tmp_path), make.rasterio.shutil.copy, []

    def full_at_second(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return plain(*given, **options)

    monkeypatch.setattr(make.rasterio.shutil, "copy", full_at_second)
    with pytest.raises(DiskError, match="No space left on device"):
        make_map(place["files"], [place["both"]], tmp_path, SMALL)
    assert not readers()
    assert contents(tmp_path) == earlier
    assert make_map(place["files"], [place["alone"]], tmp_path, SMALL).found
    (tmp_path / ".part-killed").mkdir()
    (tmp_path / ".landcover.tif.0123.part").write_bytes(b"half")
    made = make_map(place["files"], [place["both"]], tmp_path, SMALL)
    assert not made.found
    assert contents(made.folder) == contents(whole.folder)
    assert not list(tmp_path.glob(".*part*"))


def test_file_that_ends_early_is_named_and_threads_end(place, tmp_path, monkeypatch):
    plain, calls = scene.Raster.read, []

    def breaks(self, rows, cols):
        calls.append(1)
        if rows.stop > 100 and len(calls) > 80:
            raise DataError(self.path, found="a file that cannot be read", expected="a whole raster", do="Again.")
        return plain(self, rows, cols)

    monkeypatch.setattr(scene.Raster, "read", breaks)
    with pytest.raises(DataError, match=r"s[12]\.tif: found a file that cannot be read") as _held:
        make_map(place["files"], [place["both"]], tmp_path, SMALL)
    assert not readers()


def test_impossible_jobs_write_nothing(place, tmp_path):
    without = Inputs(place["files"].s2)
    with pytest.raises(DataError, match="found no Sentinel-1"):
        make_map(without, [place["both"]], tmp_path / "a", SMALL)
    for networks, options, found in (
        ([], SMALL, "no coarse map and no network"),
        ([place["alone"]], MapOptions(prior_power=0.3), "no coarse map,"),
        ([place["alone"]], MapOptions(adapt=True), "no coarse map,"),
    ):
        with pytest.raises(ParameterError, match=f"{found}.*Give --coarse MAP"):
            make_map(without, networks, tmp_path / "b", options)
    assert not list(tmp_path.iterdir())


# Cloud-Optimised GeoTIFF --------------------------------------------------------------------------


def test_rasters_are_cloud_optimised_with_legend_nodata_and_scale(tmp_path):
    """GDAL's own mark of the layout, tiles, overviews down to one tile; colours, names, and steps of 0.004."""
    s2, s1 = scene_arrays(700, 1100)
    files = Inputs((write(tmp_path / "s2.tif", s2),), (write(tmp_path / "s1.tif", s1),))
    network = member(tmp_path / "n.safetensors", width=1)
    wide = make_map(files, [network], tmp_path / "map", MapOptions(window=700, probabilities=True))
    for name in NAMES:
        with rasterio.open(wide.folder / name) as file:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.profile["compress"] == "deflate"
            assert set(file.block_shapes) == {(512, 512)}
            assert file.overviews(1) == [2, 4]
    with rasterio.open(wide.path()) as file:
        assert (file.crs, file.transform, file.nodata, file.colorinterp[0].name) == (UTM, AT, 0, "palette")
        assert all(file.colormap(1)[code] == DFC2020.rgba(code) for code in DFC2020.codes)
        assert file.tags()["CLASS_7"] == "Urban/Built-up"
        assert {"LEGEND", "SOFTWARE", "PRIOR_POWER"} <= set(file.tags())
    with rasterio.open(wide.path("probabilities")) as file:
        assert file.descriptions == tuple(DFC2020.name_of(code) for code in SCORED)
        assert (file.nodata, set(file.scales)) == (255, {0.004})
        total = file.read().astype(int).sum(axis=0)
    assert abs(total - 250).max() <= 4


def test_a_map_without_georeference_stays_without(place, tmp_path):
    """As the phase archives of DFC2020: no georeference is invented, and nothing warns."""
    with pytest.warns(NotGeoreferencedWarning):
        s2 = write(tmp_path / "s2.tif", scene_arrays(64, 64)[0], crs=None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = make_map(Inputs((s2,)), [place["alone"]], tmp_path / "map", SMALL)
        with open_raster(made.path()) as file:
            assert (file.crs, file.transform) == (None, Affine.identity())


@needs_semireal
def test_real_regions_keep_their_georeference(place, tmp_path):
    """Three real images, one with the newer offset: the georeference of the input, every pixel mapped."""
    for number, name in enumerate(("Denmark", "Tanzania", "BrazilCoast")):
        s2, s1, lc = (
            SEMIREAL / f"ROIs0000_autumn/{kind}_{name}/ROIs0000_autumn_{kind}_{name}_p0.tif"
            for kind in ("s2", "s1", "lc")
        )
        with rasterio.open(lc) as file:
            igbp = write(tmp_path / f"{name}.tif", file.read(1)[None], crs=file.crs, transform=file.transform)
        reports = []
        made = make_map(Inputs((s2,), (s1,), igbp, "igbp"), [place["both"]], tmp_path / name, report=reports.append)
        with rasterio.open(s2) as given, rasterio.open(made.path()) as file:
            assert (file.crs, file.transform, file.shape) == (given.crs, given.transform, given.shape)
        assert made.record["valid_fraction"] > 0.99
        assert reports == (["s2: offset of +1000 taken off all bands"] if number == 2 else [])


def test_chosen_inputs_are_the_sample_scene_or_the_given_files(tmp_path, monkeypatch):
    monkeypatch.setattr(
        world.make_sample_scene, "__kwdefaults__", world.make_sample_scene.__kwdefaults__ | {"side": 96}
    )
    parameters = {"s2_path": "", "s1_path": "", "coarse_path": "", "seed": 0}
    inputs, reference = make.chosen_inputs(parameters, tmp_path)
    assert (inputs.s2[0].name, inputs.s1[0].name, reference.name) == ("s2.tif", "s1.tif", "truth.tif")
    inputs, reference = make.chosen_inputs(parameters | {"s2_path": "a.tif"}, tmp_path)
    assert (inputs, reference) == (Inputs(("a.tif",), (), None), None)
