"""A child that another process forked, with the needed part of asyncio.subprocess.Process's interface."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal

_REFUSED = (errno.ENOSYS, errno.EPERM)
_UNKNOWN = 255  # another waiter reaped it; asyncio uses the same code
_LOOK_S, _LOOKS = 0.1, 50  # for what it has left to exit, too


class Forked:
    """Waits for a process from its construction on, and reaps it.

    Args:
        pid: Process id of a child that was not reaped.
        stderr: Stream of its stderr.

    Attributes:
        returncode: Exit code, or minus the signal that ended it; None while it runs.

    Raises:
        OSError: The process cannot be watched, and was killed.
    """

    def __init__(self, pid: int, stderr: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        self._end = asyncio.Event()
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            needed = "; Linux 5.3 or later is needed, and permission to use it" if error.errno in _REFUSED else ""
            raise OSError(f"pidfd_open: {error.strerror}{needed}") from error
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    async def wait(self) -> int:
        """Wait for the exit code; minus the signal that ended the process."""
        await self._end.wait()
        assert self.returncode is not None  # noqa: S101 - set before the event
        return self.returncode

    def kill(self) -> None:
        """Kill the process if it runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        try:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.returncode = _UNKNOWN
        self._end.set()
        self._reap_group()

    def _reap_group(self, looks: int = _LOOKS) -> None:
        """Reap what the process has left in its group, such as one that parses JSON: this one is its parent now."""
        with contextlib.suppress(ChildProcessError):  # there are none
            while os.waitpid(-self.pid, os.WNOHANG)[0] != 0:
                pass
            if looks:
                asyncio.get_running_loop().call_later(_LOOK_S, self._reap_group, looks - 1)
