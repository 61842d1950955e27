"""A YAML file against a pydantic model, with errors that name the line and the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lcfuse_core.errors import DataError

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]
"""The way to a field: ("items", 3, "checksums")."""


class Document:
    """
    A YAML text, its values, and the line of each.

    where : the name of the file, for errors

    Raises DataError on what is no YAML, and on what YAML allows and a person would trip over: a key given twice (the
    later would silently win), an alias (a file that refers to itself has no end).
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        try:
            _refuse_aliases(text)
            self.lines: dict[Location, int] = dict(_lines(yaml.compose(text, yaml.SafeLoader), ()))
            self.values: Any = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise self._error(line, "the file", str(error.problem), "YAML that can be read") from None
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-40
            raise self._error(1, "the file", str(error).splitlines()[0], "YAML that can be read") from None

    def validate(self, model: type[Model]) -> Model:
        """The document as *model*. Raises DataError for the first mistake."""
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            first = error.errors()[0]
            found = "nothing" if first["type"] == "missing" else repr(first["input"])[:120]
            raise self.mistake(first["loc"], found, first["msg"].removeprefix("Value error, ")) from None

    def mistake(self, loc: Location, found: str, expected: str) -> DataError:
        """An error that names the line and the field at *loc*."""
        field, line = self._locate(loc)
        return self._error(line, field, found, expected[:1].lower() + expected[1:])

    def _locate(self, loc: Location) -> tuple[str, int]:
        """The field as a person would write it, and its line, or that of the nearest thing around it."""
        at: Location = ()
        for part in loc:  # pydantic puts names of types in between
            if (*at, part) in self.lines:
                at = (*at, part)
        missing = () if not loc or (at and at[-1] == loc[-1]) else loc[-1:]
        return ".".join(map(str, (*at, *missing))) or "the file", self.lines.get(at, 1)

    def _error(self, line: int, field: str, found: str, expected: str) -> DataError:
        return DataError(f"{self.where} line {line}: {field}", found=found, expected=expected, do="Correct the line.")


def _refuse_aliases(text: str) -> None:
    for event in yaml.parse(text, yaml.SafeLoader):
        if getattr(event, "anchor", None):
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem="an anchor or alias", problem_mark=mark)


def _lines(node: yaml.Node | None, loc: Location) -> Iterator[tuple[Location, int]]:
    """The line, from 1, of every field."""
    if node is None:
        return
    yield loc, node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield from _lines(child, (*loc, number))
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, child in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} a second time", problem_mark=key.start_mark)
            seen.add(key.value)
            yield from _lines(child, (*loc, key.value))
            yield (*loc, key.value), key.start_mark.line + 1
