"""
What the methods of the ladder have in common: scenes, regions, networks and matrices, each made once.

Images and MODIS labels of the patches that are judged may be learnt from; their reference is not read here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core.book.chapter import Chapter, data_digest
from lcfuse_core.data import patches, source
from lcfuse_core.data.legends import N_COARSE, SCORED
from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import PatchStack
from lcfuse_core.methods import adapt
from lcfuse_core.methods.adapt import Predict, at_home_plan
from lcfuse_core.models import forest, transition
from lcfuse_core.models.transition import Matrix
from lcfuse_core.scoring import protocol
from lcfuse_core.scoring.protocol import WEIGHTED
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import Run, TrainPlan

BOTH = "modis+savanna"

EVERY_PLACE = "every place"
"""Name of all regions taken as one."""


@dataclass
class Bench:
    """The data that methods learn from and are judged on, and what they have in common, made when first asked for."""

    here: Chapter
    memory: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Index rows of the patches that are judged."""
        return protocol.evaluation_patches(self.here.data_root)

    @cached_property
    def region_of(self) -> dict[str, str]:
        """Region of each of these patches, by name."""
        names = map(patches.patch_name, self.rows.itertuples())
        return dict(zip(names, self.rows["scene_id"], strict=True))

    @cached_property
    def there(self) -> PatchStack:
        """Images, MODIS labels and cells of the patches that are judged; their reference is not opened."""
        return source.read_stack(self.rows, BOTH)[0]

    @cached_property
    def regions(self) -> dict[str, PatchStack]:
        """The same, region by region."""
        return adapt.by_region(self.there, [self.region_of[name] for name in self.there.names])

    @cached_property
    def held_out(self) -> list[Patch]:
        """Patches of the training scenes that no network learns from."""
        table = patches.complete(patches.index(self.here.train_root), source.LABEL_KINDS[BOTH])
        return patches.read_many(protocol.split_scenes(table)[1], source.LABEL_KINDS[BOTH])[0]

    def patches_there(self) -> Iterator[Patch]:
        """The patches that are judged, in the order of `there`, without their reference."""
        return patches.iter_patches(self.rows, patches.Report(), source.LABEL_KINDS[BOTH])

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What *make* gives, made once for each key."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def network(self, kind: str = "fcn", power: float = WEIGHTED, **changes: Any) -> Run:
        """A network trained on the training scenes; *changes* to the chapter's plan."""
        plan = replace(self.here.plan(kind, power), **changes)
        return self.once(plan, lambda: self.here.trained(plan))

    def network_at_home(
        self, run: Run, *, fresh: bool = False, each_region: bool = False, **changes: Any
    ) -> tuple[Predict, float]:
        """
        A copy of *run* that has gone on learning in the places to be mapped: its probabilities, and the seconds.

        fresh : learn from fresh weights there, with nothing of *run* but its plan
        each_region : a copy for each region, with its share of the steps. Else one for all regions together: that
            needs no names of regions, and what one region lacks another may teach
        """
        plan, start = at_home_plan(run.plan, **changes), None if fresh else run
        if each_region:
            steps = max(1, plan.steps // len(self.regions))
            plan = replace(plan, steps=steps, report_every=steps)
        places = self.regions if each_region else {EVERY_PLACE: self.there}

        def learnt(place: str) -> Run:
            name = self.name_at_home(None if fresh else run, plan, place)
            return self.here.kept(name, lambda _: adapt.adapted(start, {place: places[place]}, plan)[place])

        key = (fresh, each_region, run.plan, plan)
        runs: dict[str, Run] = self.once(key, lambda: {place: learnt(place) for place in places})
        return self.by_region(runs, loop.predict), sum(map(seconds, runs.values()))

    def name_at_home(self, run: Run | None, plan: TrainPlan, place: str = EVERY_PLACE) -> str:
        """File name of a copy of *run* (None: of fresh weights) that has learnt by *plan* at *place*."""
        rests_on = ("fresh" if run is None else repr(run.plan), data_digest(self.here.data_root))
        return self.here.checkpoint_name(plan, place, *rests_on)

    def by_region(self, models: Mapping[str, Any], predict: Callable[[Any, Patch], NDArray[np.float32]]) -> Predict:
        """Probabilities of each patch by the model of its region, or by the one of `EVERY_PLACE`."""
        if EVERY_PLACE in models:
            return partial(predict, models[EVERY_PLACE])
        return lambda patch: predict(models[self.region_of[patch.name]], patch)

    def remembered(self, key: Any, predict: Predict) -> Predict:
        """The same probabilities, computed once for each patch (2 MB each): for members that many fusions share."""

        def recall(patch: Patch) -> NDArray[np.float32]:
            found: NDArray[np.float32] = self.once((key, patch.name), lambda: predict(patch))
            return found

        return recall

    @property
    def matrix(self) -> Matrix:
        """p(coarse | fine) from one stated accuracy and the training labels' shares."""
        return self.once("matrix", lambda: transition.from_accuracy(self._label_counts()))

    @property
    def posterior(self) -> Matrix:
        """p(fine | coarse) for the prior of a fusion, from the same."""
        prior = transition.class_prior(self.matrix, self._label_counts())
        return transition.posterior(self.matrix, prior)

    def _label_counts(self) -> NDArray[np.float64]:
        def count() -> NDArray[np.float64]:
            return source.class_counts(self.here.training_stack(BOTH).labels, N_COARSE).double().numpy()

        return self.once("label counts", count)


def seconds(run: Run) -> float:
    """What the training of a network took."""
    return float(run.history[-1]["seconds"] or 0)


def estimated(bench: Bench) -> Matrix:
    """The matrix by EM from the weighted FCN's posteriors on the scenes held out."""
    run, rng = bench.network(), np.random.default_rng(0)
    posteriors, labels = [], []
    for patch in bench.held_out:
        label = source.label_index(patch, BOTH).reshape(-1)
        chosen = rng.choice(label.size, min(4096, label.size), replace=False)
        posteriors.append(loop.predict(run, patch).reshape(len(SCORED), -1).T[chosen])
        labels.append(label[chosen])
    return transition.estimate(np.concatenate(posteriors), np.concatenate(labels), bench.matrix)


def counted(bench: Bench) -> Matrix:
    """The matrix counted on the validation patches, whose reference may be opened under track 2."""
    table = patches.complete(patches.index(bench.here.data_root), protocol.NEED)
    found, _ = patches.read_many(table[table["split"] == "validation"], protocol.NEED)
    pairs = [(source.label_index(patch, "fine"), source.label_index(patch, BOTH)) for patch in found]
    fine, coarse = (np.stack(side) for side in zip(*pairs, strict=True))
    return transition.counted(fine, coarse)


def forest_at_home(bench: Bench) -> tuple[Predict, float]:
    """Probabilities by a weighted forest grown in the places to be mapped, on their labels, and the seconds."""
    began, seed = time.perf_counter(), bench.here.parameters["seed"]

    def grow() -> tuple[forest.Forest, float]:
        return forest.train_forest(bench.there, seed=seed), time.perf_counter() - began

    trees, spent = bench.once("forest at home", grow)
    return partial(forest.predict, trees), spent


def clusters_at_home(bench: Bench, named_by_network: bool = False) -> tuple[Predict, float]:
    """Probabilities by the groups of each region, and the seconds for all."""
    run = bench.network() if named_by_network else None
    guess = None if run is None else partial(loop.predict, run)
    began = time.perf_counter()

    def fit() -> dict[str, adapt.Clusters]:
        seed = bench.here.parameters["seed"]
        return {
            name: adapt.fit_clusters(stack, bench.matrix, seed=seed, guess=guess)
            for name, stack in bench.regions.items()
        }

    models = bench.once(("clusters", named_by_network), fit)
    spent = time.perf_counter() - began + (0 if run is None else seconds(run))
    return bench.by_region(models, adapt.predict_clusters), spent
