"""
An experiment: the data, plans, trained networks and ledger that methods, chapters and commands share.

    experiment = Experiment.from_profile("compare", "smoke", seed=0)
    run = experiment.network("fcn")
    experiment.record("FCN, weighted", scores)

Everything is made at first use. Data are opened as a `PatchSource`, in memory or not, and predictions are kept for one
patch only, so that memory does not depend on the number of patches. Trained networks are stored under a digest of all
that they depend on: plan, data and training code. Methods may learn from the images and the coarse labels of the target
regions (the regions that are evaluated); the reference of these regions is not opened here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lcfuse_core import _runtime
from lcfuse_core.data import patches, source
from lcfuse_core.data.legends import N_COARSE
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import PatchSource
from lcfuse_core.data.streamed import open_source
from lcfuse_core.methods import adapt
from lcfuse_core.methods.adapt import Predict
from lcfuse_core.models import transition
from lcfuse_core.models.transition import Matrix
from lcfuse_core.sample import world
from lcfuse_core.scoring import ledger, protocol
from lcfuse_core.scoring.identity import data_digest, data_kind, data_name, is_sample
from lcfuse_core.scoring.protocol import Result
from lcfuse_core.scoring.scores import Scores
from lcfuse_core.training import checkpoint, loop
from lcfuse_core.training.checkpoint import Run
from lcfuse_core.training.plan import TrainPlan

BOTH = "modis+savanna"
"""Label kind with nine coarse classes: the eight scored ones, and Savanna as a mixture."""

_ALL_REGIONS = "all regions"

_KIND = ("network", "width", "inputs", "fusion", "labels", "loss", "transition", "class_weight_power")
"""The fields of a plan that decide which method a network is; the others decide how long and how it is trained."""

SHIPPED = _runtime.SHIPPED / "checkpoints"
"""
Small networks trained on the sample of seed 0, so that most chapters run without training. The subfolder `adapted`
holds a network that was fine-tuned on the target regions of that sample; it is not for maps of other regions.
"""

_Made = TypeVar("_Made")


@dataclass
class Experiment:
    """
    The data and networks of one set of parameters.

    Parameters
    ----------
    name : str
        What is done, such as the name of a chapter; the `kind` of its ledger lines.
    parameters : dict
        Values by parameter name (`settings.Settings`); `profile` and `seed` are needed. An empty or missing root means
        the synthetic sample of `world`, by default that of `seed`. A `checkpoint` replaces the network of its kind.
    """

    name: str
    parameters: dict[str, Any]
    progress: bool = False  # whether to show progress bars
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_profile(cls, name: str, profile: str = "smoke", seed: int = 0, **changes: Any) -> Self:
        """Return the experiment of a profile with *changes* to its parameters; None leaves a value as it is."""
        values = _runtime.read_profile(profile) | {"seed": seed}
        changes = {key: value for key, value in changes.items() if value is not None}
        values |= changes
        roots = ("train_root", "data_root") if values["train_root"] or values["data_root"] else ()
        further = [key for key in ("world", "checkpoint") if key in changes]
        return cls(name, {key: values[key] for key in ("profile", "steps", "crop", "batch", "seed", *roots, *further)})

    def once(self, key: Any, make: Callable[[], _Made]) -> _Made:
        """Return what *make* returned when it was first called for this key."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    # Data

    @cached_property
    def ledger_path(self) -> Path:
        """The ledger to write to: LCFUSE_LEDGER, or `ledger.jsonl` in the data folder."""
        return ledger.default_path()

    @property
    def seeds(self) -> dict[str, int]:
        """The seeds of the sample world and of the training, which are one unless the parameters have a `world`."""
        training = self.parameters["seed"]
        return {"world": self.parameters.get("world", training), "training": training}

    @property
    def sample(self) -> Path:
        """The folder of the sample world; made at first use (half a minute)."""
        return world.sample_folder(self.seeds["world"])

    @property
    def train_root(self) -> Path:
        """The folder of the training patches, or of packed scenes."""
        return Path(self.parameters.get("train_root") or self.sample / "sen12ms")

    @property
    def data_root(self) -> Path:
        """The folder of the evaluation patches."""
        return Path(self.parameters.get("data_root") or self.sample / "dfc2020")

    @property
    def roots(self) -> dict[str, Path]:
        """The data folders that results depend on, by role: those that are parameters here, or both."""
        both = {"train": "train_root", "evaluation": "data_root"}
        chosen = {role: name for role, name in both.items() if name in self.parameters}
        return {role: getattr(self, name) for role, name in (chosen or both).items()}

    @property
    def on_sample(self) -> bool:
        """Whether all data are synthetic."""
        return not any(self.parameters.get(name) for name in ("data_root", "train_root", "s2_path", "download"))

    @property
    def origin(self) -> str:
        """Where the pixels come from, in two words for captions and tables."""
        return "synthetic sample" if self.on_sample else "your data"

    def training_rows(self, labels: str = "modis") -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return index rows of the training patches and of the held-out scenes; see `protocol.split_scenes`."""
        table = patches.index(self.train_root)
        if labels == "fine":  # the sample keeps the reference of its training scenes apart; SEN12MS has none
            table = patches.with_truth(table, self.train_root.with_name("truth"))
        return protocol.split_scenes(patches.complete(table, source.LABEL_KINDS[labels]))

    def training_source(self, labels: str = "modis") -> PatchSource:
        """Open the training patches with "modis", "modis+savanna" or "fine" labels."""
        return open_source(self.training_rows(labels)[0], labels)

    def held_out_source(self, labels: str = "modis") -> PatchSource:
        """Open the patches of the scenes that are never trained on."""
        return open_source(self.training_rows(labels)[1], labels)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Index rows of the patches that are evaluated."""
        return protocol.evaluation_patches(self.data_root)

    @cached_property
    def _region_of(self) -> dict[str, str]:
        """The target region of each evaluated patch, by patch name."""
        names = map(patches.patch_name, self.rows.itertuples())
        return dict(zip(names, self.rows["scene_id"], strict=True))

    @cached_property
    def target_source(self) -> PatchSource:
        """Images, "modis+savanna" labels and cells of the evaluated patches, without their reference."""
        return open_source(self.rows, BOTH)

    @cached_property
    def target_regions(self) -> dict[str, pd.DataFrame]:
        """Index rows of the patches of `target_source` by region."""
        return {str(region): own for region, own in self.rows.groupby("scene_id", sort=False)}

    # Networks

    def plan(self, network: str, class_weight_power: float) -> TrainPlan:
        """Return the training plan for these parameters; what is no parameter here is that of the profile `smoke`."""
        smoke = _runtime.read_profile("smoke")
        chosen = {name: self.parameters.get(name, smoke[name]) for name in ("loss", "steps", "crop", "batch", "seed")}
        report_every = max(1, chosen["steps"] // 8)
        return TrainPlan(network=network, class_weight_power=class_weight_power, report_every=report_every, **chosen)

    def network(self, kind: str = "fcn", power: float = protocol.WEIGHTED, **changes: Any) -> Run:
        """Return a network trained on the training patches, with *changes* to its plan."""
        plan = replace(self.plan(kind, power), **changes)
        return self.once(plan, lambda: self.trained(plan))

    @cached_property
    def given(self) -> Run | None:
        """The network of the parameter `checkpoint`, if there is one."""
        path = self.parameters.get("checkpoint")
        return _on_device(checkpoint.load_checkpoint(path)) if path else None

    def trained(self, plan: TrainPlan) -> Run:
        """
        Return the network of a plan, trained on `train_root`: from its checkpoint if there is one, else trained now.

        A checkpoint counts only for the same plan, data and training code, whether it was trained here or comes with
        the package. Its history has the agreement with the labels of the held-out scenes. The network of the parameter
        `checkpoint` takes the place of all of its kind (`_KIND`).
        """
        given = self.given
        if given is not None and all(getattr(given.plan, name) == getattr(plan, name) for name in _KIND):
            return given

        def train(folder: Path) -> Run:
            sources = self.training_source(plan.labels), self.held_out_source(plan.labels)
            return loop.train(sources[0], plan, folder, validation=sources[1], progress=self.progress)

        return kept(self.checkpoint_name(plan), train)

    def adapted_network(
        self, start: Run | TrainPlan, *, each_region: bool = False, **changes: Any
    ) -> tuple[Predict, float]:
        """
        Return a network that was fine-tuned on the target regions: transductive learning.

        Parameters
        ----------
        start : Run or TrainPlan
            The network to start from; a plan starts from fresh weights. See `adapt.adapted`.
        each_region : bool
            Whether to train a copy for each region, with its part of the steps, instead of one for all regions.
        **changes
            To the plan; see `adapt.adaptation_plan`.

        Returns
        -------
        predict, seconds : callable, float
            Probabilities of a patch, and the duration of all trainings.

        Raises
        ------
        DataError
            If a region has no label and *start* is a plan.
        """
        run, base = (start, start.plan) if isinstance(start, Run) else (None, start)
        own = self.plan(base.network, base.class_weight_power)  # of a given checkpoint only the kind counts
        sizes = {name: getattr(own, name) for name in ("steps", "crop", "batch", "seed")}
        plan = adapt.adaptation_plan(replace(base, **sizes), **changes)
        names = list(self.target_regions) if each_region else [_ALL_REGIONS]
        steps = max(1, plan.steps // len(names))
        plan = replace(plan, steps=steps, report_every=steps) if each_region else plan

        def train(region: str, folder: Path) -> Run:
            opened = open_source(self.target_regions[region], BOTH) if each_region else self.target_source
            return adapt.adapted(run, opened, plan, folder)

        def load() -> dict[str, Run]:
            files = {region: self.adapted_name(run, plan, region) for region in names}
            return {region: kept(file, partial(train, region)) for region, file in files.items()}

        runs = self.once((run is None, each_region, base, plan), load)
        spent = sum(map(seconds, runs.values())) + (0.0 if run is None else seconds(run))
        return self.by_region(runs, loop.predict), spent

    def by_region(self, models: Mapping[str, Any], predict: Callable[[Any, Patch], NDArray[np.float32]]) -> Predict:
        """Return a function that predicts each patch by the model of its region, or by that of `_ALL_REGIONS`."""
        if _ALL_REGIONS in models:
            return partial(predict, models[_ALL_REGIONS])
        return lambda patch: predict(models[self._region_of[patch.name]], patch)

    def shared(self, key: Any, predict: Predict) -> Predict:
        """Return *predict* with its result kept until the next patch, for members of several fusions."""

        def predict_once(patch: Patch) -> NDArray[np.float32]:
            last, found = self.memory.get("predictions", (None, {}))
            if last is not patch:  # not by name: augmented patches have the name of the original
                found = {}
                self.memory["predictions"] = patch, found
            if key not in found:
                found[key] = predict(patch)
            return found[key]

        return predict_once

    # Identity of data and networks

    def data_digest(self, root: Path) -> str:
        """Return the identity of a data folder, computed once per experiment; see `identity.data_digest`."""
        return self.once(("data digest", root), lambda: data_digest(root))

    def checkpoint_name(self, plan: TrainPlan, *further: str) -> str:
        """Return the file name of a trained network: a digest of plan, data, training code and *further* inputs."""
        decided = json.dumps(asdict(plan) | {"held_out": protocol.HELD_OUT}, sort_keys=True)
        code = _runtime.code_digest(*_runtime.TRAINING_CODE)
        depends_on = "\n".join([decided, self.data_digest(self.train_root), code, *further])
        return f"{plan.network}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}.safetensors"

    def adapted_name(self, start: Run | TrainPlan | None, plan: TrainPlan, region: str = _ALL_REGIONS) -> str:
        """Return the file name of the network of *start* (None: fresh weights) after training by *plan* on a region."""
        begun = start.plan if isinstance(start, Run) else start
        further = [region, repr(begun), self.data_digest(self.data_root)]
        if isinstance(start, Run) and start is self.given:
            further.append(checkpoint.network_digest(start.network))
        return self.checkpoint_name(plan, *further)

    # The transition matrix

    @cached_property
    def matrix(self) -> Matrix:
        """p(coarse | fine) from one stated accuracy and the class shares of the training labels."""
        return transition.from_accuracy(self._label_counts)

    @cached_property
    def posterior(self) -> Matrix:
        """p(fine | coarse) for the prior of a fusion, from the same."""
        return transition.posterior(self.matrix, transition.class_prior(self.matrix, self._label_counts))

    @cached_property
    def _label_counts(self) -> NDArray[np.float64]:
        return self.training_source(BOTH).class_counts(N_COARSE).double().numpy()

    # The ledger

    def record(
        self,
        method: str,
        found: Result | Scores,
        *,
        label_regime: str = "coarse only",
        regime: str = "inductive",
        parameters: Mapping[str, Any] | None = None,
        cost: Mapping[str, float] | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        """
        Append a line to the ledger: the scores of a method with the parameters of this experiment.

        Parameters
        ----------
        method : str
            Name of the method.
        found : Result or Scores
            A result of `protocol.evaluate_methods`, or scores over all pixels; claims need a result.
        label_regime, regime : str
            One of `ledger.LABEL_REGIMES`, "inductive" or "transductive".
        parameters, cost, hashes : mapping, optional
            Beside those of the experiment; durations; SHA-256 beside those of the data.
        """
        entry = ledger.new_entry(
            self.name,
            {"method": method, **self.parameters, **(parameters or {})},
            found.for_ledger() if isinstance(found, Result) else found,
            label_regime=label_regime,
            regime=regime,
            split=found.split if isinstance(found, Result) else "",
            profile=self.parameters["profile"],
            seeds=self.seeds,
            synthetic=any(map(is_sample, self.roots.values())),
            data_kind=self.once("data kind", lambda: data_kind(self.roots.values())),
            data={role: data_name(root) for role, root in self.roots.items()},
            hashes={role: self.data_digest(root) for role, root in self.roots.items()} | dict(hashes or {}),
            cost=cost,
        )
        ledger.append(self.ledger_path, entry)


# Trained networks that are stored: shipped with the package, or kept in the data folder


def path_of(name: str) -> Path:
    """Return where the network of that file name is, or would be kept."""
    return next(SHIPPED.rglob(name), _runtime.data_folder() / "runs" / name)


def kept(name: str, train: Callable[[Path], Run]) -> Run:
    """
    Return the network stored under a file name; if there is none, train and store it.

    *train* gets a folder of its own, from which an interrupted training continues.
    """
    path = path_of(name)
    # Chapters may run side by side.
    with _runtime.lock((_runtime.data_folder() / "runs" / name).with_suffix(".lock")):
        if not path.exists():
            checkpoint.save_checkpoint(train(path.with_suffix("")), path)
    # Read back even when it was trained just now: both ways must give the same maps.
    return _on_device(checkpoint.load_checkpoint(path))


def _on_device(run: Run) -> Run:
    """Move the network of a run to the device of its plan; return the run."""
    run.network.to(loop.choose_device(run.plan.device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return run


def seconds(run: Run) -> float:
    """Return the duration of a training in seconds."""
    return float(run.history[-1]["seconds"] or 0) if run.history else 0.0
