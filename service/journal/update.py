"""An update and its events, as read from the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.journal.states import State
from service.units import iso_time

PINNED, PAUSED = "pinned", "paused"  # codes of updates that wait for an operator

_TIMES = ("dropped_at", "updated_at")


@dataclass(frozen=True)
class Update:
    """One dropped file on its way.

    Attributes:
        id: Ascending, never reused.
        model: Model name.
        state: How far it has come.
        file_name: As it was dropped.
        file_bytes: Its size.
        sha256: Of its contents, hex; None before it is claimed.
        key: Idempotency key, see ModelConfig.key; None before it is claimed.
        generation: Under which it was published; None before.
        attempt: How often the work on it has begun: each entry into CLAIMED, also after a restart of the daemon.
        code: Error code of the last trouble; None when there was none.
        reason: One line on it.
        dropped_at: When it was first seen, seconds since 1970.
        updated_at: Of the last change, seconds since 1970.
        stages: Seconds by stage.
        report: Totals of the quantization, see report.json; once it was warm "swap", and once it was taken out of
            service again "rollback": how one generation took the place of the other, see `switching.go_live`.
    """

    id: int
    model: str
    state: State
    file_name: str
    file_bytes: int
    sha256: str | None
    key: str | None
    generation: int | None
    attempt: int
    code: str | None
    reason: str | None
    dropped_at: float
    updated_at: float
    stages: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; times as ISO 8601."""
        return {**vars(self), "state": self.state.value} | {name: iso_time(getattr(self, name)) for name in _TIMES}


@dataclass(frozen=True)
class Hold:
    """What an operator has told the daemon to leave as it is.

    Attributes:
        pinned: No other generation goes live.
        paused: Nothing is taken out of the drop folder.
    """

    pinned: bool = False
    paused: bool = False


@dataclass(frozen=True)
class Event:
    """One line of an update's history.

    Attributes:
        at: Seconds since 1970.
        state: Entered then, or the one that it was in: "crash" in the detail tells of its generation.
        detail: What was set along with it.
    """

    at: float
    state: State
    detail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the time as ISO 8601."""
        return {"at": iso_time(self.at), "state": self.state.value, "detail": self.detail}
