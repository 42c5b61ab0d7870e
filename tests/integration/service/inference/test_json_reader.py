"""The process that parses large JSON, and a generation that serves meanwhile."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edged.artifacts.engines import engine_of, open_executor
from edged.artifacts.reader import read_artifact
from service.inference.json_reader import LARGE_BYTES, JsonReader, is_large
from service.inference.model import ServedModel
from service.inference.server import Server
from service.ipc import frames
from service.ipc.messages import Body, RequestError
from service.ipc.options import Batching
from tests.support.artifacts import write_untrained

TIMEOUT_S = 120.0
MIB = 1 << 20


@pytest.fixture
def reader() -> Iterator[JsonReader]:
    reader = JsonReader(longest_s=TIMEOUT_S)
    yield reader
    reader.close()


def parsers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "service.inference.json_parser" in child.cmdline()
    ]


def large(value: float) -> bytes:
    """A request whose JSON is large although its tensor is not."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [value] * 192}
    return json.dumps({"id": str(value), "inputs": [tensor]}).encode() + b" " * LARGE_BYTES


def test_numbers_arrive_as_an_array(reader: JsonReader) -> None:
    text = json.dumps({"id": "7", "inputs": [{"data": [[0.5, -1], [2, 3]]}]}).encode()
    for given in (text, memoryview(text)):
        request = reader.read(given)
        assert request["id"] == "7"
        assert request["inputs"][0]["data"].tolist() == [[0.5, -1], [2, 3]]
    [parser] = parsers()
    assert parser.nice() >= 10
    reader.close()
    assert parsers() == []
    assert reader.read(text)["id"] == "7"  # another one is started


def test_json_that_would_take_too_much_memory_is_refused(reader: JsonReader) -> None:
    with pytest.raises(RequestError, match="over 16 times their size; send tensors as bytes") as caught:
        reader.read(b'{"x": [' + b"[]," * (6 * MIB) + b"0]}")
    assert caught.value.status == 413
    assert reader.read(b'{"id": "7"}') == {"id": "7"}


def test_a_parser_that_is_killed_or_too_slow_costs_one_request(reader: JsonReader) -> None:
    assert reader.read(b"{}") == {}
    parsers()[0].kill()
    with pytest.raises(RequestError, match="were not parsed") as caught:
        reader.read(b"{}")
    assert caught.value.status == 503
    assert reader.read(b"{}") == {}
    slow = JsonReader(longest_s=0.0)
    with pytest.raises(RequestError, match="were not parsed"):
        slow.read(b" " * MIB + b"{}")
    slow.close()


def test_what_is_large() -> None:
    text = b" " * (LARGE_BYTES + 1)
    assert is_large(Body(text))
    assert is_large(Body(text + b"tensor", len(text)))
    assert not is_large(Body(text[:-1]))
    assert not is_large(Body(text, 10))
    assert not is_large(Body(text, 0))
    assert not is_large(Body(text[:10], len(text)))  # refused without reading it


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder: Path = tmp_path_factory.mktemp("published") / "1"
    write_untrained(folder)
    opened = read_artifact(folder)
    return ServedModel(opened, open_executor(opened, engine_of(opened, "auto"), 1), "digits", "1", max_batch=4)


@pytest.mark.parametrize("batching", [Batching(), Batching(4, 0.0)])
def test_requests_are_answered_while_large_json_is_parsed(served: ServedModel, batching: Batching) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    with ours, theirs, ours.makefile("rwb") as client, theirs.makefile("rwb") as stream:
        server = threading.Thread(target=Server(stream, served, batching).run, daemon=True)
        server.start()

        def send(identity: int, body: bytes) -> None:
            frames.write_blocking(client, {"id": identity, "json_bytes": None}, body)

        def receive() -> tuple[dict[str, Any], Any]:
            frame = frames.read_blocking(client)
            assert frame is not None
            return frame[0], json.loads(frame[1] or b"null")

        send(0, large(0.5).rstrip())
        expected = receive()[1]["outputs"]
        send(1, large(0.5))
        assert receive()[0] == {"kind": "parked", "id": 1, "body_bytes": 0}
        header, answer = receive()
        assert (header["id"], header["status"], answer["outputs"]) == (1, 200, expected)
        [parser] = parsers()
        parser.suspend()
        send(2, large(0.25))
        send(3, b"no JSON" + b" " * LARGE_BYTES)
        assert [receive()[0]["id"] for _ in range(2)] == [2, 3]
        for number in range(4, 8):
            send(number, large(number).rstrip())
            header, answer = receive()
            assert (header["id"], answer["id"]) == (number, str(number))
        parser.resume()
        answers = {header["id"]: (header["status"], answer) for header, answer in (receive(), receive())}
        assert (answers[2][0], answers[2][1]["id"]) == (200, "0.25")
        assert (answers[3][0], "not JSON" in answers[3][1]["error"]) == (400, True)
        parser.kill()
        ours.shutdown(socket.SHUT_RDWR)
        server.join(TIMEOUT_S)
        assert not server.is_alive()
        os.waitpid(parser.pid, 0)
