"""How work on an update ends, as values of one sum type: `Outcome`."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from edged.errors import EdgedError, RejectedError, StateError

# Codes of postponements. An update that was deferred for one of them goes on once its condition is over.
POSTPONED = ("window", "temperature", "free_memory", "battery", "power_mode", "disk", "sandbox")

# Of the disk, or for want of descriptors or memory: neither the file nor this program is at fault, and they pass.
_FAULTS_OF_THE_DEVICE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
)


def is_fault_of_device(error: Exception) -> bool:
    """Return whether an error is a fault of the device that passes, such as a full disk."""
    return isinstance(error, StateError) or (isinstance(error, OSError) and error.errno in _FAULTS_OF_THE_DEVICE)


@dataclass(frozen=True)
class Failure:
    """Why an update cannot go on.

    Attributes:
        code: Error code of edged.errors, or "crash", "timeout", "interrupted", "superseded", "cancelled".
        reason: One-line description.
        permanent: Whether trying the same file again cannot help.
    """

    code: str
    reason: str
    permanent: bool = False

    @classmethod
    def of(cls, error: EdgedError) -> Failure:
        """Return the failure that an error of the library stands for."""
        return cls(error.code, str(error), permanent=isinstance(error, RejectedError))


@dataclass(frozen=True)
class Postponement:
    """A condition of the device for which an update has to wait.

    Attributes:
        code: One of POSTPONED.
        reason: One-line description.
        seconds: Seconds until the condition is checked again.
    """

    code: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class Committed:
    """The generation of the update stays in service.

    Attributes:
        problem: Why it failed its probation and stays in service all the same; None if nothing went wrong.
    """

    problem: str | None = None


@dataclass(frozen=True)
class Stopped:
    """The update cannot go on: it is rejected, failed, or deferred until the next attempt.

    Attributes:
        failure: Why.
    """

    failure: Failure


@dataclass(frozen=True)
class Postponed:
    """The worker may not start now. This is not a failure and does not count as an attempt.

    Attributes:
        postponement: The condition that the update waits for.
    """

    postponement: Postponement


@dataclass(frozen=True)
class RolledBack:
    """The update went live and was taken out of service again. The journal says so already.

    Attributes:
        failure: Why.
    """

    failure: Failure


@dataclass(frozen=True)
class Cancelled:
    """An operator has cancelled the update before it went live."""


Outcome = Committed | Stopped | Postponed | RolledBack | Cancelled
