"""Fields are counted as protobuf parses them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.grpc.messages import ModelInferRequest
from service.grpc.requests import parse_message, parts_of
from service.grpc.structure import has_too_many_fields
from service.ipc.messages import RequestError


def filled(owner: Any, count: int) -> Any:
    for number in range(count):
        owner.parameters[f"{number}"].int64_param = number
    return owner


@given(*[st.integers(0, 5)] * 5)
def test_all_fields_are_counted(inputs: int, outputs: int, raws: int, parameters: int, texts: int) -> None:
    message = filled(ModelInferRequest(model_name="m", raw_input_contents=[b"x"] * raws), parameters)
    for _ in range(inputs):
        filled(message.inputs.add(name="input", shape=[1, 3, 8, 8]), parameters)
        message.inputs[-1].contents.bytes_contents.extend([b"y"] * texts)
        message.inputs[-1].contents.fp32_contents.extend([0.5] * 1000)  # packed: one field
    for _ in range(outputs):
        filled(message.outputs.add(name="raw"), parameters)
    entry = 4  # itself, name, value, and the value's only field
    each_input = 1 + 2 + entry * parameters + 1 + texts + 1
    expected = 1 + raws + entry * parameters + inputs * each_input + outputs * (2 + entry * parameters)
    raw = message.SerializeToString()
    assert not has_too_many_fields(raw, expected)
    assert has_too_many_fields(raw, expected - 1)


@given(st.binary(max_size=200), st.integers(0, 9))
def test_bytes_that_are_no_message_are_left_to_the_parser(raw: bytes, most: int) -> None:
    assert has_too_many_fields(raw, most) in (True, False)
    assert not has_too_many_fields(raw, len(raw) + 1)


@pytest.mark.parametrize(
    "piece", [b"\x2a\0", b"\x32\0", b"\x3a\0", b"\x22\0", b"\x2a\0\x3a\0", b"\x0a\0", b"\xf8\x01\0"]
)
def test_a_message_of_many_small_fields_is_refused(piece: bytes) -> None:
    with pytest.raises(RequestError, match="has more than 4096 fields"):
        parse_message(piece * 100_000)


def test_an_image_of_typed_values_is_not() -> None:
    message = ModelInferRequest(model_name="m")
    message.inputs.add(name="input", datatype="FP32", shape=[1, 3, 640, 640])
    message.inputs[0].contents.fp32_contents.extend([0.5] * (3 * 640 * 640))
    assert parts_of(parse_message(message.SerializeToString())).size > 4 * 3 * 640 * 640
