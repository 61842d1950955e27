"""
Bands and units of Sentinel-1, Sentinel-2 and label files, checks of names and values, and the channels of a network.

The checks use medians and low percentiles, and look at every part of an image: one extreme pixel decides nothing, and
a mosaic of which one half has another unit is refused.

Patch files always hold 13 bands of Sentinel-2 and two of Sentinel-1. A band of Sentinel-2 that is 0 everywhere was not
measured, and neither was Sentinel-1 if both bands are constant: surface reflectance (L2A) lacks B10, and some places
lack Sentinel-1. Statistics, networks and forests use the other channels alone: 15, 14 (L2A), 13 (L1C alone) or 12 (L2A
alone). The channels that a network was trained on are part of its statistics, and of its checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.errors import DataError, ParameterError

S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""Order of the Sentinel-2 bands in files and arrays."""

B10 = S2_BANDS.index("B10")
"""Index of the cirrus band, which is nearly black."""

_BANDS = {"s1": 2, "s2": 13, "lc": 4, "dfc": 1}
"""Number of bands of each kind."""

N_S2, N_S1 = _BANDS["s2"], _BANDS["s1"]

DTYPES = {"s1": ("float32", "float64"), "s2": ("uint16", "int16"), "lc": ("uint8",), "dfc": ("uint8",)}
"""DFC2020 has S1 as float64; some copies have S2 as int16. Both are converted to the first of the pair."""

UNITS = {
    "s1": "VV and VH in dB (10 log10 of the linear values)",
    "s2": "B1..B12 with B8A and B10, reflectance x 10000 as whole numbers",
    "lc": "IGBP and three LCCS layers as class codes",
    "dfc": "DFC2020 class codes",
}

S1_RANGE_DB = (-100.0, 60.0)
"""Backscatter outside this range is not a measurement."""

S2_MAX = 32767
"""Reflectance x 10000 above this is a fill value, or a negative number read as unsigned."""

S2_OFFSET = 1000
"""Offset of products since processing baseline 04.00; SEN12MS and DFC2020 are older."""

OFFSET_REMOVED = f"s2: offset of +{S2_OFFSET} taken off all bands"
"""Description of the repair."""

_NAMES = {"s1": ("VV", "VH"), "s2": S2_BANDS, "lc": ("LC_TYPE1", "LC_PROP1", "LC_PROP2", "LC_PROP3")}
_PATTERNS = {
    "s1": r"(?<![A-Z])(VV|VH|HH|HV)(?![A-Z])",
    "s2": r"(?<![A-Z0-9])B(?:0?([1-9])|(1[0-2]|8A))(?![A-Z0-9])",
    "lc": r"(LC_(?:TYPE|PROP)[1-5])$",
}
_COMMON_NAMES = dict(
    zip(
        ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "cirrus",
         "swir16", "swir22"), S2_BANDS, strict=True,
    )
)  # fmt: skip
"""Names of the EO extension of STAC."""

_S2_DARKEST = 256  # the brightest value lies above: scattering by the air alone gives about 1000 in B1
_B1_LEAST = 350  # scattering by the air gives 500 and more; reflectance x 1000 has about 140
_S2_MEDIAN = 12_500  # fresh snow under a low sun; the median of no scene is brighter
_B1_CLOUD = 4_500  # a surface as bright as this in B1 is snow or cloud, and nearly as bright in B4
_CLEAR_SPREAD, _CLEAR_B10 = 100, 300  # B10 of a clear part: narrow and nearly black, but for the offset
_VV_MEDIAN_DB, _VH_MEDIAN_DB = (-40.0, 5.0), (-60.0, -3.0)
_SWAPPED_DB = 1.5  # VH lies 3 to 10 dB below VV, at the noise floor of both about as high
_SAMPLE = 4096  # pixels that medians are taken of


