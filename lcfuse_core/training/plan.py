"""The plan of a training: every hyperparameter, checked by pydantic when the plan is made."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic.dataclasses import dataclass
from torch import nn

from lcfuse_core.data.bands import CHANNELS, sensor_channels
from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.source import LABEL_KINDS
from lcfuse_core.errors import parameter_errors
from lcfuse_core.models.losses import LOSSES
from lcfuse_core.models.networks import NETWORKS, build

_RETIRED = {"ema": 0.0, "sampling": "area"}
"""Fields in the headers of earlier checkpoints, with their default values; other values cannot be reproduced."""

_Rows = tuple[tuple[float, ...], ...]


def _tuples(value: Any) -> Any:
    """Convert lists, as JSON and YAML have them, to tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def one_of(known: Iterable[object]) -> AfterValidator:
    """Return a validator that accepts these values."""

    def check(value: object) -> object:
        if value not in known:
            raise ValueError(f"one of {', '.join(map(str, known))}")
        return value

    return AfterValidator(check)


def _check_inputs(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or len(set(value)) < len(value):
        raise ValueError("s2, s1 or both")
    return value


def _check_fusion(value: str, info: ValidationInfo) -> str:
    if value == "late" and len(info.data.get("inputs", "")) == 1:
        raise ValueError("early, as there is only one sensor")
    return value


def _check_transition(rows: _Rows | None) -> _Rows | None:
    """Check that the rows are distributions over the coarse labels, one for each class."""
    if rows is None:
        return None
    bad = [len(row) != N_COARSE or min(row) < 0 or not np.isclose(sum(row), 1, atol=1e-6) for row in rows]
    if len(rows) != len(SCORED) or any(bad):
        raise ValueError(f"{len(SCORED)} rows of {N_COARSE} proportions that sum to 1")
    return rows


_Sensor = Literal["s2", "s1"]
_Count = Annotated[int, Field(ge=1, le=10**9)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


@parameter_errors("plan", "Correct the plan.")
@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class TrainPlan:
    """
    All that decides a training, beside the data. Raises ParameterError on an unknown name or value.

    >>> TrainPlan(steps=100).network
    'fcn'
    """

    network: Annotated[str, one_of(NETWORKS)] = "fcn"  # receptive field smaller than a cell: it cannot learn its shape
    width: Annotated[int, Field(ge=1, le=4096)] | None = None  # channels of the first layer; None: the default
    inputs: Annotated[tuple[_Sensor, ...], BeforeValidator(_tuples), AfterValidator(_check_inputs)] = ("s2", "s1")
    # of both sensors: stacked channels, or one branch for each
    fusion: Annotated[Literal["early", "late"], AfterValidator(_check_fusion)] = "early"
    labels: Annotated[str, one_of(LABEL_KINDS)] = "modis"  # "fine" is the upper bound: the 10 m reference
    loss: Annotated[str, one_of(LOSSES)] = "cross_entropy"
    # p(coarse | fine), (8, 9); None: transition.from_accuracy
    transition: Annotated[_Rows | None, BeforeValidator(_tuples), AfterValidator(_check_transition)] = None
    class_weight_power: _Fraction = 0.5  # average accuracy counts classes equally, labels do not
    crop: Annotated[int, Field(ge=32, le=8192)] = 64  # pixels; many small crops of many scenes beat few large ones
    batch: Annotated[int, Field(ge=1, le=65536)] = 16  # crops in a step, over all processes
    steps: _Count = 800
    learning_rate: Annotated[float, Field(ge=1e-8, le=1)] = 5e-3  # the maximum; see loop.learning_rate
    warm_up: _Fraction = 0.1  # proportion of the steps in which the rate rises
    weight_decay: _Fraction = 1e-2
    clip_norm: Annotated[float, Field(ge=1e-3, le=math.inf)] = 1.0  # maximum norm of the gradient
    report_every: _Count = 100  # steps between lines of the history, validations and checkpoints
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    device: str = "auto"  # the GPU if there is one; or "cpu", "cuda:1" ...
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # see predict.compute_dtype
    compiled: bool = False  # by torch.compile: minutes at the start, a faster step on a GPU

    @classmethod
    def from_header(cls, values: Mapping[str, Any]) -> TrainPlan:
        """Return the plan in the header of a checkpoint; fields of earlier versions must have their default values."""
        return cls(**{name: value for name, value in values.items() if (name, value) not in _RETIRED.items()})

    def build(self, channels: Collection[str] = CHANNELS) -> nn.Module:
        """Return the network of this plan for these *channels*, with fresh weights from torch's global generator."""
        sizes = tuple(map(len, sensor_channels(channels, self.inputs)))
        return build(self.network, in_channels=sizes if self.fusion == "late" else sum(sizes), width=self.width)
