"""Requests as a person sends them: image files, forms and parameters in the address."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edged.calibration.images import decode_bytes, normalize
from edged.spec import InputSpec
from service.inference.forms import Known, read_form
from service.inference.inputs import MAX_BATCH
from service.inference.requests import Request
from service.ipc.messages import Body, Form, RequestError

SPEC = InputSpec(8, 8)
KNOWN = Known(("boxes", "scores", "raw"), {"confidence": float, "max_detections": int}, draws=True)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


ONE, OTHER = png(0), png(1)


def image(query: str = "", accept: str = "", known: Known = KNOWN) -> Request:
    return read_form(Body(ONE, 0), Form("image/png", query, accept), SPEC, known)


def posted(files: list[Any], data: dict[str, str] | None = None, query: str = "", known: Known = KNOWN) -> Request:
    request = httpx.Request("POST", "http://edged", files=files, data=data)
    return read_form(Body(request.read(), 0), Form(request.headers["content-type"], query), SPEC, known)


def tensor(**changes: Any) -> Body:
    given = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": [7] * 192}
    return Body(json.dumps({"inputs": [given], **changes}).encode())


def test_a_body_can_be_an_image_file() -> None:
    request = image()
    assert np.array_equal(request.images, normalize(decode_bytes(ONE, SPEC)[None], SPEC))
    assert request.files == (ONE,)
    assert (request.is_form, request.outputs, request.parameters, request.binary) == (True, (), {}, frozenset())


def test_a_form_can_have_several_images_and_parameters() -> None:
    files = [("image", ("a.png", ONE)), ("image", ("b.png", OTHER))]
    request = posted(files, {"confidence": "0.5", "outputs": "raw,boxes"}, "max_detections=3")
    expected = np.stack([decode_bytes(file, SPEC) for file in (ONE, OTHER)])
    assert np.array_equal(request.images, normalize(expected, SPEC))
    assert request.is_form
    assert request.outputs == ("raw", "boxes")
    assert request.parameters == {"confidence": 0.5, "max_detections": 3}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("confidence=0.5", {"confidence": 0.5}),
        ("confidence=1", {"confidence": 1}),
        ("confidence=1e-3&max_detections=7", {"confidence": 0.001, "max_detections": 7}),
        ("confidence=%30%2E5&", {"confidence": 0.5}),
    ],
)
def test_parameters_of_the_address_are_those_of_the_protocol(query: str, expected: dict[str, Any]) -> None:
    assert image(query).parameters == expected
    for body in (tensor(), Body(ONE, 0)):
        request = read_form(body, Form(query=query), SPEC, KNOWN)
        assert request.parameters == expected
        assert not request.is_form
    body = tensor(id="7", parameters={"iou": 0.3, "binary_data_output": True}, outputs=[{"name": "raw"}])
    request = read_form(body, Form(query=query), SPEC, KNOWN)
    assert (request.id, request.outputs, request.parameters) == ("7", ("raw",), {"iou": 0.3, **expected})
    assert request.binary == frozenset(KNOWN.outputs)


def test_outputs_can_be_bytes() -> None:
    assert image("binary_data_output=true").binary == frozenset(KNOWN.outputs)
    assert image("binary_data_output=false").binary == frozenset()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "confidnce=0.5",
            "parameter 'confidnce' is unknown; did you mean 'confidence'? known: confidence, max_detections, o",
        ),
        ("a", "parameter 'a' is unknown; known: confidence"),
        (f"{'a' * 200}=1", f"parameter '{'a' * 79} is unknown; known"),
        ("confidence=", "parameter confidence has value ''; send a number"),
        ("confidence=high", "parameter confidence has value 'high'; send a number"),
        ("confidence=0,5", "parameter confidence has value '0,5'; send a number"),
        ("confidence=NaN", "parameter confidence has value 'NaN'; send a number"),
        ("confidence=true", "parameter confidence has value 'true'; send a number"),
        (f"confidence={'[' * 3000}", "parameter confidence has value '[[["),
        ("max_detections=3.0", "parameter max_detections has value '3.0'; send a whole number"),
        ("max_detections=3&max_detections=3", "parameter 'max_detections' is given twice; send it once"),
        ("outputs=", "parameter outputs has value ''; choose from boxes, scores, raw, each once"),
        ("outputs=boxes,logits", "parameter outputs has value 'boxes,logits'; choose from boxes, scores, raw"),
        ("outputs=boxes,boxes", "parameter outputs has value 'boxes,boxes'; choose from"),
        ("binary_data_output=1", "parameter binary_data_output has value '1'; choose true or false"),
    ],
)
def test_mistakes_in_the_address_are_named(query: str, message: str) -> None:
    for read in (lambda: image(query), lambda: read_form(tensor(), Form(query=query), SPEC, KNOWN)):
        with pytest.raises(RequestError) as caught:
            read()
        assert str(caught.value).startswith(message)
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "query", "name"),
    [
        (tensor(parameters={"confidence": 0.5}), "confidence=0.5", "confidence"),
        (tensor(outputs=[{"name": "raw"}]), "outputs=raw", "outputs"),
    ],
)
def test_what_is_in_the_body_is_not_given_again(body: Body, query: str, name: str) -> None:
    with pytest.raises(RequestError, match=f"parameter '{name}' is in the address and in the body; send it once"):
        read_form(body, Form(query=query), SPEC, KNOWN)


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ([("photo", ("a.png", ONE))], {}, "field 'photo' has a file; send images in the field 'image'"),
        ([("confidence", (None, "0.5"))], {}, "the form has no field 'image'; send at least one file, as `curl -F"),
        ([("image", (None, "photo.jpg"))], {}, "field 'image' has the text 'photo.jpg', no file; curl needs an @"),
        ([("image", ("a.png", ONE))], {"confidnce": "1"}, "parameter 'confidnce' is unknown; did you mean"),
        ([("image", ("a.png", ONE))], {"photo": "x" * 2000}, "parameter 'photo' is unknown; known"),
        (
            [("image", ("a.png", ONE))],
            {"confidence": "1" * 2000},
            "parameter 'confidence' has 2000 bytes; send a number",
        ),
        (
            [("image", ("a.png", ONE))] * (MAX_BATCH + 1),
            {},
            f"the form has {MAX_BATCH + 1} images; send at most {MAX_BATCH} in",
        ),
        (
            [("image", ("a.png", ONE)), ("image", ("b.png", b"GIF89a"))],
            {},
            "image 1 is not a JPEG, PNG, WEBP or BMP image, but GIF",
        ),
        ([("image", ("a.png", b""))], {}, "image 0 is not a JPEG"),
    ],
)
def test_mistakes_in_a_form_are_named(files: list[Any], data: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        posted(files, data)
    assert str(caught.value).startswith(message)


def test_a_parameter_is_not_in_the_address_and_in_a_field() -> None:
    with pytest.raises(RequestError, match="parameter 'confidence' is given twice"):
        posted([("image", ("a.png", ONE))], {"confidence": "0.5"}, "confidence=0.5")


def test_a_picture_is_drawn_on_one_image() -> None:
    assert image(accept="image/png").picture == "PNG"
    assert image(accept="image/*").picture == "JPEG"
    assert image(accept="*/*").picture is None
    raw = read_form(Body(ONE, 0), Form(accept="image/png"), SPEC, KNOWN)  # the protocol's raw binary request
    assert raw.picture == "PNG"
    with pytest.raises(RequestError, match="the request has a tensor; send one image file"):
        read_form(tensor(), Form(accept="image/png"), SPEC, KNOWN)
    with pytest.raises(RequestError, match="which has no outputs to choose; leave outputs out"):
        image("outputs=boxes", "image/png")
    request = httpx.Request("POST", "http://edged", files=[("image", ("a", ONE))] * 2)
    with pytest.raises(RequestError, match="the request has 2 images; send one"):
        read_form(Body(request.read(), 0), Form(request.headers["content-type"], accept="image/png"), SPEC, KNOWN)
    with pytest.raises(RequestError) as caught:
        image(accept="image/png", known=Known(("logits",), {}))
    assert caught.value.status == 406


def test_a_browser_that_lists_pictures_gets_json_where_there_is_none() -> None:
    firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,*/*;q=0.8"
    assert image(accept=firefox).picture == "PNG"
    assert read_form(tensor(), Form(accept=firefox), SPEC, KNOWN).picture is None
    assert image("outputs=boxes", firefox).outputs == ("boxes",)
    assert image("outputs=boxes", firefox).picture is None


@given(st.dictionaries(st.sampled_from(["confidence", "max_detections", "outputs", "x", ""]), st.text(max_size=20)))
def test_any_query_is_read_or_refused(fields: dict[str, str]) -> None:
    with contextlib.suppress(RequestError):
        request = read_form(tensor(), Form(query=urlencode(fields)), SPEC, KNOWN)
        assert {*request.parameters, *(("outputs",) if request.outputs else ())} == set(fields)
