"""Conversion of raw outputs to logits, or to boxes in pixels of the images that were sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edged.artifacts.reader import read_artifact
from edged.calibration.letterbox import Letterbox
from edged.models.nms import pairwise_iou
from edged.models.yolov5.decode import decode
from edged.spec import DetectionSpec, Fit, InputSpec
from service.inference.requests import Request
from service.inference.responses import OutputTensor
from service.inference.tasks import BOXES, Detection, task_of
from service.ipc.messages import RequestError
from tests.support.artifacts import write_untrained, write_untrained_detector
from tests.support.yolov5_samples import tiny_plan

Floats = npt.NDArray[np.float32]

PLAN = tiny_plan()
SIDE = 32
SPEC = InputSpec(SIDE, SIDE, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)
COUNT = 2 * (8 * 8 + 4 * 4)  # two anchors in each cell of strides 4 and 8
TASK = Detection(PLAN, SPEC, DetectionSpec(0.5, 0.4, 10))
IMAGES = np.zeros((3, 3, SIDE, SIDE), np.float32)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def planted(*boxes: tuple[int, int, float, float]) -> Floats:
    """Return raw outputs without objects except (prediction, class, objectness, probability of the class)."""
    raw = np.full((COUNT, 8), -12.0, np.float32)
    raw[:, :4] = 0.0  # centred in the cell, as large as the anchor
    for index, kind, objectness, probability in boxes:
        raw[index, 4], raw[index, 5 + kind] = logit(objectness), logit(probability)
    return raw


def answer(request: Request, *raw: Floats, task: Detection = TASK) -> dict[str, OutputTensor]:
    waiting = iter(raw)
    outputs = task.answer(request, lambda images: next(waiting)[None])
    return {output.name: output for output in outputs}


def test_boxes_are_in_pixels_of_the_original_image() -> None:
    # Of stride 8, cell (column 1, row 2): predictions 128 + (2 * 4 + 1) * 2 and the next, anchors 20 x 18 and 30 x 40.
    raw = planted((128 + 18, 2, 0.9, 0.8))
    # 64 x 48 pixels were scaled by half into 32 x 24, 4 pixels of grey above and below.
    found = answer(Request(IMAGES[:1], letterboxes=(Letterbox(64, 48, SIDE),)), raw)
    # In the square: centre (12, 20), so 2..22 and 11..29; without the border 7..25; twice that, cut off at 48.
    assert found["boxes"].data == pytest.approx([4.0, 14.0, 44.0, 48.0], abs=1e-4)
    assert found["boxes"].shape == [1, 4]
    assert found["scores"].data == pytest.approx([0.72], abs=1e-6)
    assert (found["class_ids"].datatype, found["class_ids"].data) == ("INT64", [2])
    assert (found["names"].datatype, found["names"].data) == ("BYTES", ["cow"])
    assert found["counts"].data == [1]


def test_boxes_of_a_prepared_tensor_are_in_its_own_pixels() -> None:
    found = answer(Request(IMAGES[:1]), planted((128 + 18, 0, 0.9, 0.9)))
    assert found["boxes"].data == pytest.approx([2.0, 11.0, 22.0, 29.0], abs=1e-4)


def test_the_outputs_of_a_batch_count_the_boxes_of_each_image() -> None:
    far_apart = planted((0, 0, 0.9, 0.9), (126, 1, 0.95, 0.9))
    found = answer(Request(IMAGES), far_apart, planted(), planted((128 + 18, 2, 0.9, 0.8)))
    assert list(found) == list(BOXES)
    assert found["counts"].data == [2, 0, 1]
    assert found["class_ids"].data == [1, 0, 2]  # by descending score in each image
    assert found["names"].data == ["dog", "cat", "cow"]
    assert [len(found[name].data) for name in BOXES] == [12, 3, 3, 3, 3]


def test_an_image_without_objects_has_empty_outputs() -> None:
    found = answer(Request(IMAGES[:1]), planted())
    assert [(found[name].shape, found[name].data) for name in BOXES] == [
        *[([0, 4], []), ([0], []), ([0], []), ([0], [])],
        ([1], [0]),
    ]


def test_a_request_can_set_the_thresholds() -> None:
    raw = planted((128 + 18, 0, 0.9, 0.5), (0, 0, 0.9, 0.9), (126, 1, 0.9, 0.8))

    def count(**parameters: Any) -> int:
        return len(answer(Request(IMAGES[:1], parameters=parameters), raw)["scores"].data)

    assert (count(), count(confidence=0.3), count(confidence=0.8)) == (2, 3, 1)
    assert count(max_detections=1) == 1
    twice = planted((128 + 18, 0, 0.9, 0.9), (128 + 19, 0, 0.9, 0.8))
    boxes = np.array([[2.0, 11, 22, 29], [-3, 0, 27, 40]])
    overlap = float(pairwise_iou(boxes, boxes)[0, 1])
    for iou, kept in ((overlap - 0.01, 1), (overlap + 0.01, 2)):
        assert len(answer(Request(IMAGES[:1], parameters={"iou": iou}), twice)["scores"].data) == kept


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"confidence": "high"}, "parameter confidence has value 'high'; choose 0 to 1"),
        ({"iou": 2}, "parameter iou has value 2; choose 0 to 1"),
        ({"max_detections": 100000}, "parameter max_detections has value 100000; choose 1 to 1000"),
        ({"max_detections": None}, "parameter max_detections has value None"),
    ],
)
def test_the_error_of_an_invalid_parameter_names_it(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        answer(Request(IMAGES[:1], parameters=parameters), planted())


def test_other_parameters_are_ignored_as_by_a_classifier() -> None:
    raw = planted((0, 0, 0.9, 0.9))
    given = {"priority": 1, "timeout": 5000, "content_type": "np", "confidence": 0.95}
    assert len(answer(Request(IMAGES[:1], parameters={**given, "confidence": 0.5}), raw)["scores"].data) == 1
    assert len(answer(Request(IMAGES[:1], parameters=given), raw)["scores"].data) == 0  # the known one counts


def test_raw_and_decoded_outputs_are_returned_on_request() -> None:
    raw = [np.random.default_rng(seed).standard_normal((COUNT, 8), np.float32) for seed in range(3)]
    found = answer(Request(IMAGES, outputs=("decoded", "raw")), *raw)
    assert list(found) == ["decoded", "raw"]
    assert found["raw"].shape == found["decoded"].shape == [3, COUNT, 8]
    assert found["raw"].data == np.stack(raw).flatten().tolist()
    assert found["decoded"].data == decode(np.stack(raw), PLAN, SIDE, SIDE).flatten().tolist()
    assert list(answer(Request(IMAGES, outputs=("scores", "raw")), *raw)) == ["scores", "raw"]


def test_a_request_with_too_large_outputs_is_rejected() -> None:
    large = Detection(PLAN, InputSpec(640, 640, fit=Fit.LETTERBOX), DetectionSpec())
    assert large.raw_shape == (2 * (160**2 + 80**2), 8)
    with pytest.raises(RequestError, match="outputs of 9 images are too large for a response; send at most 8"):
        large.answer(Request(np.zeros((9, 1, 1, 1), np.float32), outputs=("raw",)), lambda images: images)
    with pytest.raises(RequestError, match="send at most 4"):
        large.answer(Request(np.zeros((9, 1, 1, 1), np.float32), outputs=("raw", "decoded")), lambda images: images)


def test_the_metadata_describe_every_output() -> None:
    described = {output["name"]: output for output in TASK.described}
    assert list(described) == [*BOXES, "raw", "decoded"]
    assert described["boxes"] == {
        "name": "boxes",
        "datatype": "FP32",
        "shape": [-1, 4],
        "parameters": {"format": "xyxy"},
    }
    assert described["class_ids"]["parameters"] == {"classes": ["cat", "dog", "cow"]}
    assert described["raw"]["shape"] == described["decoded"]["shape"] == [-1, *TASK.raw_shape] == [-1, COUNT, 8]
    raw = np.random.default_rng(0).standard_normal((COUNT, 8), np.float32)
    for name, output in answer(Request(IMAGES[:1], outputs=tuple(described)), raw).items():
        assert output.datatype == described[name]["datatype"]
        assert len(output.shape) == len(described[name]["shape"])


def told(*boxes: tuple[int, int, float, float], raw: Floats | None = None) -> dict[str, Any]:
    found = answer(Request(IMAGES[:1]), planted(*boxes) if raw is None else raw)
    return {
        name: np.asarray(found[name].values).reshape(found[name].shape) for name in ("boxes", "class_ids", "counts")
    }


def test_two_detectors_agree_on_boxes_by_class_and_overlap() -> None:
    both, dog, cat = ((0, 0, 0.9, 0.9), (126, 1, 0.95, 0.9)), (0, 0, 0.9, 0.9), (0, 1, 0.9, 0.9)
    assert TASK.unit == "boxes"
    assert TASK.agree(told(*both), told(*both)) == (4, 4)
    assert TASK.agree(told(*both), told(dog)) == (2, 3)
    assert TASK.agree(told(dog), told(cat)) == (0, 2)  # the same place, another class
    assert TASK.agree(told(dog), told()) == (0, 1)
    assert TASK.agree(told(), told()) == (0, 0)  # nothing to tell by
    assert TASK.agree(told(dog), {"scores": np.ones(1)}) == (0, 0)


def test_names_of_the_config_replace_those_of_a_detector() -> None:
    task = Detection(PLAN, SPEC, DetectionSpec(0.5, 0.4, 10), ["Katze", "Hund", "Kuh"])
    found = answer(Request(IMAGES[:1]), planted((128 + 18, 2, 0.9, 0.8)), task=task)
    assert found["names"].data == ["Kuh"]
    assert task.described[2]["parameters"] == {"classes": ["Katze", "Hund", "Kuh"]}


def test_classification_is_not_for_a_detector() -> None:
    with pytest.raises(RequestError, match="classification of output 'boxes'; it is for classifiers"):
        TASK.check(Request(IMAGES[:1], classification={"boxes": 3}))


@pytest.mark.parametrize("write", [write_untrained, write_untrained_detector])
def test_labels_of_another_number_leave_the_names_of_the_artifact(
    write: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "artifact")
    artifact = read_artifact(tmp_path / "artifact")
    count = artifact.architecture.num_classes
    assert task_of(artifact, ["x"] * (count + 1)).described == task_of(artifact).described
    assert caplog.messages == [
        f"labels of the model has {count + 1} names, and this generation has {count} classes; the names of its artifact"
        " are used"
    ]
    assert "x" in str(task_of(artifact, ["x"] * count).described)
