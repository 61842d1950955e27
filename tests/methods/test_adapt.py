"""Adaptation: planted shares and clusters are found again; a network is fine-tuned under domain shift."""

from dataclasses import replace

import numpy as np
import torch
from toys import relabelled, toy_patch, toy_stack

from lcfuse_core.data.legends import igbp_to_dfc
from lcfuse_core.data.source import PatchStack
from lcfuse_core.methods import adapt
from lcfuse_core.methods.adapt import _classes_of_clusters, fit_clusters, predict_clusters, pseudo_labelled
from lcfuse_core.models import transition
from lcfuse_core.training import loop
from lcfuse_core.training.plan import TrainPlan

TINY = TrainPlan(steps=30, crop=32, batch=4, width=8, report_every=30, precision="float32")
MATRIX = transition.from_accuracy(np.ones(9), 0.9)
CODES = np.array([1, 2, 4, 5, 6, 7, 9, 10])[:, None, None]


def shifted_patch(seed, size=64):
    """A toy patch with other signatures: bands and brightness in reverse."""
    patch = toy_patch(seed, size=size)
    return replace(patch, s2=np.ascontiguousarray(9000 - patch.s2[::-1]).astype(np.uint16))


def test_fine_tuning_overcomes_a_domain_shift():
    """Trained on other signatures the network fails in the target region, after some steps there it does not."""
    run = loop.train(toy_stack(4), replace(TINY, steps=60), progress=False)
    target, unseen = PatchStack([shifted_patch(seed) for seed in range(3)]), PatchStack([shifted_patch(99)])
    weights = {name: value.clone() for name, value in run.network.state_dict().items()}
    tuned = loop.train(target, replace(TINY, steps=60), start=run, progress=False)
    assert loop.evaluate(run, target).aa < 0.5
    assert loop.evaluate(tuned, unseen).aa > 0.85
    assert all((weights[name] == value).all() for name, value in run.network.state_dict().items())
    assert tuned.statistics == run.statistics


def stripes(patch):
    """Class 3, but class 5 in the first row."""
    p = np.full((8, *patch.s2.shape[1:]), 0.05, np.float32)
    p[3], p[5, 0] = 0.65, 0.9
    return p


def test_pseudo_labels_are_the_most_probable_classes():
    """Images, cells and random crops are those of the source."""
    stack = toy_stack(3, size=32)
    labelled = pseudo_labelled(stripes, stack)
    windows = list(labelled.windows())
    assert all((window.labels[0] == 5).all() and (window.labels[1:] == 3).all() for window in windows)
    # The same crops as a stack with these labels in memory gives.
    plain = relabelled(stack, torch.stack([window.labels for window in windows]))
    crops = [own.crops(20, 16, torch.Generator().manual_seed(0)) for own in (labelled, plain)]
    assert all((ours == theirs).all() for ours, theirs in zip(*crops, strict=True))
    assert labelled.part([2]).names == ["toy 2"]
    other = pseudo_labelled(lambda patch: stripes(patch)[::-1], stack)
    assert len({labelled.digest(), other.digest(), stack.digest()}) == 3


def test_planted_classes_of_clusters_are_found_from_mixed_cells():
    """Cells mix six clusters of known class and are labelled through the matrix."""
    rng = np.random.default_rng(0)
    planted = np.array([0, 2, 2, 5, 7, 4])
    shares = rng.dirichlet(np.full(6, 0.5), 2000)
    pixel = (rng.random(2000)[:, None] > shares.cumsum(axis=1)).sum(axis=1)  # one of the cell's pixels
    labels = (rng.random(2000)[:, None] > MATRIX.cumsum(axis=1)[planted[pixel]]).sum(axis=1)
    flat = np.full((6, 8), 1 / 8)
    found = _classes_of_clusters(shares, labels, np.ones(2000), MATRIX, flat)
    np.testing.assert_array_equal(found.argmax(axis=1), planted)
    assert found.max(axis=1).min() > 0.8
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_clusters_map_a_region_with_domain_shift(monkeypatch):
    """Of a patch that was not clustered; the same seed gives the same clusters; a smaller sample is drawn of many."""
    source = PatchStack([shifted_patch(seed) for seed in range(4)], "modis+savanna")
    unseen = shifted_patch(50)
    truth = np.searchsorted([1, 6, 10, 11], unseen.lc[0])
    for most, accuracy in ((2**22, 0.95), (400, 0.8)):
        monkeypatch.setattr(adapt, "MOST_PIXELS", most)
        clusters = fit_clusters(source, MATRIX, seed=0)
        p = predict_clusters(clusters, unseen)
        assert (p.shape, p.dtype) == ((8, 64, 64), np.float32)
        np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-5)
        assert (p.argmax(axis=0) == truth).mean() > accuracy
        np.testing.assert_array_equal(clusters.classes, fit_clusters(source, MATRIX, seed=0).classes)


def test_a_guess_decides_where_labels_are_missing():
    """One pixel is labelled; the other clusters take the classes of the guess."""
    truth = {toy_patch(n).name: igbp_to_dfc(toy_patch(n).lc[0]) for n in (0, 1)}
    blank = [replace(p, lc=np.full_like(p.lc, 255)) for p in (toy_patch(0), toy_patch(1))]
    blank[0].lc[0, 0, 0] = 1
    source = PatchStack(blank, "modis+savanna")
    guess = {"guess": lambda patch: (truth[patch.name] == CODES).astype(np.float32)}
    p = predict_clusters(fit_clusters(source, MATRIX, seed=0, **guess), blank[1])
    assert (CODES[p.argmax(axis=0), 0, 0] == truth["toy 1"]).mean() > 0.95


def test_clusters_without_evidence_keep_their_prior():
    shares, prior = np.array([[1.0, 0.0]] * 5), np.random.default_rng(2).dirichlet(np.ones(8), 2)
    found = _classes_of_clusters(shares, np.zeros(5, int), np.ones(5), MATRIX, prior)
    np.testing.assert_allclose(found[1], prior[1])
    assert found[0].argmax() == 0