def band_order(where: str | os.PathLike[str], kind: str, names: Sequence[str | None]) -> tuple[int, ...]:
    """
    Return the positions of the bands of *kind* in a file whose bands have these *names*; in order without names.

    Raises DataError if the number of bands is wrong, or if names contradict the kind.

    >>> band_order("s1.tif", "s1", ["Sigma0_VH_db", "Sigma0_VV_db"])
    (1, 0)
    """
    if not any(names) and len(names) == _BANDS[kind]:
        return tuple(range(len(names)))
    found, wanted = [band_name(kind, name or "") for name in names], _NAMES.get(kind, ())
    known = [name for name in found if name]
    if wanted and all(known.count(name) == 1 for name in wanted):
        return tuple(found.index(name) for name in wanted)
    fits = all(name in (None, own) for name, own in zip(found, wanted, strict=False))
    if len(names) == _BANDS[kind] and fits:
        return tuple(range(len(names)))
    if kind == "s2" and (len(names) == 12 or (len(known) >= 12 and "B10" not in known)):
        do = "A Sentinel-2 L2A product does not fit: it has no B10. Take the L1C product of the same scene."
    else:
        do = "Download the published file again, or write one of these bands; names, if any, must be theirs."
    said = f" named {', '.join(name or '-' for name in names[:20])}" if known else ""
    raise DataError(where, found=f"{len(names)} bands{said}", expected=f"{_BANDS[kind]}: {UNITS[kind]}", do=do)


def band_name(kind: str, text: str) -> str | None:
    """
    Return the band that a description or the name of a file refers to, None if it refers to none or to several.

    >>> band_name("s2", "T32UNF_20180502T102031_B08"), band_name("s2", "swir16"), band_name("s1", "Gamma0_VV")
    ('B8', 'B11', 'VV')
    """
    found = {"".join(parts) for parts in re.findall(_PATTERNS.get(kind, "(?!)"), text.strip().upper())}
    name = found.pop() if len(found) == 1 else None
    return (f"B{name}" if name else _COMMON_NAMES.get(text.strip().lower())) if kind == "s2" else name


def check_s1(
    where: str | os.PathLike[str], s1: NDArray[np.floating], parts: Sequence[NDArray[np.floating]] = ()
) -> None:
    """
    Raise DataError unless an array (2, ...) plausibly holds VV and VH in dB, in this order and finite everywhere.

    *where* names the file in the message; *parts* are parts of the image (2, n), by default blocks of the array.
    """
    n_bad = int((~np.isfinite(s1)).sum())
    if n_bad:
        found, do = f"{n_bad} values that are NaN or infinite", "Leave the patch out, or mark them as no data."
        raise DataError(where, found=found, expected="backscatter in dB everywhere", do=do)
    low, high = S1_RANGE_DB
    medians = _medians(s1).tolist()
    if medians[1] > medians[0] + _SWAPPED_DB:
        found = f"VH {medians[1] - medians[0]:.1f} dB above VV in the median"
        do = "Write the bands in the order VV, VH, and convert to dB once."
        raise DataError(where, found=found, expected="VV first, and VH below it", do=do)
    for band, values, median, (least, most) in zip(
        ("VV", "VH"), s1, medians, (_VV_MEDIAN_DB, _VH_MEDIAN_DB), strict=True
    ):
        smallest, largest = values.min(), values.max()
        # Linear power is never below zero, and its median not far above.
        if smallest >= 0 or smallest < low or largest > high or not least <= median <= most:
            found = f"{band} from {smallest:.4g} to {largest:.4g} with a median of {median:.4g}"
            expected = f"dB: some pixels below 0, all within {low:g}..{high:g}, the median within {least:g}..{most:g}"
            do = "If the file holds linear power, convert it: 10 log10(value)."
            raise DataError(where, found=found, expected=expected, do=do)
    blocks = [part for part in parts or _blocks(s1) if part.shape[1] >= 64] if s1[1].max() >= 0 else []
    linear = sum(part.min() >= 0 for part in blocks)
    if linear:
        found, do = f"no value below 0 in {linear} of {len(blocks)} parts", "Convert all of it to dB."
        raise DataError(where, found=found, expected="dB everywhere", do=do)


