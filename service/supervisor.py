"""Owns everything: serves what was published, resumes what was interrupted, takes what is dropped.

The only writer of state. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from typing import Any

from edged.artifacts.store import ModelStore
from edged.errors import EdgedError, NotReadyError, UsageError
from service.config import Config
from service.context import Context, Disk
from service.intake import Intake
from service.journal import Journal, Update
from service.lanes import Lane
from service.metrics import Metrics
from service.paths import Paths
from service.rollback import roll_back
from service.serving import ModelService, ServingLimits
from service.units import iso_time
from service.updates import UpdateRunner
from service.watcher import Watcher

log = logging.getLogger(__name__)

_CHECK_S = 1.0


class Supervisor:
    """The daemon without its HTTP server.

    Args:
        context: What it owns.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._runner = UpdateRunner(context)
        self._lanes: dict[str, Lane] = {}
        self._intake = Intake(context, self._offer)
        self._watcher = self._make_watcher()
        self._checker: asyncio.Task[None] | None = None
        self._started_at = time.time()
        self._booted = False
        self._stopping = False

    @classmethod
    async def open(cls, config: Config, metrics: Metrics) -> Supervisor:
        """Open the state folder.

        Raises:
            StateError: It cannot be written.
        """
        paths = Paths(config.state_dir)
        disk = Disk()
        journal = await disk(Journal, paths.journal, time.time)
        return cls(Context(config, paths, journal, ModelStore(paths.models), metrics, disk))

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._context.config

    @property
    def metrics(self) -> Metrics:
        """Of this daemon."""
        return self._context.metrics

    @property
    def services(self) -> dict[str, ModelService]:
        """By model name."""
        return self._context.services

    @property
    def ready(self) -> bool:
        """Whether every model that has a generation answers; false from the moment a stop is asked for."""
        return self._booted and not self._stopping and all(service.ready for service in self.services.values())

    async def start(self) -> None:
        """Serve first, then resume, then watch."""
        for model in self.config.models:
            self._add_model(model.name)
        self._checker = asyncio.create_task(self._check())
        for update in await self._context.disk(self._context.journal.open_updates):
            self._offer(update)
        await self._watcher.start()
        self._booted = True

    def begin_stop(self) -> None:
        """From now on the daemon is not ready, so that clients go elsewhere."""
        self._stopping = True

    async def stop(self) -> None:
        """End what was begun in the order of its dependence: intake, updates, serving, journal."""
        self.begin_stop()
        await self._watcher.stop()
        if self._checker is not None:
            self._checker.cancel()
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        await asyncio.gather(*(service.close() for service in self.services.values()))
        await self._context.disk(self._context.journal.close)
        self._context.disk.close()

    async def reload(self, config: Config) -> list[str]:
        """Put a new configuration in force.

        Returns:
            What of it needs a restart.
        """
        before, self._context.config = self.config, config
        names = {model.name for model in config.models}
        for name in [name for name in self.services if name not in names]:
            log.info("model %s is not configured any more", name)
            await self._remove_model(name)
        for name in names - set(self.services):
            log.info("model %s is new", name)
            self._add_model(name)
        await self._watcher.stop()
        self._watcher = self._make_watcher()
        await self._watcher.start()
        fixed = {"state_dir", "serve.host", "serve.port"}
        return [key for key in sorted(fixed) if _dig(before, key) != _dig(config, key)]

    async def status(self) -> dict[str, Any]:
        """Everything at a glance, JSON types."""
        context = self._context
        open_updates = await context.disk(context.journal.open_updates)
        return {
            "ready": self.ready,
            "started_at": iso_time(self._started_at),
            "state_dir": str(context.paths.root),
            "drop_dir": str(self.config.drop),
            "models": [self._model_status(service) for service in self.services.values()],
            "updates": [self._update_dict(update) for update in open_updates],
        }

    async def updates(self, model: str | None, state: str | None, limit: int) -> list[dict[str, Any]]:
        """Updates, the newest first."""
        listed = await self._context.disk(self._context.journal.list, model=model, state=state, limit=limit)
        return [self._update_dict(update) for update in listed]

    async def update(self, identity: int) -> dict[str, Any]:
        """One update.

        Raises:
            UsageError: There is none.
        """
        return self._update_dict(await self._context.get(identity))

    async def history(self, model: str) -> dict[str, Any]:
        """What became of every file dropped for a model, and which generations exist.

        Raises:
            UsageError: There is no such model.
        """
        context = self._context
        self._require(model)
        listed = await context.disk(context.journal.history, model)
        return {
            "model": model,
            "current": context.store.current(model),
            "previous": context.store.previous(model),
            "generations": context.store.generations(model),
            "updates": [update.to_dict() for update in listed],
        }

    async def rollback(self, model: str) -> dict[str, Any]:
        """Put the generation before the current one back in service.

        Raises:
            UsageError: There is no such model.
            NotReadyError: There is no generation before.
        """
        self._require(model)
        return await roll_back(self._context, model)

    def _require(self, model: str) -> None:
        if model not in self.services:
            raise UsageError(f"no model {model!r}; configured: {', '.join(self.services) or 'none'}")

    def _add_model(self, name: str) -> None:
        context, serve = self._context, self.config.serve
        service = ModelService(name, lambda n: context.store.path(name, n), ServingLimits(queue=serve.queue))
        context.services[name] = service
        self._lanes[name] = Lane(self._runner.drive, self._runner.supersede, self._runner.fail)
        current = context.store.current(name)
        if current is not None:
            service.keep(current)

    async def _remove_model(self, name: str) -> None:
        await self._lanes.pop(name).close()
        await self._context.services.pop(name).close()

    def _offer(self, update: Update) -> None:
        lane = self._lanes.get(update.model)
        if lane is None:
            log.warning("update %d waits: model %s is not configured", update.id, update.model)
            return
        lane.offer(update)
