"""Rows of a comparison, as a measuring process returns them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edged.errors import MemoryLimitError
from edged.evaluation.standard_errors import sample_of_hits
from edged.progress import ProgressListener
from service.comparison.job import FULL_PRECISION, Measurement

BASE = Measurement(Path("a.pth"), Path("calib"), Path("data"), Path("cache"))
SCORES = {FULL_PRECISION: 81.03, "rtn": 60.0, "adaround": 80.5, "balanced": 80.9}


def row(job: Measurement, metric: str = "top1") -> dict[str, Any]:
    """Return what a process measures for a job; the less accurate method errs wherever the other one does."""
    score = SCORES.get(job.method, 75.0) - (4 - job.bits if job.bits < 4 else 0)
    return {
        "method": job.method,
        "bits": job.bits,
        "activation_bits": 8 if job.method == "nncf" else None,
        "versions": {"nncf": "3.4.0"} if job.method == "nncf" else {},
        "iterations": 10_000 if job.method == "adaround" else 0,
        "seconds": {"adaround": 600.5, "rtn": 0.05}.get(job.method, 5.0),
        "forward_seconds": 2.5,
        "passes": {"adaround": 240.2, "rtn": 0.02}.get(job.method, 2.0),
        "cpu_seconds": 6.0,
        "cpu_passes": 1.5,
        "added_bytes": 100 << 20,
        "score": {
            metric: score,
            "images": 10_000,
            "sample": sample_of_hits([i < round(100 * score) for i in range(10_000)]),
        },
        "machine": {"processor": "AMD EPYC", "device": "cpu", "threads": 2, "torch": "2.13.0", "python": "3.11.7"},
        "identity": {"checkpoint": "abc", "seed": job.seed, "calibration_images": 922},
    }


class Recorder:
    """Measures nothing: returns rows, and fails for the method that it is told to.

    Args:
        failing: Method that runs out of memory.
    """

    def __init__(self, failing: str = "") -> None:
        self.measured: list[tuple[str, int]] = []
        self.labels: list[str] = []
        self._failing = failing

    def __call__(self, job: Measurement, listener: ProgressListener, label: str) -> dict[str, Any]:
        """Return the row of a job."""
        self.measured.append((job.method, job.bits))
        self.labels.append(label)
        if job.method == self._failing:
            raise MemoryLimitError("out of memory; use fewer images")
        return row(job)
