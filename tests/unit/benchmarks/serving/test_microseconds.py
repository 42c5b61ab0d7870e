"""Samples of a profile are divided among the parts of a request."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.serving.microseconds import GENERATION, SUPERVISOR, divide
from tests.support.repository import ROOT


def test_the_innermost_frame_that_is_known_counts() -> None:
    parts = {"inner": r"Inner\.", "outer": r"Outer\."}
    samples = [
        (["main (a.py:1)", "Outer.run (a.py:2)", "Inner.run (a.py:3)", "loads (json.py:4)"], 2),
        (["main (a.py:1)", "Inner.run (a.py:3)", "Outer.run (a.py:2)"], 3),
        (["main (a.py:1)"], 1),
    ]
    assert divide(samples, parts) == {"inner": 2, "outer": 3, "other": 1}


def test_the_classes_of_the_daemon_that_are_named_exist() -> None:
    source = "".join(path.read_text() for path in Path(ROOT / "service").rglob("*.py"))
    for pattern in (*SUPERVISOR.values(), *GENERATION.values()):
        for name in re.findall(r"\b(Channel|InferenceRoute|ModelServer|Generation|Admission|Inbox|Outbox)\b", pattern):
            assert f"class {name}" in source
