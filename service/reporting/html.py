"""HTML that is escaped unless it was made here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

# Class of the badge of an update's state; the others are plain.
MOODS = {"COMMITTED": "good", "REJECTED": "bad", "FAILED": "bad", "ROLLED_BACK": "bad", "DEFERRED": "warn"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def fill(template: str, **values: object) -> Html:
    """`template` with each {name} replaced by its value; a value that is no Html is escaped.

    Args:
        template: Written in this program, never taken from outside; no other braces.
        values: Of any type; None becomes a dash.
    """
    return Html(template.format(**{name: _escaped(value) for name, value in values.items()}))


def join(parts: Iterable[Html]) -> Html:
    """One after another."""
    return Html("\n".join(parts))


def _escaped(value: object) -> str:
    if isinstance(value, Html):
        return value
    return escape("-" if value is None else str(value))
