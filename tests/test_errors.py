"""Errors: their message, their parts, the built-in error that each also is, and that they can be pickled."""

import pickle

import pytest

from lcfuse_core import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LcfuseError)]
BUILT_IN = {
    "DataError": ValueError, "LegendError": ValueError, "GridError": ValueError, "ParameterError": ValueError,
    "CheckpointError": ValueError, "TrainingError": RuntimeError, "MissingDataError": FileNotFoundError,
    "FetchError": OSError, "DiskError": OSError,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_gives_where_what_and_remedy_as_text_as_parts_and_after_pickling(kind):
    """Whatever else the class inherits from; errors of data loaders and runs come from other processes."""
    error = kind("p1.tif", found="12 bands", expected="13 bands", do="Download it again.")
    for one in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own bytes
        assert type(one) is kind
        assert str(one) == "p1.tif: found 12 bands, expected 13 bands. Download it again."
        assert (one.where, one.found, one.expected) == ("p1.tif", "12 bands", "13 bands")
        assert one.do == "Download it again."
    with pytest.raises(TypeError):
        kind("p1.tif", "12 bands", "13 bands", "Download it again.")


def test_each_is_also_the_built_in_error_of_its_kind():
    """`except ValueError` and the like keep working."""
    assert {kind.__name__ for kind in KINDS} == {"LcfuseError", *BUILT_IN}
    for name, builtin in BUILT_IN.items():
        assert issubclass(getattr(errors, name), builtin)
