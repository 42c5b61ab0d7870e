"""The section models[].quantization: a recipe and the fields of QuantSpec that override it.

The keys and their bounds are read from QuantSpec, so that each new field becomes a key.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from typing import Any

from edged.errors import UsageError
from edged.spec import DEFAULT_RECIPE, MAX_WHOLE, RECIPES, Bounds, QuantSpec, bounds_of, recipe
from service.config.fields import Check, boolean, choice, number, setting, whole


class Quantization:
    """The keys that a config file sets; None where the value of the recipe applies."""

    def __post_init__(self) -> None:
        try:
            self.to_spec()
        except UsageError as error:
            raise ValueError(str(error)) from None

    def to_spec(self) -> QuantSpec:
        """Return the settings as a QuantSpec of the library."""
        given = dict(vars(self))
        return recipe(given.pop("recipe"), **given)


def _check(hint: Any, bounds: Bounds | None) -> Check[Any]:
    """Return the check of a QuantSpec field, from its type and bounds."""
    if bounds is not None and bounds.whole:
        return whole(int(bounds.least), None if bounds.most == MAX_WHOLE else int(bounds.most))
    if bounds is not None:
        return number(bounds.least, None if math.isinf(bounds.most) else bounds.most)
    if issubclass(hint, enum.Enum):
        return choice(*(member.value for member in hint))
    return boolean


_BOUNDS = bounds_of(QuantSpec)

QuantizationConfig: type[Quantization] = dataclasses.make_dataclass(
    "QuantizationConfig",
    [
        ("recipe", str, setting(choice(*RECIPES), DEFAULT_RECIPE)),
        *(
            (name, Any, setting(_check(hint, _BOUNDS.get(name)), None))
            for name, hint in typing.get_type_hints(QuantSpec).items()
        ),
    ],
    bases=(Quantization,),
    frozen=True,
    kw_only=True,
)
