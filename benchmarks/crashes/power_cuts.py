"""Power cuts at each write of an update: what the disk may hold then, and whether the daemon can go on from it."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crashes.invariants import broken_on_disk, broken_while_running, come_to_rest
from benchmarks.crashes.power import SYNCS, TRACED, Disk, Kept
from benchmarks.crashes.scenario import SCENARIOS, SECOND, Bases, started
from edged.artifacts.digest import sha256_file
from edged.artifacts.store import ModelStore
from tests.support.daemon import ENDS
from tests.support.syscall_faults import Operation, command_prefix, operations

_MODEL = "digits"
_MOST_BYTES = 1 << 24  # more than one call writes
_UPDATE = SCENARIOS["update"]


@dataclass(frozen=True)
class Recording:
    """One update, as it changed the disk.

    Attributes:
        before: The state folder when it began.
        after: The state folder when it had ended.
        calls: Calls of the daemon and its worker meanwhile.
    """

    before: Path
    after: Path
    calls: list[Operation]


def record(bases: Bases, folder: Path) -> Recording:
    """Let the daemon start and make an update, and log every write."""
    log, before, after = folder / "log", folder / "before", folder / "after"
    ignored = shutil.ignore_patterns("*.sock", "*-shm")
    with bases.copy(_UPDATE.files, folder / "recorded") as daemon:
        shutil.copytree(daemon.state, before, symlinks=True, ignore=ignored)
        daemon.prefix = command_prefix(log, calls=TRACED, bytes_shown=_MOST_BYTES)
        daemon.start()
        _UPDATE.act(daemon, bases.task)
        come_to_rest(daemon, _UPDATE)
        bases.learn(daemon, SECOND)
        daemon.kill()
        shutil.copytree(daemon.state, after, symlinks=True, ignore=ignored)
        state = str(daemon.state)
    plain, moved = _hexadecimal(state), _hexadecimal(str(before))
    moves = (dataclasses.replace(each, arguments=each.arguments.replace(plain, moved)) for each in operations(log))
    return Recording(before, after, list(moves))


def _hexadecimal(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def disks(recording: Recording, bases: Bases) -> Iterator[tuple[str, Disk]]:
    """Yield each call that changed the disk, and the disk after it: always the same object."""
    disk = Disk(recording.before)
    disk.add(recording.before / "drop" / _MODEL / SECOND, bases.task.second)
    for operation in recording.calls:
        if disk.replay(operation):
            yield operation.call, disk


def broken_after_cut(state: Path, dropped: Path) -> Iterator[str]:
    """Yield what a daemon that starts on a state folder could not make good.

    Args:
        state: State folder.
        dropped: The file that was dropped.
    """
    store = ModelStore(state / "models")
    current, sha256 = store.current(_MODEL), sha256_file(dropped)
    if current is None:
        yield f"current leads nowhere: {store.link_problem(_MODEL)}"
    elif (damage := store.damage(_MODEL, current)) is not None:
        yield f"the live generation {current} is damaged: {damage}"
    for suffix in ("", "-wal"):
        state.with_name(f"checked.db{suffix}").unlink(missing_ok=True)
        if (state / f"journal.db{suffix}").exists():
            shutil.copy(state / f"journal.db{suffix}", state.with_name(f"checked.db{suffix}"))
    with closing(sqlite3.connect(state.with_name("checked.db"))) as journal:
        if (verdict := journal.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield f"the journal is damaged: {verdict}"
        columns = "state, sha256, generation"
        updates = journal.execute(f"SELECT {columns} FROM updates WHERE file_name = ?", (SECOND,)).fetchall()  # noqa: S608
    source, claimed = state / "drop" / _MODEL / SECOND, state / "claimed" / sha256 / "file"
    kept = [path for path in (source, claimed) if path.exists() and sha256_file(path) == sha256]
    update, known, generation = updates[0] if updates else (None, None, None)
    made = generation is not None and (state / "models" / _MODEL / "gen" / str(generation)).exists()
    whole = made and store.damage(_MODEL, generation) is None
    if not kept and not (update in ENDS and whole):
        yield f"the file is lost: its update is {update}"
    if known is not None and update not in ENDS and claimed not in kept and source not in kept and not whole:
        yield f"the update is {update} and has neither its file nor its generation"
    if update in ENDS and source.exists():
        yield "the file is in the drop folder again, and its update has ended"
    if update in ("LIVE", "COMMITTED") and not (whole and current == generation):
        yield f"the journal says that generation {generation} is live, current is {current}"


def started_after_cut(bases: Bases, folder: Path, state: Path) -> list[str]:
    """Return what does not hold once the daemon has started on a state folder and has come to rest."""
    begin = folder / "begin"
    shutil.copytree(state, begin / "state", symlinks=True)
    broken: list[str] = []
    with bases.copy(begin, folder / "cut") as daemon:
        with started(daemon):
            come_to_rest(daemon, _UPDATE)
            broken += broken_while_running(daemon, _UPDATE, bases)
        broken += broken_on_disk(daemon)
    shutil.rmtree(begin)
    return broken


def differences(disk: Disk, recording: Recording, folder: Path) -> list[str]:
    """Return how a disk, replayed to the end, differs from what the update has left: the replay would be wrong."""
    state = folder / "state"
    disk.write(state, None)
    command = ["diff", "-r", "--no-dereference", "--exclude=*-shm", recording.after, state]
    seen = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    shutil.rmtree(state)
    if seen.returncode == 0:
        return []
    return [f"replayed to the end, the disk is not the real one: {(seen.stdout + seen.stderr)[:500]!a}"]


def try_cuts(bases: Bases, folder: Path, starts: int) -> Iterator[Cuts]:
    """Cut the power after each write of an update, and check what is on the disk.

    Args:
        bases: State folders to begin with.
        folder: Folder to work in.
        starts: On how many of these disks the daemon is started, evenly spread, for each kind of cut.
    """
    recording = record(bases, folder)
    replayed = [disk for _, disk in disks(recording, bases)]
    count = len(replayed)
    begun = {(index * 2 + 1) * count // (2 * starts) for index in range(starts)}
    found = {kept: Cuts(kept) for kept in Kept}
    found[Kept.NOTHING].broken += differences(replayed[-1], recording, folder)
    for index, (call, disk) in enumerate(disks(recording, bases)):
        for kept, cuts in found.items():
            if index not in begun and kept is Kept.NOTHING and call not in SYNCS:
                continue  # nothing has changed
            state = folder / "state"
            disk.write(state, kept)
            cuts.disks += 1
            broken = list(broken_after_cut(state, bases.task.second))
            if index in begun:
                cuts.starts += 1
                broken += started_after_cut(bases, folder, state)
            cuts.broken += [f"call {index}, {call}, {kept.name}: {each}" for each in broken]
            shutil.rmtree(state)
    yield from found.values()


@dataclass
class Cuts:
    """Power cuts of one kind.

    Attributes:
        kept: What was left of what was not synced.
        disks: Number of disks that were checked.
        starts: Number of those on which the daemon was started.
        broken: What did not hold.
    """

    kept: Kept
    disks: int = 0
    starts: int = 0
    broken: list[str] = field(default_factory=list)
