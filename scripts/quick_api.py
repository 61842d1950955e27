"""A Sphinx extension: autoapi infers less of what no page of the reference shows, and builds faster."""

from importlib.metadata import packages_distributions
from typing import Any

from astroid.brain import brain_builtin_inference
from astroid.manager import AstroidManager


def setup(app: Any) -> dict[str, bool]:
    """Leave out the top of each installed package (`torch`, not `torch.nn`), and what is inferred but builtins."""
    manager = AstroidManager()
    manager.module_denylist |= set(packages_distributions()) - {"lcfuse_core"}
    manager._transform.transforms.clear()
    brain_builtin_inference.register(manager)  # else constants such as len(SCORED) have no value
    return {"parallel_read_safe": True}
