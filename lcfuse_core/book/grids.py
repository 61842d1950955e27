"""
Which runs a command line asks for: one chapter, or a grid of it over parameters, all checked before anything runs.

`-p seed 0..4 -p loss cross_entropy,bag` is five times two runs:

    0..4        whole numbers, both ends counted
    a,b         a list
    (a path)    is never split: commas and dots in it are its own. Give `-p data_root A -p data_root B` for two
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfuse_core import _runtime
from lcfuse_core.book import settings
from lcfuse_core.errors import MissingDataError, ParameterError

BOOK = _runtime.PACKAGE.resolve().parent / "book"
PATH_PARAMETERS = ("data_root", "train_root", "s2_path", "s1_path", "coarse_path", "map_folder")
MANY = 10_000
"""Values in a range beyond which it is taken for a slip of the finger."""


@dataclass(frozen=True)
class Run:
    """One point of a grid: a chapter, all its parameters, and the folder of what becomes of it."""

    chapter: str
    parameters: dict[str, Any]
    folder: Path
    book: Path

    @property
    def all_parameters(self) -> dict[str, Any]:
        """Those that were given, and the profile's for the rest: what the notebook will compute with."""
        smoke = settings.read_profile("smoke")
        given = {name: smoke[name] for name in settings.names_of(self.chapter)} | self.parameters
        return settings.resolve(given, self.chapter)

    @property
    def name(self) -> str:
        """Name of its folder: what was varied."""
        return self.folder.name

    @property
    def notebook(self) -> Path:
        """The executed notebook, whole or up to where it failed."""
        return self.folder / f"{self.chapter}.ipynb"

    @property
    def record(self) -> Path:
        """The file that says that the run has finished, and with what."""
        return self.folder / f"{self.chapter}.run.json"


def grid(
    chapter: str,
    given: Sequence[Sequence[str]],
    *,
    profile: str = "smoke",
    out: Path,
    book: Path = BOOK,
) -> list[Run]:
    """
    The runs that a command line asks for; a single one goes right into *out*.

    given : (name, text) pairs, as after each `-p`

    Everything is checked before anything runs. Raises ParameterError that lists what is known (chapter, names,
    values, profile), MissingDataError when the book has no such notebook.
    """
    values = parse(chapter, given, profile)
    if not (book / f"{chapter}.ipynb").exists():
        do = "Run this from a checkout of the book, or name the folder of the chapters with --book."
        where = book / f"{chapter}.ipynb"
        raise MissingDataError(where, found="no such file", expected="the chapter's notebook", do=do)
    varied = [name for name, several in values.items() if len(several) > 1]
    points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    for point in points:
        settings.resolve(point, chapter)
    out, book = out.absolute(), book.absolute()
    if len(points) == 1:
        return [Run(chapter, points[0], out, book)]
    return [Run(chapter, point, out / _folder_name(point, varied), book) for point in points]


def parse(chapter: str, given: Sequence[Sequence[str]], profile: str) -> dict[str, list[Any]]:
    """The values of each parameter that was given, in its type, without doubles; paths made absolute."""
    known = settings.names_of(chapter)
    settings.check(
        {name: None for name, _ in given if name not in known}, known=known, where=f"parameters of {chapter}"
    )
    values: dict[str, list[Any]] = {}
    for name, text in given:
        values.setdefault(name, []).extend(_values(name, text))
    if values.setdefault("profile", [profile]) != [profile] and profile != "smoke":
        found = f"--profile {profile} and -p profile {','.join(values['profile'])}"
        raise ParameterError("profile", found=found, expected="one of the two", do="Drop one.")
    for name in values["profile"]:
        settings.read_profile(name)
    return {name: list(dict.fromkeys(several)) for name, several in values.items()}


def _values(name: str, text: str) -> list[Any]:
    """What one `-p NAME TEXT` stands for."""
    if name in PATH_PARAMETERS:
        return [str(Path(text).absolute()) if text else ""]
    return [value for part in text.split(",") for value in _range(name, part)]


def _range(name: str, text: str) -> Iterable[Any]:
    ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
    if ends is None or settings.Settings.model_fields[name].annotation is not int:
        return [settings.from_text(name, text)]
    first, last = (settings.from_text(name, end) for end in ends.groups())
    if first > last:
        expected = "the smaller end first"
        raise ParameterError(f"parameter {name}", found=repr(text), expected=expected, do=f"Write {last}..{first}.")
    if last - first >= MANY:
        found = f"{last - first + 1} values"
        raise ParameterError(f"parameter {name}", found=found, expected=f"at most {MANY}", do="Ask for fewer.")
    return range(first, last + 1)


def _folder_name(point: Mapping[str, Any], varied: Iterable[str]) -> str:
    """A name that tells the runs of a grid apart, and that every file system takes."""
    parts = []
    for name in varied:
        text = str(point[name])
        plain = re.sub(r"[^\w.-]+", "-", Path(text).name if name in PATH_PARAMETERS else text)[-40:]
        digest = f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}" if plain != text else ""
        parts.append(f"{name}={plain}{digest}")
    return ",".join(parts)


def key(run: Run) -> str:
    """SHA-256 of all that a run rests on, but for data: parameters, the notebook's code cells, the module."""
    # Only here: its checks of formats take two seconds to import.
    import nbformat

    notebook = nbformat.read(run.book / f"{run.chapter}.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    said = [run.chapter, run.all_parameters, cells, _runtime.code_digest()]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
