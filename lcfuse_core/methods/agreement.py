"""
Members of an ensemble, where a reference may be opened: how sure they may be, and what they get wrong together.

For the reader of a map; nothing of it goes back into a method. What a fusion itself may use, coarse labels, is in
`calibration`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core.data.legends import SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import label_index
from lcfuse_core.errors import DataError
from lcfuse_core.methods.adapt import Predict
from lcfuse_core.methods.calibration import reliability
from lcfuse_core.methods.fusion import temper

Curve = Mapping[str, NDArray[np.float64]]
"""By bins of confidence: confidence, accuracy and count, as `calibration.reliability` gives them."""


def reliability_of(predict: Predict, patches: Iterable[Patch], temperature: float = 1.0, bins: int = 10) -> Curve:
    """
    `calibration.reliability` of a member over all pixels of *patches* that have a reference, tempered first.

    Raises DataError when no pixel has one.
    """
    sure, right = [], []
    for patch in patches:
        truth, p = label_index(patch, "fine"), temper(predict(patch), temperature)
        known = truth < len(SCORED)
        sure.append(p.max(axis=0)[known])
        right.append((p.argmax(axis=0) == truth)[known])
    if not sum(map(len, sure)):
        raise DataError("reliability", found="no pixel with a reference", expected="some", do="Take other patches.")
    return reliability(np.concatenate(sure), np.concatenate(right), bins)


def calibration_error(curve: Curve) -> float:
    """
    Mean distance of accuracy from confidence, each bin by its pixels: the expected calibration error, 0..1.

    Naeini, Cooper & Hauskrecht 2015 (AAAI 29).

    >>> bins = {"confidence": np.array([0.5, 0.9]), "accuracy": np.array([0.5, 0.7]), "count": np.array([1.0, 3.0])}
    >>> round(calibration_error(bins), 6)
    0.15
    """
    filled = curve["count"] > 0
    gap = np.abs(curve["accuracy"][filled] - curve["confidence"][filled])
    return float((gap * curve["count"][filled]).sum() / curve["count"].sum())


def shared_errors(members: Mapping[str, Predict], patches: Iterable[Patch]) -> pd.DataFrame:
    """
    What each pair of members gets wrong together, in per cent: a row a pair.

    Columns: *wrong* and *other wrong* (of the known pixels, each member's own), *both* (wrong at once), *by chance*
    (what that would be if their errors knew nothing of each other) and *alike* (of both: the same wrong class). A mean
    of members can repair what they do not get wrong together, and nothing else.
    """
    answers: dict[str, list[NDArray]] = {name: [] for name in members}
    truths = []
    for patch in patches:
        truth = label_index(patch, "fine")
        known = truth < len(SCORED)
        truths.append(truth[known])
        for name, predict in members.items():
            answers[name].append(predict(patch).argmax(axis=0)[known])
    truth, names, rows = np.concatenate(truths), list(members), {}
    found = {name: np.concatenate(parts) for name, parts in answers.items()}
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            wrong, also = found[one] != truth, found[other] != truth
            both = wrong & also
            alike = (found[one] == found[other])[both].mean() if both.any() else np.nan
            shares = [wrong.mean(), also.mean(), both.mean(), wrong.mean() * also.mean(), alike]
            rows[f"{one} / {other}"] = [100 * share for share in shares]
    return pd.DataFrame.from_dict(rows, "index", columns=["wrong", "other wrong", "both", "by chance", "alike"])
