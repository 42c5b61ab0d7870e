from __future__ import annotations

import re

from benchmarks.serving.page import document
from tests.support.repository import ROOT

MIB = 1 << 20
SECTION = {"when": "2026-01-01", "seconds": 30, "load_before": 0.5, "load_after": 1.5, "commit": "abc1234"}
RESULTS = {
    "machine": "a machine",
    "memory": SECTION
    | {
        "note": "Nothing else ran.",
        "rows": [
            {"variant": "edged", "swaps": 9, "few": 100 * MIB, "many": 101 * MIB, "grew": False},
            {"variant": "leaking", "swaps": 9, "few": 100 * MIB, "many": 200 * MIB, "grew": True},
        ],
    },
    "contention": SECTION
    | {
        "rows": [
            *(
                {
                    "variant": variant,
                    "failed": 0,
                    "idle": {"p50": 2.0, "p99": 4.0, "worst": 5.0},
                    "quantizing": {"p50": 2.5, "p99": p99, "worst": 9.0},
                    "seconds": 30.0,
                }
                for variant, p99 in (("default", 5.0), ("all cores for the worker", 8.0))
            ),
            *(
                {"variant": variant, "rate": rate, "runs": 3, "took_s": took, "held_back_s": held, "p99": p99}
                for variant, rate, took, held, p99 in (
                    ("default", 0.0, 20.0, 0.0, None),
                    ("default", 50.0, 25.0, 24.5, 5.5),
                    ("all cores for the worker", 0.0, 19.0, 0.0, None),
                    ("all cores for the worker", 50.0, 21.0, 0.0, 8.5),
                )
            ),
        ]
    },
    "endurance": SECTION
    | {
        "rows": [
            {"missing": "gRPC was not measured"},
            {
                "transport": "http",
                "minutes": 10.1,
                "highest": 500.4,
                "wanted": 400.3,
                "rate": 399.9,
                "requests": 5000,
                "answered": 5000,
                "failed": 1,
                "delayed": 0.01,
                "p50": 3.21,
                "p99": 30.0,
                "early": 80 * MIB,
                "late": 82 * MIB,
                "most": 83 * MIB,
                "grew": False,
            },
        ]
    },
    "overhead": SECTION
    | {
        "rows": [
            {"missing": "mlserver was not measured"},
            *(
                {
                    "payload": "jpeg",
                    "server": server,
                    "transport": "http",
                    "prepares": prepares,
                    "at_once": at_once,
                    "closed": {"p50": p50 * at_once, "p99": p50 * at_once + 1, "worst": 400.0},
                    "client_ms": 0.1,
                }
                for at_once in (1, 16)
                for server, prepares, p50 in (
                    *(("edged", False, 2.0), ("triton", False, 1.0), ("uvicorn", False, 1.9)),
                    *(("edged", True, 3.0), ("triton", True, 4.0)),
                )
            ),
        ]
    },
}


def test_the_page_has_the_measured_sections_and_their_goals() -> None:
    page = document(RESULTS)
    assert "on a machine." in page
    assert "| memory after 9 swaps at most 5 % above that after 5 | +1.0 % | met |" in page
    found = "2.00 / 1.50 times, 1 at a time; 2.00 / 1.94 times, 16 at a time"
    assert f"| overhead, JPEG file: p50 / p99 at most 1 times triton | {found} | missed |" in page
    found = "1.05 / 1.03 times, 1 at a time; 1.05 / 1.05 times, 16 at a time"
    assert f"| overhead, JPEG file: p50 / p99 at most 1.1 times uvicorn | {found} | met |" in page
    found = "0.75 / 0.80 times, 1 at a time; 0.75 / 0.75 times, 16 at a time"
    assert f"| overhead, JPEG file: p50 / p99 at most 1 times triton preparing the image | {found} | met |" in page
    assert "| triton | 1.00 / 2.00 | 2.00 / 1.50 | 16.00 / 17.00 | 2.00 / 1.94 | 0.10 |" in page
    assert "| 10.1 minutes of perf_analyzer over HTTP: nothing fails | 1 of 5000 | missed |" in page
    assert "| 10.1 minutes of perf_analyzer over HTTP: memory grows by at most 5 % | +2.5 % | met |" in page
    assert "| HTTP | 10.1 | 500 | 400, 400 | 5000 | 1 | 3.2 / 30.0 | 80.0, 82.0, 83.0 |" in page
    assert (
        "--only memory`, 2026-01-01 at abc1234, 30 s, load average 0.5 before it and 1.5 after it. Nothing else ran."
        in page
    )
    assert "7 of 10 goals are met." in page
    assert "| leaking | 100.0 | 200.0 | 9 | fails |" in page
    assert "- mlserver was not measured" in page
    assert "## Swaps under load" not in page


def test_sections_of_different_states_are_announced() -> None:
    assert "not measured at the same state" not in document(RESULTS)
    assert "not measured at the same state" in document(
        {**RESULTS, "memory": RESULTS["memory"] | {"commit": "def5678"}}
    )


def test_a_quantization_has_its_latencies_and_its_times() -> None:
    page = document(RESULTS)
    assert "| default | 2.0 / 4.0 | 2.5 / 5.0 / 9.0 | 1.25 |" in page
    assert "| all cores for the worker | 2.0 / 4.0 | 2.5 / 8.0 / 9.0 | 2.00 |" in page
    assert "| default | 50 | 25.0 | 1.25 | 24.5 | 5.5 |" in page
    assert "| p99 while quantizing at most 1.3 times idle | 1.25 times | met |" in page
    assert "| quantizing with requests takes at most 2 times as long | 1.25 times | met |" in page
    assert "| quantizing without requests takes as long as with all cores, to 5 % | 1.05 times | missed |" in page


def test_the_stored_page_has_the_texts_of_the_program() -> None:
    """Its measurements are older than a rewording, so both are compared without numbers."""
    stored = (ROOT / "docs" / "serving.md").read_text()
    for paragraph in document(RESULTS).split("\n\n"):
        if not re.search(r"[|`]|was not measured|goals are met", paragraph):
            assert paragraph.strip() in stored
