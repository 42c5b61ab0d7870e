"""The supervisor's side of the process that generations are forked from. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

from service.ipc.shared_memory import DEFAULT_BYTES, BodyMemory
from service.serving.forked_process import Forked
from service.system.log_flood import OUTPUT
from service.system.processes import adopt_orphans, child_environment
from service.system.timeouts import within

log = logging.getLogger(__name__)
output = logging.getLogger(f"{__name__}.{OUTPUT}")

_MAX_ANSWER = 1 << 16
_END_S, _LOOK_S = 5.0, 0.02


class ForkError(Exception):
    """A process could not be forked."""


class _EndedError(ForkError):
    """The fork server has exited."""


class ForkServer:
    """Forks generations; one for all models.

    Its process is started with the first generation, as there may be none, and again with the next one if it has
    exited. Generations outlive it.

    Args:
        body_bytes: Bytes that the bodies of all requests may take together.
    """

    def __init__(self, body_bytes: int = DEFAULT_BYTES) -> None:
        self._body_bytes = body_bytes
        self._memory: BodyMemory | None = None
        self._process: _Process | None = None
        self._starting = asyncio.Lock()

    @property
    def memory(self) -> BodyMemory:
        """Memory for the bodies of requests, which all generations can read.

        Raises:
            OSError: The system is out of memory or of file descriptors.
        """
        if self._memory is None:
            self._memory = BodyMemory(self._body_bytes)
        return self._memory

    def set_body_bytes(self, size: int) -> bool:
        """Change what the bodies of all requests may take together; return False if only a restart can."""
        if self._memory is not None:
            return self._memory.set_size(size)
        self._body_bytes = size
        return True

    @property
    def pid(self) -> int | None:
        """Process id; None while there is no process."""
        return None if self._process is None or self._process.ended else self._process.pid

    async def fork(self, arguments: Sequence[str], connection: socket.socket, timeout_s: float) -> Forked:
        """Fork a generation, which becomes a child of this process.

        Args:
            arguments: Arguments of service.inference.main, without the socket.
            connection: The generation's end of the socket; the caller closes it afterwards.
            timeout_s: Seconds that the fork server may take, including its imports at first; it is killed if it takes
                longer.

        Raises:
            ForkError: The fork failed, or the fork server exited meanwhile.
            OSError: The fork server cannot be started, or the generation cannot be watched.
            asyncio.TimeoutError: There was no answer within `timeout_s`.
        """
        for name in ("memfd_create", "pidfd_open"):
            if not hasattr(os, name):
                raise ForkError(f"this Python was built without os.{name}; run edged with the system's python3")
        end = time.monotonic() + timeout_s
        try:
            return await (await self._running()).fork(arguments, connection, timeout_s)
        except _EndedError as error:  # the generation did not cause that
            log.warning("%s; started again", error)
            return await (await self._running()).fork(arguments, connection, max(0.0, end - time.monotonic()))

    async def _running(self) -> _Process:
        async with self._starting:
            if self._process is None or self._process.ended:
                self._process = await _Process.start()
            return self._process

    async def __aenter__(self) -> ForkServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Kill its process, and free the memory."""
        async with self._starting:
            if self._process is not None:
                await self._process.close()
                self._process = None
            if self._memory is not None:
                self._memory.close()
                self._memory = None


