"""Finds finished files in the drop folder by scanning it. Events only trigger the next scan earlier.

A file is finished when it has not changed for `settle_s`, at once when it was renamed into place, and at once when a
checksum or the signature that it needs is next to it (which is then checked by service.intake.claim). No event is
needed for any of this: what events miss (an overflow of their queue, hard links, another machine's writes) the next
rescan finds.

A file that is quiet, but open for writing or visibly cut off, is waited for up to `settle_max_s`. Of a folder in the
folder of a model, one file is taken, see service.intake.run_folder. What is not taken is listed in `Watcher.unclaimed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edged.signing.verification import signature_of
from service.intake.content import Inspection, inspect, inspect_signed
from service.intake.drop_folder import Candidate, DropFolder, Refusal, Scan, sidecar_of
from service.intake.inotify import Watches, is_network_folder
from service.intake.run_folder import Run, choose, scan_run
from service.intake.stability import Fingerprint, StabilityTracker
from service.intake.temporaries import Temporaries
from service.intake.unclaimed import Unclaimed, no_checkpoint, refused
from service.intake.writers import being_written
from service.system.liveness import Liveness, Loop
from service.system.timeouts import within

log = logging.getLogger(__name__)

T = TypeVar("T")

_CALM_S = 0.05  # shortest time between two scans, however many events arrive
_OPEN_S = 10.0  # for the drop folder to respond
_POLL_S = 2.0  # longest time between two scans without events


@dataclass(frozen=True)
class Drop:
    """A finished file.

    Attributes:
        model: Model that it was dropped for.
        path: Path in the drop folder.
        size: Size in bytes.
        seen: Monotonic time of its first observation, in seconds.
        settled_by: "quiet", "rename" or "sidecar". Only after "quiet" is a wrong checksum final.
        truncated: What is missing of a file that was given up, in words; None if nothing is known to be missing.
        run: Folder of a whole training run that the file was found in; None if it was dropped by itself.
        fingerprint: Fingerprint of the file when it was found; None where it is of no use.
    """

    model: str
    path: Path
    size: int
    seen: float
    settled_by: str
    truncated: str | None = None
    run: Path | None = None
    fingerprint: Fingerprint | None = None

    @property
    def name(self) -> str:
        """Name of the file for people; within a run, its path from the run's folder on."""
        return self.path.name if self.run is None else self.path.relative_to(self.run.parent).as_posix()

    @property
    def quiet(self) -> bool:
        """Whether the file settled without changes for `settle_s`."""
        return self.settled_by == "quiet"


@dataclass(frozen=True)
class WatchOptions:
    """When a watcher scans the drop folder, and when a file counts as finished.

    Attributes:
        settle_s: Seconds without a change after which a file is finished.
        rescan_s: Seconds between two scans when no event arrives.
        mode: "auto" to use inotify events where they work, "poll" to use none.
        checksum_wait_s: Seconds that a file without a checksum has to wait for one; 0 if it needs none.
        settle_max_s: Longest wait, in seconds without a change, for a file that is open for writing or cut off.
        signature_wait_s: Seconds that a file without a signature has to wait for one, by the models that need one.
    """

    settle_s: float
    rescan_s: float
    mode: str = "auto"
    checksum_wait_s: float = 0.0
    settle_max_s: float = 3600.0
    signature_wait_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Settled:
    """A file that has not changed for long enough, or need not wait for that.

    Attributes:
        candidate: The file.
        by: How it settled, see `Drop.settled_by`.
        run: The run that it was chosen from; None if it was dropped by itself.
    """

    candidate: Candidate
    by: str
    run: Run | None = None


@dataclass(frozen=True)
class _Look:
    """What was seen of a settled file.

    Attributes:
        content: What its first bytes and its end say.
        written: Whether a process has it open for writing, or another file of its run.
    """

    content: Inspection
    written: bool


@dataclass(frozen=True)
class _Lack:
    """A file that another file needs next to it.

    Attributes:
        wait_s: Seconds for which it is waited for.
        reason: Why the other file waits.
    """

    wait_s: float
    reason: str


