"""The page for the next engineer names files that exist, covers every room, and is readable."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
LONGEST_PARAGRAPH = 8  # lines


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def paragraphs(text: str) -> list[str]:
    """Return paragraphs and list items; rows of tables and headings are none."""
    blocks = [block for block in re.split(r"\n\s*\n|\n(?=- |\d+\. )", without_code(text)) if block.strip()]
    return [block.strip("\n") for block in blocks if not block.lstrip().startswith(("|", "#"))]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`((?:edged|service|tests|benchmarks|configs|systemd|docs)/[\w./-]*)`", page.read_text()))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_room_of_the_daemon_is_described() -> None:
    rooms = {path.parent.name + "/" for path in (ROOT / "service").glob("*/__init__.py")}
    table = PAGE.split("\n## Rooms\n")[1].split("\n## ")[0]
    assert rooms <= set(re.findall(r"^\| `(\w+/)` \|", table, flags=re.MULTILINE))


def test_no_paragraph_is_longer_than_eight_lines() -> None:
    assert [text for text in paragraphs(PAGE) if len(text.splitlines()) > LONGEST_PARAGRAPH] == []


def test_every_link_within_the_page_leads_to_a_heading() -> None:
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", without_code(PAGE), flags=re.MULTILINE)}
    linked = set(re.findall(r"\]\(#([^)]*)\)", PAGE))
    assert linked
    assert linked <= headings


def test_it_draws_the_processes_and_the_rooms() -> None:
    first, second = re.findall(r"```mermaid\n(.*?)```", PAGE, flags=re.DOTALL)
    assert all(name in first for name in ("supervisor", "worker", "fork server", "generation"))
    assert all(path.parent.name in second for path in (ROOT / "service").glob("*/__init__.py"))
