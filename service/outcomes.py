"""How an update that cannot go on says so."""

from __future__ import annotations

from dataclasses import dataclass

# Codes of postponements: an update that was put off for one of them goes on once that is over.
POSTPONED = ("window", "temperature", "free_memory", "battery", "power_mode", "disk")


@dataclass(frozen=True)
class Postponement:
    """Not now.

    Attributes:
        code: One of POSTPONED.
        reason: One line.
        seconds: When to look again.
    """

    code: str
    reason: str
    seconds: float


class PostponedError(Exception):
    """The work on an update cannot begin now, through no fault of it.

    Attributes:
        postponement: Why, and until when.
    """

    def __init__(self, postponement: Postponement) -> None:
        super().__init__(postponement.reason)
        self.postponement = postponement


@dataclass(frozen=True)
class Failure:
    """The worker did not.

    Attributes:
        code: An error code of edged.errors, or "crash" or "timeout".
        reason: One line.
        permanent: Trying the same file again cannot help.
    """

    code: str
    reason: str
    permanent: bool = False


class StoppedError(Exception):
    """The update cannot go on; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class RolledBackError(StoppedError):
    """The update was live and is not any more; the journal says so already."""
