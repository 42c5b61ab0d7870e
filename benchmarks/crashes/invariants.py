"""What must hold after any fault, once the daemon runs again and has come to rest."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.crashes.scenario import Bases, Scenario
from edged.artifacts.store import ModelStore
from tests.support.daemon import ENDS, Daemon, eventually, processes, tracebacks

PATIENCE_S = 600.0  # a traced worker on a busy machine takes minutes
_MODEL = "digits"
_IN_SERVICE = ("COMMITTED", "LIVE")


def is_at_rest(daemon: Daemon, scenario: Scenario) -> bool:
    """Return whether the daemon serves and has nothing to do any more."""
    if daemon.get("/v2/health/ready").status_code != 200:
        return False
    updates = daemon.updates()
    if any(update["state"] not in ENDS for update in updates):
        return False
    if not set(scenario.dropped) <= {update["file_name"] for update in updates}:
        return False
    return not any(list(folder.iterdir()) for folder in (daemon.state / "claimed", daemon.state / "drop" / _MODEL))


def come_to_rest(daemon: Daemon, scenario: Scenario) -> None:
    """Wait until the daemon has nothing to do any more.

    Raises:
        AssertionError: It does not come to that in time.
    """
    eventually(lambda: is_at_rest(daemon, scenario), "rest", PATIENCE_S)


def states_of(daemon: Daemon, update: int) -> tuple[str, ...]:
    """Return the states of an update, one after another."""
    events = daemon.get(f"/edged/v1/updates/{update}").json()["events"]
    return tuple(state for state, _ in itertools.groupby(event["state"] for event in events))  # notes repeat it


def broken_while_running(daemon: Daemon, scenario: Scenario, bases: Bases) -> Iterator[str]:
    """Yield what does not hold of a running daemon that has come to rest: service, and what became of the drops."""
    updates: list[dict[str, Any]] = daemon.updates()
    for name, states in scenario.ends.items():
        found = [update for update in updates if update["file_name"] == name]
        if not found or found[0]["state"] not in states:
            yield f"{name} ended as {[update['state'] for update in found]}, not as {states}"
        if len(found) > 1 + scenario.retries:
            yield f"{name} became {len(found)} updates"
    for update in updates:
        states = states_of(daemon, update["id"])
        counts = Counter(states)
        if counts["COMMITTED"] > 1 or counts["LIVE"] > 1:
            yield f"{update['file_name']} was applied more than once: {states}"
    live = daemon.generation()
    newest = next((update for update in updates if update["state"] in _IN_SERVICE), None)
    if newest is None or live != newest["generation"]:
        yield f"generation {live} serves, the journal says {newest and newest['generation']}"
    else:
        answer, expected = bases.answer(daemon), bases.expected(newest["file_name"])
        if answer != expected:
            yield f"generation {live} of {newest['file_name']} answers {answer!r:.300}, not {expected!r:.300}"
    yield from tracebacks(daemon.log.read_text(errors="replace"))


def broken_on_disk(daemon: Daemon) -> Iterator[str]:
    """Yield what does not hold of the state folder once the daemon has been stopped."""
    state = daemon.state
    store = ModelStore(state / "models")
    yield from damaged(state)
    with closing(_journal(state)) as journal:
        known = {row[0] for row in journal.execute("SELECT generation FROM updates")}
        details = [json.loads(row[0]) for row in journal.execute("SELECT detail FROM events WHERE state = 'PUBLISHED'")]
    known |= {detail.get("generation") for detail in details}  # of an update that was quantized again since
    if unknown := set(store.generations(_MODEL)) - known:
        yield f"generations that the journal does not know: {sorted(unknown)}"
    if store.current(_MODEL) not in store.generations(_MODEL) or store.link_problem(_MODEL) is not None:
        yield f"current leads to no generation: {store.link_problem(_MODEL)}"
    for leftover in _leftovers(state):
        yield f"left behind: {leftover.relative_to(state)}"
    if left := processes(daemon):
        yield f"processes left behind: {[process.cmdline() for process in left]}"


def damaged(state: Path) -> Iterator[str]:
    """Yield the generations that do not match their digests, and what is wrong with the file of the journal."""
    store = ModelStore(state / "models")
    for generation in store.generations(_MODEL):
        if (damage := store.damage(_MODEL, generation)) is not None:
            yield f"generation {generation} is damaged: {damage}"
    with closing(_journal(state)) as journal:
        if (verdict := journal.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield f"the journal is damaged: {verdict}"


def _journal(state: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{state}/journal.db?mode=ro", uri=True)


def _leftovers(state: Path) -> Iterator[Path]:
    for folder in ("claimed", "staging"):
        yield from (state / folder).iterdir()
    for path in state.rglob("*.tmp"):
        if path.parent.name not in ("claimed", "staging"):
            yield path
