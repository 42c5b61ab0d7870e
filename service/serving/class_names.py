"""Names of the classes in the answers of a generation, and how those of another one differ.

`labels` of the config replaces the names of an artifact, so the gate `same_interface`, which compares artifacts, does
not see a change of it. The operator asked for it, so nothing is refused. But clients notice it: whoever routes requests
reports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def class_names(metadata: Mapping[str, Any]) -> list[str] | None:
    """Return the names in the answers of a generation, by its metadata; None where classes are only numbered."""
    for output in metadata.get("outputs", ()):
        if (names := output.get("parameters", {}).get("classes")) is not None:
            return list(names)
    return None


def renaming(new: Sequence[str] | None, old: Sequence[str] | None) -> str | None:
    """Return how names differ, in one line; None if they do not.

    Args:
        new: Names of the classes from now on; None where they are only numbered.
        old: Names until now.
    """
    if new is None or old is None:
        return None if new == old else f"classes were {_kind(old)} and are now {_kind(new)}"
    if len(new) != len(old):
        return f"there were {len(old)} class names and are now {len(new)}"
    places = [place for place, pair in enumerate(zip(new, old, strict=True)) if pair[0] != pair[1]]
    if not places:
        return None
    first, others = places[0], len(places) - 1
    more = f", and {others} more {'differs' if others == 1 else 'differ'}" if others else ""
    return f"class {first} was called {old[first]!a:.80} and is now called {new[first]!a:.80}{more}"


def _kind(names: Sequence[str] | None) -> str:
    return "numbered" if names is None else f"called {', '.join(map(ascii, names[:3]))}{', ...' * (len(names) > 3)}"
