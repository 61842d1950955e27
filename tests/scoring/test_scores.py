"""Scores: against scikit-learn, by hand, and by what holds for every map."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import DataError, GridError, LegendError, ParameterError
from lcfuse_core.scoring import scores
from lcfuse_core.scoring.scores import class_table, compute_score, confusion, confusion_of_many, score_table, summarise

near_borders, near_small_objects = scores._near_borders, scores._near_small_objects

codes = st.integers(0, 10)
scored = st.sampled_from(SCORED)
sizes = st.integers(1, 200)


@st.composite
def label_pairs(draw, reference=codes, predicted=codes):
    """A reference and a prediction of one random length."""
    size = draw(sizes)
    return tuple(draw(arrays(np.uint8, size, elements=elements)) for elements in (reference, predicted))


@given(label_pairs())
def test_counts_are_those_of_scikit_learn(pair):
    """The matrix is scikit-learn's, without the pixels whose reference is unknown."""
    reference, predicted = pair
    known = reference > 0
    expected = np.zeros((11, 11), int)
    if known.any():
        expected = metrics.confusion_matrix(reference[known], predicted[known], labels=range(11))
    counts = confusion(reference, predicted)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)


@settings(max_examples=40)  # scikit-learn is slow
@given(label_pairs(reference=scored))
def test_scores_are_those_of_scikit_learn(pair):
    """OA, kappa, recall, precision and IoU agree with scikit-learn, whatever is predicted."""
    reference, predicted = pair
    ours = summarise(confusion(reference, predicted))
    present = sorted(set(reference.tolist()))
    by_class = {"labels": present, "average": None, "zero_division": 0}
    recall = metrics.recall_score(reference, predicted, **by_class)
    iou = metrics.jaccard_score(reference, predicted, **by_class)
    precision = metrics.precision_score(reference, predicted, **by_class)
    f1 = metrics.f1_score(reference, predicted, **by_class)
    names = [DFC2020.name_of(code) for code in present]
    assert ours.oa == pytest.approx(metrics.accuracy_score(reference, predicted))
    assert ours.aa == pytest.approx(recall.mean())
    assert ours.miou_8 == pytest.approx(iou.mean())
    assert ours.miou_9 == pytest.approx(iou.sum() / 9)
    assert [ours.recall[name] for name in names] == pytest.approx(recall)
    assert [ours.iou[name] for name in names] == pytest.approx(iou)
    assert [ours.f1[name] for name in names] == pytest.approx(f1)
    assert [np.nan_to_num(ours.precision[name]) for name in names] == pytest.approx(precision)
    if len(set(reference.tolist()) | set(predicted.tolist())) > 1:
        assert ours.kappa == pytest.approx(metrics.cohen_kappa_score(reference, predicted))
    assert (ours.n_pixels, ours.n_present) == (reference.size, len(present))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_scores_of_a_stack_are_those_of_each(seed):
    """For any number of axes before the last two, on empty matrices and on Snow/Ice too."""
    rng = np.random.default_rng(seed)
    counts = np.stack([confusion(*rng.choice((0, 1, 3, 6, 8, 10), (2, size))) for size in (30, 30, 5, 1)])
    summaries = [summarise(one) if one[[1, 6, 10]].any() else None for one in counts]
    for name in ("aa", "oa", "miou_8", "miou_9"):
        expected = [math.nan if one is None else getattr(one, name) for one in summaries]
        np.testing.assert_allclose(compute_score(counts, name), expected)
        np.testing.assert_allclose(compute_score(counts[:, None], name)[:, 0], expected)
    recall = [math.nan if one is None else one.recall["Water"] for one in summaries]
    np.testing.assert_allclose(compute_score(counts, "recall.Water"), recall)
    with pytest.raises(ParameterError, match=r"'recall\.Moon', expected aa, oa"):
        compute_score(counts, "recall.Moon")


def test_scores_by_hand():
    """Six forest, three crops, one water; worked on paper."""
    reference = np.array([1, 1, 1, 1, 1, 1, 6, 6, 6, 10, 0, 0])
    predicted = np.array([1, 1, 1, 6, 6, 0, 6, 6, 1, 10, 1, 3])
    ours = summarise(confusion(reference, predicted))
    # Areas: forest 6 and 4 of 10, crops 3 and 4, water 1 and 1, none 0 and 1.
    assert ours.quantity == pytest.approx((2 + 1 + 0 + 1) / 2 / 10)
    assert ours.precision["Forest"] == 3 / 4  # the unknown pixel does not count against it
    assert ours.iou["Forest"] == 3 / 7
    chance = (6 * 4 + 3 * 4 + 1 * 1) / 100
    assert ours.kappa == pytest.approx((0.6 - chance) / (1 - chance))
    assert (ours.n_pixels, ours.n_present) == (10, 3)


def eight_classes_at(iou):
    """A matrix in which each scored class has this IoU: the rest of its pixels is mapped to nothing."""
    counts = np.zeros((11, 11), int)
    counts[list(SCORED), list(SCORED)] = round(10_000 * iou)
    counts[list(SCORED), 0] = 10_000 - round(10_000 * iou)
    return counts


def test_official_baseline_in_both_conventions():
    """31.43 % over nine classes (official baseline's repository) is 35.4 % over the eight present."""
    ours = summarise(eight_classes_at(0.3536))
    assert 100 * ours.miou_9 == pytest.approx(31.43, abs=0.005)
    assert 100 * ours.miou_8 == pytest.approx(35.4, abs=0.05)
    assert ours.n_present == 8


