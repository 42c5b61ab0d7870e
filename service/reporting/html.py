"""HTML templates that escape every value that is not HTML itself."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

# State of an update -> CSS class of its badge; "plain" for all others.
MOODS = {"COMMITTED": "good", "REJECTED": "bad", "FAILED": "bad", "ROLLED_BACK": "bad", "DEFERRED": "warn"}


class Html(str):
    """Text that is already HTML and is not escaped again."""

    __slots__ = ()


def fill(template: str, **values: object) -> Html:
    """Replace each {name} in a template by its value, which is escaped unless it is Html.

    Args:
        template: HTML from this program, never from outside, with no other braces.
        values: Values of any type by name; None becomes a dash.
    """
    return Html(template.format(**{name: _escaped(value) for name, value in values.items()}))


def join(parts: Iterable[Html]) -> Html:
    """Join parts with newlines."""
    return Html("\n".join(parts))


def _escaped(value: object) -> str:
    if isinstance(value, Html):
        return value
    return escape("-" if value is None else str(value))
