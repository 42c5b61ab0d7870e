"""Requests of gRPC as a generation reads them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from edged.spec import InputSpec
from service.grpc.messages import ModelInferRequest
from service.grpc.requests import MOST_STRUCTURE, parse_message, parts_of
from service.inference.requests import Request, parse_request
from service.ipc.messages import Body, RequestError

SPEC = InputSpec(size=4, resize=4, mean=(0.5,), std=(0.25,))
TENSORS = hnp.arrays("<f4", st.tuples(st.integers(1, 3), *map(st.just, (1, 4, 4))), elements=st.floats(-9, 9, width=32))
VALUES = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5)


def parsed(message: Any) -> Request:
    """The request as the generation finds it."""
    parts = parts_of(parse_message(message.SerializeToString()))
    body = bytearray(parts.size)
    parts.write_to(memoryview(body))
    assert body == parts.join()
    return parse_request(Body(bytes(body), len(parts.header)), SPEC, ("logits", "raw"))


def message(values: np.ndarray, **fields: Any) -> Any:
    given = {"name": "input", "datatype": "FP32", "shape": values.shape}
    return ModelInferRequest(model_name="m", inputs=[given], **fields)


def set_parameters(owner: Any, values: dict[str, Any]) -> None:
    names = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in values.items():
        setattr(owner.parameters[name], names[type(value)], value)


@given(TENSORS, st.text(max_size=9))
def test_raw_and_typed_values_arrive_unchanged(values: np.ndarray, identity: str) -> None:
    raw = message(values, raw_input_contents=[values.tobytes()], id=identity)
    typed = message(values, id=identity)
    typed.inputs[0].contents.fp32_contents.extend(values.ravel().tolist())
    for request in (parsed(raw), parsed(typed)):
        assert np.array_equal(request.images, values)
        assert request.id == (identity or None)
        assert request.binary == {"logits", "raw"}  # the outputs come as bytes
    assert not parts_of(raw).typed
    assert parts_of(typed).typed
    assert parts_of(raw).tensors == parts_of(typed).tensors


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_parameters_arrive_unchanged(values: dict[str, Any]) -> None:
    request = message(np.zeros((1, 1, 4, 4), "f4"), raw_input_contents=[bytes(64)])
    set_parameters(request, values)
    values.pop("binary_data_output", None)
    assert repr(sorted(parsed(request).parameters.items())) == repr(sorted(values.items()))  # NaN is not NaN


def test_requested_outputs_come_as_bytes() -> None:
    request = message(np.zeros((1, 1, 4, 4), "f4"), raw_input_contents=[bytes(64)], outputs=[{"name": "raw"}])
    set_parameters(request.outputs[0], {"binary_data": False})
    set_parameters(request, {"binary_data_output": False})
    assert parsed(request).outputs == ("raw",)
    assert "raw" in parsed(request).binary


def test_pixels_and_files() -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(file, "PNG")
    image = ModelInferRequest(inputs=[{"name": "image", "datatype": "BYTES", "shape": [1]}])
    image.inputs[0].contents.bytes_contents.append(file.getvalue())
    pixels = ModelInferRequest(inputs=[{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 4, 4]}])
    pixels.inputs[0].contents.uint_contents.extend(range(16))
    assert np.array_equal(parsed(image).images, parsed(pixels).images)
    assert bytes(parsed(image).files[0]) == file.getvalue()


def test_shared_memory_is_refused_by_name() -> None:
    request = message(np.zeros((1, 1, 4, 4), "f4"))
    set_parameters(request.inputs[0], {"shared_memory_region": "here"})
    with pytest.raises(RequestError, match="shared_memory_region is not supported"):
        parsed(request)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "input 'input' has no values; send them in raw_input_contents"),
        ({"raw_input_contents": [b"", b""]}, "raw_input_contents has 2 entries for 1 inputs"),
        ({"raw_input_contents": [b""]}, "binary data of 0 bytes; 16 values of FP32 take 64"),
    ],
)
def test_values_that_are_missing_or_too_many(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parsed(message(np.zeros((1, 1, 4, 4), "f4"), **change))


def test_bytes_that_are_no_message() -> None:
    for raw in (b"\0", b"\x3a\xff", b"\0" * (MOST_STRUCTURE + 1)):
        with pytest.raises(RequestError, match="the message is no ModelInferRequest"):
            parse_message(raw)


def test_a_message_may_have_little_besides_its_tensor() -> None:
    """A parsed message of many empty fields takes a multiple of its bytes."""
    large = ModelInferRequest(model_name="m", raw_input_contents=[bytes(3 * MOST_STRUCTURE)]).SerializeToString()
    assert len(parse_message(large).raw_input_contents[0]) == 3 * MOST_STRUCTURE
    for field in (b"\x2a\x00", b"\x3a\x00"):  # inputs, raw_input_contents
        with pytest.raises(RequestError, match=r"are not a raw tensor|has more than 4096 fields"):
            parse_message(large + field * (MOST_STRUCTURE // 2 + 1))


def test_values_that_come_twice() -> None:
    request = message(np.zeros((1, 1, 4, 4), "f4"), raw_input_contents=[bytes(64)])
    request.inputs[0].contents.fp32_contents.extend(16 * [0.0])
    with pytest.raises(RequestError, match="has contents as well as raw_input_contents; send one of them"):
        parsed(request)


def test_several_inputs_are_refused() -> None:
    two = 2 * [{"name": "input", "datatype": "FP32", "shape": [1, 1, 4, 4]}]
    with pytest.raises(RequestError, match="'inputs' must be a list of one object"):
        parsed(ModelInferRequest(inputs=two, raw_input_contents=2 * [bytes(64)]))
