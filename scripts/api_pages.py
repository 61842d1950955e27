"""
The reference of `lcfuse_core`, from its docstrings: a page a floor, a section a module, with links to the chapters.

The source is read, not imported: no torch, no GPU, and the same pages on any machine. A module's floor is the length of
the longest way down its imports, so a page uses only what stands on the pages before it. What a chapter calls is found
in its code cells: *taught in* says where a function is used first, and each chapter gets the list of what it uses.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

import chapters

PACKAGE = "lcfuse_core"
MODULE = chapters.ROOT / PACKAGE
Documented = ast.FunctionDef | ast.ClassDef
Users = dict[str, list[str]]
"""`module.name` -> the chapters that use it, in the order of the book."""


@dataclass
class Module:
    """
    A file of the package: its name, what it says of itself, its syntax tree, the modules that it imports.

    types : what a class of the package is called in this file -> its full name
    """

    name: str
    text: str
    tree: ast.Module
    needs: set[str] = field(default_factory=set)
    types: dict[str, str] = field(default_factory=dict)


def read_modules(folder: Path = MODULE) -> dict[str, Module]:
    """All modules by name, but for `__init__`; each must have a docstring."""
    names = {file.stem for file in folder.glob("*.py")}
    found = {}
    for file in sorted(folder.glob("*.py")):
        if file.stem != "__init__":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found[file.stem] = Module(file.stem, ast.get_docstring(tree) or "", tree, imports(tree) & names)
    for module in found.values():
        module.types = class_names(module, found)
    return found


def class_names(module: Module, modules: dict[str, Module]) -> dict[str, str]:
    """See `Module.types`: its own classes, and those that it has from `from lcfuse_core.x import Name`."""
    own = {name: f"{PACKAGE}.{module.name}.{name}" for name in classes(module.tree)}
    for node in module.tree.body:
        source = str(getattr(node, "module", "")).removeprefix(f"{PACKAGE}.")
        if isinstance(node, ast.ImportFrom) and source in modules:
            there = classes(modules[source].tree)
            own |= {one.asname or one.name: f"{PACKAGE}.{source}.{one.name}" for one in node.names if one.name in there}
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            for one in (one.name for one in node.names if one.name in modules):
                own |= {f"{one}.{name}": f"{PACKAGE}.{one}.{name}" for name in classes(modules[one].tree)}
    return own


def classes(tree: ast.Module) -> set[str]:
    """Names of the documented classes of a file."""
    return {node.name for node in public(tree.body) if isinstance(node, ast.ClassDef)}


class Qualify(ast.NodeTransformer):
    """Writes the full names of the package's classes into annotations, so that each leads to the right one."""

    def __init__(self, types: dict[str, str]) -> None:
        self.types = types

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """`Run` where it is imported from `lcfuse_core.runs` becomes `lcfuse_core.runs.Run`."""
        return ast.Name(self.types.get(node.id, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """The same for `runs.Run`."""
        full = self.types.get(ast.unparse(node))
        return ast.Name(full) if full else node


def imports(tree: ast.Module) -> set[str]:
    """The modules of the package that stand in the import lines at the top of a file."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{PACKAGE}."):
            found.add(str(node.module).split(".")[1])
    return found


def floors(modules: dict[str, Module]) -> list[list[str]]:
    """Names of the modules by floor, the ground first."""

    @cache
    def floor(name: str) -> int:
        return max((floor(need) + 1 for need in modules[name].needs & modules.keys()), default=0)

    top = max(map(floor, modules))
    return [[name for name in modules if floor(name) == level] for level in range(top + 1)]


def public(body: list[ast.stmt]) -> list[Documented]:
    """Functions and classes of a body that have a docstring and no leading underscore."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node for node in body if isinstance(node, kinds) and node.name[0] != "_" and ast.get_docstring(node)]


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and text of each public constant that is followed by a docstring."""
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id[0] != "_" and isinstance(after.value.value, str):
            yield target.id, after.value.value


# What the chapters use -----------------------------------------------------------------------------


def used_by(sources: list[str], modules: dict[str, Module]) -> set[str]:
    """`module.name` for all that cells use of the package, and `module` alone for each module."""
    tree = ast.parse("\n".join(TransformerManager().transform_cell(source) for source in sources))
    alias: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            alias |= {name.asname or name.name: name.name for name in node.names if name.name in modules}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{PACKAGE}."):
            module = str(node.module).split(".")[1]
            used |= {module, *(f"{module}.{name.name}" for name in node.names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in alias:
            module = alias[node.value.id]
            used |= {module, f"{module}.{node.attr}"}
    return used


def users(folder: Path, names: list[str], modules: dict[str, Module]) -> Users:
    """Who uses what."""
    found: Users = {}
    for name in names:
        sources = [cell.source for cell in chapters.code_cells(chapters.read(name, folder))]
        for item in used_by(sources, modules):
            found.setdefault(item, []).append(name)
    return found


# From a docstring to Markdown ------------------------------------------------------------------------


def plain(line: str) -> str:
    """A line of a docstring, its code and its *parameters* kept; else what Markdown takes for its own is escaped."""
    parts = re.split(r"(`+[^`]*`+|(?<![\w*])\*\w(?:[\w ]*\w)?\*(?![\w*]))", line)
    for number in range(0, len(parts), 2):
        part = re.sub(r"\b[\w/-]+\.(py|md|json|yaml|cfg)\b", r"`\g<0>`", parts[number])
        part = re.sub(r"(?<!`)([*$#<])", r"\\\1", part)
        parts[number] = part
    return "".join(parts)


def markdown(text: str) -> str:
    """
    A docstring of the house as Markdown.

    Lines `name : meaning` become a list, examples and indented lines become code, all else stays.
    """
    out: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        if lines[0].startswith(">>>"):
            out.append("```python\n" + block + "\n```")
        elif all(line.startswith("    ") for line in lines):
            out.append("```text\n" + "\n".join(line[4:] for line in lines) + "\n```")
        else:
            out.append("\n".join(_flowing(lines)))
    return "\n\n".join(out)


def _flowing(lines: list[str]) -> Iterator[str]:
    listed = False
    for line in lines:
        meaning = re.match(r" {0,4}([\w*]+(?:, [\w*]+)*) : (.*)", line)
        if meaning:
            yield ("" if listed else "\n") + f"- `{meaning[1]}`: {plain(meaning[2])}"
        elif listed and not line.startswith(" "):
            yield "\n" + plain(line)
        else:
            yield ("  " if listed else "") + plain(line.strip())
        listed = bool(meaning) or (listed and line.startswith(" "))


def signature(node: ast.FunctionDef, types: dict[str, str], *, method: bool = False) -> str:
    """`(arguments) -> type`, as in the source; of a method without `self` or `cls`."""
    head = ast.parse(f"def f({ast.unparse(node.args)}) -> {ast.unparse(node.returns) if node.returns else None}: pass")
    function = Qualify(types).visit(head).body[0]
    if method and function.args.args and function.args.args[0].arg in ("self", "cls"):
        function.args.args.pop(0)
    result = f" -> {ast.unparse(function.returns)}" if node.returns else ""
    return f"({ast.unparse(function.args)}){result}"


def fields(node: ast.ClassDef, types: dict[str, str]) -> str:
    """`(name: type = default, ...)` of a class that lists its fields, as a dataclass does; else nothing."""
    own = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    listed = [ast.unparse(Qualify(types).visit(ast.parse(ast.unparse(item)))) for item in own]
    return f"({', '.join(listed)})" if listed else ""


def describe(node: Documented, module: Module, links: str) -> str:
    """One function or class with its public methods, as directives of Sphinx's Python domain."""
    text = f"{markdown(ast.get_docstring(node) or '')}\n\n{links}".rstrip()
    name = f"{PACKAGE}.{module.name}.{node.name}"
    if isinstance(node, ast.FunctionDef):
        return f"~~~~{{py:function}} {name}{signature(node, module.types)}\n{text}\n~~~~\n"
    inner = []
    for item in public(node.body):
        if isinstance(item, ast.FunctionDef):
            is_property = any("property" in ast.unparse(decorator) for decorator in item.decorator_list)
            kind, form = ("property", "") if is_property else ("method", signature(item, module.types, method=True))
            inner.append(f"~~~~{{py:{kind}}} {item.name}{form}\n{markdown(ast.get_docstring(item) or '')}\n~~~~\n")
    return f"~~~~~{{py:class}} {name}{fields(node, module.types)}\n{text}\n\n{''.join(inner)}~~~~~\n"


# The pages --------------------------------------------------------------------------------------------


def link(names: list[str]) -> str:
    """Links to chapters."""
    return ", ".join(f"{{doc}}`{name}`" for name in names)


def taught_in(names: list[str]) -> str:
    """The line that leads from a name to its chapters, if there are any."""
    return f"*Taught in* {link(names)}." if names else ""


def section(module: Module, who: Users) -> str:
    """All that is public in one module."""
    taught = link(who.get(module.name, []))
    head = f"(api-{module.name})=\n## `{module.name}`\n\n{markdown(module.text)}\n\n"
    head += f"*Used in* {taught}.\n\n" if taught else "*Used by other modules and from a shell, in no chapter.*\n\n"
    parts = []
    for name, text in constants(module.tree):
        links = taught_in(who.get(f"{module.name}.{name}", []))
        entry = f"{markdown(text)}\n\n{links}".rstrip()
        parts.append(f"````{{py:data}} {PACKAGE}.{module.name}.{name}\n{entry}\n````\n")
    for node in public(module.tree.body):
        parts.append(describe(node, module, taught_in(who.get(f"{module.name}.{node.name}", []))))
    return head + "\n".join(parts)


def documented(modules: dict[str, Module]) -> set[str]:
    """`module.name` of all that the pages describe."""
    found = set()
    for module in modules.values():
        names = [name for name, _ in constants(module.tree)] + [node.name for node in public(module.tree.body)]
        found |= {f"{module.name}.{name}" for name in names}
    return found


def pages(modules: dict[str, Module], who: Users) -> dict[str, str]:
    """File name (without ending) -> Markdown, a page a floor."""
    made = {}
    for level, names in enumerate(floors(modules)):
        rests = "These files import no other of the package" if level == 0 else "These files import from floors below"
        links = ", ".join(f"{{ref}}`{name} <api-{name}>`" for name in names)
        head = f"# Floor {level}\n\n{rests}: {links}.\n\n"
        made[f"api-floor-{level}"] = head + "\n".join(section(modules[name], who) for name in names)
    return made


def overview(modules: dict[str, Module], who: Users) -> str:
    """A table of all modules for the page that opens the reference."""
    rows = ["| Floor | Module | What it is for | Used in |", "|--:|---|---|---|"]
    for level, names in enumerate(floors(modules)):
        for name in names:
            first = plain(" ".join(modules[name].text.split("\n\n")[0].split()).rstrip(":")).replace("|", r"\|")
            rows.append(f"| {level} | {{ref}}`{name} <api-{name}>` | {first} | {link(who.get(name, []))} |")
    return ":::{table}\n:class: lc-modules\n:widths: 7 18 45 30\n" + "\n".join(rows) + "\n:::\n"


def used_here(name: str, modules: dict[str, Module], who: Users) -> str:
    """What chapter *name* uses of the module, with links, as the Markdown that closes its page."""
    known = documented(modules)
    items = [item for item, names in sorted(who.items()) if name in names and item in known]
    links = ", ".join(f"{{py:obj}}`{item} <{PACKAGE}.{item}>`" for item in items)
    return f"*From the module, on this page:* {links}." if items else ""
