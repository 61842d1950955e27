"""
Fusion: the probabilities of several ensemble members, calibrated, averaged and combined with the coarse label.

    fusion = Fusion({"fcn": predict_fcn, "forest": predict_forest}, FusionPlan(), posterior)
    classes = fusion.classify(patch)

A member is any function that gives the probabilities (8, H, W) of a patch. Temperatures and weights are fitted on
coarse labels (of held-out scenes, or of the target region) through the transition matrix: a member is good if its mean
over a cell makes the cell's label likely. The reference plays no part in it; only `shared_errors` uses it, for
the reader of a map.

Axes: A members, J cells, n pixels, K = 8 fine classes, M = 9 coarse labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
import pydantic.dataclasses
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from lcfuse_core.data.legends import N_COARSE, SCORED, index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import PatchSource, label_index
from lcfuse_core.errors import DataError, ParameterError, parameter_errors
from lcfuse_core.methods.adapt import MOST_PIXELS, Predict, images_of
from lcfuse_core.models.transition import Matrix
from lcfuse_core.training.plan import one_of
from lcfuse_core.training.predict import tta_mean

_N = len(SCORED)


@parameter_errors("fusion", "Correct the plan.")
@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True, extra="forbid"))
class FusionPlan:
    """
    How members are combined. Raises ParameterError on an unknown name or value.

    Attributes
    ----------
    rule : str
        Of probabilities: in the "mean" an uncertain member leaves the decision to the others; in the "product", the
        normalised geometric mean, any member can rule out a class.
    symmetries : int
        Flips and rotations whose predictions are averaged, 1, 2, 4 or 8: test-time augmentation.
    prior_power : float
        Exponent of p(fine | coarse label of the cell): 0 leaves it out, 1 treats it as independent evidence; members
        that were trained on the labels of the target region contain it already.
    prior_blur_px, prior_doubt : float
        Standard deviation of a Gaussian that smooths it; fraction of the uniform distribution mixed into it.
    calibrated, weighted : bool
        Whether `Fusion.fit` finds a temperature, and a weight, for each member.
    """

    rule: Literal["mean", "product"] = "mean"
    symmetries: Annotated[int, one_of((1, 2, 4, 8))] = 1
    prior_power: Annotated[float, Field(ge=0, le=4)] = 0.0
    prior_blur_px: Annotated[float, Field(ge=0, le=500)] = 12.0
    prior_doubt: Annotated[float, Field(ge=0, le=1)] = 0.2
    calibrated: bool = False
    weighted: bool = False

    @property
    def prior_reach_px(self) -> int:
        """Distance in pixels over which a coarse label influences `prior_factor`: the radius of the blur's kernel."""
        return int(4 * self.prior_blur_px + 0.5)

    def prior_factor(self, labels: NDArray[np.uint8], posterior: Matrix) -> NDArray[np.float32]:
        """
        Return the factor by which the coarse labels multiply the probabilities, float32 (8, H, W).

        A part of a scene gets the factor of the whole scene at all pixels that lie `prior_reach_px` or more inside.

        Parameters
        ----------
        labels : ndarray of uint8, shape (H, W)
            Coarse labels 0..8, 255 = unknown.
        posterior : ndarray, shape (9, 8)
            p(fine | coarse).
        """
        doubted = (1 - self.prior_doubt) * posterior + self.prior_doubt / _N
        prior = coarse_prior(labels, doubted, self.prior_blur_px)
        return prior ** np.float32(self.prior_power)


