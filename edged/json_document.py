"""JSON documents from files that may be damaged, or written by another version."""

from __future__ import annotations

import json
import math
from typing import Any

# What reading values from a document raises where they are not what they should be.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def parse_document(data: bytes | str) -> dict[str, Any]:
    """Parse a JSON object so that it can be written as JSON again, and sent as text.

    Numbers that JSON cannot spell, such as NaN and 1e400, become None. Halves of surrogate pairs become U+FFFD.

    Args:
        data: Text of the document.

    Raises:
        ValueError: It is no JSON, no object, or nested too deeply.
    """
    try:
        found = json.loads(data, parse_constant=lambda _: None, parse_float=_finite)
        if not isinstance(found, dict):
            raise ValueError(f"it is a JSON {type(found).__name__}, not an object")
        plain: dict[str, Any] = _with_whole_characters(found)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return plain


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _with_whole_characters(value: Any) -> Any:
    if isinstance(value, dict):
        return {_with_whole_characters(key): _with_whole_characters(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_whole_characters(entry) for entry in value]
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value
