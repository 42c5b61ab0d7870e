from __future__ import annotations

import inspect

import pytest

from benchmarks.faults.section import load, measured, names, with_section
from tests.support.repository import ROOT

PAGE = "# Title\n\nIntroduction.\n\n## Beta\n\ntwo\n\n### Part\n\nthree\n"


def test_a_section_is_replaced_and_the_others_stay() -> None:
    assert with_section(PAGE, "Beta", "new") == "# Title\n\nIntroduction.\n\n## Beta\n\nnew\n"
    added = with_section(PAGE, "Alpha", "one")
    assert added == PAGE.replace("## Beta", "## Alpha\n\none\n\n## Beta")
    assert with_section(added, "Alpha", "one") == added


def test_paragraphs_are_wrapped_and_tables_are_not() -> None:
    row, words = f"| {'cell ' * 40}|", "half-word " * 40
    added = with_section(PAGE, "Alpha", f"{words}\n\n{row}\n{row}")
    assert f"\n\n{row}\n{row}\n\n## Beta" in added
    lines = [line for line in added.splitlines() if not line.startswith("|")]
    assert max(map(len, lines)) <= 120
    assert sum(line.count("half-word") for line in lines) == 40  # none is torn apart
    assert with_section(added, "Alpha", f"{words}\n\n{row}\n{row}") == added


def test_a_section_says_how_it_was_measured() -> None:
    assert measured("kills", 3, "2026-01-02", "abc") == (
        "`python -m benchmarks.faults --only kills --times 3`, 2026-01-02 at abc."
    )
    assert measured("kills", None, "2026-01-02", "") == "`python -m benchmarks.faults --only kills`, 2026-01-02."


@pytest.mark.parametrize("name", names())
def test_each_module_is_a_section_of_the_page(name: str) -> None:
    section = load(name)
    assert list(inspect.signature(section.measure).parameters)
    assert f"\n## {section.TITLE}\n" in (ROOT / "docs" / "reliability.md").read_text()
