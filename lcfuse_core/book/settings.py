"""
Parameters of the chapters: what may be set, and what each profile sets.

A chapter opens with one cell of parameters whose values are those of the profile `smoke`. Another profile replaces
the values that were left as they are; a value that you change yourself beats the profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lcfuse_core.errors import ParameterError

PROFILES = ("smoke", "colab", "full")

CHAPTERS: dict[str, tuple[str, ...]] = {
    "coarse_labels": ("profile", "seed", "data_root", "place"),
    "sen12ms": ("profile", "seed", "train_root", "place"),
    "dfc2020": ("profile", "seed", "data_root", "place"),
    "data_at_scale": ("profile", "seed", "train_root", "place"),
    "baselines": ("profile", "seed", "data_root", "train_root", "place"),
    "networks": ("profile", "seed", "data_root", "place"),
    "training": ("profile", "seed", "train_root", "network", "loss", "class_weight_power", "steps", "crop", "batch"),
    "coarse_supervision": ("profile", "seed", "data_root", "train_root", "place"),
    "cell_supervision": ("profile", "seed", "train_root", "place"),
    "evaluation": ("profile", "seed", "data_root", "train_root", "loss", "steps", "crop", "batch", "place"),
    "uncertainty": ("profile", "seed", "data_root", "train_root", "steps", "crop", "batch", "place"),
    "maps": ("profile", "seed", "s2_path", "s1_path", "coarse_path", "map_folder"),
    "fusion": ("profile", "seed", "data_root", "train_root", "steps", "crop", "batch", "place"),
    "methods_compared": ("profile", "seed", "data_root", "train_root", "steps", "crop", "batch"),
    "reruns": ("profile", "seed"),
    "scaling_out": ("profile", "seed"),
    "reproduction": ("profile", "seed"),
    "sample_world": ("profile", "seed", "place"),
}
"""The parameters that each chapter has: those of its parameters cell (a test compares the two)."""


Loss = Literal[
    "cross_entropy", "generalised", "symmetric", "bootstrapping", "forward", "posterior_qr", "posterior_rq",
    "cell_mean", "cell_forward", "super_resolution", "bag",
]  # fmt: skip
"""Names of `losses.LOSSES`, which takes torch to import (a test compares the two)."""


class Settings(BaseModel):
    """Every parameter that a chapter may have. A chapter has some of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    profile: Literal["smoke", "colab", "full"] = Field("smoke", description="how much data and time")
    seed: int = Field(0, ge=0, lt=2**31, description="of the sample world and of training")
    data_root: str = Field("", description="folder of the patches to evaluate on; empty: the sample")
    train_root: str = Field("", description="folder of the patches to learn from; empty: the sample")
    network: Literal["fcn", "unet", "deeplabv3plus"] = Field("fcn", description="network to train")
    loss: Loss = Field("cross_entropy", description="what a network minimises")
    class_weight_power: float = Field(0.5, ge=0, le=1, description="classes count as 1 / frequency ** power")
    steps: int = Field(400, ge=1, le=10_000_000, description="training steps")
    crop: int = Field(64, ge=32, le=1024, description="side of a training crop in pixels")
    batch: int = Field(16, ge=1, le=4096, description="crops in a training step")
    s2_path: str = Field("", description="Sentinel-2 of a scene to map: file or .SAFE folder; empty: the sample scene")
    s1_path: str = Field("", description="Sentinel-1 of that scene, VV and VH in dB; empty: none, or the sample's")
    coarse_path: str = Field("", description="coarse map over that scene; empty: none, or the sample's")
    map_folder: str = Field("", description="folder for the map; empty: in the data folder")
    place: int = Field(0, ge=0, description="number of the patch that is shown")


def read_profile(name: str) -> dict[str, Any]:
    """The values of a profile, by parameter. Raises ParameterError when there is no such profile."""
    if name not in PROFILES:
        known = ", ".join(PROFILES)
        raise ParameterError("profile", found=repr(name), expected=f"one of {known}", do="Choose one of them.")
    text = resources.files("lcfuse_core").joinpath(f"shipped/profiles/{name}.yaml").read_text()
    return check(yaml.safe_load(text), where=f"profile {name}")


def check(
    values: Mapping[str, Any], *, known: Iterable[str] | None = None, where: str = "parameters"
) -> dict[str, Any]:
    """
    The same values, checked: every name known, every type and range right.

    known : names that this chapter has; None for all

    Raises ParameterError that lists what is known; nothing is converted, so that "1e-3" is not a number.
    """
    names = list(Settings.model_fields if known is None else known)
    strange = [name for name in values if name not in names]
    if strange:
        found = f"unknown name {', '.join(strange)}"
        raise ParameterError(where, found=found, expected=f"some of {', '.join(names)}", do="Correct the name.")
    try:
        Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        expected = f"{describe(name)}: {first['msg'].lower()}"
        raise ParameterError(
            f"{where}: {name}", found=repr(first["input"]), expected=expected, do="Correct the value."
        ) from None
    return dict(values)


def names_of(chapter: str) -> tuple[str, ...]:
    """The parameters of a chapter. Raises ParameterError when there is no such chapter."""
    if chapter not in CHAPTERS:
        known = ", ".join(CHAPTERS)
        raise ParameterError("chapter", found=repr(chapter), expected=f"one of {known}", do="Choose one of them.")
    return CHAPTERS[chapter]


def describe(name: str) -> str:
    """What a parameter is, in a phrase."""
    return Settings.model_fields[name].description or name


def resolve(values: Mapping[str, Any], chapter: str) -> dict[str, Any]:
    """
    The values of a chapter with the profile's in place of those left at the defaults of `smoke`.

    Raises ParameterError as `check` does.
    """
    checked = check(values, known=names_of(chapter), where=f"parameters of {chapter}")
    defaults, profile = read_profile("smoke"), read_profile(checked.get("profile", "smoke"))
    return {name: profile.get(name, value) if value == defaults[name] else value for name, value in checked.items()}


def from_text(name: str, text: str) -> Any:
    """
    A value given as text on a command line, in the type of its parameter.

    Raises ParameterError when the name is unknown or the text is not of that type.

    >>> from_text("steps", "50"), from_text("data_root", "50")
    (50, '50')
    """
    if name not in Settings.model_fields:
        check({name: text})
    kind = Settings.model_fields[name].annotation
    try:
        value: Any = kind(text) if kind in (int, float) else text
    except ValueError:
        expected = f"{describe(name)}, of type {kind.__name__ if kind else 'text'}"
        raise ParameterError(
            f"parameter {name}", found=repr(text), expected=expected, do="Correct the value."
        ) from None
    check({name: value})
    return value
