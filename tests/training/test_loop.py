"""The training loop: it learns, twice the same, and stops in good order when it cannot go on."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import toy_patch, toy_stack

from lcfuse_core.data.legends import dfc_to_index, igbp_to_dfc
from lcfuse_core.data.source import PatchStack, channel_statistics
from lcfuse_core.errors import DataError, ParameterError, TrainingError
from lcfuse_core.models import transition
from lcfuse_core.models.losses import LOSSES
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.training import loop
from lcfuse_core.training.loop import (
    TrainPlan,
    batches,
    choose_device,
    classify,
    evaluate,
    learning_rate,
    load_checkpoint,
    predict,
    train,
)

TINY = TrainPlan(width=4, crop=32, batch=4, steps=6, report_every=2, device="cpu")


@pytest.fixture(scope="module")
def stack():
    """Four toy patches of 64 x 64."""
    return toy_stack()


@pytest.fixture(scope="module")
def learnt(stack):
    """A small FCN that has learnt the toy world."""
    return train(stack, replace(TINY, width=8, batch=8, steps=60, learning_rate=0.02), progress=False)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_learns_a_toy_world(network, stack):
    """Labels that can be read off the pixels are learnt, and read off a patch never seen."""
    width = NETWORKS[network].default_width // 2
    plan = replace(TINY, network=network, width=width, batch=8, steps=60, learning_rate=0.01)
    run = train(stack, plan, progress=False)
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < 0.5 * losses[0]
    unseen = toy_patch(1000)
    right = classify(run, unseen) == igbp_to_dfc(unseen.lc[0])
    assert right.mean() > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_plan_gives_the_same_bits(precision, stack):
    """Weights and losses of two trainings are equal, whatever random numbers were drawn between."""
    plan = replace(TINY, precision=precision)
    first = train(stack, plan, progress=False)
    torch.manual_seed(int(torch.randint(1000, ())))
    second = train(stack, plan, progress=False)
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]
    state = second.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.network.state_dict().items())
    other = train(stack, replace(plan, seed=1), progress=False)
    assert not torch.equal(other.network.classify.weight, first.network.classify.weight)


def test_training_leaves_the_callers_random_numbers_alone(stack):
    """The next number from torch's global generator is the one it would have been."""
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    train(stack, replace(TINY, steps=1), progress=False)
    assert torch.rand(()) == expected


def test_validation_is_only_looked_at(stack):
    """Its agreement stands in the history; weights are those of a training without."""
    plain = train(stack, TINY, progress=False)
    watched = train(stack, TINY, validation=toy_stack(1), progress=False)
    assert [row["aa"] for row in plain.history] == [None] * 3
    assert watched.history[-1]["aa"] == evaluate(watched, toy_stack(1)).aa
    assert torch.equal(plain.network.classify.weight, watched.network.classify.weight)


def test_history_has_a_line_per_report(stack):
    """Every `report_every` steps and at the end, with the rate of that step."""
    run = train(stack, replace(TINY, steps=5), progress=False)
    assert [row["step"] for row in run.history] == [2, 4, 5]
    assert run.history[1]["learning_rate"] == learning_rate(3, run.plan)
    assert not run.network.training


def test_a_run_folder_holds_the_last_checkpoint(stack, tmp_path):
    """It predicts the same as the run in memory."""
    run = train(stack, TINY, tmp_path / "run", progress=False)
    again = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert again.history == run.history
    np.testing.assert_array_equal(predict(again, toy_patch(7)), predict(run, toy_patch(7)))


def test_nan_stops_training_and_keeps_the_last_checkpoint(stack, tmp_path, monkeypatch):
    """A loss that becomes NaN at step 5: the error names the checkpoint of step 4, and that is whole."""
    calls = []

    def build_poisoned(name, *known):
        loss = build(name, *known)
        return lambda logits, batch: loss(logits, batch) * (calls.append(0) or (1, np.nan)[len(calls) == 5])

    build = loop.build_loss
    monkeypatch.setattr(loop, "build_loss", build_poisoned)
    with pytest.raises(TrainingError, match=r"found loss nan.*That of step 4 is kept in .*last\.safetensors"):
        train(stack, TINY, tmp_path, progress=False)
    kept = load_checkpoint(tmp_path / "last.safetensors")
    assert kept.history[-1]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in kept.network.state_dict().values())