def check_s2(
    where: str | os.PathLike[str],
    s2: NDArray[np.integer],
    parts: Sequence[NDArray[np.integer]] = (),
    *,
    noisy: bool = False,
) -> int:
    """
    Raise DataError unless an array (13, ...) plausibly holds reflectance x 10000 of all bands in file order.

    Returns the offset to subtract from all bands: 1000 for products since baseline 04.00, else 0. It shows in
    B10, which is else nearly black; under clouds B10 is bright too, but not everywhere. In large scenes (*noisy*) 1 %
    of the pixels may be dark nevertheless. *parts*: see `check_s1`. An image whose B10 is 0 everywhere is a product of
    surface reflectance (L2A), from which the light of the air was removed: its B1 may be dark.
    """
    smallest, largest = int(s2.min()), int(s2.max())
    darkest = np.percentile(s2[B10], 1) / 0.9 if noisy else s2[B10].min()
    offset = S2_OFFSET if darkest >= S2_OFFSET else 0
    median = _medians(s2).astype(float)
    b1, b4, b9, b10 = (median[S2_BANDS.index(band)] for band in ("B1", "B4", "B9", "B10"))
    values = f"values from {smallest} to {largest}, with medians of {median.min():.0f} to {median.max():.0f}"
    do = "Convert it if it has another scale; leave it out if it is no-data."
    if smallest < 0 or largest > S2_MAX or largest < _S2_DARKEST:
        found, expected = values, f"reflectance x 10000, within 0..{S2_MAX} and not all below {_S2_DARKEST}"
    elif median.min() > 1500 and (b10 > min(b1, b9) or darkest > S2_OFFSET + _CLEAR_B10):
        found, expected = "clouds everywhere: all bands bright, B10 (cirrus) too", "an image with clear parts"
        do = "Choose a clear image, or leave the patch out."
    elif b10 > min(b1, b9, median.min() + _CLEAR_B10):
        # The light of the cirrus band hardly reaches the ground, and what reflects it is bright in all bands.
        found = f"band 11 brighter than band {1 if b10 > b1 else 1 + int(median.argmin())} on the whole"
        expected, do = f"{UNITS['s2']}: B10 (cirrus) is nearly black", "Bring the bands into file order."
    elif b1 - offset < _B1_LEAST and s2[B10].any():
        found, expected = f"{values}, {b1:.0f} in B1", f"reflectance x 10000, the median of B1 above {_B1_LEAST}"
    elif median.max() > _S2_MEDIAN + offset or (b1 > _B1_CLOUD + offset and b4 - offset < 0.6 * (b1 - offset)):
        found = f"{values}, {b1:.0f} in B1 and {b4:.0f} in B4"
        expected = f"reflectance x 10000: no median above {_S2_MEDIAN}, and B4 as bright as B1 where B1 is bright"
    elif largest >= S2_OFFSET and s2[B10].max() >= S2_OFFSET and _is_mixed(parts or _blocks(s2)):
        found = f"an offset of +{S2_OFFSET} in a part of the image"
        expected = "the offset in all of it, or nowhere"
        do = f"Subtract {S2_OFFSET} from the products of baseline 04.00 and later before they are joined."
    else:
        return offset
    raise DataError(where, found=found, expected=expected, do=do)


def subtract_offset(s2: NDArray[np.uint16], offset: int) -> None:
    """Subtract the offset from reflectance x 10000 in place; values below it become 0."""
    np.maximum(s2, offset, out=s2)
    s2 -= np.uint16(offset)


def _is_mixed(parts: Sequence[NDArray[np.integer]]) -> bool:
    """Return whether some clear parts of an image have the offset in B10 and others have not."""
    low, high = np.array([np.percentile(part[B10], (1, 99)) for part in parts if part.shape[1] >= 64]).reshape(-1, 2).T
    narrow = high - low < _CLEAR_SPREAD
    counts = (narrow & (low >= S2_OFFSET) & (high < S2_OFFSET + _CLEAR_B10)).sum(), (narrow & (high < _CLEAR_B10)).sum()
    return bool(min(counts) >= max(1, 0.05 * len(parts)))


def _blocks(image: NDArray[Any]) -> list[NDArray[Any]]:
    """Return blocks of about 32 pixels of an image (bands, H, W), each (bands, n); other arrays as one."""
    if image.ndim != 3:
        return [image.reshape(len(image), -1)]
    n_rows, n_cols = (max(1, size // 32) for size in image.shape[1:])
    strips = np.array_split(image, n_rows, axis=1)
    return [block.reshape(len(image), -1) for strip in strips for block in np.array_split(strip, n_cols, axis=2)]


def _medians(image: NDArray[Any]) -> NDArray[Any]:
    """Return the median of each band of some 4,000 pixels of an image (bands, ...)."""
    flat = image.reshape(len(image), -1)
    sample = np.ascontiguousarray(flat[:, :: max(1, flat.shape[1] // _SAMPLE | 1)])
    middle = sample.shape[1] // 2
    return np.partition(sample, middle, axis=1)[:, middle]  # half the time of np.median


# Channels --------------------------------------------------------------------------------------------

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
