"""What is done again and again as long as the daemon lives: every ten seconds, and every hour."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.daemon.context import Context
from service.daemon.samples import EVERY_S, Samples
from service.storage.retention import trim

_CHECK_S = EVERY_S  # each look wakes an idle device; a hang is judged in minutes, so nothing is lost by so few
_TRIM_S = 3600.0  # images of requests and rejected files get too old without any new ones, too


async def keep_house(context: Context, samples: Samples, tell: Callable[[], None]) -> None:
    """Look after the generations, note how they do, and have go what is too old; ends when it is cancelled.

    Args:
        context: What the supervisor owns.
        samples: Where to note it.
        tell: Tells what is going on.
    """
    trim_at = 0.0
    with context.liveness.loop("check of the generations") as loop:
        while True:
            tell()
            for service in context.servers.values():
                service.check()
            samples.take_if_due(time.monotonic(), context.servers)
            if time.monotonic() >= trim_at:
                trim_at = time.monotonic() + _TRIM_S
                await context.disk(trim, context.config, context.paths, context.journal)
            loop.expect_within(_CHECK_S)
            await asyncio.sleep(_CHECK_S)
