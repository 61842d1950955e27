"""The transition matrix: planted ones recovered, stated assumptions kept, and Bayes' rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX
from lcfuse_core.errors import DataError, GridError, ParameterError
from lcfuse_core.models import transition

SHARE = np.array([30, 4, 20, 3, 25, 6, 4, 8, 12.0])
PRIOR = np.array([0.25, 0.08, 0.2, 0.06, 0.2, 0.08, 0.05, 0.08])


def planted(seed=0):
    """A matrix that errs three times in ten, most in one direction a class."""
    rng = np.random.default_rng(seed)
    errors = rng.dirichlet(np.full(9, 0.4), 8) * (1 - np.eye(8, 9)) + 1e-3
    return 0.7 * np.eye(8, 9) + 0.3 * errors / errors.sum(axis=1, keepdims=True)


def draw(seed=0, n=40_000, sharpness=4.0):
    """True classes, coarse labels drawn by the planted matrix, and calibrated posteriors of an imperfect view."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(8, n, p=PRIOR / PRIOR.sum())
    coarse = (rng.random(n)[:, None] > planted().cumsum(axis=1)[truth]).sum(axis=1)
    # An image is a noisy vector around its class; the posterior follows by Bayes' rule, so it is calibrated.
    seen = np.eye(8)[truth] * sharpness + rng.normal(0, 1, (n, 8))
    log = np.log(PRIOR / PRIOR.sum()) + sharpness * seen
    posterior = np.exp(log - log.max(axis=1, keepdims=True))
    return truth, coarse, posterior / posterior.sum(axis=1, keepdims=True)


def test_one_accuracy_makes_a_matrix_that_keeps_its_assumptions():
    """The diagonal is the accuracy; errors follow the labels' shares; Savanna only over woody and grassy classes."""
    matrix = transition.from_accuracy(SHARE, accuracy=0.67)
    assert matrix.shape == (8, 9)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(np.diag(matrix), 0.67)
    assert matrix[0, 4] / matrix[0, 2] == pytest.approx(25 / 20)
    assert (matrix[:3, SAVANNA_INDEX] > 0).all()
    assert (matrix[3:, SAVANNA_INDEX] == 0).all()


@pytest.mark.parametrize("accuracy", [0, -1, 1.1, np.nan])
def test_an_accuracy_that_is_none_is_refused(accuracy):
    with pytest.raises(ParameterError, match="accuracy"):
        transition.from_accuracy(SHARE, accuracy)


@pytest.mark.parametrize("share", [np.zeros(9), np.ones(8), np.array([np.nan] * 9), -SHARE])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(DataError, match="label shares"):
        transition.from_accuracy(share)


def test_a_planted_matrix_is_counted():
    """Truth and labels side by side, unknown ones left out; the same as a loop over pairs. Without pixels: identity."""
    truth, coarse, _ = draw(n=20_000)
    truth[:500], coarse[500:1000] = IGNORE, IGNORE
    matrix = transition.counted(zip(np.split(truth, 4), np.split(coarse, 4), strict=True))
    np.testing.assert_allclose(matrix, planted(), atol=0.03)
    by_loop = np.zeros((8, 9)) + np.eye(8, 9)
    for pair in zip(truth[1000:], coarse[1000:], strict=True):
        by_loop[pair] += 1
    np.testing.assert_allclose(matrix, by_loop / by_loop.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(transition.counted([]), np.eye(8, 9))


def test_counting_labels_of_other_pixels_is_refused():
    with pytest.raises(GridError, match=r"fine \(3,\), coarse \(4,\)"):
        transition.counted([(np.zeros(3, int), np.zeros(4, int))])


def test_a_planted_matrix_is_estimated_from_posteriors_and_labels():
    """Expectation maximisation from a poor start: far nearer than the start, and near the truth."""
    _, coarse, posterior = draw(sharpness=3.0)
    start = transition.from_accuracy(np.bincount(coarse, minlength=9), 0.6)
    found = transition.estimate(posterior, coarse, start)
    assert np.abs(found - planted()).max() < 0.05
    assert np.abs(found - planted()).sum() < 0.25 * np.abs(start - planted()).sum()


def test_an_estimate_without_a_label_is_refused():
    with pytest.raises(DataError, match="no labelled pixel"):
        transition.estimate(np.full((2, 8), 1 / 8), np.array([IGNORE, IGNORE]), planted())


@settings(max_examples=25)
@given(prior=st.lists(st.floats(0.02, 1), min_size=8, max_size=8), seed=st.integers(0, 50))
def test_the_prior_of_fine_classes_is_recovered_from_the_labels_shares(prior, seed):
    """Planted shares, sent through a planted matrix."""
    prior = np.array(prior) / sum(prior)
    np.testing.assert_allclose(transition.class_prior(planted(seed), prior @ planted(seed)), prior, atol=0.02)


def test_bayes_rule_by_a_loop():
    """p(fine | coarse) of every pair; a label that cannot occur has the prior."""
    matrix = planted()
    matrix[:, SAVANNA_INDEX] = 0
    table = transition.posterior(matrix, PRIOR)
    assert table.shape == (9, 8)
    for m in range(8):
        expected = [PRIOR[k] * matrix[k, m] for k in range(8)]
        np.testing.assert_allclose(table[m], np.array(expected) / sum(expected))
    np.testing.assert_allclose(table[SAVANNA_INDEX], PRIOR / PRIOR.sum())


def test_savanna_left_out_leaves_shares_of_the_rest():
    """And a class that has no other label is named."""
    matrix = planted()
    rest = transition.without_savanna(matrix)
    assert rest.shape == (8, 8)
    np.testing.assert_allclose(rest[2], matrix[2, :8] / (1 - matrix[2, 8]))
    matrix[3, :8] = 0
    with pytest.raises(DataError, match="Wetlands"):
        transition.without_savanna(matrix)


def test_one_class_alone_is_always_right():
    """Where there is no other label to err to."""
    matrix = transition.from_accuracy(np.array([1, 0, 0, 0, 0, 0, 0, 0, 0.0]))
    assert matrix[0, 0] == 1
    assert matrix[1, 0] == pytest.approx(0.33)
