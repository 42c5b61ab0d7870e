"""Jobs travel to the worker as JSON."""

from __future__ import annotations

from pathlib import Path

from edged.evaluation.gates import Gates
from edged.spec import Choice, DetectionSpec, Method, QuantSpec
from service.worker.job import Job


def test_a_job_survives_a_round_trip_through_json() -> None:
    job = Job(
        checkpoint=Path("/a b/c.pt"),
        out=Path("/out"),
        calibration_dir=Path("/images"),
        cache_root=Path("/cache"),
        spec=QuantSpec(method=Method.RTN, bits=3),
        name="digits",
        source_name="ünïcode.pt",
        arch="resnet18",
        choice=Choice("a.b", "net.", "last", "true", "1x1", ("linear", "relu", "linear")),
        input={"size": 16, "mean": [0.5, 0.5, 0.5]},
        images=100,
        gates=Gates(min_agreement=90.0, max_drop=1.5),
        detection=DetectionSpec(0.5, 0.6, 7, multi_label=True),
        threads=2,
        memory_limit=1 << 30,
        max_bytes=5,
        engine_folder=Path("/engines/digits"),
    )
    text = job.to_json()
    assert "\n" not in text
    assert Job.from_json(text) == job


def test_defaults_survive_too() -> None:
    job = Job(Path("a"), Path("b"), Path("c"), Path("d"))
    assert Job.from_json(job.to_json()) == job
