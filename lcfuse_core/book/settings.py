"""
Parameters of the chapters: what may be set, what each profile sets, and which values a person has set.

A chapter opens with one cell of parameters whose values are those of the profile `smoke`. Another profile replaces the
values that nobody has set. Set is a value

- that differs from the value in `smoke`, wherever it was changed,
- that `python -m lcfuse_core run -p` or papermill was given, also if it equals the value in `smoke`,
- that a cell between the parameters cell and the set-up cell assigns, also if it equals the value in `smoke`.

An edit of the parameters cell cannot keep a value of `smoke` under another profile, because an edited line and an
untouched one look the same. Assign the value in a cell below, as papermill does.
"""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lcfuse_core import _runtime
from lcfuse_core.errors import MissingDataError, ParameterError

CHAPTERS: dict[str, tuple[str, ...]] = {
    "coarse_labels": ("profile", "seed", "data_root", "place"),
    "metrics": ("profile", "seed", "data_root"),
    "sen12ms": ("profile", "seed", "train_root", "place"),
    "dfc2020": ("profile", "seed", "data_root", "place"),
    "data_at_scale": ("profile", "seed", "train_root", "place"),
    "baselines": ("profile", "seed", "data_root", "train_root", "place"),
    "networks": ("profile", "seed", "data_root", "place"),
    "training": ("profile", "seed", "train_root", "network", "loss", "class_weight_power", "steps", "crop", "batch"),
    "coarse_supervision": ("profile", "seed", "data_root", "train_root", "place"),
    "cell_supervision": ("profile", "seed", "train_root", "place"),
    "evaluation": (
        "profile", "seed", "data_root", "train_root", "checkpoint", "loss", "steps", "crop", "batch", "place",
    ),
    "uncertainty": ("profile", "seed", "data_root", "train_root", "steps", "crop", "batch"),
    "maps": ("profile", "seed", "s2_path", "s1_path", "coarse_path", "map_folder"),
    "fusion": ("profile", "seed", "data_root", "train_root", "checkpoint", "steps", "crop", "batch", "place"),
    "methods_compared": ("profile", "seed", "data_root", "train_root", "checkpoint", "steps", "crop", "batch"),
    "robustness": ("profile", "seed"),
    "your_place": ("profile", "seed", "data_root", "download", "lon", "lat", "year"),
    "reruns": ("profile", "seed"),
    "real_data": ("profile", "seed", "data_root"),
    "scaling_out": ("profile", "seed"),
    "reproduction": ("profile", "seed"),
    "sample_world": ("profile", "seed", "place"),
}  # fmt: skip
"""The parameters of each chapter: those of its parameters cell (a test compares the two)."""

PATHS = ("data_root", "train_root", "checkpoint", "s2_path", "s1_path", "coarse_path", "map_folder")
"""Parameters that are paths."""

_DRIVE = "/content/drive"

_Loss = Literal[
    "cross_entropy", "generalised", "symmetric", "bootstrapping", "forward", "posterior_qr", "posterior_rq",
    "cell_mean", "cell_forward", "super_resolution", "bag",
]  # fmt: skip
"""Names of `losses.LOSSES`, which needs torch to import (a test compares the two)."""


