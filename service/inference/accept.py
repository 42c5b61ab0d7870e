"""Choice between JSON and a picture as the answer, by the header Accept (RFC 9110). Runs in the generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from service.ipc.messages import RequestError

PICTURES: Mapping[str, str] = {"JPEG": "image/jpeg", "PNG": "image/png"}  # by the names of Pillow
_JSON = "application/json"
_NOT_ACCEPTABLE = 406


class Picture(NamedTuple):
    """A picture that a client prefers to JSON.

    Attributes:
        format: One of PICTURES.
        required: Whether the client takes no JSON instead.
    """

    format: str
    required: bool


def picture_of(accept: str, *, draws: bool) -> Picture | None:
    """Return the picture that a client prefers to JSON; None for JSON.

    A header that asks for none of the types that are known here, such as `text/html`, is answered with JSON, as RFC
    9110 allows (12.5.1) and other servers do. One that asks for images alone is not: a program would take JSON for a
    damaged file.

    Args:
        accept: Value of the header; "" if there is none.
        draws: Whether the model's answers can be drawn.

    Raises:
        RequestError: Status 406: only images are accepted, of other types or of a model that draws none.
    """
    ranges = [_range(text) for text in accept.split(",") if text.strip()]
    json = _quality(_JSON, ranges) if ranges else 1.0
    best = max(PICTURES, key=lambda name: _quality(PICTURES[name], ranges))  # the first one of equals
    if draws and _quality(PICTURES[best], ranges) > json:
        return Picture(best, required=json == 0)
    if json > 0 or not any(kind.startswith("image/") and quality > 0 for kind, quality in ranges):
        return None
    if not draws:
        text = "a classifier's answer has no boxes to draw; accept application/json"
    else:
        text = f"choose {', '.join(PICTURES.values())} or {_JSON}"
    raise RequestError(f"Accept has value {accept!r:.80}; {text}", _NOT_ACCEPTABLE)


def _range(text: str) -> tuple[str, float]:
    """Read one entry of the header: a media range and its quality, 0 if that is no number from 0 to 1."""
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return kind, _weight(value.strip())
    return kind, 1.0


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0


def _quality(kind: str, ranges: list[tuple[str, float]]) -> float:
    """Return the quality of a type, by the most specific range that matches it; 0 if none does."""
    for wanted in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        found = [quality for given, quality in ranges if given == wanted]
        if found:
            return max(found)
    return 0.0
