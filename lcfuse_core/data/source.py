"""
Patches for torch: labels as network classes, random crops, normalised channels.

Inside, a stack keeps the numbers of the files (uint16 reflectance x 10000, float32 dB): half the memory of
floats. `normalise` turns a batch into float32 channels, on whatever device the batch lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lcfuse_core.data.cells import cell_ids, recover
from lcfuse_core.data.files import BANDS, S2_BANDS
from lcfuse_core.data.legends import IGNORE, N_COARSE, SAVANNA, SAVANNA_INDEX, SCORED, dfc_to_index, igbp_to_dfc
from lcfuse_core.data.patches import Patch, Report, iter_patches, read_patch
from lcfuse_core.errors import DataError, GridError, MissingDataError, ParameterError

N_S2, N_S1 = BANDS["s2"], BANDS["s1"]

CHANNELS = (*S2_BANDS, "VV", "VH")
"""The channels of a network that sees both sensors, in order."""

S2_SCALE = 10000.0
"""Files hold reflectance x 10000; reflectance is clipped to 0..1."""

S1_CLIP_DB = (-30.0, 5.0)
"""From below the noise of Sentinel-1 to bright cities."""

LABEL_KINDS = {
    "modis": ("s1", "s2", "lc"),
    "modis+savanna": ("s1", "s2", "lc"),
    "fine": ("s1", "s2", "dfc"),
}
"""Which labels a network learns from, and the files that this needs."""

Images = Patch | tuple[NDArray[np.uint16], NDArray[np.float32]]
"""A patch, or its S2 (13, H, W), reflectance x 10000, and S1 (2, H, W), dB."""


@dataclass(frozen=True)
class Statistics:
    """
    Mean and standard deviation of the 15 `CHANNELS` after clipping: S2 as reflectance 0-1, S1 in dB.

    Raises ParameterError unless there are 15 finite means and 15 positive deviations.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        n = len(CHANNELS)
        is_good = len(self.mean) == len(self.std) == n and np.isfinite([*self.mean, *self.std]).all()
        if not is_good or min(self.std) <= 0:
            raise ParameterError(
                "channel statistics",
                found=f"means {self.mean}, deviations {self.std}",
                expected=f"{n} finite means and {n} positive deviations",
                do="Compute them over patches that vary in every channel.",
            )


def channel_statistics(patches: Iterable[Patch] | PatchStack) -> Statistics:
    """Mean and standard deviation of each channel over all pixels of *patches* (a list or a stack)."""
    pairs = zip(patches.s2, patches.s1, strict=True) if isinstance(patches, PatchStack) else _pairs(patches)
    n_pixels, total, squares = 0, torch.zeros(len(CHANNELS)).double(), torch.zeros(len(CHANNELS)).double()
    for s2, s1 in pairs:
        values = _clipped(s2, s1, ("s2", "s1")).flatten(1).double()
        n_pixels += values.shape[1]
        total += values.sum(1)
        squares += values.square().sum(1)
    if n_pixels == 0:
        raise DataError("patches", found="none", expected="at least one", do="Read some patches first.")
    mean = total / n_pixels
    std = (squares / n_pixels - mean.square()).clamp(min=0).sqrt()
    # A channel that does not vary (B10 may be flat) carries nothing: leave it unscaled.
    std[std < 1e-6] = 1.0
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()))


def _pairs(patches: Iterable[Patch]) -> Iterable[tuple[Tensor, Tensor]]:
    return ((torch.from_numpy(patch.s2), torch.from_numpy(patch.s1)) for patch in patches)


