"""Hundreds of requests that no client sends, to a running daemon: no status 500, no traceback, and it goes on serving.

`python -m benchmarks.faults --only fuzz_requests` tries thousands. Requests that once were faults are in
tests/faults/corpus/requests/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.requests import MODEL, TOKEN, frame_streams, grpc_messages, http_requests, inference_requests
from benchmarks.fuzz.sockets import Batches, faults_of
from edged.artifacts.store import ModelStore
from service.ipc import frames
from service.ipc.messages import RequestError
from service.serving.channel import Channel, ChannelOptions, ServingError
from tests.support.artifacts import write_untrained
from tests.support.daemon import Daemon
from tests.support.requests import TENSOR

CORPUS = Path(__file__).parent / "corpus" / "requests"
INPUTS, AT_ONCE = 200, 50
QUIET = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(QUIET, max_examples=100)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "images").mkdir()
    (folder / "token").write_text(TOKEN)
    serve = {"token_file": str(folder / "token"), "head_timeout_s": 0.5, "body_timeout_s": 0.5}
    models = [{"name": MODEL, "calibration": {"dir": str(folder / "images")}}]
    daemon = Daemon(folder, folder / "images", models=models, serve=serve)
    store = ModelStore(daemon.state / "models")
    write_untrained(daemon.state / MODEL)
    store.switch(MODEL, store.publish(MODEL, daemon.state / MODEL))
    try:
        yield daemon.start()
        log = daemon.log.read_text()
        assert "Traceback" not in log
        assert "a request failed" not in log
    finally:
        daemon.close()


def serves(daemon: Daemon) -> None:
    assert daemon.post(f"/v2/models/{MODEL}/infer", json=TENSOR).status_code == 200
    assert daemon.status()["models"][0]["restarts"] == 0


@pytest.mark.parametrize("strategy", [http_requests(), inference_requests()], ids=["http", "inference"])
def test_requests_that_no_client_sends(daemon: Daemon, strategy: st.SearchStrategy[bytes]) -> None:
    batches = Batches(daemon.status()["address"], AT_ONCE)

    @settings(QUIET, max_examples=INPUTS)
    @given(strategy)
    def send(raw: bytes) -> None:
        batches.add(raw)

    send()
    batches.flush()
    assert batches.faults == []
    assert batches.sent >= INPUTS
    serves(daemon)


def test_requests_that_once_were_faults(daemon: Daemon) -> None:
    found = sorted(CORPUS.glob("*.txt"))
    assert found
    assert faults_of(daemon.status()["address"], [path.read_bytes() for path in found]) == []
    serves(daemon)


@MANY
@given(frame_streams())
def test_a_stream_of_a_child_ends_in_frames_or_in_a_frame_error(pieces: list[bytes]) -> None:
    decoder = frames.Decoder()
    with contextlib.suppress(frames.FrameError):
        for piece in pieces:
            for header, body in decoder.feed(piece):
                assert isinstance(header, dict)
                assert len(body) == header["body_bytes"]


@MANY
@given(frame_streams())
def test_a_child_that_sends_anything_costs_its_own_requests_and_nothing_else(pieces: list[bytes]) -> None:
    unhandled: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        ours, theirs = socket.socketpair()
        channel = Channel("net", ChannelOptions(8))
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        asked = [asyncio.create_task(channel.request(b"{}", 5)) for _ in range(2)]
        await asyncio.sleep(0)
        with theirs, contextlib.suppress(OSError):
            for piece in pieces:
                theirs.sendall(piece)
        results = await asyncio.gather(*asked, channel.pump(), return_exceptions=True)
        channel.close()
        for result in results[:2]:
            assert not isinstance(result, BaseException) or isinstance(result, ServingError), repr(result)
        assert results[2] is None or isinstance(results[2], (frames.FrameError, OSError)), repr(results[2])

    asyncio.run(main())
    assert unhandled == []


@MANY
@given(grpc_messages())
def test_messages_over_grpc_become_json_or_a_request_error(raw: bytes) -> None:
    pytest.importorskip("google.protobuf", reason="grpcio, of the extra 'grpc', is not installed")
    from service.grpc.requests import parse_message, parts_of

    with contextlib.suppress(RequestError):
        parts = parts_of(parse_message(raw))
        assert isinstance(json.loads(parts.header), dict)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