class _Process:
    """One run of service.inference.fork_server.

    Attributes:
        ended: Whether it takes no more requests.
    """

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.ended = False
        self._process = process
        self._control = control
        self._numbers = itertools.count()
        self._silent = asyncio.Event()
        self._asked: dict[int, tuple[asyncio.Future[Forked], asyncio.StreamReader]] = {}
        asyncio.get_running_loop().add_reader(control, self._read_answers)
        self._tasks = [asyncio.create_task(self._read_log()), asyncio.create_task(self._see_it_end())]

    @classmethod
    async def start(cls) -> _Process:
        """Start the process; it answers once its imports are done."""
        adopt_orphans()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a message is sent whole, or is not
        ours.setblocking(False)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "service.inference.fork_server"),
                    *("--parent", str(os.getpid()), "--socket-fd", str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    env=child_environment(1),  # each generation sets its own number of threads
                    start_new_session=True,  # Ctrl-C on the terminal is for the supervisor
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def fork(self, arguments: Sequence[str], connection: socket.socket, timeout_s: float) -> Forked:
        """Fork a generation, see `ForkServer.fork`."""
        loop = asyncio.get_running_loop()
        number, answer = next(self._numbers), loop.create_future()
        stderr = asyncio.StreamReader()
        read_end, write_end = os.pipe()
        try:
            # Closed by itself at the end of the stream, which comes with the process, or right away if there is none.
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stderr), os.fdopen(read_end, "rb", 0))
            request = json.dumps({"id": number, "arguments": list(arguments)}).encode()
            self._asked[number] = answer, stderr
            socket.send_fds(self._control, [request], [connection.fileno(), write_end])
        except BrokenPipeError:
            self._asked.pop(number)
            self.ended = True
            raise _EndedError("the process that generations are forked from has ended") from None
        except BaseException:
            self._asked.pop(number, None)
            raise
        finally:
            os.close(write_end)
        return await self._answered(answer, timeout_s)

    async def _answered(self, answer: asyncio.Future[Forked], timeout_s: float) -> Forked:
        try:
            await asyncio.wait({answer}, timeout=timeout_s)
        except asyncio.CancelledError:
            if answer.done() and answer.exception() is None:  # both happened at the same time
                answer.result().kill()
            raise
        finally:
            answer.cancel()  # a later answer has no receiver
        if answer.cancelled():
            log.error("the process that generations are forked from does not answer within %g s; killed", timeout_s)
            self.kill()
            raise asyncio.TimeoutError
        return answer.result()

    def kill(self) -> None:
        """Kill the process. The next request starts another one."""
        self.ended = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Kill the process and wait for its end: it has no state to lose."""
        self.kill()
        await asyncio.wait(self._tasks)

    def _read_answers(self) -> None:
        while True:
            try:
                text = self._control.recv(_MAX_ANSWER)
            except OSError:  # nothing more to read now, or ever
                return
            if not text:
                self.ended = True
                self._silent.set()
                asyncio.get_running_loop().remove_reader(self._control)  # it would otherwise stay readable forever
                return
            self._hand_out(json.loads(text))

    def _hand_out(self, answered: dict[str, object]) -> None:
        asked = self._asked.pop(int(str(answered["id"])), None)
        if asked is None:  # the process announced itself and exited before the fork server knew
            return
        answer, stderr = asked
        try:
            if "error" in answered:
                raise ForkError(str(answered["error"]))
            forked = Forked(int(str(answered["pid"])), stderr)
        except (ForkError, OSError) as error:
            if not answer.done():
                answer.set_exception(error)
            return
        if answer.done():  # the caller was cancelled
            forked.kill()
        else:
            answer.set_result(forked)

    async def _see_it_end(self) -> None:
        code = await self._process.wait()
        self.ended = True
        # Processes that are becoming generations hold the other end until they have announced themselves.
        with contextlib.suppress(asyncio.TimeoutError):
            await within(_END_S, self._silent.wait())
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code} ({signal.strsignal(-code)})"
        for answer, _ in self._asked.values():
            if not answer.done():
                answer.set_exception(_EndedError(f"the process that generations are forked from ended: {how}"))
        self._asked.clear()
        await _reap(self._process.pid)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        async for line in self._process.stderr:
            output.info("fork server: %s", line.decode(errors="replace").rstrip())


async def _reap(group: int) -> None:
    """Reap unannounced processes of a fork server's process group, which exit with it.

    It polls, because a process that leaves the group does not wake a waiter.
    """
    end = time.monotonic() + _END_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitpid(-group, os.WNOHANG) == (0, 0):
                await asyncio.sleep(_LOOK_S)
