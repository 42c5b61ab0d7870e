"""How the class names in the answers of two generations differ."""

from __future__ import annotations

import pytest

from service.serving.class_names import class_names, renaming

LOGITS = {"name": "logits", "parameters": {"classes": ["cat", "dog"]}}
NUMBERED = {"name": "logits", "datatype": "FP32"}


def test_names_are_found_in_the_metadata() -> None:
    assert class_names({"outputs": [NUMBERED, LOGITS]}) == ["cat", "dog"]
    for metadata in ({}, {"outputs": []}, {"outputs": [NUMBERED]}):
        assert class_names(metadata) is None


@pytest.mark.parametrize(
    ("new", "old", "text"),
    [
        (None, None, None),
        (["cat"], ["cat"], None),
        (["cat", "dog"], ["cat", "cow"], "class 1 was called 'cow' and is now called 'dog'"),
        (["b", "a", "c"], ["a", "b", "c"], "class 0 was called 'a' and is now called 'b', and 1 more differs"),
        (["b", "c", "a"], ["a", "b", "c"], "class 0 was called 'a' and is now called 'b', and 2 more differ"),
        (["cat", "dog"], None, "classes were numbered and are now called 'cat', 'dog'"),
        (None, [*"abcd"], "classes were called 'a', 'b', 'c', ... and are now numbered"),
        (["cat"], ["cat", "dog"], "there were 2 class names and are now 1"),
        (["\n"], ["a"], "class 0 was called 'a' and is now called '\\n'"),
    ],
)
def test_how_names_differ(new: list[str] | None, old: list[str] | None, text: str | None) -> None:
    assert renaming(new, old) == text
