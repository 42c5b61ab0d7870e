"""The answers of a classifier: logits, the most probable classes with their names, or Triton's text of them.

Which outputs a request gets by default depends on what it asks for, so that clients of before get what they got:

    a request of the protocol        logits
    the same with `top_k`            logits, labels, scores, class_ids
    the same with `classification`   logits, as Triton's classification extension formats them
    image files alone                labels, scores, class_ids

Names in `outputs` always decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.inference.requests import LOGITS, Request
from service.inference.responses import OutputTensor, float_output
from service.ipc.messages import RequestError

LABELS, SCORES, CLASS_IDS = "labels", "scores", "class_ids"
TOP_K, CLASSIFICATION = "top_k", "classification"  # parameters of a request
USUAL_K = 5

Floats = npt.NDArray[np.float32]


class Classification:
    """The task of a classifier, see `service.inference.tasks.Task`.

    Args:
        count: Number of classes.
        names: Names of the classes; None if they are not known.
    """

    unit = "images"
    parameters: Mapping[str, type] = {TOP_K: int, CLASSIFICATION: int}
    draws = False

    def __init__(self, count: int, names: Sequence[str] | None) -> None:
        self._count = count
        self._names = None if names is None else list(names)
        self.described: Sequence[Mapping[str, Any]] = self._describe()
        self.raw_shape: tuple[int, ...] = (count,)

    def check(self, request: Request) -> None:
        """Check the numbers of classes that a request asks for."""
        for name in (TOP_K, CLASSIFICATION):
            _whole(name, request.parameters.get(name, 1))
        for output, number in request.classification.items():
            if output != LOGITS:
                raise RequestError(f"parameter classification of output {output!r}; it is for {LOGITS!r} alone")
            _whole(CLASSIFICATION, number)

    def answer(self, request: Request, forward: Callable[[Floats], Floats]) -> list[OutputTensor]:
        """Return the requested outputs."""
        logits = forward(request.images)
        wanted = request.outputs or self._default(request)
        if wanted == (LOGITS,) and not request.classification and CLASSIFICATION not in request.parameters:
            return [float_output(LOGITS, logits)]
        found = {LOGITS: self._logits(logits, request)} if LOGITS in wanted else {}
        if not found.keys() >= set(wanted):
            found |= {output.name: output for output in self._best(logits, request.parameters.get(TOP_K, USUAL_K))}
        return [found[name] for name in wanted]

    def agree(self, ours: Mapping[str, npt.NDArray[Any]], theirs: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
        """Count the images with the same top class."""
        one, other = _top(ours), _top(theirs)
        if one is None or other is None or len(one) != len(other):
            return 0, 0
        return int((one == other).sum()), len(one)

    def _default(self, request: Request) -> tuple[str, ...]:
        if request.reference is not None or CLASSIFICATION in request.parameters:
            return (LOGITS,)
        if request.is_form:
            return LABELS, SCORES, CLASS_IDS
        return (LOGITS, LABELS, SCORES, CLASS_IDS) if TOP_K in request.parameters else (LOGITS,)

    def _logits(self, logits: Floats, request: Request) -> OutputTensor:
        count = request.classification.get(LOGITS, request.parameters.get(CLASSIFICATION))
        if count is None or request.reference is not None:
            return float_output(LOGITS, logits)
        best = most_probable(logits, count)
        texts = [
            triton_text(value, index, None if self._names is None else self._names[index])
            for row, indices in zip(logits, best, strict=True)
            for value, index in zip(row[indices].tolist(), indices.tolist(), strict=True)
        ]
        return OutputTensor(LOGITS, "BYTES", list(best.shape), texts)

    def _best(self, logits: Floats, count: int) -> list[OutputTensor]:
        best = most_probable(logits, count)
        shape, numbers = list(best.shape), best.ravel().tolist()
        labels = [str(number) if self._names is None else self._names[number] for number in numbers]
        return [
            OutputTensor(LABELS, "BYTES", shape, labels),
            float_output(SCORES, np.take_along_axis(softmax(logits), best, axis=1)),
            OutputTensor(CLASS_IDS, "INT64", shape, numbers),
        ]

    def _describe(self) -> list[dict[str, Any]]:
        logits: dict[str, Any] = {"name": LOGITS, "datatype": "FP32", "shape": [-1, self._count]}
        if self._names is not None:
            logits["parameters"] = {"classes": self._names}
        kinds = ((LABELS, "BYTES"), (SCORES, "FP32"), (CLASS_IDS, "INT64"))
        return [logits, *({"name": name, "datatype": kind, "shape": [-1, -1], **_ON_REQUEST} for name, kind in kinds)]


_ON_REQUEST = {"parameters": {"default": False}}


def softmax(logits: Floats) -> Floats:
    """Return the probabilities of the classes, float32 [n, classes], computed in float64.

    Args:
        logits: Finite logits [n, classes]. Not modified.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    probabilities: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def most_probable(logits: Floats, count: int) -> npt.NDArray[np.int64]:
    """Return the classes with the largest logits, the largest first and the lower index first among equal ones.

    Args:
        logits: Finite logits [n, classes]. Not modified.
        count: Most classes of each image.

    Returns:
        Class indices, int64 [n, min(count, classes)].
    """
    order: npt.NDArray[np.int64] = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return order


def triton_text(value: float, index: int, name: str | None) -> str:
    """Return a class as Triton's classification extension formats it: its value, its index and its name, if known."""
    return f"{value:f}:{index}" if name is None else f"{value:f}:{index}:{name}"


def _whole(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise RequestError(f"parameter {name} has value {value!r:.80}; send a whole number of at least 1")


def _top(outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64] | None:
    """Return the top class of each image; None if a reply does not tell."""
    if LOGITS in outputs:
        top: npt.NDArray[np.int64] = outputs[LOGITS].argmax(axis=1)
        return top
    return outputs[CLASS_IDS][:, 0] if CLASS_IDS in outputs else None
