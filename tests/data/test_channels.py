"""Which channels images have, what is built for them, and the refusal of images that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import toy_patch, toy_stack

from lcfuse_core.data.bands import B10
from lcfuse_core.data.channels import CHANNELS, Statistics, channels_of, check_channels, sensor_channels
from lcfuse_core.data.source import PatchStack, channel_statistics, normalise
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.methods import adapt
from lcfuse_core.methods.adapt import fit_clusters, predict_clusters
from lcfuse_core.models import forest, transition
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import load_checkpoint, save_checkpoint
from lcfuse_core.training.plan import TrainPlan

SHORT = TrainPlan(steps=2, crop=32, batch=2, report_every=2, width=4)


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


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_statistics_networks_and_forests_have_the_channels_of_the_data(kind, tmp_path):
    change, n = kind
    patches = [change(toy_patch(seed)) for seed in range(3)]
    stack = PatchStack(patches, "modis+savanna")
    assert len(channels_of(patches[0].s2, patches[0].s1)) == len(stack.statistics().channels) == n
    run = loop.train(stack, replace(SHORT, labels="modis+savanna"), progress=False)
    assert next(run.network.parameters()).shape[1] == n
    again = load_checkpoint(save_checkpoint(run, tmp_path / "x.safetensors"))
    assert again.statistics == run.statistics
    assert np.array_equal(loop.predict(again, patches[0]), loop.predict(run, patches[0]))
    trees = forest.train_forest(stack, n_pixels=500, n_trees=3, seed=0)
    assert trees.trees.n_features_in_ == n
    assert forest.predict(trees, patches[0]).shape == (8, 64, 64)
    clusters = fit_clusters(stack, transition.from_accuracy(stack.class_counts(9).numpy()), seed=0)
    assert clusters.centres.shape == (128, n)
    assert predict_clusters(clusters, patches[0]).shape == (8, 64, 64)


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_both_fusions_are_built_for_one_sensor(fusion):
    """Late fusion of a sensor that has no data is one branch."""
    stack = PatchStack([without_radar(surface(toy_patch(seed))) for seed in range(2)])
    run = loop.train(stack, replace(SHORT, fusion=fusion), progress=False)
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
    stack = PatchStack([KINDS[trained][0](toy_patch(seed)) for seed in range(2)], "modis+savanna")
    other = KINDS[given][0](toy_patch(7))
    run = loop.train(stack, replace(SHORT, labels="modis+savanna"), progress=False)
    trees = forest.train_forest(stack, n_pixels=500, n_trees=2, seed=0)
    clusters = fit_clusters(stack, transition.from_accuracy(stack.class_counts(9).numpy()), seed=0)
    target = PatchStack([other], "modis+savanna")
    uses = [
        lambda: loop.predict(run, other),
        lambda: forest.predict(trees, other),
        lambda: predict_clusters(clusters, other),
        lambda: adapt.adapted(run, target, replace(SHORT, labels="modis+savanna")),
    ]
    for use in uses:
        if message:
            with pytest.raises(DataError, match=rf"toy 7.*{message}"):
                use()
        else:
            use()


def test_a_network_of_one_sensor_is_not_refused_for_the_other():
    stack = PatchStack([toy_patch(seed) for seed in range(2)])
    run = loop.train(stack, replace(SHORT, inputs=("s1",)), progress=False)
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


def test_a_source_with_one_measured_patch_has_the_channel():
    """B10 may be 0 in a single patch; the source decides."""
    stack = PatchStack([toy_patch(0), surface(toy_patch(1))])
    assert stack.statistics().channels == toy_stack(1).statistics().channels == CHANNELS
    check_channels("x", CHANNELS, stack.statistics(), ("s2", "s1"))
