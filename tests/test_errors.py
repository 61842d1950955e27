"""Errors: what they say, whom they satisfy, and that they travel."""

import pickle

import pytest

from lcfuse_core import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
SPECIFIC = {
    "DataError": ValueError,
    "MissingDataError": FileNotFoundError,
    "FetchError": OSError,
    "LegendError": ValueError,
    "GridError": ValueError,
    "ParameterError": ValueError,
    "CheckpointError": ValueError,
    "TrainingError": RuntimeError,
    "DiskError": OSError,
}


def make(kind):
    """An error of that kind with four parts that can be told apart."""
    return kind("p1.tif", found="12 bands", expected="13 bands", do="Download it again.")


def test_no_kind_of_error_is_left_out_here():
    """The battery below runs over every class of the module."""
    assert {kind.__name__ for kind in KINDS} == {"LcfuseError", *SPECIFIC}


@pytest.mark.parametrize("kind", KINDS)
def test_message_says_where_what_and_what_to_do_in_this_order(kind):
    """Whatever else the class inherits from."""
    assert str(make(kind)) == "p1.tif: found 12 bands, expected 13 bands. Download it again."


@pytest.mark.parametrize("kind", KINDS)
def test_parts_can_be_read_one_by_one(kind):
    """A report can show them in columns."""
    error = make(kind)
    assert (error.where, error.found, error.expected, error.do) == (
        "p1.tif",
        "12 bands",
        "13 bands",
        "Download it again.",
    )


@pytest.mark.parametrize(("name", "builtin"), SPECIFIC.items())
def test_each_is_also_the_built_in_error_of_its_kind(name, builtin):
    """`except ValueError` and the like keep working, and so does `except LcfuseError`."""
    kind = getattr(errors, name)
    assert issubclass(kind, builtin)
    assert issubclass(kind, errors.LcfuseError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_error_survives_the_way_back_from_a_loader_worker(kind, protocol):
    """Pickled and unpickled: same class, same message, same parts."""
    back = pickle.loads(pickle.dumps(make(kind), protocol))  # noqa: S301 - our own bytes
    assert type(back) is kind
    assert str(back) == str(make(kind))
    assert (back.where, back.found) == ("p1.tif", "12 bands")


def test_parts_have_to_be_named():
    """Nobody can mix up what was found with what was expected."""
    with pytest.raises(TypeError):
        errors.DataError("p1.tif", "12 bands", "13 bands", "Download it again.")
