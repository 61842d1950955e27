"""What a trained network says of images: probabilities, classes, and how well these agree with labels."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lcfuse_core.data.legends import IGNORE, SCORED, index_to_dfc
from lcfuse_core.data.source import Images, PatchStack, normalise, s2_and_s1
from lcfuse_core.errors import DataError
from lcfuse_core.scoring.scores import Scores, confusion_of_many, summarise
from lcfuse_core.training.checkpoint import Run


def evaluate(run: Run, stack: PatchStack) -> Scores:
    """
    Scores of the network's maps of whole patches against the labels of *stack*.

    Against coarse labels this is agreement with them, not accuracy: a good map of 10 m disagrees with them
    too.
    """
    patches = zip(stack.s2.numpy(), stack.s1.numpy(), stack.labels.numpy(), strict=True)
    pairs = (
        (index_to_dfc(np.where(labels < len(SCORED), labels, np.uint8(IGNORE))), classify(run, (s2, s1)))
        for s2, s1, labels in patches
    )
    return summarise(confusion_of_many(pairs))


def predict(run: Run, images: Images) -> NDArray[np.float32]:
    """
    Probability of each of the eight classes at each pixel, float32 (8, H, W), in the order of legends.SCORED.

    images : a patch, or a pair: S2 (13, H, W), reflectance x 10000, and S1 (2, H, W), dB

    For more than a patch: `map_scene(lambda s2, s1: predict(run, (s2, s1)), scene.s2, scene.s1)`. Raises
    DataError when what comes out is no number, as it does for NaN in the images.
    """
    s2, s1 = s2_and_s1(images)
    device = next(run.network.parameters()).device
    was_training = run.network.training
    run.network.eval()
    with torch.inference_mode():
        channels = normalise(torch.as_tensor(s2), torch.as_tensor(s1), run.statistics, run.plan.inputs)
        logits = forward(run.network, channels[None].to(device), run.plan.precision)
        probabilities = torch.softmax(logits.float(), dim=1)[0]
    run.network.train(was_training)
    if not probabilities.isfinite().all():
        do = "Look for NaN in the images (patches.read_patch refuses them) or train anew."
        raise DataError("predict", found="NaN probabilities", expected="numbers from 0 to 1", do=do)
    return probabilities.cpu().numpy()


def classify(run: Run, images: Images) -> NDArray[np.uint8]:
    """The most probable class at each pixel, uint8 (H, W), as DFC2020 codes."""
    return index_to_dfc(predict(run, images).argmax(axis=0))


def forward(network: nn.Module, images: Tensor, precision_name: str) -> Tensor:
    """
    Logits, computed in the precision that the plan and the processor agree on.

    Channels last in memory is how fast convolutions want their numbers.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    with precision(precision_name, images.device):
        return network(images)


def precision(name: str, device: torch.device) -> AbstractContextManager[None]:
    """
    Context that computes convolutions in bfloat16, or leaves all in float32.

    "auto" takes bfloat16 where the hardware has instructions for it: twice to three times as fast, 8 bits of
    mantissa, the range of float32. Elsewhere it would be emulated, slowly.
    """
    half = _has_bfloat16(device) if name == "auto" else name == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch cannot tell: then float32.
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
