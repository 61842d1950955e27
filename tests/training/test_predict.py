"""Predictions: probabilities, classes, precision, and test-time augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import toy_patch, toy_stack

from lcfuse_core.data.legends import dfc_to_index, igbp_to_dfc
from lcfuse_core.data.source import normalise
from lcfuse_core.errors import DataError
from lcfuse_core.training.loop import train
from lcfuse_core.training.plan import TrainPlan
from lcfuse_core.training.predict import (
    classify,
    compute_dtype,
    evaluate,
    logits,
    loss_scaler,
    predict,
    probabilities,
    tta_mean,
)


@pytest.fixture(scope="module")
def learnt():
    """A small FCN, trained on toy patches."""
    plan = TrainPlan(width=8, crop=32, batch=8, steps=60, learning_rate=0.02, device="cpu")
    return train(toy_stack(), plan, progress=False)


def test_probabilities_are_probabilities(learnt):
    """Of a patch or of its arrays, the same; they sum to one; the class is the largest of them."""
    patch = toy_patch(50, size=40)
    p = predict(learnt, patch)
    assert (p.shape, p.dtype) == ((8, 40, 40), np.float32)
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(p, predict(learnt, (patch.s2, patch.s1)))
    np.testing.assert_array_equal(dfc_to_index(classify(learnt, patch)), p.argmax(axis=0))


@pytest.mark.parametrize(
    ("device", "able", "dtype"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
    ],
)
def test_the_precision_is_that_of_the_hardware(monkeypatch, device, able, dtype):
    """A T4 has no bfloat16: float16, for which the loss is scaled. A choice in the plan is kept."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    assert compute_dtype("auto", torch.device(device)) is dtype
    assert compute_dtype("float32", torch.device(device)) is torch.float32
    if device == "cpu":
        assert [loss_scaler(name, torch.device(device)).is_enabled() for name in ("float16", "auto")] == [True, False]


def test_bfloat16_changes_little(learnt):
    """Both precisions agree on the class of nearly every pixel, and to a few hundredths of probability."""
    patch = toy_patch(60)
    full, half = (
        predict(replace(learnt, plan=replace(learnt.plan, precision=name)), patch) for name in ("float32", "bfloat16")
    )
    assert 0 < np.abs(full - half).max() < 0.2
    assert np.abs(full - half).mean() < 0.01
    assert (full.argmax(axis=0) == half.argmax(axis=0)).mean() > 0.98


def test_evaluation_counts_pixels(learnt):
    """Agreement with the labels of a stack is that of its maps; ignored pixels do not count."""
    stack = toy_stack(2)
    stack.labels[1] = 255
    scores = evaluate(learnt, stack)
    right = classify(learnt, toy_patch(0)) == igbp_to_dfc(toy_patch(0).lc[0])
    assert scores.n_pixels == 64 * 64
    assert scores.oa == pytest.approx(right.mean())


def test_nan_in_an_image_is_refused(learnt):
    """A class is not made up for a pixel without backscatter."""
    patch = toy_patch(80)
    s1 = patch.s1.copy()
    s1[0, 5, 5] = np.nan
    with pytest.raises(DataError, match="NaN probabilities"):
        classify(learnt, (patch.s2, s1))


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_augmentation_of_a_network_is_that_of_any_method(learnt, n):
    """The mean over the turned images, by both ways; an image that is not square is only flipped."""
    square = toy_patch(3, size=40)
    wide = type(square)("wide", square.s1[:, :32], square.s2[:, :32])
    for patch in (square, wide):
        by_patch = tta_mean(lambda p: predict(learnt, p), patch, n)
        s2, s1 = torch.from_numpy(patch.s2), torch.from_numpy(patch.s1)
        turned = logits(learnt, normalise(s2, s1, learnt.statistics)[None], n)
        np.testing.assert_allclose(probabilities(turned), by_patch, atol=1e-6)
