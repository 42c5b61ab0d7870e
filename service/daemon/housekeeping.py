"""Periodic work for as long as the daemon lives: every ten seconds, every hour, and every day."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from service.config.current import CurrentConfig
from service.daemon.samples import EVERY_S, Samples
from service.rollout.recovery import Recovery
from service.serving.model_server import ModelServer
from service.storage.retention import trim
from service.storage.scrub import InterruptedScrubError, Scrub, scrub_models
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.system.liveness import Liveness

log = logging.getLogger(__name__)

_CHECK_S = EVERY_S  # each check wakes an idle device; a hang is judged in minutes, so nothing is lost by so few
_TRIM_S = 3600.0  # images of requests and rejected files expire without new ones, too

_FIRST_SCRUB_S = 3600.0  # after the start: devices that are switched off each night need it, too


class Housekeeping:
    """Checks the generations, samples their requests, and deletes expired files.

    Args:
        config: Configuration in force.
        folder: State folder with the files that expire.
        disk: Thread for disk work.
        servers: Servers of the configured models, by name.
        scrub: Checks generations on the disk.
        recovery: Receives what is damaged.

    Attributes:
        samples: The last hour of each model.
    """

    def __init__(
        self,
        config: CurrentConfig,
        folder: StateFolder,
        disk: Disk,
        servers: Mapping[str, ModelServer],
        scrub: Scrub,
        recovery: Recovery,
    ) -> None:
        self.samples = Samples()
        self._config = config
        self._folder = folder
        self._disk = disk
        self._servers = servers
        self._scrub = scrub
        self._recovery = recovery
        self._to_scrub: list[tuple[str, int]] = []
        self._scrub_at: float | None = None
        self._scrubbing: asyncio.Task[None] | None = None

    async def run(self, liveness: Liveness, report_status: Callable[[], None]) -> None:
        """Work until cancelled.

        Args:
            liveness: Registers the loop.
            report_status: Called every ten seconds.
        """
        try:
            await self._run(liveness, report_status)
        finally:
            if self._scrubbing is not None:
                self._scrubbing.cancel()

    async def _run(self, liveness: Liveness, report_status: Callable[[], None]) -> None:
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
                self.scrub_if_due(time.monotonic())
                loop.expect_within(_CHECK_S)
                await asyncio.sleep(_CHECK_S)

    async def delete_expired(self) -> None:
        """Delete files of the state folder that have expired."""
        folder = self._folder
        await self._disk(trim, self._config.current, folder.paths, folder.journal, folder.ages.now())
        await self._recovery.refresh()

    def scrub_if_due(self, now: float) -> None:
        """Begin to check the generations on the disk if that is due, or go on where other work has interrupted it.

        Args:
            now: Monotonic time in seconds.
        """
        every_s = self._config.current.storage.scrub_hours * 3600.0
        if self._scrub_at is None:  # what serves was checked when it was loaded just now
            self._scrub_at = now + min(every_s, _FIRST_SCRUB_S)
        if not every_s or (self._scrubbing is not None and not self._scrubbing.done()):
            return
        if now >= self._scrub_at:
            self._scrub_at, self._to_scrub = now + every_s, self._generations()
        if self._to_scrub and self._scrub.may_go_on():
            self._scrubbing = asyncio.create_task(self._scrub_all())

    def _generations(self) -> list[tuple[str, int]]:
        store, found = self._folder.store, []
        for model in self._servers:
            numbers = (store.current(model), store.previous(model))
            found += [(model, number) for number in numbers if number is not None]
        return found

    async def _scrub_all(self) -> None:
        try:
            await scrub_models(self._scrub, self._to_scrub, self._recovery.note_scrubbed)
        except InterruptedScrubError:
            log.debug("the check of the generations on the disk waits until nothing else is done")
        except Exception:  # a fault of the daemon must not end its housekeeping
            self._to_scrub.clear()
            log.exception("the check of the generations on the disk failed")
