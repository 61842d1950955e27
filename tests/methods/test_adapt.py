"""Adaptation: planted shares and planted groups found again; a network that is a stranger made at home."""

from dataclasses import replace

import numpy as np
import pytest
from toys import toy_patch, toy_stack

from lcfuse_core.data.legends import IGNORE, igbp_to_dfc
from lcfuse_core.data.source import PatchStack
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.methods.adapt import (
    adapted,
    by_region,
    classes_of_clusters,
    fit_clusters,
    predict_clusters,
    pseudo_labels,
)
from lcfuse_core.models import transition
from lcfuse_core.training import loop
from lcfuse_core.training.plan import TrainPlan

TINY = TrainPlan(steps=30, crop=32, batch=4, width=8, report_every=30, precision="float32")
MATRIX = transition.from_accuracy(np.ones(9), 0.9)


def strange_patch(seed, size=64):
    """A toy patch in a region where everything looks otherwise: bands and brightness in reverse."""
    patch = toy_patch(seed, size=size)
    return replace(patch, s2=np.ascontiguousarray(9000 - patch.s2[::-1]).astype(np.uint16))


def test_regions_part_a_stack():
    """Each patch goes to its own, in order; one name too few is an error."""
    stack = toy_stack(4, size=32)
    parts = by_region(stack, ["a", "b", "a", "a"])
    assert {name: part.names for name, part in parts.items()} == {"a": ["toy 0", "toy 2", "toy 3"], "b": ["toy 1"]}
    np.testing.assert_array_equal(parts["b"].s2.numpy(), stack.s2[1:2].numpy())
    with pytest.raises(DataError, match="3 regions for 4 patches"):
        by_region(stack, ["a", "b", "a"])


def test_a_network_comes_to_know_a_strange_region():
    """Learnt at home it is lost there; some steps on that region's labels, and it is not. The old one stays."""
    run = loop.train(toy_stack(4), replace(TINY, steps=60), progress=False)
    there = PatchStack([strange_patch(seed) for seed in range(3)])
    before = loop.evaluate(run, there).aa
    weights = {name: value.clone() for name, value in run.network.state_dict().items()}
    at_home = adapted(run, {"there": there}, replace(TINY, steps=60))["there"]
    unseen = PatchStack([strange_patch(99)])
    assert before < 0.5
    assert loop.evaluate(at_home, unseen).aa > 0.85
    assert all((weights[name] == value).all() for name, value in run.network.state_dict().items())
    assert at_home.statistics == run.statistics


def test_a_region_without_labels_keeps_its_network():
    """There is nothing to learn; from fresh weights that is an error, and with labels a training of its own."""
    run = loop.train(toy_stack(1, size=32), replace(TINY, steps=1), progress=False)
    stack = toy_stack(1, size=32)
    blank = stack.with_labels(np.full((1, 32, 32), IGNORE, np.uint8))
    assert adapted(run, {"blank": blank}, TINY)["blank"] is run
    with pytest.raises(DataError, match="no labelled pixel"):
        adapted(None, {"blank": blank}, TINY)
    fresh = adapted(None, {"there": stack}, replace(TINY, steps=1))["there"]
    assert (fresh.network.classify.weight == run.network.classify.weight).all()


def test_pseudo_labels_are_sure_or_silent():
    """The best class, and 255 where it is not sure enough."""

    def member(patch):
        p = np.full((8, 4, 4), 0.05, np.float32)
        p[3], p[3, 0, 0] = 0.65, 0.1
        return p

    labels = pseudo_labels(member, [toy_patch(0, size=32)] * 2, confidence=0.5)
    assert (labels.shape, labels.dtype) == ((2, 4, 4), np.uint8)
    assert (labels[:, 0, 0] == IGNORE).all()
    assert (labels[:, 1:] == 3).all()
    assert pseudo_labels(member, [toy_patch(0)], confidence=0.0)[0, 0, 0] != IGNORE
    with pytest.raises(ParameterError, match="confidence"):
        pseudo_labels(member, [], confidence=1.0)


