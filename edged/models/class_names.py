"""Find the names of a classifier's classes that training code saved next to its weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

MAX_CLASSES = 100_000
MAX_NAME = 100  # characters
MAX_DEPTH = 3  # of nested dicts
MAX_DICTS = 1_000
MAX_DIGITS = 9  # of a class index
_LISTS = frozenset({"classes", "class_names", "classnames", "names", "labels", "label_names", "categories", "vocab"})
_TO_INDEX = frozenset({"class_to_idx", "class_to_index", "label2id", "label_to_idx"})
_TO_NAME = frozenset({"idx_to_class", "index_to_class", "id2label", "idx_to_label"})


def find_class_names(tree: Any) -> tuple[tuple[str, ...], ...]:
    """Return every list of class names in a file, without repetition, the outermost first.

    Args:
        tree: Contents of the file as inert data.
    """
    found: dict[tuple[str, ...], None] = {}
    queue: deque[tuple[Any, int]] = deque([(tree, 0)])
    seen: set[int] = set()
    while queue and len(seen) < MAX_DICTS:
        value, depth = queue.popleft()
        if not isinstance(value, dict) or id(value) in seen:
            continue
        seen.add(id(value))
        for key, inner in value.items():
            if isinstance(key, str) and (names := _names(key.lower(), inner)):
                found[names] = None
            elif depth < MAX_DEPTH:
                queue.append((inner, depth + 1))
    return tuple(found)


def _names(key: str, value: Any) -> tuple[str, ...]:
    """Return the names that an entry holds, in the order of the classes; empty if it holds none."""
    names: list[Any] = []
    if isinstance(value, list | tuple | dict) and len(value) > MAX_CLASSES:
        return ()
    if key in _LISTS and isinstance(value, list | tuple):
        names = list(value)
    elif key in _TO_INDEX and isinstance(value, dict):
        names = _in_order({index: name for name, index in value.items() if isinstance(index, int)}, len(value))
    elif key in _TO_NAME | _LISTS and isinstance(value, dict):
        names = _in_order({_index(index): name for index, name in value.items()}, len(value))
    right = all(isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() for name in names)
    return tuple(names) if right else ()


def _index(key: Any) -> Any:
    """Return the class index that a key spells; JSON has only strings as keys."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= MAX_DIGITS else key


def _in_order(names: Mapping[Any, Any], count: int) -> list[Any]:
    """Return the names of the classes 0, 1, 2, ...; empty if there are others."""
    return [names[index] for index in range(count)] if names.keys() == set(range(count)) else []
