"""The start and duration of each stage of an update. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.journal.states import STAGE_TABLE, State
from service.journal.update import Event, Update

# The journal has the duration of each stage and the time of each state. A stage ends with the entry of a state ...
_ENDS = {stage.name: stage.state_after for stage in STAGE_TABLE if stage.state_after is not None}
# ... or begins with it.
_BEGINS = {stage.name: stage.state_before for stage in STAGE_TABLE if stage.state_before is not None}


@dataclass(frozen=True)
class Span:
    """One stage of an update, placed in time.

    Attributes:
        stage: Name of the stage.
        start_s: Start in seconds since the file was dropped.
        seconds: Duration.
    """

    stage: str
    start_s: float
    seconds: float


def spans(update: Update, events: Sequence[Event]) -> list[Span]:
    """Return the stages whose times are known, in the order in which they began; the last attempt counts.

    Args:
        update: Update with its stages and the time of its drop.
        events: Events of the update, the oldest first.
    """
    entered = {event.state: event.at - update.dropped_at for event in events}
    found = [Span(stage, start_s, seconds) for stage, start_s, seconds in _placed(update.stages, entered)]
    begun = next((span.start_s for span in found if span.stage == "verify"), None)
    if begun is not None and "start" in update.stages:  # of the worker's process
        seconds = update.stages["start"]
        found.append(Span("start", max(0.0, begun - seconds), seconds))
    return sorted(found, key=lambda span: (round(span.start_s, 3), span.start_s + span.seconds))


def _placed(stages: Mapping[str, float], entered: Mapping[State, float]) -> list[tuple[str, float, float]]:
    placed = []
    for stage, seconds in stages.items():
        if stage in _ENDS and _ENDS[stage] in entered:
            placed.append((stage, max(0.0, entered[_ENDS[stage]] - seconds), seconds))
        elif stage in _BEGINS and _BEGINS[stage] in entered:
            placed.append((stage, max(0.0, entered[_BEGINS[stage]]), seconds))
    return placed
