"""
Training: one loop, on the processor or a GPU, and what its network says about new images.

`learning_rate`, `batches` and `evaluate` hold the ideas; `train` is the order of things. The same plan,
data, machine and number of threads give the same weights, to the bit, on the processor.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from lcfuse_core import transition
from lcfuse_core.errors import DataError, ParameterError, TrainingError
from lcfuse_core.legends import IGNORE, N_COARSE, SCORED, index_to_dfc
from lcfuse_core.losses import NEEDS_TRANSITION, Batch, Loss, build_loss, class_weights
from lcfuse_core.packs import PackedScenes
from lcfuse_core.patches import PatchStack, Statistics, normalise
from lcfuse_core.runs import Run, TrainPlan, load_checkpoint, save_checkpoint
from lcfuse_core.scenes import Patch
from lcfuse_core.scores import Scores, confusion_of_many, summarise

__all__ = [
    "Run",
    "TrainPlan",
    "batches",
    "classify",
    "evaluate",
    "learning_rate",
    "load_checkpoint",
    "predict",
    "s2_and_s1",
    "save_checkpoint",
    "train",
]

Stack = PatchStack | PackedScenes
"""What training draws its crops from: patches in memory, or packed scenes on the disk."""

Images = Patch | tuple[NDArray[np.uint16], NDArray[np.float32]]
"""A patch, or its S2 (13, H, W), reflectance x 10000, and S1 (2, H, W), dB."""

CHECKPOINT = "last.safetensors"
"""Name of the checkpoint in the folder of a run."""


def learning_rate(step: int, plan: TrainPlan) -> float:
    """
    Rate of step 0, 1, ...: a line up to the highest, then half a cosine down towards zero.

    Rising first, because the first gradients of fresh weights are wild; falling to the end, because small
    steps settle (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts).

    >>> plan = TrainPlan(steps=100, learning_rate=1.0, warm_up=0.1)
    >>> [round(learning_rate(step, plan), 3) for step in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    rising = round(plan.warm_up * plan.steps)
    if step < rising:
        return plan.learning_rate * (step + 1) / rising
    done = (step - rising) / (plan.steps - rising)  # 0..1
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def batches(stack: Stack, plan: TrainPlan, statistics: Statistics) -> Iterator[tuple[Tensor, Batch]]:
    """
    All batches of a training: random crops with their labels, drawn from the plan's seed.

    Yields images, float32 (N, C, crop, crop), and their labels and cells, (N, crop, crop), on the plan's device.
    """
    device = choose_device(plan.device)
    rng = torch.Generator().manual_seed(plan.seed)
    for _ in range(plan.steps):
        s2, s1, labels, cells = (tensor.to(device) for tensor in stack.crops(plan.batch, plan.crop, rng))
        yield normalise(s2, s1, statistics, plan.inputs), Batch(labels, cells)


def loss_of(stack: Stack, plan: TrainPlan) -> Loss:
    """
    The plan's loss, knowing the class weights and the label shares of *stack*, and the transition matrix.

    A plan that gives no matrix, with a loss that needs one, takes `transition.from_accuracy`.
    """
    n_labels = N_COARSE if plan.labels == "modis+savanna" else len(SCORED)
    counts = stack.class_counts(n_labels)
    weights = class_weights(counts, plan.class_weight_power).to(choose_device(plan.device))
    if plan.loss not in NEEDS_TRANSITION:
        return build_loss(plan.loss, weights)
    share = stack.class_counts(N_COARSE).numpy()
    matrix = transition.from_accuracy(share) if plan.transition is None else np.array(plan.transition)
    if n_labels < N_COARSE:
        matrix = transition.without_savanna(matrix)
    return build_loss(plan.loss, weights, torch.from_numpy(matrix), counts)


def train(
    stack: Stack,
    plan: TrainPlan,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    validation: PatchStack | None = None,
    progress: bool = True,
    start: Run | None = None,
) -> Run:
    """
    Train a fresh network as *plan* says, on the labels of *stack*.

    start : go on from a copy of this run's network, with its channel statistics, instead of fresh weights
    run_dir : where the checkpoint "last.safetensors" is kept, renewed every `report_every` steps
    validation : evaluated at each report, into the history; changes nothing else

    Raises TrainingError when loss or gradient stop being finite; the checkpoint is then that of the last
    report.
    """
    run = _start(stack, plan, start)
    loss = loss_of(stack, plan)
    optimiser = torch.optim.AdamW(run.network.parameters(), weight_decay=plan.weight_decay)
    crops = batches(stack, plan, run.statistics)
    bar = tqdm(crops, total=plan.steps, unit="crop", unit_scale=plan.batch, disable=not progress)
    began, losses = time.perf_counter(), []
    for step, (images, batch) in enumerate(bar):
        optimiser.param_groups[0]["lr"] = learning_rate(step, plan)
        logits = _forward(run, images)  # (N, 8, crop, crop)
        value = loss(logits, batch)
        optimiser.zero_grad()
        value.backward()
        length = nn.utils.clip_grad_norm_(run.network.parameters(), plan.clip_norm)
        losses.append(_finite(value, length, run, run_dir))
        optimiser.step()
        if (step + 1) % plan.report_every == 0 or step + 1 == plan.steps:
            _report(run, step, losses, time.perf_counter() - began, validation)
            bar.set_postfix(loss=f"{run.history[-1]['loss']:.3f}")
            losses.clear()
            if run_dir is not None:
                save_checkpoint(run, Path(run_dir) / CHECKPOINT)
    run.network.eval()
    return run


def _start(stack: Stack, plan: TrainPlan, start: Run | None) -> Run:
    """A network on its device; torch's global random numbers go on as if nothing had happened."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        network = plan.build() if start is None else deepcopy(start.network)
    network.to(choose_device(plan.device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Run(network.train(), plan, stack.statistics() if start is None else start.statistics)


def _finite(value: Tensor, gradient: Tensor, run: Run, run_dir: str | os.PathLike[str] | None) -> float:
    """The loss as a number; TrainingError, before weights are touched, when it is or leads to none."""
    number = value.item()
    if math.isfinite(number) and math.isfinite(gradient.item()):
        return number
    kept = "No checkpoint was written yet."
    if run_dir is not None and run.history:
        kept = f"That of step {run.history[-1]['step']} is kept in {Path(run_dir) / CHECKPOINT}."
    raise TrainingError(
        "training",
        found=f"loss {number}, gradient of length {gradient.item()}",
        expected="finite numbers",
        do=f"Lower the learning rate, or look for bad values in the patches. {kept}",
    )


def _report(run: Run, step: int, losses: list[float], seconds: float, validation: PatchStack | None) -> None:
    """One more line of the history."""
    run.history.append(
        {
            "step": step + 1,
            "loss": math.fsum(losses) / len(losses),
            "learning_rate": learning_rate(step, run.plan),
            "seconds": round(seconds, 2),
            "aa": None if validation is None else evaluate(run, validation).aa,
        }
    )


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
        logits = _forward(run, channels[None].to(device))
        probabilities = torch.softmax(logits.float(), dim=1)[0]
    run.network.train(was_training)
    if not probabilities.isfinite().all():
        do = "Look for NaN in the images (scenes.read_patch refuses them) or train anew."
        raise DataError("predict", found="NaN probabilities", expected="numbers from 0 to 1", do=do)
    return probabilities.cpu().numpy()


def s2_and_s1(images: Images) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """S2 and S1 of a patch or of a pair."""
    return (images.s2, images.s1) if isinstance(images, Patch) else images


def classify(run: Run, images: Images) -> NDArray[np.uint8]:
    """The most probable class at each pixel, uint8 (H, W), as DFC2020 codes."""
    return index_to_dfc(predict(run, images).argmax(axis=0))


def _forward(run: Run, images: Tensor) -> Tensor:
    """
    Logits, computed in the precision that the plan and the processor agree on.

    Channels last in memory is how fast convolutions want their numbers.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    with precision(run.plan.precision, images.device):
        return run.network(images)


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


def choose_device(name: str) -> torch.device:
    """The device of that name ("auto": the GPU if there is one); ParameterError when it is not there."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "cuda" and not has_gpu):
        expected = "auto, cpu or a GPU that is here"
        raise ParameterError("device", found=repr(name), expected=expected, do="Take auto.")
    return device
