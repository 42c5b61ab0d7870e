"""Strategies for requests over HTTP that no client sends: lines, fields, lengths, paths, and bodies of the protocol."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

MODEL = "net"
TOKEN = "word"  # noqa: S105 - of a daemon that is fuzzed
_SHAPE = [1, 3, 8, 8]
_ODD_NUMBERS = (
    *("0", "-1", "26", "9" * 26, "9" * 400, "1e999", "0x10", "+1", " 1", "1_000", "\u0661", "NaN", "-0", "00001"),
    *("18446744073709551616", "9223372036854775807", "9223372036854775808", "2147483648", "1.5", ""),
)
_ODD_TEXTS = (
    *("..", ".", "%00", "%2e%2e%2f", "%ff", "%", "%zz", "//", "\\", "a" * 300, "a" * 9000, "\u00e9", "\u202e", "'\""),
    *(
        "<script>",
        "{}",
        "*",
        "digits ",
        "DIGITS",
        "digits%20",
        "digits;x",
        "nan",
        "null",
        "true",
        ";",
        "?",
        "#",
        "\x7f",
    ),
)
_SEGMENTS = st.sampled_from((MODEL, "other", "1", "2", *_ODD_NUMBERS, *_ODD_TEXTS)) | st.text(max_size=8)
_TEMPLATES = (
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/{}", "/v2/models/{}/versions/{}"),
    *("/v2/models/{}/infer", "/v2/models/{}/versions/{}/infer", "/v2/models/{}/ready", "/v2/models/{}/config"),
    *("/v2/models/{}/stats", "/v2/models/stats", "/v2/repository/index", "/v2/repository/models/{}/load", "/metrics"),
    *("/edged/v1/status", "/edged/v1/updates", "/edged/v1/updates/{}", "/edged/v1/updates/{}/report", "/{}", "/{}/{}"),
    *("/edged/v1/updates/{}/report.json", "/edged/v1/updates/{}/retry", "/edged/v1/updates/{}/cancel", "/", "{}", "*"),
    *("/edged/v1/models/{}/history", "/edged/v1/models/{}/rollback", "/edged/v1/models/{}/pin", "/static/{}"),
    *("/edged/v1/models/{}/unpin", "/edged/v1/models/{}/drop?name={}", "/edged/v1/logs?{}={}", "/openapi.json"),
    *("/edged/v1/updates?{}={}", "/edged/v1/updates?state={}&limit={}", "/edged/v1/gc?dry_run={}", "http://{}/v2"),
    *("/edged/v1/logs?after={}&since={}&limit={}&update={}", "/v2/models/{}/infer?{}={}&top_k={}", "//v2"),
)
_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "get", "PRI", "", "G" * 99)
_VERSIONS = ("HTTP/1.1",) * 6 + ("HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.10", "HTTP/", "", "ICY")
_FIELDS = st.one_of(
    st.tuples(st.just("Host"), st.sampled_from(("localhost", "evil.example", "", "[::1", "a:b:c", "x" * 300))),
    st.tuples(
        st.sampled_from(("Content-Length", "Inference-Header-Content-Length", "Expect", "Range", "Keep-Alive")),
        st.sampled_from((*_ODD_NUMBERS, "100-continue", "10", "300000000")),
    ),
    st.tuples(
        st.just("Transfer-Encoding"), st.sampled_from(("chunked", "gzip, chunked", "identity", "chunked, x", ""))
    ),
    st.tuples(
        st.sampled_from(("Content-Type", "Accept", "Content-Encoding", "Origin", "Cookie", "Upgrade", "Connection")),
        st.sampled_from(
            (
                *("application/json", "image/jpeg", "image/png;q=1", "multipart/form-data", "gzip", "identity", "null"),
                *("multipart/form-data; boundary=x", "multipart/form-data; boundary=" + "x" * 300, "http://[", "close"),
                *("image/*;q=" + "9" * 400, ",,,;;;==", "keep-alive", "h2c", "websocket", "http://localhost", "*/*"),
            )
        ),
    ),
    st.tuples(
        st.just("Authorization"), st.sampled_from((f"Bearer {TOKEN}", "Bearer", "Basic eA==", "Bearer \xff", " "))
    ),
    st.tuples(st.text(max_size=12), st.text(max_size=40)),
)
_PIECES = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"\xff",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffffffff\r\n",
)
_CHUNKS = (
    b"5\r\nhello\r\n0\r\n\r\n",
    b"-1\r\n",
    b"0\r\n",
    b"5;x=y\r\nhello\r\n",
    b"zz\r\n",
    b"FFFFFFFFFFFFFFFF1\r\n",
    b"5\r\nhel",
)


@st.composite
def http_requests(draw: st.DrawFn) -> bytes:
    """Return a strategy for requests that are nearly HTTP, some of them with edits."""
    target = draw(st.sampled_from(_TEMPLATES))
    target = target.format(*(draw(_SEGMENTS) for _ in range(target.count("{}"))))
    fields = draw(st.lists(_FIELDS, max_size=6))
    if draw(st.integers(0, 5)):
        fields.append(("Host", "localhost"))
    if draw(st.integers(0, 3)):
        fields.append(("Authorization", f"Bearer {TOKEN}"))
    body = draw(st.sampled_from((b"", *_CHUNKS)) | bodies().map(lambda found: found[0]) | st.binary(max_size=40))
    if draw(st.integers(0, 2)):
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{draw(st.sampled_from(_METHODS))} {target} {draw(st.sampled_from(_VERSIONS))}"]
    lines += [f"{name}: {value}" for name, value in fields]
    head = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass")
    return draw(edited(head + body, 3)) if draw(st.integers(0, 2)) == 0 else head + body


@st.composite
def edited(draw: st.DrawFn, data: bytes, most: int) -> bytes:
    """Return a strategy for bytes with up to `most` pieces inserted, removed, or put in place of others."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 9))
        content[at : at + length] = draw(st.sampled_from(_PIECES) | st.binary(max_size=4) | st.just(b""))
    return bytes(content)


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, 1, -1, 2**31, 2**63, 2**64, 10**25, 10**400, 1e308, 1e-320, float("nan"), float("inf"), 3e38)),
    st.integers(),
    st.floats(),
    st.sampled_from((*_ODD_TEXTS, *_ODD_NUMBERS, "input", "image", "FP32", "BYTES", "logits", "/9j/4AAQ", "\ud800")),
    st.text(max_size=9),
)
_JSON = st.recursive(
    _VALUES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
_PARAMETERS = st.dictionaries(
    st.sampled_from(
        (
            *("binary_data_size", "binary_data", "binary_data_output", "content_type", "classification", "top_k"),
            *("shared_memory_region", "confidence", "iou", "max_detections", "x"),
        )
    ),
    _JSON,
    max_size=3,
)
_SHAPES = st.one_of(
    st.just(_SHAPE),
    st.lists(st.sampled_from((0, 1, 3, 8, 64, 65, -1, 2**31, 2**63, 10**30, 1.0, True, "1", None)), max_size=6),
    _JSON,
)
_DATA = st.one_of(
    st.just([0.5] * 192),
    st.just([[[[0.5] * 8] * 8] * 3]),
    st.lists(_VALUES, max_size=6),
    st.builds(lambda value: [value] * 192, _VALUES),
    st.builds(lambda value, place: [*[0.5] * place, value, *[0.5] * (191 - place)], _VALUES, st.integers(0, 191)),
    st.just(["A" * 50_000, *[1] * 3000]),
    _JSON,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """Return a strategy for bodies of inference requests, and what the header says of the length of their JSON."""
    tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": _SHAPE, "data": [0.5] * 192}
    tail = b""
    if draw(st.booleans()):
        tail = draw(
            st.sampled_from((bytes(768), b"", bytes(767), b"\xff" * 768, b"\0\0\xc0\x7f" * 192, bytes(100_000)))
        )
        tensor["parameters"] = {
            "binary_data_size": draw(st.sampled_from((768, 0, -1, 2**63, 10**30, len(tail))) | _JSON)
        }
        del tensor["data"]
    request: dict[str, Any] = {"inputs": [tensor]}
    for _ in range(draw(st.integers(0, 3))):
        _change(draw, request, tensor)
    text = json.dumps(request).encode()
    if draw(st.integers(0, 3)) == 0:
        text = draw(edited(text, 3))
    if draw(st.integers(0, 30)) == 0:
        text = draw(
            st.sampled_from((b"[" * 100_000, b'{"inputs":' * 5000, b"9" * 5000, b'"\\ud800"', b"", b"\xef\xbb\xbf{}"))
        )
    told = draw(st.sampled_from((len(text), len(text), None if not tail else len(text), 0, 1, -1, 10**17, 10**30)))
    return text + tail, told


def _change(draw: st.DrawFn, request: dict[str, Any], tensor: dict[str, Any]) -> None:
    kind = draw(st.integers(0, 8))
    if kind == 0:
        tensor["shape"] = draw(_SHAPES)
    elif kind == 1:
        tensor["data"] = draw(_DATA)
    elif kind == 2:
        tensor["parameters"] = draw(_PARAMETERS | _JSON)
    elif kind == 3:
        request["parameters"] = draw(_PARAMETERS | _JSON)
    elif kind == 4:
        output = st.fixed_dictionaries({"name": st.sampled_from(("logits", "labels", "x")) | _JSON})
        request["outputs"] = draw(st.lists(output, max_size=3) | _JSON)
    elif kind == 5:
        tensor["name"] = draw(st.sampled_from(("image", "pixels", "input")) | _JSON)
        tensor["datatype"] = draw(st.sampled_from(("BYTES", "UINT8", "FP16", "FP64", "INT8")) | _JSON)
    elif kind == 6:
        request["id"] = draw(_JSON)
    elif kind == 7:
        request["inputs"] = draw(st.lists(st.just(tensor) | _JSON, max_size=3) | _JSON)
    else:
        request[draw(st.text(max_size=5))] = draw(_JSON)


def inference_requests() -> st.SearchStrategy[bytes]:
    """Return a strategy for well-formed HTTP requests whose bodies are nearly those of the protocol."""

    def request(found: tuple[bytes, int | None], query: str, fields: list[str]) -> bytes:
        body, told = found
        length = [] if told is None else [f"Inference-Header-Content-Length: {told}"]
        lines = [f"POST /v2/models/{MODEL}/infer{query} HTTP/1.1", "Host: localhost", *length, *fields]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("utf-8", "surrogatepass")
        return head + body

    queries = st.sampled_from(
        ("", "", "", "?top_k=" + "9" * 26, "?top_k=2&outputs=labels", "?outputs=%00", "?top_k=nan", "?x=1")
    )
    fields = st.sampled_from(
        (
            [],
            [],
            [],
            ["Content-Type: image/jpeg"],
            ["Content-Type: multipart/form-data; boundary=x"],
            ["Accept: image/png"],
        )
    )
    return st.builds(request, bodies(), queries, fields)


@st.composite
def frame_streams(draw: st.DrawFn) -> list[bytes]:
    """Return a strategy for what a child may send to the supervisor: frames with odd headers, in pieces, with edits."""
    pieces = [draw(_frames()) for _ in range(draw(st.integers(0, 4)))]
    stream = b"".join(pieces)
    if draw(st.booleans()):
        stream = draw(edited(stream, 3))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=3)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@st.composite
def _frames(draw: st.DrawFn) -> bytes:
    body = draw(st.binary(max_size=20))
    header: Any = {"id": 1, "status": 200, "seconds": 0.1, "json_bytes": None, "work": None, "body_bytes": len(body)}
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from((*header, "kind", "images", "media_type", "x")))
        odd = st.sampled_from(("parked", "observed", "ready", [1, 2, 3, 4, 5, 6, []], [1], 10**30, -1, 2, 1e400, True))
        header[key] = draw(odd | _JSON)
    if draw(st.integers(0, 9)) == 0:
        header = draw(_JSON)
    text = json.dumps(header).encode()
    size = draw(st.sampled_from((len(text), len(text), len(text), 0, 2**32 - 1, 1 << 20, len(text) + 1)))
    return size.to_bytes(4, "big") + text + body


