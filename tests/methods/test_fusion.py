"""Fusion and calibration: members that are known to be good, shy or useless are found to be so."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import IGBP_OF_CLASS, toy_patch

from lcfuse_core.data.legends import IGNORE, igbp_to_dfc, index_to_dfc
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.methods.fusion import (
    Evidence,
    Fusion,
    FusionPlan,
    best_temperature,
    calibration_error,
    coarse_prior,
    combine,
    gather,
    member_weights,
    reliability,
    reliability_of,
    shared_errors,
    temper,
)
from lcfuse_core.models import transition
from lcfuse_core.training.predict import tta_mean

MATRIX = transition.from_accuracy(np.ones(9), 0.8)
POSTERIOR = transition.posterior(MATRIX, np.ones(8) / 8)
NO_PRIOR = FusionPlan()


def random_p(seed, *shape):
    """Probabilities (8, ...)."""
    return np.moveaxis(np.random.default_rng(seed).dirichlet(np.ones(8), shape), -1, 0).astype(np.float32)


def oracle(patch, sharpness=3.0):
    """Looks at the label, which is true of a toy patch: sure of it as *sharpness* says."""
    index = np.searchsorted(IGBP_OF_CLASS, patch.lc[0])
    logits = sharpness * (index == np.arange(8)[:, None, None])
    return (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)


def noise(patch):
    """Knows nothing, and says so differently of each pixel."""
    return random_p(int(patch.s2[0, 0, 0]), *patch.s2.shape[1:])


@given(seed=st.integers(0, 100), temperature=st.floats(0.3, 5))
@settings(max_examples=20)
def test_tempering_keeps_the_order_and_the_sum(seed, temperature):
    """One more likely stays more likely; 1 changes nothing; there and back is where one was."""
    p = random_p(seed, 3, 4)
    hot = temper(p, temperature)
    np.testing.assert_allclose(hot.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(hot.argmax(axis=0), p.argmax(axis=0))
    np.testing.assert_allclose(temper(p, 1.0), p)
    np.testing.assert_allclose(temper(np.maximum(temper(p, 2.0), 1e-7), 0.5), p, atol=1e-3)


@pytest.mark.parametrize("rule", ["mean", "product"])
def test_members_that_agree_are_their_own_fusion(rule):
    """Any weights of equal members give the member; the order of members says nothing."""
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


def test_symmetries_are_turned_back():
    """A member that answers pixel by pixel says the same to every turn; one that leans is straightened."""
    patch = toy_patch(3, size=32)
    for n in (1, 2, 4, 8):
        np.testing.assert_allclose(tta_mean(oracle, patch, n), oracle(patch), rtol=1e-5)

    def leaning(patch):
        p = oracle(patch)
        return np.roll(p, 1, axis=2)

    straight = tta_mean(leaning, patch, 8)
    by_hand = sum(np.roll(oracle(patch), by, axis) for axis in (1, 2) for by in (-1, 1)) / 4
    np.testing.assert_allclose(straight, by_hand, rtol=1e-5)


def test_the_prior_is_looked_up_pixel_by_pixel():
    """On the labels' own outlines; where there is none, it says nothing; blurred, it changes smoothly."""
    labels = np.array([[0, 0, 3, IGNORE]], np.uint8)
    prior = coarse_prior(labels, POSTERIOR)
    np.testing.assert_allclose(prior[:, 0, 0], POSTERIOR[0] / POSTERIOR[0].max(), rtol=1e-6)
    np.testing.assert_allclose(prior[:, 0, 2], POSTERIOR[3] / POSTERIOR[3].max(), rtol=1e-6)
    np.testing.assert_array_equal(prior[:, 0, 3], 1)
    wide = np.repeat(np.array([[0, 3]], np.uint8), 40, axis=1)
    steps = np.abs(np.diff(coarse_prior(wide, POSTERIOR, 10.0)[0, 0]))
    assert steps.max() < 0.15
    assert np.abs(np.diff(coarse_prior(wide, POSTERIOR)[0, 0])).max() > 0.5


def test_a_fusion_of_one_is_its_member():
    """No prior, no temperature, no turns: the very numbers."""
    patch = toy_patch(1, size=32)
    fusion = Fusion({"only": oracle}, NO_PRIOR)
    np.testing.assert_array_equal(fusion.predict(patch), oracle(patch))
    np.testing.assert_array_equal(fusion.classify(patch), index_to_dfc(oracle(patch).argmax(axis=0)))


