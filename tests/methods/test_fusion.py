"""Fusion and calibration: members that are planted as good, uncertain or useless are found to be so."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import IGBP_OF_CLASS, relabelled, toy_patch

from lcfuse_core.data.legends import IGNORE, igbp_to_dfc
from lcfuse_core.data.source import PatchStack
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.methods import fusion
from lcfuse_core.methods.fusion import (
    Evidence,
    Fusion,
    FusionPlan,
    _best_temperature,
    coarse_prior,
    combine,
    gather,
    member_weights,
    shared_errors,
)
from lcfuse_core.models import transition
from lcfuse_core.training.predict import tta_mean

MATRIX = transition.from_accuracy(np.ones(9), 0.8)
POSTERIOR = transition.posterior(MATRIX, np.ones(8) / 8)
NO_PRIOR = FusionPlan()
TRUTH = {
    (name := f"toy {seed}", size): np.searchsorted(IGBP_OF_CLASS, toy_patch(seed, size=size).lc[0])
    for seed in range(4)
    for size in (32, 40, 48, 64)
}


def random_p(seed, *shape):
    """Probabilities (8, ...)."""
    return np.moveaxis(np.random.default_rng(seed).dirichlet(np.ones(8), shape), -1, 0).astype(np.float32)


def truth_of(patch):
    """The class of each pixel of a toy patch, which its label has; of images without labels by name."""
    if patch.lc is None:
        return TRUTH[patch.name, patch.s2.shape[1]]
    return np.searchsorted(IGBP_OF_CLASS, patch.lc[0])


def oracle(patch, sharpness=3.0):
    """The true classes, with a confidence that grows with *sharpness*."""
    logits = sharpness * (truth_of(patch) == np.arange(8)[:, None, None])
    return (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)


def noise(patch):
    """Random probabilities at each pixel."""
    return random_p(int(patch.s2[0, 0, 0]), *patch.s2.shape[1:])


@pytest.mark.parametrize("rule", ["mean", "product"])
def test_equal_members_are_their_own_fusion(rule):
    """Whatever their weights; the order of members changes nothing."""
    p, q = random_p(1, 5, 6), random_p(2, 5, 6)
    np.testing.assert_allclose(combine([p, p], [0.2, 0.8], rule), p, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(combine([p, q], [1, 3], rule), combine([q, p], [3, 1], rule), rtol=1e-5)


def test_mean_and_product_by_hand():
    """Of (0.5, 0.5) and (0.9, 0.1): mean 0.7; product sqrt(0.45) against sqrt(0.05), 3 : 1."""
    p, q = np.zeros((8, 1, 1), np.float32), np.zeros((8, 1, 1), np.float32)
    p[:2, 0, 0], q[:2, 0, 0] = (0.5, 0.5), (0.9, 0.1)
    assert combine([p, q], [1, 1])[0, 0, 0] == pytest.approx(0.7)
    product = combine([p, q], [1, 1], "product")
    assert product[0, 0, 0] / product[1, 0, 0] == pytest.approx(3, rel=1e-4)


def test_test_time_augmentation_turns_predictions_back():
    """A member that predicts pixel by pixel is unchanged; one that is shifted gives the mean of all shifts."""
    patch = toy_patch(3, size=32)
    for n in (1, 2, 4, 8):
        np.testing.assert_allclose(tta_mean(oracle, patch, n), oracle(patch), rtol=1e-5)
    averaged = tta_mean(lambda patch: np.roll(oracle(patch), 1, axis=2), patch, 8)
    by_hand = sum(np.roll(oracle(patch), by, axis) for axis in (1, 2) for by in (-1, 1)) / 4
    np.testing.assert_allclose(averaged, by_hand, rtol=1e-5)


def test_the_prior_is_looked_up_pixel_by_pixel():
    """Uniform where the label is unknown; with a blur it changes gradually at the border of two cells."""
    labels = np.array([[0, 0, 3, IGNORE]], np.uint8)
    prior = coarse_prior(labels, POSTERIOR)
    np.testing.assert_allclose(prior[:, 0, 0], POSTERIOR[0] / POSTERIOR[0].max(), rtol=1e-6)
    np.testing.assert_allclose(prior[:, 0, 2], POSTERIOR[3] / POSTERIOR[3].max(), rtol=1e-6)
    np.testing.assert_array_equal(prior[:, 0, 3], 1)
    wide = np.repeat(np.array([[0, 3]], np.uint8), 40, axis=1)
    assert np.abs(np.diff(coarse_prior(wide, POSTERIOR, 10.0)[0, 0])).max() < 0.15
    assert np.abs(np.diff(coarse_prior(wide, POSTERIOR)[0, 0])).max() > 0.5


def test_the_prior_counts_as_its_power():
    """Power 0: the member alone. The higher the power, the more pixels have the class of the label."""
    patch, agreement = toy_patch(2, size=32), []
    for power in (0.0, 0.3, 1.0, 3.0):
        plan = FusionPlan(prior_power=power, prior_blur_px=0, prior_doubt=0)
        p = Fusion({"noise": noise}, plan, POSTERIOR).predict(patch)
        np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-4)
        agreement.append((p.argmax(axis=0) == truth_of(patch)).mean())
    assert agreement == sorted(agreement)
    assert agreement[0] < 0.2
    assert agreement[-1] > 0.8


def test_a_zero_in_the_table_forbids_a_class_only_without_doubt():
    patch = toy_patch(2, size=32)
    label = truth_of(patch)
    table = np.vstack([np.roll(np.eye(8), 1, axis=1), np.full(8, 1 / 8)])  # each label stands for another class

    def agreement(doubt):
        plan = FusionPlan(prior_power=0.1, prior_blur_px=0, prior_doubt=doubt)
        confident = Fusion({"m": lambda patch: (0.92 * np.eye(8)[label] + 0.01).transpose(2, 0, 1)}, plan, table)
        return (confident.predict(patch).argmax(axis=0) == label).mean()

    assert agreement(0.0) == 0
    assert agreement(0.2) == 1


def test_a_planted_temperature_is_found():
    """Posteriors flattened by 2 get a temperature near 1/2, sharpened ones near 2."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 8, 60_000)
    seen = np.eye(8)[truth] * 2 + rng.normal(0, 1, (60_000, 8))
    label = (rng.random(60_000)[:, None] > MATRIX.cumsum(axis=1)[truth]).sum(axis=1)
    log_p = (2 * seen - np.log(np.exp(2 * seen).sum(axis=1, keepdims=True))).astype(np.float32)  # calibrated
    for factor in (0.5, 1.0, 2.0):
        found = _best_temperature(Evidence(factor * log_p, np.arange(60_000), label), MATRIX)
        assert found == pytest.approx(factor, rel=0.15)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_weights_are_the_likeliest_mixture(seed):
    """They sum to one, none is negative, and 300 random mixtures are less likely."""
    likelihood = np.random.default_rng(seed).uniform(0.01, 1, (3, 40))
    weights = member_weights(likelihood)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    best = np.log(weights @ likelihood).mean()
    for mixture in np.random.default_rng(0).dirichlet(np.ones(3), 300):
        assert np.log(mixture @ likelihood).mean() <= best + 1e-5


