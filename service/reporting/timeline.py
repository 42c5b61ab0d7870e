"""When each stage of an update began and how long it took. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.journal.states import State
from service.journal.update import Event, Update

# The journal has the seconds of each stage, and the time of each state. These stages end with their state's entry ...
_ENDS: Mapping[str, State] = {
    "settle": State.SETTLED,
    "claim": State.CLAIMED,
    "verify": State.VERIFIED,
    "load": State.LOADED,
    "calibrate": State.CALIBRATED,
    "quantize": State.QUANTIZED,
    "evaluate": State.EVALUATED,
    "publish": State.PUBLISHED,
    "warm": State.WARMED,
}
# ... and these begin then.
_BEGINS: Mapping[str, State] = {"write": State.EVALUATED, "swap": State.LIVE, "probation": State.LIVE}


@dataclass(frozen=True)
class Span:
    """One stage.

    Attributes:
        stage: Its name.
        start_s: When it began, seconds since the file was dropped.
        seconds: How long it took.
    """

    stage: str
    start_s: float
    seconds: float


def spans(update: Update, events: Sequence[Event]) -> list[Span]:
    """The stages whose times are known, in the order in which they began; of several tries the last.

    Args:
        update: Its stages and the time of its drop.
        events: Of the update, the oldest first.
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
