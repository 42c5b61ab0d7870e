"""The models that are configured: each with the service that answers for it and the lane of its updates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from service.daemon.context import Context
from service.ipc.options import Batching
from service.journal.states import State
from service.journal.store import Update
from service.rollout.crash_log import CrashLog
from service.serving.limits import Listener, ServingLimits
from service.serving.model_server import ModelServer
from service.serving.sampling import sampling_of
from service.updates.queue import UpdateQueue
from service.updates.runner import UpdateRunner

log = logging.getLogger(__name__)


class ModelRegistry:
    """Puts models in service, changes them with the config, and takes them out again.

    Args:
        context: Their servers are `context.servers`.
        runner: Drives their updates.

    Attributes:
        queues: The updates that wait or are worked on, by model name.
    """

    def __init__(self, context: Context, runner: UpdateRunner) -> None:
        self.queues: dict[str, UpdateQueue] = {}
        self._context = context
        self._runner = runner

    def add(self, name: str) -> None:
        """Serve what was published of a model, and take updates of it."""
        context, metrics, crashes = self._context, self._context.metrics, CrashLog(self._context, name)
        metrics.expect_model(name)
        told = Listener(
            crashes.restarted,
            crashes.not_started,
            metrics.batch_size.labels(name).observe,
            partial(self._note_observed, name),
        )
        directory_of = partial(context.store.path, name)
        context.servers[name] = ModelServer(
            name, directory_of, context.fork_server, self._limits(name), told, context.liveness
        )
        self._set_sampling(name)
        runner = self._runner
        self.queues[name] = UpdateQueue(runner.drive, runner.supersede, runner.fail, name, context.liveness)
        current = context.store.current(name)
        if current is not None:
            context.servers[name].keep(current)

    async def remove(self, name: str) -> None:
        """Let a model's work and its requests end, and forget it."""
        await self.queues.pop(name).close()
        service = self._context.servers[name]
        async with service.switching:  # a rollback that is under way would put it in service again
            del self._context.servers[name]
            await service.close()
        self._context.metrics.forget_model(name)

    def configure(self) -> None:
        """Have all models follow the configuration in force."""
        for name, service in self._context.servers.items():
            service.limits = self._limits(name)  # of the next process; the one that serves keeps its own
            self._set_sampling(name)

    async def resume(self, name: str) -> None:
        """Go on with what a stop of the daemon interrupted."""
        journal = self._context.journal
        for update in await self._context.disk(journal.open_updates):
            if update.model != name or update.state in (State.DROPPED, State.SETTLED):
                continue  # the latter are still in the drop folder
            resumed = await self._context.disk(journal.resume, update.id)
            log.info("update %d of %s goes on from %s", update.id, name, resumed.state.value)
            self.offer(resumed)

    def offer(self, update: Update) -> None:
        """Have an update driven once those before it have ended."""
        lane = self.queues.get(update.model)
        if lane is not None:
            lane.offer(update)

    def _limits(self, name: str) -> ServingLimits:
        model, serve = self._context.config.model(name), self._context.config.serve
        batching = Batching() if model is None else model.batching.to_batching()
        return ServingLimits(threads=serve.threads, queue=serve.queue, batching=batching)

    def _set_sampling(self, name: str) -> None:
        model = self._context.config.model(name)
        if model is not None:
            self._context.servers[name].sampling = sampling_of(model, self._context.paths.capture(name))
            if not model.drift.share:
                self._context.metrics.forget_drift(name)

    def _note_observed(self, name: str, told: Mapping[str, Any]) -> None:
        """What was chosen before a reload may be told after it."""
        service = self._context.servers.get(name)
        if service is not None:
            wanted = service.sampling.drift_share > 0
            self._context.metrics.note_observed(name, told if wanted else {**told, "drift_images": 0})
