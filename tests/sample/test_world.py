"""The sample world: real layouts, real geometry, the planted truth comes back, the same on any machine."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

import label_confusion
from lcfuse_core.data import cells, legends, patches
from lcfuse_core.errors import ParameterError
from lcfuse_core.sample import landscape, sensors, world

SMALL = world.WorldPlan(seed=7, n_train=2, n_validation=1, n_test=2)
LEAST = world.WorldPlan(seed=1, n_train=1, n_validation=1, n_test=1)
SPEC = {"s1": ("float32", 2), "s2": ("uint16", 13), "lc": ("uint8", 4), "dfc": ("uint8", 1)}
# Sizes of real SEN12MS files (uncompressed 256 x 256, pixel-interleaved); ours may differ by a few tags.
REAL_BYTES = {"s1": 525_172, "s2": 1_706_432, "lc": 262_788}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    return world.make_world(tmp_path_factory.mktemp("data") / "world", SMALL)


@pytest.fixture(scope="module")
def training(small_world):
    return patches.with_truth(patches.index(small_world / "sen12ms"), small_world / "truth")


@pytest.fixture(scope="module")
def evaluation(small_world):
    return patches.index(small_world / "dfc2020")


def test_training_files_are_like_those_of_sen12ms(training):
    """Names are read by the index; bands, dtype, georeference, interleaving and size are those of the real files."""
    assert len(training) == 2 * 4
    for kind, (dtype, bands) in SPEC.items():
        path = training.iloc[0][kind]
        with rasterio.open(path) as file:
            assert (file.dtypes[0], file.count, file.shape) == (dtype, bands, (256, 256))
            assert file.crs.is_projected
            assert (file.transform.a, file.transform.e) == (10, -10)
            assert file.transform.c % 10 != 0
            assert file.nodata is None
            assert file.compression is None
            assert bands == 1 or file.interleaving.name == "pixel"
        if kind in REAL_BYTES:
            assert os.path.getsize(path) == pytest.approx(REAL_BYTES[kind], abs=2048)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_evaluation_files_are_like_those_of_the_phase_archives(evaluation):
    assert sorted(evaluation.split.unique()) == ["test", "validation"]
    assert len(evaluation) == 3 * 4
    for kind, (dtype, bands) in (SPEC | {"s1": ("float64", 2)}).items():
        with rasterio.open(evaluation.iloc[0][kind]) as file:
            assert (file.dtypes[0], file.count, file.shape) == (dtype, bands, (256, 256))
            assert file.crs is None
            assert file.transform == Affine.identity()


def test_neighbouring_patches_hold_the_same_pixels(training):
    """Patches of a scene overlap by half: column 128 of one is column 0 of the next, in every layer."""
    left, right = (patches.read_patch(training.iloc[k]) for k in (0, 1))
    assert right.transform.c - left.transform.c == 1280
    for kind in SPEC:
        a, b = getattr(left, kind), getattr(right, kind)
        np.testing.assert_array_equal(a[..., 128:], b[..., :128])
        assert (a != b).any()


def test_the_coarse_label_is_constant_in_each_real_cell(training):
    """The label changes only where the 463 m cell of the sinusoidal grid does, and does change."""
    for _, row in training.iterrows():
        patch = patches.read_patch(row, ("lc",))
        ids, keys = cells.cell_ids(patch.transform, patch.crs, patch.lc.shape[1:])
        lowest, highest = np.full(len(keys), 255), np.zeros(len(keys))
        np.minimum.at(lowest, ids, patch.lc[0])
        np.maximum.at(highest, ids, patch.lc[0])
        np.testing.assert_array_equal(lowest, highest)
    assert len(np.unique(patch.lc[0])) > 1


def test_every_file_passes_the_checks_of_the_reader(training, evaluation):
    """The reader refuses or repairs nothing: all codes in their legends, no offset, dB in range."""
    for table in (training, evaluation):
        read, report = patches.read_many(table)
        assert len(read) == len(table)
        assert not report.skipped
        assert not report.repaired
    expected = {world.VALIDATION_REGIONS[0].name, *(region.name for region in world.TEST_REGIONS[:2])}
    assert set(evaluation.scene_id) == expected


def test_the_pixels_are_those_of_the_recorded_results(small_world):
    """New options of a world leave its default as it is: all results of the book rest on these pixels."""
    digest = "d19ae084d0df93a958f5f6c16534a40aa0d0bb0dbe331f5f2af3902b342013cb"
    assert world.read_world(small_world)["sha256"] == digest


@pytest.mark.slow
def test_the_pixels_do_not_depend_on_the_processor(small_world, tmp_path):
    """Numpy without its vector instructions computes some functions otherwise; no rounded pixel may notice."""
    code = f"from lcfuse_core.sample import world; world.make_world({str(tmp_path / 'w')!r}, world.{SMALL})"
    core = np._core._multiarray_umath
    present = [name for name in core.__cpu_dispatch__ if core.__cpu_features__[name]]
    if not present:
        pytest.skip("this processor has none of the instructions to switch off")
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(present)}
    # As an error, a name that numpy does not know, or cannot switch off, would be a check that checks nothing.
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], env=environment, check=True)
    assert world.read_world(tmp_path / "w")["sha256"] == world.read_world(small_world)["sha256"]


def test_no_pixel_notices_the_last_digit_of_a_function_or_the_number_of_workers(small_world, tmp_path, monkeypatch):
    """What a processor with other vector instructions would do, on any: each value of numpy's functions moved a bit."""
    rng, moved = np.random.default_rng(0), set()

    def moving(name, plain):
        def function(*given, **more):
            value = plain(*given, **more)
            moved.add(name)
            return np.nextafter(value, value + rng.choice([-1.0, 0.0, 1.0], np.shape(value)))

        return function

    for name in ("exp", "log", "log10", "power", "sin", "cos", "hypot"):
        monkeypatch.setattr(np, name, moving(name, getattr(np, name)))
    root = world.make_world(tmp_path / "w", SMALL, workers=1)
    assert moved >= {"exp", "log", "power", "sin", "cos", "hypot"}
    assert world.read_world(root)["sha256"] == world.read_world(small_world)["sha256"]


