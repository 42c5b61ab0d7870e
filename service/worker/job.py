"""One quantization as data: what the supervisor asks of a worker. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edged.evaluation.gates import Gates
from edged.spec import Choice, DetectionSpec, QuantSpec

PREDICTIONS = "predictions.json"  # beside report.json, see service.worker.predictions


@dataclass(frozen=True)
class Job:
    """A checkpoint, how to quantize it, and where the artifact goes.

    Attributes:
        checkpoint: The file; never trusted.
        out: Folder of the artifact; must not exist.
        calibration_dir: Images.
        cache_root: Where decoded images are kept.
        spec: How to quantize.
        name: Model name, "" without a daemon.
        source_name: Name of the file as the user knows it.
        arch: Architecture that the user expects, or None.
        choice: Which network of the file to take.
        input: Overrides of the architecture's InputSpec: size, resize, mean, std.
        images: Most calibration images, None for all.
        gates: What the result must reach.
        detection: Which predictions of a detector become boxes when it is served; nothing to a classifier.
        threads: Threads for computing; None for one a core.
        device: "auto", "cpu" or "cuda".
        memory_limit: Bytes of resident memory at most, of a GPU's memory where that is the device; None for no limit.
        max_bytes: Size of the checkpoint at most, None for the library's limit.
        report_images: Held-out images that predictions.json shows; 0 for no such file.
        keep_rejected: Whether to leave the report of a result that a gate rejects in `out`, without an artifact.
    """

    checkpoint: Path
    out: Path
    calibration_dir: Path
    cache_root: Path
    spec: QuantSpec = field(default_factory=QuantSpec)
    name: str = ""
    source_name: str = ""
    arch: str | None = None
    choice: Choice = field(default_factory=Choice)
    input: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    gates: Gates = field(default_factory=Gates)
    detection: DetectionSpec = field(default_factory=DetectionSpec)
    threads: int | None = None
    device: str = "auto"
    memory_limit: int | None = None
    max_bytes: int | None = None
    report_images: int = 0
    keep_rejected: bool = False

    def to_json(self) -> str:
        """One line of JSON."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data |= {key: str(data[key]) for key in ("checkpoint", "out", "calibration_dir", "cache_root")}
        data |= {"spec": self.spec.to_dict(), "gates": vars(self.gates), "input": dict(self.input)}
        data |= {"detection": self.detection.to_dict(), "choice": vars(self.choice)}
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        """Inverse of `to_json`."""
        data = json.loads(text)
        data |= {key: Path(data[key]) for key in ("checkpoint", "out", "calibration_dir", "cache_root")}
        data |= {"spec": QuantSpec.from_dict(data["spec"]), "gates": Gates(**data["gates"])}
        data |= {"detection": DetectionSpec.from_dict(data["detection"]), "choice": Choice(**data["choice"])}
        return cls(**data)