def test_the_prior_pulls_as_far_as_its_power():
    """Power 0: the member alone. The higher, the more often the map says what the label says."""
    patch = toy_patch(2, size=32)
    label = np.searchsorted(IGBP_OF_CLASS, patch.lc[0])
    agreement = []
    for power in (0.0, 0.3, 1.0, 3.0):
        plan = FusionPlan(prior_power=power, prior_blur_px=0, prior_doubt=0)
        p = Fusion({"noise": noise}, plan, POSTERIOR).predict(patch)
        np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-4)
        agreement.append((p.argmax(axis=0) == label).mean())
    assert agreement == sorted(agreement)
    assert agreement[0] < 0.2
    assert agreement[-1] > 0.8


def test_a_zero_in_the_table_forbids_nothing_where_there_is_doubt():
    """Without doubt a sure member is overruled by a class that the table gives no chance, at any power."""
    patch = toy_patch(2, size=32)
    label = np.searchsorted(IGBP_OF_CLASS, patch.lc[0])
    table = np.vstack([np.roll(np.eye(8), 1, axis=1), np.full(8, 1 / 8)])  # each label is said to mean another class

    def agrees(doubt):
        plan = FusionPlan(prior_power=0.1, prior_blur_px=0, prior_doubt=doubt)
        sure = Fusion({"m": lambda patch: (0.92 * np.eye(8)[label] + 0.01).transpose(2, 0, 1)}, plan, table)
        return (sure.predict(patch).argmax(axis=0) == label).mean()

    assert agrees(0.0) == 0
    assert agrees(0.2) == 1


