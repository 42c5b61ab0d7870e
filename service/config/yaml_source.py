"""Parser from YAML to plain data and the line of every value, so that mistakes are reported with their lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from edged.json_document import MALFORMED
from edged.spelling import one_line

# A path into the data, e.g. ("models", 0, "name").
Location = tuple[str | int, ...]

_MAX_DEPTH = 20
_MAX_VALUES = 100_000


@dataclass(frozen=True)
class Problem:
    """One mistake in a config file.

    Attributes:
        line: Line number, from 1.
        key: Path of the key, such as "models[0].quantization.bits"; "" for the whole file.
        message: What is wrong and how to correct it, in one line.
    """

    line: int
    key: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the mistake as plain JSON types."""
        return {"line": self.line, "key": self.key, "message": self.message}


@dataclass
class Source:
    """A parsed file.

    Attributes:
        data: Content of the file as mappings, lists and scalars.
        lines: Line of each value in a list and of each key in a mapping, by location.
        problems: Mistakes that the parser found.
    """

    data: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, location: Location) -> int:
        """Return the line of the value at `location`, or of the nearest value that contains it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def key_name(location: Location) -> str:
    """Format a location as a key: ("models", 0, "name") becomes "models[0].name"."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse_yaml(text: str) -> Source:
    """Parse one YAML document. Syntax errors and repeated keys become problems instead of exceptions."""
    source = Source()
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            source.data = _value(loader, node, (), source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        source.problems.append(Problem(line, "", f"not valid YAML: {error.problem or error.context}"))
    except (yaml.YAMLError, *MALFORMED) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        source.problems.append(Problem(1, "", f"not valid YAML: {one_line(first):.200}"))
    return source


def _value(loader: yaml.SafeLoader, node: yaml.Node, location: Location, source: Source) -> Any:
    source.lines.setdefault(location, node.start_mark.line + 1)
    if len(location) > _MAX_DEPTH or len(source.lines) > _MAX_VALUES:  # aliases can contain themselves, or multiply
        raise yaml.YAMLError("it is nested too deeply or has too many values; make it smaller")
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, location, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, (*location, i), source) for i, child in enumerate(node.value)]
    return _scalar(loader, node)


def _scalar(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """Return the value of a scalar, or of what a tag makes of a node."""
    try:
        value = loader.construct_object(node)
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        raise yaml.constructor.ConstructorError(None, None, "it holds half of a character", node.start_mark) from None
    except MALFORMED:  # such as `!!timestamp x`
        what = f"it is no {node.tag.rpartition(':')[2]:.20}"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None
    return value


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, location: Location, source: Source) -> dict[str, Any]:
    _find_repeated_keys(node, location, source)
    loader.flatten_mapping(node)  # `<<: *defaults`; merged keys come first, so that they can be overridden
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _scalar(loader, key_node)
        if not isinstance(key, str):
            line = key_node.start_mark.line + 1
            source.problems.append(Problem(line, key_name(location), f"key {key!r:.40} is not text; put it in quotes"))
            continue
        place = (*location, key)
        source.lines[place] = key_node.start_mark.line + 1
        result[key] = _value(loader, value_node, place, source)
    return result


def _find_repeated_keys(node: yaml.MappingNode, location: Location, source: Source) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:str":
            key, line = key_node.value, key_node.start_mark.line + 1
            if seen.setdefault(key, line) != line:
                message = f"given twice, first in line {seen[key]}; remove one"
                source.problems.append(Problem(line, key_name((*location, key)), message))
