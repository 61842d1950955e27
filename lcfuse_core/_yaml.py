"""YAML with one reading: the loader of every YAML file, of the package and of users."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lcfuse_core.errors import DataError


def load_yaml(content: bytes | str, where: str) -> Any:
    """
    Return the value of a YAML document that has one reading; used for every YAML file of the package and of users.

    Refused is what a person and a program read in different ways: `yes`, `off`, `012`, `0x1f`, `1_000`, `1:30` without
    quotes, a key given twice. Aliases inside anchors are refused too. Raises DataError that names the line of *where*.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        line, found = content[: error.start].count(b"\n") + 1, "bytes that are not UTF-8"  # type: ignore[arg-type]
    except RecursionError:
        line, found = 1, "values nested too deeply"
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError: a date such as 2026-13-40
        mark = getattr(error, "problem_mark", None)
        line, found = mark.line + 1 if mark else 1, str(getattr(error, "problem", None) or error).splitlines()[0]
    raise DataError(f"{where} line {line}", found=found, expected="YAML that can be read", do="Correct the line.")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which each plain value and each key has one meaning."""

    anchored = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and self.anchored:  # nested aliases grow without bounds
            raise _ambiguous("an alias inside an anchor", event)
        self.anchored += (step := int(isinstance(event, yaml.CollectionStartEvent) and bool(event.anchor)))
        node = super().compose_node(parent, index)
        self.anchored -= step
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            # `<<` brings keys of another mapping, which those here override.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key, deep=True)
            if value in seen:
                raise _ambiguous(f"{value!r} a second time", key)
            seen.add(value)
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: Any) -> Any:
        kind = node.tag.rpartition(":")[2]
        if not re.fullmatch(_PLAIN[kind], node.value):
            raise _ambiguous(f"{node.value!r} without quotes, which readers take for text or for {kind}", node)
        return getattr(self, f"construct_yaml_{kind}")(node)


_PLAIN = {
    "bool": "[Tt]rue|[Ff]alse",
    "int": "[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
}
for _kind in _PLAIN:
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _StrictLoader.construct_plain)


def _ambiguous(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
