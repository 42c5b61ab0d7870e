"""Requests at a steady rate over keep-alive connections, regardless of their outcome. Used by benchmarks.serving.

The load is open: each request has a time at which it is due, and its latency counts from then. A stall of a second
therefore delays all requests of that second, not only those that were in flight.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 60
_JSON_BYTES = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Call:
    """A POST request that is sent repeatedly."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The outcome of one request. Times are those of time.monotonic().

    Attributes:
        connection: Number of the connection.
        due: Time at which the request was due.
        sent: Time at which it was sent; later than due if its connection still waited for the previous response.
        done: Time at which the response was complete.
        status: HTTP status; 0 if the connection broke.
        body: Body of the response, or the error.
        json_bytes: Length of the JSON at the start of the body; None if all of it is JSON.
    """

    connection: int
    due: float
    sent: float
    done: float
    status: int
    body: bytes
    json_bytes: int | None = None

    @property
    def failed(self) -> bool:
        """Return whether there is no result."""
        return self.status != 200

    @property
    def latency_s(self) -> float:
        """Return the seconds since the request was due."""
        return self.done - self.due

    @property
    def header(self) -> dict[str, Any]:
        """Return the JSON of the response."""
        parsed: dict[str, Any] = json.loads(self.body[: self.json_bytes])
        return parsed

    @property
    def version(self) -> str:
        """Return the model version that the response names."""
        return str(self.header.get("model_version"))


class Connection:
    """A keep-alive connection that is reopened when it breaks.

    Args:
        address: URL of the server.
        number: Number of the connection in the answers.
    """

    def __init__(self, address: str, number: int = 0) -> None:
        parts = urlsplit(address)
        self._number = number
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)

    def ask(self, call: Call, due: float | None = None) -> Answer:
        """Send a request and return its outcome."""
        sent = time.monotonic()
        length = None
        try:
            self._http.request("POST", call.path, call.body, dict(call.headers))
            response = self._http.getresponse()
            status, body = response.status, response.read()
            length = response.getheader(_JSON_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            status, body = 0, repr(error).encode()
        done = time.monotonic()
        when = sent if due is None else due
        return Answer(self._number, when, sent, done, status, body, None if length is None else int(length))

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class Load:
    """A context in which requests are sent.

    Args:
        address: URL of the server.
        call: Request to send.
        rate: Requests per second.
        connections: Number of connections; each sends every n-th request, so that none is idle.

    Attributes:
        answers: Outcomes so far, in order of completion.
    """

    def __init__(self, address: str, call: Call, rate: float, connections: int = 16) -> None:
        self._address = address
        self._call = call
        self._rate = rate
        self._start = 0.0
        self._end = float("inf")
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n, connections)) for n in range(connections)]
        self.answers: list[Answer] = []

    def __enter__(self) -> Load:
        self._start = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = time.monotonic()
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, first: int, step: int) -> None:
        with contextlib.closing(Connection(self._address, first)) as connection:
            for index in itertools.count(first, step):
                due = self._start + index / self._rate
                self._over.wait(max(0.0, due - time.monotonic()))
                if due >= self._end:  # requests that were due before the end are sent, however late
                    return
                self.answers.append(connection.ask(self._call, due))


@dataclass(frozen=True)
class Latency:
    """Latencies in milliseconds."""

    p50: float
    p99: float
    worst: float


def latency(answers: Sequence[Answer]) -> Latency:
    """Return median, p99 and maximum of the latencies; failed requests count, too.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("no request was sent in this time")
    values = 1000 * np.array([answer.latency_s for answer in answers])
    return Latency(*(round(float(value), 2) for value in (*np.quantile(values, (0.5, 0.99)), values.max())))


def between(answers: Sequence[Answer], start: float, end: float) -> list[Answer]:
    """Return the answers to requests that were due or in flight within a time."""
    return [answer for answer in answers if answer.due <= end and answer.done >= start]
