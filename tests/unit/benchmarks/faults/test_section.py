from __future__ import annotations

import inspect

import pytest

from benchmarks.faults.section import load, names, with_section
from tests.support.repository import ROOT

PAGE = "# Title\n\nIntroduction.\n\n## Beta\n\ntwo\n\n### Part\n\nthree\n"


def test_a_section_is_replaced_and_the_others_stay() -> None:
    assert with_section(PAGE, "Beta", "new") == "# Title\n\nIntroduction.\n\n## Beta\n\nnew\n"
    added = with_section(PAGE, "Alpha", "one")
    assert added == PAGE.replace("## Beta", "## Alpha\n\none\n\n## Beta")
    assert with_section(added, "Alpha", "one") == added


@pytest.mark.parametrize("name", names())
def test_each_module_is_a_section_of_the_page(name: str) -> None:
    section = load(name)
    assert list(inspect.signature(section.measure).parameters)
    assert f"\n## {section.TITLE}\n" in (ROOT / "docs" / "reliability.md").read_text()
