"""
The input channels of a network: which of them the data have, and whether images fit a network.

Patch files always hold 13 bands of Sentinel-2 and two of Sentinel-1. A band of Sentinel-2 that is 0 everywhere was not
measured, and neither was Sentinel-1 if both bands are constant: surface reflectance (L2A) lacks B10, and some places
lack Sentinel-1. Statistics, networks and forests use the other channels alone: 15, 14 (L2A), 13 (L1C alone) or 12 (L2A
alone). The channels that a network was trained on are part of its statistics, and of its checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.data.bands import BANDS, S2_BANDS
from lcfuse_core.errors import DataError, ParameterError

N_S2, N_S1 = BANDS["s2"], BANDS["s1"]

CHANNELS = (*S2_BANDS, "VV", "VH")
"""The input channels of a network that uses all bands of both sensors, in order."""

_SENSORS = {"s2": S2_BANDS, "s1": CHANNELS[N_S2:]}


@dataclass(frozen=True)
class Statistics:
    """
    Mean and standard deviation of channels after clipping, S2 as reflectance 0-1 and S1 in dB, and their names.

    Raises ParameterError unless the *channels* are some of `CHANNELS`, in their order, and each has a finite mean and a
    positive standard deviation.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: tuple[str, ...] = CHANNELS

    def __post_init__(self) -> None:
        n = len(self.channels)
        if not n or self.channels != tuple(name for name in CHANNELS if name in self.channels):
            expected = f"some of {', '.join(CHANNELS)}, in this order"
            do = "Compute the statistics from patches."
            raise ParameterError("channels", found=f"{self.channels}", expected=expected, do=do)
        is_good = len(self.mean) == len(self.std) == n and np.isfinite([*self.mean, *self.std]).all()
        if not is_good or min(self.std) <= 0:
            found = f"means {self.mean}, standard deviations {self.std}"
            expected, do = f"{n} finite means and {n} positive standard deviations", "Compute them from varied patches."
            raise ParameterError("channel statistics", found=found, expected=expected, do=do)


def sensor_channels(channels: Collection[str], inputs: Sequence[str]) -> list[tuple[str, ...]]:
    """
    Return those of *channels* that belong to each sensor of *inputs*, S2 first, without sensors that have none.

    Raises DataError if no channel is left.
    """
    own = [tuple(name for name in _SENSORS[sensor] if name in channels) for sensor in ("s2", "s1") if sensor in inputs]
    if not any(own):
        found, expected = f"no band of {' or '.join(inputs)}", "one that is not constant"
        raise DataError("channels", found=found, expected=expected, do="Take images with data, or the other sensor.")
    return [names for names in own if names]


def channels_of(s2: Any, s1: Any) -> tuple[str, ...]:
    """Return the channels that were measured, of images (13, ...) and (2, ...) as arrays or tensors."""
    s2, s1 = (np.asarray(bands).reshape(len(bands), -1) for bands in (s2, s1))
    return measured(s2.any(axis=1), s1.min(axis=1) != s1.max(axis=1))


def measured(has_s2: NDArray[np.bool_], varies_s1: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the channels that were measured, from whether each S2 band has values, and whether each S1 band varies."""
    return (
        *(name for name, there in zip(S2_BANDS, has_s2, strict=True) if there),
        *_SENSORS["s1"][: 2 * any(varies_s1)],
    )


def check_channels(
    where: str | os.PathLike[str], found: Collection[str], statistics: Statistics, inputs: Sequence[str]
) -> None:
    """
    Raise DataError if images with the channels *found* do not fit what was trained with these *statistics*.

    Images that lack a channel do not fit, and neither do images of another processing level: top-of-atmosphere
    reflectance (L1C, with B10) and surface reflectance (L2A, without) differ in all bands.
    """
    needed = [name for names in sensor_channels(statistics.channels, inputs) for name in names]
    uses_s2 = any(name in needed for name in S2_BANDS)
    if uses_s2 and ("B10" in found) != ("B10" in needed):
        level, other = ("L1C", "L2A") if "B10" in found else ("L2A", "L1C")
        explained = {"L1C": "L1C (top of the atmosphere, with B10)", "L2A": "L2A (surface reflectance, no B10)"}
        do = f"Take {other} images, or train on images of this level: the scene's own coarse label is enough."
        expected = f"{explained[other]}, as the network was trained on"
        raise DataError(where, found=f"Sentinel-2 {explained[level]}", expected=expected, do=do)
    missing = [name for name in needed if name not in found]
    if missing:
        expected = f"{', '.join(missing)}, as the network was trained on"
        do = "Take images with these bands, or a network that was trained without them."
        raise DataError(where, found=f"no data in {', '.join(missing)}", expected=expected, do=do)
