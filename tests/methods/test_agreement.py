"""Members where a reference may be opened: curves of the sure and the humble, errors that are shared or not."""

from dataclasses import replace

import numpy as np
import pytest
from toys import IGBP_OF_CLASS, toy_patch

from lcfuse_core.data.legends import igbp_to_dfc
from lcfuse_core.errors import DataError
from lcfuse_core.methods.agreement import calibration_error, reliability_of, shared_errors

KNOWN = (toy_patch(0), toy_patch(1))
PATCHES = [replace(patch, dfc=igbp_to_dfc(patch.lc[0])) for patch in KNOWN]


def truth_of(patch):
    return np.searchsorted(IGBP_OF_CLASS, patch.lc[0])


def member(wrong_where, confidence=0.9):
    """Right but where *wrong_where* (a mask from row and column) says so; there it names the next class."""

    def predict(patch):
        rows, cols = np.indices(patch.lc[0].shape)
        answer = np.where(wrong_where(rows, cols), (truth_of(patch) + 1) % 8, truth_of(patch))
        p = np.full((8, *answer.shape), (1 - confidence) / 7, np.float32)
        np.put_along_axis(p, answer[None], confidence, axis=0)
        return p

    return predict


def nowhere(rows, cols):
    return rows < 0


def left(rows, cols):
    return cols < 32


def top(rows, cols):
    return rows < 32


def test_one_bin_holds_a_member_of_one_confidence():
    """Half right and 90 per cent sure: 40 points too sure; all right: 10 points too humble."""
    half = reliability_of(member(left), PATCHES)
    assert half["count"].tolist() == [0] * 9 + [2 * 64 * 64]
    assert calibration_error(half) == pytest.approx(0.4, abs=1e-6)
    assert calibration_error(reliability_of(member(nowhere), PATCHES)) == pytest.approx(0.1, abs=1e-6)


def test_a_temperature_makes_the_sure_humbler():
    """The same answers, with less confidence; a temperature of 1 changes nothing."""
    plain, hot = (reliability_of(member(left), PATCHES, t) for t in (1.0, 3.0))
    assert np.nansum(hot["confidence"]) < np.nansum(plain["confidence"])
    assert calibration_error(hot) < calibration_error(plain)
    assert np.nanmax(hot["accuracy"]) == np.nanmax(plain["accuracy"]) == 0.5


def test_pixels_without_reference_are_left_out():
    """And where all are, there is nothing to say."""
    part = replace(PATCHES[0], dfc=PATCHES[0].dfc.copy())
    part.dfc[:, :32] = 0
    assert calibration_error(reliability_of(member(left), [part])) == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(DataError, match="no pixel"):
        reliability_of(member(left), [replace(part, dfc=np.zeros_like(part.dfc))])


def test_errors_that_are_shared_and_that_are_not():
    """Left half and upper half: a quarter is wrong twice, as by chance; a member and itself: all is shared."""
    found = shared_errors({"a": member(left), "b": member(top), "again a": member(left)}, PATCHES)
    assert found.loc["a / b"].tolist() == pytest.approx([50, 50, 25, 25, 100])
    assert found.loc["a / again a"].tolist() == pytest.approx([50, 50, 50, 25, 100])
    perfect = shared_errors({"a": member(left), "b": member(nowhere)}, PATCHES).loc["a / b"]
    assert perfect[:4].tolist() == pytest.approx([50, 0, 0, 0])
    assert np.isnan(perfect["alike"])
