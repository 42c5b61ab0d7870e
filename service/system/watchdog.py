"""Feed the service manager's watchdog, but only while every loop makes progress and HTTP requests are answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from service.system.liveness import Liveness
from service.system.systemd import StatusLine, sd_notify

log = logging.getLogger(__name__)

HTTP = "http"


async def beat(liveness: Liveness, answers: Callable[[], bool], interval_s: float, status: StatusLine) -> None:
    """Check every loop once per interval, and feed the watchdog if none hangs, until this task is cancelled.

    Args:
        liveness: Registry of the loops.
        answers: Function that sends a request to this daemon and returns whether it was answered: whether connections
            are accepted, requests parsed and responses sent. It is called in a thread, and should return well before
            the next beat.
        interval_s: Seconds between two beats; half of the time that the service manager allows.
        status: Status line that names the loops that hang.
    """
    hung: list[str] = []
    while True:
        before, hung = hung, [*liveness.overdue(), *([] if await asyncio.to_thread(answers) else [HTTP])]
        if not hung:
            sd_notify("WATCHDOG=1")
            status.trouble = None
        else:
            status.trouble = f"no progress: {', '.join(hung)}"
            if hung != before:
                log.error("%s; the watchdog is not fed until they make progress", status.trouble)
        status.refresh()
        await asyncio.sleep(interval_s)
