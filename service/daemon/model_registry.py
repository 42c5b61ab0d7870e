"""The configured models: each with the server that answers its requests and the queue of its updates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from service.config.current import CurrentConfig
from service.config.load import RuntimeConfig
from service.ipc.options import Batching
from service.ipc.shared_memory import BodyMemory
from service.journal.states import State
from service.journal.update import Update
from service.rollout.crash_log import CrashLog
from service.rollout.live_metrics import show_live
from service.rollout.records import UpdateRecords
from service.rollout.recovery import Recovery
from service.serving.class_names import class_names, renaming
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation
from service.serving.limits import Listener, ServingLimits
from service.serving.model_server import ModelServer
from service.serving.sampling import sampling_of
from service.storage.state_folder import StateFolder
from service.system.liveness import Liveness
from service.updates.queue import UpdateQueue
from service.updates.runner import UpdateRunner

log = logging.getLogger(__name__)

_STARTING = "is being started; try again in some seconds"  # a model of which nothing is known yet
_TENSORRT_START_S = 1800.0  # it builds an engine, which takes minutes


class ModelRegistry:
    """Puts models in service, reconfigures them on a reload, and takes them out of service.

    Args:
        config: Configuration in force.
        servers: Servers by model name. The registry alone adds and removes them.
        folder: State folder with the published generations.
        records: Journal and metrics.
        runner: Drives the updates of the models.
        recovery: Finds the generation to serve.
        liveness: Registers the loops of servers and queues.
        requested: Called with each request for inference.

    Attributes:
        servers: Servers by model name.
        queues: Update queues by model name.
    """

    def __init__(
        self,
        config: CurrentConfig,
        servers: dict[str, ModelServer],
        folder: StateFolder,
        records: UpdateRecords,
        runner: UpdateRunner,
        recovery: Recovery,
        liveness: Liveness,
        requested: Callable[[], None],
    ) -> None:
        self.servers = servers
        self.queues: dict[str, UpdateQueue] = {}
        self._config = config
        self._folder = folder
        self._updates = records.updates
        self._metrics = records.metrics
        self._runner = runner
        self._recovery = recovery
        self._generations = recovery.generations
        self._shown: set[asyncio.Task[None]] = set()
        self._liveness = liveness
        self._requested = requested
        self._fork_server = ForkServer(config.current.serve.arriving_bytes)
        runner.found_fit = self._found_fit

    @property
    def body_memory(self) -> BodyMemory:
        """Memory for the bodies of requests, which all generations can read."""
        return self._fork_server.memory

    def set_body_bytes(self, size: int) -> bool:
        """Change what the bodies of all requests may take together; return False if only a restart can."""
        return self._fork_server.set_body_bytes(size)

    def register(self, name: str) -> None:
        """Make a model known; its requests get 503 until `serve`."""
        metrics, crashes = self._metrics, CrashLog(self._updates, self._metrics, name)
        metrics.expect_model(name)
        listener = Listener(
            crashes.restarted,
            crashes.not_started,
            metrics.batch_size.labels(name).observe,
            partial(self._note_observed, name),
            self._requested,
            self._show_live,
            partial(self._recovery.replacement, name),
        )
        directory_of = partial(self._folder.store.path, name)
        self.servers[name] = ModelServer(
            name, directory_of, self._fork_server, self._limits(name), listener, self._liveness
        )
        self._set_sampling(name)
        self.servers[name].lose(_STARTING)
        self.queues[name] = UpdateQueue(self._runner, name, self._liveness)

    async def serve(self, name: str) -> None:
        """Serve the current generation of a registered model, or the newest whole one."""
        server = self.servers[name]
        async with server.switching:
            if (number := await self._recovery.entry(name)) is not None:
                server.keep(number)
            elif server.lost == _STARTING:
                server.lost = None

    async def first_tries(self) -> None:
        """Wait until the generation of each model answers, or its first start has failed."""
        for server in list(self.servers.values()):
            await server.first_try()
        if self._shown:
            await asyncio.wait(self._shown)

    def _show_live(self, live: Generation) -> None:
        task = asyncio.create_task(show_live(self._metrics, self._generations, live))
        self._shown.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._shown.discard)

    async def remove(self, name: str) -> None:
        """Stop the updates of a model, answer its open requests, and forget it."""
        await self.queues.pop(name).close()
        server = self.servers[name]
        async with server.switching:  # a rollback that is in progress would put it in service again
            del self.servers[name]
            await server.close()
        self._metrics.forget_model(name)

    async def close(self) -> None:
        """Shut everything down: queues, servers, and the process that generations are forked from."""
        interrupted = {update.id for queue in self.queues.values() for update in queue.updates}
        await asyncio.gather(*(queue.close() for queue in self.queues.values()))
        await self._updates.forgive(interrupted)
        await asyncio.gather(*(server.close() for server in self.servers.values()))
        await self._fork_server.close()

    def reconfigure(self) -> None:
        """Apply the configuration in force to all models."""
        for name, server in self.servers.items():
            limits = self._limits(name)
            if limits.labels != server.limits.labels:
                log.info(
                    "model %s: its new labels count from its next generation on, or the next start of its process: %s",
                    *(name, _change_of_labels(server, limits.labels)),
                )
            server.limits = limits  # for the next process; the serving one keeps its own
            self._set_sampling(name)

    async def resume(self, name: str) -> None:
        """Continue the updates of a model that a stop of the daemon has interrupted."""
        for update in await self._updates.open_updates():
            if update.model != name or update.state in (State.DROPPED, State.SETTLED):
                continue  # the latter are still in the drop folder
            if self._is_queued(update):
                continue
            resumed = await self._updates.resume(update.id)
            log.info("update %d of %s (%s) goes on from %s", update.id, name, update.file_name, resumed.state.value)
            waited = update.state is State.CLAIMED
            self.offer(resumed, since=update.updated_at if waited else None)

    def offer(self, update: Update, since: float | None = None) -> None:
        """Queue an update of a model.

        Args:
            update: Claimed update.
            since: When its wait began, in seconds since 1970; None for now.
        """
        queue = self.queues.get(update.model)
        if queue is not None:
            self._runner.turns.wait(update.id, since)
            queue.offer(update)

    def _is_queued(self, update: Update) -> bool:
        queue = self.queues.get(update.model)
        return queue is not None and queue.holds(update.id)

    def place(self, update: Update) -> tuple[int, int]:
        """Return the place of an update in the queue of its model, 0 for the first, and the priority of the model."""
        queue, model = self.queues.get(update.model), self._config.model(update.model)
        order = [] if queue is None else [queued.id for queued in queue.updates]
        place = order.index(update.id) if update.id in order else len(order)
        return place, 0 if model is None else model.priority

    async def _found_fit(self, update: Update) -> None:
        queue = self.queues.get(update.model)
        if queue is not None:
            await queue.found_fit(update)

    def needs_signature(self, name: str) -> bool:
        """Return whether the files of a model need a signature."""
        model = self._config.model(name)
        return model is not None and bool(model.trust.keys)

    def _limits(self, name: str) -> ServingLimits:
        model, serve = self._config.model(name), self._config.current.serve
        batching = Batching() if model is None else model.batching.to_batching()
        runtime = RuntimeConfig() if model is None else model.runtime
        return ServingLimits(
            threads=serve.threads,
            queue=serve.queue,
            batching=batching,
            runtime=runtime.name,
            device=serve.device,
            providers=runtime.providers,
            labels=None if model is None else model.labels,
            engine_cache=self._folder.paths.engine_cache(name),
            start_s=_TENSORRT_START_S if "tensorrt" in runtime.providers else ServingLimits.start_s,
        )

    def _set_sampling(self, name: str) -> None:
        model = self._config.model(name)
        if model is not None:
            self.servers[name].sampling = sampling_of(model, self._folder.paths.capture(name))
            if not model.drift.share:
                self._metrics.forget_drift(name)

    def _note_observed(self, name: str, observation: Mapping[str, Any]) -> None:
        """Export what a generation observed in a sampled request, unless drift is not measured since a reload."""
        server = self.servers.get(name)
        if server is not None:
            wanted = server.sampling.drift_share > 0
            self._metrics.note_observed(name, observation if wanted else {**observation, "drift_images": 0})


def _change_of_labels(server: ModelServer, labels: tuple[str, ...] | None) -> str:
    """Return how other labels of the config change the class names in answers."""
    if labels is None:
        return "the names of its artifact"
    names = None if server.live is None else class_names(server.live.metadata)
    return renaming(labels, names) or "the names that are in answers now"