def test_a_shy_member_is_found_and_made_sure():
    """Posteriors flattened by 2 get a temperature near 1/2, sharpened ones near 2: both ways back."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 8, 60_000)
    seen = np.eye(8)[truth] * 2 + rng.normal(0, 1, (60_000, 8))
    label = (rng.random(60_000)[:, None] > MATRIX.cumsum(axis=1)[truth]).sum(axis=1)
    log_p = (2 * seen - np.log(np.exp(2 * seen).sum(axis=1, keepdims=True))).astype(np.float32)  # calibrated
    cell = np.arange(60_000)
    for factor in (0.5, 1.0, 2.0):
        found = best_temperature(Evidence(factor * log_p, cell, label), MATRIX)
        assert found == pytest.approx(factor, rel=0.15)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_weights_are_the_likeliest_mixture(seed):
    """Sum one, none negative, and no other mixture that a grid finds is likelier."""
    likelihood = np.random.default_rng(seed).uniform(0.01, 1, (3, 40))
    weights = member_weights(likelihood)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    best = np.log(weights @ likelihood).mean()
    for one in np.random.default_rng(0).dirichlet(np.ones(3), 300):
        assert np.log(one @ likelihood).mean() <= best + 1e-5


def test_a_useless_member_loses_its_weight():
    """Beside one that knows, noise gets next to nothing, and equal members stay equal."""
    patches = [toy_patch(number, size=48) for number in range(4)]
    members = {"good": oracle, "noise": noise}
    fusion = Fusion(members, FusionPlan(calibrated=True, weighted=True))
    fusion.fit(patches, MATRIX)
    assert fusion.weights["good"] > 0.95
    assert fusion.temperatures["good"] < fusion.temperatures["noise"]
    twins = Fusion({"a": oracle, "b": oracle}, FusionPlan(calibrated=True, weighted=True))
    twins.fit(patches, MATRIX)
    assert twins.weights == {"a": 0.5, "b": 0.5}


def test_evidence_is_gathered_cell_by_cell():
    """As many labels as cells; likelihood of a cell is the mean over its pixels, as a loop finds it."""
    patches = [toy_patch(number, size=40) for number in range(2)]
    found = gather({"m": oracle}, patches, pixels=500)["m"]
    assert len(found.log_p) == len(found.cell) == 1000
    likelihood = found.likelihood(MATRIX)
    for cell in (0, len(found.label) - 1):
        inside = found.cell == cell
        values = np.exp(found.log_p[inside]) @ MATRIX[:, found.label[cell]]
        assert likelihood[cell] == pytest.approx(values.mean(), rel=1e-5)


def test_evidence_wants_labels():
    """A patch of nothing but fill has none."""
    blank = toy_patch(0, size=32)
    blank.lc[0] = 255
    with pytest.raises(DataError, match="no coarse label"):
        gather({"m": oracle}, [blank])


def test_reliability_by_hand():
    """Four pixels, two bins: sure ones right once in two."""
    found = reliability(np.array([0.3, 0.9, 0.7, 1.0]), np.array([True, True, False, False]), bins=2)
    np.testing.assert_allclose(found["accuracy"], [1, 1 / 3])
    np.testing.assert_allclose(found["confidence"], [0.3, 2.6 / 3])
    np.testing.assert_array_equal(found["count"], [1, 3])
    assert np.isnan(reliability(np.array([0.9]), np.array([True]), bins=2)["accuracy"][0])


def test_a_fusion_refuses_what_it_cannot_do():
    with pytest.raises(DataError, match="no member"):
        Fusion({}, NO_PRIOR)
    with pytest.raises(ParameterError, match="a prior power without a prior"):
        Fusion({"m": oracle}, FusionPlan(prior_power=0.3))
    wrong = {"rule": "median", "symmetries": 3, "prior_power": -1.0, "prior_blur_px": -2.0, "prior_doubt": 1.5}
    for name, value in wrong.items():
        with pytest.raises(ParameterError, match=f"fusion: {name}"):
            FusionPlan(**{name: value})


def test_members_of_no_weight_are_not_asked():
    """What does not count costs nothing."""

    def never(patch):
        raise AssertionError

    fusion = Fusion({"m": partial(oracle, sharpness=2.0), "never": never}, NO_PRIOR)
    fusion.weights |= {"m": 1.0, "never": 0.0}
    fusion.predict(toy_patch(0, size=32))


KNOWN = (toy_patch(0), toy_patch(1))
PATCHES = [replace(patch, dfc=igbp_to_dfc(patch.lc[0])) for patch in KNOWN]


def truth_of(patch):
    return np.searchsorted(IGBP_OF_CLASS, patch.lc[0])


def member(wrong_where, confidence=0.9):
    """Right but where *wrong_where* (a mask from row and column) says so; there it names the next class."""

    def predict(patch):
        rows, cols = np.indices(patch.lc[0].shape)
        answer = np.where(wrong_where(rows, cols), (truth_of(patch) + 1) % 8, truth_of(patch))
        p = np.full((8, *answer.shape), (1 - confidence) / 7, np.float32)
        np.put_along_axis(p, answer[None], confidence, axis=0)
        return p

    return predict


def nowhere(rows, cols):
    return rows < 0


def left(rows, cols):
    return cols < 32


def top(rows, cols):
    return rows < 32


def test_one_bin_holds_a_member_of_one_confidence():
    """Half right and 90 per cent sure: 40 points too sure; all right: 10 points too humble."""
    half = reliability_of(member(left), PATCHES)
    assert half["count"].tolist() == [0] * 9 + [2 * 64 * 64]
    assert calibration_error(half) == pytest.approx(0.4, abs=1e-6)
    assert calibration_error(reliability_of(member(nowhere), PATCHES)) == pytest.approx(0.1, abs=1e-6)


def test_a_temperature_makes_the_sure_humbler():
    """The same answers, with less confidence; a temperature of 1 changes nothing."""
    plain, hot = (reliability_of(member(left), PATCHES, t) for t in (1.0, 3.0))
    assert np.nansum(hot["confidence"]) < np.nansum(plain["confidence"])
    assert calibration_error(hot) < calibration_error(plain)
    assert np.nanmax(hot["accuracy"]) == np.nanmax(plain["accuracy"]) == 0.5


def test_pixels_without_reference_are_left_out():
    """And where all are, there is nothing to say."""
    part = replace(PATCHES[0], dfc=PATCHES[0].dfc.copy())
    part.dfc[:, :32] = 0
    assert calibration_error(reliability_of(member(left), [part])) == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(DataError, match="no pixel"):
        reliability_of(member(left), [replace(part, dfc=np.zeros_like(part.dfc))])


def test_errors_that_are_shared_and_that_are_not():
    """Left half and upper half: a quarter is wrong twice, as by chance; a member and itself: all is shared."""
    found = shared_errors({"a": member(left), "b": member(top), "again a": member(left)}, PATCHES)
    assert found.loc["a / b"].tolist() == pytest.approx([50, 50, 25, 25, 100])
    assert found.loc["a / again a"].tolist() == pytest.approx([50, 50, 50, 25, 100])
    perfect = shared_errors({"a": member(left), "b": member(nowhere)}, PATCHES).loc["a / b"]
    assert perfect[:4].tolist() == pytest.approx([50, 0, 0, 0])
    assert np.isnan(perfect["alike"])
