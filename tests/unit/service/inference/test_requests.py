"""Open Inference Protocol v2: requests in JSON and with binary tensor data, and the metadata."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from edged.calibration.images import decode_bytes, normalize
from edged.calibration.letterbox import Letterbox
from service.inference import requests as protocol
from service.inference.inputs import DATATYPES, MAX_BATCH
from service.inference.requests import Request, metadata
from service.ipc.messages import Body, RequestError
from tests.support.pictures import noise_png
from tests.support.requests import LETTERBOX, SPEC


def parse_request(body: bytes, *arguments: Any) -> Request:
    return protocol.parse_request(Body(body), *arguments)


def request(**changes: Any) -> bytes:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 4, 4], "data": [0.5] * 48} | changes
    return json.dumps({"id": "7", "inputs": [tensor]}).encode()


def images(*encoded: bytes, **changes: Any) -> bytes:
    texts = [base64.b64encode(data).decode() for data in encoded]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(texts)], "data": texts} | changes
    return json.dumps({"inputs": [tensor]}).encode()


@given(
    hnp.arrays(
        np.float32,
        (2, 3, 4, 4),
        elements=st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32),
    ),
    st.booleans(),
)
def test_numbers_are_read_unchanged(values: Any, nested: bool) -> None:
    data = values.tolist() if nested else values.flatten().tolist()
    parsed = parse_request(request(shape=[2, 3, 4, 4], data=data), SPEC)
    assert parsed.id == "7"
    assert np.array_equal(parsed.images, values)


def test_an_encoded_image_is_prepared_as_in_calibration() -> None:
    first, second = noise_png(6), noise_png(9)
    parsed = parse_request(images(first, second, parameters={"content_type": "base64"}), SPEC)
    expected = np.stack([decode_bytes(first, SPEC), decode_bytes(second, SPEC)])
    assert parsed.id is None
    assert np.array_equal(parsed.images, normalize(expected, SPEC))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"image=a&b=c", r"body begins with b'image=a&b=c' and is not JSON; .* multipart/form-data"),
        (b'{"inputs": [{}], "outputs": [{"name": "logits"}, {"name": "bogus"}]}', "unknown output 'bogus'; .*'logits'"),
        (
            b'{"inputs": [{}], "outputs": [{"name": "logits"}, {"name": "logits"}]}',
            "output 'logits' is requested twice",
        ),
        (b'{"inputs": [{}], "outputs": [{}]}', "a list of objects named 'logits'"),
        (b"[]", "JSON list"),
        (b"{}", "'inputs'"),
        (b'{"inputs": [1]}', "'inputs'"),
        (b'{"inputs": [{}, {}]}', "'inputs'"),
        (b'{"id": 5, "inputs": [{}]}', "id has value 5"),
        (b'{"inputs": [{}], "outputs": [{"name": "boxes"}]}', "request 'logits'"),
        (b'{"inputs": [{}], "outputs": [{"name": ["logits"]}]}', "request 'logits'"),
        (b'{"inputs": [{}], "outputs": {"name": "logits"}}', "objects named 'logits'"),
        (b'{"inputs": [{}], "parameters": [1]}', r"parameters has value \[1\]; send an object"),
        (request(name="x"), "input 'x'"),
        (request(datatype="INT8"), "'INT8'"),
        (request(shape=[1, 3, 4, 5]), r"\[-1, 3, 4, 4\]"),
        (request(shape=[1, 3, 4]), "4 whole numbers"),
        (request(shape=[True, 3, 4, 4]), "4 whole numbers"),
        (request(shape=[0, 3, 4, 4], data=[]), f"1 to {MAX_BATCH}"),
        (request(shape=[MAX_BATCH + 1, 3, 4, 4]), f"1 to {MAX_BATCH}"),
        (request(shape=[10**30, 3, 4, 4]), f"1 to {MAX_BATCH}"),
        (request(data=[0.5] * 47), "send 48 numbers"),
        (request(data=[[0.5] * 24] * 2), "send 48 numbers"),
        (request(data=[[0.5], [0.5, 1]]), "not a list of numbers"),
        (request(data=["a"] * 48), "not a list of numbers"),
        (request(data=None), "48 numbers|not a list"),
        (request(data={}), "not a list of numbers"),
        (request(data=[float("nan")] * 48), "NaN"),
        (request(data=[1e300] * 48), "NaN, infinity or a number too large"),
        (images(b"no image"), "image 0 is not a JPEG"),
        (images(noise_png(), noise_png()[:100]), "image 1 is damaged"),
        (images(noise_png(), shape=[2]), "list of 2 base64"),
        (images(noise_png(), data=[5]), "list of 1 base64"),
        (images(noise_png(), data=["?"]), "image 0 is not valid base64"),
        (images(noise_png(), data=["é"]), "image 0 is not valid base64"),
        (images(noise_png(), parameters={"content_type": "raw"}), "content_type has value 'raw'"),
    ],
)
def test_the_error_of_an_invalid_request_is_one_line(body: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        parse_request(body, SPEC)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=200))
def test_random_bytes_are_rejected(body: bytes) -> None:
    with pytest.raises(RequestError):
        parse_request(body, SPEC)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "inputs", "outputs", "parameters"), JSON)),
    st.fixed_dictionaries(
        {"name": st.sampled_from([*DATATYPES]), "datatype": st.sampled_from(["FP32", "UINT8", "BYTES"])},
        optional=dict.fromkeys(("shape", "data", "parameters"), JSON),
    ),
)
def test_arbitrary_json_is_read_or_rejected(body: dict[str, Any], tensor: dict[str, Any]) -> None:
    for inputs in ([tensor], body.get("inputs")):
        with contextlib.suppress(RequestError):
            parse_request(json.dumps({**body, "inputs": inputs}).encode(), SPEC)


def test_the_original_size_of_a_letterboxed_image_is_kept() -> None:
    wide = Image.fromarray(np.zeros((9, 30, 3), np.uint8))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    parsed = parse_request(images(buffer.getvalue(), noise_png(6)), LETTERBOX)
    assert parsed.letterboxes == (Letterbox(30, 9, 32), Letterbox(6, 6, 32))
    assert parsed.images.shape == (2, 3, 32, 32)
    assert parse_request(images(noise_png()), SPEC).letterboxes == ()


def test_requested_outputs_and_parameters_are_read() -> None:
    body = json.loads(images(noise_png())) | {
        "outputs": [{"name": "raw"}, {"name": "boxes"}],
        "parameters": {"iou": 0.5},
    }
    parsed = parse_request(json.dumps(body).encode(), LETTERBOX, ("boxes", "raw"))
    assert (parsed.outputs, parsed.parameters) == (("raw", "boxes"), {"iou": 0.5})
    assert parse_request(images(noise_png()), LETTERBOX, ("boxes", "raw")).outputs == ()
    with pytest.raises(RequestError, match="request 'boxes' or 'raw'"):
        parse_request(json.dumps(body | {"outputs": [{"name": "logits"}]}).encode(), LETTERBOX, ("boxes", "raw"))


def test_the_metadata_describe_the_inputs_that_are_accepted() -> None:
    described = metadata("digits", "3", "torch", SPEC, [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}])
    by_name = {entry["name"]: entry for entry in described["inputs"]}
    assert by_name["input"] == {"name": "input", "datatype": "FP32", "shape": [-1, 3, 4, 4]}
    assert by_name["pixels"] == {"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, 4, 4]}
    assert by_name["image"]["datatype"] == "BYTES"
    assert {name: entry["datatype"] for name, entry in by_name.items()} == {n: d[0] for n, d in DATATYPES.items()}
    assert described["versions"] == ["3"]
    assert described["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}]


def behind(data: bytes, tensor: dict[str, Any], **changes: Any) -> Body:
    """Return a request with a tensor after its JSON."""
    described = {"parameters": {"binary_data_size": len(data)}} | tensor
    text = json.dumps({"inputs": [described], **changes}).encode()
    return Body(text + data, len(text))


FLOATS = {"name": "input", "datatype": "FP32", "shape": [1, 3, 4, 4]}


@given(hnp.arrays(np.float32, (1, 3, 4, 4), elements=st.floats(-(2.0**99), 2.0**99, width=32)), st.text(max_size=4))
def test_a_binary_tensor_is_read_wherever_it_begins(values: Any, identity: str) -> None:
    parsed = protocol.parse_request(behind(values.tobytes(), FLOATS, id=identity), SPEC)  # the id moves the tensor
    assert parsed.id == identity
    assert np.array_equal(parsed.images, values)
    parsed.images[...] += 1  # it is the request's own memory


def test_a_photo_without_its_header_is_recognized() -> None:
    reason = "body is a PNG image and not JSON; send the header Content-Type: image/png with it"
    with pytest.raises(RequestError, match=reason):
        protocol.parse_request(Body(noise_png()), SPEC)


def test_a_body_without_json_is_one_encoded_image() -> None:
    assert np.array_equal(
        protocol.parse_request(Body(noise_png(), 0), SPEC).images, parse_request(images(noise_png()), SPEC).images
    )
    assert protocol.parse_request(Body(noise_png(9), 0), LETTERBOX).letterboxes == (Letterbox(9, 9, 32),)
    with pytest.raises(RequestError, match="image 0 is not a JPEG"):
        protocol.parse_request(Body(b"", 0), SPEC)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, set()),
        ({"parameters": {"binary_data_output": True}}, {"raw", "boxes"}),
        ({"outputs": [{"name": "raw"}]}, set()),
        ({"outputs": [{"name": "raw", "parameters": {"binary_data": True}}, {"name": "boxes"}]}, {"raw"}),
        ({"outputs": [{"name": "raw", "parameters": {"binary_data": True, "content_type": "np"}}]}, {"raw"}),
        (
            {
                "parameters": {"binary_data_output": True, "iou": 0.5},
                "outputs": [{"name": "raw", "parameters": {"binary_data": False}}, {"name": "boxes"}],
            },
            {"boxes"},
        ),
    ],
)
def test_each_output_is_sent_as_requested(changes: dict[str, Any], names: set[str]) -> None:
    parsed = protocol.parse_request(behind(bytes(192), FLOATS, **changes), SPEC, ("boxes", "raw"))
    asked = {output["name"] for output in changes.get("outputs", [])} or {"boxes", "raw"}
    assert parsed.binary & asked == names
    assert "binary_data_output" not in parsed.parameters  # the model has no use for it


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (Body(b"{}", 3), "Inference-Header-Content-Length is 3, but the body has 2 bytes"),
        (Body(request() + bytes(192)), "not JSON.*give its length in Inference-Header-Content-Length"),
        (
            behind(bytes(192), FLOATS | {"parameters": {}}),
            "binary_data_size of the input has value None, but 192 bytes",
        ),
        (behind(bytes(192), FLOATS | {"parameters": {"binary_data_size": 191}}), "value 191, but 192 bytes follow"),
        (behind(bytes(192), FLOATS | {"parameters": {"binary_data_size": -192}}), "value -192"),
        (behind(bytes(192), FLOATS | {"parameters": {"binary_data_size": 192.0}}), r"value 192\.0"),
        (behind(bytes(192), FLOATS | {"parameters": {"binary_data_size": 1 << 80}}), "value 1208925819614629174706176"),
        (behind(b"\1", FLOATS | {"parameters": {"binary_data_size": True}}), "value True"),
        (behind(bytes(188), FLOATS), "binary data of 188 bytes; 48 values of FP32 take 192"),
        (behind(bytes(192), FLOATS | {"data": [0.0] * 48}), "data in the JSON and 192 bytes after it"),
        (behind(bytes(192), FLOATS | {"parameters": {"shared_memory_region": "x"}}), "shared_memory_region"),
        (behind(bytes(192), FLOATS, parameters={"binary_data_output": 1}), "binary_data_output has value 1; choose"),
        (
            behind(bytes(192), FLOATS, outputs=[{"name": "logits", "parameters": {"classify": 3}}]),
            "unknown parameter 'classify' of an output; known: binary_data, classification",
        ),
        (behind(b"", FLOATS), "binary data of 0 bytes"),
    ],
)
def test_the_error_of_an_invalid_binary_size_names_it(body: Body, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        protocol.parse_request(body, SPEC)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=80), st.integers(-5, 90), st.sampled_from([*DATATYPES]), st.integers(-3, 90), JSON)
def test_arbitrary_sizes_are_read_or_rejected(data: bytes, length: int, name: str, size: int, encoding: Any) -> None:
    tensor = {"name": name, "datatype": DATATYPES[name][-1], "shape": [1] if name == "image" else [1, 3, 4, 4]}
    parameters = {"binary_data_size": size, "content_type": encoding}
    whole = behind(data, tensor | {"parameters": parameters})
    for body in (whole, Body(whole.content, length), Body(data, length)):
        with contextlib.suppress(RequestError):
            protocol.parse_request(body, SPEC)
