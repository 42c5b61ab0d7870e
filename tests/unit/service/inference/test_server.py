"""A generation that batches, driven over its socket: in this process, and as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BufferedRWPair
from pathlib import Path
from typing import Any

import pytest

from edged.artifacts.reader import read_artifact
from service.inference.model import ServedModel
from service.inference.server import BatchServer
from service.ipc import frames
from service.ipc.options import Batching
from service.serving.channel import DeadlineError, NotStartedError, ServingError
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation
from tests.support.artifacts import write_untrained
from tests.support.processes import busy, slow_request

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
    return ServedModel(read_artifact(artifact), "digits", "1", max_batch=4)


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, Any, Any]]:
    """A socket, its file, and the file of its other end."""
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


def test_answers_carry_the_ids_of_their_requests_and_tell_of_each_pass_once(
    served: ServedModel, connection: tuple[socket.socket, Any, Any]
) -> None:
    ours, client, stream = connection
    server = threading.Thread(target=BatchServer(stream, served, Batching(4, TIMEOUT_S)).run, daemon=True)
    for number in range(2):
        send(client, number, body_of(number / 10))
    send(client, 2, b"no JSON")
    for number in range(3, 5):
        send(client, number, body_of(number / 10))
    server.start()
    header, answer = receive(client)  # it does not wait for the others
    assert (header["id"], header["status"]) == (2, 400)
    assert "no JSON" in answer["error"]
    told = [receive(client) for _ in range(4)]  # four images are a batch: nobody waits for the delay
    assert [header["id"] for header, _ in told] == [0, 1, 3, 4]
    assert [answer["id"] for _, answer in told] == ["0.0", "0.1", "0.3", "0.4"]
    assert [header["images"] for header, _ in told] == [4, 0, 0, 0]
    assert all(0 < header["seconds"] < TIMEOUT_S for header, _ in told)
    ours.shutdown(socket.SHUT_WR)
    server.join(TIMEOUT_S)
    assert not server.is_alive()


def run(artifact: Path, test: Any, batching: Batching, queue: int = 64, **more: Any) -> list[int]:
    """Run `test` on a generation that is up; returns how many images were computed together each time."""
    sizes: list[int] = []

    async def main() -> None:
        options: dict[str, Any] = {"threads": 1, "queue": queue, "batching": batching, **more}
        async with ForkServer() as fork_server:
            generation = Generation("digits", 1, artifact, fork_server, on_batch=sizes.append, **options)
            await generation.start(TIMEOUT_S)
            try:
                await asyncio.wait_for(test(generation), TIMEOUT_S)
            finally:
                await generation.stop()

    asyncio.run(main())
    return sizes


def test_requests_of_several_clients_are_computed_together(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        values = [number / 20 for number in range(20)]
        alone = [json.loads((await generation.infer(body_of(value), TIMEOUT_S)).body) for value in values]
        replies = await asyncio.gather(*(generation.infer(body_of(value), TIMEOUT_S) for value in values))
        for value, reply, expected in zip(values, replies, alone, strict=True):
            answer = json.loads(reply.body)
            assert answer["id"] == str(value)
            assert answer["outputs"][0]["data"] == pytest.approx(expected["outputs"][0]["data"], rel=1e-4, abs=1e-4)

    sizes = run(artifact, test, Batching(4))
    assert sum(sizes) == 40
    assert sizes[:20] == [1] * 20  # one after another, without any delay
    assert 1 < max(sizes[20:]) <= 4


def test_a_batch_waits_no_longer_than_its_delay(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        reply = await generation.infer(body_of(0.5), TIMEOUT_S)
        assert reply.status == 200
        assert reply.seconds < 3  # the wait does not count as work

    assert run(artifact, test, Batching(8, 3.0)) == [1]


def test_deadlines_drain_and_a_killed_process(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        under_way = [asyncio.create_task(generation.infer(body_of(0.1), TIMEOUT_S)) for _ in range(12)]
        await asyncio.sleep(0)
        assert generation.inflight == 12
        assert await generation.drain(TIMEOUT_S)
        assert all(task.done() and task.result().status == 200 for task in under_way)

        assert generation.pid is not None
        os.kill(generation.pid, signal.SIGSTOP)  # so that it cannot answer
        late = [asyncio.create_task(generation.infer(body_of(0.1), 0.05)) for _ in range(12)]
        assert all(isinstance(error, DeadlineError) for error in await asyncio.gather(*late, return_exceptions=True))
        assert generation.inflight == 0
        asked = [asyncio.create_task(generation.infer(body_of(0.1), TIMEOUT_S)) for _ in range(12)]
        await asyncio.sleep(0)
        os.kill(generation.pid, signal.SIGKILL)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [NotStartedError] * 12

    run(artifact, test, Batching(4))


def test_what_a_killed_process_has_taken_up_is_told_from_the_rest(artifact: Path) -> None:
    async def test(generation: Generation) -> None:
        assert generation.pid is not None
        asked = [asyncio.create_task(generation.infer(slow_request(), TIMEOUT_S)) for _ in range(3)]
        await asyncio.sleep(0)
        begun = busy(generation.pid)
        while not begun():
            await asyncio.sleep(0.01)
        os.kill(generation.pid, signal.SIGKILL)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [ServingError, NotStartedError, NotStartedError]

    run(artifact, test, Batching(4))  # its reader decodes one after another


def test_it_computes_with_its_threads_whatever_the_reader_computes_with() -> None:
    code = "import threading, torch; from service.inference.main import compute_with; compute_with(2)\n"
    code += "reader = threading.Thread(target=torch.set_num_threads, args=(1,)); reader.start(); reader.join()\n"
    code += "print(torch.get_num_threads())"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as the fork server has it
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "2\n"


def test_a_probe_is_computed_alone(served: ServedModel, connection: tuple[socket.socket, Any, Any]) -> None:
    ours, client, stream = connection
    server = threading.Thread(target=BatchServer(stream, served, Batching(4, TIMEOUT_S)).run, daemon=True)
    send(client, 0, body_of(0.1))
    frames.write_blocking(client, {"id": 1, "json_bytes": None, "alone": True}, body_of(0.2))
    server.start()
    assert [receive(client)[0]["images"] for _ in range(2)] == [1, 1]
    ours.shutdown(socket.SHUT_RDWR)
    server.join(TIMEOUT_S)
