"""The bits that were chosen for each layer and what spoke for them, as text for pages and terminals. Pure.

`edged.pipeline.mixed_precision` chooses them. Any key may be missing, because another version may have written the
report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

JSON = Mapping[str, Any]
Mark = tuple[str, float, float]  # name, bytes, error

HEAD = ("Layer", "Weights", "Bits", "Error of the outputs", "With one bit less", "With one bit more")

_GIVEN = "given by the settings"


class Chosen(NamedTuple):
    """The bits of one layer, a field for each column of HEAD; empty where there is no such width."""

    name: str
    weights: str
    bits: str
    error: str
    less: str
    more: str

    @property
    def description(self) -> str:
        """Why it has these bits, in a line, for example "4 bits: error 1.2e-03, with one bit less 5.0e-03"."""
        others = (self.less and f"with one bit less {self.less}", self.more and f"with one bit more {self.more}")
        measured = ", ".join(filter(None, (_named(self.error), *others)))
        return ": ".join(filter(None, (f"{self.bits} bits", measured)))


def chosen_bits(report: JSON) -> list[Chosen]:
    """Return the layers in the order of the network; none where bits were given for all alike.

    Args:
        report: Contents of report.json.
    """
    return [_chosen(entry) for entry in (report.get("chosen_bits") or {}).get("layers") or []]


def tries(report: JSON) -> str | None:
    """Return the sizes that were tried for a limit of accuracy, and what each lost; None if none were.

    Args:
        report: Contents of report.json.
    """
    tried = (report.get("chosen_bits") or {}).get("tries") or []
    return ", ".join(f"{entry['bytes']} bytes lose {entry['drop']:+.2f}" for entry in tried) or None


def frontier(report: JSON) -> list[tuple[str, list[Mark]]]:
    """Return curves of the error by bytes: one width for all layers, bits for each layer, and the artifact itself.

    Args:
        report: Contents of report.json.

    Returns:
        For each curve its name and its marks; none where bits were given for all alike.
    """
    chosen: JSON = report.get("chosen_bits") or {}
    known: JSON = chosen.get("frontier") or {}
    if not known:
        return []
    uniform = [(f"{each['bits']} bits in all layers", each["bytes"], each["error"]) for each in known["uniform"]]
    others = [("bits for each layer", each["bytes"], each["error"]) for each in known["chosen"]]
    return [("uniform", uniform), ("auto", others), ("artifact", [("this artifact", chosen["bytes"], chosen["error"])])]


def _chosen(entry: JSON) -> Chosen:
    bits, errors = int(entry["bits"]), entry.get("errors") or {}
    if entry.get("given"):
        return Chosen(str(entry["name"]), str(entry.get("weights", "")), str(bits), _GIVEN, "", "")
    error, less, more = (_error(errors.get(str(width))) for width in (bits, bits - 1, bits + 1))
    return Chosen(str(entry["name"]), str(entry.get("weights", "")), str(bits), error, less, more)


def _named(error: str) -> str:
    return error if error in ("", _GIVEN) else f"error {error}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"
