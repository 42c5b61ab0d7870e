"""A generation that batches requests, driven over its socket in this process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from io import BufferedRWPair
from pathlib import Path
from typing import Any

import pytest

from edged.artifacts.engines import engine_of, open_executor
from edged.artifacts.reader import read_artifact
from service.inference.model import ServedModel
from service.inference.server import Server
from service.ipc import frames
from service.ipc.options import Batching
from tests.support.artifacts import write_untrained

TIMEOUT_S = 60.0


def body_of(value: float, images: int = 1) -> bytes:
    tensor = {"name": "input", "datatype": "FP32", "shape": [images, 3, 8, 8], "data": [value] * images * 192}
    return json.dumps({"id": f"{value}", "inputs": [tensor]}).encode()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "1"
    write_untrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(artifact: Path) -> ServedModel:
    opened = read_artifact(artifact)
    return ServedModel(opened, open_executor(opened, engine_of(opened, "auto"), 1), "digits", "1", max_batch=4)


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, Any, Any]]:
    """Yields a socket, its file, and the file of its other end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    with ours, theirs, ours.makefile("rwb") as client, theirs.makefile("rwb") as server:
        yield ours, client, server


def send(client: BufferedRWPair, identity: int, body: bytes) -> None:
    frames.write_blocking(client, {"id": identity, "json_bytes": None}, body)


def receive(client: BufferedRWPair) -> tuple[dict[str, Any], dict[str, Any]]:
    frame = frames.read_blocking(client)
    assert frame is not None
    return frame[0], json.loads(frame[1])


def test_replies_have_the_ids_of_their_requests_and_each_batch_is_reported_once(
    served: ServedModel, connection: tuple[socket.socket, Any, Any]
) -> None:
    ours, client, stream = connection
    server = threading.Thread(target=Server(stream, served, Batching(4, TIMEOUT_S)).run, daemon=True)
    for number in range(2):
        send(client, number, body_of(number / 10))
    send(client, 2, b"no JSON")
    for number in range(3, 5):
        send(client, number, body_of(number / 10))
    server.start()
    header, answer = receive(client)  # it does not wait for the others
    assert (header["id"], header["status"]) == (2, 400)
    assert "not JSON" in answer["error"]
    told = [receive(client) for _ in range(4)]  # four images are a batch: nobody waits for the delay
    assert [header["id"] for header, _ in told] == [0, 1, 3, 4]
    assert [answer["id"] for _, answer in told] == ["0.0", "0.1", "0.3", "0.4"]
    assert [header["images"] for header, _ in told] == [4, 0, 0, 0]
    assert all(0 < header["seconds"] < TIMEOUT_S for header, _ in told)
    ours.shutdown(socket.SHUT_WR)
    server.join(TIMEOUT_S)
    assert not server.is_alive()


def test_without_batching_one_thread_answers_requests_in_order(
    served: ServedModel, connection: tuple[socket.socket, Any, Any]
) -> None:
    ours, client, stream = connection
    server = threading.Thread(target=Server(stream, served, Batching()).run, daemon=True)
    threads = threading.active_count()
    server.start()
    for number, body in enumerate([body_of(0.1), b"no JSON", body_of(0.2)]):
        send(client, number, body)
    headers = [receive(client)[0] for _ in range(3)]
    assert [(header["id"], header["status"], header["images"]) for header in headers] == [
        (0, 200, 0),
        (1, 400, 0),
        (2, 200, 0),
    ]
    assert threading.active_count() == threads + 1
    ours.shutdown(socket.SHUT_WR)
    server.join(TIMEOUT_S)
    assert not server.is_alive()


def test_an_exclusive_request_is_computed_alone(
    served: ServedModel, connection: tuple[socket.socket, Any, Any]
) -> None:
    ours, client, stream = connection
    server = threading.Thread(target=Server(stream, served, Batching(4, TIMEOUT_S)).run, daemon=True)
    send(client, 0, body_of(0.1))
    frames.write_blocking(client, {"id": 1, "json_bytes": None, "alone": True}, body_of(0.2))
    server.start()
    assert [receive(client)[0]["images"] for _ in range(2)] == [1, 1]
    ours.shutdown(socket.SHUT_RDWR)
    server.join(TIMEOUT_S)
