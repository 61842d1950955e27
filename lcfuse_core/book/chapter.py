"""
What the first and the last cells of a chapter need: parameters, the experiment, provenance.

    here = chapter.begin("evaluation", globals())

For notebooks alone; no other module imports it.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lcfuse_core import __version__, _runtime
from lcfuse_core.book import images, settings
from lcfuse_core.data import patches
from lcfuse_core.errors import MissingDataError, ParameterError
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.scoring import protocol
from lcfuse_core.training.distributed import describe_device


def begin(name: str, namespace: MutableMapping[str, Any]) -> Chapter:
    """
    Check the parameters of a chapter, put the profile's values in place, and set the style of figures.

    *namespace* is the notebook's `globals()`; parameters that nobody has set take the profile's value (see `settings`).
    Raises ParameterError on a name or value that the chapter does not have, before anything else runs.
    """
    values = settings.from_notebook(namespace, name)
    namespace.update(values)
    torch.manual_seed(values.get("seed", 0))
    chapter = Chapter(name, values, progress=_is_attended())
    images.use_book_style(chapter.origin if chapter.on_sample else "")
    if chapter.progress:  # only for a person: stored outputs do not depend on the machine
        print(f"Networks are {describe_device()}.")
    if not chapter.on_sample:
        print("Tables and figures are of your data; the text describes the synthetic sample.")
    return chapter


def _is_attended() -> bool:
    """Return whether a person works in this notebook; a notebook that is executed as a whole takes no input."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    return bool(getattr(kernel, "_allow_stdin", False))


@dataclass
class Chapter(Experiment):
    """The experiment of a chapter, with what only a page needs."""

    started: float = field(default_factory=time.monotonic)

    @property
    def data_folder(self) -> Path:
        """The folder of samples, downloads and trained networks."""
        return _runtime.data_folder()

    @property
    def evidence_path(self) -> Path:
        """The ledger to read: that of this run or, before it has a line, the one to which `evaluate` appends."""
        return self.ledger_path if self.ledger_path.exists() else self.data_folder / "ledger.jsonl"

    def example_patch(self, number: int = 0) -> patches.Patch:
        """
        Return the example patch: the most varied of the patches that are evaluated, or with *number* 1 the second.

        It is chosen by its MODIS label (`protocol.by_variety`). Its reference, if there is one, is only for display.
        Raises ParameterError if there are not so many patches.
        """
        try:
            rows = protocol.evaluation_patches(self.data_root)
        except MissingDataError:  # patches without a reference can be shown as well
            rows = patches.complete(patches.index(self.data_root))
            if rows.empty:
                raise
        rows = protocol.by_variety(rows)
        if number >= len(rows):
            expected, do = f"0 to {len(rows) - 1}", "Choose another patch."
            raise ParameterError("place", found=str(number), expected=expected, do=do)
        return patches.read_patch(rows.iloc[number])

    def provenance(self, root: Path | None = None) -> Any:
        """
        Return a table of what made this page: parameters, data, code, machine, time and memory.

        *root* is the folder of the data if it is not one of the parameters.
        """
        from IPython.display import HTML

        data = self.origin
        if "s2_path" not in self.parameters:  # a map of one scene does not depend on the sample
            root = root or (self.train_root if "train_root" in self.parameters else self.data_root)
            data = f"{data}, digest {self.data_digest(root)[:16]}"
        seconds, memory = time.monotonic() - self.started, _runtime.peak_memory_mb()
        machine = _runtime.machine()
        facts = {
            "Chapter": f"{self.name}, profile {self.parameters['profile']}",
            "Parameters": ", ".join(f"{key}\u00a0=\u00a0{value!r}" for key, value in self.parameters.items()),
            "Data": data,
            "Code": f"lcfuse_core {__version__}",
            "Versions": ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numpy")),
            "Machine": f"{machine['processor']}, {machine['cores']} cores",
            "Time and memory": f"{seconds:.0f} s, at most {memory:.0f} MB",
        }
        escaped = ((html.escape(key), html.escape(value)) for key, value in facts.items())
        rows = "".join(f"<tr><th scope='row'>{key}</th><td>{value}</td></tr>" for key, value in escaped)
        return HTML(f"<table class='provenance'><tbody>{rows}</tbody></table>")
