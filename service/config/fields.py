"""Strict conversion of plain data to frozen dataclasses; every mistake is reported with its line.

A section is a dataclass whose fields are declared with `setting`. The name of a field is its key, and its check
converts the value in the file to the value in the program. (pydantic could replace this module, but needs 13 MB of
memory in a supervisor of 40 MB, measured.)
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from edged.calibration.places import is_list
from edged.errors import UsageError
from edged.spelling import closest, names_to_choose
from service.config.yaml_source import Location, Problem, Source, key_name
from service.units import parse_bytes

T = TypeVar("T")
# (value in the file, reader, its location) -> value in the program. Raises ValueError that says how to correct it.
Check = Callable[[Any, "Reader", Location], T]

_EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")  # a number elsewhere, but not always in YAML
_MAX_WHOLE = 10**300  # of a number that may have a fraction
_MAX_NAME, _MAX_PATH = 255, 4096  # bytes, of Linux
_REQUIRED: Any = dataclasses.MISSING


class _ReportedError(Exception):
    """A value has mistakes, all of which have been reported already."""


def setting(check: Check[T], default: T = _REQUIRED) -> T:
    """Declare a field of a section.

    Args:
        check: Function that reads and checks the value.
        default: Value of an omitted key. Without a default the key is required; with None it may also be left empty.
    """
    field: Any = dataclasses.field(default=default, metadata={"check": check})
    return field  # type: ignore[no-any-return]  # like dataclasses.field itself: a declaration typed as its value


def described(check: Check[T], kind: str, section: type | None = None) -> Check[T]:
    """Add to a check what the configuration reference says of it, and return it.

    Args:
        check: A check.
        kind: Values that it accepts.
        section: Section that it reads, or of which it reads a list.
    """
    check.kind, check.section = kind, section  # type: ignore[attr-defined]  # attributes of a function
    return check


def kind_of(check: Check[Any]) -> tuple[str, type | None]:
    """Return what `described` has added to a check."""
    return check.kind, check.section  # type: ignore[attr-defined]


class Reader:
    """A reader of one config file.

    Args:
        source: Parsed file.
        base: Folder that relative paths are relative to.
    """

    def __init__(self, source: Source, base: Path) -> None:
        self.base = base
        self.problems: list[Problem] = list(source.problems)
        self._source = source

    def report(self, location: Location, message: str) -> None:
        """Add a mistake to `problems`."""
        self.problems.append(Problem(self._source.line(location), key_name(location), message))

    def read(self, section: type[T], data: object) -> T | None:
        """Read the whole file as a `section`; return None if there are problems."""
        try:
            return self.section(section, data, ())
        except _ReportedError:
            return None

    def section(self, section: type[T], data: object, location: Location) -> T:
        """Read the mapping at `location` as a `section`."""
        if data is None:  # `watch:` with all its keys commented out
            data = {}
        if not isinstance(data, dict):
            raise ValueError("it must be a mapping of keys to values")
        fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]  # a dataclass
        before = len(self.problems)
        for key in data.keys() - fields.keys():
            self.report((*location, key), _unknown(key, list(fields)))
        values = {}
        for key, field in fields.items():
            if key in data:
                values[key] = self._value(field, data[key], (*location, key))
            elif field.default is dataclasses.MISSING:
                self.report((*location, key), "is missing; it has no default")
        if len(self.problems) > before:
            raise _ReportedError
        try:
            return section(**values)
        except ValueError as error:
            self.report(location, f"is impossible: {error}")
            raise _ReportedError from None

    def _value(self, field: dataclasses.Field[Any], value: object, location: Location) -> Any:
        if value is None and field.default is None:
            return None
        try:
            return field.metadata["check"](value, self, location)
        except _ReportedError:
            return None
        except ValueError as error:
            self.report(location, f"has {_shown(value)}; {error}")
            return None


def subsection(section: type[T]) -> Check[T]:
    """Return a check for a mapping that is read as a `section`."""
    return described(lambda value, reader, location: reader.section(section, value, location), "section", section)


def list_of(check: Check[T]) -> Check[tuple[T, ...]]:
    """Return a check for a list of at least one entry."""

    def read(value: Any, reader: Reader, location: Location) -> tuple[T, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError("it must be a list of at least one entry")
        field: dataclasses.Field[Any] = dataclasses.field(metadata={"check": check})
        return tuple(reader._value(field, entry, (*location, index)) for index, entry in enumerate(value))

    kind, section = kind_of(check)
    return described(read, f"list: {kind}", section)


def whole(least: int, most: int | None = None) -> Check[int]:
    """Return a check for a whole number from `least` to `most`."""

    def read(value: Any, _: Reader, __: Location) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("it must be a whole number")
        return int(_within(value, least, most))

    return described(read, f"whole number, {_range(least, most)}")


def number(least: float = -math.inf, most: float | None = None, *, above: float | None = None) -> Check[float]:
    """Return a check for a finite number from `least` to `most`, and greater than `above` if that is given."""

    def read(value: Any, _: Reader, __: Location) -> float:
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            raise ValueError(f"YAML reads that as text; write {_as_yaml(value)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError("it must be a number")
        if (isinstance(value, int) and abs(value) > _MAX_WHOLE) or not math.isfinite(value):
            raise ValueError("it must be a finite number; leave the key out for its default")
        if above is not None and value <= above:
            raise ValueError(f"it must be more than {above:g}")
        return float(_within(value, least, most))

    return described(read, ", ".join(["number", *filter(None, [_range(least, most), _lower(above)])]))


def choice(*allowed: str) -> Check[str]:
    """Return a check for one of the words `allowed`."""

    def read(value: Any, _: Reader, __: Location) -> str:
        if value not in allowed:
            raise ValueError(names_to_choose(str(value), allowed, "choose one of"))
        return str(value)

    return described(read, ", ".join(f"`{word}`" for word in allowed))


def boolean(value: Any, _: Reader, __: Location) -> bool:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def text(value: Any, _: Reader, __: Location) -> str:
    """Check that a value is text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("it must be text; put it in quotes")
    return value


