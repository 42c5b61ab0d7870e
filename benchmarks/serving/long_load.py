"""Minutes of load from a client that others wrote: does a request fail or memory grow? Used by benchmarks.serving."""

from __future__ import annotations

import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving.checks import memory_grew
from benchmarks.serving.daemon import MODEL, PREPARES, SIDE, Edged, swappable
from benchmarks.serving.effort import Effort, Rows
from benchmarks.serving.overhead import without_grpc
from benchmarks.serving.perf_analyzer import AT_ONCE, PerfAnalyzer, Report, without_perf_analyzer
from benchmarks.serving.processes import free_port, own_bytes, repeating

SHARE = 0.8  # of the highest rate
GRPC_SHARE = 0.1  # of the minutes
_SATURATED = [f"--concurrency-range={AT_ONCE}", "--measurement-interval=5000", "--max-trials=3"]
_ANY_VARIATION = "--stability-percentage=999"  # other work on the machine makes it vary
_SATURATED_S = 120  # at most
_PART_S = 300  # at most, for a minute of requests
_SAMPLE_S = 2.0
_EARLY, _LATE = (0.1, 0.3), (0.8, 1.0)  # parts of the time whose memory is compared


def long_load(effort: Effort) -> Rows:
    """Send requests for minutes at a part of the highest rate, over HTTP and for a shorter time over gRPC."""
    if reason := without_perf_analyzer(effort.peers):
        return [{"missing": reason}]
    assert effort.peers is not None  # noqa: S101 - there is a perf_analyzer in it
    no_grpc = without_grpc()
    serve = {"port": 0} if no_grpc else {"port": 0, "grpc_port": free_port()}
    with tempfile.TemporaryDirectory() as scratch, swappable(worker=PREPARES, serve=serve) as edged:
        analyzer = PerfAnalyzer(effort.peers, Path(scratch), MODEL, SIDE)
        rows = [_send(edged, analyzer, "http", edged.address.removeprefix("http://"), effort.minutes)]
        if no_grpc:
            rows.append({"missing": no_grpc})
        else:
            rows.append(_send(edged, analyzer, "grpc", f"127.0.0.1:{serve['grpc_port']}", GRPC_SHARE * effort.minutes))
    return rows


def _send(edged: Edged, analyzer: PerfAnalyzer, transport: str, address: str, minutes: float) -> dict[str, Any]:
    highest = analyzer.measure(address, transport, [*_SATURATED, _ANY_VARIATION], _SATURATED_S).rate
    rate = SHARE * highest
    before = request_counts(_metrics(edged))
    start = time.monotonic()
    with memory_samples(edged.pid) as samples:
        # It keeps all responses in memory, a gigabyte a minute, so it is started again and again.
        parts = max(1, round(minutes))
        load = [f"--request-rate-range={rate:.1f}", f"--request-count={round(rate * 60 * minutes / parts)}"]
        reports = [analyzer.measure(address, transport, load, _PART_S) for _ in range(parts)]
    report = combined(reports)
    seconds = time.monotonic() - start
    answered = {code: count - before.get(code, 0) for code, count in request_counts(_metrics(edged)).items()}
    early, late = (middle_of(samples, *part) for part in (_EARLY, _LATE))
    return {
        "transport": transport,
        "minutes": round(seconds / 60, 1),
        "highest": round(highest, 1),
        "wanted": round(rate, 1),
        "rate": round(report.rate, 1),
        "requests": report.requests,
        "answered": answered.get("200", 0),
        "failed": sum(count for code, count in answered.items() if code != "200"),
        "delayed": report.delayed,
        "p50": round(report.p50, 2),
        "p99": round(report.p99, 2),
        "early": early,
        "late": late,
        "most": max(samples),
        "samples": len(samples),
        "grew": memory_grew(early, late),
    }


def combined(reports: Sequence[Report]) -> Report:
    """Return one report of several: medians, except that the p99 is the highest one."""
    return Report(
        rate=statistics.median(report.rate for report in reports),
        requests=sum(report.requests for report in reports),
        p50=statistics.median(report.p50 for report in reports),
        p99=max(report.p99 for report in reports),
        delayed=statistics.median(report.delayed for report in reports),
    )


def request_counts(metrics: str) -> dict[str, int]:
    """Return the number of requests by status code, from the text of /metrics."""
    counts: dict[str, int] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "edged_inference_requests_total":
                code = sample.labels["code"]
                counts[code] = counts.get(code, 0) + int(sample.value)
    return counts


def middle_of(samples: Sequence[int], start: float, end: float) -> int:
    """Return the median of a part of samples.

    Args:
        samples: Samples in order.
        start: Begin of the part, as a share of all samples.
        end: End of the part, likewise.

    Raises:
        ValueError: There are no samples in this part.
    """
    part = samples[int(start * len(samples)) : int(end * len(samples))]
    if not part:
        raise ValueError(f"{len(samples)} samples are too few")
    return int(statistics.median(part))


@contextmanager
def memory_samples(pid: int, period_s: float = _SAMPLE_S) -> Iterator[list[int]]:
    """Append the memory of a process tree without pages of files to the yielded list again and again."""
    samples: list[int] = []
    with repeating(lambda: samples.append(own_bytes(pid)), period_s):
        yield samples


def _metrics(edged: Edged) -> str:
    with urllib.request.urlopen(f"{edged.address}/metrics", timeout=30) as response:  # noqa: S310 - a daemon of ours
        text: str = response.read().decode()
        return text
