"""The queue of all updates as rows: first what runs, then what waits, in the order of the turns. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.journal.states import State
from service.journal.update import PAUSED, PINNED, Update
from service.units import iso_time

QUEUED = "QUEUED"  # state of a row whose update is claimed and waits for its turn
_IN_DROP_FOLDER = (State.DROPPED, State.SETTLED)
_RUNS, _WAITS, _ARRIVES, _HELD = range(4)


@dataclass(frozen=True)
class Turn:
    """What is known of the turn of an update besides its journal entry.

    Attributes:
        working_since: When the work on it began, seconds since 1970; None if it waits.
        waiting_since: When its wait began, seconds since 1970; None if it does not wait for its turn.
        retry_at: When it is tried or checked again, seconds since 1970; None if it is not deferred.
        condition: Condition of the device that it waits for, as it was when last checked; None for none.
        place: Place in the queue of its model; 0 for the first.
        priority: Priority of its model; the highest goes first.
        progress: Progress of its worker; None without one.
    """

    working_since: float | None = None
    waiting_since: float | None = None
    retry_at: float | None = None
    condition: str | None = None
    place: int = 0
    priority: int = 0
    progress: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Row:
    update: Update
    turn: Turn
    kind: int = field(init=False)

    def __post_init__(self) -> None:
        held = self.update.state is State.DEFERRED or self.update.code in (PAUSED, PINNED)
        arrives = self.update.state in _IN_DROP_FOLDER
        runs = self.turn.working_since is not None
        object.__setattr__(self, "kind", _HELD if held else _ARRIVES if arrives else _RUNS if runs else _WAITS)

    @property
    def since(self) -> float:
        if self.kind == _RUNS and self.turn.working_since is not None:
            return self.turn.working_since
        if self.kind == _WAITS and self.turn.waiting_since is not None:
            return self.turn.waiting_since
        return self.update.dropped_at if self.kind == _ARRIVES else self.update.updated_at

    @property
    def precedence(self) -> tuple[Any, ...]:
        """The rows are sorted by this: the worker's update is the first of those that run."""
        turn = self.turn
        if self.kind == _RUNS:
            return self.kind, turn.progress is None, self.since
        if self.kind == _WAITS:
            return self.kind, turn.place, -turn.priority, self.since
        return self.kind, turn.retry_at is None, turn.retry_at or self.since


def queue_rows(updates: Sequence[Update], turns: Mapping[int, Turn]) -> list[dict[str, Any]]:
    """Return a row for each update that has not ended, as JSON types.

    Args:
        updates: The updates.
        turns: What is known of their turns, by update id.

    Returns:
        Rows {"update", "model", "file", "state", "since", "position", "waiting_for", "progress"}. "state" is "QUEUED"
        for an update that waits for its turn, otherwise that of the update. "since" is in seconds since 1970.
        "waiting_for" is None if it runs or arrives.
    """
    rows = sorted((_Row(update, turns.get(update.id, Turn())) for update in updates), key=lambda row: row.precedence)
    return [
        {
            "update": row.update.id,
            "model": row.update.model,
            "file": row.update.file_name,
            "state": QUEUED if row.kind == _WAITS and row.update.state is State.CLAIMED else row.update.state.value,
            "since": round(row.since, 3),
            "position": position,
            "waiting_for": _waiting_for(row, rows),
            "progress": row.turn.progress,
        }
        for position, row in enumerate(rows)
    ]


def _waiting_for(row: _Row, rows: Sequence[_Row]) -> str | None:
    update, turn = row.update, row.turn
    if row.kind == _HELD and update.state is State.DEFERRED:
        again = "" if turn.retry_at is None else f"; {_verb(turn)} again at {iso_time(turn.retry_at)}"
        return f"{turn.condition or update.reason}{again}"
    if row.kind == _HELD:
        return update.reason
    if row.kind != _WAITS:
        return None
    ahead = [other for other in rows if other.kind == _RUNS]
    mine = [other for other in ahead if other.update.model == update.model]
    blocking = mine or [other for other in ahead if other.turn.progress is not None]
    if not blocking:
        return None
    first = blocking[0].update
    return f"update {first.id} of {first.model} ({first.file_name})"


def _verb(turn: Turn) -> str:
    return "tried" if turn.condition is None else "checked"