@st.composite
def grpc_messages(draw: st.DrawFn) -> bytes:
    """Return a strategy for messages of ModelInfer with odd values, some of them with edits."""
    from service.grpc.messages import ModelInferRequest

    message = ModelInferRequest(model_name=draw(st.text(max_size=5)), id=draw(st.text(max_size=5)))
    odd = st.integers(-(2**63), 2**63 - 1)
    for _ in range(draw(st.integers(0, 2))):
        tensor = message.inputs.add(name=draw(st.sampled_from(("input", "image", "x"))))
        tensor.datatype = draw(st.sampled_from(("FP32", "BYTES", "UINT8", "INT64", "BOOL", "FP16", "x", "")))
        tensor.shape.extend(draw(st.lists(odd | st.just(1), max_size=5)))
        contents = tensor.contents
        kind = draw(st.integers(0, 7))
        if kind == 0:
            contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=5)))
        elif kind == 1:
            contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=5), max_size=5)))
        elif kind == 2:
            contents.uint_contents.extend(draw(st.lists(st.integers(0, 2**32 - 1), max_size=5)))
        elif kind == 3:
            contents.bool_contents.extend(draw(st.lists(st.booleans(), max_size=5)))
        _odd_parameters(draw, tensor)
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=9), max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        _odd_parameters(draw, message.outputs.add(name=draw(st.text(max_size=5))))
    _odd_parameters(draw, message)
    raw: bytes = message.SerializeToString()
    return draw(edited(raw, 4)) if draw(st.booleans()) else raw


def _odd_parameters(draw: st.DrawFn, owner: Any) -> None:
    for name in draw(st.lists(st.sampled_from(("binary_data_size", "shared_memory_region", "x", "")), max_size=2)):
        parameter = owner.parameters[name]
        kind = draw(st.integers(0, 4))
        if kind == 0:
            parameter.int64_param = draw(st.integers(-(2**63), 2**63 - 1))
        elif kind == 1:
            parameter.double_param = draw(st.floats())
        elif kind == 2:
            parameter.string_param = draw(st.text(max_size=5))
        elif kind == 3:
            parameter.bool_param = draw(st.booleans())
