"""Class names in the config file: a list, or the path of a text file with one name a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.config.fields import Reader, described, file
from service.config.yaml_source import Location

_MAX_CHARACTERS = 200  # of a name
_MAX_FILE_BYTES = 8 << 20


def labels(value: Any, reader: Reader, location: Location) -> tuple[str, ...]:
    """Read class names, in the order of the model's classes. Names may repeat, as two of ImageNet's do."""
    if isinstance(value, list):
        return _checked(value, "")
    if not isinstance(value, str):
        raise ValueError("it must be a list of names, or the path of a text file with one name a line")
    path = file(value, reader, location)
    return _checked(_lines(path), f"{path}: ")


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError(f"{path} is over {_MAX_FILE_BYTES >> 20} MiB; give a text file with one name a line")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start}; save it as UTF-8") from None
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        del lines[-1]
    return lines


def _checked(names: list[Any], place: str) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"{place}there are no names; give one for each class")
    for index, name in enumerate(names):
        if not isinstance(name, str):  # YAML reads no, on and 3 as other things
            raise ValueError(f"{place}name {index} is {name!r:.80}, no text; put it in quotes")
        if not name.strip() or not name.isprintable() or len(name) > _MAX_CHARACTERS:
            raise ValueError(
                f"{place}name {index} is {name!r:.80}; give 1 to {_MAX_CHARACTERS} characters that can be printed"
            )
    return tuple(names)


described(labels, "list of names, or path of a text file with one name a line")
