"""
Sources of training data: images and labels as tensors, random crops, normalised channels.

`PatchSource` is the interface that training, statistics and class counts use. `PatchStack` holds patches in memory;
`streamed.PatchFiles` reads them from disk, and `streamed.open_source` chooses. Both keep the numbers of the files
(uint16 reflectance x 10000, float32 dB), half the memory of floats; `normalise` converts a batch to float32 channels
on the device of the batch.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcfuse_core.data.bands import (
    CHANNELS,
    N_S1,
    N_S2,
    Statistics,
    channels_of,
    check_channels,
    measured,
    sensor_channels,
)
from lcfuse_core.data.cells import cell_ids, recover
from lcfuse_core.data.legends import IGNORE, SAVANNA, SAVANNA_INDEX, SCORED, dfc_to_index, igbp_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import DataError, GridError, MissingDataError, ParameterError

LABEL_KINDS = {"modis": ("s1", "s2", "lc"), "modis+savanna": ("s1", "s2", "lc"), "fine": ("s1", "s2", "dfc")}
"""The kinds of training labels, and the files that each needs."""

Images = Patch | tuple[NDArray[np.uint16], NDArray[np.float32]]
"""A patch, or its S2 (13, H, W), reflectance x 10000, and S1 (2, H, W), dB."""

Place = tuple[int, int, int, int]
"""Position of a crop: number of the patch, row and column of the upper left pixel, and symmetry 0..7."""

_S2_SCALE = 10000.0  # files hold reflectance x 10000; reflectance is clipped to 0..1
_S1_CLIP_DB = (-30.0, 5.0)  # from below the noise of Sentinel-1 to bright cities


def channel_statistics(patches: Iterable[Patch]) -> Statistics:
    """Compute mean and standard deviation of each measured channel over all pixels of some patches."""
    return statistics_of(channel_sums(patch.s2, patch.s1) for patch in patches)


_Sums = tuple[int, Tensor, Tensor]
"""Of some pixels: their number, and float64 (15,) the sums of each channel and of its squares."""


def channel_sums(s2: Tensor | NDArray[np.uint16], s1: Tensor | NDArray[np.float32]) -> _Sums:
    """Return the sums of the channels of one patch, from which `statistics_of` computes their statistics."""
    channels = _clipped(torch.as_tensor(s2), torch.as_tensor(s1), ("s2", "s1")).flatten(1)
    totals, squares = [], []
    for few in channels.split(3):  # doubles of all channels at once are larger than the cache: seven times as slow
        values = few.double()
        totals.append(values.sum(1))
        squares.append(values.square_().sum(1))
    return channels.shape[1], torch.cat(totals), torch.cat(squares)


def statistics_of(sums: Iterable[_Sums]) -> Statistics:
    """Return the statistics of the measured channels of some patches, from the sums of each."""
    n_pixels, (total, squares) = 0, torch.zeros((2, len(CHANNELS))).double()
    for n, own_total, own_squares in sums:
        n_pixels += n
        total += own_total
        squares += own_squares
    if n_pixels == 0:
        raise _no_patches()
    mean = total / n_pixels
    std = (squares / n_pixels - mean.square()).clamp(min=0).sqrt()
    channels = measured((total[:N_S2] > 0).numpy(), (std[N_S2:] >= 1e-6).numpy())
    chosen = [CHANNELS.index(name) for name in channels]
    # A channel that does not vary (B10 may be flat) carries no information: leave it unscaled.
    std[std < 1e-6] = 1.0
    return Statistics(tuple(mean[chosen].tolist()), tuple(std[chosen].tolist()), channels)


def network_input(images: Images, statistics: Statistics, inputs: tuple[str, ...] = ("s2", "s1")) -> Tensor:
    """Return one patch as `normalise` does; DataError if it does not fit what was trained with these *statistics*."""
    name, s2, s1 = (images.name, images.s2, images.s1) if isinstance(images, Patch) else ("images", *images)
    check_channels(name, channels_of(s2, s1), statistics, inputs)
    return normalise(s2, s1, statistics, inputs)


def normalise(
    s2: Tensor | NDArray[np.uint16],
    s1: Tensor | NDArray[np.float32],
    statistics: Statistics,
    inputs: tuple[str, ...] = ("s2", "s1"),
) -> Tensor:
    """
    Convert images to network input: clip, subtract the mean, divide by the standard deviation.

    Parameters
    ----------
    s2, s1 : uint16 (..., 13, H, W) and float32 (..., 2, H, W)
        Reflectance x 10000 and dB, of one patch or of N.
    statistics : Statistics
        Of the training data.
    inputs : tuple of str
        Sensors to use, out of "s2" and "s1"; S2 always comes first.

    Returns
    -------
    Tensor
        float32 (..., C, H, W), on the device of *s2*; C = 15, 13 or 2 if the statistics have all channels.
    """
    channels = _clipped(torch.as_tensor(s2), torch.as_tensor(s1), inputs)
    names = [name for own in sensor_channels(statistics.channels, inputs) for name in own]
    if len(names) < channels.shape[-3]:
        there = [name for own in sensor_channels(CHANNELS, inputs) for name in own]
        channels = channels[..., [there.index(name) for name in names], :, :]
    numbers = [statistics.channels.index(name) for name in names]
    mean, std = (
        torch.tensor([values[number] for number in numbers], device=channels.device).view(-1, 1, 1)
        for values in (statistics.mean, statistics.std)
    )
    return channels.sub_(mean).div_(std)


def _clipped(s2: Tensor, s1: Tensor, inputs: tuple[str, ...]) -> Tensor:
    """Return the chosen sensors in one new float32 tensor: reflectance clipped to 0..1, dB to _S1_CLIP_DB."""
    if not inputs or not set(inputs) <= {"s2", "s1"}:
        raise ParameterError("inputs", found=f"{inputs}", expected="s2, s1 or both", do="Correct the sensors.")
    if s2.ndim not in (3, 4) or s2.shape[-3] != N_S2 or s1.shape != (*s2.shape[:-3], N_S1, *s2.shape[-2:]):
        found = f"S2 of shape {tuple(s2.shape)} with S1 of shape {tuple(s1.shape)}"
        expected = f"({N_S2}, H, W) with ({N_S1}, H, W), or both with N in front"
        raise GridError("channels", found=found, expected=expected, do="Pass both sensors, channels first.")
    n_s2, n_s1 = N_S2 * ("s2" in inputs), N_S1 * ("s1" in inputs)
    shape = (*s2.shape[:-3], n_s2 + n_s1, *s2.shape[-2:])
    channels = torch.empty(shape, dtype=torch.float32, device=s2.device)
    if n_s2:
        channels[..., :n_s2, :, :].copy_(s2).div_(_S2_SCALE).clamp_(0, 1)
    if n_s1:
        channels[..., n_s2:, :, :].copy_(s1).clamp_(*_S1_CLIP_DB)
    return channels


def label_index(patch: Patch, labels: str) -> NDArray[np.uint8]:
    """
    Return the network classes 0..7 (255 = ignore) of a patch, uint8 (H, W).

    *labels* is "modis" (IGBP through the DFC2020 legend; Savanna and Snow/Ice are ignored), "modis+savanna" (with
    Savanna as SAVANNA_INDEX) or "fine" (the 10 m reference). Raises MissingDataError if the patch lacks that layer.
    """
    check_labels(labels)
    kind = LABEL_KINDS[labels][-1]
    codes = patch.dfc if kind == "dfc" else patch.lc if patch.lc is None else patch.lc[0]
    if codes is None:
        do = f"Take only patches that have it: patches.complete(index, {LABEL_KINDS[labels]})."
        raise MissingDataError(patch.name, found=f"no {kind} layer", expected=f"one, for {labels} labels", do=do)
    return classes_of(codes, labels)


def classes_of(codes: NDArray[np.uint8], labels: str) -> NDArray[np.uint8]:
    """Return the network classes of the codes in the first band of a label file."""
    dfc = codes if labels == "fine" else igbp_to_dfc(codes)
    index = dfc_to_index(dfc)
    if labels == "modis+savanna":
        index[dfc == SAVANNA] = SAVANNA_INDEX
    return index


def check_labels(labels: str) -> None:
    """Raise ParameterError if *labels* is not in `LABEL_KINDS`."""
    if labels not in LABEL_KINDS:
        expected = " or ".join(LABEL_KINDS)
        raise ParameterError("labels", found=repr(labels), expected=expected, do="Correct the name.")


def patch_cells(patch: Patch) -> NDArray[np.int32]:
    """
    Number the coarse cells of a patch: 0..n-1 for each pixel, int32 (H, W).

    From the georeference; without one (phase archives of DFC2020) recovered from the MODIS label (`cells.recover`);
    without that label the whole patch is one cell.
    """
    shape = patch.s2.shape[1:]
    if patch.crs is not None and patch.transform is not None:
        return cell_ids(patch.transform, patch.crs, shape)[0]
    return np.zeros(shape, np.int32) if patch.lc is None else recover(patch.lc).ids


def class_counts(labels: Tensor | NDArray[np.uint8], n_classes: int = len(SCORED)) -> Tensor:
    """Count the pixels of each network class, int64 (n_classes,); with *n_classes* = N_COARSE also Savanna."""
    return torch.bincount(torch.as_tensor(labels).reshape(-1), minlength=IGNORE + 1)[:n_classes]


class Crops(NamedTuple):
    """
    Images and labels cut from a source: n squares, or one window without the first axis.

    s2 is uint16 (n, 13, H, W), reflectance x 10000; s1 float32 (n, 2, H, W), dB; labels uint8 (n, H, W); cells int32
    (n, H, W), the number of the coarse cell of each pixel, valid within its crop only, or (n, 0, 0) if left out.
    """

    s2: Tensor
    s1: Tensor
    labels: Tensor
    cells: Tensor


def _empty(n: int, rows: int, cols: int, cells: bool = True) -> Crops:
    """Return `Crops` to be filled; their cells have no pixels if they are left out."""
    s2, s1 = np.empty((n, N_S2, rows, cols), np.uint16), np.empty((n, N_S1, rows, cols), np.float32)
    labels, numbers = np.empty((n, rows, cols), np.uint8), np.empty((n, rows, cols) if cells else (n, 0, 0), np.int32)
    return Crops(*map(torch.from_numpy, (s2, s1, labels, numbers)))


class PatchSource(ABC):
    """
    Patches of one size with labels and coarse cells, in memory or on disk: all that training and statistics need.

    The same patches give the same crops, statistics and class counts in every subclass. None of the methods needs more
    memory than a batch or a patch. Cells can be left out (*cells* = False): computing those of a patch on disk takes as
    long as reading it, and only cell-level losses use them.

    Attributes
    ----------
    names : list of str
        Names of the patches.
    shape : tuple of int
        Rows and columns of each patch.
    """

    names: list[str]
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    def places(self, n: int, size: int, generator: torch.Generator) -> list[Place]:
        """
        Draw the positions of *n* random squares, each equally likely and in one of its eight symmetries.

        Raises ParameterError if a patch does not hold a square of *size* pixels.
        """
        rows, cols = self.shape
        if not 0 < size <= min(rows, cols):
            expected = f"1..{min(rows, cols)}, as the patches have {rows} x {cols} pixels"
            raise ParameterError("crop size", found=f"{size}", expected=expected, do="Take smaller crops.")
        highest = (len(self), rows - size + 1, cols - size + 1, 8)
        draws = torch.stack([torch.randint(high, (n,), generator=generator) for high in highest], dim=1)
        return list(map(tuple, draws.tolist()))

    @abstractmethod
    def fill(self, number: int, row: int, col: int, out: Sequence[NDArray[Any]]) -> None:
        """
        Copy the window of a patch that begins at *row*, *col* into views *out* of the fields of `Crops`.

        What stands for labels may be codes that `_cut` translates; a source of other labels replaces them.
        """

    def cut(self, places: Sequence[Place], size: int, *, cells: bool = True) -> Crops:
        """Return the squares of *size* pixels at these positions."""
        return self._cut(places, size, size, cells)

    def windows(self, *, cells: bool = True) -> Iterator[Crops]:
        """Yield whole patches, one at a time, in the order of `names`."""
        for number in range(len(self)):
            yield Crops(*(tensor[0] for tensor in self._cut([(number, 0, 0, 0)], *self.shape, cells)))

    def _cut(self, places: Sequence[Place], rows: int, cols: int, cells: bool) -> Crops:
        crops = _empty(len(places), rows, cols, cells)
        arrays = [tensor.numpy() for tensor in crops]
        for n, (number, row, col, symmetry) in enumerate(places):
            self.fill(number, row, col, [_turned(array[n], symmetry) for array in arrays])
        return crops

    @abstractmethod
    def part(self, numbers: Sequence[int]) -> PatchSource:
        """Return the patches of these numbers as a source of their own."""

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 that changes with every pixel, label and cell that training can use."""

    def crops(self, n: int, size: int, generator: torch.Generator, *, cells: bool = True) -> Crops:
        """Return *n* random squares of *size* pixels; the same state of the CPU generator gives the same squares."""
        return self.cut(self.places(n, size, generator), size, cells=cells)

    def statistics(self) -> Statistics:
        """Compute mean and standard deviation of the channels, see `channel_statistics`."""
        return statistics_of(channel_sums(window.s2, window.s1) for window in self.windows(cells=False))

    def class_counts(self, n_classes: int = len(SCORED)) -> Tensor:
        """Count the pixels of each class of the labels, see the function of that name."""
        counts = (class_counts(window.labels, n_classes) for window in self.windows(cells=False))
        return sum(counts, torch.zeros(n_classes).long())


