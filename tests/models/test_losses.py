"""Losses: a battery over all of them, and each pixel loss against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX
from lcfuse_core.errors import DataError, GridError, ParameterError
from lcfuse_core.models.losses import (
    CELL_LOSSES,
    LOSSES,
    MIXED_LABEL_LOSSES,
    Batch,
    LabelModel,
    build_loss,
    class_weights,
    cross_entropy,
)

WEIGHTS = torch.tensor([0.2, 0.5, 0.8, 1.0, 1.2, 1.3, 1.4, 1.6, 0.9])
"""Of eight classes and Savanna."""

SHARE = torch.tensor([30, 4, 20, 3, 25, 6, 4, 9, 12.0])


def matrix(seed=0):
    """A transition matrix (8, 9) that errs one time in three, differently for every pair of classes."""
    errors = np.random.default_rng(seed).uniform(0.1, 1, (8, 9)) * (1 - np.eye(8, 9))
    return torch.from_numpy(0.67 * np.eye(8, 9) + 0.33 * errors / errors.sum(axis=1, keepdims=True))


def make(name, weights=WEIGHTS, order=None):
    """The loss of that name, with all that is known of the labels; with *order*, in another order of the classes."""
    order = torch.arange(8) if order is None else order
    coarse = torch.cat([order, torch.tensor([SAVANNA_INDEX])])
    given_weights = None if weights is None else weights[coarse]
    return build_loss(name, given_weights, matrix()[order][:, coarse], SHARE[coarse])


def example(seed=0, n_ignored=20, dtype=torch.float64):
    """Logits (2, 8, 5, 6) and a batch of labels (2, 5, 6), *n_ignored* of them unknown, in four cells a crop."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, 8, 5, 6), generator=rng, dtype=dtype)
    cells = torch.arange(5)[:, None] // 3 * 2 + torch.arange(6) // 3
    cells = cells.expand(2, 5, 6).contiguous()
    labels = torch.randint(0, 8, (2, 4), generator=rng)
    labels = torch.stack([of[cell] for of, cell in zip(labels, cells, strict=True)]).to(torch.uint8)
    labels.view(-1)[torch.randperm(60, generator=rng)[:n_ignored]] = IGNORE
    return logits, Batch(labels, cells)


@pytest.fixture(params=LOSSES)
def name(request):
    """Each registered loss."""
    return request.param


def test_loss_is_one_finite_positive_number(name):
    """For random logits, with and without class weights; the inputs stay as they were."""
    logits, batch = example()
    before = logits.clone(), batch.labels.clone()
    for weights in (None, WEIGHTS):
        value = make(name, weights)(logits, batch)
        assert value.shape == ()
        assert 0 < value < math.inf
    assert torch.equal(logits, before[0])
    assert torch.equal(batch.labels, before[1])


def test_unknown_pixels_have_no_weight(name):
    """Their gradient is exactly zero, their logits are free, and the known ones' gradient is not zero."""
    logits, batch = example()
    loss = make(name)
    logits.requires_grad_()
    value = loss(logits, batch)
    value.backward()
    unknown = (batch.labels == IGNORE)[:, None].expand_as(logits)
    assert unknown.any()
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).all()
    elsewhere = torch.where(unknown, 50 * torch.randn_like(logits), logits)
    assert loss(elsewhere, batch) == value


def test_no_known_pixel_is_no_loss(name):
    """Zero with a gradient of zero, not NaN: a crop may lie wholly in Snow/Ice."""
    logits, batch = example(n_ignored=60)
    logits.requires_grad_()
    value = make(name)(logits, batch)
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


def test_no_prediction_costs_less_than_the_truth(name):
    """Eight cells, one of each class, with true labels: every other prediction costs more."""
    labels = torch.arange(8, dtype=torch.uint8).repeat_interleave(4).reshape(1, 4, 8)
    batch = Batch(labels, labels.long())
    truth = 20 * F.one_hot(labels.long(), 8).movedim(-1, 1).double()
    loss = build_loss(name)
    least = float(loss(truth, batch))
    rng = torch.Generator().manual_seed(0)
    for scale in (0.3, 1, 3, 10):  # from uncertain to confident, from far off to near
        for share in (0, 0.5, 0.9):
            other = scale * torch.randn(truth.shape, generator=rng, dtype=torch.float64)
            assert float(loss(share * truth + (1 - share) * other, batch)) > least


