from __future__ import annotations

import re

from benchmarks.serving.page import document
from tests.support.repository import ROOT

MIB = 1 << 20
SECTION = {"when": "2026-01-01", "seconds": 30, "load_before": 0.5}
RESULTS = {
    "machine": "a machine",
    "memory": SECTION
    | {
        "rows": [
            {"variant": "edged", "swaps": 9, "few": 100 * MIB, "many": 101 * MIB, "grew": False},
            {"variant": "leaking", "swaps": 9, "few": 100 * MIB, "many": 200 * MIB, "grew": True},
        ]
    },
    "overhead": SECTION
    | {
        "rows": [
            {"server": "edged", "requests": 9, "failed": 0, "closed": {"p50": 2.0, "p99": 3.0, "worst": 4.0}},
            {"server": "triton", "missing": "triton was not measured"},
        ]
    },
}


def test_the_page_has_the_measured_sections_and_their_goals() -> None:
    page = document(RESULTS)
    assert "on a machine." in page
    assert "| memory after 9 swaps at most 5 % above that after 5 | +1.0 % | met |" in page
    assert "| overhead of a request at most 1.5 ms | 2.00 ms | missed |" in page
    assert "| leaking | 100.0 | 200.0 | 9 | fails |" in page
    assert "- triton was not measured" in page
    assert "## Swaps under load" not in page


def test_the_stored_page_has_the_texts_of_the_program() -> None:
    """Its measurements are older than a rewording, so both are compared without numbers."""
    stored = (ROOT / "docs" / "serving.md").read_text()
    for paragraph in document(RESULTS).split("\n\n"):
        if not re.search(r"[|`]|was not measured", paragraph):
            assert paragraph.strip() in stored
