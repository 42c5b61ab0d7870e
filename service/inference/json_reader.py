"""Large JSON of requests, which another process parses: a generation would compute nothing meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import Any

from service.inference.json_parser import join
from service.ipc import frames
from service.ipc.messages import Body, RequestError

LARGE_BYTES = 256 << 10  # of JSON; less is parsed sooner than it is sent to another process
IDLE_S = 60.0  # without work, after which the process ends
_LONGEST_S = 20.0


def is_large(body: Body) -> bool:
    """Return whether the JSON of a request is better parsed by another process."""
    size = len(body.content)
    return LARGE_BYTES < (size if body.json_bytes is None else body.json_bytes) <= size


class JsonReader:
    """The process that parses, which is started when it is needed. For one thread.

    Args:
        longest_s: Seconds that it may take.
    """

    def __init__(self, longest_s: float = _LONGEST_S) -> None:
        self._longest_s = longest_s
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, text: bytes | memoryview) -> dict[str, Any]:
        """Return a request from its JSON; the data of its input is an array, or a list of bytes.

        Raises:
            RequestError: It is no valid request, or took too long.
        """
        try:
            answer = self._ask(text)
        except (OSError, frames.FrameError) as error:
            self.close()
            raise RequestError(
                f"{len(text)} bytes of JSON were not parsed: {error}; send tensors as bytes, with the binary tensor"
                " data extension",
                503,
            ) from None
        header, content = answer
        if "error" in header:
            raise RequestError(header["error"], header["status"])
        return join(header, content)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        assert process.stdin is not None  # noqa: S101 - see `_start`
        assert process.stdout is not None  # noqa: S101 - see `_start`
        with contextlib.suppress(OSError):  # what it did not read is lost
            process.stdin.close()
        process.stdout.close()
        process.wait()

    def _ask(self, text: bytes | memoryview) -> tuple[dict[str, Any], bytes]:
        process = self._process = self._process or _start()
        overdue = threading.Timer(self._longest_s, process.kill)
        overdue.start()
        try:
            assert process.stdin is not None  # noqa: S101 - see `_start`
            assert process.stdout is not None  # noqa: S101 - see `_start`
            frames.write_blocking(process.stdin, {}, text)  # type: ignore[arg-type]  # it is buffered
            answer = frames.read_blocking(process.stdout)  # type: ignore[arg-type]  # it is buffered
        finally:
            overdue.cancel()
        if answer is None:
            raise frames.FrameError("the process that parses it has ended")
        return answer


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service.inference.json_parser", str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - fixed
