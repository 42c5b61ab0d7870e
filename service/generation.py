"""The supervisor's side of one served model: start its process, wait until it is warm, ask it, drain it, stop it.

Imports no torch. Requests are forwarded as raw bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.errors import DeferredError, EdgedError, GateError
from service import frames
from service.children import child_environment

log = logging.getLogger(__name__)

# At the child at once: while it computes the first, the second already lies in its socket.
_AT_THE_CHILD = 2
_STOP_S = 5.0


class StartError(DeferredError):
    """The process did not come up."""

    code = "generation_start"


class ServingError(EdgedError):
    """A request cannot be answered now."""

    code = "serving"
    status = 503


class BusyError(ServingError):
    """The queue is full."""

    code = "busy"
    status = 429


class TimeoutExceededError(ServingError):
    """The deadline passed first."""

    code = "deadline"
    status = 504


@dataclass(frozen=True)
class Reply:
    """What the child answers.

    Attributes:
        status: HTTP status.
        body: HTTP body.
        seconds: Time the child took.
    """

    status: int
    body: bytes
    seconds: float


@dataclass
class _Pending:
    id: int
    body: bytes
    reply: asyncio.Future[Reply]
    sent_at: float = field(default=0.0)


class Generation:
    """One child process that serves one published artifact.

    Args:
        model: Model name.
        number: Generation.
        directory: The artifact.
        threads: Threads of the child; None for one a core.
        queue: Requests that may wait or run at once.
        on_exit: Called once when the process ends without having been asked to.
    """

    def __init__(
        self,
        model: str,
        number: int,
        directory: Path,
        *,
        threads: int | None = None,
        queue: int = 64,
        on_exit: Callable[[Generation], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.number = number
        self.metadata: dict[str, Any] = {}
        self._directory = directory
        self._threads = threads
        self._queue_limit = queue
        self._on_exit = on_exit
        self._ids = itertools.count(1)
        self._waiting: deque[_Pending] = deque()
        self._sent: dict[int, _Pending] = {}
        self._inflight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._serving = False
        self._stopping = False

    @property
    def serving(self) -> bool:
        """Whether requests can be sent."""
        return self._serving

    @property
    def pid(self) -> int | None:
        """Of the child."""
        return None if self._process is None else self._process.pid

    @property
    def inflight(self) -> int:
        """Requests not answered yet."""
        return self._inflight

    @property
    def stalled_s(self) -> float:
        """How long the oldest request has been with the child."""
        return time.monotonic() - min((p.sent_at for p in self._sent.values()), default=time.monotonic())

    async def start(self, timeout_s: float) -> None:
        """Start the process and wait until it has loaded the model and run it.

        Raises:
            GateError: The model's outputs are not finite.
            StartError: It did not come up.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "service.generation_child", "--parent", str(os.getpid()), "--socket-fd", str(theirs.fileno())),
                *("--artifact", str(self._directory), "--model", self.model, "--generation", str(self.number)),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(self._threads),
                start_new_session=True,  # Ctrl-C on the terminal is for the supervisor
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._tasks.append(asyncio.create_task(self._read_log(self._process)))
        try:
            frame = await asyncio.wait_for(frames.read(reader), timeout_s)
            self._check_ready(frame[0] if frame else None)
        except BaseException as error:
            await self.stop()
            if isinstance(error, (asyncio.TimeoutError, OSError, frames.FrameError)):
                raise StartError(f"generation {self.number} was not ready after {timeout_s:g} s") from error
            raise
        self._serving = True
        self._tasks.append(asyncio.create_task(self._read_replies(reader)))

    async def infer(self, body: bytes, deadline_s: float) -> Reply:
        """Have the child answer one request.

        Raises:
            BusyError: The queue is full.
            TimeoutExceededError: No answer within `deadline_s`.
            ServingError: The process ended.
        """
        if not self._serving:
            raise ServingError(f"model {self.model!r} is starting; try again in some seconds")
        if self._inflight >= self._queue_limit:
            raise BusyError(f"model {self.model!r} has {self._inflight} requests waiting; try again later")
        pending = _Pending(next(self._ids), body, asyncio.get_running_loop().create_future())
        self._waiting.append(pending)
        self._inflight += 1
        self._idle.clear()
        try:
            self._send_more()
            await asyncio.wait({pending.reply}, timeout=deadline_s)
            if not pending.reply.done():
                raise TimeoutExceededError(f"model {self.model!r} gave no answer within {deadline_s:g} s")
            return pending.reply.result()
        finally:
            # One that waits is forgotten; one that is with the child keeps its place there until it is answered.
            with contextlib.suppress(ValueError):
                self._waiting.remove(pending)
            pending.reply.cancel()
            self._inflight -= 1
            if self._inflight == 0:
                self._idle.set()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every request is answered; False if that takes longer than `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._inflight == 0

    async def stop(self) -> None:
        """End the process; requests still there get a ServingError."""
        self._stopping = True
        self._serving = False
        if self._writer is not None:
            self._writer.close()  # the child sees the end of the stream
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except (asyncio.TimeoutError, asyncio.CancelledError):
                self.kill()
                await self._process.wait()
        self._fail_all()
        for task in self._tasks:
            task.cancel()

    def kill(self) -> None:
        """End the process without waiting; it then counts as ended by itself unless `stop` was called."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _check_ready(self, header: dict[str, Any] | None) -> None:
        if header is None:
            raise StartError(f"generation {self.number} ended while it was starting; see the log")
        if header["kind"] == "failed":
            kind = GateError if header["code"] == GateError.code else StartError
            raise kind(header["message"])
        self.metadata = header["metadata"]

    def _send_more(self) -> None:
        while self._waiting and len(self._sent) < _AT_THE_CHILD and self._writer is not None and self._serving:
            pending = self._waiting.popleft()
            pending.sent_at = time.monotonic()
            self._sent[pending.id] = pending
            self._writer.write(frames.head({"id": pending.id}, pending.body))
            self._writer.write(pending.body)

    async def _read_replies(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await frames.read(reader)) is not None:
                header, body = frame
                pending = self._sent.pop(header["id"])
                if not pending.reply.done():
                    pending.reply.set_result(Reply(header["status"], body, header["seconds"]))
                self._send_more()
        except (OSError, frames.FrameError) as error:
            log.warning("model %s generation %d: connection lost: %s", self.model, self.number, error)
        finally:
            self._serving = False
            self._fail_all()
            if not self._stopping:
                self.kill()
                self._on_exit(self)

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101 - a pipe was asked for
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            log.info("model %s generation %d: %s", self.model, self.number, text)

    def _fail_all(self) -> None:
        error = ServingError(f"model {self.model!r} generation {self.number} ended; try again in some seconds")
        for pending in [*self._sent.values(), *self._waiting]:
            if not pending.reply.done():
                pending.reply.set_exception(error)
        self._sent.clear()
        self._waiting.clear()
