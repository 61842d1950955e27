"""
Fusion: several members' probabilities, calibrated and averaged, times what the coarse label tells, to one map.

    fusion = Fusion({"fcn": member, "forest": other}, FusionPlan(), table)
    protocol.evaluate_methods({"fusion": fusion.classify}, rows)

A member is anything that gives probabilities (8, H, W) of a patch. What is fitted, temperatures and weights, is fitted
on coarse labels (of held-out scenes, or of the place to be mapped), through the transition matrix: a member is good
when its mean over a cell makes the cell's label likely. The fine reference has no part in it.

Axes: K = 8 fine classes, M = 9 coarse labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from lcfuse_core.data.legends import SCORED, index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import label_index, turn
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.methods.adapt import Predict
from lcfuse_core.methods.calibration import best_temperature, gather, member_weights
from lcfuse_core.models.transition import Matrix

N = len(SCORED)
SYMMETRIES = (1, 2, 4, 8)


@dataclass(frozen=True)
class FusionPlan:
    """
    How members are brought together. Raises ParameterError on a value it does not know.

    rule : "mean" of probabilities, which a member that is unsure leaves to the others, or "product" (the normalised
        geometric mean), in which any member can say no
    symmetries : of a patch that each member sees; their answers are turned back and averaged: 1, 2, 4 or 8
    prior_power : exponent of p(fine | coarse label of the cell): 0 leaves it out, 1 takes it for independent evidence.
        Members that have learnt from the labels of the place they map know them already
    prior_blur_px : deviation of a Gaussian that lets the prior of neighbouring cells fade into each other; 0: none
    prior_doubt : share of equal odds mixed into the prior: a zero in its table would forbid a class, whatever the
        images show and however small the exponent
    calibrated : whether `fit` finds a temperature for each member
    weighted : whether `fit` finds a weight for each member; else all weigh alike
    """

    rule: str = "mean"
    symmetries: int = 1
    prior_power: float = 0.0
    prior_blur_px: float = 12.0
    prior_doubt: float = 0.2
    calibrated: bool = False
    weighted: bool = False

    def __post_init__(self) -> None:
        checks = {
            "rule": (self.rule in ("mean", "product"), "mean or product"),
            "symmetries": (self.symmetries in SYMMETRIES, f"one of {SYMMETRIES}"),
            "prior_power": (0 <= self.prior_power <= 4, "0 to 4"),
            "prior_blur_px": (0 <= self.prior_blur_px <= 500, "0 to 500"),
            "prior_doubt": (0 <= self.prior_doubt <= 1, "0 to 1"),
        }
        for name, (is_good, expected) in checks.items():
            if not is_good:
                found = repr(getattr(self, name))
                raise ParameterError(f"fusion: {name}", found=found, expected=expected, do="Correct the plan.")

    def doubted(self, posterior: Matrix) -> Matrix:
        """p(fine | coarse), (9, 8), with equal odds mixed in by `prior_doubt`."""
        return (1 - self.prior_doubt) * posterior + self.prior_doubt / N

    @property
    def prior_reach_px(self) -> int:
        """Distance in pixels over which a coarse label influences `prior_factor`: the radius of the blur's kernel."""
        return int(4 * self.prior_blur_px + 0.5)

    def prior_factor(self, labels: NDArray[np.uint8], posterior: Matrix) -> NDArray[np.float32]:
        """
        Return the factor by which the coarse labels multiply the probabilities, float32 (8, H, W).

        labels : uint8 (H, W), coarse labels 0..8, 255 = unknown. A part of a scene gets the factor of the whole scene
            at all pixels that lie `prior_reach_px` or more inside of it
        posterior : p(fine | coarse), (9, 8)
        """
        prior = coarse_prior(labels, self.doubted(posterior), self.prior_blur_px)
        return prior ** np.float32(self.prior_power)


@dataclass
class Fusion:
    """
    Members, how they are brought together, and what was fitted.

    members : by name, each giving probabilities (8, H, W) of a patch
    posterior : p(fine | coarse), (9, 8), as `transition.posterior` gives it; where a label is unknown, the prior says
        nothing
    temperatures, weights : by name, 1 and equal until `fit`
    """

    members: Mapping[str, Predict]
    plan: FusionPlan = field(default_factory=FusionPlan)
    posterior: Matrix | None = None
    temperatures: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.members:
            raise DataError("fusion", found="no member", expected="one or more", do="Train some first.")
        if self.plan.prior_power and self.posterior is None:
            do = "Hand over transition.posterior(...), or set prior_power to 0."
            raise ParameterError("fusion", found="a prior power without a prior", expected="p(fine | coarse)", do=do)
        for name in self.members:
            self.temperatures.setdefault(name, 1.0)
            self.weights.setdefault(name, 1 / len(self.members))

    def fit(self, patches: Iterable[Patch], matrix: Matrix, *, seed: int = 0) -> None:
        """
        Find temperatures and weights, as the plan asks, on the coarse labels of *patches*.

        matrix : p(coarse | fine), (8, 9)

        Patches that the members have learnt from flatter those that learnt them by heart: take held-out scenes.
        """
        if not self.plan.calibrated and not self.plan.weighted:
            return
        evidence = gather(self.members, patches, seed=seed)
        if self.plan.calibrated:
            self.temperatures |= {name: best_temperature(found, matrix) for name, found in evidence.items()}
        if self.plan.weighted:
            likelihoods = [found.likelihood(matrix, self.temperatures[name]) for name, found in evidence.items()]
            self.weights |= dict(zip(evidence, member_weights(np.stack(likelihoods)).tolist(), strict=True))

    def predict(self, patch: Patch) -> NDArray[np.float32]:
        """Probabilities, float32 (8, H, W), of all members together and the coarse label."""
        chosen = {name: member for name, member in self.members.items() if self.weights[name] > 0}
        parts = [
            temper(turned_mean(member, patch, self.plan.symmetries), self.temperatures[name])
            for name, member in chosen.items()
        ]
        together = combine(parts, [self.weights[name] for name in chosen], self.plan.rule)
        if not self.plan.prior_power or patch.lc is None:
            return together
        assert self.posterior is not None
        return _normalised(together * self.plan.prior_factor(label_index(patch, "modis+savanna"), self.posterior))

    def classify(self, patch: Patch) -> NDArray[np.uint8]:
        """The most probable class at each pixel, uint8 (H, W), as DFC2020 codes: a `protocol.Classify`."""
        return index_to_dfc(self.predict(patch).argmax(axis=0))