@settings(max_examples=8)
@given(order=st.permutations(range(8)), seed=st.integers(0, 1000))
def test_naming_the_classes_otherwise_changes_nothing(order, seed):
    """Permuting classes in logits, labels, weights and matrix permutes the gradient and keeps the loss."""
    logits, batch = example(seed)
    order = torch.tensor(order)
    place = torch.cat([order.argsort(), torch.full((248,), IGNORE)])  # new index of each label
    logits.requires_grad_()
    renamed = logits.detach()[:, order].requires_grad_()
    again_batch = Batch(place[batch.labels.long()].to(torch.uint8), batch.cells)
    for name in LOSSES:
        value = make(name)(logits, batch)
        again = make(name, order=order)(renamed, again_batch)
        torch.testing.assert_close(value, again)
        (gradient,) = torch.autograd.grad(value, logits)
        (gradient_again,) = torch.autograd.grad(again, renamed)
        torch.testing.assert_close(gradient[:, order], gradient_again)


@given(seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_numbers_of_cells_and_order_of_crops_change_nothing(seed):
    """Other cell numbers, and the crops the other way round, keep every loss."""
    logits, batch = example(seed)
    numbers = torch.from_numpy(np.random.default_rng(seed).permutation(50)[:4])
    again = Batch(batch.labels.flip(0), numbers[batch.cells].flip(0))
    for name in LOSSES:
        torch.testing.assert_close(make(name)(logits, batch), make(name)(logits.flip(0), again))


def test_savanna_has_a_gradient_in_losses_of_mixed_labels(name):
    """With a matrix of nine coarse labels a Savanna pixel has a gradient; to the others it is an unknown one."""
    logits, batch = example(n_ignored=0)
    batch.labels[:, 0, 0] = SAVANNA_INDEX
    logits.requires_grad_()
    make(name)(logits, batch).backward()
    has_gradient = (logits.grad[:, :, 0, 0] != 0).all()
    assert has_gradient == (name in MIXED_LABEL_LOSSES)


def test_loss_of_bfloat16_logits_is_computed_in_float32(name):
    """Half-precision logits give the loss of the same numbers in float32."""
    logits, batch = example(dtype=torch.float32)
    half = logits.bfloat16()
    value = make(name)(half, batch)
    assert value.dtype == torch.float32
    assert value == make(name)(half.float(), batch)


def test_loss_refuses_labels_of_another_size(name):
    """Sizes that differ are named, not broadcast."""
    logits, batch = example()
    with pytest.raises(GridError, match=r"labels \(2, 5, 5\)"):
        make(name)(logits, Batch(batch.labels[..., :5], batch.cells))


@pytest.mark.parametrize("weights", [None, WEIGHTS[:8].double()])
def test_cross_entropy_is_torchs(weights):
    """The same as torch's weighted mean wherever that is defined."""
    logits, batch = example()
    labels = batch.labels
    expected = F.cross_entropy(logits, labels.long(), weights, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, labels, weights), expected)


def test_a_class_without_weight_is_no_loss():
    """Where torch divides zero by zero."""
    logits, labels = torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8)
    assert cross_entropy(logits, labels, torch.tensor([0.0, 1.0])) == 0


def one_pixel(*p):
    """Logits (1, K, 1, 1) of these probabilities, and a label of class 0 for it."""
    return torch.tensor(p).log().reshape(1, -1, 1, 1), Batch(torch.zeros(1, 1, 1, dtype=torch.uint8))


def test_robust_losses_by_hand():
    """One pixel, p(label) = 1/4, each formula worked out."""
    logits, batch = one_pixel(0.25, 0.75)
    values = {name: float(build_loss(name)(logits, batch)) for name in ("generalised", "symmetric", "bootstrapping")}
    own = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert values["generalised"] == pytest.approx((1 - 0.25**0.7) / 0.7)
    assert values["symmetric"] == pytest.approx(0.1 * math.log(4) + 4 * 0.75)
    assert values["bootstrapping"] == pytest.approx(0.95 * math.log(4) + 0.05 * own)