@pytest.fixture
def empty_scenes(monkeypatch):
    """Worlds are made without pixels, in no time."""

    def write(root, plan, jobs, workers):
        for name in ("sen12ms", "truth", "dfc2020"):
            (root / name).mkdir()
        return [f"{plan} {job}" for job in jobs]

    monkeypatch.setattr(world, "_write_scenes", write)


def test_a_world_that_is_there_is_kept_and_one_of_other_code_is_made_again(tmp_path, empty_scenes):
    root = world.make_world(tmp_path / "w", LEAST)
    mark = root / "mark"
    mark.touch()
    world.make_world(root, LEAST)
    assert mark.exists()
    record = world.read_world(root)
    (root / "world.json").write_text(json.dumps(record | {"code": "older"}))
    world.make_world(root, LEAST)
    assert not mark.exists()
    assert world.read_world(root) == record


def test_an_interrupted_call_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr(world, "_write_scene", full_disk)
    with pytest.raises(OSError, match="disk full"):
        world.make_world(tmp_path / "w", LEAST)
    assert list(tmp_path.iterdir()) == []


def test_a_world_that_another_process_finished_first_is_left_alone(tmp_path, empty_scenes, monkeypatch):
    root = tmp_path / "world"
    write = world._write_scenes

    def while_another_process_finishes(*arguments):
        digests = write(*arguments)
        monkeypatch.setattr(world, "_write_scenes", write)
        world.make_world(root, LEAST)
        (root / "read by the other").touch()
        return digests

    monkeypatch.setattr(world, "_write_scenes", while_another_process_finishes)
    assert world.make_world(root, LEAST) == root
    assert (root / "read by the other").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_test": 0}, r"n_test: found 0, expected 1 or more"),
        ({"label_confusion": "real"}, r"label_confusion: found real, expected one of reported, dfc2020"),
        ({"area_factor": 0.0}, r"area_factor: found 0\.0, expected 0\.1 to 10"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(changes, message):
    with pytest.raises(ParameterError, match=message):
        world.WorldPlan(**changes)


# The ground -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_px", [5, 16, 60, 130])
def test_a_random_field_has_the_promised_moments_and_scale(scale_px):
    """Mean 0 and variance 1 over many draws; near pixels agree, far ones do not."""
    draws = [landscape.random_field(np.random.default_rng(k), (96, 160), scale_px) for k in range(60)]
    field = np.array(draws)
    assert field.shape == (60, 96, 160)
    assert abs(field.mean()) < 0.15
    assert field.var() == pytest.approx(1, abs=0.2)
    near = max(1, scale_px // 8)
    assert (field[:, :, near:] * field[:, :, :-near]).mean() > 0.6
    if 2 * scale_px < 160:
        far = 2 * scale_px
        assert (field[:, :, far:] * field[:, :, :-far]).mean() < 0.35


def test_the_biome_decides_what_grows():
    """Shares of the landscape follow the biome's knobs: more crops, more water, more town."""

    def share(code, **changes):
        biome = landscape.Biome("a", 45, 5, **({"towns": 3.0} | changes))
        maps = [landscape.make_landscape(np.random.default_rng(k), biome, (256, 256)).truth for k in range(6)]
        return np.mean(np.array(maps) == code)

    assert share(landscape.Cover.CROP, crops=0.6) > 2 * share(landscape.Cover.CROP, crops=0.15)
    assert share(landscape.Cover.WATER, lakes=0.3) > 2 * share(landscape.Cover.WATER, lakes=0.05)
    assert share(landscape.Cover.URBAN, town_radius_m=700.0) > 2 * share(landscape.Cover.URBAN, town_radius_m=200.0)
    assert share(landscape.Cover.FOREST, forest=1.0) > share(landscape.Cover.FOREST, forest=-1.0)


def test_cells_are_purer_with_larger_areas():
    """The factor changes the size of the areas; the shares of the classes stay about equal."""
    purity, shares = [], []
    for size in (0.5, 1.0, 2.0):
        biomes = [dataclasses.replace(biome, size=size) for biome in world.TEST_REGIONS]
        maps = [
            landscape.make_landscape(np.random.default_rng(k), one, (368, 368)).truth for k, one in enumerate(biomes)
        ]
        ids = np.kron(np.arange(64).reshape(8, 8), np.ones((46, 46), int))
        purity.append(np.mean([cells.majority_share(truth, ids).mean() for truth in maps]))
        shares.append(np.bincount(np.ravel(maps), minlength=11) / np.size(maps))
    assert purity[0] + 0.03 < purity[1] < purity[2] - 0.03
    assert np.abs(np.diff(shares, axis=0)).max() < 0.15


def test_roads_are_drawn_and_never_on_water():
    biome = landscape.Biome("a", 45, 5, lakes=0.3, towns=12.0)
    land = landscape.make_landscape(np.random.default_rng(3), biome, (512, 512))
    road = land.objects == landscape.ROAD_OBJECT
    assert road.sum() > 30
    assert set(np.unique(land.truth[road])) == {landscape.Cover.URBAN}


# What the sensors make of it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene():
    biome = landscape.Biome("a", 45, 5, forest=0.3, barren=0.3, lakes=0.2, towns=16.0)
    region = sensors.draw_region(np.random.default_rng(1), biome, season=0.5, domain_shift=0.0)
    return world.make_scene(np.random.default_rng(2), region, 384), region


def mean_of(band, truth, code):
    return band[truth == code].mean()


def test_classes_have_the_spectra_of_their_materials(scene):
    """Leaves: red edge. Water: dark beyond the red. Bare soil: bright at 1.6 micrometres. Cirrus band: dark."""
    seen, _ = scene
    s2, truth = seen.s2.astype(float), seen.truth
    red, infrared, swir, cirrus = s2[3], s2[7], s2[11], s2[10]
    assert mean_of(infrared, truth, landscape.Cover.FOREST) > 2 * mean_of(red, truth, landscape.Cover.FOREST)
    assert mean_of(infrared, truth, landscape.Cover.WATER) < 0.5 * mean_of(infrared, truth, landscape.Cover.FOREST)
    assert mean_of(swir, truth, landscape.Cover.BARREN) > 1.3 * mean_of(swir, truth, landscape.Cover.FOREST)
    assert cirrus.max() < 100


def test_backscatter_orders_the_classes_and_carries_the_promised_speckle(scene):
    """Towns are bright, water is dark; the speckle of still water has the looks of Sentinel-1."""
    seen, _ = scene
    vv, truth = seen.s1[0], seen.truth
    means = [
        mean_of(vv, truth, code) for code in (landscape.Cover.URBAN, landscape.Cover.FOREST, landscape.Cover.WATER)
    ]
    assert means[0] > means[1] > means[2] + 4
    assert vv.max() <= 0
    rng = np.random.default_rng(5)
    lake = landscape.Landscape(np.full((256, 256), 10, np.uint8), np.zeros((256, 256), np.int32))
    power = 10 ** (sensors.see_sentinel1(rng, lake, scene[1])[0] / 10)
    looks = power.mean() ** 2 / power.var()
    assert 3.0 < looks < sensors._LOOKS * 1.05  # texture takes some looks away, never adds any


def test_sixty_metre_bands_repeat_and_ten_metre_bands_do_not(scene):
    """Before noise, the six pixels of a 60 m pixel are one measurement: only noise differs between them."""
    seen, _ = scene
    inside = np.diff(seen.s2[0].astype(float), axis=1)[:, [0, 1, 2, 3, 4]]
    assert inside.std() < 1.6 * 30  # two draws of a noise of 30
    assert np.diff(seen.s2[3].astype(float), axis=1).std() > 1.6 * 30


def test_a_pure_cell_without_confusion_keeps_its_class(scene):
    """With an identity for a confusion matrix and one class everywhere, the label is that class."""
    region = sensors.draw_region(np.random.default_rng(1), scene[1].biome, season=0.5, domain_shift=0.0)
    clear = np.concatenate([np.eye(8), np.zeros((8, 1))], axis=1)
    region = dataclasses.replace(region, confusion=clear)
    for code in legends.SCORED:
        truth = np.full((128, 128), code, np.uint8)
        label = sensors.see_modis(
            np.random.default_rng(0), truth, Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632", region
        )
        assert set(np.unique(legends.igbp_to_dfc(label))) == {code}


def test_label_noise_changes_the_label_and_nothing_else(scene):
    """Fewer cells have the class that covers most of them; images and truth stay as they are."""

    def with_noise(noise):
        changed = sensors.draw_region(
            np.random.default_rng(1), scene[1].biome, season=0.5, domain_shift=0.0, label_noise=noise
        )
        return world.make_scene(np.random.default_rng(2), changed, 384)

    several = with_noise(0.0), scene[0], with_noise(3.0)
    agreement = [(legends.igbp_to_dfc(seen.lc[0]) == seen.truth).mean() for seen in several]
    assert agreement[0] > agreement[1] > agreement[2] + 0.1
    assert len({(seen.s1.tobytes(), seen.s2.tobytes(), seen.truth.tobytes()) for seen in several}) == 1


@pytest.mark.parametrize("name", sensors.MEAN_CONFUSION)
def test_confusion_rows_are_probabilities_around_the_mean(name):
    mean = sensors.MEAN_CONFUSION[name]
    np.testing.assert_allclose(mean.sum(axis=1), 1)
    draws = np.mean([sensors._draw_confusion(np.random.default_rng(k), mean) for k in range(400)], axis=0)
    np.testing.assert_allclose(draws.sum(axis=1), 1)
    np.testing.assert_allclose(draws, mean, atol=0.03)


@pytest.mark.slow
def test_the_calibrated_label_is_right_about_as_often_as_the_real_one():
    """In the test scenes of a world: p(class | label) within 0.15 of the real one, wherever that is published."""
    seen = [label_confusion.cells_of(0, number) for number in range(12)]
    torch.manual_seed(0)
    real, distance = label_confusion.targets(), {}
    for name, mean in sensors.MEAN_CONFUSION.items():
        matrices = label_confusion.drawn(torch.from_numpy(mean), len(seen))
        p = label_confusion.given_label(label_confusion.joint(seen, matrices, sensors.MOSAIC_WEIGHT[name]))
        assert torch.allclose(p.sum(dim=1), torch.ones(8, dtype=torch.float64))
        distance[name] = (p - real).abs().nan_to_num(0)
    assert distance["dfc2020"].diagonal().max() < 0.15 < 0.5 < distance["reported"].diagonal().max()
    assert distance["dfc2020"].square().sum() < 0.2 * distance["reported"].square().sum()


def test_lccs_layers_hold_codes_of_their_legends():
    layers = sensors.lccs_layers(np.arange(1, 18, dtype=np.uint8)[None])
    for layer, legend in zip(
        layers, (legends.LCCS_LAND_COVER, legends.LCCS_LAND_USE, legends.LCCS_HYDROLOGY), strict=True
    ):
        legend.check(layer)
        assert legend.unknown not in layer


def test_sample_scene_has_weather_and_is_found_again(tmp_path):
    """The same files again; weather hides a corner and a hole."""
    made = world.make_sample_scene(tmp_path / "p", 0, side=96)
    times = [path.stat().st_mtime_ns for path in (made.s2, made.coarse)]
    assert world.make_sample_scene(tmp_path / "p", 0, side=96) == made
    assert [path.stat().st_mtime_ns for path in (made.s2, made.coarse)] == times
    s2, clouds, truth = (rasterio.open(path).read() for path in (made.s2, made.clouds, made.truth))
    assert 0.01 < (s2 == 0).all(axis=0).mean() < 0.3
    assert 0.005 < clouds.mean() < 0.2
    assert set(np.unique(truth)) <= set(legends.SCORED)


def test_a_sample_scene_that_was_not_finished_is_not_found(tmp_path, monkeypatch):
    """Another scene, begun in the folder of a whole one, has overwritten some of its files."""
    made = world.make_sample_scene(tmp_path / "p", 0, side=96)
    truth = made.truth.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world, "modis_raster", interrupt)
        with pytest.raises(KeyboardInterrupt):
            world.make_sample_scene(tmp_path / "p", 1, side=96)
    made.truth.write_bytes(b"")
    world.make_sample_scene(tmp_path / "p", 0, side=96)
    assert made.truth.read_bytes() == truth
