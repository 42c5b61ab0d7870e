"""Periodic work for as long as the daemon lives: every ten seconds, and every hour."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from service.config.current import CurrentConfig
from service.daemon.samples import EVERY_S, Samples
from service.serving.model_server import ModelServer
from service.storage.retention import trim
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.system.liveness import Liveness

_CHECK_S = EVERY_S  # each check wakes an idle device; a hang is judged in minutes, so nothing is lost by so few
_TRIM_S = 3600.0  # images of requests and rejected files expire without new ones, too


class Housekeeping:
    """Checks the generations, samples their requests, and deletes expired files.

    Args:
        config: Configuration in force.
        folder: State folder with the files that expire.
        disk: Thread for disk work.
        servers: Servers of the configured models, by name.

    Attributes:
        samples: The last hour of each model.
    """

    def __init__(
        self, config: CurrentConfig, folder: StateFolder, disk: Disk, servers: Mapping[str, ModelServer]
    ) -> None:
        self.samples = Samples()
        self._config = config
        self._folder = folder
        self._disk = disk
        self._servers = servers

    async def run(self, liveness: Liveness, report_status: Callable[[], None]) -> None:
        """Work until cancelled.

        Args:
            liveness: Registers the loop.
            report_status: Called every ten seconds.
        """
        trim_at = 0.0
        with liveness.loop("check of the generations") as loop:
            while True:
                report_status()
                for server in self._servers.values():
                    server.check()
                self.samples.take_if_due(time.monotonic(), self._servers)
                if time.monotonic() >= trim_at:
                    trim_at = time.monotonic() + _TRIM_S
                    await self.delete_expired()
                loop.expect_within(_CHECK_S)
                await asyncio.sleep(_CHECK_S)

    async def delete_expired(self) -> None:
        """Delete files of the state folder that have expired."""
        await self._disk(trim, self._config.current, self._folder.paths, self._folder.journal)