def test_nan_in_an_image_stops_training_at_once(tmp_path):
    """A stack with a NaN in S1, made by other means than read_patch, does not train."""
    stack = toy_stack(1, size=32)
    statistics = channel_statistics(stack)
    stack.s1[0, 0, 3, 3] = torch.nan
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PatchStack, "statistics", lambda stack: statistics)
        with pytest.raises(TrainingError, match="No checkpoint was written yet"):
            train(stack, TINY, tmp_path, progress=False)
    assert not (tmp_path / "last.safetensors").exists()


@given(
    steps=st.integers(1, 2000),
    warm_up=st.floats(0, 1),
    highest=st.floats(1e-6, 1),
)
def test_learning_rate_rises_and_falls(steps, warm_up, highest):
    """Always positive and never above the highest; no step of the fall goes up, none of the rise down."""
    plan = TrainPlan(steps=steps, warm_up=warm_up, learning_rate=highest)
    rates = np.array([learning_rate(step, plan) for step in range(steps)])
    top = int(rates.argmax())
    assert rates.min() > 0
    assert rates.max() <= highest * (1 + 1e-12)
    assert (np.diff(rates[: top + 1]) >= 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert rates[top] == pytest.approx(highest)


def test_batches_are_normalised_crops_with_their_labels(stack):
    """Drawn from the plan's seed: the same again, others for another seed; only the sensors of the plan."""
    statistics = channel_statistics(stack)
    images, batch = next(batches(stack, TINY, statistics))
    assert (images.shape, images.dtype) == ((4, 15, 32, 32), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, 32, 32), torch.uint8)
    assert abs(float(images.mean())) < 0.3
    again, _ = next(batches(stack, TINY, statistics))
    other, _ = next(batches(stack, replace(TINY, seed=1), statistics))
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    only_s1, _ = next(batches(stack, replace(TINY, inputs=("s1",)), statistics))
    assert torch.equal(only_s1, images[:, 13:])
    assert len(list(batches(stack, TINY, statistics))) == TINY.steps


def test_batches_carry_the_cells_of_their_pixels(stack):
    """Where a stack has one label in each cell, so has every batch."""
    stack.cells = stack.labels.int()
    _, batch = next(batches(stack, TINY, channel_statistics(stack)))
    assert (batch.cells.shape, batch.cells.dtype) == ((4, 32, 32), torch.int32)
    for labels, cells in zip(batch.labels, batch.cells, strict=True):
        assert all(len(labels[cells == cell].unique()) == 1 for cell in cells.unique())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("labels", ["modis", "modis+savanna"])
def test_every_loss_trains(loss, labels):
    """Two finite steps, on labels with and without Savanna; the weights move."""
    patch = toy_patch(0, size=32)
    patch.lc[0, :8] = 9
    stack = PatchStack([patch], labels)
    plan = replace(TINY, loss=loss, labels=labels, steps=2, width=4)
    first, second = (train(stack, replace(plan, steps=n), progress=False) for n in (1, 2))
    assert all(np.isfinite(row["loss"]) for row in second.history)
    assert not torch.equal(first.network.classify.weight, second.network.classify.weight)


def test_a_plan_without_a_matrix_takes_the_stated_accuracy(stack):
    """And one with a matrix takes that; without Savanna, the part of it that has none."""
    plan = replace(TINY, loss="forward")
    stated = loop.loss_of(stack, plan).transition
    assert stated.shape == (8, 8)
    np.testing.assert_allclose(stated.sum(axis=1), 1)
    own = transition.rows_to_one(np.eye(8, 9) + 0.1)
    given_one = replace(plan, transition=tuple(map(tuple, own.tolist())))
    np.testing.assert_allclose(loop.loss_of(stack, given_one).transition, transition.without_savanna(own))
    kept = replace(given_one, labels="modis+savanna")
    np.testing.assert_allclose(loop.loss_of(stack, kept).transition, own)


def test_training_goes_on_from_a_run(stack, learnt):
    """A copy of its network, its statistics and not the new stack's; the run itself stays as it was."""
    before = learnt.network.classify.weight.clone()
    there = toy_stack(1, size=32)
    plan = replace(learnt.plan, steps=1, learning_rate=1e-8, weight_decay=0)
    again = train(there, plan, progress=False, start=learnt)
    assert torch.equal(learnt.network.classify.weight, before)
    torch.testing.assert_close(again.network.classify.weight, before, atol=1e-6, rtol=1e-5)
    assert again.statistics == learnt.statistics != channel_statistics(there)


