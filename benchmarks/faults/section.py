"""The sections of docs/reliability.md: one module in benchmarks/faults/sections/ each.

A section is a module with TITLE (its heading), `measure(options)`, which returns the rows of its results, and
`page(rows)`, which returns its text. What was lost is listed under "faults" in the row that it belongs to.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from benchmarks.markdown import paragraph

T = TypeVar("T")
Row = dict[str, Any]
SECTIONS = Path(__file__).with_name("sections")
_HEADING = "## "


class Section(Protocol):
    """What a module in benchmarks/faults/sections/ has."""

    TITLE: str

    def measure(self, options: argparse.Namespace, /) -> list[Row]:
        """Try what the section is about; return JSON types."""

    def page(self, rows: list[Row], /) -> str:
        """Return the text of the section, without its heading."""


def names() -> tuple[str, ...]:
    """Return the names of all sections: those of their modules."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(SECTIONS)])))


def load(name: str) -> Section:
    """Return a section; its imports are not needed by the others."""
    return cast(Section, importlib.import_module(f"benchmarks.faults.sections.{name}"))


def some(found: Sequence[T], most: int | None) -> list[T]:
    """Return at most so many of what was found, evenly spread; all for None."""
    if most is None or most >= len(found):
        return list(found)
    return [found[index * len(found) // most] for index in range(most)]


def measured(name: str, times: int | None, when: str, commit: str) -> str:
    """Return the line that a section begins with: how, when and of which state of the code it was measured.

    Args:
        name: Name of the section.
        times: Option --times; None if it was not given.
        when: Date.
        commit: Short name of the commit; "" if it is not known.
    """
    option = "" if times is None else f" --times {times}"
    return f"`python -m benchmarks.faults --only {name}{option}`, {when}{commit and f' at {commit}'}."


def with_section(document: str, title: str, text: str) -> str:
    """Return a document in which a section is replaced or added, with its paragraphs wrapped; sorted by title.

    Args:
        document: Introduction and sections.
        title: Heading of the section.
        text: What is below the heading.
    """
    introduction, *sections = f"\n{document}".split(f"\n{_HEADING}")
    texts = dict(section.split("\n", 1) for section in sections) | {title: f"\n{_wrapped(text)}\n"}
    parts = [f"{_HEADING}{title}\n\n{text.strip()}" for title, text in sorted(texts.items())]
    return "\n\n".join([introduction.strip(), *parts]) + "\n"


def _wrapped(text: str) -> str:
    """Return a text whose paragraphs are wrapped; tables are not."""
    return "\n\n".join(part if part.startswith("|") else paragraph(part) for part in text.split("\n\n"))
