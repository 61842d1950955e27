"""Units and order of bands, and the channels of images: what is accepted, and what is refused with fitting advice."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from toys import toy_patch

from lcfuse_core.data.bands import (
    B10,
    CHANNELS,
    S2_BANDS,
    Statistics,
    band_name,
    band_order,
    channels_of,
    check_s1,
    check_s2,
    sensor_channels,
)  # fmt: skip
from lcfuse_core.data.source import PatchStack, channel_statistics, normalise
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.methods.adapt import fit_clusters, predict_clusters
from lcfuse_core.models import forest, transition
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import load_checkpoint, save_checkpoint
from lcfuse_core.training.plan import TrainPlan

LAND = [1430, 1130, 970, 790, 1190, 1960, 2280, 2240, 2580, 650, 13, 1820, 990]
CONIFERS = [1400, 1010, 710, 490, 600, 850, 940, 890, 1000, 320, 47, 520, 280]
WATER = [1250, 900, 600, 380, 330, 290, 280, 260, 240, 120, 12, 60, 40]
SAND = [2300, 2400, 2900, 3700, 4000, 4200, 4400, 4300, 4700, 1600, 40, 5800, 5200]
SNOW = [9800, 9700, 9500, 9800, 9700, 9500, 9400, 9100, 9300, 5200, 60, 900, 700]
CLOUD = [7200, 7000, 6800, 6900, 7000, 7100, 7200, 7000, 7100, 4000, 2200, 5200, 4400]


def image(mean, side=96, seed=0):
    """An image (13, side, side) with smooth fields and noise around these means."""
    rng = np.random.default_rng(seed)
    field = rng.normal(0, 1, (side // 8, side // 8)).repeat(8, 0).repeat(8, 1)
    bands = [value * (1 + 0.1 * field) + rng.normal(0, 3, (side, side)) for value in mean]
    return np.clip(np.stack(bands), 2, 60000).astype(np.uint16)


def radar(vv=-10.0, vh=-17.0, side=96, seed=1):
    """Backscatter (2, side, side) in dB."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(level, 2, (side, side)) for level in (vv, vh)]).astype(np.float32)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("mean", [LAND, CONIFERS, WATER, SAND, SNOW, [2 * value for value in WATER]])
def test_images_of_every_surface_are_accepted(mean, noisy):
    """The offset is found in all of them. L2A has no B10, 0 in files of 13 bands, and may be dark in blue light."""
    s2 = image(mean)
    for offset in (0, 1000):
        assert check_s2("a.tif", s2 + np.uint16(offset), noisy=noisy) == offset
    s2[:3] = np.maximum(s2[:3], 900) - 800
    s2[10] = 0
    assert check_s2("a.tif", s2, noisy=noisy) == 0


SORTED = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 8]
HALF = np.zeros((1, 96, 96), np.uint16)
HALF[:, :, :40] = 1000


@pytest.mark.parametrize("mean", [LAND, CONIFERS, SAND])
@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda s2: s2 // 10, "the median of B1 above 350|not all below 256"),
        (lambda s2: np.clip(s2 * 6.5535, 0, 32000), "values from|medians"),
        (lambda s2: np.clip(s2 * 10.0, 0, 32000), "no median above"),
        (lambda s2: s2 // 40, "not all below 256"),
        (lambda s2: s2[SORTED], "band 11 brighter than band 1"),
        (lambda s2: s2[::-1], "band 11 brighter"),
        (lambda s2: s2 + HALF, r"an offset of \+1000 in a part"),
        (lambda s2: s2 + HALF.swapaxes(1, 2), r"an offset of \+1000 in a part"),
        (lambda s2: np.concatenate([s2, s2 + np.uint16(1000)], 2)[:, ::1, 30:], r"an offset of \+1000 in a part"),
        (lambda s2: s2.astype("int16") - np.int16(600), "values from -"),
    ],
)
def test_other_units_orders_and_mosaics_are_refused(mean, spoil, found):
    """Reflectance x 1000, x 65535, x 100000, sorted and reverse bands, an offset in half of the image."""
    with pytest.raises(DataError, match=found):
        check_s2("a.tif", spoil(image(mean)).astype(np.int32))


def test_clouds_everywhere_are_not_taken_for_another_order():
    """The advice is another image; clouds over a part are accepted, and so are bright cirrus and clear parts."""
    for thick in (CLOUD, [*CLOUD[:9], 2100, *CLOUD[10:]], [value + 1000 for value in CLOUD]):
        with pytest.raises(DataError, match=r"clouds everywhere.*Choose a clear image"):
            check_s2("a.tif", image(thick))
    s2 = image(LAND)
    s2[:, :40] = image(CLOUD)[:, :40]
    assert check_s2("a.tif", s2) == 0
    assert check_s2("a.tif", s2 + np.uint16(1000)) == 1000