def size(value: Any, _: Reader, __: Location) -> int:
    """Convert a size to bytes, see service.units.parse_bytes."""
    try:
        return parse_bytes(value)
    except UsageError:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError("it must be at least 1 byte") from None
        raise ValueError("write bytes as a number or for example 800MiB") from None


def path(value: Any, reader: Reader, _: Location) -> Path:
    """Resolve a path, which need not exist."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("it must be a path")
    found = Path(reader.base, value)
    if len(bytes(found)) >= _MAX_PATH or any(len(os.fsencode(part)) > _MAX_NAME for part in found.parts):
        raise ValueError("it is too long for a path")
    return found


def folder(value: Any, reader: Reader, location: Location) -> Path:
    """Resolve the path of an existing folder."""
    return _existing(path(value, reader, location), Path.is_dir, "folder")


def folder_or_list(value: Any, reader: Reader, location: Location) -> Path:
    """Resolve the path of an existing folder, or of a data.yaml or a text file that lists images."""
    found = path(value, reader, location)
    return _existing(found, Path.is_file, "file") if is_list(found) else _existing(found, Path.is_dir, "folder")


def file(value: Any, reader: Reader, location: Location) -> Path:
    """Resolve the path of an existing file."""
    return _existing(path(value, reader, location), Path.is_file, "file")


def _existing(found: Path, test: Callable[[Path], bool], kind: str) -> Path:
    try:
        exists = test(found)
    except OSError as error:  # no access, or the name is too long
        raise ValueError(f"it cannot be accessed: {error.strerror}") from None
    if not exists:
        raise ValueError(f"there is no such {kind}; create it or correct the path")
    return found


def _as_yaml(number: str) -> str:
    """Write 1e12 as YAML has to: with a point, and a sign of the exponent."""
    digits, _, exponent = number.lower().partition("e")
    point = digits if "." in digits else f"{digits}.0"
    return f"{point}e{exponent if exponent[0] in '+-' else f'+{exponent}'}"


def _within(value: float, least: float, most: float | None) -> float:
    if value < least:
        raise ValueError(f"it must be at least {_shown_bound(least)}")
    if most is not None and value > most:
        raise ValueError(f"it must be at most {_shown_bound(most)}")
    return value


def _range(least: float, most: float | None) -> str:
    if most is None:
        return "" if least == -math.inf else f"at least {_shown_bound(least)}"
    return f"{_shown_bound(least)} to {_shown_bound(most)}"


def _shown_bound(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _lower(above: float | None) -> str:
    return "" if above is None else f"above {above:g}"


def _unknown(key: str, known: list[str]) -> str:
    meant = closest(key, known)
    return (
        f"is unknown; known here: {', '.join(sorted(known))}"
        if meant is None
        else f"is unknown; did you mean {meant!r}?"
    )


def _shown(value: object) -> str:
    """Describe a value in at most 60 characters; for a container name only its kind."""
    if value is None:
        return "no value"
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} as value"
    shown = repr(value)
    return f"value {shown if len(shown) <= 60 else shown[:57] + '...'}"


described(boolean, "`true` or `false`")
described(text, "text")
described(size, "size")
described(path, "path")
described(folder, "path of a folder that exists")
described(folder_or_list, "path of a folder, a data.yaml or a .txt list that exists")
described(file, "path of a file that exists")