class PatchStack(PatchSource):
    """
    Patches of one size in memory, 2.6 MB for each of 256 x 256.

    The tensors are those of `Crops` with n = N patches of H x W pixels; labels are network classes 0..7, 255 = ignore,
    and 8 = Savanna for labels "modis+savanna".

    Raises GridError if sizes differ, MissingDataError if a patch lacks such labels, DataError without patches.
    """

    def __init__(self, patches: Iterable[Patch], labels: str = "modis", *, at_most: int | None = None) -> None:
        """With *at_most* given, *patches* may be a generator that is never held as a list."""
        patches = list(patches) if at_most is None else patches
        self.names = []
        for patch in patches:
            if not self.names:
                self._allocate(at_most or len(patches), *patch.s2.shape[1:])  # type: ignore[arg-type]
            if patch.s2.shape[1:] != self.shape:
                raise other_size(patch.name, patch.s2.shape[1:], self)
            self.put(patch.name, patch.s2, patch.s1, label_index(patch, labels), patch_cells(patch))
        if not self.names:
            raise _no_patches()
        for name in Crops._fields:
            setattr(self, name, getattr(self, name)[: len(self)])

    def _allocate(self, n: int, rows: int, cols: int) -> None:
        self.names, self.shape = [], (rows, cols)
        self.s2, self.s1, self.labels, self.cells = _empty(n, rows, cols)

    @classmethod
    def empty(cls, n: int, rows: int, cols: int) -> PatchStack:
        """Return a stack with room for *n* patches, which `put` adds: for images that are not files of patches."""
        stack = cls.__new__(cls)
        stack._allocate(n, rows, cols)
        return stack

    def put(self, name: str, *arrays: NDArray) -> None:
        """Add one patch: s2, s1, labels and cells of the size and dtype that the stack has room for."""
        for tensor, values in zip((self.s2, self.s1, self.labels, self.cells), arrays, strict=True):
            tensor[len(self)] = torch.from_numpy(values)
        self.names.append(name)

    def fill(self, number: int, row: int, col: int, out: Sequence[NDArray[Any]]) -> None:
        """Copy the window of a patch that begins at *row*, *col*."""
        rows, cols = slice(row, row + out[2].shape[0]), slice(col, col + out[2].shape[1])
        for tensor, array in zip((self.s2, self.s1, self.labels, self.cells), out, strict=True):
            if array.size:
                array[:] = tensor.numpy()[number, ..., rows, cols]

    def windows(self, *, cells: bool = True) -> Iterator[Crops]:
        """Yield the patches, without copying them."""
        return map(Crops, self.s2, self.s1, self.labels, self.cells if cells else self.cells[:, :0, :0])

    def digest(self) -> str:
        """Return a SHA-256 of pixels, labels, cells and names."""
        total = hashlib.sha256("\n".join(self.names).encode())
        for name in Crops._fields:
            tensor = getattr(self, name).contiguous()
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.view(torch.uint8).numpy().data)
        return total.hexdigest()

    def part(self, numbers: Sequence[int]) -> PatchStack:
        """Return the patches of these numbers as a stack of their own."""
        chosen = copy(self)
        for name in Crops._fields:
            setattr(chosen, name, getattr(self, name)[list(numbers)])
        chosen.names = [self.names[number] for number in numbers]
        return chosen


