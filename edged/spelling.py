"""Texts of messages: the name that a user probably meant, and lines that print as one line."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to `word`, whatever its case; None if none is similar."""
    import difflib  # 3 ms that only a mistake should cost

    names: dict[str, str] = {}
    for name in known:
        names.setdefault(name.lower(), name)
    found = difflib.get_close_matches(word.lower(), names, n=1)
    return names[found[0]] if found else None


def names_to_choose(word: str, known: Iterable[str], label: str) -> str:
    """Return the end of a message about an unknown name: the most similar name if there is one, and all names.

    Args:
        word: What the user wrote.
        known: The names that exist.
        label: Words that stand before the list of names.

    Returns:
        For example "did you mean 'shelf'? configured: cam, shelf".
    """
    names = list(known)
    meant = closest(word, names)
    listed = f"{label} {', '.join(names) or 'none'}"
    return listed if meant is None else f"did you mean {meant!r}? {listed}"


def one_line(text: str) -> str:
    """Return a text that prints as one line: with escapes if it holds other characters than printable ones."""
    return text if text.isprintable() else ascii(text)[1:-1]
