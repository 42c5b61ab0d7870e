"""Owns everything: serves what was published, resumes what was interrupted, takes what is dropped.

The only writer of state. Imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

from edged.artifacts.store import ModelStore
from edged.errors import StateError
from service.config.load import Config
from service.daemon.admin import Administration
from service.daemon.context import Context
from service.daemon.gauges import show_history, show_live
from service.daemon.housekeeping import keep_house
from service.daemon.model_registry import ModelRegistry
from service.daemon.queries import Queries
from service.daemon.samples import Samples
from service.daemon.status_line import status_line
from service.intake.claim import sweep
from service.intake.claim_queue import ClaimQueue
from service.intake.drop_folder import DropFolder
from service.intake.watcher import Watcher
from service.journal.store import Journal
from service.metrics.registry import Metrics
from service.serving.model_server import ModelServer
from service.storage.paths import Paths
from service.storage.retention import trim
from service.system.disk_thread import Disk
from service.system.liveness import Liveness
from service.system.processes import resident_bytes
from service.system.timeouts import within
from service.units import iso_time
from service.updates.runner import UpdateRunner

log = logging.getLogger(__name__)

_DROP_FOLDER_S = 10.0  # a folder that takes longer to answer does not keep the models from being served
_LAST_UPDATES = 20


class Supervisor:
    """The daemon without its HTTP server.

    Args:
        context: What it owns.
        address: URL under which it answers.
        tell: Told every ten seconds what is going on, in a line.

    Attributes:
        queries: What it tells of itself.
        administration: What it does when an operator says so.
    """

    def __init__(self, context: Context, address: str = "", tell: Callable[[str], None] = lambda line: None) -> None:
        self.address = address
        self._tell = tell
        self._context = context
        self._runner = UpdateRunner(context)
        self._models = ModelRegistry(context, self._runner)
        self._samples = Samples()
        self._intake = ClaimQueue(context, self._models.offer, lambda drop: self._watcher.release(drop.path))
        self.queries = Queries(
            context, self._models.queues, self._runner.progress, self._intake.held, self._runner.retry_at
        )
        self.administration = Administration(context, self._intake.release)
        self._watcher = self._make_watcher()
        self._housekeeping: asyncio.Task[None] | None = None
        self._started_at = time.time()
        self._booted = False
        self._stopping = False

    @classmethod
    async def open(
        cls,
        config: Config,
        metrics: Metrics,
        address: str = "",
        liveness: Liveness | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> Supervisor:
        """Open the state folder.

        Raises:
            StateError: It cannot be written.
        """
        liveness = liveness or Liveness()
        paths, disk = Paths(config.state_dir), Disk(liveness)
        journal = await disk(Journal, paths.journal)
        store = ModelStore(paths.models)
        return cls(Context(config, paths, journal, store, metrics, disk, liveness=liveness), address, tell)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._context.config

    @property
    def metrics(self) -> Metrics:
        """Of this daemon."""
        return self._context.metrics

    @property
    def servers(self) -> dict[str, ModelServer]:
        """By model name."""
        return self._context.servers

    @property
    def ready(self) -> bool:
        """Whether every model that has a generation answers; false from the moment a stop is asked for."""
        return self._booted and not self._stopping and all(service.ready for service in self.servers.values())

    async def start(self) -> None:
        """Serve what was published, then resume what was interrupted, then take what is dropped.

        Raises:
            EdgedError: The state folder or the drop folder cannot be used.
        """
        await self._make_drop_folder(self.config)
        await self._context.holds.load()
        for model in self.config.models:
            self._models.add(model.name)
        await show_history(self._context)
        self._housekeeping = asyncio.create_task(keep_house(self._context, self._samples, self._tell_status))
        for service in self.servers.values():
            await service.first_try()
            if service.live is not None:
                await show_live(self._context, service.name, service.live.number)
        self._booted = True
        await self._context.disk(self._sweep)
        await self._context.forget_the_past()
        for name in self.servers:
            await self._models.resume(name)
        await self._watcher.start()

    def status_line(self) -> str:
        """What is going on, for the service manager."""
        phase = "stopping" if self._stopping else None if self._booted else "starting"
        watching = self._watcher.up or not self._watcher.looked
        return status_line(phase, self.servers, self._models.queues, self._runner.progress, watching)

    def _tell_status(self) -> None:
        self._tell(self.status_line())

    def begin_stop(self) -> None:
        """From now on the daemon is not ready, so that clients go elsewhere."""
        self._stopping = True

    async def stop(self) -> None:
        """End everything in the order of its dependence: intake, updates, serving, journal."""
        self.begin_stop()
        await self._watcher.stop()
        await self._intake.close()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        await asyncio.gather(*(lane.close() for lane in self._models.queues.values()))
        await asyncio.gather(*(service.close() for service in self.servers.values()))
        await self._context.fork_server.close()
        await self._context.disk(self._context.journal.close)
        self._context.disk.close()

    async def reload(self, config: Config) -> list[str]:
        """Put a new configuration in force; models come and go, all others serve on.

        Returns:
            The keys whose change needs a restart.

        Raises:
            StateError: The new drop folder cannot be made.
        """
        await self._make_drop_folder(config)
        before, self._context.config = self.config, config
        names = [model.name for model in config.models]
        for name in [name for name in self.servers if name not in names]:
            log.info("model %s is not configured any more", name)
            await self._models.remove(name)
        self._models.configure()
        for name in [name for name in names if name not in self.servers]:
            log.info("model %s is new", name)
            self._models.add(name)
            await self._models.resume(name)
        await self._context.disk(trim, config, self._context.paths, self._context.journal)
        await self._watcher.stop()
        self._watcher = self._make_watcher()
        await self._watcher.start()
        for lane in self._models.queues.values():
            if lane.active is not None and lane.active.id in self._runner.postponed:
                lane.look_again()  # what it waits for may have been what was changed
        fixed: dict[str, Callable[[Config], object]] = {
            "state_dir": lambda c: c.state_dir,
            "serve.host": lambda c: c.serve.host,
            "serve.port": lambda c: c.serve.port,
            "serve.socket": lambda c: c.serve.socket,
        }
        return [key for key, value in fixed.items() if value(before) != value(config)]

    async def status(self) -> dict[str, Any]:
        """Everything at a glance, JSON types."""
        return {
            "ready": self.ready,
            "started_at": iso_time(self._started_at),
            "state_dir": str(self._context.paths.root),
            "drop_dir": str(self.config.drop),
            "address": self.address,
            "rss_bytes": resident_bytes(os.getpid()),
            "watching": self._watcher.up,
            "models": await self.queries.models(),
            "updates": await self.queries.open_updates(),
        }

    async def overview(self) -> dict[str, Any]:
        """`status`, with the details of each model, and the last updates whether they have ended or not."""
        models = await self.queries.detailed_models(self._samples)
        updates = await self.queries.updates(None, None, _LAST_UPDATES)
        return {**await self.status(), "models": models, "updates": updates}

    def require_model(self, name: str) -> None:
        """Check that there is such a model.

        Raises:
            UsageError: There is none.
        """
        self._context.require_model(name)

    def _sweep(self) -> None:
        """Remove what a crash left behind."""
        sweep(self._context.paths.claimed)
        for leftover in self._context.paths.staging.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)

    def _make_watcher(self) -> Watcher:
        watch = self.config.watch
        return Watcher(
            _drop_folder(self.config),
            settle_s=watch.settle_s,
            rescan_s=watch.rescan_s,
            mode=watch.mode,
            on_settled=self._intake.put,
            on_refused=self._intake.put,
            on_health=self.metrics.watch_up.set,
            on_rebuilt=self.metrics.watch_rebuilds.inc,
            liveness=self._context.liveness,
        )

    async def _make_drop_folder(self, config: Config) -> None:
        """Before anything says ready: whoever sees that may drop a file."""
        try:
            await within(_DROP_FOLDER_S, asyncio.to_thread(_drop_folder(config).make))
        except asyncio.TimeoutError:
            log.error("drop_dir %s does not answer; serving goes on, and it is looked into once it does", config.drop)
        except OSError as error:
            reason = error.strerror or error
            raise StateError(f"cannot make drop_dir {config.drop}: {reason}; make it or change it") from error


def _drop_folder(config: Config) -> DropFolder:
    return DropFolder(config.drop, [model.name for model in config.models], config.watch.max_bytes)
