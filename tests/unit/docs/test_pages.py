"""README and docs/: links, configs, commands and options are right, and pages that are built are up to date."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.signing.ed25519 import write_key_pair
from service.cli.parser import COMMANDS, build_parser
from service.config.load import load_config
from service.journal.states import UPDATE_STAGES, State
from tests.support.repository import ROOT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_README = 150  # lines
MAX_PICTURE_BYTES = 150_000

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_code(text: str) -> str:
    """Return a page without its code blocks; inline code stays."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures within the project."""
    text = re.sub(r"`[^`]*`", "", without_code(page.read_text()))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("https://")]


def linked_pages(page: Path) -> set[Path]:
    """Return the pages that a page links."""
    found = {(page.parent / target.partition("#")[0]).resolve() for target in links(page)}
    return {path for path in found if path.suffix == ".md"}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the command lines of edged in the code of a page, without remarks."""
    text = page.read_text()
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    inline = [code.replace("\n", " ") for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_code(text))]
    for code in (*blocks, *inline):
        line = re.split(r"\s{2,}#|\s#\s", code)[0]
        for part in re.split(r"&&|\|| / | and ", line):
            words = part.strip().removeprefix("sudo ").replace("/opt/edged/bin/edged", "edged")
            if re.match(r"^edged [a-z]", words):
                yield shlex.split(words.replace("'", ""))[1:]


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@each_page
def test_every_command_and_option_exists(page: Path) -> None:
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for words in commands(page):
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        assert name in COMMANDS, words
        known = {option for action in subparsers.choices[name]._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known, words


@each_page
def test_every_config_is_valid(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)):
        text = block.replace("/srv/", "srv/").replace("/etc/edged/", "etc/edged/")
        (tmp_path / "etc" / "edged").mkdir(parents=True, exist_ok=True)
        for key in set(re.findall(r"(etc/edged/\w+)\.pub", text)):
            if not (tmp_path / f"{key}.pub").exists():
                write_key_pair(tmp_path / key)
        for folder in re.findall(r"\bdir: ([\w/]+)", text):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        assert load_config(file).models


def test_the_pictures_of_the_readme_are_small_files() -> None:
    pictures = [README.parent / target for target in re.findall(r"!\[[^]]+\]\(([^)]+)\)", README.read_text())]
    assert {path.suffix for path in pictures} == {".png", ".svg"}
    assert all(path.stat().st_size < MAX_PICTURE_BYTES for path in pictures)


def test_the_readme_is_short_and_has_a_config_of_both_kinds() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= LONGEST_README
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert "detection:" in block
    assert "resize:" in block


def test_every_page_is_linked_from_the_readme_or_a_page_that_it_links() -> None:
    first = {(ROOT / target.partition("#")[0]).resolve() for target in links(README)}
    second = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in first
        if page.suffix == ".md"
        for target in links(page)
    }
    assert set(PAGES) - {README} <= first | second


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "troubleshooting.md"], ids=lambda page: page.name)
def test_every_reason_that_is_explained_is_one_of_the_program(page: Path) -> None:
    """Four words of it in a row, at least, without the values that differ from file to file."""
    code = "".join(
        path.read_text() for package in ("edged", "service") for path in sorted((ROOT / package).rglob("*.py"))
    )
    messages = re.sub(r'"\s*\n\s*f?"', "", code)
    section = re.split(r"\n## (?:Refused|A file was rejected).*\n", page.read_text())[1].split("\n## ")[0]
    reasons = [row.split(" | ")[0].strip("| ") for row in re.findall(r"^\|.*", section, flags=re.MULTILINE)[2:]]
    assert len(reasons) >= 10
    for reason in reasons:
        words = re.sub(r"`\W*(?:\(\w+\).*)?$", "", reason).strip("`").split()
        size = min(4, len(words))
        windows = [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]
        assert any(window in messages for window in windows), reason


def test_every_state_and_stage_is_explained() -> None:
    text = (ROOT / "docs" / "states.md").read_text()
    for state in State:
        assert re.search(rf"^\| {state.value} \| .{{20,}}", text, flags=re.MULTILINE), state
    assert [stage for stage in UPDATE_STAGES if stage not in text.split("## Stages")[1]] == []


def test_the_reference_of_commands_is_up_to_date() -> None:
    built = runpy.run_path(str(ROOT / "docs" / "commands.py"))["text"]()
    assert (ROOT / "docs" / "commands.md").read_text() == built, "run: python docs/commands.py"
    assert all(f"## edged {name}\n" in built for name in COMMANDS)
    assert "| `--calib DIR` |" in built
