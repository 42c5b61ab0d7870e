from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.serving.long_load import combined, memory_samples, middle_of, request_counts
from benchmarks.serving.perf_analyzer import Report
from benchmarks.serving.processes import eventually

METRICS = """# HELP edged_inference_requests_total Requests.
# TYPE edged_inference_requests_total counter
edged_inference_requests_total{code="200",model="a"} 5.0
edged_inference_requests_total{code="200",model="b"} 2.0
edged_inference_requests_total{code="503",model="a"} 1.0
# HELP edged_other_total Others.
# TYPE edged_other_total counter
edged_other_total{code="200"} 9.0
"""
GROWS = "import sys; sys.stdin.readline(); kept = bytearray(b'x') * (20 << 20); sys.stdin.readline()"


def test_requests_are_counted_by_status_over_all_models() -> None:
    assert request_counts(METRICS) == {"200": 7, "503": 1}


def test_reports_are_combined_to_medians_and_the_worst_p99() -> None:
    reports = [Report(100, 6000, 2.0, 9.0, 0.0), Report(90, 5400, 4.0, 30.0, 0.2), Report(98, 5900, 3.0, 8.0, 0.1)]
    assert combined(reports) == Report(98, 17300, 3.0, 30.0, 0.1)


def test_the_middle_of_a_part_is_its_median() -> None:
    samples = [1000, *range(1, 10)]
    assert middle_of(samples, 0.1, 0.3) == 1  # of 1 and 2, rounded down
    assert middle_of(samples, 0.8, 1.0) == 8
    with pytest.raises(ValueError, match="1 samples are too few"):
        middle_of([1], 0.1, 0.3)


def test_samples_show_what_a_process_allocates() -> None:
    with subprocess.Popen([sys.executable, "-c", GROWS], stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        with memory_samples(process.pid, period_s=0.01) as samples:
            eventually(lambda: samples, "a first sample")
            process.stdin.write("\n")
            process.stdin.flush()
            eventually(lambda: samples[-1] - samples[0] >= 20 << 20, "a sample with the memory")
        process.communicate("\n")
