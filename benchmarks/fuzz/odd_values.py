"""Values that no writer of JSON puts where they do not belong, and their random places in a document."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    *(10**400, -(10**400), 2**63, 2**31, -1, 0, 1, 0.5, 1e308, 1e-320, float("nan"), float("inf"), True, False, None),
    *("", "x", "9" * 500, "\ud800", "a\nb", "\0", [], {}, [[[[]]]], [None], [1e400], {"a": {"b": 1}}, [[]] * 300),
)


def changes() -> st.SearchStrategy[list[tuple[float, Any]]]:
    """Return a strategy for up to three changes of a document."""
    odd = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=5)
    return st.lists(st.tuples(st.floats(0, 1, exclude_max=True), odd | st.just(...)), min_size=1, max_size=3)


def changed(document: dict[str, Any], steps: list[tuple[float, Any]]) -> dict[str, Any]:
    """Return the document with some of its values replaced, or removed where the new value is `...`."""
    document = copy.deepcopy(document)
    for place, value in steps:
        places = every_place(document)
        if not places:
            break
        holder, key = places[int(place * len(places))]
        if value is ...:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(value)
    return document


def every_place(value: Any) -> list[tuple[Any, Any]]:
    """Return each container with each of its keys."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[Any, Any]] = []
    for key, inner in list(entries):
        found += [(value, key), *every_place(inner)]
    return found
