"""A Sphinx extension: autoapi reads the sources of this module alone, not those of all that it imports."""

from importlib.metadata import packages_distributions
from typing import Any

from astroid.manager import AstroidManager


def setup(app: Any) -> dict[str, bool]:
    """Keep autoapi's parser from reading other packages, of whose classes no page shows anything."""
    AstroidManager().module_denylist |= set(packages_distributions()) - {"lcfuse_core"}
    return {"parallel_read_safe": True}
