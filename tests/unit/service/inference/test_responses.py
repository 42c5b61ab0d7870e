"""Outputs as JSON and as bytes after it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.inference.binary import unpack_numbers
from service.inference.responses import OutputTensor, float_output, format_response, read_outputs
from service.ipc.elements import unpack_elements


def test_a_response_has_model_version_id_and_outputs() -> None:
    logits = np.array([[0.1, -2.0], [3.5, 1e-9]], np.float32)
    assert json.loads(format_response([float_output("logits", logits)], "digits", "12", "a").content) == {
        "model_name": "digits",
        "model_version": "12",
        "id": "a",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": logits.flatten().tolist()}],
    }
    names = OutputTensor("names", "BYTES", [1], ["Zürich"])
    answer = json.loads(format_response([names], "digits", "12", None).content)
    assert "id" not in answer
    assert answer["outputs"] == [{"name": "names", "datatype": "BYTES", "shape": [1], "data": ["Zürich"]}]


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, min_side=0), elements=st.floats(width=32)),
    st.lists(st.text(), max_size=4),
)
def test_binary_outputs_are_separated_by_their_sizes(values: Any, names: list[str]) -> None:
    outputs = [
        float_output("boxes", values),
        OutputTensor("names", "BYTES", [len(names)], names),
        OutputTensor("counts", "INT64", [2], [7, -(1 << 40)]),
    ]
    body = format_response(outputs, "shelf", "3", "id", {"boxes", "names", "counts"})
    text, behind = body.split()
    boxes, told, counts = json.loads(text)["outputs"]
    sizes = [output["parameters"]["binary_data_size"] for output in (boxes, told, counts)]
    assert sum(sizes) == len(behind)
    assert not any("data" in output for output in (boxes, told, counts))
    first, second = sizes[0], sizes[0] + sizes[1]
    read = unpack_numbers(behind[:first], "FP32", values.size).reshape(boxes["shape"])
    np.testing.assert_array_equal(read, values)
    assert [bytes(e).decode() for e in unpack_elements(behind[first:second], len(names))] == names
    assert unpack_numbers(behind[second:], "INT64", 2).tolist() == [7, -(1 << 40)]


def test_one_output_in_binary_and_one_in_json() -> None:
    outputs = [float_output("scores", np.array([0.5], np.float32)), OutputTensor("counts", "INT64", [1], [1])]
    body = format_response(outputs, "shelf", "3", None, {"scores"})
    text, behind = body.split()
    assert json.loads(text)["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "counts", "datatype": "INT64", "shape": [1], "data": [1]},
    ]
    assert bytes(behind) == b"\0\0\0\x3f"  # 0.5, little-endian


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, min_side=0), elements=st.floats(-65536, 65536, width=32)),
    st.sets(st.sampled_from(["boxes", "names", "counts"])),
)
def test_numbers_of_a_response_are_read_back(values: Any, binary: set[str]) -> None:
    outputs = [
        float_output("boxes", values),
        OutputTensor("names", "BYTES", [2], ["cat", "dog"]),
        OutputTensor("counts", "INT64", [2], [7, -(1 << 40)]),
    ]
    read = read_outputs(format_response(outputs, "shelf", "3", None, binary))
    assert read.keys() == {"boxes", "counts"}
    np.testing.assert_array_equal(read["boxes"], values)
    assert read["counts"].tolist() == [7, -(1 << 40)]


def test_a_response_to_an_id_that_only_escapes_can_express_is_read_back() -> None:
    body = format_response([float_output("scores", np.array([0.5], np.float32))], "m", "1", "\ud800")
    assert json.loads(body.content)["id"] == "\ud800"
    assert read_outputs(body)["scores"].tolist() == [0.5]
