"""Requests to a served model, and a client that never reconnects."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from typing import Any
from urllib.parse import urlsplit

from edged.spec import Fit, InputSpec
from tests.support.tasks import Task

SPEC = InputSpec(4, 5)
LETTERBOX = InputSpec(32, 32, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)
# Overflows inside a network in float, so that its outputs are not finite: the daemon answers 400.
TOO_LARGE = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [3e38] * 192}]}

TENSOR = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.0] * 192}]}


class Client(threading.Thread):
    """A client that sends requests over one connection and never reconnects."""

    def __init__(self, address: str, body: bytes) -> None:
        super().__init__()
        parts = urlsplit(address)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        self._connection.connect()
        self._connection.auto_open = 0
        self._body = body
        self._over = threading.Event()
        self.answers: list[tuple[int, str]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._connection.request("POST", "/v2/models/digits/infer", self._body)
                response = self._connection.getresponse()
                answer: dict[str, Any] = json.loads(response.read())
                self.answers.append((response.status, answer.get("model_version", answer.get("error"))))
        except BaseException as error:  # shown by `end`
            self.error = error
        finally:
            self._connection.close()

    def end(self) -> list[tuple[int, str]]:
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.answers


def image_request(task: Task) -> bytes:
    data = base64.b64encode(next(task.test.rglob("*.png")).read_bytes()).decode()
    return json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}]}).encode()