@dataclass
class Fusion:
    """
    Ensemble members, the plan of their combination, and what was fitted.

    Parameters
    ----------
    members : mapping
        Functions by name that give the probabilities (8, H, W) of a patch.
    plan : FusionPlan
        How they are combined.
    posterior : ndarray, shape (9, 8), optional
        p(fine | coarse), as `transition.posterior` returns it; unknown labels have a uniform prior.
    temperatures, weights : dict
        By name; 1 and equal until `fit`.
    """

    members: Mapping[str, Predict]
    plan: FusionPlan = field(default_factory=FusionPlan)
    posterior: Matrix | None = None
    temperatures: dict[str, float] = field(default_factory=dict)  # by name; 1 until `fit`
    weights: dict[str, float] = field(default_factory=dict)  # by name; equal until `fit`

    def __post_init__(self) -> None:
        if not self.members:
            raise DataError("fusion", found="no member", expected="one or more", do="Train some first.")
        if self.plan.prior_power and self.posterior is None:
            do = "Hand over transition.posterior(...), or set prior_power to 0."
            raise ParameterError("fusion", found="a prior power without a prior", expected="p(fine | coarse)", do=do)
        for name in self.members:
            self.temperatures.setdefault(name, 1.0)
            self.weights.setdefault(name, 1 / len(self.members))

    def fit(self, evidence: Mapping[str, Evidence], matrix: Matrix) -> None:
        """
        Fit temperatures and weights, as the plan has them, on the coarse labels of cells.

        Parameters
        ----------
        evidence : mapping
            Of each member by `gather`; not of training patches, on which overfitted members look too good.
        matrix : ndarray, shape (8, 9)
            p(coarse | fine).
        """
        if self.plan.calibrated:
            self.temperatures |= {name: _best_temperature(found, matrix) for name, found in evidence.items()}
        if self.plan.weighted:
            likelihoods = [found.likelihood(matrix, self.temperatures[name]) for name, found in evidence.items()]
            self.weights |= dict(zip(evidence, member_weights(np.stack(likelihoods)).tolist(), strict=True))

    def predict(self, patch: Patch) -> NDArray[np.float32]:
        """Return the probabilities, float32 (8, H, W), of all members and the coarse label combined."""
        chosen = {name: member for name, member in self.members.items() if self.weights[name] > 0}
        parts = [
            temper(tta_mean(member, patch, self.plan.symmetries), self.temperatures[name])
            for name, member in chosen.items()
        ]
        together = combine(parts, [self.weights[name] for name in chosen], self.plan.rule)
        if not self.plan.prior_power or patch.lc is None:
            return together
        assert self.posterior is not None
        return _normalised(together * self.plan.prior_factor(label_index(patch, "modis+savanna"), self.posterior))

    def classify(self, patch: Patch) -> NDArray[np.uint8]:
        """Return the most probable class of each pixel, uint8 (H, W), as DFC2020 codes."""
        return index_to_dfc(self.predict(patch).argmax(axis=0))


def combine(parts: Sequence[NDArray[np.float32]], weights: Sequence[float], rule: str = "mean") -> NDArray[np.float32]:
    """Return the weighted mean, or normalised weighted geometric mean ("product"), of probabilities (8, H, W)."""
    share = np.asarray(weights, np.float32) / np.float32(sum(weights))
    if rule == "mean":
        return sum((part * w for part, w in zip(parts, share, strict=True)), np.zeros_like(parts[0]))
    log = sum((np.log(np.maximum(part, 1e-6)) * w for part, w in zip(parts, share, strict=True)))
    return _normalised(np.exp(log - np.max(log, axis=0)))