def normalise(
    s2: Tensor | NDArray[np.uint16],
    s1: Tensor | NDArray[np.float32],
    statistics: Statistics,
    inputs: tuple[str, ...] = ("s2", "s1"),
) -> Tensor:
    """
    Channels as a network takes them: clipped, then mean 0 and deviation 1 over the *statistics*.

    s2 : uint16 (13, H, W) or (N, 13, H, W), reflectance x 10000
    s1 : float32 (2, H, W) or (N, 2, H, W), dB
    inputs : which sensors, out of "s2" and "s1"; S2 always comes first

    Returns float32 (C, H, W) or (N, C, H, W) on the device of *s2*, C = 15, 13 or 2. Raises GridError when
    bands or sizes do not fit, ParameterError on another sensor.
    """
    channels = _clipped(torch.as_tensor(s2), torch.as_tensor(s1), inputs)
    chosen = slice(0 if "s2" in inputs else N_S2, len(CHANNELS) if "s1" in inputs else N_S2)
    mean, std = (
        torch.tensor(values[chosen], device=channels.device).view(-1, 1, 1)
        for values in (statistics.mean, statistics.std)
    )
    return channels.sub_(mean).div_(std)


def _clipped(s2: Tensor, s1: Tensor, inputs: tuple[str, ...]) -> Tensor:
    """Chosen sensors in one new float32 tensor: reflectance clipped to 0..1, dB to S1_CLIP_DB."""
    _check_channels(s2, s1, inputs)
    n_s2, n_s1 = N_S2 * ("s2" in inputs), N_S1 * ("s1" in inputs)
    shape = (*s2.shape[:-3], n_s2 + n_s1, *s2.shape[-2:])
    channels = torch.empty(shape, dtype=torch.float32, device=s2.device)
    if n_s2:
        channels[..., :n_s2, :, :].copy_(s2).div_(S2_SCALE).clamp_(0, 1)
    if n_s1:
        channels[..., n_s2:, :, :].copy_(s1).clamp_(*S1_CLIP_DB)
    return channels


def _check_channels(s2: Tensor, s1: Tensor, inputs: tuple[str, ...]) -> None:
    if not inputs or not set(inputs) <= {"s2", "s1"}:
        raise ParameterError("inputs", found=f"{inputs}", expected="s2, s1 or both", do="Correct the sensors.")
    expected = (*s2.shape[:-3], N_S1, *s2.shape[-2:])
    if s2.ndim not in (3, 4) or s2.shape[-3] != N_S2 or tuple(s1.shape) != expected:
        raise GridError(
            "channels",
            found=f"S2 of shape {tuple(s2.shape)} with S1 of shape {tuple(s1.shape)}",
            expected=f"({N_S2}, H, W) with ({N_S1}, H, W), or both with N in front",
            do="Hand over both sensors of the same patches, channels first.",
        )


def label_index(patch: Patch, labels: str) -> NDArray[np.uint8]:
    """
    Network classes 0..7 (255 = ignore) of a patch, uint8 (H, W).

    labels : "modis" (band IGBP of lc, through the DFC2020 legend; Savanna and Snow/Ice are ignored),
        "modis+savanna" (the same, with Savanna as the coarse class SAVANNA_INDEX) or "fine" (the 10 m reference)

    Raises MissingDataError when the patch was read without that layer.
    """
    check_labels(labels)
    if labels != "fine" and patch.lc is not None:
        dfc = igbp_to_dfc(patch.lc[0])
        index = dfc_to_index(dfc)
        if labels == "modis+savanna":
            index[dfc == SAVANNA] = SAVANNA_INDEX
        return index
    if labels == "fine" and patch.dfc is not None:
        return dfc_to_index(patch.dfc)
    kind = LABEL_KINDS[labels][-1]
    do = f"Take only patches that have it: patches.complete(index, {LABEL_KINDS[labels]})."
    raise MissingDataError(patch.name, found=f"no {kind} layer", expected=f"one, for {labels} labels", do=do)


def check_labels(labels: str) -> None:
    """Raise ParameterError when there is no such kind of labels."""
    if labels not in LABEL_KINDS:
        expected = " or ".join(LABEL_KINDS)
        raise ParameterError("labels", found=repr(labels), expected=expected, do="Correct the name.")