class Watcher:
    """Scans the drop folder until it is stopped.

    Each file is reported once, and again only after it changed or `release` was called. The callbacks run in the event
    loop and must not block.

    Args:
        folder: The drop folder.
        options: When to scan and when a file is finished.
        on_found: Called once with each finished file and each refused one.
        on_health: Called after each scan with whether all folders exist and are watched.
        on_rebuilt: Called with the number of watches that were recreated because their folders had been replaced.
        liveness: Registry of the heartbeat. The first scan has no deadline: where it hangs, on a network share that
            does not respond, a restart would only hang again, and keep the models from being served.
    """

    def __init__(
        self,
        folder: DropFolder,
        options: WatchOptions,
        on_found: Callable[[Drop | Refusal], None],
        on_health: Callable[[bool], None] = lambda up: None,
        on_rebuilt: Callable[[int], None] = lambda count: None,
        liveness: Liveness | None = None,
    ) -> None:
        self._folder = folder
        self._options = options
        self._on_found = on_found
        self._on_health = on_health
        self._on_rebuilt = on_rebuilt
        self._liveness = liveness or Liveness()
        self._reported_rebuilds = 0
        self._tracker = StabilityTracker(options.settle_s, options.settle_max_s)
        self._temporaries = Temporaries()
        # As it was reported, with its signature if it needs one: another signature makes it a new file.
        self._reported: dict[Path, tuple[Fingerprint, Fingerprint | None]] = {}
        self._refused: set[tuple[Path, int, str]] = set()
        self._quiet_only: set[Path] = set()
        self._awaiting: dict[Path, float] = {}  # files without the checksum or signature they need: when the wait ends
        self._unchecked: set[Path] = set()  # reported without what they need, which may still follow
        self._ignored: set[Path] = set()  # signatures of models without keys, each of which is logged once
        self._renamed: set[Path] = set()
        self._renamed_lock = threading.Lock()
        self._poked = asyncio.Event()
        self._watches: Watches | None = None
        self._task: asyncio.Task[None] | None = None
        self._missing_since: float | None = None
        self._left: dict[Path, Unclaimed] = {}  # settled files and folders that are not taken
        self._resting: dict[Path, float] = {}  # released files that are left alone, until when
        self._waiting: dict[Path, Unclaimed] = {}  # files that were given back, until they are reported again
        self._held: dict[Path, Unclaimed] = {}  # quiet files that are waited for
        self._listed: dict[Path, tuple[Unclaimed, float]] = {}  # with the time when each was first seen
        self.up = False
        self.looked = False  # until then, `up` means nothing

    @property
    def unclaimed(self) -> list[dict[str, Any]]:
        """What stays in the drop folder, as JSON types: {"path", "kind", "reason", "since"}."""
        return [entry.to_dict(self._folder.root, since) for entry, since in self._listed.values()]

    async def start(self) -> None:
        """Start scanning in the background, also if the folder does not respond yet.

        Raises:
            OSError: A model's folder cannot be created.
        """
        self._loop = asyncio.get_running_loop()
        opening = asyncio.create_task(self._open())
        self._task = asyncio.create_task(self._run(opening))
        await asyncio.wait({opening}, timeout=_OPEN_S)
        if opening.done():
            opening.result()

    async def _open(self) -> None:
        await asyncio.to_thread(self._folder.make)
        if self._options.mode == "auto":
            self._watches = await asyncio.to_thread(self._open_watches)

    async def stop(self) -> None:
        """Stop scanning; files not reported by now are found after the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._watches is not None:
            watches, self._watches = self._watches, None
            await asyncio.to_thread(watches.close)

    def release(self, path: Path, *, after_s: float = 0.0) -> None:
        """Take back a reported file: it turned out not to be finished. It is reported again once it is quiet.

        Args:
            path: Path of the file.
            after_s: Seconds for which it is left alone in any case.
        """
        self._reported.pop(path, None)
        if after_s:
            self._resting[path] = time.monotonic() + after_s
        self._quiet_only.add(path)
        for folder in path.parents:  # a run that it belongs to has to be quiet again, too
            self._tracker.forget(folder)
        self._poked.set()

    def give_back(self, found: Drop | Refusal, reason: str) -> None:
        """Take back what was reported and cannot be dealt with now; it is reported again after `rescan_s`.

        Args:
            found: What was reported.
            reason: Why, as one line; listed meanwhile.
        """
        waits = f"it cannot be taken now: {reason}; tried again every {self._options.rescan_s:g} s"
        self._waiting[found.path] = Unclaimed(found.path, "file", waits)
        if isinstance(found, Refusal):
            self._resting[found.path] = time.monotonic() + self._options.rescan_s
            self._refused.discard(_identity(found))
            self._poked.set()
        else:
            self.release(found.path, after_s=self._options.rescan_s)

    async def _run(self, opening: asyncio.Task[None]) -> None:
        with self._liveness.loop("drop folder") as loop:
            with contextlib.suppress(OSError):  # reported by `start`, or from now on by on_health
                await opening
            while True:
                await self._round(loop)

    async def _round(self, loop: Loop) -> None:
        """Scan, report the results, and wait for the next scan."""
        self._poked.clear()
        # A file that was renamed before this scan is in it, unless it is gone again.
        with self._renamed_lock:
            renamed, self._renamed = self._renamed, set()
        scan, runs, self.up = await asyncio.to_thread(self._look)
        self.looked = True
        now = time.monotonic()
        self._refuse(scan)
        self._forget_gone(scan, runs)
        settled = self._settled(scan, runs, renamed, now)
        self._note_ignored(scan)
        signed = self._options.signature_wait_s
        looks = await asyncio.to_thread(_look_at, settled, signed) if settled else {}
        for file in settled:
            self._decide(file, looks.get(file.candidate.path), now)
        self._list_unclaimed(scan)
        due = self._next_due(scan, runs, now)
        self._report_health()
        rest = min(self._interval_s(), max(due - time.monotonic(), 0.0))
        loop.expect_within(rest)  # the grace period covers the next scan
        with contextlib.suppress(asyncio.TimeoutError):
            await within(rest, self._poked.wait())
        await asyncio.sleep(_CALM_S)

    def _look(self) -> tuple[Scan, list[Run], bool]:
        """Repair the watches, then scan: in this order, so that no change between the two is missed."""
        watched = True
        if self._watches is not None:
            try:
                watched = self._watches.ensure(self._folder.folders)
            except OSError as error:
                log.warning("no more inotify watches (%s); looking every %.0f s instead", error, self._interval_s())
                watched = False
        scan = self._folder.scan()
        self._temporaries.remove_abandoned(scan.temporaries, time.monotonic())
        if scan.missing:
            self._replace_missing()
        else:
            self._missing_since = None
        runs = [scan_run(model, path) for model, path in scan.folders if model]
        return scan, runs, watched and not scan.missing

    def _replace_missing(self) -> None:
        """Create removed folders after a delay, because the process that removed them may recreate them."""
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= self._options.rescan_s:
            self._missing_since = None
            with contextlib.suppress(OSError):  # reported by on_health until it works
                self._folder.make()

    def _refuse(self, scan: Scan) -> None:
        """Report refused files once; what belongs to no model is only listed."""
        for refusal in scan.refusals:
            if refusal.model and _identity(refusal) not in self._refused and not self._is_resting(refusal.path):
                self._refused.add(_identity(refusal))
                self._waiting.pop(refusal.path, None)
                self._call(self._on_found, refusal)

    def _settled(self, scan: Scan, runs: list[Run], renamed: set[Path], now: float) -> list[_Settled]:
        """Return the files that can be finished and were not reported yet."""
        found = []
        for candidate in scan.candidates:
            if self._is_new(candidate):
                quiet = self._tracker.observe(candidate.path, candidate.fingerprint, now)
                moved = candidate.path in renamed
                if quiet or (candidate.path not in self._quiet_only and (moved or self._is_vouched_for(candidate))):
                    found.append(_Settled(candidate, "quiet" if quiet else "rename" if moved else "sidecar"))
        for run in runs:
            if self._tracker.observe(run.path, run.fingerprint, now) and (file := self._choose(run)) is not None:
                self._tracker.observe(file.path, file.fingerprint, now)
                found.append(_Settled(file, "quiet", run))
        return found

    def _is_new(self, candidate: Candidate) -> bool:
        """Return whether a file was not reported as it is now, and is not to be left alone for a while."""
        if self._is_resting(candidate.path):
            return False
        unchecked = candidate.path in self._unchecked and self._lacks(candidate) is None
        return unchecked or self._reported.get(candidate.path) != self._identity(candidate)

    def _identity(self, candidate: Candidate) -> tuple[Fingerprint, Fingerprint | None]:
        """Return what makes a file another one when it changes."""
        return candidate.fingerprint, candidate.signature if self._needs_signature(candidate) else None

    def _needs_signature(self, candidate: Candidate) -> bool:
        return candidate.model in self._options.signature_wait_s

    def _is_vouched_for(self, candidate: Candidate) -> bool:
        """Return whether a file next to it says what it has to contain, so that it need not settle."""
        return candidate.sidecar or (self._needs_signature(candidate) and candidate.signature is not None)

    def _lacks(self, candidate: Candidate) -> _Lack | None:
        """Return what a file needs next to it, and has not got; None if it has it."""
        path = candidate.path
        if self._needs_signature(candidate) and candidate.signature is None:
            wait_s, name = self._options.signature_wait_s[candidate.model], signature_of(path).name
            return _Lack(wait_s, f"it waits up to {wait_s:g} s for {name}: {candidate.model} has trust.keys")
        if self._options.checksum_wait_s and not candidate.sidecar:
            wait_s, name = self._options.checksum_wait_s, sidecar_of(path).name
            return _Lack(wait_s, f"it waits up to {wait_s:g} s for {name}: drop.require_checksum is set")
        return None

    def _is_resting(self, path: Path) -> bool:
        """Return whether a released file is to be left alone."""
        return time.monotonic() < self._resting.get(path, 0.0)

    def _choose(self, run: Run) -> Candidate | None:
        """Return the file that is taken of a settled run; None if there is none, or it was reported before."""
        choice = choose(run)
        if choice.name is None:
            self._left[run.path] = Unclaimed(run.path, "folder", choice.reason)
            return None
        path = run.path / choice.name
        has_checksum = sidecar_of(path).name in run.sidecars
        signature = run.signatures.get(signature_of(Path(choice.name)).as_posix())
        candidate = Candidate(run.model, path, run.files[choice.name], has_checksum, signature)
        return candidate if self._is_new(candidate) else None

    def _decide(self, file: _Settled, look: _Look | None, now: float) -> None:
        """Report a settled file, or wait on, or leave it where it is because it is no checkpoint."""
        candidate, path = file.candidate, file.candidate.path
        self._held.pop(path, None)
        self._waiting.pop(path, None)
        truncated = None
        if look is not None and not look.content.is_checkpoint:
            self._reported[path] = self._identity(candidate)
            self._left[path] = no_checkpoint(path)
            return
        if look is not None and file.by == "quiet" and (look.written or look.content.missing is not None):
            if self._tracker.hold(path, now):
                self._held[path] = _unfinished(path, look, self._options.settle_max_s)
                return
            truncated = look.content.missing
        lack = self._lacks(candidate)
        if lack is not None and self._waits_for(lack, path, now):
            return
        waited = self._awaiting.pop(path, None) is not None or path in self._unchecked
        awaited = waited and lack is None and path not in self._quiet_only
        self._unchecked.discard(path)
        if lack is not None:
            self._unchecked.add(path)
        self._reported[path] = self._identity(candidate)
        seen = self._tracker.first_seen(path if file.run is None else file.run.path)
        self._tracker.forget(path)
        drop = Drop(
            model=candidate.model,
            path=path,
            size=candidate.fingerprint.size,
            seen=now if seen is None else seen,
            settled_by="sidecar" if awaited else file.by,  # one that has just appeared may not be complete yet
            truncated=truncated,
            run=None if file.run is None else file.run.path,
            fingerprint=candidate.fingerprint,
        )
        self._call(self._on_found, drop)

    def _list_unclaimed(self, scan: Scan) -> None:
        """List what stays in the drop folder, and log each entry once."""
        entries = {entry.path: entry for entry in refused(scan, self._folder.models)} | self._left | self._held
        entries |= self._waiting
        journaled = {refusal.path for refusal in scan.refusals if refusal.model}
        listed = {}
        for path in sorted(entries):
            known, since = self._listed.get(path, (None, time.time()))
            listed[path] = (entries[path], since)
            held = path in self._held  # its reason changes with each piece that arrives
            if path in self._waiting:  # whoever gave it back has logged why
                continue
            if path not in journaled and (known is None or (known.reason != entries[path].reason and not held)):
                what = "is waited for" if held else "stays in the drop folder"
                log.log(logging.INFO if held else logging.WARNING, "%s %s: %s", path, what, entries[path].reason)
        self._listed = listed

    def _next_due(self, scan: Scan, runs: list[Run], now: float) -> float:
        """Return the latest time of the next scan."""
        unsettled = [candidate.path for candidate in scan.candidates if self._is_new(candidate)]
        unsettled += [run.path for run in runs if not self._tracker.observe(run.path, run.fingerprint, now)]
        unsettled += [path for path in self._held if path not in unsettled]
        due = self._tracker.next_due([path for path in unsettled if path not in self._awaiting])
        later = [*self._awaiting.values(), *(until for until in self._resting.values() if until > now)]
        return min([now + self._interval_s() if due is None else due, *later])

    def _waits_for(self, lack: _Lack, path: Path, now: float) -> bool:
        """Return whether a file that is finished still has to wait for what it lacks."""
        if now >= self._awaiting.setdefault(path, now + lack.wait_s):
            return False
        self._held[path] = Unclaimed(path, "file", lack.reason)
        return True

    def _note_ignored(self, scan: Scan) -> None:
        """Log, once each, the signatures of models that have no keys to check them with."""
        found = {path: model for model, path in scan.signatures if model not in self._options.signature_wait_s}
        for path in sorted(found.keys() - self._ignored):
            if found[path]:
                log.info("%s is ignored: model %s has no trust.keys to check it with", path, found[path])
        self._ignored = set(found)

    def _forget_gone(self, scan: Scan, runs: list[Run]) -> None:
        """Forget files that are gone: a later file of the same name is another file. Forget what is settled anew."""
        files = {candidate.path: candidate.fingerprint for candidate in scan.candidates}
        files |= {run.path / name: fingerprint for run in runs for name, fingerprint in run.files.items()}
        present = files.keys() | {run.path for run in runs}
        refused = {refusal.path for refusal in scan.refusals}
        self._tracker.keep_only(present)
        self._quiet_only &= present
        self._unchecked &= present
        for path in self._awaiting.keys() - present:
            del self._awaiting[path]
        for path in self._reported.keys() - present:
            del self._reported[path]
        self._resting = {path: until for path, until in self._resting.items() if path in present | refused}
        self._waiting = {path: entry for path, entry in self._waiting.items() if path in present | refused}
        self._refused &= {_identity(refusal) for refusal in scan.refusals}
        self._left = {
            path: entry
            for path, entry in self._left.items()
            if entry.kind == "file" and path in files and self._reported.get(path, (None,))[0] == files[path]
        }
        self._held = {path: entry for path, entry in self._held.items() if path in files}

    def _report_health(self) -> None:
        self._call(self._on_health, self.up)
        rebuilds = 0 if self._watches is None else self._watches.rebuilds
        if rebuilds > self._reported_rebuilds:
            self._call(self._on_rebuilt, rebuilds - self._reported_rebuilds)
            self._reported_rebuilds = rebuilds

    def _interval_s(self) -> float:
        return self._options.rescan_s if self._watches is not None and self.up else min(self._options.rescan_s, _POLL_S)

    def _open_watches(self) -> Watches | None:
        if is_network_folder(self._folder.root):
            log.info("drop folder %s is on a network filesystem; looking every %.0f s", self._folder.root, _POLL_S)
            return None
        try:
            return Watches(self._on_event)
        except (OSError, ImportError) as error:
            log.warning("no inotify (%s); looking every %.0f s instead", error, _POLL_S)
            return None

    def _on_event(self, renamed: Path | None) -> None:
        """Request a scan; called in a thread of the observer."""
        if renamed is not None:
            with self._renamed_lock:
                self._renamed.add(renamed)
        if not self._poked.is_set():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._poked.set)

    def _call(self, callback: Callable[[T], None], value: T) -> None:
        try:
            callback(value)
        except Exception:  # the watcher must outlive a mistake elsewhere
            log.exception("the drop folder's listener failed")


def _identity(refusal: Refusal) -> tuple[Path, int, str]:
    return refusal.path, refusal.size, refusal.code


def _look_at(settled: list[_Settled], signed: Collection[str]) -> dict[Path, _Look]:
    """Look into settled files, and at who has them open; files that cannot be read are left out.

    Args:
        settled: The files.
        signed: Models whose files need a signature, and are not looked into before it was verified.
    """
    parts = {file.candidate.path: [file.candidate.path, signature_of(file.candidate.path)] for file in settled}
    parts |= {file.candidate.path: [file.run.path / name for name in file.run.files] for file in settled if file.run}
    written = being_written([part for paths in parts.values() for part in paths])
    looks = {}
    for candidate in (file.candidate for file in settled):
        look_into = inspect_signed if candidate.model in signed else inspect
        with contextlib.suppress(OSError):  # the claim says what is wrong with it
            looks[candidate.path] = _Look(look_into(candidate.path), not written.isdisjoint(parts[candidate.path]))
    return looks


def _unfinished(path: Path, look: _Look, settle_max_s: float) -> Unclaimed:
    why = "a process has it open for writing" if look.written else f"it is cut off: {look.content.missing}"
    return Unclaimed(path, "file", f"it is not finished: {why}; waiting up to {settle_max_s:g} s without a change")
