"""What `edged submit --wait` says while it waits: a line that overwrites itself on a terminal, else one a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from service.journal.states import ENDS, State
from service.units import format_bytes, format_seconds

CLAIMED = "CLAIMED, until it is its turn and a worker has started"
_REPEAT_S = 30.0  # a line at least this often shows that the command still waits


class WaitProgress:
    """Shows the progress of one update.

    Args:
        stream: Stream to write to.
        clock: Function that returns monotonic seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._overwrites = stream.isatty()
        self._clock = clock
        self._start = self._said_at = clock()
        self._shown = ""
        self._known: set[str] = set()

    def begin(self, submitted: Mapping[str, Any]) -> None:
        """Say that the file was dropped."""
        text = f"dropped {submitted['file_name']} for {submitted['model']}, {format_bytes(submitted['bytes'])}"
        if self._overwrites:
            self._stream.write(text)
            self._stream.flush()
        else:
            self._say(text)

    def show(self, update: Mapping[str, Any]) -> None:
        """Show an update after each request; nothing is written while nothing has changed."""
        name = f"update {update['id']} of {update.get('model')} ({update.get('file_name')})"
        now, share = doing(update)
        if self._overwrites:
            ended = State.read(update["state"]) in ENDS or update["state"] == State.DEFERRED
            self._stream.write(f"\r\x1b[K{'' if ended else f'{name}: {now}{share}'}")
            self._stream.flush()
            return
        for stage, seconds in (update.get("stages") or {}).items():
            if stage not in self._known:  # it was over before the next request
                self._known.add(stage)
                self._say(f"{name}: {stage} took {format_seconds(seconds)}")
        if now == CLAIMED and now in self._known:  # for a moment between two stages
            now = self._shown
        if now != self._shown or self._clock() - self._said_at >= _REPEAT_S:
            self._shown = now
            self._known.add(now)
            self._say(f"{name}: {now}{share}")

    def end(self) -> None:
        """Clear the line on a terminal, so that what follows begins in the first column."""
        if self._overwrites:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _say(self, text: str) -> None:
        self._said_at = self._clock()
        self._stream.write(f"{self._said_at - self._start:7.1f} s  {text}\n")
        self._stream.flush()


def doing(update: Mapping[str, Any]) -> tuple[str, str]:
    """Return the running stage of an update or else its state, and how far the stage is, for example " 3/21"."""
    progress = update.get("progress") or {}
    if progress.get("stage"):
        waits = f", waits for {progress['waits_for']}" if progress.get("waits_for") else ""
        share = f" {progress['done']}/{progress['total']}" if progress.get("total") else ""
        return f"{progress['stage']}{waits}", share
    if update["state"] == State.CLAIMED:
        return CLAIMED, ""
    state = str(update["state"])
    why = f": {update['reason']}" if update.get("reason") else ""
    return f"{state}{why}", ""
