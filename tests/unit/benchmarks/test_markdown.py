from __future__ import annotations

from benchmarks.markdown import goal, goals_section, line, table


def test_a_table_has_a_line_for_each_row() -> None:
    assert line(("a", 1)) == "| a | 1 |"
    assert table(("x", "y"), [(1, 2.5)]) == "| x | y |\n| --- | --- |\n| 1 | 2.5 |"


def test_goals_are_met_or_missed() -> None:
    section = goals_section([goal("fast", "1 s", met=True), goal("small", "9 MB", met=False)])
    assert section.splitlines()[-2:] == ["| fast | 1 s | met |", "| small | 9 MB | missed |"]
