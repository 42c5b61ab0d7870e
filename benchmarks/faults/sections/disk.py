"""Full and failing disks: an update meets the fault at each of its writes, waits, and goes live once it is gone."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.section import Row, some
from benchmarks.faults.trained import trained
from benchmarks.markdown import table
from benchmarks.sick_device import disk as sick
from benchmarks.sick_device.daemon import Drops, serving
from benchmarks.sick_device.disk import JOURNAL, NAMES, PLACES, SYNCS, Outcome, Trial
from tests.support import small_disk, syscall_faults
from tests.support.daemon import Daemon
from tests.support.small_disk import PAGE_BYTES, SmallDisk
from tests.support.syscall_faults import EVERY, Fault
from tests.support.tasks import Task

TITLE = "Full and failing disks"
ERRORS = ("EIO", "EDQUOT", "EROFS")
CALLS = {"sync": SYNCS, "create or rename": NAMES, "write the journal": JOURNAL}
NUMBERS = (EVERY, "1", "2", "3", "5", "8")
KINDS = ("no space", "no inodes", *ERRORS)

Moment = tuple[str, Callable[[Callable[[], None]], AbstractContextManager[object]]]


def measure(options: argparse.Namespace) -> list[Row]:
    """Drop a checkpoint at each moment of each fault; return a row for each fault."""
    with trained() as (task, folder):
        return [row(kind, trials(kind, folder, task, options.times)) for kind in KINDS]


def row(kind: str, outcomes: Sequence[Outcome]) -> Row:
    """Return what became of the drops that met a fault."""
    waited = [outcome for outcome in outcomes if outcome.waited is not None]
    return {
        "fault": kind,
        "moments": len(outcomes),
        "in_drop_folder": sum(outcome.waited.startswith("in the drop folder") for outcome in waited if outcome.waited),
        "deferred": sum(outcome.waited.startswith("DEFERRED") for outcome in waited if outcome.waited),
        "harmless": len(outcomes) - len(waited),
        "waited": len(waited),
        "seconds": max((outcome.seconds for outcome in waited), default=0.0),
        "faults": [fault for outcome in outcomes for fault in outcome.faults],
    }


def trials(kind: str, folder: Path, task: Task, most: int | None = None) -> list[Outcome]:
    """Drop a checkpoint at each moment of one fault.

    Args:
        kind: One of KINDS.
        folder: Folder for the files.
        task: Checkpoints and images.
        most: Most moments, evenly spread; None for all.
    """
    with ExitStack() as held:
        work = folder / kind.replace(" ", "-")
        if (why := small_disk.missing() or (syscall_faults.missing() if kind in ERRORS else None)) is not None:
            raise SystemExit(why)
        disk = held.enter_context(small_disk.small_disk(work, sick.SIZE, sick.INODES))
        drops = Drops(task, folder)
        daemon, traffic = held.enter_context(serving(work / "edged", folder / f"{work.name}.log", task, drops))
        trial = Trial(daemon, traffic, drops)
        found = list(moments(kind, daemon, disk, -(-task.first.stat().st_size // PAGE_BYTES), folder / "strace"))
        outcomes = []
        for name, fault in some(found, most):
            outcomes.append(trial.run(name, fault))
            print("   ", kind, outcomes[-1], flush=True)
        if not traffic.answers:
            outcomes[-1].faults.append("no request was answered")
    return outcomes


def moments(kind: str, daemon: Daemon, disk: SmallDisk, pages: int, log: Path) -> Iterator[Moment]:
    """Yield the moments at which a fault begins.

    Args:
        kind: One of KINDS.
        daemon: Daemon that meets it.
        disk: Its disk.
        pages: Size of a checkpoint in pages.
        log: File for what was injected.
    """
    if kind == "no space":
        for left in (0, 1, 2, 3, 5, 10, pages // 2, pages - 1, *range(pages, pages + 24, 2)):
            yield f"{left} pages left", partial(sick.full, disk, pages=left)
        for place, left in itertools.product(PLACES, (0, 1, 2, 4, 8, 16, 64)):
            yield (
                f"{left} pages left once {place}",
                partial(sick.filled_at, daemon.state, disk, place=place, pages=left),
            )
    elif kind == "no inodes":
        for left in range(14):
            yield f"{left} inodes left", partial(sick.crowded, disk, inodes=left)
    else:
        for (name, calls), number in itertools.product(CALLS.items(), NUMBERS):
            yield f"{name} {number}", partial(sick.failing, daemon, log=log, fault=Fault(calls, kind, number))


def page(rows: list[Row]) -> str:
    """Return text and table."""
    total = {
        key: sum(row[key] for row in rows) for key in ("moments", "in_drop_folder", "deferred", "waited", "harmless")
    }
    others = total["waited"] - total["in_drop_folder"] - total["deferred"]
    text = (
        f"{total['moments']} checkpoints, each dropped so that it meets the fault somewhere else on its way: with so"
        " many pages or inodes left when it is dropped, with the disk filled once it has come to a place, or with the"
        " n-th call of a kind, or each, failing in all threads of the supervisor and in its worker (by strace). Then"
        f" the fault ends. {total['in_drop_folder']} waited in the drop folder, {total['deferred']} were deferred and"
        f" {others} waited as published or live, each with its reason in the log and in status or history; the others"
        " did not need what failed. All went live by themselves. Meanwhile each request to the live generation was"
        " answered, and the daemon did not end. Afterwards all generations had the digests of their manifests, the"
        " journal agreed with the disk, and no file was left behind."
    )
    header = (
        *("fault", "moments", "in the drop folder", "deferred", "did not need it"),
        *("lost", "seconds until live at most"),
    )
    lines: list[Sequence[Any]] = [
        (
            *(row["fault"], row["moments"], row["in_drop_folder"], row["deferred"], row["harmless"]),
            *(len(row["faults"]), row["seconds"]),
        )
        for row in rows
    ]
    return f"{text}\n\n{table(header, lines)}"
