"""Requests with a fixed number in flight: each response is followed by the next request. Used by benchmarks.serving.

The clients take as little time as they can, because they share the cores with the servers: bytes that are prepared
once, one thread, and no more parsing of a response than its end needs. `Sent.client_s` is what they take.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from benchmarks.serving.load import TIMEOUT_S, Answer, Call

_RECEIVE_BYTES = 1 << 16
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Sent:
    """The outcome of some requests.

    Attributes:
        answers: Outcomes in order of completion.
        client_s: CPU seconds that the client took for all of them, in user space and in the kernel.
    """

    answers: list[Answer]
    client_s: float


class Client(Protocol):
    """Something that sends one request repeatedly."""

    def send(self, requests: int) -> Sent:
        """Send so many requests and return their outcomes."""

    def close(self) -> None:
        """Close all connections."""


class HttpClient:
    """Keep-alive connections that are served by one thread.

    Args:
        address: URL of the server.
        call: Request to send.
        at_once: Number of connections, each with one request in flight.
    """

    def __init__(self, address: str, call: Call, at_once: int = 1) -> None:
        self._exchanges = [_Exchange(address, call, number) for number in range(at_once)]

    def send(self, requests: int) -> Sent:
        """Send so many requests and return their outcomes.

        Raises:
            TimeoutError: No connection can be used for a long time.
        """
        answers: list[Answer] = []
        start = time.process_time()
        with selectors.DefaultSelector() as ready:
            left = requests
            for exchange in self._exchanges[:requests]:
                exchange.start(ready)
                left -= 1
            while len(answers) < requests:
                events = ready.select(TIMEOUT_S)
                if not events:
                    raise TimeoutError(f"no response within {TIMEOUT_S} s")
                for key, _ in events:
                    answer = key.data.proceed(ready)
                    if answer is not None:
                        answers.append(answer)
                        if left:
                            key.data.start(ready)
                            left -= 1
        return Sent(answers, time.process_time() - start)

    def close(self) -> None:
        """Close all connections."""
        for exchange in self._exchanges:
            exchange.close()


class _Exchange:
    """One connection and its request in flight."""

    def __init__(self, address: str, call: Call, number: int) -> None:
        self._parts = urlsplit(address)
        self._request = memoryview(request_bytes(call, self._parts.netloc))
        self._number = number
        self._socket = self._connect()
        self._position = 0
        self._sent = 0.0
        self._received = bytearray()

    def start(self, ready: selectors.BaseSelector) -> None:
        """Begin to send a request."""
        self._position = 0
        self._received.clear()
        self._sent = time.monotonic()
        ready.register(self._socket, selectors.EVENT_WRITE, self)

    def proceed(self, ready: selectors.BaseSelector) -> Answer | None:
        """Send or receive what is possible without waiting; return the outcome once it is complete."""
        try:
            if self._position < len(self._request):
                self._position += self._socket.send(self._request[self._position :])
                if self._position == len(self._request):
                    ready.modify(self._socket, selectors.EVENT_READ, self)
                return None
            piece = self._socket.recv(_RECEIVE_BYTES)
            if not piece:
                raise ConnectionError("the server closed the connection")
        except OSError as error:
            ready.unregister(self._socket)
            self._socket.close()
            self._socket = self._connect()
            return self._answer(0, repr(error).encode())
        self._received += piece
        found = response_in(self._received)
        if found is None:
            return None
        ready.unregister(self._socket)
        return self._answer(*found)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _answer(self, status: int, body: bytes) -> Answer:
        return Answer(self._number, self._sent, self._sent, time.monotonic(), status, body)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection((self._parts.hostname or "", self._parts.port or 80), TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        return connection


def request_bytes(call: Call, host: str) -> bytes:
    """Return a request as it goes through the connection."""
    headers = {"Host": host, "Content-Length": str(len(call.body)), **call.headers}
    lines = [f"POST {call.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + call.body


def response_in(received: bytes | bytearray) -> tuple[int, bytes] | None:
    """Return the status and the body of a response, or None if it is not complete.

    Raises:
        ValueError: The response does not give the length of its body, as all measured servers do.
    """
    end = received.find(_HEAD_END)
    if end < 0:
        return None
    head = bytes(received[:end])
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            start, length = end + len(_HEAD_END), int(value)
            if len(received) - start < length:
                return None
            return int(head.split(b" ", 2)[1]), bytes(received[start : start + length])
    raise ValueError(f"a response has no Content-Length: {head[:200]!r}")


class GrpcClient:
    """tritonclient's gRPC client, which sends tensors as raw contents.

    Args:
        address: Host and port of the server.
        model: Name of the model.
        name: Name of its input.
        datatype: Datatype of its input.
        values: The tensor.
        at_once: Number of requests in flight.
    """

    def __init__(
        self, address: str, model: str, name: str, datatype: str, values: np.ndarray, at_once: int = 1
    ) -> None:
        from tritonclient import grpc

        self._client = grpc.InferenceServerClient(address)
        self._model = model
        self._at_once = at_once
        tensor = grpc.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        self._inputs = [tensor]

    def send(self, requests: int) -> Sent:
        """Send so many requests and return their outcomes."""
        start = time.process_time()
        answers = self._one_by_one(requests) if self._at_once == 1 else self._together(requests)
        return Sent(answers, time.process_time() - start)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _one_by_one(self, requests: int) -> list[Answer]:
        from tritonclient.utils import InferenceServerException

        answers = []
        for _ in range(requests):
            sent, error = time.monotonic(), None
            try:
                self._client.infer(self._model, self._inputs, client_timeout=TIMEOUT_S)
            except InferenceServerException as failure:
                error = failure
            answers.append(_grpc_answer(sent, error))
        return answers

    def _together(self, requests: int) -> list[Answer]:
        free = threading.Semaphore(self._at_once)
        answers: list[Answer] = []

        def ask() -> None:
            sent = time.monotonic()

            def done(result: Any, error: Exception | None) -> None:
                answers.append(_grpc_answer(sent, error))
                free.release()

            self._client.async_infer(self._model, self._inputs, done, client_timeout=TIMEOUT_S)

        for _ in range(requests):
            free.acquire()
            ask()
        for _ in range(self._at_once):  # the last ones
            free.acquire()
        return answers


def _grpc_answer(sent: float, error: Exception | None) -> Answer:
    return Answer(
        0, sent, sent, time.monotonic(), 200 if error is None else 0, b"" if error is None else repr(error).encode()
    )
