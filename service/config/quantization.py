"""The section models[].quantization: a recipe and the fields of QuantSpec that override it.

The keys and their bounds are read from QuantSpec, so that each new field becomes a key. A key that is missing has the
value of the recipe, with the exception of those in `_DEFAULTS`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from typing import Any

from edged.errors import UsageError
from edged.spec import AUTO, DEFAULT_RECIPE, MAX_WHOLE, RECIPES, Bounds, QuantSpec, bounds_of, recipe
from service.config.fields import Check, Reader, boolean, choice, described, number, setting, size, whole
from service.config.yaml_source import Location


class Quantization:
    """The keys that a config file sets; None where the value of the recipe applies, and for activations in float."""

    def __post_init__(self) -> None:
        try:
            self.to_spec()
        except UsageError as error:
            raise ValueError(str(error)) from None

    def to_spec(self) -> QuantSpec:
        """Return the settings as a QuantSpec of the library."""
        given = dict(vars(self))
        return recipe(given.pop("recipe"), **given)


def _check(name: str, hint: Any, bounds: Bounds | None) -> Check[Any]:
    """Return the check of a QuantSpec field, from its name, type and bounds."""
    if bounds is not None and bounds.word is not None:
        return _whole_or_word(bounds, bounds.word)
    if name == "size_limit":
        return size
    if bounds is not None and bounds.whole:
        return whole(int(bounds.least), None if bounds.most == MAX_WHOLE else int(bounds.most))
    if bounds is not None:
        return number(bounds.least, None if math.isinf(bounds.most) else bounds.most)
    if issubclass(hint, enum.Enum):
        return choice(*(member.value for member in hint))
    return boolean


def _whole_or_word(bounds: Bounds, word: str) -> Check[Any]:
    """Return the check of a field that is a number within bounds or a word, or left empty where it is optional."""
    check = whole(int(bounds.least), int(bounds.most))
    numbers = f"{bounds.least}" if bounds.least == bounds.most else f"{bounds.least} to {bounds.most}"

    def read(value: Any, reader: Reader, location: Location) -> Any:
        if value == word or (value is None and bounds.optional):
            return value
        try:
            return check(value, reader, location)
        except ValueError:
            raise ValueError(f"write {word}, {numbers}{' or null' if bounds.optional else ''}") from None

    if bounds.optional:
        return described(read, f"`{word}`, `{numbers}` or `null`")
    return described(read, f"whole number, {numbers}, or `{word}`")


_BOUNDS = bounds_of(QuantSpec)
_DEFAULTS = {"activation_bits": AUTO}  # the daemon measures what the library leaves to its caller

QuantizationConfig: type[Quantization] = dataclasses.make_dataclass(
    "QuantizationConfig",
    [
        ("recipe", str, setting(choice(*RECIPES), DEFAULT_RECIPE)),
        *(
            (name, Any, setting(_check(name, hint, _BOUNDS.get(name)), _DEFAULTS.get(name)))
            for name, hint in typing.get_type_hints(QuantSpec).items()
        ),
    ],
    bases=(Quantization,),
    frozen=True,
    kw_only=True,
)