class Settings(BaseModel):
    """Every parameter of any chapter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    profile: Literal["smoke", "colab", "full"] = Field("smoke", description="how much data and time")
    seed: int = Field(0, ge=0, lt=2**31, description="of the sample world and of training")
    data_root: str = Field("", description="folder of the patches to evaluate on; empty: the sample")
    train_root: str = Field("", description="folder of the patches to learn from; empty: the sample")
    checkpoint: str = Field("", description="file of a trained network, used for all of its kind; empty: none")
    network: Literal["fcn", "unet", "deeplabv3plus"] = Field("fcn", description="network to train")
    loss: _Loss = Field("cross_entropy", description="what a network minimises")
    class_weight_power: float = Field(0.5, ge=0, le=1, description="classes count as 1 / frequency ** power")
    steps: int = Field(400, ge=1, le=10_000_000, description="training steps")
    crop: int = Field(64, ge=32, le=1024, description="side of a training crop in pixels")
    batch: int = Field(16, ge=1, le=4096, description="crops in a training step")
    s2_path: str = Field("", description="Sentinel-2 of a scene to map: file or .SAFE folder; empty: the sample scene")
    s1_path: str = Field("", description="Sentinel-1 of that scene, VV and VH in dB; empty: none, or the sample's")
    coarse_path: str = Field("", description="coarse map over that scene; empty: none, or the sample's")
    map_folder: str = Field("", description="folder for the map; empty: in the data folder")
    place: int = Field(0, ge=0, description="number of the patch that is shown")
    download: bool = Field(False, description="whether to read the place from public servers")
    lon: float = Field(11.5, ge=-180, le=180, description="longitude of a place, degrees")
    lat: float = Field(48.3, ge=-80, le=84, description="latitude of a place, degrees")
    year: int = Field(2021, ge=2016, le=2100, description="of the images and the MODIS label of a place")


def names_of(chapter: str) -> tuple[str, ...]:
    """Return the parameters of a chapter. Raises ParameterError if there is no such chapter."""
    if chapter not in CHAPTERS:
        known = ", ".join(CHAPTERS)
        raise ParameterError("chapter", found=repr(chapter), expected=f"one of {known}", do="Choose one of them.")
    return CHAPTERS[chapter]


def refuse_unknown(names: Iterable[str], chapter: str) -> None:
    """Raise ParameterError, with the known names, if a chapter lacks one of these parameters."""
    known = names_of(chapter)
    if unknown := [name for name in dict.fromkeys(names) if name not in known]:
        found, expected = f"unknown name {', '.join(unknown)}", f"some of {', '.join(known)}"
        raise ParameterError(f"parameters of {chapter}", found=found, expected=expected, do="Correct the name.")


def _check(values: Mapping[str, Any], where: str = "parameters") -> None:
    """Raise ParameterError, with the right type and range, unless every value has them; nothing is converted."""
    try:
        Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name, found = str(first["loc"][0]), repr(first["input"])
        expected = f"{Settings.model_fields[name].description}: {first['msg'].lower()}"
        raise ParameterError(f"{where}: {name}", found=found, expected=expected, do="Correct the value.") from None


def from_notebook(namespace: Mapping[str, Any], chapter: str) -> dict[str, Any]:
    """
    Return the parameters in a notebook's namespace, with the profile's values in place of those that nobody has set.

    *namespace* are the notebook's `globals()`. `In`, IPython's list of the cells that have run, shows what was assigned
    below the parameters cell; without it (a script), a value counts as set if it differs from the profile `smoke`.
    Raises ParameterError if the parameters cell or the cell that papermill injects assigns a name that the chapter does
    not have, or if a value has a wrong type or is out of its range.
    """
    history = namespace.get("In")  # its last cell is the one that runs now
    cells = [(str(cell), _assigned(str(cell))) for cell in history[:-1]] if isinstance(history, list) else []
    is_injected = {cell: cell.lstrip().startswith("# Parameters") for cell, _ in cells}
    starts = [n for n, (cell, found) in enumerate(cells) if found[:1] == ["profile"] and not is_injected[cell]]
    parameters, below = (cells[starts[-1]][1], cells[starts[-1] + 1 :]) if starts else ([], cells)
    injected = [name for cell, found in below if is_injected[cell] for name in found]
    refuse_unknown([*parameters, *injected], chapter)
    values = {name: namespace[name] for name in names_of(chapter) if name in namespace}
    _check(values, where=f"parameters of {chapter}")
    smoke, profile = (_runtime.read_profile(name) for name in ("smoke", values.get("profile", "smoke")))
    given = {"profile", *(name for _, found in below for name in found)}
    return {name: value if name in given or value != smoke[name] else profile[name] for name, value in values.items()}


def _assigned(cell: str) -> list[str]:
    """Return the names that the top-level statements of an executed cell assign, in order."""
    try:
        body = ast.parse(cell).body
    except SyntaxError:  # such as a cell with a magic command
        return []
    targets = [node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)] for node in body]
    return [target.id for several in targets for target in several if isinstance(target, ast.Name)]


def from_text(name: str, text: str) -> Any:
    """
    Return a value given as text on a command line, in the type of its parameter.

    Raises ParameterError if the text is not of that type or the value is out of its range.

    >>> from_text("steps", "50"), from_text("data_root", "50")
    (50, '50')
    """
    field = Settings.model_fields[name]
    try:
        value: Any = field.annotation(text) if field.annotation in (int, float) else text
    except ValueError:
        expected = f"{field.description}, of type {getattr(field.annotation, '__name__', 'text')}"
        do = "Correct the value."
        raise ParameterError(f"parameter {name}", found=repr(text), expected=expected, do=do) from None
    _check({name: value})
    return value


def use_drive() -> Path:
    """
    Keep samples, checkpoints and results in the folder `lcfuse` of Google Drive, so that a disconnect loses none.

    Call it after the first cell of a chapter, which installs the module. After a disconnect run all cells again: a
    training continues from its last checkpoint. Raises MissingDataError if this is not Colab, or the folder cannot
    be used.
    """
    try:
        importlib.import_module("google.colab.drive").mount(_DRIVE)
        path = Path(_DRIVE) / "MyDrive" / "lcfuse"
        path.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError, ValueError) as error:
        found, do = f"no access ({error})", "Allow the access on Colab; elsewhere set LCFUSE_DATA to a folder."
        raise MissingDataError("Google Drive", found=found, expected="a mounted Drive", do=do) from None
    os.environ["LCFUSE_DATA"] = str(path)
    return path