def fitted(members, source):
    fused = Fusion(members, FusionPlan(calibrated=True, weighted=True))
    fused.fit(gather(members, source), MATRIX)
    return fused


def test_a_useless_member_loses_its_weight():
    """Noise beside a good member; equal members keep equal weights."""
    source = PatchStack([toy_patch(number, size=48) for number in range(4)], "modis+savanna")
    found = fitted({"good": oracle, "noise": noise}, source)
    assert found.weights["good"] > 0.95
    assert found.temperatures["good"] < found.temperatures["noise"]
    assert fitted({"a": oracle, "b": oracle}, source).weights == {"a": 0.5, "b": 0.5}


def test_evidence_is_gathered_cell_by_cell(monkeypatch):
    """The likelihood of a cell is the mean over its pixels, as a loop finds it; the sample is bounded."""
    source = PatchStack([toy_patch(number, size=40) for number in range(2)], "modis+savanna")
    found = gather({"m": oracle}, source, pixels=500)["m"]
    assert len(found.log_p) == len(found.cell) == 1000
    likelihood = found.likelihood(MATRIX)
    for cell in (0, len(found.label) - 1):
        inside = found.cell == cell
        values = np.exp(found.log_p[inside]) @ MATRIX[:, found.label[cell]]
        assert likelihood[cell] == pytest.approx(values.mean(), rel=1e-5)
    monkeypatch.setattr(fusion, "MOST_PIXELS", 100)
    assert len(gather({"m": oracle}, source)["m"].log_p) == 100
    blank = relabelled(source, np.full_like(source.labels, IGNORE))
    with pytest.raises(DataError, match="no coarse label"):
        gather({"m": oracle}, blank)


def test_a_fusion_refuses_wrong_plans():
    with pytest.raises(DataError, match="no member"):
        Fusion({}, NO_PRIOR)
    with pytest.raises(ParameterError, match="a prior power without a prior"):
        Fusion({"m": oracle}, FusionPlan(prior_power=0.3))
    wrong = {"rule": "median", "symmetries": 3, "prior_power": -1.0, "prior_blur_px": -2.0, "prior_doubt": 1.5}
    for name, value in wrong.items():
        with pytest.raises(ParameterError, match=f"fusion: {name}"):
            FusionPlan(**{name: value})


def test_members_of_weight_zero_are_not_computed():
    def never(patch):
        raise AssertionError

    two = Fusion({"m": partial(oracle, sharpness=2.0), "never": never}, NO_PRIOR)
    two.weights |= {"m": 1.0, "never": 0.0}
    two.predict(toy_patch(0, size=32))


# Evaluated against the reference

PATCHES = [replace(patch, dfc=igbp_to_dfc(patch.lc[0])) for patch in (toy_patch(0), toy_patch(1))]


def member(*wrong, confidence=0.9):
    """Wrong at these rows and columns: there it predicts the next class."""

    def predict(patch):
        classes = truth_of(patch)
        classes[wrong] = (classes[wrong] + 1) % 8
        p = np.full((8, *classes.shape), (1 - confidence) / 7, np.float32)
        np.put_along_axis(p, classes[None], confidence, axis=0)
        return p

    return predict


def test_shared_errors_of_pairs():
    """Left and upper half: a quarter is wrong in both, as by chance; a member and itself share all errors."""
    left, top, right = member(slice(None), slice(32)), member(slice(32)), member(slice(0))
    found = shared_errors({"a": left, "b": top, "again a": left, "right": right}, PATCHES)
    assert found.loc["a / b"].tolist() == pytest.approx([50, 50, 25, 25, 100])
    assert found.loc["a / again a"].tolist() == pytest.approx([50, 50, 50, 25, 100])
    assert found.loc["a / right"].tolist() == pytest.approx([50, 0, 0, 0, np.nan], nan_ok=True)
