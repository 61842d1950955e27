"""
What the first and the last cells of a chapter need: parameters, data, trained networks, glue, provenance.

For notebooks alone; nothing else imports it. Data and trained networks are kept in the folder that the environment
variable LCFUSE_DATA names, or in `_data` under the current folder: what is there is found, what is not is made.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lcfuse_core import __version__, _runtime
from lcfuse_core.book import settings, style
from lcfuse_core.data import fetched, patches, source
from lcfuse_core.data.sample import world
from lcfuse_core.errors import MissingDataError, ParameterError
from lcfuse_core.models import forest, networks
from lcfuse_core.scoring import ledger, protocol
from lcfuse_core.scoring.scores import Scores
from lcfuse_core.training import checkpoint, loop

# IPython puts these into a notebook's namespace itself.
_NOT_PARAMETERS = {"In", "Out", "exit", "quit", "open", "get_ipython"}

SHIPPED = _runtime.SHIPPED / "checkpoints"
"""
Small networks trained on the sample of seed 0, so that most chapters run without training any. In its folder `at_home`
is what has gone on learning in the places that are mapped (`bench.Bench.network_at_home`), and is no use elsewhere.
"""


def data_folder() -> Path:
    """Where samples, downloads and trained networks are kept."""
    return Path(os.environ.get("LCFUSE_DATA", "_data")).absolute()


def ledger_path() -> Path:
    """The ledger that chapters write to: LCFUSE_LEDGER, or `ledger.jsonl` in the data folder."""
    return Path(os.environ.get("LCFUSE_LEDGER", data_folder() / "ledger.jsonl"))


def begin(name: str, namespace: MutableMapping[str, Any]) -> Chapter:
    """
    Check the parameters of chapter *name*, put the profile's values in place, set the style of figures.

    namespace : the notebook's `globals()`; parameters left at their `smoke` default take the profile's value

    Raises ParameterError on a name or value that the chapter does not know, before anything else runs.
    """
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    given = {
        key: value
        for key, value in namespace.items()
        if not key.startswith("_") and key not in _NOT_PARAMETERS and isinstance(value, plain)
    }
    values = settings.resolve(given, name)
    namespace.update(values)
    style.use_book_style()
    torch.manual_seed(values.get("seed", 0))
    return Chapter(name, values)


@dataclass
class Chapter:
    """A running chapter: its name, its parameters, and the way to its data."""

    name: str
    parameters: dict[str, Any]
    started: float = field(default_factory=time.monotonic)

    @property
    def sample(self) -> Path:
        """Folder of the sample world of this seed; made on first use (half a minute)."""
        root = data_folder() / f"world-{self.parameters['seed']}"
        with _runtime.lock(root.with_suffix(".lock")):  # runs of a grid may all want it at once
            return world.make_world(root, world.WorldPlan(seed=self.parameters["seed"]))

    @property
    def train_root(self) -> Path:
        """Folder of the patches to learn from: the parameter `train_root`, or the sample's."""
        return Path(self.parameters.get("train_root") or self.sample / "sen12ms")

    @property
    def data_root(self) -> Path:
        """Folder of the patches to evaluate on: the parameter `data_root`, or the sample's."""
        return Path(self.parameters.get("data_root") or self.sample / "dfc2020")

    @property
    def roots(self) -> dict[str, Path]:
        """The folders that this chapter's results rest on: of both, those that it lets one choose, if any."""
        both = {"train": "train_root", "evaluation": "data_root"}
        chosen = {key: name for key, name in both.items() if name in self.parameters}
        return {key: getattr(self, name) for key, name in (chosen or both).items()}

    @property
    def on_sample(self) -> bool:
        """Whether all that this chapter looks at is synthetic."""
        return not any(self.parameters.get(name) for name in ("data_root", "train_root", "s2_path"))

    @property
    def origin(self) -> str:
        """Two words for captions and tables: where the pixels come from."""
        return "synthetic sample" if self.on_sample else "your data"

    def our_place(self, number: int = 0) -> patches.Patch:
        """
        The place that every chapter comes back to: of the patches that are judged, the most varied.

        number : 1 for the second most varied, and so on

        Chosen by its MODIS label alone (`protocol.by_variety`). Its reference, if any patch of `data_root` has one,
        is there to be looked at and plays no part in what a method learns or a chapter chooses. In a chapter without
        `data_root` it is a patch of the sample. Raises ParameterError when there are not so many patches.
        """
        try:
            rows = protocol.evaluation_patches(self.data_root)
        except MissingDataError:  # a place without a reference is a place as well
            rows = patches.complete(patches.index(self.data_root))
            if rows.empty:
                raise
        rows = protocol.by_variety(rows)
        if number >= len(rows):
            expected, do = f"0 to {len(rows) - 1}", "Choose another patch."
            raise ParameterError("place", found=str(number), expected=expected, do=do)
        return patches.read_patch(rows.iloc[number])

    @property
    def watched(self) -> bool:
        """Whether a person sits at this notebook, to whom a progress bar says something."""
        ipython = sys.modules.get("IPython")
        kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
        # A notebook that is executed as a whole takes no input (Jupyter's `allow_stdin`): nobody could type it.
        return bool(getattr(kernel, "_allow_stdin", False))

    def plan(self, network: str, class_weight_power: float) -> checkpoint.TrainPlan:
        """
        How this chapter trains that network: the same plan in every chapter with the same parameters.

        What a chapter has no parameter for is that of the profile `smoke`: such a chapter looks at small networks.
        """
        smoke = settings.read_profile("smoke")
        decided = ("loss", "steps", "crop", "batch", "seed")
        chosen = {name: self.parameters.get(name, smoke[name]) for name in decided}
        report_every = max(1, chosen["steps"] // 8)
        return checkpoint.TrainPlan(
            network=network, class_weight_power=class_weight_power, report_every=report_every, **chosen
        )

    def learned(self, learner: str, class_weight_power: float) -> tuple[protocol.Classify, float]:
        """
        What draws maps after learning from the MODIS labels, and the seconds that learning took.

        learner : "forest" or a network; see `protocol.NAMES`
        """
        if learner != "forest":
            run = self.trained(self.plan(learner, class_weight_power))
            return partial(loop.classify, run), float(run.history[-1]["seconds"] or 0)
        stack, began = self.training_stack(), time.perf_counter()
        grown = forest.train_forest(stack, seed=self.parameters["seed"], class_weight_power=class_weight_power)
        return partial(forest.classify, grown), round(time.perf_counter() - began, 2)

    def trained(self, plan: checkpoint.TrainPlan) -> checkpoint.Run:
        """
        The network of *plan*, trained on `train_root`: the checkpoint if one is there, else trained now.

        Its history tells how well it agrees with the labels of the scenes that were held out.
        A checkpoint counts only for the same plan, the same data and the same training code, whether it was trained
        here before or comes with the package (`SHIPPED`).
        """
        return self.kept(self.checkpoint_name(plan), partial(self._train, plan))

    def _train(self, plan: checkpoint.TrainPlan, folder: Path) -> checkpoint.Run:
        stack, held_out = self.training_stack(plan.labels), self.held_out_stack(plan.labels)
        return loop.train(stack, plan, folder, validation=held_out, progress=self.watched)

    def kept(self, name: str, make: Callable[[Path], checkpoint.Run]) -> checkpoint.Run:
        """
        The network in the checkpoint of that *name*, here or in `SHIPPED`; else what *make* gives, and then kept.

        make : gets a folder of its own, from which an interrupted training goes on
        """
        path = _checkpoint(name)
        with _runtime.lock((data_folder() / "runs" / name).with_suffix(".lock")):  # chapters may run side by side
            if not path.exists():
                checkpoint.save_checkpoint(make(path.with_suffix("")), path)
        # Read back even when it was trained just now: both ways must give the same maps.
        run = checkpoint.load_checkpoint(path)
        run.network.to(loop.choose_device(run.plan.device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return run

    def checkpoint_name(self, plan: checkpoint.TrainPlan, *further: str) -> str:
        """The file name of a trained network: a digest of plan, data, training code, and what else it rests on."""
        said = json.dumps(asdict(plan) | {"held_out": protocol.HELD_OUT}, sort_keys=True)
        digest = _digest([said, data_digest(self.train_root), _code_digest(), *further])
        return f"{plan.network}-{digest[:16]}.safetensors"

    def checkpoint_hash(self, learner: str, class_weight_power: float) -> dict[str, str]:
        """SHA-256 of the checkpoint that `learned` uses, as `{"checkpoint": ...}`; empty where there is none."""
        if learner not in networks.NETWORKS:
            return {}
        path = _checkpoint(self.checkpoint_name(self.plan(learner, class_weight_power)))
        return {"checkpoint": hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else {}

    def training_stack(self, labels: str = "modis") -> source.PatchStack:
        """The patches to learn from, in memory, with "modis" or "fine" labels; refused patches are reported."""
        return self._stack(0, labels)

    def held_out_stack(self, labels: str = "modis") -> source.PatchStack:
        """The patches of the scenes that no network learns from; see `protocol.split_scenes`."""
        return self._stack(1, labels)

    def _stack(self, part: int, labels: str) -> source.PatchStack:
        table = patches.index(self.train_root)
        if labels == "fine":
            # The sample keeps the truth of its training scenes apart; real SEN12MS has none.
            table = patches.with_truth(table, self.train_root.with_name("truth"))
        table = patches.complete(table, source.LABEL_KINDS[labels])
        stack, report = source.read_stack(protocol.split_scenes(table)[part], labels)
        if report.skipped or report.repaired:
            print(report)
        return stack

    def record(
        self,
        method: str,
        scores: Scores,
        *,
        label_regime: str = "coarse only",
        cost: Mapping[str, float] | None = None,
        regions: Mapping[str, Scores] | None = None,
        counts: Mapping[str, NDArray[np.int64]] | None = None,
        hashes: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Add one line to the ledger: this method, with this chapter's parameters, scored so.

        counts : confusion of each region; with it, `claims` can say how sure the score is
        hashes : beside those of the data, such as `checkpoint_hash`
        more : further scores by name, such as `near_borders` (`protocol.Result.for_ledger`)
        """
        entry = ledger.new_entry(
            self.name,
            {"method": method, **self.parameters},
            {
                **asdict(scores),
                "regions": {name: asdict(s) for name, s in (regions or {}).items()},
                "counts": counts or {},
                **(more or {}),
            },
            label_regime=label_regime,
            profile=self.parameters["profile"],
            seeds={"world": self.parameters["seed"], "training": self.parameters["seed"]},
            synthetic=any(map(_is_sample, self.roots.values())),
            data_kind=_data_kind(self.roots.values()),
            data={key: data_name(root) for key, root in self.roots.items()},
            hashes={key: data_digest(root) for key, root in self.roots.items()} | dict(hashes or {}),
            cost=cost,
        )
        ledger.append(ledger_path(), entry)

    def glue(self, name: str, value: float | str, form: str = "") -> None:
        """
        Keep a value under *name*, so that the text can quote it: `` {glue:text}`name` ``.

        What MyST-NB's own `glue` does, without needing MyST-NB on the machine that runs the chapter. The value is
        kept in quotes: a bare "+6.0" or "1,000" the page would read as Python, and show 6.0 or (1, 0).
        """
        from IPython.display import display

        prefix = "application/papermill.record/"
        shown = {f"{prefix}text/plain": repr(format(value, form))}
        display(shown, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})

    def provenance(self) -> Any:
        """A box that says what made this page: parameters, data, code, machine, time and memory."""
        from IPython.display import HTML

        rows = "".join(
            f"<tr><th scope='row'>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
            for key, value in self._facts().items()
        )
        return HTML(f"<table class='provenance'><tbody>{rows}</tbody></table>")

    def _facts(self) -> dict[str, str]:
        parameters = ", ".join(f"{key}\u00a0=\u00a0{value!r}" for key, value in self.parameters.items())
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        machine = f"{_runtime.machine()['processor']}, {os.cpu_count()} cores"
        data = self.origin
        if "s2_path" not in self.parameters:  # a map of one scene rests on no sample world
            root = self.train_root if "train_root" in self.parameters else self.data_root
            data = f"{data}, digest {data_digest(root)[:16]}"
        return {
            "Chapter": f"{self.name}, profile {self.parameters['profile']}",
            "Parameters": parameters,
            "Data": data,
            "Code": f"lcfuse_core {__version__}",
            "Versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
            "Machine": machine,
            "Time and memory": f"{time.monotonic() - self.started:.0f} s, at most {_runtime.peak_memory_mb():.0f} MB",
        }


def data_digest(root: str | os.PathLike[str]) -> str:
    """
    SHA-256 that stands for the data under *root*.

    For the sample: of all pixels, as `world` recorded it. For other data: of names and sizes, which tells one
    download from another but not a flipped bit; the manifest's checksums do that.
    """
    root = Path(root)
    if _is_sample(root):
        return str(world.read_world(root.parent)["sha256"])
    files = sorted(path for path in root.rglob("*.tif"))
    return _digest([f"{path.relative_to(root)} {path.stat().st_size}" for path in files])


def data_name(root: Path) -> str:
    """What the data under *root* are called: the sample world and its seed, or the folder's own name."""
    if not _is_sample(root):
        return root.name
    seed = world.read_world(root.parent).get("plan", {}).get("seed", "of unknown seed")
    return f"sample world {seed}: {root.name}"


def _data_kind(roots: Iterable[Path]) -> str:
    """Of a ledger line: what is partly synthetic is synthetic, and real is what was verified, all of it."""
    roots = list(roots)
    if any(map(_is_sample, roots)):
        return "synthetic"
    return "real" if all(fetched.vouched_for(root) for root in roots) else "unverified"


def _is_sample(root: Path) -> bool:
    return (root.parent / "world.json").exists()


def _checkpoint(name: str) -> Path:
    """Where the network of that name is, or would be kept."""
    shipped = (SHIPPED / name, SHIPPED / "at_home" / name)
    return next(filter(Path.exists, shipped), data_folder() / "runs" / name)


def _code_digest() -> str:
    """SHA-256 of the code that a trained network depends on, computed from the imports."""
    return _runtime.code_digest(*_runtime.TRAINING_CODE)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
