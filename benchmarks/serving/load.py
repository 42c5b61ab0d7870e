"""Requests at a steady rate over keep-alive connections, whatever becomes of them: used by benchmarks.serving.

The load is open: each request has a time at which it is due, and its latency counts from then. A server that stands
still for a second is seen to keep all requests of that second waiting, not just those that happened to be on their way.
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
    """One POST, sent again and again."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came of one request. Times are those of time.monotonic().

    Attributes:
        connection: Which of the pool.
        due: When it was to be sent.
        sent: When it was sent: later if its connection still waited for the answer before.
        done: When the answer was there.
        status: Of HTTP; 0 if the connection broke.
        body: Of the answer, or the error.
        json_bytes: How much of the body is JSON; None for all.
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
        """Whether there is no result."""
        return self.status != 200

    @property
    def latency_s(self) -> float:
        """From when it was due."""
        return self.done - self.due

    @property
    def header(self) -> dict[str, Any]:
        """The JSON of the answer."""
        parsed: dict[str, Any] = json.loads(self.body[: self.json_bytes])
        return parsed

    @property
    def version(self) -> str:
        """The model version that the answer names."""
        return str(self.header.get("model_version"))


class Connection:
    """One keep-alive connection, opened again when it breaks.

    Args:
        address: URL of the server.
        number: For the answers.
    """

    def __init__(self, address: str, number: int = 0) -> None:
        parts = urlsplit(address)
        self._number = number
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)

    def ask(self, call: Call, due: float | None = None) -> Answer:
        """Send a request and wait for its answer."""
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
        """Close it."""
        self._http.close()


class Load:
    """A context in which requests go out.

    Args:
        address: URL of the server.
        call: What is sent.
        rate: Requests a second.
        connections: Each has every n-th request, so that none lies idle.

    Attributes:
        answers: So far, in order of completion.
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
                if due >= self._end:  # what was due before the end is sent, however late
                    return
                self.answers.append(connection.ask(self._call, due))


@dataclass(frozen=True)
class Latency:
    """Of some answers, in milliseconds."""

    p50: float
    p99: float
    worst: float


def latency(answers: Sequence[Answer]) -> Latency:
    """Failed ones count, too: they took their time.

    Raises:
        ValueError: There are none.
    """
    if not answers:
        raise ValueError("no request was sent in this time")
    values = 1000 * np.array([answer.latency_s for answer in answers])
    return Latency(*(round(float(value), 2) for value in (*np.quantile(values, (0.5, 0.99)), values.max())))


def between(answers: Sequence[Answer], start: float, end: float) -> list[Answer]:
    """Those that were due or under way within a time."""
    return [answer for answer in answers if answer.due <= end and answer.done >= start]
