"""HTML templates that escape every value that is not HTML itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)")
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


def definitions(pairs: Iterable[tuple[str, object]]) -> Html:
    """Return the groups of a <dl>, one for each name and value; values that are None are left out."""
    group = "<div><dt>{name}</dt><dd>{value}</dd></div>"
    return join(fill(group, name=name, value=value) for name, value in pairs if value is not None)


def moment(at: str) -> Html:
    """Return a time as <time>, in UTC; a script may show it in the viewer's time zone.

    Args:
        at: ISO 8601 in UTC, see `service.units.iso_time`.
    """
    text = f"{at[:19].replace('T', ' ')} UTC" if at.endswith("Z") else at
    return fill('<time datetime="{at}">{text}</time>', at=at, text=text)


def with_moments(text: str) -> Html:
    """Return a text in which each time, as `service.units.iso_time` writes it, is a <time>."""
    pieces = _ISO_TIME.split(text)
    return Html("".join(moment(piece) if index % 2 else _escaped(piece) for index, piece in enumerate(pieces)))


def _escaped(value: object) -> str:
    if isinstance(value, Html):
        return value
    return escape("-" if value is None else str(value))
