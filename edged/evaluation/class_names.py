"""Comparison of the class names of a model with those of images, or of another model."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 3


def name_difference(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Describe in one line how two lists of class names differ; None if they are equal.

    Case and the difference between spaces, hyphens and underscores do not count.

    Args:
        ours: Names by class index.
        theirs: Names by class index.
    """
    if len(ours) != len(theirs):
        return f"{len(ours)} names and {len(theirs)}"
    pairs = [(index, a, b) for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if _plain(a) != _plain(b)]
    if not pairs:
        return None
    order = ", in another order" if sorted(map(_plain, ours)) == sorted(map(_plain, theirs)) else ""
    named = ", ".join(f"class {index} is {a!r:.60} and {b!r:.60}" for index, a, b in pairs[:_NAMED])
    return f"{len(pairs)} of {len(ours)} names{order}: {named}{', ...' if len(pairs) > _NAMED else ''}"


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
