"""The benchmarks' commands that README, docs and CHANGELOG name."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md")
COMMANDS = (
    *(
        "accuracy",
        "activations",
        "batching",
        "detection",
        "idle",
        "latency",
        "orders",
        "protocol",
        "quantize",
        "starts",
    ),
    *(
        "demo.__main__",
        "faults.__main__",
        "demo.kept",
        "serving.__main__",
        "quantization.hessian",
        "quantization.measure",
        "quantization.solve",
    ),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_shows_its_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.{command}")
    monkeypatch.setattr(sys, "argv", [f"benchmarks.{command}", "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_every_command_that_the_pages_name_exists() -> None:
    text = "".join(path.read_text() for page in PAGES for path in ROOT.glob(page))
    named = set(re.findall(r"`(?:python -m )?(benchmarks(?:\.\w+)+)", text))
    assert named
    for name in sorted(named):
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{name} does not exist"
        if spec.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{name}.__main__"), f"{name} is not a command"


def test_every_benchmark_file_that_the_pages_name_exists() -> None:
    text = "".join(path.read_text() for page in PAGES for path in ROOT.glob(page))
    for name in re.findall(r"`(benchmarks/[\w/.]+)`", text):
        assert (ROOT / name).exists(), f"{name} does not exist"