def patch_cells(patch: Patch) -> NDArray[np.int32]:
    """
    Number, 0..n-1, of the coarse cell that each pixel of a patch lies in, int32 (H, W).

    From the georeference; where there is none (phase archives of DFC2020), as its MODIS label betrays them
    (`recovery.recover`). Without that label all is one cell.
    """
    shape = patch.s2.shape[1:]
    if patch.crs is not None and patch.transform is not None:
        return cell_ids(patch.transform, patch.crs, shape)[0]
    return np.zeros(shape, np.int32) if patch.lc is None else recover(patch.lc).ids


def class_counts(labels: Tensor | NDArray[np.uint8], n_classes: int = len(SCORED)) -> Tensor:
    """
    Pixels of each network class, int64 (8,), in labels of any shape; ignored pixels are not counted.

    n_classes : N_COARSE counts Savanna too, where the labels tell it
    """
    flat = torch.as_tensor(labels).reshape(-1)
    return torch.bincount(flat, minlength=IGNORE + 1)[:n_classes]


class Crops(NamedTuple):
    """
    Squares cut from a stack.

    s2 : uint16 (n, 13, size, size)
    s1 : float32 (n, 2, size, size)
    labels : uint8 (n, size, size)
    cells : int32 (n, size, size); a number means one cell within a crop, and nothing across crops
    """

    s2: Tensor
    s1: Tensor
    labels: Tensor
    cells: Tensor