def other_size(name: str, shape: tuple[int, ...], source: PatchSource) -> GridError:
    """Return the error for a patch of another size than those before it."""
    expected, do = f"{source.shape} as in {source.names[0]}", "Leave out or cut patches of other sizes."
    return GridError(name, found=f"{tuple(shape)} pixels", expected=expected, do=do)


def _no_patches() -> DataError:
    return DataError("patches", found="none", expected="at least one", do="Read some patches first.")


def turn_each(crops: Crops, symmetries: Sequence[int]) -> Crops:
    """Apply a symmetry to each crop of a batch, in at most eight calls, on the device of the batch."""
    which, turned = torch.tensor(symmetries), []
    for crop in crops:
        bits = crop.view(torch.int16) if crop.dtype == torch.uint16 else crop  # torch cannot flip uint16
        whole = torch.empty_like(bits)
        for symmetry in sorted(set(symmetries)):
            chosen = (which == symmetry).nonzero().flatten().to(crop.device)
            whole[chosen] = turn(bits[chosen], symmetry)
        turned.append(whole.view(crop.dtype))
    return Crops(*turned)


def turn(square: Tensor, symmetry: int) -> Tensor:
    """Apply one of the eight symmetries (0..7) of a square (..., H, W): its three bits transpose, flip, flip."""
    if symmetry & 1:
        square = square.transpose(-1, -2)
    flips = [axis for bit, axis in ((2, -2), (4, -1)) if symmetry & bit]
    return square.flip(flips) if flips else square


def _turned(square: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Return a view of *square* (..., H, W) in which an array is stored as `turn` would turn it."""
    upright = square[..., :: -1 if symmetry & 2 else 1, :: -1 if symmetry & 4 else 1]
    return upright.swapaxes(-1, -2) if symmetry & 1 else upright
