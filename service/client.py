"""A client of the daemon's UNIX socket. It is light: `edged status` takes 50 ms, the start of Python included.

Each request has a connection of its own. httptools, uvicorn's parser, parses the answer: importing http.client takes
13 ms (measured).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import httptools

from edged.errors import AccessError, EdgedError, NotReadyError, UnavailableError, UsageError

_CHUNK_BYTES = 1 << 16


class DaemonError(EdgedError):
    """The daemon answered with a fault of its own."""

    code = "daemon"


class DaemonClient:
    """A client of one daemon.

    Args:
        path: Path of the daemon's UNIX socket.
        timeout_s: Longest time without a byte from the daemon, seconds.
    """

    def __init__(self, path: str, timeout_s: float = 30.0) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def get(self, target: str) -> dict[str, Any]:
        """Send a GET request, for example for "/edged/v1/status".

        Returns:
            The JSON object of the answer.

        Raises:
            UnavailableError: No daemon answers.
            EdgedError: The daemon answers with an error; its class follows from the error's code.
        """
        return self._request("GET", target, self._timeout_s)

    def post(self, target: str, body: Mapping[str, Any] | None = None, timeout_s: float = 300.0) -> dict[str, Any]:
        """Send a POST request, with a JSON object as its body or with none; otherwise as `get`."""
        return self._request("POST", target, timeout_s, b"" if body is None else json.dumps(body).encode())

    def is_live(self) -> bool:
        """Return whether the daemon answers a health check in time."""
        try:
            self.get("/v2/health/live")
        except EdgedError as error:
            import logging  # a command that only asks the daemon has no use for it

            logging.getLogger(__name__).debug("the daemon does not answer a health check: %s", error)
            return False
        return True

    def _request(self, method: str, target: str, timeout_s: float, body: bytes = b"") -> dict[str, Any]:
        head = f"{method} {target} HTTP/1.1\r\nHost: edged\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            answer = _exchange(self.path, head.encode("ascii") + body, timeout_s)
        except PermissionError:
            raise AccessError(f"{self.path} may not be opened; run as the daemon's user") from None
        except (FileNotFoundError, ConnectionRefusedError):
            hint = "start it with `edged run --config FILE`, or give its config with --config FILE or EDGED_CONFIG=FILE"
            raise UnavailableError(f"no daemon answers at {self.path}; {hint}") from None
        except OSError as error:
            raise UnavailableError(f"no daemon answers at {self.path}: {error}; see its log") from None
        return _result(answer, self.path)


class _Answer:
    """The answer to a request, as the parser reports it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def _exchange(path: str, request: bytes, timeout_s: float) -> _Answer:
    answer = _Answer()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(request)
        while not answer.complete and (chunk := connection.recv(_CHUNK_BYTES)):
            try:
                answer.parser.feed_data(chunk)
            except httptools.HttpParserError:
                break
    return answer


def _result(answer: _Answer, path: str) -> dict[str, Any]:
    try:
        status, data = answer.parser.get_status_code(), json.loads(answer.body)
    except ValueError:
        raise UnavailableError(f"what answers at {path} is no edged daemon; correct --socket") from None
    if status < 400 and isinstance(data, dict):
        return data
    message = data.get("error") if isinstance(data, dict) else None
    code = data.get("code") if isinstance(data, dict) else None
    raise _error_class(str(code), status)(str(message or f"the daemon answers with HTTP {status}"))


def _error_class(code: str, status: int) -> type[EdgedError]:
    by_code = {kind.code: kind for kind in _subclasses(EdgedError)}
    by_status = {403: AccessError, 404: UsageError, 409: NotReadyError, 503: NotReadyError}
    return by_code.get(code) or by_status.get(status, DaemonError)


def _subclasses(kind: type[EdgedError]) -> list[type[EdgedError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _subclasses(child))]
