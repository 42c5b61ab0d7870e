"""What a served network's raw outputs become: logits of a classifier, boxes of a detector. Runs in the generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from edged.artifacts.reader import Artifact
from edged.calibration.letterbox import Letterbox
from edged.errors import UsageError
from edged.evaluation.detection import shared_boxes
from edged.models.detections import Detections
from edged.models.yolov5.decode import decode, detect
from edged.models.yolov5.plan import Plan
from edged.spec import DetectionSpec, InputSpec
from service.inference.binary import RequestError
from service.inference.requests import LOGITS, Request
from service.inference.responses import OutputTensor, float_output

BOXES = ("boxes", "scores", "class_ids", "names", "counts")
RAW, DECODED = "raw", "decoded"
THRESHOLDS = ("confidence", "iou", "max_detections")
# Numbers of raw or decoded outputs in a response: as JSON they take a hundred bytes each on their way out.
_MAX_VALUES = 1 << 22

Forward = Callable[[Tensor], Tensor]
Outputs = Mapping[str, npt.NDArray[Any]]


class Task(Protocol):
    """From requests to outputs.

    Attributes:
        unit: What two models agree on or not.
        described: The outputs, for the metadata.
        raw_shape: Of the network's outputs for one image.
    """

    unit: str
    described: Sequence[Mapping[str, Any]]
    raw_shape: tuple[int, ...]

    def check(self, request: Request) -> None:
        """Find out before anything is computed whether a request can be answered.

        Raises:
            RequestError: Its parameters cannot be, or the answer would be too large.
        """

    def answer(self, request: Request, forward: Forward) -> list[OutputTensor]:
        """Run the network and say what it gave.

        Args:
            request: Its images, outputs and parameters.
            forward: The network: [b, channels, size, size] to [b, *raw_shape], finite. Called for each image once, in
                their order, with as many at once as suits the task.

        Raises:
            RequestError: As `check` does.
        """

    def agree(self, ours: Outputs, theirs: Outputs) -> tuple[int, int]:
        """How far two answers to one request say the same.

        Args:
            ours: By name, of the usual outputs.
            theirs: Of another model; some may be missing.

        Returns:
            How many of `unit` they agree on, and of how many; (0, 0) if what is there cannot be compared.
        """


def task_of(artifact: Artifact) -> Task:
    """What an artifact is served as."""
    plan = artifact.architecture.plan
    if plan is None or artifact.detection is None:  # the reader saw to it that both are there or neither
        return Classification(artifact.architecture.num_classes, artifact.manifest.classes)
    return Detection(plan, artifact.input, artifact.detection)


class Classification:
    """Logits as they are.

    Args:
        count: Classes.
        names: Of the classes, where known.
    """

    unit = "images"

    def __init__(self, count: int, names: Sequence[str] | None) -> None:
        logits: dict[str, Any] = {"name": LOGITS, "datatype": "FP32", "shape": [-1, count]}
        if names is not None:
            logits["parameters"] = {"classes": list(names)}
        self.described: Sequence[Mapping[str, Any]] = [logits]
        self.raw_shape: tuple[int, ...] = (count,)

    def check(self, request: Request) -> None:
        """Nothing can be wrong: its images are as they must be."""

    def answer(self, request: Request, forward: Forward) -> list[OutputTensor]:
        """The logits."""
        return [float_output(LOGITS, forward(request.images))]

    def agree(self, ours: Outputs, theirs: Outputs) -> tuple[int, int]:
        """Images with the same top class."""
        if LOGITS not in theirs or len(theirs[LOGITS]) != len(ours[LOGITS]):
            return 0, 0
        same = ours[LOGITS].argmax(1) == theirs[LOGITS].argmax(1)
        return int(same.sum()), len(same)


class Detection:
    """Boxes; or on request what the network gave, as it is or decoded.

    Args:
        plan: Of the network.
        spec: What it reads.
        thresholds: Which predictions become boxes, unless a request has parameters of its own.
    """

    unit = "boxes"

    def __init__(self, plan: Plan, spec: InputSpec, thresholds: DetectionSpec) -> None:
        self._plan = plan
        self._side = spec.size
        self._thresholds = thresholds
        cells = [(spec.size // stride) ** 2 for stride in plan.strides(spec.channels)]
        predictions = sum(count * len(level) for count, level in zip(cells, plan.anchors, strict=True))
        self.raw_shape: tuple[int, ...] = (predictions, plan.outputs_per_anchor)
        self.described: Sequence[Mapping[str, Any]] = self._describe()

    def check(self, request: Request) -> None:
        """Whether its thresholds can be, and raw outputs of so many images fit into an answer."""
        self._asked_thresholds(request.parameters)
        self._check_size(request.outputs or BOXES, len(request.images))

    def answer(self, request: Request, forward: Forward) -> list[OutputTensor]:
        """The outputs asked for; without a word on them, those of `BOXES`."""
        self.check(request)
        wanted = request.outputs or BOXES
        thresholds = self._asked_thresholds(request.parameters)
        found: list[Detections] = []
        kept: dict[str, list[Tensor]] = {name: [] for name in (RAW, DECODED) if name in wanted}
        for raw, letterbox in zip(self._raw(request.images, forward), self._letterboxes(request), strict=True):
            if not kept.keys() >= set(wanted):
                boxes = detect(raw, self._plan, self._side, self._side, thresholds)
                found.append(boxes.in_original(letterbox))
            if RAW in kept:
                kept[RAW].append(raw)
            if DECODED in kept:
                kept[DECODED].append(decode(raw, self._plan, self._side, self._side))
        outputs = {name: float_output(name, torch.stack(values)) for name, values in kept.items()}
        if found:
            outputs |= {output.name: output for output in _box_outputs(found, self._plan.names)}
        return [outputs[name] for name in wanted]

    def agree(self, ours: Outputs, theirs: Outputs) -> tuple[int, int]:
        """Boxes that the other one found too, of both, as `edged.evaluation.detection.agreement` counts them."""
        if not {"boxes", "class_ids", "counts"} <= theirs.keys() or len(theirs["counts"]) != len(ours["counts"]):
            return 0, 0
        pairs = zip(_per_image(ours), _per_image(theirs), strict=True)
        return 2 * sum(shared_boxes(*pair) for pair in pairs), len(ours["boxes"]) + len(theirs["boxes"])

    def _raw(self, images: Tensor, forward: Forward) -> Iterator[Tensor]:
        """Outputs image by image: the maps of one take 100 MB and more, and a batch is hardly faster."""
        for index in range(len(images)):
            yield forward(images[index : index + 1])[0]

    def _letterboxes(self, request: Request) -> Sequence[Letterbox]:
        """Of a prepared tensor, boxes are told in its own pixels."""
        whole = Letterbox(self._side, self._side, self._side)
        return request.letterboxes or [whole] * len(request.images)

    def _asked_thresholds(self, parameters: Mapping[str, Any]) -> DetectionSpec:
        if unknown := sorted(set(parameters) - set(THRESHOLDS)):
            raise RequestError(f"unknown parameter {unknown[0]!r:.80}; known: {', '.join(THRESHOLDS)}")
        try:
            return DetectionSpec.from_dict(self._thresholds.to_dict() | dict(parameters))
        except UsageError as error:
            raise RequestError(f"parameter {error}") from None

    def _check_size(self, wanted: Sequence[str], images: int) -> None:
        values = sum(name in (RAW, DECODED) for name in wanted) * math.prod(self.raw_shape)
        most = max(1, _MAX_VALUES // values) if values else images
        if images > most:
            raise RequestError(
                f"{RAW!r} and {DECODED!r} outputs of {images} images are too large for an answer; send at most {most}"
            )

    def _describe(self) -> list[dict[str, Any]]:
        predictions, values = self.raw_shape
        meaning = ["x", "y", "width", "height", "objectness", "a value per class"]
        return [
            {"name": "boxes", "datatype": "FP32", "shape": [-1, 4], "parameters": {"format": "xyxy"}},
            {"name": "scores", "datatype": "FP32", "shape": [-1]},
            {
                "name": "class_ids",
                "datatype": "INT64",
                "shape": [-1],
                "parameters": {"classes": list(self._plan.names)},
            },
            {"name": "names", "datatype": "BYTES", "shape": [-1]},
            {"name": "counts", "datatype": "INT64", "shape": [-1], "parameters": {"of": "boxes of each image"}},
            {"name": RAW, "datatype": "FP32", "shape": [-1, predictions, values], "parameters": {"default": False}},
            {
                "name": DECODED,
                "datatype": "FP32",
                "shape": [-1, predictions, values],
                "parameters": {"default": False, "values": meaning},
            },
        ]


def _per_image(outputs: Outputs) -> list[Detections]:
    """The boxes of an answer, an entry an image. Their scores are left out: they lie in descending order already."""
    counts = outputs["counts"].tolist()
    boxes = torch.tensor(outputs["boxes"]).split_with_sizes(counts)
    classes = torch.tensor(outputs["class_ids"]).split_with_sizes(counts)
    return [Detections(xyxy, torch.zeros(len(xyxy)), kinds) for xyxy, kinds in zip(boxes, classes, strict=True)]


def _box_outputs(found: Sequence[Detections], names: Sequence[str]) -> list[OutputTensor]:
    """The boxes of all images one after another, and how many each image has."""
    boxes = torch.cat([each.boxes for each in found])
    classes = [number for each in found for number in each.classes.tolist()]
    return [
        float_output("boxes", boxes),
        float_output("scores", torch.cat([each.scores for each in found])),
        OutputTensor("class_ids", "INT64", [len(classes)], classes),
        OutputTensor("names", "BYTES", [len(classes)], [names[number] for number in classes]),
        OutputTensor("counts", "INT64", [len(found)], [len(each) for each in found]),
    ]
