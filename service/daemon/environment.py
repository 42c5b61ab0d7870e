"""How the daemon is connected to the system that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from service.system.liveness import Liveness
from service.system.log_ring import LogRing
from service.system.logs import MessageFormatter


@dataclass(frozen=True)
class Environment:
    """The daemon's connections to the outside, apart from its sockets.

    Attributes:
        address: URL under which the daemon answers.
        liveness: Registry of the loops that the service manager's watchdog depends on.
        report_status: Receives a status line every ten seconds.
        log_ring: The last lines of the log.
    """

    address: str = ""
    liveness: Liveness = field(default_factory=Liveness)
    report_status: Callable[[str], None] = lambda line: None
    log_ring: LogRing = field(default_factory=lambda: LogRing(MessageFormatter()))
