"""`edged status --watch`: the status again and again, redrawn on a terminal, otherwise a line for each change."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from edged.errors import EdgedError, UnavailableError
from service.cli.output import print_json
from service.cli.render import fresh_models, model_state, status
from service.cli.wait_progress import CLAIMED, doing
from service.journal.states import ENDS, State
from service.units import iso_time

JSON = Mapping[str, Any]

_EVERY_S = 1.0
_CLEAR = "\x1b[H\x1b[2J"  # cursor home, then the screen; what was there before stays above


def watch(fetch: Callable[[], JSON], update: Callable[[int], JSON], stream: TextIO, *, as_json: bool) -> NoReturn:
    """Show the status until Ctrl-C; a daemon that is started anew is waited for.

    Args:
        fetch: Returns the status.
        update: Returns an update by its number, also one that has ended.
        stream: Stream to write to.
        as_json: Whether to write one JSON object for each change.

    Raises:
        UnavailableError: No daemon answers at the first request.
    """
    changes, answer = Changes(update), fetch()
    redraws = stream.isatty() and not as_json
    while True:
        lines = list(changes.of(answer))
        answer = {key: value for key, value in answer.items() if key != "recent"}
        if redraws:
            stream.write(f"{_CLEAR}{status(answer)}\n\n{iso_time(time.time())}, every {_EVERY_S:g} s; Ctrl-C ends\n")
        elif as_json and lines:
            print_json(answer)
        else:
            stream.writelines(f"{iso_time(time.time())} {line}\n" for line in lines)
        stream.flush()
        answer = _next(fetch, stream, as_json=as_json)


def _next(fetch: Callable[[], JSON], stream: TextIO, *, as_json: bool) -> JSON:
    said = False
    while True:
        time.sleep(_EVERY_S)
        try:
            return fetch()
        except UnavailableError as error:
            if not said and not as_json:
                stream.write(f"{iso_time(time.time())} {error}; waiting for it\n")
                stream.flush()
            said = True


class Changes:
    """Compares each status with the previous one.

    Args:
        update: Returns an update by its number, also one that has ended.
    """

    def __init__(self, update: Callable[[int], JSON]) -> None:
        self._update = update
        self._known: dict[str, str] = {}
        self._open: dict[int, str] = {}
        self._seen: set[int] | None = None  # updates that need not be reported any more; None before the first status

    def of(self, answer: JSON) -> Iterator[str]:
        """Yield a line for everything that differs from the previous status; at first for everything that is there.

        Args:
            answer: The status, with "recent", the newest updates: one may have begun and ended since the previous one.
        """
        now = dict(_facts(answer))
        open_now = {int(update["id"]): _name(update) for update in answer.get("updates", [])}
        for identity in self._open.keys() - open_now.keys():  # it has ended, and is in no status any more
            name = self._open[identity]
            self._known.pop(name, None)
            yield f"{name}: {self._end_of(identity)}"
        yield from self._missed(answer.get("recent", []), open_now)
        for subject, text in now.items():
            before = self._known.get(subject)
            if text == CLAIMED and before is not None:  # for a moment between two stages
                now[subject] = before
            elif before != text:
                yield f"{subject}: {text}"
        for subject in self._known.keys() - now.keys():
            yield f"{subject}: gone"
        self._known, self._open = now, open_now

    def _missed(self, recent: Sequence[JSON], open_now: Collection[int]) -> Iterator[str]:
        """Yield a line for each update that has ended and was open in no status."""
        known = {*self._open, *open_now}
        ended = {int(update["id"]) for update in recent if State.read(update["state"]) in ENDS}
        for update in reversed(recent):  # the oldest first
            identity = int(update["id"])
            if self._seen is not None and identity in ended - self._seen - known:
                yield f"{_name(update)}: {doing({**update, 'progress': None})[0]}"
        self._seen = ended | known

    def _end_of(self, identity: int) -> str:
        try:
            return doing({**self._update(identity), "progress": None})[0]
        except EdgedError as error:
            return f"ended; {error}"


def _facts(answer: JSON) -> Iterator[tuple[str, str]]:
    """Yield subjects and what is true of each, without numbers that change all the time."""
    fresh = dict(fresh_models(answer))
    for model in answer.get("models", []):
        generation = f" generation {model['generation']}" if model.get("generation") is not None else ""
        problem = f": {model['problem']}" if model.get("problem") else ""
        where = f"; drop a checkpoint into {fresh[model['name']]}" if model.get("name") in fresh else ""
        yield f"model {model.get('name')}", f"{model_state(model)}{generation}{problem}{where}"
    queued = (row for row in answer.get("queue", []) if row.get("state") == "QUEUED")
    waiting = {row.get("update"): row.get("waiting_for") for row in queued}
    for update in answer.get("updates", []):
        waits = waiting.get(update["id"])
        yield _name(update), doing(update)[0] if waits is None else f"waits for {waits}"
    for entry in answer.get("unclaimed", []):
        yield str(entry.get("path")), f"not taken: {entry.get('reason')}"


def _name(update: JSON) -> str:
    return f"update {update['id']} of {update.get('model')} ({update.get('file_name')})"
