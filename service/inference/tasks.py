"""What a task makes of a network's raw outputs, and the answers of a detector. Runs in the generation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edged.artifacts.reader import Artifact
from edged.calibration.letterbox import Letterbox
from edged.errors import UsageError
from edged.models.detections import Detections, shared_boxes
from edged.models.yolov5.decode import decode, detect
from edged.models.yolov5.plan import Plan
from edged.spec import DetectionSpec, InputSpec
from service.inference.classification import Classification
from service.inference.requests import Request
from service.inference.responses import OutputTensor, float_output
from service.ipc.messages import RequestError

log = logging.getLogger(__name__)

BOXES = ("boxes", "scores", "class_ids", "names", "counts")
RAW, DECODED = "raw", "decoded"
# Most numbers of raw or decoded outputs in a response: formatting one as JSON takes a hundred bytes of memory.
_MAX_VALUES = 1 << 22

Floats = npt.NDArray[np.float32]
Forward = Callable[[Floats], Floats]
Outputs = Mapping[str, npt.NDArray[Any]]


class Task(Protocol):
    """Computes the outputs of requests.

    Attributes:
        unit: What the agreement of two models counts.
        described: Descriptions of the outputs, for the metadata.
        raw_shape: Shape of the network's outputs for one image.
        parameters: Type of each parameter of a request, int or float.
        draws: Whether an answer has boxes that can be drawn on the image.
    """

    unit: str
    parameters: Mapping[str, type]
    draws: bool
    described: Sequence[Mapping[str, Any]]
    raw_shape: tuple[int, ...]

    def check(self, request: Request) -> None:
        """Check before anything is computed that a request can be answered.

        Raises:
            RequestError: Its parameters are invalid, or the reply would be too large.
        """

    def answer(self, request: Request, forward: Forward) -> list[OutputTensor]:
        """Run the network and return the requested outputs.

        Args:
            request: Images, outputs and parameters.
            forward: The network: maps [b, channels, size, size] to [b, *raw_shape], all finite. It gets each image
                once and in order, with as many per call as suits the task.

        Raises:
            RequestError: See `check`.
        """

    def agree(self, ours: Outputs, theirs: Outputs) -> tuple[int, int]:
        """Count how far the replies of two models to one request agree.

        Args:
            ours: Default outputs by name.
            theirs: Outputs of the other model by name; some may be missing.

        Returns:
            The number of `unit` that agree, and the number compared; (0, 0) if the outputs cannot be compared.
        """


def task_of(artifact: Artifact, labels: Sequence[str] | None = None) -> Task:
    """Return the task of an artifact.

    Args:
        artifact: The artifact.
        labels: Names of the classes that the configuration sets; None for those of the artifact. Those of another
            number are left out with a warning: they must not keep a model from serving.
    """
    classes = artifact.architecture.num_classes
    if labels is not None and len(labels) != classes:
        log.warning(
            "labels of the model has %d names, and this generation has %d classes; the names of its artifact are used",
            *(len(labels), classes),
        )
        labels = None
    plan, names = artifact.architecture.plan, labels or artifact.manifest.classes
    if plan is None or artifact.detection is None:  # the reader made sure that an artifact has both or neither
        return Classification(classes, names)
    return Detection(plan, artifact.input, artifact.detection, names)


class Detection:
    """The task of a detector: boxes, and on request the network's raw or decoded outputs.

    Args:
        plan: Plan of the network.
        spec: Input of the network.
        thresholds: Thresholds that select the boxes, unless the parameters of a request replace them.
        names: Names of the classes; None for those of the plan.
    """

    unit = "boxes"
    parameters: Mapping[str, type] = {"confidence": float, "iou": float, "max_detections": int}
    draws = True

    def __init__(
        self, plan: Plan, spec: InputSpec, thresholds: DetectionSpec, names: Sequence[str] | None = None
    ) -> None:
        self._plan = plan
        self._names = list(names or plan.names)
        self._side = spec.size
        self._thresholds = thresholds
        cells = [(spec.size // stride) ** 2 for stride in plan.strides(spec.channels)]
        predictions = sum(count * len(level) for count, level in zip(cells, plan.anchors, strict=True))
        self.raw_shape: tuple[int, ...] = (predictions, plan.outputs_per_anchor)
        self.described: Sequence[Mapping[str, Any]] = self._describe()

    def check(self, request: Request) -> None:
        """Check the thresholds of a request, and that the raw outputs of its images fit into a reply."""
        for output in request.classification:
            raise RequestError(
                f"parameter classification of output {output!r}; it is for classifiers, and this is none"
            )
        self._asked_thresholds(request.parameters)
        self._check_size(request.outputs or BOXES, len(request.images))

    def answer(self, request: Request, forward: Forward) -> list[OutputTensor]:
        """Return the requested outputs; those of `BOXES` by default."""
        self.check(request)
        wanted = request.outputs or BOXES
        thresholds = self._asked_thresholds(request.parameters)
        found: list[Detections] = []
        kept: dict[str, list[Floats]] = {name: [] for name in (RAW, DECODED) if name in wanted}
        for raw, letterbox in zip(self._raw(request.images, forward), self._letterboxes(request), strict=True):
            if not kept.keys() >= set(wanted):
                boxes = detect(raw, self._plan, self._side, self._side, thresholds)
                found.append(boxes.in_original(letterbox))
            if RAW in kept:
                kept[RAW].append(raw)
            if DECODED in kept:
                kept[DECODED].append(decode(raw, self._plan, self._side, self._side))
        outputs = {name: float_output(name, np.stack(values)) for name, values in kept.items()}
        if found:
            outputs |= {output.name: output for output in _box_outputs(found, self._names)}
        return [outputs[name] for name in wanted]

    def agree(self, ours: Outputs, theirs: Outputs) -> tuple[int, int]:
        """Count the boxes that both models found, as `edged.evaluation.detection.agreement` does."""
        if not {"boxes", "class_ids", "counts"} <= theirs.keys() or len(theirs["counts"]) != len(ours["counts"]):
            return 0, 0
        pairs = zip(_per_image(ours), _per_image(theirs), strict=True)
        return 2 * sum(shared_boxes(*pair) for pair in pairs), len(ours["boxes"]) + len(theirs["boxes"])

    def _raw(self, images: Floats, forward: Forward) -> Iterator[Floats]:
        """Compute outputs image by image: feature maps take 100 MB each and more, and a batch is hardly faster."""
        for index in range(len(images)):
            yield forward(images[index : index + 1])[0]

    def _letterboxes(self, request: Request) -> Sequence[Letterbox]:
        """Return the position of each image in its square; boxes of a prepared tensor are in its own pixels."""
        whole = Letterbox(self._side, self._side, self._side)
        return request.letterboxes or [whole] * len(request.images)

    def _asked_thresholds(self, parameters: Mapping[str, Any]) -> DetectionSpec:
        # Clients of Triton send priority, timeout and the like: other parameters are ignored, as by a classifier.
        asked = {name: parameters[name] for name in self.parameters if name in parameters}
        try:
            return DetectionSpec.from_dict(self._thresholds.to_dict() | asked)
        except UsageError as error:
            raise RequestError(f"parameter {error}") from None

    def _check_size(self, wanted: Sequence[str], images: int) -> None:
        values = sum(name in (RAW, DECODED) for name in wanted) * math.prod(self.raw_shape)
        most = max(1, _MAX_VALUES // values) if values else images
        if images > most:
            raise RequestError(
                f"{RAW!r} and {DECODED!r} outputs of {images} images are too large for a response; send at most {most}"
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
                "parameters": {"classes": self._names},
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
    """Split the boxes of a reply by image. Scores are left out: the boxes are in descending order already."""
    ends = np.cumsum(outputs["counts"])[:-1]
    boxes, classes = (np.split(outputs[name], ends) for name in ("boxes", "class_ids"))
    return [Detections(xyxy, np.zeros(len(xyxy)), kinds) for xyxy, kinds in zip(boxes, classes, strict=True)]


def _box_outputs(found: Sequence[Detections], names: Sequence[str]) -> list[OutputTensor]:
    """Concatenate the boxes of all images, and count those of each image."""
    boxes = np.concatenate([each.boxes for each in found])
    classes = [number for each in found for number in each.classes.tolist()]
    return [
        float_output("boxes", boxes),
        float_output("scores", np.concatenate([each.scores for each in found])),
        OutputTensor("class_ids", "INT64", [len(classes)], classes),
        OutputTensor("names", "BYTES", [len(classes)], [names[number] for number in classes]),
        OutputTensor("counts", "INT64", [len(found)], [len(each) for each in found]),
    ]