class PatchStack:
    """
    Patches of one size in memory, 2.6 MB for each of 256 x 256.

    s2 : uint16 (N, 13, H, W), reflectance x 10000
    s1 : float32 (N, 2, H, W), dB
    labels : uint8 (N, H, W), network classes 0..7, 255 = ignore; 8 = Savanna, for labels "modis+savanna"
    cells : int32 (N, H, W), coarse cell of each pixel, numbered within its patch; see `patch_cells`
    names : of the patches

    Raises GridError when sizes differ, MissingDataError when a patch has no such labels, DataError when there
    are no patches.
    """

    s2: Tensor
    s1: Tensor
    labels: Tensor
    cells: Tensor

    def __init__(self, patches: Iterable[Patch], labels: str = "modis", *, at_most: int | None = None) -> None:
        """With *at_most* given, *patches* may be a generator that is never held as a list."""
        check_labels(labels)
        if at_most is None:
            patches = list(patches)
            at_most = len(patches)
        self.names: list[str] = []
        for patch in patches:
            if not self.names:
                self._make_room(at_most, *patch.s2.shape[1:])
            self._add(patch, labels)
        if not self.names:
            raise DataError("patches", found="none", expected="at least one", do="Read some patches first.")
        for name in Crops._fields:
            setattr(self, name, getattr(self, name)[: len(self)])

    def _make_room(self, n: int, rows: int, cols: int) -> None:
        self.s2 = torch.empty((n, N_S2, rows, cols), dtype=torch.uint16)
        self.s1 = torch.empty((n, N_S1, rows, cols), dtype=torch.float32)
        self.labels = torch.empty((n, rows, cols), dtype=torch.uint8)
        self.cells = torch.empty((n, rows, cols), dtype=torch.int32)

    def _add(self, patch: Patch, labels: str) -> None:
        if patch.s2.shape[1:] != self.s2.shape[2:]:
            raise GridError(
                patch.name,
                found=f"{patch.s2.shape[1:]} pixels",
                expected=f"{tuple(self.s2.shape[2:])} as in {self.names[0]}",
                do="Stack patches of one size; leave the others out or cut them.",
            )
        self.put(patch.name, patch.s2, patch.s1, label_index(patch, labels), patch_cells(patch))

    @classmethod
    def empty(cls, n: int, rows: int, cols: int) -> PatchStack:
        """Room for *n* patches, none there yet: for those that are no files of their own. `put` adds them."""
        stack = cls.__new__(cls)
        stack.names = []
        stack._make_room(n, rows, cols)
        return stack

    def put(
        self,
        name: str,
        s2: NDArray[np.uint16],
        s1: NDArray[np.float32],
        labels: NDArray[np.uint8],
        cells: NDArray[np.int32],
    ) -> None:
        """Add one patch, of which all arrays have the shape that the stack has room for."""
        number = len(self)
        for there, values in zip((self.s2, self.s1, self.labels, self.cells), (s2, s1, labels, cells), strict=True):
            there[number] = torch.from_numpy(values)
        self.names.append(name)

    def __len__(self) -> int:
        return len(self.names)

    def statistics(self) -> Statistics:
        """See `channel_statistics`."""
        return channel_statistics(self)

    def class_counts(self, n_classes: int = len(SCORED)) -> Tensor:
        """Pixels of each class of the labels; see the function of that name."""
        return class_counts(self.labels, n_classes)

    def crops(self, n: int, size: int, generator: torch.Generator) -> Crops:
        """
        *n* random squares of *size* pixels, each in one of its eight flips and rotations.

        generator : a CPU generator; the same state gives the same crops
        """
        return self.cut(self.places(n, size, generator), size)

    def places(self, n: int, size: int, generator: torch.Generator) -> list[Place]:
        """Where *n* such squares lie: patch, row, column and symmetry of each."""
        rows, cols = self.labels.shape[1:]
        if not 0 < size <= min(rows, cols):
            expected = f"1..{min(rows, cols)}, as the patches have {rows} x {cols} pixels"
            raise ParameterError("crop size", found=f"{size}", expected=expected, do="Take smaller crops.")
        highest = (len(self), rows - size + 1, cols - size + 1, 8)
        draws = torch.stack([torch.randint(high, (n,), generator=generator) for high in highest], dim=1)
        return list(map(tuple, draws.tolist()))

    def cut(self, places: Sequence[Place], size: int) -> Crops:
        """The squares of *size* pixels at these places."""
        # Slices, one crop at a time: ten times as fast as indexing with arrays.
        return Crops(*(_cut(getattr(self, name), places, size) for name in Crops._fields))

    def scene_names(self) -> list[str]:
        """The scene of each patch, from its name: ROIs1158_spring_124 of ROIs1158_spring_124_p100."""
        return [name.rpartition("_p")[0] or name for name in self.names]

    def extent(self, number: int) -> tuple[int, int]:
        """Rows and columns of a patch: all have the same."""
        rows, cols = self.labels[number].shape
        return rows, cols

    def is_whole(self, number: int, row: int, col: int, size: int) -> bool:
        """Whether a square inside a patch is covered: it always is."""
        return True

    def blocks(self) -> list[Block]:
        """Blocks of labels that cover every pixel once: the patches."""
        return [(number, 0, 0) for number in range(len(self))]

    def block_labels(self, block: Block) -> NDArray[np.uint8]:
        """Network classes of a block, uint8 (H, W)."""
        return self.labels[block[0]].numpy()

    def digest(self) -> str:
        """SHA-256 of all that training can see: pixels, labels, cells and names."""
        total = hashlib.sha256("\n".join(self.names).encode())
        for name in Crops._fields:
            tensor = getattr(self, name).contiguous()
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.view(torch.uint8).numpy().data)
        return total.hexdigest()

    def part(self, numbers: list[int]) -> PatchStack:
        """The patches of these numbers as a stack of their own."""
        chosen = copy(self)
        for name in Crops._fields:
            setattr(chosen, name, getattr(self, name)[numbers])
        chosen.names = [self.names[number] for number in numbers]
        return chosen

    def with_labels(self, labels: Tensor | NDArray[np.uint8]) -> PatchStack:
        """The same images and cells with other labels, uint8 (N, H, W): what a student learns from."""
        labels = torch.as_tensor(labels)
        if labels.shape != self.labels.shape or labels.dtype != torch.uint8:
            found, expected = f"{labels.dtype} {tuple(labels.shape)}", f"uint8 {tuple(self.labels.shape)}"
            raise GridError("labels of a stack", found=found, expected=expected, do="Label every pixel of it.")
        other = copy(self)
        other.labels = labels
        return other


