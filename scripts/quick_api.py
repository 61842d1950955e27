"""A Sphinx extension: autoapi reads fewer sources of the packages that the module imports, and builds faster."""

from importlib.metadata import packages_distributions
from typing import Any

from astroid.manager import AstroidManager


def setup(app: Any) -> dict[str, bool]:
    """Leave out the top of each installed package (`torch`, not `torch.nn`): no page shows anything of them."""
    AstroidManager().module_denylist |= set(packages_distributions()) - {"lcfuse_core"}
    return {"parallel_read_safe": True}
