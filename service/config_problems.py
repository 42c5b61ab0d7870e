"""What pydantic found wrong, in the words of this project: the key, its value, and what to do."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from service.yaml_source import Location, Problem, Source, key_name

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text; put it in quotes",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def to_problem(detail: ErrorDetails, source: Source, root: type[BaseModel]) -> Problem:
    """Phrase one validation error.

    Args:
        detail: From ValidationError.errors().
        source: The file, for the line.
        root: The model that was validated, for the names of its keys.
    """
    location: Location = detail["loc"]
    return Problem(source.line(location), key_name(location), _message(detail, location, root))


def _message(detail: ErrorDetails, location: Location, root: type[BaseModel]) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(location, root)
    if kind == "missing":
        return "is missing; it has no default"
    if kind in _EXPECTED:
        return f"has value {_shown(value)}; it must be {_EXPECTED[kind]}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"has value {_shown(value)}; it must be {words} {context[name]:g}"
    if kind == "literal_error":
        return f"has value {_shown(value)}; choose one of {context['expected']}"
    if kind == "too_short":
        return f"has {context['actual_length']} entries; it needs at least {context['min_length']}"
    if kind == "value_error":
        error = context["error"]
        return f"is impossible: {error}" if isinstance(value, dict) else f"has value {_shown(value)}; {error}"
    return f"has value {_shown(value)}; {detail['msg']}"


def _unknown_key(location: Location, root: type[BaseModel]) -> str:
    known = list(_section(root, location[:-1]).model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"is unknown; did you mean {close[0]!r}?"
    return f"is unknown; known here: {', '.join(sorted(known))}"


def _section(root: type[BaseModel], location: Location) -> type[BaseModel]:
    """The model that describes the mapping at `location`."""
    section = root
    for part in location:
        if isinstance(part, str):
            section = _model_of(section.model_fields[part].annotation) or section
    return section


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in `Model`, `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _model_of(arg))), None)


def _shown(value: object) -> str:
    """A value in at most 60 characters; containers by their kind alone."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