def test_snow_enters_only_the_nine_class_score():
    """Snow pixels in a reference count only in mIoU over nine."""
    counts = eight_classes_at(0.5)
    with_snow = counts.copy()
    with_snow[8, 8] = 100
    assert summarise(with_snow).miou_8 == summarise(counts).miou_8
    assert summarise(with_snow).oa == summarise(counts).oa
    assert summarise(with_snow).miou_9 == pytest.approx((8 * 0.5 + 1) / 9)


def test_savanna_is_an_error_as_prediction_and_left_out_as_reference():
    """The reference has no Savanna; MODIS labels used as reference do."""
    ours = summarise(confusion(np.array([1, 1, 3, 3]), np.array([1, 3, 3, 1])))
    assert (ours.oa, ours.aa, ours.precision["Forest"], ours.n_pixels) == (0.5, 0.5, 1, 2)


def test_absent_classes_are_nan_by_class_only():
    """Water is neither in the reference nor predicted, crops are only predicted."""
    ours = summarise(confusion(np.array([1, 1]), np.array([1, 6])))
    assert math.isnan(ours.recall["Water"])
    assert math.isnan(ours.precision["Water"])
    assert math.isnan(ours.iou["Croplands"])
    assert math.isnan(ours.f1["Croplands"])
    assert ours.precision["Croplands"] == 0
    assert (ours.aa, ours.miou_8) == (0.5, 0.5)


def test_counts_of_patches_or_blocks_add_up_to_those_of_the_whole(monkeypatch):
    """Arrays may be strided and have any number of axes; they are not changed."""
    reference, predicted = np.random.default_rng(0).integers(0, 11, (2, 5, 16, 31)).astype(np.uint8)[..., ::2]
    before = reference.copy()
    whole = confusion(reference, predicted)
    assert whole.sum() == (reference > 0).sum()
    np.testing.assert_array_equal(confusion_of_many(zip(reference, predicted, strict=True)), whole)
    monkeypatch.setattr(scores, "_BLOCK_PX", 7)
    np.testing.assert_array_equal(confusion(reference, predicted), whole)
    np.testing.assert_array_equal(reference, before)


def test_an_empty_patch_adds_nothing_and_has_no_score():
    """No pixel at all, or none that is known."""
    empty = np.zeros((0, 256), np.uint8)
    assert confusion(empty, empty).sum() == 0
    assert confusion(np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)).sum() == 0
    with pytest.raises(DataError, match="no pixel with a scored"):
        summarise(confusion(empty, empty))


@pytest.mark.parametrize("code", [11, 16, 27, 255])
def test_a_foreign_code_is_refused_however_it_would_wrap_around(code):
    """Pairs are packed into a byte: a code that does not fit must never pass for another."""
    ones = np.ones(2, np.uint8)
    for pair in ((np.array([1, code], np.uint8), ones), (ones, np.array([1, code]))):
        with pytest.raises(LegendError, match=f"found codes 1..{code}"):
            confusion(*pair)


def test_bad_input_is_refused():
    """Two shapes, foreign codes, fractions, and nothing to evaluate."""
    ones = np.ones((4, 4), np.uint8)
    with pytest.raises(GridError, match=r"reference \(4, 4\), predicted \(4, 3\)"):
        confusion(ones, ones[:, :3])
    with pytest.raises(LegendError, match=r"reference: found codes -1\.\.-1"):
        confusion(-ones.astype(np.int8), ones)
    with pytest.raises(LegendError, match="float64 values"):
        confusion(ones, ones * 0.5)
    with pytest.raises(GridError, match=r"\(8, 8\)"):
        summarise(np.eye(8, dtype=int))


def test_tables_for_the_pages():
    """Per cent, a row a map; a class that is absent stays NaN."""
    half = summarise(confusion(np.array([1, 1, 10, 10]), np.array([1, 6, 10, 10])))
    table = score_table({"half": half, "again": half})
    assert table.index.tolist() == ["half", "again"]
    assert table.columns.tolist() == ["AA %", "OA %", "mIoU(8) %", "mIoU(9) %", "kappa"]
    assert table.loc["half"].tolist() == [75.0, 75.0, 75.0, 16.7, 0.6]
    recall = class_table({"half": half})["half"]
    assert recall["Forest"] == 50.0
    assert recall["Water"] == 100.0
    assert math.isnan(recall["Barren"])


maps = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from((0, 1, 6, 10)))


def others_within(labels, radius):
    """Brute force: for each pixel, whether another known class lies within the square around it."""
    rows, cols = labels.shape
    found = np.zeros(labels.shape, bool)
    for row, col in product(range(rows), range(cols)):
        window = labels[max(0, row - radius) : row + radius + 1, max(0, col - radius) : col + radius + 1]
        found[row, col] = labels[row, col] > 0 and bool(set(window[window > 0].tolist()) - {labels[row, col]})
    return found


@given(maps)
def test_pixels_near_borders_are_those_of_a_loop(labels):
    np.testing.assert_array_equal(near_borders(labels), others_within(labels, scores._BORDER_PX))


def test_small_objects_are_those_smaller_than_a_cell_and_inside_the_patch():
    """A pond of 4 x 4 pixels counts with its surroundings of 3 pixels; a lake and a pond at the edge do not."""
    reference = np.ones((120, 120), np.uint8)
    reference[10:14, 20:24] = 10
    reference[40:100, 40:100] = 10  # 3,600 pixels, more than a cell
    reference[60:64, 116:] = 6
    expected = np.zeros(reference.shape, bool)
    expected[7:17, 17:27] = True
    np.testing.assert_array_equal(near_small_objects(reference), expected)
    reference[40:87, 40:85], reference[87:100], reference[:, 85:100] = 10, 1, 1  # now 47 x 45, less than a cell
    assert near_small_objects(reference)[40, 40]
    assert not near_small_objects(np.zeros((5, 5), np.uint8)).any()
