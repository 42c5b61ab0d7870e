"""The supervisor's side of reports. Never a reason for an update to fail: what cannot be written is told in the log."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from edged.atomic import write_atomic
from edged.errors import EdgedError
from service.daemon.context import Context
from service.reporting.data import COURSE, EVIDENCE, PAGE, ResourceTrace, folder_of, gather, is_of
from service.reporting.page import render

log = logging.getLogger(__name__)


def keep_resource_trace(folder: Path, course: ResourceTrace) -> None:
    """Leave what was seen of a worker in the folder that it worked in, which is made if it failed early."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COURSE).write_bytes(course.to_json())
    except OSError as error:
        log.warning("update %d: its report goes without memory over time: %s", course.update, error)


def keep_evidence(source: Path, target: Path) -> None:
    """Copy what a report consists of from where a worker left it to where its refused file is kept."""
    if not (source / COURSE).exists():  # no worker ran for this update
        return
    for name in EVIDENCE:
        try:
            (target / name).unlink(missing_ok=True)  # of an earlier update of the same file
            if (source / name).exists():
                shutil.copyfile(source / name, target / name)
        except OSError as error:
            log.warning("the report in %s goes without %s: %s", target, name, error)


async def write_report(context: Context, update_id: int) -> None:
    """Write report.html beside report.json, or beside reason.json; not into the folder of an earlier update."""
    await context.disk(_write, context, update_id)


def _write(context: Context, update_id: int) -> None:
    try:
        update = context.journal.get(update_id)
        folder = None if update is None else folder_of(update, context.store, context.paths)
        if update is None or folder is None or not is_of(update, folder):
            return
        data = gather(context.journal, context.store, context.paths, update_id)
        write_atomic(folder / PAGE, render(data).encode())
    except (OSError, EdgedError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("update %d: no report.html: %r", update_id, error)