def combine(parts: Sequence[NDArray[np.float32]], weights: Sequence[float], rule: str = "mean") -> NDArray[np.float32]:
    """Weighted mean, or normalised weighted geometric mean ("product"), of probabilities (8, H, W)."""
    share = np.asarray(weights, np.float32) / np.float32(sum(weights))
    if rule == "mean":
        return sum((part * w for part, w in zip(parts, share, strict=True)), np.zeros_like(parts[0]))
    log = sum((np.log(np.maximum(part, 1e-6)) * w for part, w in zip(parts, share, strict=True)))
    return _normalised(np.exp(log - np.max(log, axis=0)))


def temper(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """
    Probabilities (8, H, W) to the power of 1 / *temperature*, and to one again: over 1 makes them humbler.

    The same as dividing logits by the temperature (Guo et al. 2017, arXiv 1706.04599).
    """
    if temperature == 1:
        return probabilities
    return _normalised(np.maximum(probabilities, np.float32(1e-7)) ** np.float32(1 / temperature))


def coarse_prior(labels: NDArray[np.uint8], posterior: Matrix, blur_px: float = 0.0) -> NDArray[np.float32]:
    """
    What the label of the cell that a pixel lies in says of its class, float32 (8, H, W), largest value 1.

    labels : uint8 (H, W), coarse labels 0..8 on the cells' true outlines, 255 = unknown: all classes alike
    posterior : p(fine | coarse), (9, 8)
    """
    table = np.full((256, N), 1 / N)
    table[: len(posterior)] = posterior
    field_of: NDArray = table.T.astype(np.float32)[:, labels]
    if blur_px:
        field_of = np.stack([gaussian_filter(one, blur_px, mode="nearest") for one in field_of]).astype(np.float32)
    prior: NDArray[np.float32] = (field_of / np.maximum(field_of.max(axis=0), 1e-12)).astype(np.float32)
    return prior


def turned_mean(member: Predict, patch: Patch, symmetries: int) -> NDArray[np.float32]:
    """
    Mean of a member's answers to the first *symmetries* of a patch's eight flips and rotations, turned back.

    A patch that is not square is flipped and not transposed. What a member reads off the georeference would be wrong
    of a turned patch, so it is left out; one that needs it gets `symmetries` of 1.
    """
    if symmetries == 1:
        return member(patch)
    chosen = symmetries_of(symmetries, patch.s2.shape[1] == patch.s2.shape[2])
    total = np.zeros((N, *patch.s2.shape[1:]), np.float32)
    for symmetry in chosen:
        total += _turn(member(_turned_patch(patch, symmetry)), symmetry, back=True)
    return (total / len(chosen)).astype(np.float32)


def symmetries_of(symmetries: int, square: bool) -> list[int]:
    """The first *symmetries* of the eight, flips first; of what is not square, only flips."""
    return [0, 2, 4, 6, 1, 3, 5, 7][:symmetries] if square else [0, 2, 4, 6][:symmetries]


def _turned_patch(patch: Patch, symmetry: int) -> Patch:
    act = partial(_turn, symmetry=symmetry)
    lc = None if patch.lc is None else act(patch.lc)
    return Patch(patch.name, act(patch.s1), act(patch.s2), lc)


def _turn(array: NDArray, symmetry: int, *, back: bool = False) -> NDArray:
    """One of the eight symmetries (`patches.turn`), or its inverse."""
    tensor = torch.from_numpy(np.ascontiguousarray(array).view(np.int16 if array.dtype == np.uint16 else array.dtype))
    # Transposing comes before the flips; undone, it comes after them.
    turned = turn(turn(tensor, symmetry & 6), symmetry & 1) if back else turn(tensor, symmetry)
    return turned.contiguous().numpy().view(array.dtype)


def _normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values / np.maximum(values.sum(axis=0), np.float32(1e-30))).astype(np.float32)