def joined(stacks: Sequence[PatchStack]) -> PatchStack:
    """Several stacks of one patch size as one."""
    whole = copy(stacks[0])
    for name in Crops._fields:
        setattr(whole, name, torch.cat([getattr(stack, name) for stack in stacks]))
    whole.names = [name for stack in stacks for name in stack.names]
    return whole


def _cut(stack: Tensor, places: Sequence[Place], size: int) -> Tensor:
    """Crops of a stack (N, ..., H, W) at places (patch, row, col, symmetry)."""
    # torch cannot flip uint16 on the processor: turn the same bits as int16.
    bits = stack.view(torch.int16) if stack.dtype == torch.uint16 else stack
    crops = torch.empty((len(places), *stack.shape[1:-2], size, size), dtype=bits.dtype)
    for number, (patch, row, col, symmetry) in enumerate(places):
        crops[number] = turn(bits[patch, ..., row : row + size, col : col + size], symmetry)
    return crops.view(stack.dtype)


def turn_each(crops: Crops, symmetries: Sequence[int]) -> Crops:
    """
    Square crops, each turned as its symmetry says: at most eight calls for a batch, on whatever device it lies.

    On the processor crops are turned while they are cut, which is faster there.
    """
    which = torch.tensor(symmetries)
    turned = []
    for crop in crops:
        bits = crop.view(torch.int16) if crop.dtype == torch.uint16 else crop  # torch cannot flip uint16
        whole = torch.empty_like(bits)
        for symmetry in sorted(set(symmetries)):
            chosen = (which == symmetry).nonzero().flatten().to(crop.device)
            whole[chosen] = turn(bits[chosen], symmetry)
        turned.append(whole.view(crop.dtype))
    return Crops(*turned)


def turn(square: Tensor, symmetry: int) -> Tensor:
    """One of the eight symmetries (0..7) of a square (..., H, W): its three bits transpose, flip, flip."""
    if symmetry & 1:
        square = square.transpose(-1, -2)
    flips = [axis for bit, axis in ((2, -2), (4, -1)) if symmetry & bit]
    return square.flip(flips) if flips else square


def read_stack(table: pd.DataFrame, labels: str = "modis") -> tuple[PatchStack, Report]:
    """
    Read the rows of an index straight into a stack: half the memory of `read_many` and then a stack.

    Patches that are refused are skipped, counted and named in the report.
    """
    check_labels(labels)
    report = Report()
    patches = iter_patches(table, report, LABEL_KINDS[labels])
    try:
        return PatchStack(patches, labels, at_most=len(table)), report
    except DataError:
        report.check()  # no patch at all: say why the first was refused
        raise


