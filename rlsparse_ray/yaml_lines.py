"""YAML with line numbers: so that an error can say where in the file it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


class YamlSyntaxError(ValueError):
    """The text is not YAML."""

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text: its data, and the nodes that know the lines."""

    data: Any
    """None for an empty text."""
    root: yaml.Node | None

    def line(self, loc: Sequence[str | int]) -> int:
        """The line of the deepest part of `loc` (keys and positions) that the text has.

        >>> parse("pairs:\\n  - name: a\\n  - name: b").line(("pairs", 1, "name"))
        3
        """
        node, line = self.root, 1
        for part in loc:
            key, node = _child(node, part)
            if node is None:
                break
            line = _line(key or node)
        return line

    def duplicate_keys(self) -> Iterator[tuple[int, str, int]]:
        """(line, key, line of its first use) for each key that a mapping has twice."""
        for node in _walk(self.root):
            first: dict[str, int] = {}
            for key, _ in _items(node):
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in first:
                    yield _line(key), key.value, first[key.value]
                first.setdefault(key.value, _line(key))


def parse(text: str) -> Document:
    """Parse one YAML document, with plain data types only.

    Raises:
        YamlSyntaxError: with the line, where there is one.
    """
    try:
        return Document(yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "unreadable"
        raise YamlSyntaxError(mark.line + 1 if mark else None, problem) from error
    except yaml.YAMLError as error:
        raise YamlSyntaxError(None, str(error)) from error


def _items(node: yaml.Node | None) -> list[tuple[yaml.Node | None, yaml.Node]]:
    """(key, value) of a mapping, (None, item) of a sequence."""
    if isinstance(node, yaml.MappingNode):
        return list(node.value)
    return [(None, item) for item in node.value] if isinstance(node, yaml.SequenceNode) else []


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    items = _items(node)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
        return items[part] if part < len(items) else (None, None)
    matches = (
        item for item in items if isinstance(item[0], yaml.ScalarNode) and item[0].value == part
    )
    return next(matches, (None, None))


def _walk(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every node once: anchors may be used in many places, even inside themselves."""
    stack, seen = [root] if root else [], set()
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            stack += [value for _, value in _items(node)]
            yield node


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
