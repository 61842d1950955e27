"""The random forest: a fair sample, the right classes, the same again."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from toys import toy_patch, toy_stack

from lcfuse_core.data.legends import IGNORE, igbp_to_dfc
from lcfuse_core.data.source import class_counts, normalise
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.models.forest import _features, classify, predict, train_forest
from lcfuse_core.models.losses import class_weights


@pytest.fixture(scope="module")
def stack():
    """Three toy patches with four classes."""
    return toy_stack(3)


@pytest.mark.parametrize("neighbourhood", [0, 1])
def test_forest_learns_a_toy_world(stack, neighbourhood):
    """Labels that can be read off a pixel are, on a patch never seen; classes never seen have no chance."""
    forest = train_forest(stack, n_pixels=1000, seed=1, n_trees=10, neighbourhood=neighbourhood)
    assert forest.trees.n_features_in_ == (45 if neighbourhood else 15)
    unseen = toy_patch(1000, size=40)
    probabilities = predict(forest, unseen)
    assert (probabilities.shape, probabilities.dtype) == ((8, 40, 40), np.float32)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-6)
    assert (probabilities[4:] == 0).all()
    assert (classify(forest, unseen) == igbp_to_dfc(unseen.lc[0])).mean() > 0.95
    np.testing.assert_array_equal(probabilities, predict(forest, (unseen.s2, unseen.s1)))


def test_classes_keep_their_places():
    """Where class 0 never occurs, the forest's first column is not class 0's."""
    stack = toy_stack(2)
    stack.labels += 3  # classes 3..6
    probabilities = predict(train_forest(stack, n_pixels=500, seed=1, n_trees=5), toy_patch(9))
    assert (probabilities[[0, 1, 2, 7]] == 0).all()
    expected = igbp_to_dfc(toy_patch(9).lc[0])
    places = np.array([0, 3, 4, 0, 5, 6])[expected]  # DFC2020 1, 2, 4, 5 -> classes 0..3, plus 3
    assert (probabilities.argmax(axis=0) == places).mean() > 0.9


@pytest.mark.parametrize("neighbourhood", [0, 3])
def test_the_sample_is_that_of_the_flattened_labels(stack, neighbourhood, monkeypatch):
    """The same pixels and order as by indexing all labels at once, and the features of whole windows: by the seed."""
    labels, rng = stack.labels.numpy().reshape(-1), np.random.default_rng(5)
    counts = class_counts(stack.labels)
    shares = (counts * class_weights(counts, 0.5)).double()
    wanted = (700 * shares / shares.sum()).round().long()
    pairs = enumerate(zip(wanted, counts, strict=True))
    places = [(np.flatnonzero(labels == index), min(int(n), int(count))) for index, (n, count) in pairs]
    chosen = np.sort(np.concatenate([rng.choice(all_, n, replace=False) for all_, n in places]))
    given = {}

    class Recorder(RandomForestClassifier):
        def fit(self, rows, classes):
            given.update(rows=rows, classes=classes, seed=self.random_state)
            return super().fit(rows, classes)

    monkeypatch.setattr("sklearn.ensemble.RandomForestClassifier", Recorder)
    train_forest(stack, n_pixels=700, seed=5, n_trees=1, neighbourhood=neighbourhood)
    whole = [_features(own, neighbourhood) for own in normalise(stack.s2, stack.s1, stack.statistics())]
    rows = torch.stack(whole).movedim(1, -1).flatten(0, 2)
    np.testing.assert_array_equal(given["rows"], rows[chosen].numpy())
    np.testing.assert_array_equal(given["classes"], labels[chosen])
    assert given["seed"] == rng.integers(2**31)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_probabilities_are_those_of_scikit_learn(stack, n_threads, monkeypatch):
    """Bit for bit, though its checks and copies are left out, and however many threads share the pixels."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    forest, patch = train_forest(stack, n_pixels=900, seed=1, n_trees=7), toy_patch(7)
    channels = normalise(patch.s2, patch.s1, forest.statistics)
    expected = forest.trees.predict_proba(channels.flatten(1).T.numpy())
    expected = (expected / expected.sum(1, keepdims=True)).T.astype(np.float32)
    np.testing.assert_array_equal(predict(forest, patch).reshape(8, -1)[forest.trees.classes_], expected)


def test_training_without_labels_pixels_or_trees_is_refused(stack):
    with pytest.raises(ParameterError, match="0 pixels"):
        train_forest(stack, n_pixels=0, seed=1)
    with pytest.raises(ParameterError, match="0 trees"):
        train_forest(stack, n_trees=0, seed=1)
    empty = toy_stack(1)
    empty.labels[:] = IGNORE
    with pytest.raises(DataError, match="no labelled pixel"):
        train_forest(empty, seed=1)


def test_a_neighbourhood_is_mean_and_deviation_of_a_window():
    """Of each channel, by a loop over one pixel in the middle and one in a corner, where the window is cut."""
    channels = torch.randn((3, 9, 10), generator=torch.Generator().manual_seed(0))
    found = _features(channels, 2)
    assert found.shape == (9, 9, 10)
    assert torch.equal(found[:3], channels)
    for row, col in ((4, 5), (0, 9)):
        window = channels[:, max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3].flatten(1)
        torch.testing.assert_close(found[3:6, row, col], window.mean(1))
        torch.testing.assert_close(found[6:, row, col], window.std(1, correction=0), atol=1e-4, rtol=1e-3)
    assert _features(channels, 0) is channels


def test_dividing_by_the_label_shares_is_done_by_class(stack):
    """Each class's votes by its share, to one again; a power of 0 leaves them."""
    forest = train_forest(stack, n_pixels=500, seed=1, n_trees=5, class_weight_power=0)
    plain, divided = (predict(forest, toy_patch(7), power) for power in (0.0, 1.0))
    share = np.maximum(np.array(forest.label_share), 1e-9)[:, None, None]
    by_hand = plain / share
    np.testing.assert_allclose(divided, by_hand / by_hand.sum(axis=0), rtol=1e-4, atol=1e-7)
    assert sum(forest.label_share) == pytest.approx(1)
