"""Feeds the service manager's watchdog, and only while every loop makes progress and HTTP answers."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from edged.errors import EdgedError
from service.client import DaemonClient
from service.system.liveness import Liveness
from service.system.systemd import StatusLine, sd_notify

log = logging.getLogger(__name__)

HTTP = "http"
_PROBES_PER_BEAT = 2  # so that a late answer still leaves time for the beat


async def beat(liveness: Liveness, socket: Path, interval_s: float, status: StatusLine) -> None:
    """Look at every loop once an interval, and feed the watchdog if all is well, as long as this is not cancelled.

    The probe is a request to ourselves: it shows that connections are accepted, parsed and answered.

    Args:
        liveness: The loops.
        socket: The daemon's UNIX socket.
        interval_s: Seconds between two beats; half of what the service manager allows.
        status: Tells what hangs.
    """
    client = DaemonClient(str(socket), interval_s / _PROBES_PER_BEAT)
    hung: list[str] = []
    while True:
        before, hung = hung, [*liveness.overdue(), *await asyncio.to_thread(_probe, client)]
        if not hung:
            sd_notify("WATCHDOG=1")
            status.trouble = None
        else:
            status.trouble = f"no progress: {', '.join(hung)}"
            if hung != before:
                log.error("%s; the watchdog is not fed until there is", status.trouble)
        status.refresh()
        await asyncio.sleep(interval_s)


def _probe(client: DaemonClient) -> list[str]:
    try:
        client.get("/v2/health/live")
    except EdgedError as error:
        log.debug("the daemon does not answer itself: %s", error)
        return [HTTP]
    return []
