"""The answers of a classifier, against softmax and sorting written down once more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.classification import Classification, most_probable, softmax, triton_text
from service.inference.requests import Request
from service.inference.responses import OutputTensor, float_output, format_response, read_outputs
from service.ipc.messages import Body, RequestError

Floats = npt.NDArray[np.float32]

NAMES = ["cat", "dog", "eel", "fox", "gnu", "hen", "ibex"]
TASK = Classification(7, NAMES)
NAMELESS = Classification(7, None)
IMAGES = np.zeros((2, 3, 8, 8), np.float32)
LOGITS = np.array([[0.5, 2, -1, 2, 0, 3.25, -4], [9, 8, 7, 6, 5, 4, 3]], np.float32)


def answer(request: Request, task: Classification = TASK) -> dict[str, OutputTensor]:
    task.check(request)
    return {output.name: output for output in task.answer(request, lambda images: LOGITS[: len(images)])}


def test_logits_are_returned_unchanged() -> None:
    (output,) = TASK.answer(Request(IMAGES), lambda images: LOGITS)
    assert (output.name, output.datatype, output.shape) == ("logits", "FP32", [2, 7])
    assert output.data == LOGITS.flatten().tolist()


def test_the_outputs_are_described() -> None:
    logits, *others = TASK.described
    assert logits == {"name": "logits", "datatype": "FP32", "shape": [-1, 7], "parameters": {"classes": NAMES}}
    assert NAMELESS.described[0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 7]}
    assert others == NAMELESS.described[1:]
    assert [(each["name"], each["datatype"], each["shape"]) for each in others] == [
        ("labels", "BYTES", [-1, -1]),
        ("scores", "FP32", [-1, -1]),
        ("class_ids", "INT64", [-1, -1]),
    ]
    assert {str(each["parameters"]) for each in others} == {"{'default': False}"}


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    st.integers(1, 25),
)
def test_softmax_and_order_are_those_of_the_definition(row: list[float], count: int) -> None:
    logits = np.array([row, row[::-1]], np.float32)
    powers = [math.exp(value - max(row)) for value in row]
    expected = [power / sum(powers) for power in powers]
    assert softmax(logits)[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-30)
    order = sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]
    assert most_probable(logits, count)[0].tolist() == order


@pytest.mark.parametrize(("asked", "k"), [({}, 5), ({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_k": 100}, 7)])
def test_labels_and_scores_are_those_of_the_most_probable_classes(asked: dict[str, int], k: int) -> None:
    found = answer(Request(IMAGES, outputs=("scores", "labels", "class_ids"), parameters=asked))
    assert list(found) == ["scores", "labels", "class_ids"]
    assert {tuple(output.shape) for output in found.values()} == {(2, k)}
    first = [5, 1, 3, 0, 4, 2, 6][:k]  # of equal logits the lower index comes first
    assert found["class_ids"].data == [*first, *range(k)]
    assert found["labels"].data == [NAMES[index] for index in [*first, *range(k)]]
    row = np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum(1, keepdims=True)
    assert found["scores"].data == pytest.approx([*row[0][first], *row[1][:k]], rel=1e-6)


def test_one_class_has_all_of_the_probability() -> None:
    (labels, scores) = Classification(1, ["cat"]).answer(
        Request(IMAGES[:1], outputs=("labels", "scores")), lambda _: np.array([[-3.0]], np.float32)
    )
    assert (labels.data, scores.data) == (["cat"], [1.0])


def test_a_class_without_a_name_has_its_number() -> None:
    found = answer(Request(IMAGES, outputs=("labels",), parameters={"top_k": 2}), NAMELESS)
    assert found["labels"].data == ["5", "1", "0", "1"]


def test_outputs_decide_and_top_k_adds_the_others() -> None:
    assert list(answer(Request(IMAGES))) == ["logits"]
    assert list(answer(Request(IMAGES, parameters={"priority": 1}))) == ["logits"]
    assert list(answer(Request(IMAGES, parameters={"top_k": 2}))) == ["logits", "labels", "scores", "class_ids"]
    assert list(answer(Request(IMAGES, outputs=("labels", "logits")))) == ["labels", "logits"]
    assert list(answer(Request(IMAGES, outputs=("logits",), parameters={"top_k": 2}))) == ["logits"]


@pytest.mark.parametrize(
    "request_", [Request(IMAGES, parameters={"classification": 2}), Request(IMAGES, classification={"logits": 2})]
)
def test_tritons_classification(request_: Request) -> None:
    (output,) = answer(request_).values()
    assert (output.name, output.datatype, output.shape) == ("logits", "BYTES", [2, 2])
    assert output.data == ["3.250000:5:hen", "2.000000:1:dog", "9.000000:0:cat", "8.000000:1:dog"]
    (output,) = answer(request_, NAMELESS).values()
    assert output.data == ["3.250000:5", "2.000000:1", "9.000000:0", "8.000000:1"]


def test_classification_asks_for_at_most_all_classes() -> None:
    assert answer(Request(IMAGES, classification={"logits": 100}))["logits"].shape == [2, 7]
    assert triton_text(-0.5, 3, "a:b") == "-0.500000:3:a:b"


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None, [1]])
@pytest.mark.parametrize("name", ["top_k", "classification"])
def test_an_impossible_number_of_classes_is_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"parameter {name} has value .*; send a whole number of at least 1"):
        TASK.check(Request(IMAGES, parameters={name: value}))
    with pytest.raises(RequestError, match="parameter classification has value"):
        TASK.check(Request(IMAGES, classification={"logits": value}))


def test_classification_is_for_logits_alone() -> None:
    with pytest.raises(RequestError, match="parameter classification of output 'scores'; it is for 'logits' alone"):
        TASK.check(Request(IMAGES, outputs=("scores",), classification={"scores": 2}))


def test_the_top_classes_of_two_replies_are_compared_whatever_their_outputs() -> None:
    def of(*outputs: OutputTensor) -> dict[str, npt.NDArray[Any]]:
        return read_outputs(format_response(outputs, "m", "1", None))

    ours = TASK.answer(Request(IMAGES, parameters={"classification": 2}, reference=Body(b"")), lambda _: LOGITS)
    assert [output.name for output in ours] == ["logits"]
    assert TASK.agree(of(*ours), of(float_output("logits", LOGITS))) == (2, 2)
    assert TASK.agree(of(*ours), of(OutputTensor("class_ids", "INT64", [2, 2], [5, 1, 3, 0]))) == (1, 2)
    assert TASK.agree(of(*ours), of(OutputTensor("labels", "BYTES", [2, 1], ["hen", "cat"]))) == (0, 0)
    assert TASK.agree(of(*ours), of(float_output("logits", LOGITS[:1]))) == (0, 0)


def test_two_classifiers_agree_on_images_by_their_top_class() -> None:
    task = Classification(3, None)
    ours = {"logits": np.array([[1.0, 2, 0], [5, 1, 1], [0, 0, 1]])}
    theirs = {"logits": np.array([[0.0, 9, 0], [1, 5, 1], [0, 1, 2]])}
    assert task.unit == "images"
    assert task.agree(ours, theirs) == (2, 3)
    assert task.agree(ours, {}) == (0, 0)
    assert task.agree(ours, {"logits": theirs["logits"][:1]}) == (0, 0)  # of fewer images: no answer to this request
