"""The section models[].quantization: a recipe, and any field of QuantSpec that is to differ from it.

Its keys are made from QuantSpec itself, so that a new field there is a key here.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping
from typing import Any

from edged.errors import UsageError
from edged.spec import DEFAULT_RECIPE, MAX_BEAM, MAX_BITS, MIN_BITS, RECIPES, QuantSpec, recipe
from service.config.fields import Check, boolean, choice, number, setting, whole


class Quantization:
    """What was given; None for what the recipe says."""

    def __post_init__(self) -> None:
        try:
            self.to_spec()
        except UsageError as error:
            raise ValueError(str(error)) from None

    def to_spec(self) -> QuantSpec:
        """As the library takes it."""
        given = dict(vars(self))
        return recipe(given.pop("recipe"), **given)


_BOUNDED: Mapping[str, Check[Any]] = {
    "bits": whole(MIN_BITS, MAX_BITS),
    "first_bits": whole(MIN_BITS, MAX_BITS),
    "last_bits": whole(MIN_BITS, MAX_BITS),
    "beam": whole(1, MAX_BEAM),
    "block_size": whole(1),
    "rows_at_once": whole(1),
    "augmentation": whole(1),
    "damp_ratio": number(0, 1),
    "propagation": number(0, 1),
}
_BY_TYPE: Mapping[type, Check[Any]] = {bool: boolean, int: whole(0), float: number(0)}


def _check(name: str, hint: Any) -> Check[Any]:
    """How a field of QuantSpec is read, by its name or else its type."""
    if name in _BOUNDED:
        return _BOUNDED[name]
    if issubclass(hint, enum.Enum):
        return choice(*(member.value for member in hint))
    return _BY_TYPE[hint]


QuantizationConfig: type[Quantization] = dataclasses.make_dataclass(
    "QuantizationConfig",
    [
        ("recipe", str, setting(choice(*RECIPES), DEFAULT_RECIPE)),
        *((name, Any, setting(_check(name, hint), None)) for name, hint in typing.get_type_hints(QuantSpec).items()),
    ],
    bases=(Quantization,),
    frozen=True,
    kw_only=True,
)