class PatchFiles(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """
    The patches of an index as a torch dataset that reads each when asked: for more than fits in memory.

    Items are s2 uint16 (13, H, W), s1 float32 (2, H, W), labels uint8 (H, W). A damaged patch raises, naming
    its file: read the index once with `patches.read_many` to know beforehand.
    """

    def __init__(self, table: pd.DataFrame, labels: str = "modis") -> None:
        check_labels(labels)
        self.table, self.labels = table.reset_index(drop=True), labels

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        patch = read_patch(self.table.iloc[number], LABEL_KINDS[self.labels])
        labels = torch.from_numpy(label_index(patch, self.labels))
        return torch.from_numpy(patch.s2), torch.from_numpy(patch.s1), labels


SAMPLING = ("area", "scene", "class")

TRIES = 10_000
"""Draws before it is clear that no covered place will be met."""

Place = tuple[int, int, int, int]
"""Patch or scene by its number, row and column of the upper left pixel of a crop, and symmetry 0..7."""

Block = tuple[int, int, int]
"""Patch or scene by its number, row and column of the upper left pixel of a block of labels."""


class Places(Protocol):
    """What a stack tells of its places."""

    def places(self, n: int, size: int, generator: torch.Generator) -> list[Place]:
        """*n* places of crops of *size* pixels, all equally likely."""
        ...

    def scene_names(self) -> list[str]:
        """The scene of each number."""
        ...

    def extent(self, number: int) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def is_whole(self, number: int, row: int, col: int, size: int) -> bool:
        """Whether a crop inside the extent is covered."""
        ...

    def blocks(self) -> list[Block]:
        """Blocks of labels that cover every pixel once."""
        ...

    def block_labels(self, block: Block) -> NDArray[np.uint8]:
        """Network classes of a block, uint8 (H, W)."""
        ...


class Sampler:
    """
    Draws the places of crops in one of the ways of SAMPLING.

    Everything random comes from the generator that is handed over: the same state gives the same places. Raises
    DataError when classes are to be drawn alike and no pixel has one.
    """

    def __init__(self, stack: Places, kind: str = "area") -> None:
        self.stack, self.kind = stack, kind
        if kind == "scene":
            names = stack.scene_names()
            self._scenes = [[n for n, own in enumerate(names) if own == name] for name in dict.fromkeys(names)]
        if kind == "class":
            self._blocks = stack.blocks()
            self._counts = torch.stack([_counts(stack.block_labels(block)) for block in self._blocks])  # (B, K)
            self._present = self._counts.sum(dim=0).nonzero().flatten().tolist()
            if not self._present:
                do = "Check the labels, or draw by area."
                raise DataError("class sampling", found="no labelled pixel", expected="at least one", do=do)

    def places(self, n: int, size: int, generator: torch.Generator) -> list[Place]:
        """*n* places of crops of *size* pixels, each in one of its eight flips and rotations."""
        if self.kind == "area":
            return self.stack.places(n, size, generator)
        self.stack.places(1, size, generator)  # says so where no crop of this size fits
        draw = self._in_a_scene if self.kind == "scene" else self._with_a_class
        return [(*draw(size, generator), _below(8, generator)) for _ in range(n)]

    def _in_a_scene(self, size: int, generator: torch.Generator) -> tuple[int, int, int]:
        for _ in range(TRIES):
            numbers = self._scenes[_below(len(self._scenes), generator)]
            number = numbers[_below(len(numbers), generator)]
            rows, cols = self.stack.extent(number)
            if min(rows, cols) < size:
                continue
            row, col = _below(rows - size + 1, generator), _below(cols - size + 1, generator)
            if self.stack.is_whole(number, row, col, size):
                return number, row, col
        raise _no_place(size)

    def _with_a_class(self, size: int, generator: torch.Generator) -> tuple[int, int, int]:
        for _ in range(TRIES):
            chosen = self._present[_below(len(self._present), generator)]
            weights = self._counts[:, chosen].double()
            number, top, left = block = self._blocks[int(torch.multinomial(weights, 1, generator=generator))]
            labels = self.stack.block_labels(block)
            pixels = np.flatnonzero(labels == chosen)
            row, col = divmod(int(pixels[_below(len(pixels), generator)]), labels.shape[1])
            rows, cols = self.stack.extent(number)
            if min(rows, cols) < size:
                continue
            corner = _around(top + row, size, rows, generator), _around(left + col, size, cols, generator)
            if self.stack.is_whole(number, *corner, size):
                return number, *corner
        raise _no_place(size)


def _counts(labels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.bincount(labels.reshape(-1), minlength=256)[:N_COARSE])


def _no_place(size: int) -> ParameterError:
    found, expected = f"{size}", "a size for which covered squares can be met"
    return ParameterError("crop size", found=found, expected=expected, do="Take smaller crops.")


def _below(n: int, generator: torch.Generator) -> int:
    """A number 0..n-1."""
    return int(torch.randint(n, (), generator=generator))


def _around(pixel: int, size: int, n: int, generator: torch.Generator) -> int:
    """Where *size* pixels that hold this one may begin, among *n*."""
    first, last = max(0, pixel - size + 1), min(pixel, n - size)
    return first + _below(last - first + 1, generator)


def s2_and_s1(images: Images) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """S2 and S1 of a patch or of a pair."""
    return (images.s2, images.s1) if isinstance(images, Patch) else images
