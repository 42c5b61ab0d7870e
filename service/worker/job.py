"""One quantization job as data, passed from the supervisor to a worker. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edged.evaluation.gates import Gates
from edged.spec import Choice, DetectionSpec, QuantSpec
from service.worker.interface import Incumbent

PREDICTIONS = "predictions.json"  # next to report.json, see service.worker.predictions


@dataclass(frozen=True)
class Job:
    """A quantization job: checkpoint, settings and destination.

    Attributes:
        checkpoint: The untrusted checkpoint file.
        out: Folder of the artifact; must not exist. The folder that holds it is the job's alone if there is a sandbox.
        calibration_dir: Folder of the calibration images.
        cache_root: Folder where decoded images are kept.
        spec: Settings of the quantization.
        name: Name of the model; "" without a daemon.
        source_name: Name of the file as the user knows it.
        arch: Architecture that the user expects, or None.
        choice: Choice between the networks of the file.
        input: Overrides of the architecture's InputSpec: size, resize, mean, std.
        images: Most calibration images, None for all.
        gates: Gates that the result must pass.
        detection: Rules for the predictions of a detector that become boxes; not used for a classifier.
        threads: Number of threads for computing; None for one per core.
        held_back: Whether the supervisor keeps the process off a core while requests arrive, except while it measures.
        device: "auto", "cpu" or "cuda".
        memory_limit: Limit on resident memory in bytes, or on the GPU's memory on CUDA; None for no limit.
        max_bytes: Limit on the size of the checkpoint in bytes; None for the library's limit.
        detection_given: Whether the user asks for a detector by setting such rules.
        class_names: Names of the classes that the configuration sets; None for those of the file or of the folders.
        incumbent: Generation in service whose interface must not change; None for none.
        report_images: Number of held-out images in predictions.json; 0 for no such file.
        runtime: Engine that is going to serve the model, one of `edged.spec.RUNTIMES`; "auto" for the fastest.
        serving_threads: Number of threads of that engine; None for those that compute here.
        serving_device: Device that torch computes on in service: "auto", "cpu" or "cuda".
        serving_batch: Largest number of images that the engine computes together.
        engine_folder: Folder of TensorRT's engines; None for none.
        keep_rejected: Whether to leave the report of a result that a gate rejects in `out`, without an artifact.
        sandbox: "auto", "require" or "off", see service.worker.sandbox.
        private: Folders and files that the worker has no business with, wherever they are.
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
    held_back: bool = False
    device: str = "auto"
    memory_limit: int | None = None
    max_bytes: int | None = None
    detection_given: bool = False
    class_names: tuple[str, ...] | None = None
    incumbent: Incumbent | None = None
    report_images: int = 0
    runtime: str = "auto"
    serving_threads: int | None = None
    serving_device: str = "cpu"
    serving_batch: int = 1
    engine_folder: Path | None = None
    keep_rejected: bool = False
    sandbox: str = "auto"
    private: tuple[Path, ...] = ()

    def to_json(self) -> str:
        """Return the job as one line of JSON."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data |= {key: str(data[key]) for key in ("checkpoint", "out", "calibration_dir", "cache_root")}
        data |= {"spec": self.spec.to_dict(), "gates": vars(self.gates), "input": dict(self.input)}
        data |= {"detection": self.detection.to_dict(), "choice": self.choice.to_dict()}
        data |= {"incumbent": None if self.incumbent is None else self.incumbent.to_dict()}
        data |= {"engine_folder": None if self.engine_folder is None else str(self.engine_folder)}
        data |= {"private": [str(path) for path in self.private]}
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        """Read what `to_json` returns."""
        data = json.loads(text)
        data |= {key: Path(data[key]) for key in ("checkpoint", "out", "calibration_dir", "cache_root")}
        folder = data["engine_folder"]
        data |= {"engine_folder": None if folder is None else Path(folder)}
        data |= {"private": tuple(map(Path, data["private"]))}
        data |= {"spec": QuantSpec.from_dict(data["spec"]), "gates": Gates(**data["gates"])}
        data |= {"detection": DetectionSpec.from_dict(data["detection"]), "choice": Choice.from_dict(data["choice"])}
        data |= {"class_names": None if data["class_names"] is None else tuple(data["class_names"])}
        data |= {"incumbent": None if data["incumbent"] is None else Incumbent.from_dict(data["incumbent"])}
        return cls(**data)
