"""Losses of whole cells: against loops over cells, and against what they should become in plain cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import SHARE, WEIGHTS, example, make, matrix

from lcfuse_core.data.legends import IGNORE
from lcfuse_core.models.losses import (
    Bag,
    Batch,
    CellAggregation,
    Knowledge,
    LabelSuperResolution,
    build_loss,
    cross_entropy,
    segments,
)

CELL_LOSSES = ("cell_mean", "cell_forward", "super_resolution", "bag")


def loop_over_cells(logits, batch, judge, weights=WEIGHTS):
    """Brute force: sum of size x weight x judge(probabilities (n, 8), label) over cells and labels, by their sum."""
    p = logits.softmax(1).movedim(1, -1).numpy()
    total = mass = 0.0
    for crop in range(len(logits)):
        for cell in np.unique(batch.cells[crop]):
            for label in np.unique(batch.labels[crop]):
                inside = ((batch.cells[crop] == cell) & (batch.labels[crop] == label)).numpy()
                if label != IGNORE and inside.any():
                    weight = float(weights[label]) * inside.sum()
                    total += weight * judge(p[crop][inside], label)
                    mass += weight
    return total / mass


def test_cell_aggregation_by_a_loop():
    """Mean over the cell, then -log of its label's share, with and without the matrix."""
    logits, batch = example(3)
    plain = loop_over_cells(logits, batch, lambda p, label: -math.log(p.mean(0)[label]))
    assert float(make("cell_mean")(logits, batch)) == pytest.approx(plain)
    forward = loop_over_cells(logits, batch, lambda p, label: -math.log(p.mean(0) @ matrix().numpy()[:, label]))
    assert float(make("cell_forward")(logits, batch)) == pytest.approx(forward)


def test_label_super_resolution_by_a_loop():
    """The normal densities of Malkin et al., worked out cell by cell."""
    logits, batch = example(4)
    posterior = Knowledge(None, matrix(), SHARE).posterior.numpy()

    def judge(p, label):
        value = 0.0
        for k in range(8):
            eta, mu = posterior[label, k], p[:, k].mean()
            rho2 = max(eta * (1 - eta) / 4, 0.01)
            sigma2 = (p[:, k] * (1 - p[:, k])).sum() / len(p) ** 2
            value += (mu - eta) ** 2 / (2 * (sigma2 + rho2)) + 0.5 * math.log((sigma2 + rho2) / rho2)
        return value

    assert float(make("super_resolution")(logits, batch)) == pytest.approx(loop_over_cells(logits, batch, judge))


def test_bag_by_a_loop():
    """Power mean for the label, and a price for what other classes hold beyond their due."""
    logits, batch = example(5)
    posterior = Knowledge(None, matrix(), SHARE).posterior.numpy()

    def judge(p, label):
        value = -math.log((p[:, label] ** 4).mean() ** 0.25)
        for k in range(8):
            if k != label:
                value -= math.log(1 - max(0.0, p[:, k].mean() - posterior[label, k]))
        return value

    assert float(make("bag")(logits, batch)) == pytest.approx(loop_over_cells(logits, batch, judge))


