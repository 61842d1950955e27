"""The rooms of the package: imports point down only, and no two modules import each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import lcfuse_core

PACKAGE = Path(lcfuse_core.__file__).parent
ROOMS = ("download", "data", "sample", "models", "scoring", "training", "methods", "mapping", "book")
"""In the order in which data flow: a room imports only from itself and those before it."""

BELOW_ALL = ("errors", "_yaml", "_runtime", "__init__")
"""Modules under all rooms, each of which imports only from those before it."""

FILES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
"""Dotted name below the package -> file."""


def imports(name: str) -> set[str]:
    """The modules of the package that the module *name* imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {target.removeprefix("lcfuse_core.") for target in names}
    return {target for target in found if target in FILES and target != name}


def rank(name: str) -> int:
    """Place of a module's room in the order; the command line stands above all."""
    room = name.split(".")[0]
    if room == "__main__":
        return len(ROOMS)
    return BELOW_ALL.index(room) - len(BELOW_ALL) if room in BELOW_ALL else ROOMS.index(room)


def test_imports_point_down_and_form_no_circle():
    graph = {name: imports(name) for name in FILES}
    assert sum(map(len, graph.values())) > 200
    assert [(name, target) for name in graph for target in graph[name] if rank(target) > rank(name)] == []
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_rooms_import_nothing_themselves():
    """So that `import lcfuse_core.data.legends` reads only that file."""
    for name, file in FILES.items():
        if name == "__init__" or name.endswith(".__init__"):
            body = ast.parse(file.read_text()).body
            assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in body), name
            assert ast.get_docstring(ast.parse(file.read_text())), name


LINES_OF_A_FILE, LINES_OF_A_ROOM = 420, 3200


def test_files_and_rooms_are_small():
    """A file has one job, and a reader finds it among some dozen others."""
    lines = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: n for name, n in lines.items() if n > LINES_OF_A_FILE} == {}
    rooms = {room: sum(n for name, n in lines.items() if name.startswith(f"{room}.")) for room in ROOMS}
    assert {room: n for room, n in rooms.items() if not 0 < n <= LINES_OF_A_ROOM} == {}
