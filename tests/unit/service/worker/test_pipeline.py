"""One checkpoint to one artifact, stage by stage, with real images."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edged.artifacts.reader import read_artifact
from edged.device import choose_device, device_name
from edged.errors import (
    ArchitectureError,
    CalibrationError,
    CheckpointError,
    DeviceError,
    GateError,
    MemoryLimitError,
    UsageError,
)
from edged.evaluation.gates import Gates
from edged.models.checkpoint import read_checkpoint
from edged.progress import SilentListener
from edged.spec import DetectionSpec, Method, QuantSpec
from service.config.load import load_config
from service.journal.states import STAGES
from service.worker.job import PREDICTIONS, Job
from service.worker.pipeline import run_job
from tests.support import scenes
from tests.support.tasks import DetectionTask, Task
from tests.support.trained import INPUT

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


class Stages:
    """Notes the outermost stages."""

    def __init__(self) -> None:
        self.depth = 0
        self.names: list[str] = []
        self.plan: Mapping[str, Any] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.depth == 0:
            self.names.append(name)
        self.depth += 1
        yield
        self.depth -= 1

    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def planned(self, plan: Mapping[str, Any]) -> None:
        self.plan = plan


def job_of(task: Task, folder: Path) -> Job:
    return Job(
        checkpoint=task.first,
        out=folder / "out",
        calibration_dir=task.calibration,
        cache_root=folder / "cache",
        spec=QuantSpec(bits=4),
        name="digits",
        source_name="mine.pt",
        input={"size": 8, "resize": 8},
    )


def test_the_artifact_is_what_was_evaluated(task: Task, tmp_path: Path) -> None:
    stages = Stages()
    result = run_job(job_of(task, tmp_path), stages)
    assert stages.names == [*STAGES, "write"]
    artifact = read_artifact(tmp_path / "out")
    assert artifact.report == result.report
    assert artifact.report["plan"] == stages.plan
    assert artifact.input == INPUT
    assert artifact.manifest.name == "digits"
    assert artifact.manifest.source["name"] == "mine.pt"
    assert artifact.manifest.source["sha256"] == read_checkpoint(task.first).sha256
    assert artifact.manifest.calibration["folder_labels"]
    assert artifact.manifest.classes == tuple("0123456789")
    assert artifact.manifest.calibration["names_classes"]
    totals = artifact.report["totals"]
    assert set(totals["stage_seconds"]) >= set(STAGES)
    assert totals["peak_memory_bytes"] > 50e6
    assert totals["peak_device_memory_bytes"] > 0
    assert totals["device"] == device_name(choose_device("auto"))
    assert totals["held_out_images"] == 20
    inputs, labels = task.digits.tensors(slice(1500, None))
    assert (artifact.load_model()(inputs).argmax(1) == labels).float().mean() > 0.9


def test_bits_that_a_config_leaves_to_measurement_hold_the_drop(task: Task, tmp_path: Path) -> None:
    (tmp_path / "edged.yaml").write_text(
        f"models: [{{name: digits, calibration: {{dir: {task.calibration}, images: 64}},"
        " quantization: {recipe: fast, bits: auto, max_drop: 30, activation_bits: null}}]\n"
    )
    model = load_config(tmp_path / "edged.yaml").models[0]
    spec = model.quantization.to_spec()
    job = Job.from_json(replace(job_of(task, tmp_path), spec=spec, images=64, runtime="torch").to_json())
    report = run_job(job, SilentListener()).report
    assert report["totals"]["bits"] == "auto"
    assert report["totals"]["drop"]["top1"] <= 30
    assert [layer["bits"] for layer in report["chosen_bits"]["layers"]] == [layer["bits"] for layer in report["layers"]]
    assert report["chosen_bits"]["tries"]
    assert read_artifact(job.out).manifest.quantization["max_drop"] == 30


def test_names_in_the_file_are_those_of_the_classes(task: Task, tmp_path: Path) -> None:
    named = tmp_path / "named.pt"
    torch.save({"model": torch.load(task.first), "classes": [*"abcdefghij"]}, named)
    job = replace(job_of(task, tmp_path), checkpoint=named, spec=QuantSpec(method=Method.RTN), report_images=1)
    run_job(job, SilentListener())
    manifest = read_artifact(job.out).manifest
    assert manifest.classes == tuple("abcdefghij")
    assert manifest.calibration["folder_labels"]  # accuracy is measured, too
    assert not manifest.calibration["names_classes"]
    (image,) = json.loads((job.out / "predictions.json").read_bytes())["images"]
    assert image["truth"]["name"] == "abcdefghij"[image["truth"]["class"]]


def test_the_same_job_gives_the_same_weights(task: Task, tmp_path: Path) -> None:
    job = job_of(task, tmp_path)
    threads = torch.get_num_threads()
    first = run_job(job, SilentListener())
    again = run_job(replace(job, out=tmp_path / "again"), SilentListener())
    assert first.report["layers"] == again.report["layers"]
    digests = [read_artifact(tmp_path / name).manifest.weights["sha256"] for name in ("out", "again")]
    assert digests[0] == digests[1]
    assert torch.get_num_threads() == threads


def test_errors_of_the_file_name_it_as_the_user_knows_it(task: Task, tmp_path: Path) -> None:
    bad = tmp_path / "file"
    bad.write_bytes(b"this is no checkpoint")
    job = replace(job_of(task, tmp_path), checkpoint=bad)
    with pytest.raises(CheckpointError, match=r"^mine\.pt: it is a text file"):
        run_job(job, SilentListener())
    with pytest.raises(ArchitectureError, match=r"^mine\.pt: "):
        run_job(replace(job, checkpoint=task.first, arch="resnet18"), SilentListener())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"input": {"size": 8, "mean": [0.5], "std": [0.5]}}, UsageError, "give one value a channel"),
        ({"gates": Gates(min_agreement=100.1)}, GateError, "gates.min_agreement is 100.1 %"),
        ({"gates": Gates(max_drop=-101.0)}, GateError, "gates.max_drop is -101"),
        ({"gates": Gates(min_accuracy=100.1)}, GateError, "gates.min_accuracy is 100.1 %; drop a better checkpoint"),
        ({"device": "tpu"}, UsageError, "device has value 'tpu'"),
        pytest.param({"device": "cuda"}, DeviceError, "choose cpu or auto", marks=no_gpu),
        ({"memory_limit": 1 << 20}, MemoryLimitError, "limit of 1 MiB is too little for this model; it takes"),
        ({"calibration_dir": Path("/nowhere")}, CalibrationError, "/nowhere"),
    ],
)
def test_reasons_that_stop_a_job(
    task: Task, tmp_path: Path, change: dict[str, object], error: type[Exception], reason: str
) -> None:
    job = replace(job_of(task, tmp_path), spec=QuantSpec(method=Method.RTN), **change)
    with pytest.raises(error, match=reason):
        run_job(job, SilentListener())
    assert not (tmp_path / "out").exists()


def test_a_gate_on_accuracy_needs_labels(task: Task, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for index in range(40):
        task.digits.png(index, flat / f"{index}.png")
    job = replace(job_of(task, tmp_path), calibration_dir=flat, gates=Gates(max_drop=5.0))
    with pytest.raises(CalibrationError, match=r"gates\.max_drop needs labels"):
        run_job(job, SilentListener())
    with pytest.raises(CalibrationError, match=r"gates\.min_accuracy needs labels, and .* has 0 class folders"):
        run_job(replace(job, gates=Gates(min_accuracy=5.0)), SilentListener())
    result = run_job(replace(job, gates=Gates()), SilentListener())
    assert "fp32" not in result.report["totals"]


def detector_job(task: DetectionTask, folder: Path) -> Job:
    return Job(
        checkpoint=task.first,
        out=folder / "out",
        calibration_dir=task.calibration,
        cache_root=folder / "cache",
        spec=QuantSpec(bits=8),
        name="shapes",
        source_name="best.pt",
        input={"size": scenes.SIDE},
        detection=DetectionSpec(0.2, 0.5, 20),
        gates=Gates(min_agreement=50.0, max_drop=5.0),
    )


def test_a_detectors_artifact_holds_all_that_serving_needs(detection_task: DetectionTask, tmp_path: Path) -> None:
    result = run_job(detector_job(detection_task, tmp_path), SilentListener())
    artifact = read_artifact(tmp_path / "out")
    checkpoint = read_checkpoint(detection_task.first)
    assert artifact.architecture.plan == checkpoint.plan
    assert (artifact.manifest.task, artifact.manifest.classes) == ("detection", scenes.NAMES)
    assert artifact.detection == DetectionSpec(0.2, 0.5, 20)
    assert artifact.input == scenes.INPUT
    assert not artifact.manifest.calibration["folder_labels"]
    totals = result.report["totals"]
    assert totals["agreement"] > 80
    assert totals["fp32"].keys() == totals["quantized"].keys() == totals["drop"].keys() == {"map50", "map50_95"}


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"input": {"size": 60}}, UsageError, "input size has value 60; yolov5 needs a multiple of 8"),
        ({"input": {"size": 64, "resize": 72}}, UsageError, "input resize has value 72; a detector's images are"),
        ({"arch": "yolov5s"}, ArchitectureError, "holds a yolov5, not the yolov5s"),
        ({"gates": Gates(min_agreement=100.1)}, GateError, "of the boxes in the held-out images"),
        ({"gates": Gates(max_drop=-101.0)}, GateError, "mAP50-95 falls by"),
    ],
)
def test_reasons_that_stop_a_detector(
    detection_task: DetectionTask, tmp_path: Path, change: dict[str, object], error: type[Exception], reason: str
) -> None:
    job = replace(detector_job(detection_task, tmp_path), spec=QuantSpec(method=Method.RTN), **change)
    with pytest.raises(error, match=reason):
        run_job(job, SilentListener())
    assert not (tmp_path / "out").exists()


def test_a_gate_on_map_needs_labels(detection_task: DetectionTask, tmp_path: Path) -> None:
    bare = scenes.write_scenes(tmp_path / "bare", range(40), labels=False)
    job = replace(detector_job(detection_task, tmp_path), calibration_dir=bare)
    with pytest.raises(CalibrationError, match=r"gates\.max_drop needs labels, .* fit the 3 classes of the detector"):
        run_job(job, SilentListener())
    totals = run_job(replace(job, gates=Gates()), SilentListener()).report["totals"]
    assert "fp32" not in totals
    assert totals["boxes"]["fp32"] > 0


def test_a_full_gpu_raises_a_memory_limit_error(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("edged.pipeline.mixed_precision.compress", overflow)
    with pytest.raises(MemoryLimitError, match=r"ran out of memory; give a lower memory limit than the \d+ MiB"):
        run_job(job_of(task, tmp_path), SilentListener())


def test_sample_predictions_are_written_if_asked_for(task: Task, tmp_path: Path) -> None:
    job = replace(job_of(task, tmp_path), spec=QuantSpec(method=Method.RTN))
    run_job(job, SilentListener())
    assert not (job.out / PREDICTIONS).exists()
    job = replace(job, out=tmp_path / "with", report_images=3)
    run_job(job, SilentListener())
    assert len(json.loads((job.out / PREDICTIONS).read_text())["images"]) == 3
    report = read_artifact(job.out).report
    assert report["layers"]
    assert report["source"]["sha256"] == hashlib.sha256(job.checkpoint.read_bytes()).hexdigest()


def test_the_report_of_a_rejected_model_is_kept(task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = replace(
        job_of(task, tmp_path), spec=QuantSpec(method=Method.RTN, bits=3), gates=Gates(100.1), report_images=3
    )
    job = replace(job, keep_rejected=True)
    with pytest.raises(GateError):
        run_job(job, SilentListener())
    assert {path.name for path in job.out.iterdir()} == {"report.json", PREDICTIONS}
    report = json.loads((job.out / "report.json").read_text())
    assert report["totals"]["agreement"] <= 100
    assert report["source"]["sha256"] == hashlib.sha256(job.checkpoint.read_bytes()).hexdigest()
    assert (report["totals"]["bits"], len(report["layers"])) == (3, 20)
    # A file in the way must not replace the gate as the reason.
    with pytest.raises(GateError):
        run_job(job, SilentListener())
    assert "cannot keep the report of the rejected model" in capfd.readouterr().err