def test_a_cell_of_one_answer_is_judged_like_a_pixel():
    """Where the network says the same all over each cell, aggregation is plain cross-entropy."""
    _, batch = example()
    per_cell = torch.randn((2, 8, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    constant = per_cell[torch.arange(2)[:, None, None], :, batch.cells].movedim(-1, 1)
    expected = cross_entropy(constant, batch.labels, WEIGHTS)
    torch.testing.assert_close(build_loss("cell_mean", WEIGHTS)(constant, batch), expected)
    torch.testing.assert_close(build_loss("cell_forward", WEIGHTS[:8])(constant, batch), expected)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_a_cell_never_costs_more_than_its_pixels(seed):
    """Jensen: minus the logarithm of a mean is at most the mean of minus the logarithms; equal for one answer."""
    logits, batch = example(seed)
    for of_cell, of_pixels in (("cell_mean", "cross_entropy"), ("cell_forward", "forward")):
        assert make(of_cell)(logits, batch) < make(of_pixels)(logits, batch)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_pure_cell_that_is_known_as_such_is_plain_cross_entropy(weights):
    """One label, one answer, labels that are true: aggregation and forward correction are what they correct."""
    answer = torch.randn((1, 8, 1, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    logits, labels = answer.expand(1, 8, 6, 7), torch.full((1, 6, 7), 3, dtype=torch.uint8)
    expected = -float(answer.log_softmax(1)[0, 3, 0, 0])
    for name in ("cross_entropy", "forward", "cell_mean", "cell_forward"):
        value = build_loss(name, None if weights is None else weights[:8])(logits, Batch(labels))
        assert float(value) == pytest.approx(expected)


def test_cells_of_one_pixel_make_plain_cross_entropy():
    """The smallest cell there is."""
    logits, batch = example()
    alone = Batch(batch.labels, torch.arange(30).reshape(1, 5, 6).expand(2, 5, 6))
    torch.testing.assert_close(
        build_loss("cell_mean", WEIGHTS)(logits, alone), cross_entropy(logits, batch.labels, WEIGHTS)
    )


def test_crops_do_not_share_cells():
    """The same number in two crops is two cells: the loss of both is the mean of either's, by known pixels."""
    logits, batch = example(n_ignored=0)
    for name in CELL_LOSSES:
        loss = build_loss(name, None, matrix(), SHARE)
        either = [loss(logits[k : k + 1], Batch(batch.labels[k : k + 1], batch.cells[k : k + 1])) for k in (0, 1)]
        torch.testing.assert_close(loss(logits, batch), sum(either) / 2)


def test_a_cut_cell_counts_by_what_is_left_of_it():
    """Two cells of sizes 5 and 1 in a crop weigh 5 : 1."""
    logits = torch.randn((1, 8, 1, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[[0, 0, 0, 0, 0, 3]]], dtype=torch.uint8)
    cells = torch.tensor([[[0, 0, 0, 0, 0, 1]]])
    loss = build_loss("cell_mean")
    large = loss(logits[..., :5], Batch(labels[..., :5], cells[..., :5]))
    small = loss(logits[..., 5:], Batch(labels[..., 5:], cells[..., 5:]))
    torch.testing.assert_close(loss(logits, Batch(labels, cells)), (5 * large + small) / 6)


def test_without_cell_numbers_a_crop_is_one_cell():
    """What a batch made by hand may leave out."""
    logits, batch = example()
    together = Batch(batch.labels, torch.zeros_like(batch.cells))
    for name in CELL_LOSSES:
        torch.testing.assert_close(make(name)(logits, Batch(batch.labels)), make(name)(logits, together))


def test_aggregation_leaves_the_place_to_the_image():
    """Two half-sure pixels, or one of each kind: the same mean, the same loss; cross-entropy wants the former."""
    labels = torch.zeros(1, 1, 2, dtype=torch.uint8)
    even = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log().reshape(1, 2, 1, 2)
    apart = torch.tensor([[0.999, 0.001], [0.001, 0.999]]).log().reshape(1, 2, 1, 2)
    batch = Batch(labels, torch.zeros(1, 1, 2, dtype=torch.long))
    torch.testing.assert_close(CellAggregation()(even, batch), CellAggregation()(apart, batch))
    assert cross_entropy(apart, labels) > 4 * cross_entropy(even, labels)


def test_a_bag_is_content_with_a_part():
    """One sure pixel in four, the rest of a class that may share the cell, costs less than four vague ones."""
    labels, cells = torch.zeros(1, 1, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, dtype=torch.long)
    posterior = torch.tensor([[0.25, 0.75], [0.75, 0.25]])
    sure = torch.tensor([[0.99, 0.01, 0.01, 0.01], [0.01, 0.99, 0.99, 0.99]]).log().reshape(1, 2, 1, 4)
    vague = torch.full((1, 2, 1, 4), 0.5).log()
    vague[:, 0] = math.log(0.25)
    vague[:, 1] = math.log(0.75)
    batch = Batch(labels, cells)
    assert Bag(posterior)(sure, batch) < Bag(posterior)(vague, batch)


def test_label_super_resolution_is_least_at_the_shares_of_its_label():
    """Sure pixels with 3 of 10 of class 1 cost less than any other number of them, where 30 % are expected."""
    posterior = torch.tensor([[0.7, 0.3], [0.5, 0.5]])
    batch = Batch(torch.zeros(1, 1, 10, dtype=torch.uint8), torch.zeros(1, 1, 10, dtype=torch.long))

    def cost(n):
        right = torch.tensor([0.0] * (10 - n) + [1.0] * n)
        logits = 20 * torch.stack([1 - right, right]).reshape(1, 2, 1, 10)
        return float(LabelSuperResolution(posterior)(logits, batch))

    costs = [cost(n) for n in range(11)]
    assert int(np.argmin(costs)) == 3
    assert costs[3] == pytest.approx(0, abs=1e-3)


def test_segments_hold_every_known_pixel_once():
    """Sizes add up to the known pixels; means of ones are one."""
    logits, batch = example(7)
    found = segments(logits, batch, WEIGHTS)
    assert found.size.sum() == (batch.labels != IGNORE).sum()
    torch.testing.assert_close(found.mean(torch.ones_like(found.p)), torch.ones(len(found.size), 8).double())
    torch.testing.assert_close(found.weight, found.size * WEIGHTS[found.label])