def test_probabilities_are_probabilities(learnt):
    """Of a patch or of its arrays, the same; they sum to one; the class is the largest of them."""
    patch = toy_patch(50, size=40)
    probabilities = predict(learnt, patch)
    assert (probabilities.shape, probabilities.dtype) == ((8, 40, 40), np.float32)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities, predict(learnt, (patch.s2, patch.s1)))
    np.testing.assert_array_equal(dfc_to_index(classify(learnt, patch)), probabilities.argmax(axis=0))


def test_bfloat16_changes_little(learnt):
    """Both precisions agree on the class of nearly every pixel, and to a few hundredths of probability."""
    patch = toy_patch(60)
    full, half = (
        predict(replace(learnt, plan=replace(learnt.plan, precision=name)), patch) for name in ("float32", "bfloat16")
    )
    assert 0 < np.abs(full - half).max() < 0.2
    assert np.abs(full - half).mean() < 0.01
    assert (full.argmax(axis=0) == half.argmax(axis=0)).mean() > 0.98


def test_prediction_is_turned_with_the_image_it_is_given(learnt):
    """Rows stay rows: the class of a block does not depend on where it lies in the patch."""
    patch = toy_patch(70)
    shifted = (patch.s2[:, 8:, 16:], patch.s1[:, 8:, 16:])
    whole, part = predict(learnt, patch), predict(learnt, shifted)
    # Six pixels from the new edge, the FCN (five pixels to each side) sees the same.
    np.testing.assert_allclose(part[:, 6:, 6:], whole[:, 14:, 22:], atol=0.02)


def test_evaluation_counts_pixels(learnt):
    """Agreement with the labels of a stack is that of its maps; ignored pixels are not judged."""
    stack = toy_stack(2)
    stack.labels[1] = 255
    scores = evaluate(learnt, stack)
    right = classify(learnt, toy_patch(0)) == igbp_to_dfc(toy_patch(0).lc[0])
    assert scores.n_pixels == 64 * 64
    assert scores.oa == pytest.approx(right.mean())


def test_nan_in_an_image_is_no_map(learnt):
    """A class is not made up for a pixel without backscatter."""
    patch = toy_patch(80)
    s1 = patch.s1.copy()
    s1[0, 5, 5] = np.nan
    with pytest.raises(DataError, match="NaN probabilities"):
        classify(learnt, (patch.s2, s1))


def test_labels_that_hold_nothing_are_refused(stack):
    """A stack of ignored pixels is not trained on in silence."""
    empty = toy_stack(1)
    empty.labels[:] = 255
    with pytest.raises(DataError, match="no labelled pixel"):
        train(empty, TINY, progress=False)


def test_a_device_that_is_not_there_is_refused():
    """By name, before anything starts."""
    for name in ("cuda:77", "tpu!", "meta"):
        with pytest.raises(ParameterError, match="a GPU that is here"):
            choose_device(name)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_training_on_a_gpu(stack):
    """The same loop, its result usable on the processor."""
    run = train(stack, replace(TINY, device="cuda", batch=8, steps=60, learning_rate=0.02), progress=False)
    unseen = toy_patch(1000)
    assert (classify(run, unseen) == igbp_to_dfc(unseen.lc[0])).mean() > 0.9
    on_gpu = predict(run, unseen)
    run.network.cpu()
    np.testing.assert_allclose(predict(run, unseen), on_gpu, atol=0.05)


def test_an_average_of_the_weights_lies_among_them(stack):
    """Off, it is the last weights; on, the average of those after each step, first steps counting less and less."""
    plan = replace(TINY, steps=3)
    after = [train(stack, replace(plan, steps=3, ema=0.0), progress=False).network.classify.weight]
    seen, follow = [], loop.Average.follow
    with pytest.MonkeyPatch.context() as patched:

        def watched(self, step):
            seen.append(self._followed["classify.weight"].clone())
            follow(self, step)

        patched.setattr(loop.Average, "follow", watched)
        averaged = train(stack, replace(plan, ema=0.5), progress=False)
    assert torch.equal(seen[-1], after[0])
    torch.manual_seed(0)
    expected = plan.build().classify.weight.detach()
    for step, weight in enumerate(seen):
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weight
    torch.testing.assert_close(averaged.network.classify.weight.detach(), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.skipif("LCFUSE_COMPILE" not in os.environ, reason="takes a minute: set LCFUSE_COMPILE")
def test_a_compiled_network_learns_the_same(stack):
    """To the digits that another order of sums leaves; its checkpoint is that of any network."""
    plain, compiled = (
        train(stack, replace(TINY, compiled=on, precision="float32"), progress=False) for on in (False, True)
    )
    assert compiled.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-3)
    assert compiled.network.state_dict().keys() == plain.network.state_dict().keys()