def test_forward_correction_by_hand():
    """P = (1/4, 3/4), and MODIS says class 0 in 9 of 10 of class 0 and 2 of 10 of class 1: -log 0.375."""
    logits, batch = one_pixel(0.25, 0.75)
    loss = build_loss("forward", transition=torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    assert float(loss(logits, batch)) == pytest.approx(-math.log(0.25 * 0.9 + 0.75 * 0.2))


@pytest.mark.parametrize("direction", ["qr", "rq"])
def test_implicit_posterior_by_a_loop(direction):
    """Pixel by pixel and class by class, as Rolf et al. write it."""
    logits, batch = example()
    known = LabelModel(None, matrix(), SHARE)
    prior = (known.posterior.numpy() + 1e-4) / (1 + 8e-4)
    labels = batch.labels.numpy().reshape(-1)
    q = logits.softmax(1).movedim(1, -1).reshape(-1, 8).numpy()
    places = np.flatnonzero(labels != IGNORE)
    mean = sum(q[i] for i in places) / len(places)
    total = 0.0
    for i in places:
        r = prior[labels[i]] * q[i] / mean
        r /= r.sum()
        for k in range(8):
            if direction == "rq":
                total += r[k] * math.log(r[k] / q[i, k]) / len(places)
            else:
                total -= q[i, k] * math.log(prior[labels[i], k]) / len(places)
    if direction == "qr":
        total += sum(m * math.log(m) for m in mean) + math.log(8)
    assert float(build_loss(f"posterior_{direction}", None, matrix(), SHARE)(logits, batch)) == pytest.approx(total)


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


def test_class_weights_without_labels_are_refused():
    """No labelled pixel, or a power that means nothing, is an error that says so."""
    with pytest.raises(DataError, match="no labelled pixel"):
        class_weights(torch.zeros(8, dtype=torch.long))
    with pytest.raises(ParameterError, match=r"power 1\.5"):
        class_weights(torch.ones(8), 1.5)


def test_a_loss_is_chosen_by_a_known_name():
    """The error lists the names."""
    with pytest.raises(ParameterError, match="expected one of cross_entropy"):
        build_loss("crossentropy")


# Cell-level losses -------------------------------------------------------------------------------


def loop_over_cells(logits, batch, cost_of, weights=WEIGHTS):
    """Brute force: sum of size x weight x cost_of(probabilities (n, 8), label) over cells and labels, by their sum."""
    p = logits.softmax(1).movedim(1, -1).numpy()
    total = mass = 0.0
    for crop in range(len(logits)):
        for cell in np.unique(batch.cells[crop]):
            for label in np.unique(batch.labels[crop]):
                inside = ((batch.cells[crop] == cell) & (batch.labels[crop] == label)).numpy()
                if label != IGNORE and inside.any():
                    weight = float(weights[label]) * inside.sum()
                    total += weight * cost_of(p[crop][inside], label)
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
    posterior = LabelModel(None, matrix(), SHARE).posterior.numpy()

    def cost_of(p, label):
        value = 0.0
        for k in range(8):
            eta, mu = posterior[label, k], p[:, k].mean()
            rho2 = max(eta * (1 - eta) / 4, 0.01)
            sigma2 = (p[:, k] * (1 - p[:, k])).sum() / len(p) ** 2
            value += (mu - eta) ** 2 / (2 * (sigma2 + rho2)) + 0.5 * math.log((sigma2 + rho2) / rho2)
        return value

    assert float(make("super_resolution")(logits, batch)) == pytest.approx(loop_over_cells(logits, batch, cost_of))


def test_bag_by_a_loop():
    """Power mean for the label, and a price for what other classes hold beyond their due."""
    logits, batch = example(5)
    posterior = LabelModel(None, matrix(), SHARE).posterior.numpy()

    def cost_of(p, label):
        value = -math.log((p[:, label] ** 4).mean() ** 0.25)
        for k in range(8):
            if k != label:
                value -= math.log(1 - max(0.0, p[:, k].mean() - posterior[label, k]))
        return value

    assert float(make("bag")(logits, batch)) == pytest.approx(loop_over_cells(logits, batch, cost_of))


def test_only_cell_level_losses_use_cells_and_without_them_a_crop_is_one(name):
    """The loop leaves them out for the pixel-level losses, and a batch made by hand may."""
    logits, batch = example()
    loss, without = make(name), Batch(batch.labels)
    torch.testing.assert_close(loss(logits, without), loss(logits, Batch(batch.labels, torch.zeros_like(batch.cells))))
    assert (float(loss(logits, without)) == float(loss(logits, batch))) == (name not in CELL_LOSSES)


def test_loss_has_the_gradient_that_differences_give(name):
    """Analytic against numerical derivatives, in double precision."""
    logits, batch = example()
    batch = Batch(batch.labels[..., :4], batch.cells[..., :4])
    loss = make(name)
    assert torch.autograd.gradcheck(lambda z: loss(z, batch), logits[..., :4].requires_grad_())


@pytest.mark.parametrize("name", ["forward", "cell_forward"])
def test_forward_correction_is_least_at_the_truth(name):
    """
    Many pixels of one image value, labelled as the matrix says: the truth, and not the labels' shares, costs least.

    Found by descent from equal probabilities, for a truth of 70 and 30 per cent; so, too, in cells of four pixels.
    """
    known = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    truth = torch.tensor([0.7, 0.3], dtype=torch.float64)
    share = truth @ known  # 0.68, 0.32
    labels = torch.tensor([0] * 68 + [1] * 32, dtype=torch.uint8).reshape(1, 10, 10)
    cells = torch.arange(100).reshape(1, 10, 10) // 4
    assert share.tolist() == pytest.approx([0.68, 0.32])
    logits = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = build_loss(name, transition=known)(logits.expand(1, 2, 10, 10), Batch(labels, cells))
        value.backward()
        return value

    optimiser.step(closure)
    assert logits.softmax(1).flatten().tolist() == pytest.approx(truth.tolist(), abs=1e-3)
