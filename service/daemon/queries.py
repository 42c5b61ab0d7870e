"""What the daemon tells of itself: the answers of /edged/v1 and /metrics, as JSON types."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from edged.errors import ArtifactError, UsageError
from service.daemon.context import Context
from service.daemon.gauges import RUNTIME, read_artifact, refresh
from service.daemon.samples import Samples
from service.journal.states import State
from service.journal.store import Update
from service.reporting.data import gather
from service.serving.model_server import ModelServer
from service.system.processes import resident_bytes
from service.units import iso_time
from service.updates.queue import UpdateQueue

log = logging.getLogger(__name__)


class Queries:
    """Reads, never changes.

    Args:
        context: What the supervisor owns.
        queues: By model name.
        progress: By update id: what its worker is doing now.
        held: Files of a model that wait in the drop folder for an operator.
        retry_at: By update id: when it is tried again, seconds since 1970.
    """

    def __init__(
        self,
        context: Context,
        queues: Mapping[str, UpdateQueue],
        progress: Mapping[int, Mapping[str, Any]],
        held: Callable[[str], int],
        retry_at: Mapping[int, float],
    ) -> None:
        self._context = context
        self._queues = queues
        self._progress = progress
        self._held = held
        self._retry_at = retry_at

    async def models(self) -> list[dict[str, Any]]:
        """How each model is served."""
        return [self._model(service) for service in self._context.servers.values()]

    async def detailed_models(self, samples: Samples) -> list[dict[str, Any]]:
        """`models`, each with what its live generation is made of and with its last hour."""
        open_updates = await self._context.disk(self._context.journal.open_updates)
        on_probation = {update.model for update in open_updates if update.state is State.LIVE}
        detailed = []
        for model in await self.models():
            name, generation = model["name"], model["generation"]
            live = None if generation is None else await self._live(name, generation)
            layers = live.pop("layers") if live else []
            more = {"live": live, "layers": layers, "samples": samples.of(name), "probation": name in on_probation}
            detailed.append({**model, **more})
        return detailed

    async def open_updates(self) -> list[dict[str, Any]]:
        """Updates that have not ended, the oldest first."""
        listed = await self._context.disk(self._context.journal.open_updates)
        return [self._update(update) for update in listed]

    async def updates(self, model: str | None, state: str | None, limit: int) -> list[dict[str, Any]]:
        """Updates, the newest first.

        Raises:
            UsageError: There is no such state.
        """
        try:
            wanted = None if state is None else State(state.upper())
        except ValueError:
            known = ", ".join(member.value for member in State)
            raise UsageError(f"state has value {state!r:.80}; choose one of {known}") from None
        listed = await self._context.disk(self._context.journal.list, model=model, state=wanted, limit=limit)
        return [self._update(update) for update in listed]

    async def update(self, identity: int) -> dict[str, Any]:
        """One update and what happened to it.

        Raises:
            UsageError: There is none.
        """
        events = await self._context.disk(self._context.journal.events, identity)
        update = self._update(await self._context.get(identity))
        return {**update, "events": [event.to_dict() for event in events]}

    async def report(self, identity: int) -> dict[str, Any]:
        """All that is known of one update, see `service.reporting.data.gather`.

        Raises:
            UsageError: There is none.
        """
        context = self._context
        return await context.disk(gather, context.journal, context.store, context.paths, identity)

    async def history(self, model: str) -> dict[str, Any]:
        """Which generations of a model exist, and the updates that were published.

        Raises:
            UsageError: There is no such model.
        """
        context = self._context
        context.require_model(model)
        store = context.store
        listed = await context.disk(context.journal.history, model)
        return {
            "model": model,
            "current": store.current(model),
            "previous": store.previous(model),
            "generations": store.generations(model),
            "updates": [update.to_dict() for update in listed],
        }

    async def exposition(self) -> tuple[bytes, str]:
        """The metrics in the Prometheus text format, and its content type."""
        refresh(self._context, self._queues)
        # 7 ms for a model of 100 layers, measured; and a thermal sensor or a disk on the network may be slow.
        text = await asyncio.to_thread(generate_latest, self._context.metrics.registry)
        return text, CONTENT_TYPE_LATEST

    def _model(self, service: ModelServer) -> dict[str, Any]:
        live, lane = service.live, self._queues[service.name]
        return {
            "name": service.name,
            "ready": live is not None and live.serving,
            "generation": None if live is None else live.number,
            "problem": None if live is not None else service.problem,
            "restarts": service.restarts,
            "rss_bytes": 0 if live is None else resident_bytes(live.pid),
            "waiting": lane.waiting,
            "held": self._held(service.name),
            **vars(self._context.holds.of(service.name)),
        }

    async def _live(self, model: str, generation: int) -> dict[str, Any] | None:
        """What the artifact of a generation says of itself; None if it cannot be read."""
        try:
            manifest, report = await self._context.disk(read_artifact, self._context, model, generation)
            return {
                "bits": manifest["quantization"]["bits"],
                "runtime": RUNTIME,
                "architecture": manifest["architecture"]["name"],
                "file_name": manifest["source"]["name"],
                "agreement": report["totals"].get("agreement"),
                "artifact_bytes": report["totals"].get("artifact_bytes"),
                "layers": [
                    {"name": str(x["name"]), "bits": x.get("bits"), "relative_loss": float(x["relative_loss"])}
                    for x in report["layers"]
                ],
            }
        except (ArtifactError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("model %s generation %d: cannot tell its figures: %r", model, generation, error)
            return None

    def _update(self, update: Update) -> dict[str, Any]:
        again = self._retry_at.get(update.id) if update.state is State.DEFERRED else None
        retry_at = None if again is None else iso_time(again)
        return {**update.to_dict(), "progress": self._progress.get(update.id), "retry_at": retry_at}
