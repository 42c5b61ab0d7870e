"""Closed load keeps its number of requests in flight, and counts what fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving.closed_load import GrpcClient, HttpClient, request_bytes, response_in
from benchmarks.serving.load import Call

BODY = bytes(range(256)) * 20_000  # larger than the buffers of a socket


class Handler(BaseHTTPRequestHandler):
    """Answers with the length of the body, once `together` requests have arrived; drops connections on /drop."""

    protocol_version = "HTTP/1.1"
    together = threading.Barrier(1)
    drops: list[str]
    intact: list[bool]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.drops:
            self.drops.pop()
            self.close_connection = True
            return
        self.intact.append(body == BODY)
        self.together.wait(60)
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"answer")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(together: int = 1, drops: int = 0) -> Iterator[tuple[str, type[Handler]]]:
    found: dict[str, object] = {"together": threading.Barrier(together), "drops": ["drop"] * drops, "intact": []}
    handler = type("Configured", (Handler,), found)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", handler
        finally:
            listening.shutdown()
            thread.join()


def test_as_many_requests_are_in_flight_as_wanted():
    with server(together=3) as (address, handler):  # answers only if three are in flight
        client = HttpClient(address, Call("/", BODY), at_once=3)
        sent = client.send(9)
        client.close()
    assert [(answer.status, answer.body) for answer in sent.answers] == [(200, b"answer")] * 9
    assert handler.intact == [True] * 9
    assert {answer.connection for answer in sent.answers} == {0, 1, 2}
    assert sent.client_s > 0


def test_one_connection_is_used_again():
    with server() as (address, handler):
        client = HttpClient(address, Call("/", BODY))
        assert [len(client.send(requests).answers) for requests in (1, 2)] == [1, 2]
        client.close()
    assert handler.intact == [True] * 3


def test_a_dropped_connection_is_a_failure_and_is_opened_again():
    with server(drops=1) as (address, _):
        client = HttpClient(address, Call("/", BODY))
        assert [answer.failed for answer in client.send(3).answers] == [True, False, False]
        client.close()


def test_an_error_response_is_a_failure():
    with server() as (address, _):
        client = HttpClient(address, Call("/missing", BODY))
        (answer,) = client.send(1).answers
        client.close()
    assert (answer.status, answer.failed) == (404, True)


def test_a_request_has_its_length_and_its_headers():
    text = request_bytes(Call("/path", b"body", {"Kind": "test"}), "host:80")
    assert text == b"POST /path HTTP/1.1\r\nHost: host:80\r\nContent-Length: 4\r\nKind: test\r\n\r\nbody"


@given(body=st.binary(max_size=50), cut=st.integers(min_value=1, max_value=200), name=st.sampled_from(["C", "c"]))
def test_a_response_is_read_once_it_is_complete(body: bytes, cut: int, name: str):
    whole = f"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n{name}ontent-length: {len(body)}\r\n\r\n".encode() + body
    assert response_in(whole) == (503, body)
    assert response_in(whole[:-cut]) is None


def test_a_response_without_a_length_is_rejected():
    with pytest.raises(ValueError, match="no Content-Length"):
        response_in(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


@contextmanager
def grpc_server(together: int) -> Iterator[str]:
    """Return the sum of the tensor, once `together` requests have arrived; reject the model "missing"."""
    grpc = pytest.importorskip("grpc")
    triton = pytest.importorskip("tritonclient.grpc")
    arrived = threading.Barrier(together)

    class Servicer(triton.service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request, context):  # noqa: N802 - the name in the protocol
            arrived.wait(60)
            if request.model_name == "missing":
                context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
            assert request.raw_input_contents[0] == np.ones((1, 2), np.float32).tobytes()
            return triton.service_pb2.ModelInferResponse(model_name=request.model_name)

    with ThreadPoolExecutor(together) as threads:
        listening = grpc.server(threads)
        triton.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), listening)
        port = listening.add_insecure_port("127.0.0.1:0")
        listening.start()
        yield f"127.0.0.1:{port}"
        listening.stop(None).wait()


@pytest.mark.parametrize("at_once", [1, 3])
def test_grpc_requests_are_in_flight_together(at_once: int):
    with grpc_server(together=at_once) as address:
        for model, failed in (("net", False), ("missing", True)):
            client = GrpcClient(address, model, "input", "FP32", np.ones((1, 2), np.float32), at_once)
            sent = client.send(6)
            client.close()
            assert [answer.failed for answer in sent.answers] == [failed] * 6
