"""Markdown that several benchmarks write."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 120  # characters of a line of text
Goal = tuple[str, str, str]  # what is to be reached, what was measured, and the verdict


def paragraph(text: str) -> str:
    """Return a paragraph, or an item of a list, in lines of at most WIDTH characters."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def line(cells: Iterable[Any]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a table."""
    return "\n".join(map(line, (header, ["---"] * len(header), *lines)))


def goal(what: str, measured: str, met: bool) -> Goal:
    """Return a goal with its verdict."""
    return what, measured, "met" if met else "missed"


def goals_section(goals: Sequence[Goal]) -> str:
    """Return the section that compares goals with measurements."""
    return "## Goals\n\n" + table(("goal", "measured", ""), goals)
