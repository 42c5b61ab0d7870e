"""Reads for /edged/v1: the answers of the daemon about its models and updates, as JSON types."""

from __future__ import annotations

import logging
from typing import Any

from edged.errors import ArtifactError
from edged.json_document import MALFORMED
from service.daemon.live_description import describe
from service.daemon.model_registry import ModelRegistry
from service.daemon.queue_rows import Turn, queue_rows
from service.daemon.samples import Samples
from service.intake.claim_queue import ClaimQueue
from service.journal.states import State
from service.journal.update import Update
from service.rollout.records import UpdateRecords
from service.rollout.recovery import Recovery
from service.rollout.swap import Swapper
from service.serving.model_server import ModelServer
from service.system.processes import resident_bytes
from service.units import iso_time
from service.updates.runner import UpdateRunner

log = logging.getLogger(__name__)

_SERVED = ("file_name", "bits", "activation_bits")  # of `Generation.artifact`


class Queries:
    """Reads, never changes.

    Args:
        models: Configured models with their servers and queues.
        swapper: Knows what is in service and what is held.
        recovery: Knows what is damaged.
        runner: Drives the updates.
        intake: Knows the parked files.
        records: Journal and reports of the updates.
    """

    def __init__(
        self,
        models: ModelRegistry,
        swapper: Swapper,
        recovery: Recovery,
        runner: UpdateRunner,
        intake: ClaimQueue,
        records: UpdateRecords,
    ) -> None:
        self._models = models
        self._swapper = swapper
        self._recovery = recovery
        self._runner = runner
        self._intake = intake
        self._updates = records.updates
        self._reports = records.reports

    async def models(self) -> list[dict[str, Any]]:
        """Return how each model is served."""
        return [self._model(server) for server in self._models.servers.values()]

    async def detailed_models(self, samples: Samples) -> list[dict[str, Any]]:
        """Return `models`, each with a description of its live generation and with its last hour."""
        open_updates = await self._updates.open_updates()
        on_probation = {update.model for update in open_updates if update.state is State.LIVE}
        detailed = []
        for model in await self.models():
            name, generation = model["name"], model["generation"]
            live = None if generation is None else await self._live(name, generation)
            layers = live.pop("layers") if live else []
            if live is not None:
                live["runtime"] = model["runtime"]
            more = {"live": live, "layers": layers, "samples": samples.of(name), "probation": name in on_probation}
            detailed.append({**model, **more, "rollback": await self._rollback(name)})
        return detailed

    async def open_updates(self) -> list[dict[str, Any]]:
        """Return the updates that have not ended, the oldest first."""
        return [self._update(update) for update in await self._updates.open_updates()]

    async def queue(self) -> list[dict[str, Any]]:
        """Return a row for each update that has not ended: first what runs, see `service.daemon.queue_rows`."""
        updates = [self._runner.as_known(update) for update in await self._updates.open_updates()]
        return queue_rows(updates, {update.id: self._turn(update) for update in updates})

    async def updates(self, model: str | None, state: State | None, limit: int) -> list[dict[str, Any]]:
        """Return the updates that match, the newest first; None stands for any."""
        return [self._update(update) for update in await self._updates.find(model, state, limit)]

    async def update(self, identity: int) -> dict[str, Any]:
        """Return an update and its events.

        Raises:
            UsageError: There is none.
        """
        events = await self._updates.events(identity)
        update = self._update(await self._updates.get(identity))
        return {**update, "events": [event.to_dict() for event in events]}

    async def report(self, identity: int) -> dict[str, Any]:
        """Return everything that is known of an update, see `service.reporting.data.gather`.

        Raises:
            UsageError: There is none.
        """
        return await self._reports.gather(identity)

    async def history(self, model: str) -> dict[str, Any]:
        """Return the generations of a model that exist, its published updates, and the updates that were not published.

        Raises:
            UsageError: There is no such model.
        """
        self._swapper.server(model)  # raises if there is no such model
        generations = self._swapper.generations
        published, others = await self._updates.history(model)
        return {
            "model": model,
            "current": generations.current(model),
            "previous": generations.previous(model),
            "generations": generations.numbers(model),
            "damaged": self._damaged(model),
            "updates": [update.to_dict() for update in published],
            "unpublished": [self._update(update) for update in others],
        }

    def _turn(self, update: Update) -> Turn:
        runner = self._runner
        place, priority = self._models.place(update)
        return Turn(
            working_since=runner.turns.working.get(update.id),
            waiting_since=runner.turns.waiting.get(update.id),
            retry_at=runner.retry_at.get(update.id),
            condition=runner.postponed.get(update.id),
            place=place,
            priority=priority,
            progress=runner.progress.get(update.id),
        )

    def _model(self, server: ModelServer) -> dict[str, Any]:
        live, queue = server.live, self._models.queues[server.name]
        return {
            "name": server.name,
            "ready": live is not None and live.serving,
            "generation": None if live is None else live.number,
            "current": self._swapper.generations.current(server.name),
            "problem": server.problem if live is None else self._recovery.problem(server.name, live.number),
            "damaged": self._damaged(server.name),
            "runtime": None if live is None else live.engine,
            **{key: None if live is None else live.artifact.get(key) for key in _SERVED},
            "restarts": server.restarts,
            "rss_bytes": 0 if live is None else resident_bytes(live.pid),
            "waiting": queue.waiting,
            "held": self._intake.parked(server.name),
            "signed": self._models.needs_signature(server.name),
            **vars(self._swapper.holds.of(server.name)),
        }

    def _damaged(self, model: str) -> list[dict[str, Any]]:
        """Return the records of a model's damaged generations, the oldest first."""
        return [{"generation": number, **record} for number, record in self._recovery.damaged.get(model, {}).items()]

    async def _live(self, model: str, generation: int) -> dict[str, Any] | None:
        """Return a description of a generation from its artifact; None if it cannot be read."""
        try:
            manifest, report = await self._swapper.generations.read(model, generation)
            return describe(manifest, report)
        except (ArtifactError, OSError, *MALFORMED) as error:
            log.warning("model %s generation %d: cannot read its description: %r", model, generation, error)
            return None

    async def _rollback(self, model: str) -> dict[str, Any] | None:
        """Return the generation that a rollback would put in service, and the file it was made from; None if none."""
        target = self._swapper.generations.rollback_target(model)
        if target is None:
            return None
        described = await self._live(model, target)
        return {"generation": target, "file_name": described and described["file_name"]}

    def _update(self, update: Update) -> dict[str, Any]:
        update = self._runner.as_known(update)
        again = self._runner.retry_at.get(update.id) if update.state is State.DEFERRED else None
        retry_at = None if again is None else iso_time(again)
        return {**update.to_dict(), "progress": self._runner.progress.get(update.id), "retry_at": retry_at}
