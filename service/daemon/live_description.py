"""A generation as pages show it, from its manifest and its report. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from edged.spec import AUTO
from service.reporting.candidates import candidates, kept_in_float
from service.reporting.facts import figures, reading, weights

T = TypeVar("T")

_MAX_WHOLE = 1 << 62


def describe(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description of a generation, as JSON types whose kinds are checked: a page need not.

    Args:
        manifest: Contents of manifest.json.
        report: Contents of report.json.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError: One of them is damaged, or was written by
            another version of edged.
    """
    source, totals = manifest["source"], report["totals"]
    return {
        "bits": _bits(manifest["quantization"]["bits"]),
        "architecture": _checked(str, manifest["architecture"]["name"]),
        "file_name": _checked(str, source["name"]),
        "sha256": _checked(str, source["sha256"]),
        "weights": weights(totals),
        "reading": reading(totals),
        "made_at": _checked(str, manifest["finished_at"]),
        "figures": list(figures(totals)),
        "precision": _optional(str, (totals.get("serve") or {}).get("precision")),
        "layers_in_float": kept_in_float(totals),
        "candidates": [each._asdict() for each in candidates(totals)],
        "agreement": _optional(float, totals.get("agreement")),
        "artifact_bytes": _optional(int, totals.get("artifact_bytes")),
        "layers": [
            {"name": str(layer["name"]), "bits": layer.get("bits"), "relative_loss": _finite(layer["relative_loss"])}
            for layer in report["layers"]
        ],
    }


def _bits(value: object) -> int | str:
    """Return bits of weights, or AUTO where each layer has its own."""
    return AUTO if value == AUTO else _checked(int, value)


def _checked(kind: type[T], value: object) -> T:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, int) and abs(value) > _MAX_WHOLE):
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _optional(kind: type[T], value: object) -> T | None:
    return None if value is None else _checked(kind, value)


def _finite(value: object) -> float:
    number = _checked(float, value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no finite number")
    return number
