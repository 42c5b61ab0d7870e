import io
import json
import resource
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.spec import InputSpec
from service.inference import json_parser
from service.inference.json_parser import answer_frames, join, split
from service.inference.requests import Request, parse_request
from service.ipc import frames
from service.ipc.messages import Body, RequestError

SPEC = InputSpec(4, 4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
NUMBERS = st.lists(st.integers(-300, 300) | st.floats(), max_size=60)
INPUTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["input", "pixels", "image", "x"]), "shape": st.just([1, 3, 4, 4]) | JSON},
    optional={
        "datatype": st.sampled_from(["FP32", "UINT8", "BYTES"]),
        "data": NUMBERS | st.just([0.5] * 48) | st.lists(st.text()) | st.lists(st.lists(st.text())) | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(INPUTS, max_size=2) | JSON}, optional={"id": JSON, "outputs": JSON}
)


def outcome(text: bytes, parsed: dict[str, Any] | None = None) -> Any:
    try:
        request: Request = parse_request(Body(text), SPEC, parsed=parsed)
    except RequestError as error:
        return str(error), error.status
    return request.images.tobytes(), request.id, request.outputs, [bytes(file) for file in request.files]


@given(REQUESTS)
def test_a_request_means_the_same_whoever_parses_its_json(request: Any) -> None:
    text = json.dumps(request).encode()
    header, parts = split(text)
    frames.head(header, b"")  # it fits into a frame
    ours, theirs = outcome(text), outcome(text, join(header, b"".join(parts)))
    if ours != theirs:  # only values that an error shows may be shown in another way
        assert ours[1] == theirs[1] == 400


@given(st.binary() | st.text().map(str.encode) | JSON.map(json.dumps).map(str.encode))
def test_what_is_no_request_is_refused_as_elsewhere(text: bytes) -> None:
    def elsewhere() -> Any:
        try:
            header, parts = split(text)
        except RequestError as error:
            return str(error), error.status
        return outcome(text, join(header, b"".join(parts)))

    assert elsewhere() == outcome(text)


def test_numbers_and_texts_are_sent_as_bytes() -> None:
    header, parts = split(b'{"inputs": [{"name": "input", "data": [[1, 2.5], [3, 4]], "shape": [2, 2]}]}')
    assert header == {"kind": "numbers", "dtype": "<f8", "shape": (2, 2), "json_bytes": len(parts[0])}
    assert json.loads(parts[0]) == {"inputs": [{"name": "input", "shape": [2, 2]}]}
    assert parts[1] == np.array([1, 2.5, 3, 4]).tobytes()
    header, parts = split(b'{"inputs": [{"name": "image", "data": [["eA=="], ["\\/9j"]]}]}')
    assert (header["sizes"], parts[1:]) == ([4, 3], [b"eA==", b"/9j"])


def test_little_may_be_other_than_data() -> None:
    for many in ("outputs", "parameters", "more"):
        with pytest.raises(RequestError, match="bytes of JSON besides the data of one input; send at most 262144"):
            split(json.dumps({"inputs": [], many: [0] * 200_000}).encode())
    with pytest.raises(RequestError, match="besides the data of one input"):
        split(json.dumps({"inputs": [{"data": [0] * 200_000}] * 2}).encode())


def test_frames_are_answered_one_by_one_and_errors_are_too() -> None:
    asked, answers = io.BytesIO(), io.BytesIO()
    for text in (b'{"inputs": [{"data": [1]}]}', b"no JSON", b"[" * 1_000_000, b'{"inputs": [{"data": [2]}]}'):
        frames.write_blocking(asked, {}, text)
    asked.seek(0)
    answer_frames(asked, answers)
    answers.seek(0)
    found = [frames.read_blocking(answers) for _ in range(5)]
    assert found[4] is None
    headers = [each[0] for each in found[:4] if each is not None]
    assert ["error" in header for header in headers] == [False, True, True, False]
    assert headers[2]["status"] == 400
    assert "nested too deeply" in headers[2]["error"]


def test_the_memory_is_limited_only_while_json_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger JSON after a small one is received, and parsed within a limit of its own."""
    monkeypatch.setattr(json_parser, "_MEMORY_BYTES", 8 << 20)
    before, asked, answers = resource.getrlimit(resource.RLIMIT_AS), io.BytesIO(), io.BytesIO()
    large = b"A" * (40 << 20)
    for data in (b"AAAA", large, b"AAAA"):
        frames.write_blocking(asked, {}, b'{"inputs": [{"data": ["%s"]}]}' % data)
    asked.seek(0)
    answer_frames(asked, answers)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    answers.seek(0)
    found = [frames.read_blocking(answers) for _ in range(3)]
    assert [each[0]["sizes"] for each in found if each is not None] == [[4], [len(large)], [4]]
