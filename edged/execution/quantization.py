"""The quantization of a network's activations, as an artifact stores it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.errors import ArtifactError
from edged.execution.grids import ActivationGrid, ActivationScheme, Range
from edged.spec import INTEGER, PRECISIONS

_OPTIONAL = frozenset({"in_float", "silu"})  # keys that older artifacts lack


@dataclass(frozen=True)
class ActivationQuantization:
    """Ranges of activations, from which each engine's grids follow.

    Attributes:
        bits: Bits per code.
        ranges: Least (<= 0) and greatest (>= 0) value of each value that is carried as codes, by its name in the graph.
        float_layers: Names of the weights whose layers compute in float by rule.
        in_float: Names of the layers that are kept in float because rounding their inputs costs too much accuracy.
        silu: Numbers that SiLU computes with, one of PRECISIONS: with "integer" its sigmoid is rounded to codes, too.
    """

    bits: int
    ranges: Mapping[str, Range]
    float_layers: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    silu: str = INTEGER

    def grids(self, scheme: ActivationScheme = ActivationScheme.ASYMMETRIC) -> dict[str, ActivationGrid]:
        """Return the grid of each value in the codes of a scheme."""
        return {
            name: ActivationGrid.spanning(*ends, bits=self.bits, scheme=scheme) for name, ends in self.ranges.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        ranges = {name: list(ends) for name, ends in self.ranges.items()}
        return {
            "bits": self.bits,
            "ranges": ranges,
            "float_layers": list(self.float_layers),
            "in_float": list(self.in_float),
            "silu": self.silu,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActivationQuantization:
        """Read what `to_dict` returns.

        Raises:
            ArtifactError: A key is missing or unknown, or a range is impossible.
        """
        if data.keys() - _OPTIONAL != {"bits", "ranges", "float_layers"}:
            raise ArtifactError(f"activations have the keys {', '.join(data)}; need bits, ranges and float_layers")
        bits, ranges, layers = data["bits"], data["ranges"], data["float_layers"]
        kept, silu = data.get("in_float", []), data.get("silu", INTEGER)
        if bits != 8 or not isinstance(ranges, Mapping) or not isinstance(layers, list):
            raise ArtifactError(
                f"activations have {bits!r:.20} bits; this edged reads 8, with ranges and a list of layers"
            )
        if wrong := [name for name, ends in ranges.items() if not _is_range(ends)]:
            raise ArtifactError(f"the range of activation {wrong[0]!r} has value {ranges[wrong[0]]!r:.80}")
        for key, names in (("float_layers", layers), ("in_float", kept)):
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ArtifactError(f"{key} has value {names!r:.80}; need names")
        if silu not in PRECISIONS:
            raise ArtifactError(f"silu has value {silu!r:.80}; need {' or '.join(PRECISIONS)}")
        ends = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
        return cls(bits, ends, tuple(layers), tuple(kept), silu)


def _is_range(ends: object) -> bool:
    if not isinstance(ends, list) or len(ends) != 2 or any(type(end) not in (int, float) for end in ends):
        return False
    low, high = ends
    return math.isfinite(low) and math.isfinite(high) and bool(low <= 0 <= high)
