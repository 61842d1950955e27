"""One cell under a loss: it is found without the reference, and what is shown of it is what the loss does."""

import numpy as np
import pytest
import torch
from miniatures import PLACE, UTM
from test_losses import SHARE, matrix
from toys import IGBP_OF_CLASS

from lcfuse_core.book import one_cell
from lcfuse_core.data.legends import index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import patch_cells
from lcfuse_core.errors import DataError
from lcfuse_core.models.losses import LOSSES, Batch, build_loss


def patch_of(classes_of, *, dfc=None):
    """150 x 160 pixels of real cells; *classes_of* gives the network class of each cell (255: Savanna)."""
    bare = Patch("bare", np.zeros((2, 150, 160)), np.zeros((13, 150, 160)), crs=UTM, transform=PLACE)
    cells = patch_cells(bare)
    classes = classes_of(cells)
    lc = np.zeros((4, 150, 160), np.uint8)
    lc[0] = np.where(classes == 255, 9, IGBP_OF_CLASS[np.minimum(classes, 7)])
    s2 = np.zeros((13, 150, 160), np.uint16)
    s2[7] = np.where(np.arange(160) % 2, 1000, 1000 + 100 * (cells + 1))  # B8: later cells vary more
    return Patch("cells", np.zeros((2, 150, 160), np.float32), s2, lc, dfc, UTM, PLACE), cells


def whole(cells):
    return set(np.unique(cells)) - {*cells[0], *cells[-1], *cells[:, 0], *cells[:, -1]}


def test_the_cell_that_varies_most_is_found():
    """Of the whole cells with a label: the last one, or the one before when that is Savanna."""
    patch, cells = patch_of(lambda cells: np.full(cells.shape, 4))
    last = max(whole(cells))
    found = one_cell.varied_cell(patch)
    np.testing.assert_array_equal(found.inside, cells == last)
    assert (found.label, found.n_pixels) == (4, (cells == last).sum())
    savanna, _ = patch_of(lambda cells: np.where(cells == last, 255, 5))
    np.testing.assert_array_equal(one_cell.varied_cell(savanna).inside, cells == max(whole(cells) - {last}))
    with pytest.raises(DataError, match="no whole cell"):
        one_cell.varied_cell(patch_of(lambda cells: np.full(cells.shape, 255))[0])


def test_the_choice_does_not_look_at_the_reference():
    """And what is known of the truth is its shares, where there is one."""
    dfc = index_to_dfc(np.random.default_rng(0).choice([0, 7, 255], (150, 160), p=[0.3, 0.6, 0.1]).astype(np.uint8))
    (with_truth, _), (without, _) = patch_of(np.ones_like, dfc=dfc), patch_of(np.ones_like)
    one, other = one_cell.varied_cell(with_truth), one_cell.varied_cell(without)
    np.testing.assert_array_equal(one.inside, other.inside)
    assert other.truth is None
    assert one.truth.sum() == pytest.approx(1)
    assert one.truth[7] == pytest.approx(2 / 3, abs=0.05)


def test_a_row_of_pixels_goes_back_to_its_place():
    """There and back; outside the cell nothing is known."""
    patch, _ = patch_of(np.zeros_like)
    cell = one_cell.varied_cell(patch)
    field = torch.arange(150 * 160, dtype=torch.float64).reshape(1, 1, 150, 160)
    back = cell.on_patch(cell.row(field)[0, 0, 0])
    np.testing.assert_array_equal(back[cell.inside], field[0, 0].numpy()[cell.inside])
    assert np.isnan(back[~cell.inside]).all()


def test_what_is_felt_on_the_patch_is_the_pull():
    """Of each pixel, in its place."""
    patch, _ = patch_of(np.zeros_like)
    cell = one_cell.varied_cell(patch)
    opinion = logits_of_a_cell(1, cell.n_pixels)
    loss = build_loss("cross_entropy")
    felt = cell.felt(loss, opinion)
    np.testing.assert_array_equal(felt[cell.inside], one_cell.pull(loss, opinion, cell.batch, 0).numpy())
    assert np.isnan(felt[~cell.inside]).all()


def logits_of_a_cell(seed=0, n=40):
    return torch.randn((1, 8, 1, n), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_pull_of_cross_entropy_is_what_is_missing_of_the_label():
    """1 - p(label), the figure of every textbook; its gradient sums to zero over the classes."""
    logits, batch = logits_of_a_cell(), Batch(torch.full((1, 1, 40), 2, dtype=torch.uint8))
    loss = build_loss("cross_entropy")
    torch.testing.assert_close(one_cell.pull(loss, logits, batch, 2), 1 - logits.softmax(1)[0, 2, 0])
    torch.testing.assert_close(one_cell.gradient(loss, logits, batch).sum(1), torch.zeros(1, 1, 40).double())
    assert not logits.requires_grad


def test_curves_of_the_pull_by_hand():
    """Cross-entropy 1 - p; generalised that times p^0.7."""
    chances = torch.tensor([0.1, 0.5, 0.9])
    p = chances.numpy()
    plain, robust = (one_cell.pull_curve(build_loss(name), 3, 5, chances) for name in ("cross_entropy", "generalised"))
    np.testing.assert_allclose(plain, 1 - p, rtol=1e-5)
    np.testing.assert_allclose(robust, (1 - p) * p**0.7, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_left_alone_a_cell_becomes_cheaper(name):
    """Under every loss of the book, from any opinion; where nothing is moved nothing changes."""
    loss = build_loss(name, None, matrix(), SHARE)
    logits, batch = logits_of_a_cell(3), Batch(torch.full((1, 1, 40), 4, dtype=torch.uint8))
    after = one_cell.left_alone(loss, logits, batch, steps=20)
    assert loss(after, batch) < loss(logits, batch)
    assert one_cell.shares(after).sum() == pytest.approx(1)
    torch.testing.assert_close(one_cell.left_alone(loss, logits, batch, steps=0), logits)


def test_what_compositions_cost():
    """Cross-entropy is a straight line down to a full cell; aggregation ends flat; none is below zero."""
    plain = one_cell.costs(build_loss("cross_entropy"), 4, 7)
    np.testing.assert_allclose(np.diff(plain), np.diff(plain)[0], rtol=1e-3)
    mean = one_cell.costs(build_loss("cell_mean"), 4, 7)
    assert mean.argmin() == plain.argmin() == 100
    assert (np.diff(mean, 2) >= -1e-4).all()
    assert mean[90] == pytest.approx(-np.log(0.9), abs=0.01)
