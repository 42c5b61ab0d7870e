"""What is known from the file, the config and the live generation ends a job in its stage "verify"."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edged.errors import ArchitectureError, CalibrationError, EdgedError, GateError, MemoryLimitError, UsageError
from edged.evaluation.gates import Gates
from edged.progress import SilentListener
from edged.spec import QuantSpec
from service.worker.interface import CHECKPOINT, FOLDERS, Incumbent, Interface
from service.worker.job import Job
from service.worker.pipeline import run_job
from tests.support import scenes
from tests.support.tasks import DetectionTask, Task

DIGITS = Interface("cifar_resnet20", "classification", 10, tuple("0123456789"), 3, 8, named_by=FOLDERS)
SHAPES = Interface("yolov5", "detection", 3, scenes.NAMES, 3, scenes.SIDE, 0)


class VerifiedError(Exception):
    """The stage after "verify" was about to begin."""


class Begun(SilentListener):
    """Notes the stages that begin, and lets none but "verify" begin."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:  # type: ignore[override]
        self.names.append(name)
        if name != "verify":
            raise VerifiedError
        yield


def digits(task: Task, folder: Path, **changes: object) -> Job:
    job = Job(
        checkpoint=task.first,
        out=folder / "out",
        calibration_dir=task.calibration,
        cache_root=folder / "cache",
        spec=QuantSpec(bits=4),
        source_name="mine.pt",
        input={"size": 8, "resize": 8},
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def shapes(task: DetectionTask, folder: Path, **changes: object) -> Job:
    job = Job(
        checkpoint=task.first,
        out=folder / "out",
        calibration_dir=task.calibration,
        cache_root=folder / "cache",
        spec=QuantSpec(bits=8),
        source_name="best.pt",
        input={"size": scenes.SIDE},
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def verify(job: Job) -> EdgedError | None:
    """Return the error that ends the stage "verify"; None if the job goes on."""
    begun = Begun()
    with pytest.raises((EdgedError, VerifiedError)) as caught:
        run_job(job, begun)
    error = caught.value
    if isinstance(error, VerifiedError):
        assert begun.names == ["verify", "load"]
        return None
    assert begun.names == ["verify"]
    assert "\n" not in str(error)
    return error


def live(interface: Interface) -> Incumbent:
    return Incumbent(4, interface)


def test_what_serves_now_is_compared_with(task: Task, tmp_path: Path) -> None:
    job = digits(task, tmp_path)
    assert verify(replace(job, incumbent=live(DIGITS))) is None
    for changed, message in (
        ({"classes": 100, "names": None}, "it has 10 classes, generation 4 in service has 100"),
        ({"size": 32}, "it reads images of 3x8x8, generation 4 in service reads 3x32x32"),
        ({"task": "detection"}, r"it is a classifier \(cifar_resnet20\), generation 4 in service is a detector"),
    ):
        error = verify(replace(job, incumbent=live(replace(DIGITS, **changed))))
        assert isinstance(error, GateError)
        with pytest.raises(GateError, match=rf"^mine\.pt: {message}; .*gates\.same_interface: false"):
            raise error


def test_renamed_class_folders_wait_to_be_mended(task: Task, tmp_path: Path) -> None:
    error = verify(digits(task, tmp_path, incumbent=live(replace(DIGITS, names=tuple("0123456798")))))
    assert isinstance(error, CalibrationError)  # which does not blame the file
    assert "calls class 8 '8', generation 4 in service calls it '9' and 1 more differ" in str(error)
    assert verify(digits(task, tmp_path, incumbent=live(replace(DIGITS, names=None)))) is None


def test_names_in_the_file_are_compared_with_those_of_a_file(task: Task, tmp_path: Path) -> None:
    named = tmp_path / "named.pt"
    torch.save({"model": torch.load(task.first), "classes": [*"abcdefghij"]}, named)
    job = digits(task, tmp_path, checkpoint=named)
    for names, fits in (("abcdefghij", True), ("abcdefghji", False), ("0123456789", False)):
        error = verify(replace(job, incumbent=live(replace(DIGITS, names=tuple(names), named_by=CHECKPOINT))))
        assert fits == (error is None)
        assert fits or isinstance(error, GateError)
    assert verify(replace(job, incumbent=live(DIGITS))) is None  # whose names are those of the folders
    other = live(replace(DIGITS, names=tuple("0123456789"), named_by=CHECKPOINT))
    assert verify(replace(job, incumbent=other, class_names=tuple("abcdefghij"))) is None  # as answers have them
    assert verify(replace(job, incumbent=other, class_names=tuple("abcdefghji"))) is not None


def test_names_of_the_folders_in_another_order(task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for names, ordered in (("0123456789", True), ("1023456789", False), ("abcdefghij", True)):
        caplog.clear()
        named = tmp_path / f"{names}.pt"
        torch.save({"model": torch.load(task.first), "classes": [*names]}, named)
        job = digits(task, tmp_path, checkpoint=named)
        assert verify(job) is None
        assert ("differ in names: 2 of 10 names, in another order: class 0 is " in caplog.text) != ordered
        error = verify(replace(job, gates=Gates(max_drop=1.0)))
        assert (error is None) == ordered
        assert ordered or "gates.max_drop needs labels, and " in str(error)


def test_labels_of_another_number_reject_the_file(task: Task, tmp_path: Path) -> None:
    assert verify(digits(task, tmp_path, class_names=tuple("abcdefghij"))) is None
    error = verify(digits(task, tmp_path, class_names=tuple("abcdefghi")))
    assert isinstance(error, ArchitectureError)
    assert "mine.pt: it has 10 classes, and labels of the model has 9 names; drop another" in str(error)


def test_a_detectors_own_names_are_compared(detection_task: DetectionTask, tmp_path: Path) -> None:
    job = shapes(detection_task, tmp_path)
    # 64 pixels at strides 8, 16 and so on: what the plan of the file says.
    found = verify(replace(job, incumbent=live(SHAPES)))
    assert isinstance(found, GateError)
    predictions = int(str(found).split("it has ")[1].split()[0])
    same = replace(SHAPES, predictions=predictions)
    assert verify(replace(job, incumbent=live(same))) is None
    error = verify(replace(job, incumbent=live(replace(same, names=(*scenes.NAMES[:-1], "other")))))
    assert isinstance(error, GateError)
    assert "calls class 2" in str(error)


def test_a_section_for_detectors_is_not_for_a_classifier(
    task: Task, detection_task: DetectionTask, tmp_path: Path
) -> None:
    error = verify(digits(task, tmp_path, detection_given=True))
    assert isinstance(error, ArchitectureError)
    assert "it is a cifar_resnet20, a classifier, and the section detection" in str(error)
    assert verify(shapes(detection_task, tmp_path, detection_given=True)) is None


def test_another_task_than_arch_says(task: Task, detection_task: DetectionTask, tmp_path: Path) -> None:
    wrong = shapes(detection_task, tmp_path, input={"size": 60}, incumbent=live(DIGITS))
    error = verify(wrong)  # the task is what is wrong, not the input
    assert isinstance(error, GateError)
    assert "it is a detector (yolov5), generation 4 in service is a classifier" in str(error)
    for job, message in (
        (shapes(detection_task, tmp_path, arch="resnet18"), "holds a yolov5, not the resnet18"),
        (digits(task, tmp_path, arch="yolov5n"), "a YOLOv5 is known by its yaml"),
    ):
        error = verify(job)
        assert isinstance(error, ArchitectureError)
        assert message in str(error)


def test_an_input_that_is_no_multiple_of_the_stride(detection_task: DetectionTask, tmp_path: Path) -> None:
    error = verify(shapes(detection_task, tmp_path, input={"size": 60}))
    assert isinstance(error, UsageError)
    assert str(error) == "best.pt holds a yolov5: input size has value 60; yolov5 needs a multiple of 8"


def test_labels_that_a_gate_needs(task: Task, detection_task: DetectionTask, tmp_path: Path) -> None:
    nine = tmp_path / "nine"
    shutil.copytree(task.calibration, nine)
    shutil.rmtree(nine / "9")
    job = digits(task, tmp_path, calibration_dir=nine)
    assert verify(job) is None  # without the gate, accuracy is not measured
    error = verify(replace(job, gates=Gates(max_drop=1.0)))
    assert isinstance(error, CalibrationError)
    assert "has 9 class folders for 10 classes" in str(error)
    assert verify(replace(job, calibration_dir=task.calibration, gates=Gates(max_drop=1.0))) is None

    beyond = scenes.write_scenes(tmp_path / "beyond", range(40))
    files = sorted(beyond.rglob("*.txt"))
    files[0].write_text("3 0.5 0.5 0.1 0.1\n")
    job = shapes(detection_task, tmp_path, calibration_dir=beyond)
    assert verify(replace(job, gates=Gates(min_accuracy=1.0))) is None  # one image is left out
    for path in files[:10]:
        path.write_text("3 0.5 0.5 0.1 0.1\n")
    assert verify(job) is None
    error = verify(replace(job, gates=Gates(min_accuracy=1.0)))
    assert isinstance(error, CalibrationError)
    assert "fit the 3 classes of the detector" in str(error)


def test_a_folder_of_images_that_is_gone(task: Task, tmp_path: Path) -> None:
    error = verify(digits(task, tmp_path, calibration_dir=tmp_path / "none"))
    assert isinstance(error, CalibrationError)


def test_a_memory_limit_that_no_plan_meets_ends_before_images_are_decoded(task: Task, tmp_path: Path) -> None:
    with pytest.raises(MemoryLimitError, match="a memory limit of 64 MiB is too little for this model"):
        run_job(digits(task, tmp_path, memory_limit=64 << 20), SilentListener())
    assert not (tmp_path / "cache").exists()


def test_a_data_yaml_that_names_the_classes_otherwise(detection_task: DetectionTask, tmp_path: Path) -> None:
    place = tmp_path / "data.yaml"
    names = [scenes.NAMES[0], "other", *scenes.NAMES[2:]]
    place.write_text(json.dumps({"train": str(detection_task.calibration), "names": names}))
    job = shapes(detection_task, tmp_path, calibration_dir=place)
    assert verify(job) is None
    error = verify(replace(job, gates=Gates(max_drop=5.0)))
    assert isinstance(error, CalibrationError)
    assert "gates.max_drop needs labels, " in str(error)
    assert "the model and the data.yaml differ in class names" in str(error)
