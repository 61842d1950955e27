"""Trees applied by compiled code: bit for bit the sums of scikit-learn's own trees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from lcfuse_core.models import trees


def grown(rng, *, n_pixels=400, n_features=15, n_classes=8, **options):
    """Return a forest of random pixels and classes."""
    pixels = rng.normal(size=(n_pixels, n_features)).astype(np.float32)
    return RandomForestClassifier(5, random_state=0, **options).fit(pixels, rng.integers(0, n_classes, n_pixels))


def reference(forest, pixels):
    """Return the sums by the leaf that scikit-learn finds for each pixel."""
    return sum(tree.tree_.value[tree.tree_.apply(pixels), 0] for tree in forest.estimators_)


def votes(forest, pixels):
    """Return the sums of the compiled code."""
    return trees.votes(trees.pack([tree.tree_ for tree in forest.estimators_]), pixels)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 45), st.integers(1, 8), st.integers(0, 20), st.sampled_from([None, 2, 9])
)
def test_votes_are_those_of_scikit_learn(seed, n_features, n_classes, n_pixels, max_leaf_nodes):
    """For trees in depth-first and best-first order, a single leaf (one class) among them, and any number of pixels."""
    rng = np.random.default_rng(seed)
    forest = grown(rng, n_pixels=60, n_features=n_features, n_classes=n_classes, max_leaf_nodes=max_leaf_nodes)
    pixels = rng.normal(scale=3, size=(n_pixels, n_features)).astype(np.float32)
    if not n_pixels:
        assert votes(forest, pixels).shape == (0, len(forest.classes_))
        return
    np.testing.assert_array_equal(votes(forest, pixels), reference(forest, pixels))


def test_values_on_and_beside_a_threshold_go_the_same_way():
    """The threshold is the mean of two float32, a float64; zeros of both signs and infinities are values as well."""
    rng = np.random.default_rng(1)
    few = rng.choice(np.array([-1.5, -1e-40, -0.0, 0.0, 1e-40, 0.1, 0.1000001, 7], np.float32), (300, 3))
    forest = RandomForestClassifier(20, random_state=0).fit(few, rng.integers(0, 3, 300))
    thresholds = np.concatenate([tree.tree_.threshold for tree in forest.estimators_]).astype(np.float32)
    beside = [np.nextafter(thresholds, np.float32(way)) for way in (-np.inf, np.inf)]
    extremes = np.array([-np.inf, np.inf, -0.0, 0.0, np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32)
    values = np.unique(np.concatenate([thresholds, *beside, extremes]))
    pixels = rng.choice(np.append(values, np.float32(-0.0)), (5000, 3))
    np.testing.assert_array_equal(votes(forest, pixels), reference(forest, pixels))


def test_a_tree_that_is_too_large_for_its_integers_is_refused():
    """A feature beyond 8 bits would be read as another one."""
    forest = grown(np.random.default_rng(0), n_features=257)
    with pytest.raises(ValueError, match="257 features"):
        votes(forest, np.zeros((1, 257), np.float32))
