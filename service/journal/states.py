"""The states of an update and the moves between them, as data. Pure: no clock, no storage.

    DROPPED > SETTLED > CLAIMED > VERIFIED > LOADED > CALIBRATED > QUANTIZED > EVALUATED > PUBLISHED > WARMED > LIVE
    > COMMITTED

Every state is a past participle: it says what has been done, not what is going on.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from dataclasses import dataclass


class State(str, enum.Enum):
    """How far an update has come."""

    DROPPED = "DROPPED"  # seen in the drop folder
    SETTLED = "SETTLED"  # completely written
    CLAIMED = "CLAIMED"  # copied to claimed/ and hashed
    VERIFIED = "VERIFIED"  # a readable, harmless checkpoint
    LOADED = "LOADED"  # its architecture is known and its tensors fit
    CALIBRATED = "CALIBRATED"  # the calibration cache is there
    QUANTIZED = "QUANTIZED"
    EVALUATED = "EVALUATED"  # it passed its gates
    PUBLISHED = "PUBLISHED"  # an artifact with a generation number
    WARMED = "WARMED"  # its process answers
    LIVE = "LIVE"  # it gets the traffic
    COMMITTED = "COMMITTED"  # and keeps it
    REJECTED = "REJECTED"  # the file is at fault; the same file is never tried again
    DEFERRED = "DEFERRED"  # the device cannot do it now; tried again later
    FAILED = "FAILED"  # tried too often
    SUPERSEDED = "SUPERSEDED"  # a newer drop for the same model took its place
    CANCELLED = "CANCELLED"  # an operator ended it before it went live
    ROLLED_BACK = "ROLLED_BACK"  # it was live; another generation is in its place

    @classmethod
    def read(cls, word: str) -> State:
        """Return the state of a word that was stored or received.

        A word that is no state, of a damaged journal or another version of edged, is kept as it is. It is in no table:
        an update in it has neither ended nor does it go on.
        """
        if word in cls.__members__:
            return cls.__members__[word]
        unknown = str.__new__(cls, word)
        unknown._name_ = unknown._value_ = word
        return unknown


class IllegalTransition(Exception):  # noqa: N818 - the name of the contract; it says what happened, like StopIteration
    """A transition that the table does not contain: a bug in the program, never a fault of the input."""


WAY = (
    State.DROPPED,
    State.SETTLED,
    State.CLAIMED,
    State.VERIFIED,
    State.LOADED,
    State.CALIBRATED,
    State.QUANTIZED,
    State.EVALUATED,
    State.PUBLISHED,
    State.WARMED,
    State.LIVE,
    State.COMMITTED,
)


@dataclass(frozen=True)
class Stage:
    """A timed part of an update's way, as it is named in the journal, the metrics and the reports.

    Attributes:
        name: Label of the stage.
        state_after: State that the update enters when the stage ends; None if the end of the stage changes no state.
        state_before: State whose entry begins the stage, for a stage without `state_after`; None if neither is known.
        done_by_worker: Whether the worker process reports the stage.
    """

    name: str
    state_after: State | None = None
    state_before: State | None = None
    done_by_worker: bool = False


# All stages of an update, in order. "queue" is the wait for its turn. "start" is the start of the worker process, which
# ends where "verify" begins.
STAGE_TABLE = (
    Stage("settle", State.SETTLED),
    Stage("claim", State.CLAIMED),
    Stage("queue", state_before=State.CLAIMED),
    Stage("start"),
    Stage("verify", State.VERIFIED, done_by_worker=True),
    Stage("load", State.LOADED, done_by_worker=True),
    Stage("calibrate", State.CALIBRATED, done_by_worker=True),
    Stage("quantize", State.QUANTIZED, done_by_worker=True),
    Stage("evaluate", State.EVALUATED, done_by_worker=True),
    Stage("write", state_before=State.EVALUATED, done_by_worker=True),
    Stage("publish", State.PUBLISHED),
    Stage("warm", State.WARMED),
    Stage("swap", state_before=State.LIVE),
    Stage("probation", state_before=State.LIVE),
)
UPDATE_STAGES = tuple(stage.name for stage in STAGE_TABLE)
WORKER_STAGES = tuple(stage.name for stage in STAGE_TABLE if stage.done_by_worker)
# The worker's stages that move the update one state on.
STAGES = tuple(stage.name for stage in STAGE_TABLE if stage.done_by_worker and stage.state_after is not None)

# Final states.
ENDS = frozenset({State.COMMITTED, State.REJECTED, State.FAILED, State.SUPERSEDED, State.CANCELLED, State.ROLLED_BACK})
# Ends of an update whose file is kept, so that it can be retried.
RETRIABLE = ENDS - {State.COMMITTED}
# States of an update that may go on to a switch any moment, or has: it cannot be cancelled any more.
GOING_LIVE = frozenset({State.PUBLISHED, State.WARMED, State.LIVE})

# Before the switch, anything can go wrong; after it, the only way out is back.
_TROUBLE = frozenset({State.REJECTED, State.DEFERRED, State.FAILED, State.SUPERSEDED, State.CANCELLED})


def _table() -> dict[State, frozenset[State]]:
    steps = {state: _TROUBLE | {after} for state, after in itertools.pairwise(WAY)}
    return steps | {
        # A file and config that were published before need no second quantization: straight to its generation,
        # or to the end when that generation is the live one.
        State.CLAIMED: steps[State.CLAIMED] | {State.PUBLISHED, State.COMMITTED},
        State.LIVE: frozenset({State.COMMITTED, State.ROLLED_BACK}),
        State.COMMITTED: frozenset({State.ROLLED_BACK}),  # by hand, any time later
        State.DEFERRED: (_TROUBLE - {State.DEFERRED}) | {State.CLAIMED},
        State.REJECTED: frozenset(),
        State.FAILED: frozenset(),
        State.SUPERSEDED: frozenset(),
        State.CANCELLED: frozenset(),
        State.ROLLED_BACK: frozenset({State.COMMITTED}),  # by another rollback, to its generation
    }


NEXT: Mapping[State, frozenset[State]] = _table()

# Where an update goes on after the daemon was stopped in the middle. The worker's steps leave nothing behind and are
# repeated from the claimed file. A published generation is warmed anew. LIVE stays: the `current` link already says so.
_RESUME: Mapping[State, State] = {
    State.VERIFIED: State.CLAIMED,
    State.LOADED: State.CLAIMED,
    State.CALIBRATED: State.CLAIMED,
    State.QUANTIZED: State.CLAIMED,
    State.EVALUATED: State.CLAIMED,
    State.WARMED: State.PUBLISHED,
}


def advance(state: State, target: State) -> State:
    """Move from `state` to `target`.

    Raises:
        IllegalTransition: The table does not allow it.
    """
    following = NEXT.get(state, frozenset())
    if target not in following:
        allowed = ", ".join(sorted(s.value for s in following)) or "nothing: it is a final state"
        raise IllegalTransition(f"{state.value} -> {target.value}; from there: {allowed}")
    return target


def resume(state: State) -> State:
    """Return the state from which an update goes on after a restart of the daemon; most often `state` itself.

    Raises:
        IllegalTransition: The update had ended.
    """
    if state in ENDS:
        raise IllegalTransition(f"{state.value} is a final state; there is nothing to resume")
    return _RESUME.get(state, state)


def is_end(state: State) -> bool:
    """Return whether `state` is final. An operator can still take its generation out of service, or put it back."""
    return state in ENDS
