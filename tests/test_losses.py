"""Losses: a battery over all of them, and each against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lcfuse_core.errors import DataError, GridError, ParameterError
from lcfuse_core.legends import IGNORE
from lcfuse_core.losses import LOSSES, Batch, build_loss, class_weights, cross_entropy

WEIGHTS = torch.tensor([0.2, 0.5, 0.8, 1.0, 1.2, 1.3, 1.4, 1.6])


def example(seed=0, n_ignored=20, dtype=torch.float64):
    """Logits (2, 8, 5, 6) and labels (2, 5, 6) of which *n_ignored* pixels are unknown."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, 8, 5, 6), generator=rng, dtype=dtype)
    labels = torch.randint(0, 8, (2, 5, 6), generator=rng).to(torch.uint8)
    labels.view(-1)[torch.randperm(60, generator=rng)[:n_ignored]] = IGNORE
    return logits, labels


@pytest.fixture(params=LOSSES)
def name(request):
    """Each registered loss."""
    return request.param


def test_loss_is_one_finite_positive_number(name):
    """For random logits, with and without class weights; the inputs stay as they were."""
    logits, labels = example()
    before = logits.clone(), labels.clone()
    for weights in (None, WEIGHTS):
        value = build_loss(name, weights)(logits, Batch(labels))
        assert value.shape == ()
        assert 0 < value < math.inf
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


def test_loss_has_the_gradient_that_differences_give(name):
    """Analytic against numerical derivatives, in double precision."""
    logits, labels = example()
    loss = build_loss(name, WEIGHTS)
    logits, labels = logits[..., :3].requires_grad_(), labels[..., :3]
    assert torch.autograd.gradcheck(lambda z: loss(z, Batch(labels)), logits)


def test_unknown_pixels_weigh_nothing(name):
    """Their gradient is exactly zero, their logits are free, and the known ones' gradient is not zero."""
    logits, labels = example()
    loss = build_loss(name, WEIGHTS)
    logits.requires_grad_()
    value = loss(logits, Batch(labels))
    value.backward()
    unknown = (labels == IGNORE)[:, None].expand_as(logits)
    assert unknown.any()
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).all()
    elsewhere = torch.where(unknown, 50 * torch.randn_like(logits), logits)
    assert loss(elsewhere, Batch(labels)) == value


def test_no_known_pixel_is_no_loss(name):
    """Zero with a gradient of zero, not NaN: a crop may lie wholly in Savanna."""
    logits, labels = example(n_ignored=60)
    logits.requires_grad_()
    value = build_loss(name, WEIGHTS)(logits, Batch(labels))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


def test_a_right_answer_costs_less_than_a_wrong_one(name):
    """Sure and right < undecided < sure and wrong."""
    _, labels = example(n_ignored=0)
    right = F.one_hot(labels.long(), 8).permute(0, 3, 1, 2).double()
    loss = build_loss(name, WEIGHTS)
    values = [float(loss(scale * right, Batch(labels))) for scale in (9, 0, -9)]
    assert values == sorted(values)
    assert values[0] < 0.01


@settings(deadline=None)
@given(order=st.permutations(range(8)), seed=st.integers(0, 1000))
def test_naming_the_classes_otherwise_changes_nothing(order, seed):
    """Permuting classes in logits, labels and weights permutes the gradient and keeps the loss."""
    logits, labels = example(seed)
    order = torch.tensor(order)
    place = torch.cat([order.argsort(), torch.full((248,), IGNORE)])  # new index of each label
    logits.requires_grad_()
    renamed = logits.detach()[:, order].requires_grad_()
    for name in LOSSES:
        value = build_loss(name, WEIGHTS)(logits, Batch(labels))
        again = build_loss(name, WEIGHTS[order])(renamed, Batch(place[labels.long()].to(torch.uint8)))
        torch.testing.assert_close(value, again)
        (gradient,) = torch.autograd.grad(value, logits)
        (gradient_again,) = torch.autograd.grad(again, renamed)
        torch.testing.assert_close(gradient[:, order], gradient_again)


def test_loss_of_bfloat16_logits_is_computed_in_float32(name):
    """Half-precision logits give the loss of the same numbers in float32."""
    logits, labels = example(dtype=torch.float32)
    half = logits.bfloat16()
    value = build_loss(name)(half, Batch(labels))
    assert value.dtype == torch.float32
    assert value == build_loss(name)(half.float(), Batch(labels))


def test_loss_refuses_labels_of_another_size(name):
    """Sizes that differ are named, not broadcast."""
    logits, labels = example()
    with pytest.raises(GridError, match=r"labels \(2, 5, 5\)"):
        build_loss(name)(logits, Batch(labels[..., :5]))


def test_cross_entropy_by_hand():
    """Two pixels, p = 3/4 and 1/4, weights 1 and 3: (log 4/3 + 3 log 4) / 4."""
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]]).T.reshape(1, 2, 1, 2)
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    value = cross_entropy(logits, labels, torch.tensor([1.0, 3.0]))
    assert float(value) == pytest.approx((math.log(4 / 3) + 3 * math.log(4)) / 4)


@pytest.mark.parametrize("weights", [None, WEIGHTS.double()])
def test_cross_entropy_is_torchs(weights):
    """The same as torch's weighted mean wherever that is defined."""
    logits, labels = example()
    expected = F.cross_entropy(logits, labels.long(), weights, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, labels, weights), expected)


def test_a_class_without_weight_is_no_loss():
    """Where torch divides zero by zero."""
    logits, labels = torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8)
    assert cross_entropy(logits, labels, torch.tensor([0.0, 1.0])) == 0


@given(
    counts=st.lists(st.integers(0, 10**9), min_size=8, max_size=8).filter(any),
    power=st.floats(0, 1),
    scale=st.integers(2, 1000),
)
def test_class_weights_keep_their_promises(counts, power, scale):
    """Mean one over present classes, zero for absent ones, rarer is heavier, only frequencies matter."""
    counts = torch.tensor(counts)
    weights = class_weights(counts, power)
    present = counts > 0
    assert weights.dtype == torch.float32
    assert float(weights[present].mean()) == pytest.approx(1, rel=1e-5)
    assert (weights[~present] == 0).all()
    by_count = weights[present][counts[present].argsort()]
    assert (by_count.diff() <= 1e-6).all()
    torch.testing.assert_close(class_weights(scale * counts, power), weights)


def test_class_weights_at_the_ends_of_the_power():
    """0: all alike. 1: every class has the same total weight."""
    counts = torch.tensor([100, 400, 0])
    assert class_weights(counts, 0).tolist() == [1, 1, 0]
    totals = class_weights(counts, 1) * counts
    assert totals[0] == totals[1] > 0


def test_class_weights_want_labels():
    """No labelled pixel, or a power that means nothing, is an error that says so."""
    with pytest.raises(DataError, match="no labelled pixel"):
        class_weights(torch.zeros(8, dtype=torch.long))
    with pytest.raises(ParameterError, match=r"power 1\.5"):
        class_weights(torch.ones(8), 1.5)


def test_a_loss_is_chosen_by_a_known_name():
    """A slip of the pen is answered with the list of names."""
    with pytest.raises(ParameterError, match="expected one of cross_entropy"):
        build_loss("crossentropy")
