"""The states of an update and the moves between them, as data. Pure: no clock, no storage.

    DROPPED > SETTLED > CLAIMED > VERIFIED > LOADED > CALIBRATED > QUANTIZED > EVALUATED > PUBLISHED > WARMED > LIVE
    > COMMITTED

Every state is a past participle: what has been done, not what is going on.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping


class State(str, enum.Enum):
    """How far an update has come."""

    DROPPED = "DROPPED"  # seen in the drop folder
    SETTLED = "SETTLED"  # nobody writes to it any more
    CLAIMED = "CLAIMED"  # ours, hashed, under claimed/
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
    ROLLED_BACK = "ROLLED_BACK"  # it was live; the generation before it is again


class IllegalTransition(Exception):  # noqa: N818 - the name of the contract; it says what happened, like StopIteration
    """A move that the table does not hold: a mistake in the program, never in the input."""


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

# The stages that a worker reports, in order; each moves the update one state on.
STAGES = ("verify", "load", "calibrate", "quantize", "evaluate")

# Nothing is left to do.
ENDS = frozenset({State.COMMITTED, State.REJECTED, State.FAILED, State.SUPERSEDED, State.ROLLED_BACK})

# Before the switch, anything can go wrong; after it, the only way out is back.
_TROUBLE = frozenset({State.REJECTED, State.DEFERRED, State.FAILED, State.SUPERSEDED})


def _table() -> dict[State, frozenset[State]]:
    steps = {state: _TROUBLE | {after} for state, after in itertools.pairwise(WAY)}
    return steps | {
        # A file and config that were published before need no second quantization: straight to its generation,
        # or to the end when that generation is the live one.
        State.CLAIMED: steps[State.CLAIMED] | {State.PUBLISHED, State.COMMITTED},
        State.LIVE: frozenset({State.COMMITTED, State.ROLLED_BACK}),
        State.COMMITTED: frozenset({State.ROLLED_BACK}),  # by hand, any time later
        State.DEFERRED: frozenset({State.CLAIMED, State.REJECTED, State.FAILED, State.SUPERSEDED}),
        State.REJECTED: frozenset(),
        State.FAILED: frozenset(),
        State.SUPERSEDED: frozenset(),
        State.ROLLED_BACK: frozenset(),
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
    if target not in NEXT[state]:
        allowed = ", ".join(sorted(s.value for s in NEXT[state])) or "nothing: it is an end"
        raise IllegalTransition(f"{state.value} -> {target.value}; from there: {allowed}")
    return target


def resume(state: State) -> State:
    """The state from which an update goes on after a restart of the daemon; most often `state` itself.

    Raises:
        IllegalTransition: The update had ended.
    """
    if state in ENDS:
        raise IllegalTransition(f"{state.value} is an end; there is nothing to resume")
    return _RESUME.get(state, state)


def is_end(state: State) -> bool:
    """Whether nothing is left to do. COMMITTED can still be rolled back by hand."""
    return state in ENDS
