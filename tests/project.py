"""What the tests of the repository share: its requirements, and what a source file imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORT_NAMES = {
    "yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow", "cycler": "matplotlib", "IPython": "ipykernel",
    "mpl_toolkits": "matplotlib",
}  # fmt: skip
"""Name that is imported -> distribution, where they differ."""


def name_of(requirement: str) -> str:
    """The distribution that a requirement like `torch>=2.2` names."""
    return re.split(r"[\[<>=! ]", requirement)[0].lower()


def imported(source: str) -> set[str]:
    """Distributions of all modules that *source* imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    found -= set(sys.stdlib_module_names) | {"lcfuse_core"}
    return {IMPORT_NAMES.get(name, name).lower() for name in found}
