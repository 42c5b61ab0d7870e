"""Jobs travel to the worker as JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import UsageError
from edged.spec import DetectionSpec, Fit, InputSpec, Method, QuantSpec
from service.worker.job import Gates, Job, input_spec


def test_a_job_survives_its_way_to_the_worker() -> None:
    job = Job(
        checkpoint=Path("/a b/c.pt"),
        out=Path("/out"),
        calibration_dir=Path("/images"),
        cache_root=Path("/cache"),
        spec=QuantSpec(method=Method.RTN, bits=3),
        name="digits",
        source_name="ünïcode.pt",
        arch="resnet18",
        input={"size": 16, "mean": [0.5, 0.5, 0.5]},
        images=100,
        gates=Gates(min_agreement=90.0, max_drop=1.5),
        detection=DetectionSpec(0.5, 0.6, 7, multi_label=True),
        threads=2,
        memory_limit=1 << 30,
        max_bytes=5,
    )
    text = job.to_json()
    assert "\n" not in text
    assert Job.from_json(text) == job


def test_defaults_survive_too() -> None:
    job = Job(Path("a"), Path("b"), Path("c"), Path("d"))
    assert Job.from_json(job.to_json()) == job


def test_overrides_replace_what_the_architecture_says() -> None:
    spec = input_spec(InputSpec(), {"size": 128, "resize": 144, "mean": None, "std": (1.0, 1.0, 1.0)})
    assert spec == InputSpec(128, 144, InputSpec().mean, (1.0, 1.0, 1.0))


def test_a_size_alone_keeps_the_share_that_is_cropped() -> None:
    assert input_spec(InputSpec(), {"size": 112}) == InputSpec(112, 128)
    assert input_spec(InputSpec(32, 32), {"size": 16}) == InputSpec(16, 16)


def test_a_letterbox_has_a_size_and_nothing_to_crop() -> None:
    letterbox = InputSpec(640, 640, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)
    assert input_spec(letterbox, {"size": 320}) == InputSpec(320, 320, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)
    for overrides in ({"resize": 700}, {"size": 320, "resize": 360}):
        with pytest.raises(UsageError, match=f"input resize has value {overrides['resize']}; a detector's images are"):
            input_spec(letterbox, overrides)


@pytest.mark.parametrize("overrides", [{"sise": 3}, {"size": 0}, {"size": 64, "resize": 32}, {"std": [0, 1, 1]}])
def test_impossible_overrides(overrides: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        input_spec(InputSpec(), overrides)
