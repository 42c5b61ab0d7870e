"""The name of a process in ps and top."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

CODE = "import sys; from service.system.process_title import set_name, set_title\n"
CODE += "set_name('edged-test'); set_title(sys.argv[1].split(',')); print(sys.argv[2], flush=True); sys.stdin.read()"


@pytest.mark.parametrize("words", [["one"], ["one", "two words", "dr\N{LATIN SMALL LETTER E WITH ACUTE}i"]])
def test_ps_shows_the_title(words: list[str]) -> None:
    assert shown_title(words)[: len(words)] == words


def test_a_title_that_is_too_long_is_cut_off() -> None:
    shown = shown_title(["word"] * 1000, behind="x")
    assert 10 < len(shown) < 1000
    assert set(shown[:-1]) == {"word"}


def shown_title(words: list[str], behind: str = "kept") -> list[str]:
    command = [sys.executable, "-c", CODE, ",".join(words) if len(words) < 10 else "", behind]
    if not command[3]:
        command[2] = CODE.replace("sys.argv[1].split(',')", "['word'] * 1000")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{behind}\n"  # Python has a copy of its arguments
        process = psutil.Process(child.pid)
        assert process.name() == "edged-test"
        assert len("\0".join(process.cmdline())) <= len("\0".join(command).encode()) + 1
        return process.cmdline()