def test_backscatter_of_every_surface_is_accepted():
    """Land, a city, calm water at the noise floor."""
    for levels in ((-10, -17), (-2, -9), (-24, -27), (-24, -24.5), (0.5, -6)):
        check_s1("a.tif", radar(*levels))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda s1: 10 ** (s1 / 10), "VV from.*median"),
        (lambda s1: 10 ** (s1 / 20), "VV from"),
        (lambda s1: 10 ** (s1 / 10) - 0.01, "VV from|VH from"),  # noise-corrected power can be below zero
        (lambda s1: s1 * 10, "VV from -"),
        (lambda s1: 10 * np.log10(np.abs(s1)), "VH .* above VV|VV from"),
        (lambda s1: 10 * np.log10(np.abs(s1)) - 20, "VH .* above VV"),
        (lambda s1: s1[::-1], "VH .* above VV.*order VV, VH"),
        (lambda s1: s1 - 9999, "VV from -"),
        (lambda s1: np.where(np.arange(96) < 40, 10 ** (s1 / 10), s1), "no value below 0 in"),
        (lambda s1: np.where(np.arange(96)[:, None] > 50, 10 ** (s1 / 10), s1), "no value below 0 in"),
        (lambda s1: np.where(np.arange(96) == 3, np.nan, s1), "192 values that are NaN"),
    ],
)
def test_other_units_of_backscatter_are_refused(spoil, found):
    """Power, amplitude, dB x 10, dB of dB, swapped bands, power in half of the image."""
    with pytest.raises(DataError, match=rf"a\.tif: found .*{found}"):
        check_s1("a.tif", spoil(radar()).astype(np.float32))


def test_one_extreme_pixel_decides_nothing():
    """A bright ship and a dark pixel in dB; a single 0 in B1."""
    s1, s2 = radar(), image(LAND)
    s1[:, 5, 5], s1[:, 6, 6], s2[0, 5, 5], s2[:, 6, 6] = 30, -70, 0, 30000
    check_s1("a.tif", s1)
    assert check_s2("a.tif", s2) == 0


@pytest.mark.parametrize(
    ("kind", "text", "name"),
    [
        ("s2", "B8A", "B8A"), ("s2", "b01", "B1"), ("s2", "S2_B12 (SWIR)", "B12"), ("s2", "nir08", "B8A"),
        ("s2", "Band 1", None), ("s2", "B13", None), ("s2", "B8/B4", None), ("s2", "QA60", None), ("s2", "AB1", None),
        ("s1", "Gamma0_VH", "VH"), ("s1", "s1a-iw-grd-vv-2018", "VV"), ("s1", "WAVE", None), ("s1", "VV/VH", None),
        ("lc", "MCD12Q1_LC_Prop2", "LC_PROP2"), ("dfc", "B1", None),
    ],
)  # fmt: skip
def test_names_are_recognised_as_whole_words(kind, text, name):
    assert band_name(kind, text) == name


def test_bands_without_names_are_in_file_order():
    """Some names in their place are accepted; the rest are contradictions."""
    assert band_order("a.tif", "s2", [None] * 13) == tuple(range(13))
    assert band_order("a.tif", "s2", ["B1", *["-"] * 12]) == tuple(range(13))
    assert band_order("a.tif", "s2", list(reversed(S2_BANDS))) == tuple(range(12, -1, -1))
    with pytest.raises(DataError, match="13 bands named B2, -"):
        band_order("a.tif", "s2", ["B2", *[None] * 12])


# Channels -----------------------------------------------------------------------------------------

SHORT = TrainPlan(steps=2, crop=32, batch=2, report_every=2, width=4, labels="modis+savanna")


def surface(patch):
    """The patch as L2A: without B10."""
    s2 = patch.s2.copy()
    s2[B10] = 0
    return replace(patch, s2=s2)


def without_radar(patch):
    s1 = np.empty_like(patch.s1)
    s1[:] = np.array([-12, -19], np.float32)[:, None, None]
    return replace(patch, s1=s1)


KINDS = {
    "L1C and S1": (lambda patch: patch, 15),
    "L2A and S1": (surface, 14),
    "L1C alone": (without_radar, 13),
    "L2A alone": (lambda patch: without_radar(surface(patch)), 12),
}


