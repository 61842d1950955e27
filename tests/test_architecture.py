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


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Dotted name below the package -> file."""
    return {".".join(file.relative_to(package).with_suffix("").parts): file for file in package.rglob("*.py")}


def imports(name: str, files: dict[str, Path], package: str = "lcfuse_core") -> set[str]:
    """The modules of *files* that the module *name* imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(files[name].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {target.removeprefix(f"{package}.") for target in names if target.startswith(f"{package}.")}
    return {target for target in found if target in files and target != name}


def rank(name: str) -> int:
    """Place of a module's room in the order; the command line stands above all."""
    room = name.split(".")[0]
    if room == "__main__":
        return len(ROOMS)
    return BELOW_ALL.index(room) - len(BELOW_ALL) if room in BELOW_ALL else ROOMS.index(room)


def upward(files: dict[str, Path]) -> list[str]:
    return [
        f"{name} imports {target}" for name in files for target in imports(name, files) if rank(target) > rank(name)
    ]


def test_imports_point_down():
    assert upward(modules()) == []


def test_no_circle_of_imports():
    files = modules()
    TopologicalSorter({name: imports(name, files) for name in files}).prepare()  # CycleError names the circle


def test_rooms_import_nothing_themselves():
    """So that `import lcfuse_core.data.legends` reads only that file."""
    for name, file in modules().items():
        if name == "__init__" or name.endswith(".__init__"):
            body = ast.parse(file.read_text()).body
            assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in body), name
            assert ast.get_docstring(ast.parse(file.read_text())), name


def test_an_import_that_points_up_is_found(tmp_path):
    """The check fails on a module of a lower room that imports from a higher one."""
    for path, code in {"data/a.py": "def f():\n    from lcfuse_core.book import b\n", "book/b.py": "X = 1\n"}.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(code)
    (tmp_path / "errors.py").write_text("from lcfuse_core import _runtime\n")
    (tmp_path / "_runtime.py").write_text("from lcfuse_core.errors import X\n")
    assert sorted(upward(modules(tmp_path))) == ["data.a imports book.b", "errors imports _runtime"]


LINES_OF_A_FILE, LINES_OF_A_ROOM = 420, 3200


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_files_and_rooms_are_small():
    """A file has one job, and a reader finds it among some dozen others."""
    long = {
        str(file.relative_to(PACKAGE)): n for file in PACKAGE.rglob("*.py") if (n := lines_of(file)) > LINES_OF_A_FILE
    }
    assert long == {}
    rooms = {room: sum(map(lines_of, (PACKAGE / room).rglob("*.py"))) for room in ROOMS}
    assert {room: n for room, n in rooms.items() if n > LINES_OF_A_ROOM} == {}
    assert min(rooms.values()) > 0