def temper(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """
    Return probabilities (8, H, W) after temperature scaling; above 1 they become less confident.

    The power 1 / *temperature* equals a division of the logits by it (Guo et al. 2017, arXiv 1706.04599).
    """
    if temperature == 1:
        return probabilities
    return _normalised(np.maximum(probabilities, np.float32(1e-7)) ** np.float32(1 / temperature))


def coarse_prior(labels: NDArray[np.uint8], posterior: Matrix, blur_px: float = 0.0) -> NDArray[np.float32]:
    """
    Return the prior of each pixel's class given the label of its cell, float32 (8, H, W), largest value 1.

    Parameters
    ----------
    labels : ndarray of uint8, shape (H, W)
        Coarse labels 0..8 on the true outlines of the cells, 255 = unknown: all classes alike.
    posterior : ndarray, shape (9, 8)
        p(fine | coarse).
    blur_px : float
        Standard deviation of a Gaussian that smooths the prior, in pixels.
    """
    table = np.full((256, _N), 1 / _N)
    table[: len(posterior)] = posterior
    prior: NDArray = table.T.astype(np.float32)[:, labels]
    if blur_px:
        prior = np.stack([gaussian_filter(p, blur_px, mode="nearest") for p in prior]).astype(np.float32)
    return (prior / np.maximum(prior.max(axis=0), 1e-12)).astype(np.float32)


class Evidence(NamedTuple):
    """
    The predictions of one member for a sample of pixels, with the coarse labels of their cells.

    Attributes
    ----------
    log_p : ndarray, float32 (n, 8)
        Log-probabilities.
    cell, label : ndarray, int64 (n,) and (J,)
        The cell of each pixel, 0..J-1, and the coarse label 0..8 of each cell.
    """

    log_p: NDArray[np.float32]
    cell: NDArray[np.int64]
    label: NDArray[np.int64]

    def likelihood(self, matrix: Matrix, temperature: float = 1.0) -> NDArray[np.float64]:
        """Return p(label) of each cell, (J,): its pixels' mean of sum_k p(k)^(1/temperature) / Z x T[k, label]."""
        p = softmax(self.log_p / temperature, axis=1)
        values = (p * matrix[:, self.label[self.cell]].T).sum(axis=1)
        size = np.bincount(self.cell, minlength=len(self.label))
        return np.bincount(self.cell, values, len(self.label)) / np.maximum(size, 1)


def gather(
    members: Mapping[str, Predict], source: PatchSource, *, pixels: int = 2048, seed: int = 0
) -> dict[str, Evidence]:
    """
    Return the predictions of each member for a sample of pixels, with the labels of their cells.

    Parameters
    ----------
    members : mapping
        Functions that give probabilities from the images of a patch.
    source : PatchSource
        With labels "modis+savanna".
    pixels : int
        Per patch; fewer if the sample would exceed `adapt.MOST_PIXELS`.
    seed : int
        Of the sample.

    Raises
    ------
    DataError
        If no patch has a coarse label.
    """
    rng, pixels = np.random.default_rng(seed), min(pixels, max(1, MOST_PIXELS // len(source)))
    # Not lists of parts: see `forest.train_forest`.
    logs = {name: np.empty((len(source) * pixels, _N), np.float32) for name in members}
    cells, filled = np.empty(len(source) * pixels, np.int64), 0
    labels: list[int] = []
    for patch, window in images_of(source):
        label = window.labels.numpy().reshape(-1)
        known = np.flatnonzero(label < N_COARSE)
        if not len(known):
            continue
        chosen = np.sort(rng.choice(known, min(pixels, len(known)), replace=False))
        key = window.cells.numpy().reshape(-1)[chosen].astype(np.int64) * N_COARSE + label[chosen]
        found, number = np.unique(key, return_inverse=True)
        here = slice(filled, filled + len(chosen))
        cells[here], filled = number + len(labels), here.stop
        labels += (found % N_COARSE).tolist()
        for name, member in members.items():
            probabilities = member(patch).reshape(_N, -1)[:, chosen].T
            logs[name][here] = np.log(np.maximum(probabilities, np.float32(1e-7)))
    if not labels:
        do = "Check the label layer."
        raise DataError("calibration", found="no coarse label", expected="labelled patches", do=do)
    label_of = np.array(labels)
    return {name: Evidence(own[:filled], cells[:filled], label_of) for name, own in logs.items()}


def _best_temperature(evidence: Evidence, matrix: Matrix) -> float:
    """Return the temperature, 0.2 to 10, under which a member makes the labels of its cells likeliest."""
    from scipy.optimize import minimize_scalar  # only here: a part of a second of each process that maps

    def misfit(log_temperature: float) -> float:
        likelihood = evidence.likelihood(matrix, float(np.exp(log_temperature)))
        return -float(np.log(np.maximum(likelihood, 1e-12)).mean())

    found = minimize_scalar(misfit, bounds=(np.log(0.2), np.log(10)), method="bounded", options={"xatol": 0.01})
    return float(np.exp(found.x))


def member_weights(likelihoods: NDArray[np.floating]) -> NDArray[np.float64]:
    """
    Return the weights of members, (A,), sum 1, under whose mean the labels of the cells are likeliest.

    Maximises sum_j log sum_a w_a L_aj, which has one maximum, by the EM steps of a mixture. A member that adds nothing
    to the others gets a weight near 0; equal members keep equal weights.

    Parameters
    ----------
    likelihoods : ndarray, shape (A, J)
        p(label of cell j) by member a alone.
    """
    likelihood = np.asarray(likelihoods, np.float64)
    weights = np.full(len(likelihood), 1 / len(likelihood))
    for _ in range(500):
        joint = weights[:, None] * likelihood
        before, weights = weights, (joint / np.maximum(joint.sum(axis=0), 1e-300)).mean(axis=1)
        weights /= weights.sum()
        if np.abs(weights - before).max() < 1e-7:
            break
    return weights


def calibration_error(curve: Mapping[str, NDArray[np.float64]]) -> float:
    """
    Return the expected calibration error, 0..1: the mean distance of accuracy from confidence, weighted by pixels.

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
    Return the errors that pairs of members share, in per cent, one row per pair.

    Columns: *wrong* and *other wrong* (of the known pixels, each member's own), *both* (wrong at once), *by chance*
    (expected for independent errors) and *alike* (of both: the same wrong class). A mean of members can correct only
    errors that they do not share.
    """
    predictions: dict[str, list[NDArray]] = {name: [] for name in members}
    truths = []
    for patch in patches:
        truth = label_index(patch, "fine")
        known = truth < len(SCORED)
        truths.append(truth[known])
        for name, predict in members.items():
            predictions[name].append(predict(patch).argmax(axis=0)[known])
    truth, rows = np.concatenate(truths), {}
    found = {name: np.concatenate(parts) for name, parts in predictions.items()}
    for first, second in combinations(members, 2):
        wrong, other_wrong = found[first] != truth, found[second] != truth
        both = wrong & other_wrong
        alike = (found[first] == found[second])[both].mean() if both.any() else np.nan
        fractions = [wrong.mean(), other_wrong.mean(), both.mean(), wrong.mean() * other_wrong.mean(), alike]
        rows[f"{first} / {second}"] = [100 * fraction for fraction in fractions]
    return pd.DataFrame.from_dict(rows, "index", columns=["wrong", "other wrong", "both", "by chance", "alike"])


def _normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values / np.maximum(values.sum(axis=0), np.float32(1e-30))).astype(np.float32)