@cache
def trained_on(kind):
    """Patches of that kind, and a network, a forest and clusters that were trained on them."""
    patches = [KINDS[kind][0](toy_patch(seed)) for seed in range(3)]
    stack = PatchStack(patches, "modis+savanna")
    run = loop.train(stack, SHORT, progress=False)
    trees = forest.train_forest(stack, n_pixels=500, n_trees=3, seed=0)
    clusters = fit_clusters(stack, transition.from_accuracy(stack.class_counts(9).numpy()), seed=0)
    return patches, stack, run, trees, clusters


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_networks_and_forests_have_the_channels_of_the_data(kind, tmp_path):
    patches, stack, run, trees, clusters = trained_on(kind)
    n = KINDS[kind][1]
    assert len(channels_of(patches[0].s2, patches[0].s1)) == len(stack.statistics().channels) == n
    assert next(run.network.parameters()).shape[1] == n
    again = load_checkpoint(save_checkpoint(run, tmp_path / "x.safetensors"))
    assert again.statistics == run.statistics
    assert np.array_equal(loop.predict(again, patches[0]), loop.predict(run, patches[0]))
    assert trees.trees.n_features_in_ == n
    assert forest.predict(trees, patches[0]).shape == (8, 64, 64)
    assert clusters.centres.shape == (128, n)
    assert predict_clusters(clusters, patches[0]).shape == (8, 64, 64)


def test_late_fusion_of_a_sensor_without_data_is_one_branch():
    run = loop.train(trained_on("L2A alone")[1], replace(SHORT, fusion="late"), progress=False)
    assert run.network(torch.zeros(1, 12, 32, 32)).shape == (1, 8, 32, 32)


def test_normalised_channels_are_those_of_the_statistics():
    patch = toy_patch(0)
    full, part = channel_statistics([patch]), channel_statistics([without_radar(surface(patch))])
    kept = [CHANNELS.index(name) for name in part.channels]
    assert torch.equal(normalise(patch.s2, patch.s1, part), normalise(patch.s2, patch.s1, full)[kept])
    with pytest.raises(DataError, match="no band of s1"):
        normalise(patch.s2, patch.s1, part, ("s1",))


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        ("L1C and S1", "L2A and S1", "Sentinel-2 L2A.*expected L1C"),
        ("L2A and S1", "L1C and S1", "Sentinel-2 L1C.*expected L2A"),
        ("L1C and S1", "L1C alone", "no data in VV, VH"),
        ("L1C alone", "L1C and S1", ""),
    ],
)
def test_images_that_do_not_fit_are_refused(trained, given, message):
    _, _, run, trees, clusters = trained_on(trained)
    other = KINDS[given][0](toy_patch(7))
    uses = [
        partial(loop.predict, run, other),
        partial(forest.predict, trees, other),
        partial(predict_clusters, clusters, other),
        partial(loop.train, PatchStack([other], "modis+savanna"), run.plan, start=run, progress=False),
    ]
    for use in uses:
        with pytest.raises(DataError, match=rf"toy 7.*{message}") if message else nullcontext():
            use()


def test_a_network_of_one_sensor_is_not_refused_for_the_other():
    run = loop.train(trained_on("L1C and S1")[1], replace(SHORT, inputs=("s1",)), progress=False)
    assert loop.predict(run, surface(toy_patch(5))).shape == (8, 64, 64)


def test_images_without_any_data_have_no_statistics():
    patch = toy_patch(0)
    with pytest.raises(ParameterError, match="channels"):
        channel_statistics([without_radar(replace(patch, s2=np.zeros_like(patch.s2)))])
    with pytest.raises(DataError, match="no band"):
        sensor_channels((), ("s2", "s1"))


@pytest.mark.parametrize("channels", [(), ("B2", "B1"), ("B1", "B1"), ("B1", "B99")])
def test_channels_of_statistics_are_checked(channels):
    with pytest.raises(ParameterError, match="channels"):
        Statistics((0.0,) * len(channels), (1.0,) * len(channels), channels)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0,) * 14, (1.0,) * 15),
        ((0.0,) * 15, (1.0,) * 14 + (0.0,)),
        ((0.0,) * 15, (1.0,) * 14 + (-1.0,)),
        ((float("nan"),) * 15, (1.0,) * 15),
    ],
)
def test_statistics_that_would_spoil_every_batch_are_refused(mean, std):
    """One too few, a division by zero, a NaN."""
    with pytest.raises(ParameterError, match="expected 15 finite means and 15 positive standard deviations"):
        Statistics(mean, std)


def test_a_source_with_one_measured_patch_has_the_channel():
    """B10 may be 0 in a single patch; the source decides."""
    assert PatchStack([toy_patch(0), surface(toy_patch(1))]).statistics().channels == CHANNELS
