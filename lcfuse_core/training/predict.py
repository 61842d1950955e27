"""
Predictions of a trained network: logits, probabilities, classes, and their agreement with labels.

Test-time augmentation averages the probabilities of several flips and rotations of an image, each turned back, because
land cover does not depend on the orientation. `tta_mean` does this for any method, `logits` for a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lcfuse_core.data.legends import IGNORE, SCORED, index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import Images, PatchSource, network_input, turn
from lcfuse_core.errors import DataError
from lcfuse_core.scoring.scores import Scores, confusion_of_many, summarise
from lcfuse_core.training.checkpoint import Run


def predict(run: Run, images: Images) -> NDArray[np.float32]:
    """
    Return the probability of each class at each pixel, float32 (8, H, W), in the order of `legends.SCORED`.

    *images* is a patch, or a pair: S2 (13, H, W), reflectance x 10000, and S1 (2, H, W), dB. Raises DataError if a
    result is NaN, as for NaN in the images, or if the images do not have the channels of the network.
    """
    channels = network_input(images, run.statistics, run.plan.inputs)
    was_training = run.network.training
    run.network.eval()
    result = probabilities(logits(run, channels[None]))
    run.network.train(was_training)
    if not np.isfinite(result).all():
        do = "Look for NaN in the images (read_patch refuses them) or train anew."
        raise DataError("predict", found="NaN probabilities", expected="numbers from 0 to 1", do=do)
    return result


def classify(run: Run, images: Images) -> NDArray[np.uint8]:
    """Return the most probable class of each pixel, uint8 (H, W), as DFC2020 codes."""
    return index_to_dfc(predict(run, images).argmax(axis=0))


def evaluate(run: Run, source: PatchSource) -> Scores:
    """
    Return the scores of the network's maps of whole patches against the labels of *source*, read one by one.

    For coarse labels this is agreement, not accuracy: a good 10 m map disagrees with them too.
    """
    n_scored = np.uint8(len(SCORED))
    pairs = (
        # Savanna is ignored, as the reference lacks it.
        (index_to_dfc(np.where(labels < n_scored, labels, np.uint8(IGNORE))), classify(run, images))
        for labels, images in ((w.labels.numpy(), (w.s2.numpy(), w.s1.numpy())) for w in source.windows(cells=False))
    )
    return summarise(confusion_of_many(pairs))


def logits(run: Run, channels: Tensor, symmetries: int = 1) -> list[Tensor]:
    """
    Return the logits (8, H, W) for each of *symmetries* flips and rotations of an image, turned back.

    *channels* is the normalised image (1, C, H, W). Logits stay on the network's device and may still be computed when
    this returns; `probabilities` waits for them.
    """
    device = next(run.network.parameters()).device
    found = []
    with torch.inference_mode():
        image = channels.to(device)
        for symmetry in _symmetries_of(symmetries, is_square=channels.shape[-2] == channels.shape[-1]):
            found.append(_turn_back(forward(run.network, turn(image, symmetry), run.plan.precision)[0], symmetry))
    return found


def probabilities(turned_logits: Sequence[Tensor]) -> NDArray[np.float32]:
    """Return the mean of the class probabilities, float32 (8, H, W), over the results of `logits`."""
    with torch.inference_mode():
        total = turned_logits[0].float().softmax(dim=0)
        for further in turned_logits[1:]:
            total += further.float().softmax(dim=0)
        return (total / len(turned_logits)).cpu().numpy() if len(turned_logits) > 1 else total.cpu().numpy()


def tta_mean(function: Callable[[Patch], NDArray[np.float32]], patch: Patch, symmetries: int) -> NDArray[np.float32]:
    """
    Return the mean of a method's probabilities (8, H, W) for several flips and rotations of a patch, turned back.

    The turned patches have no georeference and no fine reference. A patch that is not square is only flipped.
    """
    if symmetries == 1:
        return function(patch)
    chosen = _symmetries_of(symmetries, is_square=patch.s2.shape[1] == patch.s2.shape[2])
    total = np.zeros((len(SCORED), *patch.s2.shape[1:]), np.float32)
    for symmetry in chosen:
        lc = None if patch.lc is None else _turn_array(patch.lc, symmetry)
        turned = Patch(patch.name, _turn_array(patch.s1, symmetry), _turn_array(patch.s2, symmetry), lc)
        total += _turn_back(torch.from_numpy(np.ascontiguousarray(function(turned))), symmetry).numpy()
    return (total / len(chosen)).astype(np.float32)


def _symmetries_of(n: int, is_square: bool) -> list[int]:
    """Return the first *n* (1, 2, 4 or 8) symmetries of a square as `source.turn` numbers them; else only flips."""
    return [0, 2, 4, 6, 1, 3, 5, 7][:n] if is_square else [0, 2, 4, 6][:n]


def _turn_back(square: Tensor, symmetry: int) -> Tensor:
    """Undo `source.turn`: first the flips, then the transposition."""
    return turn(turn(square, symmetry & 6), symmetry & 1)


def _turn_array(array: NDArray, symmetry: int) -> NDArray:
    """Turn an array; torch cannot flip uint16 on the processor, so its bits are turned as int16."""
    bits = np.ascontiguousarray(array).view(np.int16 if array.dtype == np.uint16 else array.dtype)
    return turn(torch.from_numpy(bits), symmetry).contiguous().numpy().view(array.dtype)


def forward(network: nn.Module, images: Tensor, precision_name: str) -> Tensor:
    """Return the logits of *images* (N, C, H, W), computed in that precision, channels last in memory for speed."""
    images = images.contiguous(memory_format=torch.channels_last)
    with precision(precision_name, images.device):
        return network(images)


def precision(name: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which convolutions are computed in a precision; see `compute_dtype`."""
    dtype = compute_dtype(name, device)
    half = None if dtype is torch.float32 else dtype
    return torch.autocast(device.type, half, enabled=half is not None)


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """
    Return the type in which convolutions are computed on a device.

    "auto" takes bfloat16 where the hardware computes in it: two to three times as fast, with 8 bits of mantissa and the
    range of float32. Other GPUs, such as the T4, take float16, whose small range needs a `loss_scaler` in training;
    other processors take float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Older versions of torch do not report it: then float32.
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bfloat16 = device.type == "cpu" and (able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if has_bfloat16 else torch.float32


def loss_scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Return what multiplies the loss, so that small gradients do not become 0 in float16; disabled for other types."""
    return torch.amp.GradScaler(device.type, enabled=compute_dtype(name, device) is torch.float16)