def test_groups_get_their_planted_names_from_mixed_cells():
    """Cells mix six groups of known class and are labelled through the matrix: each group is named right."""
    rng = np.random.default_rng(0)
    planted = np.array([0, 2, 2, 5, 7, 4])
    shares = rng.dirichlet(np.full(6, 0.5), 2000)
    pixel = (rng.random(2000)[:, None] > shares.cumsum(axis=1)).sum(axis=1)  # one of the cell's pixels
    labels = (rng.random(2000)[:, None] > MATRIX.cumsum(axis=1)[planted[pixel]]).sum(axis=1)
    flat = np.full((6, 8), 1 / 8)
    found = classes_of_clusters(shares, labels, np.ones(2000), MATRIX, flat, 0.5)
    np.testing.assert_array_equal(found.argmax(axis=1), planted)
    assert found.max(axis=1).min() > 0.8
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_naming_groups_never_fits_worse():
    """The likelihood of the labels rises with every step."""
    rng = np.random.default_rng(1)
    shares, labels = rng.dirichlet(np.ones(5), 300), rng.integers(0, 9, 300)
    prior = rng.dirichlet(np.ones(8), 5)
    fits = []
    for steps in range(1, 8):
        found = classes_of_clusters(shares, labels, np.ones(300), MATRIX, prior, 0.0, iterations=steps)
        fits.append(np.log((shares @ found @ MATRIX)[np.arange(300), labels]).sum())
    assert all(np.diff(fits) > -1e-9)


def test_groups_without_evidence_keep_their_prior():
    """A group in no cell is what the network takes it for."""
    shares = np.array([[1.0, 0.0]] * 5)
    prior = np.random.default_rng(2).dirichlet(np.ones(8), 2)
    found = classes_of_clusters(shares, np.zeros(5, int), np.ones(5), MATRIX, prior, 0.5)
    np.testing.assert_allclose(found[1], prior[1])
    assert found[0].argmax() == 0


def test_clusters_map_a_strange_region():
    """No network: groups of like pixels, named by labels that err, map a patch that was not among them."""
    patches = [strange_patch(seed) for seed in range(4)]
    clusters = fit_clusters(PatchStack(patches, "modis+savanna"), MATRIX, seed=0, n_clusters=16)
    unseen = strange_patch(50)
    p = predict_clusters(clusters, unseen)
    assert (p.shape, p.dtype) == ((8, 64, 64), np.float32)
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-5)
    right = p.argmax(axis=0) == np.searchsorted([1, 6, 10, 11], unseen.lc[0])
    assert right.mean() > 0.95
    again = fit_clusters(PatchStack(patches, "modis+savanna"), MATRIX, seed=0, n_clusters=16)
    np.testing.assert_array_equal(clusters.classes, again.classes)


def test_clusters_listen_to_a_guess():
    """Where labels say nothing, groups take the classes that the guess gives them."""
    blank = [replace(p, lc=np.full_like(p.lc, 255)) for p in (toy_patch(0), toy_patch(1))]
    blank[0].lc[0, 0, 0] = 1
    truth = [igbp_to_dfc(toy_patch(n).lc[0]) for n in (0, 1)]

    def guess(patch):
        number = int(patch.name.split()[1])
        return (truth[number] == np.array([1, 2, 4, 5, 6, 7, 9, 10])[:, None, None]).astype(np.float32)

    stack = PatchStack(blank, "modis+savanna")
    clusters = fit_clusters(stack, MATRIX, seed=0, n_clusters=16, guess=guess)
    p = predict_clusters(clusters, blank[1])
    assert (np.array([1, 2, 4, 5, 6, 7, 9, 10])[p.argmax(axis=0)] == truth[1]).mean() > 0.95
