"""The learner that knows only colours: it learns, alike for alike pixels, the same again, and from no reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import toy_patch

from lcfuse_core.book.colour_learner import Lesson, counted_on, fresh
from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX, igbp_to_dfc
from lcfuse_core.models.losses import LOSSES


def with_savanna(seed):
    """A toy patch, its labels true, with a corner of Savanna and its labels as reference."""
    patch = toy_patch(seed, size=32)
    dfc = igbp_to_dfc(patch.lc[0])
    patch.lc[0, :8, :8] = 9
    return replace(patch, dfc=dfc)


@pytest.fixture(scope="module")
def lesson():
    return Lesson([with_savanna(0), with_savanna(1)], every=2)


def test_it_learns_what_colours_tell(lesson):
    """Labels of toys can be read off their pixels, and so can those of a patch that was not shown."""
    learner = lesson.teach("cross_entropy")
    assert lesson.agreement(learner) > 0.9
    assert lesson.average_accuracy(learner) > 0.9
    assert (lesson.drawn(learner, lesson.shown[0]) == lesson.shown[0].dfc).mean() > 0.9
    seen, told = lesson.posteriors(learner, [toy_patch(5, size=32)])
    assert seen.shape == (256, 8)
    np.testing.assert_allclose(seen.sum(axis=1), 1, rtol=1e-5)
    assert (seen.argmax(axis=1) == told).mean() > 0.9


def test_the_same_lesson_makes_the_same_learner(lesson):
    """By the seed alone: the caller's random numbers neither count nor change."""
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = lesson.teach("generalised", steps=3, seed=4)
    assert torch.rand(1) == expected
    again = lesson.teach("generalised", steps=3, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(iter(fresh(4).parameters())), next(iter(fresh(5).parameters())))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_teaches(lesson, name):
    """Some steps make its own loss smaller; Savanna reaches those losses alone that hear it."""
    batch, loss = lesson.heard(name), lesson.loss(name)
    heard = (batch.labels == SAVANNA_INDEX).any()
    assert heard == (lesson.loss(name)(torch.zeros(1, 8, 1, 1), _savanna()) > 0)
    before, after = (float(loss(lesson.teach(name, steps=n)(lesson.images), batch)) for n in (0, 15))
    assert after < before


def _savanna():
    from lcfuse_core.models.losses import Batch

    return Batch(torch.full((1, 1, 1), SAVANNA_INDEX, dtype=torch.uint8))


def test_pixels_are_thinned_and_counted(lesson):
    """Every second pixel; shares of the nine labels, Savanna among them; ignored where a loss cannot hear it."""
    assert lesson.images.shape == (2, 15, 16, 16)
    assert lesson.counts.sum() == 2 * 16 * 16
    assert lesson.counts[SAVANNA_INDEX] == 2 * 4 * 4
    assert (lesson.heard("cross_entropy").labels == IGNORE).sum() == 2 * 4 * 4


def test_matrices_are_counted_over_all_pixels_of_all_patches():
    """A toy's labels are true but for its corner of Savanna: 64 pixels of each, whatever lies there."""
    patches = [with_savanna(0), with_savanna(1)]
    matrix = counted_on(patches)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    fine = np.concatenate([igbp_to_dfc(toy_patch(seed, size=32).lc[0]).ravel() for seed in (0, 1)])
    savanna = sum((matrix[k, SAVANNA_INDEX] * ((fine == code).sum() + 1)) for k, code in enumerate((1, 2, 4, 5)))
    assert savanna == pytest.approx(2 * 64)
    assert (matrix[:, :8].sum(axis=1) - np.diag(matrix) == 0).all()
