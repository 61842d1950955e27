"""
The few errors that a user can act on.

Each message says four things in one order: where, what was found, what was expected, what to do.
Every class is also the built-in error of its kind, so that `except ValueError` keeps working.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial, wraps
from os import PathLike
from typing import Any, TypeVar

from pydantic import ValidationError

_Checked = TypeVar("_Checked")


class LcfuseError(Exception):
    """
    Base of all errors raised on purpose by this package.

    >>> str(LcfuseError("p1.tif", found="12 bands", expected="13 bands", do="Download it again."))
    'p1.tif: found 12 bands, expected 13 bands. Download it again.'
    """

    __str__ = Exception.__str__  # OSError would print an errno

    def __init__(self, where: str | PathLike[str], *, found: str, expected: str, do: str) -> None:
        super().__init__(f"{where}: found {found}, expected {expected}. {do}")
        self.where, self.found, self.expected, self.do = str(where), found, expected, do

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments: without this, an error raised in a worker process cannot be sent back.
        return partial(type(self), self.where, found=self.found, expected=self.expected, do=self.do), ()


class DataError(LcfuseError, ValueError):
    """A file is there but its content is not what its kind promises."""


class MissingDataError(LcfuseError, FileNotFoundError):
    """A file or folder that is needed is not there."""


class FetchError(LcfuseError, OSError):
    """Data could not be brought here or written; what was fetched before stays and is used next time."""


class LegendError(LcfuseError, ValueError):
    """A class code or name outside its legend."""


class GridError(LcfuseError, ValueError):
    """Arrays or rasters that should lie on one grid do not."""


class ParameterError(LcfuseError, ValueError):
    """A parameter with an unknown name, a wrong type or a value out of range."""


class CheckpointError(LcfuseError, ValueError):
    """A checkpoint that cannot be trusted or does not fit."""


class TrainingError(LcfuseError, RuntimeError):
    """Training cannot go on; what was saved before stays usable."""


class DiskError(LcfuseError, OSError):
    """A disk that is full or cannot be written; what was finished before is kept."""


def disk_error(path: str | PathLike[str], error: OSError, n_bytes: int = 0) -> DiskError:
    """Return the error for a disk that refused *n_bytes* bytes."""
    full = " (the disk is full)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    expected = f"room for {n_bytes:,} bytes or more" if n_bytes else "to write it"
    do = "Free some space or choose another disk, and call again: what was finished is kept."
    return DiskError(path, found=f"{error.strerror or error}{full}", expected=expected, do=do)


def parameter_errors(what: str, do: str) -> Callable[[type[_Checked]], type[_Checked]]:
    """Return a decorator that lets a pydantic dataclass raise ParameterError for *what* instead of ValidationError."""

    def decorate(kind: type[_Checked]) -> type[_Checked]:
        validate = kind.__init__

        @wraps(validate)
        def checked(self: _Checked, *arguments: Any, **values: Any) -> None:
            try:
                validate(self, *arguments, **values)
            except ValidationError as error:
                first = error.errors()[0]
                name, message = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
                known = kind.__dataclass_fields__  # type: ignore[attr-defined]
                expected = message.removeprefix("Input should be ") if name in known else f"one of {', '.join(known)}"
                found = repr(values.get(name, first["input"]))[:200]
                raise ParameterError(f"{what}: {name}", found=found, expected=expected, do=do) from None

        kind.__init__ = checked  # type: ignore[method-assign, assignment]
        return kind

    return decorate
